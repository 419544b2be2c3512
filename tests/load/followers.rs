//! A hundred followers of one database.

use super::*;

const HOSTS: usize = 4;
const EACH: usize = 25;
const ALL: usize = HOSTS * EACH;

/// What docs/limits.md says of a replica, where it is followed into.
const THREADS_OF_REPLICA: u64 = 3;
const DESCRIPTORS_OF_REPLICA: u64 = 12;
const WAKEUPS_OF_REPLICA: u64 = 14;
/// And of a follower, at the primary: its stream and its acknowledgements.
const THREADS_OF_FOLLOWER: u64 = 1;
const DESCRIPTORS_OF_FOLLOWER: u64 = 2;
const WAKEUPS_OF_FOLLOWER: u64 = 3;
const KIB_OF_FOLLOWER: u64 = 512;

#[test]
fn a_hundred_followers_of_one_primary_end_equal_within_the_stated_costs() {
    let folder = Folder::new("followers");
    let (host, db) = ledger(folder.file("p.db"));
    let url = serve(&db);
    let before = usage(&host);
    let hosts: Vec<Host> = (0..HOSTS).map(|_| Host::app()).collect();
    let load = json!({"path": folder.file("p.db"), "pause": 0.002});
    let writer = host.work("ledger_writer", load);
    writer.advance(50);
    let mut replicas = Vec::new();
    let mut alone = Vec::new();
    for (number, host) in hosts.iter().enumerate() {
        let path = |at: usize| folder.file(&format!("r{number}-{at}.db"));
        let dbs: Vec<Db> = (0..EACH).map(|at| host.open(path(at))).collect();
        alone.push(usage(host));
        replicas.extend(dbs);
    }
    // All at once, while it is written to.
    run_all(&replicas, |_| format!("SELECT litestream_follow('{url}')"));
    writer.advance(100);
    writer.finish();
    assert_eq!(db.int(&format!("SELECT litestream_wait_followers({ALL}, 50000)")), ALL as i64);
    let wanted = db.content();
    for (at, replica) in replicas.iter().enumerate() {
        catch_up(&db, replica);
        assert_eq!(replica.content(), wanted, "replica {at}");
    }
    // None of them is on a second connection: the first one never broke.
    assert_eq!(metric(&url, "litestream_followers_total"), ALL as f64);
    let rows = "SELECT count(*) FROM litestream_followers WHERE applied_pos = litestream_pos()";
    until("all to be known as equal", || (db.int(rows) == ALL as i64).then_some(()));

    // tiny_http has a thread for each request that is being answered, and keeps it while more come:
    // on a busy machine that may be the acknowledgements of all.
    let now = usage(&host);
    let many = ALL as u64;
    let threads = now.threads.saturating_sub(before.threads);
    assert!(threads <= many * (THREADS_OF_FOLLOWER + 1) + 4, "{threads} threads");
    let descriptors = now.descriptors.saturating_sub(before.descriptors);
    assert!(descriptors <= many * DESCRIPTORS_OF_FOLLOWER + 8, "{descriptors} descriptors");
    let kib = now.pss_kib.saturating_sub(before.pss_kib);
    assert!(kib <= many * KIB_OF_FOLLOWER, "{kib} KiB");
    for (host, alone) in hosts.iter().zip(&alone) {
        let now = usage(host);
        let (threads, descriptors) =
            (now.threads - alone.threads, now.descriptors - alone.descriptors);
        assert!(threads <= EACH as u64 * THREADS_OF_REPLICA, "{threads} threads");
        assert!(descriptors <= EACH as u64 * DESCRIPTORS_OF_REPLICA, "{descriptors} descriptors");
    }
    let each = wakeups(&host).div_ceil(many);
    assert!(each <= WAKEUPS_OF_FOLLOWER + 1, "an idle follower wakes the primary {each} times");
    let each = wakeups(&hosts[0]).div_ceil(EACH as u64);
    assert!(each <= WAKEUPS_OF_REPLICA + 4, "an idle replica wakes up {each} times a second");

    run_all(&replicas, |_| "SELECT litestream_stop()".to_owned());
    for (host, alone) in hosts.iter().zip(&alone) {
        until_released(host, *alone, EACH);
    }
    until("all to be gone", || {
        (db.int("SELECT count(*) FROM litestream_followers") == 0).then_some(())
    });
    db.run("SELECT litestream_stop()").unwrap();
    until_released(&host, before, 1);
}
