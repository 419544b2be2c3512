//! A primary and a replica, and what can be done to their files.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use crate::common::*;

pub const VERIFY: &str = "SELECT litestream_verify()";
pub const REPAIR: &str = r#"SELECT litestream_verify('{"repair": true}')"#;

/// A served primary and its replica, each in a process of its own.
pub struct Pair {
    pub folder: Folder,
    pub primary_host: Host,
    pub primary: Db,
    pub replica_host: Host,
    pub replica: Db,
    pub url: String,
}

impl Pair {
    /// Of a database that `script` makes.
    pub fn new(name: &str, script: &str) -> Pair {
        let folder = Folder::new(name);
        let (primary_host, replica_host) = (Host::app(), Host::app());
        let primary = primary_host.open(folder.file("p.db"));
        primary.script(script);
        let url = serve(&primary);
        let replica = replica_host.open(folder.file("r.db"));
        follow(&replica, &url);
        Pair { folder, primary_host, primary, replica_host, replica, url }
    }

    /// Of a table with so many rows, a page each, in the replica's database file and not its WAL.
    pub fn of_rows(name: &str, rows: u32) -> Pair {
        let script = format!(
            "PRAGMA journal_mode = WAL;
             CREATE TABLE t(i INTEGER PRIMARY KEY, pad BLOB);
             WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < {rows})
             INSERT INTO t SELECT i, randomblob(3500) FROM n;"
        );
        let pair = Pair::new(name, &script);
        catch_up(&pair.primary, &pair.replica);
        pair.settle();
        pair
    }

    pub fn replica_path(&self) -> PathBuf {
        self.folder.file("r.db")
    }

    pub fn primary_path(&self) -> PathBuf {
        self.folder.file("p.db")
    }

    /// What `litestream_verify` answers.
    pub fn verify(&self) -> String {
        let answer = self.replica.send(VERIFY).outcome(scaled(DEADLINE, 10 * DEADLINE));
        answer.unwrap()[0][0].as_str().unwrap().to_owned()
    }

    /// Brings everything into the replica's database file.
    pub fn settle(&self) {
        settle(&self.replica);
    }
}

/// Brings everything into the database file, sooner than the replica's checkpointer would.
pub fn settle(replica: &Db) {
    until("the database to be checkpointed", || {
        let done = replica.rows("PRAGMA wal_checkpoint(PASSIVE)");
        (done[0][0] == 0 && done[0][1] == done[0][2]).then_some(())
    });
}

/// Flips one bit in the middle of a page of 4096 bytes.
pub fn flip(path: &Path, page_no: u64) {
    flip_at(path, (page_no - 1) * 4096 + 2000);
}

/// Flips one bit.
pub fn flip_at(path: &Path, offset: u64) {
    let file = OpenOptions::new().read(true).write(true).open(path).unwrap();
    let mut byte = [0];
    file.read_exact_at(&mut byte, offset).unwrap();
    file.write_all_at(&[byte[0] ^ 0x10], offset).unwrap();
}

/// What is at a page.
pub fn page(path: &Path, page_no: u64) -> Vec<u8> {
    let mut page = vec![0; 4096];
    File::open(path).unwrap().read_exact_at(&mut page, (page_no - 1) * 4096).unwrap();
    page
}

/// Whether the extension's own log has a line with these words.
pub fn told(db: &Db, words: &str) -> bool {
    let sql = format!("SELECT count(*) FROM litestream_log WHERE message LIKE '%{words}%'");
    db.int(&sql) > 0
}
