//! A source: the commits of a local database, read from its WAL as they happen, without missing a
//! frame and without a write to anything SQLite owns.
//!
//! **The rule: be the only checkpointer, and let SQLite restart its own WAL.** SQLite restarts a
//! WAL only when all of it has been checkpointed. We hold WAL_CKPT_LOCK, so nobody else
//! checkpoints; around our own checkpoint we hold a read slot instead, which blocks a restart; and
//! we give that slot up only when what is captured and on disk reaches what is checkpointed. So
//! whenever the WAL restarts, all of it is in the log.
//!
//! | thread  | does                                                               | holds            |
//! |---------|--------------------------------------------------------------------|------------------|
//! | notice  | sleeps until the WAL grows, captures it into the log               | `Session::scanner` while it reads |
//! | keeper  | writes segment files, checkpoints, snapshots, trims; supervises    | the locks of `pin` |
//! | callers | `position`, `sync`: capture up to now themselves                   | `Session::scanner` while they read |
//!
//! The only stores to shared memory are read marks, each under its slot's exclusive lock, as any
//! reader makes them. kill -9 at any point: the kernel drops the locks,
//! nothing else is left.
//!
//! An error ends the session: all locks go, writers go on as if we were not there, and after a
//! pause the next session proves that the WAL still continues the log, or begins a new generation.

mod begin;
mod cycle;
mod freeze;
mod keeper;
mod lock_file;
mod notice;
mod observe;
mod pin;
mod policy;
mod rejoin;
mod scanner;
mod view;

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant, SystemTime};

use crossbeam_channel::{Receiver, Sender, bounded, unbounded};

use crate::error::{Error, ErrorKind, Result, lock};
use crate::host::conn::Checkpointed;
use crate::info::CheckpointMode;
use crate::log::{Log, Pack, layout::Layout};
use crate::pos::Pos;
use crate::registry;
pub use policy::LOG_BYTES_MIN;
use scanner::ScannerLock;

/// How long a position waits for a commit that is being published; recovery is part of it.
const TORN_WAIT: Duration = Duration::from_secs(2);

/// What to capture, and the bounds to do it in.
#[derive(Clone, Debug)]
pub struct CaptureConfig {
    /// The database file, canonical.
    pub path: PathBuf,
    /// The VFS of the connection that asked.
    pub vfs: String,
    /// Segment bytes kept in `DB-litestream/` at least before a new snapshot replaces them; the
    /// bound is the larger of this and the database's size.
    pub log_bytes_min: u64,
}

/// What capture is doing, for people.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// Opening the database and proving continuity.
    Starting,
    /// Another process captures this database; this one takes over if it ends.
    Standby,
    /// Copying the first snapshot of a generation.
    Snapshot,
    /// Following the WAL.
    Running,
    /// Between sessions after an error.
    Retrying,
    /// Stopped.
    Stopped,
}

impl State {
    /// As shown in `litestream_databases.state`.
    pub fn as_str(self) -> &'static str {
        match self {
            State::Starting => "starting",
            State::Standby => "standby",
            State::Snapshot => "snapshot",
            State::Running => "running",
            State::Retrying => "retrying",
            State::Stopped => "stopped",
        }
    }
}

/// Running counts, for metrics. All since the process began.
#[derive(Debug, Default)]
pub struct Counters {
    /// Commits captured.
    pub commits: AtomicU64,
    /// WAL bytes captured.
    pub wal_bytes: AtomicU64,
    /// Checkpoints made.
    pub checkpoints: AtomicU64,
    /// Times writers were held at the gate.
    pub gates: AtomicU64,
    /// Microseconds writers were held at the gate, in all.
    pub gate_us: AtomicU64,
    /// The longest time the gate was closed, in microseconds.
    pub gate_us_max: AtomicU64,
    /// How long it was closed the last time, in microseconds.
    pub gate_us_last: AtomicU64,
    /// When it was opened the last time, in microseconds since 1970.
    pub gate_opened_us: AtomicU64,
    /// Times it was opened before its checkpoint was done, because that took too long.
    pub gates_overdue: AtomicU64,
    /// Times it could not be closed.
    pub gates_missed: AtomicU64,
    /// Frames in the WAL now.
    pub wal_frames: AtomicU64,
    /// Sessions that ended with an error.
    pub errors: AtomicU64,
}

/// How long a caller waits for an answer, and what ends its wait before.
pub struct Patience<'c> {
    /// At most this long.
    pub wait: Duration,
    /// Asked every [`INTERRUPT_POLL`].
    pub interrupted: &'c dyn Fn() -> bool,
}

/// How long a wait sleeps before it asks whether the statement was interrupted.
const INTERRUPT_POLL: Duration = Duration::from_millis(20);

