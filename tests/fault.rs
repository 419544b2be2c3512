//! Faults that come and go: a network that cuts connections, a full disk, no descriptors left,
//! files of the log damaged. While they last the error is told and nothing wrong is shown;
//! afterwards everything goes on by itself.
#![allow(clippy::unwrap_used, clippy::panic)]

mod common;

use std::fs;
use std::io::{self, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::thread::JoinHandle;

use common::*;

/// A wire between a follower and its upstream that is cut after a random number of bytes.
struct Wire {
    url: String,
    cuts: Arc<AtomicU32>,
    sound: Arc<AtomicBool>,
    over: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Wire {
    fn to(url: &str) -> Wire {
        let upstream: SocketAddr = url.strip_prefix("http://").unwrap().parse().unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let cuts = Arc::new(AtomicU32::new(0));
        let (sound, over) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicBool::new(false)));
        let shared = (Arc::clone(&cuts), Arc::clone(&sound), Arc::clone(&over));
        let thread = std::thread::spawn(move || {
            let (cuts, sound, over) = shared;
            let mut rng = Rng::new();
            for near in listener.incoming().map_while(Result::ok) {
                if over.load(Ordering::Relaxed) {
                    break;
                }
                // Within the answer's head, the first records, or far into the stream.
                let limit = [400, 4000, 40_000, 400_000][rng.index(4)];
                let left = rng.below(limit);
                let (cuts, sound) = (Arc::clone(&cuts), Arc::clone(&sound));
                std::thread::spawn(move || carry(near, upstream, left, &cuts, &sound));
            }
        });
        Wire { url, cuts, sound, over, thread: Some(thread) }
    }

    fn cuts(&self) -> u32 {
        self.cuts.load(Ordering::Relaxed)
    }
}

impl Drop for Wire {
    fn drop(&mut self) {
        self.over.store(true, Ordering::Relaxed);
        let _wakes_it_up = TcpStream::connect(self.url.strip_prefix("http://").unwrap());
        self.thread.take().unwrap().join().unwrap();
    }
}

/// Carries one connection both ways until either end closes, or `left` bytes came from the
/// upstream.
fn carry(near: TcpStream, to: SocketAddr, left: u64, cuts: &AtomicU32, sound: &AtomicBool) {
    let Ok(far) = TcpStream::connect(to) else { return };
    let (mut from, mut into) = (near.try_clone().unwrap(), far.try_clone().unwrap());
    let requests = std::thread::spawn(move || {
        let _ends_with_either = io::copy(&mut from, &mut into);
    });
    let (mut from, mut into) = (far.try_clone().unwrap(), near.try_clone().unwrap());
    let mut left = left;
    let mut buffer = [0; 4096];
    while let Ok(count @ 1..) = from.read(&mut buffer) {
        if !sound.load(Ordering::Relaxed) {
            let allowed = count.min(usize::try_from(left).unwrap_or(usize::MAX));
            left -= allowed as u64;
            if allowed < count {
                let _the_rest_is_lost = into.write_all(&buffer[..allowed]);
                cuts.fetch_add(1, Ordering::Relaxed);
                break;
            }
        }
        if into.write_all(&buffer[..count]).is_err() {
            break;
        }
    }
    for end in [near, far] {
        let _closed_already = end.shutdown(Shutdown::Both);
    }
    requests.join().unwrap();
}

/// A served ledger.
fn primary(folder: &Folder) -> (Host, Db, String) {
    let (host, db) = ledger(folder.file("p.db"));
    let url = serve(&db);
    (host, db, url)
}

fn start_following(db: &Db, url: &str) {
    db.run(&format!("SELECT litestream_follow('{url}', '{{\"wait_ms\": 0}}')")).unwrap();
}

#[test]
fn a_connection_may_be_cut_anywhere() {
    let folder = Folder::new("cut");
    let (host, db, url) = primary(&folder);
    let load = json!({"path": folder.file("p.db"), "pause": 0.002, "size": 9000});
    let writer = host.work("ledger_writer", load);
    writer.advance(50);
    let wire = Wire::to(&url);
    let other = Host::app();
    let replica = other.open(folder.file("r.db"));
    // A snapshot is not resumed in its middle, so the first one may pass.
    wire.sound.store(true, Ordering::Relaxed);
    follow(&replica, &wire.url);
    wire.sound.store(false, Ordering::Relaxed);
    let plain = Host::plain();
    let reads = plain.work("ledger_reader", json!({"path": folder.file("r.db")}));
    let long = std::time::Duration::from_secs(scaled(60, 900));
    until_within(long, "the wire to be cut often", || {
        (wire.cuts() >= scaled(8, 100)).then_some(())
    });
    writer.finish();
    wire.sound.store(true, Ordering::Relaxed);
    assert_same(&db, &replica);
    reads.finish();
}

