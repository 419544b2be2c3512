//! A primary, its followers and the plain readers beside them: what a user is promised when nothing
//! goes wrong.
#![allow(clippy::unwrap_used, clippy::panic)]

mod common;

use std::time::{Duration, Instant};

use common::*;

/// A follower in a process of its own, caught up when this returns.
fn follower(folder: &Folder, name: &str, url: &str) -> (Host, Db) {
    let host = Host::app();
    let db = host.open(folder.file(name));
    follow(&db, url);
    (host, db)
}

#[test]
fn a_late_joiner_gets_everything_and_stays_current() {
    let folder = Folder::new("late");
    let (host, db) = ledger(folder.file("p.db"));
    let url = serve(&db);
    let load = json!({"path": folder.file("p.db"), "pause": scaled(0.0005, 0.0)});
    let writer = host.work("ledger_writer", load);
    writer.advance(2000);
    let (_second, replica) = follower(&folder, "r.db", &url);
    let joined = replica.int("SELECT n FROM ledger");
    assert!(joined >= 2000, "follow returned before the replica had row {joined}");
    writer.advance(500);
    let report = writer.finish();
    assert_same(&db, &replica);
    assert_eq!(report["n"], replica.value("SELECT n FROM ledger"));
}

#[test]
fn two_followers_are_equal_and_say_how_far_they_are() {
    let folder = Folder::new("two");
    let (host, db) = ledger(folder.file("p.db"));
    let url = serve(&db);
    let writer = host.work("ledger_writer", json!({"path": folder.file("p.db"), "pause": 0.0005}));
    let (_one, first) = follower(&folder, "a.db", &url);
    let (_two, second) = follower(&folder, "b.db", &url);
    writer.advance(1500);
    writer.finish();
    assert_same(&db, &first);
    assert_same(&db, &second);
    assert_eq!(db.int("SELECT litestream_wait_followers(2, 20000)"), 2);
    assert_eq!(db.int("SELECT count(*) FROM litestream_followers"), 2);
    let applied = "SELECT count(*) FROM litestream_followers WHERE applied_pos = litestream_pos()";
    until("both followers to report the end", || (db.int(applied) == 2).then_some(()));
    assert_eq!(db.int("SELECT litestream_wait_followers(3, 50)"), 2, "there is no third follower");
}

#[test]
fn the_wal_restarts_under_load_and_nobody_notices() {
    let folder = Folder::new("restarts");
    let (host, db) = ledger(folder.file("p.db"));
    let url = serve(&db);
    let (other, replica) = follower(&folder, "r.db", &url);
    let before = db.text("SELECT litestream_pos()");
    let reader = Host::plain();
    let reads = reader.work("ledger_reader", json!({"path": folder.file("r.db")}));
    // Small and large commits from inside and outside; flat out only for the optimised build of a
    // soak.
    let pauses = scaled((0.004, 0.001), (0.0, 0.0));
    let load = json!({"path": folder.file("p.db"), "pause": pauses.0, "size": 30_000});
    let large = host.work("ledger_writer", load);
    let plain = Host::plain();
    let load = json!({"path": folder.file("p.db"), "pause": pauses.1});
    let small = plain.work("ledger_writer", load);
    let index = |pos: &str| u64::from_str_radix(&pos[17..33], 16).unwrap();
    let written = |from: f64| metric(&url, "litestream_total_wal_bytes") - from;
    let begin = metric(&url, "litestream_total_wal_bytes");
    let enough = f64::from(scaled(96 << 20, 1 << 30));
    // A WAL that starts over gets new salts, in bytes 16 to 24 of its header.
    let mut salts = std::collections::BTreeSet::new();
    until("enough to be written, and both WALs to start over meanwhile", || {
        let mut header = [0; 32];
        let wal = std::fs::File::open(folder.file("r.db-wal"));
        if wal.is_ok_and(|mut wal| std::io::Read::read_exact(&mut wal, &mut header).is_ok()) {
            salts.insert(header[16..24].to_vec());
        }
        let restarts = index(&db.text("SELECT litestream_pos()")) - index(&before);
        (written(begin) >= enough && restarts >= 4 && salts.len() >= 3).then_some(())
    });
    small.finish();
    large.finish();
    let pos = assert_same(&db, &replica);
    assert_eq!(generation(&pos), generation(&before), "one history");
    reads.finish();
    // Neither WAL grows with what is written. How soon it starts over is a matter of how fast the
    // machine is: nothing to ask of an unoptimised build.
    for name in ["p.db-wal", "r.db-wal"] {
        let size = std::fs::metadata(folder.file(name)).unwrap().len() as f64;
        println!("{name} has grown to {size} bytes");
        assert!(!soak() || size < written(begin) / 4.0, "{name}: {size}");
    }
    drop(other);
}

