//! LZ4 frames: what segments are stored and sent as, and snapshots stored as.
//!
//! | bytes   | part                                                                              |
//! |---------|-----------------------------------------------------------------------------------|
//! | 4       | magic `04 22 4d 18`                                                               |
//! | 2       | FLG: version 01, and which optional parts there are; BD: largest block            |
//! | 0 or 8  | content size, little-endian                                                       |
//! | 1       | checksum of the descriptor: second byte of the xxHash32 of FLG to content size    |
//! | 4 + n   | a block: length, little-endian, top bit set if stored as is; then its bytes       |
//! | ..      | more blocks                                                                       |
//! | 4       | end mark: a length of 0                                                           |
//! | 0 or 4  | xxHash32 of the content, little-endian                                            |
//!
//! Written here: independent blocks of up to 4 MiB. [`write_stored`] and [`copy_stored`] store them
//! without a checksum (for a peer nearby, and the bytes carry checksums of their own); an
//! [`Encoder`] sums the content, whether it compresses or stores: what lay in a file is sent on
//! without a look at the bytes' own checksums. Read here: any
//! frame without a dictionary. A frame counts as whole if and only if its end mark has been seen,
//! its sizes and checksums agree, and nothing follows it.

mod blocks;
mod decode;

use std::hash::Hasher;
use std::io::{self, ErrorKind as Io, Read, Write};

use lz4_flex::block;
use twox_hash::XxHash32;

use crate::error::{Error, Result};

pub use blocks::{Content, FrameEnd, StoredBlock, StoredBlocks};
pub use decode::{Decoder, decompress};

const MAGIC: [u8; 4] = [0x04, 0x22, 0x4d, 0x18];
/// Bytes of the largest block: what the ancestor writes, too.
const BLOCK_SIZE: usize = 4 << 20;
/// BD for [`BLOCK_SIZE`].
const BLOCK_SIZE_CODE: u8 = 7 << 4;
/// What is to be stored becomes a block of its own from this many bytes on, without being gathered.
const STORED_ALONE: usize = 32 << 10;
/// The top bit of a block's length: the block is stored as is.
const STORED: u32 = 1 << 31;

const VERSION: u8 = 0b0100_0000;
const VERSION_MASK: u8 = 0b1100_0000;
const INDEPENDENT: u8 = 0b0010_0000;
const BLOCK_CHECKSUMS: u8 = 0b0001_0000;
const CONTENT_SIZE: u8 = 0b0000_1000;
const CONTENT_CHECKSUM: u8 = 0b0000_0100;
const RESERVED: u8 = 0b0000_0010;
const DICTIONARY: u8 = 0b0000_0001;

/// FLG, BD and checksum of a frame of stored blocks: no optional part.
const STORED_DESCRIPTOR: [u8; 3] = [VERSION | INDEPENDENT, BLOCK_SIZE_CODE, 0x73];

/// Whether bytes begin as a frame does.
pub fn is_frame(bytes: &[u8]) -> bool {
    bytes.starts_with(&MAGIC)
}

/// Bytes that [`write_stored`] adds to `len` bytes.
pub const fn stored_frame_overhead(len: usize) -> usize {
    MAGIC.len() + 3 + 4 * len.div_ceil(BLOCK_SIZE) + 4
}

/// Writes `bytes` as a frame of stored blocks: no work but the copy.
pub fn write_stored(to: &mut impl Write, bytes: &[u8]) -> io::Result<()> {
    to.write_all(&MAGIC)?;
    to.write_all(&STORED_DESCRIPTOR)?;
    for block in bytes.chunks(BLOCK_SIZE) {
        write_block(to, block, STORED)?;
    }
    to.write_all(&[0; 4])
}

/// Bytes of the frame that [`copy_stored`] makes of `len` bytes.
pub const fn stored_frame_size(len: u64) -> u64 {
    MAGIC.len() as u64 + 3 + 4 * len.div_ceil(BLOCK_SIZE as u64) + len + 4
}

/// Copies exactly `len` bytes, as many as memory need not hold, into a frame of stored blocks.
pub fn copy_stored(from: &mut impl Read, len: u64, to: &mut impl Write) -> io::Result<()> {
    const PART: u64 = 256 << 10;
    to.write_all(&MAGIC)?;
    to.write_all(&STORED_DESCRIPTOR)?;
    let (mut left, mut part) = (len, Vec::new());
    while left > 0 {
        let mut block = left.min(BLOCK_SIZE as u64);
        left -= block;
        let word = u32::try_from(block).map_err(|_| io::Error::from(Io::InvalidInput))?;
        to.write_all(&(word | STORED).to_le_bytes())?;
        while block > 0 {
            part.clear();
            let read = from.by_ref().take(block.min(PART)).read_to_end(&mut part);
            match read.map_err(|error| io::Error::other(format!("cannot read it: {error}")))? {
                0 => return Err(io::Error::other("there is less to read than announced")),
                n => block -= n as u64,
            }
            to.write_all(&part)?;
        }
    }
    to.write_all(&[0; 4])
}

