//! Whether the application itself calls a function, or the schema of a database it opened.
//!
//! SQLITE_DIRECTONLY is to keep schemas out, and does for views and triggers. It does not for CHECK
//! constraints before SQLite 3.50 or so, and in no version for any expression of a table or an
//! index if the schema was read before the function was defined: SQLite marks such an expression
//! when it reads the schema, and only if it knows the function then. A file somebody sent could
//! open ports that way. So the function's name must stand in the text of a statement that is
//! running, or in a temporary view or trigger: both are the application's own.

use std::ffi::CStr;
use std::ptr;

use sqlite_loadable::ext::{sqlite3, sqlite3_stmt};

use super::api::Api;
use super::caller::Caller;
use crate::error::{Error, ErrorKind, Result};

/// Fails for a call the application did not write.
///
/// # Safety
/// `db` must be open and calling the function, on this thread.
pub(super) unsafe fn require_direct(
    api: &Api,
    db: *mut sqlite3,
    caller: &Caller,
    name: &str,
) -> Result<()> {
    let mut statement = ptr::null_mut();
    loop {
        // SAFETY: the caller vouches for the connection, and the statement is one of its own.
        statement = unsafe { (api.next_stmt)(db, statement) };
        if statement.is_null() {
            break;
        }
        // SAFETY: nobody finalizes a statement of this connection during the call.
        if unsafe { names(api, statement, name) } {
            return Ok(());
        }
    }
    let sql = format!("SELECT 1 FROM sqlite_temp_master WHERE instr(lower(sql), '{name}')");
    if caller.query_text(&sql).is_ok_and(|found| found.is_some()) {
        return Ok(());
    }
    Err(Error::new(ErrorKind::Refused, format!("unsafe use of {name}() in the schema")))
}

/// Whether a statement is running and its text has this name.
///
/// # Safety
/// The statement must not have been finalized.
unsafe fn names(api: &Api, statement: *mut sqlite3_stmt, name: &str) -> bool {
    // SAFETY: the caller vouches for the statement.
    if unsafe { (api.stmt_busy)(statement) } == 0 {
        return false;
    }
    // SAFETY: as above.
    let text = unsafe { (api.sql)(statement) };
    if text.is_null() {
        return false;
    }
    // SAFETY: it is NUL-terminated and lives as long as the statement.
    let text = unsafe { CStr::from_ptr(text) }.to_bytes();
    text.windows(name.len()).any(|part| part.eq_ignore_ascii_case(name.as_bytes()))
}