#[test]
fn a_commit_is_readable_on_the_replica_once_its_position_is() {
    let folder = Folder::new("own-writes");
    let (_host, db) = ledger(folder.file("p.db"));
    let url = serve(&db);
    let (_other, replica) = follower(&folder, "r.db", &url);
    let plain = Host::plain();
    let reader = plain.open(folder.file("r.db"));
    db.script("PRAGMA synchronous = NORMAL; CREATE TABLE t(n INTEGER PRIMARY KEY)");
    for number in 1..=1000 {
        db.run(&format!("INSERT INTO t VALUES ({number})")).unwrap();
        let pos = db.text("SELECT litestream_pos()");
        assert_eq!(replica.int(&format!("SELECT litestream_wait('{pos}', 20000)")), 1);
        let own = replica.int("SELECT max(n) FROM t");
        let others = reader.int("SELECT max(n) FROM t");
        assert_eq!((own, others), (number, number), "row {number} is not there at {pos}");
    }
    // Any process that loads the extension can wait, not only the one that follows.
    let third = Host::app();
    let elsewhere = third.open(folder.file("r.db"));
    for number in 1001..=1050 {
        db.run(&format!("INSERT INTO t VALUES ({number})")).unwrap();
        let pos = db.text("SELECT litestream_pos()");
        assert_eq!(elsewhere.int(&format!("SELECT litestream_wait('{pos}', 20000)")), 1);
        assert_eq!(elsewhere.int("SELECT max(n) FROM t"), number);
    }
    // What was not committed has no position to wait for.
    let pos = db.text("SELECT litestream_pos()");
    let (head, tail) = pos.split_at(pos.len() - 16);
    let later = u64::from_str_radix(tail, 16).unwrap() + 4120;
    let begin = Instant::now();
    let wait = format!("SELECT litestream_wait('{head}{later:016x}', 300)");
    assert_eq!(replica.int(&wait), 0);
    assert!(begin.elapsed() >= Duration::from_millis(290), "gave up after {:?}", begin.elapsed());
}

#[test]
fn a_commit_can_wait_until_a_follower_has_it() {
    let folder = Folder::new("semi-sync");
    let (_host, db) = ledger(folder.file("p.db"));
    let url = serve(&db);
    assert_eq!(db.int("SELECT litestream_wait_followers(1, 50)"), 0, "nobody follows yet");
    let (_other, _replica) = follower(&folder, "r.db", &url);
    let plain = Host::plain();
    let reader = plain.open(folder.file("r.db"));
    db.script("PRAGMA synchronous = NORMAL; CREATE TABLE t(n INTEGER PRIMARY KEY)");
    for number in 1..=200 {
        db.run(&format!("INSERT INTO t VALUES ({number})")).unwrap();
        assert_eq!(db.int("SELECT litestream_wait_followers(1, 20000)"), 1);
        assert_eq!(reader.int("SELECT max(n) FROM t"), number);
    }
}

