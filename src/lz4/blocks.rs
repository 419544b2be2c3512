//! A frame's blocks as they are stored, for those who expand them on several threads: one reads the
//! frame, others expand its blocks, and the content's checksum is taken in order.
//!
//! Only frames of independent blocks can be taken apart so. The reader answers for the frame's
//! shape (no block too long, an end mark, nothing after it), the one who expands for each block's
//! checksum, and whoever has seen every block for the content's size and checksum.

use std::hash::Hasher;
use std::io::Read;

use lz4_flex::block;
use twox_hash::XxHash32;

use super::decode::{Descriptor, read_array, read_bytes, read_descriptor};
use super::{BLOCK_CHECKSUMS, CONTENT_CHECKSUM, INDEPENDENT, STORED};
use crate::error::{Error, Result};

/// Reads the blocks of one frame.
pub struct StoredBlocks<R> {
    reader: R,
    descriptor: Descriptor,
}

/// A block as stored.
pub struct StoredBlock {
    bytes: Vec<u8>,
    is_stored: bool,
    checksum: Option<u32>,
    block_size: usize,
}

/// What the content of all blocks must be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FrameEnd {
    /// Bytes.
    size: Option<u64>,
    checksum: Option<u32>,
}

/// Adds up the content of a frame, in order.
pub struct Content {
    hasher: XxHash32,
    size: u64,
}

impl<R: Read> StoredBlocks<R> {
    /// Reads the start of a frame. An error if it announces more than `max` bytes of content.
    pub fn open(mut reader: R, max: u64) -> Result<Self> {
        let descriptor = read_descriptor(&mut reader, max)?;
        Ok(Self { reader, descriptor })
    }

    /// Whether blocks can be expanded without those before them.
    pub fn is_independent(&self) -> bool {
        self.descriptor.flags & INDEPENDENT != 0
    }

    /// The most bytes of content in one block. A writer fills every block but the last, though the
    /// format does not ask for it.
    pub fn block_size(&self) -> usize {
        self.descriptor.block_size
    }

    /// The next block; `None` after the last, when [`StoredBlocks::end`] is next. `room` is a
    /// buffer to use.
    pub fn next(&mut self, mut room: Vec<u8>) -> Result<Option<StoredBlock>> {
        let word = u32::from_le_bytes(read_array(&mut self.reader)?);
        if word == 0 {
            return Ok(None);
        }
        let len = (word & !STORED) as usize;
        let block_size = self.descriptor.block_size;
        if len > block_size {
            let why = format!("LZ4 block has {len} bytes, the frame allows {block_size}");
            return Err(Error::corrupt(why));
        }
        room.clear();
        read_bytes(&mut self.reader, len, &mut room)?;
        let checksum = match self.descriptor.flags & BLOCK_CHECKSUMS {
            0 => None,
            _ => Some(u32::from_le_bytes(read_array(&mut self.reader)?)),
        };
        Ok(Some(StoredBlock { bytes: room, is_stored: word & STORED != 0, checksum, block_size }))
    }

    /// Reads what comes after the end mark, and finds nothing after that.
    pub fn end(mut self) -> Result<FrameEnd> {
        let checksum = match self.descriptor.flags & CONTENT_CHECKSUM {
            0 => None,
            _ => Some(u32::from_le_bytes(read_array(&mut self.reader)?)),
        };
        let mut rest = Vec::new();
        if self.reader.take(1).read_to_end(&mut rest)? != 0 {
            return Err(Error::corrupt("LZ4 frame is followed by other bytes"));
        }
        Ok(FrameEnd { size: self.descriptor.content_size, checksum })
    }
}

impl StoredBlock {
    /// The block's content, in `room` if it had to be expanded.
    pub fn content<'a>(&'a self, room: &'a mut Vec<u8>) -> Result<&'a [u8]> {
        if self.checksum.is_some_and(|sum| sum != XxHash32::oneshot(0, &self.bytes)) {
            return Err(Error::corrupt("LZ4 block has a wrong checksum"));
        }
        if self.is_stored {
            return Ok(&self.bytes);
        }
        if room.len() < self.block_size {
            room.resize(self.block_size, 0);
        }
        let len = block::decompress_into(&self.bytes, &mut room[..self.block_size])
            .map_err(|why| Error::corrupt(format!("LZ4 block is damaged: {why}")))?;
        Ok(&room[..len])
    }

    /// The `len` bytes of content that [`StoredBlock::content`] has made before.
    pub fn expanded<'a>(&'a self, room: &'a [u8], len: usize) -> &'a [u8] {
        if self.is_stored { &self.bytes } else { &room[..len] }
    }

    /// Its buffer, to be used again.
    pub fn into_buffer(self) -> Vec<u8> {
        self.bytes
    }
}

impl Default for Content {
    fn default() -> Self {
        Self { hasher: XxHash32::with_seed(0), size: 0 }
    }
}

impl Content {
    /// Adds the next bytes.
    pub fn add(&mut self, bytes: &[u8]) {
        self.hasher.write(bytes);
        self.size += bytes.len() as u64;
    }

    /// Bytes so far.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// Whether this was all, and as the frame says.
    pub fn check(&self, end: FrameEnd) -> Result<()> {
        if end.size.is_some_and(|size| size != self.size) {
            let (found, said) = (self.size, end.size.unwrap_or_default());
            let why = format!("LZ4 frame has {found} bytes of content, its header says {said}");
            return Err(Error::corrupt(why));
        }
        if end.checksum.is_some_and(|sum| sum != self.hasher.finish_32()) {
            return Err(Error::corrupt("LZ4 frame has a wrong content checksum"));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lz4::{compress, write_stored};

    fn sample(len: usize) -> Vec<u8> {
        (0..len).map(|at| u8::try_from(at % 251 * (at / 4096) % 256).unwrap()).collect()
    }

    fn read(frame: &[u8]) -> Result<Vec<u8>> {
        let mut blocks = StoredBlocks::open(frame, u64::MAX)?;
        let (mut content, mut out, mut room) = (Content::default(), Vec::new(), Vec::new());
        while let Some(block) = blocks.next(Vec::new())? {
            let bytes = block.content(&mut room)?;
            content.add(bytes);
            out.extend_from_slice(bytes);
        }
        content.check(blocks.end()?)?;
        Ok(out)
    }

    #[test]
    fn blocks_make_the_content() {
        for len in [0, 1, 5000, (4 << 20) + 3, 9 << 20] {
            let bytes = sample(len);
            assert!(read(&compress(&bytes).unwrap()).unwrap() == bytes);
            let mut stored = Vec::new();
            write_stored(&mut stored, &bytes).unwrap();
            assert!(read(&stored).unwrap() == bytes);
        }
    }

    #[test]
    fn every_damage_shows() {
        let whole = sample(5000);
        let frame = compress(&whole).unwrap();
        for cut in 0..frame.len() {
            assert!(read(&frame[..cut]).is_err(), "cut at {cut}");
        }
        for bit in 0..frame.len() * 8 {
            let mut bytes = frame.clone();
            bytes[bit / 8] ^= 1 << (bit % 8);
            // A match may be described in more than one way.
            assert!(read(&bytes).map_or(true, |content| content == whole), "bit {bit}");
        }
        assert!(read(&[frame.as_slice(), b"x"].concat()).is_err());
    }
}
