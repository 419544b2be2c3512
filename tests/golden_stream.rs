//! A stream recorded from Litestream v0.4.0-beta.2 (tests/data/litestream-0.4.0-beta.2): every
//! record must decode to what its description says, encode to the same bytes, and lead to the same
//! database.
#![allow(clippy::unwrap_used, clippy::panic)]

use std::io::{self, Read};
use std::path::Path;

use litestream::lz4;
use litestream::pos::{Pos, compare_pos};
use litestream::record::{RecordReader, RecordType, StreamReader, StreamRecordHeader};
use litestream::wal::{Chain, WAL_HEADER_SIZE, WalHeader, scan};
use serde_json::Value;

const PAYLOAD_MAX: u64 = 1 << 20;

fn data(name: &str) -> Vec<u8> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/litestream-0.4.0-beta.2");
    std::fs::read(folder.join(name)).unwrap_or_else(|why| panic!("{name}: {why}"))
}

fn gunzip(name: &str) -> Vec<u8> {
    let mut bytes = Vec::new();
    flate2::read::GzDecoder::new(&data(name)[..]).read_to_end(&mut bytes).unwrap();
    bytes
}

fn description() -> Value {
    serde_json::from_slice(&data("stream.json")).unwrap()
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn sha256(bytes: &[u8]) -> String {
    hex(ring::digest::digest(&ring::digest::SHA256, bytes).as_ref())
}

/// Gives at most `step` bytes a read.
struct Pieces<'a> {
    bytes: &'a [u8],
    step: usize,
}

impl Read for Pieces<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let room = buffer.len().min(self.step);
        self.bytes.read(&mut buffer[..room])
    }
}

fn records(bytes: &[u8], step: usize) -> Vec<(StreamRecordHeader, Vec<u8>)> {
    let mut reader = RecordReader::new(Pieces { bytes, step });
    let mut records = Vec::new();
    while let Some(header) = reader.next().unwrap() {
        let mut payload = Vec::new();
        reader.read_payload(PAYLOAD_MAX, &mut payload).unwrap();
        records.push((header, payload));
    }
    records
}

fn segment(payload: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    lz4::decompress(payload, PAYLOAD_MAX, &mut out).unwrap();
    out
}

#[test]
fn headers_and_payloads_are_as_described() {
    let stream = gunzip("stream.bin.gz");
    let description = description();
    let expected = description["records"].as_array().unwrap();
    let records = records(&stream, usize::MAX);
    assert_eq!(records.len(), expected.len());
    assert_eq!(description["bytes"].as_u64(), Some(stream.len() as u64));
    let mut at = 0;
    for ((header, payload), expected) in records.iter().zip(expected) {
        let number = |key: &str| expected[key].as_u64().unwrap();
        assert_eq!(number("pos"), at as u64);
        assert_eq!(number("type"), u64::from(header.kind.code()));
        assert_eq!(number("flags"), u64::from(header.flags));
        assert_eq!(expected["generation"].as_str().unwrap(), header.generation.to_string());
        assert_eq!(number("index"), header.index.get());
        assert_eq!(number("offset"), header.offset.get());
        assert_eq!(number("size"), header.size);
        assert_eq!(header.size, payload.len() as u64);
        assert_eq!(expected["payload_sha256"].as_str().unwrap(), sha256(payload));
        assert_eq!(header.encode(), stream[at..at + StreamRecordHeader::SIZE]);
        at += StreamRecordHeader::SIZE + payload.len();
    }
    assert_eq!(at, stream.len());
}

#[test]
fn however_the_stream_is_cut_the_records_are_the_same() {
    let stream = gunzip("stream.bin.gz");
    let whole = records(&stream, usize::MAX);
    for step in [1, 39, 41, 1000, 65537] {
        assert!(records(&stream, step) == whole, "{step} bytes a read");
    }
}

