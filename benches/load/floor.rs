//! What the machine can do at best, measured in the same run.

use std::fs::File;
use std::hint::black_box;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::unix::fs::FileExt;
use std::time::Instant;

use litestream::wal::{ByteOrder, Chain, PageSize, WalHeader, scan};
use serde_json::json;

use super::report::Report;
use super::statistics::spread;
use super::{Folder, setting};

/// Bytes of a part: more than the processor's caches hold.
const PART: usize = 64 << 20;
const PAGE: usize = 4096;
const TRIPS: usize = 20_000;
const SYNCS: usize = 200;

pub fn run(folder: &Folder, report: &mut Report) {
    let parts = (setting("BURST_MIB", "1000").parse::<usize>().unwrap() << 20).div_ceil(PART);
    let bytes = (parts * PART) as f64;
    let (from, mut to) = (vec![7_u8; PART], vec![1_u8; PART]);
    let file = File::create(folder.make("floor").join("file")).unwrap();
    let speed = |work: &mut dyn FnMut(usize)| {
        let begin = Instant::now();
        (0..parts).for_each(work);
        bytes / 1e6 / begin.elapsed().as_secs_f64()
    };
    let memcpy = speed(&mut |_| black_box(&mut to).copy_from_slice(black_box(&from)));
    let pwrite = speed(&mut |part| file.write_all_at(&from, (part * PART) as u64).unwrap());
    let wal = chain();
    let frames = u32::try_from(wal.0.len() / (PAGE + 24)).unwrap();
    let checksum = speed(&mut |_| assert_eq!(scan(wal.1, &wal.0).frames, frames));
    let fsync = spread((0..SYNCS as u64).map(|at| sync(&file, at)).collect()).p50;
    let trip = spread(round_trips()).p50;
    folder.remove("floor");
    println!(
        "\nfloors: memcpy {memcpy:.0} MB/s, pwrite {pwrite:.0} MB/s, the WAL's checksum \
         {checksum:.0} MB/s, a page and fsync {fsync:.0} us, a round trip {trip:.0} us"
    );
    report.json(&json!({
        "bench": "floor", "memcpy_mb_s": memcpy, "pwrite_mb_s": pwrite,
        "checksum_mb_s": checksum, "fsync_us": fsync, "round_trip_us": trip,
    }));
}

/// A part of a WAL, and the chain its first frame continues.
fn chain() -> (Vec<u8>, Chain) {
    let size = PageSize::new(4096).unwrap();
    let header = WalHeader::new(ByteOrder::Little, size, 1, [1, 2]);
    let start = Chain::start(&header);
    let (mut chain, mut bytes) = (start, Vec::with_capacity(PART));
    while bytes.len() + PAGE + 24 <= PART {
        chain.append(1, 1, &[9; PAGE], &mut bytes);
    }
    (bytes, start)
}

fn sync(file: &File, at: u64) -> f64 {
    let begin = Instant::now();
    file.write_all_at(&[3; PAGE], at * PAGE as u64).unwrap();
    file.sync_data().unwrap();
    begin.elapsed().as_secs_f64() * 1e6
}

/// A byte there and back, between two threads.
fn round_trips() -> Vec<f64> {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let mut near = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    let (mut far, _) = listener.accept().unwrap();
    let echo = std::thread::spawn(move || {
        let mut byte = [0];
        while far.read(&mut byte).unwrap() == 1 {
            far.write_all(&byte).unwrap();
        }
    });
    near.set_nodelay(true).unwrap();
    let trip = |_| {
        let begin = Instant::now();
        near.write_all(&[1]).unwrap();
        near.read_exact(&mut [0]).unwrap();
        begin.elapsed().as_secs_f64() * 1e6
    };
    let times = (0..TRIPS).map(trip).collect();
    drop(near);
    echo.join().unwrap();
    times
}
