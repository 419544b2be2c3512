//! The socket below HTTP: a transport for ureq whose wait for input can be cut short.
//!
//! ureq's own transport blocks until bytes come. A follower must know when there are none: it then
//! publishes what it has, heals the wal-index, and looks whether it is to stop; an archive must be
//! let go of at once. So:
//!
//! * a wait for input ends with `WouldBlock` after [`Link::set_patience`]; ureq and rustls keep
//!   their state over that error, and the read may be repeated;
//! * [`Link::close`] from any thread shuts the socket down, which ends a wait at once; a connection
//!   that is still being made is given up within [`CLOSED_POLL`].

mod trust;

use std::fmt;
use std::io::{self, Read, Write};
use std::net::{Shutdown, SocketAddr};
use std::os::fd::AsFd;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use socket2::{Domain, SockAddr, Socket, TcpKeepalive, Type};
use ureq::Agent;
use ureq::tls::{RootCerts, TlsConfig};
use ureq::unversioned::resolver::{DefaultResolver, ResolvedSocketAddrs, Resolver};
use ureq::unversioned::transport::{
    Buffers, ConnectionDetails, Connector, LazyBuffers, NextTimeout, RustlsConnector, Transport,
};

use crate::error::lock;
use crate::fault;
use crate::host::fork::Private;

pub use trust::{Roots, complaint, is_lasting, read_roots};

/// How long a connection may take to be made.
pub const CONNECT_MAX: Duration = Duration::from_secs(5);
/// How often the making of a connection looks whether its link was closed.
const CLOSED_POLL: Duration = Duration::from_millis(50);
/// How long a write of a request may block.
const WRITE_MAX: Duration = Duration::from_secs(10);
/// An idle peer that vanished is noticed after `TIME + 3 * INTERVAL`.
const KEEPALIVE_TIME: Duration = Duration::from_secs(10);
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(5);
/// Stands for a wait without end.
const NO_LIMIT: u64 = u64::MAX;

/// What other threads may do to a connection while one reads from it.
#[derive(Debug)]
pub struct Link {
    socket: Mutex<Option<Arc<Private<Socket>>>>,
    closed: AtomicBool,
    patience_us: AtomicU64,
}

impl Link {
    /// No socket yet, and no limit to waits.
    pub fn new() -> Arc<Self> {
        Arc::new(Self {
            socket: Mutex::new(None),
            closed: AtomicBool::new(false),
            patience_us: AtomicU64::new(NO_LIMIT),
        })
    }

    /// Ends whatever waits for the peer, now and from now on.
    pub fn close(&self) {
        self.closed.store(true, Ordering::Release);
        if let Some(socket) = lock(&self.socket).as_ref() {
            // It fails only if the peer was faster.
            let _ = socket.shutdown(Shutdown::Both);
        }
    }

    /// How long the next reads wait for a first byte; `None`: as long as it takes.
    pub fn set_patience(&self, patience: Option<Duration>) {
        let us =
            patience.map_or(NO_LIMIT, |wait| u64::try_from(wait.as_micros()).unwrap_or(NO_LIMIT));
        self.patience_us.store(us, Ordering::Relaxed);
    }

    fn patience(&self) -> Option<Duration> {
        let us = self.patience_us.load(Ordering::Relaxed);
        (us != NO_LIMIT).then(|| Duration::from_micros(us))
    }

    fn adopt(&self, socket: &Arc<Private<Socket>>) -> io::Result<()> {
        *lock(&self.socket) = Some(Arc::clone(socket));
        // Closed before there was a socket to shut down.
        self.check()
    }

    /// Fails once it is closed.
    fn check(&self) -> io::Result<()> {
        if self.closed.load(Ordering::Acquire) {
            return Err(io::Error::new(io::ErrorKind::ConnectionAborted, "stopped"));
        }
        Ok(())
    }
}

/// How to speak to a server: nothing of it is taken from the process's environment.
#[derive(Debug, Default)]
pub struct Line {
    /// A Unix socket to connect to, whatever the URL's host is.
    pub socket: Option<PathBuf>,
    /// The roots to trust instead of the public ones.
    pub roots: Option<Roots>,
    /// Bytes read at once, if not as many as ureq reads by itself.
    pub buffer: Option<usize>,
    /// How long an answer's head may take.
    pub answer_max: Option<Duration>,
    /// How long a request may take with all of its answer.
    pub total_max: Option<Duration>,
}

