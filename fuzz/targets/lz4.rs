//! LZ4 frames: our three ways to read one agree with each other and with lz4_flex's own, none gives
//! more than it may, and what we write we read.

use std::io::Read;

use super::{Cut, Input};
use crate::error::Result;
use crate::lz4::{Content, Decoder, StoredBlocks, compress, copy_stored, decompress, write_stored};

/// The most content asked for, in bytes.
const MAX: u64 = 1 << 20;

pub fn target(data: &[u8]) {
    let mut input = Input(data);
    let way = input.byte();
    let lengths = input.bytes(4);
    match way % 4 {
        0 => writing(input.0),
        1 => {
            let frame = made(&mut input);
            reading(&frame, lengths);
        }
        2 => damaged(&mut input, lengths),
        _ => reading(input.0, lengths),
    }
}

fn whole(frame: &[u8]) -> Result<Vec<u8>> {
    let mut out = b"before".to_vec();
    let result = decompress(frame, MAX, &mut out);
    assert!(result.is_ok() || out == b"before", "what failed left something behind");
    result.map(|()| out.split_off(6))
}

fn in_pieces(frame: &[u8], lengths: &[u8]) -> Result<Vec<u8>> {
    let mut decoder = Decoder::new(Cut::new(frame, lengths), MAX);
    let (mut out, mut piece) = (Vec::new(), [0; 333]);
    loop {
        match decoder.read(&mut piece) {
            Ok(0) => return Ok(out),
            Ok(n) => out.extend_from_slice(&piece[..n]),
            Err(error) => {
                assert!(out.len() as u64 <= MAX);
                assert!(decoder.read(&mut piece).is_err(), "a frame that failed goes on");
                return Err(error.into());
            }
        }
    }
}

/// `None` if its blocks are linked.
fn in_blocks(frame: &[u8]) -> Result<Option<Vec<u8>>> {
    let mut blocks = StoredBlocks::open(frame, MAX)?;
    if !blocks.is_independent() {
        return Ok(None);
    }
    let (mut content, mut out, mut room) = (Content::default(), Vec::new(), Vec::new());
    while let Some(block) = blocks.next(Vec::new())? {
        let bytes = block.content(&mut room)?;
        content.add(bytes);
        if content.size() > MAX {
            return Err(crate::error::Error::corrupt("more than allowed"));
        }
        out.extend_from_slice(bytes);
    }
    content.check(blocks.end()?)?;
    Ok(Some(out))
}

fn reading(frame: &[u8], lengths: &[u8]) {
    let ours = whole(frame).ok();
    assert!(ours.as_ref().is_none_or(|content| content.len() as u64 <= MAX));
    assert!(ours == in_pieces(frame, lengths).ok(), "read in pieces it is another");
    match in_blocks(frame) {
        Ok(Some(content)) => assert!(ours == Some(content), "its blocks make another"),
        Ok(None) => {}
        Err(_) => assert!(ours.is_none(), "its blocks make none"),
    }
    if let (Some(ours), Some(theirs)) = (ours, by_lz4_flex(frame)) {
        assert!(ours == theirs, "lz4_flex reads another");
    }
}

/// `None` if it refuses the frame.
fn by_lz4_flex(frame: &[u8]) -> Option<Vec<u8>> {
    let mut decoder = lz4_flex::frame::FrameDecoder::new(frame);
    let (mut out, mut piece) = (Vec::new(), [0; 4096]);
    // It gives nothing for an empty block, as for the end: read on past as many as there may be.
    let mut empty = frame.len() / 4;
    while empty > 0 && out.len() as u64 <= MAX {
        match decoder.read(&mut piece) {
            Ok(0) => empty -= 1,
            Ok(n) => out.extend_from_slice(&piece[..n]),
            Err(_) => return None,
        }
    }
    Some(out)
}

fn writing(content: &[u8]) {
    let frame = compress(content).unwrap();
    assert!(whole(&frame).unwrap() == content);
    reading(&frame, &[3, 200]);
    let mut stored = Vec::new();
    write_stored(&mut stored, content).unwrap();
    let mut copied = Vec::new();
    copy_stored(&mut &*content, content.len() as u64, &mut copied).unwrap();
    assert!(stored == copied);
    assert!(whole(&stored).unwrap() == content);
}

/// A frame of ours with a few bytes changed, or cut short.
fn damaged(input: &mut Input, lengths: &[u8]) {
    let changes = input.bytes(6);
    let mut frame = compress(input.0).unwrap();
    let whole = frame.clone();
    let at = |low: u8, high: u8| usize::from(u16::from_le_bytes([low, high])) % frame.len();
    let [place, end] = match changes {
        [a, b, c, d, ..] => [at(*a, *b), at(*c, *d)],
        _ => [0, 0],
    };
    frame[place] ^= changes.get(4).copied().unwrap_or(1);
    if changes.get(5).is_some_and(|it| it & 1 == 1) {
        frame.truncate(end);
    }
    reading(&frame, lengths);
    if frame != whole
        && let Ok(content) = super::lz4::whole(&frame)
    {
        // A match may be described in more than one way: the checksum is of the content.
        assert!(content == input.0, "damage did not show");
    }
}

/// A frame whose header is right, of blocks as the fuzzer likes them.
fn made(input: &mut Input) -> Vec<u8> {
    let mut frame = vec![0x04, 0x22, 0x4d, 0x18];
    // Version 01; linked or not, with a content size or not, and no checksums: those are fixed.
    let flags = 0x40 | input.byte() & 0b0010_1000;
    let mut descriptor = vec![flags, (4 + input.byte() % 4) << 4];
    if flags & 8 != 0 {
        descriptor.extend_from_slice(&input.number().to_le_bytes());
    }
    let [_, _, second, _] = twox_hash::XxHash32::oneshot(0, &descriptor).to_be_bytes();
    frame.extend_from_slice(&descriptor);
    frame.push(second);
    while !input.is_empty() {
        let stored = u32::from(input.flag()) << 31;
        let block = input.short();
        frame.extend_from_slice(&(block.len() as u32 | stored).to_le_bytes());
        frame.extend_from_slice(block);
    }
    frame.extend_from_slice(&[0; 4]);
    frame
}
