//! What a stranger may send to the port. A module of `serve`.
#![allow(clippy::unwrap_used, clippy::panic, clippy::cast_possible_truncation)]

use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::net::UnixStream;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant, SystemTime};

use rustix::event::{PollFd, Timespec, poll};
use rustix::io::retry_on_intr;

use super::channel::Channel;
use super::conn::{Conn, Next};
use super::head::{HEAD_BYTES_MAX, read_head};
use super::limits::Limits;
use super::query::{StreamQuery, Target};
use super::routes::{Answer, Asked, answer};
use super::socket::{Peer, Socket};
use super::{Served, Shared};
use crate::fuzz::{Input, Scratch};
use crate::log::Log;
use crate::log::layout::Layout;
use crate::pos::{Generation, Index};
use crate::registry;
use crate::token::Token;
use crate::wal::PageSize;

const TOKEN: &str = "u3qYw0-not-to-be-guessed-8f1c";

/// Request heads: cut anywhere they are not whole before their end, and what is passed on cannot
/// be read in two ways.
pub(crate) fn head(data: &[u8]) {
    let Ok(Some((head, len))) = read_head(data) else { return };
    assert!(len <= data.len() && len <= HEAD_BYTES_MAX);
    assert_eq!(read_head(&data[..len]), Ok(Some((head.clone(), len))));
    for cut in [0, len / 2, len.saturating_sub(3), len - 1] {
        assert_eq!(read_head(&data[..cut]), Ok(None), "cut at {cut}");
    }
    let text = String::from_utf8(head.rewrite(7)).unwrap();
    assert!(text.is_ascii() && text.ends_with("\r\n\r\n"));
    assert!(!text.trim_end().contains("\r\n\r\n"));
    let mut names = Vec::new();
    for line in text.trim_end().split("\r\n").skip(1) {
        assert!(!line.contains(['\r', '\n']));
        let (name, value) = line.split_once(": ").unwrap();
        names.push(name);
        assert!(name != "Litestream-Connection" || value == "7");
    }
    let count = |name: &str| names.iter().filter(|it| it.eq_ignore_ascii_case(name)).count();
    assert_eq!((count("Litestream-Connection"), count("Connection")), (1, 1));
    assert!(["Host", "Authorization", "Content-Length"].iter().all(|name| count(name) <= 1));
    // The router's own parser reads the same.
    let (again, end) = read_head(text.as_bytes()).unwrap().unwrap();
    assert_eq!(end, text.len());
    assert_eq!((&again.method, &again.target), (&head.method, &head.target));
    assert_eq!((again.minor, again.body_len), (head.minor, head.body_len));
    query(&head.target);
}

fn query(target: &str) {
    let target = Target::parse(target);
    let Ok(query) = StreamQuery::parse(&target) else { return };
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"_-".contains(&byte);
    assert!(query.follower.is_none_or(|name| name.len() <= 64 && name.bytes().all(plain)));
    assert!(query.features.names().len() <= 20);
}

/// Servers of one database: open to this machine, with a token, and to everybody.
struct Doors {
    open: Arc<Shared>,
    token: Arc<Shared>,
    anonymous: Arc<Shared>,
    served: Arc<Served>,
}

fn doors() -> &'static Doors {
    static DOORS: OnceLock<Doors> = OnceLock::new();
    DOORS.get_or_init(|| {
        let scratch = Scratch::new("serve");
        scratch.put("app.db", b"stands in for a database");
        let path = scratch.path().join("app.db");
        let log = Arc::new(Log::new(Layout::beside(&path).unwrap()));
        log.begin_generation(Generation::from_bits(7), PageSize::MIN);
        let mut writer = log.snapshot_writer(Index::ZERO, 512, SystemTime::now()).unwrap();
        writer.write(&[0; 512]).unwrap();
        log.add_snapshot(writer).unwrap();
        log.adopt().unwrap();
        let served = Served::new(path, log, Box::new(()));
        let shared = |token: Option<&str>, anonymous| {
            let token = Token::given(token.map(str::to_owned)).unwrap();
            let shared = Shared::new(token, anonymous, None, Limits::default());
            shared.add(&served).unwrap();
            shared
        };
        let (open, token) = (shared(None, false), shared(Some(TOKEN), false));
        let anonymous = shared(None, true);
        let router = Arc::clone(&open);
        // For as long as the process lives.
        drop(registry::spawn_worker("litestream-http", move || router.hub.run(&router)).unwrap());
        Doors { open, token, anonymous, served }
    })
}

