//! A connection of our own to a database, through the host's SQLite, for SQL.
//!
//! Opened in serialized mode with a private cache. SQL methods take turns (`Connection::sql`), so
//! an error message always belongs to the call that failed; `interrupt` does not wait for its turn.

use std::ffi::{CStr, CString, c_int, c_void};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::ptr;
use std::sync::Mutex;

use sqlite_loadable::ext::sqlite3;
use sqlite3ext_sys::{
    SQLITE_BUSY, SQLITE_OPEN_CREATE, SQLITE_OPEN_FULLMUTEX, SQLITE_OPEN_PRIVATECACHE,
    SQLITE_OPEN_READWRITE,
};

use super::api;
use super::stmt::{Handle, OK, c_text, code, error, fault_at};
use crate::error::{Error, ErrorKind, Result, lock};

pub use super::caller::Caller;

/// Checkpoint modes, as `sqlite3_wal_checkpoint_v2` counts them.
pub const CHECKPOINT_PASSIVE: i32 = 0;
/// Waits for writers, then checkpoints all frames.
pub const CHECKPOINT_FULL: i32 = 1;
/// As FULL, and makes the next writer start the WAL over.
pub const CHECKPOINT_RESTART: i32 = 2;
/// As RESTART, and truncates the WAL file.
pub const CHECKPOINT_TRUNCATE: i32 = 3;

/// What `sqlite3_wal_checkpoint_v2` answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Checkpointed {
    /// Somebody else's lock kept the checkpoint from finishing (or from starting).
    pub busy: bool,
    /// Frames in the WAL; -1 if unknown.
    pub log: i32,
    /// Frames of these that are in the database now; -1 if unknown.
    pub checkpointed: i32,
}

/// A connection of ours. Closed when dropped.
pub struct Connection {
    handle: Handle,
    path: PathBuf,
    /// Held by each SQL method from its call to the reading of its error message.
    sql: Mutex<()>,
}

// SAFETY: the connection is in serialized mode (checked in `open`), so SQLite itself allows any
// thread.
unsafe impl Send for Connection {}
// SAFETY: as above; what spans more than one call of SQLite happens under `sql`.
unsafe impl Sync for Connection {}

impl Connection {
    /// Opens `path` for reading and writing through the VFS named `vfs` (empty: the default). With
    /// `create` a missing file is made, else it is an error.
    pub fn open(path: &Path, vfs: &str, create: bool) -> Result<Connection> {
        fault_at("host/sql/open", || format!("open {}", path.display()))?;
        let api = api::api()?;
        api::require_threadsafe()?;
        let name = file_name(path)?;
        let vfs = c_text(vfs)?;
        let vfs_name = if vfs.is_empty() { ptr::null() } else { vfs.as_ptr() };
        let mut flags = SQLITE_OPEN_READWRITE | SQLITE_OPEN_FULLMUTEX | SQLITE_OPEN_PRIVATECACHE;
        if create {
            flags |= SQLITE_OPEN_CREATE;
        }

        let mut db: *mut sqlite3 = ptr::null_mut();
        // SAFETY: both names are NUL-terminated or NULL; the result is ours.
        let rc = unsafe { (api.open_v2)(name.as_ptr(), &raw mut db, code(flags), vfs_name) };
        if db.is_null() {
            return Err(error(rc, format!("open {}: out of memory", path.display())));
        }
        // From here on the drop of `connection` closes it, whatever happened.
        let connection =
            Connection { handle: Handle { api, db }, path: path.into(), sql: Mutex::new(()) };
        if rc != OK {
            return Err(connection.handle.error(rc, &format!("open {}", path.display())));
        }
        // SAFETY: the connection is open. NULL means SQLITE_CONFIG_SINGLETHREAD was chosen at run
        // time.
        if unsafe { (api.db_mutex)(db) }.is_null() {
            return Err(api::single_threaded());
        }
        // SAFETY: the connection is open; the call cannot fail on one.
        unsafe { (api.extended_result_codes)(db, 1) };
        Ok(connection)
    }

    /// The path it was opened with.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Runs every statement of `sql` to its end; rows are dropped.
    pub fn execute(&self, sql: &str) -> Result<()> {
        fault_at("host/sql/run", || sql.to_owned())?;
        let _turn = lock(&self.sql);
        self.handle.execute(sql)
    }

    /// First column of the first row, as text; None if there is no row or it is NULL.
    pub fn query_text(&self, sql: &str) -> Result<Option<String>> {
        fault_at("host/sql/query", || sql.to_owned())?;
        let _turn = lock(&self.sql);
        self.handle.query_text(sql)
    }

    /// First column of the first row, as an integer; an error if there is no row or it is NULL.
    pub fn query_i64(&self, sql: &str) -> Result<i64> {
        fault_at("host/sql/query", || sql.to_owned())?;
        let _turn = lock(&self.sql);
        self.handle.query_i64(sql)
    }

