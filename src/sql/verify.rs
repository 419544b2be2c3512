//! `litestream_verify([options])`.

use std::time::Duration;

use crate::databases;
use crate::error::Result;
use crate::host::caller::Caller;
use crate::host::function::{Answer, Args};
use crate::options::Options;
use crate::registry;

use super::target::{WAIT_MS_MAX, named_path};

/// How long it may take unless told otherwise, in milliseconds.
const TIMEOUT_MS: u64 = 600_000;

pub(super) fn verify(caller: &Caller, args: &Args) -> Result<Answer> {
    registry::check_fork()?;
    let mut options = Options::parse(args.text(0)?)?;
    let path = named_path(caller, &mut options)?;
    let timeout = options.opt_u64("timeout_ms", 1..=WAIT_MS_MAX)?.unwrap_or(TIMEOUT_MS);
    let repair = options.opt_bool("repair")?.unwrap_or(false);
    options.finish()?;
    let timeout = Duration::from_millis(timeout);
    databases::verify(&path, timeout, repair, &|| caller.interrupted()).map(Answer::Text)
}
