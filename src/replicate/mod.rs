//! A sink: the log of a captured database into archives, one worker each.
//!
//! ```text
//! standby, waiting --this process captures--> compare --nothing there, or a hole--> snapshot -+
//!    ^                                          | the archive's end is in the log             |
//!    | new generation                           v                                             |
//!    +--history parted----------------------- streaming <--up to what the snapshot may hold---+
//!                                               |   ^
//! any state --error--> retrying --pause--> compare  +-- snapshots, retention, positions in between
//! ```
//!
//! **Compare before writing.** After every start, error and doubt the worker lists the generation
//! and reads its last segment: the WAL's running checksum at its end must be the log's there.
//! Then it goes on from that byte. If not, two histories have one name: nothing is overwritten, and
//! capture begins a new generation. A segment's name is its start, and the store never replaces
//! one: if somebody was first, the worker compares again.
//!
//! **Order.** Segments go up one after the other, each after the one before is safe; an index's end
//! before the next index. A snapshot at an index may hold pages of any commit made before it was
//! finished, so it goes up when the archive has those commits. The first of a chain goes before
//! its segments, and before it the position up to which they are needed: until they are there, a
//! restore says so. What the log had to drop ([`crate::log::Claim`]) is a hole without an end:
//! after it the archive goes on with a snapshot.
//!
//! | thing                 | changed only by | while holding | read by                       |
//! |-----------------------|-----------------|---------------|-------------------------------|
//! | objects               | the worker      | write-once    | anybody                       |
//! | `Shared::progress`    | worker, callers | itself        | tables, waiting calls         |
//! | `URLS`                | start and stop  | itself        | start                         |
//! | `archives/NAME`       | the worker      |               | the next worker               |
//!
//! Nothing is held while the store works. A writer never waits for any of this. In memory a worker
//! has one object of segments (4 MiB of WAL) as captured and compressed.

mod batch;
mod compare;
mod delete;
mod note;
mod policy;
mod position;
mod retention;
mod shared;
mod snapshots;
mod stream;
mod trust;
mod worker;

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::time::{Duration, Instant, SystemTime};

use crate::archive::url::{folder_of, identity, real};
use crate::archive::{Archive, ArchiveOptions};
use crate::capture::Capture;
use crate::error::{Error, ErrorKind, Result, lock};
use crate::log::layout;
use crate::pos::Pos;
use crate::registry;
use shared::{Progress, Shared};

/// How long a stop waits for a store to take what is captured, if it works at all.
const STOP_GRACE: Duration = Duration::from_secs(1);
/// How long a stop waits for the worker after the store was closed.
const STOP_WAIT: Duration = Duration::from_secs(3);

/// The archives this process writes to, by [`identity`]. Each has one database.
static URLS: Mutex<BTreeSet<String>> = Mutex::new(BTreeSet::new());

/// Where to archive, and how.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReplicateConfig {
    /// As given.
    pub url: String,
    /// Keys, layout, encryption.
    pub archive: ArchiveOptions,
    /// A commit is sent at most so long after it was made.
    pub sync_interval: Duration,
    /// A snapshot is sent at least so often, while there are commits.
    pub snapshot_interval: Duration,
    /// Every moment of so long a time can be restored.
    pub retention: Duration,
    /// What is not needed any more is deleted so much later.
    pub delete_after: Duration,
    /// Segment bytes the log keeps for this archive at most.
    pub backlog_bytes: u64,
    /// Segment bytes worth a snapshot at least.
    pub snapshot_bytes_min: u64,
}

/// What a worker is doing, for people.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// For capture to run.
    Waiting,
    /// Another process captures this database, and archives it.
    Standby,
    /// The first snapshot of a chain is on its way.
    Snapshot,
    /// Commits are sent as they come.
    Streaming,
    /// Between tries after an error.
    Retrying,
    /// Stopped.
    Stopped,
}

impl State {
    /// As shown in `litestream_replicas.state`.
    pub fn as_str(self) -> &'static str {
        match self {
            State::Waiting => "waiting",
            State::Standby => "standby",
            State::Snapshot => "snapshot",
            State::Streaming => "streaming",
            State::Retrying => "retrying",
            State::Stopped => "stopped",
        }
    }
}

/// An archive as the tables show it.
#[derive(Clone, Debug)]
pub struct Status {
    /// What the worker is doing.
    pub state: State,
    /// Everything before this is in the archive.
    pub pos: Option<Pos>,
    /// When the archive last had everything captured.
    pub last_sync: Option<SystemTime>,
    /// What went wrong last, if nothing went right since.
    pub error: Option<String>,
    /// Age of the oldest commit that is not in the archive.
    pub lag: Duration,
}

