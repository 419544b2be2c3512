//! WALs and wal-indexes that a real sqlite3 made (tests/data/wal) must decode to what that sqlite3
//! said about them, and encode to the same bytes.
//!
//! The wal-index is in the byte order of the machine that made it, so those tests are for
//! little-endian machines only.
#![allow(clippy::unwrap_used, clippy::panic)]

use std::io::Read;
use std::path::Path;

use litestream::wal::{
    ByteOrder, Chain, PageSize, Scan, WAL_HEADER_SIZE, WalHeader, scan, wal_size,
};
use litestream::walindex::{self, IndexHeader};

const SIZES: [u32; 8] = [512, 1024, 2048, 4096, 8192, 16384, 32768, 65536];

fn gunzip(name: &str) -> Vec<u8> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/wal").join(name);
    let mut bytes = Vec::new();
    let packed = std::fs::read(&path).unwrap_or_else(|why| panic!("{}: {why}", path.display()));
    flate2::read::GzDecoder::new(&packed[..]).read_to_end(&mut bytes).unwrap();
    bytes
}

/// What is in `SIZE.wal`, taken apart.
struct Golden {
    wal: Vec<u8>,
    header: WalHeader,
    scan: Scan,
    index: Vec<u8>,
}

impl Golden {
    fn open(size: u32) -> Self {
        let wal = gunzip(&format!("{size}.wal.gz"));
        let header = WalHeader::decode(&wal).unwrap();
        assert_eq!(header.page_size.get(), size);
        let scan = scan(Chain::start(&header), &wal[WAL_HEADER_SIZE..]);
        Self { wal, header, scan, index: gunzip(&format!("{size}.shm.gz")) }
    }

    /// The frames that continue the chain, committed or not.
    fn frames(&self) -> impl Iterator<Item = &[u8]> {
        let frame_size = self.header.page_size.frame_size();
        self.wal[WAL_HEADER_SIZE..].chunks_exact(frame_size).take(self.scan.frames as usize)
    }

    fn valid(&self) -> &[u8] {
        let size = wal_size(self.header.page_size, u64::from(self.scan.frames));
        &self.wal[..usize::try_from(size).unwrap()]
    }

    fn index_header(&self) -> IndexHeader {
        let copy = |at: usize| self.index[at..].first_chunk().unwrap();
        let first = copy(walindex::HEADER_FIRST_OFFSET);
        IndexHeader::decode_pair(first, copy(walindex::HEADER_SECOND_OFFSET)).unwrap()
    }

    fn index_u16(&self, region: u32, offset: usize) -> u16 {
        let at = region as usize * walindex::REGION_SIZE + offset;
        u16::from_ne_bytes(*self.index[at..].first_chunk().unwrap())
    }

    fn index_u32(&self, region: u32, offset: usize) -> u32 {
        let at = region as usize * walindex::REGION_SIZE + offset;
        u32::from_ne_bytes(*self.index[at..].first_chunk().unwrap())
    }
}

/// Writes the WAL anew from its header's fields and its pages.
fn rewrite(golden: &Golden, order: ByteOrder) -> Vec<u8> {
    let WalHeader { page_size, checkpoint_seq, salts, .. } = golden.header;
    let header = WalHeader::new(order, page_size, checkpoint_seq, salts);
    let mut out = header.encode().to_vec();
    let mut from = Chain::start(&golden.header);
    let mut to = Chain::start(&header);
    for frame in golden.frames() {
        let read = from.verify(frame).unwrap();
        to.append(read.page_no, read.page_count, &frame[24..], &mut out);
    }
    out
}

#[test]
fn wal_decodes_and_encodes_to_the_same_bytes() {
    for size in SIZES {
        let golden = Golden::open(size);
        assert_eq!(golden.header.encode(), golden.wal[..WAL_HEADER_SIZE]);
        assert!(rewrite(&golden, golden.header.order) == golden.valid(), "page size {size}");
    }
}

