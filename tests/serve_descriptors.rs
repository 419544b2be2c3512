//! The server in a host that runs out of file descriptors. Alone in its process: the limit is the
//! process's.
#![allow(clippy::unwrap_used)]

use std::fs::File;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use litestream::log::Log;
use litestream::log::layout::Layout;
use litestream::serve::{ServeOptions, Served, attach};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use socket2::{Domain, Socket, Type};

const REQUEST: &[u8] = b"GET /metrics HTTP/1.0\r\n\r\n";

fn answer(mut stream: TcpStream) -> String {
    stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    let mut text = String::new();
    let _ = stream.read_to_string(&mut text);
    text
}

/// Every thread of ours leaves signals to the host's.
#[cfg(target_os = "linux")]
fn check_signals() {
    let mut checked = 0;
    for task in std::fs::read_dir("/proc/self/task").unwrap().flatten() {
        // A thread may be gone by now.
        let Ok(status) = std::fs::read_to_string(task.path().join("status")) else { continue };
        let field = |name: &str| {
            status.lines().find_map(|line| line.strip_prefix(name)).unwrap().trim().to_owned()
        };
        if field("Name:").starts_with("litestream") {
            let blocked = u64::from_str_radix(&field("SigBlk:"), 16).unwrap();
            // HUP, INT, USR1, PIPE, TERM.
            let asynchronous = 1 << 0 | 1 << 1 | 1 << 9 | 1 << 12 | 1 << 14;
            assert_eq!(blocked & asynchronous, asynchronous, "{}", field("Name:"));
            checked += 1;
        }
    }
    // The front, the router, and the accept loop and the four workers of tiny_http.
    assert!(checked >= 7, "{checked}");
}

#[test]
fn out_of_descriptors_it_waits_and_goes_on() {
    let before = getrlimit(Resource::Nofile);
    setrlimit(Resource::Nofile, Rlimit { current: Some(200), ..before }).unwrap();
    let folder =
        std::env::temp_dir().join(format!("litestream-descriptors-{}", std::process::id()));
    std::fs::create_dir_all(&folder).unwrap();
    let path = folder.join("app.db");
    std::fs::write(&path, b"stands in for a database").unwrap();
    let log = std::sync::Arc::new(Log::new(Layout::beside(&path).unwrap()));
    let served = Served::new(path, log, Box::new(()));
    let attachment = attach("127.0.0.1:0", ServeOptions::default(), served).unwrap();
    let address = attachment.url().strip_prefix("http://").unwrap();
    let address: SocketAddr = address.parse().unwrap();
    let mut first = TcpStream::connect(address).unwrap();
    first.write_all(REQUEST).unwrap();
    assert!(answer(first).starts_with("HTTP/1.0 200 OK\r\n"));
    #[cfg(target_os = "linux")]
    check_signals();
    for free in [0, 1, 2, 3, 4, 5, 6, 8, 0, 3] {
        let early = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
        let mut taken = Vec::new();
        while let Ok(file) = File::open("/dev/null") {
            taken.push(file);
        }
        taken.truncate(taken.len() - free);
        early.connect(&address.into()).unwrap();
        let mut early = TcpStream::from(early);
        early.write_all(REQUEST).unwrap();
        std::thread::sleep(Duration::from_millis(300));
        drop(taken);
        let start = Instant::now();
        let text = answer(early);
        assert!(text.starts_with("HTTP/1.0 200 OK\r\n"), "{free} free: {text}");
        let mut late = TcpStream::connect(address).unwrap();
        late.write_all(REQUEST).unwrap();
        assert!(answer(late).starts_with("HTTP/1.0 200 OK\r\n"), "{free} free");
        assert!(start.elapsed() < Duration::from_secs(5), "{free} free: {:?}", start.elapsed());
    }
    drop(attachment);
    std::fs::remove_dir_all(&folder).unwrap();
}
