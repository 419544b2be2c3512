//! The `sqlite3_file` of a connection of ours: bytes of the database without a descriptor of our
//! own.
//!
//! A `sqlite3_file` is not thread-safe (some builds seek, then read), so every call happens under
//! `io`. The handle is good for as long as the connection is open; its owner keeps both together.

use std::ffi::c_int;
use std::path::Path;
use std::sync::Mutex;

use sqlite3ext_sys::{
    SQLITE_FCNTL_FILE_POINTER, SQLITE_IOERR_SHORT_READ, SQLITE_SYNC_FULL, sqlite3_file,
    sqlite3_io_methods,
};

use super::conn::Connection;
use super::stmt::{check, code, error, fault_at};
use crate::error::{Error, ErrorKind, Result, lock};

/// The most bytes handed to one `xRead` or `xWrite`, whose counts are C ints.
const IO_BYTES_MAX: usize = 1 << 28;

/// File locks of the rollback-journal protocol, as `xLock` counts them.
const LOCK_NONE: c_int = 0;
const LOCK_SHARED: c_int = 1;
const LOCK_RESERVED: c_int = 2;
const LOCK_EXCLUSIVE: c_int = 4;

/// A connection and the handle of its main database file.
pub(super) struct FileHandle {
    pub connection: Connection,
    pub file: *mut sqlite3_file,
    methods: *const sqlite3_io_methods,
    /// Held around each call that reads, writes or asks the size.
    io: Mutex<()>,
}

// SAFETY: the file belongs to the connection, which any thread may use; its calls are made under
// `io`, or under the shared-memory lock of `Door`.
unsafe impl Send for FileHandle {}
// SAFETY: as above.
unsafe impl Sync for FileHandle {}

/// Fetches a method of the file, or an error that names what the VFS lacks.
macro_rules! method {
    ($handle:expr, $name:ident) => {{
        // SAFETY: SQLite keeps the method table of an open file alive; the field exists in its
        // version.
        let method = unsafe { (*$handle.methods()).$name };
        method.ok_or_else(|| {
            $crate::error::Error::new(
                $crate::error::ErrorKind::Unsupported,
                concat!("the database's VFS has no ", stringify!($name)),
            )
        })
    }};
}
pub(super) use method;

impl FileHandle {
    /// Finds the file of an open connection.
    pub fn of(connection: Connection) -> Result<FileHandle> {
        let file: *mut sqlite3_file = connection.file_pointer(SQLITE_FCNTL_FILE_POINTER)?.cast();
        // SAFETY: SQLite answered with the file of an open database; it lives as long as the
        // connection.
        let methods = unsafe { (*file).pMethods };
        if methods.is_null() {
            return Err(Error::new(
                ErrorKind::Unsupported,
                "the database has no file (in memory or temporary)",
            ));
        }
        Ok(FileHandle { connection, file, methods, io: Mutex::new(()) })
    }

    pub fn methods(&self) -> *const sqlite3_io_methods {
        self.methods
    }

    /// Version of the method table; shared memory needs 2.
    pub fn version(&self) -> c_int {
        // SAFETY: see `methods`.
        unsafe { (*self.methods).iVersion }
    }

    pub fn read(&self, buffer: &mut [u8], offset: u64) -> Result<usize> {
        fault_at("host/file/read", || self.what("read"))?;
        let read = method!(self, xRead)?;
        let mut done = 0;
        for chunk in buffer.chunks_mut(IO_BYTES_MAX) {
            let at = position(offset, done)?;
            let length = c_length(chunk.len())?;
            let rc = {
                let _io = lock(&self.io);
                // SAFETY: the file is open and the buffer good for `length` bytes.
                unsafe { read(self.file, chunk.as_mut_ptr().cast(), length, at) }
            };
            if rc == code(SQLITE_IOERR_SHORT_READ) {
                // SQLite zeroed the rest but does not say how much there was.
                let end = self.size()?.saturating_sub(offset);
                return Ok(usize::try_from(end).unwrap_or(usize::MAX).clamp(done, buffer.len()));
            }
            check(rc, || self.what("read"))?;
            done += chunk.len();
        }
        Ok(done)
    }

    pub fn write(&self, bytes: &[u8], offset: u64) -> Result<()> {
        fault_at("host/file/write", || self.what("write"))?;
        let write = method!(self, xWrite)?;
        let mut done = 0;
        for chunk in bytes.chunks(IO_BYTES_MAX) {
            let at = position(offset, done)?;
            let length = c_length(chunk.len())?;
            let rc = {
                let _io = lock(&self.io);
                // SAFETY: the file is open and the bytes are `length` long.
                unsafe { write(self.file, chunk.as_ptr().cast(), length, at) }
            };
            check(rc, || self.what("write"))?;
            done += chunk.len();
        }
        Ok(())
    }

    pub fn truncate(&self, size: u64) -> Result<()> {
        fault_at("host/file/truncate", || self.what("truncate"))?;
        let truncate = method!(self, xTruncate)?;
        let size = position(size, 0)?;
        let _io = lock(&self.io);
        // SAFETY: the file is open.
        let rc = unsafe { truncate(self.file, size) };
        check(rc, || self.what("truncate"))
    }

