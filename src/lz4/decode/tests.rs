//! Decoding: frames made here and elsewhere, damaged, cut and hostile.
#![allow(clippy::cast_possible_truncation)]

use super::*;
use crate::error::ErrorKind;
use crate::lz4::{compress, write_stored};
use lz4_flex::frame::{BlockMode, BlockSize, FrameEncoder, FrameInfo};
use std::io::Write;

/// Bytes whose matches lie up to 60,000 back, so that linked blocks reach into each other.
fn content(len: usize) -> Vec<u8> {
    let mut state = 1_u32;
    let mut next = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        state.to_be_bytes()[0]
    };
    let period: Vec<u8> = (0..60_000).map(|_| next()).collect();
    period.iter().copied().cycle().take(len).collect()
}

fn foreign(info: FrameInfo, bytes: &[u8]) -> Vec<u8> {
    let mut encoder = FrameEncoder::with_frame_info(info, Vec::new());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

fn stored(bytes: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    write_stored(&mut out, bytes).unwrap();
    out
}

/// A frame of `flags` without optional parts: these bytes follow its descriptor.
fn frame(flags: u8, code: u8, rest: &[u8]) -> Vec<u8> {
    let checksum = descriptor_checksum(&[flags, code]);
    [&MAGIC[..], &[flags, code, checksum], rest].concat()
}

fn whole(frame: &[u8], max: u64) -> Result<Vec<u8>> {
    let mut out = Vec::new();
    let result = decompress(frame, max, &mut out);
    assert!(result.is_ok() || out.is_empty(), "output is taken back after an error");
    result.map(|()| out)
}

fn piecewise(frame: &[u8], max: u64, step: usize) -> Result<Vec<u8>> {
    let mut decoder = Decoder::new(frame, max);
    let mut out = Vec::new();
    let mut buffer = vec![0; step];
    loop {
        match decoder.read(&mut buffer)? {
            0 => return Ok(out),
            n => out.extend_from_slice(&buffer[..n]),
        }
    }
}

/// What a block with a wrong checksum left in the buffer was given out by the read after the error.
#[test]
fn after_an_error_nothing_comes() {
    let mut rest = (5 | STORED).to_le_bytes().to_vec();
    rest.extend_from_slice(b"wrong\x01\x02\x03\x04\0\0\0\0");
    let bytes = frame(VERSION | INDEPENDENT | BLOCK_CHECKSUMS, 4 << 4, &rest);
    let mut decoder = Decoder::new(bytes.as_slice(), 100);
    for _ in 0..3 {
        assert!(decoder.read(&mut [0; 2]).is_err());
        assert!(decoder.unit(&mut [0; 2]).is_err());
    }
}

/// Units within a block and across two, and a rest.
#[test]
fn content_in_units() {
    let bytes = content(200_000);
    for mode in [BlockMode::Independent, BlockMode::Linked] {
        let info = FrameInfo::new().block_mode(mode).block_size(BlockSize::Max64KB);
        let frame = foreign(info, &bytes);
        let mut buffer = Vec::new();
        for len in [1000, 536, 70_000, 200_000, 200_001] {
            let mut decoder = Decoder::with_buffer(frame.as_slice(), u64::MAX, buffer);
            let mut unit = vec![0; len];
            let whole = bytes.chunks_exact(len);
            let rest = whole.remainder();
            for expected in whole {
                assert!(decoder.unit(&mut unit).unwrap() == Some(expected), "{len}");
            }
            match rest {
                [] => assert_eq!(decoder.unit(&mut unit).unwrap(), None),
                _ => assert_eq!(decoder.unit(&mut unit).unwrap_err().kind(), Io::UnexpectedEof),
            }
            buffer = decoder.into_buffer();
            assert!(buffer.is_empty());
        }
    }
}

#[track_caller]
fn check_error(frame: &[u8], max: u64, expected: &str) {
    for result in [whole(frame, max), piecewise(frame, max, 1000)] {
        let error = result.unwrap_err();
        assert!(error.to_string().contains(expected), "{error}");
        assert_eq!(error.kind(), ErrorKind::Corrupt);
    }
}

#[test]
fn frames_of_every_kind() {
    let sizes = [BlockSize::Max64KB, BlockSize::Max256KB, BlockSize::Max1MB, BlockSize::Max4MB];
    for mode in [BlockMode::Independent, BlockMode::Linked] {
        for size in sizes {
            let large = if size == BlockSize::Max4MB { 5_000_000 } else { 200_000 };
            for len in [0, 1, 1000, 65_536, large] {
                let bytes = content(len);
                let info = FrameInfo::new().block_mode(mode).block_size(size);
                let mut frames = vec![foreign(info.clone(), &bytes)];
                let info = info.block_checksums(true).content_checksum(true);
                frames.push(foreign(info.content_size(Some(len as u64)), &bytes));
                for frame in frames {
                    assert!(whole(&frame, len as u64).unwrap() == bytes);
                    assert!(piecewise(&frame, len as u64, 10_007).unwrap() == bytes);
                }
            }
        }
    }
}

#[test]
fn content_is_appended() {
    let bytes = content(100_000);
    let linked = FrameInfo::new().block_mode(BlockMode::Linked);
    let frame = foreign(linked.block_size(BlockSize::Max64KB), &bytes);
    // What stands before the content must not be taken for part of its window.
    let mut out = vec![7; 70_000];
    decompress(&frame[..], 100_000, &mut out).unwrap();
    assert!(out[..70_000] == [7; 70_000] && out[70_000..] == bytes);
}

#[test]
fn cut_anywhere() {
    for frame in [compress(&content(70_000)).unwrap(), stored(b"0123456789"), stored(b"")] {
        let step = if frame.len() < 100 { 1 } else { 997 };
        for len in (0..frame.len()).step_by(step).chain(frame.len().saturating_sub(9)..frame.len())
        {
            check_error(&frame[..len], 100_000, "LZ4 frame is cut short");
        }
    }
}

#[test]
fn followed_by_something() {
    for rest in [&[0][..], &[0; 100], &stored(b"more")] {
        let frame = [&stored(b"content"), rest].concat();
        check_error(&frame, 100, "followed by other bytes");
    }
}

#[test]
fn larger_than_allowed() {
    let bytes = content(100_000);
    for frame in [compress(&bytes).unwrap(), stored(&bytes), foreign(FrameInfo::new(), &bytes)] {
        assert!(whole(&frame, 100_000).is_ok());
        for max in [0, 1, 99_999] {
            check_error(&frame, max, &format!("more than the {max} bytes of content allowed"));
        }
    }
}

#[test]
fn a_bomb_costs_no_memory() {
    // 40 MB of zeros in 160 KB.
    let frame = foreign(FrameInfo::new().block_size(BlockSize::Max4MB), &vec![0; 40 << 20]);
    let mut out = Vec::new();
    assert!(decompress(&frame[..], 1000, &mut out).is_err());
    assert!(out.capacity() <= 2 * BLOCK_SIZE, "{}", out.capacity());
    // A length that is a lie: no block of 4 MiB is coming.
    let frame = self::frame(0x60, 0x70, &[0, 0, 0x40, 0x80, 1, 2, 3]);
    let mut out = Vec::new();
    assert!(decompress(&frame[..], u64::MAX, &mut out).is_err());
    assert!(out.capacity() < 65536, "{}", out.capacity());
}

#[test]
fn damaged_headers() {
    check_error(b"", 9, "cut short");
    check_error(b"SQLite format 3\0", 9, "not an LZ4 frame: it starts with 53514c69");
    check_error(&[0x02, 0x21, 0x4c, 0x18], 9, "not an LZ4 frame"); // legacy format
    check_error(&[0x50, 0x2a, 0x4d, 0x18, 0, 0, 0, 0], 9, "not an LZ4 frame"); // skippable
    check_error(&frame(0xa0, 0x70, &[0; 4]), 9, "unknown version");
    check_error(&frame(0x62, 0x70, &[0; 4]), 9, "reserved bits");
    check_error(&frame(0x60, 0x71, &[0; 4]), 9, "reserved bits");
    check_error(&frame(0x60, 0xf0, &[0; 4]), 9, "reserved bits");
    check_error(&frame(0x61, 0x70, &[0; 4]), 9, "needs a dictionary");
    check_error(&frame(0x60, 0x30, &[0; 4]), 9, "unknown block size");
    let mut wrong = frame(0x60, 0x70, &[0; 4]);
    wrong[6] ^= 1;
    check_error(&wrong, 9, "wrong header checksum");
    assert_eq!(whole(&frame(0x60, 0x70, &[0; 4]), 9).unwrap(), b"");
}

#[test]
fn damaged_blocks() {
    check_error(&frame(0x60, 0x40, &[1, 0, 1, 0x80]), 9, "block has 65537 bytes");
    check_error(&frame(0x60, 0x40, &[1, 0, 1, 0]), 9, "block has 65537 bytes");
    // A match at distance 5 where there is nothing yet, or only what is before the frame.
    let reaching_back = [6, 0, 0, 0, 0x00, 5, 0, 0x10, b'x', b'y', 0, 0, 0, 0];
    check_error(&frame(0x60, 0x40, &reaching_back), 900, "block is damaged");
    check_error(&frame(0x40, 0x40, &reaching_back), 900, "block is damaged");
    let mut out = b"0123456789".to_vec();
    assert!(decompress(&frame(0x40, 0x40, &reaching_back)[..], 900, &mut out).is_err());
    assert_eq!(out, b"0123456789");
}

#[test]
fn empty_blocks_are_not_the_end() {
    let blocks = [0, 0, 0, 0x80, 1, 0, 0, 0x80, b'x', 0, 0, 0, 0x80, 0, 0, 0, 0];
    let frame = frame(0x60, 0x70, &blocks);
    assert_eq!(whole(&frame, 1).unwrap(), b"x");
    assert_eq!(piecewise(&frame, 1, 1).unwrap(), b"x");
}

#[test]
fn every_damaged_bit_is_noticed() {
    // All checksums on: whatever is hit, content never differs without an error.
    let info = FrameInfo::new().block_checksums(true).content_checksum(true);
    let bytes = content(300);
    for info in [info.clone(), info.block_mode(BlockMode::Linked)] {
        let good = foreign(info.content_size(Some(300)), &bytes);
        for bit in 0..good.len() * 8 {
            let mut frame = good.clone();
            frame[bit / 8] ^= 1 << (bit % 8);
            assert!(whole(&frame, 1000).is_err(), "bit {bit}");
        }
    }
}

#[test]
fn noise_never_panics() {
    // No checksums, so that the damage gets through to the blocks.
    let mut state = 1_u64;
    let mut next = |below: usize| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        usize::try_from(state >> 33).unwrap() % below
    };
    for mode in [BlockMode::Independent, BlockMode::Linked] {
        let info = FrameInfo::new().block_mode(mode).block_size(BlockSize::Max64KB);
        let text: Vec<u8> =
            (0..70_000_u32).map(|at| (at.wrapping_mul(at) >> 9) as u8 & 7).collect();
        let good = foreign(info, &text);
        for _ in 0..400 {
            let mut frame = good.clone();
            for _ in 0..=next(8) {
                let at = 7 + next(frame.len() - 7);
                frame[at] = next(256) as u8;
            }
            let whole = whole(&frame, 1 << 20);
            let pieces = piecewise(&frame, 1 << 20, 4096);
            assert!(whole.ok() == pieces.ok());
        }
    }
}

#[test]
fn stays_failed() {
    let frame = stored(b"content");
    let mut decoder = Decoder::new(&frame[..frame.len() - 1], 100);
    let mut out = Vec::new();
    assert!(decoder.read_to_end(&mut out).is_err());
    assert_eq!(out, b"content");
    assert!(decoder.read(&mut [0; 1]).is_err());
}

#[test]
fn errors_of_the_reader_pass_through() {
    struct Failing;
    impl Read for Failing {
        fn read(&mut self, _: &mut [u8]) -> io::Result<usize> {
            Err(Error::peer("gone").into())
        }
    }
    let check = |good: &[u8]| {
        let error = decompress(good.chain(Failing), 100, &mut Vec::new()).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Peer);
        assert!(error.to_string().ends_with("gone"), "{error}");
    };
    let frame = stored(b"content");
    check(b"");
    check(&frame[..12]);
    check(&frame);
}
