//! Strangers: half a request, none at all, garbage, and crowds of them.

use std::time::{Duration, Instant};

use crate::client::{connect, get};
use crate::fixture::{Primary, noise};

#[test]
fn two_hundred_silent_connections_keep_nobody_out() {
    let primary = Primary::new(512, 1);
    let attachment = primary.serve_alone();
    let mut silent: Vec<_> = (0..200).map(|_| connect(attachment.url())).collect();
    for half in &mut silent {
        half.send("GET /stream HTTP/1.1\r\nHost: lo");
    }
    let start = Instant::now();
    let mut client = connect(attachment.url());
    assert_eq!(client.get("/stream").status, 200);
    assert_eq!(client.data().kind, 1);
    assert_eq!(get(attachment.url(), "/healthz").0, 200);
    assert!(start.elapsed() < Duration::from_secs(5), "{:?}", start.elapsed());
    // And one of them may still go on.
    let mut late = silent.pop().unwrap();
    late.send("calhost\r\n\r\n");
    assert_eq!(late.head().unwrap().status, 200);
}

#[test]
fn garbage_is_answered_or_dropped_and_never_harms() {
    let primary = Primary::new(512, 1);
    let attachment = primary.serve_alone();
    let tls_hello = [&b"\x16\x03\x01\x02\0\x01\0\x01\xfc\x03\x03"[..], &noise(500)].concat();
    let many_headers = format!("GET / HTTP/1.1\r\n{}\r\n", "A: b\r\n".repeat(1000));
    let chunked = "POST /ack HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n";
    for (what, bytes, status) in [
        ("TLS", tls_hello, 400),
        ("noise", noise(100_000), 400),
        ("zeroes", vec![0; 20_000], 400),
        ("newlines", vec![b'\n'; 20_000], 431),
        ("one word", vec![b'A'; 20_000], 431),
        ("headers", many_headers.into_bytes(), 431),
        ("length", b"GET / HTTP/1.1\r\nContent-Length: 70000\r\n\r\n".to_vec(), 413),
        ("chunks", chunked.into(), 411),
        ("version", b"GET / HTTP/3.0\r\n\r\n".to_vec(), 505),
        ("HEAD", b"HEAD / HTTP/1.1\r\nHost\r\n\r\n".to_vec(), 400),
    ] {
        let mut client = connect(attachment.url());
        // The server may hang up before everything is sent.
        let _ = std::io::Write::write_all(&mut client.socket, &bytes);
        let head = client.head().unwrap();
        assert_eq!((head.status, head.get("Connection")), (status, Some("close")), "{what}");
        client.rest();
    }
    assert_eq!(get(attachment.url(), "/healthz").0, 200);
}

#[test]
fn headers_of_ours_cannot_be_forged() {
    let primary = Primary::new(512, 1);
    let attachment = primary.serve_alone();
    let mut client = connect(attachment.url());
    client.send("GET /nope HTTP/1.1\r\nLitestream-Connection: 1\r\nConnection: keep-alive\r\n\r\n");
    assert_eq!(client.head().unwrap().status, 404);
}

#[test]
fn many_followers_come_and_go() {
    let mut primary = Primary::new(512, 50);
    let attachment = primary.serve_alone();
    let url = attachment.url();
    std::thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| {
                for _ in 0..25 {
                    let mut client = connect(url);
                    assert_eq!(client.get("/stream").status, 200);
                    assert_eq!(client.data().kind, 1);
                }
            });
        }
        for page in 1..50 {
            primary.commit(&[page]);
            std::thread::sleep(Duration::from_millis(2));
        }
    });
    let deadline = Instant::now() + Duration::from_secs(10);
    while !primary.served.followers().is_empty() {
        assert!(Instant::now() < deadline, "{:?}", primary.served.followers());
        std::thread::sleep(Duration::from_millis(10));
    }
}
