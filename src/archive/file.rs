//! Objects as files in a folder: `file:///dir`.
//!
//! | what              | how                                                                     |
//! |-------------------|-------------------------------------------------------------------------|
//! | a new object      | bytes to `NAME.UNIQUE.tmp`, sync, rename without replacing, sync the folder |
//! | a new folder      | the folder above it is synced; a first write into a folder syncs all above |
//! | replacing         | the same with a rename that replaces                                    |
//! | who may read      | new files and folders have the mode and, if we may, the owner of the archive's folder, less the umask; if that has to be made it is its owner's alone (0700) |
//! | deletion          | synced before it returns; folders it empties go, the archive's own stays |
//! | symbolic links    | only above and at the archive's folder; below it they are not there     |
//! | killed writers    | their `.tmp` files go when somebody first writes there an hour later, or deletes there |
//!
//! A root that was there and is gone is an error of every call, and is not made again: a disk that
//! is not mounted must not pass for an empty archive, nor the folder below it for the disk.
//!
//! `close` ends a call at its next piece of a file; a disk that hangs cannot be left.

use std::fs::File;
use std::io::{self, BufWriter, ErrorKind as Io, Read, Write};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{SystemTime, UNIX_EPOCH};

use super::folder::{Entry, Folder};
use super::store::{Object, Put, Store, Upload};
use super::url::folder_of;
use crate::error::{Context, Error, ErrorKind, Result, lock};
use crate::fault::{self, Tap};
use crate::files::TMP_EXT;

/// Bytes written at once.
const BUFFER_BYTES: usize = 128 << 10;
/// How often a folder may be deleted under a writer that is just opening it.
const ATTEMPTS: u32 = 5;
/// Folders of ours are nested this deep below a generation: more than that is not ours.
const HOLLOW_DEPTH: u32 = 2;

/// A folder of objects.
pub struct FileStore {
    url: String,
    root: PathBuf,
    closed: Arc<AtomicBool>,
    /// The root was there.
    seen: AtomicBool,
    /// The folder written to last: it and all above it are durable, and free of leftovers.
    settled: Mutex<String>,
}

impl FileStore {
    /// The store at `url`; nothing is touched yet.
    pub fn new(url: &str) -> Result<FileStore> {
        Ok(FileStore {
            url: url.to_owned(),
            root: folder_of(url)?,
            closed: Arc::new(AtomicBool::new(false)),
            seen: AtomicBool::new(false),
            settled: Mutex::new(String::new()),
        })
    }

    fn check(&self) -> Result<()> {
        check(&self.closed, &self.url)
    }

    fn name(&self, key: &str) -> String {
        format!("object {key} of {}", self.url)
    }

    /// The folder at this path below the root; `None` if there is none.
    fn folder(&self, path: &str) -> Result<Option<Folder>> {
        let root = self.open_root().context(|| format!("cannot open the archive {}", self.url))?;
        let Some(mut folder) = root else { return Ok(None) };
        for name in path.split('/').filter(|name| !name.is_empty()) {
            let sub = absent(folder.sub(name));
            match sub.context(|| format!("cannot open folder {path} of {}", self.url))? {
                Some(sub) => folder = sub,
                None => return Ok(None),
            }
        }
        Ok(Some(folder))
    }

