//! Stream records: their bytes, cut anywhere, and what a hostile peer may send.
#![allow(clippy::cast_possible_truncation)]

use super::*;
use crate::error::ErrorKind;

fn pos(generation: u64, index: u64, offset: u64) -> Pos {
    let index = Index::new(index).unwrap();
    Pos::new(Generation::from_bits(generation), index, Offset::new(offset).unwrap())
}

fn header(kind: RecordType, size: u64) -> StreamRecordHeader {
    StreamRecordHeader::new(kind, pos(1, 2, 3), size)
}

/// Gives `step` bytes a read, and before each the error, if there is one.
struct Pieces<'a> {
    bytes: &'a [u8],
    step: usize,
    before_each: Option<Io>,
    due: bool,
}

impl<'a> Pieces<'a> {
    fn new(bytes: &'a [u8], step: usize) -> Self {
        Self { bytes, step, before_each: None, due: false }
    }
}

impl Read for Pieces<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.due = !self.due;
        if let (Some(kind), true) = (self.before_each, self.due) {
            return Err(kind.into());
        }
        let room = buffer.len().min(self.step);
        self.bytes.read(&mut buffer[..room])
    }
}

/// A snapshot, a segment, a heartbeat and an empty segment.
fn stream() -> (Vec<(StreamRecordHeader, Vec<u8>)>, Vec<u8>) {
    let beat = Heartbeat { pos: pos(1, 2, 3), unix_ms: 4 };
    let records = vec![
        (header(RecordType::Snapshot, 10_000), vec![7; 10_000]),
        (header(RecordType::WalSegment, 5), vec![1, 2, 3, 4, 5]),
        (header(RecordType::Heartbeat, 32), beat.encode().to_vec()),
        (header(RecordType::WalSegment, 0), vec![]),
    ];
    let encoded = records
        .iter()
        .flat_map(|(header, payload)| header.encode().into_iter().chain(payload.iter().copied()));
    let bytes = encoded.collect();
    (records, bytes)
}

#[test]
fn header_layout() {
    let header = StreamRecordHeader {
        flags: FLAG_LZ4 | FLAG_DELTA,
        ..StreamRecordHeader::new(
            RecordType::Snapshot,
            pos(0xfb74_4889_fe01_aa13, 0x10, 0x1038),
            0x1_b000,
        )
    };
    let bytes = header.encode();
    let expected: [&[u8]; 6] = [
        &[0, 0, 0, 1],
        &[0, 0, 0, 3],
        &[0xfb, 0x74, 0x48, 0x89, 0xfe, 0x01, 0xaa, 0x13],
        &[0, 0, 0, 0, 0, 0, 0, 0x10],
        &[0, 0, 0, 0, 0, 0, 0x10, 0x38],
        &[0, 0, 0, 0, 0, 0x01, 0xb0, 0],
    ];
    assert_eq!(bytes[..], expected.concat());
    assert_eq!(StreamRecordHeader::decode(&bytes).unwrap(), header);
    assert_eq!(header.pos(), pos(0xfb74_4889_fe01_aa13, 0x10, 0x1038));
}

#[test]
fn header_round_trip() {
    let max = i64::MAX.unsigned_abs();
    for kind in [RecordType::Snapshot, RecordType::WalSegment, RecordType::Heartbeat] {
        for pos in [Pos::default(), pos(1, 0, 0), pos(u64::MAX, max, max)] {
            for (flags, size) in [(0, 0), (FLAG_LZ4, 1), (u32::MAX, max)] {
                let header =
                    StreamRecordHeader { flags, ..StreamRecordHeader::new(kind, pos, size) };
                let mut bytes = header.encode().to_vec();
                assert_eq!(StreamRecordHeader::decode(&bytes).unwrap(), header);
                bytes.extend([0xaa; 9]);
                assert_eq!(StreamRecordHeader::decode(&bytes).unwrap(), header);
            }
        }
    }
}

