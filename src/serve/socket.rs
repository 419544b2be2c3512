//! A client's socket: TCP or Unix, non-blocking while the front owns it, blocking with a send
//! timeout once a stream does.
//!
//! Writes never raise SIGPIPE: the host has not agreed to die of a reader that left.

use std::io::{self, IoSlice, Read};
use std::net::{IpAddr, Shutdown, SocketAddr, TcpStream};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use rustix::net::{SendAncillaryBuffer, SendFlags};
use socket2::{SockRef, TcpKeepalive};

use crate::fault;
use crate::host::fork::Private;

#[cfg(not(target_vendor = "apple"))]
const SEND: SendFlags = SendFlags::NOSIGNAL;
#[cfg(target_vendor = "apple")]
const SEND: SendFlags = SendFlags::empty(); // the standard library sets SO_NOSIGPIPE there

/// Who is at the other end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Peer {
    /// A process on this machine, let in by the permissions of a socket file.
    Unix,
    /// An address.
    Tcp(SocketAddr),
}

impl Peer {
    /// Whether it is on this machine.
    pub(crate) fn is_local(&self) -> bool {
        match self {
            Peer::Unix => true,
            Peer::Tcp(address) => match address.ip() {
                IpAddr::V4(ip) => ip.is_loopback(),
                IpAddr::V6(ip) => {
                    ip.is_loopback() || ip.to_ipv4_mapped().is_some_and(|ip| ip.is_loopback())
                }
            },
        }
    }
}

impl std::fmt::Display for Peer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Peer::Unix => f.write_str("unix"),
            Peer::Tcp(address) => write!(f, "{address}"),
        }
    }
}

/// A connected socket of a client.
#[derive(Debug)]
pub(crate) enum Socket {
    Tcp(Private<TcpStream>),
    Unix(Private<UnixStream>),
}

impl Socket {
    /// Prepares an accepted TCP socket: non-blocking, no delay, keep-alive.
    pub(crate) fn tcp(stream: TcpStream) -> io::Result<Self> {
        let stream = Private::new(stream);
        stream.set_nonblocking(true)?;
        stream.set_nodelay(true)?;
        let keepalive = TcpKeepalive::new()
            .with_time(Duration::from_secs(30))
            .with_interval(Duration::from_secs(10))
            .with_retries(3);
        SockRef::from(&*stream).set_tcp_keepalive(&keepalive)?;
        Ok(Socket::Tcp(stream))
    }

    /// Prepares an accepted Unix socket: non-blocking.
    pub(crate) fn unix(stream: UnixStream) -> io::Result<Self> {
        let stream = Private::new(stream);
        stream.set_nonblocking(true)?;
        Ok(Socket::Unix(stream))
    }

    /// Makes it blocking for a stream: it fails when its peer takes nothing for `timeout`, whether
    /// it is gone or does not read. A write alone would not notice for several times as long:
    /// the system's buffer grows meanwhile.
    pub(crate) fn make_blocking(&self, timeout: Duration) -> io::Result<()> {
        match self {
            Socket::Tcp(stream) => {
                stream.set_nonblocking(false)?;
                stream.set_write_timeout(Some(timeout))?;
                #[cfg(target_os = "linux")]
                SockRef::from(&**stream).set_tcp_user_timeout(Some(timeout))?;
                Ok(())
            }
            Socket::Unix(stream) => {
                stream.set_nonblocking(false)?;
                stream.set_write_timeout(Some(timeout))
            }
        }
    }

    /// Takes that back.
    pub(crate) fn make_nonblocking(&self) -> io::Result<()> {
        match self {
            Socket::Tcp(stream) => stream.set_nonblocking(true),
            Socket::Unix(stream) => stream.set_nonblocking(true),
        }
    }

    /// Sends some of the bytes, and says how many.
    pub(crate) fn send(&self, parts: &[IoSlice<'_>]) -> io::Result<usize> {
        fault::at("serve/send")?;
        send(self.as_fd(), parts)
    }

    /// Receives some bytes; 0 is the end.
    pub(crate) fn receive(&self, buffer: &mut [u8]) -> io::Result<usize> {
        fault::at("serve/receive")?;
        match self {
            Socket::Tcp(stream) => (&**stream).read(buffer),
            Socket::Unix(stream) => (&**stream).read(buffer),
        }
    }

    /// Ends both directions; whoever is blocked in a call on the socket returns.
    pub(crate) fn shutdown(&self, how: Shutdown) {
        // The only error is that it is not connected any more.
        let _ = match self {
            Socket::Tcp(stream) => stream.shutdown(how),
            Socket::Unix(stream) => stream.shutdown(how),
        };
    }
}

impl AsFd for Socket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Socket::Tcp(stream) => stream.as_fd(),
            Socket::Unix(stream) => stream.as_fd(),
        }
    }
}

/// Sends on any socket without raising SIGPIPE.
pub(crate) fn send(socket: BorrowedFd<'_>, parts: &[IoSlice<'_>]) -> io::Result<usize> {
    let sent = rustix::net::sendmsg(socket, parts, &mut SendAncillaryBuffer::default(), SEND)?;
    Ok(sent)
}

/// Whether trying the same call again may work.
pub(crate) fn is_transient(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted)
}

/// Whether a call failed for want of descriptors or memory, which may come back.
pub(crate) fn is_out_of_resources(error: &io::Error) -> bool {
    use rustix::io::Errno;
    let errno = error.raw_os_error().map(Errno::from_raw_os_error);
    matches!(errno, Some(Errno::MFILE | Errno::NFILE | Errno::NOBUFS | Errno::NOMEM))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn local_peers_are_known() {
        for (address, local) in [
            ("127.0.0.1:1", true),
            ("127.8.8.8:1", true),
            ("[::1]:1", true),
            ("[::ffff:127.0.0.1]:1", true),
            ("[::ffff:10.0.0.1]:1", false),
            ("10.0.0.1:1", false),
            ("[fe80::1]:1", false),
        ] {
            assert_eq!(Peer::Tcp(address.parse().unwrap()).is_local(), local, "{address}");
        }
        assert!(Peer::Unix.is_local());
        assert_eq!(Peer::Unix.to_string(), "unix");
    }
}
