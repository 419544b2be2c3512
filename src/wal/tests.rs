//! The WAL's formats: bytes made by SQLite, every way they may be damaged.
#![allow(clippy::cast_possible_truncation)]

use super::*;

const SIZES: [u32; 8] = [512, 1024, 2048, 4096, 8192, 16384, 32768, 65536];

fn page_size(bytes: u32) -> PageSize {
    PageSize::new(bytes).unwrap()
}

fn page(size: PageSize, seed: u8) -> Vec<u8> {
    (0..size.bytes()).map(|i| (i % 251) as u8 ^ seed).collect()
}

/// A chain at its start, and frames (page number, page count) written by it.
fn frames(order: ByteOrder, size: PageSize, frames: &[(u32, u32)]) -> (Chain, Vec<u8>) {
    let start = Chain::start(&WalHeader::new(order, size, 7, [0xdead_beef, 2]));
    let mut chain = start;
    let mut out = Vec::new();
    for (seed, (page_no, page_count)) in (1..).zip(frames) {
        chain.append(*page_no, *page_count, &page(size, seed), &mut out);
    }
    (start, out)
}

#[track_caller]
fn check_error<T: fmt::Debug>(result: Result<T>, expected: &str) {
    let error = result.unwrap_err();
    assert!(error.to_string().contains(expected), "{error}");
    assert_eq!(error.kind(), crate::error::ErrorKind::Corrupt);
}

#[test]
fn page_sizes() {
    for size in SIZES {
        assert_eq!(page_size(size).get(), size);
        assert_eq!(page_size(size).frame_size(), size as usize + 24);
    }
    for size in [0, 1, 256, 511, 513, 1000, 4097, 131_072, u32::MAX] {
        check_error(PageSize::new(size), &format!("invalid page size {size}"));
    }
}

#[test]
fn sizes() {
    assert_eq!(wal_size(page_size(4096), 0), 32);
    assert_eq!(wal_size(page_size(4096), 1), 4152);
    assert_eq!(wal_size(page_size(512), 3), 32 + 3 * 536);
    assert_eq!(wal_size(page_size(65536), 1 << 32), 32 + (65560 << 32));
    assert_eq!(wal_size(page_size(65536), u64::MAX), u64::MAX);
}

#[test]
fn header_from_a_real_wal() {
    let bytes = 0x377f0682_002de218_00001000_00000000_u128.to_be_bytes();
    let rest = 0x7359f7e2_0b2c0da2_b7de5c86_11d36036_u128.to_be_bytes();
    let bytes = [bytes, rest].concat();
    let header = WalHeader::decode(&bytes).unwrap();
    assert_eq!(header.order, ByteOrder::Little);
    assert_eq!(header.page_size.get(), 4096);
    assert_eq!(header.checkpoint_seq, 0);
    assert_eq!(header.salts, [0x7359_f7e2, 0x0b2c_0da2]);
    assert_eq!(header.checksum.to_string(), "b7de5c8611d36036");
    assert_eq!(header.encode(), *bytes);
    let again = WalHeader::new(ByteOrder::Little, header.page_size, 0, header.salts);
    assert_eq!(again, header);
}

#[test]
fn header_round_trip() {
    for order in [ByteOrder::Little, ByteOrder::Big] {
        for size in SIZES {
            let header = WalHeader::new(order, page_size(size), u32::MAX, [0, u32::MAX]);
            let mut bytes = header.encode().to_vec();
            assert_eq!(bytes[3], if order == ByteOrder::Big { 0x83 } else { 0x82 });
            assert_eq!(WalHeader::decode(&bytes).unwrap(), header);
            bytes.push(0xaa);
            assert_eq!(WalHeader::decode(&bytes).unwrap(), header);
        }
    }
}

#[test]
fn header_errors() {
    let good = WalHeader::new(ByteOrder::Big, page_size(4096), 1, [2, 3]).encode();
    for len in 0..good.len() {
        check_error(WalHeader::decode(&good[..len]), &format!("cut short: {len} of 32 bytes"));
    }
    for at in 0..good.len() * 8 {
        let mut bytes = good;
        bytes[at / 8] ^= 1 << (at % 8);
        assert!(WalHeader::decode(&bytes).is_err(), "bit {at}");
    }
    check_error(WalHeader::decode(&[0; 32]), "not a WAL: it starts with 00000000");
    let mut bytes = good;
    bytes[7] = 0x19;
    check_error(WalHeader::decode(&bytes), "version 3007001");
    let mut bytes = good;
    bytes[10] = 0;
    check_error(WalHeader::decode(&bytes), "WAL header: invalid page size 0");
    let mut bytes = good;
    bytes[31] ^= 1;
    check_error(WalHeader::decode(&bytes), "WAL header has checksum");
}

