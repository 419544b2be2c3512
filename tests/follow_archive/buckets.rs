//! The same out of a bucket, on real servers: followed, gone for a while, forbidden, hanging.

use std::time::{Duration, Instant};

use super::common::servers::S3Server;
use super::common::*;
use super::hosts::{assert_same_through, follow_archive, replicate};

struct Setting {
    _host: Host,
    db: Db,
    other: Host,
    url: String,
}

fn archived(folder: &Folder, server: &S3Server) -> Setting {
    let (host, db) = ledger(folder.file("p.db"));
    let url = server.url("app/main");
    replicate(&db, &url, server.options());
    Setting { _host: host, db, other: Host::app(), url }
}

fn add(db: &Db, n: i64) {
    db.run(&format!("INSERT INTO entry VALUES ({n}, randomblob(20000))")).unwrap();
}

fn status(db: &Db) -> (String, Value) {
    let row = db.rows("SELECT state, error FROM litestream_databases")[0].clone();
    (row[0].as_str().unwrap().to_owned(), row[1].clone())
}

fn a_bucket_is_followed(mut server: S3Server) {
    let folder = Folder::new("follow-bucket");
    let Setting { _host, db, other, url } = archived(&folder, &server);
    let replica = other.open(folder.file("r.db"));
    follow_archive(&replica, &url, server.options());
    for n in 0..10 {
        add(&db, n);
        if n % 4 == 1 {
            db.run("SELECT litestream_checkpoint('TRUNCATE')").unwrap();
        }
    }
    assert_same_through(&db, &replica);

    // Gone for a while: readers go on, the replica says so, and comes back by itself.
    server.stop();
    add(&db, 100);
    let error = until("the error to show", || status(&replica).1.as_str().map(str::to_owned));
    assert!(error.contains("s3://bucket/app/main"), "{error}");
    assert!(!error.contains(super::common::servers::SECRET_KEY), "{error}");
    assert_eq!(replica.int("SELECT max(n) FROM entry"), 9);
    until("the lag to show", || {
        (replica.value("SELECT litestream_lag()").as_f64().unwrap() > 0.5).then_some(())
    });
    server.start();
    assert_same_through(&db, &replica);
    until("it to stream again", || (status(&replica).0 == "streaming").then_some(()));
    assert_eq!(status(&replica).1, Value::Null);

    // It hangs: a stop does not.
    server.pause();
    std::thread::sleep(Duration::from_millis(300));
    let begun = Instant::now();
    assert_eq!(replica.int("SELECT litestream_stop('follow')"), 1);
    assert!(begun.elapsed() < Duration::from_secs(5));
    server.resume();
    let taken = "SELECT count(*) FROM litestream_log WHERE message LIKE '%receiving a snapshot%'";
    let before = replica.int(taken);
    add(&db, 101);
    follow_archive(&replica, &url, server.options());
    assert_same_through(&db, &replica);
    assert_eq!(replica.int(taken), before, "it went on where it was");

    // And listed; a hanging one can be interrupted.
    let options = server.options();
    let sql = format!("SELECT count(*) FROM litestream_wal_segments('{url}', '{options}')");
    assert!(other.open(":memory:").int(&sql) > 0);
    server.pause();
    let memory = other.open(":memory:");
    let pending = memory.send(&sql);
    std::thread::sleep(Duration::from_millis(300));
    let begun = Instant::now();
    memory.interrupt();
    let error = pending.outcome(DEADLINE).unwrap_err();
    assert!(error.contains("interrupt"), "{error}");
    assert!(begun.elapsed() < Duration::from_secs(5), "{:?}", begun.elapsed());
    server.resume();
}

#[test]
fn seaweedfs_is_followed() {
    a_bucket_is_followed(S3Server::weed());
}

#[test]
fn rclone_is_followed() {
    a_bucket_is_followed(S3Server::rclone());
}

#[test]
fn what_the_server_forbids_is_said_at_once() {
    let folder = Folder::new("follow-forbidden");
    let server = S3Server::rclone();
    let Setting { _host, db: _db, other, url } = archived(&folder, &server);
    let replica = other.open(folder.file("r.db"));
    let mut options = server.options();
    options["secret_access_key"] = json!("not-the-key-0123456789");
    let begun = Instant::now();
    let error = replica.fails(&format!("SELECT litestream_follow('{url}', '{options}')"));
    assert!(begun.elapsed() < Duration::from_secs(15), "{:?}: {error}", begun.elapsed());
    assert!(error.contains(&url) && !error.contains("not-the-key"), "{error}");
    let sql = format!("SELECT * FROM litestream_snapshots('{url}', '{options}')");
    let error = replica.fails(&sql);
    assert!(error.contains(&url) && !error.contains("not-the-key"), "{error}");
}
