//! The keeper: one thread a database that supervises sessions and, within one, does all that may
//! take time: segment files, checkpoints, snapshots, trimming, requests.
//!
//! ```text
//! standby --lock file ours--> begin --> snapshot if new --> running --error--> pause --> begin
//! ```
//!
//! While a snapshot's pages are copied nothing can be checkpointed, and the WAL grows. What
//! follows, its way to the disk and the deletion of what it replaces, is done by a thread of its
//! own, one at a time, which never outlives its session.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender};

use super::cycle::Cycle;
use super::lock_file::{LockFile, identity};
use super::notice::Notice;
use super::scanner::ScannerLock;
use super::{Request, Session, Shared, State, begin, policy};
use crate::error::{Context, Error, ErrorKind, Result, lock};
use crate::fault;
use crate::host::file::Door;
use crate::host::guard::guard;
use crate::log::{Pack, SnapshotWriter};
use crate::pos::Pos;
use crate::registry;

/// Segment files are written at least this often while there is something to write.
const FLUSH_EVERY: Duration = Duration::from_secs(1);
/// A busy WAL is looked at this often for a moment to checkpoint.
const TICK: Duration = Duration::from_millis(2);
/// With nothing due the keeper sleeps this long.
const IDLE: Duration = Duration::from_secs(1);
/// How often the names of our files are looked up while capturing.
const LOOK_EVERY: Duration = Duration::from_secs(1);
const RETRY_MIN: Duration = Duration::from_millis(100);
const RETRY_MAX: Duration = Duration::from_secs(5);

/// Runs sessions until stopped.
pub(super) fn supervise(
    shared: &Arc<Shared>,
    mut lock_file: LockFile,
    inbox: &Receiver<Request>,
    woken: &Receiver<()>,
) {
    let mut pause = RETRY_MIN;
    while !shared.stopping() {
        let started = Instant::now();
        let ours = lock_file.stand_by(shared, woken);
        let outcome = ours.and_then(|ours| {
            if ours { run_session(shared, &lock_file, inbox, woken) } else { Ok(()) }
        });
        match outcome {
            Ok(()) => break,
            Err(error) if shared.stopping() => {
                registry::log(registry::Level::Info, &shared.config.path, &error.to_string());
            }
            Err(error) => {
                shared.fail(&error);
                refuse_all(inbox, &error);
                if started.elapsed() > RETRY_MAX {
                    pause = RETRY_MIN;
                }
                let until = Instant::now() + pause;
                while !shared.stopping() && Instant::now() < until {
                    shared.pause(woken, until.saturating_duration_since(Instant::now()));
                }
                pause = (pause * 2).min(RETRY_MAX);
            }
        }
    }
    shared.set_state(State::Stopped);
}

/// The database is looked at by name, never opened: a close would drop the host's locks on it.
fn database_identity(shared: &Shared) -> Result<(u64, u64)> {
    let path = &shared.config.path;
    let meta = fault::at("capture/database/stat").and_then(|()| std::fs::metadata(path));
    meta.map(|meta| identity(&meta)).context(|| format!("cannot find {}", path.display()))
}

fn refuse_all(inbox: &Receiver<Request>, error: &Error) {
    let why = || Error::new(ErrorKind::Busy, format!("capture is not running: {error}"));
    while let Ok(request) = inbox.try_recv() {
        // Whoever asked may have given up waiting.
        let _asker_gone = match request {
            Request::Snapshot(answer) => answer.send(Err(why())).is_err(),
            Request::Checkpoint(_, answer) => answer.send(Err(why())).is_err(),
        };
    }
}

