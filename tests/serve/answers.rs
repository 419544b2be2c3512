//! Small answers: the ancestor's, health, metrics, acknowledgements.

use std::time::{Duration, Instant};

use litestream::serve::{ServeOptions, followers};

use crate::client::{ask, connect, get};
use crate::fixture::{Primary, unique_address};

/// How the ancestor answered; `<PATH>` stands for the database's path.
const ANCESTOR: &str = include_str!("../data/litestream-0.4.0-beta.2/http.tsv");

#[test]
fn requests_are_answered_as_the_ancestor_did() {
    let mut primary = Primary::new(512, 2);
    primary.commit(&[1]);
    let url = unique_address();
    let attachment = primary.serve(&url, ServeOptions::default());
    // A second database, so that the name is required as it always was there.
    let other = Primary::new(512, 1);
    let _second = other.serve(&url, ServeOptions::default());
    let mut compared = 0;
    for line in ANCESTOR.lines().filter(|line| !line.starts_with('#')) {
        let mut columns = line.split('\t');
        let (request, status) = (columns.next().unwrap(), columns.next().unwrap_or_default());
        let text = columns.next().unwrap_or_default();
        // It had nothing to show to people.
        if status.is_empty() || request == "/" {
            continue;
        }
        let (options, target) = request.rsplit_once(' ').unwrap_or(("", request));
        let target = target.replace("<PATH>", primary.name().to_str().unwrap());
        let method = match options {
            "" | "--http1.0" => "GET",
            "-I" => "HEAD",
            other => other.strip_prefix("-X ").unwrap(),
        };
        let version = if options == "--http1.0" { "HTTP/1.0" } else { "HTTP/1.1" };
        let mut client = connect(attachment.url());
        client.send(format!("{method} {target} {version}\r\nHost: localhost\r\n\r\n"));
        let head = client.head().unwrap();
        assert_eq!(head.line, status, "{request}");
        if text != "(binary)" && method != "HEAD" {
            assert_eq!(client.body(&head), format!("{text}\n"), "{request}");
            assert_eq!(head.get("Content-Type"), Some("text/plain; charset=utf-8"));
        }
        compared += 1;
    }
    assert_eq!(compared, 21);
}

#[test]
fn a_database_is_found_by_path_by_unique_name_or_because_it_is_the_only_one() {
    let first = Primary::new(512, 1);
    let address = unique_address();
    let attachment = first.serve(&address, ServeOptions::default());
    let url = attachment.url();
    let status = |target: &str| connect(url).get(target).status;
    assert_eq!(status("/stream"), 200);
    assert_eq!(status("/stream?path=app.db"), 200);
    assert_eq!(status(&format!("/stream?path={}", first.name().display())), 200);
    let encoded = first.name().to_str().unwrap().replace('/', "%2F");
    assert_eq!(status(&format!("/stream?path={encoded}")), 200);
    assert_eq!(status("/stream?path=../app.db"), 404);
    assert_eq!(status("/stream?path=%00"), 404);
    let second = Primary::new(512, 1);
    let same_name = second.serve(&address, ServeOptions::default());
    assert_eq!(same_name.url(), url);
    assert_eq!(status("/stream"), 400);
    assert_eq!(status("/stream?path=app.db"), 404);
    assert_eq!(status(&format!("/stream?path={}", second.name().display())), 200);
    same_name.detach();
    assert_eq!(status("/stream?path=app.db"), 200);
}

#[test]
fn health_tells_what_is_missing() {
    let mut primary = Primary::empty("app.db", None);
    let attachment = primary.serve_alone();
    let url = attachment.url();
    let (status, text) = get(url, "/healthz");
    let path = primary.name().display();
    assert_eq!((status, text), (503, format!("{path}: no generation available\n")));
    assert_eq!(get(url, "/stream"), (503, "No generation available\n".to_owned()));
    primary.begin(1, 512, 1);
    assert_eq!(get(url, "/healthz"), (200, "ok\n".to_owned()));
    drop(attachment);
    let mut failing = Primary::empty("app.db", Some("disk full"));
    failing.begin(1, 512, 1);
    let attachment = failing.serve_alone();
    let (status, text) = get(attachment.url(), "/healthz");
    assert_eq!((status, text), (503, format!("{}: disk full\n", failing.name().display())));
}

