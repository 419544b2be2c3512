//! Archives of other makers: frames of every kind, segments of any size, both byte orders.

use std::io::Write;
use std::path::PathBuf;
use std::time::SystemTime;

use lz4_flex::frame::{BlockMode, BlockSize, FrameEncoder, FrameInfo};

use super::*;
use crate::archive::tree::Tree;
use crate::pos::{Generation, Index, Offset, Pos};
use crate::wal::{ByteOrder, Chain, PageSize, WalHeader};

struct Scratch(PathBuf);

impl Scratch {
    fn new(name: &str) -> Scratch {
        let name = format!("litestream-unit-{name}-{}", std::process::id());
        let path = std::env::temp_dir().join(name);
        let _ = std::fs::remove_dir_all(&path);
        std::fs::create_dir_all(path.join("archive/generations/00000000000000ab")).unwrap();
        Scratch(path)
    }

    fn put(&self, key: &str, bytes: &[u8]) {
        let path = self.0.join("archive/generations/00000000000000ab").join(key);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, bytes).unwrap();
    }

    fn restore(&self) -> Result<(String, Vec<u8>)> {
        let path = self.0.join("out.db");
        let request = Request {
            url: format!("file://{}", self.0.join("archive").display()),
            options: ArchiveOptions::default(),
            path: path.clone(),
            target: Target { generation: None, until: Until::Latest },
            dry_run: false,
            integrity_check: false,
            threads: 3,
        };
        let reached = run(request, &|| false);
        let left = std::fs::read_dir(&self.0).unwrap().count();
        assert_eq!(left, 1 + usize::from(reached.is_ok()), "left behind");
        let bytes = std::fs::read(&path).unwrap_or_default();
        let _ = std::fs::remove_file(&path);
        Ok((reached?, bytes))
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// A page nobody could confuse with another.
fn page(size: PageSize, number: u32, version: u32) -> Vec<u8> {
    let words = [number, version].map(u32::to_be_bytes).concat();
    let mut page: Vec<u8> = words.into_iter().cycle().take(size.bytes()).collect();
    if number == 1 {
        page[..16].copy_from_slice(b"SQLite format 3\0");
        let size = u16::try_from(size.get() % 65535).unwrap();
        page[16..18].copy_from_slice(&size.to_be_bytes());
    }
    page
}

fn database(size: PageSize, pages: u32) -> Vec<u8> {
    (1..=pages).flat_map(|number| page(size, number, 0)).collect()
}

/// Cut into blocks at each `flush` bytes.
fn frame(info: FrameInfo, content: &[u8], flush: usize) -> Vec<u8> {
    let mut encoder = FrameEncoder::with_frame_info(info, Vec::new());
    for part in content.chunks(flush) {
        encoder.write_all(part).unwrap();
        encoder.flush().unwrap();
    }
    encoder.finish().unwrap()
}

fn infos() -> [FrameInfo; 4] {
    use {BlockMode::*, BlockSize::*};
    [
        (Max64KB, Independent, true),
        (Max4MB, Independent, false),
        (Max64KB, Linked, false),
        (Max4MB, Linked, true),
    ]
    .map(|(size, mode, checksums)| {
        let info = FrameInfo::new().block_size(size).block_mode(mode);
        info.block_checksums(checksums).content_checksum(checksums)
    })
}

#[test]
fn snapshots_in_frames_of_every_kind() {
    let scratch = Scratch::new("frames");
    let size = PageSize::new(4096).unwrap();
    let content = database(size, 1100);
    for (at, info) in infos().into_iter().enumerate() {
        for flush in [usize::MAX, 4096 * 700, 50_000] {
            let bytes = frame(info.clone(), &content, flush);
            scratch.put("snapshots/00000000.snapshot.lz4", &bytes);
            let (reached, found) = scratch.restore().unwrap();
            assert!(found == content, "frame {at}, blocks of {flush}");
            assert_eq!(reached, "00000000000000ab/0000000000000000:0000000000000000");
        }
        let bytes = frame(info, &content, usize::MAX);
        scratch.put("snapshots/00000000.snapshot.lz4", &bytes[..bytes.len() - 1]);
        let error = scratch.restore().unwrap_err().to_string();
        assert!(error.contains("snapshots/00000000.snapshot.lz4"), "{error}");
    }
    scratch.put("snapshots/00000000.snapshot.lz4", &crate::lz4::compress(b"none").unwrap());
    assert!(scratch.restore().unwrap_err().to_string().contains("no database"));
    let cut = crate::lz4::compress(&content[..content.len() - 5]).unwrap();
    scratch.put("snapshots/00000000.snapshot.lz4", &cut);
    assert!(scratch.restore().unwrap_err().to_string().contains("whole pages"));
    // A database that is empty, and to which nothing was ever written.
    scratch.put("snapshots/00000000.snapshot.lz4", &crate::lz4::compress(b"").unwrap());
    assert_eq!(scratch.restore().unwrap().1, [0; 0]);
}

/// A WAL: its bytes, and where each frame ends.
struct Wal {
    chain: Chain,
    bytes: Vec<u8>,
    ends: Vec<usize>,
}

impl Wal {
    fn new(order: ByteOrder, size: PageSize, salt: u32) -> Wal {
        let header = WalHeader::new(order, size, 0, [salt, 7]);
        Wal { chain: Chain::start(&header), bytes: header.encode().to_vec(), ends: Vec::new() }
    }

    fn frame(&mut self, number: u32, version: u32, commit: u32) {
        let page = page(self.chain.page_size, number, version);
        self.chain.append(number, commit, &page, &mut self.bytes);
        self.ends.push(self.bytes.len());
    }
}

fn segment(scratch: &Scratch, index: u64, offset: usize, bytes: &[u8]) {
    let frame = crate::lz4::compress(bytes).unwrap();
    scratch.put(&format!("wal/{index:08x}_{offset:08x}.wal.lz4"), &frame);
}

/// Both byte orders, in segments of one frame each, of several and of the whole WAL.
#[test]
fn segments_of_any_length() {
    let scratch = Scratch::new("segments");
    for order in [ByteOrder::Little, ByteOrder::Big] {
        for per_segment in [1, 2, 7, usize::MAX] {
            let _ = std::fs::remove_dir_all(scratch.0.join("archive"));
            let size = PageSize::MIN;
            let whole = crate::lz4::compress(&database(size, 3)).unwrap();
            scratch.put("snapshots/00000000.snapshot.lz4", &whole);
            for index in 0..3_u32 {
                let mut wal = Wal::new(order, size, index);
                for at in 0..20_u32 {
                    // The last two frames of the last index commit nothing.
                    let commits = at % 4 == 1 || (at == 19 && index < 2);
                    wal.frame(1 + at % 5, 100 * index + at + 1, if commits { 5 } else { 0 });
                }
                let mut start = 0;
                for ends in wal.ends.chunks(per_segment.min(20)) {
                    let end = ends[ends.len() - 1];
                    segment(&scratch, index.into(), start, &wal.bytes[start..end]);
                    start = end;
                }
            }
            let (reached, found) = scratch.restore().unwrap();
            let end = 32 + 18 * 536;
            assert_eq!(reached, format!("00000000000000ab/0000000000000002:{end:016x}"));
            let expected: Vec<u8> = [216, 217, 218, 214, 215]
                .iter()
                .zip(1..)
                .flat_map(|(version, number)| page(size, number, *version))
                .collect();
            assert!(found == expected, "{order:?}, {per_segment} frames a segment");
        }
    }
}

/// What does not fit into memory goes aside; the newest version of a page is in its midst.
#[test]
fn a_segment_larger_than_memory_should_hold() {
    let scratch = Scratch::new("spool");
    let size = PageSize::MAX;
    let whole = crate::lz4::compress(&database(size, 2)).unwrap();
    scratch.put("snapshots/00000000.snapshot.lz4", &whole);
    let mut wal = Wal::new(ByteOrder::NATIVE, size, 1);
    for at in 1..=700_u32 {
        wal.frame(1 + at % 40, at, 40);
    }
    segment(&scratch, 0, 0, &wal.bytes);
    let (_, found) = scratch.restore().unwrap();
    let newest = |number: u32| (1..=700).rev().find(|at| 1 + at % 40 == number).unwrap();
    let expected: Vec<u8> =
        (1..=40).flat_map(|number| page(size, number, newest(number))).collect();
    assert!(found == expected);
    let flip = wal.bytes.len() / 2;
    wal.bytes[flip] ^= 1;
    segment(&scratch, 0, 0, &wal.bytes);
    let error = scratch.restore().unwrap_err().to_string();
    assert!(error.contains("00000000_00000000.wal.lz4"), "{error}");
}

/// Pages above what the database held at the end of an index are not those of before.
#[test]
fn what_was_cut_off_does_not_come_back() {
    let scratch = Scratch::new("cut-off");
    let size = PageSize::MIN;
    let whole = crate::lz4::compress(&database(size, 6)).unwrap();
    scratch.put("snapshots/00000000.snapshot.lz4", &whole);
    let mut wal = Wal::new(ByteOrder::NATIVE, size, 1);
    wal.frame(5, 1, 6);
    wal.frame(1, 1, 3);
    segment(&scratch, 0, 0, &wal.bytes);
    let mut wal = Wal::new(ByteOrder::NATIVE, size, 2);
    wal.frame(6, 2, 6);
    segment(&scratch, 1, 0, &wal.bytes);
    let (_, found) = scratch.restore().unwrap();
    let versions = [(1, 1), (2, 0), (3, 0)];
    let kept = versions.iter().flat_map(|(number, version)| page(size, *number, *version));
    let expected: Vec<u8> = kept.chain([0; 1024]).chain(page(size, 6, 2)).collect();
    assert!(found == expected);
}

/// An index of ours without its end is a hole, though the next one is there.
#[test]
fn an_index_of_ours_needs_its_end() {
    let scratch = Scratch::new("end");
    let options = ArchiveOptions { tree: Tree::V04, ..ArchiveOptions::default() };
    let url = format!("file://{}", scratch.0.join("archive").display());
    let archive = Archive::open(&url, &options).unwrap();
    let at = |index, offset| {
        let (index, offset) = (Index::new(index).unwrap(), Offset::new(offset).unwrap());
        Pos::new(Generation::from_bits(0xab), index, offset)
    };
    let size = PageSize::MIN;
    let whole = crate::lz4::compress(&database(size, 2)).unwrap();
    archive.put_snapshot(at(0, 0), SystemTime::now(), &mut whole.as_slice()).unwrap();
    for index in 0..2 {
        let mut wal = Wal::new(ByteOrder::NATIVE, size, 5);
        wal.frame(2, 9, 2);
        let frame = crate::lz4::compress(&wal.bytes).unwrap();
        archive.put_segment(at(index, 0), SystemTime::now(), &[], &mut frame.as_slice()).unwrap();
    }
    let error = scratch.restore().unwrap_err().to_string();
    assert!(error.contains(&format!("the WAL segment at {} is missing", at(0, 568))), "{error}");
    archive.put_end(at(0, 568)).unwrap();
    assert_eq!(scratch.restore().unwrap().0, at(1, 568).to_string());
}

/// Two histories may have one WAL's name and salts: a copied database. Only the running checksum
/// tells that a segment does not continue the one before.
#[test]
fn segments_of_two_histories_are_not_joined() {
    let scratch = Scratch::new("histories");
    let size = PageSize::MIN;
    let whole = crate::lz4::compress(&database(size, 3)).unwrap();
    scratch.put("snapshots/00000000.snapshot.lz4", &whole);
    let [mut one, mut other] = [(), ()].map(|()| Wal::new(ByteOrder::NATIVE, size, 1));
    for (wal, version) in [(&mut one, 1), (&mut other, 2)] {
        wal.frame(2, version, 3);
        wal.frame(3, version, 3);
    }
    let cut = one.ends[0];
    segment(&scratch, 0, 0, &one.bytes[..cut]);
    segment(&scratch, 0, cut, &other.bytes[cut..]);
    let error = scratch.restore().unwrap_err().to_string();
    assert!(error.contains("its first frame does not continue"), "{error}");
    std::fs::remove_dir_all(scratch.0.join("archive")).unwrap();
    scratch.put("snapshots/00000000.snapshot.lz4", &whole);
    segment(&scratch, 0, 0, &one.bytes[..cut]);
    segment(&scratch, 0, cut, &one.bytes[cut..]);
    scratch.restore().unwrap();
}
