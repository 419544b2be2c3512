//! What a worker and the calls that wait for it share.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::time::{Duration, Instant, SystemTime};

use super::trust::Trust;
use super::{Counters, ReplicateConfig, State, URLS};
use crate::archive::Archive;
use crate::capture::Capture;
use crate::error::{Error, lock};
use crate::log::Claim;
use crate::pos::Pos;

/// How far it is, and what is wanted of it.
pub(super) struct Progress {
    pub(super) state: State,
    pub(super) error: Option<Error>,
    pub(super) failures: u32,
    /// Why there is nothing to archive: capture fails.
    pub(super) capture: Option<String>,
    /// Why nothing old is deleted.
    pub(super) kept: Option<String>,
    pub(super) pos: Option<Pos>,
    /// The archive's own note of how far it reaches.
    pub(super) noted: Option<Pos>,
    /// The newest snapshot in the archive.
    pub(super) snapshot: Option<Pos>,
    /// The last one sent from here, and when.
    pub(super) snapshot_sent: Option<(Pos, Instant)>,
    /// A whole chain is there.
    pub(super) complete: bool,
    pub(super) last_sync: Option<SystemTime>,
    pub(super) behind_since: Option<Instant>,
    /// What calls wait for.
    pub(super) want: Option<Pos>,
    pub(super) want_snapshot: Option<Pos>,
    pub(super) ended: bool,
}

/// What the worker and the callers share.
pub(super) struct Shared {
    pub(super) config: ReplicateConfig,
    pub(super) archive: Archive,
    /// In `URLS`, and taken out when it ends.
    pub(super) identity: String,
    pub(super) capture: Arc<Capture>,
    pub(super) claim: Claim,
    pub(super) progress: Mutex<Progress>,
    pub(super) changed: Condvar,
    /// What is known of the clock, for deleting by it.
    pub(super) trust: Mutex<Trust>,
    pub(super) stop: AtomicBool,
    /// A call waits: nothing is put off.
    pub(super) urgent: AtomicBool,
    pub(super) counters: Counters,
}

impl Progress {
    pub(super) fn new() -> Progress {
        Progress {
            state: State::Waiting,
            error: None,
            failures: 0,
            capture: None,
            kept: None,
            pos: None,
            noted: None,
            snapshot: None,
            snapshot_sent: None,
            complete: false,
            last_sync: None,
            behind_since: None,
            want: None,
            want_snapshot: None,
            ended: false,
        }
    }
}

impl Shared {
    pub(super) fn stopping(&self) -> bool {
        self.stop.load(Ordering::Acquire)
    }

    /// Whether something is wanted sooner than it would happen by itself.
    pub(super) fn is_urgent(&self) -> bool {
        self.stopping() || self.urgent.load(Ordering::Acquire)
    }

    /// Ends whatever wait the worker is in.
    pub(super) fn wake(&self) {
        drop(lock(&self.progress));
        self.changed.notify_all();
        self.capture.log().wake();
    }

    pub(super) fn wait_changed<'p>(
        &self,
        progress: MutexGuard<'p, Progress>,
        wait: Duration,
    ) -> MutexGuard<'p, Progress> {
        match self.changed.wait_timeout(progress, wait) {
            Ok((progress, _)) => progress,
            Err(poisoned) => poisoned.into_inner().0,
        }
    }

    /// Sleeps until `wait` is over or `cut` says so when woken.
    pub(super) fn sleep(&self, wait: Duration, cut: impl Fn() -> bool) {
        let deadline = Instant::now() + wait;
        let mut progress = lock(&self.progress);
        while !cut() {
            let Some(left) = deadline.checked_duration_since(Instant::now()) else { return };
            progress = self.wait_changed(progress, left);
        }
    }

    pub(super) fn update(&self, change: impl FnOnce(&mut Progress)) {
        change(&mut lock(&self.progress));
        self.changed.notify_all();
    }

    pub(super) fn set_state(&self, state: State) {
        self.update(|progress| progress.state = state);
    }

    pub(super) fn end(&self) {
        lock(&URLS).remove(&self.identity);
        self.update(|progress| {
            progress.state = State::Stopped;
            progress.ended = true;
        });
    }
}