#[test]
fn metrics_are_prometheus_text() {
    let primary = Primary::new(512, 4);
    let attachment = primary.serve_alone();
    let mut stream = connect(attachment.url());
    stream.get("/stream");
    assert_eq!(stream.data().payload.len(), 2048);
    let mut client = connect(attachment.url());
    let head = client.get("/metrics");
    assert_eq!(head.get("Content-Type"), Some("text/plain; version=0.0.4; charset=utf-8"));
    let text = client.body(&head);
    let db = format!("{{db=\"{}\"}}", primary.name().display());
    for line in ["litestream_db_size", "litestream_followers"] {
        assert!(text.contains(&format!("# TYPE {line} gauge\n{line}{db} ")), "{text}");
    }
    assert!(text.contains(&format!("\nlitestream_followers{db} 1\n")), "{text}");
    // Counted once they are sent, so perhaps after they came.
    let deadline = Instant::now() + Duration::from_secs(60);
    let sent = || {
        let (_, text) = get(attachment.url(), "/metrics");
        let sent = text.lines().find(|line| line.starts_with("litestream_follower_bytes_total{"));
        sent.unwrap().rsplit(' ').next().unwrap().parse::<u64>().unwrap()
    };
    while sent() < 2048 + 40 {
        assert!(Instant::now() < deadline, "{} bytes were sent", sent());
    }
    assert_eq!(ask(attachment.url(), "HEAD /metrics HTTP/1.1").0, 200);
}

#[test]
fn acknowledgements_are_seen() {
    let mut primary = Primary::new(512, 1);
    let attachment = primary.serve_alone();
    let url = attachment.url();
    let ack = |query: &str| ask(url, &format!("POST /ack?{query} HTTP/1.1\r\nContent-Length: 0"));
    let pos = primary.pos.to_string();
    assert_eq!(ack(&format!("follower=f1&pos={pos}")), (404, "Follower not found\n".into()));
    let mut stream = connect(url);
    stream.get("/stream?features=split&follower=f1");
    stream.data();
    primary.commit(&[3, 4]);
    stream.data();
    let served = &primary.served;
    let here = |pos| served.wait_applied(pos, 1, Duration::ZERO);
    let rows = || {
        let mut rows = followers();
        rows.retain(|row| row.database == primary.path);
        rows
    };
    let row = &rows()[0];
    assert_eq!((row.applied_pos, row.lag), (None, None));
    assert_eq!(here(primary.pos), 0);
    assert_eq!(ack(&format!("follower=f1&pos={pos}")), (204, String::new()));
    assert_eq!((here(primary.pos), rows()[0].applied_pos), (0, Some(pos.parse().unwrap())));
    assert!(rows()[0].lag.unwrap() > 0.0);
    let waiting = std::thread::scope(|scope| {
        let waiter = scope.spawn(|| served.wait_applied(primary.pos, 1, Duration::from_secs(10)));
        assert_eq!(ack(&format!("path=app.db&follower=f1&pos={}", primary.pos)).0, 204);
        waiter.join().unwrap()
    });
    assert_eq!(waiting, 1);
    let row = &rows()[0];
    assert_eq!((row.sent_pos, row.applied_pos), (primary.pos, Some(primary.pos)));
    assert_eq!(row.lag, Some(0.0));
    assert!(row.bytes > 1000 && row.remote.starts_with("127."), "{row:?}");
    for (query, status, text) in [
        ("pos=x", 400, "Follower name required\n"),
        ("follower=f1", 400, "Position required\n"),
        ("follower=f1&pos=x", 400, "Invalid pos query parameter\n"),
        ("follower=a%0ab&pos=x", 400, "Invalid follower query parameter\n"),
        (&format!("follower=f2&pos={pos}"), 404, "Follower not found\n"),
        (&format!("path=x&follower=f1&pos={pos}"), 404, "Database not found\n"),
    ] {
        assert_eq!(ack(query), (status, text.to_owned()), "{query}");
    }
    assert_eq!(get(url, "/ack").0, 405);
    drop(stream);
    let gone = std::time::Instant::now() + Duration::from_secs(5);
    while !rows().is_empty() {
        assert!(std::time::Instant::now() < gone, "the row stays");
        std::thread::sleep(Duration::from_millis(10));
    }
}

#[test]
fn connections_are_kept_and_requests_may_be_pipelined() {
    let primary = Primary::new(512, 1);
    let attachment = primary.serve_alone();
    let mut client = connect(attachment.url());
    for _ in 0..3 {
        let head = client.get("/healthz");
        assert_eq!((head.status, head.get("Connection")), (200, None));
        assert_eq!(client.body(&head), "ok\n");
    }
    let one = "GET /healthz HTTP/1.1\r\n\r\n";
    let with_body = "POST /nope HTTP/1.1\r\nContent-Length: 5000\r\n\r\n";
    client.send(format!("{one}{with_body}{}{one}", "x".repeat(5000)));
    for status in [200, 404, 200] {
        let head = client.head().unwrap();
        client.body(&head);
        assert_eq!(head.status, status);
    }
    client.send("POST /nope HTTP/1.1\r\nContent-Length: 2\r\nExpect: 100-continue\r\n\r\n");
    assert_eq!(client.head().unwrap().line, "HTTP/1.1 100 Continue");
    client.send("ok");
    let head = client.head().unwrap();
    assert_eq!((head.status, client.body(&head)), (404, "404 page not found\n".to_owned()));
    client.send("GET /healthz HTTP/1.0\r\n\r\n");
    let head = client.head().unwrap();
    assert_eq!((head.line.as_str(), head.get("Connection")), ("HTTP/1.0 200 OK", Some("close")));
    assert_eq!(client.rest(), b"ok\n");
}
