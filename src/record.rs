//! Records: what goes over a stream from an upstream to its followers.
//!
//! Each record is a header of 40 bytes, big-endian, and its payload:
//!
//! | at | size | field                                                                          |
//! |----|------|--------------------------------------------------------------------------------|
//! | 0  | 4    | type: 1 snapshot, 2 WAL segment, 3 heartbeat                                   |
//! | 4  | 4    | flags: 0; bit 0 LZ4, bit 1 delta (both of a snapshot)                          |
//! | 8  | 8    | generation                                                                     |
//! | 16 | 8    | index                                                                          |
//! | 24 | 8    | offset: where in that WAL the payload starts                                   |
//! | 32 | 8    | size: bytes of payload that follow                                             |
//!
//! A segment's payload is one LZ4 frame. A heartbeat's is 32 bytes, big-endian: the upstream's
//! generation, index and offset, and its clock in milliseconds since 1970. A stream may end between
//! two records and nowhere else.
//!
//! Whatever arrives that does not fit is the peer's error. Sockets and retries are elsewhere.

use std::io::{self, ErrorKind as Io, Read};

use crate::error::{Error, Result};
use crate::pos::{Generation, Index, Offset, Pos};

/// Bytes of a record's header.
pub const STREAM_RECORD_HEADER_SIZE: usize = 40;
const _: () = assert!(STREAM_RECORD_HEADER_SIZE == 4 + 4 + 8 + 8 + 8 + 8);

/// Flag: a snapshot's payload is one LZ4 frame.
pub const FLAG_LZ4: u32 = 1;
/// Flag: a snapshot holds only the pages that differ, each after its number.
pub const FLAG_DELTA: u32 = 2;

/// What a record carries.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u32)]
pub enum RecordType {
    /// The whole database.
    Snapshot = 1,
    /// Consecutive bytes of a WAL.
    WalSegment = 2,
    /// Where the upstream is, and its clock.
    Heartbeat = 3,
}

impl RecordType {
    /// The number in the header.
    pub const fn code(self) -> u32 {
        self as u32
    }

    /// The flags a record of this type can have.
    const fn flags(self) -> u32 {
        match self {
            Self::Snapshot => FLAG_LZ4 | FLAG_DELTA,
            Self::WalSegment | Self::Heartbeat => 0,
        }
    }

    fn from_code(code: u32) -> Result<Self> {
        match code {
            1 => Ok(Self::Snapshot),
            2 => Ok(Self::WalSegment),
            3 => Ok(Self::Heartbeat),
            _ => Err(Error::peer(format!("record has unknown type {code}"))),
        }
    }
}

/// A record's header.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StreamRecordHeader {
    /// What follows.
    pub kind: RecordType,
    /// [`FLAG_LZ4`], [`FLAG_DELTA`].
    pub flags: u32,
    /// Which history the payload belongs to.
    pub generation: Generation,
    /// Which WAL of that history.
    pub index: Index,
    /// Where in that WAL the payload starts, in bytes.
    pub offset: Offset,
    /// Bytes of payload.
    pub size: u64,
}

impl StreamRecordHeader {
    /// Bytes of a header.
    pub const SIZE: usize = STREAM_RECORD_HEADER_SIZE;

    /// A header without flags. `size` is the payload's, in bytes.
    pub const fn new(kind: RecordType, pos: Pos, size: u64) -> Self {
        let Pos { generation, index, offset } = pos;
        Self { kind, flags: 0, generation, index, offset, size }
    }

    /// Where the payload starts.
    pub const fn pos(&self) -> Pos {
        Pos::new(self.generation, self.index, self.offset)
    }

    /// The bytes on the wire.
    pub fn encode(&self) -> [u8; Self::SIZE] {
        let mut out = [0; Self::SIZE];
        out[0..4].copy_from_slice(&self.kind.code().to_be_bytes());
        out[4..8].copy_from_slice(&self.flags.to_be_bytes());
        out[8..32].copy_from_slice(&encode_pos(self.pos()));
        out[32..40].copy_from_slice(&self.size.to_be_bytes());
        out
    }