fn run_session(
    shared: &Arc<Shared>,
    lock_file: &LockFile,
    inbox: &Receiver<Request>,
    woken: &Receiver<()>,
) -> Result<()> {
    let database = database_identity(shared)?;
    let mut begun = begin::begin(shared)?;
    begun.scanner.catch_up_now(&shared.counters)?;
    let session = Arc::new(Session {
        scanner: ScannerLock::new(begun.scanner),
        pin: begun.pin,
        over: AtomicBool::new(false),
        torn: AtomicBool::new(false),
        failed: std::sync::Mutex::new(None),
    });
    let cycle = Cycle::new(&session.pin, begun.sql, &session.scanner, shared);
    let mut keeper = Keeper {
        shared,
        session: &session,
        door: &begun.door,
        lock_file,
        database,
        looked: Instant::now(),
        cycle,
        tried_at: 0,
        flushed: Instant::now(),
        captured: 0,
        finishing: None,
    };
    let worker = {
        let (shared, session) = (Arc::clone(shared), Arc::clone(&session));
        let wal = begun.door.wal_path().to_owned();
        registry::spawn_worker("litestream-cap", move || {
            let mut notice = Notice::new(&shared, &session, &wal);
            if let Err(error) = guard("noticing commits", || notice.run()) {
                // Nobody may read on from a WAL that is not held any more.
                *lock(&shared.session) = None;
                // The keeper may be stuck for long yet, and could not tell.
                if session.pin.let_go().is_set() {
                    shared.fail(&error);
                }
                *lock(&session.failed) = Some(error);
                shared.wake_keeper();
            }
        })?
    };
    // A panic ends the session like any error: its locks go, and it is tried again.
    let work = || keeper.start(begun.fresh).and_then(|()| keeper.run(inbox, woken));
    let outcome = guard("capture", work);
    session.over.store(true, Ordering::Release);
    session.pin.bell().ring();
    registry::join(worker);
    *lock(&shared.session) = None;
    let last = keeper.finish();
    outcome.and(last)
}

struct Keeper<'s> {
    shared: &'s Arc<Shared>,
    session: &'s Arc<Session>,
    door: &'s Arc<Door>,
    lock_file: &'s LockFile,
    /// Which file the session's connections opened.
    database: (u64, u64),
    looked: Instant,
    cycle: Cycle<'s>,
    tried_at: u32,
    flushed: Instant,
    /// WAL bytes captured at the last look whether to write files.
    captured: u64,
    /// The thread that brings a snapshot, or many segments, to the disk.
    finishing: Option<JoinHandle<()>>,
}

