//! Small chores on files by path: reading a WAL, removing leftovers.
//!
//! Never use these on a database or its `-shm` that the host has open: closing any descriptor of
//! such a file drops all locks the process holds on it. A `-wal` carries no locks.

use std::ffi::OsString;
use std::fs::{self, File, Metadata, OpenOptions};
use std::io::{self, ErrorKind as Io, Read, Seek, SeekFrom};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use crate::error::{Context, Error, ErrorKind, Result};
use crate::fault;
use crate::wal::WAL_HEADER_SIZE;

/// Ends the name of a file that is still being written.
pub const TMP_EXT: &str = ".tmp";

/// The longest text in `DB-litestream/`, in bytes.
const TEXT_BYTES_MAX: u64 = 64 << 10;

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

/// Opens a file in `DB-litestream/`. Another user may have put a name there while nobody looked: a
/// link is not followed, and a FIFO is an error and not a wait for whoever writes to it.
pub fn open_beside(path: &Path, options: &mut OpenOptions) -> io::Result<File> {
    let flags = libc::O_NOFOLLOW | libc::O_NONBLOCK | libc::O_CLOEXEC;
    let file =
        options.custom_flags(flags).open(path).map_err(|error| match error.raw_os_error() {
            Some(libc::ELOOP) => io::Error::other("it is a symbolic link"),
            Some(libc::ENXIO) => io::Error::other("it is not a file"),
            _ => error,
        })?;
    if !file.metadata()?.is_file() {
        return Err(io::Error::other("it is not a file"));
    }
    Ok(file)
}

/// The same for reading.
pub fn read_beside(path: &Path) -> io::Result<File> {
    open_beside(path, OpenOptions::new().read(true))
}

/// A small text in `DB-litestream/`; what is longer was not written by us.
pub fn text_beside(path: &Path) -> io::Result<String> {
    let mut text = String::new();
    read_beside(path)?.take(TEXT_BYTES_MAX + 1).read_to_string(&mut text)?;
    if u64::try_from(text.len()).unwrap_or(u64::MAX) > TEXT_BYTES_MAX {
        return Err(io::Error::other("it is too long"));
    }
    Ok(text)
}

/// Whether `folder`, the `DB-litestream` of `database`, may be trusted with its content: it is
/// missing, or belongs to the database's owner, to us or to root, and so does the link if it is
/// one; or it was made by one of a group that shares the database (see [`is_of_group`]); and
/// strangers may write to it only if they may write to the database.
pub fn check_folder(database: &Path, folder: &Path) -> Result<()> {
    let link = match fs::symlink_metadata(folder) {
        Err(error) if error.kind() == Io::NotFound => return Ok(()),
        other => other?,
    };
    let meta = fs::metadata(folder)?;
    let us = rustix::process::geteuid().as_raw();
    // A replica's database may be made later, and will be ours.
    let known = match fs::metadata(database) {
        Err(error) if error.kind() == Io::NotFound => None,
        other => Some(other?),
    };
    let (owner, mode) = known.as_ref().map_or((us, 0o600), |meta| (meta.uid(), meta.mode()));
    let is_known = |meta: &Metadata| [owner, us, 0].contains(&meta.uid());
    let is_shared = known.is_some_and(|database| is_of_group(&database, folder, &link));
    let why = if !meta.is_dir() {
        "it is not a folder"
    } else if !is_shared && (!is_known(&link) || !is_known(&meta)) {
        "it belongs to another user than the database"
    } else if meta.mode() & 0o002 != 0 && mode & 0o002 == 0 {
        "everybody may write to it, and not to the database"
    } else {
        return Ok(());
    };
    let text = format!("{} cannot be used: {why}; move it away", folder.display());
    Err(Error::new(ErrorKind::Refused, text))
}

/// Whether a folder, and no link, was made by one of the group that may write to the database:
/// whoever of them serves it first makes its folder. Who makes a folder can give it only a group
/// of their own, or leave it that of the folder above (setgid); so that one must not be open to
/// everybody. They gain nothing: they may write to the database itself.
fn is_of_group(database: &Metadata, folder: &Path, found: &Metadata) -> bool {
    let above = folder.parent().filter(|above| !above.as_os_str().is_empty());
    let is_open = |meta: &Metadata| meta.mode() & 0o002 != 0;
    found.is_dir()
        && found.gid() == database.gid()
        && database.mode() & 0o020 != 0
        && fs::metadata(above.unwrap_or(Path::new("."))).is_ok_and(|above| !is_open(&above))
}

