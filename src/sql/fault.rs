//! `litestream_fault`, of a library built for tests: see the module `fault`.

use crate::error::Result;
use crate::fault;
use crate::host::Registrar;
use crate::host::caller::Caller;
use crate::host::function::{Answer, Args, FunctionFlags, define};

pub(super) fn register(db: &Registrar) -> Result<()> {
    for arguments in 0..=1 {
        define(db, "litestream_fault", arguments, FunctionFlags::DIRECTONLY, arm)?;
    }
    Ok(())
}

/// Makes a plan if there is an argument; tells what was met under the one before.
fn arm(_: &Caller, args: &Args) -> Result<Answer> {
    let plan = if !args.is_empty() { args.text(0)? } else { None };
    Ok(Answer::Text(fault::arm(plan)?))
}
