//! Reading LZ4 frames, with bounded memory whatever the bytes say: the output never grows by more
//! than one block beyond the maximum, and no length is believed before its bytes have arrived.

use std::hash::Hasher;
use std::io::{self, ErrorKind as Io, Read};

use lz4_flex::block;
use twox_hash::XxHash32;

use super::{
    BLOCK_CHECKSUMS, BLOCK_SIZE, CONTENT_CHECKSUM, CONTENT_SIZE, DICTIONARY, INDEPENDENT, MAGIC,
    RESERVED, STORED, VERSION, VERSION_MASK, descriptor_checksum,
};
use crate::error::{Context, Error, Result};

/// How far back a linked block may reach into those before it, in bytes.
const WINDOW_SIZE: usize = 64 << 10;
/// The most bytes one byte of a compressed block can stand for.
const EXPANSION_MAX: usize = 255;

/// Appends the content of the one frame that `frame` holds to `out`. Fails, and leaves `out` as it
/// was, if the frame is not whole or its content is larger than `max` bytes.
pub fn decompress(frame: impl Read, max: u64, out: &mut Vec<u8>) -> Result<()> {
    let start = out.len();
    let mut blocks = Blocks::new(frame, max);
    loop {
        match blocks.next(out, start) {
            Ok(true) => {}
            Ok(false) => return Ok(()),
            Err(error) => {
                out.truncate(start);
                return Err(error);
            }
        }
    }
}

/// Decompresses the one frame that a reader holds while it is read, a block at a time.
pub struct Decoder<R> {
    blocks: Blocks<R>,
    /// The last block, after as much of those before it as a linked block may reach.
    content: Vec<u8>,
    /// How much of `content` has been given out.
    given: usize,
    state: State,
}

#[derive(PartialEq)]
enum State {
    Open,
    Ended,
    Failed,
}

impl<R: Read> Decoder<R> {
    /// Reads the frame from `reader`, which must end with it, and gives out at most `max` bytes:
    /// an error if there are more.
    pub fn new(reader: R, max: u64) -> Self {
        Self::with_buffer(reader, max, Vec::new())
    }

    /// The same, with the memory of an earlier one: [`Decoder::into_buffer`].
    pub fn with_buffer(reader: R, max: u64, mut content: Vec<u8>) -> Self {
        content.clear();
        Self { blocks: Blocks::new(reader, max), content, given: 0, state: State::Open }
    }

    /// Its memory, for the next one.
    pub fn into_buffer(mut self) -> Vec<u8> {
        self.content.clear();
        self.content
    }

    /// The next bytes, as many as `unit` holds: where they are, if they are there in one piece,
    /// else in `unit`. None at the end; before that there must be so many.
    pub fn unit<'b>(&'b mut self, unit: &'b mut [u8]) -> io::Result<Option<&'b [u8]>> {
        if !self.has_more()? {
            return Ok(None);
        }
        let end = self.given + unit.len();
        if end <= self.content.len() {
            let begin = std::mem::replace(&mut self.given, end);
            return Ok(Some(&self.content[begin..end]));
        }
        self.read_exact(unit)?;
        Ok(Some(unit))
    }

    /// Whether there is something to give out now.
    fn has_more(&mut self) -> io::Result<bool> {
        // Before anything else: what a failure left in `content` has not been proved.
        if self.state == State::Failed {
            return Err(Error::corrupt("LZ4 frame failed before").into());
        }
        while self.given == self.content.len() {
            if self.state == State::Ended {
                return Ok(false);
            }
            self.fill().inspect_err(|_| self.state = State::Failed)?;
        }
        Ok(true)
    }

    fn fill(&mut self) -> Result<()> {
        let kept = if self.blocks.is_linked() { WINDOW_SIZE.min(self.content.len()) } else { 0 };
        self.content.drain(..self.content.len() - kept);
        self.given = kept;
        if !self.blocks.next(&mut self.content, 0)? {
            self.state = State::Ended;
        }
        Ok(())
    }
}