impl Line {
    /// What makes requests over connections that `link` cuts.
    pub fn agent(self, link: &Arc<Link>) -> Agent {
        let mut tls = TlsConfig::builder();
        if let Some(roots) = self.roots {
            tls = tls.root_certs(RootCerts::Specific(roots));
        }
        let mut config = Agent::config_builder()
            .http_status_as_error(false)
            .max_redirects(0)
            .max_redirects_will_error(false)
            .proxy(None)
            .user_agent(concat!("litestream-extension/", env!("CARGO_PKG_VERSION")))
            .max_idle_connections(1)
            .timeout_resolve(Some(CONNECT_MAX))
            .timeout_connect(Some(CONNECT_MAX))
            .timeout_recv_response(self.answer_max)
            .timeout_global(self.total_max)
            .tls_config(tls.build());
        if let Some(bytes) = self.buffer {
            config = config.input_buffer_size(bytes);
        }
        let is_local = self.socket.is_some();
        let dialer = Dialer { link: Arc::clone(link), socket: self.socket };
        let connector = dialer.chain(RustlsConnector::default());
        if is_local {
            Agent::with_parts(config.build(), connector, NoResolver)
        } else {
            Agent::with_parts(config.build(), connector, DefaultResolver::default())
        }
    }
}

/// Makes the connections of one link.
#[derive(Debug)]
struct Dialer {
    link: Arc<Link>,
    socket: Option<PathBuf>,
}

impl Connector<()> for Dialer {
    type Out = Wire;

    fn connect(
        &self,
        details: &ConnectionDetails,
        _chained: Option<()>,
    ) -> Result<Option<Wire>, ureq::Error> {
        fault::at("transport/connect")?;
        let socket = match &self.socket {
            Some(path) => dial_unix(path, &self.link)?,
            None => dial_tcp(details, &self.link)?,
        };
        let socket = Arc::new(Private::new(socket));
        self.link.adopt(&socket)?;
        let config = details.config;
        let buffers = LazyBuffers::new(config.input_buffer_size(), config.output_buffer_size());
        Ok(Some(Wire { socket, link: Arc::clone(&self.link), buffers }))
    }
}

fn dial_unix(path: &PathBuf, link: &Link) -> io::Result<Socket> {
    let socket = Socket::new(Domain::UNIX, Type::STREAM, None)?;
    let address = SockAddr::unix(path)?;
    let deadline = Instant::now() + CONNECT_MAX;
    socket.set_nonblocking(true)?;
    loop {
        match socket.connect(&address) {
            Ok(()) => break,
            // The server accepts too slowly, and nothing can be polled for.
            Err(error)
                if error.kind() == io::ErrorKind::WouldBlock && Instant::now() < deadline =>
            {
                link.check()?;
                std::thread::sleep(CLOSED_POLL);
            }
            Err(error) => return Err(error),
        }
    }
    socket.set_nonblocking(false)?;
    socket.set_write_timeout(Some(WRITE_MAX))?;
    Ok(socket)
}

fn dial_tcp(details: &ConnectionDetails, link: &Link) -> io::Result<Socket> {
    let mut failure = io::Error::new(io::ErrorKind::NotFound, "the host has no address");
    let deadline = Instant::now() + CONNECT_MAX;
    for address in details.addrs.iter() {
        if Instant::now() >= deadline {
            break;
        }
        match connect_tcp(*address, deadline, link) {
            Ok(socket) => {
                socket.set_tcp_nodelay(true)?;
                socket.set_write_timeout(Some(WRITE_MAX))?;
                let keepalive = TcpKeepalive::new()
                    .with_time(KEEPALIVE_TIME)
                    .with_interval(KEEPALIVE_INTERVAL)
                    .with_retries(3);
                socket.set_tcp_keepalive(&keepalive)?;
                return Ok(socket);
            }
            Err(error) => failure = error,
        }
        link.check()?;
    }
    Err(failure)
}

