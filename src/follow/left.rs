//! How a replica's database file was left by the follower that stopped.
//!
//! `DB-litestream/left`, one line: `SIZE SECONDS NANOSECONDS`, the file's size in bytes and when it
//! was last written. While nobody follows nobody should write it: whoever copies over it, cuts it
//! short or checkpoints into it leaves another time, though the WAL beside it may still be the one
//! that stands for a position. The line is there only while no follower runs; one that was killed
//! leaves none. Metadata alone is looked at: opening the database here would drop the host's locks
//! on close.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use super::dir::ReplicaDir;
use crate::error::{Context, Result};

/// Its name.
pub const LEFT: &str = "left";

fn line_of(database: &Path) -> Option<String> {
    let meta = fs::metadata(database).ok()?;
    Some(format!("{} {} {}\n", meta.size(), meta.mtime(), meta.mtime_nsec()))
}

/// Notes how the database is left.
pub fn leave(dir: &ReplicaDir, database: &Path) -> Result<()> {
    let Some(line) = line_of(database) else { return Ok(()) };
    let path = dir.path().join(LEFT);
    fs::write(&path, line).context(|| format!("cannot write {}", path.display()))
}

/// Whether the database is as it was left, as far as was noted.
pub fn is_as_left(dir: &ReplicaDir, database: &Path) -> bool {
    let noted = fs::read_to_string(dir.path().join(LEFT)).ok();
    noted.is_none_or(|noted| Some(noted) == line_of(database))
}

/// Why what was found is to be compared with the upstream, in words for the user, if it is. Its
/// WAL may stand for a position (`is_known`) or not.
pub fn doubts(is_known: bool, as_left: bool, is_replica: bool) -> Option<String> {
    let why = match (is_known, as_left) {
        (true, true) => return None,
        (true, false) => "its file was written to",
        (false, _) if is_replica => "its WAL was changed, or removed by whoever closed it last,",
        (false, _) => return None,
    };
    Some(format!(
        "follow: {why} while nobody followed, so this replica's position is not known; all of it \
         is compared with the upstream, and what differs is replaced"
    ))
}

/// It is followed from now on: what was noted is over.
pub fn forget(dir: &ReplicaDir) -> Result<()> {
    let path = dir.path().join(LEFT);
    match fs::remove_file(&path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(error).context(|| format!("cannot remove {}", path.display()))
        }
        _ => Ok(()),
    }
}

/// Which file is at `path`: device and inode. Only metadata is read: opening the database here
/// would drop the host's locks on close.
pub fn identity(path: &Path) -> Option<(u64, u64)> {
    let meta = fs::metadata(path).ok()?;
    Some((meta.dev(), meta.ino()))
}
