//! An open stream of records, read in bounded pieces, wherever its bytes come from.
//!
//! | source    | module     | a payload's size                                                       |
//! |-----------|------------|------------------------------------------------------------------------|
//! | a server  | client.rs  | is in its record's header                                              |
//! | an archive| archive.rs | may be [`UNSIZED`]: then it comes in pieces, as below                  |
//!
//! A piece is a length (4 bytes, big-endian) and so many bytes; a length of 0 ends the payload. An
//! object that is decrypted on the way has no size before its end. No server may send that.

use std::io::{self, Read};
use std::time::{Duration, Instant};

use crate::error::{Error, ErrorKind, Result};
use crate::wal::PageSize;

/// Bytes of stream held at once. A few hundred small records; a large record passes through.
pub const BUFFER_BYTES: usize = 256 << 10;
/// A record from a server, once begun, may pause this long.
pub const STALL_MAX: Duration = Duration::from_secs(10);
/// The size in the header of a record whose payload comes in pieces.
pub const UNSIZED: u64 = i64::MAX as u64;

/// Where bytes come from.
pub trait Body: Send {
    /// Waits at most `wait` for bytes: how many there are now, 0 at the end, none if none came.
    fn read(&mut self, out: &mut [u8], wait: Duration) -> Result<Option<usize>>;
}

/// Whether bytes of the stream are at hand.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Filled {
    /// More than before.
    More,
    /// None came in the time given, or the buffer is full.
    Dry,
    /// None will come any more.
    End,
}

/// What a source says before its first record.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Manners {
    /// The page size of the upstream's database.
    pub page_size: PageSize,
    /// Whether it sends heartbeats.
    pub beats: bool,
    /// Whether it takes acknowledgements.
    pub takes_acks: bool,
    /// Whether it does not continue where it was asked to, but sends a snapshot: what this follower
    /// holds may be of a history that is no more.
    pub starts_over: bool,
}

/// An open stream of records.
pub struct Stream {
    body: Box<dyn Body>,
    manners: Manners,
    /// How long a record may pause; none: its source always comes to an end by itself, and payloads
    /// may be [`UNSIZED`].
    stall: Option<Duration>,
    buffer: Box<[u8]>,
    start: usize,
    end: usize,
}

impl Stream {
    /// Reads from `body`. `stall`: how long it may pause within a record; none: it is one of ours.
    pub fn new(body: Box<dyn Body>, manners: Manners, stall: Option<Duration>) -> Self {
        let buffer = vec![0; BUFFER_BYTES].into_boxed_slice();
        Self { body, manners, stall, buffer, start: 0, end: 0 }
    }

    /// What the source said of itself.
    pub fn manners(&self) -> Manners {
        self.manners
    }

    /// Whether the source comes to an end by itself, without being watched.
    pub fn is_local(&self) -> bool {
        self.stall.is_none()
    }

    /// What has arrived and was not read yet, or as much of it as the buffer holds.
    pub fn buffered(&self) -> &[u8] {
        &self.buffer[self.start..self.end]
    }

    /// Whether the buffer cannot hold more before something is read.
    pub fn is_full(&self) -> bool {
        self.end - self.start == self.buffer.len()
    }

    /// Waits at most `wait` for more bytes to be buffered.
    pub fn fill(&mut self, wait: Duration) -> Result<Filled> {
        if self.start > 0 {
            self.buffer.copy_within(self.start..self.end, 0);
            self.end -= self.start;
            self.start = 0;
        }
        if self.end == self.buffer.len() {
            return Ok(Filled::Dry);
        }
        match self.body.read(&mut self.buffer[self.end..], wait)? {
            Some(0) => Ok(Filled::End),
            Some(n) => {
                self.end += n;
                Ok(Filled::More)
            }
            None => Ok(Filled::Dry),
        }
    }

    /// The payload of a record whose header says it has `size` bytes.
    pub fn payload(&mut self, size: u64) -> Payload<'_> {
        let is_unsized = size == UNSIZED && self.is_local();
        Payload { left: if is_unsized { 0 } else { size }, more: is_unsized, stream: self }
    }
}

/// Reads what has been begun: waits for bytes as long as the peer may pause within a record.
impl Read for Stream {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        if self.start == self.end {
            let deadline = self.stall.map(|stall| Instant::now() + stall);
            loop {
                let left =
                    deadline.map_or(STALL_MAX, |at| at.saturating_duration_since(Instant::now()));
                match self.fill(left)? {
                    Filled::More => break,
                    Filled::End => return Ok(0),
                    Filled::Dry if left.is_zero() => {
                        let text = "the upstream stopped in the middle of a record";
                        return Err(Error::new(ErrorKind::Timeout, text).into());
                    }
                    Filled::Dry => {}
                }
            }
        }
        let amount = out.len().min(self.end - self.start);
        out[..amount].copy_from_slice(&self.buffer[self.start..self.start + amount]);
        self.start += amount;
        Ok(amount)
    }
}

