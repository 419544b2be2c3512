//! The log against its own rules: order, resumption, bounds, and what a restart finds.
#![allow(clippy::cast_possible_truncation)]

use std::io::Read;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use super::layout::Layout;
use super::*;
use crate::wal::{ByteOrder, WAL_HEADER_SIZE, WalHeader};

/// A folder that is gone afterwards.
pub(super) struct Folder(PathBuf);

impl Folder {
    pub(super) fn new(name: &str) -> Folder {
        let path =
            std::env::temp_dir().join(format!("litestream-log-{name}-{}", std::process::id()));
        std::fs::remove_dir_all(&path).ok();
        std::fs::create_dir_all(&path).unwrap();
        Folder(path)
    }

    fn database(&self) -> PathBuf {
        let path = self.0.join("app.db");
        std::fs::write(&path, b"stands in for a database").unwrap();
        path
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        std::fs::remove_dir_all(&self.0).ok();
    }
}

pub(super) fn open(folder: &Folder) -> (Arc<Log>, Option<Error>) {
    let log = Log::new(Layout::beside(&folder.database()).unwrap());
    let error = log.load().unwrap();
    (Arc::new(log), error)
}

const PAGE: u32 = 512;

/// Writes WALs as SQLite would, one index at a time.
pub(super) struct Writer {
    pos: Pos,
    chain: Option<Chain>,
    salt: u32,
}

impl Writer {
    pub(super) fn new(log: &Log, generation: u64) -> Writer {
        let generation = Generation::from_bits(generation);
        log.begin_generation(generation, PageSize::new(PAGE).unwrap());
        Writer { pos: Pos { generation, ..Pos::default() }, chain: None, salt: 7 }
    }

    /// A segment of one-page transactions (or of one open transaction, if not `commit`).
    pub(super) fn segment(&mut self, pages: &[u32], commit: bool) -> (Segment, Chain) {
        let mut raw = Vec::new();
        let mut chain = self.chain.unwrap_or_else(|| {
            let page_size = PageSize::new(PAGE).unwrap();
            let header = WalHeader::new(ByteOrder::Little, page_size, 0, [self.salt, 9]);
            raw.extend_from_slice(&header.encode());
            Chain::start(&header)
        });
        for page in pages {
            let page_count = if commit { 10 } else { 0 };
            chain.append(*page, page_count, &vec![*page as u8; PAGE as usize], &mut raw);
        }
        let segment = Segment::new(self.pos, raw, commit, SystemTime::now());
        self.pos = segment.end();
        self.chain = Some(chain);
        (segment, chain)
    }

    pub(super) fn write(&mut self, log: &Log, pages: &[u32]) {
        let (segment, chain) = self.segment(pages, true);
        log.append(segment, chain).unwrap();
    }

    pub(super) fn restart(&mut self) {
        self.pos = Pos { index: self.pos.index.next(), offset: Offset::default(), ..self.pos };
        self.chain = None;
        self.salt += 1;
    }
}

pub(super) fn snapshot(log: &Log, index: u64, bytes: &[u8]) {
    let index = Index::new(index).unwrap();
    let size = bytes.len() as u64;
    let mut writer = log.snapshot_writer(index, size, SystemTime::now()).unwrap();
    writer.write(bytes).unwrap();
    log.add_snapshot(writer).unwrap();
    log.flush(Pack::Compressed, true).unwrap();
    log.adopt().unwrap();
}

/// All a subscription hands out until it is idle: bytes per index.
fn drain(subscription: &mut Subscription) -> (bool, Vec<(u64, Vec<u8>)>) {
    let (mut snapshots, mut indexes) = (false, Vec::<(u64, Vec<u8>)>::new());
    let mut add = |index: u64, raw: &[u8]| match indexes.last_mut() {
        Some((last, bytes)) if *last == index => bytes.extend_from_slice(raw),
        _ => indexes.push((index, raw.to_vec())),
    };
    loop {
        match subscription.next(Duration::ZERO).unwrap() {
            Item::Snapshot(_) => snapshots = true,
            Item::Segment(segment) => add(segment.pos.index.get(), &segment.raw),
            Item::Large(large) => {
                let mut raw = Vec::new();
                large.open().unwrap().read_to_end(&mut raw).unwrap();
                assert_eq!(raw.len() as u64, large.raw_size);
                add(large.pos.index.get(), &raw);
            }
            Item::Idle => return (snapshots, indexes),
        }
    }
}

/// Paths of all files below a folder.
fn files_below(root: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut folders = vec![root.to_owned()];
    while let Some(folder) = folders.pop() {
        let Ok(entries) = std::fs::read_dir(&folder) else { continue };
        for entry in entries.flatten() {
            let path = entry.path();
            if path.is_dir() { folders.push(path) } else { found.push(path) }
        }
    }
    found.sort();
    found
}

