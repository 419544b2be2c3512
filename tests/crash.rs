//! kill -9 of either side at any time, and files changed behind the back of a process that was not
//! running: nothing is lost, history goes on where it can be proved, and readers never see the
//! past. The oracle is always the same: the replica's content equals the primary's, and the plain
//! reader that watched all along met no broken law.
#![allow(clippy::unwrap_used, clippy::panic)]

mod common;

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use common::*;

/// A primary at a fixed address, which can be started again after it died.
struct Primary {
    path: PathBuf,
    address: String,
    host: Host,
    db: Db,
}

impl Primary {
    fn new(folder: &Folder) -> Primary {
        let path = folder.file("p.db");
        let (host, db) = ledger(&path);
        let address = format!("127.0.0.1:{}", free_port());
        let primary = Primary { path, address, host, db };
        primary.serve();
        primary
    }

    fn serve(&self) -> String {
        self.db.text(&format!("SELECT litestream_serve('{}')", self.address))
    }

    fn url(&self) -> String {
        format!("http://{}/", self.address)
    }

    /// kill -9, and a new process on the same files.
    fn killed_and_restarted(self) -> Primary {
        self.host.kill();
        Primary::again(self.path, self.address)
    }

    fn again(path: PathBuf, address: String) -> Primary {
        let host = Host::app();
        let db = host.open(&path);
        let primary = Primary { path, address, host, db };
        primary.serve();
        primary
    }

    fn load(&self) -> Work {
        self.host.work("ledger_writer", json!({"path": self.path, "pause": 0.0002}))
    }

    fn snapshots(&self) -> i64 {
        self.db.int("SELECT count(*) FROM litestream_snapshots")
    }

    fn generation(&self) -> String {
        generation(&self.db.text("SELECT litestream_pos()")).to_owned()
    }
}

fn start_following(path: &Path, url: &str) -> (Host, Db) {
    let host = Host::app();
    let db = host.open(path);
    follow(&db, url);
    (host, db)
}

/// A plain process that reads the replica all along; its open connection keeps the replica's WAL
/// from being removed by whoever closes the database last.
fn watch(path: &Path) -> (Host, Db, Work) {
    let host = Host::plain();
    let keeper = host.open(path);
    keeper.int("SELECT n FROM ledger");
    let work = host.work("ledger_reader", json!({"path": path, "pause": 0.0005}));
    (host, keeper, work)
}

fn told_of_snapshots(replica: &Db) -> bool {
    let told = "SELECT count(*) FROM litestream_log WHERE message LIKE '%receiving a snapshot%'";
    replica.int(told) > 0
}

fn pause_up_to(ms: u64) {
    // Not to wait for anything: the moment of the next blow is what is random here.
    std::thread::sleep(Duration::from_millis(Rng::new().below(ms)));
}

#[test]
fn a_killed_primary_goes_on_with_the_same_history() {
    let folder = Folder::new("kill-primary");
    let mut primary = Primary::new(&folder);
    let (_host, replica) = start_following(&folder.file("r.db"), &primary.url());
    let (_plain, _keeper, reads) = watch(&folder.file("r.db"));
    let (mut generation, snapshots) = (primary.generation(), primary.snapshots());
    let rounds = scaled(8, 60);
    let mut broken = Vec::new();
    for _ in 0..rounds {
        let load = primary.load();
        load.advance(200);
        pause_up_to(60);
        primary = primary.killed_and_restarted();
        if primary.generation() != generation {
            let told = primary.db.rows("SELECT message FROM litestream_log");
            broken
                .extend(told.into_iter().filter(|row| row.to_string().contains("new generation")));
            generation = primary.generation();
        }
    }
    // Killed within the instant between a restart of the WAL and our seeing it, nothing proves that
    // it was the only one. That is rare, and the only reason there may be.
    println!("new histories: {broken:?}");
    assert!(broken.len() <= 1 + rounds / 20, "{broken:?}");
    let known = |row: &Value| row.to_string().contains("restarted while nobody captured it");
    assert!(broken.iter().all(known), "{broken:?}");
    let load = primary.load();
    load.advance(200);
    load.finish();
    assert_same(&primary.db, &replica);
    let more = "continuity held: no snapshot was needed";
    assert!(!broken.is_empty() || primary.snapshots() == snapshots, "{more}");
    reads.finish();
}

