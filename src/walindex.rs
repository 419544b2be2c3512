//! The wal-index (`-shm`): what SQLite's connections share about a WAL. Layout only: loads, stores
//! and locks are the host's business, and so is their order.
//!
//! Everything is in the byte order of the machine. The file is a sequence of 32 KiB regions, each
//! with the page numbers of some frames and a hash table over them. Region 0 starts with the
//! header:
//!
//! | at  | size | field                                                                         |
//! |-----|------|-------------------------------------------------------------------------------|
//! | 0   | 48   | header, first copy (the last one to be written)                               |
//! | 48  | 48   | header, second copy                                                           |
//! | 96  | 4    | nBackfill: frames copied into the database; raised under CKPT                  |
//! | 100 | 20   | read marks 0..5; changed under the exclusive lock of the slot                 |
//! | 120 | 8    | lock bytes: WRITE, CKPT, RECOVER, READ 0..5                                   |
//! | 128 | 4    | nBackfillAttempted: frames a checkpoint may have begun to copy                |
//! | 132 | 4    | unused                                                                        |
//!
//! One copy of the header:
//!
//! | at | size | field                                                                          |
//! |----|------|--------------------------------------------------------------------------------|
//! | 0  | 4    | version: 3007000                                                               |
//! | 4  | 4    | unused                                                                         |
//! | 8  | 4    | iChange: grows with each commit                                                |
//! | 12 | 1    | isInit: 1                                                                      |
//! | 13 | 1    | bigEndCksum: 1 if the WAL's checksums are big-endian                           |
//! | 14 | 2    | szPage: page size, 65536 as 1                                                  |
//! | 16 | 4    | mxFrame: the last frame of the last commit, 0 if the WAL holds none            |
//! | 20 | 4    | nPage: size of the database in pages                                           |
//! | 24 | 8    | aFrameCksum: running checksum after frame mxFrame                              |
//! | 32 | 8    | aSalt: the salts, their eight bytes as in the WAL's header                     |
//! | 40 | 8    | aCksum: of the 40 bytes before it                                              |
//!
//! A header is valid if and only if both copies are equal, isInit is set and aCksum is right.
//!
//! Frame numbers start at 1, slots of a region at 0. A hash slot holds the slot number plus 1, and
//! 0 if it is empty; a page number is looked for from its hash key on, until an empty slot.

use crate::error::{Error, ErrorKind, Result};
use crate::wal::{
    ByteOrder, Checksum, PageSize, Salts, WAL_INDEX_HEADER_SIZE, WAL_VERSION, checksum,
};

/// Bytes of one copy of the header.
pub const HEADER_SIZE: usize = 48;
/// Where the first copy of the header is.
pub const HEADER_FIRST_OFFSET: usize = 0;
/// Where the second copy of the header is.
pub const HEADER_SECOND_OFFSET: usize = HEADER_SIZE;
/// Where nBackfill is.
pub const BACKFILL_OFFSET: usize = 96;
/// Where the first read mark is.
pub const READ_MARKS_OFFSET: usize = 100;
/// Where the lock bytes are.
pub const LOCKS_OFFSET: usize = 120;
/// Where nBackfillAttempted is.
pub const BACKFILL_ATTEMPTED_OFFSET: usize = 128;

/// How many read marks, and slots to lock them, there are.
pub const READ_MARKS: u8 = 5;
/// The value of a read mark nobody uses.
pub const READMARK_NOT_USED: u32 = 0xffff_ffff;

/// The lock byte of writers.
pub const LOCK_WRITE: u8 = 0;
/// The lock byte of checkpointers.
pub const LOCK_CKPT: u8 = 1;
/// The lock byte of recovery.
pub const LOCK_RECOVER: u8 = 2;
/// How many lock bytes there are.
pub const LOCKS: u8 = 8;

/// The lock byte of read mark `mark`, which is below [`READ_MARKS`].
pub const fn lock_read(mark: u8) -> u8 {
    3 + mark
}

/// Where read mark `mark` is.
pub const fn read_mark_offset(mark: u8) -> usize {
    READ_MARKS_OFFSET + 4 * mark as usize
}

/// Bytes of a region.
pub const REGION_SIZE: usize = 32768;
/// Frames a region has room for, other than region 0.
pub const REGION_FRAMES: u32 = 4096;
/// Frames region 0 has room for beside the header.
pub const REGION_0_FRAMES: u32 = 4062;
/// Where a region's hash table is.
pub const HASH_OFFSET: usize = 16384;
/// Slots, of two bytes each, in a hash table.
pub const HASH_SLOTS: u32 = 8192;

