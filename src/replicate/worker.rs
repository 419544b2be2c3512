//! The worker's loop: waits for capture, archives until something is wrong, pauses, begins again.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use super::stream::{Over, Stream};
use super::{Shared, State, policy};
use crate::error::{Error, ErrorKind, Result};
use crate::host::api;
use crate::host::guard::guard;
use crate::pos::Generation;
use crate::registry::{self, Level};

/// How often it is looked whether this process captures now.
const POLL: Duration = Duration::from_millis(100);
/// An object that is there and is not listed: so often it is looked again at once.
const REJECTIONS_MAX: u32 = 3;

/// Archives until stopped.
pub(super) fn run(shared: &Arc<Shared>) {
    let mut rejections = 0;
    let mut parted = None;
    while !shared.stopping() {
        if !wait_for_capture(shared, parted) {
            break;
        }
        let failed = match guard("archiving", || session(shared)) {
            Ok(Over::History | Over::Stopped) => {
                rejections = 0;
                None
            }
            Ok(Over::Parted(generation)) => {
                parted = Some(generation);
                None
            }
            Ok(Over::Rejected(key)) => {
                rejections += 1;
                (rejections >= REJECTIONS_MAX).then(|| {
                    let why = "somebody else writes to this archive";
                    Error::new(ErrorKind::Busy, why).context(shared.archive.name(&key))
                })
            }
            Err(error) => Some(error),
        };
        match failed {
            Some(_) if shared.stopping() => break,
            // Not the archive's fault: history begins anew, and so do we.
            Some(error) if error.kind() == ErrorKind::GenerationChanged => {
                shared.sleep(POLL, || shared.stopping());
            }
            Some(error) => {
                let failures = shared.fail(error);
                shared.sleep(policy::pause(failures, api::random()), || shared.stopping());
            }
            None => {}
        }
    }
}

fn session(shared: &Arc<Shared>) -> Result<Over> {
    match Stream::begin(shared)? {
        Ok(stream) => stream.run(),
        Err(over) => Ok(over),
    }
}

/// Waits until this process captures, in another generation than the one that `parted`, and than
/// one that is about to end. False: it was stopped first.
fn wait_for_capture(shared: &Shared, parted: Option<Generation>) -> bool {
    let log = shared.capture.log();
    while !shared.stopping() {
        let told = shared.capture.wait_ready(POLL).is_some();
        let standby = shared.capture.is_standby();
        let lasts = log.is_ready() && log.generation() != parted && log.damage().is_none();
        if !standby && lasts {
            shared.update(|progress| progress.capture = None);
            return true;
        }
        let (_, failed, _) = shared.capture.status();
        let failed = failed.filter(|_| !standby).map(|why| format!("capture: {why}"));
        let state = if standby { State::Standby } else { State::Waiting };
        shared.update(|progress| {
            progress.capture = failed;
            if progress.state != State::Retrying || standby {
                progress.state = state;
            }
        });
        if told {
            shared.sleep(POLL, || shared.stopping());
        }
    }
    false
}

impl Shared {
    /// Notes what went wrong. Says how often in a row something has.
    fn fail(&self, error: Error) -> u32 {
        self.counters.errors.fetch_add(1, Ordering::Relaxed);
        let mut failures = 0;
        let mut news = false;
        self.update(|progress| {
            news = progress.error.as_ref() != Some(&error);
            progress.state = State::Retrying;
            progress.failures = progress.failures.saturating_add(1);
            progress.error = Some(error.clone());
            failures = progress.failures;
        });
        if news {
            let message = format!("archive {}: {error}; trying again", self.archive.url());
            registry::log(Level::Error, self.capture.path(), &message);
        }
        failures
    }

    /// Something went right.
    pub(super) fn succeed(&self) {
        let mut failed = false;
        self.update(|progress| {
            failed = progress.error.take().is_some();
            progress.failures = 0;
            progress.state = State::Streaming;
        });
        if failed {
            let message = format!("archive {} is reached again", self.archive.url());
            registry::log(Level::Info, self.capture.path(), &message);
        }
    }
}