#[test]
fn a_killed_follower_resumes_where_it_was() {
    let folder = Folder::new("kill-follower");
    let primary = Primary::new(&folder);
    let path = folder.file("r.db");
    let (mut host, first) = start_following(&path, &primary.url());
    assert!(told_of_snapshots(&first), "the first time it had none");
    let (_plain, _keeper, reads) = watch(&path);
    let load = primary.load();
    let mut replica = None;
    for _ in 0..scaled(6, 60) {
        load.advance(150);
        pause_up_to(60);
        host.kill();
        load.advance(50);
        let (next, db) = start_following(&path, &primary.url());
        assert!(!told_of_snapshots(&db), "it had a position to resume from");
        (host, replica) = (next, Some(db));
    }
    load.finish();
    assert_same(&primary.db, replica.as_ref().unwrap());
    reads.finish();
    host.kill();
}

#[test]
fn both_sides_killed_at_random_while_others_write_and_checkpoint() {
    let folder = Folder::new("kill-both");
    let mut primary = Primary::new(&folder);
    let path = folder.file("r.db");
    let (mut host, mut replica) = start_following(&path, &primary.url());
    // Neither side has anyone who keeps its WAL; readers open and close as they like.
    let plain = Host::plain();
    let reads = plain.work("ledger_reader", json!({"path": path, "pause": 0.001}));
    let load = json!({"path": primary.path, "pause": 0.0005, "size": 8000});
    let writer = plain.work("ledger_writer", load);
    let checkpoints = plain.work("checkpointer", json!({"path": primary.path, "pause": 0.05}));
    let mut rng = Rng::new();
    for _ in 0..scaled(8, 80) {
        writer.advance(100);
        pause_up_to(100);
        if rng.below(2) == 0 {
            primary = primary.killed_and_restarted();
        } else {
            host.kill();
            (host, replica) = start_following(&path, &primary.url());
        }
    }
    writer.finish();
    checkpoints.report();
    assert_same(&primary.db, &replica);
    reads.finish();
    host.kill();
}

#[test]
fn writes_nobody_captured_are_not_missed() {
    let folder = Folder::new("uncaptured");
    let mut primary = Primary::new(&folder);
    let (_host, replica) = start_following(&folder.file("r.db"), &primary.url());
    let (_plain, _keeper, reads) = watch(&folder.file("r.db"));
    let add = |rounds: u64| {
        let writer = Host::plain();
        // Open to its end, so that the load's own connection is not the last to close.
        let keeper = writer.open(folder.file("p.db"));
        keeper.int("SELECT n FROM ledger");
        let load =
            writer.work("ledger_writer", json!({"path": folder.file("p.db"), "limit": rounds}));
        until("the writer to end", || (load.count() == rounds).then_some(()));
        load.finish();
        writer.kill();
    };
    // A few commits into the same WAL: the chain of checksums proves it, the history goes on.
    let before = primary.generation();
    primary.host.kill();
    add(20);
    primary = Primary::again(primary.path, primary.address);
    assert_same(&primary.db, &replica);
    assert_eq!(primary.generation(), before);
    // So many that the WAL restarted on the way: nothing can be proved, a new history begins.
    primary.host.kill();
    add(3000);
    primary = Primary::again(primary.path, primary.address);
    assert_same(&primary.db, &replica);
    let second = primary.generation();
    assert_ne!(second, before);
    // The WAL gone altogether after an orderly end.
    assert_eq!(primary.db.int("SELECT litestream_stop()"), 1);
    primary.db.close();
    assert!(!folder.file("p.db-wal").exists());
    add(10);
    drop(primary.host);
    primary = Primary::again(primary.path, primary.address);
    assert_same(&primary.db, &replica);
    reads.finish();
}