const _: () = assert!(WAL_INDEX_HEADER_SIZE == 2 * HEADER_SIZE + 4 + 5 * 4 + 8 + 4 + 4);
const _: () = assert!(WAL_INDEX_HEADER_SIZE + 4 * REGION_0_FRAMES as usize == HASH_OFFSET);
const _: () = assert!(4 * REGION_FRAMES as usize == HASH_OFFSET);
const _: () = assert!(HASH_OFFSET + 2 * HASH_SLOTS as usize == REGION_SIZE);

/// The region of frame `frame`, which is at least 1, and its slot there.
pub fn frame_location(frame: u32) -> (u32, u32) {
    debug_assert_ne!(frame, 0);
    let slot = frame.saturating_sub(1);
    match slot.checked_sub(REGION_0_FRAMES) {
        None => (0, slot),
        Some(beyond) => (1 + beyond / REGION_FRAMES, beyond % REGION_FRAMES),
    }
}

/// The first frame of a region.
pub const fn region_first_frame(region: u32) -> u32 {
    if region == 0 { 1 } else { (region - 1).saturating_mul(REGION_FRAMES).saturating_add(4063) }
}

/// How many frames a region has room for.
pub const fn region_frames(region: u32) -> u32 {
    if region == 0 { REGION_0_FRAMES } else { REGION_FRAMES }
}

/// Where in its region the page number of a slot is.
pub const fn page_number_offset(region: u32, slot: u32) -> usize {
    let base = if region == 0 { WAL_INDEX_HEADER_SIZE } else { 0 };
    base + 4 * slot as usize
}

/// The hash slot at which a page number is looked for first.
pub const fn hash_key(page_no: u32) -> u32 {
    page_no.wrapping_mul(383) & (HASH_SLOTS - 1)
}

/// The hash slot to look at after `key`.
pub const fn next_hash_key(key: u32) -> u32 {
    (key + 1) & (HASH_SLOTS - 1)
}

/// Where in its region a hash slot is.
pub const fn hash_slot_offset(key: u32) -> usize {
    HASH_OFFSET + 2 * key as usize
}

/// What the hash slot of a region's slot holds.
pub const fn hash_slot_value(slot: u32) -> u16 {
    (slot % REGION_FRAMES) as u16 + 1
}

/// One copy of the header. Fields are native numbers, as loaded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct IndexHeader {
    /// 3007000.
    pub version: u32,
    /// Carried along as found.
    pub unused: u32,
    /// Grows with each commit.
    pub change: u32,
    /// 1.
    pub is_init: u8,
    /// 1 if the WAL's checksums are big-endian.
    pub big_endian_checksum: u8,
    /// Page size as stored: see [`IndexHeader::page_size`].
    pub page_size_raw: u16,
    /// The last frame of the last commit, 0 if there is none.
    pub max_frame: u32,
    /// Size of the database in pages.
    pub page_count: u32,
    /// The running checksum after `max_frame`.
    pub frame_checksum: [u32; 2],
    /// The salts as stored: see [`IndexHeader::file_salts`].
    pub salts: [u32; 2],
    /// Of what comes before it.
    pub checksum: [u32; 2],
}

impl IndexHeader {
    /// Reads one copy. Fails if it is not initialised or its checksum is wrong (as for a moment
    /// while it is being written), or if the format is another.
    pub fn decode(bytes: &[u8; HEADER_SIZE]) -> Result<Self> {
        let mut words = [0; HEADER_SIZE / 4];
        for (word, unit) in words.iter_mut().zip(bytes.as_chunks::<4>().0) {
            *word = u32::from_ne_bytes(*unit);
        }
        let [version, unused, change, _, max_frame, page_count, f0, f1, a0, a1, s0, s1] = words;
        let header = Self {
            version,
            unused,
            change,
            is_init: bytes[12],
            big_endian_checksum: bytes[13],
            page_size_raw: u16::from_ne_bytes([bytes[14], bytes[15]]),
            max_frame,
            page_count,
            frame_checksum: [f0, f1],
            salts: [a0, a1],
            checksum: [s0, s1],
        };
        if header.is_init == 0 {
            return Err(Error::corrupt("wal-index header is not initialised"));
        }
        if header.checksum != header_checksum(bytes) {
            return Err(Error::corrupt("wal-index header has a wrong checksum"));
        }
        if version != WAL_VERSION {
            return Err(Error::new(
                ErrorKind::Unsupported,
                format!("wal-index has version {version}, only {WAL_VERSION} is known"),
            ));
        }
        Ok(header)
    }

    /// Reads both copies; they must be equal.
    pub fn decode_pair(first: &[u8; HEADER_SIZE], second: &[u8; HEADER_SIZE]) -> Result<Self> {
        if first != second {
            return Err(Error::corrupt("wal-index header is torn: its two copies differ"));
        }
        Self::decode(first)
    }

