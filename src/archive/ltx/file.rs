//! One LTX file: the pages that a run of transactions left behind.
//!
//! | bytes | part, numbers big-endian                                                            |
//! |-------|-------------------------------------------------------------------------------------|
//! | 4     | `LTX1`                                                                              |
//! | 4     | flags: bit 1, no checksums of the database are kept                                 |
//! | 4 4   | page size; pages of the database afterwards                                         |
//! | 8 8   | first and last transaction                                                          |
//! | 8     | milliseconds since 1970: when the last of them was seen                             |
//! | 8     | checksum of the database before; 0 in a snapshot or if none is kept                 |
//! | 52    | where it was in the WAL, by whom; nothing to us                                     |
//! | 6     | a page: its number, flags; then, ascending by number:                               |
//! | 4 + n | flag 1: length and content, one LZ4 block                                           |
//! | n     | no flag (first releases of 0.5): content, one LZ4 frame                             |
//! | 6     | zeros: no more pages                                                                |
//! | ..    | page index: number, offset, length of each page as LEB128, then 0                   |
//! | 8     | bytes of the page index                                                             |
//! | 8     | checksum of the database afterwards; 0 if none is kept                              |
//! | 8     | checksum of this file                                                               |
//!
//! The file's checksum is a CRC-64 over everything before it, the pages as they are decompressed;
//! that of a database is the XOR of its pages', each over number and content. The top bit of every
//! checksum is set. A file that begins with transaction 1 has every page but the lock page. The
//! lock page is in no file.

use std::io::{BufReader, ErrorKind as Io, Read};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use lz4_flex::block;

use super::crc::Crc64;
use super::names::{Span, TxId};
use crate::error::{Context, Error, ErrorKind, Result};
use crate::lz4;
use crate::wal::PageSize;

/// Bytes of the header: enough to know a file's time.
pub const HEADER_SIZE: usize = 100;

const MAGIC: &[u8; 4] = b"LTX1";
const NO_CHECKSUM: u32 = 1 << 1;
const PAGE_HAS_SIZE: u16 = 1;
/// Set in every checksum, so that none is zero.
const CHECKSUM_FLAG: u64 = 1 << 63;
const BUFFER_SIZE: usize = 256 << 10;

/// What a file says of itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// Of the database.
    pub page_size: PageSize,
    /// Pages of the database after the last transaction, at least 1.
    pub page_count: u32,
    /// The first transaction.
    pub min: TxId,
    /// The last one.
    pub max: TxId,
    /// When the last one was seen; whole milliseconds.
    pub created_at: SystemTime,
    /// Whether the database's checksum is kept.
    pub has_checksums: bool,
}

impl Header {
    /// Reads a header. Fails if it is none, or none that we know.
    pub fn decode(bytes: &[u8; HEADER_SIZE]) -> Result<Header> {
        if !bytes.starts_with(MAGIC) {
            return Err(damaged("it does not begin with LTX1"));
        }
        let flags = u32_at(bytes, 4);
        if flags & !NO_CHECKSUM != 0 {
            let why = format!("LTX file: unknown flags {flags:#x}: a newer Litestream made it");
            return Err(Error::new(ErrorKind::Unsupported, why));
        }
        let header = Header {
            page_size: PageSize::new(u32_at(bytes, 8))?,
            page_count: u32_at(bytes, 12),
            min: TxId(u64_at(bytes, 16)),
            max: TxId(u64_at(bytes, 24)),
            created_at: UNIX_EPOCH
                .checked_add(Duration::from_millis(u64_at(bytes, 32)))
                .ok_or_else(|| damaged("its time is out of range"))?,
            has_checksums: flags & NO_CHECKSUM == 0,
        };
        if header.page_count == 0 {
            return Err(damaged("it is of a database without pages"));
        }
        if header.min < TxId(1) || header.max < header.min {
            return Err(damaged("its transactions are out of order"));
        }
        Ok(header)
    }

    /// Fails if the file has other transactions than its name says.
    pub fn check_name(&self, span: Span) -> Result<()> {
        if (self.min, self.max) != (span.min, span.max) {
            let (min, max) = (self.min, self.max);
            return Err(damaged(&format!("it holds {min} to {max}, under another's name")));
        }
        Ok(())
    }

    /// Whether it has all pages.
    pub fn is_snapshot(&self) -> bool {
        self.min == TxId(1)
    }

    /// The page that is in no file, whether or not the database is so large.
    pub fn lock_page(&self) -> u32 {
        self.page_size.lock_page()
    }

