//! Equal is equal: no false alarm while everybody writes, checkpoints, shrinks and rebuilds.

use crate::common::*;
use crate::support::*;

const BANK: &str = "PRAGMA journal_mode = WAL";

/// Verifies so many times; all must be well.
fn rounds(pair: &Pair, rounds: u32) {
    for _ in 0..rounds {
        assert_eq!(pair.verify(), "ok");
    }
}

#[test]
fn writers_flat_out_and_checkpoints_of_every_mode() {
    let pair = Pair::new("verify-busy", BANK);
    let path = pair.primary_path();
    let host = Host::plain();
    let create = json!({"path": path, "create": true, "limit": 1});
    let made = host.work("bank_writer", create);
    until("the bank to be made", || (made.count() == 1).then_some(()));
    made.finish();
    let work = [
        host.work("bank_writer", json!({"path": path, "pause": scaled(0.002, 0.0)})),
        host.work("bank_writer", json!({"path": path, "spill": true, "pause": 0.004})),
        host.work("checkpointer", json!({"path": path})),
        pair.primary_host.work("steerer", json!({"path": path})),
        host.work("bank_reader", json!({"path": pair.replica_path()})),
    ];
    work[4].advance(1);
    rounds(&pair, scaled(12, 500));
    let wrote = work.into_iter().map(Work::report).collect::<Vec<_>>();
    assert!(wrote[0]["count"].as_u64().unwrap() > 0, "{wrote:?}");
    assert_same(&pair.primary, &pair.replica);
    rounds(&pair, 1);
}

#[test]
fn every_page_size_through_vacuum_and_shrinking() {
    for size in [512, 1024, 4096, 16384, 65536] {
        let script = format!("PRAGMA page_size = {size}; PRAGMA journal_mode = WAL; VACUUM");
        let pair = Pair::new("verify-shapes", &script);
        let check = |sql: &str| {
            pair.primary.script(sql);
            rounds(&pair, 1);
        };
        check("CREATE TABLE t(i INTEGER PRIMARY KEY, pad BLOB)");
        let fill = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 300)
                    INSERT INTO t(pad) SELECT randomblob(2000) FROM n";
        check(fill);
        check("DELETE FROM t WHERE i % 3 > 0");
        check("VACUUM");
        check(fill);
        check("PRAGMA auto_vacuum = INCREMENTAL; VACUUM");
        check("DELETE FROM t WHERE i % 5 > 0; PRAGMA incremental_vacuum(30)");
        check("SELECT litestream_checkpoint('TRUNCATE')");
        check("DROP TABLE t");
        check("CREATE TABLE t(i INTEGER PRIMARY KEY, pad BLOB)");
        check(fill);
    }
}

#[test]
fn a_replica_of_another_history_with_a_schema_version_of_its_own() {
    let pair = Pair::of_rows("verify-shift", 50);
    let version = |db: &Db| db.int("PRAGMA schema_version");
    pair.replica.int("SELECT litestream_stop('follow')");
    // Another database, of fewer changes to its schema, in its place.
    let host = Host::app();
    let other = host.open(pair.folder.file("other.db"));
    other.script("PRAGMA journal_mode = WAL; CREATE TABLE other(x)");
    let url = serve(&other);
    follow(&pair.replica, &url);
    assert_same_rows(&other, &pair.replica);
    assert!(version(&pair.replica) > version(&other), "its own version goes on");
    assert_eq!(pair.verify(), "ok");
    other.script("CREATE TABLE more(x); INSERT INTO other VALUES (1)");
    assert_eq!(pair.verify(), "ok");
}

fn assert_same_rows(primary: &Db, replica: &Db) {
    catch_up(primary, replica);
    let names = "SELECT group_concat(name) FROM sqlite_schema";
    assert_eq!(primary.text(names), replica.text(names));
}

#[test]
fn a_promoted_replica_is_verified_against_by_the_next() {
    let pair = Pair::of_rows("verify-promoted", 50);
    pair.replica.text("SELECT litestream_promote()");
    let url = serve(&pair.replica);
    let host = Host::app();
    let next = host.open(pair.folder.file("n.db"));
    follow(&next, &url);
    for round in 0..3 {
        pair.replica.script(&format!("UPDATE t SET pad = randomblob(3000) WHERE i % 3 = {round}"));
        assert_eq!(next.text(VERIFY), "ok");
    }
}

/// From now on the most memory a process has had is counted anew; what it has now, in KiB.
fn forget_peak_kib(host: &Host) -> u64 {
    std::fs::write(format!("/proc/{}/clear_refs", host.pid()), "5").unwrap();
    host.peak_kib()
}

/// Of a database several times larger than the memory it may take: what the copying took before
/// does not count, since the peaks begin anew.
#[test]
fn a_large_database_in_bounded_memory() {
    const GROWTH_KIB: u64 = 16 << 10;
    let mib = scaled(64, 300);
    let script = format!(
        "PRAGMA journal_mode = WAL; CREATE TABLE large(i, pad BLOB);
         WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < {mib})
         INSERT INTO large SELECT i, zeroblob(1048576) FROM n;
         CREATE TABLE ledger(n INTEGER NOT NULL, bytes INTEGER NOT NULL, keep INTEGER NOT NULL);
         INSERT INTO ledger VALUES (0, 0, 500);
         CREATE TABLE entry(n INTEGER PRIMARY KEY, pad BLOB NOT NULL);"
    );
    let pair = Pair::new("verify-large", &script);
    let hosts = [&pair.primary_host, &pair.replica_host];
    // Brings in what every verify needs, whatever the size: code, threads.
    assert_eq!(pair.verify(), "ok");
    let before = hosts.map(forget_peak_kib);
    assert_eq!(pair.verify(), "ok");
    for (host, before) in hosts.into_iter().zip(before) {
        let after = host.peak_kib();
        assert!(after < before + GROWTH_KIB, "from {before} to {after} KiB");
    }
    let size = pair.primary_path().metadata().unwrap().len() >> 10;
    assert!(size > 3 * GROWTH_KIB, "{size} KiB prove nothing");
    let host = Host::plain();
    let load = host.work("ledger_writer", json!({"path": pair.primary_path(), "pause": 0.0005}));
    rounds(&pair, 3);
    load.finish();
}