    /// The bytes of one copy, with the checksum they need whatever the field says.
    pub fn encode(&self) -> [u8; HEADER_SIZE] {
        let mut bytes = self.encode_fields();
        let [s0, s1] = header_checksum(&bytes);
        bytes[40..44].copy_from_slice(&s0.to_ne_bytes());
        bytes[44..48].copy_from_slice(&s1.to_ne_bytes());
        bytes
    }

    fn encode_fields(&self) -> [u8; HEADER_SIZE] {
        let [p0, p1] = self.page_size_raw.to_ne_bytes();
        let flags = [self.is_init, self.big_endian_checksum, p0, p1];
        let words = [
            self.version,
            self.unused,
            self.change,
            u32::from_ne_bytes(flags),
            self.max_frame,
            self.page_count,
            self.frame_checksum[0],
            self.frame_checksum[1],
            self.salts[0],
            self.salts[1],
            self.checksum[0],
            self.checksum[1],
        ];
        let mut bytes = [0; HEADER_SIZE];
        bytes.copy_from_slice(words.map(u32::to_ne_bytes).as_flattened());
        bytes
    }

    /// Bytes of a page; an error while no WAL has been read or written yet.
    pub fn page_size(&self) -> Result<PageSize> {
        decode_page_size(self.page_size_raw).map_err(|error| error.context("wal-index header"))
    }

    /// How the WAL's checksums read words.
    pub fn order(&self) -> ByteOrder {
        if self.big_endian_checksum == 0 { ByteOrder::Little } else { ByteOrder::Big }
    }

    /// The salts as the numbers their bytes in the WAL make.
    pub fn file_salts(&self) -> Salts {
        self.salts.map(u32::from_be)
    }

    /// Sets the salts from the numbers their bytes in the WAL make.
    pub fn set_file_salts(&mut self, salts: Salts) {
        self.salts = stored_salts(salts);
    }

    /// The running checksum after the last frame.
    pub fn frame_checksum(&self) -> Checksum {
        let [s0, s1] = self.frame_checksum;
        Checksum { s0, s1 }
    }

    /// Sets the running checksum after the last frame.
    pub fn set_frame_checksum(&mut self, checksum: Checksum) {
        self.frame_checksum = [checksum.s0, checksum.s1];
    }
}

/// Salts as the wal-index stores them, loaded as native numbers.
pub fn stored_salts(salts: Salts) -> [u32; 2] {
    salts.map(u32::to_be)
}

/// The two bytes that stand for a page size.
#[expect(clippy::cast_possible_truncation, reason = "65536 folds to 1, the rest fits")]
pub const fn encode_page_size(page_size: PageSize) -> u16 {
    let bytes = page_size.get();
    ((bytes & 0xff00) | (bytes >> 16)) as u16
}

/// The page size two bytes stand for.
pub fn decode_page_size(raw: u16) -> Result<PageSize> {
    match raw {
        1 => Ok(PageSize::MAX),
        _ => PageSize::new(u32::from(raw)),
    }
}

fn header_checksum(bytes: &[u8; HEADER_SIZE]) -> [u32; 2] {
    let sum = checksum(ByteOrder::NATIVE, Checksum::default(), &bytes[..40]);
    [sum.s0, sum.s1]
}

#[cfg(test)]
#[allow(clippy::cast_possible_truncation)]
mod tests {
    use super::*;

    fn header() -> IndexHeader {
        let mut header = IndexHeader {
            version: WAL_VERSION,
            unused: 0,
            change: 42,
            is_init: 1,
            big_endian_checksum: 0,
            page_size_raw: encode_page_size(PageSize::new(4096).unwrap()),
            max_frame: 7,
            page_count: 9,
            frame_checksum: [3, 4],
            salts: [0, 0],
            checksum: [0, 0],
        };
        header.set_file_salts([0x0102_0304, 5]);
        header
    }

    #[test]
    fn lock_bytes() {
        assert_eq!((LOCK_WRITE, LOCK_CKPT, LOCK_RECOVER), (0, 1, 2));
        assert_eq!((0..READ_MARKS).map(lock_read).collect::<Vec<_>>(), [3, 4, 5, 6, 7]);
        assert_eq!(read_mark_offset(0), 100);
        assert_eq!(read_mark_offset(4), 116);
    }

    #[test]
    fn frame_locations() {
        let check = |frame: u32, expected: (u32, u32)| {
            let (region, slot) = frame_location(frame);
            assert_eq!((region, slot), expected, "frame {frame}");
            assert_eq!(region_first_frame(region) + slot, frame);
            assert!(slot < region_frames(region));
            assert_eq!(region, ((u64::from(frame) + 33) / 4096) as u32);
        };
        check(1, (0, 0));
        check(4062, (0, 4061));
        check(4063, (1, 0));
        check(8158, (1, 4095));
        check(8159, (2, 0));
        check(12254, (2, 4095));
        check(12255, (3, 0));
        check(u32::MAX, (1 << 20, 32));
        assert_eq!(page_number_offset(0, 0), 136);
        assert_eq!(page_number_offset(0, 4061), HASH_OFFSET - 4);
        assert_eq!(page_number_offset(1, 0), 0);
        assert_eq!(page_number_offset(9, 4095), HASH_OFFSET - 4);
    }

