//! The replica's checkpointer: thread "follow-keeper", with a connection of its own for SQL.
//!
//! It moves frames into the database with PASSIVE checkpoints (synchronous NORMAL: WAL synced
//! before, database after), so that applying never waits for a disk. Starting the WAL over stays
//! the applier's business. Intents are synced before and after, or a power loss could leave a
//! commit without one.

use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use super::index::Gauge;
use super::intents::Intents;
use super::pace::{CHECKPOINT_FRAMES, checkpoint_due};
use crate::error::{Result, lock};
use crate::host::conn::{CHECKPOINT_PASSIVE, Connection};
use crate::registry::{self, Level};

/// How often it looks without being called.
const LOOK: Duration = Duration::from_millis(500);
/// How long it waits after a checkpoint that readers kept from finishing.
const AFTER_BUSY: Duration = Duration::from_millis(50);

/// The running checkpointer. Dropping it ends the thread and waits for that.
pub struct Keeper {
    gauge: Gauge,
    connection: Arc<Connection>,
    bell: Arc<Bell>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Default)]
struct Bell {
    stopping: AtomicBool,
    /// Every frame is wanted in the database, however few are not: applying waits for it.
    wanted: AtomicBool,
    rung: Mutex<bool>,
    wake: Condvar,
}

impl Bell {
    fn ring(&self) {
        *lock(&self.rung) = true;
        self.wake.notify_one();
    }

    fn wait(&self, limit: Duration) {
        let rung = lock(&self.rung);
        let waited = self.wake.wait_timeout_while(rung, limit, |rung| !*rung);
        let (mut rung, _) = waited.unwrap_or_else(PoisonError::into_inner);
        *rung = false;
    }
}

impl Keeper {
    /// Starts it for the database at `path`.
    pub fn start(path: &Path, vfs: &str, gauge: Gauge, intents: Arc<Intents>) -> Result<Self> {
        let connection = Connection::open(path, vfs, false)?;
        connection.execute("PRAGMA wal_autocheckpoint = 0; PRAGMA synchronous = NORMAL")?;
        let connection = Arc::new(connection);
        let bell = Arc::new(Bell::default());
        let work = Work {
            connection: Arc::clone(&connection),
            gauge: gauge.clone(),
            intents,
            bell: Arc::clone(&bell),
        };
        let thread = Some(registry::spawn_worker("follow-keeper", move || work.run())?);
        Ok(Self { gauge, connection, bell, thread })
    }

    /// Calls it if there is something to do with a WAL of `max_frame` frames.
    pub fn look(&self, max_frame: u32) {
        if max_frame.saturating_sub(self.gauge.backfill()) >= CHECKPOINT_FRAMES {
            self.bell.ring();
        }
    }

    /// Calls it to bring the rest into the database, however little that is.
    pub fn call(&self) {
        self.bell.wanted.store(true, Ordering::Release);
        self.bell.ring();
    }
}

impl Drop for Keeper {
    fn drop(&mut self) {
        self.bell.stopping.store(true, Ordering::Release);
        self.connection.interrupt();
        self.bell.ring();
        if let Some(thread) = self.thread.take() {
            // A panic has been logged by the guard around the thread.
            let _ = thread.join();
        }
    }
}

struct Work {
    connection: Arc<Connection>,
    gauge: Gauge,
    intents: Arc<Intents>,
    bell: Arc<Bell>,
}

impl Work {
    fn run(&self) {
        let mut seen = 0;
        let mut changed = Instant::now();
        let mut failing = false;
        while !self.bell.stopping.load(Ordering::Acquire) {
            let frames = self.gauge.header().map_or(seen, |header| header.max_frame);
            if std::mem::replace(&mut seen, frames) != frames {
                changed = Instant::now();
            }
            let behind = frames.saturating_sub(self.gauge.backfill());
            let wanted = self.bell.wanted.swap(false, Ordering::AcqRel) && behind > 0;
            if !wanted && !checkpoint_due(behind, changed.elapsed()) {
                self.bell.wait(LOOK);
                continue;
            }
            match self.checkpoint() {
                Ok(()) => failing = false,
                Err(error) if self.bell.stopping.load(Ordering::Acquire) => drop(error),
                Err(error) => {
                    if !std::mem::replace(&mut failing, true) {
                        let text = format!("cannot checkpoint the replica: {error}");
                        registry::log(Level::Warn, self.connection.path(), &text);
                    }
                    self.bell.wait(LOOK);
                }
            }
            if self.gauge.backfill() < frames {
                std::thread::sleep(AFTER_BUSY);
            }
        }
    }

    fn checkpoint(&self) -> Result<()> {
        self.intents.sync()?;
        self.connection.checkpoint(CHECKPOINT_PASSIVE)?;
        self.intents.sync()
    }
}
