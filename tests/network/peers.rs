//! Peers that are gone, hang or crawl: both ends notice in a bounded time and let go of what they
//! hold, and whoever is well is served all the while.

use std::io::Write;
use std::net::{SocketAddr, TcpStream};

use super::common::proxy::{Door, Proxy};
use super::common::servers::signal;
use super::common::*;

/// Bytes of segments the log may keep.
const LOG_BYTES: i64 = 1 << 20;
/// What it has at most: four times that while somebody reads, and the WAL that goes on, which
/// starts over after a thousand pages or some more.
const LOG_MAX: i64 = 48 << 20;
/// What one transaction writes.
const TRANSACTION: i64 = 500_000;

const POS: &str = "SELECT litestream_pos()";

/// A served database whose log is small.
struct Primary {
    host: Host,
    db: Db,
    url: String,
}

impl Primary {
    fn new(folder: &Folder) -> Primary {
        let host = Host::app();
        let db = host.open(folder.file("p.db"));
        db.script("CREATE TABLE t(n INTEGER PRIMARY KEY, x)");
        let options = json!({"log_bytes": LOG_BYTES});
        let url = db.text(&format!("SELECT litestream_serve('127.0.0.1:0', '{options}')"));
        Primary { host, db, url }
    }

    /// Overwrites the same rows: the database stays small, what is captured does not.
    fn write(&self) {
        let row = format!("INSERT OR REPLACE INTO t VALUES (1, randomblob({TRANSACTION}))");
        self.db.run(&row).unwrap();
    }

    fn followers(&self) -> i64 {
        self.db.int("SELECT count(*) FROM litestream_followers")
    }

    fn log_bytes(&self) -> i64 {
        let sql = "SELECT ifnull(sum(size), 0) FROM litestream_wal_segments";
        self.db.int(&format!("{sql} WHERE replica = 'local'"))
    }

    /// Asks for the stream and reads nothing.
    fn ask(&self) -> TcpStream {
        let at: SocketAddr = self.url.strip_prefix("http://").unwrap().parse().unwrap();
        let mut stream = TcpStream::connect(at).unwrap();
        stream.write_all(b"GET /stream HTTP/1.1\r\nHost: localhost\r\n\r\n").unwrap();
        stream
    }
}

/// The last error of the replica in this file, as its process tells.
fn error(db: &Db, name: &str) -> String {
    let sql = "SELECT error FROM litestream_databases WHERE path LIKE";
    db.value(&format!("{sql} '%/{name}'")).to_string()
}

/// A process that stands still, until this is dropped.
struct Standstill(u32);

impl Standstill {
    fn of(host: &Host) -> Standstill {
        signal(host.pid(), "STOP");
        Standstill(host.pid())
    }
}

impl Drop for Standstill {
    fn drop(&mut self) {
        signal(self.0, "CONT");
    }
}

#[test]
fn peers_that_hang_are_let_go() {
    let folder = Folder::new("net-peers");
    let primary = Primary::new(&folder);
    let (mute, halved) = (Proxy::to_url(&primary.url), Proxy::to_url(&primary.url));
    let follow_late = |host: &Host, name: &str, url: &str| {
        let db = host.open(folder.file(name));
        db.run(&format!("SELECT litestream_follow('{url}', '{{\"wait_ms\": 0}}')")).unwrap();
        db
    };
    let (good, hung) = (Host::app(), Host::app());
    let replica = good.open(folder.file("good.db"));
    follow(&replica, &primary.url);
    let behind_half = good.open(folder.file("half.db"));
    follow(&behind_half, &halved.url());
    let stopped = hung.open(folder.file("hung.db"));
    follow(&stopped, &primary.url);
    // One that was never answered.
    mute.change(|rules| rules.door = Door::Mute);
    let behind_mute = follow_late(&good, "mute.db", &mute.url());
    // Everybody has acknowledged, so that silence means something.
    assert_eq!(primary.db.int("SELECT litestream_wait_followers(3, 50000)"), 3);
    let standstill = Standstill::of(&hung);
    halved.change(|rules| (rules.up.stopped, rules.down.stopped) = (true, true));
    // The database is idle: nothing is sent but heartbeats, which every system's buffers take.
    until("the follower to hear nothing", || {
        error(&replica, "half.db").contains("no heartbeat came").then_some(())
    });
    until("the one never answered to give up", || {
        error(&replica, "mute.db").contains("cannot reach the upstream").then_some(())
    });
    until("the primary to miss its followers", || (primary.followers() == 1).then_some(()));
    assert_eq!(primary.db.int("SELECT litestream_wait_followers(1)"), 1);
    let dropped = "SELECT count(*) FROM litestream_log WHERE message LIKE '%acknowledged nothing%'";
    assert!(primary.db.int(dropped) >= 2, "the one that hangs, and the one nobody reaches");
    // What they did not get does not keep the log.
    let stopped_at = format!("{}/0000000000000001", generation(&replica.text(POS)));
    until("the log to let go of what comes next for them", || {
        primary.write();
        assert_wal_starts_over(&primary.url);
        let oldest = "SELECT min(pos) FROM litestream_wal_segments WHERE replica = 'local'";
        (primary.db.value(oldest).as_str() > Some(stopped_at.as_str())).then_some(())
    });
    // And they are as welcome as before.
    drop(standstill);
    halved.relent();
    mute.change(|rules| rules.door = Door::Open);
    for proxy in [&halved, &mute] {
        proxy.break_all(true);
    }
    for db in [&replica, &behind_half, &stopped, &behind_mute] {
        assert_same(&primary.db, db);
    }
    until("everybody to be content", || {
        (error(&replica, "mute.db") == "null" && primary.followers() == 4).then_some(())
    });
}

/// They are held by the system's buffers, not by ours, and cost others nothing.
#[test]
fn slow_readers_cost_nobody_anything() {
    let folder = Folder::new("net-slow");
    let primary = Primary::new(&folder);
    let good = Host::app();
    let replica = good.open(folder.file("good.db"));
    follow(&replica, &primary.url);
    primary.write();
    assert_same(&primary.db, &replica);
    let crawling = Proxy::to_url(&primary.url);
    crawling.change(|rules| rules.down.rate = 1);
    let late = good.open(folder.file("late.db"));
    late.run(&format!("SELECT litestream_follow('{}', '{{\"wait_ms\": 0}}')", crawling.url()))
        .unwrap();
    let count = scaled(12, 60);
    let silent: Vec<TcpStream> = (0..count).map(|_| primary.ask()).collect();
    until("all of them to be served", || (primary.followers() > count).then_some(()));
    let before = primary.host.peak_kib();
    let (mut most, mut written) = (0, 0);
    until("those that read nothing to be dropped", || {
        primary.write();
        written += TRANSACTION;
        // The good one has each commit at once, whoever else is connected.
        catch_up(&primary.db, &replica);
        most = most.max(primary.log_bytes());
        let dropped = "SELECT count(*) FROM litestream_log WHERE message LIKE '%read nothing%'";
        (primary.db.int(dropped) >= count && written > 2 * LOG_MAX).then_some(())
    });
    let grown = primary.host.peak_kib().saturating_sub(before);
    println!("{written} bytes written, log at most {most}, memory grew by {grown} KiB");
    assert!(most < LOG_MAX, "{most} bytes of log");
    assert!(grown < 96 << 10, "{grown} KiB for {count} slow readers");
    drop(silent);
    crawling.relent();
    crawling.break_all(true);
    assert_same(&primary.db, &late);
    assert_same(&primary.db, &replica);
}
