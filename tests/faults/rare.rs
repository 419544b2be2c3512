//! Operations that the play of a round does not get to: each has a scene of its own here, fails
//! once, is told of, and all goes well without it.

use std::cell::Cell;
use std::path::Path;

use crate::build::library;
use crate::cast::Met;
use crate::common::*;

/// What a fault of the kind used here is told as.
const FULL: &str = "os error 28)";
const OFTEN: &str = r#"{"sync_interval": "20ms"}"#;

struct Scene {
    folder: Folder,
    host: Host,
    /// No database of ours: to ask and to tell.
    control: Db,
    /// How often the faults before the last were told.
    told: Cell<i64>,
}

impl Scene {
    fn new(name: &str) -> Scene {
        let host = Host::loading(library());
        let control = host.open(":memory:");
        Scene { folder: Folder::new(name), host, control, told: Cell::new(0) }
    }

    /// The next operation of this name fails, and those of others every time.
    fn fail(&self, point: &str, without: &str) {
        self.told.set(self.times_told());
        let plan = json!({"point": point, "nth": 1, "kind": "enospc", "without": without});
        self.control.text(&format!("SELECT litestream_fault('{plan}')"));
    }

    fn has_failed(&self, point: &str) -> bool {
        Met::of(&self.control.text("SELECT litestream_fault()")).fired.as_deref() == Some(point)
    }

    /// The call fails because of this operation; the same call goes well after that.
    fn assert_fails_once(&self, db: &Db, call: &str, point: &str, without: &str) {
        self.fail(point, without);
        let error = db.fails(call);
        assert!(self.has_failed(point) && error.contains(FULL), "{point}: {error}");
        self.control.text(&format!("SELECT litestream_fault('{}')", json!({"without": without})));
        until(call, || db.run(call).ok());
        self.mend();
    }

    /// Waits for the work in the background to get there, and to tell.
    fn wait_until_it_fails(&self, point: &str) {
        until(point, || self.has_failed(point).then_some(()));
        let is_told = || (self.times_told() > self.told.get()).then_some(());
        until(&format!("{point} to be told"), is_told);
        self.mend();
    }

    fn times_told(&self) -> i64 {
        let told = format!("SELECT count(*) FROM litestream_log WHERE message LIKE '%{FULL}%'");
        self.control.int(&told)
    }

    fn mend(&self) {
        self.control.text("SELECT litestream_fault('{}')");
    }

    fn ledger(&self) -> Db {
        let db = self.host.open(self.folder.file("p.db"));
        make_ledger(&db);
        db
    }

    fn add(&self, db: &Db, bytes: u32) {
        db.run(&format!(
            "INSERT INTO entry SELECT ifnull(max(n), 0) + 1, randomblob({bytes}) FROM entry"
        ))
        .unwrap();
    }

    fn archive(&self) -> String {
        format!("file://{}", self.folder.file("archive").display())
    }

    fn restored(&self, name: &str) -> String {
        format!(
            "SELECT litestream_restore('{}', '{}')",
            self.archive(),
            self.folder.file(name).display()
        )
    }

    fn assert_is_copy(&self, db: &Db, path: &Path) {
        let copy = self.host.open_plain(path);
        assert_eq!(copy.content(), db.content());
        copy.close();
    }
}

/// A restore where no file is without a name.
#[test]
fn a_restore_into_files_with_names() {
    let scene = Scene::new("rare-names");
    let db = scene.ledger();
    scene.add(&db, 1000);
    db.text(&format!("SELECT litestream_replicate('{}', '{OFTEN}')", scene.archive()));
    db.text("SELECT litestream_sync()");
    let unnamed = "restore/file/unnamed";
    let unlinked = &format!("{unnamed} restore/name/give");
    for (name, point, without) in
        [("a.db", "restore/file/create", unnamed), ("b.db", "restore/name/rename", unlinked)]
    {
        scene.assert_fails_once(&db, &scene.restored(name), point, without);
        scene.assert_is_copy(&db, &scene.folder.file(name));
    }
    // What it cannot remove stays there, and that is all.
    scene.fail("restore/tmp/remove", unnamed);
    db.text(&scene.restored("c.db"));
    assert!(scene.has_failed("restore/tmp/remove"));
    scene.mend();
    scene.assert_is_copy(&db, &scene.folder.file("c.db"));
}

