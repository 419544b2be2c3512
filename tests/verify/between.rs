//! Somebody between the replica and its upstream: an upstream that cannot tell its pages, that
//! leaves in the middle, that never answers.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use crate::common::*;
use crate::support::*;

/// Requests for checksums are passed on, and the answer whole.
const WHOLE: usize = usize::MAX;
/// They are answered as a server does that knows no such request.
const UNKNOWN: usize = usize::MAX - 1;
/// They are never answered.
const SILENT: usize = usize::MAX - 2;

/// Passes connections on to `address`; of the answer to a request for checksums, as much as is set.
fn between(address: String) -> (String, Arc<AtomicUsize>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let passed = Arc::new(AtomicUsize::new(WHOLE));
    let bytes = Arc::clone(&passed);
    std::thread::spawn(move || {
        for client in listener.incoming() {
            let (client, address, bytes) = (client.unwrap(), address.clone(), Arc::clone(&bytes));
            std::thread::spawn(move || pass(client, &address, &bytes));
        }
    });
    (url, passed)
}

fn pass(mut client: TcpStream, address: &str, passed: &AtomicUsize) {
    let mut head = vec![0; 4096];
    let read = client.read(&mut head).unwrap_or(0);
    head.truncate(read);
    let mut limit = WHOLE;
    if head.starts_with(b"GET /checksums") {
        limit = passed.load(Ordering::Acquire);
    }
    if limit == UNKNOWN {
        let answer = "HTTP/1.1 404 Not Found\r\nContent-Length: 19\r\n\r\n404 page not found\n";
        client.write_all(answer.as_bytes()).unwrap();
        return;
    }
    if limit == SILENT {
        // Until the replica has had enough of it.
        let _gone = client.read(&mut [0]);
        return;
    }
    let Ok(mut server) = TcpStream::connect(address) else { return };
    server.write_all(&head).unwrap();
    let (mut from, mut to) = (client.try_clone().unwrap(), server.try_clone().unwrap());
    std::thread::spawn(move || std::io::copy(&mut from, &mut to));
    let _ended = std::io::copy(&mut Read::by_ref(&mut server).take(limit as u64), &mut client);
    let _gone = client.shutdown(Shutdown::Both);
    let _gone = server.shutdown(Shutdown::Both);
}

/// A pair of 300 pages with somebody between them.
fn parted(name: &str) -> (Pair, Arc<AtomicUsize>) {
    let pair = Pair::of_rows(name, 300);
    pair.replica.int("SELECT litestream_stop('follow')");
    let (url, passed) =
        between(pair.url.trim_start_matches("http://").trim_end_matches('/').into());
    follow(&pair.replica, &url);
    assert_eq!(pair.verify(), "ok");
    (pair, passed)
}

/// The replica follows on, whatever became of its question.
fn follows_on(pair: &Pair) {
    pair.primary.script("UPDATE t SET pad = randomblob(3000) WHERE i < 4");
    assert_same(&pair.primary, &pair.replica);
}

#[test]
fn an_upstream_that_cannot_tell() {
    let (pair, passed) = parted("verify-unknown");
    passed.store(UNKNOWN, Ordering::Release);
    let error = pair.replica.fails(VERIFY);
    assert!(error.contains("cannot tell the checksums of its pages"), "{error}");
    follows_on(&pair);
}

#[test]
fn an_upstream_that_leaves_in_the_middle() {
    let (pair, passed) = parted("verify-cut");
    for bytes in [0, 100, 400, 1000, 2000, 2600] {
        passed.store(bytes, Ordering::Release);
        let error = pair.replica.fails(VERIFY);
        let known = ["cannot reach the upstream", "the upstream broke off at page"];
        assert!(known.iter().any(|words| error.contains(words)), "{bytes}: {error}");
        follows_on(&pair);
    }
    passed.store(WHOLE, Ordering::Release);
    assert_eq!(pair.verify(), "ok");
}

#[test]
fn an_upstream_that_never_answers() {
    let (pair, passed) = parted("verify-silent");
    passed.store(SILENT, Ordering::Release);
    let error = pair.replica.fails(r#"SELECT litestream_verify('{"timeout_ms": 700}')"#);
    assert!(error.contains("not done within 700 ms"), "{error}");
    follows_on(&pair);
    let pending = pair.replica.send(VERIFY);
    // Wherever it is by then, an interrupt ends it.
    let asker = pair.replica_host.open(pair.replica_path());
    let meanwhile = asker.fails(r#"SELECT litestream_verify('{"timeout_ms": 300}')"#);
    assert!(meanwhile.contains("not done within 300 ms"), "{meanwhile}");
    pair.replica.interrupt();
    let error = pending.outcome(DEADLINE).unwrap_err();
    assert!(error.contains("interrupted"), "{error}");
    follows_on(&pair);
    passed.store(WHOLE, Ordering::Release);
    assert_eq!(pair.verify(), "ok");
}

#[test]
fn an_upstream_that_is_gone() {
    let pair = Pair::of_rows("verify-gone", 20);
    let Pair { primary_host, replica, .. } = pair;
    primary_host.kill();
    let error = replica.fails(r#"SELECT litestream_verify('{"timeout_ms": 3000}')"#);
    let known = ["cannot reach the upstream", "this replica is not caught up"];
    assert!(known.iter().any(|words| error.contains(words)), "{error}");
}