impl<R: Read> Read for Decoder<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if !self.has_more()? {
            return Ok(0);
        }
        let len = buffer.len().min(self.content.len() - self.given);
        buffer[..len].copy_from_slice(&self.content[self.given..self.given + len]);
        self.given += len;
        Ok(len)
    }
}

/// What a frame's descriptor says.
#[derive(Clone, Copy)]
pub(super) struct Descriptor {
    pub(super) flags: u8,
    pub(super) block_size: usize,
    pub(super) content_size: Option<u64>,
}

/// The blocks of a frame, one after the other.
struct Blocks<R> {
    reader: R,
    max: u64,
    descriptor: Option<Descriptor>,
    hasher: XxHash32,
    produced: u64,
    compressed: Vec<u8>,
}

impl<R: Read> Blocks<R> {
    fn new(reader: R, max: u64) -> Self {
        let hasher = XxHash32::with_seed(0);
        Self { reader, max, descriptor: None, hasher, produced: 0, compressed: Vec::new() }
    }

    fn is_linked(&self) -> bool {
        self.descriptor.is_some_and(|descriptor| descriptor.flags & INDEPENDENT == 0)
    }

    /// Appends the next block's content to `out`, where that of the blocks before it starts at
    /// `start` (or is at least a window long). Returns false at the proper end of the frame.
    fn next(&mut self, out: &mut Vec<u8>, start: usize) -> Result<bool> {
        let descriptor = match self.descriptor {
            Some(known) => known,
            None => {
                let read = read_descriptor(&mut self.reader, self.max)?;
                *self.descriptor.insert(read)
            }
        };
        let word = u32::from_le_bytes(read_array(&mut self.reader)?);
        if word == 0 {
            self.end(descriptor)?;
            return Ok(false);
        }
        let len = (word & !STORED) as usize;
        if len > descriptor.block_size {
            return Err(Error::corrupt(format!(
                "LZ4 block has {len} bytes, the frame allows {}",
                descriptor.block_size
            )));
        }
        let before = out.len();
        if word & STORED != 0 {
            read_bytes(&mut self.reader, len, out)?;
            self.check_block(descriptor, &out[before..])?;
        } else {
            let mut compressed = std::mem::take(&mut self.compressed);
            compressed.clear();
            read_bytes(&mut self.reader, len, &mut compressed)?;
            self.check_block(descriptor, &compressed)?;
            expand(descriptor, &compressed, out, start)?;
            self.compressed = compressed;
        }
        self.produced += (out.len() - before) as u64;
        if self.produced > self.max {
            return Err(too_large(self.max));
        }
        if descriptor.flags & CONTENT_CHECKSUM != 0 {
            self.hasher.write(&out[before..]);
        }
        Ok(true)
    }

    fn check_block(&mut self, descriptor: Descriptor, bytes: &[u8]) -> Result<()> {
        if descriptor.flags & BLOCK_CHECKSUMS == 0 {
            return Ok(());
        }
        let expected = u32::from_le_bytes(read_array(&mut self.reader)?);
        if XxHash32::oneshot(0, bytes) != expected {
            return Err(Error::corrupt("LZ4 block has a wrong checksum"));
        }
        Ok(())
    }

    fn end(&mut self, descriptor: Descriptor) -> Result<()> {
        if let Some(size) = descriptor.content_size
            && size != self.produced
        {
            return Err(Error::corrupt(format!(
                "LZ4 frame has {} bytes of content, its header says {size}",
                self.produced
            )));
        }
        if descriptor.flags & CONTENT_CHECKSUM != 0 {
            let expected = u32::from_le_bytes(read_array(&mut self.reader)?);
            if self.hasher.finish_32() != expected {
                return Err(Error::corrupt("LZ4 frame has a wrong content checksum"));
            }
        }
        let mut rest = Vec::new();
        if self.reader.by_ref().take(1).read_to_end(&mut rest)? != 0 {
            return Err(Error::corrupt("LZ4 frame is followed by other bytes"));
        }
        Ok(())
    }
}