/// A whole file of at most `bytes_max` bytes, and what is known of it. Never waits, as opening a
/// FIFO would until somebody writes to it.
pub fn read_small_file(path: &Path, bytes_max: u64) -> Result<(Vec<u8>, Metadata)> {
    let flags = libc::O_NONBLOCK | libc::O_CLOEXEC;
    fault::at("files/small/open")?;
    let file = OpenOptions::new().read(true).custom_flags(flags).open(path)?;
    let meta = file.metadata()?;
    if !meta.is_file() {
        return Err(Error::usage("it is not a file"));
    }
    let mut bytes = Vec::new();
    file.take(bytes_max.saturating_add(1)).read_to_end(&mut bytes)?;
    if u64::try_from(bytes.len()).unwrap_or(u64::MAX) > bytes_max {
        return Err(Error::usage(format!("it is larger than {bytes_max} bytes")));
    }
    Ok((bytes, meta))
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

/// Makes the names beside `path`, its own among them, survive a power loss. A folder that may be
/// used but not read cannot be synced: SQLite goes on then, and so do we.
pub fn sync_folder_of(path: &Path) -> Result<()> {
    let Some(folder) = path.parent() else { return Ok(()) };
    let folder = if folder.as_os_str().is_empty() { Path::new(".") } else { folder };
    let sync = || File::open(folder)?.sync_all();
    match fault::at("files/folder/sync").and_then(|()| sync()) {
        // Some file systems cannot.
        Err(error) if matches!(error.kind(), Io::PermissionDenied | Io::InvalidInput) => Ok(()),
        done => done.context(|| format!("cannot sync {}", folder.display())),
    }
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
    match fault::at("files/tmp/remove").and_then(|()| fs::remove_file(path)) {
        Err(error) if error.kind() == Io::NotFound => Ok(()),
        result => result,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A directory of its own, removed in the end.
    struct Scratch(PathBuf);

    impl Scratch {
        fn new(name: &str) -> Self {
            let name = format!("litestream-files-{name}-{}", std::process::id());
            let path = std::env::temp_dir().join(name);
            fs::create_dir_all(&path).unwrap();
            Self(path)
        }

        fn file(&self, name: &str, content: &[u8]) -> PathBuf {
            let path = self.0.join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(&path, content).unwrap();
            path
        }

        /// Every file below, relative, sorted.
        fn files(&self) -> Vec<String> {
            let mut found = Vec::new();
            let mut pending = vec![self.0.clone()];
            while let Some(path) = pending.pop() {
                if path.is_dir() && !path.is_symlink() {
                    pending.extend(fs::read_dir(path).unwrap().map(|entry| entry.unwrap().path()));
                } else {
                    let name = path.strip_prefix(&self.0).unwrap();
                    found.push(name.to_string_lossy().into_owned());
                }
            }
            found.sort();
            found
        }
    }

    impl Drop for Scratch {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    #[test]
    fn reads_exactly() {
        let scratch = Scratch::new("read");
        let bytes: Vec<u8> = (0..100).collect();
        let path = scratch.file("db-wal", &bytes);
        assert_eq!(read_wal_header(&path).unwrap(), bytes[..32]);
        let check = |offset: usize, n: usize| {
            assert_eq!(
                read_wal_file_at(&path, offset as u64, n).unwrap(),
                bytes[offset..offset + n]
            );
        };
        check(0, 0);
        check(0, 100);
        check(99, 1);
        check(100, 0);
    }

    #[test]
    fn too_short_or_not_there() {
        let scratch = Scratch::new("short");
        let path = scratch.file("db-wal", &[7; 31]);
        let check = |result: Result<Vec<u8>>, expected: &str| {
            let error = result.unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Io);
            assert!(error.to_string().contains(expected), "{error}");
        };
        check(read_wal_header(&path), "cannot read 32 bytes at 0 of ");
        check(read_wal_header(&path), "the file ends after 31 of them");
        check(read_wal_file_at(&path, 31, 1), "ends after 0");
        check(read_wal_file_at(&path, 30, usize::MAX), "ends after 1");
        check(read_wal_file_at(&path, i64::MAX as u64, 1), "cannot read");
        check(read_wal_file_at(&path, u64::MAX, 1), "cannot read");
        check(read_wal_header(&scratch.0.join("none")), "cannot read 32 bytes at 0 of ");
        check(read_wal_header(&scratch.0), "cannot read 32 bytes at 0 of ");
    }

    #[test]
    fn removes_tmp_files_only() {
        let scratch = Scratch::new("tmp");
        for name in ["a.tmp", "a", "tmp", "d/b.tmp", "d/e/c.tmp", "d/e/c.tmp.lz4", "x.tmp/keep"] {
            scratch.file(name, b"");
        }
        let outside = Scratch::new("tmp-outside");
        outside.file("kept.tmp", b"");
        std::os::unix::fs::symlink(&outside.0, scratch.0.join("link")).unwrap();
        std::os::unix::fs::symlink(&outside.0, scratch.0.join("link.tmp")).unwrap();
        remove_tmp_files(&scratch.0).unwrap();
        assert_eq!(scratch.files(), ["a", "d/e/c.tmp.lz4", "link", "tmp", "x.tmp/keep"]);
        assert_eq!(outside.files(), ["kept.tmp"]);
        remove_tmp_files(&outside.0.join("kept.tmp")).unwrap();
        assert_eq!(outside.files(), [""; 0]);
        remove_tmp_files(&scratch.0.join("none")).unwrap();
    }

    #[test]
    fn removes_a_database() {
        let scratch = Scratch::new("db");
        let files = ["db", "db-journal", "db-shm", "db-wal", "db-other", "db2"];
        for name in files {
            scratch.file(name, b"");
        }
        let path = scratch.0.join("db");
        remove_db_files(&path).unwrap();
        assert_eq!(scratch.files(), ["db-other", "db2"]);
        remove_db_files(&path).unwrap();
        fs::create_dir(scratch.0.join("db-shm")).unwrap();
        let error = remove_db_files(&path).unwrap_err().to_string();
        assert!(error.starts_with("cannot delete shared memory "), "{error}");
    }

    #[test]
    fn suffixes() {
        use std::os::unix::ffi::OsStrExt;
        assert_eq!(with_suffix(Path::new("/a/b.db"), "-wal"), Path::new("/a/b.db-wal"));
        let raw = Path::new(std::ffi::OsStr::from_bytes(b"/a/\xff"));
        assert_eq!(with_suffix(raw, "-shm").as_os_str().as_bytes(), b"/a/\xff-shm");
    }
}