/// The payload of one record.
pub struct Payload<'a> {
    stream: &'a mut Stream,
    /// Of the record, or of the piece.
    left: u64,
    /// Another piece follows.
    more: bool,
}

impl Payload<'_> {
    /// Fails unless it was read to its end.
    pub fn finish(self) -> Result<()> {
        match (self.left, self.more) {
            (0, false) => Ok(()),
            (left, false) => Err(Error::peer(format!("a record has {left} bytes too many"))),
            (_, true) => Err(Error::peer("a record has bytes too many")),
        }
    }
}

impl Read for Payload<'_> {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        if self.left == 0 && self.more && !out.is_empty() {
            let mut length = [0; 4];
            self.stream.read_exact(&mut length)?;
            self.left = u64::from(u32::from_be_bytes(length));
            self.more = self.left > 0;
        }
        if self.left == 0 || out.is_empty() {
            return Ok(0);
        }
        let room = usize::try_from(self.left).unwrap_or(usize::MAX).min(out.len());
        let read = self.stream.read(&mut out[..room])?;
        if read == 0 && self.more {
            return Err(Error::peer("the archive's stream ended in the middle of a record").into());
        }
        self.left -= read as u64;
        Ok(read)
    }
}

/// Fills `unit`; false if there is nothing left, an error if there is less.
pub(super) fn read_unit(from: &mut impl Read, unit: &mut [u8]) -> Result<bool> {
    let mut done = 0;
    while let Some(rest) = unit.get_mut(done..).filter(|rest| !rest.is_empty()) {
        match from.read(rest).map_err(cut_short("a page"))? {
            0 if done == 0 => return Ok(false),
            0 => return Err(ends_within("a page")),
            n => done += n,
        }
    }
    Ok(true)
}

/// What would be damage in a file of ours is the peer's fault in its stream. `unit` is what was
/// being read: the record may end in the middle of it.
pub(super) fn cut_short(unit: &str) -> impl Fn(io::Error) -> Error {
    move |error| {
        // Only who reads exactly so many bytes says it so: other ends have words of their own.
        if error.kind() == io::ErrorKind::UnexpectedEof && error.get_ref().is_none() {
            return ends_within(unit);
        }
        let error = Error::from(error);
        match error.kind() {
            ErrorKind::Corrupt => Error::peer(error.to_string()),
            ErrorKind::Io => Error::peer(format!("a record is cut short: {error}")),
            _ => error,
        }
    }
}

fn ends_within(unit: &str) -> Error {
    Error::peer(format!("a record ends in the middle of {unit}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Hands out bytes in pieces of odd sizes.
    struct Bytes(Vec<u8>);

    impl Body for Bytes {
        fn read(&mut self, out: &mut [u8], _: Duration) -> Result<Option<usize>> {
            let amount = out.len().min(self.0.len()).min(7);
            let rest = self.0.split_off(amount);
            out[..amount].copy_from_slice(&self.0);
            self.0 = rest;
            Ok(Some(amount))
        }
    }

    fn stream(bytes: &[u8], stall: Option<Duration>) -> Stream {
        let page_size = PageSize::MIN;
        let manners = Manners { page_size, beats: true, takes_acks: false, starts_over: false };
        Stream::new(Box::new(Bytes(bytes.to_vec())), manners, stall)
    }

    #[test]
    fn payloads_end_where_they_should() {
        let pieces = b"\0\0\0\x0ahello, wor\0\0\0\x02ld\0\0\0\0next";
        let mut ours = stream(pieces, None);
        let mut text = String::new();
        let mut payload = ours.payload(UNSIZED);
        payload.read_to_string(&mut text).unwrap();
        payload.finish().unwrap();
        assert_eq!(text, "hello, world");
        let mut rest = [0; 4];
        ours.read_exact(&mut rest).unwrap();
        assert_eq!(&rest, b"next");
        // Not read to its end, and cut off.
        let mut ours = stream(pieces, None);
        let mut payload = ours.payload(UNSIZED);
        payload.read_exact(&mut [0; 12]).unwrap();
        assert!(payload.finish().is_err());
        let mut ours = stream(&pieces[..9], None);
        assert!(ours.payload(UNSIZED).read_to_end(&mut Vec::new()).is_err());
        // A server's payload has a size, whatever it is.
        let mut theirs = stream(b"12345", Some(STALL_MAX));
        let mut payload = theirs.payload(3);
        payload.read_exact(&mut [0; 2]).unwrap();
        assert!(payload.finish().is_err());
        let mut theirs = stream(b"\0\0\0\x01abc", Some(STALL_MAX));
        let mut bytes = Vec::new();
        theirs.payload(UNSIZED).read_to_end(&mut bytes).unwrap();
        assert_eq!(bytes, b"\0\0\0\x01abc");
    }
}
