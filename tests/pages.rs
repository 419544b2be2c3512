//! The shapes a database can have and take: page sizes, VACUUM, changes of schema, growing and
//! shrinking, transactions and snapshots larger than memory should ever hold.
#![allow(clippy::unwrap_used, clippy::panic)]

mod common;

use common::*;

/// A served database, a follower that is caught up, and what keeps both alive.
struct Pair {
    _hosts: (Host, Host, Host),
    primary: Db,
    replica: Db,
    /// A plain reader that had the replica open before there was anything in it.
    early: Db,
}

impl Pair {
    fn new(folder: &Folder, pragmas: &str) -> Pair {
        let hosts = (Host::app(), Host::app(), Host::plain());
        let early = hosts.2.open(folder.file("r.db"));
        assert_eq!(early.int("SELECT count(*) FROM sqlite_schema"), 0);
        let primary = hosts.0.open(folder.file("p.db"));
        primary.script(pragmas);
        primary.script("PRAGMA journal_mode = WAL; CREATE TABLE first(x)");
        let url = serve(&primary);
        let replica = hosts.1.open(folder.file("r.db"));
        follow(&replica, &url);
        Pair { _hosts: hosts, primary, replica, early }
    }

    /// Runs SQL on the primary; the replica must come to hold the same.
    fn both(&self, sql: &str) {
        self.primary.script(sql);
        assert_same(&self.primary, &self.replica);
        assert_eq!(self.early.content(), self.primary.content(), "the early reader");
    }
}

/// Everything that rewrites a database from the ground up, one after the other.
fn everything_that_changes_a_database(page_size: u32) {
    let folder = Folder::new("shape");
    let pair = Pair::new(&folder, &format!("PRAGMA page_size = {page_size}"));
    assert_same(&pair.primary, &pair.replica);
    assert_eq!(pair.replica.int("PRAGMA page_size"), i64::from(page_size));
    let fill = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 3000)
                INSERT INTO t(a, b) SELECT i, randomblob(i % 1500) FROM n;";
    pair.both(&format!("CREATE TABLE t(id INTEGER PRIMARY KEY, a, b); {fill}"));
    pair.both("CREATE INDEX t_a ON t(a); CREATE UNIQUE INDEX t_ab ON t(a, id)");
    pair.both(
        "ALTER TABLE t ADD COLUMN c TEXT DEFAULT 'new'; UPDATE t SET c = hex(b) WHERE id % 7 = 0",
    );
    pair.both(
        "CREATE VIEW v AS SELECT a FROM t; CREATE TRIGGER g AFTER DELETE ON t BEGIN \
               INSERT INTO first VALUES (old.id); END",
    );
    pair.both("DELETE FROM t WHERE id % 3 = 0");
    let before = pair.replica.int("PRAGMA page_count");
    pair.both("DELETE FROM t WHERE id > 100; VACUUM");
    let after = pair.replica.int("PRAGMA page_count");
    assert!(after < before / 2, "{before} pages became {after}");
    pair.both(&format!(
        "DROP VIEW v; ALTER TABLE t RENAME TO u; {}",
        fill.replace("INTO t", "INTO u")
    ));
    pair.both("PRAGMA user_version = 77; PRAGMA application_id = 88; ALTER TABLE u DROP COLUMN c");
    pair.both("PRAGMA auto_vacuum = FULL; VACUUM; DELETE FROM u WHERE id > 50");
    pair.both(
        "PRAGMA auto_vacuum = INCREMENTAL; VACUUM; DELETE FROM u; PRAGMA incremental_vacuum(1000)",
    );
    pair.both("DROP TABLE u; DROP TABLE first; VACUUM");
    assert_eq!(pair.replica.int("SELECT count(*) FROM sqlite_schema"), 0);
    pair.both(
        "CREATE TABLE again(x PRIMARY KEY) WITHOUT ROWID; INSERT INTO again VALUES (1), ('x')",
    );
    pair.both(
        "CREATE VIRTUAL TABLE words USING fts5(text); INSERT INTO words VALUES ('hello world')",
    );
    let found = pair.replica.int("SELECT count(*) FROM words WHERE words MATCH 'world'");
    assert_eq!(found, 1);
    drop(pair);
    assert_eq!(settled(&folder.file("p.db")), settled(&folder.file("r.db")), "byte for byte");
}

