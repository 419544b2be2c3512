//! The folder beside a database, as another process, a power loss or somebody's hand left it: what
//! is taken over is whole, and its segments follow each other.

use std::sync::Arc;
use std::time::Duration;

use super::{Input, Scratch, page};
use crate::log::layout::Layout;
use crate::log::{Item, Log, Start, newest_wal};
use crate::lz4;
use crate::wal::{ByteOrder, Chain, PageSize, WalHeader};

const G: &str = "00000000000000ab";
const LIMIT: usize = 64 << 20;

thread_local! {
    static FOLDER: Scratch = Scratch::new("log");
}

pub fn target(data: &[u8]) {
    FOLDER.with(|folder| {
        let root = folder.path().join("a.db-litestream");
        let _ = std::fs::remove_dir_all(&root);
        folder.put("a.db", b"");
        let mut input = Input(data);
        let way = input.byte();
        made(&mut input, folder);
        for _ in 0..input.below(4) {
            harm(&mut input, folder);
        }
        let layout = Layout::beside(&folder.path().join("a.db")).unwrap();
        let _nothing_or_an_error = newest_wal(&layout).map(|found| found.map(|wal| wal.end));
        let log = Arc::new(Log::new(layout));
        if matches!(log.load(), Ok(None)) {
            log.resume();
            read(&log, &start(&mut input), way & 1 == 1);
            read(&log, &Start::Fresh, way & 1 == 0);
        }
    });
}

fn name(folder: &str) -> String {
    format!("a.db-litestream/{folder}")
}

/// A log as we write it: a snapshot, and segments of one WAL or two.
fn made(input: &mut Input, folder: &Scratch) {
    folder.put(&name("generation"), format!("{G}\n").as_bytes());
    let size = PageSize::MIN;
    for index in 0..=input.below(2) {
        let snapshot = format!("generations/{G}/snapshots/{index:016x}.snapshot.lz4");
        if index == 0 || input.flag() {
            folder.put(&name(&snapshot), &lz4::compress(&[7; 512]).unwrap());
        }
        let header = WalHeader::new(ByteOrder::NATIVE, size, 0, [input.byte().into(), 1]);
        let mut chain = Chain::start(&header);
        let (mut raw, mut start) = (header.encode().to_vec(), 0);
        for _ in 0..1 + input.below(4) {
            for _ in 0..input.below(2) {
                chain.append(input.byte().max(1).into(), 0, &page(input, size), &mut raw);
            }
            chain.append(1, 9, &page(input, size), &mut raw);
            if input.flag() {
                let file = format!("generations/{G}/wal/{index:016x}/{start:016x}.wal.lz4");
                folder.put(&name(&file), &lz4::compress(&raw).unwrap());
                start += raw.len();
                raw.clear();
            }
        }
        let end = format!("generations/{G}/wal/{index:016x}/end");
        folder.put(&name(&end), format!("{start:016x}\n").as_bytes());
    }
}

/// Changes one of the files, or adds one.
fn harm(input: &mut Input, folder: &Scratch) {
    let index = input.below(3);
    let file = match input.below(6) {
        0 => "generation".to_owned(),
        1 => format!("generations/{G}/snapshots/{index:016x}.snapshot.lz4"),
        2 => format!("generations/{G}/wal/{index:016x}/end"),
        3 => format!("generations/{G}/wal/{index:016x}/{:016x}.wal.lz4", input.u16()),
        _ => format!("generations/{G}/wal/{index:016x}/{:016x}.wal.lz4", 0),
    };
    let path = folder.path().join(name(&file));
    let mut bytes = std::fs::read(&path).unwrap_or_default();
    match input.below(4) {
        0 => drop(std::fs::remove_file(&path)),
        1 => folder.put(&name(&file), input.short()),
        way => {
            let at = usize::from(input.u16()) % bytes.len().max(1);
            match bytes.get_mut(at) {
                Some(byte) if way == 2 => *byte ^= input.byte().max(1),
                _ => bytes.truncate(at),
            }
            folder.put(&name(&file), &bytes);
        }
    }
}

fn start(input: &mut Input) -> Start {
    let pos = crate::archive::fuzz::pos(0xab, input.byte().into(), input.u16().into());
    let (generation, index, offset) = (pos.generation, pos.index, pos.offset);
    let [s0, s1] = [input.u32(), input.u32()];
    match input.flag() {
        true => Start::Index { generation, index },
        false => {
            let checksum = crate::wal::Checksum { s0, s1 };
            Start::Exact { generation, index, offset, checksum }
        }
    }
}

/// Reads to the end, and proves that what comes is one history.
fn read(log: &Arc<Log>, start: &Start, whole: bool) {
    let Ok(mut subscription) = log.subscribe(start, whole) else { return };
    let mut expected = None;
    for _ in 0..64 {
        let Ok(item) = subscription.next(Duration::ZERO) else { return };
        match item {
            Item::Snapshot(snapshot) => {
                assert!(snapshot.stored_size() < LIMIT as u64);
                expected = Some(snapshot.pos());
            }
            Item::Segment(segment) => {
                assert!(segment.raw.len() < LIMIT);
                let same = expected.is_none_or(|pos| pos == segment.pos);
                let next = segment.pos.offset.get() == 0;
                assert!(same || next, "{} came where {expected:?} was to come", segment.pos);
                expected = Some(segment.end());
            }
            Item::Large(large) => {
                assert!(whole);
                expected = None;
                let mut out = std::io::sink();
                let _read =
                    large.open().and_then(|mut from| Ok(std::io::copy(&mut from, &mut out)?));
            }
            Item::Idle => return,
        }
    }
}
