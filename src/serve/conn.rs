//! One client connection between accept and the answer; never blocks.
//!
//! ```text
//!          whole request           answer read to its end           all sent, keep
//! Reading ---------------> Asking ------------------------> Answering ------> Reading
//!    |  refusal               |  granted                        |  all sent, close
//!    +--> Answering           +--> leaves as a stream           +--> Draining --> closed
//! ```
//!
//! Every state has a deadline, every buffer a bound. A whole request has one deadline, from accept
//! (or, on a connection that is used again, from its first byte) to its last byte: handshake, head
//! and body share it. Draining reads what the client may still be
//! sending, so that the kernel does not take the answer back.

use std::io::{self, IoSlice, Read};
use std::net::Shutdown;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use rustix::event::PollFlags;

use super::channel::{Channel, NOT_TLS};
use super::head::{BODY_BYTES_MAX, HEAD_BYTES_MAX, Head, read_head};
use super::hub::{Hub, Outcome, Ticket};
use super::limits::Limits;
use super::reply::Reply;
use super::routes::StreamRequest;
use super::socket::{Peer, is_transient, send};

/// Bytes read at once.
const READ_BYTES: usize = 16 << 10;
/// The longest answer passed on.
const ANSWER_BYTES_MAX: usize = 8 << 20;
/// What a closing connection may still send before it is cut.
const DRAIN_BYTES: usize = 256 << 10;
/// How long a closing connection may take.
const DRAIN: Duration = Duration::from_secs(1);

/// A client's connection.
pub(crate) struct Conn {
    id: u64,
    channel: Channel,
    peer: Peer,
    state: State,
    deadline: Instant,
    /// Whether `deadline` is that of a request, and not that of a pause between two.
    is_timed: bool,
    /// What the client has sent and nobody has used.
    inbox: Vec<u8>,
    /// The head at the start of `inbox` and its length, while its body is awaited.
    head: Option<(Head, usize)>,
}

enum State {
    Reading,
    Asking(Asking),
    Answering { out: Vec<u8>, sent: usize, close: bool },
    Draining { left: usize },
}

/// A request that is with the router.
struct Asking {
    link: Option<UnixStream>,
    request: Vec<u8>,
    sent: usize,
    answer: Vec<u8>,
    minor: u8,
    close: bool,
    head_only: bool,
}

/// What becomes of a connection.
pub(crate) enum Next {
    /// It goes on.
    Stay,
    /// It is over.
    Close,
    /// It leaves the front as a stream.
    Stream(StreamRequest),
}

impl Conn {
    pub(crate) fn new(id: u64, channel: Channel, peer: Peer, deadline: Instant) -> Self {
        let (inbox, head) = (Vec::new(), None);
        Conn { id, channel, peer, state: State::Reading, deadline, is_timed: true, inbox, head }
    }

    /// When it must have got on, at the latest.
    pub(crate) fn deadline(&self) -> Instant {
        self.deadline
    }

    /// Whether the client has not sent a whole request, or nothing at all.
    pub(crate) fn is_reading(&self) -> bool {
        matches!(self.state, State::Reading)
    }

    /// Whether it is to be stepped again soon though no descriptor says so.
    pub(crate) fn is_queued(&self) -> bool {
        matches!(&self.state, State::Asking(asking) if asking.link.is_none())
    }

    /// What it waits for.
    pub(crate) fn interest(&self) -> Option<(BorrowedFd<'_>, PollFlags)> {
        match &self.state {
            State::Reading | State::Draining { .. } => {
                Some((self.channel.as_fd(), self.channel.interest()))
            }
            State::Answering { .. } => Some((self.channel.as_fd(), PollFlags::OUT)),
            State::Asking(asking) => {
                let unsent = asking.sent < asking.request.len();
                let flags = if unsent { PollFlags::IN | PollFlags::OUT } else { PollFlags::IN };
                asking.link.as_ref().map(|link| (link.as_fd(), flags))
            }
        }
    }

    /// What a stream goes over.
    pub(crate) fn into_channel(self) -> (Channel, Peer) {
        (self.channel, self.peer)
    }