/// Keys from a file; what a killed process left; the log of a generation before.
#[test]
fn a_start_that_has_to_read_and_to_tidy() {
    let scene = Scene::new("rare-start");
    let db = scene.ledger();
    let serve = "SELECT litestream_serve('127.0.0.1:0')";
    let key = scene.folder.file("key");
    let secret = "AGE-SECRET-KEY-1GQ9778VQXMMJVE8SK7J6VT8UJ4HDQAJUVSFCWCM02D8GEWQ72PVQ2Y5J33";
    std::fs::write(&key, secret).unwrap();
    let options = json!({"age_identities": key});
    let archive = format!("SELECT litestream_replicate('{}', '{options}')", scene.archive());
    for point in ["archive/identities/open", "files/small/open"] {
        scene.assert_fails_once(&db, &archive, point, "");
        db.int("SELECT litestream_stop()");
    }

    std::fs::write(scene.folder.file("p.db-litestream/left.tmp"), "").unwrap();
    scene.assert_fails_once(&db, serve, "files/tmp/remove", "");
    let before = db.text("SELECT litestream_pos()");
    db.int("SELECT litestream_stop()");

    // Nobody saw this commit, and the WAL is gone.
    scene.add(&db, 100);
    assert_eq!(db.int("PRAGMA wal_checkpoint(TRUNCATE)"), 0);
    db.text(serve);
    db.int("SELECT litestream_stop()");
    scene.assert_fails_once(&db, serve, "log/folder/remove", "");
    assert_ne!(generation(&db.text("SELECT litestream_pos()")), generation(&before));
}

/// A database of more than 64 MiB is synced while it is copied.
#[test]
fn a_snapshot_of_a_large_database() {
    let scene = Scene::new("rare-large");
    let db = scene.ledger();
    db.run("INSERT INTO entry VALUES (1, zeroblob(66 << 20))").unwrap();
    db.text("SELECT litestream_serve('127.0.0.1:0')");
    assert_eq!(db.rows("SELECT litestream_checkpoint('TRUNCATE')").len(), 1);
    scene.add(&db, 100);
    scene.assert_fails_once(&db, "SELECT litestream_snapshot()", "log/snapshot/sync", "");
}

/// A replica's WAL that has grown is cut when it starts over.
#[test]
fn a_replica_of_large_transactions() {
    let primary = Scene::new("rare-wal");
    let db = primary.ledger();
    let url = serve(&db);
    let scene = Scene::new("rare-wal-replica");
    let replica = scene.host.open(scene.folder.file("r.db"));
    follow(&replica, &url);
    catch_up(&db, &replica);
    scene.fail("follow/wal/truncate", "");
    primary.add(&db, 17 << 20);
    until("follow/wal/truncate", || {
        primary.add(&db, 100);
        scene.has_failed("follow/wal/truncate").then_some(())
    });
    scene.wait_until_it_fails("follow/wal/truncate");
    assert_same(&db, &replica);
}

/// What is too old in an archive goes, objects and folders.
#[test]
fn an_archive_that_forgets() {
    let scene = Scene::new("rare-forget");
    let db = scene.ledger();
    let options = json!({"sync_interval": "20ms", "snapshot_interval": "1s", "retention": "1s",
        "delete_after": "0s"});
    let begin = format!("SELECT litestream_replicate('{}', '{options}')", scene.archive());
    db.text(&begin);
    let age = |point: &str| {
        until(point, || {
            scene.add(&db, 100);
            db.run("SELECT litestream_snapshot()").unwrap();
            scene.has_failed(point).then_some(())
        });
        scene.wait_until_it_fails(point);
    };
    scene.fail("archive/file/remove", "");
    age("archive/file/remove");

    let before = generation(&db.text("SELECT litestream_pos()")).to_owned();
    db.int("SELECT litestream_stop()");
    scene.add(&db, 100);
    assert_eq!(db.int("PRAGMA wal_checkpoint(TRUNCATE)"), 0);
    scene.fail("archive/folder/remove", "");
    db.text(&begin);
    age("archive/folder/remove");
    let folder = scene.folder.file("archive/generations").join(before);
    until("the generation before to be gone", || {
        scene.add(&db, 100);
        db.text("SELECT litestream_snapshot()");
        (!folder.exists()).then_some(())
    });
    db.text("SELECT litestream_sync()");
    db.text(&scene.restored("copy.db"));
    scene.assert_is_copy(&db, &scene.folder.file("copy.db"));
}