    /// The root, if there is one.
    fn open_root(&self) -> io::Result<Option<Folder>> {
        let seen = self.seen.load(Ordering::Acquire);
        match Folder::open_root(&self.root) {
            Ok(root) => {
                self.seen.store(true, Ordering::Release);
                Ok(Some(root))
            }
            Err(error) if error.kind() == Io::NotFound && seen => {
                let why = "its folder was there and is gone: mount its disk, or make an empty \
                           folder for a new archive";
                Err(io::Error::other(why))
            }
            Err(error) if error.kind() == Io::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Opens a new file in the folder at `path`, which is made if need be, durable and free of
    /// leftovers.
    fn new_file(&self, path: &str, tmp: &str) -> io::Result<(Folder, File)> {
        if self.open_root()?.is_none() {
            make_root(&self.root)?;
        }
        let mut folder = self.open_root()?.ok_or(Io::NotFound)?;
        let access = folder.access()?;
        let settled = *lock(&self.settled) == path;
        for name in path.split('/').filter(|name| !name.is_empty()) {
            folder = if settled { folder.sub(name) } else { folder.make_sub(name, access) }?;
        }
        if !settled {
            folder.sweep()?;
            path.clone_into(&mut lock(&self.settled));
        }
        let file = folder.create(tmp, access)?;
        Ok((folder, file))
    }

    fn begin(&self, key: &str) -> Result<FileUpload<'_>> {
        self.check()?;
        let (path, name) = split(key)?;
        let mut attempt = 1;
        loop {
            let tmp = tmp_of(name);
            match self.new_file(path, &tmp) {
                Ok((folder, file)) => {
                    let file = Tap::new(file, "archive/file/write");
                    let file = BufWriter::with_capacity(BUFFER_BYTES, file);
                    let (key, name, tmp) = (key.to_owned(), name.to_owned(), Some(tmp));
                    return Ok(FileUpload { store: self, key, folder, file, tmp, name });
                }
                // Whoever deleted the last object in a folder removed it.
                Err(error) if error.kind() == Io::NotFound && attempt < ATTEMPTS => {
                    lock(&self.settled).clear();
                    attempt += 1;
                }
                Err(error) => {
                    let what = format!("cannot create {}", self.name(key));
                    return Err(Error::from(error).context(what));
                }
            }
        }
    }

    /// Lists what is in a folder and below, in order.
    fn walk(
        &self,
        folder: Folder,
        path: String,
        first: &str,
        each: &mut dyn FnMut(Object) -> Result<()>,
    ) -> Result<()> {
        let what = |path: &str| format!("cannot list {}/{path}", self.url.trim_end_matches('/'));
        let mut top = folder.entries().context(|| what(&path))?;
        top.retain(|entry| entry.begins(first));
        let mut stack = vec![(folder, path, top.into_iter())];
        while let Some((folder, path, entries)) = stack.last_mut() {
            self.check()?;
            let Some(Entry { name, is_folder }) = entries.next() else {
                stack.pop();
                continue;
            };
            let key = format!("{path}{name}");
            if is_folder {
                let Some(sub) = absent(folder.sub(&name)).context(|| what(&key))? else { continue };
                let entries = sub.entries().context(|| what(&key))?;
                stack.push((sub, format!("{key}/"), entries.into_iter()));
            } else if let Some((size, modified)) = folder.facts(&name).context(|| what(&key))? {
                each(Object { key, size, modified })?;
            }
        }
        Ok(())
    }

    /// Removes folders that are empty now, from this one up.
    fn prune(&self, path: &str) -> Result<()> {
        let mut path = path;
        while !path.is_empty() {
            let (above, name) = path.rsplit_once('/').unwrap_or(("", path));
            let Some(folder) = self.folder(above)? else { return Ok(()) };
            let what = || format!("cannot remove folder {path} of {}", self.url);
            if let Some(sub) = absent(folder.sub(name)).context(what)? {
                sub.sweep().context(what)?;
            }
            if !folder.remove_empty(name).context(what)? {
                return Ok(());
            }
            folder.sync().context(what)?;
            path = above;
        }
        Ok(())
    }
}

impl Store for FileStore {
    fn url(&self) -> &str {
        &self.url
    }

    fn list(&self, prefix: &str, each: &mut dyn FnMut(Object) -> Result<()>) -> Result<()> {
        self.check()?;
        let (path, first) = prefix.rsplit_once('/').unwrap_or(("", prefix));
        let Some(folder) = self.folder(path)? else { return Ok(()) };
        let slash = if path.is_empty() { "" } else { "/" };
        self.walk(folder, format!("{path}{slash}"), first, each)
    }