/// Running counts, for metrics. All since the worker began.
#[derive(Debug, Default)]
pub struct Counters {
    /// Segments stored.
    pub segments: AtomicU64,
    /// Bytes of them.
    pub segment_bytes: AtomicU64,
    /// Snapshots stored.
    pub snapshots: AtomicU64,
    /// Bytes of them.
    pub snapshot_bytes: AtomicU64,
    /// Objects deleted.
    pub deleted: AtomicU64,
    /// Times it had to start over.
    pub errors: AtomicU64,
}

/// One archive of one database.
pub struct Replica {
    shared: Arc<Shared>,
}

impl Replica {
    /// Starts archiving what `capture` captures. Returns at once.
    pub fn start(config: ReplicateConfig, capture: &Arc<Capture>) -> Result<Replica> {
        let archive = Archive::open(&config.url, &config.archive)?;
        refuse_log(archive.url())?;
        let claim = capture.log().claim(archive.url(), config.backlog_bytes);
        let identity = identity(archive.url());
        if !lock(&URLS).insert(identity.clone()) {
            let why = format!(
                "{} is another database's archive in this process; give each its own prefix",
                archive.url()
            );
            return Err(Error::new(ErrorKind::Refused, why));
        }
        let shared = Arc::new(Shared {
            config,
            archive,
            identity,
            capture: Arc::clone(capture),
            claim,
            progress: Mutex::new(Progress::new()),
            changed: Condvar::new(),
            trust: Mutex::default(),
            stop: AtomicBool::new(false),
            urgent: AtomicBool::new(false),
            counters: Counters::default(),
        });
        let theirs = Arc::clone(&shared);
        let started = registry::spawn_worker("litestream-arch", move || {
            worker::run(&theirs);
            theirs.end();
        });
        if let Err(error) = started {
            lock(&URLS).remove(&shared.identity);
            return Err(error);
        }
        Ok(Replica { shared })
    }

    /// The archive's URL.
    pub fn url(&self) -> &str {
        self.shared.archive.url()
    }

    /// What it was started with.
    pub fn config(&self) -> &ReplicateConfig {
        &self.shared.config
    }

    /// Running counts.
    pub fn counters(&self) -> &Counters {
        &self.shared.counters
    }

    /// Bytes of segment files that wait for this archive, and those of the index it is in.
    pub fn backlog_bytes(&self) -> u64 {
        self.shared.claim.bytes()
    }

    /// What it is doing.
    pub fn status(&self) -> Status {
        let end = self.shared.capture.log().position();
        let progress = lock(&self.shared.progress);
        let now = SystemTime::now();
        let level = progress.pos.is_some() && progress.pos == end && progress.complete;
        let behind = progress.behind_since.filter(|_| !level);
        let failed = progress.error.as_ref().map(ToString::to_string);
        Status {
            state: progress.state,
            pos: progress.pos,
            last_sync: if level { Some(now) } else { progress.last_sync },
            error: progress.capture.clone().or(failed).or(progress.kept.clone()),
            lag: behind.map(|since| since.elapsed()).unwrap_or_default(),
        }
    }

    /// Waits until the archive holds a whole chain, or this process stands by; `None` if `wait`
    /// passed first. An error is one that trying again will not mend.
    pub fn wait_complete(&self, wait: Duration) -> Option<Result<()>> {
        self.wait_for(wait, |progress| {
            if progress.complete || progress.state == State::Standby {
                return Some(Ok(()));
            }
            let hopeless = [ErrorKind::Refused, ErrorKind::Usage, ErrorKind::Unsupported];
            let failed = progress.error.clone().filter(|error| hopeless.contains(&error.kind()));
            failed.map(Err).or_else(|| progress.ended.then(|| Err(stopped())))
        })
    }

    /// Asks the worker to bring everything before `pos` into the archive now.
    pub fn want_synced(&self, pos: Pos) {
        self.ask(|progress| {
            if progress.want.is_none_or(|want| !covers(want, pos)) {
                progress.want = Some(pos);
            }
        });
    }

    /// Waits until everything before `pos` is in the archive and its own position says so. False:
    /// `wait` passed first.
    pub fn wait_synced(&self, pos: Pos, wait: Duration) -> Result<bool> {
        let log = self.shared.capture.log();
        let reached = self.wait_for(wait, |progress| {
            let synced = progress.noted.is_some_and(|noted| covers(noted, pos));
            // A new generation begins with a snapshot of all that was before.
            let newer = log.generation() != Some(pos.generation)
                && progress.noted.map(|noted| noted.generation) == log.generation();
            if (synced || newer) && progress.complete {
                return Some(Ok(()));
            }
            progress.ended.then(|| Err(stopped()))
        });
        reached.transpose().map(|reached| reached.is_some())
    }