    /// How long SQL waits for somebody else's lock, in milliseconds; 0 is not at all.
    pub fn busy_timeout(&self, milliseconds: u32) -> Result<()> {
        let milliseconds = c_int::try_from(milliseconds).unwrap_or(c_int::MAX);
        let _turn = lock(&self.sql);
        // SAFETY: the connection is open.
        let rc = unsafe { (self.handle.api.busy_timeout)(self.handle.db, milliseconds) };
        if rc == OK { Ok(()) } else { Err(self.handle.error(rc, "set the busy timeout")) }
    }

    /// Checkpoints the main database. A checkpoint somebody else kept from finishing is not an
    /// error.
    pub fn checkpoint(&self, mode: i32) -> Result<Checkpointed> {
        fault_at("host/sql/checkpoint", || "checkpoint".to_owned())?;
        let (mut frames, mut done): (c_int, c_int) = (-1, -1);
        let (api, db) = (self.handle.api, self.handle.db);
        let _turn = lock(&self.sql);
        let main = c"main".as_ptr();
        // SAFETY: the connection is open; the results are ours.
        let rc = unsafe { (api.wal_checkpoint_v2)(db, main, mode, &raw mut frames, &raw mut done) };
        let busy = rc & 0xff == code(SQLITE_BUSY);
        if rc != OK && !busy {
            return Err(self.handle.error(rc, "checkpoint"));
        }
        Ok(Checkpointed { busy, log: frames, checkpointed: done })
    }

    /// Makes the statement that runs on this connection, if any, end with an error. From any
    /// thread.
    pub fn interrupt(&self) {
        // SAFETY: the connection is open for as long as `self` lives; SQLite allows any thread.
        unsafe { (self.handle.api.interruptx)(self.handle.db) };
    }

    /// Keeps the close of this connection from checkpointing, even if it is the last one.
    pub(super) fn never_checkpoint_on_close(&self) -> Result<()> {
        /// `SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE`
        const NO_CKPT_ON_CLOSE: c_int = 1006;
        let (api, db, on) = (self.handle.api, self.handle.db, 1 as c_int);
        let answer = ptr::null_mut::<c_int>();
        let _turn = lock(&self.sql);
        // SAFETY: this verb takes an int and an int pointer, which may be NULL.
        let rc = unsafe { (api.db_config)(db, NO_CKPT_ON_CLOSE, on, answer) };
        if rc == OK { Ok(()) } else { Err(self.handle.error(rc, "set no-checkpoint-on-close")) }
    }

    /// `sqlite3_file_control` on the main database for the verbs that store a pointer.
    pub(super) fn file_pointer(&self, verb: u32) -> Result<*mut c_void> {
        let _turn = lock(&self.sql);
        control_pointer(self.handle, c"main", verb)
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        // SAFETY: every statement was finalized by its own drop; nobody else has the pointer.
        unsafe { (self.handle.api.close_v2)(self.handle.db) };
    }
}

/// Asks a schema's file for one of its pointers (`SQLITE_FCNTL_FILE_POINTER` and its like).
pub(super) fn control_pointer(handle: Handle, schema: &CStr, verb: u32) -> Result<*mut c_void> {
    let mut pointer: *mut c_void = ptr::null_mut();
    let argument = (&raw mut pointer).cast();
    // SAFETY: the connection is open, and these verbs write one pointer to the argument.
    let rc = unsafe { (handle.api.file_control)(handle.db, schema.as_ptr(), code(verb), argument) };
    if rc != OK {
        let schema = schema.to_string_lossy();
        return Err(error(rc, format!("look into database {schema:?}: {}", api::describe(rc))));
    }
    if pointer.is_null() {
        return Err(Error::new(ErrorKind::Unsupported, "this database has no file"));
    }
    Ok(pointer)
}

/// The name to open. A relative one gets `./` in front, so that none reads as `:memory:`, as a
/// `file:` URI (a host may have these switched on) or, empty, as a temporary database.
fn file_name(path: &Path) -> Result<CString> {
    let bytes = path.as_os_str().as_bytes();
    if bytes.is_empty() {
        return Err(Error::new(ErrorKind::Usage, "open a database: the path is empty"));
    }
    let prefix: &[u8] = if path.is_absolute() { b"" } else { b"./" };
    CString::new([prefix, bytes].concat()).map_err(|_| {
        Error::new(ErrorKind::Usage, format!("a NUL byte inside the path {}", path.display()))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_cannot_be_read_as_anything_but_files() {
        let name = |path: &str| file_name(Path::new(path)).map(|name| name.into_string().unwrap());
        assert_eq!(name("/tmp/a.db").unwrap(), "/tmp/a.db");
        assert_eq!(name("file:/tmp/a.db?mode=ro").unwrap(), "./file:/tmp/a.db?mode=ro");
        assert_eq!(name(":memory:").unwrap(), "./:memory:");
        assert_eq!(name("").unwrap_err().kind(), ErrorKind::Usage);
        assert_eq!(name("a\0b").unwrap_err().kind(), ErrorKind::Usage);
    }
}
