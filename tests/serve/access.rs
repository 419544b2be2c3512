//! Who may ask: tokens, protected mode, shared servers.

use std::net::UdpSocket;

use litestream::serve::{ServeOptions, attach};
use litestream::token::Token;

use crate::client::{ask, connect, get};
use crate::fixture::{Primary, unique_address};

fn with_token(token: &str) -> ServeOptions {
    ServeOptions { token: Token::given(Some(token.to_owned())).unwrap(), ..ServeOptions::default() }
}

#[test]
fn a_token_is_needed_for_everything_but_health() {
    let primary = Primary::new(512, 1);
    let attachment = primary.serve(&unique_address(), with_token("s3cret"));
    let url = attachment.url();
    assert_eq!(get(url, "/healthz"), (200, "ok\n".to_owned()));
    for target in ["/stream", "/checksums", "/metrics", "/status", "/", "/nope", "/ack"] {
        assert_eq!(get(url, target).0, 401, "{target}");
    }
    let status = |header: &str| {
        let mut client = connect(url);
        client.send(format!("GET /stream HTTP/1.1\r\n{header}\r\n\r\n"));
        let head = client.head().unwrap();
        assert_eq!(head.status == 401, head.get("WWW-Authenticate") == Some("Bearer"));
        head.status
    };
    for bad in [
        "X: y",
        "Authorization:",
        "Authorization: s3cret",
        "Authorization: Bearer",
        "Authorization: Bearer ",
        "Authorization: Bearer s3cre",
        "Authorization: Bearer s3cret2",
        "Authorization: Bearer S3CRET",
        "Authorization: Basic s3cret",
    ] {
        assert_eq!(status(bad), 401, "{bad}");
    }
    assert_eq!(status("authorization: bearer s3cret"), 200);
    // With a token the name in Host does not matter.
    let request =
        "GET /metrics HTTP/1.1\r\nHost: db.example\r\nAuthorization: Bearer s3cret\r\n\r\n";
    let mut client = connect(url);
    client.send(request);
    assert_eq!(client.head().unwrap().status, 200);
}

#[test]
fn health_tells_strangers_no_path() {
    let primary = Primary::empty("app.db", None);
    let attachment = primary.serve(&unique_address(), with_token("s3cret"));
    assert_eq!(get(attachment.url(), "/healthz"), (503, "not ready\n".to_owned()));
}

#[test]
fn without_a_token_only_this_machine_is_answered() {
    let primary = Primary::new(512, 1);
    let attachment = primary.serve("0.0.0.0:0", ServeOptions::default());
    let url = attachment.url();
    assert!(url.starts_with("http://127.0.0.1:"), "{url}");
    assert_eq!(get(url, "/metrics").0, 200);
    let port = url.rsplit_once(':').unwrap().1;
    let Some(address) = outside_address() else { return };
    let (status, text) = get(&format!("http://{address}:{port}"), "/stream");
    assert_eq!(status, 403);
    assert!(text.contains("\"token\"") && text.contains("\"allow_anonymous\": true"), "{text}");
    assert_eq!(get(&format!("http://{address}:{port}"), "/healthz").0, 200);
    drop(attachment);
    let options = ServeOptions { allow_anonymous: true, ..ServeOptions::default() };
    let attachment = primary.serve(":0", options);
    let port = attachment.url().rsplit_once(':').unwrap().1;
    assert_eq!(get(&format!("http://{address}:{port}"), "/metrics").0, 200);
}

/// An address of this machine that is not loopback. Nothing is sent.
fn outside_address() -> Option<std::net::IpAddr> {
    let socket = UdpSocket::bind("0.0.0.0:0").ok()?;
    socket.connect("192.0.2.1:9").ok()?;
    let address = socket.local_addr().ok()?.ip();
    (!address.is_loopback() && !address.is_unspecified()).then_some(address)
}

#[test]
fn a_web_page_cannot_ask_under_a_name_of_its_own() {
    let primary = Primary::new(512, 1);
    let attachment = primary.serve_alone();
    let status = |host: &str| {
        let mut client = connect(attachment.url());
        client.send(format!("GET /metrics HTTP/1.1\r\nHost: {host}\r\n\r\n"));
        client.head().unwrap().status
    };
    for good in ["localhost", "LOCALHOST:1", "127.0.0.1:9", "[::1]:9", "[::1]", "app.localhost", ""]
    {
        assert_eq!(status(good), 200, "{good:?}");
    }
    for bad in ["evil.example", "evil.example:9090", "localhost.evil.example", "a:b"] {
        assert_eq!(status(bad), 403, "{bad:?}");
    }
}

#[test]
fn a_shared_server_has_one_set_of_options() {
    let (first, second) = (Primary::new(512, 1), Primary::new(512, 1));
    let address = unique_address();
    let attachment = first.serve(&address, with_token("a"));
    let again = attach(&address, with_token("a"), std::sync::Arc::clone(&first.served));
    assert!(again.err().unwrap().to_string().contains("already served"));
    // The port it got means the same server.
    let real = attachment.url().strip_prefix("http://").unwrap().to_owned();
    for options in [with_token("b"), ServeOptions::default()] {
        let result = attach(&real, options, std::sync::Arc::clone(&second.served));
        let error = result.err().unwrap().to_string();
        assert!(error.contains("another token"), "{error}");
    }
    let same = second.serve(&real, with_token("a"));
    assert_eq!(same.url(), attachment.url());
    drop(attachment);
    let request = "GET /stream?path=app.db HTTP/1.1\r\nAuthorization: Bearer a";
    let mut client = connect(same.url());
    client.send(format!("{request}\r\n\r\n"));
    assert_eq!(client.head().unwrap().status, 200);
}

/// Any port means that another one will do: who asked for one with other options was told that the
/// address is taken.
#[test]
fn servers_with_other_options_get_ports_of_their_own() {
    let (first, second, third) = (Primary::new(512, 1), Primary::new(512, 1), Primary::new(512, 1));
    let address = unique_address();
    let attached = first.serve(&address, with_token("a"));
    let other = second.serve(&address, with_token("b"));
    assert_ne!(attached.url(), other.url());
    let same = third.serve(&address, with_token("b"));
    assert_eq!(same.url(), other.url());
    // The very port is another matter.
    let real = attached.url().strip_prefix("http://").unwrap().to_owned();
    let refused = attach(&real, with_token("b"), std::sync::Arc::clone(&third.served));
    assert!(refused.err().unwrap().to_string().contains("another token"));
}

#[test]
fn bad_options_and_taken_addresses_are_explained() {
    let primary = Primary::new(512, 1);
    let try_attach = |address: &str, options| {
        let result = attach(address, options, std::sync::Arc::clone(&primary.served));
        result.err().unwrap().to_string()
    };
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let taken = taken.local_addr().unwrap();
    let error = try_attach(&taken.to_string(), ServeOptions::default());
    assert_eq!(error, format!("cannot listen on {taken}: address already in use"));
    let error = try_attach("192.0.2.1:9", ServeOptions::default());
    assert!(error.ends_with("this machine does not have that address"), "{error}");
    assert_eq!(ask_nothing(), 0);
}

fn ask_nothing() -> usize {
    let primary = Primary::new(512, 1);
    let attachment = primary.serve_alone();
    assert_eq!(ask(attachment.url(), "OPTIONS * HTTP/1.1").0, 404);
    primary.served.followers().len()
}
