//! What a replica keeps in `DB-litestream/`, beside its intents.
//!
//! | file     | content                                                                    |
//! |----------|----------------------------------------------------------------------------|
//! | replica  | `upstream=URL`, `since=SECONDS` (Unix time), `schema=SHIFT`, a line each   |
//! | filling  | empty; there while a first snapshot is written (image.rs), and locked then |
//! | position | the position applied and the system's boot it was applied in, a line each, |
//! |          | rewritten in place; empty while it is not known                            |
//!
//! The position is written at every commit and never synced, and neither is the WAL it is about: a
//! power loss may keep the one and lose the other. So it counts only until the system boots again;
//! then the follower finds out from its intents where it is.
//!
//! Beside them the intents (intents.rs), and `left` while nobody follows (left.rs).
//!
//! `replica` appears before the first byte of the database is changed and goes when it is promoted.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::{DirBuilderExt, FileExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::time::{SystemTime, UNIX_EPOCH};

use super::intents::FILE_NAMES;
use crate::error::{Context, Error, ErrorKind, Result};
use crate::fault;
use crate::files::{check_folder, open_beside, sync_folder_of, text_beside};
use crate::info::META_DIR_SUFFIX;
use crate::pos::Pos;

const REPLICA: &str = "replica";
const FILLING: &str = "filling";
const POSITION: &str = "position";
/// Where Linux says which boot this is: another text each time.
const BOOT: &str = "/proc/sys/kernel/random/boot_id";

/// The directory `DB-litestream/` of one database.
#[derive(Debug, Clone)]
pub struct ReplicaDir {
    path: PathBuf,
}

impl ReplicaDir {
    /// Of the database at `database`; nothing is looked at or made yet.
    pub fn of(database: &Path) -> Self {
        let mut path = database.as_os_str().to_owned();
        path.push(META_DIR_SUFFIX);
        Self { path: PathBuf::from(path) }
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Makes the directory; who may read the database may look into it.
    pub fn create(&self, database: &Path) -> Result<()> {
        check_folder(database, &self.path)?;
        // Only metadata is read: opening the database here would drop the host's locks on close.
        let read_bits = fs::metadata(database).map_or(0o600, |meta| meta.mode()) & 0o444;
        let mode = 0o300 | read_bits | read_bits >> 2;
        let make = || DirBuilder::new().mode(mode | 0o700).create(&self.path);
        match fault::at("follow/folder/make").and_then(|()| make()) {
            Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => Ok(()),
            other => other.context(|| format!("cannot create {}", self.path.display())),
        }
    }

    /// Whether the database is a replica.
    pub fn is_replica(&self) -> Result<bool> {
        self.has(REPLICA)
    }

    /// Whether a first snapshot was begun and perhaps not finished.
    pub fn is_filling(&self) -> Result<bool> {
        self.has(FILLING)
    }

    /// What cannot be looked for is not gone: it would be taken for somebody else's database.
    fn has(&self, name: &str) -> Result<bool> {
        let path = self.path.join(name);
        fault::at("follow/sign/look")
            .and_then(|()| path.try_exists())
            .context(|| format!("cannot look for {}", path.display()))
    }

    /// Says that the database is a replica of `upstream`, whose schema version grows by
    /// `schema_shift` on its way. On disk when it returns.
    pub fn mark_replica(&self, upstream: &str, schema_shift: u32) -> Result<()> {
        let since = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |age| age.as_secs());
        let temporary = self.path.join("replica.tmp");
        let target = self.path.join(REPLICA);
        let what = || format!("cannot write {}", target.display());
        let text = format!("upstream={upstream}\nsince={since}\nschema={schema_shift}\n");
        let mut options = OpenOptions::new();
        let options = options.write(true).create(true).truncate(true);
        let open = fault::at("follow/sign/create").and_then(|()| open_beside(&temporary, options));
        let mut file = open.context(what)?;
        fault::write("follow/sign/write", text.as_bytes(), |text| file.write_all(text))
            .and_then(|()| fault::at("follow/sign/sync"))
            .and_then(|()| file.sync_all())
            .and_then(|()| fault::at("follow/sign/rename"))
            .and_then(|()| fs::rename(&temporary, &target))
            .context(what)?;
        self.sync()?;
        // The directory may be new: without it the database would be nobody's replica.
        sync_folder_of(&self.path)
    }

