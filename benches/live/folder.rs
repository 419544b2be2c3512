//! A folder on the disk the project is built on (a file system in memory has no syncs to measure),
//! removed when the program ends.

use std::fs;
use std::path::{Path, PathBuf};

/// The folder of one run.
pub struct Folder(pub PathBuf);

impl Folder {
    /// In `bench` of the folder cargo builds in.
    pub fn new(target: &Path, bench: &str) -> Folder {
        let path = target.join("bench").join(format!("{bench}-{}", std::process::id()));
        fs::create_dir_all(&path).unwrap();
        Folder(path)
    }

    /// A new folder in it.
    pub fn make(&self, name: &str) -> PathBuf {
        let path = self.0.join(name);
        fs::create_dir_all(&path).unwrap();
        path
    }

    /// Removes one that is not needed any more.
    pub fn remove(&self, name: &str) {
        let _ = fs::remove_dir_all(self.0.join(name));
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}
