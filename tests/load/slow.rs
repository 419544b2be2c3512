//! Followers that do not read, beside one that does.

use std::io::Write;
use std::net::TcpStream;
use std::path::Path;

use rustix::process::{Pid, Signal, kill_process};

use super::*;
use crate::usage::folder_bytes;

/// Bytes written: several times what the log may hold, and what sockets can.
const WRITTEN: f64 = (48 << 20) as f64;
const LOG_BYTES: u64 = 2 << 20;
/// The most the primary's memory may grow: the tail of the log, and some segments on their way.
const GROWTH_KIB: u64 = 112 << 10;

fn signal(host: &Host, signal: Signal) {
    let pid = Pid::from_raw(i32::try_from(host.pid()).unwrap()).unwrap();
    kill_process(pid, signal).unwrap();
}

/// A stopped process, a stream nobody reads, and one read byte by byte: the fast follower never
/// waits for any of them, the primary's memory and log stay within their bounds, and the stopped
/// one is equal to the primary once it goes on.
#[test]
fn slow_followers_cost_the_fast_one_nothing() {
    let folder = Folder::new("slow");
    let host = Host::app();
    let path = folder.file("p.db");
    let db = host.open(&path);
    make_ledger(&db);
    let options = format!("json_object('log_bytes', {LOG_BYTES})");
    let url = db.text(&format!("SELECT litestream_serve('127.0.0.1:0', {options})"));
    let (fast, slow) = (Host::app(), Host::app());
    let replica = fast.open(folder.file("fast.db"));
    follow(&replica, &url);
    let late = slow.open(folder.file("slow.db"));
    follow(&late, &url);
    let address = url.strip_prefix("http://").unwrap();
    let mute = stream(address);
    let mut crawling = stream(address);
    signal(&slow, Signal::STOP);
    let before = host.peak_kib();
    let written = metric(&url, "litestream_total_wal_bytes");
    let writer = host.work("ledger_writer", json!({"path": path, "size": 20_000}));
    let mut most = 0;
    until("enough to be written", || {
        let mut byte = [0];
        let _ = std::io::Read::read(&mut crawling, &mut byte);
        most = most.max(folder_bytes(Path::new(&folder.file("p.db-litestream"))));
        (metric(&url, "litestream_total_wal_bytes") - written >= WRITTEN).then_some(())
    });
    writer.finish();
    assert_same(&db, &replica);
    let growth = host.peak_kib() - before;
    assert!(growth <= GROWTH_KIB, "the primary's memory grew by {growth} KiB");
    // Indexes somebody reads are spared until the log is four times over its bound; one index may
    // be as long as the WAL became, and the snapshots of before and after may both be there.
    let size = |name: &str| std::fs::metadata(folder.file(name)).unwrap().len();
    let bound = 4 * LOG_BYTES.max(size("p.db")) + 2 * size("p.db-wal") + 2 * size("p.db");
    assert!(most <= bound, "the log grew to {most} bytes, more than {bound}");
    signal(&slow, Signal::CONT);
    assert_same(&db, &late);
    drop(mute);
}

fn stream(address: &str) -> TcpStream {
    let mut stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(1))).unwrap();
    stream.write_all(b"GET /stream HTTP/1.1\r\nHost: localhost\r\n\r\n").unwrap();
    stream
}