#[test]
fn frame_header_round_trip() {
    let checksum = Checksum { s0: 5, s1: u32::MAX };
    let header = FrameHeader { page_no: 1, page_count: 2, salts: [3, 4], checksum };
    let bytes = header.encode();
    let expected = [0, 0, 0, 1, 0, 0, 0, 2, 0, 0, 0, 3, 0, 0, 0, 4];
    assert_eq!(bytes[..16], expected);
    assert_eq!(bytes[16..], [0, 0, 0, 5, 255, 255, 255, 255]);
    assert_eq!(FrameHeader::decode(&bytes), header);
    assert!(header.is_commit());
    assert!(!FrameHeader { page_count: 0, ..header }.is_commit());
}

#[test]
fn what_append_writes_verify_takes() {
    for order in [ByteOrder::Little, ByteOrder::Big] {
        for size in SIZES.map(page_size) {
            let numbers = [(1, 0), (u32::MAX, 9), (2, u32::MAX)];
            let (mut chain, bytes) = frames(order, size, &numbers);
            assert_eq!(bytes.len() as u64 + 32, wal_size(size, 3));
            for (frame, (page_no, page_count)) in bytes.chunks(size.frame_size()).zip(numbers) {
                let header = chain.verify(frame).unwrap();
                assert_eq!((header.page_no, header.page_count), (page_no, page_count));
                assert_eq!(header.checksum, chain.checksum);
            }
        }
    }
}

#[test]
fn append_keeps_what_is_there() {
    let mut chain = Chain::start(&WalHeader::new(ByteOrder::NATIVE, page_size(512), 0, [1, 2]));
    let mut out = vec![7; 3];
    chain.append(1, 1, &[0; 512], &mut out);
    assert_eq!(out.len(), 3 + 536);
    assert_eq!(out[..3], [7; 3]);
}

#[test]
fn a_bad_frame_leaves_the_chain_alone() {
    let (start, good) = frames(ByteOrder::Little, page_size(512), &[(3, 4)]);
    let check = |frame: &[u8], expected: &str| {
        let mut chain = start;
        check_error(chain.verify(frame), expected);
        assert_eq!(chain, start);
    };
    check(&[], "WAL frame has 0 bytes, expected 536");
    check(&good[..23], "23 bytes");
    check(&good[..24], "24 bytes");
    check(&good[..535], "535 bytes");
    check(&[&good[..], &[0]].concat(), "537 bytes");
    for at in 0..good.len() * 8 {
        let mut frame = good.clone();
        frame[at / 8] ^= 1 << (at % 8);
        check(&frame, if (64..128).contains(&at) { "salts" } else { "" });
    }
    let mut frame = good.clone();
    frame[3] = 0; // and a checksum that is right
    let page = PageSum::of(start.order, start.page_size, &good[24..]);
    frame[16..24].copy_from_slice(&start.continued(&[0, 0, 0, 0, 0, 0, 0, 4], &page).to_bytes());
    check(&frame, "page number 0");
    frame = good;
    frame[535] ^= 1;
    check(&frame, "checksum");
}

#[test]
fn scans() {
    let check = |numbers: &[(u32, u32)], cut: usize, expected: (u32, u32, u32, u32)| {
        let (start, mut bytes) = frames(ByteOrder::Big, page_size(512), numbers);
        bytes.truncate(bytes.len() - cut);
        let found = scan(start, &bytes);
        let Scan { frames, committed_frames, commits, page_count, .. } = found;
        assert_eq!((frames, committed_frames, commits, page_count), expected);
        // The two chains are where their counts say.
        let mut chain = start;
        for (n, frame) in (1..).zip(bytes.chunks_exact(536)).take(frames as usize) {
            chain.verify(frame).unwrap();
            assert!(n != committed_frames || chain == found.committed);
        }
        assert_eq!(chain, found.end);
        assert!(committed_frames != 0 || found.committed == start);
    };
    check(&[], 0, (0, 0, 0, 0));
    check(&[(1, 0)], 0, (1, 0, 0, 0));
    check(&[(1, 1)], 0, (1, 1, 1, 1));
    check(&[(1, 1)], 1, (0, 0, 0, 0));
    check(&[(1, 0), (2, 5), (3, 6), (4, 0)], 0, (4, 3, 2, 6));
    check(&[(1, 0), (2, 5), (3, 6), (4, 0)], 536, (3, 3, 2, 6));
    check(&[(1, 0), (2, 5), (3, 6), (4, 0)], 537, (2, 2, 1, 5));
}

#[test]
fn a_scan_ends_at_leftovers_of_an_older_wal() {
    let size = page_size(1024);
    let (start, mut bytes) = frames(ByteOrder::Little, size, &[(1, 0), (2, 2)]);
    let mut older = Chain::start(&WalHeader::new(ByteOrder::Little, size, 6, [0xdead_beee, 9]));
    older.append(1, 1, &page(size, 1), &mut bytes);
    let found = scan(start, &bytes);
    assert_eq!((found.frames, found.committed_frames), (2, 2));
}
