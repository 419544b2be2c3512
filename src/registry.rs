//! Background threads and what they have to say.
//!
//! Every thread of ours is started here: named, with signals blocked (the host's handlers run on
//! the host's threads), and with a guard that turns a panic into a line of the log. Nothing is ever
//! written to stdout or stderr: messages go to a bounded ring (the table `litestream_log`) and to
//! the host's own `sqlite3_log`.
//!
//! | thing       | changed by  | while holding |
//! |-------------|-------------|---------------|
//! | the ring    | any thread  | `RING`        |
//! | `OWNER`     | the first thread started in a process | atomically, once |

use std::collections::VecDeque;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread::{Builder, JoinHandle};
use std::time::SystemTime;

use crate::error::{Error, ErrorKind, Result, lock};
use crate::host::guard::guard;
use crate::host::{api, fork, os};

/// Lines kept for `litestream_log`; the oldest go.
const RING_LINES_MAX: usize = 1000;
/// Bytes of one message kept.
const MESSAGE_BYTES_MAX: usize = 4096;
/// A worker needs little: its buffers are on the heap.
const STACK_BYTES: usize = 512 << 10;

/// The process that has our threads; 0 before the first one. After a fork the child differs from
/// it.
static OWNER: AtomicU32 = AtomicU32::new(0);
static RING: Mutex<VecDeque<Line>> = Mutex::new(VecDeque::new());

/// How bad it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Level {
    /// Something happened.
    Info,
    /// Something went wrong and was dealt with.
    Warn,
    /// Something is not working.
    Error,
}

impl Level {
    /// As shown in `litestream_log.level`.
    pub fn as_str(self) -> &'static str {
        match self {
            Level::Info => "info",
            Level::Warn => "warn",
            Level::Error => "error",
        }
    }

    /// As `sqlite3_log` gets it: SQLITE_NOTICE, SQLITE_WARNING or SQLITE_ERROR.
    fn code(self) -> i32 {
        match self {
            Level::Info => 27,
            Level::Warn => 28,
            Level::Error => 1,
        }
    }
}

/// One line of the log.
#[derive(Clone, Debug)]
pub struct Line {
    /// When.
    pub at: SystemTime,
    /// How bad.
    pub level: Level,
    /// Which database; empty for the process.
    pub database: PathBuf,
    /// What.
    pub message: String,
}

/// Adds a line to the ring and tells the host.
pub fn log(level: Level, database: impl AsRef<Path>, message: &str) {
    let database = database.as_ref().to_owned();
    let end = (0..=MESSAGE_BYTES_MAX.min(message.len()))
        .rev()
        .find(|at| message.is_char_boundary(*at))
        .unwrap_or(0);
    let message = message.get(..end).unwrap_or_default().to_owned();
    api::log(level.code(), &format!("litestream: {}: {message}", database.display()));
    let mut ring = lock(&RING);
    while ring.len() >= RING_LINES_MAX {
        ring.pop_front();
    }
    ring.push_back(Line { at: SystemTime::now(), level, database, message });
}

/// The lines kept, oldest first.
pub fn lines() -> Vec<Line> {
    lock(&RING).iter().cloned().collect()
}

/// Starts a thread. A panic in it is logged, and ends only the thread.
pub fn spawn_worker(name: &str, body: impl FnOnce() + Send + 'static) -> Result<JoinHandle<()>> {
    check_fork()?;
    fork::watch();
    OWNER.store(os::pid(), Ordering::Release);
    let label = name.to_owned();
    let run = move || {
        os::block_signals();
        let outcome = guard(&label, || {
            body();
            Ok(())
        });
        if let Err(error) = outcome {
            log(Level::Error, "", &error.to_string());
        }
    };
    os::with_signals_blocked(|| {
        Builder::new().name(name.to_owned()).stack_size(STACK_BYTES).spawn(run)
    })
    .map_err(|error| Error::from(error).context(format!("cannot start thread {name}")))
}

/// Waits for a thread's end. Its panics were dealt with inside it.
pub fn join(worker: JoinHandle<()>) {
    let _panics_end_in_the_guard = worker.join();
}

/// An error in a child of `fork` whose parent had threads of ours: the child has none of them.
pub fn check_fork() -> Result<()> {
    let owner = OWNER.load(Ordering::Acquire);
    if owner == 0 || owner == os::pid() {
        return Ok(());
    }
    let why = format!(
        "this process was forked from process {owner}, where litestream's threads are; \
         start litestream only after the fork, or in a child that has run exec (Python: the start \
         method 'spawn')"
    );
    Err(Error::new(ErrorKind::Refused, why))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_ring_keeps_the_newest_lines() {
        for number in 0..RING_LINES_MAX + 10 {
            log(Level::Info, "ring-test", &format!("line {number}"));
        }
        let lines = lines();
        assert!(lines.len() <= RING_LINES_MAX);
        let last = lines.iter().rev().find(|line| line.database == Path::new("ring-test"));
        assert_eq!(last.unwrap().message, format!("line {}", RING_LINES_MAX + 9));
    }

    #[test]
    fn a_long_message_is_cut_between_characters() {
        log(Level::Info, "cut-test", &"\u{e9}".repeat(MESSAGE_BYTES_MAX));
        let lines = lines();
        let line = lines.iter().rev().find(|line| line.database == Path::new("cut-test")).unwrap();
        assert_eq!(line.message.len(), MESSAGE_BYTES_MAX);
    }

    #[test]
    fn a_panic_ends_in_the_log() {
        let worker = spawn_worker("panic-test", || panic!("on purpose")).unwrap();
        join(worker);
        assert!(lines().iter().any(|line| line.message.contains("panic-test")));
    }
}