    /// Reads the first 40 bytes; fails if there are fewer, or for an unknown type or numbers
    /// beyond 63 bits. Flags are taken as they are.
    pub fn decode(bytes: &[u8]) -> Result<Self> {
        let Some((bytes, _)) = bytes.split_first_chunk::<STREAM_RECORD_HEADER_SIZE>() else {
            let message = format!("record header is cut short: {} of 40 bytes", bytes.len());
            return Err(Error::peer(message));
        };
        let [kind, generation, index, offset, size] = longs(*bytes);
        let Pos { generation, index, offset } = decode_pos([generation, index, offset])?;
        let [k0, k1, k2, k3, f0, f1, f2, f3] = kind.to_be_bytes();
        let kind = RecordType::from_code(u32::from_be_bytes([k0, k1, k2, k3]))?;
        if i64::try_from(size).is_err() {
            return Err(Error::peer(format!("record header: size too large: {size}")));
        }
        let flags = u32::from_be_bytes([f0, f1, f2, f3]);
        Ok(Self { kind, flags, generation, index, offset, size })
    }
}

/// The payload of a heartbeat.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Heartbeat {
    /// Everything before this has been committed upstream.
    pub pos: Pos,
    /// The upstream's clock, in milliseconds since 1970.
    pub unix_ms: u64,
}

impl Heartbeat {
    /// Bytes of the payload.
    pub const SIZE: usize = 32;

    /// The payload on the wire.
    pub fn encode(&self) -> [u8; Self::SIZE] {
        let mut out = [0; Self::SIZE];
        out[..24].copy_from_slice(&encode_pos(self.pos));
        out[24..].copy_from_slice(&self.unix_ms.to_be_bytes());
        out
    }

    /// Header and payload on the wire.
    pub fn encode_record(&self) -> [u8; StreamRecordHeader::SIZE + Self::SIZE] {
        let mut out = [0; StreamRecordHeader::SIZE + Self::SIZE];
        let header = StreamRecordHeader::new(RecordType::Heartbeat, self.pos, Self::SIZE as u64);
        out[..StreamRecordHeader::SIZE].copy_from_slice(&header.encode());
        out[StreamRecordHeader::SIZE..].copy_from_slice(&self.encode());
        out
    }

    /// Reads a payload of exactly 32 bytes.
    pub fn decode(bytes: &[u8]) -> Result<Self> {
        let Ok(bytes) = <[u8; Self::SIZE]>::try_from(bytes) else {
            let message = format!("heartbeat has {} bytes, expected 32", bytes.len());
            return Err(Error::peer(message));
        };
        let [generation, index, offset, unix_ms] = longs(bytes);
        let pos =
            decode_pos([generation, index, offset]).map_err(|error| error.context("heartbeat"))?;
        Ok(Self { pos, unix_ms })
    }
}

fn encode_pos(pos: Pos) -> [u8; 24] {
    let mut out = [0; 24];
    let numbers = [pos.generation.to_bits(), pos.index.get(), pos.offset.get()];
    out.copy_from_slice(numbers.map(u64::to_be_bytes).as_flattened());
    out
}

fn decode_pos([generation, index, offset]: [u64; 3]) -> Result<Pos> {
    let fault = |error: Error| Error::peer(format!("record header: {error}"));
    let index = Index::new(index).map_err(fault)?;
    let offset = Offset::new(offset).map_err(fault)?;
    Ok(Pos::new(Generation::from_bits(generation), index, offset))
}

/// Big-endian 64-bit numbers of `bytes`, which has eight bytes for each.
fn longs<const BYTES: usize, const LONGS: usize>(bytes: [u8; BYTES]) -> [u64; LONGS] {
    const { assert!(BYTES == 8 * LONGS) };
    let mut longs = [0; LONGS];
    for (long, unit) in longs.iter_mut().zip(bytes.as_chunks::<8>().0) {
        *long = u64::from_be_bytes(*unit);
    }
    longs
}

/// Something that can be asked for a stream of a database's history.
pub trait StreamClient {
    /// Connects, and reads from there on.
    fn stream(&self) -> Result<Box<dyn StreamReader>>;
}

/// A stream of records. Reading gives the payload of the current record, and ends with it.
pub trait StreamReader: Read {
    /// The next record's header, past whatever of the current payload has not been read; `None` if
    /// the stream ended properly. After a time-out, calling it again goes on where it was.
    fn next(&mut self) -> Result<Option<StreamRecordHeader>>;

