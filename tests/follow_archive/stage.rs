//! What most tests of followers of an archive begin with, and end with.

use std::path::{Path, PathBuf};
use std::time::Duration;

use litestream::follow::Follower;

use super::archiver::{Archiver, Maker, primary};
use super::common::Folder;
use super::support::dump;
use super::upstream::Primary;

/// A primary, an archive that holds nothing yet, and names for it and for a replica. To be taken
/// apart.
pub struct Stage {
    pub folder: Folder,
    pub path: PathBuf,
    pub store: PathBuf,
    pub primary: Primary,
    pub archiver: Archiver,
}

impl Stage {
    pub fn new(test: &str, maker: Maker) -> Self {
        let folder = Folder::new(test);
        let (path, store) = (folder.file("replica.db"), folder.file("store"));
        let primary = primary(&folder.file("primary.db"));
        let archiver = Archiver::new(&store, maker);
        Self { folder, path, store, primary, archiver }
    }
}

/// Waits until the replica at `path` has the end of the primary's history, and compares.
pub fn reach(follower: &Follower, primary: &Primary, path: &Path) {
    let end = primary.history.end();
    assert!(follower.wait(end, Duration::from_secs(60)), "{:?}", follower.status());
    assert_eq!(dump(path), dump(&primary.path));
}