/// The primary dies; one replica is promoted and serves, the other follows it.
#[test]
fn failing_over_to_a_replica() {
    let folder = Folder::new("failover");
    let (host, db) = ledger(folder.file("p.db"));
    let url = serve(&db);
    let (_one, first) = follower(&folder, "a.db", &url);
    let (_two, second) = follower(&folder, "b.db", &url);
    let plain = Host::plain();
    let reads = plain.work("ledger_reader", json!({"path": folder.file("b.db")}));
    let load = json!({"path": folder.file("p.db"), "pause": 0.0005});
    let writer = host.work("ledger_writer", load);
    writer.advance(300);
    host.kill();
    // The one that is further ahead is promoted.
    let ahead = |a: &Db, b: &Db| a.int("SELECT n FROM ledger") >= b.int("SELECT n FROM ledger");
    let (heir, rest, path) =
        if ahead(&first, &second) { (first, second, "a.db") } else { (second, first, "b.db") };
    heir.text("SELECT litestream_promote()");
    let new_url = serve(&heir);
    assert_eq!(rest.int("SELECT litestream_stop('follow')"), 1);
    follow(&rest, &new_url);
    let load = json!({"path": folder.file(path), "pause": 0.0005});
    let writer = plain.work("ledger_writer", load);
    writer.advance(300);
    writer.finish();
    assert_same(&heir, &rest);
    reads.finish();
}

#[test]
fn rolled_back_and_open_transactions_stay_at_home() {
    let folder = Folder::new("rollback");
    let (_host, db) = ledger(folder.file("p.db"));
    let url = serve(&db);
    let (_other, replica) = follower(&folder, "r.db", &url);
    // With room for a few pages only, SQLite writes those of an open transaction to the WAL.
    db.script("PRAGMA cache_size = 3; CREATE TABLE t(x); BEGIN");
    let many = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 2000)
                INSERT INTO t SELECT randomblob(1000) FROM n";
    db.run(many).unwrap();
    let wal = std::fs::metadata(folder.file("p.db-wal")).unwrap().len();
    assert!(wal > 1 << 20, "the open transaction is in the WAL: {wal} bytes");
    let pos = db.text("SELECT litestream_pos()");
    assert_eq!(replica.int(&format!("SELECT litestream_wait('{pos}', 20000)")), 1);
    assert_eq!(replica.int("SELECT count(*) FROM t"), 0);
    db.run("ROLLBACK").unwrap();
    db.run("INSERT INTO t VALUES ('kept')").unwrap();
    assert_same(&db, &replica);
    assert_eq!(replica.rows("SELECT x FROM t"), [json!(["kept"])]);
}

#[test]
fn writers_without_the_extension_are_followed_too() {
    let folder = Folder::new("foreign-writer");
    let (_host, db) = ledger(folder.file("p.db"));
    let url = serve(&db);
    let (_other, replica) = follower(&folder, "r.db", &url);
    let plain = Host::plain();
    let load = json!({"path": folder.file("p.db"), "limit": 700});
    let one = plain.work("ledger_writer", load.clone());
    let two = plain.work("ledger_writer", load);
    until("both writers to end", || (one.count() + two.count() == 1400).then_some(()));
    one.finish();
    two.finish();
    assert_same(&db, &replica);
    assert_eq!(replica.int("SELECT n FROM ledger"), 1400);
}

#[test]
fn the_connection_that_began_it_may_close() {
    let folder = Folder::new("closed");
    let (host, db) = ledger(folder.file("p.db"));
    let url = serve(&db);
    assert_eq!(serve(&db), url, "serving again with the same arguments changes nothing");
    db.close();
    let (other, replica) = follower(&folder, "r.db", &url);
    replica.close();
    let again = host.open(folder.file("p.db"));
    let replica = other.open(folder.file("r.db"));
    again.run("INSERT INTO entry VALUES (1, x'00')").unwrap();
    assert_same(&again, &replica);
}

#[test]
fn a_database_in_another_journal_mode_is_switched() {
    let folder = Folder::new("journal");
    let host = Host::app();
    let db = host.open(folder.file("p.db"));
    assert_eq!(db.text("PRAGMA journal_mode"), "delete");
    db.script("CREATE TABLE t(x); INSERT INTO t VALUES (1)");
    let url = serve(&db);
    // The pragma tells what this connection saw when it last read.
    assert_eq!(db.int("SELECT x FROM t"), 1);
    assert_eq!(db.text("PRAGMA journal_mode"), "wal");
    let (_other, replica) = follower(&folder, "r.db", &url);
    assert_same(&db, &replica);
    // While it is served, nobody can take it out of WAL mode.
    let refused = db.run("PRAGMA journal_mode = DELETE");
    let still = refused.map_or("wal".into(), |rows| rows[0][0].clone());
    assert_eq!(still, "wal");
    db.run("INSERT INTO t VALUES (2)").unwrap();
    assert_same(&db, &replica);
}