    /// Pages of the database that have content.
    pub fn content_pages(&self) -> u32 {
        self.page_count - u32::from(self.page_count >= self.lock_page())
    }
}

/// A page's part of its database's checksum.
pub fn page_checksum(page_no: u32, page: &[u8]) -> u64 {
    let mut crc = Crc64::new();
    crc.update(&page_no.to_be_bytes());
    crc.update(page);
    crc.value() | CHECKSUM_FLAG
}

/// The checksum of a database from the XOR of its pages'.
pub fn database_checksum(pages: u64) -> u64 {
    pages | CHECKSUM_FLAG
}

/// Reads a file from its beginning to its end, with memory for one page.
pub struct Decoder<R> {
    reader: BufReader<R>,
    header: Header,
    crc: Crc64,
    compressed: Vec<u8>,
    pages: u32,
    last_page: u32,
    post_apply: Option<u64>,
    state: State,
}

#[derive(PartialEq)]
enum State {
    Pages,
    Whole,
    Failed,
}

impl<R: Read> Decoder<R> {
    /// Reads the header.
    pub fn new(reader: R) -> Result<Decoder<R>> {
        let mut reader = BufReader::with_capacity(BUFFER_SIZE, reader);
        let bytes: [u8; HEADER_SIZE] = read_array(&mut reader)?;
        let header = Header::decode(&bytes)?;
        let mut crc = Crc64::new();
        crc.update(&bytes);
        Ok(Decoder {
            reader,
            header,
            crc,
            compressed: Vec::new(),
            pages: 0,
            last_page: 0,
            post_apply: None,
            state: State::Pages,
        })
    }

    /// What the file says of itself. Not verified before the last page has been read.
    pub fn header(&self) -> &Header {
        &self.header
    }

    /// The database's checksum afterwards, once the file has been read and if it keeps one.
    pub fn post_apply(&self) -> Option<u64> {
        self.post_apply
    }

    /// Fills `page` with the next page and returns its number. `None`: that was all, and the file
    /// has proved whole. What came before an error must not be used.
    pub fn next(&mut self, page: &mut Vec<u8>) -> Result<Option<u32>> {
        match self.state {
            State::Whole => return Ok(None),
            State::Failed => return Err(damaged("it failed before")),
            State::Pages => self.state = State::Failed,
        }
        let number = self.page(page)?;
        match number {
            Some(_) => self.state = State::Pages,
            None => {
                self.end()?;
                self.state = State::Whole;
            }
        }
        Ok(number)
    }

    fn page(&mut self, page: &mut Vec<u8>) -> Result<Option<u32>> {
        let head: [u8; 6] = self.hashed()?;
        let (number, flags) = (u32_at(&head, 0), u16::from_be_bytes([head[4], head[5]]));
        if (number, flags) == (0, 0) {
            return Ok(None);
        }
        if flags & !PAGE_HAS_SIZE != 0 {
            let why = format!("LTX file: page {number} has unknown flags {flags:#x}");
            return Err(Error::new(ErrorKind::Unsupported, why));
        }
        let header = &self.header;
        if number <= self.last_page || number > header.page_count || number == header.lock_page() {
            let last = self.last_page;
            return Err(damaged(&format!("page {number} cannot follow page {last} in it")));
        }
        if flags & PAGE_HAS_SIZE != 0 {
            self.block(page)?;
        } else {
            self.frame(page)?;
        }
        if page.len() != self.header.page_size.bytes() {
            let len = page.len();
            return Err(damaged(&format!("page {number} has {len} bytes")));
        }
        self.crc.update(page);
        self.pages += 1;
        self.last_page = number;
        Ok(Some(number))
    }

    fn block(&mut self, page: &mut Vec<u8>) -> Result<()> {
        let len = u32::from_be_bytes(self.hashed()?) as usize;
        let page_size = self.header.page_size.bytes();
        if len > block::get_maximum_output_size(page_size) {
            return Err(damaged(&format!("a page is said to have {len} bytes")));
        }
        self.compressed.resize(len, 0);
        read_all(&mut self.reader, &mut self.compressed)?;
        page.resize(page_size, 0);
        let len = block::decompress_into(&self.compressed, page)
            .map_err(|why| damaged(&format!("a page cannot be decompressed: {why}")))?;
        page.truncate(len);
        Ok(())
    }

