//! A database that is archived in a folder, and what is asked of it again and again.

use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::common::*;

pub struct Primary {
    pub path: PathBuf,
    pub archive: PathBuf,
    pub options: String,
    pub host: Host,
    pub db: Db,
}

impl Primary {
    /// With the ledger, archived.
    pub fn new(folder: &Folder, options: &str) -> Primary {
        let primary = Primary::idle(folder.file("p.db"), folder.file("archive"), options);
        make_ledger(&primary.db);
        primary.replicate();
        primary
    }

    /// A new process on old files; not archived yet.
    pub fn idle(path: PathBuf, archive: PathBuf, options: &str) -> Primary {
        let host = Host::app();
        let db = host.open(&path);
        Primary { path, archive, options: options.to_owned(), host, db }
    }

    pub fn url(&self) -> String {
        format!("file://{}", self.archive.display())
    }

    pub fn replicate(&self) {
        self.replicate_to(&self.url());
    }

    pub fn replicate_to(&self, url: &str) {
        let call = format!("SELECT litestream_replicate('{url}', '{}')", self.options);
        assert_eq!(self.db.text(&call), url);
    }

    /// kill -9, and a new process on the same files.
    pub fn killed_and_restarted(self) -> Primary {
        let Primary { path, archive, options, host, db: _ } = self;
        host.kill();
        let primary = Primary::idle(path, archive, &options);
        primary.replicate();
        primary
    }

    /// A new process on the files without the log: the history before has ended.
    pub fn with_a_new_history(self) -> Primary {
        let Primary { path, archive, options, host, db: _ } = self;
        assert!(host.quit().success());
        std::fs::remove_dir_all(format!("{}-litestream", path.display())).unwrap();
        let primary = Primary::idle(path, archive, &options);
        primary.replicate();
        primary
    }

    pub fn load(&self, pause: f64) -> Work {
        self.host.work("ledger_writer", json!({"path": self.path, "pause": pause}))
    }

    pub fn add(&self, rows: usize) {
        for _ in 0..rows {
            self.db.script(
                "BEGIN IMMEDIATE;
                 UPDATE ledger SET n = n + 1, bytes = bytes + 100;
                 INSERT INTO entry SELECT n, randomblob(100) FROM ledger;
                 COMMIT",
            );
        }
    }

    pub fn sync(&self) -> String {
        self.db.text("SELECT litestream_sync()")
    }

    pub fn replica(&self, column: &str) -> String {
        self.db.value(&format!("SELECT {column} FROM litestream_replicas")).to_string()
    }

    /// Lines of the log that hold this.
    pub fn told(&self, what: &str) -> i64 {
        told(&self.db, what)
    }

    /// Makes the WAL start over.
    pub fn next_index(&self) {
        self.db.text("SELECT litestream_checkpoint('RESTART')");
        self.add(1);
    }

    /// Syncs, checks all of the archive, and compares what comes out of it with the database.
    pub fn assert_archived(&self) -> Archived {
        let pos = self.sync();
        let archived = self.archived(&pos);
        archived.assert_whole();
        assert_eq!(archived.position, Some(place(&pos)), "its position");
        assert_eq!(archived.end(), place(&pos));
        self.assert_restores(&archived);
        archived
    }

    /// The same while nothing is deleted.
    pub fn assert_archived_at_rest(&self) -> Archived {
        self.sync();
        self.db.int("SELECT litestream_stop('replicate')");
        let all = read_archive(&self.archive);
        let archived = all.into_iter().next().unwrap();
        archived.assert_whole();
        self.assert_restores(&archived);
        self.replicate();
        archived
    }

    /// The archive of the generation of a position.
    pub fn archived(&self, pos: &str) -> Archived {
        let all = read_archive(&self.archive);
        let of = |it: &Archived| it.generation == generation(pos);
        all.into_iter().find(of).unwrap_or_else(|| panic!("nothing of {pos}"))
    }

    /// From each snapshot, and by `litestream_restore`.
    pub fn assert_restores(&self, archived: &Archived) {
        let expected = self.db.content();
        let copies = Host::plain();
        for index in archived.snapshots.keys() {
            let path = self.archive.with_extension(format!("from-{index}.db"));
            archived.materialize(*index, &path);
            let copy = copies.open(&path);
            assert_eq!(copy.text("PRAGMA integrity_check"), "ok");
            assert_eq!(copy.content(), expected, "from snapshot {index:x}");
            copy.close();
            remove_database(&path);
        }
        assert_eq!(restored(&self.url(), &self.archive.with_extension("restored.db")), expected);
    }
}

/// Restores into a new file, in a process of its own. The content.
pub fn restored(url: &str, path: &Path) -> String {
    restored_with(url, &json!({}), path)
}

/// The same, with options.
pub fn restored_with(url: &str, options: &Value, path: &Path) -> String {
    let host = Host::app();
    let nowhere = host.open(":memory:");
    let path_text = path.display();
    nowhere.text(&format!("SELECT litestream_restore('{url}', '{path_text}', '{options}')"));
    let copy = host.open_plain(path);
    assert_eq!(copy.text("PRAGMA integrity_check"), "ok");
    let content = copy.content();
    copy.close();
    remove_database(path);
    content
}

fn remove_database(path: &Path) {
    for suffix in ["", "-wal", "-shm"] {
        let _not_there = std::fs::remove_file(format!("{}{suffix}", path.display()));
    }
}

pub fn told(db: &Db, what: &str) -> i64 {
    db.int(&format!("SELECT count(*) FROM litestream_log WHERE message LIKE '%{what}%'"))
}

/// Index and offset of a position's text.
pub fn place(pos: &str) -> (u64, u64) {
    let (index, offset) = pos.split_once('/').unwrap().1.split_once(':').unwrap();
    (u64::from_str_radix(index, 16).unwrap(), u64::from_str_radix(offset, 16).unwrap())
}

/// Not to wait for anything: the moment of what follows is what is random here.
pub fn pause_up_to(ms: u64) {
    std::thread::sleep(Duration::from_millis(Rng::new().below(ms)));
}