#[test]
fn nothing_is_served_before_the_first_snapshot() {
    let folder = Folder::new("empty");
    let (log, _) = open(&folder);
    assert_eq!(log.subscribe(&Start::Fresh, false).err().unwrap().kind(), ErrorKind::NoGeneration);
    Writer::new(&log, 1).write(&log, &[1]);
    assert_eq!(log.subscribe(&Start::Fresh, false).err().unwrap().kind(), ErrorKind::NoGeneration);
}

#[test]
fn a_late_joiner_gets_the_snapshot_and_every_byte_after_it() {
    let folder = Folder::new("late");
    let (log, _) = open(&folder);
    let mut writer = Writer::new(&log, 0xabc);
    let mut expected = [Vec::new(), Vec::new()];
    for (index, part) in expected.iter_mut().enumerate() {
        for pages in [&[1, 2][..], &[3], &[1]] {
            let (segment, chain) = writer.segment(pages, true);
            part.extend_from_slice(&segment.raw);
            log.append(segment, chain).unwrap();
        }
        if index == 0 {
            snapshot(&log, 0, &[5; 2048]);
            writer.restart();
        }
    }
    let mut late = log.subscribe(&Start::Fresh, false).unwrap();
    let (snapshots, indexes) = drain(&mut late);
    assert!(snapshots);
    assert_eq!(indexes, vec![(0, expected[0].clone()), (1, expected[1].clone())]);
    assert_eq!(late.position(), log.position().unwrap());
}

#[test]
fn resumes_at_the_exact_byte_only_with_the_right_checksum() {
    let folder = Folder::new("resume");
    let (log, _) = open(&folder);
    let mut writer = Writer::new(&log, 0xabc);
    writer.write(&log, &[1, 2]);
    snapshot(&log, 0, &[5; 512]);
    let (middle, chain) = (writer.pos, writer.chain.unwrap());
    writer.write(&log, &[3, 4, 5]);
    let start = |checksum| Start::Exact {
        generation: middle.generation,
        index: middle.index,
        offset: middle.offset,
        checksum,
    };
    let (snapshots, indexes) = drain(&mut log.subscribe(&start(chain.checksum), false).unwrap());
    assert!(!snapshots);
    assert_eq!(indexes[0].1.len(), 3 * (24 + 512));
    let other = Checksum { s0: chain.checksum.s0 ^ 1, s1: chain.checksum.s1 };
    let (snapshots, _) = drain(&mut log.subscribe(&start(other), false).unwrap());
    assert!(snapshots, "another history is answered with a snapshot");
}

#[test]
fn checksums_are_found_in_memory_and_in_files_and_only_at_frame_ends() {
    let folder = Folder::new("checksums");
    let (log, _) = open(&folder);
    let mut writer = Writer::new(&log, 0xabc);
    let mut known = Vec::new();
    for page in 1..6 {
        writer.write(&log, &[page]);
        known.push((writer.pos.offset, writer.chain.unwrap().checksum));
    }
    snapshot(&log, 0, &[5; 512]);
    let (again, error) = open(&folder);
    assert!(error.is_none());
    let check = |log: &Log| {
        for (offset, checksum) in &known {
            assert_eq!(log.checksum_at(Index::default(), *offset).unwrap(), Some(*checksum));
        }
        let header = Offset::new(WAL_HEADER_SIZE as u64).unwrap();
        assert!(log.checksum_at(Index::default(), header).unwrap().is_some());
        for odd in [0, 1, 31, 33, 567, 569, 1 << 40] {
            let odd = Offset::new(odd).unwrap();
            assert_eq!(log.checksum_at(Index::default(), odd).unwrap(), None, "{odd}");
        }
    };
    check(&log);
    check(&again);
}

#[test]
fn a_restarted_process_finds_the_same_history() {
    let folder = Folder::new("reopen");
    let (log, _) = open(&folder);
    let mut writer = Writer::new(&log, 0xabc);
    writer.write(&log, &[1, 2]);
    snapshot(&log, 0, &[5; 512]);
    writer.restart();
    writer.write(&log, &[3]);
    writer.write(&log, &[4]);
    log.flush(Pack::Stored, true).unwrap();
    let (again, error) = open(&folder);
    assert!(error.is_none(), "{error:?}");
    assert_eq!(again.tip(), log.tip());
    again.resume();
    let whole = drain(&mut log.subscribe(&Start::Fresh, false).unwrap());
    assert_eq!(drain(&mut again.subscribe(&Start::Fresh, false).unwrap()), whole);
    let index = Start::Index { generation: writer.pos.generation, index: writer.pos.index };
    let (snapshots, indexes) = drain(&mut again.subscribe(&index, true).unwrap());
    assert!(!snapshots);
    assert_eq!(indexes.len(), 1);
}