    /// What is added to the upstream's schema version; 0 if nothing is known. Not if it cannot be
    /// read: readers that saw a version would not notice that the schema is another.
    pub fn schema_shift(&self) -> Result<u32> {
        let path = self.path.join(REPLICA);
        let text = match fault::at("follow/sign/read").and_then(|()| text_beside(&path)) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(0),
            other => other.context(|| format!("cannot read {}", path.display()))?,
        };
        let shift = text.lines().find_map(|line| line.strip_prefix("schema="));
        Ok(shift.and_then(|shift| shift.parse().ok()).unwrap_or(0))
    }

    /// Says that a first snapshot is being written, and keeps others from writing another until the
    /// file returned is closed. On disk when it returns.
    pub fn mark_filling(&self) -> Result<File> {
        let path = self.path.join(FILLING);
        let what = || format!("cannot write {}", path.display());
        let open = fault::at("follow/filling/open").and_then(|()| open_in_place(&path));
        let file = open.context(what)?;
        if !crate::host::os::lock_file(&file).context(what)? {
            let text = "another process is writing the first snapshot of this replica";
            return Err(Error::new(ErrorKind::Busy, text));
        }
        self.sync()?;
        Ok(file)
    }

    /// Says that the first snapshot is complete.
    pub fn unmark_filling(&self) -> Result<()> {
        self.remove(FILLING)?;
        self.sync()
    }

    /// Removes all that makes the database a replica, the sign that it is one first.
    pub fn unmark_replica(&self) -> Result<()> {
        for name in [REPLICA, POSITION, FILE_NAMES[0], FILE_NAMES[1], super::left::LEFT] {
            self.remove(name)?;
        }
        self.sync()?;
        // Other files may be in it, and nothing may be.
        let _ = fs::remove_dir(&self.path);
        Ok(())
    }

    /// The position other processes wrote last, if there is one and the system did not boot since.
    pub fn read_position(&self) -> Option<Pos> {
        let read = || {
            fault::at("follow/position/read").ok()?;
            text_beside(&self.path.join(POSITION)).ok()
        };
        // Rewritten in place, so it is read until nothing of it changes meanwhile.
        let mut text = read()?;
        while let Some(again) = read().filter(|again| *again != text) {
            text = again;
        }
        let (pos, boot) = text.split_once('\n')?;
        let current = is_this_boot(boot.strip_suffix('\n')?, boot_id());
        pos.parse().ok().filter(|pos: &Pos| current && !pos.is_zero())
    }

    /// Opens the position for writing.
    pub fn position_file(&self) -> Result<PositionFile> {
        let path = self.path.join(POSITION);
        let what = || format!("cannot open {}", path.display());
        let open = fault::at("follow/position/open").and_then(|()| open_in_place(&path));
        let file = open.context(what)?;
        file.set_permissions(fs::Permissions::from_mode(self.file_mode())).context(what)?;
        Ok(PositionFile { file, path })
    }

    /// Makes names that were made or removed in the directory survive a loss of power.
    pub fn sync(&self) -> Result<()> {
        fault::at("follow/folder/sync")
            .and_then(|()| File::open(&self.path)?.sync_all())
            .context(|| format!("cannot sync {}", self.path.display()))
    }

    /// Readable to whom the directory is.
    fn file_mode(&self) -> u32 {
        let mode = fs::metadata(&self.path).map_or(0o700, |meta| meta.mode());
        0o600 | mode & 0o444
    }

    fn remove(&self, name: &str) -> Result<()> {
        let path = self.path.join(name);
        match fault::at("follow/sign/remove").and_then(|()| fs::remove_file(&path)) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
            other => other.context(|| format!("cannot remove {}", path.display())),
        }
    }
}

/// The file `position`, open for rewriting.
pub struct PositionFile {
    file: File,
    path: PathBuf,
}

impl PositionFile {
    /// Writes a position in place of the one before.
    pub fn write(&self, pos: Pos) -> Result<()> {
        let text = format!("{pos}\n{}\n", boot_id());
        let done = fault::write("follow/position/write", text.as_bytes(), |text| {
            self.file.write_all_at(text, 0)
        });
        done.context(|| format!("cannot write {}", self.path.display()))
    }

