//! Everybody at once: writers inside and outside the host, checkpoints of every mode from all
//! sides, VACUUMs, and plain readers of several SQLite versions on the replica that check laws
//! which every transaction keeps. Not one wrong answer, not one error.
#![allow(clippy::unwrap_used, clippy::panic)]

mod common;

use std::time::{Duration, Instant};

use common::*;

/// How long a run lasts.
fn length() -> Duration {
    Duration::from_secs(scaled(8, 60))
}

/// Lets the load run for its time, or until one piece of it ended early.
fn run(writers: &[&Work]) {
    let end = Instant::now() + length();
    let mut last = 0;
    while Instant::now() < end {
        std::thread::sleep(Duration::from_millis(500));
        let count: u64 = writers.iter().map(|writer| writer.count()).sum();
        assert!(count > last, "the writers are stuck at {count} transfers");
        last = count;
    }
}

#[test]
fn money_is_never_made_or_lost_in_sight_of_a_replicas_readers() {
    let folder = Folder::new("bank");
    let (path, copy) = (folder.file("p.db"), folder.file("r.db"));
    let host = Host::app();
    let db = host.open(&path);
    let inside = host.work("bank_writer", json!({"path": path, "create": true, "pause": 0.0005}));
    inside.advance(1);
    let url = serve(&db);
    let other = Host::app();
    let replica = other.open(&copy);
    follow(&replica, &url);
    let outside = Host::plain();
    let spilling =
        outside.work("bank_writer", json!({"path": path, "pause": 0.002, "spill": true}));
    let nuisances = [
        host.work("checkpointer", json!({"path": path})),
        outside.work("checkpointer", json!({"path": path})),
        outside.work("checkpointer", json!({"path": copy, "pause": 0.05})),
        host.work("steerer", json!({"path": path})),
    ];
    let modes = ["tight", "reopen", "long", "mapped"];
    let readers = modes.map(|_| Host::plain());
    let reads: Vec<Work> = std::iter::zip(&readers, modes)
        .map(|(host, mode)| host.work("bank_reader", json!({"path": copy, "mode": mode})))
        .collect();
    // One more inside the follower's own process.
    let own = other.work("bank_reader", json!({"path": copy, "mode": "long"}));
    run(&[&inside, &spilling]);
    inside.finish();
    spilling.finish();
    assert_same(&db, &replica);
    for (work, mode) in reads.into_iter().chain([own]).zip([modes.as_slice(), &["own"]].concat()) {
        let report = work.finish();
        println!("{mode}: {} reads of {} states", report["count"], report["states"]);
        assert!(
            report["states"].as_u64().unwrap() > 5,
            "{mode}: the replica hardly moved: {report}"
        );
        let slowest = report["slowest"].as_f64().unwrap();
        assert!(slowest < 3.0, "{mode}: one read took {slowest} s");
    }
    let counts: Vec<Value> = nuisances.into_iter().map(Work::finish).collect();
    println!("checkpoints: {counts:?}");
    assert_eq!(replica.int("SELECT sum(balance) FROM accounts"), 100_000);
}

/// Readers that brought their own SQLite, newer and older than the follower's, and a VACUUM now and
/// then.
#[test]
fn readers_of_every_sqlite_version_see_only_whole_transactions() {
    let folder = Folder::new("versions");
    let (path, copy) = (folder.file("p.db"), folder.file("r.db"));
    let host = Host::app();
    let db = host.open(&path);
    let writer = host.work("bank_writer", json!({"path": path, "create": true, "pause": 0.001}));
    writer.advance(1);
    let url = serve(&db);
    let other = Host::app();
    let replica = other.open(&copy);
    follow(&replica, &url);
    let readers: Vec<Host> =
        other_versions().iter().map(|module| Host::of(module, false)).collect();
    let versions: Vec<&str> = readers.iter().map(Host::version).collect();
    let distinct: std::collections::BTreeSet<_> =
        versions.iter().copied().chain([host.version()]).collect();
    assert!(distinct.len() >= 4, "three versions besides the follower's own: {distinct:?}");
    let modes = ["tight", "long", "reopen"].into_iter().cycle();
    let reads: Vec<Work> = std::iter::zip(&readers, modes)
        .map(|(host, mode)| host.work("bank_reader", json!({"path": copy, "mode": mode})))
        .collect();
    let busy = host.open(&path);
    busy.run("PRAGMA busy_timeout = 20000").unwrap();
    let end = Instant::now() + length() * 3 / 4;
    while Instant::now() < end {
        writer.advance(100);
        busy.run("VACUUM").unwrap();
    }
    writer.finish();
    assert_same(&db, &replica);
    for (work, version) in reads.into_iter().zip(versions) {
        let report = work.finish();
        println!("{version}: {} reads of {} states", report["count"], report["states"]);
        assert!(report["states"].as_u64().unwrap() > 5, "{version}: {report}");
    }
}