fn write_block(to: &mut impl Write, block: &[u8], flag: u32) -> io::Result<()> {
    let len = u32::try_from(block.len()).map_err(|_| io::Error::from(Io::InvalidInput))?;
    to.write_all(&(len | flag).to_le_bytes())?;
    to.write_all(block)
}

/// `bytes` as one compressed frame with content size and checksum.
pub fn compress(bytes: &[u8]) -> Result<Vec<u8>> {
    let out = Vec::with_capacity(64 + bytes.len() / 2);
    let mut encoder = Encoder::new(out, Some(bytes.len() as u64))?;
    encoder.write_all(bytes)?;
    encoder.finish()
}

/// Compresses what is written to it into one frame. Without [`Encoder::finish`] the frame has no
/// end.
pub struct Encoder<W: Write> {
    writer: W,
    content_size: Option<u64>,
    compresses: bool,
    hasher: XxHash32,
    written: u64,
    /// What is left of the content after whole blocks, less than one.
    pending: Vec<u8>,
    /// One block, compressed.
    compressed: Vec<u8>,
}

impl<W: Write> Encoder<W> {
    /// Begins a frame. A content size, in bytes, must be true in the end.
    pub fn new(mut writer: W, content_size: Option<u64>) -> Result<Self> {
        let mut flags = VERSION | INDEPENDENT | CONTENT_CHECKSUM;
        let mut descriptor = vec![0, BLOCK_SIZE_CODE];
        if let Some(size) = content_size {
            flags |= CONTENT_SIZE;
            descriptor.extend_from_slice(&size.to_le_bytes());
        }
        descriptor[0] = flags;
        descriptor.push(descriptor_checksum(&descriptor));
        writer.write_all(&MAGIC)?;
        writer.write_all(&descriptor)?;
        Ok(Self {
            writer,
            content_size,
            compresses: true,
            hasher: XxHash32::with_seed(0),
            written: 0,
            pending: Vec::new(),
            compressed: Vec::new(),
        })
    }

    /// Begins a frame whose blocks are all stored: as fast as a copy and a checksum.
    pub fn stored(writer: W, content_size: Option<u64>) -> Result<Self> {
        Ok(Self { compresses: false, ..Self::new(writer, content_size)? })
    }

    /// Ends the frame and gives the writer back.
    pub fn finish(mut self) -> Result<W> {
        self.gathered()?;
        if let Some(size) = self.content_size
            && size != self.written
        {
            return Err(Error::bug(format!(
                "LZ4 frame was announced with {size} bytes of content and got {}",
                self.written
            )));
        }
        self.writer.write_all(&[0; 4])?;
        self.writer.write_all(&self.hasher.finish_32().to_le_bytes())?;
        Ok(self.writer)
    }

    /// Writes what was gathered as a block.
    fn gathered(&mut self) -> io::Result<()> {
        let mut block = std::mem::take(&mut self.pending);
        let written = self.block(&block);
        block.clear();
        self.pending = block;
        written
    }

    fn block(&mut self, bytes: &[u8]) -> io::Result<()> {
        if bytes.is_empty() {
            return Ok(());
        }
        self.written += bytes.len() as u64;
        self.hasher.write(bytes);
        if !self.compresses {
            return write_block(&mut self.writer, bytes, STORED);
        }
        let room = block::get_maximum_output_size(bytes.len());
        if self.compressed.len() < room {
            self.compressed.resize(room, 0);
        }
        match block::compress_into(bytes, &mut self.compressed) {
            Ok(len) if len < bytes.len() => {
                write_block(&mut self.writer, &self.compressed[..len], 0)
            }
            _ => write_block(&mut self.writer, bytes, STORED),
        }
    }
}

impl<W: Write> Write for Encoder<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let alone = if self.compresses { BLOCK_SIZE } else { STORED_ALONE };
        if bytes.len() >= alone && (self.pending.is_empty() || !self.compresses) {
            self.gathered()?;
            let block = &bytes[..bytes.len().min(BLOCK_SIZE)];
            self.block(block)?;
            return Ok(block.len());
        }
        let taken = bytes.len().min(BLOCK_SIZE - self.pending.len());
        self.pending.extend_from_slice(&bytes[..taken]);
        if self.pending.len() == BLOCK_SIZE {
            self.gathered()?;
        }
        Ok(taken)
    }

    /// Does not cut a block short.
    fn flush(&mut self) -> io::Result<()> {
        self.writer.flush()
    }
}

