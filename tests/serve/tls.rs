//! HTTPS: the same answers as over HTTP, and strangers who speak TLS badly or not at all.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpStream};
use std::sync::Arc;
use std::time::{Duration, Instant};

use litestream::registry;
use litestream::serve::{Attachment, ServeOptions, TlsFiles, attach};
use rustls::pki_types::ServerName;
use rustls::{ClientConfig, ClientConnection, StreamOwned};

use crate::certs::{Authority, Pair, self_signed};
use crate::client::{Client, Duplex, connect};
use crate::fixture::{Folder, Primary, noise, unique_address};

type TlsStream = StreamOwned<ClientConnection, TcpStream>;

impl Duplex for TlsStream {
    fn patience(&self, wait: Duration) {
        self.sock.set_read_timeout(Some(wait)).unwrap();
    }
}

fn options(files: &TlsFiles) -> ServeOptions {
    ServeOptions { tls: Some(files.clone()), ..ServeOptions::default() }
}

/// A primary served over HTTPS, and who may be trusted.
struct Secure {
    folder: Folder,
    authority: Authority,
    primary: Primary,
    attachment: Attachment,
}

impl Secure {
    fn new(primary: Primary) -> Self {
        let (folder, authority) = (Folder::new(), Authority::new());
        let files = authority.sign(&["localhost"]).write(&folder.0);
        let attachment = primary.serve(&unique_address(), options(&files));
        Secure { folder, authority, primary, attachment }
    }

    fn address(&self) -> &str {
        self.attachment.url().strip_prefix("https://").unwrap()
    }

    fn socket(&self) -> TcpStream {
        let socket = TcpStream::connect(self.address()).unwrap();
        socket.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        socket
    }

    fn connect(&self) -> Client {
        self.connect_with(self.authority.client())
    }

    fn connect_with(&self, config: Arc<ClientConfig>) -> Client {
        Client::over(Box::new(self.stream(config)))
    }

    fn stream(&self, config: Arc<ClientConfig>) -> TlsStream {
        let name = ServerName::try_from("localhost").unwrap();
        StreamOwned::new(ClientConnection::new(config, name).unwrap(), self.socket())
    }

    fn is_well(&self) -> bool {
        let mut client = self.connect();
        let head = client.get("/healthz");
        head.status == 200 && client.body(&head) == "ok\n"
    }

    /// What the server sends to these bytes, to the end of the connection.
    fn answer_to(&self, bytes: &[u8]) -> Vec<u8> {
        let mut socket = self.socket();
        // It may hang up before everything is sent.
        let _ = socket.write_all(bytes);
        let mut answer = Vec::new();
        let _ = socket.read_to_end(&mut answer);
        answer
    }
}