/// A request to the keeper, answered on the channel in it.
enum Request {
    Snapshot(Sender<Result<Pos>>),
    Checkpoint(CheckpointMode, Sender<Result<Checkpointed>>),
}

/// State and last error, together so that they are read together.
#[derive(Debug)]
struct Status {
    state: State,
    error: Option<String>,
    /// Somebody was in the way, who may be gone at the next attempt.
    busy: bool,
    since: SystemTime,
}

/// What one session's threads share.
struct Session {
    scanner: ScannerLock,
    pin: pin::Pin,
    /// The session ends: the notice thread goes.
    over: AtomicBool,
    /// The wal-index header stays torn: the keeper recovers it.
    torn: AtomicBool,
    /// What ended the notice thread.
    failed: Mutex<Option<Error>>,
}

/// What the threads and the callers share.
struct Shared {
    config: CaptureConfig,
    layout: Layout,
    log: Arc<Log>,
    status: Mutex<Status>,
    status_changed: Condvar,
    session: Mutex<Option<Arc<Session>>>,
    stop: AtomicBool,
    counters: Counters,
    /// Wakes the keeper.
    wake: Sender<()>,
    /// Wakes it from standing by, to stop; there is one while it does only, for it takes a
    /// descriptor.
    leave: Mutex<Option<Arc<pin::Bell>>>,
}

/// One captured database.
pub struct Capture {
    shared: Arc<Shared>,
    requests: Sender<Request>,
    keeper: Mutex<Option<JoinHandle<()>>>,
}

impl Capture {
    /// Starts capturing. Returns at once; [`Capture::wait_ready`] tells when followers can come.
    pub fn start(config: CaptureConfig) -> Result<Capture> {
        let layout = Layout::beside(&config.path)?;
        let log = Log::new(layout.clone());
        let (wake, woken) = bounded(1);
        let (requests, inbox) = unbounded();
        let shared = Arc::new(Shared {
            config,
            layout,
            log: Arc::new(log),
            status: Mutex::new(Status {
                state: State::Starting,
                error: None,
                busy: false,
                since: SystemTime::now(),
            }),
            status_changed: Condvar::new(),
            session: Mutex::new(None),
            stop: AtomicBool::new(false),
            counters: Counters::default(),
            wake,
            leave: Mutex::new(None),
        });
        // Tried here once, so that the caller knows at once whether it stands by.
        let lock_file = lock_file::LockFile::open(&shared)?;
        let theirs = Arc::clone(&shared);
        let keeper = registry::spawn_worker("litestream-keep", move || {
            keeper::supervise(&theirs, lock_file, &inbox, &woken);
        })?;
        Ok(Capture { shared, requests, keeper: Mutex::new(Some(keeper)) })
    }

    /// Waits until followers can be served, or this process stands by for another, or an attempt
    /// failed for more than somebody in the way; `None` if `wait` passed first.
    pub fn wait_ready(&self, wait: Duration) -> Option<Result<State>> {
        let deadline = Instant::now() + wait;
        let mut status = lock(&self.shared.status);
        loop {
            match status.state {
                State::Running | State::Standby => return Some(Ok(status.state)),
                State::Retrying if status.busy => {}
                State::Retrying | State::Stopped => {
                    let why = status.error.clone().unwrap_or_else(|| "stopped".into());
                    return Some(Err(Error::new(ErrorKind::Refused, why)));
                }
                State::Starting | State::Snapshot => {}
            }
            let left = deadline.checked_duration_since(Instant::now())?;
            status = match self.shared.status_changed.wait_timeout(status, left) {
                Ok((status, _)) => status,
                Err(poisoned) => poisoned.into_inner().0,
            };
        }
    }

    /// Why it has not begun yet, if somebody was in the way of every attempt so far.
    pub fn held_up(&self) -> Option<Error> {
        let status = lock(&self.shared.status);
        let error = status.error.clone().filter(|_| status.state == State::Retrying)?;
        Some(Error::new(ErrorKind::Busy, error))
    }

    /// Waits until this process captures; false if `wait` passed first.
    pub fn wait_running(&self, wait: Duration) -> bool {
        let status = lock(&self.shared.status);
        let changed = &self.shared.status_changed;
        let waited =
            changed.wait_timeout_while(status, wait, |status| status.state != State::Running);
        waited.unwrap_or_else(PoisonError::into_inner).0.state == State::Running
    }

    /// Whether another process captures this database at the moment.
    pub fn is_standby(&self) -> bool {
        lock(&self.shared.status).state == State::Standby
    }

    /// The log capture fills.
    pub fn log(&self) -> &Arc<Log> {
        &self.shared.log
    }

    /// The database.
    pub fn path(&self) -> &Path {
        &self.shared.config.path
    }

    /// Running counts.
    pub fn counters(&self) -> &Counters {
        &self.shared.counters
    }