/// Connects without blocking in `connect`, which nobody could cut short.
fn connect_tcp(address: SocketAddr, deadline: Instant, link: &Link) -> io::Result<Socket> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, None)?;
    socket.set_nonblocking(true)?;
    match socket.connect(&address.into()) {
        Err(error) if error.raw_os_error() == Some(Errno::INPROGRESS.raw_os_error()) => {
            loop {
                link.check()?;
                let left = deadline.saturating_duration_since(Instant::now());
                if left.is_zero() {
                    return Err(io::Error::new(io::ErrorKind::TimedOut, "connection timed out"));
                }
                if wait_ready(&socket, PollFlags::OUT, Some(left.min(CLOSED_POLL)))? {
                    break;
                }
            }
            if let Some(error) = socket.take_error()? {
                return Err(error);
            }
        }
        other => other?,
    }
    socket.set_nonblocking(false)?;
    Ok(socket)
}

/// Resolves nothing: a Unix socket needs no address.
#[derive(Debug)]
struct NoResolver;

impl Resolver for NoResolver {
    fn resolve(
        &self,
        _uri: &ureq::http::Uri,
        _config: &ureq::config::Config,
        _timeout: NextTimeout,
    ) -> Result<ResolvedSocketAddrs, ureq::Error> {
        let mut addresses = self.empty();
        addresses.push(SocketAddr::from(([127, 0, 0, 1], 0)));
        Ok(addresses)
    }
}

/// One connection, as ureq sees it.
pub struct Wire {
    socket: Arc<Private<Socket>>,
    link: Arc<Link>,
    buffers: LazyBuffers,
}

impl fmt::Debug for Wire {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Wire").field("socket", &self.socket).finish_non_exhaustive()
    }
}

impl Transport for Wire {
    fn buffers(&mut self) -> &mut dyn Buffers {
        &mut self.buffers
    }

    fn transmit_output(&mut self, amount: usize, _: NextTimeout) -> Result<(), ureq::Error> {
        let output = &self.buffers.output()[..amount];
        fault::write("transport/write", output, |part| (&**self.socket).write_all(part))?;
        Ok(())
    }

    fn await_input(&mut self, timeout: NextTimeout) -> Result<bool, ureq::Error> {
        let limit = (!timeout.after.is_not_happening()).then(|| *timeout.after);
        let patience = self.link.patience();
        let wait = match (limit, patience) {
            (Some(limit), Some(patience)) => Some(limit.min(patience)),
            (limit, patience) => limit.or(patience),
        };
        if !wait_ready(&self.socket, PollFlags::IN, wait)? {
            return Err(match limit {
                Some(limit) if wait == Some(limit) => ureq::Error::Timeout(timeout.reason),
                _ => io::Error::from(io::ErrorKind::WouldBlock).into(),
            });
        }
        fault::at("transport/read")?;
        let input = self.buffers.input_append_buf();
        let amount = (&**self.socket).read(input)?;
        self.buffers.input_appended(amount);
        Ok(amount > 0)
    }

    /// An idle connection is good for another request if nothing has come unasked for, EOF
    /// included.
    fn is_open(&mut self) -> bool {
        matches!(wait_ready(&self.socket, PollFlags::IN, Some(Duration::ZERO)), Ok(false))
    }
}

/// Whether the socket is ready, after waiting `wait` for that.
fn wait_ready(socket: &Socket, flags: PollFlags, wait: Option<Duration>) -> io::Result<bool> {
    let deadline = wait.map(|wait| Instant::now() + wait);
    loop {
        let left = deadline.map(|at| at.saturating_duration_since(Instant::now()));
        let timeout = left.map(Timespec::try_from).transpose();
        let timeout = timeout.map_err(|_| io::Error::from(io::ErrorKind::InvalidInput))?;
        let mut fds = [PollFd::from_borrowed_fd(socket.as_fd(), flags)];
        match poll(&mut fds, timeout.as_ref()) {
            Ok(0) if left.is_none_or(|left| !left.is_zero()) => {}
            Ok(ready) => return Ok(ready > 0),
            Err(Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
}
