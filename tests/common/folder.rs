//! A folder for a test.
#![allow(clippy::print_stderr, reason = "a folder that is left behind is named")]

use std::path::PathBuf;
use std::sync::atomic::{AtomicU32, Ordering};

/// A directory of one test's own, removed at its end. A failed test leaves it for a look.
pub struct Folder(PathBuf);

impl Folder {
    pub fn new(test: &str) -> Folder {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let name = format!("litestream-{test}-{}-{number}", std::process::id());
        let path = std::env::temp_dir().join(name);
        std::fs::create_dir_all(&path).unwrap();
        Folder(path)
    }

    pub fn file(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("left behind: {}", self.0.display());
        } else {
            let _ = std::fs::remove_dir_all(&self.0);
        }
    }
}