#[test]
fn the_other_byte_order_holds_the_same() {
    for size in SIZES {
        let golden = Golden::open(size);
        assert_eq!(golden.header.order, ByteOrder::Little);
        let big = rewrite(&golden, ByteOrder::Big);
        let header = WalHeader::decode(&big).unwrap();
        assert_eq!(header.order, ByteOrder::Big);
        let found = scan(Chain::start(&header), &big[WAL_HEADER_SIZE..]);
        let counts =
            |scan: Scan| (scan.frames, scan.committed_frames, scan.commits, scan.page_count);
        assert_eq!(counts(found), counts(golden.scan));
        assert_ne!(found.end.checksum, golden.scan.end.checksum);
        let big = Golden { wal: big, header, scan: found, index: Vec::new() };
        assert!(rewrite(&big, ByteOrder::Little) == golden.valid(), "page size {size}");
    }
}

#[test]
fn commits_are_told_from_what_is_behind_them() {
    for size in SIZES {
        let Scan { frames, committed_frames, commits, .. } = Golden::open(size).scan;
        // See make.sh: one large commit, then single frames, then frames rolled back.
        let singles = if size == 512 { 4100 } else { 10 };
        assert_eq!(commits, 1 + singles, "page size {size}");
        assert!(committed_frames > commits && frames > committed_frames, "page size {size}");
    }
}

#[cfg(target_endian = "little")]
#[test]
fn wal_index_header_says_what_the_scan_says() {
    for size in SIZES {
        let golden = Golden::open(size);
        let header = golden.index_header();
        assert_eq!(header.encode(), golden.index[..walindex::HEADER_SIZE]);
        assert_eq!(header.page_size().unwrap(), PageSize::new(size).unwrap());
        assert_eq!(header.order(), golden.header.order);
        assert_eq!(header.file_salts(), golden.header.salts);
        assert_eq!(walindex::stored_salts(golden.header.salts), header.salts);
        assert_eq!(header.max_frame, golden.scan.committed_frames);
        assert_eq!(header.page_count, golden.scan.page_count);
        assert_eq!(header.frame_checksum(), golden.scan.committed.checksum);
        // RESTART set everything back, and nobody has read since.
        assert_eq!(golden.index_u32(0, walindex::BACKFILL_OFFSET), 0);
        assert_eq!(golden.index_u32(0, walindex::BACKFILL_ATTEMPTED_OFFSET), 0);
        assert_eq!(golden.index_u32(0, walindex::read_mark_offset(0)), 0);
        let unused = walindex::READMARK_NOT_USED;
        assert_eq!(golden.index_u32(0, walindex::read_mark_offset(4)), unused);
    }
}

#[cfg(target_endian = "little")]
#[test]
fn every_frame_is_found_through_its_hash_table() {
    for size in SIZES {
        let golden = Golden::open(size);
        let committed = golden.frames().take(golden.scan.committed_frames as usize);
        for (frame, bytes) in (1..).zip(committed) {
            let page_no = u32::from_be_bytes(*bytes.first_chunk().unwrap());
            let (region, slot) = walindex::frame_location(frame);
            let offset = walindex::page_number_offset(region, slot);
            assert_eq!(golden.index_u32(region, offset), page_no, "frame {frame}");
            let mut key = walindex::hash_key(page_no);
            loop {
                match golden.index_u16(region, walindex::hash_slot_offset(key)) {
                    0 => panic!("frame {frame} of page {page_no} is not in the hash table"),
                    found if found == walindex::hash_slot_value(slot) => break,
                    _ => key = walindex::next_hash_key(key),
                }
            }
        }
    }
}

#[test]
fn pages_of_512_bytes_fill_more_than_one_region() {
    let frames = Golden::open(512).scan.committed_frames;
    assert!(frames > walindex::REGION_0_FRAMES);
    assert_eq!(walindex::frame_location(frames).0, 1);
}