#[test]
fn answers_and_records_are_those_of_http() {
    let mut primary = Primary::new(4096, 2000);
    primary.commit(&[1, 2, 3]);
    let secure = Secure::new(primary);
    let plain = secure.primary.serve(&unique_address(), ServeOptions::default());
    assert!(secure.attachment.url().starts_with("https://127.1."), "{}", secure.attachment.url());
    let target = "/stream?features=lz4,split";
    let (mut over_tls, mut over_tcp) = (secure.connect(), connect(plain.url()));
    let (one, other) = (over_tls.get(target), over_tcp.get(target));
    assert_eq!((one.status, one.get("Litestream-Page-Size")), (200, Some("4096")));
    assert_eq!(one.get("Litestream-Features"), other.get("Litestream-Features"));
    for _ in 0..2 {
        assert_eq!(over_tls.data(), over_tcp.data());
    }
    let mut secure = secure;
    secure.primary.commit(&[4; 500]);
    assert_eq!(over_tls.data(), over_tcp.data());
    secure.primary.commit(&[5]);
    assert_eq!(over_tls.data(), over_tcp.data());
    // Whoever leaves is noticed, with a goodbye and without.
    assert_eq!(secure.primary.served.followers().len(), 2);
    drop(over_tls);
    let deadline = Instant::now() + Duration::from_secs(20);
    while secure.primary.served.followers().len() > 1 {
        assert!(Instant::now() < deadline);
        std::thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn both_versions_of_the_protocol_are_spoken_and_no_other() {
    let secure = Secure::new(Primary::new(512, 1));
    for version in [&rustls::version::TLS12, &rustls::version::TLS13] {
        let mut config = (*secure.authority.client()).clone();
        config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let builder = ClientConfig::builder_with_provider(provider);
        let builder = builder.with_protocol_versions(&[version]).unwrap();
        let mut roots = rustls::RootCertStore::empty();
        let pem = secure.authority.pem.as_bytes();
        roots.add(rustls::pki_types::pem::PemObject::from_pem_slice(pem).unwrap()).unwrap();
        let mut only = builder.with_root_certificates(roots).with_no_client_auth();
        only.alpn_protocols = config.alpn_protocols;
        let mut stream = secure.stream(Arc::new(only));
        stream.write_all(b"GET /healthz HTTP/1.0\r\n\r\n").unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap(); // ends with a goodbye, or this fails
        assert!(answer.ends_with("\r\n\r\nok\n"), "{answer}");
        assert_eq!(stream.conn.protocol_version(), Some(version.version));
        assert_eq!(stream.conn.alpn_protocol(), Some(&b"http/1.1"[..]));
    }
    // A greeting of TLS 1.1: an alert that the version is not spoken.
    let mut hello = b"\x16\x03\x01\x00\x2d\x01\x00\x00\x29\x03\x02".to_vec();
    hello.extend([7; 32]);
    hello.extend(b"\x00\x00\x02\xc0\x14\x01\x00");
    assert_eq!(secure.answer_to(&hello).first(), Some(&0x15));
    assert!(secure.is_well());
}

/// Requests that come in one piece, and one that comes byte by byte, each in a record of its own.
#[test]
fn requests_cut_and_joined_anywhere_are_answered() {
    let secure = Secure::new(Primary::new(512, 1));
    let request = "GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n";
    let mut client = secure.connect();
    client.send(request.repeat(300));
    for _ in 0..300 {
        let head = client.head().unwrap();
        assert_eq!(client.body(&head), "ok\n");
    }
    for byte in request.bytes() {
        client.send([byte]);
    }
    assert_eq!(client.head().unwrap().status, 200);
    let mut client = secure.connect();
    let body = "x".repeat(60 << 10);
    client.send(format!("POST /ack HTTP/1.1\r\nContent-Length: {}\r\n\r\n{body}", body.len()));
    assert_eq!(client.head().unwrap().status, 400);
    // Both directions are closed one after the other.
    let mut stream = secure.stream(secure.authority.client());
    stream.write_all(format!("{request}{}", request.replace("1.1", "1.0")).as_bytes()).unwrap();
    stream.conn.send_close_notify();
    stream.flush().unwrap();
    stream.sock.shutdown(Shutdown::Write).unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    assert_eq!(answer.matches("\r\n\r\nok\n").count(), 2, "{answer}");
}

#[test]
fn who_speaks_http_to_the_tls_port_is_told() {
    let secure = Secure::new(Primary::new(512, 1));
    for request in ["GET / HTTP/1.1\r\nHost: x\r\n\r\n", "POST /ack HTTP/1.0\r\n\r\n"] {
        let answer = String::from_utf8(secure.answer_to(request.as_bytes())).unwrap();
        assert!(answer.starts_with("HTTP/1.1 400 "), "{answer}");
        assert!(answer.ends_with("\nThis server speaks HTTPS only: use https://\n"), "{answer}");
    }
    assert!(secure.is_well());
}

#[test]
fn garbage_ends_the_connection_and_nothing_else() {
    let secure = Secure::new(Primary::new(512, 1));
    let mut good = secure.connect();
    let mut hello = b"\x16\x03\x01\x02\0\x01\0\x01\xfc\x03\x03".to_vec();
    hello.extend(noise(500));
    // A greeting that says it has 16 MiB, and more bytes than any greeting needs.
    let mut endless = Vec::new();
    for at in 0..64 {
        endless.extend(b"\x16\x03\x01\x3f\xff");
        let head: &[u8] = if at == 0 { b"\x01\xff\xff\xff\x03\x03" } else { b"" };
        endless.extend(head);
        endless.extend(vec![0; 0x3fff - head.len()]);
    }
    for bytes in [hello, endless, noise(100_000), vec![0; 20_000], b"\x16\x03".to_vec(), vec![]] {
        let mut socket = secure.socket();
        let _ = socket.write_all(&bytes);
        let _ = socket.shutdown(Shutdown::Write);
        let mut answer = Vec::new();
        let _ = socket.read_to_end(&mut answer);
        assert!(answer.len() < 100, "an alert or nothing, {}", answer.len());
    }
    // Garbage after a good beginning.
    let mut stream = secure.stream(secure.authority.client());
    stream.write_all(b"GET /stream HTTP/1.1\r\n\r\n").unwrap();
    stream.read_exact(&mut [0; 17]).unwrap();
    stream.sock.write_all(&noise(10_000)).unwrap();
    while matches!(stream.read(&mut [0; 65536]), Ok(n) if n > 0) {}
    assert_eq!(good.get("/healthz").status, 200);
}

#[test]
fn a_changed_certificate_is_used_by_new_connections() {
    let secure = Secure::new(Primary::new(512, 1));
    let leaf = |secure: &Secure| {
        let mut stream = secure.stream(secure.authority.client());
        stream.write_all(b"GET /healthz HTTP/1.1\r\n\r\n").unwrap();
        stream.read_exact(&mut [0; 17]).unwrap();
        stream.conn.peer_certificates().unwrap()[0].to_vec()
    };
    let mut old = secure.connect();
    assert_eq!(old.get("/stream").status, 200);
    let first = leaf(&secure);
    let until = |what: &str, done: &dyn Fn() -> bool| {
        let deadline = Instant::now() + Duration::from_secs(20);
        while !done() {
            assert!(Instant::now() < deadline, "{what}");
            std::thread::sleep(Duration::from_millis(50));
        }
    };
    // Only the certificate is there yet: the old pair stays, and the table says why.
    let next = secure.authority.sign(&["localhost"]);
    std::fs::write(secure.folder.0.join("cert.pem"), &next.cert).unwrap();
    until("the mismatch is seen", &|| {
        assert_eq!(leaf(&secure), first);
        secure.attachment.error().is_some()
    });
    let error = secure.attachment.error().unwrap();
    assert!(error.contains("is not the key of the certificate"), "{error}");
    std::fs::write(secure.folder.0.join("key.pem"), &next.key).unwrap();
    until("the new pair is used", &|| leaf(&secure) != first);
    assert_eq!(secure.attachment.error(), None);
    let said = |text: &str| registry::lines().iter().any(|line| line.message.contains(text));
    assert!(said("goes on with the certificate it had"));
    assert!(said("as it is now"));
    // A file that is gone, or a FIFO nobody writes to, changes nothing and hangs nobody.
    let second = leaf(&secure);
    let cert = secure.folder.0.join("cert.pem");
    std::fs::remove_file(&cert).unwrap();
    until("the loss is seen", &|| {
        assert_eq!(leaf(&secure), second);
        secure.attachment.error().is_some()
    });
    rustix::fs::mknodat(
        rustix::fs::CWD,
        &cert,
        rustix::fs::FileType::Fifo,
        rustix::fs::Mode::RUSR,
        0,
    )
    .unwrap();
    until("the FIFO is seen", &|| {
        assert_eq!(leaf(&secure), second);
        secure.attachment.error().is_some_and(|error| error.contains("not a file"))
    });
    assert_eq!(old.data().kind, 1, "a stream goes on through all of it");
}

#[test]
fn bad_files_are_refused_in_words_that_help() {
    let primary = Primary::new(512, 1);
    let folder = Folder::new();
    let good = self_signed(&["localhost"]);
    let other = self_signed(&["localhost"]);
    let refusal = |pair: &Pair| {
        let files = pair.write(&folder.0);
        let attached = attach(&unique_address(), options(&files), Arc::clone(&primary.served));
        attached.map(|_| ()).unwrap_err().to_string()
    };
    let with = |cert: &str, key: &str| Pair { cert: cert.to_owned(), key: key.to_owned() };
    for (pair, expected) in [
        (with("", &good.key), "cert.pem holds no PEM certificate"),
        (with("-----BEGIN CERTIFICATE-----\n!\n", &good.key), "holds no PEM certificate"),
        (with(&good.cert, ""), "key.pem holds no PEM private key"),
        (with(&good.cert, &other.key), "key.pem is not the key of the certificate"),
        (with(&good.cert, &good.key.replace('\n', "")), "key.pem holds no PEM private key"),
        (with(&good.cert, &good.key.replace("PRIVATE", "ENCRYPTED PRIVATE")), "is encrypted"),
        (with(&good.cert.replace("MI", "MA"), &good.key), "cert.pem holds no"),
        (with(&"x".repeat(2 << 20), &good.key), "it is larger than 1048576 bytes"),
    ] {
        let error = refusal(&pair);
        assert!(error.contains(expected), "{error}");
        for line in pair.key.lines().filter(|line| line.len() > 40) {
            assert!(!error.contains(&line[30..40]), "a key in an error: {error}");
        }
    }
    let files = good.write(&folder.0);
    std::fs::remove_file(&files.key).unwrap();
    let error = attach(&unique_address(), options(&files), Arc::clone(&primary.served));
    let error = error.map(|_| ()).unwrap_err().to_string();
    assert!(error.starts_with("option \"tls_key\": cannot read "), "{error}");
    let files = good.write(&folder.0);
    let socket = format!("unix:{}", folder.0.join("s").display());
    let error = attach(&socket, options(&files), Arc::clone(&primary.served));
    let error = error.map(|_| ()).unwrap_err().to_string();
    assert!(error.contains("are for TCP"), "{error}");
    // One that everybody may read works, and is spoken of.
    std::os::unix::fs::chown(&files.key, None, None).unwrap();
    let mode = std::os::unix::fs::PermissionsExt::from_mode(0o644);
    std::fs::set_permissions(&files.key, mode).unwrap();
    let _serving = primary.serve(&unique_address(), options(&files));
    let warned = |line: &registry::Line| {
        line.message.contains("everybody on this machine may read the key")
            && line.message.contains(&*files.key.to_string_lossy())
    };
    assert!(registry::lines().iter().any(warned));
}

/// A server has one certificate, whatever databases it serves.
#[test]
fn databases_that_share_a_server_share_its_certificate() {
    let (one, two) = (Primary::new(512, 1), Primary::new(512, 1));
    let folder = Folder::new();
    let files = self_signed(&["localhost"]).write(&folder.0);
    let attachment = one.serve(&unique_address(), options(&files));
    let address = attachment.url().strip_prefix("https://").unwrap().to_owned();
    let error = attach(&address, ServeOptions::default(), Arc::clone(&two.served));
    let error = error.map(|_| ()).unwrap_err().to_string();
    assert!(error.contains("another token, allow_anonymous or certificate"), "{error}");
    let shared = two.serve(&address, options(&files));
    assert_eq!(shared.url(), attachment.url());
}
