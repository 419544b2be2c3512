//! The bytes of a SQLite WAL: its header, its frames, and the checksum that chains them.
//!
//! All numbers are big-endian. Header, 32 bytes:
//!
//! | at | size | field                                                                          |
//! |----|------|--------------------------------------------------------------------------------|
//! | 0  | 4    | magic: `377f0682`, checksums read little-endian words, or `377f0683`, big-endian |
//! | 4  | 4    | version: 3007000                                                               |
//! | 8  | 4    | page size in bytes (65536 as such)                                             |
//! | 12 | 4    | checkpoint sequence number                                                     |
//! | 16 | 8    | salt-1, salt-2                                                                 |
//! | 24 | 8    | checksum of the 24 bytes before it                                             |
//!
//! Frame, 24 bytes and the page:
//!
//! | at | size | field                                                                          |
//! |----|------|--------------------------------------------------------------------------------|
//! | 0  | 4    | page number, never 0                                                           |
//! | 4  | 4    | size of the database in pages if this frame commits, else 0                    |
//! | 8  | 8    | the header's salts                                                             |
//! | 16 | 8    | checksum, continued from the frame before over bytes 0..8 and the page         |
//!
//! A frame is part of history if and only if
//!   1. its salts equal the header's,
//!   2. its checksum continues the chain from the header through every frame before it, and
//!   3. it, or a later frame for which 1 and 2 hold, commits.
//!
//! Bytes in, values out: nothing here reads a file.

mod checksum;

use std::fmt;

use crate::error::{Error, Result};

pub use checksum::{ByteOrder, Checksum, PageSum, checked_checksum, checksum};

/// Bytes of a WAL's header.
pub const WAL_HEADER_SIZE: usize = 32;
/// Bytes of a frame's header.
pub const WAL_FRAME_HEADER_SIZE: usize = 24;
/// Bytes of the header of the wal-index, its checkpoint information and lock bytes included.
pub const WAL_INDEX_HEADER_SIZE: usize = 136;
/// The first of the bytes of a database file that SQLite locks.
const LOCK_BYTE: u32 = 0x4000_0000;

/// The header's magic, but for its lowest bit, which says that checksums are big-endian.
const MAGIC: u32 = 0x377f_0682;
/// The only version of the format there is.
pub const WAL_VERSION: u32 = 3_007_000;

/// Salt-1 and salt-2, the numbers their big-endian bytes in the file make.
pub type Salts = [u32; 2];

/// The size of a database page in bytes: a power of two from 512 to 65536.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PageSize(u32);

impl PageSize {
    /// The smallest.
    pub const MIN: Self = Self(512);
    /// The largest.
    pub const MAX: Self = Self(65536);

    /// Fails for what is not a page size.
    pub fn new(bytes: u32) -> Result<Self> {
        if !bytes.is_power_of_two() || !(Self::MIN.0..=Self::MAX.0).contains(&bytes) {
            return Err(Error::corrupt(format!(
                "invalid page size {bytes}: expected a power of two from 512 to 65536"
            )));
        }
        Ok(Self(bytes))
    }

    /// Bytes of a page.
    pub const fn get(self) -> u32 {
        self.0
    }

    /// Bytes of a page.
    pub const fn bytes(self) -> usize {
        self.0 as usize
    }

    /// The page around the byte of a database file that SQLite locks at 1 GiB: it has no content.
    pub const fn lock_page(self) -> u32 {
        LOCK_BYTE / self.0 + 1
    }

    /// Bytes of a frame: its header and the page.
    pub const fn frame_size(self) -> usize {
        WAL_FRAME_HEADER_SIZE + self.bytes()
    }
}

impl fmt::Display for PageSize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Bytes of a WAL with this many frames. Saturates; 2^32 frames, the most there can be, fit easily.
pub fn wal_size(page_size: PageSize, frames: u64) -> u64 {
    let frame_size = WAL_FRAME_HEADER_SIZE as u64 + u64::from(page_size.get());
    frames.saturating_mul(frame_size).saturating_add(WAL_HEADER_SIZE as u64)
}

/// A WAL's header.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct WalHeader {
    /// How checksums read words.
    pub order: ByteOrder,
    /// Bytes of a page.
    pub page_size: PageSize,
    /// Checkpoint sequence number: a counter private to the writing connection, proves nothing.
    pub checkpoint_seq: u32,
    /// Every frame repeats these.
    pub salts: Salts,
    /// Of the bytes before it; the first frame continues it.
    pub checksum: Checksum,
}

impl WalHeader {
    /// A header with these fields and the checksum they need.
    pub fn new(order: ByteOrder, page_size: PageSize, checkpoint_seq: u32, salts: Salts) -> Self {
        let checksum = Checksum::default();
        let mut header = Self { order, page_size, checkpoint_seq, salts, checksum };
        let bytes = header.encode();
        header.checksum = self::checksum(order, checksum, &bytes[..24]);
        header
    }

