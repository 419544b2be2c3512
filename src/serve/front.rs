//! The outside of the server: one thread that accepts connections and moves them along.
//!
//! It never blocks but in `poll`. Connections without a whole request cost a descriptor and a few
//! bytes each and no thread; when there are too many, the one that has been silent longest goes
//! first, so strangers that connect and say nothing keep nobody out. Out of descriptors it stops
//! accepting for a while, and goes on.

use std::io::{self, IoSlice, Read};
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::Shared;
use super::address::Listener;
use super::channel::Channel;
use super::conn::{Conn, Next};
use super::reply::Reply;
use super::socket::{Peer, Socket, is_out_of_resources, is_transient};
use crate::fault;
use crate::registry::{self, Level};

/// Connections accepted in a row before the others get their turn.
const ACCEPTS: usize = 64;
/// How long to stop accepting after a failure, at first and at most.
const PAUSE: Duration = Duration::from_millis(50);
const PAUSE_MAX: Duration = Duration::from_secs(1);
/// How soon to step a connection that waits for the router's socket.
const QUEUED: Duration = Duration::from_millis(5);

/// The accept thread's state.
pub(crate) struct Front {
    shared: Arc<Shared>,
    listeners: Vec<Listener>,
    /// Readable when something is to be looked at; at its end, when the server stops.
    wake: UnixStream,
    conns: Vec<Conn>,
    made: u64,
    pause: Duration,
    paused_until: Option<Instant>,
}

impl Front {
    /// A front of these listeners, which stops when the other end of `wake` is closed.
    pub(crate) fn new(shared: Arc<Shared>, listeners: Vec<Listener>, wake: UnixStream) -> Self {
        Front {
            shared,
            listeners,
            wake,
            conns: Vec::new(),
            made: 0,
            pause: PAUSE,
            paused_until: None,
        }
    }

    /// Serves until it is stopped, then drops every connection that is not a stream.
    pub(crate) fn run(mut self) {
        while self.turn() {}
    }

    /// One turn; false at the end.
    fn turn(&mut self) -> bool {
        let now = Instant::now();
        if self.paused_until.is_some_and(|until| until <= now) {
            self.paused_until = None;
        }
        let (ready, accepts, woken) = self.wait(now);
        if woken && self.is_stopped() {
            return false;
        }
        let now = Instant::now();
        let conns = std::mem::take(&mut self.conns);
        for (at, conn) in conns.into_iter().enumerate() {
            let ready = ready.get(at).copied().unwrap_or(false);
            self.advance(conn, ready, now);
        }
        for at in accepts {
            self.accept(at, now);
        }
        true
    }

    /// Sleeps until something is due: which connections can get on, which listeners have somebody,
    /// and whether we were woken.
    fn wait(&self, now: Instant) -> (Vec<bool>, Vec<usize>, bool) {
        let listeners: &[Listener] =
            if self.paused_until.is_some() { &[] } else { self.listeners.as_slice() };
        let mut polled = vec![PollFd::new(&self.wake, PollFlags::IN)];
        polled.extend(listeners.iter().map(|listener| match listener {
            Listener::Tcp(socket) => PollFd::from_borrowed_fd(socket.as_fd(), PollFlags::IN),
            Listener::Unix(socket) => PollFd::from_borrowed_fd(socket.as_fd(), PollFlags::IN),
        }));
        let mut due = self.paused_until;
        let mut owners = Vec::with_capacity(self.conns.len());
        for (at, conn) in self.conns.iter().enumerate() {
            let until = if conn.is_queued() { now + QUEUED } else { conn.deadline() };
            due = Some(due.map_or(until, |due| due.min(until)));
            if let Some((fd, flags)) = conn.interest() {
                owners.push(at);
                polled.push(PollFd::from_borrowed_fd(fd, flags));
            }
        }
        let timeout = due.map(|due| timespec(due.saturating_duration_since(now)));
        // The only failures are a signal (blocked here) and no memory: then look at everything.
        let all = poll(&mut polled, timeout.as_ref()).is_err();
        let hit = |polled: &PollFd<'_>| all || !polled.revents().is_empty();
        let mut ready: Vec<bool> = self.conns.iter().map(Conn::is_queued).collect();
        for (owner, polled) in owners.iter().zip(polled.iter().skip(1 + listeners.len())) {
            if let Some(ready) = ready.get_mut(*owner) {
                *ready |= hit(polled);
            }
        }
        let accepts = (0..listeners.len()).filter(|at| polled.get(1 + at).is_some_and(hit));
        (ready, accepts.collect(), polled.first().is_some_and(hit))
    }

