//! Streams: what a follower gets, byte for byte.

use std::time::{Duration, Instant};

use litestream::wal::Chain;

use crate::client::{Record, connect};
use crate::fixture::{GENERATION, Primary, noise};

fn check_snapshot(record: &Record, primary: &Primary) {
    assert_eq!((record.kind, record.flags), (1, 0));
    assert_eq!((record.generation, record.index, record.offset), (GENERATION, 0, 0));
    assert!(record.payload == primary.snapshot);
}

#[test]
fn a_follower_of_the_ancestor_s_kind_gets_what_it_knows() {
    let mut primary = Primary::new(512, 600);
    primary.commit(&[1, 2]);
    primary.commit(&[3]);
    let attachment = primary.serve_alone();
    let mut client = connect(attachment.url());
    let head = client.get(&format!("/stream?path={}", primary.name().display()));
    let recorded = include_str!("../data/litestream-0.4.0-beta.2/headers.txt");
    let mut recorded = recorded.lines();
    assert_eq!(head.line, recorded.next().unwrap());
    for line in recorded.filter(|line| !line.is_empty()) {
        let (name, value) = line.split_once(": ").unwrap();
        let got = head.get(name).unwrap();
        match name {
            "Date" => assert_eq!(got.len(), value.len()),
            "Litestream-Page-Size" => assert_eq!(got, "512"),
            _ => assert_eq!(got, value),
        }
    }
    assert_eq!(head.get("Litestream-Features"), None);
    assert_eq!(head.get("Litestream-Database"), primary.name().to_str());
    check_snapshot(&client.data(), &primary);
    let mut wal = Vec::new();
    while wal.len() < primary.wal.len() {
        let record = client.record().unwrap();
        assert_eq!((record.kind, record.flags, record.index), (2, 0, 0));
        assert_eq!(record.offset, wal.len() as u64);
        wal.extend(record.expand());
    }
    assert!(wal == primary.wal);
    // A commit arrives at once, and so does the next index.
    primary.commit(&[4]);
    let offset = wal.len() as u64;
    let record = client.record().unwrap();
    assert_eq!((record.kind, record.offset), (2, offset));
    primary.restart();
    primary.commit(&[5]);
    let record = client.record().unwrap();
    assert_eq!((record.index, record.offset), (1, 0));
    assert!(record.expand() == primary.wal);
}

#[test]
fn http_1_0_gets_the_same_without_chunks() {
    let mut primary = Primary::new(512, 3);
    primary.commit(&[1]);
    let attachment = primary.serve_alone();
    let mut client = connect(attachment.url());
    client.send("GET /stream HTTP/1.0\r\n\r\n");
    let head = client.head().unwrap();
    assert_eq!(head.line, "HTTP/1.0 200 OK");
    assert_eq!((head.get("Transfer-Encoding"), head.get("Connection")), (None, Some("close")));
    check_snapshot(&client.record().unwrap(), &primary);
    assert!(client.record().unwrap().expand() == primary.wal);
    drop(attachment);
    assert_eq!(client.rest(), b"");
}

#[test]
fn features_are_given_to_those_who_ask() {
    let mut primary = Primary::new(4096, 100);
    primary.commit(&[1]);
    let attachment = primary.serve_alone();
    let mut client = connect(attachment.url());
    let head = client.get("/stream?features=lz4,delta,heartbeat");
    assert_eq!(head.get("Litestream-Features"), Some("heartbeat,lz4"));
    let beat = client.record().unwrap();
    assert_eq!((beat.kind, beat.flags, beat.payload.len()), (3, 0, 32));
    let eight = |at: usize| u64::from_be_bytes(beat.payload[at..at + 8].try_into().unwrap());
    assert_eq!((eight(0), eight(8), eight(16)), (GENERATION, 0, primary.pos.offset.get()));
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap();
    assert!(now.as_millis().abs_diff(eight(24).into()) < 5000);
    let snapshot = client.data();
    assert_eq!((snapshot.kind, snapshot.flags), (1, 1));
    assert!(snapshot.expand() == primary.snapshot);
    assert!(client.data().expand() == primary.wal);
    let start = Instant::now();
    let beats = (0..2).map(|_| client.record().unwrap());
    assert!(beats.into_iter().all(|record| record.kind == 3));
    let took = start.elapsed();
    assert!(took > Duration::from_millis(900), "{took:?}");
}