    #[test]
    fn hashing() {
        assert_eq!(hash_key(0), 0);
        assert_eq!(hash_key(1), 383);
        assert_eq!(hash_key(22), (22 * 383) % 8192);
        assert_eq!(hash_key(u32::MAX), 0xffff_fe81 & 8191);
        assert_eq!(next_hash_key(0), 1);
        assert_eq!(next_hash_key(8191), 0);
        assert_eq!(hash_slot_offset(0), 16384);
        assert_eq!(hash_slot_offset(8191), REGION_SIZE - 2);
        assert_eq!(hash_slot_value(0), 1);
        assert_eq!(hash_slot_value(4095), 4096);
    }

    #[test]
    fn page_sizes() {
        let check = |size: u32, raw: u16| {
            let size = PageSize::new(size).unwrap();
            assert_eq!(encode_page_size(size), raw);
            assert_eq!(decode_page_size(raw).unwrap(), size);
        };
        check(512, 512);
        check(1024, 1024);
        check(4096, 4096);
        check(32768, 32768);
        check(65536, 1);
        for raw in [0, 2, 256, 511, 513, 1536, 32769, 65535] {
            assert!(decode_page_size(raw).is_err(), "{raw}");
        }
    }

    #[test]
    fn header_round_trip() {
        let bytes = header().encode();
        let found = IndexHeader::decode(&bytes).unwrap();
        let IndexHeader { checksum, .. } = found;
        assert_eq!(found, IndexHeader { checksum, ..header() });
        assert_eq!(found.encode(), bytes);
        assert_eq!(IndexHeader::decode_pair(&bytes, &bytes).unwrap(), found);
        assert_eq!(bytes[0..4], 3_007_000_u32.to_ne_bytes());
        assert_eq!(bytes[8..12], 42_u32.to_ne_bytes());
        assert_eq!(bytes[12..14], [1, 0]);
        assert_eq!(bytes[14..16], 4096_u16.to_ne_bytes());
        assert_eq!(bytes[16..20], 7_u32.to_ne_bytes());
        assert_eq!(bytes[20..24], 9_u32.to_ne_bytes());
        assert_eq!(bytes[32..40], [1, 2, 3, 4, 0, 0, 0, 5]); // as in the WAL, whatever the machine
    }

    #[test]
    fn conversions() {
        let mut header = header();
        assert_eq!(header.page_size().unwrap().get(), 4096);
        assert_eq!(header.order(), ByteOrder::Little);
        assert_eq!(header.file_salts(), [0x0102_0304, 5]);
        assert_eq!(header.salts, stored_salts([0x0102_0304, 5]));
        assert_eq!(header.frame_checksum(), Checksum { s0: 3, s1: 4 });
        header.set_frame_checksum(Checksum { s0: 5, s1: 6 });
        assert_eq!(header.frame_checksum, [5, 6]);
        header.big_endian_checksum = 1;
        assert_eq!(header.order(), ByteOrder::Big);
        header.page_size_raw = 0;
        let error = header.page_size().unwrap_err().to_string();
        assert!(error.starts_with("wal-index header: invalid page size 0"), "{error}");
    }

    #[test]
    fn header_errors() {
        let check = |bytes: &[u8; HEADER_SIZE], expected: &str, kind: ErrorKind| {
            let error = IndexHeader::decode(bytes).unwrap_err();
            assert!(error.to_string().contains(expected), "{error}");
            assert_eq!(error.kind(), kind);
        };
        check(&[0; 48], "not initialised", ErrorKind::Corrupt);
        check(&[0xff; 48], "checksum", ErrorKind::Corrupt);
        let good = header().encode();
        for at in 0..good.len() * 8 {
            let mut bytes = good;
            bytes[at / 8] ^= 1 << (at % 8);
            check(&bytes, "wal-index header", ErrorKind::Corrupt);
            let error = IndexHeader::decode_pair(&good, &bytes).unwrap_err().to_string();
            assert!(error.contains("torn"), "{error}");
        }
        let newer = IndexHeader { version: WAL_VERSION + 1, ..header() };
        check(&newer.encode(), "version 3007001", ErrorKind::Unsupported);
        let closed = IndexHeader { is_init: 0, ..header() };
        check(&closed.encode(), "not initialised", ErrorKind::Corrupt);
    }
}