    /// Whether the other end of `wake` is closed.
    fn is_stopped(&self) -> bool {
        let mut waste = [0u8; 64];
        match (&self.wake).read(&mut waste) {
            Ok(n) => n == 0,
            Err(error) => !is_transient(&error),
        }
    }

    fn advance(&mut self, mut conn: Conn, ready: bool, now: Instant) {
        let (hub, limits) = (&self.shared.hub, &self.shared.limits);
        let mut next = if ready { conn.step(hub, limits, now) } else { Next::Stay };
        if matches!(next, Next::Stay) && conn.deadline() <= now {
            next = conn.expire(hub, limits, now);
        }
        match next {
            Next::Stay => self.conns.push(conn),
            Next::Close => {}
            Next::Stream(request) => {
                let (channel, peer) = conn.into_channel();
                self.shared.begin_stream(channel, peer, request);
            }
        }
    }

    fn accept(&mut self, at: usize, now: Instant) {
        for _ in 0..ACCEPTS {
            let ready = fault::at("serve/accept");
            let accepted = match self.listeners.get(at) {
                Some(Listener::Tcp(listener)) => ready
                    .and_then(|()| listener.accept())
                    .and_then(|(stream, peer)| Ok((Socket::tcp(stream)?, Peer::Tcp(peer)))),
                Some(Listener::Unix(listener)) => ready
                    .and_then(|()| listener.accept())
                    .and_then(|(stream, _)| Ok((Socket::unix(stream)?, Peer::Unix))),
                None => return,
            };
            match accepted {
                Ok((socket, peer)) => {
                    self.pause = PAUSE;
                    self.admit(socket, peer, now);
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                Err(error) if is_out_of_resources(&error) => {
                    if self.pause == PAUSE {
                        let text = format!("cannot accept connections: {error}; trying again");
                        registry::log(Level::Warn, Path::new(""), &text);
                    }
                    self.paused_until = Some(now + self.pause);
                    self.pause = (self.pause * 2).min(PAUSE_MAX);
                    return;
                }
                Err(_) => {} // that one connection is gone already
            }
        }
    }

    fn admit(&mut self, socket: Socket, peer: Peer, now: Instant) {
        let limits = self.shared.limits;
        if self.conns.len() + self.shared.streams() >= limits.connections {
            let silent = self.conns.iter().enumerate().filter(|(_, conn)| conn.is_reading());
            match silent.min_by_key(|(_, conn)| conn.deadline()).map(|(at, _)| at) {
                Some(at) => drop(self.conns.remove(at)),
                None if self.shared.tls.is_some() => return,
                None => return turn_away(&socket),
            }
        }
        self.made += 1;
        let session = self.shared.tls.as_ref().map(|identity| identity.begin(now)).transpose();
        match session {
            Ok(session) => {
                let channel = Channel::new(socket, session);
                self.conns.push(Conn::new(self.made, channel, peer, now + limits.head));
            }
            Err(error) => {
                let text = format!("cannot begin a TLS session: {error}");
                registry::log(Level::Error, Path::new(""), &text);
            }
        }
    }
}

/// Too many connections, and all of them busy: says so, if that takes no time.
fn turn_away(socket: &Socket) {
    let reply = Reply::text(503, "Too many connections").with("Retry-After", "1");
    let _ = socket.receive(&mut [0u8; 4096]); // unread bytes would take the answer back
    let _ = socket.send(&[IoSlice::new(&reply.encode(1, false, true))]);
}

fn timespec(wait: Duration) -> Timespec {
    // Rounded up, or a deadline less than a nanosecond away is polled for in circles.
    let wait = wait + Duration::from_micros(1);
    Timespec {
        tv_sec: wait.as_secs().try_into().unwrap_or(i64::MAX),
        tv_nsec: wait.subsec_nanos().into(),
    }
}