#[test]
fn header_errors() {
    let good = header(RecordType::WalSegment, 5).encode();
    let check = |bytes: &[u8], expected: &str| {
        let error = StreamRecordHeader::decode(bytes).unwrap_err();
        assert_eq!(error.to_string(), expected);
        assert_eq!(error.kind(), ErrorKind::Peer);
    };
    for len in 0..good.len() {
        let expected = format!("record header is cut short: {len} of 40 bytes");
        check(&good[..len], &expected);
    }
    let with = |at: usize, byte: u8| {
        let mut bytes = good;
        bytes[at] = byte;
        bytes
    };
    check(&with(3, 0), "record has unknown type 0");
    check(&with(3, 4), "record has unknown type 4");
    check(&with(0, 0x80), "record has unknown type 2147483650");
    check(&with(16, 0x80), "record header: index too large: 9223372036854775810");
    check(&with(24, 0xff), "record header: offset too large: 18374686479671623683");
    check(&with(32, 0x80), "record header: size too large: 9223372036854775813");
}

#[test]
fn heartbeats() {
    let beat = Heartbeat { pos: pos(u64::MAX, 1, 2), unix_ms: 1_700_000_000_123 };
    let bytes = beat.encode();
    assert_eq!(bytes[..8], [0xff; 8]);
    assert_eq!(bytes[24..], 1_700_000_000_123_u64.to_be_bytes());
    assert_eq!(Heartbeat::decode(&bytes).unwrap(), beat);
    let record = beat.encode_record();
    let header = StreamRecordHeader::decode(&record).unwrap();
    assert_eq!(header, StreamRecordHeader::new(RecordType::Heartbeat, beat.pos, 32));
    assert_eq!(record[40..], bytes);
    for len in [0, 24, 31, 33] {
        let error = Heartbeat::decode(&vec![0; len]).unwrap_err();
        assert_eq!(error.to_string(), format!("heartbeat has {len} bytes, expected 32"));
        assert_eq!(error.kind(), ErrorKind::Peer);
    }
    assert_eq!(Heartbeat::decode(&[0xff; 32]).unwrap_err().kind(), ErrorKind::Peer);
}

#[test]
fn reads_a_stream_cut_anywhere() {
    let (records, bytes) = stream();
    for step in [1, 2, 3, 39, 40, 41, 100, 4096, usize::MAX] {
        for before_each in [None, Some(Io::Interrupted)] {
            let pieces = Pieces { before_each, ..Pieces::new(&bytes, step) };
            let mut reader = RecordReader::new(pieces);
            let mut payload = Vec::new();
            for (header, expected) in &records {
                assert_eq!(reader.next().unwrap().unwrap(), *header);
                assert_eq!(reader.remaining(), header.size);
                payload.clear();
                reader.read_payload(10_000, &mut payload).unwrap();
                assert_eq!(payload, *expected);
                assert_eq!(reader.read(&mut [0; 9]).unwrap(), 0);
            }
            assert_eq!(reader.next().unwrap(), None);
            assert_eq!(reader.next().unwrap(), None);
        }
    }
}

#[test]
fn skips_what_was_not_read() {
    let (records, bytes) = stream();
    for step in [1, 7, usize::MAX] {
        for taken in [0, 1, 5] {
            let mut reader = RecordReader::new(Pieces::new(&bytes, step));
            for (header, payload) in &records {
                assert_eq!(reader.next().unwrap().unwrap(), *header);
                let mut some = Vec::new();
                reader.by_ref().take(taken).read_to_end(&mut some).unwrap();
                assert_eq!(some, payload[..payload.len().min(taken as usize)]);
            }
            assert_eq!(reader.next().unwrap(), None);
        }
    }
}

#[test]
fn goes_on_after_time_outs() {
    let (records, bytes) = stream();
    for step in [1, 7, 4096] {
        let before_each = Some(Io::WouldBlock);
        let mut reader = RecordReader::new(Pieces { before_each, ..Pieces::new(&bytes, step) });
        let mut waits = 0;
        for (header, expected) in &records {
            let mut waited = |error: Error| {
                assert_eq!(error.kind(), ErrorKind::Timeout);
                waits += 1;
            };
            let found = loop {
                match reader.next() {
                    Ok(found) => break found,
                    Err(error) => waited(error),
                }
            };
            assert_eq!(found, Some(*header));
            let mut payload = Vec::new();
            while let Err(error) = reader.read_payload(u64::MAX, &mut payload) {
                waited(error);
            }
            assert_eq!(payload, *expected);
        }
        assert!(waits >= bytes.len() / step, "{waits}");
    }
}