impl Keeper<'_> {
    /// The first snapshot of a new generation, then the log is open to followers.
    fn start(&mut self, fresh: bool) -> Result<()> {
        if fresh {
            let (copy, bytes_max) = self.copy()?;
            begin::finish(self.shared, copy, bytes_max)?;
            self.shared.log.flush(Pack::Compressed, true)?;
            self.shared.log.adopt()?;
        } else {
            self.shared.log.resume();
        }
        self.cycle.settle()?;
        *lock(&self.shared.session) = Some(Arc::clone(self.session));
        self.shared.set_state(State::Running);
        Ok(())
    }

    fn run(&mut self, inbox: &Receiver<Request>, woken: &Receiver<()>) -> Result<()> {
        let mut seen = (0, Instant::now());
        while !self.shared.stopping() {
            match self.turn(inbox, &mut seen) {
                Ok(()) => self.shared.pause(woken, self.next_look(seen.0)),
                // A writer died while publishing or waits for a processor, or a checkpoint of
                // somebody's takes long: no reason to let go of the WAL.
                Err(error) if error.kind() == ErrorKind::Busy => {
                    let torn = self.session.pin.view().header().is_none();
                    self.session.torn.store(torn, Ordering::Release);
                }
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// All that may be due. `seen`: frames in the WAL, and since when so many.
    fn turn(&mut self, inbox: &Receiver<Request>, seen: &mut (u32, Instant)) -> Result<()> {
        self.session.pin.keep_alive()?;
        if let Some(error) = lock(&self.session.failed).take() {
            return Err(error);
        }
        self.look_around()?;
        if let Some(why) = self.shared.log.damage() {
            return Err(Error::new(ErrorKind::Corrupt, why));
        }
        if self.session.torn.swap(false, Ordering::AcqRel) {
            self.cycle.recover()?;
        }
        self.answer(inbox)?;
        let frames = self.session.scanner.lock().frames();
        if frames != seen.0 {
            *seen = (frames, Instant::now());
        }
        self.checkpoint_if_due(seen.0, seen.1)?;
        self.flush_if_due()?;
        self.snapshot_if_due()
    }

    /// Whether the files we work with are still the ones their names lead to. Somebody who removes
    /// or replaces them takes our locks and our history out of everybody else's sight.
    fn look_around(&mut self) -> Result<()> {
        if self.looked.elapsed() < LOOK_EVERY {
            return Ok(());
        }
        self.looked = Instant::now();
        if database_identity(self.shared)? != self.database {
            return Err(Error::new(ErrorKind::Io, "the database file was replaced by another"));
        }
        if !self.lock_file.is_in_place(self.shared) {
            let why = format!("{} was removed", self.shared.layout.root().display());
            return Err(Error::new(ErrorKind::Io, why));
        }
        self.shared.log.look_for_snapshot();
        Ok(())
    }

    fn next_look(&self, frames: u32) -> Duration {
        // A try that readers kept from finishing waits for more frames, not for the next tick.
        let untried = frames >= policy::CHECKPOINT_FRAMES && frames != self.tried_at;
        let due = untried && !self.cycle.pin.view().is_armed();
        if due || self.cycle.pin.slot().is_some() {
            TICK
        } else if self.shared.log.unflushed_bytes() > 0 || self.shared.log.unsynced_files() > 0 {
            FLUSH_EVERY.saturating_sub(self.flushed.elapsed()).max(TICK)
        } else {
            IDLE
        }
    }

    fn checkpoint_if_due(&mut self, frames: u32, grown_at: Instant) -> Result<()> {
        if self.cycle.pin.slot().is_some() && !self.cycle.settle()? {
            return Ok(());
        }
        if frames < self.tried_at {
            self.tried_at = 0;
        }
        let wal = policy::Wal {
            frames,
            tried_at: self.tried_at,
            quiet: grown_at.elapsed(),
            armed: self.cycle.pin.view().is_armed(),
        };
        if policy::wants_checkpoint(wal) {
            self.cycle.run()?;
            self.tried_at = self.session.scanner.lock().frames();
        }
        Ok(())
    }

    fn flush_if_due(&mut self) -> Result<()> {
        let log = &self.shared.log;
        if log.unflushed_bytes() == 0 && log.unsynced_files() == 0 {
            self.flushed = Instant::now();
        } else if self.flushed.elapsed() >= FLUSH_EVERY {
            let captured = self.shared.counters.wal_bytes.load(Ordering::Relaxed);
            let grown = captured.wrapping_sub(std::mem::replace(&mut self.captured, captured));
            log.flush(policy::pack(log.unflushed_bytes()), false)?;
            // A writer this fast would wait for its own fsyncs behind ours; what a power loss takes
            // from the log then costs a new generation, never a wrong one.
            if grown <= policy::SYNCED_BYTES_MAX {
                self.sync()?;
            }
            self.flushed = Instant::now();
        }
        Ok(())
    }

    /// Brings the log's files to the disk: at once if they are few, else by a thread, since a disk
    /// may take its time for each.
    fn sync(&mut self) -> Result<()> {
        if self.shared.log.unsynced_files() <= policy::SYNCED_FILES_MAX {
            return self.shared.log.flush(Pack::Compressed, true);
        }
        if self.finishing.as_ref().is_some_and(|thread| !thread.is_finished()) {
            return Ok(());
        }
        self.finish_later(|shared| shared.log.flush(Pack::Compressed, true))
    }

    fn snapshot_if_due(&mut self) -> Result<()> {
        if self.finishing.as_ref().is_some_and(|thread| !thread.is_finished()) {
            return Ok(());
        }
        let bytes = self.shared.log.segment_bytes_since_snapshot();
        let minimum = self.shared.config.log_bytes_min;
        // An index cannot be cut: a second snapshot of the same one would bound nothing.
        if self.shared.log.is_snapshot_current() {
            return Ok(());
        }
        // Cheap for the common case: the size of the database is asked only beyond the minimum.
        if bytes > minimum && policy::wants_snapshot(bytes, self.door.db_size()?, minimum) {
            self.snapshot(None)?;
        }
        Ok(())
    }

    /// A snapshot, and the log trimmed to its bound afterwards, by a thread that answers then.
    fn snapshot(&mut self, answer: Option<Sender<Result<Pos>>>) -> Result<()> {
        self.finished();
        let (copy, bytes_max) = match (self.copy(), &answer) {
            (Ok(copied), _) => copied,
            (Err(error), Some(answer)) => return reply(answer, Err(error)),
            (Err(error), None) => return Err(error),
        };
        self.finish_later(move |shared| {
            let done = guard("a snapshot", || begin::finish(shared, copy, bytes_max));
            match (done, answer) {
                (done, Some(answer)) => reply(&answer, done),
                (done, None) => done.map(|_| ()),
            }
        })
    }

    /// Leaves to a thread what waits for a disk. Its error ends the session.
    fn finish_later(
        &mut self,
        work: impl FnOnce(&Shared) -> Result<()> + Send + 'static,
    ) -> Result<()> {
        self.finished();
        let (shared, session) = (Arc::clone(self.shared), Arc::clone(self.session));
        self.finishing = Some(registry::spawn_worker("litestream-snap", move || {
            if let Err(error) = guard("work on the log", || work(&shared)) {
                *lock(&session.failed) = Some(error);
                shared.wake_keeper();
            }
        })?);
        Ok(())
    }

    /// Waits for the thread that brings things to the disk.
    fn finished(&mut self) {
        if let Some(thread) = self.finishing.take() {
            registry::join(thread);
        }
    }

    /// The pages of a snapshot, and how many bytes of segments the log may keep beside it.
    /// WAL_CKPT_LOCK must be ours.
    fn copy(&mut self) -> Result<(SnapshotWriter, u64)> {
        if !self.cycle.pin.take_checkpoint(Duration::from_secs(1))? {
            let why = "another connection's checkpoint does not end";
            return Err(Error::new(ErrorKind::Busy, why));
        }
        let at = {
            let mut scanner = self.session.scanner.lock();
            scanner.catch_up_now(&self.shared.counters)?;
            scanner.tip().pos
        };
        let copy = begin::copy(self.shared, &self.session.pin, self.door, at)?;
        let size = self.door.db_size()?;
        Ok((copy, policy::log_bytes_max(size, self.shared.config.log_bytes_min)))
    }

    fn answer(&mut self, inbox: &Receiver<Request>) -> Result<()> {
        while let Ok(request) = inbox.try_recv() {
            let failed = match request {
                Request::Snapshot(answer) => self.snapshot(Some(answer)),
                Request::Checkpoint(mode, answer) => reply(&answer, self.cycle.on_request(mode)),
            };
            failed?;
        }
        Ok(())
    }

    /// The last of the session: what was captured is in files before the locks go.
    fn finish(&mut self) -> Result<()> {
        self.finished();
        let captured = self.session.scanner.lock().catch_up_now(&self.shared.counters);
        let flushed = self.shared.log.flush(Pack::Compressed, true);
        self.cycle.pin.release_all();
        captured.and(flushed)
    }
}

/// Sends the outcome to whoever asked. An error that would end the session still does.
fn reply<T>(answer: &Sender<Result<T>>, outcome: Result<T>) -> Result<()> {
    let ends = outcome.as_ref().err().map(|error| Error::new(error.kind(), error.to_string()));
    let _asker_gone = answer.send(outcome);
    match ends {
        Some(error) if error.kind() != ErrorKind::Busy => Err(error),
        _ => Ok(()),
    }
}