    /// Gets on as far as it can.
    pub(crate) fn step(&mut self, hub: &Hub, limits: &Limits, now: Instant) -> Next {
        let mut next = match &self.state {
            State::Reading => self.read(hub, limits, now),
            State::Asking(_) => self.ask(hub, limits, now),
            State::Answering { .. } => self.write(hub, limits, now),
            State::Draining { .. } => self.drain(),
        };
        // What TLS has decrypted already is in no socket that could be polled.
        while matches!(next, Next::Stay) && self.is_reading() && self.channel.has_unread() {
            next = self.read(hub, limits, now);
        }
        next
    }

    /// Its deadline has passed.
    pub(crate) fn expire(&mut self, hub: &Hub, limits: &Limits, now: Instant) -> Next {
        match &self.state {
            State::Reading if !self.inbox.is_empty() => {
                self.refuse(&Reply::text(408, "Request timeout"), hub, limits, now)
            }
            State::Asking(_) => {
                hub.distrust();
                drop(hub.collect(self.id));
                self.refuse(&Reply::text(504, "No answer in time"), hub, limits, now)
            }
            _ => {
                self.channel.finish(Shutdown::Both);
                Next::Close
            }
        }
    }

    fn read(&mut self, hub: &Hub, limits: &Limits, now: Instant) -> Next {
        let mut buffer = [0u8; READ_BYTES];
        match self.channel.receive(&mut buffer) {
            Ok(0) => return Next::Close,
            Ok(n) => {
                if !std::mem::replace(&mut self.is_timed, true) {
                    self.deadline = now + limits.head;
                }
                self.inbox.extend_from_slice(buffer.get(..n).unwrap_or_default());
            }
            Err(error) if is_transient(&error) => return Next::Stay,
            Err(error) if error.kind() == NOT_TLS => {
                let text = "This server speaks HTTPS only: use https://";
                return self.refuse(&Reply::text(400, text), hub, limits, now);
            }
            Err(_) => return Next::Close,
        }
        debug_assert!(self.inbox.len() <= HEAD_BYTES_MAX + BODY_BYTES_MAX + READ_BYTES);
        self.consider(hub, limits, now)
    }

    /// Takes a whole request out of the inbox, if one is there.
    fn consider(&mut self, hub: &Hub, limits: &Limits, now: Instant) -> Next {
        if self.head.is_none() {
            match read_head(&self.inbox) {
                Ok(None) => return Next::Stay,
                Ok(Some((head, len))) => {
                    if head.expects_continue && self.inbox.len() < len + head.body_len {
                        // A client that does not get it sends the body after a while anyway.
                        let _ =
                            self.channel.send(&[IoSlice::new(b"HTTP/1.1 100 Continue\r\n\r\n")]);
                    }
                    self.head = Some((head, len));
                }
                Err(reply) => return self.refuse(&reply, hub, limits, now),
            }
        }
        let whole = self.head.take_if(|(head, len)| self.inbox.len() >= *len + head.body_len);
        let Some((head, len)) = whole else { return Next::Stay };
        let mut request = head.rewrite(self.id);
        let end = len + head.body_len;
        request.extend_from_slice(self.inbox.get(len..end).unwrap_or_default());
        self.inbox.drain(..end);
        self.deadline = now + limits.answer;
        self.state = State::Asking(Asking {
            link: None,
            request,
            sent: 0,
            answer: Vec::new(),
            minor: head.minor,
            close: head.close,
            head_only: head.is_head(),
        });
        self.ask(hub, limits, now)
    }