    /// The frame ends where its blocks do; nothing says so in advance.
    fn frame(&mut self, page: &mut Vec<u8>) -> Result<()> {
        const CONTENT_SIZE: u8 = 0b1000;
        const CONTENT_CHECKSUM: u8 = 0b0100;
        const BLOCK_CHECKSUMS: u8 = 0b1_0000;
        let page_size = self.header.page_size.bytes();
        self.compressed.clear();
        self.take(6)?;
        let flags = self.compressed[4];
        self.take(if flags & CONTENT_SIZE == 0 { 1 } else { 9 })?;
        loop {
            let at = self.compressed.len();
            self.take(4)?;
            let word: [u8; 4] = self.compressed[at..].try_into().unwrap_or_default();
            let len = u32::from_le_bytes(word) & (u32::MAX >> 1);
            if len == 0 {
                break;
            }
            let checksum = if flags & BLOCK_CHECKSUMS == 0 { 0 } else { 4 };
            if self.compressed.len() + len as usize > 2 * page_size + 1024 {
                return Err(damaged("a page is compressed to more than it can be"));
            }
            self.take(len as usize + checksum)?;
        }
        self.take(if flags & CONTENT_CHECKSUM == 0 { 0 } else { 4 })?;
        page.clear();
        lz4::decompress(self.compressed.as_slice(), page_size as u64, page)
    }

    /// Appends so many bytes of the file to `compressed`.
    fn take(&mut self, bytes: usize) -> Result<()> {
        let at = self.compressed.len();
        self.compressed.resize(at + bytes, 0);
        read_all(&mut self.reader, &mut self.compressed[at..])
    }

    /// Page index and trailer.
    fn end(&mut self) -> Result<()> {
        let header = self.header;
        if header.is_snapshot() && self.pages != header.content_pages() {
            let (has, needs) = (self.pages, header.content_pages());
            return Err(damaged(&format!("a snapshot of {needs} pages has only {has} of them")));
        }
        let (mut bytes, mut entries) = (0, 0);
        while self.varint(&mut bytes)? != 0 {
            self.varint(&mut bytes)?;
            self.varint(&mut bytes)?;
            entries += 1;
            if entries > self.pages {
                break;
            }
        }
        if entries != self.pages || u64::from_be_bytes(self.hashed()?) != bytes {
            return Err(damaged("its page index is not of its pages"));
        }
        let post_apply = u64::from_be_bytes(self.hashed()?);
        if header.has_checksums != (post_apply & CHECKSUM_FLAG != 0) {
            return Err(damaged("the database's checksum does not have the form it must have"));
        }
        let expected = u64::from_be_bytes(read_array(&mut self.reader)?);
        if self.crc.value() | CHECKSUM_FLAG != expected {
            return Err(damaged("it does not match its checksum"));
        }
        let mut rest = [0];
        if self.reader.read(&mut rest)? != 0 {
            return Err(damaged("it goes on after its end"));
        }
        self.post_apply = header.has_checksums.then_some(post_apply);
        Ok(())
    }

    fn varint(&mut self, bytes: &mut u64) -> Result<u64> {
        let mut value = 0;
        for shift in (0..64).step_by(7) {
            let [byte] = self.hashed()?;
            *bytes += 1;
            value |= u64::from(byte & 0x7f) << shift;
            if byte < 0x80 {
                return Ok(value);
            }
        }
        Err(damaged("its page index has a number that is too large"))
    }

    fn hashed<const N: usize>(&mut self) -> Result<[u8; N]> {
        let bytes = read_array(&mut self.reader)?;
        self.crc.update(&bytes);
        Ok(bytes)
    }
}

fn damaged(how: &str) -> Error {
    Error::corrupt(format!("LTX file: {how}"))
}

fn read_array<const N: usize>(reader: &mut impl Read) -> Result<[u8; N]> {
    let mut bytes = [0; N];
    read_all(reader, &mut bytes)?;
    Ok(bytes)
}

fn read_all(reader: &mut impl Read, bytes: &mut [u8]) -> Result<()> {
    match reader.read_exact(bytes) {
        Err(error) if error.kind() == Io::UnexpectedEof && error.get_ref().is_none() => {
            Err(damaged("it is cut short"))
        }
        other => other.context(|| "LTX file".to_owned()),
    }
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    bytes.get(at..at + 4).and_then(|part| part.try_into().ok()).map_or(0, u32::from_be_bytes)
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    bytes.get(at..at + 8).and_then(|part| part.try_into().ok()).map_or(0, u64::from_be_bytes)
}

#[cfg(test)]
mod tests;