/// The primary's files put back to an older state, as after a restored backup or a power loss,
/// while the followers are ahead, and the log beside it too if it was written in time.
#[test]
fn a_primary_that_went_back_in_time_takes_its_followers_along() {
    let folder = Folder::new("restored");
    let mut primary = Primary::new(&folder);
    let (_host, replica) = start_following(&folder.file("r.db"), &primary.url());
    let load = primary.load();
    load.advance(300);
    load.finish();
    // In its file, and with the log behind it nothing is copied back while we copy.
    primary.db.text("SELECT litestream_checkpoint('TRUNCATE')");
    let rounds = [(true, false), (false, false), (true, true), (false, true)];
    for (round, (logged, written)) in rounds.into_iter().enumerate() {
        primary.db.run("UPDATE ledger SET bytes = bytes").unwrap();
        primary.db.text("SELECT litestream_sync()");
        assert_same(&primary.db, &replica);
        let before = primary.generation();
        let old = copy_of(&primary.path, &folder);
        let insert = |id: usize| format!("INSERT INTO entry VALUES ({id}, x'aa')");
        let (gone, new) = (1_000_000 + 2 * round, 1_000_001 + 2 * round);
        primary.db.run(&insert(gone)).unwrap();
        assert_same(&primary.db, &replica);
        if logged {
            primary.db.text("SELECT litestream_sync()");
        }
        primary.host.kill();
        put_back(&old, &primary.path);
        if written {
            // Somebody goes on from there, so that the WAL is as long as the log, or longer.
            let plain = Host::plain();
            let db = plain.open(&primary.path);
            for id in [new, new + 1000] {
                db.run(&insert(id)).unwrap();
            }
            plain.kill();
            primary = Primary::again(primary.path, primary.address);
        } else {
            primary = Primary::again(primary.path, primary.address);
            primary.db.run(&insert(new)).unwrap();
        }
        // Positions of two histories cannot be told apart by their text, so the content decides.
        until("the replica to have the new history", || {
            let rows = format!("SELECT n FROM entry WHERE n IN ({gone}, {new})");
            (replica.rows(&rows) == [json!([new])]).then_some(())
        });
        assert_same(&primary.db, &replica);
        assert!(!logged || primary.generation() != before, "the log knew: a new history");
    }
}

/// The files of a database (not of its log), copied while nobody writes.
fn copy_of(path: &Path, folder: &Folder) -> PathBuf {
    let old = folder.file("old.db");
    for suffix in ["", "-wal"] {
        let from = format!("{}{suffix}", path.display());
        if Path::new(&from).exists() {
            fs::copy(from, format!("{}{suffix}", old.display())).unwrap();
        }
    }
    old
}

fn put_back(old: &Path, path: &Path) {
    for suffix in ["", "-wal", "-shm"] {
        let (from, to) =
            (format!("{}{suffix}", old.display()), format!("{}{suffix}", path.display()));
        let _ = fs::remove_file(&to);
        if Path::new(&from).exists() {
            fs::copy(from, to).unwrap();
        }
    }
}

