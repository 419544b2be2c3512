//! Statements over a raw `sqlite3*`, shared by our own connections and by the calling one.
//!
//! A [`Handle`] is only a pointer: its owner sees to it that the connection is open and that no
//! other thread uses it between a call and the reading of its error message.

use std::ffi::{CStr, CString, c_int};
use std::ptr;

use sqlite_loadable::ext::{sqlite3, sqlite3_stmt};
use sqlite3ext_sys::{
    SQLITE_BUSY, SQLITE_DONE, SQLITE_FULL, SQLITE_INTERRUPT, SQLITE_IOERR, SQLITE_LOCKED,
    SQLITE_NULL, SQLITE_OK, SQLITE_ROW,
};

use super::api::{self, Api};
use crate::error::{Error, ErrorKind, Result};
use crate::fault;

/// SQLite's constants are unsigned in the bindings and signed in its functions.
pub(super) const fn code(constant: u32) -> c_int {
    constant.cast_signed()
}

pub(super) const OK: c_int = code(SQLITE_OK);

/// Turns a result code into an error of the kind callers act on.
pub(super) fn error(rc: c_int, message: String) -> Error {
    let kind = match (rc & 0xff).cast_unsigned() {
        SQLITE_BUSY | SQLITE_LOCKED => ErrorKind::Busy,
        SQLITE_INTERRUPT => ErrorKind::Stopped,
        _ => ErrorKind::Host(rc),
    };
    Error::new(kind, message)
}

/// The same for calls that leave no message on a connection.
pub(super) fn check(rc: c_int, what: impl FnOnce() -> String) -> Result<()> {
    if rc == OK { Ok(()) } else { Err(error(rc, format!("{}: {}", what(), api::describe(rc)))) }
}

/// The call of SQLite named `point` is about to happen; a fault is an error as SQLite's own.
#[inline(always)]
pub(super) fn fault_at(point: &'static str, what: impl FnOnce() -> String) -> Result<()> {
    fault::at(point).or_else(|fault| match fault.kind() {
        std::io::ErrorKind::StorageFull => check(code(SQLITE_FULL), what),
        _ => check(code(SQLITE_IOERR), what),
    })
}

/// An open connection, borrowed.
#[derive(Clone, Copy)]
pub(super) struct Handle {
    pub api: &'static Api,
    pub db: *mut sqlite3,
}

impl Handle {
    /// Runs every statement of `sql` to its end; rows are dropped.
    pub fn execute(self, sql: &str) -> Result<()> {
        let text = c_text(sql)?;
        let mut rest = text.as_c_str();
        while !rest.is_empty() {
            let (statement, tail) = self.prepare(rest)?;
            if let Some(mut statement) = statement {
                while statement.step()? {}
            }
            rest = tail;
        }
        Ok(())
    }

    /// First column of the first row, as text; None if there is no row or it is NULL.
    pub fn query_text(self, sql: &str) -> Result<Option<String>> {
        self.query(sql, |statement| statement.text())
    }

    /// First column of the first row, as an integer; an error if there is no row.
    pub fn query_i64(self, sql: &str) -> Result<i64> {
        let value = self.query(sql, |statement| Some(statement.integer()))?;
        value.ok_or_else(|| Error::new(ErrorKind::Bug, format!("no value from: {sql}")))
    }

    /// The first `columns` columns of every row, as text; what is NULL is empty.
    pub fn query_rows(self, sql: &str, columns: u8) -> Result<Vec<Vec<String>>> {
        let text = c_text(sql)?;
        let mut rows = Vec::new();
        let Some(mut statement) = self.prepare(&text)?.0 else { return Ok(rows) };
        while statement.step()? {
            let text = |column| statement.text_at(column).unwrap_or_default();
            rows.push((0..columns).map(text).collect());
        }
        Ok(rows)
    }

    fn query<T>(self, sql: &str, read: impl Fn(&Statement) -> Option<T>) -> Result<Option<T>> {
        let text = c_text(sql)?;
        let Some(mut statement) = self.prepare(&text)?.0 else { return Ok(None) };
        if !statement.step()? || statement.is_null() {
            return Ok(None);
        }
        let value = read(&statement);
        while statement.step()? {}
        Ok(value)
    }

