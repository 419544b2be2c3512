//! The inside of the server: tiny_http behind a private Unix socket, and the thread that answers.
//!
//! ```text
//! client == front (limits) -- one connection a request --> tiny_http (parses) --> router thread
//! ```
//!
//! tiny_http knows no time-outs and no limits, and its accept loop ends for good at the first
//! failed accept (or panics in it, out of descriptors). So only the front speaks to it, with small
//! requests that are already whole, and when a connection is refused the router makes a new one.
//!
//! The socket lives in a folder of mode 0700. On Linux its name is removed at once and it is
//! reached through an open descriptor, so that neither a kill nor a cleaner of temporary files
//! matters.

use std::collections::HashMap;
use std::fs;
use std::hash::{BuildHasher, RandomState};
use std::io::{self, Write};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::Duration;

use socket2::{Domain, SockAddr, Socket, Type};

use super::Shared;
use super::head::CONNECTION_HEADER;
use super::reply::Reply;
use super::routes::{self, Answer, Asked, StreamRequest};
use super::socket::{Peer, is_out_of_resources, is_transient};
use crate::error::lock;
use crate::fault;
use crate::registry::{self, Level};

/// How long to wait before trying again to make the inner server.
const RETRY: Duration = Duration::from_millis(200);

/// What the front knows about a request that is with the router, and what came of it.
#[derive(Debug)]
pub(crate) struct Ticket {
    /// Who asks.
    pub(crate) peer: Peer,
    /// It speaks HTTP/1.`minor`.
    pub(crate) minor: u8,
    /// Its connection closes after the answer.
    pub(crate) close: bool,
    /// What the router has made of it; not set if its request was lost with the inner server.
    pub(crate) outcome: Option<Outcome>,
}

/// What the router did with a request.
#[derive(Debug)]
pub(crate) enum Outcome {
    /// It wrote an answer.
    Answered,
    /// It granted a stream; what it wrote does not matter.
    Granted(StreamRequest),
}

/// Where the front and the router meet.
#[derive(Default)]
pub(crate) struct Hub {
    tickets: Mutex<HashMap<u64, Ticket>>,
    inner: Mutex<Option<Arc<Inner>>>,
    stopping: AtomicBool,
    stopped: Mutex<()>,
    wake: Condvar,
}

/// One tiny_http server.
struct Inner {
    server: Option<tiny_http::Server>,
    name: Name,
}

impl Hub {
    /// Opens a non-blocking connection to the router for the request with this number. After an
    /// error it may be tried again soon: the inner server is busy, or gone and being replaced.
    pub(crate) fn connect(&self, connection: u64, ticket: Ticket) -> io::Result<UnixStream> {
        let inner = lock(&self.inner).clone();
        let Some(inner) = inner else { return Err(io::ErrorKind::WouldBlock.into()) };
        match inner.name.connect() {
            Ok(link) => {
                lock(&self.tickets).insert(connection, ticket);
                Ok(link)
            }
            Err(error) => {
                if !is_transient(&error) && !is_out_of_resources(&error) {
                    inner.unblock();
                }
                Err(error)
            }
        }
    }

    /// Ends a request: what came of it.
    pub(crate) fn collect(&self, connection: u64) -> Option<Outcome> {
        lock(&self.tickets).remove(&connection).and_then(|ticket| ticket.outcome)
    }

    /// The inner server did not answer in time: has it replaced.
    pub(crate) fn distrust(&self) {
        if let Some(inner) = lock(&self.inner).as_ref() {
            inner.unblock();
        }
    }

    /// Ends [`Hub::run`].
    pub(crate) fn stop(&self) {
        self.stopping.store(true, Ordering::Release);
        drop(lock(&self.stopped));
        self.wake.notify_all();
        self.distrust();
    }

    /// Answers requests until [`Hub::stop`]. tiny_http's threads are born here, so they block the
    /// signals this thread blocks.
    pub(crate) fn run(&self, shared: &Shared) {
        let mut complained = false;
        while !self.stopping.load(Ordering::Acquire) {
            match Inner::start() {
                Ok(inner) => {
                    complained = false;
                    let inner = Arc::new(inner);
                    *lock(&self.inner) = Some(Arc::clone(&inner));
                    // A stop that came while there was none has unblocked nobody.
                    if !self.stopping.load(Ordering::Acquire) {
                        self.answer_all(&inner, shared);
                    }
                    lock(&self.inner).take();
                }
                Err(error) => {
                    if !std::mem::replace(&mut complained, true) {
                        let text = format!("cannot answer HTTP requests: {error}; trying again");
                        registry::log(Level::Error, Path::new(""), &text);
                    }
                    let stopped = lock(&self.stopped);
                    if !self.stopping.load(Ordering::Acquire) {
                        let waited = self.wake.wait_timeout(stopped, RETRY);
                        drop(waited.unwrap_or_else(PoisonError::into_inner));
                    }
                }
            }
        }
    }