    /// Reads the first 32 bytes of a WAL; what follows them is not looked at.
    pub fn decode(bytes: &[u8]) -> Result<Self> {
        let Some((bytes, _)) = bytes.split_first_chunk::<WAL_HEADER_SIZE>() else {
            let message = format!("WAL header is cut short: {} of 32 bytes", bytes.len());
            return Err(Error::corrupt(message));
        };
        let [magic, version, page_size, checkpoint_seq, salt_1, salt_2, s0, s1] = words(*bytes);
        let order = match magic {
            MAGIC => ByteOrder::Little,
            _ if magic == MAGIC | 1 => ByteOrder::Big,
            _ => return Err(Error::corrupt(format!("not a WAL: it starts with {magic:08x}"))),
        };
        if version != WAL_VERSION {
            return Err(Error::corrupt(format!(
                "WAL header has version {version}, only {WAL_VERSION} exists"
            )));
        }
        let page_size = PageSize::new(page_size).map_err(|error| error.context("WAL header"))?;
        let checksum = Checksum { s0, s1 };
        let expected = self::checksum(order, Checksum::default(), &bytes[..24]);
        if checksum != expected {
            return Err(Error::corrupt(format!(
                "WAL header has checksum {checksum}, expected {expected}"
            )));
        }
        Ok(Self { order, page_size, checkpoint_seq, salts: [salt_1, salt_2], checksum })
    }

    /// The 32 bytes in the file.
    pub fn encode(&self) -> [u8; WAL_HEADER_SIZE] {
        let magic = match self.order {
            ByteOrder::Little => MAGIC,
            ByteOrder::Big => MAGIC | 1,
        };
        let [salt_1, salt_2] = self.salts;
        let Checksum { s0, s1 } = self.checksum;
        let page_size = self.page_size.get();
        join(
            [magic, WAL_VERSION, page_size, self.checkpoint_seq, salt_1, salt_2, s0, s1]
                .map(u32::to_be_bytes),
        )
    }
}

/// A frame's header.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FrameHeader {
    /// Which page follows, from 1.
    pub page_no: u32,
    /// Size of the database in pages after the commit this frame ends, 0 if it ends none.
    pub page_count: u32,
    /// Those of the WAL's header.
    pub salts: Salts,
    /// The running checksum after this frame.
    pub checksum: Checksum,
}

impl FrameHeader {
    /// Reads the fields; proving them is [`Chain::verify`]'s business.
    pub fn decode(bytes: &[u8; WAL_FRAME_HEADER_SIZE]) -> Self {
        let [page_no, page_count, salt_1, salt_2, s0, s1] = words(*bytes);
        Self { page_no, page_count, salts: [salt_1, salt_2], checksum: Checksum { s0, s1 } }
    }

    /// The 24 bytes in the file.
    pub fn encode(&self) -> [u8; WAL_FRAME_HEADER_SIZE] {
        let [salt_1, salt_2] = self.salts;
        let Checksum { s0, s1 } = self.checksum;
        join([self.page_no, self.page_count, salt_1, salt_2, s0, s1].map(u32::to_be_bytes))
    }

    /// Whether a transaction ends with this frame.
    pub const fn is_commit(&self) -> bool {
        self.page_count != 0
    }
}

/// What proves the next frame of a WAL, or makes it: the state of the chain between two frames.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Chain {
    /// How checksums read words.
    pub order: ByteOrder,
    /// Bytes of a page.
    pub page_size: PageSize,
    /// Every frame has these.
    pub salts: Salts,
    /// The running checksum up to here.
    pub checksum: Checksum,
}

/// Why a frame does not continue a chain.
enum Break {
    Length(usize),
    PageNumber,
    Salts(Salts),
    Checksum { found: Checksum, expected: Checksum },
}

impl Chain {
    /// The chain before the first frame.
    pub fn start(header: &WalHeader) -> Self {
        let WalHeader { order, page_size, salts, checksum, .. } = *header;
        Self { order, page_size, salts, checksum }
    }

    /// Takes the chain past `frame`, header and page, if it continues the chain. Otherwise the
    /// error says why and the chain stays where it was.
    pub fn verify(&mut self, frame: &[u8]) -> Result<FrameHeader> {
        self.verify_summed(frame).map(|(header, _)| header)
    }

    /// The same, with what the frame's page adds to any chain.
    pub fn verify_summed(&mut self, frame: &[u8]) -> Result<(FrameHeader, PageSum)> {
        self.step(frame).map_err(|why| {
            Error::corrupt(match why {
                Break::Length(found) => {
                    format!("WAL frame has {found} bytes, expected {}", self.page_size.frame_size())
                }
                Break::PageNumber => "WAL frame has page number 0".to_owned(),
                Break::Salts(found) => format!(
                    "WAL frame has salts {:08x} {:08x}, expected {:08x} {:08x}",
                    found[0], found[1], self.salts[0], self.salts[1]
                ),
                Break::Checksum { found, expected } => {
                    format!("WAL frame has checksum {found}, expected {expected}")
                }
            })
        })
    }

