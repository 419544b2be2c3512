//! Where the log keeps its files, and how a file comes into being.
//!
//! | path below `DB-litestream/`                 | content                                              |
//! |---------------------------------------------|------------------------------------------------------|
//! | `generation`                                | name of the current generation, newline              |
//! | `change`                                    | how many commits the wal-index had counted, see `log/mark` |
//! | `lock`                                      | empty; its POSIX lock names the one capturing process|
//! | `archives/`                                 | what each archive was sent last, see `replicate/note`|
//! | `generations/G/snapshots/INDEX.snapshot.lz4`| the database file at the start of that index         |
//! | `generations/G/wal/INDEX/OFFSET.wal.lz4`    | WAL bytes from OFFSET, one LZ4 frame                 |
//! | `generations/G/wal/INDEX/end`               | of a finished index: the offset where it ends        |
//!
//! Files are write-once: bytes go to `NAME.tmp`, which is synced and renamed; a name that is
//! visible has its final bytes. Modes and owner follow the database file.

use std::ffi::OsStr;
use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use crate::error::{Context, Error, ErrorKind, Result};
use crate::fault;
use crate::files::{check_folder, open_beside, sync_folder_of, with_suffix};
use crate::info::{META_DIR_SUFFIX, SNAPSHOT_EXT, WAL_DIR_NAME, WAL_SEGMENT_EXT};
use crate::pos::{Generation, Index, Offset, Pos};

const SUFFIX: &[u8] = META_DIR_SUFFIX.as_bytes();

/// Paths of one database's log, and the owner and mode its files get.
#[derive(Clone, Debug)]
pub struct Layout {
    database: PathBuf,
    root: PathBuf,
    mode: u32,
    owner: (u32, u32),
}

impl Layout {
    /// The layout beside `database`, whose mode and owner are read (never opened: closing a
    /// descriptor of the database would drop the host's locks on it).
    pub fn beside(database: &Path) -> Result<Self> {
        let meta = fs::metadata(database)
            .context(|| format!("cannot read the mode of {}", database.display()))?;
        Ok(Layout {
            database: database.to_owned(),
            root: meta_dir(database),
            mode: meta.permissions().mode() & 0o777,
            owner: (meta.uid(), meta.gid()),
        })
    }

    /// The database file.
    pub fn database(&self) -> &Path {
        &self.database
    }

    /// `DB-litestream`.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// The file that names the current generation.
    pub fn generation_file(&self) -> PathBuf {
        self.root.join("generation")
    }

    /// The file whose POSIX lock decides which process captures.
    pub fn lock_file(&self) -> PathBuf {
        self.root.join("lock")
    }

    /// The file that says what the wal-index had counted.
    pub fn change_file(&self) -> PathBuf {
        self.root.join("change")
    }

    /// The folder of all generations.
    pub fn generations(&self) -> PathBuf {
        self.root.join("generations")
    }

    /// One generation's folder.
    pub fn generation(&self, generation: Generation) -> PathBuf {
        self.generations().join(generation.to_string())
    }

    /// One generation's snapshots.
    pub fn snapshots(&self, generation: Generation) -> PathBuf {
        self.generation(generation).join("snapshots")
    }

    /// A snapshot's file.
    pub fn snapshot(&self, generation: Generation, index: Index) -> PathBuf {
        self.snapshots(generation).join(format!("{index}{SNAPSHOT_EXT}"))
    }

    /// The folder of all WAL indexes of a generation.
    pub fn wal(&self, generation: Generation) -> PathBuf {
        self.generation(generation).join(WAL_DIR_NAME)
    }

    /// The folder of one WAL index.
    pub fn wal_index(&self, generation: Generation, index: Index) -> PathBuf {
        self.wal(generation).join(index.to_string())
    }

    /// A segment's file.
    pub fn segment(&self, pos: Pos) -> PathBuf {
        self.wal_index(pos.generation, pos.index).join(format!("{}{WAL_SEGMENT_EXT}", pos.offset))
    }

