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
        let blocks = Blocks::new(reader, max);
        Self { blocks, content: Vec::new(), given: 0, state: State::Open }
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
        while self.given == self.content.len() {
            match self.state {
                State::Open => {}
                State::Ended => return Ok(0),
                State::Failed => return Err(Error::corrupt("LZ4 frame failed before").into()),
            }
            self.fill().inspect_err(|_| self.state = State::Failed)?;
        }
        let len = buffer.len().min(self.content.len() - self.given);
        buffer[..len].copy_from_slice(&self.content[self.given..self.given + len]);
        self.given += len;
        Ok(len)
    }
}

/// What a frame's descriptor says.
#[derive(Clone, Copy)]
struct Descriptor {
    flags: u8,
    block_size: usize,
    content_size: Option<u64>,
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

fn read_descriptor(reader: &mut impl Read, max: u64) -> Result<Descriptor> {
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

fn read_array<const N: usize>(reader: &mut impl Read) -> Result<[u8; N]> {
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
fn read_bytes(reader: &mut impl Read, len: usize, out: &mut Vec<u8>) -> Result<()> {
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
mod tests {
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
            for len in
                (0..frame.len()).step_by(step).chain(frame.len().saturating_sub(9)..frame.len())
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
        for frame in [compress(&bytes).unwrap(), stored(&bytes), foreign(FrameInfo::new(), &bytes)]
        {
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
}