    /// State, last error, and since when.
    pub fn status(&self) -> (State, Option<String>, SystemTime) {
        let status = lock(&self.shared.status);
        (status.state, status.error.clone(), status.since)
    }

    /// A position that covers every commit made before the call, whichever process captures.
    pub fn position(&self) -> Result<Pos> {
        if self.is_standby() {
            return observe::position(&self.shared);
        }
        let deadline = Instant::now() + TORN_WAIT;
        loop {
            let session = self.shared.running()?;
            let outcome = session.scanner.lock().catch_up_now(&self.shared.counters);
            match outcome {
                Ok(()) => return self.shared.log.position().ok_or_else(Error::no_generation),
                Err(error) if error.kind() != ErrorKind::Busy || Instant::now() > deadline => {
                    return Err(error);
                }
                Err(_) => std::thread::sleep(Duration::from_millis(1)),
            }
        }
    }

    /// Puts every commit made before the call into files that survive a power loss.
    pub fn sync(&self) -> Result<Pos> {
        let pos = self.position()?;
        self.shared.log.flush(Pack::Compressed, true)?;
        Ok(pos)
    }

    /// Takes a snapshot now.
    pub fn snapshot(&self, patience: &Patience) -> Result<Pos> {
        self.ask(patience, Request::Snapshot)
    }

    /// Checkpoints without losing a frame.
    pub fn checkpoint(&self, mode: CheckpointMode, patience: &Patience) -> Result<Checkpointed> {
        self.ask(patience, |answer| Request::Checkpoint(mode, answer))
    }

    fn ask<T>(
        &self,
        patience: &Patience,
        request: impl FnOnce(Sender<Result<T>>) -> Request,
    ) -> Result<T> {
        self.shared.running()?;
        let (answer, answered) = bounded(1);
        let gone = || Error::new(ErrorKind::Stopped, "capture has stopped");
        self.requests.send(request(answer)).map_err(|_| gone())?;
        self.shared.wake_keeper();
        let deadline = Instant::now() + patience.wait;
        loop {
            match answered.recv_timeout(INTERRUPT_POLL) {
                Ok(outcome) => return outcome,
                Err(error) if error.is_disconnected() => return Err(gone()),
                Err(_) if (patience.interrupted)() => {
                    return Err(Error::new(ErrorKind::Stopped, "interrupted"));
                }
                Err(_) if Instant::now() >= deadline => {
                    let why = format!("no answer within {} ms", patience.wait.as_millis());
                    return Err(Error::new(ErrorKind::Timeout, why));
                }
                Err(_) => {}
            }
        }
    }

    /// Stops the threads, writes what is captured to files and lets the WAL go.
    pub fn stop(&self) {
        self.shared.stop.store(true, Ordering::Release);
        if let Some(leave) = lock(&self.shared.leave).as_ref() {
            leave.ring();
        }
        self.shared.wake_keeper();
        if let Some(keeper) = lock(&self.keeper).take() {
            registry::join(keeper);
        }
        self.shared.log.close();
    }
}

impl Shared {
    fn stopping(&self) -> bool {
        self.stop.load(Ordering::Acquire)
    }

    fn wake_keeper(&self) {
        // A full channel means it is awake already.
        let _already_awake = self.wake.try_send(());
    }

    fn running(&self) -> Result<Arc<Session>> {
        if let Some(session) = lock(&self.session).clone() {
            return Ok(session);
        }
        let status = lock(&self.status);
        let why = match (&status.error, status.state) {
            (_, State::Standby) => "another process captures this database".to_owned(),
            (Some(error), _) => format!("capture is not running: {error}"),
            (None, State::Running) => "capture has ended with an error and starts again".to_owned(),
            (None, state) => format!("capture is not running yet (it is {})", state.as_str()),
        };
        Err(Error::new(ErrorKind::Busy, why))
    }

    fn set_state(&self, state: State) {
        let mut status = lock(&self.status);
        if status.state != state {
            status.state = state;
            status.since = SystemTime::now();
        }
        if state == State::Running {
            status.error = None;
        }
        drop(status);
        self.status_changed.notify_all();
    }

    fn fail(&self, error: &Error) {
        self.counters.errors.fetch_add(1, Ordering::Relaxed);
        registry::log(registry::Level::Error, &self.config.path, &error.to_string());
        let mut status = lock(&self.status);
        status.error = Some(error.to_string());
        status.busy = error.kind() == ErrorKind::Busy;
        drop(status);
        self.set_state(State::Retrying);
    }

    /// Sleeps until woken, stopped or `wait` is over.
    fn pause(&self, woken: &Receiver<()>, wait: Duration) {
        if !self.stopping() {
            let _timeout_or_woken = woken.recv_timeout(wait);
        }
    }
}