#[test]
fn segments_are_as_described_and_encode_to_the_same_bytes() {
    let stream = gunzip("stream.bin.gz");
    let description = description();
    let expected = description["records"].as_array().unwrap();
    let mut chain = None;
    for ((header, payload), expected) in records(&stream, usize::MAX).iter().zip(expected) {
        if header.kind != RecordType::WalSegment {
            continue;
        }
        assert_eq!(expected["lz4_frame_magic"].as_str().unwrap(), hex(&payload[..4]));
        assert_eq!(expected["lz4_flg_bd"].as_str().unwrap(), hex(&payload[4..6]));
        let content = segment(payload);
        assert_eq!(expected["raw_size"].as_u64(), Some(content.len() as u64));
        let mut frames = &content[..];
        let mut encoded = Vec::new();
        if header.offset.get() == 0 {
            let wal = WalHeader::decode(&content).unwrap();
            assert_eq!(expected["wal_header"].as_str().unwrap(), hex(&wal.encode()));
            assert_eq!(description["page_size"].as_u64(), Some(u64::from(wal.page_size.get())));
            chain = Some(Chain::start(&wal));
            encoded.extend(wal.encode());
            frames = &content[WAL_HEADER_SIZE..];
        }
        let start = chain.expect("an index starts at offset 0");
        let (mut check, mut write) = (start, start);
        let (mut page_numbers, mut commits) = (Vec::new(), Vec::new());
        for (n, frame) in frames.chunks(start.page_size.frame_size()).enumerate() {
            let found = check.verify(frame).unwrap();
            page_numbers.push(Value::from(found.page_no));
            if found.is_commit() {
                commits.push(Value::from(vec![n, found.page_count as usize]));
            }
            write.append(found.page_no, found.page_count, &frame[24..], &mut encoded);
        }
        assert_eq!(expected["frames"].as_u64(), Some(page_numbers.len() as u64));
        assert_eq!(expected["pgnos"], Value::from(page_numbers));
        assert_eq!(expected["commits"], Value::from(commits.clone()));
        assert!(encoded == content);
        let scan = scan(start, frames);
        assert_eq!(scan.commits as usize, commits.len());
        assert_eq!((scan.frames, scan.end), (scan.committed_frames, check));
        chain = Some(check);
    }
}

#[test]
fn positions_only_grow() {
    let stream = gunzip("stream.bin.gz");
    let mut last = Pos::default();
    for (header, _) in records(&stream, usize::MAX) {
        let pos = header.pos();
        assert_eq!(pos.to_string().parse::<Pos>().unwrap(), pos);
        assert!(last.is_zero() || compare_pos(last, pos).unwrap().is_le());
        last = pos;
    }
    assert_eq!((last.index.get(), last.offset.get()), (8, 41232));
}

#[test]
fn applied_in_order_they_make_the_final_database() {
    let stream = gunzip("stream.bin.gz");
    let mut database = Vec::new();
    let mut chain = None;
    for (header, payload) in records(&stream, usize::MAX) {
        if header.kind == RecordType::Snapshot {
            database = payload;
            continue;
        }
        let content = segment(&payload);
        let mut frames = &content[..];
        if header.offset.get() == 0 {
            chain = Some(Chain::start(&WalHeader::decode(&content).unwrap()));
            frames = &content[WAL_HEADER_SIZE..];
        }
        let chain = chain.as_mut().unwrap();
        let page_size = chain.page_size.bytes();
        for frame in frames.chunks(chain.page_size.frame_size()) {
            let found = chain.verify(frame).unwrap();
            let end = found.page_no as usize * page_size;
            if database.len() < end {
                database.resize(end, 0);
            }
            database[end - page_size..end].copy_from_slice(&frame[24..]);
            if found.is_commit() {
                database.resize(found.page_count as usize * page_size, 0);
            }
        }
    }
    let description = description();
    assert_eq!(description["replayed_sha256"].as_str().unwrap(), sha256(&database));
    assert!(database == gunzip("final.db.gz"));
}
