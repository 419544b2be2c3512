//! The new file's name: it must be free, the file gets it when it is complete, and until then there
//! is at most one of another name, gone when the restore fails.
//!
//! Where the file system can, the file has no name at all until the end: then not even the end of
//! the process leaves anything behind. The name is given without replacing what may have come into
//! being meanwhile: of several restores to one path one wins.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, CWD, linkat};

use crate::error::{Context, Error, ErrorKind, Result};
use crate::fault;
use crate::files::with_suffix;
use crate::host::api;
use crate::info::META_DIR_SUFFIX;

/// What makes a path taken: SQLite would take the files beside a database for its own.
const BESIDE: [&str; 5] = ["", "-wal", "-shm", "-journal", META_DIR_SUFFIX];
/// As SQLite makes databases, less what the umask takes away.
const MODE: u32 = 0o644;

/// Where the restored database goes.
pub struct Destination {
    path: PathBuf,
    folder: PathBuf,
    /// The file's name so far, if it has one.
    tmp: Option<PathBuf>,
}

/// Refuses a path that is taken.
pub fn check(path: &Path) -> Result<()> {
    for suffix in BESIDE {
        let taken = with_suffix(path, suffix);
        match fault::at("restore/name/look").and_then(|()| fs::symlink_metadata(&taken)) {
            Ok(_) => {
                return Err(match suffix {
                    "" => self::taken(path),
                    _ => {
                        let why = format!("{} is in the way", taken.display());
                        Error::new(ErrorKind::Refused, why)
                    }
                });
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => {
                return Err(error).context(|| format!("cannot look at {}", taken.display()));
            }
        }
    }
    Ok(())
}

fn taken(path: &Path) -> Error {
    let why = format!("{} exists already; a restore overwrites nothing", path.display());
    Error::new(ErrorKind::Refused, why)
}

impl Destination {
    /// Checks that `path` is free and makes a file for it.
    pub fn begin(path: &Path) -> Result<(Destination, File)> {
        let folder = match path.parent() {
            Some(folder) if folder.as_os_str().is_empty() => PathBuf::from("."),
            Some(folder) if path.file_name().is_some() => folder.to_owned(),
            _ => return Err(Error::usage(format!("{} names no file", path.display()))),
        };
        check(path)?;
        let mut destination = Destination { path: path.to_owned(), folder, tmp: None };
        let file = match unnamed(&destination.folder) {
            Some(file) => file,
            None => destination.named()?,
        };
        Ok((destination, file))
    }

    /// The folder the file is in.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    fn named(&mut self) -> Result<File> {
        let (file, tmp) = create(&self.free_name(), MODE)?;
        self.tmp = Some(tmp);
        Ok(file)
    }

    fn free_name(&self) -> PathBuf {
        with_suffix(&self.path, &format!(".restore-{}.tmp", random_name()))
    }

    /// A name for a file that is complete but not yet approved.
    pub fn name(&mut self, file: &File) -> Result<&Path> {
        let tmp = match self.tmp.take() {
            Some(tmp) => tmp,
            None => {
                let tmp = self.free_name();
                link(file, &tmp).context(|| format!("cannot create {}", tmp.display()))?;
                tmp
            }
        };
        Ok(self.tmp.insert(tmp))
    }

    /// Gives the file its name, for good.
    pub fn publish(mut self, file: &File) -> Result<()> {
        check(&self.path)?;
        let named = match &self.tmp {
            Some(tmp) => {
                fault::at("restore/name/give").and_then(|()| fs::hard_link(tmp, &self.path))
            }
            None => link(file, &self.path),
        };
        match named {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                return Err(taken(&self.path));
            }
            // Some file systems have no second names.
            Err(_) if self.tmp.is_some() => self.rename()?,
            Err(error) => {
                return Err(error).context(|| format!("cannot create {}", self.path.display()));
            }
        }
        self.remove_tmp();
        fault::at("restore/folder/sync")
            .and_then(|()| File::open(&self.folder)?.sync_all())
            .context(|| format!("cannot sync {}", self.folder.display()))
    }

    fn rename(&mut self) -> Result<()> {
        let Some(tmp) = self.tmp.take() else { return Ok(()) };
        rename_into_the_free(&tmp, &self.path).map_err(|error| {
            let _gone_or_never_there = fs::remove_file(&tmp);
            if error.kind() == io::ErrorKind::AlreadyExists {
                return taken(&self.path);
            }
            Error::from(error).context(format!("cannot rename {}", tmp.display()))
        })
    }

    fn remove_tmp(&mut self) {
        let Some(tmp) = self.tmp.take() else { return };
        // An integrity check may have been broken off.
        for suffix in ["", "-wal", "-shm", "-journal"] {
            let _gone_or_never_there = fault::at("restore/tmp/remove")
                .and_then(|()| fs::remove_file(with_suffix(&tmp, suffix)));
        }
    }
}

impl Drop for Destination {
    fn drop(&mut self) {
        self.remove_tmp();
    }
}

#[cfg(any(target_os = "linux", target_os = "android", target_vendor = "apple"))]
fn rename_into_the_free(from: &Path, to: &Path) -> io::Result<()> {
    fault::at("restore/name/rename")?;
    Ok(rustix::fs::renameat_with(CWD, from, CWD, to, rustix::fs::RenameFlags::NOREPLACE)?)
}

#[cfg(not(any(target_os = "linux", target_os = "android", target_vendor = "apple")))]
fn rename_into_the_free(_: &Path, _: &Path) -> io::Result<()> {
    Err(io::ErrorKind::Unsupported.into())
}

/// A file without a name, where the system has such and can name it later.
fn unnamed(folder: &Path) -> Option<File> {
    #[cfg(target_os = "linux")]
    {
        let mut options = OpenOptions::new();
        let options = options.read(true).write(true).mode(MODE).custom_flags(libc::O_TMPFILE);
        let open = fault::at("restore/file/unnamed").and_then(|()| options.open(folder));
        let file = open.ok()?;
        fs::symlink_metadata(handle(&file)).is_ok().then_some(file)
    }
    #[cfg(not(target_os = "linux"))]
    {
        let _cannot = folder;
        None
    }
}

/// The name every open file has.
fn handle(file: &File) -> PathBuf {
    PathBuf::from(format!("/proc/self/fd/{}", file.as_raw_fd()))
}

fn link(file: &File, path: &Path) -> io::Result<()> {
    fault::at("restore/name/give")?;
    Ok(linkat(CWD, handle(file), CWD, path, AtFlags::SYMLINK_FOLLOW)?)
}

/// A file in `folder` that is gone once it is closed.
pub fn nameless(folder: &Path) -> Result<File> {
    if let Some(file) = unnamed(folder) {
        return Ok(file);
    }
    let (file, path) = create(&folder.join(format!("litestream-{}.tmp", random_name())), 0o600)?;
    fs::remove_file(&path).context(|| format!("cannot remove {}", path.display()))?;
    Ok(file)
}

fn create(path: &Path, mode: u32) -> Result<(File, PathBuf)> {
    let mut options = OpenOptions::new();
    let options = options.read(true).write(true).create_new(true).mode(mode);
    let file = fault::at("restore/file/create").and_then(|()| options.open(path));
    let file = file.context(|| format!("cannot create {}", path.display()))?;
    Ok((file, path.to_owned()))
}

fn random_name() -> String {
    format!("{:08x}{:08x}", api::random(), api::random())
}
