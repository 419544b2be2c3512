//! The oldest SQLite that may host the extension, and the newest there is: each as host of a
//! primary and of a replica, with writers and readers of the other versions beside it; and what
//! hosts that are too old are told.
#![allow(clippy::unwrap_used, clippy::panic)]

mod common;

use std::collections::BTreeSet;
use std::sync::{Mutex, PoisonError};

use common::*;

/// Everybody who opens the database beside the host: never heard of the extension.
fn neighbours() -> Vec<Host> {
    let mut hosts = vec![Host::plain()];
    hosts.extend([oldest(), newest()].map(|module| Host::of(&module, false)));
    hosts
}

/// What a primary and its replica promise, whatever the two hosts.
fn keep_every_promise(host: &Host, other: &Host) {
    static TURN: Mutex<()> = Mutex::new(()); // six processes at a time are enough
    let _turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    let pause = scaled(0.02, 0.002);
    let folder = Folder::new("versions");
    let (path, copy) = (folder.file("p.db"), folder.file("r.db"));
    let db = host.open(&path);
    assert!(db.text("SELECT litestream_debug()").contains(host.version()));
    let inside = host.work("bank_writer", json!({"path": path, "create": true, "pause": pause}));
    inside.advance(1);
    let url = serve(&db);
    let replica = other.open(&copy);
    let begin = follow(&replica, &url);

    // Writers and readers of every version, and a host that checkpoints as it likes.
    let beside = neighbours();
    let writers: Vec<Work> = beside
        .iter()
        .map(|host| host.work("bank_writer", json!({"path": path, "pause": pause, "spill": true})))
        .collect();
    let read = json!({"path": copy, "mode": scaled("long", "reopen"), "hold": 0.1});
    let readers: Vec<Work> =
        beside.iter().map(|host| host.work("bank_reader", read.clone())).collect();
    let nuisance = host.work("checkpointer", json!({"path": path, "pause": 0.05}));
    for mode in ["PASSIVE", "FULL", "RESTART", "TRUNCATE"] {
        writers.iter().for_each(|writer| writer.advance(scaled(10, 400)));
        let said = db.text(&format!("SELECT litestream_checkpoint('{mode}')"));
        let said: Value = serde_json::from_str(&said).unwrap();
        assert_eq!(said.as_array().map(Vec::len), Some(3), "{mode}: {said}");
    }
    let pos = db.text("SELECT litestream_pos()");
    assert_eq!(replica.int(&format!("SELECT litestream_wait('{pos}', 55000)")), 1);
    assert_eq!(generation(&pos), generation(&begin), "one history");
    // A connection learns that the journal mode has changed when it next reads.
    db.int("SELECT n FROM tick");
    let pragma = db.rows("PRAGMA wal_checkpoint(TRUNCATE)");
    assert_eq!(pragma[0][0], 1, "served, so the application's own checkpoint is busy: {pragma:?}");
    writers.into_iter().chain([inside]).for_each(|work| drop(work.finish()));
    nuisance.finish();
    db.run("VACUUM").unwrap();
    assert_same(&db, &replica);
    for (work, host) in std::iter::zip(readers, &beside) {
        let report = work.finish();
        assert!(report["states"].as_u64().unwrap() > 3, "{}: {report}", host.version());
    }
    let everywhere: BTreeSet<String> =
        beside.iter().map(|host| host.open(&copy).content()).collect();
    assert_eq!(everywhere.len(), 1, "one file, one content, in every version");

    archive_and_restore(&folder, host, &db);
    assert_eq!(db.int("SELECT litestream_wait_followers(1, 20000)"), 1);
    let [last, end] = [&replica, &db].map(|db| db.text("SELECT litestream_pos()"));
    assert_eq!(last, end);
    assert_eq!(replica.text("SELECT litestream_promote()"), last);
    for host in &beside {
        host.open(&copy).run("UPDATE tick SET n = n + 1").unwrap();
    }
    assert!(db.int("SELECT litestream_stop()") >= 1);
    db.close();
    assert!(!folder.file("p.db-wal").exists(), "the last close takes the WAL away");
}

/// The log's tables, an archive, and the file that comes out of it.
fn archive_and_restore(folder: &Folder, host: &Host, db: &Db) {
    let archive = format!("file://{}", folder.file("archive").display());
    assert_eq!(db.text(&format!("SELECT litestream_replicate('{archive}')")), archive);
    db.text("SELECT litestream_snapshot()");
    db.run("UPDATE tick SET n = n + 1").unwrap();
    let pos = db.text("SELECT litestream_sync()");
    for replica in ["local", &archive] {
        for table in ["litestream_snapshots", "litestream_generations"] {
            let sql = format!("SELECT count(*) FROM {table} WHERE replica = '{replica}'");
            assert!(db.int(&sql) >= 1, "{sql}");
        }
    }
    let back = folder.file("back.db");
    let sql = format!("SELECT litestream_restore('{archive}', '{}')", back.display());
    let restored = host.open(":memory:").text(&sql);
    assert_eq!(restored, pos);
    assert_eq!(host.open_plain(&back).content(), db.content());
    assert_eq!(db.int("SELECT litestream_stop('replicate')"), 1);
}

#[test]
fn the_oldest_host_keeps_every_promise_beside_all_others() {
    let (host, other) = (Host::of(&oldest(), true), Host::of(&newest(), true));
    assert!(host.version().starts_with("3.35."), "{}", host.version());
    println!("{} followed by {}", host.version(), other.version());
    keep_every_promise(&host, &other);
}

#[test]
fn the_newest_host_keeps_every_promise_beside_all_others() {
    let (host, other) = (Host::of(&newest(), true), Host::of(&oldest(), true));
    println!("{} followed by {}", host.version(), other.version());
    keep_every_promise(&host, &other);
}

/// One more follower's host in one more version each: what the soak adds.
#[test]
fn the_systems_host_keeps_every_promise_beside_the_oldest() {
    let others = scaled(vec![oldest()], other_versions());
    for module in others {
        let (host, other) = (Host::app(), Host::of(&module, true));
        println!("{} followed by {}", host.version(), other.version());
        keep_every_promise(&host, &other);
    }
}

/// SQLite 3.33 says no, and says why; nothing of it stays behind.
#[test]
fn a_host_that_is_too_old_is_refused_and_goes_on() {
    const SCRIPT: &str = "
import sqlite3, sys
db = sqlite3.connect(':memory:')
db.enable_load_extension(True)
for _ in range(2):
    try:
        db.load_extension(sys.argv[1])
    except sqlite3.OperationalError as error:
        print(error)
print(db.execute('SELECT sqlite_version()').fetchone()[0])
print('liblitestream' in open('/proc/self/maps').read())
";
    let mut script = python_script(SCRIPT, &[&library()]);
    let said = said_by(script.env("LD_LIBRARY_PATH", sqlite_of("3.33.0").1));
    let lines: Vec<&str> = said.lines().collect();
    assert_eq!(lines.len(), 4, "{said}");
    for line in &lines[..2] {
        assert!(line.contains("the host is SQLite 3.33.0; 3.35.0 or newer is needed"), "{line}");
    }
    assert_eq!(lines[2..], ["3.33.0", "False"]);
}
