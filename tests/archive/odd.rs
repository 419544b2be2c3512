//! The S3 store and servers that are slow, or no S3 servers at all.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::Arc;
use std::time::Duration;

use litestream::archive::store::{Put, Store};
use litestream::archive::{Archive, ArchiveOptions};
use litestream::error::ErrorKind;

use crate::rules::fails_with;

/// A server that does with each connection what `serve` does. It lasts as long as the process.
fn server(serve: Box<dyn Fn(&mut TcpStream) + Send + Sync>) -> Arc<dyn Store> {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let endpoint = format!("http://{}", listener.local_addr().unwrap());
    let serve = Arc::from(serve);
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let serve: Arc<dyn Fn(&mut TcpStream) + Send + Sync> = Arc::clone(&serve);
            std::thread::spawn(move || serve(&mut stream.unwrap()));
        }
    });
    let options = ArchiveOptions {
        endpoint: Some(endpoint),
        access_key_id: Some("key".into()),
        secret_access_key: Some("secret".into()),
        ..ArchiveOptions::default()
    };
    Arc::clone(Archive::open("s3://bucket/odd", &options).unwrap().store())
}

/// Reads a request to its end, and says what it asks for; none: the client is gone.
fn request(stream: &mut TcpStream) -> Option<String> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        let mut byte = [0];
        stream.read_exact(&mut byte).ok()?;
        head.push(byte[0]);
    }
    let head = String::from_utf8(head).unwrap();
    let length = head.lines().find_map(|line| line.strip_prefix("content-length: "));
    let mut body = vec![0; length.map_or(0, |length| length.parse().unwrap())];
    stream.read_exact(&mut body).ok()?;
    Some(head)
}

/// A server that answers every request alike.
fn serving(answer: fn(&mut TcpStream)) -> Arc<dyn Store> {
    server(Box::new(move |stream| {
        while request(stream).is_some() {
            answer(stream);
        }
    }))
}

fn answer(stream: &mut TcpStream, status: &str, body: &str) {
    let length = body.len();
    // The client may have gone.
    let _ = write!(stream, "HTTP/1.1 {status}\r\ncontent-length: {length}\r\n\r\n{body}");
}

/// The system takes a body at once and the line does not: the wait for the answer is as long as the
/// line needs. Longer than 20 s, so in the long form only; `src/archive/s3` tests the numbers.
#[test]
fn a_slow_line_gets_its_object_up() {
    if !crate::common::soak() {
        return;
    }
    let store = server(Box::new(|stream| {
        std::thread::sleep(Duration::from_secs(23));
        while let Some(head) = request(stream) {
            let status = if head.starts_with("PUT") { "200 OK" } else { "404 Not Found" };
            answer(stream, status, "");
        }
    }));
    store.replace("a", &vec![7; 512 << 10]).unwrap();
    let mut upload = store.create("b").unwrap();
    upload.write_all(&[7; 1000]).unwrap();
    assert_eq!(upload.finish().unwrap(), Put::Created);
}

/// Whatever a server says of success, no archive is empty because of it.
#[test]
fn what_is_no_listing_is_no_empty_archive() {
    let answers: [fn(&mut TcpStream); 5] = [
        |stream| answer(stream, "200 OK", ""),
        |stream| answer(stream, "200 OK", "<html><body>Welcome!</body></html>"),
        |stream| answer(stream, "200 OK", "{\"status\": \"ok\"}"),
        |stream| answer(stream, "200 OK", "<ListBucketResult><Name>b</Name></ListBucketResult>"),
        |stream| {
            let cut = "<ListBucketResult><IsTruncated>false</IsTruncated><Contents><Key>odd/a";
            answer(stream, "200 OK", cut);
        },
    ];
    for serve in answers {
        let store = serving(serve);
        let failures = [
            fails_with(store.list("", &mut |_| Ok(())), ErrorKind::Peer),
            fails_with(store.folders(""), ErrorKind::Peer),
        ];
        for text in failures {
            assert!(text.contains("http://127.0.0.1:"), "{text}");
            assert!(text.contains("does not answer as S3 does"), "{text}");
        }
    }
}

/// A server's own words are kept short, and have no effect on a terminal.
#[test]
fn what_a_server_says_is_kept_short() {
    let store = serving(|stream| {
        let words = "\u{1b}[31m\r\n".to_owned() + &"x".repeat(100_000);
        let error = format!("<Code>Odd{words}</Code><Key>{words}</Key><Message>{words}</Message>");
        let body = format!("<UploadId>1</UploadId><Error>{error}</Error>");
        let length = body.len();
        let head = format!("HTTP/1.1 200 OK\r\netag: 1\r\ncontent-length: {length}\r\n\r\n");
        let _ = stream.write_all((head + &body).as_bytes());
    });
    let text = fails_with(store.delete(&["a".into()]), ErrorKind::Io);
    assert!(text.contains("Odd[31mxx"), "{text}");
    assert!(text.len() < 1000 && !text.contains(char::is_control), "{text}");
}
