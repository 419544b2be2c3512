//! A WAL that starts over after kill -9 of the process that served, before another one takes over.
//! If everything is still there, history goes on and followers notice nothing; if it cannot be
//! proved that nothing is missing, a new history begins. Either way no row is lost.
#![allow(clippy::unwrap_used, clippy::panic)]

mod common;

use std::path::PathBuf;

use common::*;

/// A primary that is dead, its follower, and somebody who writes to it meanwhile.
struct Scene {
    folder: Folder,
    address: String,
    pos: String,
    writer: (Host, Db),
    replica: (Host, Db),
}

impl Scene {
    /// With so many commits captured, in files, and checkpointed or not, at the moment it dies.
    fn new(name: &str, checkpointed: bool) -> Scene {
        let folder = Folder::new(name);
        let address = format!("127.0.0.1:{}", free_port());
        let plain = Host::plain();
        let writer = plain.open(folder.file("p.db"));
        writer.run("PRAGMA journal_mode = WAL").unwrap();
        writer.run("PRAGMA wal_autocheckpoint = 0").unwrap();
        writer.run("CREATE TABLE t(x)").unwrap();
        let host = Host::app();
        let db = host.open(folder.file("p.db"));
        let url = db.text(&format!("SELECT litestream_serve('{address}')"));
        let other = Host::app();
        let replica = other.open(folder.file("r.db"));
        follow(&replica, &url);
        write(&writer, 20);
        if checkpointed {
            db.text("SELECT litestream_checkpoint()");
        }
        let pos = db.text("SELECT litestream_sync()");
        catch_up(&db, &replica);
        host.kill();
        Scene { folder, address, pos, writer: (plain, writer), replica: (other, replica) }
    }

    fn writer(&self) -> &Db {
        &self.writer.1
    }

    /// What SQLite does by itself when nobody serves; the next commit starts the WAL over.
    fn checkpoint(&self) {
        let done = self.writer().rows("PRAGMA wal_checkpoint");
        assert_eq!((&done[0][0], &done[0][1]), (&json!(0), &done[0][2]), "{done:?}");
    }

    fn note(&self) -> PathBuf {
        self.folder.file("p.db-litestream/change")
    }

    /// Another process takes over. Whether history goes on, and what it says about it.
    fn take_over(&self) -> (bool, Option<String>) {
        let host = Host::app();
        let db = host.open(self.folder.file("p.db"));
        db.text(&format!("SELECT litestream_serve('{}')", self.address));
        let pos = assert_same(&db, &self.replica.1);
        assert_eq!(self.replica.1.text("SELECT litestream_verify()"), "ok");
        let said = "SELECT message FROM litestream_log WHERE message LIKE 'the WAL was restarted%'";
        let said = db.value(said).as_str().map(str::to_owned);
        let goes_on = generation(&pos) == generation(&self.pos);
        assert_eq!(snapshots_received(&self.replica.1), if goes_on { 1 } else { 2 });
        self.checkpoint_is_ours(&db);
        (goes_on, said)
    }

    fn checkpoint_is_ours(&self, db: &Db) {
        write(self.writer(), 5);
        db.text("SELECT litestream_checkpoint('RESTART')");
        write(self.writer(), 5);
        assert_same(db, &self.replica.1);
    }
}

fn write(db: &Db, rows: u32) {
    for _ in 0..rows {
        db.run("INSERT INTO t VALUES (randomblob(3000))").unwrap();
    }
}

fn there(commits: u32) -> Option<String> {
    let what = "the WAL was restarted while nobody captured it";
    Some(format!("{what}; {commits} commits of its end were there"))
}

#[test]
fn a_wal_that_was_all_captured_may_start_over_unseen() {
    for rows in [1, 7] {
        let scene = Scene::new("rejoin-all", true);
        write(scene.writer(), rows);
        assert_eq!(scene.take_over(), (true, there(0)));
    }
}

#[test]
fn what_was_committed_before_it_started_over_is_read_back() {
    let scene = Scene::new("rejoin-tail", false);
    write(scene.writer(), 3);
    scene.checkpoint();
    write(scene.writer(), 7);
    assert_eq!(scene.take_over(), (true, there(3)));
}

#[test]
fn a_transaction_that_has_begun_to_start_it_over_is_no_commit() {
    let scene = Scene::new("rejoin-begun", true);
    // More than its cache holds: it writes to the WAL before it commits.
    scene.writer().run("PRAGMA cache_size = 2").unwrap();
    scene.writer().run("BEGIN IMMEDIATE").unwrap();
    write(scene.writer(), 20);
    scene.writer().run("ROLLBACK").unwrap();
    assert_eq!(scene.take_over(), (true, there(0)));
}

#[test]
fn a_wal_that_started_over_twice_begins_a_new_history() {
    let scene = Scene::new("rejoin-twice", true);
    write(scene.writer(), 2);
    scene.checkpoint();
    write(scene.writer(), 2);
    assert_eq!(scene.take_over(), (false, None));
}

#[test]
fn a_wal_that_has_overwritten_what_was_not_captured_begins_a_new_history() {
    let scene = Scene::new("rejoin-over", false);
    write(scene.writer(), 3);
    scene.checkpoint();
    write(scene.writer(), 40);
    assert_eq!(scene.take_over(), (false, None));
}

/// As with a commit whose writer died before it published it: it looks like one, and is none.
#[test]
fn a_commit_that_is_not_counted_begins_a_new_history() {
    for wrong in [-1, 1] {
        let scene = Scene::new("rejoin-count", false);
        let note = std::fs::read_to_string(scene.note()).unwrap();
        let (pos, count) = note.trim_end().split_once(' ').unwrap();
        assert_eq!(pos, scene.pos);
        let count = count.parse::<i64>().unwrap() + wrong;
        std::fs::write(scene.note(), format!("{pos} {count}\n")).unwrap();
        write(scene.writer(), 3);
        scene.checkpoint();
        write(scene.writer(), 2);
        assert_eq!(scene.take_over(), (false, None));
    }
}