    fn step(&mut self, frame: &[u8]) -> std::result::Result<(FrameHeader, PageSum), Break> {
        let Some((bytes, page)) = frame.split_first_chunk::<WAL_FRAME_HEADER_SIZE>() else {
            return Err(Break::Length(frame.len()));
        };
        if page.len() != self.page_size.bytes() {
            return Err(Break::Length(frame.len()));
        }
        let header = FrameHeader::decode(bytes);
        if header.salts != self.salts {
            return Err(Break::Salts(header.salts));
        }
        if header.page_no == 0 {
            return Err(Break::PageNumber);
        }
        let sum = PageSum::of(self.order, self.page_size, page);
        let expected = self.continued(&bytes[..8], &sum);
        if header.checksum != expected {
            return Err(Break::Checksum { found: header.checksum, expected });
        }
        self.checksum = expected;
        Ok((header, sum))
    }

    /// Writes a frame to the end of `out` and takes the chain past it. `page` must be one page
    /// long; `page_count` is 0 unless the frame commits.
    pub fn append(&mut self, page_no: u32, page_count: u32, page: &[u8], out: &mut Vec<u8>) {
        let sum = PageSum::of(self.order, self.page_size, page);
        out.extend_from_slice(&self.seal(page_no, page_count, &sum));
        out.extend_from_slice(page);
    }

    /// The header of the frame with a page that adds `sum`; takes the chain past the frame.
    /// `page_count` is 0 unless it commits.
    pub fn seal(
        &mut self,
        page_no: u32,
        page_count: u32,
        sum: &PageSum,
    ) -> [u8; WAL_FRAME_HEADER_SIZE] {
        debug_assert_ne!(page_no, 0);
        debug_assert_eq!(sum.order(), self.order);
        let mut header =
            FrameHeader { page_no, page_count, salts: self.salts, checksum: self.checksum };
        header.checksum = self.continued(&header.encode()[..8], sum);
        self.checksum = header.checksum;
        header.encode()
    }

    fn continued(&self, numbers: &[u8], page: &PageSum) -> Checksum {
        page.after(checksum(self.order, self.checksum, numbers))
    }
}

/// How much of some bytes of a WAL is history.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Scan {
    /// Frames that continue the chain.
    pub frames: u32,
    /// Frames up to and with the last one that commits.
    pub committed_frames: u32,
    /// Frames that commit.
    pub commits: u32,
    /// Size of the database in pages after the last commit, 0 if there is none.
    pub page_count: u32,
    /// The chain after the last commit, or the one before the first frame.
    pub committed: Chain,
    /// The chain after the last frame counted.
    pub end: Chain,
}

/// Follows `chain` through the frames in `bytes`, up to the first that breaks it or is incomplete.
pub fn scan(chain: Chain, bytes: &[u8]) -> Scan {
    let mut found = Scan {
        frames: 0,
        committed_frames: 0,
        commits: 0,
        page_count: 0,
        committed: chain,
        end: chain,
    };
    for frame in bytes.chunks_exact(chain.page_size.frame_size()) {
        let Ok((header, _)) = found.end.step(frame) else { break };
        found.frames = found.frames.saturating_add(1);
        if header.is_commit() {
            found.committed_frames = found.frames;
            found.commits += 1;
            found.page_count = header.page_count;
            found.committed = found.end;
        }
    }
    found
}

/// Big-endian words of `bytes`, which has four bytes for each.
fn words<const BYTES: usize, const WORDS: usize>(bytes: [u8; BYTES]) -> [u32; WORDS] {
    const { assert!(BYTES == 4 * WORDS) };
    let mut words = [0; WORDS];
    for (word, unit) in words.iter_mut().zip(bytes.as_chunks::<4>().0) {
        *word = u32::from_be_bytes(*unit);
    }
    words
}

/// The bytes of each word, one after the other.
fn join<const WORDS: usize, const BYTES: usize>(words: [[u8; 4]; WORDS]) -> [u8; BYTES] {
    const { assert!(BYTES == 4 * WORDS) };
    let mut bytes = [0; BYTES];
    bytes.copy_from_slice(words.as_flattened());
    bytes
}

const _: () = assert!(WAL_HEADER_SIZE == 4 * 4 + 2 * 4 + 8); // numbers, salts, checksum
const _: () = assert!(WAL_FRAME_HEADER_SIZE == 2 * 4 + 2 * 4 + 8); // numbers, salts, checksum

#[cfg(test)]
mod tests;
