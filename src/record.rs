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
mod tests;