#[test]
fn damage_is_found_at_start_or_when_it_is_read_and_never_served() {
    let folder = Folder::new("damage");
    let (log, _) = open(&folder);
    let mut writer = Writer::new(&log, 0xabc);
    for page in 1..4 {
        writer.write(&log, &[page]);
        log.flush(Pack::Compressed, true).unwrap();
    }
    snapshot(&log, 0, &[5; 512]);
    let segments: Vec<_> = files_below(&folder.0)
        .into_iter()
        .filter(|path| path.to_string_lossy().ends_with(".wal.lz4"))
        .collect();
    assert_eq!(segments.len(), 3);
    let flip = |path: &PathBuf| {
        let mut bytes = std::fs::read(path).unwrap();
        let middle = bytes.len() / 2;
        bytes[middle] ^= 0x10;
        std::fs::write(path, bytes).unwrap();
    };
    flip(&segments[1]);
    let (again, error) = open(&folder);
    assert!(error.is_none());
    again.resume();
    let mut subscription = again.subscribe(&Start::Fresh, false).unwrap();
    assert!(matches!(subscription.next(Duration::ZERO).unwrap(), Item::Snapshot(_)));
    assert!(matches!(subscription.next(Duration::ZERO).unwrap(), Item::Segment(_)));
    assert_eq!(subscription.next(Duration::ZERO).err().unwrap().kind(), ErrorKind::Corrupt);
    assert!(again.damage().is_some());
    flip(&segments[2]);
    let (empty, error) = open(&folder);
    assert!(error.is_some());
    assert!(empty.tip().is_none());
}

#[test]
fn a_damaged_snapshot_is_found_before_it_is_sent() {
    let folder = Folder::new("bad-snapshot");
    let (log, _) = open(&folder);
    Writer::new(&log, 0xabc).write(&log, &[1]);
    snapshot(&log, 0, &(0..9000_u32).map(|n| (n * n % 251) as u8).collect::<Vec<_>>());
    let path = log.layout().snapshot(log.generation().unwrap(), Index::default());
    let mut bytes = std::fs::read(&path).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    std::fs::write(&path, bytes).unwrap();
    let (again, error) = open(&folder);
    assert!(error.is_none());
    again.resume();
    let mut subscription = again.subscribe(&Start::Fresh, false).unwrap();
    assert_eq!(subscription.next(Duration::ZERO).err().unwrap().kind(), ErrorKind::Corrupt);
    assert!(again.damage().is_some());
}

#[test]
fn split_transactions_reach_an_old_follower_whole() {
    let folder = Folder::new("split");
    let (log, _) = open(&folder);
    let mut writer = Writer::new(&log, 0xabc);
    writer.write(&log, &[1]);
    snapshot(&log, 0, &[5; 512]);
    let (first, chain) = writer.segment(&[2, 3, 4], false);
    log.append(first, chain).unwrap();
    let start = Start::Index { generation: writer.pos.generation, index: Index::default() };
    let mut old = log.subscribe(&start, true).unwrap();
    let (_, indexes) = drain(&mut old);
    assert_eq!(indexes[0].1.len(), 32 + 536, "nothing uncommitted");
    let mut new = log.subscribe(&start, false).unwrap();
    assert_eq!(drain(&mut new).1[0].1.len(), 32 + 4 * 536);
    writer.write(&log, &[5]);
    let (_, indexes) = drain(&mut old);
    assert_eq!(indexes[0].1.len(), 4 * 536);
}

#[test]
fn old_indexes_go_but_not_under_a_reader() {
    let folder = Folder::new("trim");
    let (log, _) = open(&folder);
    let mut writer = Writer::new(&log, 0xabc);
    writer.write(&log, &[1]);
    snapshot(&log, 0, &[5; 512]);
    let mut reader = log.subscribe(&Start::Fresh, false).unwrap();
    for _ in 0..3 {
        writer.restart();
        writer.write(&log, &[1, 2, 3, 4, 5, 6]);
        log.flush(Pack::Stored, true).unwrap();
    }
    snapshot(&log, 3, &[6; 512]);
    let bytes = log.totals().size;
    log.trim(bytes / 2).unwrap();
    assert_eq!(log.totals().segments, 4, "a reader at index 0 holds all of it");
    drain(&mut reader);
    drop(reader);
    log.trim(0).unwrap();
    assert_eq!(log.totals().segments, 1, "the newest snapshot keeps its own index");
    assert_eq!(log.totals().snapshots, 1);
    let (again, error) = open(&folder);
    assert!(error.is_none(), "{error:?}");
    assert_eq!(again.tip(), log.tip());
}