    /// Bytes of the current payload not yet read.
    fn remaining(&self) -> u64;

    /// Appends the rest of the current payload to `out`; an error if that is more than `max` bytes.
    /// After a time-out, calling it again goes on where it was.
    fn read_payload(&mut self, max: u64, out: &mut Vec<u8>) -> Result<()> {
        let size = self.remaining();
        if size > max {
            return Err(Error::peer(format!("record has {size} bytes, at most {max} are allowed")));
        }
        // Room is made as bytes arrive: a size alone must not claim memory.
        self.take(size).read_to_end(out)?;
        if self.remaining() != 0 {
            return Err(closed_inside());
        }
        Ok(())
    }
}

/// Reads records from any reader. Headers and small payloads make small reads: give it a buffered
/// one.
#[derive(Debug)]
pub struct RecordReader<R> {
    reader: R,
    /// The header being read and how much of it is there; survives time-outs.
    header: [u8; STREAM_RECORD_HEADER_SIZE],
    header_len: usize,
    remaining: u64,
    failed: bool,
}

impl<R: Read> RecordReader<R> {
    /// Reads from `reader`, which must be between two records.
    pub fn new(reader: R) -> Self {
        let header = [0; STREAM_RECORD_HEADER_SIZE];
        Self { reader, header, header_len: 0, remaining: 0, failed: false }
    }

    /// What it reads from.
    pub fn get_ref(&self) -> &R {
        &self.reader
    }

    fn skip_payload(&mut self) -> Result<()> {
        let mut scratch = [0; 8192];
        while self.remaining > 0 {
            match self.read(&mut scratch) {
                Err(error) if error.kind() == Io::Interrupted => {}
                result => drop(result?),
            }
        }
        Ok(())
    }

    fn read_header(&mut self) -> Result<Option<StreamRecordHeader>> {
        while self.header_len < STREAM_RECORD_HEADER_SIZE {
            match self.reader.read(&mut self.header[self.header_len..]) {
                Ok(0) if self.header_len == 0 => return Ok(None),
                Ok(0) => return Err(closed_inside()),
                Ok(n) => self.header_len += n,
                Err(error) if error.kind() == Io::Interrupted => {}
                Err(error) => return Err(error.into()),
            }
        }
        self.header_len = 0;
        let header = StreamRecordHeader::decode(&self.header)?;
        let unknown = header.flags & !header.kind.flags();
        if unknown != 0 {
            let kind = header.kind;
            return Err(Error::peer(format!("{kind:?} record has unknown flags {unknown:#x}")));
        }
        self.remaining = header.size;
        Ok(Some(header))
    }

    /// After anything but a time-out the place in the stream is lost.
    fn settle<T>(&mut self, result: Result<T>) -> Result<T> {
        result.inspect_err(|error| {
            self.failed |= error.kind() != crate::error::ErrorKind::Timeout;
        })
    }

    fn check(&self) -> Result<()> {
        if self.failed {
            return Err(Error::peer("the stream failed before, nothing more can be read from it"));
        }
        Ok(())
    }
}

impl<R: Read> StreamReader for RecordReader<R> {
    fn next(&mut self) -> Result<Option<StreamRecordHeader>> {
        self.check()?;
        let result = self.skip_payload().and_then(|()| self.read_header());
        self.settle(result)
    }

    fn remaining(&self) -> u64 {
        self.remaining
    }
}

impl<R: Read> Read for RecordReader<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.remaining == 0 || buffer.is_empty() {
            return Ok(0);
        }
        self.check()?;
        let room = usize::try_from(self.remaining).unwrap_or(usize::MAX).min(buffer.len());
        match self.reader.read(&mut buffer[..room]) {
            Ok(0) => {
                self.failed = true;
                Err(closed_inside().into())
            }
            Ok(n) => {
                self.remaining -= n as u64;
                Ok(n)
            }
            Err(error) if error.kind() == Io::Interrupted => Err(error),
            Err(error) => self.settle(Err(error.into())).map_err(io::Error::from),
        }
    }
}

fn closed_inside() -> Error {
    Error::peer("the upstream closed the connection in the middle of a record")
}

#[cfg(test)]
mod tests {
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
        let encoded = records.iter().flat_map(|(header, payload)| {
            header.encode().into_iter().chain(payload.iter().copied())
        });
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
}
