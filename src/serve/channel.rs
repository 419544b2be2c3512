//! A client's connection as bytes of HTTP: the socket, and TLS over it if the server has a
//! certificate.
//!
//! ```text
//! front (non-blocking) --stream granted--> session (blocking, with a send timeout)
//! ```
//!
//! One thread at a time owns a channel; another may shut its socket down. What TLS holds is
//! bounded: [`HANDSHAKE_BYTES_MAX`] from a peer before the handshake is over, one record after it,
//! [`UNSENT_BYTES_MAX`] on the way out. Everything given to [`Channel::send`] is on the socket when
//! the call returns, or waits for [`Channel::flush`]; nothing is gathered.

use std::io::{self, IoSlice, Read, Write};
use std::net::Shutdown;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustls::ServerConnection;

use super::socket::{Socket, is_transient};

/// What a peer may send before it and we have agreed on keys. A greeting has about two kilobytes.
const HANDSHAKE_BYTES_MAX: usize = 16 << 10;
/// Bytes of TLS records that wait to be sent.
const UNSENT_BYTES_MAX: usize = 64 << 10;
/// The kind of error [`Channel::receive`] gives for a peer that speaks HTTP where TLS is spoken;
/// from then on the channel is plain, so that it can be told.
pub(crate) const NOT_TLS: io::ErrorKind = io::ErrorKind::Unsupported;

/// A connection that carries HTTP.
pub(crate) struct Channel {
    socket: Arc<Socket>,
    tls: Option<Box<Tls>>,
    blocking: bool,
}

struct Tls {
    session: ServerConnection,
    /// Decrypted bytes nobody has taken.
    unread: usize,
    /// Bytes received before the handshake was over.
    handshake: usize,
    /// The peer's first byte.
    first: Option<u8>,
}

impl Channel {
    /// Over an accepted, non-blocking socket; through TLS if there is a session.
    pub(crate) fn new(socket: Socket, session: Option<ServerConnection>) -> Self {
        let tls = session.map(|mut session| {
            session.set_buffer_limit(Some(UNSENT_BYTES_MAX));
            Box::new(Tls { session, unread: 0, handshake: 0, first: None })
        });
        Channel { socket: Arc::new(socket), tls, blocking: false }
    }

    /// The socket, for whoever may have to end the connection.
    pub(crate) fn socket(&self) -> &Arc<Socket> {
        &self.socket
    }

    /// Whether what is put on the socket is HTTP itself.
    pub(crate) fn is_plain(&self) -> bool {
        self.tls.is_none()
    }

    /// Makes it blocking; see [`Socket::make_blocking`].
    pub(crate) fn make_blocking(&mut self, timeout: Duration) -> io::Result<()> {
        self.blocking = true;
        self.socket.make_blocking(timeout)
    }

    /// Whether bytes are there that no descriptor tells of.
    pub(crate) fn has_unread(&self) -> bool {
        self.tls.as_ref().is_some_and(|tls| tls.unread > 0)
    }

    /// What to poll for so that [`Channel::receive`] gets on.
    pub(crate) fn interest(&self) -> PollFlags {
        match &self.tls {
            Some(tls) if tls.session.wants_write() => PollFlags::IN | PollFlags::OUT,
            _ => PollFlags::IN,
        }
    }

