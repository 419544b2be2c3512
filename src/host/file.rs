//! A door into a WAL database: its bytes, its shared memory and its locks, past the pager.
//!
//! A [`Door`] is a connection of ours whose SQL ended when it was opened. From then on:
//!
//! | thing                 | used by                 | while holding                           |
//! |-----------------------|-------------------------|-----------------------------------------|
//! | database bytes        | any thread              | `FileHandle::io`, for one call          |
//! | `xShmMap`, `xShmLock` | any thread              | `Door::shm`, for one call               |
//! | a mapped [`Region`]   | any thread, any process | the wal-index's own locks; only atomics |
//!
//! While it is open SQLite keeps SHARED on the database file for it, so nobody can leave WAL mode
//! or, as the "last" connection, delete the WAL. Its own close never checkpoints.

use std::ffi::c_int;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use super::conn::Connection;
use super::raw::{FileHandle, method};
use crate::error::{Error, ErrorKind, Result};
use crate::wal::PageSize;

pub use super::raw::RawFile;
pub use super::shm::{Mode, Region, ShmLock};

/// How long the first read waits for a recovery or an exclusive lock of somebody else, in
/// milliseconds.
const OPEN_BUSY_MS: u32 = 5000;

/// The first version of `sqlite3_io_methods` with shared memory.
const METHODS_WITH_SHM: c_int = 2;

/// Raw access to one WAL database. See the module's text for its contract.
pub struct Door {
    pub(super) handle: FileHandle,
    /// Lock bytes held through this door, one bit each; also serializes the shared-memory calls.
    pub(super) shm: Mutex<u8>,
    page_size: PageSize,
    wal_path: PathBuf,
}

impl Door {
    /// Opens `path` through the VFS named `vfs` (empty: the default) and reads once, so that the
    /// WAL and its shared memory are open. Refuses a database that is not in WAL mode, and a VFS
    /// without shared memory.
    pub fn open(path: &Path, vfs: &str) -> Result<Arc<Door>> {
        Self::open_door(path, vfs)
            .map_err(|error| error.context(format_args!("open {}", path.display())))
    }

    fn open_door(path: &Path, vfs: &str) -> Result<Arc<Door>> {
        let connection = Connection::open(path, vfs, false)?;
        connection.never_checkpoint_on_close()?;
        connection.busy_timeout(OPEN_BUSY_MS)?;
        let handle = FileHandle::of(connection)?;
        require_shared_memory(&handle)?;
        let connection = &handle.connection;
        let locking = connection.query_text("PRAGMA main.locking_mode = NORMAL")?;
        if locking.as_deref() != Some("normal") {
            return Err(Error::new(
                ErrorKind::Refused,
                "locking_mode is exclusive, so nobody else may look at the WAL; set it to normal",
            ));
        }
        connection.execute("PRAGMA wal_autocheckpoint = 0; PRAGMA mmap_size = 0")?;
        connection.query_i64("SELECT count(*) FROM main.sqlite_master")?;
        let journal = connection.query_text("PRAGMA main.journal_mode")?.unwrap_or_default();
        if journal != "wal" {
            return Err(Error::new(
                ErrorKind::Refused,
                format!("journal_mode is {journal}, not wal; run PRAGMA journal_mode = WAL"),
            ));
        }
        let page_size = connection.query_i64("PRAGMA main.page_size")?;
        let page_size = u32::try_from(page_size).map_err(|_| {
            Error::new(ErrorKind::Corrupt, format!("page size {page_size} is impossible"))
        })?;
        let page_size = PageSize::new(page_size)?;

        let mut wal_path = path.as_os_str().to_owned();
        wal_path.push("-wal");
        Ok(Arc::new(Door { handle, shm: Mutex::new(0), page_size, wal_path: wal_path.into() }))
    }

    /// Size of a database page.
    pub fn page_size(&self) -> PageSize {
        self.page_size
    }

    /// The database's path, as it was opened.
    pub fn path(&self) -> &Path {
        self.handle.connection.path()
    }

    /// The path of its WAL. That file carries no locks, so `std::fs` may open it.
    pub fn wal_path(&self) -> &Path {
        &self.wal_path
    }

    /// Reads the database file at `offset`, in bytes; returns how many there were, up to its end.
    pub fn read_db(&self, buffer: &mut [u8], offset: u64) -> Result<usize> {
        self.handle.read(buffer, offset)
    }

    /// Writes all bytes into the database file at `offset`, in bytes.
    pub fn write_db(&self, bytes: &[u8], offset: u64) -> Result<()> {
        self.handle.write(bytes, offset)
    }

    /// Cuts the database file to `size` bytes.
    pub fn truncate_db(&self, size: u64) -> Result<()> {
        self.handle.truncate(size)
    }

    /// Brings the database file to the disk.
    pub fn sync_db(&self) -> Result<()> {
        self.handle.sync()
    }

    /// Size of the database file in bytes.
    pub fn db_size(&self) -> Result<u64> {
        self.handle.size()
    }
}

/// Without shared memory a WAL works for one exclusive connection only, so there is nothing to
/// share.
fn require_shared_memory(handle: &FileHandle) -> Result<()> {
    let found = (handle.version() >= METHODS_WITH_SHM)
        && method!(handle, xShmMap).is_ok()
        && method!(handle, xShmLock).is_ok()
        && method!(handle, xShmBarrier).is_ok();
    if found {
        return Ok(());
    }
    Err(Error::new(
        ErrorKind::Unsupported,
        "the database's VFS has no shared memory, so its WAL cannot be shared; open it through a \
         VFS that has, such as the default one",
    ))
}
