//! One folder of an archive on disk, by descriptor: nothing below the archive's root is reached
//! through a symbolic link, whoever puts one there and whenever.
//!
//! A file being written is called `NAME.UNIQUE.tmp`, which nobody lists. What a killed writer left
//! of that kind is removed once it is [`LEFTOVER_AGE`] old.

use std::fs::File;
use std::io::{self, ErrorKind as Io};
use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rustix::fs::{
    AtFlags, CWD, Dir, FileType, Gid, Mode, OFlags, RenameFlags, Uid, fchown, linkat, mkdirat,
    openat, renameat, renameat_with, statat, unlinkat,
};
use rustix::io::Errno;

use crate::fault;
use crate::files::TMP_EXT;

/// A writer that has not written for so long is dead.
const LEFTOVER_AGE: Duration = Duration::from_secs(3600);
const FOLDER: OFlags =
    OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);

/// Whose the new files are and who may read them: as the archive's root says.
#[derive(Clone, Copy, Debug)]
pub struct Access {
    mode: u32,
    owner: (u32, u32),
}

/// A folder that is open.
#[derive(Debug)]
pub struct Folder {
    file: File,
}

/// A name in a folder.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// Without slashes.
    pub name: String,
    /// A folder, else a file.
    pub is_folder: bool,
}

/// Size in bytes and time of the last change.
pub type Facts = (u64, SystemTime);

impl Folder {
    /// Opens the root, which may itself be behind a link.
    pub fn open_root(path: &Path) -> io::Result<Folder> {
        fault::at("archive/folder/open")?;
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        Ok(Folder { file: File::from(openat(CWD, path, flags, Mode::empty())?) })
    }

    /// What it gives to what is made below it.
    pub fn access(&self) -> io::Result<Access> {
        let meta = self.file.metadata()?;
        Ok(Access { mode: meta.mode() & 0o777, owner: (meta.uid(), meta.gid()) })
    }

    /// A folder in it. A link or a file of that name is an error.
    pub fn sub(&self, name: &str) -> io::Result<Folder> {
        fault::at("archive/folder/open")?;
        let fd = openat(&self.file, name, FOLDER, Mode::empty())?;
        Ok(Folder { file: File::from(fd) })
    }

    /// A folder in it, made if there is none; its name survives a power loss.
    pub fn make_sub(&self, name: &str, access: Access) -> io::Result<Folder> {
        fault::at("archive/folder/make")?;
        let mode = Mode::from_raw_mode(access.mode | 0o700);
        let made = match mkdirat(&self.file, name, mode) {
            Ok(()) => true,
            Err(Errno::EXIST) => false,
            Err(errno) => return Err(errno.into()),
        };
        let sub = self.sub(name)?;
        if made {
            give(&sub.file, access);
        }
        self.sync()?;
        Ok(sub)
    }

    /// Makes its names survive a power loss.
    pub fn sync(&self) -> io::Result<()> {
        fault::at("archive/folder/sync")?;
        self.file.sync_all()
    }

    /// Opens a file for reading; nothing that would block is opened.
    pub fn open(&self, name: &str) -> io::Result<File> {
        fault::at("archive/file/open")?;
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC | OFlags::NONBLOCK;
        let file = File::from(openat(&self.file, name, flags, Mode::empty())?);
        if !file.metadata()?.is_file() {
            return Err(Io::NotFound.into());
        }
        Ok(file)
    }

    /// A new file with a temporary name.
    pub fn create(&self, tmp: &str, access: Access) -> io::Result<File> {
        fault::at("archive/file/create")?;
        let flags =
            OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let mode = Mode::from_raw_mode((access.mode | 0o600) & 0o666);
        let fd: OwnedFd = openat(&self.file, tmp, flags, mode)?;
        let file = File::from(fd);
        give(&file, access);
        Ok(file)
    }

    /// Gives a temporary file its name, unless there is such a file: false. On an error, and when
    /// it is false, the temporary name is still there.
    pub fn publish(&self, tmp: &str, name: &str) -> io::Result<bool> {
        fault::at("archive/file/publish")?;
        match renameat_with(&self.file, tmp, &self.file, name, RenameFlags::NOREPLACE) {
            Ok(()) => return Ok(true),
            Err(Errno::EXIST) => return Ok(false),
            // Not every file system, and not NFS, has it; those have links.
            Err(Errno::INVAL | Errno::NOSYS | Errno::NOTSUP) => {}
            Err(errno) => return Err(errno.into()),
        }
        match linkat(&self.file, tmp, &self.file, name, AtFlags::empty()) {
            Ok(()) => {}
            Err(Errno::EXIST) => return Ok(false),
            Err(Errno::PERM | Errno::NOTSUP) => {
                let why = "the file system can neither link nor rename without replacing";
                return Err(io::Error::new(Io::Unsupported, why));
            }
            Err(errno) => return Err(errno.into()),
        }
        self.remove(tmp)?;
        Ok(true)
    }

