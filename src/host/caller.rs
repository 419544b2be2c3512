//! The connection that is calling us: a function's or a table's view of it, for the length of the
//! call.
//!
//! It belongs to the host. We run only small statements on it, never close it and never change its
//! settings behind its back.

use std::cell::RefCell;
use std::ffi::{CStr, OsStr};
use std::marker::PhantomData;
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;

use sqlite_loadable::ext::sqlite3;
use sqlite3ext_sys::{SQLITE_FCNTL_VFS_POINTER, SQLITE_INTERRUPT, sqlite3_vfs};

use super::api::{self, Api};
use super::conn::control_pointer;
use super::stmt::{Handle, Statement, c_text, code};
use crate::error::{Error, ErrorKind, Result};

/// The calling connection, inside a function or a table's scan.
pub struct Caller<'c> {
    handle: Handle,
    /// `SELECT 1`, kept for the repeated questions of [`Caller::interrupted`].
    probe: RefCell<Option<Statement>>,
    call: PhantomData<&'c ()>,
}

impl Caller<'_> {
    /// # Safety
    /// `db` must stay open, and be used by this thread alone, for as long as the value lives.
    pub(super) unsafe fn new(api: &'static Api, db: *mut sqlite3) -> Self {
        Caller { handle: Handle { api, db }, probe: RefCell::new(None), call: PhantomData }
    }

    /// The file behind `schema` ("main", or an attached name), as an absolute path; None if it is
    /// an in-memory or temporary database. An unknown schema is an error.
    pub fn filename(&self, schema: &str) -> Result<Option<PathBuf>> {
        let name = c_text(schema)?;
        // SAFETY: the connection is open and the name NUL-terminated.
        let path = unsafe { (self.handle.api.db_filename)(self.handle.db, name.as_ptr()) };
        if path.is_null() {
            // NULL is an unknown name, and in some versions also a database without a file.
            return self.require_schema(schema).map(|()| None);
        }
        // SAFETY: the name is NUL-terminated and lives until the schema is detached.
        let path = unsafe { CStr::from_ptr(path) }.to_bytes();
        Ok((!path.is_empty()).then(|| PathBuf::from(OsStr::from_bytes(path))))
    }

    /// The name of the VFS behind `schema`, for opening the same file the same way.
    pub fn vfs(&self, schema: &str) -> Result<String> {
        let pointer = control_pointer(self.handle, &c_text(schema)?, SQLITE_FCNTL_VFS_POINTER)?;
        let vfs: *const sqlite3_vfs = pointer.cast_const().cast();
        // SAFETY: SQLite answered with the VFS of an open database.
        let name = unsafe { (*vfs).zName };
        // SAFETY: a registered VFS has a NUL-terminated name that outlives it.
        unsafe { api::text_at(name) }
            .ok_or_else(|| Error::new(ErrorKind::Unsupported, "the database's VFS has no name"))
    }

    /// Whether `schema` is open for reading only. An unknown schema is an error.
    pub fn readonly(&self, schema: &str) -> Result<bool> {
        let name = c_text(schema)?;
        // SAFETY: the connection is open and the name NUL-terminated.
        match unsafe { (self.handle.api.db_readonly)(self.handle.db, name.as_ptr()) } {
            0 => Ok(false),
            1 => Ok(true),
            _ => Err(unknown_schema(schema)),
        }
    }

    /// Whether the connection is inside BEGIN ... COMMIT.
    pub fn in_transaction(&self) -> bool {
        // SAFETY: the connection is open.
        unsafe { (self.handle.api.get_autocommit)(self.handle.db) == 0 }
    }

    /// First column of the first row, as text; None if there is no row or it is NULL.
    pub fn query_text(&self, sql: &str) -> Result<Option<String>> {
        self.handle.query_text(sql)
    }

    /// First column of the first row, as an integer; an error if there is no row or it is NULL.
    pub fn query_i64(&self, sql: &str) -> Result<i64> {
        self.handle.query_i64(sql)
    }

    /// The first `columns` columns of every row, as text; what is NULL is empty.
    pub fn query_rows(&self, sql: &str, columns: u8) -> Result<Vec<Vec<String>>> {
        self.handle.query_rows(sql, columns)
    }

    /// Runs every statement of `sql` to its end; rows are dropped.
    pub fn execute(&self, sql: &str) -> Result<()> {
        self.handle.execute(sql)
    }

    /// Whether somebody called `sqlite3_interrupt` on the connection since the calling statement
    /// began.
    ///
    /// SQLite 3.41 added a function for the question. Before that the flag shows in a statement run
    /// inside ours: it is cleared only when no statement is active, and ours is.
    pub fn interrupted(&self) -> bool {
        let mut probe = self.probe.borrow_mut();
        if probe.is_none() {
            match self.handle.prepare(c"SELECT 1") {
                Ok((statement, _)) => *probe = statement,
                Err(error) => return error.kind() == ErrorKind::Stopped,
            }
        }
        let Some(statement) = probe.as_mut() else { return false };
        let interrupted = statement.step_code() & 0xff == code(SQLITE_INTERRUPT);
        statement.reset();
        interrupted
    }

    fn require_schema(&self, schema: &str) -> Result<()> {
        self.readonly(schema).map(|_| ())
    }
}

fn unknown_schema(schema: &str) -> Error {
    Error::new(ErrorKind::Usage, format!("no database named {schema:?} on this connection"))
}