/// Sets a limit of a process from outside (util-linux).
fn limit(host: &Host, what: &str) {
    let pid = host.pid().to_string();
    let done = Command::new("prlimit").args(["--pid", &pid, what]).status();
    assert!(done.expect("prlimit is needed: install util-linux").success(), "{what}");
}

/// The follower may write no file beyond 1 MiB: a full disk, as far as it can tell.
#[test]
fn a_replica_on_a_full_disk_goes_on_when_there_is_room() {
    let folder = Folder::new("full-replica");
    let (_host, db, url) = primary(&folder);
    let other = Host::app();
    let replica = other.open(folder.file("r.db"));
    follow(&replica, &url);
    let plain = Host::plain();
    let reads = plain.work("ledger_reader", json!({"path": folder.file("r.db")}));
    limit(&other, "--fsize=1048576:unlimited");
    let fill = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 400)
                INSERT INTO t SELECT randomblob(4000) FROM n";
    db.run("CREATE TABLE t(x)").unwrap();
    for _ in 0..4 {
        db.run(fill).unwrap();
    }
    let error = until("the error to be told", || {
        replica.value("SELECT error FROM litestream_databases").as_str().map(str::to_owned)
    });
    assert!(error.contains("File too large") || error.contains("full"), "{error}");
    let seen = plain.open(folder.file("r.db"));
    assert!(seen.int("SELECT count(*) FROM t") < 1600, "it cannot have all of it");
    limit(&other, "--fsize=unlimited:unlimited");
    assert_same(&db, &replica);
    reads.finish();
    assert!(other.quit().success());
}

/// The primary may write no file beyond 4 MiB: neither its database nor its log can grow.
#[test]
fn a_primary_on_a_full_disk_goes_on_when_there_is_room() {
    let folder = Folder::new("full-primary");
    let (host, db, url) = primary(&folder);
    let other = Host::app();
    let replica = other.open(folder.file("r.db"));
    follow(&replica, &url);
    let plain = Host::plain();
    let reads = plain.work("ledger_reader", json!({"path": folder.file("r.db")}));
    db.run("CREATE TABLE t(x)").unwrap();
    limit(&host, "--fsize=4194304:unlimited");
    let fill = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 100)
                INSERT INTO t SELECT randomblob(8000) FROM n";
    let refused = (0..50).find_map(|_| db.run(fill).err());
    let refused = refused.expect("the application itself runs out of room");
    assert!(refused.contains("full") || refused.contains("I/O"), "{refused}");
    // Others still have room: the WAL goes on growing and cannot be copied back.
    let outside = plain.open(folder.file("p.db"));
    for _ in 0..5 {
        outside.run(fill).unwrap();
    }
    limit(&host, "--fsize=unlimited:unlimited");
    db.run(fill).unwrap();
    // The attempt that failed may end only now; the next one captures everything.
    until("the replica to have everything", || {
        let pos = db.run("SELECT litestream_pos()").ok()?[0][0].as_str()?.to_owned();
        let wait = format!("SELECT litestream_wait('{pos}', 200)");
        (replica.run(&wait).ok()? == json!([[1]])).then_some(())
    });
    assert_eq!(db.content(), replica.content());
    reads.finish();
    assert_eq!(db.text("PRAGMA integrity_check"), "ok");
    assert!(host.quit().success());
}

#[test]
fn a_server_without_descriptors_takes_new_followers_when_it_has_some() {
    let folder = Folder::new("descriptors");
    let (host, db, url) = primary(&folder);
    let open = fs::read_dir(format!("/proc/{}/fd", host.pid())).unwrap().count();
    limit(&host, &format!("--nofile={}:4096", open + 2));
    let address = url.strip_prefix("http://").unwrap().to_owned();
    let idle: Vec<TcpStream> = (0..20).map(|_| TcpStream::connect(&address).unwrap()).collect();
    let other = Host::app();
    let replica = other.open(folder.file("r.db"));
    start_following(&replica, &url);
    db.run("INSERT INTO entry VALUES (1, x'00')").unwrap();
    drop(idle);
    limit(&host, "--nofile=4096:4096");
    assert_same(&db, &replica);
}

/// Every file below a folder.
fn files(root: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(root).unwrap().flatten() {
        let path = entry.path();
        if path.is_dir() {
            found.extend(files(&path));
        } else {
            found.push(path);
        }
    }
    found.sort();
    found
}

