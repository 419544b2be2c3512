//! What a follower's threads and its callers know of each other.
//!
//! | thing      | changed by                  | read by                                        |
//! |------------|-----------------------------|------------------------------------------------|
//! | `Inner`    | thread "follow", under lock | callers, thread "follow-ack", by copy          |
//! | `stopping` | whoever stops it, once      | every thread, at each turn and after each wait |
//! | `links`    | threads that open one       | whoever stops it, to cut them                  |
//! | `meeting`  | see meet.rs                 |                                                |
//! | `distrust` | `litestream_verify`         | thread "follow", which takes it                |
//!
//! No lock here is held while a disk, a socket or SQLite is used.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::meet::Meeting;
use crate::error::{Error, ErrorKind, lock};
use crate::pos::{Pos, compare_pos};
use crate::transport::Link;
use crate::wal::PageSize;

/// How long a wait for a follower that has ended takes, if it may.
const STOPPED_PAUSE: Duration = Duration::from_millis(10);

/// What a thread may be waiting for.
pub trait Cut: Send + Sync {
    /// Ends the waiting, now and from now on.
    fn cut(&self);
}

impl Cut for Link {
    fn cut(&self) {
        self.close();
    }
}

/// What a follower is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    /// Asking the upstream for its stream.
    Connecting,
    /// Receiving a snapshot and what makes it exact.
    Snapshot,
    /// Applying what the upstream committed before.
    CatchingUp,
    /// Applying commits as they come.
    Streaming,
    /// Failed, and waiting to try again.
    Waiting,
    /// Ended.
    Stopped,
}

impl State {
    /// One word, as in `litestream_databases`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Connecting => "connecting",
            Self::Snapshot => "snapshot",
            Self::CatchingUp => "catching-up",
            Self::Streaming => "streaming",
            Self::Waiting => "waiting",
            Self::Stopped => "stopped",
        }
    }
}

/// What thread "follow" says about itself.
#[derive(Debug, Clone)]
pub struct Inner {
    /// What it is doing.
    pub state: State,
    /// Why it last failed; cleared by the next success.
    pub error: Option<String>,
    /// Who must act on that.
    pub error_kind: Option<ErrorKind>,
    /// The last position published to readers.
    pub position: Option<Pos>,
    /// The upstream's page size, as it last told.
    pub page_size: Option<PageSize>,
    /// The upstream's position as it last told; none from an ancestor.
    pub upstream_position: Option<Pos>,
    /// Whether the upstream takes acknowledgements.
    pub acknowledges: bool,
    /// Streams opened so far. Each is a new follower to the upstream, which knows nothing of what
    /// was acknowledged before.
    pub streams: u64,
    /// Whether all that the upstream had committed when the follower began is applied.
    pub caught_up: bool,
    /// When everything the upstream was known to have was applied.
    pub equal_at: Option<Instant>,
    /// When it began.
    pub began: Instant,
}

/// The meeting point of a follower's threads and callers.
pub struct Shared {
    inner: Mutex<Inner>,
    changed: Condvar,
    stopping: AtomicBool,
    links: Mutex<Vec<Arc<dyn Cut>>>,
    /// Where somebody meets thread "follow" who wants the replica at one position.
    pub meeting: Meeting,
    /// Why the content is to be compared with a snapshot.
    distrust: Mutex<Option<String>>,
}

impl Shared {
    /// A follower that has not begun. `position` is what the replica holds already.
    pub fn new(position: Option<Pos>) -> Arc<Self> {
        Arc::new(Self {
            inner: Mutex::new(Inner {
                state: State::Connecting,
                error: None,
                error_kind: None,
                position,
                page_size: None,
                upstream_position: None,
                acknowledges: false,
                streams: 0,
                caught_up: false,
                equal_at: None,
                began: Instant::now(),
            }),
            changed: Condvar::new(),
            stopping: AtomicBool::new(false),
            links: Mutex::new(Vec::new()),
            meeting: Meeting::default(),
            distrust: Mutex::default(),
        })
    }

    /// Has the content compared with a snapshot, whatever its position is.
    pub fn distrust(&self, why: String) {
        *lock(&self.distrust) = Some(why);
    }

    /// Why it is to be, once.
    pub fn take_distrust(&self) -> Option<String> {
        lock(&self.distrust).take()
    }

    /// A copy of everything.
    pub fn get(&self) -> Inner {
        lock(&self.inner).clone()
    }

    /// Changes something and wakes whoever waits for a change.
    pub fn update(&self, change: impl FnOnce(&mut Inner)) {
        change(&mut lock(&self.inner));
        self.changed.notify_all();
    }

    /// Says what is being done now.
    pub fn enter(&self, state: State) {
        self.update(|inner| inner.state = state);
    }

    /// Says that something failed.
    pub fn failed(&self, error: &Error) {
        let (text, kind) = (error.to_string(), error.kind());
        self.update(|inner| {
            inner.error = Some(text);
            inner.error_kind = Some(kind);
            // Until somebody acts on it, whoever asks again is told and not sent away content.
            inner.caught_up &= kind != ErrorKind::Refused;
        });
    }