/// Decompresses a block to the end of `out`.
fn expand(
    descriptor: Descriptor,
    compressed: &[u8],
    out: &mut Vec<u8>,
    start: usize,
) -> Result<()> {
    let before = out.len();
    let most = compressed.len().saturating_mul(EXPANSION_MAX).saturating_add(EXPANSION_MAX);
    out.resize(before + most.min(descriptor.block_size), 0);
    let (past, room) = out.split_at_mut(before);
    let len = if descriptor.flags & INDEPENDENT == 0 {
        let window = before.saturating_sub(WINDOW_SIZE).max(start);
        block::decompress_into_with_dict(compressed, room, &past[window..])
    } else {
        block::decompress_into(compressed, room)
    };
    let len = len.map_err(|why| Error::corrupt(format!("LZ4 block is damaged: {why}")))?;
    out.truncate(before + len);
    Ok(())
}

pub(super) fn read_descriptor(reader: &mut impl Read, max: u64) -> Result<Descriptor> {
    let magic = read_array(reader)?;
    if magic != MAGIC {
        let found = u32::from_be_bytes(magic);
        return Err(Error::corrupt(format!("not an LZ4 frame: it starts with {found:08x}")));
    }
    let [flags, code]: [u8; 2] = read_array(reader)?;
    let unsupported = |what: &str| {
        Err(Error::corrupt(format!("LZ4 frame {what}: descriptor {flags:02x} {code:02x}")))
    };
    if flags & VERSION_MASK != VERSION {
        return unsupported("has an unknown version");
    }
    if flags & RESERVED != 0 || code & 0b1000_1111 != 0 {
        return unsupported("uses reserved bits");
    }
    if flags & DICTIONARY != 0 {
        return unsupported("needs a dictionary");
    }
    let block_size = match code >> 4 {
        4 => 64 << 10,
        5 => 256 << 10,
        6 => 1 << 20,
        7 => BLOCK_SIZE,
        _ => return unsupported("has an unknown block size"),
    };
    let mut hashed = vec![flags, code];
    let mut content_size = None;
    if flags & CONTENT_SIZE != 0 {
        let bytes: [u8; 8] = read_array(reader)?;
        hashed.extend_from_slice(&bytes);
        content_size = Some(u64::from_le_bytes(bytes));
    }
    let [found] = read_array(reader)?;
    if found != descriptor_checksum(&hashed) {
        return unsupported("has a wrong header checksum");
    }
    if content_size.is_some_and(|size| size > max) {
        return Err(too_large(max));
    }
    Ok(Descriptor { flags, block_size, content_size })
}

fn too_large(max: u64) -> Error {
    Error::corrupt(format!("LZ4 frame has more than the {max} bytes of content allowed"))
}

pub(super) fn read_array<const N: usize>(reader: &mut impl Read) -> Result<[u8; N]> {
    let mut bytes = [0; N];
    match reader.read_exact(&mut bytes) {
        Ok(()) => Ok(bytes),
        Err(error) if error.kind() == Io::UnexpectedEof && error.get_ref().is_none() => {
            Err(cut_short())
        }
        Err(error) => Err(error).context(|| "cannot read LZ4 frame".to_owned()),
    }
}

/// Appends `len` bytes to `out`, without believing that there are so many.
pub(super) fn read_bytes(reader: &mut impl Read, len: usize, out: &mut Vec<u8>) -> Result<()> {
    let read = reader.take(len as u64).read_to_end(out);
    if read.context(|| "cannot read LZ4 frame".to_owned())? < len {
        return Err(cut_short());
    }
    Ok(())
}

fn cut_short() -> Error {
    Error::corrupt("LZ4 frame is cut short")
}

#[cfg(test)]
mod tests;
