//! An upstream that lies. The follower says what is wrong, holds no more memory for it, shows
//! readers nothing of it, stops when told to, and follows an honest upstream afterwards.

use std::time::{Duration, Instant};

use crate::common::*;
use crate::liar::*;

/// A lie, and words of the error it must lead to.
struct Case {
    name: &'static str,
    lie: Lie,
    words: &'static [&'static str],
}

fn case(name: &'static str, words: &'static [&'static str], lie: Lie) -> Case {
    Case { name, lie, words }
}

fn lies() -> Vec<Case> {
    let mut cases = http();
    cases.extend(records());
    cases.extend(snapshots());
    cases.extend(segments());
    cases.extend(orders());
    cases
}

/// Lies in HTTP itself.
fn http() -> Vec<Case> {
    vec![
        case("no HTTP", &[], |out| out.raw(b"220 mail.example ESMTP\r\n\r\n")),
        case("hangs up", &[], |_| Ok(())),
        case("error page", &["500"], |out| {
            out.raw(b"HTTP/1.1 500 Oops\r\nContent-Length: 4\r\n\r\nsad\n")
        }),
        case("unknown database", &["404", "path"], |out| {
            out.raw(b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n")
        }),
        case("redirect", &["redirect"], |out| {
            out.raw(b"HTTP/1.1 302 Found\r\nLocation: /stream\r\nContent-Length: 0\r\n\r\n")
        }),
        case("no page size", &["page-size"], |out| {
            out.raw(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n")
        }),
        case("page size 0", &["page-size"], |out| out.begin("0")),
        case("page size 1000", &["page-size"], |out| out.begin("1000")),
        case("page size -1", &["page-size"], |out| out.begin("-1")),
        case("page size beyond numbers", &["page-size"], |out| out.begin("99999999999999999999")),
        case("headers for ever", &[], |out| {
            out.raw(b"HTTP/1.1 200 OK\r\n")?;
            out.for_ever(&b"X-Filler: nothing to see here, move along\r\n".repeat(1000))
        }),
        case("one header for ever", &[], |out| {
            out.raw(b"HTTP/1.1 200 OK\r\nX: ")?;
            out.for_ever(&[b'x'; 1 << 16])
        }),
        case("error page for ever", &["500"], |out| {
            out.raw(b"HTTP/1.1 500 Oops\r\nTransfer-Encoding: chunked\r\n\r\n")?;
            out.for_ever(&[&b"10000\r\n"[..], &[b'x'; 1 << 16], b"\r\n"].concat())
        }),
        case("chunks of no size", &[], |out| {
            out.begin("512")?;
            out.raw(b"zzzz\r\nhello\r\n")
        }),
        case("a chunk of every byte there is", &[], |out| {
            out.begin("512")?;
            out.raw(b"ffffffffffffffffffff\r\nhello")
        }),
        case("an empty stream", &["ended"], |out| {
            out.begin("512")?;
            out.raw(b"0\r\n\r\n")
        }),
    ]
}

/// Lies in the records' headers.
fn records() -> Vec<Case> {
    vec![
        case("half a record header", &[], |out| {
            out.begin("512")?;
            out.chunk(&[0, 0, 0, 1, 0, 0])?;
            out.raw(b"0\r\n\r\n")
        }),
        case("garbage", &[], |out| {
            out.begin("512")?;
            out.chunk(&Rng::new().bytes(5000))
        }),
        case("unknown record type", &["type"], |out| {
            out.begin("512")?;
            out.record(9, 0, (0, 0), b"what is this")
        }),
        case("unknown flags", &["flags"], |out| {
            out.begin("512")?;
            out.record(SNAPSHOT, 0x80, (0, 0), &database())
        }),
        case("index beyond numbers", &[], |out| {
            out.begin("512")?;
            out.record(SNAPSHOT, 0, (u64::MAX, 0), &database())
        }),
        case("size beyond numbers", &[], |out| {
            out.begin("512")?;
            out.head(SNAPSHOT, 0, (0, 0), u64::MAX)
        }),
        case("a heartbeat of the wrong size", &["heartbeat"], |out| {
            out.begin("512")?;
            out.record(HEARTBEAT, 0, (0, 0), &[0; 31])
        }),
        case("a heartbeat of a terabyte", &["heartbeat"], |out| {
            out.begin("512")?;
            out.head(HEARTBEAT, 0, (0, 0), 1 << 40)?;
            let filler = [&b"10000\r\n"[..], &[0; 1 << 16], b"\r\n"].concat();
            out.for_ever(&filler)
        }),
    ]
}

/// Lies in snapshots.
fn snapshots() -> Vec<Case> {
    vec![
        case("an empty snapshot", &["empty"], |out| {
            out.begin("512")?;
            out.record(SNAPSHOT, 0, (0, 0), &[])
        }),
        case("half a page", &[], |out| {
            out.begin("512")?;
            out.record(SNAPSHOT, 0, (0, 0), &database()[..700])
        }),
        case("another page size than announced", &["page 1"], |out| {
            out.begin("1024")?;
            out.record(SNAPSHOT, 0, (0, 0), &database())?;
            out.heartbeat((0, 0))
        }),
        case("no database at all", &["page 1"], |out| {
            out.begin("512")?;
            out.record(SNAPSHOT, 0, (0, 0), &[b'x'; 5120])?;
            out.heartbeat((0, 0))
        }),
        case("cut short", &[], |out| {
            out.begin("512")?;
            out.head(SNAPSHOT, 0, (0, 0), 1024)?;
            out.chunk(&database()[..512])?;
            out.raw(b"0\r\n\r\n")
        }),
        case("reset in the middle", &[], |out| {
            out.begin("512")?;
            out.head(SNAPSHOT, 0, (0, 0), 1 << 30)?;
            for _ in 0..1000 {
                out.chunk(&database())?;
            }
            Ok(())
        }),
        case("not LZ4 though it says so", &[], |out| {
            out.begin("512")?;
            out.record(SNAPSHOT, 1, (0, 0), &database())
        }),
        case("an LZ4 bomb", &[], |out| {
            let bomb = litestream::lz4::compress(&vec![0; 64 << 20]).unwrap();
            out.begin("512")?;
            out.record(SNAPSHOT, 1, (0, 0), &bomb)?;
            out.heartbeat((0, 0))
        }),
        case("a second one in the midst", &[], |out| {
            out.snapshot()?;
            out.record(SNAPSHOT, 0, (5, 0), &[b'x'; 1024])?;
            out.heartbeat((5, 0))
        }),
    ]
}

/// Lies in WAL segments, after a good snapshot.
fn segments() -> Vec<Case> {
    vec![
        case("a segment before any snapshot", &["before any snapshot"], |out| {
            out.begin("512")?;
            out.segment((0, 0), &wal(&[(2, 2)]))
        }),
        case("not LZ4", &[], |out| {
            out.snapshot()?;
            out.record(SEGMENT, 0, (0, 0), &wal(&[(2, 2)]))
        }),
        case("a damaged LZ4 block", &[], |out| {
            out.snapshot()?;
            let mut bytes = litestream::lz4::compress(&wal(&[(1, 0), (2, 2)])).unwrap();
            let middle = bytes.len() / 2;
            bytes[middle] ^= 0x55;
            out.record(SEGMENT, 0, (0, 0), &bytes)
        }),
        case("a damaged page", &["checksum"], |out| {
            out.snapshot()?;
            let mut bytes = wal(&[(1, 0), (2, 2)]);
            bytes[700] ^= 1;
            out.segment((0, 0), &bytes)
        }),
        case("a damaged WAL header", &[], |out| {
            out.snapshot()?;
            let mut bytes = wal(&[(2, 2)]);
            bytes[17] ^= 1;
            out.segment((0, 0), &bytes)
        }),
        case("foreign salts", &["salts"], |out| {
            out.snapshot()?;
            let mut bytes = wal(&[(2, 2)]);
            bytes[40] ^= 1;
            out.segment((0, 0), &bytes)
        }),
        case("half a WAL header", &["middle of a WAL header"], |out| {
            out.snapshot()?;
            out.segment((0, 0), &wal(&[(2, 2)])[..20])
        }),
        case("half a frame", &["middle of a page"], |out| {
            out.snapshot()?;
            out.segment((0, 0), &wal(&[(1, 0), (2, 2)])[..900])
        }),
        case("page 0", &[], |out| {
            out.snapshot()?;
            out.segment((0, 0), &wal(&[(0, 2)]))
        }),
        case("the last page there can be", &[], |out| {
            out.snapshot()?;
            out.segment((0, 0), &wal(&[(u32::MAX, u32::MAX)]))
        }),
    ]
}

/// Segments that are good, but not where they come.
fn orders() -> Vec<Case> {
    vec![
        case("a gap", &["to come"], |out| {
            out.snapshot()?;
            out.segment((0, 32 + 536), &wal(&[(1, 0), (2, 2)])[32 + 536..])
        }),
        case("an index skipped", &["to come"], |out| {
            out.snapshot()?;
            out.segment((3, 0), &wal(&[(2, 2)]))
        }),
        case("the past again", &["to come"], |out| {
            out.snapshot()?;
            let bytes = wal(&[(2, 2), (2, 2)]);
            out.segment((0, 0), &bytes[..568])?;
            out.segment((0, 568), &bytes[568..])?;
            out.segment((0, 568), &bytes[568..])
        }),
        case("a segment of a terabyte", &[], |out| {
            out.snapshot()?;
            out.head(SEGMENT, 0, (0, 0), 1 << 40)?;
            let filler = [&b"10000\r\n"[..], &[0xff; 1 << 16], b"\r\n"].concat();
            out.for_ever(&filler)
        }),
        case("a transaction without end", &[], |out| {
            out.snapshot()?;
            let bytes = wal(&[(2, 0); 20_000]);
            out.segment((0, 0), &bytes)?;
            out.raw(b"0\r\n\r\n")
        }),
    ]
}

#[test]
fn no_lie_of_an_upstream_does_harm() {
    let folder = Folder::new("lies");
    let (_other, honest) = ledger(folder.file("p.db"));
    let good = serve(&honest);
    let host = Host::app();
    let plain = Host::plain();
    for (number, Case { name, lie, words }) in lies().into_iter().enumerate() {
        println!("{name}");
        let path = folder.file(&format!("r{number}.db"));
        let replica = host.open(&path);
        let liar = Liar::start(lie);
        let sql = format!("SELECT litestream_follow('{}', '{{\"wait_ms\": 0}}')", liar.url);
        replica.run(&sql).unwrap();
        let error = until(name, || {
            let error = replica.value("SELECT error FROM litestream_databases");
            error.as_str().map(str::to_owned)
        });
        for word in words {
            assert!(error.contains(word), "{name}: no {word:?} in {error:?}");
        }
        assert!(error.len() < 500, "{name}: {error:?}");
        until("it to try again", || (liar.asked() >= 2).then_some(()));
        // Nothing of it was shown, or at most the part that was whole.
        let look = plain.open(&path);
        let seen = look.run("SELECT count(*) FROM sqlite_schema WHERE name <> 'lie'");
        let hidden = seen.map_or_else(|why| why.contains("locked"), |rows| rows[0][0] == 0);
        assert!(hidden, "{name}: a reader sees something");
        look.close();
        let begin = Instant::now();
        assert_eq!(replica.int("SELECT litestream_stop()"), 1, "{name}");
        assert!(begin.elapsed() < Duration::from_secs(5), "{name}: stopped {:?}", begin.elapsed());
        drop(liar);
        let sql = format!("SELECT litestream_follow('{good}', '{{\"overwrite\": true}}')");
        replica.text(&sql);
        assert_same(&honest, &replica);
        replica.int("SELECT litestream_stop()");
        replica.close();
    }
    let peak = host.peak_kib();
    assert!(peak < 200 << 10, "{peak} KiB at the peak");
}

/// Lies told to a replica that has good content: readers keep what they have.
#[test]
fn a_replica_with_good_content_keeps_it() {
    let folder = Folder::new("turned");
    let (other, honest) = ledger(folder.file("p.db"));
    let load = other.work("ledger_writer", json!({"path": folder.file("p.db"), "limit": 300}));
    until("some rows", || (load.count() == 300).then_some(()));
    load.finish();
    let good = serve(&honest);
    let host = Host::app();
    let path = folder.file("r.db");
    let replica = host.open(&path);
    follow(&replica, &good);
    let plain = Host::plain();
    let reads = plain.work("ledger_reader", json!({"path": path}));
    for Case { name, lie, .. } in
        records().into_iter().chain(snapshots()).chain(segments()).chain(orders())
    {
        // These are whole and lawful databases of an upstream that is believed: not this test's.
        if ["an LZ4 bomb", "the past again", "a transaction without end"].contains(&name) {
            continue;
        }
        println!("{name}");
        replica.int("SELECT litestream_stop()");
        let liar = Liar::start(lie);
        let options = "'{\"wait_ms\": 0, \"overwrite\": true}'";
        replica.run(&format!("SELECT litestream_follow('{}', {options})", liar.url)).unwrap();
        until(name, || {
            replica.value("SELECT error FROM litestream_databases").is_string().then_some(())
        });
        assert_eq!(honest.content(), replica.content(), "{name}");
    }
    replica.int("SELECT litestream_stop()");
    replica.text(&format!("SELECT litestream_follow('{good}', '{{\"overwrite\": true}}')"));
    assert_same(&honest, &replica);
    reads.finish();
}

/// An upstream that accepts and then says nothing.
#[test]
fn silence_is_noticed_and_does_not_hold_anybody_up() {
    let folder = Folder::new("silence");
    let host = Host::app();
    let replica = host.open(folder.file("r.db"));
    let mute: [Lie; 4] = [
        |out| out.silence(),
        |out| {
            out.begin("512")?;
            out.silence()
        },
        |out| {
            out.begin("512")?;
            out.head(SNAPSHOT, 0, (0, 0), 1024)?;
            out.silence()
        },
        |out| {
            out.snapshot()?;
            out.heartbeat((0, 0))?;
            out.silence()
        },
    ];
    for (number, lie) in mute.into_iter().enumerate() {
        let liar = Liar::start(lie);
        let begin = Instant::now();
        let options = "'{\"wait_ms\": 500, \"overwrite\": true}'";
        let outcome = replica.run(&format!("SELECT litestream_follow('{}', {options})", liar.url));
        assert_eq!(outcome.is_ok(), number == 3, "{number}: {outcome:?}");
        assert!(begin.elapsed() < Duration::from_secs(4), "{number}: {:?}", begin.elapsed());
        let begin = Instant::now();
        if number == 3 {
            // It once spoke, so its silence is an error by itself.
            until("the silence to be noticed", || {
                let error = replica.value("SELECT error FROM litestream_databases");
                error.as_str().is_some_and(|error| error.contains("silent")).then_some(())
            });
        }
        replica.run("SELECT litestream_stop()").unwrap();
        assert!(begin.elapsed() < Duration::from_secs(10), "{number}: {:?}", begin.elapsed());
    }
}