    fn answer_all(&self, inner: &Inner, shared: &Shared) {
        let Some(server) = inner.server.as_ref() else { return };
        while let Ok(request) = server.recv() {
            self.answer(request, shared);
            if self.stopping.load(Ordering::Acquire) {
                return;
            }
        }
    }

    fn answer(&self, request: tiny_http::Request, shared: &Shared) {
        let header = |name: &str| {
            let mut headers = request.headers().iter();
            let found =
                headers.find(|header| header.field.as_str().as_str().eq_ignore_ascii_case(name));
            found.map(|header| header.value.as_str())
        };
        let connection = header(CONNECTION_HEADER).and_then(|number| number.parse::<u64>().ok());
        let facts = connection.and_then(|connection| {
            let tickets = lock(&self.tickets);
            tickets
                .get(&connection)
                .map(|ticket| (connection, ticket.peer, ticket.minor, ticket.close))
        });
        // Nobody but the front gets here; its client may have gone meanwhile.
        let Some((connection, peer, minor, close)) = facts else { return };
        let method = request.method().as_str();
        let asked = Asked {
            method,
            target: request.url(),
            peer,
            minor,
            authorization: header("Authorization"),
            host: header("Host"),
        };
        let (reply, outcome) = match routes::answer(shared, &asked) {
            Answer::Reply(reply) => (reply, Outcome::Answered),
            Answer::Stream(stream) => (Reply::empty(200), Outcome::Granted(stream)),
        };
        if let Some(ticket) = lock(&self.tickets).get_mut(&connection) {
            ticket.outcome = Some(outcome);
        }
        let bytes = reply.encode(minor, method == "HEAD", close);
        let mut writer = request.into_writer();
        // The front has given up on it, or it has not and finds an answer cut short.
        let _ = writer.write_all(&bytes).and_then(|()| writer.flush());
    }
}

impl Inner {
    fn start() -> io::Result<Self> {
        let (listener, name) = Name::listen()?;
        let server = tiny_http::Server::from_listener(listener, None).map_err(io::Error::other)?;
        Ok(Inner { server: Some(server), name })
    }

    fn unblock(&self) {
        if let Some(server) = self.server.as_ref() {
            server.unblock();
        }
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        self.server.take();
        // Its accept loop looks at the flag just set only after one more connection, and it could
        // not make that one itself when the name is gone.
        let _ = self.name.connect();
    }
}

/// How to reach the inner server's socket.
struct Name {
    path: PathBuf,
    /// The socket's inode, held open, when `path` leads through it.
    _inode: Option<OwnedFd>,
    /// What is to be removed in the end.
    dir: Option<PathBuf>,
}

impl Name {
    /// Listens in a new private folder below the first place that allows it.
    fn listen() -> io::Result<(UnixListener, Self)> {
        let mut last = io::Error::from(io::ErrorKind::NotFound);
        let places = [std::env::temp_dir(), "/tmp".into(), "/dev/shm".into(), "/var/tmp".into()];
        for place in places {
            match Self::listen_below(&place) {
                Ok(made) => return Ok(made),
                Err(error) => last = error,
            }
        }
        Err(last)
    }

    fn listen_below(place: &Path) -> io::Result<(UnixListener, Self)> {
        let random = RandomState::new().hash_one(std::process::id());
        let dir = place.join(format!("litestream-{random:016x}"));
        fault::at("serve/inner/listen")?;
        fs::DirBuilder::new().mode(0o700).create(&dir)?;
        let path = dir.join("http");
        let mut name = Name { path: path.clone(), _inode: None, dir: Some(dir) };
        let listener = UnixListener::bind(&path)?;
        // The folder guards it; this way it still works for a host that changes its user later.
        fs::set_permissions(&path, fs::Permissions::from_mode(0o666))?;
        name.hide();
        Ok((listener, name))
    }

    /// Removes folder and name if the socket can be reached without them.
    fn hide(&mut self) {
        #[cfg(target_os = "linux")]
        {
            use rustix::fs::{Mode, OFlags};
            let flags = OFlags::PATH | OFlags::CLOEXEC;
            let Ok(inode) = rustix::fs::open(&self.path, flags, Mode::empty()) else { return };
            let through = PathBuf::from(format!("/proc/self/fd/{}", inode.as_raw_fd()));
            let hidden = Name { path: through, _inode: Some(inode), dir: None };
            if hidden.connect().is_ok() {
                drop(std::mem::replace(self, hidden));
            }
        }
    }

    fn connect(&self) -> io::Result<UnixStream> {
        fault::at("serve/inner/connect")?;
        let socket = Socket::new(Domain::UNIX, Type::STREAM, None)?;
        socket.set_nonblocking(true)?;
        socket.connect(&SockAddr::unix(&self.path)?)?;
        Ok(OwnedFd::from(socket).into())
    }
}

impl Drop for Name {
    fn drop(&mut self) {
        if let Some(dir) = self.dir.take() {
            let _ = fs::remove_file(&self.path);
            let _ = fs::remove_dir(&dir);
        }
    }
}