/// The bytes of a database after its WAL was copied back, without what a writer's own header
/// counts.
fn settled(path: &std::path::Path) -> Vec<u8> {
    let host = Host::plain();
    let db = host.open(path);
    let done = db.rows("PRAGMA wal_checkpoint(TRUNCATE)");
    assert_eq!(done[0][0], 0, "nobody else has it open");
    db.close();
    std::fs::read(path).unwrap()
}

#[test]
fn pages_of_512_bytes() {
    everything_that_changes_a_database(512);
}

#[test]
fn pages_of_4096_bytes() {
    everything_that_changes_a_database(4096);
}

#[test]
fn pages_of_65536_bytes() {
    everything_that_changes_a_database(65536);
}

#[test]
fn encodings_and_empty_databases() {
    let folder = Folder::new("utf16");
    let pair = Pair::new(&folder, "PRAGMA encoding = 'UTF-16le'");
    pair.both("CREATE TABLE t(x); INSERT INTO t VALUES ('h\u{e9}llo \u{1f600}')");
    assert_eq!(pair.replica.text("PRAGMA encoding"), "UTF-16le");
    // A file without a page in it is a database too.
    let empty = Folder::new("empty");
    let hosts = (Host::app(), Host::app());
    let primary = hosts.0.open(empty.file("p.db"));
    let url = serve(&primary);
    let replica = hosts.1.open(empty.file("r.db"));
    follow(&replica, &url);
    assert_same(&primary, &replica);
    primary.run("CREATE TABLE t(x)").unwrap();
    assert_same(&primary, &replica);
}

#[test]
fn a_page_size_changed_while_nobody_served() {
    let folder = Folder::new("resized");
    let hosts = (Host::app(), Host::app());
    let primary = hosts.0.open(folder.file("p.db"));
    primary.script("CREATE TABLE t(x); INSERT INTO t VALUES (randomblob(10000))");
    let address = format!("127.0.0.1:{}", free_port());
    let serve_at = format!("SELECT litestream_serve('{address}')");
    let url = primary.text(&serve_at);
    let replica = hosts.1.open(folder.file("r.db"));
    follow(&replica, &url);
    assert_same(&primary, &replica);
    assert_eq!(primary.int("SELECT litestream_stop()"), 1);
    primary.script("PRAGMA journal_mode = DELETE; PRAGMA page_size = 1024; VACUUM");
    assert_eq!(primary.int("PRAGMA page_size"), 1024);
    primary.text(&serve_at);
    // A replica's pages cannot change their size under its readers: it says so, and a new one
    // works.
    let error = until("the follower to say so", || {
        let error = replica.value("SELECT error FROM litestream_databases WHERE role = 'replica'");
        error.as_str().filter(|error| error.contains("page")).map(str::to_owned)
    });
    assert!(error.contains("1024"), "{error}");
    assert_eq!(replica.int("SELECT length(x) FROM t"), 10_000);
    let fresh = hosts.1.open(folder.file("fresh.db"));
    follow(&fresh, &url);
    assert_same(&primary, &fresh);
}

#[test]
fn a_transaction_of_100_megabytes() {
    let folder = Folder::new("huge");
    let pair = Pair::new(&folder, "");
    pair.primary.run("CREATE TABLE t(id INTEGER PRIMARY KEY, x)").unwrap();
    catch_up(&pair.primary, &pair.replica);
    let plain = Host::plain();
    let watcher = plain.open(folder.file("r.db"));
    let before = [pair._hosts.0.peak_kib(), pair._hosts.1.peak_kib()];
    let rows = scaled(25_000, 250_000);
    let insert = pair.primary.send(&format!(
        "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < {rows})
         INSERT INTO t SELECT i, randomblob(4000) FROM n"
    ));
    let mut seen = std::collections::BTreeSet::new();
    until("all of it to arrive", || {
        let count = watcher.int("SELECT count(*) FROM t");
        seen.insert(count);
        (count == rows).then_some(())
    });
    insert.outcome(DEADLINE).unwrap();
    assert_eq!(Vec::from_iter(seen), [0, rows], "all or nothing");
    let pos = catch_up(&pair.primary, &pair.replica);
    let sum = "SELECT sum(id) || ' ' || sum(length(x)) || ' ' || hex(max(x)) FROM t";
    assert_eq!(pair.primary.text(sum), pair.replica.text(sum), "at {pos}");
    assert_eq!(pair.replica.text("PRAGMA integrity_check"), "ok");
    let after = [pair._hosts.0.peak_kib(), pair._hosts.1.peak_kib()];
    for (side, (before, after)) in ["primary", "replica"].iter().zip(before.iter().zip(after)) {
        let grown = after - before;
        assert!(grown < 64 << 10, "the {side} took {grown} KiB more for one transaction");
    }
}