    /// Asks the worker for a snapshot at least as new as that at `pos`.
    pub fn want_snapshot(&self, pos: Pos) {
        self.ask(|progress| progress.want_snapshot = Some(pos));
    }

    /// Waits until a snapshot at least as new as that at `pos` is in the archive. False: `wait`
    /// passed first.
    pub fn wait_snapshot(&self, pos: Pos, wait: Duration) -> Result<bool> {
        let reached = self.wait_for(wait, |progress| {
            let there = progress.snapshot.filter(|_| progress.complete);
            let newer = |it: Pos| it.generation != pos.generation || it.index >= pos.index;
            if there.is_some_and(newer) {
                return Some(Ok(()));
            }
            progress.ended.then(|| Err(stopped()))
        });
        reached.transpose().map(|reached| reached.is_some())
    }

    fn is_healthy(&self) -> bool {
        lock(&self.shared.progress).state == State::Streaming
    }

    fn ask(&self, wish: impl FnOnce(&mut Progress)) {
        wish(&mut lock(&self.shared.progress));
        self.shared.urgent.store(true, Ordering::Release);
        self.shared.wake();
    }

    fn wait_for<T>(
        &self,
        wait: Duration,
        look: impl Fn(&Progress) -> Option<Result<T>>,
    ) -> Option<Result<T>> {
        let deadline = Instant::now() + wait;
        let mut progress = lock(&self.shared.progress);
        loop {
            if let Some(outcome) = look(&progress) {
                return Some(outcome);
            }
            let left = deadline.checked_duration_since(Instant::now())?;
            progress = self.shared.wait_changed(progress, left);
        }
    }
}

/// Sends what is captured, as far as the stores take it at once, and ends the workers. What was not
/// sent is in the log, and the next start goes on there.
pub fn stop(replicas: &[Arc<Replica>]) {
    let captured = |replica: &Replica| {
        let pos = replica.shared.capture.log().position();
        pos.filter(|_| replica.is_healthy())
    };
    let wanted: Vec<_> = replicas.iter().map(|replica| (replica, captured(replica))).collect();
    for (replica, pos) in &wanted {
        pos.iter().for_each(|pos| replica.want_synced(*pos));
    }
    let deadline = Instant::now() + STOP_GRACE;
    for (replica, pos) in &wanted {
        let left = deadline.saturating_duration_since(Instant::now());
        let _the_rest_is_in_the_log = pos.map(|pos| replica.wait_synced(pos, left));
    }
    for replica in replicas {
        replica.shared.stop.store(true, Ordering::Release);
        replica.shared.archive.store().close();
        replica.shared.wake();
    }
    let deadline = Instant::now() + STOP_WAIT;
    for replica in replicas {
        // A disk that hangs cannot be left: its worker ends when the disk does.
        let left = deadline.saturating_duration_since(Instant::now());
        let _ended = replica.wait_for(left, |progress| progress.ended.then_some(Ok(())));
    }
}

/// Whether this is the archive at `url`.
pub fn is_same_archive(replica: &Replica, url: &str) -> bool {
    replica.shared.identity == identity(url)
}

impl ReplicateConfig {
    /// Whether both ask for the same, `url` aside.
    pub fn is_same(&self, other: &ReplicateConfig) -> bool {
        ReplicateConfig { url: self.url.clone(), ..other.clone() } == *self
    }
}

/// A log is no second copy of what it is the log of, and what is put into it may be deleted.
fn refuse_log(url: &str) -> Result<()> {
    let Some(log) = folder_of(url).ok().and_then(|folder| layout::log_above(&real(&folder))) else {
        return Ok(());
    };
    let why = format!(
        "{url} is in {}, where Litestream keeps what a database needs itself; name a folder of its \
         own, best on another disk",
        log.display()
    );
    Err(Error::new(ErrorKind::Refused, why))
}

/// Whether everything before `wanted` is before `reached`.
fn covers(reached: Pos, wanted: Pos) -> bool {
    reached.generation == wanted.generation
        && (reached.index, reached.offset) >= (wanted.index, wanted.offset)
}

fn stopped() -> Error {
    Error::new(ErrorKind::Stopped, "archiving was stopped")
}