#[test]
fn two_databases_share_one_server() {
    let folder = Folder::new("shared");
    let host = Host::app();
    let address = format!("127.0.0.1:{}", free_port());
    let serve_at = format!("SELECT litestream_serve('{address}')");
    let [one, two] = ["one.db", "two.db"].map(|name| {
        let db = host.open(folder.file(name));
        db.script(&format!("CREATE TABLE t(x); INSERT INTO t VALUES ('{name}')"));
        db
    });
    let urls = [one.text(&serve_at), two.text(&serve_at)];
    assert!(urls.iter().all(|url| url.contains(&address)), "{urls:?}");
    let other = Host::app();
    for (name, db) in [("one.db", &one), ("two.db", &two)] {
        let replica = other.open(folder.file(&format!("r-{name}")));
        follow(&replica, &format!("http://{address}/?path={name}"));
        assert_eq!(replica.text("SELECT x FROM t"), name);
        assert_same(db, &replica);
    }
    let third = other.open(folder.file("third.db"));
    let error = third.fails(&format!("SELECT litestream_follow('http://{address}/')"));
    assert!(error.starts_with("litestream_follow: ") && error.contains("path"), "{error}");
    assert_eq!(one.int("SELECT litestream_stop()"), 1);
    two.run("INSERT INTO t VALUES ('more')").unwrap();
    let replica = other.open(folder.file("r-two.db"));
    assert_same(&two, &replica);
}

#[test]
fn a_replica_is_read_only_for_everybody_until_promoted() {
    let folder = Folder::new("read-only");
    let (host, db) = ledger(folder.file("p.db"));
    db.run("INSERT INTO entry VALUES (1, x'00')").unwrap();
    let url = serve(&db);
    let (other, replica) = follower(&folder, "r.db", &url);
    let plain = Host::plain();
    let brief = json!({"timeout": 0.05});
    let inside = other.try_open(folder.file("r.db"), brief.clone()).unwrap();
    let outside = plain.try_open(folder.file("r.db"), brief).unwrap();
    for db in [&inside, &outside] {
        for sql in [
            "INSERT INTO entry VALUES (2, x'00')",
            "UPDATE ledger SET n = 7",
            "DELETE FROM entry",
            "CREATE TABLE mine(x)",
            "PRAGMA user_version = 3",
            "BEGIN IMMEDIATE",
            "VACUUM",
        ] {
            assert!(db.fails(sql).contains("locked"), "{sql}");
        }
        let mode = db.run("PRAGMA journal_mode = DELETE");
        assert!(mode.map_or(true, |rows| rows[0][0] == "wal"));
        let _busy_or_not = db.run("PRAGMA wal_checkpoint(TRUNCATE)");
    }
    db.run("INSERT INTO entry VALUES (5, x'05')").unwrap();
    assert_same(&db, &replica);
    let last = replica.text("SELECT litestream_promote()");
    assert_eq!(last, db.text("SELECT litestream_pos()"));
    for db in [&inside, &outside] {
        db.run("INSERT INTO entry VALUES (NULL, x'01')").unwrap();
    }
    assert_eq!(outside.int("SELECT count(*) FROM entry"), 4);
    // Once promoted it follows nothing: the primary's next commits do not reach it.
    assert_eq!(replica.value("SELECT litestream_lag()"), Value::Null);
    assert_eq!(replica.int("SELECT count(*) FROM litestream_databases WHERE role = 'replica'"), 0);
    // The old primary may now follow the new one, if its content may go.
    let address = serve(&replica);
    assert!(db.int("SELECT litestream_stop()") >= 1);
    let error = db.fails(&format!("SELECT litestream_follow('{address}')"));
    assert!(error.contains("overwrite"), "{error}");
    db.text(&format!("SELECT litestream_follow('{address}', '{{\"overwrite\": true}}')"));
    assert_same(&replica, &db);
    drop(host);
}

