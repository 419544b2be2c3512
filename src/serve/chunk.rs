//! The body of a stream: records as HTTP chunks, each sent with as few system calls as there can
//! be.
//!
//! ```text
//! hex(len) CR LF  record  CR LF        one chunk, HTTP/1.1
//! record                               HTTP/1.0: the end of the connection is the end of the body
//! ```
//!
//! Small pieces are gathered; a large one goes out together with what was gathered before it,
//! uncopied.

use std::io::{self, IoSlice, Write};

use super::channel::Channel;

/// Pieces are gathered up to this many bytes.
const GATHER_BYTES: usize = 64 << 10;
/// A piece from this many bytes on is sent from where it is.
const LARGE_BYTES: usize = 16 << 10;

/// Writes chunks to a blocking channel.
pub(crate) struct Sink<'a> {
    channel: &'a mut Channel,
    chunked: bool,
    gathered: Vec<u8>,
    sent: u64,
}

impl<'a> Sink<'a> {
    /// A body that is `chunked`, or not.
    pub(crate) fn new(channel: &'a mut Channel, chunked: bool) -> Self {
        Sink { channel, chunked, gathered: Vec::with_capacity(GATHER_BYTES), sent: 0 }
    }

    /// Sends bytes outside the body.
    pub(crate) fn head(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.put(bytes)?;
        self.send_gathered(&[])
    }

    /// Begins a record of `len` bytes.
    pub(crate) fn begin(&mut self, len: u64) -> io::Result<()> {
        if self.chunked { self.put(format!("{len:x}\r\n").as_bytes()) } else { Ok(()) }
    }

    /// Ends a record and sends what is left of it.
    pub(crate) fn end(&mut self) -> io::Result<()> {
        if self.chunked {
            self.put(b"\r\n")?;
        }
        self.send_gathered(&[])
    }

    /// Ends the body. One that is not ended was broken off.
    pub(crate) fn finish(&mut self) -> io::Result<()> {
        if self.chunked { self.head(b"0\r\n\r\n") } else { Ok(()) }
    }

    /// The next bytes of a record.
    pub(crate) fn put(&mut self, bytes: &[u8]) -> io::Result<()> {
        if bytes.len() >= LARGE_BYTES {
            return self.send_gathered(bytes);
        }
        if self.gathered.len() + bytes.len() > GATHER_BYTES {
            self.send_gathered(&[])?;
        }
        self.gathered.extend_from_slice(bytes);
        Ok(())
    }

    /// Whether the peer has gone; see [`Channel::has_left`].
    pub(crate) fn has_left(&mut self) -> bool {
        self.channel.has_left()
    }

    /// Bytes sent since the last call.
    pub(crate) fn take_sent(&mut self) -> u64 {
        std::mem::take(&mut self.sent)
    }

    fn send_gathered(&mut self, more: &[u8]) -> io::Result<()> {
        let (mut first, mut second) = (self.gathered.as_slice(), more);
        while !first.is_empty() || !second.is_empty() {
            let n = match self.channel.send(&[IoSlice::new(first), IoSlice::new(second)]) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(n) => n,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(error),
            };
            self.sent = self.sent.saturating_add(u64::try_from(n).unwrap_or(0));
            let of_first = n.min(first.len());
            first = first.get(of_first..).unwrap_or_default();
            second = second.get(n - of_first..).unwrap_or_default();
        }
        self.gathered.clear();
        Ok(())
    }
}

impl Write for Sink<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.put(bytes)?;
        Ok(bytes.len())
    }

    /// A record is sent when it ends.
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
