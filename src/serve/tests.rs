//! The server with limits small enough to be met, and with its inside taken away.

use std::io::{ErrorKind as Io, IoSlice, Read, Write};
use std::net::TcpStream;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::time::SystemTime;

use super::*;
use crate::log::layout::Layout;
use crate::log::{Log, Segment};
use crate::pos::{Generation, Pos};
use crate::wal::{ByteOrder, Chain, PageSize, WalHeader};

/// A server of one database, gone afterwards.
struct Running {
    folder: PathBuf,
    server: Arc<Server>,
    served: Arc<Served>,
}

impl Running {
    /// With a snapshot of `bytes` bytes.
    fn new(name: &str, limits: Limits, bytes: usize) -> Self {
        Self::over(name, limits, bytes, false)
    }

    /// The same, over TLS or not.
    fn over(name: &str, limits: Limits, bytes: usize, tls: bool) -> Self {
        let folder = format!("litestream-front-{name}-{}", std::process::id());
        let folder = std::env::temp_dir().join(folder);
        std::fs::create_dir_all(&folder).unwrap();
        let path = folder.join("app.db");
        std::fs::write(&path, b"stands in for a database").unwrap();
        let log = Arc::new(Log::new(Layout::beside(&path).unwrap()));
        log.load().unwrap();
        log.begin_generation(Generation::from_bits(7), PageSize::MAX);
        let now = SystemTime::now();
        let mut writer = log.snapshot_writer(Pos::default().index, bytes as u64, now).unwrap();
        writer.write(&vec![0; bytes]).unwrap();
        log.add_snapshot(writer).unwrap();
        log.adopt().unwrap();
        let served = Served::new(path, log, Box::new(()));
        let tls = tls.then(|| identity(&folder));
        let shared = Shared::new(None, false, tls, limits);
        shared.add(&served).unwrap();
        let bound = Address::parse("127.0.0.1:0").unwrap().bind(true).unwrap();
        let server = Arc::new(Server::start("test", bound, shared).unwrap());
        Running { folder, server, served }
    }

    fn connect(&self) -> TcpStream {
        let stream = TcpStream::connect(self.server.addresses[0]).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
        stream
    }

    /// All that is answered to these bytes, to the end of the connection.
    fn ask(&self, request: &str) -> String {
        let mut stream = self.connect();
        stream.write_all(request.as_bytes()).unwrap();
        read_all(&mut stream)
    }

    fn is_well(&self) -> bool {
        self.ask("GET /healthz HTTP/1.0\r\n\r\n").ends_with("\r\n\r\nok\n")
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.server.shared.remove(&self.served);
        self.server.stop();
        self.server.shared.sessions.end(&self.served, STOP);
        std::fs::remove_dir_all(&self.folder).unwrap();
    }
}

fn identity(folder: &std::path::Path) -> Identity {
    let key = rcgen::KeyPair::generate().unwrap();
    let params = rcgen::CertificateParams::new(vec!["localhost".to_owned()]).unwrap();
    let files = TlsFiles { cert: folder.join("cert.pem"), key: folder.join("key.pem") };
    std::fs::write(&files.cert, params.self_signed(&key).unwrap().pem()).unwrap();
    std::fs::write(&files.key, key.serialize_pem()).unwrap();
    Identity::load(&files).unwrap()
}

/// A client that trusts the certificate in this folder.
fn client(folder: &std::path::Path) -> rustls::ClientConnection {
    use rustls::pki_types::pem::PemObject;
    let cert = rustls::pki_types::CertificateDer::from_pem_file(folder.join("cert.pem")).unwrap();
    let mut roots = rustls::RootCertStore::empty();
    roots.add(cert).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    rustls::ClientConnection::new(Arc::new(config), "localhost".try_into().unwrap()).unwrap()
}

fn read_all(stream: &mut TcpStream) -> String {
    let mut bytes = Vec::new();
    stream.read_to_end(&mut bytes).unwrap();
    String::from_utf8_lossy(&bytes).into_owned()
}

