//! What every scenario does: serve, follow, catch up, compare.

use super::*;

/// Serves a database on a port of its own choice; the URL.
pub fn serve(primary: &Db) -> String {
    primary.text("SELECT litestream_serve('127.0.0.1:0')")
}

/// Makes `replica` follow; the position it had reached when the call returned.
pub fn follow(replica: &Db, url: &str) -> String {
    replica.text(&format!("SELECT litestream_follow('{url}')"))
}

/// Waits until the replica has everything committed on the primary. The position.
pub fn catch_up(primary: &Db, replica: &Db) -> String {
    let pos = primary.text("SELECT litestream_pos()");
    let reached = replica.int(&format!("SELECT litestream_wait('{pos}', 55000)"));
    assert_eq!(reached, 1, "the replica never reached {pos}");
    pos
}

/// Waits until the replica has everything, and compares all of it.
pub fn assert_same(primary: &Db, replica: &Db) -> String {
    let pos = catch_up(primary, replica);
    assert_eq!(primary.content(), replica.content(), "the replica differs at {pos}");
    assert_eq!(replica.text("PRAGMA integrity_check"), "ok");
    pos
}

/// How many snapshots the replicas of this host have begun to receive, as far as its log reaches.
pub fn snapshots_received(db: &Db) -> i64 {
    db.int("SELECT count(*) FROM litestream_log WHERE message LIKE '%receiving a snapshot%'")
}

/// The generation of a position's text.
pub fn generation(pos: &str) -> &str {
    pos.split_once('/').unwrap_or_else(|| panic!("{pos:?} is no position")).0
}

/// A process with a database of its own: the ledger. The host is to be kept.
pub fn ledger(path: impl AsRef<Path>) -> (Host, Db) {
    let host = Host::app();
    let db = host.open(path);
    make_ledger(&db);
    (host, db)
}

/// Makes the tables of the ledger (tests/py/work.py) in WAL mode.
pub fn make_ledger(db: &Db) {
    db.script(
        "PRAGMA journal_mode = WAL;
         CREATE TABLE ledger(n INTEGER NOT NULL, bytes INTEGER NOT NULL, keep INTEGER NOT NULL);
         INSERT INTO ledger VALUES (0, 0, 500);
         CREATE TABLE entry(n INTEGER PRIMARY KEY, pad BLOB NOT NULL);",
    );
}

/// One number of a server's `/metrics`, summed over its labels.
pub fn metric(url: &str, name: &str) -> f64 {
    let address = url.strip_prefix("http://").unwrap().split('/').next().unwrap();
    let mut stream = std::net::TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(DEADLINE)).unwrap();
    stream.write_all(b"GET /metrics HTTP/1.0\r\nHost: localhost\r\n\r\n").unwrap();
    let mut text = String::new();
    stream.read_to_string(&mut text).unwrap();
    let samples = text.lines().filter(|line| line.split(['{', ' ']).next() == Some(name));
    let values: Vec<f64> =
        samples.map(|line| line.rsplit(' ').next().unwrap().parse().unwrap()).collect();
    assert!(!values.is_empty(), "no {name} in {text}");
    values.iter().sum()
}

/// Many times what a WAL grows to between two restarts.
const WAL_BYTES_MAX: f64 = 1e9;

/// The WAL of what is served there has not grown for ever; else says what became of the gate.
pub fn assert_wal_starts_over(url: &str) {
    let size = metric(url, "litestream_wal_size");
    let gate = ["count", "overdue_count", "missed_count", "seconds_max", "last_seconds"]
        .map(|name| (name, metric(url, &format!("litestream_gate_{name}"))));
    let captured = ["shadow_wal_index", "shadow_wal_size", "checkpoint_count"]
        .map(|name| (name, metric(url, &format!("litestream_{name}"))));
    assert!(size < WAL_BYTES_MAX, "it has {size} bytes; gate: {gate:?}; {captured:?}");
}