#[test]
fn ends_only_between_records() {
    let (records, bytes) = stream();
    let mut ends = vec![0];
    for (header, _) in &records {
        ends.push(ends[ends.len() - 1] + 40 + header.size);
    }
    let cuts = (0..bytes.len()).filter(|cut| !(200..10_000).contains(cut));
    for cut in cuts {
        let mut reader = RecordReader::new(&bytes[..cut]);
        let result = loop {
            match reader.next() {
                Ok(Some(_)) => {}
                other => break other,
            }
        };
        if ends.contains(&(cut as u64)) {
            assert_eq!(result.unwrap(), None, "cut at {cut}");
            continue;
        }
        let error = result.unwrap_err();
        let expected = "the upstream closed the connection in the middle of a record";
        assert_eq!(error.to_string(), expected, "cut at {cut}");
        assert_eq!(error.kind(), ErrorKind::Peer);
        // It stays failed, and does not take what comes next for a header.
        assert_eq!(reader.next().unwrap_err().kind(), ErrorKind::Peer);
    }
}

#[test]
fn a_payload_cut_short_is_the_peers_fault() {
    let bytes = [&header(RecordType::WalSegment, 100).encode()[..], &[0; 99]].concat();
    let mut reader = RecordReader::new(&bytes[..]);
    reader.next().unwrap();
    let mut payload = Vec::new();
    let error = reader.read_payload(100, &mut payload).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Peer);
    assert!(error.to_string().starts_with("the upstream closed"), "{error}");
    assert_eq!(payload.len(), 99);
}

#[test]
fn payload_limit() {
    let max = i64::MAX.unsigned_abs();
    let bytes = header(RecordType::WalSegment, max).encode();
    let mut reader = RecordReader::new(&bytes[..]);
    reader.next().unwrap();
    let mut payload = Vec::new();
    let error = reader.read_payload(max - 1, &mut payload).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Peer);
    assert!(error.to_string().contains("at most"), "{error}");
    // Even where it is allowed, a size alone claims no memory.
    assert!(reader.read_payload(max, &mut payload).is_err());
    assert!(payload.capacity() < 1 << 20);
}

#[test]
fn unknown_flags() {
    let check = |kind: RecordType, flags: u32, ok: bool| {
        let bytes = StreamRecordHeader { flags, ..header(kind, 0) }.encode();
        let result = RecordReader::new(&bytes[..]).next();
        assert_eq!(result.is_ok(), ok, "{kind:?} {flags}");
        assert!(ok || result.unwrap_err().kind() == ErrorKind::Peer);
    };
    check(RecordType::Snapshot, FLAG_LZ4 | FLAG_DELTA, true);
    check(RecordType::Snapshot, 4, false);
    check(RecordType::WalSegment, 0, true);
    check(RecordType::WalSegment, FLAG_LZ4, false);
    check(RecordType::Heartbeat, 1 << 31, false);
}

#[test]
fn works_behind_a_box() {
    let (records, bytes) = stream();
    let mut reader: Box<dyn StreamReader> = Box::new(RecordReader::new(io::Cursor::new(bytes)));
    for (_, expected) in &records {
        assert!(reader.next().unwrap().is_some());
        let mut payload = Vec::new();
        reader.read_payload(10_000, &mut payload).unwrap();
        assert_eq!(payload, *expected);
    }
}

#[test]
fn errors_of_the_socket_pass_through() {
    let pieces = Pieces { before_each: Some(Io::ConnectionReset), ..Pieces::new(&[], 1) };
    let mut reader = RecordReader::new(pieces);
    assert_eq!(reader.next().unwrap_err().kind(), ErrorKind::Io);
    assert_eq!(reader.next().unwrap_err().kind(), ErrorKind::Peer);
    assert_eq!(reader.get_ref().bytes.len(), 0);
}