fn until(what: &str, mut done: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(20);
    while !done() {
        assert!(Instant::now() < deadline, "{what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

fn quick() -> Limits {
    let short = Duration::from_millis(300);
    Limits { connections: 8, head: short, idle: short, stall: short, ..Limits::default() }
}

#[test]
fn half_a_request_is_given_up() {
    let running = Running::new("half", quick(), 512);
    let start = Instant::now();
    let answer = running.ask("GET /healthz HTTP/1.1\r\nHost");
    assert!(answer.starts_with("HTTP/1.1 408 "), "{answer}");
    assert_eq!(running.ask(""), "");
    let mut idle = running.connect();
    idle.write_all(b"GET /healthz HTTP/1.1\r\n\r\n").unwrap();
    assert!(read_all(&mut idle).ends_with("\r\n\r\nok\n"));
    // Bytes that trickle in do not prolong it.
    let mut slow = running.connect();
    slow.write_all(b"GET / HTTP/1.1\r\n").unwrap();
    let trickle = Instant::now();
    while slow.write_all(b"A: b\r\n").is_ok() && trickle.elapsed() < Duration::from_secs(5) {
        std::thread::sleep(Duration::from_millis(20));
    }
    assert!(trickle.elapsed() < Duration::from_secs(4));
    assert!(start.elapsed() < Duration::from_secs(10), "{:?}", start.elapsed());
}

/// Handshake, head and body once had a deadline each, so that a client who took each in turn held
/// its place for three times as long.
#[test]
fn a_request_in_steps_has_one_deadline() {
    let short = Duration::from_secs(1);
    let step = short * 3 / 5;
    let running = Running::new("steps", Limits { head: short, ..Limits::default() }, 512);
    let mut slow = running.connect();
    std::thread::sleep(step);
    slow.write_all(b"POST /ack HTTP/1.1\r\nContent-Length: 1\r\n\r\n").unwrap();
    std::thread::sleep(step);
    let _hung_up_already = slow.write_all(b"x");
    let answer = read_all(&mut slow);
    assert!(answer.starts_with("HTTP/1.1 408 "), "{answer}");
    // A connection that is used again has all of the time for each request.
    let mut again = running.connect();
    for _ in 0..3 {
        std::thread::sleep(step);
        again.write_all(b"HEAD /nothing HTTP/1.1\r\n\r\n").unwrap();
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            let mut byte = [0];
            again.read_exact(&mut byte).unwrap();
            head.extend(byte);
        }
        assert!(head.starts_with(b"HTTP/1.1 404 "));
    }

    let running =
        Running::over("steps-tls", Limits { head: short, ..Limits::default() }, 512, true);
    let mut socket = running.connect();
    let mut client = client(&running.folder);
    std::thread::sleep(step);
    // On a busy machine it may have been given up already.
    let mut stream = rustls::Stream::new(&mut client, &mut socket);
    let _ = stream.write_all(b"GET /healthz HTTP/1.1\r\n");
    std::thread::sleep(step);
    let _ = stream.write_all(b"Connection: close\r\n\r\n");
    let mut answer = Vec::new();
    let _ = stream.read_to_end(&mut answer);
    let answer = String::from_utf8_lossy(&answer);
    assert!(!answer.contains("200 OK"), "{answer}");
}

/// What comes before a TLS handshake is over is bounded as what comes before a request is.
#[test]
fn half_a_handshake_is_given_up() {
    let limits = Limits { connections: 8, ..quick() };
    let running = Running::over("handshake", limits, 512, true);
    let start = Instant::now();
    let alert = |answer: &str| answer.starts_with('\x15') && answer.len() < 10;
    assert!(alert(&running.ask("")));
    assert!(alert(&running.ask("\x16\x03\x01\x02")));
    // A greeting of which a byte comes now and then.
    let mut slow = running.connect();
    slow.write_all(b"\x16\x03\x01\x02\0\x01\0\x01\xfc\x03\x03").unwrap();
    let trickle = Instant::now();
    while slow.write_all(b"x").is_ok() && trickle.elapsed() < Duration::from_secs(5) {
        std::thread::sleep(Duration::from_millis(20));
    }
    assert!(trickle.elapsed() < Duration::from_secs(4));
    assert!(start.elapsed() < Duration::from_secs(10), "{:?}", start.elapsed());
    // Those who say nothing make room for those who do.
    let silent: Vec<TcpStream> = (0..20).map(|_| running.connect()).collect();
    let answer = running.ask("GET / HTTP/1.1\r\n\r\n");
    assert!(answer.starts_with("HTTP/1.1 400 "), "{answer}");
    drop(silent);
}

#[test]
fn silent_connections_make_room_and_streams_do_not() {
    let limits = Limits { connections: 4, stall: Duration::from_secs(15), ..Limits::default() };
    let running = Running::new("room", limits, 512);
    let mut silent: Vec<TcpStream> = (0..4).map(|_| running.connect()).collect();
    assert!(running.is_well());
    assert_eq!(read_all(&mut silent[0]), "", "the oldest made room");
    drop(silent);
    let streams: Vec<TcpStream> = (0..4)
        .map(|_| {
            let mut stream = running.connect();
            stream.write_all(b"GET /stream HTTP/1.1\r\n\r\n").unwrap();
            stream.read_exact(&mut [0; 17]).unwrap();
            stream
        })
        .collect();
    assert_eq!(running.server.shared.streams(), 4);
    let answer = read_all(&mut running.connect());
    assert!(answer.starts_with("HTTP/1.1 503 "), "{answer}");
    drop(streams);
    until("streams end", || running.server.shared.streams() == 0);
    assert!(running.is_well());
}

#[test]
fn a_follower_that_reads_nothing_is_dropped() {
    let running = Running::new("stall", quick(), 64 << 20);
    let mut stuck = running.connect();
    stuck.write_all(b"GET /stream HTTP/1.1\r\n\r\n").unwrap();
    stuck.read_exact(&mut [0; 17]).unwrap();
    assert_eq!(running.served.followers().len(), 1);
    until("it is dropped", || running.served.followers().is_empty());
    // One that reads slowly, but reads, is not.
    let mut slow = running.connect();
    slow.write_all(b"GET /stream HTTP/1.1\r\n\r\n").unwrap();
    let mut part = vec![0; 4 << 20];
    for _ in 0..12 {
        slow.read_exact(&mut part).unwrap();
        std::thread::sleep(Duration::from_millis(100));
    }
    assert_eq!(running.served.followers().len(), 1);
}

/// Its system takes whatever is sent and nobody reads it: found out by what does not come back.
#[test]
fn a_follower_that_acknowledges_no_more_is_dropped() {
    let limits = Limits { silence: Duration::from_millis(500), ..Limits::default() };
    let running = Running::new("silence", limits, 512);
    let open = |name: &str| {
        let mut stream = running.connect();
        let target = format!("/stream?follower={name}&features=heartbeat,ack");
        stream.write_all(format!("GET {target} HTTP/1.1\r\n\r\n").as_bytes()).unwrap();
        stream.read_exact(&mut [0; 17]).unwrap();
        stream
    };
    let acknowledge = |name: &str| {
        let pos = running.served.log().position().unwrap();
        assert!(running.served.acknowledge(name, pos), "{name} is known");
    };
    let _mute = open("never-said-a-word");
    let _living = open("living");
    let _gone = open("gone");
    acknowledge("gone");
    until("the silent one is dropped", || {
        acknowledge("living");
        running.served.followers().len() < 3
    });
    acknowledge("never-said-a-word");
    acknowledge("living");
    assert!(!running.served.acknowledge("gone", running.served.log().position().unwrap()));
}

#[test]
fn a_stop_ends_a_stream_that_is_being_written() {
    let limits = Limits::default();
    let running = Running::new("stop", limits, 64 << 20);
    let mut stuck = running.connect();
    stuck.write_all(b"GET /stream HTTP/1.1\r\n\r\n").unwrap();
    stuck.read_exact(&mut [0; 17]).unwrap();
    std::thread::sleep(Duration::from_millis(50));
    let start = Instant::now();
    running.server.shared.sessions.end(&running.served, STOP);
    assert!(start.elapsed() < Duration::from_secs(1), "{:?}", start.elapsed());
    assert_eq!(running.server.shared.streams(), 0);
}

#[test]
fn the_inner_server_is_replaced_when_it_dies() {
    // Those of the tests beside this one come and go.
    let threads = || std::fs::read_dir("/proc/self/task").map_or(0, Iterator::count);
    let running = Running::new("inner", Limits::default(), 512);
    assert!(running.is_well());
    let before = threads();
    for _ in 0..20 {
        running.server.shared.hub.distrust();
        assert!(running.is_well());
    }
    until("the threads of those before it have ended", || threads() < before + 50);
}

#[test]
fn a_stop_takes_no_time_and_leaves_nothing() {
    let running = Running::new("nothing", Limits::default(), 512);
    let address = running.server.addresses[0];
    let mut open = running.connect();
    assert!(running.is_well());
    let start = Instant::now();
    drop(running);
    assert!(start.elapsed() < Duration::from_secs(1), "{:?}", start.elapsed());
    assert_eq!(read_all(&mut open), "");
    assert!(TcpStream::connect(address).is_err());
}

#[test]
fn commits_reach_a_stream_within_milliseconds() {
    let running = Running::new("latency", Limits::default(), 512);
    let mut stream = running.connect();
    stream.write_all(b"GET /stream HTTP/1.0\r\n\r\n").unwrap();
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        let mut byte = [0];
        stream.read_exact(&mut byte).unwrap();
        head.extend(byte);
    }
    stream.read_exact(&mut [0; 40 + 512]).unwrap();
    let header = WalHeader::new(ByteOrder::Little, PageSize::MAX, 0, [1, 2]);
    let mut chain = Chain::start(&header);
    let mut pos = Pos { generation: Generation::from_bits(7), ..Pos::default() };
    let mut worst = Duration::ZERO;
    for round in 0..20 {
        let mut raw = if round == 0 { header.encode().to_vec() } else { Vec::new() };
        chain.append(1, 1, &vec![round; PageSize::MAX.bytes()], &mut raw);
        let segment = Segment::new(pos, raw, true, SystemTime::now());
        pos = segment.end();
        let expected =
            40 + crate::lz4::stored_frame_overhead(segment.raw.len()) + segment.raw.len();
        let start = Instant::now();
        running.served.log().append(segment, chain).unwrap();
        stream.read_exact(&mut vec![0; expected]).unwrap();
        worst = worst.max(start.elapsed());
        std::thread::sleep(Duration::from_millis(5));
    }
    assert!(worst < Duration::from_millis(150), "{worst:?}");
}

/// What the server says in a handshake did not fit into the socket's buffer: it was never sent,
/// and the front looked at the socket, which had room, in circles.
#[test]
fn a_greeting_that_does_not_fit_is_sent_when_there_is_room() {
    let folder = format!("litestream-front-greeting-{}", std::process::id());
    let folder = std::env::temp_dir().join(folder);
    std::fs::create_dir_all(&folder).unwrap();
    let identity = identity(&folder);
    let (here, mut there) = UnixStream::pair().unwrap();
    let here = socket::Socket::unix(here).unwrap();
    let mut before = Vec::new();
    while let Ok(n) = here.send(&[IoSlice::new(&[0; 1024])]) {
        before.resize(before.len() + n, 1);
    }
    let mut channel = channel::Channel::new(here, Some(identity.begin(Instant::now()).unwrap()));
    let mut look = || channel.receive(&mut [0; 1024]).unwrap_err().kind();

    let mut client = client(&folder);
    client.write_tls(&mut there).unwrap();
    assert_eq!(look(), Io::WouldBlock);
    there.read_exact(&mut before).unwrap();
    assert!(before.iter().all(|byte| *byte == 0));
    there.set_nonblocking(true).unwrap();
    assert_eq!(there.read(&mut [0]).unwrap_err().kind(), Io::WouldBlock);
    assert_eq!(look(), Io::WouldBlock);
    let mut first = [0];
    there.read_exact(&mut first).unwrap();
    assert_eq!(first, [22], "a record of a handshake");
    std::fs::remove_dir_all(&folder).unwrap();
}

/// The stop came between the start of the thread that answers and its first wait, and was not
/// heard: each such stop took five seconds, and left threads and a socket behind.
#[test]
fn a_server_that_is_stopped_as_it_starts_leaves_nothing_behind() {
    for round in 0..200 {
        let running = Running::new("stopped", Limits::default(), 512);
        let shared = Arc::clone(&running.server.shared);
        // Each time a little later.
        let moment = Instant::now() + Duration::from_micros(5 * round);
        while Instant::now() < moment {}
        drop(running);
        assert_eq!(Arc::strong_count(&shared), 1, "a thread still has it");
    }
}