    /// Compiles the first statement of `sql`; None if it is blank. Also returns what follows it.
    pub fn prepare(self, sql: &CStr) -> Result<(Option<Statement>, &CStr)> {
        let mut statement = ptr::null_mut();
        let mut tail = ptr::null();
        let (db, text) = (self.db, sql.as_ptr());
        // SAFETY: the connection is open, the text NUL-terminated, both results are ours.
        let rc = unsafe { (self.api.prepare_v2)(db, text, -1, &raw mut statement, &raw mut tail) };
        if rc != OK {
            return Err(self.error(rc, &sql.to_string_lossy()));
        }
        let rest = if tail.is_null() {
            c""
        } else {
            // SAFETY: SQLite sets the tail to a place inside `sql`, so it ends at the same NUL.
            unsafe { CStr::from_ptr(tail) }
        };
        let statement =
            (!statement.is_null()).then_some(Statement { handle: self, raw: statement });
        Ok((statement, rest))
    }

    /// The error SQLite left on this connection for `rc`.
    pub fn error(self, rc: c_int, what: &str) -> Error {
        // SAFETY: the connection is open; the text is copied before anybody can change it.
        let message = unsafe { (self.api.errmsg)(self.db) };
        // SAFETY: as above.
        let message = unsafe { api::text_at(message) };
        let message = message.unwrap_or_else(|| api::describe(rc));
        error(rc, format!("{}: {message}", shorten(what)))
    }
}

/// A compiled statement; finalized when dropped.
pub(super) struct Statement {
    handle: Handle,
    raw: *mut sqlite3_stmt,
}

impl Statement {
    /// True if there is a row.
    pub fn step(&mut self) -> Result<bool> {
        match self.step_code() {
            rc if rc == code(SQLITE_ROW) => Ok(true),
            rc if rc == code(SQLITE_DONE) => Ok(false),
            rc => Err(self.handle.error(rc, "run a statement")),
        }
    }

    /// The bare result code of one step.
    pub fn step_code(&mut self) -> c_int {
        // SAFETY: the statement is live until drop.
        unsafe { (self.handle.api.step)(self.raw) }
    }

    /// Makes the statement ready to run again.
    pub fn reset(&mut self) {
        // SAFETY: the statement is live until drop. The code repeats the last step's.
        unsafe { (self.handle.api.reset)(self.raw) };
    }

    fn is_null(&self) -> bool {
        // SAFETY: called with a row at hand; column 0 exists.
        unsafe { (self.handle.api.column_type)(self.raw, 0) == code(SQLITE_NULL) }
    }

    fn integer(&self) -> i64 {
        // SAFETY: called with a row at hand; column 0 exists.
        unsafe { (self.handle.api.column_int64)(self.raw, 0) }
    }

    fn text(&self) -> Option<String> {
        self.text_at(0)
    }

    fn text_at(&self, column: u8) -> Option<String> {
        let column = c_int::from(column);
        // SAFETY: called with a row at hand; a column that does not exist is NULL.
        let text = unsafe { (self.handle.api.column_text)(self.raw, column) };
        // SAFETY: as above; asked after the text, so it counts that text's bytes.
        let length = unsafe { (self.handle.api.column_bytes)(self.raw, column) };
        if text.is_null() {
            return None;
        }
        let length = usize::try_from(length).unwrap_or(0);
        // SAFETY: SQLite keeps `length` bytes there until the next step; they are copied now.
        let bytes = unsafe { std::slice::from_raw_parts(text, length) };
        Some(String::from_utf8_lossy(bytes).into_owned())
    }
}

impl Drop for Statement {
    fn drop(&mut self) {
        // SAFETY: the statement came from prepare and is finalized once, here.
        unsafe { (self.handle.api.finalize)(self.raw) };
    }
}

/// A C string, or an error that shows the text if it holds a NUL.
pub(super) fn c_text(text: &str) -> Result<CString> {
    CString::new(text)
        .map_err(|_| Error::new(ErrorKind::Usage, format!("a NUL byte inside {:?}", shorten(text))))
}

fn shorten(text: &str) -> &str {
    const SHOWN: usize = 120;
    text.char_indices().nth(SHOWN).map_or(text, |(end, _)| &text[..end])
}
