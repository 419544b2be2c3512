//! Upstreams that lie, stall or vanish, and neighbours that damage things.

use std::io::{Read, Write};
use std::net::TcpListener;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use super::folder::Folder;
use super::golden::gunzip;
use super::scene::{MODERN, Scene, TABLE};
use super::support::{catch_up, eventually, follow, host, open, pages};
use super::upstream::{Primary, Upstream, replay_each};

use litestream::follow::{self, FollowConfig};
use litestream::host::file::Door;
use litestream::record::{RecordType, StreamRecordHeader};

/// A server that answers every request with these bytes and then does nothing more.
fn answering(bytes: Vec<u8>) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            let bytes = bytes.clone();
            std::thread::spawn(move || {
                let mut request = [0; 4096];
                let _ = stream.read(&mut request);
                let _ = stream.write_all(&bytes);
                let _ = stream.read(&mut request);
            });
        }
    });
    url
}

#[test]
fn cut_anywhere_the_end_is_the_same() {
    host();
    let folder = Folder::new("follow-cut");
    let path = folder.file("replica.db");
    let body = gunzip("stream.bin.gz");
    let whole = body.len();
    // The first connections break, each somewhere else.
    let url = replay_each(4096, move |connection| {
        let end = if connection < 8 { connection * 7919 * 13 % whole } else { whole };
        (body[..end].to_vec(), connection >= 8)
    });
    let follower = follow(&path, &url);
    let end = "fb744889fe01aa13/0000000000000008:000000000000c140";
    eventually("the end", || follower.position().is_some_and(|pos| pos.to_string() == end));
    follower.stop().unwrap();
    assert!(pages(&path) == gunzip("final.db.gz"), "the pages differ");
}