    /// Receives some bytes; 0 is the end. Only for a channel that does not block.
    pub(crate) fn receive(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let Some(tls) = self.tls.as_mut() else { return self.socket.receive(buffer) };
        // The peer may wait for what did not fit before, and say nothing until it has it.
        match tls.flush(&self.socket) {
            Err(error) if !is_transient(&error) => return Err(error),
            _ => {}
        }
        loop {
            match tls.read(buffer) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                other => return other,
            }
            match tls.fill(&self.socket) {
                Ok(0) => return Ok(0),
                Ok(_) => {}
                Err(error) => {
                    if error.kind() == NOT_TLS {
                        self.tls = None;
                    }
                    return Err(error);
                }
            }
        }
    }

    /// Takes some of the bytes, and says how many. When it does not block, some of them may wait
    /// for [`Channel::flush`].
    pub(crate) fn send(&mut self, parts: &[IoSlice<'_>]) -> io::Result<usize> {
        let Some(tls) = self.tls.as_mut() else { return self.socket.send(parts) };
        tls.flush(&self.socket)?;
        let taken = tls.session.writer().write_vectored(parts)?;
        match tls.flush(&self.socket) {
            Err(error) if self.blocking || !is_transient(&error) => Err(error),
            _ => Ok(taken),
        }
    }

    /// Puts on the socket what waits for it.
    pub(crate) fn flush(&mut self) -> io::Result<()> {
        self.tls.as_mut().map_or(Ok(()), |tls| tls.flush(&self.socket))
    }

    /// Says that nothing more will be sent. Never blocks.
    pub(crate) fn finish(&mut self, how: Shutdown) {
        if let Some(tls) = self.tls.as_mut()
            && (!self.blocking || self.socket.make_nonblocking().is_ok())
        {
            tls.session.send_close_notify();
            let _ = tls.flush(&self.socket); // to a peer that reads
        }
        self.socket.shutdown(how);
    }

    /// Whether the peer has closed its side, or the connection is broken. What it sent is thrown
    /// away: nobody speaks on a stream but the server. Never waits for the peer.
    pub(crate) fn has_left(&mut self) -> bool {
        let mut waste = [0u8; 1024];
        for _ in 0..4 {
            let mut polled = [PollFd::new(&*self.socket, PollFlags::IN)];
            match poll(&mut polled, Some(&Timespec { tv_sec: 0, tv_nsec: 0 })) {
                Ok(0) | Err(_) => return false,
                Ok(_) => {}
            }
            // One read of the socket: there is something for one.
            let received = match self.tls.as_mut() {
                None => self.socket.receive(&mut waste),
                Some(tls) => tls.fill(&self.socket).and_then(|n| match n {
                    0 => Ok(0),
                    _ => tls.discard(),
                }),
            };
            match received {
                Ok(0) => return true,
                Ok(_) => {}
                Err(error) if is_transient(&error) => {}
                Err(_) => return true,
            }
        }
        false
    }
}

impl Tls {
    /// Bytes that have been decrypted; 0 if the peer has said goodbye or is gone.
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self.session.reader().read(buffer) {
            Ok(n) => {
                self.unread = self.unread.saturating_sub(n);
                Ok(n)
            }
            // Cut without a goodbye: a request says itself how long it is.
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Ok(0),
            Err(error) => Err(error),
        }
    }

    /// Throws away what has been decrypted; 0 if the peer has said goodbye.
    fn discard(&mut self) -> io::Result<usize> {
        let mut waste = [0u8; 1024];
        loop {
            match self.read(&mut waste)? {
                0 => return Ok(0),
                _ if self.unread == 0 => return Ok(1),
                _ => {}
            }
        }
    }

    /// Reads the socket once and works on what came; 0 is the end.
    fn fill(&mut self, socket: &Socket) -> io::Result<usize> {
        let is_handshake = self.session.is_handshaking();
        let n = self.session.read_tls(&mut Raw { socket, first: &mut self.first })?;
        if is_handshake {
            self.handshake += n;
            if self.handshake > HANDSHAKE_BYTES_MAX {
                return Err(io::Error::new(io::ErrorKind::InvalidData, "handshake too long"));
            }
        }
        match self.session.process_new_packets() {
            Ok(state) => self.unread = state.plaintext_bytes_to_read(),
            // A method's letter is no TLS record.
            Err(_) if is_handshake && self.first.is_some_and(|byte| byte.is_ascii_uppercase()) => {
                return Err(io::Error::new(NOT_TLS, "not TLS"));
            }
            Err(error) => {
                let _ = self.flush(socket); // an alert that says why
                return Err(io::Error::new(io::ErrorKind::InvalidData, error));
            }
        }
        match self.flush(socket) {
            Err(error) if !is_transient(&error) => Err(error),
            _ => Ok(n),
        }
    }

    fn flush(&mut self, socket: &Socket) -> io::Result<()> {
        while self.session.wants_write() {
            match self.session.write_tls(&mut Raw { socket, first: &mut None }) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }
}

impl AsFd for Channel {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

/// The socket as rustls wants it, which also notes the first byte that comes.
struct Raw<'a> {
    socket: &'a Socket,
    first: &'a mut Option<u8>,
}

impl Read for Raw<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let n = self.socket.receive(buffer)?;
        *self.first = self.first.or(buffer.first().copied().filter(|_| n > 0));
        Ok(n)
    }
}

impl Write for Raw<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.socket.send(&[IoSlice::new(bytes)])
    }

    fn write_vectored(&mut self, parts: &[IoSlice<'_>]) -> io::Result<usize> {
        self.socket.send(parts)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixStream;

    use super::*;

    #[test]
    fn a_peer_that_left_is_noticed() {
        let (here, mut there) = UnixStream::pair().unwrap();
        let mut here = Channel::new(Socket::unix(here).unwrap(), None);
        assert!(!here.has_left());
        there.write_all(b"noise").unwrap();
        assert!(!here.has_left());
        drop(there);
        assert!(here.has_left());
        assert!(here.send(&[IoSlice::new(b"x")]).is_err());
    }
}