    fn folders(&self, path: &str) -> Result<Vec<String>> {
        self.check()?;
        let Some(folder) = self.folder(path)? else { return Ok(Vec::new()) };
        let entries = folder.entries().context(|| format!("cannot list {}/{path}", self.url))?;
        let mut names = Vec::new();
        for Entry { name, .. } in entries.into_iter().filter(|entry| entry.is_folder) {
            // An error ends the walk at the first object.
            let mut holds_objects = false;
            let found = self.list(&format!("{path}{name}/"), &mut |_| {
                holds_objects = true;
                Err(Error::new(ErrorKind::Stopped, "one is enough"))
            });
            if holds_objects {
                names.push(name);
            } else {
                found?;
            }
        }
        names.sort_unstable();
        Ok(names)
    }

    fn create(&self, key: &str) -> Result<Box<dyn Upload + '_>> {
        Ok(Box::new(self.begin(key)?))
    }

    fn replace(&self, key: &str, content: &[u8]) -> Result<()> {
        let mut upload = self.begin(key)?;
        upload.write_all(content).context(|| format!("cannot write {}", self.name(key)))?;
        upload.end(true).map(|_| ())
    }

    fn get(&self, key: &str, first: Option<u64>) -> Result<Box<dyn Read + Send>> {
        self.check()?;
        let (path, name) = split(key)?;
        let missing = || Error::missing("it is not there").context(self.name(key));
        let folder = self.folder(path)?.ok_or_else(missing)?;
        let file =
            absent(folder.open(name)).context(|| format!("cannot open {}", self.name(key)))?;
        let file = file.ok_or_else(missing)?;
        let (closed, url) = (Arc::clone(&self.closed), self.url.clone());
        Ok(Box::new(FileRead { file, left: first.unwrap_or(u64::MAX), closed, url }))
    }

    fn delete(&self, keys: &[String]) -> Result<()> {
        let mut keys: Vec<_> = keys.iter().map(|key| split(key)).collect::<Result<_>>()?;
        keys.sort_unstable();
        for group in keys.chunk_by(|a, b| a.0 == b.0) {
            self.check()?;
            let Some(path) = group.first().map(|(path, _)| *path) else { continue };
            let Some(folder) = self.folder(path)? else { continue };
            let what =
                |name: &str| format!("cannot delete {}", self.name(&format!("{path}/{name}")));
            for (_, name) in group {
                folder.remove(name).context(|| what(name))?;
            }
            folder.sync().context(|| what(""))?;
            drop(folder);
            self.prune(path)?;
        }
        Ok(())
    }

    fn tidy(&self, path: &str, named: fn(&str) -> bool) -> Result<()> {
        let used = self.folders(path)?;
        let Some(folder) = self.folder(path)? else { return Ok(()) };
        let what = || format!("cannot remove an empty folder of {}/{path}", self.url);
        for Entry { name, .. } in folder.entries().context(what)? {
            if named(&name) && used.binary_search(&name).is_err() {
                folder.remove_hollow(&name, HOLLOW_DEPTH).context(what)?;
            }
        }
        Ok(())
    }

    fn close(&self) {
        self.closed.store(true, Ordering::Release);
    }
}

/// A file with a temporary name.
struct FileUpload<'s> {
    store: &'s FileStore,
    key: String,
    folder: Folder,
    file: BufWriter<Tap<File>>,
    /// Until it has its own.
    tmp: Option<String>,
    name: String,
}

impl FileUpload<'_> {
    fn end(mut self, replace: bool) -> Result<Put> {
        self.store.check()?;
        let what = || format!("cannot write {}", self.store.name(&self.key));
        self.file.flush().context(what)?;
        fault::at("archive/file/sync")
            .and_then(|()| self.file.get_ref().get_ref().sync_all())
            .context(what)?;
        if let Some(tmp) = &self.tmp {
            let published = if replace {
                self.folder.replace(tmp, &self.name).map(|()| true)
            } else {
                self.folder.publish(tmp, &self.name)
            };
            if !published.context(what)? {
                return Ok(Put::Exists);
            }
        }
        self.tmp = None;
        self.folder.sync().context(what)?;
        Ok(Put::Created)
    }
}