    fn ask(&mut self, hub: &Hub, limits: &Limits, now: Instant) -> Next {
        let State::Asking(asking) = &mut self.state else { return Next::Stay };
        let link = match asking.link.take() {
            Some(link) => link,
            None => {
                let (peer, minor, close) = (self.peer, asking.minor, asking.close);
                match hub.connect(self.id, Ticket { peer, minor, close, outcome: None }) {
                    Ok(link) => link,
                    // Busy, or being made anew: again soon, until the deadline.
                    Err(_) => return Next::Stay,
                }
            }
        };
        let ended = asking.exchange(&link);
        if !ended {
            asking.link = Some(link);
            return Next::Stay;
        }
        let out = std::mem::take(&mut asking.answer);
        let (minor, close, head_only) = (asking.minor, asking.close, asking.head_only);
        match hub.collect(self.id) {
            Some(Outcome::Granted(stream)) => Next::Stream(stream),
            Some(Outcome::Answered) if !out.is_empty() => self.answer(out, close, hub, limits, now),
            Some(Outcome::Answered) => {
                let out = Reply::text(503, "Try again").encode(minor, head_only, true);
                self.answer(out, true, hub, limits, now)
            }
            // Lost with the inner server, and nobody has looked at it: once more.
            None => {
                asking.sent = 0;
                Next::Stay
            }
        }
    }

    fn refuse(&mut self, reply: &Reply, hub: &Hub, limits: &Limits, now: Instant) -> Next {
        let (minor, head_only) = match &self.state {
            State::Asking(asking) => (asking.minor, asking.head_only),
            _ => (1, self.inbox.starts_with(b"HEAD ")),
        };
        self.answer(reply.encode(minor, head_only, true), true, hub, limits, now)
    }

    fn answer(
        &mut self,
        out: Vec<u8>,
        close: bool,
        hub: &Hub,
        limits: &Limits,
        now: Instant,
    ) -> Next {
        self.deadline = now + limits.answer;
        self.state = State::Answering { out, sent: 0, close };
        self.write(hub, limits, now)
    }

    fn write(&mut self, hub: &Hub, limits: &Limits, now: Instant) -> Next {
        let State::Answering { out, sent, close } = &mut self.state else { return Next::Stay };
        while let Some(rest) = out.get(*sent..).filter(|rest| !rest.is_empty()) {
            match self.channel.send(&[IoSlice::new(rest)]) {
                Ok(n) => *sent += n,
                Err(error) if is_transient(&error) => return Next::Stay,
                Err(_) => return Next::Close,
            }
        }
        match self.channel.flush() {
            Err(error) if is_transient(&error) => return Next::Stay,
            Err(_) => return Next::Close,
            Ok(()) => {}
        }
        if *close {
            self.channel.finish(Shutdown::Write);
            self.inbox.clear();
            self.deadline = now + DRAIN;
            self.state = State::Draining { left: DRAIN_BYTES };
            return self.drain();
        }
        self.state = State::Reading;
        self.is_timed = !self.inbox.is_empty();
        if self.inbox.is_empty() {
            self.inbox.shrink_to(READ_BYTES);
            self.deadline = now + limits.idle;
            return Next::Stay;
        }
        self.deadline = now + limits.head;
        self.consider(hub, limits, now)
    }

    fn drain(&mut self) -> Next {
        let State::Draining { left } = &mut self.state else { return Next::Stay };
        let mut waste = [0u8; READ_BYTES];
        loop {
            match self.channel.receive(&mut waste) {
                Ok(0) => return Next::Close,
                Ok(n) if n >= *left => return Next::Close,
                Ok(n) => *left -= n,
                Err(error) if is_transient(&error) => return Next::Stay,
                Err(_) => return Next::Close,
            }
        }
    }
}

impl Asking {
    /// Sends what is left of the request and reads what there is of the answer; true at its end.
    fn exchange(&mut self, link: &UnixStream) -> bool {
        while let Some(rest) = self.request.get(self.sent..).filter(|rest| !rest.is_empty()) {
            match send(link.as_fd(), &[IoSlice::new(rest)]) {
                Ok(n) => self.sent += n,
                Err(error) if is_transient(&error) => break,
                Err(_) => return true,
            }
        }
        let mut buffer = [0u8; READ_BYTES];
        loop {
            match (&*link).read(&mut buffer) {
                Ok(0) => return true,
                Ok(n) if self.answer.len() + n > ANSWER_BYTES_MAX => {
                    self.answer.clear();
                    return true;
                }
                Ok(n) => self.answer.extend_from_slice(buffer.get(..n).unwrap_or_default()),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return false,
                Err(_) => return true,
            }
        }
    }
}