    /// Waits at most `limit` until `done`; whether it is.
    pub fn wait(&self, limit: Duration, mut done: impl FnMut(&Inner) -> bool) -> bool {
        let deadline = Instant::now() + limit;
        let mut inner: MutexGuard<'_, Inner> = lock(&self.inner);
        loop {
            if done(&inner) {
                return true;
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return false;
            }
            if self.is_stopping() {
                // A caller that asks again and again must not spin.
                drop(inner);
                std::thread::sleep(left.min(STOPPED_PAUSE));
                return false;
            }
            inner = self
                .changed
                .wait_timeout(inner, left)
                .map_or_else(|poisoned| PoisonError::into_inner(poisoned).0, |(inner, _)| inner);
        }
    }

    /// Waits `pause`, or until it is to stop; whether it is.
    pub fn sleep(&self, pause: Duration) -> bool {
        self.wait(pause, |_| self.is_stopping())
    }

    /// Whether every thread is to end.
    pub fn is_stopping(&self) -> bool {
        self.stopping.load(Ordering::Acquire)
    }

    /// Makes every thread end soon.
    pub fn stop(&self) {
        self.stopping.store(true, Ordering::Release);
        for link in lock(&self.links).iter() {
            link.cut();
        }
        // The lock is taken so that nobody is between looking at the flag and waiting.
        drop(lock(&self.inner));
        self.changed.notify_all();
    }

    /// A link that `stop` will cut.
    pub fn new_link(&self) -> Arc<Link> {
        let link = Link::new();
        self.adopt(Arc::clone(&link) as Arc<dyn Cut>);
        link
    }

    /// From now on `stop` will cut this, too.
    pub fn adopt(&self, link: Arc<dyn Cut>) {
        let mut links = lock(&self.links);
        // Whoever dropped theirs is done with it.
        links.retain(|link| Arc::strong_count(link) > 1);
        links.push(Arc::clone(&link));
        drop(links);
        if self.is_stopping() {
            link.cut();
        }
    }
}

/// Whether `applied` covers `wanted`. Positions of other generations cover nothing.
pub fn covers(applied: Option<Pos>, wanted: Pos) -> bool {
    applied.is_some_and(|applied| compare_pos(applied, wanted).is_ok_and(|order| order.is_ge()))
}

/// Seconds behind the upstream: none while everything known of it is applied, else since it last
/// was.
pub fn lag(inner: &Inner, now: Instant) -> f64 {
    let behind = inner.state != State::Streaming
        || inner.upstream_position.is_some_and(|pos| !covers(inner.position, pos));
    match behind {
        false => 0.0,
        true => {
            let since = inner.equal_at.unwrap_or(inner.began);
            now.saturating_duration_since(since).as_secs_f64()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pos::{Generation, Index, Offset};

    fn pos(generation: u64, index: u64, offset: u64) -> Pos {
        let generation = Generation::from_bits(generation);
        Pos::new(generation, Index::new(index).unwrap(), Offset::new(offset).unwrap())
    }

    #[test]
    fn covering() {
        assert!(!covers(None, pos(1, 0, 0)));
        assert!(covers(Some(pos(1, 2, 32)), pos(1, 2, 32)));
        assert!(covers(Some(pos(1, 3, 0)), pos(1, 2, 32)));
        assert!(!covers(Some(pos(1, 2, 0)), pos(1, 2, 32)));
        assert!(!covers(Some(pos(2, 9, 9)), pos(1, 2, 32)));
    }

    #[test]
    fn lag_counts_from_when_it_was_last_equal() {
        let shared = Shared::new(None);
        let began = shared.get().began;
        let at = |seconds| began + Duration::from_secs(seconds);
        assert!((lag(&shared.get(), at(3)) - 3.0).abs() < 1e-6);
        shared.update(|inner| {
            inner.state = State::Streaming;
            inner.position = Some(pos(1, 0, 64));
            inner.upstream_position = Some(pos(1, 0, 64));
            inner.equal_at = Some(at(10));
        });
        assert_eq!(lag(&shared.get(), at(11)), 0.0);
        shared.update(|inner| inner.upstream_position = Some(pos(1, 0, 96)));
        assert!((lag(&shared.get(), at(12)) - 2.0).abs() < 1e-6);
        shared.update(|inner| inner.upstream_position = Some(pos(1, 0, 64)));
        shared.enter(State::Waiting);
        assert!((lag(&shared.get(), at(15)) - 5.0).abs() < 1e-6);
    }

    #[test]
    fn stop_ends_waits_and_links() {
        let shared = Shared::new(None);
        let other = Arc::clone(&shared);
        let waiter = std::thread::spawn(move || other.wait(Duration::from_secs(20), |_| false));
        std::thread::sleep(Duration::from_millis(20));
        shared.stop();
        assert!(!waiter.join().unwrap());
        assert!(shared.sleep(Duration::from_secs(20)));
    }
}
