//! How a replica's database file was left by the follower that stopped.
//!
//! `DB-litestream/left`, one line: `SIZE SECONDS NANOSECONDS`, the file's size in bytes and when it
//! was last written. While nobody follows nobody should write it: whoever copies over it, cuts it
//! short or checkpoints into it leaves another time, though the WAL beside it may still be the one
//! that stands for a position. The line is there only while no follower runs; one that was killed
//! leaves none. Metadata alone is looked at: opening the database here would drop the host's locks
//! on close.

use std::fs::{self, OpenOptions};
use std::io::{ErrorKind as Io, Write};
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use super::dir::ReplicaDir;
use crate::error::{Context, Result};
use crate::fault;
use crate::files::{open_beside, text_beside};
use crate::registry::{self, Level};

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
    let mut options = OpenOptions::new();
    let mut open = || open_beside(&path, options.write(true).create(true).truncate(true));
    fault::at("follow/left/open")
        .and_then(|()| open())
        .and_then(|mut file| {
            let write = |part: &[u8]| file.write_all(part);
            fault::write("follow/left/write", line.as_bytes(), write)
        })
        .context(|| format!("cannot write {}", path.display()))
}

/// Whether the database is as it was left, as far as was noted. A note that cannot be read may say
/// that it is not.
pub fn is_as_left(dir: &ReplicaDir, database: &Path) -> bool {
    let path = dir.path().join(LEFT);
    match fault::at("follow/left/read").and_then(|()| text_beside(&path)) {
        Ok(noted) => Some(noted) == line_of(database),
        Err(error) if error.kind() == Io::NotFound => true,
        Err(error) => {
            let text = format!("follow: cannot read {}: {error}", path.display());
            registry::log(Level::Warn, database, &text);
            false
        }
    }
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
    match fault::at("follow/left/remove").and_then(|()| fs::remove_file(&path)) {
        Err(error) if error.kind() != Io::NotFound => {
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

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    /// A note that could not be read was taken for none, and what somebody had written to the
    /// database meanwhile for what was left. A link of the note's name was written through.
    #[test]
    fn what_was_noted_counts_and_what_cannot_be_read_is_a_doubt() {
        let folder = std::env::temp_dir().join(format!("ls-left-{}", std::process::id()));
        let _ = fs::remove_dir_all(&folder);
        fs::create_dir_all(&folder).unwrap();
        let database = folder.join("a.db");
        fs::write(&database, "content").unwrap();
        let dir = ReplicaDir::of(&database);
        dir.create(&database).unwrap();
        assert!(is_as_left(&dir, &database), "nothing was noted");
        leave(&dir, &database).unwrap();
        assert!(is_as_left(&dir, &database));
        fs::write(&database, "other content").unwrap();
        assert!(!is_as_left(&dir, &database));

        let note = dir.path().join(LEFT);
        fs::write(&note, [0xff, b'\n']).unwrap();
        assert!(!is_as_left(&dir, &database), "it is no text");
        forget(&dir).unwrap();
        assert!(is_as_left(&dir, &database));
        let target = folder.join("target");
        fs::write(&target, "precious").unwrap();
        symlink(&target, &note).unwrap();
        assert!(!is_as_left(&dir, &database), "it is a link");
        let error = leave(&dir, &database).unwrap_err().to_string();
        assert!(error.contains("it is a symbolic link"), "{error}");
        assert_eq!(fs::read_to_string(&target).unwrap(), "precious");
        fs::remove_dir_all(&folder).unwrap();
    }
}