    /// The file that says where a finished index ends.
    pub fn end_of_index(&self, generation: Generation, index: Index) -> PathBuf {
        self.wal_index(generation, index).join("end")
    }

    /// Makes `dir` and what is missing above it, with the database's owner and a mode that lets in
    /// whoever may read the database.
    pub fn create_dir(&self, dir: &Path) -> Result<()> {
        if dir == self.root {
            check_folder(&self.database, dir)?;
        }
        if dir.is_dir() {
            return Ok(());
        }
        if let Some(parent) = dir.parent().filter(|parent| parent.starts_with(&self.root)) {
            self.create_dir(parent)?;
        }
        match fault::at("log/folder/make").and_then(|()| fs::create_dir(dir)) {
            Ok(()) => {}
            Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => return Ok(()),
            Err(error) => {
                return Err(Error::from(error).context(format!("cannot create {}", dir.display())));
            }
        }
        let mode = self.mode | 0o700 | ((self.mode & 0o444) >> 2);
        let chmod = fs::set_permissions(dir, fs::Permissions::from_mode(mode));
        chmod.context(|| format!("cannot set the mode of {}", dir.display()))?;
        let (uid, gid) = self.owner;
        let _may_be_refused = std::os::unix::fs::lchown(dir, Some(uid), Some(gid));
        Ok(())
    }

    /// Makes the names from `path` up to the root survive a power loss.
    pub fn sync_names(&self, path: &Path) -> Result<()> {
        let mut below = path.ancestors().take_while(|path| *path != self.root);
        below.try_for_each(sync_folder_of)
    }

    /// Opens `NAME.tmp` for writing, from empty.
    pub fn create_tmp(&self, path: &Path) -> Result<(File, PathBuf)> {
        let tmp = tmp_of(path);
        let mut options = OpenOptions::new();
        let options = options.write(true).create(true).truncate(true).mode(self.mode | 0o600);
        let file = fault::at("log/file/create")
            .and_then(|()| open_beside(&tmp, options))
            .context(|| format!("cannot create {}", tmp.display()))?;
        self.give_away(&file);
        Ok((file, tmp))
    }

    /// Opens a small file of ours that is changed in place, making it if it is missing.
    pub fn open_in_place(&self, path: &Path) -> Result<File> {
        let mut options = OpenOptions::new();
        let options = options.read(true).write(true).create(true).truncate(false);
        let options = options.mode(self.mode | 0o600);
        let file = fault::at("log/lock/open")
            .and_then(|()| open_beside(path, options))
            .context(|| format!("cannot open {}", path.display()))?;
        self.give_away(&file);
        Ok(file)
    }

    /// Gives `path` the bytes, whole or not at all; with `durable` it survives a power loss on
    /// return.
    pub fn write_once(&self, path: &Path, bytes: &[&[u8]], durable: bool) -> Result<()> {
        let (mut file, tmp) = self.create_tmp(path)?;
        for part in bytes {
            fault::write("log/file/write", part, |part| file.write_all(part))
                .context(|| format!("cannot write {}", tmp.display()))?;
        }
        publish(&file, &tmp, path, durable)
    }

    /// A process of root that works on somebody's database hands its files to that somebody, and
    /// follows no link of theirs. Anyone else may not, and owns the files itself: not an error.
    fn give_away(&self, file: &File) {
        let (uid, gid) = self.owner;
        let _may_be_refused = std::os::unix::fs::fchown(file, Some(uid), Some(gid));
    }
}

/// `DB-litestream` beside the database.
pub fn meta_dir(database: &Path) -> PathBuf {
    with_suffix(database, META_DIR_SUFFIX)
}