impl Write for FileUpload<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.store.check()?;
        self.file.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

impl Upload for FileUpload<'_> {
    fn finish(self: Box<Self>) -> Result<Put> {
        self.end(false)
    }
}

impl Drop for FileUpload<'_> {
    fn drop(&mut self) {
        if let Some(tmp) = &self.tmp {
            // What cannot be removed now is a leftover, and goes as those do.
            let _later = self.folder.remove(tmp);
        }
    }
}

/// A file being read.
struct FileRead {
    file: File,
    left: u64,
    closed: Arc<AtomicBool>,
    url: String,
}

impl Read for FileRead {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        check(&self.closed, &self.url)?;
        fault::at("archive/file/read")?;
        let read = (&mut self.file).take(self.left).read(out)?;
        self.left -= read as u64;
        Ok(read)
    }
}

impl Entry {
    /// Whether keys that begin with `first` may be behind it.
    fn begins(&self, first: &str) -> bool {
        self.name.starts_with(first)
    }
}

fn check(closed: &AtomicBool, url: &str) -> Result<()> {
    if closed.load(Ordering::Acquire) {
        return Err(Error::new(ErrorKind::Stopped, format!("the archive {url} was closed")));
    }
    Ok(())
}

/// A key's folder and name.
fn split(key: &str) -> Result<(&str, &str)> {
    let sound =
        |name: &str| !name.is_empty() && name != "." && name != ".." && !name.contains('\0');
    if !key.split('/').all(sound) || key.ends_with(TMP_EXT) {
        return Err(Error::bug(format!("{key:?} cannot name an object")));
    }
    Ok(key.rsplit_once('/').unwrap_or(("", key)))
}

/// A name nobody else has, whatever its host, container or clock.
fn tmp_of(name: &str) -> String {
    static COUNT: AtomicU64 = AtomicU64::new(0);
    let count = COUNT.fetch_add(1, Ordering::Relaxed);
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_nanos();
    format!("{name}.{:x}-{now:x}-{count:x}{TMP_EXT}", std::process::id())
}

/// What is not there is `None`; so is what is behind a link or below a file.
fn absent<T>(result: io::Result<T>) -> io::Result<Option<T>> {
    const LOOP: i32 = rustix::io::Errno::LOOP.raw_os_error();
    match result {
        Ok(value) => Ok(Some(value)),
        Err(error) if error.raw_os_error() == Some(LOOP) => Ok(None),
        Err(error) if matches!(error.kind(), Io::NotFound | Io::NotADirectory) => Ok(None),
        Err(error) => Err(error),
    }
}

/// Makes the archive's folder, and what is missing above it, durable.
fn make_root(path: &Path) -> io::Result<()> {
    if path.is_dir() {
        return Ok(());
    }
    let above = path.parent().ok_or(Io::NotFound)?;
    make_root(above)?;
    fault::at("archive/root/make")?;
    match std::fs::DirBuilder::new().mode(0o700).create(path) {
        Err(error) if error.kind() != Io::AlreadyExists => return Err(error),
        _ => {}
    }
    fault::at("archive/root/sync")?;
    File::open(above)?.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys() {
        assert_eq!(split("a/b/c").unwrap(), ("a/b", "c"));
        assert_eq!(split("c").unwrap(), ("", "c"));
        for key in ["", "/", "a/", "/a", "a//b", "../a", "a/..", "a/./b", "a.tmp", "a\0b"] {
            let key = key.replace("\\0", "\0");
            assert!(split(&key).is_err(), "{key:?}");
        }
    }
}