    /// Says that the position is not known, until the next is written.
    pub fn forget(&self) -> Result<()> {
        fault::at("follow/position/truncate")
            .and_then(|()| self.file.set_len(0))
            .context(|| format!("cannot empty {}", self.path.display()))
    }
}

/// Which boot of the system this is; empty where the system does not say.
fn boot_id() -> &'static str {
    static BOOT_ID: OnceLock<String> = OnceLock::new();
    BOOT_ID.get_or_init(|| fs::read_to_string(BOOT).unwrap_or_default().trim_end().to_owned())
}

/// Whether the boot that was noted is the current one; never, where the system does not say.
fn is_this_boot(noted: &str, current: &str) -> bool {
    !current.is_empty() && noted == current
}

/// A small file of ours that is changed in place, made if it is missing.
fn open_in_place(path: &Path) -> std::io::Result<File> {
    open_beside(path, OpenOptions::new().write(true).create(true).truncate(false))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pos::{Generation, Index, Offset};

    fn scratch(name: &str) -> PathBuf {
        let path = std::env::temp_dir().join(format!("ls-dir-{}-{name}", std::process::id()));
        let _ = fs::remove_dir_all(&path);
        fs::create_dir_all(&path).unwrap();
        path.join("a.db")
    }

    #[test]
    fn signs_come_and_go() {
        let database = scratch("signs");
        let dir = ReplicaDir::of(&database);
        assert!(!dir.is_replica().unwrap() && !dir.is_filling().unwrap());
        dir.create(&database).unwrap();
        dir.create(&database).unwrap();
        assert_eq!(dir.schema_shift().unwrap(), 0);
        dir.mark_replica("http://a", 7).unwrap();
        assert_eq!(dir.schema_shift().unwrap(), 7);
        let text = fs::read_to_string(dir.path().join("replica")).unwrap();
        assert!(text.starts_with("upstream=http://a\nsince="), "{text}");
        let lock = dir.mark_filling().unwrap();
        assert!(dir.is_replica().unwrap() && dir.is_filling().unwrap());
        drop(lock);
        dir.unmark_filling().unwrap();
        dir.unmark_replica().unwrap();
        assert!(!dir.path().exists());
    }

    /// A sign that could not be read for a moment was taken for none: the schema version that
    /// readers had seen came back later with another schema, and they did not notice.
    #[test]
    fn what_cannot_be_read_is_not_taken_for_missing() {
        let database = scratch("unreadable");
        let dir = ReplicaDir::of(&database);
        fs::create_dir_all(dir.path().join(REPLICA)).unwrap();
        assert!(dir.schema_shift().is_err());
        let below_a_file = database.with_file_name("file");
        fs::write(&below_a_file, "").unwrap();
        assert!(ReplicaDir { path: below_a_file.join("x") }.is_replica().is_err());
    }

    #[test]
    fn position_is_rewritten_in_place() {
        let database = scratch("position");
        let dir = ReplicaDir::of(&database);
        dir.create(&database).unwrap();
        assert_eq!(dir.read_position(), None);
        let file = dir.position_file().unwrap();
        for offset in [32, u64::MAX >> 1, 0] {
            let generation = Generation::from_bits(u64::MAX);
            let pos = Pos::new(generation, Index::ZERO, Offset::new(offset).unwrap());
            file.write(pos).unwrap();
            assert_eq!(dir.read_position(), Some(pos));
            let text = fs::read_to_string(dir.path().join("position")).unwrap();
            assert_eq!(text, format!("{pos}\n{}\n", boot_id()));
        }
        file.forget().unwrap();
        assert_eq!(dir.read_position(), None);
        let pos = Pos::new(Generation::from_bits(1), Index::ZERO, Offset::ZERO);
        file.write(pos).unwrap();
        assert_eq!(dir.read_position(), Some(pos));
        assert!(is_this_boot("a", "a") && !is_this_boot("a", "b"));
        assert!(!is_this_boot("", ""), "nobody knows");
        // Another boot's, and that of a version that did not tell.
        for text in [format!("{pos}\nanother\n"), format!("{pos}\n")] {
            fs::write(dir.path().join("position"), text).unwrap();
            assert_eq!(dir.read_position(), None);
        }
    }
}
