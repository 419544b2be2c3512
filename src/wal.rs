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

pub use checksum::{ByteOrder, Checksum, checked_checksum, checksum};

/// Bytes of a WAL's header.
pub const WAL_HEADER_SIZE: usize = 32;
/// Bytes of a frame's header.
pub const WAL_FRAME_HEADER_SIZE: usize = 24;
/// Bytes of the header of the wal-index, its checkpoint information and lock bytes included.
pub const WAL_INDEX_HEADER_SIZE: usize = 136;

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

    fn step(&mut self, frame: &[u8]) -> std::result::Result<FrameHeader, Break> {
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
        let expected = self.continued(&bytes[..8], page);
        if header.checksum != expected {
            return Err(Break::Checksum { found: header.checksum, expected });
        }
        self.checksum = expected;
        Ok(header)
    }

    /// Writes a frame to the end of `out` and takes the chain past it. `page` must be one page
    /// long; `page_count` is 0 unless the frame commits.
    pub fn append(&mut self, page_no: u32, page_count: u32, page: &[u8], out: &mut Vec<u8>) {
        debug_assert_eq!(page.len(), self.page_size.bytes());
        debug_assert_ne!(page_no, 0);
        let mut header =
            FrameHeader { page_no, page_count, salts: self.salts, checksum: self.checksum };
        header.checksum = self.continued(&header.encode()[..8], page);
        self.checksum = header.checksum;
        out.extend_from_slice(&header.encode());
        out.extend_from_slice(page);
    }

    fn continued(&self, numbers: &[u8], page: &[u8]) -> Checksum {
        checksum(self.order, checksum(self.order, self.checksum, numbers), page)
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
        let Ok(header) = found.end.step(frame) else { break };
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
mod tests {
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
        frame[16..24]
            .copy_from_slice(&start.continued(&[0, 0, 0, 0, 0, 0, 0, 4], &good[24..]).to_bytes());
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
}
