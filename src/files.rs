//! Small chores on files by path: reading a WAL, removing leftovers.
//!
//! Never use these on a database or its `-shm` that the host has open: closing any descriptor of such
//! a file drops all locks the process holds on it. A `-wal` carries no locks.

use std::ffi::OsString;
use std::fs::{self, File};
use std::io::{self, ErrorKind as Io, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

use crate::error::{Context, Error, ErrorKind, Result};
use crate::wal::WAL_HEADER_SIZE;

/// Ends the name of a file that is still being written.
pub const TMP_EXT: &str = ".tmp";

/// `path` with `suffix` put behind it, as SQLite names the files beside a database.
pub fn with_suffix(path: &Path, suffix: &str) -> PathBuf {
    let mut name = OsString::from(path);
    name.push(suffix);
    PathBuf::from(name)
}

/// The first [`WAL_HEADER_SIZE`] bytes of a WAL; an error if there are fewer.
pub fn read_wal_header(path: &Path) -> Result<Vec<u8>> {
    read_wal_file_at(path, 0, WAL_HEADER_SIZE)
}

/// Exactly `n` bytes of a WAL from byte `offset` on; an error if there are fewer.
pub fn read_wal_file_at(path: &Path, offset: u64, n: usize) -> Result<Vec<u8>> {
    let read = || -> Result<Vec<u8>> {
        let mut file = File::open(path)?;
        file.seek(SeekFrom::Start(offset))?;
        let mut bytes = Vec::new();
        file.take(n as u64).read_to_end(&mut bytes)?;
        if bytes.len() < n {
            let found = bytes.len();
            return Err(Error::new(ErrorKind::Io, format!("the file ends after {found} of them")));
        }
        Ok(bytes)
    };
    read().context(|| format!("cannot read {n} bytes at {offset} of {}", path.display()))
}

/// Removes every `.tmp` file below `root`, which may itself be one or not exist. Does not follow
/// symbolic links and passes over directories it cannot read.
pub fn remove_tmp_files(root: &Path) -> Result<()> {
    let mut pending = vec![root.to_owned()];
    while let Some(path) = pending.pop() {
        let Ok(found) = fs::symlink_metadata(&path) else { continue };
        if found.is_dir() {
            if let Ok(entries) = fs::read_dir(&path) {
                pending.extend(entries.flatten().map(|entry| entry.path()));
            }
        } else if path.as_os_str().as_encoded_bytes().ends_with(TMP_EXT.as_bytes()) {
            remove(&path).context(|| format!("cannot delete {}", path.display()))?;
        }
    }
    Ok(())
}

/// Removes a database nobody has open, with its journal, shared memory and WAL.
pub fn remove_db_files(path: &Path) -> Result<()> {
    for (suffix, what) in
        [("", "database"), ("-journal", "journal"), ("-shm", "shared memory"), ("-wal", "wal")]
    {
        let file = with_suffix(path, suffix);
        remove(&file).context(|| format!("cannot delete {what} {}", file.display()))?;
    }
    Ok(())
}

/// Removes a file, if it is there.
fn remove(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() == Io::NotFound => Ok(()),
        result => result,
    }
}