/// What can happen to a replica while no follower runs. The name says what; the closure does it.
#[test]
fn a_replica_changed_behind_the_followers_back_is_put_right() {
    type Blow = fn(&Path, &Folder);
    let blows: [(&str, Blow); 7] = [
        ("a plain process wrote to it", |path, _| {
            let host = Host::plain();
            host.open(path).run("INSERT INTO entry VALUES (900000, x'00')").unwrap();
        }),
        ("a plain process wrote to it and closed it", |path, _| {
            let host = Host::plain();
            let db = host.open(path);
            db.script(
                "INSERT INTO entry VALUES (900001, x'00'); DELETE FROM entry WHERE n = 900001",
            );
            db.close();
        }),
        ("its WAL was copied back and removed", |path, _| {
            let host = Host::plain();
            let db = host.open(path);
            db.int("SELECT n FROM ledger");
            db.close();
        }),
        ("it was put back to an older state", |path, folder| {
            put_back(&folder.file("old.db"), path);
        }),
        ("its WAL was lost", |path, _| {
            for suffix in ["-wal", "-shm"] {
                let _ = fs::remove_file(format!("{}{suffix}", path.display()));
            }
        }),
        ("the folder beside it was removed", |path, _| {
            fs::remove_dir_all(format!("{}-litestream", path.display())).unwrap();
        }),
        ("its journal mode was changed and it was vacuumed", |path, _| {
            let host = Host::plain();
            let db = host.open(path);
            db.script("PRAGMA journal_mode = DELETE; DELETE FROM entry; VACUUM");
            db.close();
        }),
    ];
    let folder = Folder::new("tampered");
    let primary = Primary::new(&folder);
    let load = primary.load();
    load.advance(100);
    load.finish();
    let path = folder.file("r.db");
    let (mut host, mut replica) = start_following(&path, &primary.url());
    assert_same(&primary.db, &replica);
    copy_of(&path, &folder);
    for (what, blow) in blows {
        primary.db.run("UPDATE ledger SET bytes = bytes + 1").unwrap();
        catch_up(&primary.db, &replica);
        host.kill();
        blow(&path, &folder);
        println!("{what}");
        primary.db.run("UPDATE ledger SET bytes = bytes + 1").unwrap();
        host = Host::app();
        replica = host.open(&path);
        let again =
            format!("SELECT litestream_follow('{}', '{{\"overwrite\": true}}')", primary.url());
        replica.text(&again);
        assert_same(&primary.db, &replica);
    }
    host.kill();
}

#[test]
fn a_follower_killed_during_its_first_snapshot_starts_over() {
    let folder = Folder::new("bootstrap");
    let primary = Primary::new(&folder);
    primary.db.script(
        "CREATE TABLE bulk(n INTEGER PRIMARY KEY, pad BLOB);
         WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 20000)
         INSERT INTO bulk SELECT i, randomblob(1000) FROM n",
    );
    let path = folder.file("r.db");
    let now = format!("SELECT litestream_follow('{}', '{{\"wait_ms\": 0}}')", primary.url());
    for round in 0..scaled(8, 60) {
        let host = Host::app();
        let db = host.open(&path);
        db.run(&now).unwrap();
        pause_up_to(40 * (1 + round % 8));
        host.kill();
        // Whoever looks sees nothing (an empty file, or one that is no database yet), or
        // everything.
        let plain = Host::plain();
        let look = plain.open(&path);
        match look.run("SELECT count(*) FROM sqlite_schema WHERE name = 'bulk'") {
            Ok(tables) if tables[0][0] == 0 => {}
            Ok(_) => assert_eq!(look.int("SELECT count(*) FROM bulk"), 20_000),
            Err(error) => assert_eq!(error, "file is not a database"),
        }
    }
    let (_host, replica) = start_following(&path, &primary.url());
    assert_same(&primary.db, &replica);
}

#[test]
fn a_primary_killed_at_any_moment_of_its_start_starts_again() {
    let folder = Folder::new("start");
    let mut primary = Primary::new(&folder);
    let bulk = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 10000)
                INSERT INTO entry SELECT i + 1000000, randomblob(1000) FROM n";
    primary.db.run(bulk).unwrap();
    for _ in 0..scaled(6, 60) {
        primary.host.kill();
        // Sometimes with nothing left that proves continuity, so that a snapshot is to be made.
        if Rng::new().below(2) == 0 {
            let _ = fs::remove_file(format!("{}-litestream/generation", primary.path.display()));
        }
        let host = Host::app();
        let db = host.open(&primary.path);
        let _dies_with_its_host =
            db.send(&format!("SELECT litestream_serve('{}')", primary.address));
        pause_up_to(60);
        host.kill();
        primary = Primary::again(primary.path, primary.address);
        let (_other, replica) = start_following(&folder.file("r.db"), &primary.url());
        assert_same(&primary.db, &replica);
    }
}