/// A process may die while it writes a large transaction in parts.
#[test]
fn an_open_transaction_is_left_to_the_wal() {
    let folder = Folder::new("open-transaction");
    let (log, _) = open(&folder);
    let mut writer = Writer::new(&log, 0xace);
    snapshot(&log, 0, &[5; 512]);
    writer.write(&log, &[1]);
    log.flush(Pack::Stored, false).unwrap();
    let tip = log.tip();
    for _ in 0..2 {
        let (segment, chain) = writer.segment(&[2, 3], false);
        log.append(segment, chain).unwrap();
        log.flush(Pack::Stored, false).unwrap();
    }
    let (again, error) = open(&folder);
    assert!(error.is_none(), "{error:?}");
    assert_eq!(again.tip(), tip);
    assert_eq!(again.totals().segments, 1);
    assert_eq!(open(&folder).0.tip(), tip);
}

/// What waits is counted from the first segment on, so that a single commit is flushed as well.
#[test]
fn every_unwritten_byte_counts() {
    let folder = Folder::new("unflushed");
    let (log, _) = open(&folder);
    let mut writer = Writer::new(&log, 0xdef);
    snapshot(&log, 0, &[5; 512]);
    writer.write(&log, &[1]);
    assert!(log.unflushed_bytes() > 0);
    log.flush(Pack::Stored, false).unwrap();
    assert_eq!(log.unflushed_bytes(), 0);
    writer.write(&log, &[1]);
    assert!(log.unflushed_bytes() > 0);
    writer.restart();
    writer.write(&log, &[1]);
    log.flush(Pack::Stored, false).unwrap();
    assert_eq!(log.unflushed_bytes(), 0);
}

/// A burst may fill whole indexes, have them replaced by a snapshot and deleted, all between two
/// durable flushes: the second one has nothing to sync of what is gone.
#[test]
fn files_may_go_before_they_were_synced() {
    let folder = Folder::new("unsynced");
    let (log, _) = open(&folder);
    let mut writer = Writer::new(&log, 0xabc);
    snapshot(&log, 0, &[5; 512]);
    writer.write(&log, &[1]);
    writer.restart();
    writer.write(&log, &[1]);
    let newest = Index::new(1).unwrap();
    let mut copy = log.snapshot_writer(newest, 512, SystemTime::now()).unwrap();
    copy.write(&[6; 512]).unwrap();
    log.add_snapshot(copy).unwrap();
    log.flush(Pack::Stored, false).unwrap();
    log.trim(0).unwrap();
    assert_eq!(log.totals().segments, 1);
    log.flush(Pack::Stored, true).unwrap();
}

#[test]
fn a_gap_or_a_jump_is_refused() {
    let folder = Folder::new("gap");
    let (log, _) = open(&folder);
    let mut writer = Writer::new(&log, 0xabc);
    let (lost, _) = writer.segment(&[1], true);
    let (next, chain) = writer.segment(&[2], true);
    assert_eq!(log.append(next, chain).err().unwrap().kind(), ErrorKind::Bug);
    log.append(lost, chain).unwrap();
    writer.restart();
    writer.restart();
    let (jump, chain) = writer.segment(&[1], true);
    assert!(log.append(jump, chain).is_err());
}

#[test]
fn a_new_generation_ends_every_subscription_and_replaces_the_files() {
    let folder = Folder::new("generation");
    let (log, _) = open(&folder);
    let mut writer = Writer::new(&log, 0xabc);
    writer.write(&log, &[1]);
    snapshot(&log, 0, &[5; 512]);
    let mut reader = log.subscribe(&Start::Fresh, false).unwrap();
    drain(&mut reader);
    Writer::new(&log, 0xdef).write(&log, &[1]);
    let gone = reader.next(Duration::from_secs(5)).err().unwrap();
    assert_eq!(gone.kind(), ErrorKind::GenerationChanged);
    snapshot(&log, 0, &[6; 512]);
    let files = files_below(&folder.0);
    assert!(files.iter().all(|path| !path.to_string_lossy().contains("0000000000000abc")));
}

#[test]
fn a_clock_that_was_set_back_stands_still() {
    let folder = Folder::new("clock");
    let (log, _) = open(&folder);
    Writer::new(&log, 1).write(&log, &[1]);
    snapshot(&log, 0, b"page");
    let ahead = SystemTime::now() + Duration::from_secs(3600);
    log.newest_snapshot().unwrap().open_stored().unwrap().set_modified(ahead).unwrap();
    assert!(open(&folder).0.now() >= ahead);
}