#[test]
fn a_database_with_content_of_its_own_is_not_overwritten_by_accident() {
    let folder = Folder::new("overwrite");
    let (_host, db) = ledger(folder.file("p.db"));
    let url = serve(&db);
    let other = Host::app();
    let replica = other.open(folder.file("mine.db"));
    replica.script("CREATE TABLE precious(x); INSERT INTO precious VALUES ('gold')");
    let error = replica.fails(&format!("SELECT litestream_follow('{url}')"));
    assert!(error.starts_with("litestream_follow: ") && error.contains("overwrite"), "{error}");
    assert_eq!(replica.text("SELECT x FROM precious"), "gold");
    replica.run("INSERT INTO precious VALUES ('silver')").unwrap();
    replica.text(&format!("SELECT litestream_follow('{url}', '{{\"overwrite\": true}}')"));
    assert_same(&db, &replica);
    assert_eq!(replica.int("SELECT count(*) FROM sqlite_schema WHERE name = 'precious'"), 0);
}

#[test]
fn stopping_ends_the_work_and_frees_the_file() {
    let folder = Folder::new("stop");
    let (_host, db) = ledger(folder.file("p.db"));
    let url = serve(&db);
    let (_other, replica) = follower(&folder, "r.db", &url);
    assert_eq!(replica.int("SELECT litestream_stop('serve')"), 0);
    assert_eq!(replica.int("SELECT litestream_stop('follow')"), 1);
    assert_eq!(replica.int("SELECT litestream_stop()"), 0);
    replica.run("CREATE TABLE mine(x)").unwrap();
    assert_eq!(db.int("SELECT litestream_stop()"), 1);
    assert_eq!(db.int("SELECT count(*) FROM litestream_databases"), 0);
    let error = replica.fails(&format!(
        "SELECT litestream_follow('{url}', '{{\"overwrite\": true, \"wait_ms\": 300}}')"
    ));
    assert!(error.starts_with("litestream_follow: "), "{error}");
    // The primary's WAL is its own again: the last connection's close can remove it.
    let path = folder.file("p.db-wal");
    db.close();
    assert!(!path.exists(), "somebody still holds the database");
}

#[test]
fn a_standby_takes_over_serving_when_the_first_is_killed() {
    let folder = Folder::new("standby");
    let (first, db) = ledger(folder.file("p.db"));
    let address = format!("127.0.0.1:{}", free_port());
    let serve_at = format!("SELECT litestream_serve('{address}')");
    let url = db.text(&serve_at);
    let before = db.text("SELECT litestream_pos()");
    let standby = || {
        let host = Host::app();
        let db = host.open(folder.file("p.db"));
        assert_eq!(db.text(&serve_at), url);
        let state = db.text("SELECT state FROM litestream_databases");
        assert_eq!(state, "standby");
        (host, db)
    };
    let (second, successor) = standby();
    let (_third, last) = standby();
    let (_other, replica) = follower(&folder, "r.db", &url);
    let plain = Host::plain();
    let reads = plain.work("ledger_reader", json!({"path": folder.file("r.db")}));
    // Nobody writes: whoever takes over continues the same history.
    first.kill();
    let heir = until("one of them to take over", || {
        [&successor, &last]
            .into_iter()
            .position(|db| db.text("SELECT state FROM litestream_databases") == "running")
    });
    let (heir, rest) = if heir == 0 { (second, last) } else { (_third, successor) };
    // In the midst of writes that restart the WAL: a new history perhaps, but nothing is lost.
    let load = json!({"path": folder.file("p.db"), "pause": 0.0005});
    let writer = plain.work("ledger_writer", load);
    until("the replica to follow again", || {
        (replica.int("SELECT n FROM ledger") > 300).then_some(())
    });
    let continued = replica.text("SELECT litestream_pos()");
    assert_eq!(generation(&continued), generation(&before));
    heir.kill();
    let n = plain.open(folder.file("p.db")).int("SELECT n FROM ledger");
    until("the last one to bring the replica up to date", || {
        (replica.int("SELECT n FROM ledger") > n).then_some(())
    });
    writer.advance(300);
    writer.finish();
    assert_same(&rest, &replica);
    reads.finish();
}
