//! A hundred databases served by one process.

use super::*;

const DATABASES: usize = 100;
/// How many of them are followed.
const FOLLOWED: usize = 10;

/// What docs/limits.md says of a served database.
const THREADS_EACH: u64 = 2;
const DESCRIPTORS_EACH: u64 = 8;
const WAKEUPS_EACH: u64 = 3;
const KIB_EACH: u64 = 1024;
/// Of a server: its own threads and those of tiny_http; its sockets.
const THREADS_OF_SERVER: u64 = 8;
const DESCRIPTORS_OF_SERVER: u64 = 16;

fn open_all(host: &Host, folder: &Folder, name: &str, count: usize) -> Vec<Db> {
    (0..count).map(|at| host.open(folder.file(&format!("{name}{at}.db")))).collect()
}

#[test]
fn a_hundred_databases_are_served_by_one_process_within_the_stated_costs() {
    let folder = Folder::new("databases");
    let host = Host::app();
    let dbs = open_all(&host, &folder, "p", DATABASES);
    for (at, db) in dbs.iter().enumerate() {
        db.script(&format!(
            "PRAGMA journal_mode = WAL; CREATE TABLE t(x); INSERT INTO t VALUES({at})"
        ));
    }
    let before = usage(&host);
    let urls = run_all(&dbs, |_| "SELECT litestream_serve('127.0.0.1:0')".to_owned());
    assert!(urls.iter().all(|url| *url == urls[0]), "one server for all: {urls:?}");
    let served = usage(&host);
    let many = DATABASES as u64;
    let threads = served.threads - before.threads;
    assert!(threads <= many * THREADS_EACH + THREADS_OF_SERVER, "{threads} threads");
    let descriptors = served.descriptors - before.descriptors;
    assert!(descriptors <= many * DESCRIPTORS_EACH + DESCRIPTORS_OF_SERVER, "{descriptors}");
    let kib = served.pss_kib.saturating_sub(before.pss_kib);
    assert!(kib <= many * KIB_EACH, "{kib} KiB");

    let url = urls[0].as_str().unwrap();
    let other = Host::app();
    let replicas = open_all(&other, &folder, "r", FOLLOWED);
    run_all(&replicas, |at| {
        let path = folder.file(&format!("p{at}.db"));
        let path = path.to_str().unwrap();
        format!("SELECT litestream_follow('{url}', json_object('path', '{path}'))")
    });
    run_all(&dbs, |at| format!("INSERT INTO t VALUES ({at} * 1000) RETURNING x"));
    for (at, (primary, replica)) in dbs.iter().zip(&replicas).enumerate() {
        assert_same(primary, replica);
        assert_eq!(replica.int("SELECT sum(x) FROM t"), at as i64 * 1001, "its own, not another's");
    }
    // What was written is in every log, followed or not.
    run_all(&dbs, |_| "SELECT litestream_sync()".to_owned());
    for (at, db) in dbs.iter().enumerate() {
        assert_eq!(
            db.text("SELECT litestream_pos()"),
            db.text(
                "SELECT max(pos) FROM (SELECT pos \
            FROM litestream_databases WHERE path LIKE '%p' || (SELECT x FROM t) || '.db')"
            ),
            "{at}"
        );
        let address = folder.file(&format!("p{at}.db-litestream/address"));
        assert_eq!(std::fs::read_to_string(address).unwrap().trim(), url);
    }
    drop(replicas);
    drop(other);

    let each = wakeups(&host).div_ceil(many);
    assert!(each <= WAKEUPS_EACH + 1, "an idle database wakes up {each} times a second");
    assert_eq!(run_all(&dbs, |_| "SELECT litestream_stop()".to_owned()), vec![json!(1); DATABASES]);
    until_released(&host, before, DATABASES);
}

/// Whoever stops and starts again, as an application with many tenants does, ends where it began.
#[test]
fn nothing_is_left_after_many_starts_and_stops() {
    let folder = Folder::new("cycles");
    let (host, primary) = ledger(folder.file("p.db"));
    let other = Host::app();
    let replica = other.open(folder.file("r.db"));
    let cycle = || {
        let url = serve(&primary);
        follow(&replica, &url);
        primary.run("INSERT INTO entry(pad) VALUES (zeroblob(100))").unwrap();
        catch_up(&primary, &replica);
        assert_eq!(replica.int("SELECT litestream_stop()"), 1);
        assert_eq!(primary.int("SELECT litestream_stop()"), 1);
    };
    let (first, second) = (usage(&host), usage(&other));
    for _ in 0..scaled(50, 500) {
        cycle();
    }
    until_released(&host, first, 1);
    until_released(&other, second, 1);
}