#[test]
fn a_follower_resumes_where_it_was_and_only_if_its_history_is_ours() {
    let mut primary = Primary::new(512, 2);
    primary.commit(&[1, 2]);
    let (middle, chain) = (primary.pos, primary.chain.unwrap());
    primary.commit(&[3]);
    let attachment = primary.serve_alone();
    let stream = |checksum: String| {
        let mut client = connect(attachment.url());
        let query = format!(
            "generation={}&index={}&offset={}&checksum={checksum}",
            middle.generation, middle.index, middle.offset
        );
        assert_eq!(client.get(&format!("/stream?{query}")).status, 200);
        client.record().unwrap()
    };
    let record = stream(chain.checksum.to_string());
    assert_eq!((record.kind, record.offset), (2, middle.offset.get()));
    assert!(record.expand() == primary.wal[usize::try_from(middle.offset.get()).unwrap()..]);
    check_snapshot(&stream("0123456789abcdef".to_owned()), &primary);
    let mut client = connect(attachment.url());
    client.get(&format!("/stream?generation={}&index=0", middle.generation));
    let record = client.record().unwrap();
    assert_eq!((record.kind, record.offset), (2, 0));
}

/// A transaction in three segments of a MiB each.
fn split_transaction(primary: &mut Primary) {
    let mut chain: Chain = primary.chain.unwrap();
    let page = noise(primary.page_size.bytes());
    for part in 0..3 {
        let mut raw = Vec::new();
        for at in 0..256 {
            let last = part == 2 && at == 255;
            chain.append(at + 1, if last { 256 } else { 0 }, &page, &mut raw);
        }
        primary.append_raw(raw, chain, part == 2);
    }
}

#[test]
fn a_large_transaction_comes_whole_or_in_parts() {
    let mut primary = Primary::new(4096, 1);
    primary.commit(&[1]);
    let before = primary.wal.len();
    split_transaction(&mut primary);
    let attachment = primary.serve_alone();
    let mut whole = connect(attachment.url());
    whole.get("/stream");
    check_snapshot(&whole.data(), &primary);
    whole.data();
    let record = whole.data();
    assert_eq!(record.offset, before as u64);
    assert!(record.expand() == primary.wal[before..], "one record");
    let mut parts = connect(attachment.url());
    parts.get("/stream?features=split");
    check_snapshot(&parts.data(), &primary);
    parts.data();
    let mut got = Vec::new();
    for _ in 0..3 {
        let record = parts.data();
        assert_eq!(record.offset, (before + got.len()) as u64);
        got.extend(record.expand());
    }
    assert!(got == primary.wal[before..]);
}

#[test]
fn another_generation_ends_the_stream() {
    let mut primary = Primary::new(512, 2);
    let attachment = primary.serve_alone();
    let mut client = connect(attachment.url());
    client.get("/stream");
    check_snapshot(&client.data(), &primary);
    primary.begin(2, 512, 3);
    assert_eq!(client.rest(), b"", "no last chunk: it ends between two records");
    let mut client = connect(attachment.url());
    client.get(&format!("/stream?generation={GENERATION:016x}&index=0"));
    let record = client.data();
    assert_eq!((record.kind, record.generation), (1, 2));
}

#[test]
fn detaching_ends_the_streams_of_that_database_only_and_the_last_one_the_server() {
    let (first, second) = (Primary::new(512, 1), Primary::new(512, 1));
    let address = crate::fixture::unique_address();
    let one = first.serve(&address, Default::default());
    let two = second.serve(&address, Default::default());
    let url = two.url().to_owned();
    let mut streams = [&first, &second].map(|primary| {
        let mut client = connect(&url);
        client.get(&format!("/stream?path={}", primary.name().display()));
        client.data();
        client
    });
    one.detach();
    assert_eq!(streams[0].rest(), b"");
    assert!(first.served.followers().is_empty());
    assert_eq!(second.served.followers().len(), 1);
    drop(two);
    assert_eq!(streams[1].rest(), b"");
    assert!(std::net::TcpStream::connect(url.strip_prefix("http://").unwrap()).is_err());
    // The port is free again at once.
    let port = url.rsplit_once(':').unwrap().1;
    let again =
        first.serve(&format!("{}:{port}", address.split(':').next().unwrap()), Default::default());
    assert_eq!(again.url(), url);
}

#[test]
fn a_unix_socket_serves_too() {
    let primary = Primary::new(512, 2);
    let path = primary.name().with_file_name("app.sock");
    let attachment = primary.serve(&format!("unix:{}", path.display()), Default::default());
    assert_eq!(attachment.url(), format!("unix:{}", path.display()));
    let mut client = connect(attachment.url());
    client.get("/stream");
    check_snapshot(&client.data(), &primary);
    assert_eq!(primary.served.followers()[0].remote, "unix");
    drop(attachment);
    assert_eq!(client.rest(), b"");
    assert!(!path.exists());
}