    /// Gives a temporary file a name, whatever was there before.
    pub fn replace(&self, tmp: &str, name: &str) -> io::Result<()> {
        fault::at("archive/file/replace")?;
        Ok(renameat(&self.file, tmp, &self.file, name)?)
    }

    /// Removes a file; false if there was none.
    pub fn remove(&self, name: &str) -> io::Result<bool> {
        fault::at("archive/file/remove")?;
        match unlinkat(&self.file, name, AtFlags::empty()) {
            Ok(()) => Ok(true),
            Err(Errno::NOENT | Errno::ISDIR) => Ok(false),
            Err(errno) => Err(errno.into()),
        }
    }

    /// Removes a folder if nothing is in it; whether it is gone.
    pub fn remove_empty(&self, name: &str) -> io::Result<bool> {
        fault::at("archive/folder/remove")?;
        match unlinkat(&self.file, name, AtFlags::REMOVEDIR) {
            Ok(()) | Err(Errno::NOENT) => Ok(true),
            Err(Errno::NOTEMPTY | Errno::EXIST) => Ok(false),
            Err(errno) => Err(errno.into()),
        }
    }

    /// Removes a folder, and folders below it as deep as that, unless there is a file in one.
    pub fn remove_hollow(&self, name: &str, depth: u32) -> io::Result<()> {
        let sub = match self.sub(name) {
            Err(error) if matches!(error.kind(), Io::NotFound | Io::NotADirectory) => return Ok(()),
            sub => sub?,
        };
        sub.sweep()?;
        let below = if depth > 0 { sub.entries()? } else { Vec::new() };
        for entry in below.into_iter().filter(|entry| entry.is_folder) {
            sub.remove_hollow(&entry.name, depth - 1)?;
        }
        self.remove_empty(name).map(|_| ())
    }

    /// Its files and folders, in the order of the keys they begin.
    pub fn entries(&self) -> io::Result<Vec<Entry>> {
        let mut found = Vec::new();
        self.scan(&mut |name, kind| {
            let is_folder = kind == FileType::Directory;
            if (is_folder || kind == FileType::RegularFile) && !name.ends_with(TMP_EXT) {
                found.push(Entry { name: name.to_owned(), is_folder });
            }
        })?;
        // "a" with what is below it, "a/...", comes after "a-b".
        found.sort_by(|a, b| a.ordered().cmp(b.ordered()));
        Ok(found)
    }

    /// Removes what writers that were killed have left.
    pub fn sweep(&self) -> io::Result<()> {
        let mut leftovers = Vec::new();
        self.scan(&mut |name, kind| {
            if kind == FileType::RegularFile && name.ends_with(TMP_EXT) {
                leftovers.push(name.to_owned());
            }
        })?;
        let now = SystemTime::now();
        for name in leftovers {
            let Some((_, changed)) = self.facts(&name)? else { continue };
            if now.duration_since(changed).is_ok_and(|age| age >= LEFTOVER_AGE) {
                self.remove(&name)?;
            }
        }
        Ok(())
    }

    /// Of a file in it; `None` if there is none any more.
    pub fn facts(&self, name: &str) -> io::Result<Option<Facts>> {
        fault::at("archive/file/stat")?;
        let stat = match statat(&self.file, name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) => stat,
            Err(Errno::NOENT) => return Ok(None),
            Err(errno) => return Err(errno.into()),
        };
        let seconds = Duration::from_secs(u64::try_from(stat.st_mtime).unwrap_or(0));
        let nanos = Duration::new(0, u32::try_from(stat.st_mtime_nsec).unwrap_or(0));
        let changed = UNIX_EPOCH.checked_add(seconds + nanos).unwrap_or(UNIX_EPOCH);
        Ok(Some((u64::try_from(stat.st_size).unwrap_or(0), changed)))
    }

    /// Every name that is text, and what it is: as found, in no order.
    fn scan(&self, each: &mut dyn FnMut(&str, FileType)) -> io::Result<()> {
        fault::at("archive/folder/list")?;
        for entry in Dir::read_from(&self.file)? {
            let entry = entry?;
            let Ok(name) = entry.file_name().to_str() else { continue };
            if name == "." || name == ".." {
                continue;
            }
            let mut kind = entry.file_type();
            if kind == FileType::Unknown {
                match statat(&self.file, name, AtFlags::SYMLINK_NOFOLLOW) {
                    Ok(stat) => kind = FileType::from_raw_mode(stat.st_mode),
                    Err(Errno::NOENT) => continue,
                    Err(errno) => return Err(errno.into()),
                }
            }
            each(name, kind);
        }
        Ok(())
    }
}

impl Entry {
    fn ordered(&self) -> impl Iterator<Item = u8> {
        self.name.bytes().chain(self.is_folder.then_some(b'/'))
    }
}

/// A process of root that writes into somebody's folder gives that somebody its files. Anyone else
/// may not, and owns the files itself: not an error.
fn give(file: &File, access: Access) {
    let (uid, gid) = access.owner;
    let _may_be_refused = fchown(file, Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid)));
}
