//! Steering: positions, waiting, syncing, snapshots, checkpoints, stopping.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use crate::capture::{Capture, Patience};
use crate::databases::{self, What};
use crate::error::{Error, ErrorKind, Result};
use crate::host::caller::Caller;
use crate::host::function::{Answer, Args};
use crate::info::CheckpointMode;
use crate::pos::Pos;
use crate::registry;

use super::target::{WAIT_MS_MAX, Which};

/// Default timeout of `litestream_wait` and `litestream_wait_followers`, in milliseconds.
const TIMEOUT_MS: u64 = 5000;
/// How long `litestream_sync` waits for archives unless told otherwise.
const SYNC_WAIT: Duration = Duration::from_secs(30);
/// How long a snapshot or a checkpoint of our own may take.
const LONG_WAIT: Duration = Duration::from_secs(600);
/// The most followers one can wait for.
const FOLLOWERS_MAX: i64 = 1_000_000;

fn capture(path: &Path) -> Result<Arc<Capture>> {
    registry::check_fork()?;
    databases::captured(path).map(|(_, capture)| capture)
}

pub(super) fn pos(caller: &Caller, args: &Args) -> Result<Answer> {
    let Some(path) = Which::only(args)?.known_path(caller)? else { return Ok(Answer::Null) };
    Ok(Answer::from(databases::position(&path)?.map(|pos| pos.to_string())))
}

pub(super) fn wait(caller: &Caller, args: &Args) -> Result<Answer> {
    let text = args.text_required(0, "a position")?;
    let pos: Pos = text.parse()?;
    let which = Which::of(args, 1)?;
    let wait = timeout(args, &which)?;
    registry::check_fork()?;
    let path = which.path(caller)?;
    let reached = databases::wait_for(&path, pos, wait, &|| caller.interrupted())?;
    Ok(Answer::Integer(i64::from(reached)))
}

pub(super) fn wait_followers(caller: &Caller, args: &Args) -> Result<Answer> {
    let wanted = args.integer(0)?.filter(|wanted| (0..=FOLLOWERS_MAX).contains(wanted));
    let wanted = wanted.and_then(|wanted| usize::try_from(wanted).ok()).ok_or_else(|| {
        Error::usage(format!("argument 1: expected how many followers, 0 to {FOLLOWERS_MAX}"))
    })?;
    let which = Which::of(args, 1)?;
    let mut left = timeout(args, &which)?;
    let path = which.path(caller)?;
    let pos = capture(&path)?.position()?;
    let served = databases::find(&path).and_then(|found| found.served_here());
    let served = served.ok_or_else(|| Error::new(ErrorKind::Stopped, "serving has stopped"))?;
    loop {
        let slice = left.min(Duration::from_millis(50));
        let applied = served.wait_applied(pos, wanted, slice);
        left = left.saturating_sub(slice);
        if applied >= wanted || left.is_zero() {
            return Ok(Answer::Integer(i64::try_from(applied).unwrap_or(i64::MAX)));
        }
        if caller.interrupted() {
            return Err(Error::new(ErrorKind::Stopped, "interrupted"));
        }
    }
}

/// The second argument: milliseconds, 5000 if left out.
fn timeout(args: &Args, which: &Which) -> Result<Duration> {
    if which.given < 2 {
        return Ok(Duration::from_millis(TIMEOUT_MS));
    }
    milliseconds(args, 1)
}

fn milliseconds(args: &Args, at: usize) -> Result<Duration> {
    let wait = args.integer(at)?.and_then(|wait| u64::try_from(wait).ok());
    let wait = wait.filter(|wait| *wait <= WAIT_MS_MAX).ok_or_else(|| {
        let number = at + 1;
        Error::usage(format!(
            "argument {number}: expected a timeout in milliseconds, 0 to {WAIT_MS_MAX}"
        ))
    })?;
    Ok(Duration::from_millis(wait))
}

pub(super) fn sync(caller: &Caller, args: &Args) -> Result<Answer> {
    registry::check_fork()?;
    let which = Which::of(args, 0)?;
    let wait = match which.given {
        0 => SYNC_WAIT,
        _ => milliseconds(args, 0)?,
    };
    let pos = databases::sync(&which.path(caller)?, wait, &|| caller.interrupted())?;
    Ok(Answer::from(pos.to_string()))
}

fn patience(interrupted: &dyn Fn() -> bool) -> Patience<'_> {
    Patience { wait: LONG_WAIT, interrupted }
}

pub(super) fn snapshot(caller: &Caller, args: &Args) -> Result<Answer> {
    registry::check_fork()?;
    let path = Which::only(args)?.path(caller)?;
    let pos = databases::snapshot(&path, &patience(&|| caller.interrupted()))?;
    Ok(Answer::from(pos.to_string()))
}

pub(super) fn checkpoint(caller: &Caller, args: &Args) -> Result<Answer> {
    let which = Which::of(args, 0)?;
    let mode = match which.given {
        0 => CheckpointMode::Passive,
        _ => args.text_required(0, "PASSIVE, FULL, RESTART or TRUNCATE")?.parse()?,
    };
    let capture = capture(&which.path(caller)?)?;
    let done = capture.checkpoint(mode, &patience(&|| caller.interrupted()))?;
    let busy = i32::from(done.busy);
    Ok(Answer::Text(format!("[{busy},{},{}]", done.log, done.checkpointed)))
}

pub(super) fn stop(caller: &Caller, args: &Args) -> Result<Answer> {
    let which = Which::of(args, 0)?;
    let what = match which.given {
        0 => What::All,
        _ => match args.text_required(0, "'serve', 'follow' or 'replicate'")? {
            "serve" => What::Serve,
            "follow" => What::Follow,
            "replicate" => What::Replicate,
            other => {
                let shown: String = other.chars().take(40).collect();
                let why =
                    format!("argument 1: expected 'serve', 'follow' or 'replicate', got {shown:?}");
                return Err(Error::usage(why));
            }
        },
    };
    registry::check_fork()?;
    let stopped = databases::stop(&which.path(caller)?, what)?;
    Ok(Answer::Integer(i64::try_from(stopped).unwrap_or(i64::MAX)))
}

/// Blocks until the statement is interrupted, so that one shell command can be a server or a
/// replica.
pub(super) fn run(caller: &Caller, _: &Args) -> Result<Answer> {
    registry::check_fork()?;
    while !caller.interrupted() {
        std::thread::sleep(Duration::from_millis(50));
    }
    Ok(Answer::Integer(1))
}