/// Every page of a large replica differs from its new upstream's: they change in one transaction,
/// which is not held in memory.
#[test]
fn a_large_replica_is_replaced_at_once_and_in_bounded_memory() {
    let folder = Folder::new("replaced");
    let maker = Host::plain();
    for name in ["p.db", "r.db"] {
        let db = maker.open(folder.file(name));
        db.script("PRAGMA synchronous = OFF; CREATE TABLE t(id INTEGER PRIMARY KEY, x)");
        db.run(
            "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 16000)
             INSERT INTO t(x) SELECT randomblob(4000) FROM n",
        )
        .unwrap();
        db.close();
    }
    let (host, other) = (Host::app(), Host::app());
    let primary = host.open(folder.file("p.db"));
    let replica = other.open(folder.file("r.db"));
    replica.run("PRAGMA journal_mode = WAL").unwrap();
    let watcher = maker.open(folder.file("r.db"));
    let sum = "SELECT hex(max(x)) || hex(min(x)) || count(*) FROM t";
    let before = [host.peak_kib(), other.peak_kib()];
    let states = [watcher.text(sum), primary.text(sum)];
    let url = serve(&primary);
    let follow =
        replica.send(&format!("SELECT litestream_follow('{url}', '{{\"overwrite\": true}}')"));
    until("the new content", || {
        let state = watcher.text(sum);
        assert!(states.contains(&state), "neither the old content nor the new");
        (state == states[1]).then_some(())
    });
    follow.outcome(DEADLINE).unwrap();
    let grown = [host.peak_kib() - before[0], other.peak_kib() - before[1]];
    assert!(grown.iter().all(|grown| *grown < 48 << 10), "KiB more on primary, replica: {grown:?}");
    catch_up(&primary, &replica);
    assert_eq!(replica.text(sum), states[1]);
    assert_eq!(replica.text("PRAGMA integrity_check"), "ok");
}

#[test]
fn a_first_snapshot_takes_bounded_memory_on_both_sides() {
    let folder = Folder::new("large");
    let megabytes: u64 = scaled(64, 1024);
    let maker = Host::plain();
    let db = maker.open(folder.file("p.db"));
    // One page a row, half of them noise, so that compressing helps a little.
    db.script("PRAGMA synchronous = OFF; CREATE TABLE t(id INTEGER PRIMARY KEY, x)");
    for _ in 0..megabytes / 16 {
        db.run(
            "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 4096)
             INSERT INTO t(x) SELECT randomblob(2000) || zeroblob(2000) FROM n",
        )
        .unwrap();
    }
    db.close();
    let size = std::fs::metadata(folder.file("p.db")).unwrap().len();
    assert!(size >= megabytes << 20, "{size} bytes");
    let (host, other) = (Host::app(), Host::app());
    let primary = host.open(folder.file("p.db"));
    let replica = other.open(folder.file("r.db"));
    let before = [host.peak_kib(), other.peak_kib()];
    let long = std::time::Duration::from_secs(scaled(60, 600));
    let url = primary.send("SELECT litestream_serve('127.0.0.1:0')").outcome(long).unwrap();
    let url = url[0][0].as_str().unwrap();
    let options = format!("'{{\"wait_ms\": {}}}'", long.as_millis());
    let follow = format!("SELECT litestream_follow('{url}', {options})");
    replica.send(&follow).outcome(long).unwrap();
    let grown = [host.peak_kib() - before[0], other.peak_kib() - before[1]];
    println!(
        "{megabytes} MiB: the primary took {} KiB more, the replica {} KiB",
        grown[0], grown[1]
    );
    assert!(grown.iter().all(|grown| *grown < 48 << 10), "KiB more on primary, replica: {grown:?}");
    catch_up(&primary, &replica);
    let sql = "SELECT count(*) || ' ' || sum(length(x)) || hex(max(x)) FROM t";
    let [ours, theirs] = [&primary, &replica].map(|db| db.send(sql).outcome(long).unwrap());
    assert_eq!(ours, theirs);
    let check = replica.send("PRAGMA integrity_check").outcome(long).unwrap();
    assert_eq!(check, json!([["ok"]]));
}