    pub fn sync(&self) -> Result<()> {
        fault_at("host/file/sync", || self.what("sync"))?;
        let sync = method!(self, xSync)?;
        let _io = lock(&self.io);
        // SAFETY: the file is open.
        let rc = unsafe { sync(self.file, code(SQLITE_SYNC_FULL)) };
        check(rc, || self.what("sync"))
    }

    pub fn size(&self) -> Result<u64> {
        fault_at("host/file/size", || self.what("ask the size of"))?;
        let size = method!(self, xFileSize)?;
        let mut bytes = 0_i64;
        let _io = lock(&self.io);
        // SAFETY: the file is open and the result ours.
        let rc = unsafe { size(self.file, &raw mut bytes) };
        check(rc, || self.what("ask the size of"))?;
        u64::try_from(bytes)
            .map_err(|_| Error::new(ErrorKind::Io, format!("{}: negative", self.what("size"))))
    }

    fn lock_file(&self, level: c_int) -> Result<()> {
        fault_at("host/file/lock", || self.what("lock"))?;
        let lock_file = method!(self, xLock)?;
        let _io = lock(&self.io);
        // SAFETY: the file is open and the connection runs no SQL meanwhile.
        let rc = unsafe { lock_file(self.file, level) };
        check(rc, || self.what("lock"))
    }

    fn unlock_file(&self) -> Result<()> {
        fault_at("host/file/unlock", || self.what("unlock"))?;
        let unlock_file = method!(self, xUnlock)?;
        let _io = lock(&self.io);
        // SAFETY: the file is open.
        let rc = unsafe { unlock_file(self.file, LOCK_NONE) };
        check(rc, || self.what("unlock"))
    }

    pub fn what(&self, verb: &str) -> String {
        format!("{verb} {}", self.connection.path().display())
    }
}

fn position(offset: u64, done: usize) -> Result<i64> {
    u64::try_from(done)
        .ok()
        .and_then(|done| offset.checked_add(done))
        .and_then(|at| i64::try_from(at).ok())
        .ok_or_else(|| error(code(sqlite3ext_sys::SQLITE_FULL), format!("offset {offset} too big")))
}

fn c_length(length: usize) -> Result<c_int> {
    c_int::try_from(length)
        .map_err(|_| Error::new(ErrorKind::Bug, format!("{length} bytes in one file call")))
}

/// A database file that is being filled from nothing, by its bytes. No SQL runs on its connection.
///
/// | step                   | readers meanwhile                                    |
/// |------------------------|------------------------------------------------------|
/// | [`RawFile::begin_exclusive`] | "database is locked", as beside any exclusive writer |
/// | writes, page 1 last    | the same                                             |
/// | [`RawFile::rollback`]  | see the new content: SQLite compares the header      |
///
/// Nothing is undone by `rollback`: it only gives the lock back. What a crash leaves is the
/// caller's to recognise, which is why page 1 comes last.
pub struct RawFile {
    handle: FileHandle,
}

impl RawFile {
    /// Opens `path`, or creates it, through the VFS named `vfs` (empty: the default).
    pub fn open(path: &Path, vfs: &str) -> Result<RawFile> {
        let handle = FileHandle::of(Connection::open(path, vfs, true)?)?;
        handle.connection.never_checkpoint_on_close()?;
        Ok(RawFile { handle })
    }

    /// Takes the file's EXCLUSIVE lock; [`ErrorKind::Busy`] if anybody else holds any lock.
    pub fn begin_exclusive(&self) -> Result<()> {
        for level in [LOCK_SHARED, LOCK_RESERVED, LOCK_EXCLUSIVE] {
            if let Err(error) = self.handle.lock_file(level) {
                // The failed step is what the caller must hear about.
                let _ = self.handle.unlock_file();
                return Err(error);
            }
        }
        Ok(())
    }

    /// Gives the lock back. What was written stays.
    pub fn rollback(&self) -> Result<()> {
        self.handle.unlock_file()
    }

    /// Reads at `offset`, in bytes; returns how many there were, up to the end of the file.
    pub fn read(&self, buffer: &mut [u8], offset: u64) -> Result<usize> {
        self.handle.read(buffer, offset)
    }

    /// Writes all bytes at `offset`, in bytes.
    pub fn write(&self, bytes: &[u8], offset: u64) -> Result<()> {
        self.handle.write(bytes, offset)
    }

    /// Cuts the file to `size` bytes.
    pub fn truncate(&self, size: u64) -> Result<()> {
        self.handle.truncate(size)
    }

    /// Brings everything written to the disk.
    pub fn sync(&self) -> Result<()> {
        self.handle.sync()
    }

    /// Size of the file in bytes.
    pub fn size(&self) -> Result<u64> {
        self.handle.size()
    }

    /// The path it was opened with.
    pub fn path(&self) -> &Path {
        self.handle.connection.path()
    }
}