fn descriptor_checksum(descriptor: &[u8]) -> u8 {
    let [_, _, second, _] = XxHash32::oneshot(0, descriptor).to_be_bytes();
    second
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read;

    /// Bytes that shrink, but not to nothing.
    fn content(len: usize) -> Vec<u8> {
        let mut state = 1_u32;
        let mut next = || {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            state.to_be_bytes()[0] % 16
        };
        (0..len).map(|at| if at % 8 < 5 { b'a' } else { next() }).collect()
    }

    fn noise(len: usize) -> Vec<u8> {
        let mut state = 1_u64;
        let mut next = || {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            state.to_be_bytes()[0]
        };
        (0..len).map(|_| next()).collect()
    }

    const LENGTHS: [usize; 9] = [0, 1, 12, 13, 100, 65536, 65537, BLOCK_SIZE, BLOCK_SIZE + 1];

    /// Both our decoder and the one of lz4_flex must see `expected` in `frame`.
    fn check(frame: &[u8], expected: &[u8]) {
        let mut out = vec![9];
        decompress(frame, expected.len() as u64, &mut out).unwrap();
        assert!(out[1..] == *expected);
        let mut out = Vec::new();
        lz4_flex::frame::FrameDecoder::new(frame).read_to_end(&mut out).unwrap();
        assert!(out == expected);
    }

    fn stored(bytes: &[u8]) -> Vec<u8> {
        let mut out = Vec::new();
        write_stored(&mut out, bytes).unwrap();
        out
    }

    #[test]
    fn stored_frames() {
        for len in LENGTHS {
            let bytes = noise(len);
            let frame = stored(&bytes);
            assert_eq!(frame.len(), len + stored_frame_overhead(len));
            check(&frame, &bytes);
        }
        let expected =
            [4, 0x22, 0x4d, 0x18, 0x60, 0x70, 0x73, 2, 0, 0, 0x80, b'h', b'i', 0, 0, 0, 0];
        assert_eq!(stored(b"hi"), expected);
        assert_eq!(descriptor_checksum(&[0x60, 0x70]), 0x73);
        assert_eq!(stored_frame_overhead(0), 11);
        assert_eq!(stored_frame_overhead(1), 15);
        assert_eq!(stored_frame_overhead(BLOCK_SIZE + 1), 19);
    }

    #[test]
    fn compressed_frames() {
        for len in LENGTHS {
            let bytes = content(len);
            let frame = compress(&bytes).unwrap();
            assert_eq!(frame[4..6], [0x6c, 0x70]);
            assert_eq!(frame[6..14], (len as u64).to_le_bytes());
            assert!(frame.len() < 64 + len * 3 / 4, "{len} bytes became {}", frame.len());
            check(&frame, &bytes);
        }
    }

    #[test]
    fn what_does_not_shrink_is_stored() {
        for len in [1, 1000, BLOCK_SIZE + 1] {
            let bytes = noise(len);
            let frame = compress(&bytes).unwrap();
            assert!(frame.len() <= len + stored_frame_overhead(len) + 8 + 4);
            check(&frame, &bytes);
        }
    }

    #[test]
    fn the_frame_does_not_depend_on_how_it_is_written() {
        let bytes = content(2 * BLOCK_SIZE + 5);
        let whole = compress(&bytes).unwrap();
        for step in [1_000_003, BLOCK_SIZE - 1, BLOCK_SIZE + 1] {
            let mut encoder = Encoder::new(Vec::new(), Some(bytes.len() as u64)).unwrap();
            for piece in bytes.chunks(step) {
                encoder.write_all(piece).unwrap();
                encoder.flush().unwrap();
            }
            assert!(encoder.finish().unwrap() == whole, "step {step}");
        }
    }

    #[test]
    fn content_size_may_be_left_out_but_not_wrong() {
        let mut encoder = Encoder::new(Vec::new(), None).unwrap();
        encoder.write_all(b"some content").unwrap();
        let frame = encoder.finish().unwrap();
        assert_eq!(frame[4..6], [0x64, 0x70]); // as the ancestor writes
        check(&frame, b"some content");
        for size in [0, 11, 13] {
            let mut encoder = Encoder::new(Vec::new(), Some(size)).unwrap();
            encoder.write_all(b"some content").unwrap();
            let error = encoder.finish().unwrap_err();
            assert_eq!(error.kind(), crate::error::ErrorKind::Bug);
        }
    }

    #[test]
    fn a_writer_that_fails() {
        struct Full;
        impl Write for Full {
            fn write(&mut self, _: &[u8]) -> io::Result<usize> {
                Err(Io::StorageFull.into())
            }
            fn flush(&mut self) -> io::Result<()> {
                Ok(())
            }
        }
        assert_eq!(write_stored(&mut Full, b"x").unwrap_err().kind(), Io::StorageFull);
        let error = Encoder::new(Full, None).err().unwrap();
        assert_eq!(error.kind(), crate::error::ErrorKind::Io);
    }
}