/// The `DB-litestream` of some database that a path is in, or is.
pub fn log_above(path: &Path) -> Option<PathBuf> {
    let is_log = |folder: &&Path| {
        let name = folder.file_name().and_then(|name| name.as_bytes().strip_suffix(SUFFIX));
        let database = name.map(|name| folder.with_file_name(OsStr::from_bytes(name)));
        let is_file = |path: &Path| fs::metadata(path).is_ok_and(|meta| meta.is_file());
        database.is_some_and(|it| is_file(&it) || is_file(&folder.join("generation")))
    };
    path.ancestors().find(is_log).map(Path::to_owned)
}

fn tmp_of(path: &Path) -> PathBuf {
    with_suffix(path, ".tmp")
}

/// Syncs (if `durable`) and renames a finished `.tmp`.
pub fn publish(file: &File, tmp: &Path, path: &Path, durable: bool) -> Result<()> {
    if durable {
        fault::at("log/file/sync")
            .and_then(|()| file.sync_all())
            .context(|| format!("cannot sync {}", tmp.display()))?;
    }
    fault::at("log/file/rename")
        .and_then(|()| fs::rename(tmp, path))
        .context(|| format!("cannot rename {}", tmp.display()))?;
    if durable { sync_folder_of(path) } else { Ok(()) }
}

/// The names in `dir` for which `parse` answers, sorted; a missing folder is an empty one.
pub fn list<T: Ord>(dir: &Path, parse: impl Fn(&str) -> Option<T>) -> Result<Vec<(T, PathBuf)>> {
    let entries = match fault::at("log/folder/list").and_then(|()| fs::read_dir(dir)) {
        Ok(entries) => entries,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => {
            return Err(Error::from(error).context(format!("cannot list {}", dir.display())));
        }
    };
    let mut found = Vec::new();
    for entry in entries {
        let entry = entry.context(|| format!("cannot list {}", dir.display()))?;
        if let Some(key) = entry.file_name().to_str().and_then(&parse) {
            found.push((key, entry.path()));
        }
    }
    found.sort_by(|a, b| a.0.cmp(&b.0));
    Ok(found)
}

/// The index in `0000000000000003.snapshot.lz4` or in a folder name `0000000000000003`.
pub fn index_of(name: &str, suffix: &str) -> Option<Index> {
    hex16(name.strip_suffix(suffix)?).and_then(|value| Index::new(value).ok())
}

/// The offset in `0000000000001038.wal.lz4`.
pub fn offset_of(name: &str) -> Option<Offset> {
    hex16(name.strip_suffix(WAL_SEGMENT_EXT)?).and_then(|value| Offset::new(value).ok())
}

/// Names of our own files are fixed-width and lowercase; anything else was not written by us.
fn hex16(text: &str) -> Option<u64> {
    let ours = text.len() == 16
        && text.bytes().all(|byte| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte));
    if ours { u64::from_str_radix(text, 16).ok() } else { None }
}

/// Removes a folder of ours with all it holds; one that is gone is gone.
pub fn remove_tree(dir: &Path) -> Result<()> {
    match fault::at("log/folder/remove").and_then(|()| fs::remove_dir_all(dir)) {
        Ok(()) => Ok(()),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
        Err(error) => {
            Err(Error::new(ErrorKind::Io, format!("cannot remove {}: {error}", dir.display())))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_ours_parse_and_others_do_not() {
        assert_eq!(index_of("0000000000000003.snapshot.lz4", SNAPSHOT_EXT).unwrap().get(), 3);
        assert_eq!(offset_of("0000000000001038.wal.lz4").unwrap().get(), 0x1038);
        for name in ["3.snapshot.lz4", "000000000000000G.snapshot.lz4", "0000000000000003", ""] {
            assert!(index_of(name, SNAPSHOT_EXT).is_none(), "{name}");
        }
        assert!(offset_of("00000000000010AB.wal.lz4").is_none());
        assert!(offset_of("ffffffffffffffff.wal.lz4").is_none());
    }

    #[test]
    fn a_missing_folder_is_empty() {
        let found = list(Path::new("/nonexistent/folder"), |name| index_of(name, "")).unwrap();
        assert!(found.is_empty());
    }
}