#[test]
fn a_flipped_bit_in_a_segment_is_never_shown() {
    host();
    let folder = Folder::new("follow-flip");
    let body = gunzip("stream.bin.gz");
    let mut segments = Vec::new();
    let mut at = 0;
    while at < body.len() {
        let header = StreamRecordHeader::decode(&body[at..]).unwrap();
        if header.kind == RecordType::WalSegment {
            segments.push(at..at + StreamRecordHeader::SIZE + header.size as usize);
        }
        at += StreamRecordHeader::SIZE + header.size as usize;
    }
    for round in 0..16_usize {
        let segment = segments[round * 31 % segments.len()].clone();
        let place = segment.start + round * 7919 % segment.len();
        let mut damaged = body.clone();
        damaged[place] ^= 1 << (round % 8);
        // Damaged twice, then whole: what was kept of the first must not be wrong.
        let (whole, bad) = (body.clone(), damaged);
        let url = replay_each(4096, move |connection| {
            (if connection < 2 { bad.clone() } else { whole.clone() }, true)
        });
        let path = folder.file(&format!("replica-{round}.db"));
        let follower = follow(&path, &url);
        let end = "fb744889fe01aa13/0000000000000008:000000000000c140";
        let deadline = Instant::now() + Duration::from_secs(3);
        while follower.position().is_none_or(|pos| pos.to_string() != end) {
            // Some flips only make the stream wait for more: that connection is ours to end.
            if Instant::now() > deadline {
                break;
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        let reached = follower.position();
        follower.stop().unwrap();
        if reached.is_some_and(|pos| pos.to_string() == end) {
            assert!(pages(&path) == gunzip("final.db.gz"), "round {round}: the pages differ");
        } else if reached.is_some() {
            let check = open(&path).query_text("PRAGMA integrity_check").unwrap();
            assert_eq!(check.as_deref(), Some("ok"), "round {round}");
        }
    }
}

#[test]
fn nonsense_is_an_error_and_not_a_crash() {
    host();
    let folder = Folder::new("follow-nonsense");
    let ok = "HTTP/1.1 200 OK\r\nLitestream-Page-Size: 4096\r\nTransfer-Encoding: chunked\r\n\r\n";
    let record = |kind: u32, flags: u32, size: u64, payload: &[u8]| {
        let mut bytes = Vec::new();
        bytes.extend_from_slice(&kind.to_be_bytes());
        bytes.extend_from_slice(&flags.to_be_bytes());
        bytes.extend_from_slice(&[0; 24]);
        bytes.extend_from_slice(&size.to_be_bytes());
        bytes.extend_from_slice(payload);
        [ok.as_bytes(), format!("{:x}\r\n", bytes.len()).as_bytes(), &bytes, b"\r\n"].concat()
    };
    let cases: Vec<(&str, Vec<u8>)> = vec![
        ("not-http", b"SSH-2.0-OpenSSH\r\n\r\n".to_vec()),
        ("no-page-size", b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi".to_vec()),
        ("bad-page-size", ok.replace("4096", "4097").into_bytes()),
        ("401", b"HTTP/1.1 401 Unauthorized\r\nContent-Length: 5\r\n\r\ntoken".to_vec()),
        (
            "redirect",
            b"HTTP/1.1 302 Found\r\nLocation: http://x\r\nContent-Length: 0\r\n\r\n".into(),
        ),
        ("type", record(9, 0, 0, b"")),
        ("flags", record(1, 2, 4096, &[0; 4096])),
        ("segment-first", record(2, 0, 4, b"abcd")),
        ("huge", record(1, 0, u64::MAX, b"")),
        ("half-page", record(1, 0, 100, &[0; 100])),
        ("no-page-1", record(1, 0, 8192, &[0; 8192])),
        ("empty-snapshot", record(1, 0, 0, b"")),
        ("not-lz4", record(1, 1, 100, &[7; 100])),
        ("beat", record(3, 0, 5, b"12345")),
    ];
    for (name, bytes) in cases {
        let path = folder.file(&format!("{name}.db"));
        let follower = follow(&path, &answering(bytes));
        eventually(name, || follower.status().error.is_some());
        assert_eq!(follower.position(), None);
        follower.stop().unwrap();
        let tables = open(&path).query_i64("SELECT count(*) FROM sqlite_master").unwrap();
        assert_eq!(tables, 0, "{name}");
    }
}

#[test]
fn a_silent_upstream_is_left() {
    let folder = Folder::new("follow-silent");
    let primary = Primary::new(&folder.file("primary.db"), 4096, TABLE);
    let upstream = Upstream::serve(primary.history.clone(), MODERN);
    let follower = follow(&folder.file("replica.db"), &upstream.url);
    catch_up(&follower);
    upstream.freeze();
    eventually("an error", || follower.status().error.is_some());
    assert!(follower.status().error.unwrap().contains("silent"));
    eventually("a lag", || follower.lag() > 1.0);
    let began = Instant::now();
    follower.stop().unwrap();
    assert!(began.elapsed() < Duration::from_secs(5));
}

#[test]
fn it_stops_in_the_middle_of_a_stalled_snapshot() {
    host();
    let folder = Folder::new("follow-stall");
    let path = folder.file("replica.db");
    let mut bytes = b"HTTP/1.1 200 OK\r\nLitestream-Page-Size: 4096\r\n\
        Transfer-Encoding: chunked\r\n\r\n1000\r\n"
        .to_vec();
    let at = super::upstream::pos(1, 0, 0);
    bytes.extend_from_slice(&StreamRecordHeader::new(RecordType::Snapshot, at, 1 << 30).encode());
    let follower = follow(&path, &answering(bytes));
    eventually("the snapshot", || follower.status().state == "snapshot");
    let locked = open(&path);
    locked.busy_timeout(0).unwrap();
    let error = locked.query_i64("SELECT count(*) FROM sqlite_master").unwrap_err();
    assert!(error.to_string().contains("locked"), "{error}");
    let began = Instant::now();
    follower.stop().unwrap();
    assert!(began.elapsed() < Duration::from_secs(5));
    assert_eq!(locked.query_i64("SELECT count(*) FROM sqlite_master").unwrap(), 0);
}

#[test]
fn a_damaged_wal_index_is_put_back() {
    let Scene { folder: _folder, primary: _primary, upstream: _upstream, path, follower } =
        Scene::new("follow-heal", MODERN, "INSERT INTO t VALUES (1)");
    let reader = open(&path);
    let door = Door::open(&path, "").unwrap();
    let region = door.map(0, false).unwrap().unwrap();
    for _ in 0..3 {
        region.store_bytes(16, &[0xee; 8]);
        let began = Instant::now();
        assert_eq!(reader.query_i64("SELECT count(*) FROM t").unwrap(), 2);
        assert!(began.elapsed() < Duration::from_secs(5), "{:?}", began.elapsed());
    }
    drop((region, door));
    follower.stop().unwrap();
}

#[test]
fn readers_that_overlap_for_ever_only_make_the_wal_grow() {
    let folder = Folder::new("follow-overlap");
    let mut primary = Primary::new(&folder.file("primary.db"), 512, "CREATE TABLE t(x)");
    let upstream = Upstream::serve(primary.history.clone(), MODERN);
    let path = folder.file("replica.db");
    let follower = follow(&path, &upstream.url);
    catch_up(&follower);
    let readers = [open(&path), open(&path)];
    let count = |at: usize| readers[at].query_i64("SELECT count(*) FROM t").unwrap();
    readers[0].execute("BEGIN").unwrap();
    let mut seen = [count(0), 0];
    for n in 0..60 {
        let next = (n + 1) % 2;
        readers[next].execute("BEGIN").unwrap();
        seen[next] = count(next);
        primary.run("INSERT INTO t VALUES (randomblob(100000))");
        upstream.set(primary.history.clone());
        assert!(follower.wait(primary.history.end(), Duration::from_secs(60)));
        // Each sees its own snapshot until it ends.
        assert_eq!([count(0), count(1)][next], seen[next]);
        readers[n % 2].execute("COMMIT").unwrap();
    }
    let wal = folder.file("replica.db-wal");
    let salts = || std::fs::read(&wal).unwrap()[16..24].to_vec();
    let before = salts();
    readers[0].execute("COMMIT").unwrap();
    drop(readers);
    // In the gap it starts over.
    eventually("a new WAL", || salts() != before);
    primary.run("INSERT INTO t VALUES (1)");
    upstream.set(primary.history.clone());
    assert!(follower.wait(primary.history.end(), Duration::from_secs(60)));
    follower.stop().unwrap();
    assert!(pages(&path) == primary.pages(&folder.file("expected.db")), "the pages differ");
}

#[test]
fn two_files_follow_one_upstream() {
    let folder = Folder::new("follow-two");
    let mut primary = Primary::new(&folder.file("primary.db"), 4096, TABLE);
    let upstream = Upstream::serve(primary.history.clone(), MODERN);
    let followers: Vec<Arc<follow::Follower>> =
        (0..2).map(|n| follow(&folder.file(&format!("replica-{n}.db")), &upstream.url)).collect();
    primary.run("INSERT INTO t VALUES (1)");
    upstream.set(primary.history.clone());
    for follower in &followers {
        assert!(follower.wait(primary.history.end(), Duration::from_secs(60)));
    }
    for follower in &followers {
        follower.stop().unwrap();
    }
}

#[test]
fn a_wrong_url_is_an_error_at_once() {
    host();
    let folder = Folder::new("follow-url");
    static STARTED: AtomicUsize = AtomicUsize::new(0);
    for url in ["", "http://", "ftp://a", "http://a/b"] {
        let config = FollowConfig {
            path: folder.file("replica.db"),
            url: url.to_owned(),
            ..FollowConfig::default()
        };
        assert!(follow::start(config).is_err(), "{url}");
        STARTED.fetch_add(1, Ordering::Relaxed);
    }
    assert!(!folder.file("replica.db").exists());
}