/// Requests as the router gets them: nobody gets in without showing what must be shown.
pub(crate) fn routes(data: &[u8]) {
    let mut input = Input(data);
    let way = input.byte();
    let (method, target) = (input.text(), input.text());
    let (authorization, host) = (input.text(), input.text());
    let there = |text: &'static str| Peer::Tcp(text.parse().unwrap());
    let peer = match way % 4 {
        0 => Peer::Unix,
        1 => there("127.0.0.1:9"),
        2 => there("192.0.2.1:9"),
        _ => there("[2001:db8::1]:9"),
    };
    let method = if way & 64 == 64 { "GET" } else { method.as_str() };
    let asked = Asked {
        method,
        target: &target,
        peer,
        minor: way >> 7,
        authorization: (way & 16 == 16).then_some(authorization.as_str()),
        host: (way & 32 == 32).then_some(host.as_str()),
    };
    let doors = doors();
    let path = Target::parse(&target).path;
    let healthz = path == b"/healthz";
    let shown = authorization.contains(TOKEN) && way & 16 == 16;
    check(&answer(&doors.token, &asked), 401, shown || healthz, &target);
    check(&answer(&doors.open, &asked), 403, peer.is_local() || healthz, &target);
    check(&answer(&doors.anonymous, &asked), 0, true, &target);
}

fn check(answer: &Answer, refusal: u16, may_enter: bool, target: &str) {
    let doors = doors();
    match answer {
        Answer::Reply(reply) => {
            assert!(may_enter || reply.status == refusal, "{target} was answered");
            let bytes = reply.encode(1, false, false);
            let text = String::from_utf8_lossy(&bytes);
            assert!(text.starts_with("HTTP/1.1 ") && !text.contains(TOKEN));
            let (front, _) = text.split_once("\r\n\r\n").unwrap();
            assert!(front.split("\r\n").skip(1).all(|line| line.contains(": ")), "{front}");
            let folder = doors.served.path().parent().unwrap().to_str().unwrap();
            assert!(may_enter || !text.contains(folder), "a stranger learns a path");
        }
        Answer::Stream(stream) => {
            assert!(may_enter, "{target} was granted");
            assert!(Arc::ptr_eq(&stream.served, &doors.served));
        }
    }
}

/// One connection, from its first byte to its end, with the router behind it: it always comes to
/// an end, and every answer is one.
pub(crate) fn connection(data: &[u8]) {
    let mut input = Input(data);
    let lengths = input.bytes(4);
    let _begun = doors();
    let (ours, mut theirs) = UnixStream::pair().unwrap();
    theirs.set_nonblocking(true).unwrap();
    let own = ours.as_raw_fd();
    let limits = Limits::default();
    let deadline = Instant::now() + limits.head;
    static NUMBERS: std::sync::atomic::AtomicU64 = std::sync::atomic::AtomicU64::new(1);
    let number = NUMBERS.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
    let peer = Peer::Tcp("127.0.0.1:9".parse().unwrap());
    let channel = Channel::new(Socket::unix(ours).unwrap(), None);
    let mut conn = Conn::new(number, channel, peer, deadline);
    let mut answers = Vec::new();
    let mut rest = input.0.get(..32 << 10).unwrap_or(input.0);
    let mut lengths = lengths.iter().cycle();
    let mut over = false;
    while !rest.is_empty() && !over {
        let length = usize::from(lengths.next().copied().unwrap_or(255)).max(1) * 8;
        let (piece, after) = rest.split_at(length.min(rest.len()));
        rest = after;
        if theirs.write_all(piece).is_err() {
            break;
        }
        over = settle(&mut conn, own, &limits, &mut theirs, &mut answers);
    }
    let _closed_already = theirs.shutdown(Shutdown::Write);
    for _ in 0..10_000 {
        if over {
            break;
        }
        over = settle(&mut conn, own, &limits, &mut theirs, &mut answers);
    }
    assert!(over, "the connection does not come to its end");
    assert!(answers.is_empty() || answers.starts_with(b"HTTP/1."));
}

/// Goes on until there is nothing more to do; whether the connection is over.
fn settle(
    conn: &mut Conn,
    own: RawFd,
    limits: &Limits,
    theirs: &mut UnixStream,
    answers: &mut Vec<u8>,
) -> bool {
    let begin = Instant::now();
    loop {
        let ready = match conn.interest() {
            Some((fd, flags)) => {
                // The router takes its time; nothing more comes from the client meanwhile.
                let asks = fd.as_raw_fd() != own;
                let wait = Timespec { tv_sec: i64::from(asks), tv_nsec: 0 };
                let mut polled = [PollFd::new(&fd, flags)];
                retry_on_intr(|| poll(&mut polled, Some(&wait))).unwrap() > 0
            }
            None => {
                std::thread::sleep(Duration::from_micros(50));
                true
            }
        };
        if ready {
            match conn.step(&doors().open.hub, limits, Instant::now()) {
                Next::Stay => {}
                Next::Close | Next::Stream(_) => return true,
            }
        }
        let mut buffer = [0; 4096];
        while let Ok(amount @ 1..) = theirs.read(&mut buffer) {
            answers.extend_from_slice(&buffer[..amount]);
            answers.truncate(64 << 10);
        }
        assert!(begin.elapsed() < Duration::from_secs(20), "no answer within 20 s");
        if !ready {
            return false;
        }
    }
}