/// Changes one byte in the middle of a file, if it has one.
fn damage(path: &Path) {
    let mut bytes = fs::read(path).unwrap();
    let middle = bytes.len() / 2;
    if let Some(byte) = bytes.get_mut(middle) {
        *byte ^= 0x20;
        fs::write(path, bytes).unwrap();
    }
}

/// Each file of the log in turn is damaged, cut short, emptied or removed, while it is in use and
/// while it is not. Whoever joins then gets the truth.
#[test]
fn a_damaged_log_never_yields_a_wrong_replica() {
    let folder = Folder::new("damage");
    let path = folder.file("p.db");
    let log = folder.file("p.db-litestream");
    let (mut host, mut db) = ledger(&path);
    let address = format!("127.0.0.1:{}", free_port());
    let serve_at = format!("SELECT litestream_serve('{address}')");
    let url = db.text(&serve_at);
    let blows: [fn(&Path); 4] = [
        damage,
        |path| {
            let bytes = fs::read(path).unwrap();
            fs::write(path, &bytes[..bytes.len() / 2]).unwrap();
        },
        |path| fs::write(path, b"").unwrap(),
        |path| fs::remove_file(path).unwrap(),
    ];
    let mut rng = Rng::new();
    for round in 0..scaled(8, 100) {
        let load = host.work("ledger_writer", json!({"path": path, "limit": 150}));
        until("some rows", || (load.count() == 150).then_some(()));
        load.finish();
        db.text("SELECT litestream_sync()");
        let candidates: Vec<PathBuf> =
            files(&log).into_iter().filter(|path| !path.ends_with("lock")).collect();
        let victim = &candidates[rng.index(candidates.len())];
        let (blow, running) = (rng.index(4), rng.below(2) == 0);
        println!("{} {blow} running {running}", victim.strip_prefix(&log).unwrap().display());
        if running {
            blows[blow](victim);
        } else {
            host.kill();
            blows[blow](victim);
            host = Host::app();
            db = host.open(&path);
            db.text(&serve_at);
        }
        let other = Host::app();
        let replica = other.open(folder.file(&format!("r{round}.db")));
        start_following(&replica, &url);
        let caught_up = || {
            let pos = db.run("SELECT litestream_pos()").ok()?[0][0].as_str()?.to_owned();
            let wait = format!("SELECT litestream_wait('{pos}', 200)");
            (replica.run(&wait).ok()? == json!([[1]])).then_some(())
        };
        if victim.to_string_lossy().contains(".snapshot.") {
            // A snapshot is sent as it lies there. The newcomer tells what it got, and a new one
            // helps.
            let told = until("the newcomer to catch up or to complain", || {
                let error = "SELECT error FROM litestream_databases WHERE error IS NOT NULL";
                let error = replica.rows(error).pop().map(|row| row[0].to_string());
                error.map(Some).or_else(|| caught_up().map(|()| None))
            });
            if let Some(error) = told {
                println!("  {error}");
                assert_eq!(replica.int("SELECT count(*) FROM sqlite_schema"), 0);
                until("a new snapshot", || db.run("SELECT litestream_snapshot()").ok());
            }
        }
        until("the newcomer to have everything", caught_up);
        assert_same(&db, &replica);
    }
}

/// The follower's host is stopped for a while (a laptop's lid) and then goes on.
#[test]
fn a_follower_may_sleep_even_past_what_the_log_keeps() {
    let folder = Folder::new("sleep");
    let (host, db) = ledger(folder.file("p.db"));
    // A log of 1 MiB: new snapshots replace old segments all the time.
    let url = db.text("SELECT litestream_serve('127.0.0.1:0', '{\"log_bytes\": 1048576}')");
    let plain = Host::plain();
    let other = Host::app();
    let replica = other.open(folder.file("r.db"));
    follow(&replica, &url);
    let reads = plain.work("ledger_reader", json!({"path": folder.file("r.db"), "pause": 0.001}));
    let signal = |name: &str| {
        let pid = other.pid().to_string();
        assert!(
            Command::new("sh").args(["-c", "kill $0 $1", name, &pid]).status().unwrap().success()
        );
    };
    let load = json!({"path": folder.file("p.db"), "pause": 0.001, "size": 20_000});
    let writer = host.work("ledger_writer", load);
    for _ in 0..3 {
        signal("-STOP");
        // More than the sockets hold, so that the server has to wait for it.
        writer.advance(600);
        signal("-CONT");
        writer.advance(100);
    }
    writer.finish();
    assert_same(&db, &replica);
    reads.finish();
    let snapshots = db.rows("SELECT idx FROM litestream_snapshots");
    assert_ne!(snapshots, [json!([0])], "the first snapshot was replaced");
}
