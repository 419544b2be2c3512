//! What users type: one Rust function per SQL function, one row source per table.
//!
//! Functions that act or look beyond the database are SQLITE_DIRECTONLY, so a hostile schema (a
//! view, a trigger) cannot open ports, contact hosts or write files. Everything acts on the calling
//! connection's `main` database unless the option `"schema"` names another.

mod archives;
#[cfg(feature = "faults")]
mod fault;
mod follow;
#[cfg(any(test, fuzzing))]
#[path = "../../fuzz/targets/times.rs"]
pub(crate) mod fuzz;
mod inspect;
mod replicate;
mod restore;
mod serve;
mod steer;
mod tables;
mod target;
mod time;
mod verify;

use crate::error::Result;
use crate::host::Registrar;
use crate::host::function::{Body, FunctionFlags, define};
use crate::host::table::define_table;

/// Name, smallest and largest number of arguments, and body.
type Entry = (&'static str, i32, i32, Body);

/// Functions with effects, or answers that change from call to call.
const ACTING: [Entry; 17] = [
    ("litestream_serve", 1, 2, serve::serve),
    ("litestream_follow", 1, 2, follow::follow),
    ("litestream_replicate", 1, 2, replicate::replicate),
    ("litestream_restore", 2, 3, restore::restore),
    ("litestream_verify", 0, 1, verify::verify),
    ("litestream_stop", 0, 2, steer::stop),
    ("litestream_promote", 0, 1, follow::promote),
    ("litestream_run", 0, 0, steer::run),
    ("litestream_snapshot", 0, 1, steer::snapshot),
    ("litestream_sync", 0, 2, steer::sync),
    ("litestream_checkpoint", 0, 2, steer::checkpoint),
    ("litestream_pos", 0, 1, steer::pos),
    ("litestream_wait", 1, 3, steer::wait),
    ("litestream_wait_followers", 1, 3, steer::wait_followers),
    ("litestream_lag", 0, 1, follow::lag),
    ("litestream_debug", 0, 0, inspect::debug),
    ("litestream_version", 0, 0, inspect::version),
];

/// Functions of their arguments alone.
const PURE: [Entry; 1] = [("litestream_pos_compare", 2, 2, inspect::pos_compare)];

/// Makes every function and table known to a connection.
pub fn register(db: &Registrar) -> Result<()> {
    let pure = FunctionFlags::DETERMINISTIC | FunctionFlags::INNOCUOUS;
    let acting = ACTING.iter().map(|entry| (entry, FunctionFlags::DIRECTONLY));
    for ((name, fewest, most, body), flags) in acting.chain(PURE.iter().map(|entry| (entry, pure)))
    {
        for arguments in *fewest..=*most {
            define(db, name, arguments, flags, *body)?;
        }
    }
    #[cfg(feature = "faults")]
    fault::register(db)?;
    archives::ALL.iter().try_for_each(|table| define_table(db, table))?;
    tables::ALL.iter().try_for_each(|table| define_table(db, table))
}