/// The extension hosted by each of the other versions, as primary and as follower.
#[test]
fn every_sqlite_version_can_be_primary_and_follower() {
    let folder = Folder::new("hosts");
    let modules = other_versions();
    let next = modules.iter().cycle().skip(1);
    for (number, (one, two)) in std::iter::zip(&modules, next).enumerate() {
        let (host, other) = (Host::of(one, true), Host::of(two, true));
        println!("{} followed by {}", host.version(), other.version());
        let path = folder.file(&format!("p{number}.db"));
        let db = host.open(&path);
        make_ledger(&db);
        let url = serve(&db);
        let replica = other.open(folder.file(&format!("r{number}.db")));
        follow(&replica, &url);
        let load = host.work("ledger_writer", json!({"path": path, "size": 20_000, "limit": 1500}));
        until("the writer to end", || (load.count() == 1500).then_some(()));
        load.finish();
        db.run("VACUUM").unwrap();
        assert_same(&db, &replica);
        replica.text("SELECT litestream_promote()");
        replica.run("CREATE TABLE mine(x)").unwrap();
        assert_eq!(db.int("SELECT litestream_stop()"), 1);
    }
}

/// Functions called from many connections at once, while everything is started and stopped.
#[test]
fn starting_and_stopping_from_all_sides_at_once() {
    let folder = Folder::new("race");
    let path = folder.file("p.db");
    let (host, first) = ledger(&path);
    let address = format!("127.0.0.1:{}", free_port());
    let connections: Vec<Db> = (0..6).map(|_| host.open(&path)).collect();
    let mut rng = Rng::new();
    let writer = host.work("ledger_writer", json!({"path": path, "pause": 0.001}));
    for _ in 0..scaled(15, 150) {
        let calls: Vec<Pending> = connections
            .iter()
            .map(|db| {
                db.send(&match rng.below(6) {
                    0..3 => format!("SELECT litestream_serve('{address}')"),
                    3 => "SELECT litestream_stop()".to_owned(),
                    4 => "SELECT litestream_pos(), litestream_sync()".to_owned(),
                    _ => {
                        "SELECT count(*) FROM litestream_databases, litestream_snapshots".to_owned()
                    }
                })
            })
            .collect();
        for call in calls {
            if let Err(error) = call.outcome(DEADLINE) {
                let known =
                    ["not served", "stop", "not running", "is locked", "in use", "no generation"];
                assert!(known.iter().any(|known| error.contains(known)), "{error}");
            }
        }
    }
    let url = first.text(&format!("SELECT litestream_serve('{address}')"));
    let other = Host::app();
    let replica = other.open(folder.file("r.db"));
    follow(&replica, &url);
    writer.finish();
    assert_same(&first, &replica);
    assert!(host.quit().success());
}

/// An application's TRUNCATE waits for readers, and every writer for it. Serving that begins then
/// is not one more to wait for.
#[test]
fn serving_begins_behind_a_checkpoint_of_the_application() {
    let folder = Folder::new("behind");
    let path = folder.file("p.db");
    let plain = Host::plain();
    let open = |busy_ms| {
        let db = plain.open(&path);
        db.script(&format!("PRAGMA busy_timeout = {busy_ms}"));
        db
    };
    let (writer, reader, truncating) = (open(0), open(0), open(60_000));
    make_ledger(&writer);
    reader.run("BEGIN").unwrap();
    reader.int("SELECT n FROM ledger");
    writer.script("UPDATE ledger SET keep = keep + 1");
    let truncated = truncating.send("PRAGMA wal_checkpoint(TRUNCATE)");
    until("the checkpoint to have the writers behind it", || {
        writer.run("UPDATE ledger SET keep = keep + 1").err().map(|_| ())
    });
    let app = Host::app();
    let (db, look) = (app.open(&path), app.open(":memory:"));
    let serving = db.send("SELECT litestream_serve('127.0.0.1:0')");
    until("serving to begin", || {
        let state = "SELECT count(*) FROM litestream_databases WHERE state = 'starting'";
        (look.int(state) == 1).then_some(())
    });
    reader.run("COMMIT").unwrap();
    writer.script("PRAGMA busy_timeout = 5000; UPDATE ledger SET keep = keep + 1");
    assert_eq!(truncated.outcome(DEADLINE).unwrap(), json!([[0, 0, 0]]));
    let url = serving.outcome(DEADLINE).unwrap()[0][0].as_str().unwrap().to_owned();
    let other = Host::app();
    let replica = other.open(folder.file("r.db"));
    follow(&replica, &url);
    assert_same(&db, &replica);
}
