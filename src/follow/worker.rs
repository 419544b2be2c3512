//! The follower's threads: "follow" connects, applies and tries again; "follow-ack" reports
//! positions.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::client::Client;
use super::pace::Backoff;
use super::replica::Replica;
use super::session::Session;
use super::shared::{Inner, Shared, State};
use super::source::Source;
use crate::error::{ErrorKind, Result};
use crate::host::api::random;
use crate::pos::Pos;
use crate::registry::{self, Level};

/// Acknowledgements are at least this far apart.
const ACK_SPACING: Duration = Duration::from_millis(50);
/// A position is told again after this: the upstream lets go of a follower it hears nothing of.
const ACK_AGAIN: Duration = Duration::from_secs(5);
/// Failures in a row after which acknowledging is reported as failing.
const ACK_FAILURES: u32 = 5;

/// The body of thread "follow". The replica, its locks and its checkpointer end with it.
pub fn follow(shared: &Shared, source: &Source, mut replica: Replica) {
    let mut backoff = Backoff::default();
    // The upstream's history is not ours: ask for a snapshot.
    let mut parted = false;
    while !shared.is_stopping() {
        shared.enter(State::Connecting);
        parted |= shared.take_distrust().is_some();
        let (worked, result) = connect(shared, source, &mut replica, parted);
        if worked {
            backoff.reset();
            parted = false;
        }
        if shared.is_stopping() {
            break;
        }
        if let Err(error) = result {
            parted = error.kind() == ErrorKind::ChecksumMismatch;
            let text = error.to_string();
            if shared.get().error.as_ref() != Some(&text) {
                registry::log(Level::Warn, replica.path(), &format!("follow: {text}"));
            }
            shared.failed(&error);
        }
        shared.enter(State::Waiting);
        let pause = backoff.next(random());
        let until = Instant::now() + pause;
        // The header others rely on is looked after here as well.
        while Instant::now() < until && !shared.sleep(pause.min(Duration::from_millis(100))) {
            if let Err(error) = replica.idle() {
                shared.failed(&error);
            }
        }
    }
    let path = replica.path().to_owned();
    if let Err(error) = replica.leave() {
        registry::log(Level::Warn, &path, &format!("follow: {error}"));
    }
    shared.enter(State::Stopped);
}

/// Runs one connection; whether anything came of it.
fn connect(
    shared: &Shared,
    source: &Source,
    replica: &mut Replica,
    parted: bool,
) -> (bool, Result<()>) {
    let opened = replica.require_file().and_then(|()| source.open(shared, replica, parted));
    match opened.and_then(|(stream, from)| Session::new(shared, replica, stream, from)) {
        Ok(session) => session.run(),
        Err(error) => (false, Err(error)),
    }
}

/// The body of thread "follow-ack": posts each position soon after it was applied, one at a time.
pub fn acknowledge(shared: &Arc<Shared>, client: &Client) {
    let link = shared.new_link();
    let acknowledger = client.acknowledger(&link);
    let mut told = None;
    let mut told_at = Instant::now();
    let mut failures = 0_u32;
    while !shared.is_stopping() {
        if told_at.elapsed() >= ACK_AGAIN {
            told = None;
        }
        shared.wait(Duration::from_secs(1), |inner| untold(inner, told).is_some());
        let Some((stream, pos)) = untold(&shared.get(), told) else { continue };
        match acknowledger.post(pos) {
            Ok(()) => {
                (told, told_at) = (Some((stream, pos)), Instant::now());
                failures = 0;
                shared.sleep(ACK_SPACING);
            }
            Err(error) => {
                failures = failures.saturating_add(1);
                if failures == ACK_FAILURES && !shared.is_stopping() {
                    let text = format!("follow: cannot acknowledge positions: {error}");
                    registry::log(Level::Warn, "", &text);
                }
                shared.sleep(ACK_SPACING * (1 << failures.min(6)));
            }
        }
    }
}

/// The position to acknowledge and the stream it is acknowledged on, unless that is `told` already.
fn untold(inner: &Inner, told: Option<(u64, Pos)>) -> Option<(u64, Pos)> {
    let pos = inner.position.filter(|_| inner.acknowledges)?;
    Some((inner.streams, pos)).filter(|news| Some(*news) != told)
}
