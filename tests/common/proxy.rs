//! A network of one's own: a TCP proxy that one thread moves bytes through, as badly as told.
//!
//! | [`Rules`]           | a connection                                                        |
//! |---------------------|---------------------------------------------------------------------|
//! | `door: Open`        | is carried to `to`, the upstream's address at that moment           |
//! | `door: Shut`        | is refused by the kernel: nobody listens                            |
//! | `door: Mute`        | is taken, and never answered                                        |
//! | `delay`, `jitter`   | brings each piece so much later, in both directions, in order       |
//! | `up.rate`, `down.rate` | brings so many bytes a second; 0: as many as come                |
//! | `up.stopped`, `down.stopped` | brings nothing that way, and nobody is told: half open     |
//! | `cut`               | breaks at that place of what comes down, by RST or by FIN            |
//!
//! Rules may change at any time and hold for the connections there are. `up` is what a client
//! sends, `down` what the upstream answers. What is stopped is not read either, so that the sender
//! is held up once the system's buffers are full.

use std::io::Read;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::AsFd;
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use socket2::SockRef;

use super::pipe::{Moved, Pipe, Way};
use super::stream_parts::{Part, Parts};
use super::{Rng, free_port};

/// In no answer.
const NOWHERE: (Part, u32, u64) = (Part::Head, u32::MAX, 0);
/// How often rules are looked at when nothing happens.
const TURN: Duration = Duration::from_millis(5);

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Door {
    #[default]
    Open,
    Shut,
    Mute,
}

/// Where a connection breaks.
#[derive(Clone, Copy, Debug)]
pub enum Cut {
    /// After so many bytes from the upstream.
    After(u64),
    /// After so many bytes from the client.
    Sent(u64),
    /// In the `nth` part of this kind (from 0) of an answer, before its byte `at`.
    In { part: Part, nth: u32, at: u64 },
}

#[derive(Clone, Copy, Debug)]
pub struct Rules {
    pub to: SocketAddr,
    pub door: Door,
    pub delay: Duration,
    pub jitter: Duration,
    pub up: Way,
    pub down: Way,
    pub cut: Option<Cut>,
    /// By RST; else by FIN.
    pub reset: bool,
}

#[derive(Clone, Copy, Debug, Default)]
pub struct Counts {
    /// Connections taken.
    pub taken: u32,
    /// Of them cut by a rule.
    pub cut: u32,
    /// There now.
    pub open: usize,
    /// Bytes that came down.
    pub down: u64,
    /// Streams that continued where they were asked to, and those that began with a snapshot.
    pub resumed: u32,
    pub started_over: u32,
}

struct Shared {
    rules: Mutex<Rules>,
    counts: Mutex<Counts>,
    /// Break all connections now: by RST?
    breaking: Mutex<Option<bool>>,
    over: Mutex<bool>,
}

/// A proxy at an address of its own, until it is dropped.
pub struct Proxy {
    pub address: SocketAddr,
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

impl Proxy {
    /// A proxy to `to`, that does no harm yet.
    pub fn to(to: SocketAddr) -> Proxy {
        let address = SocketAddr::from(([127, 0, 0, 1], free_port()));
        let shared = Arc::new(Shared {
            rules: Mutex::new(Rules::fair(to)),
            counts: Mutex::default(),
            breaking: Mutex::default(),
            over: Mutex::new(false),
        });
        let mut engine = Engine {
            shared: Arc::clone(&shared),
            listener: Some(listen(address)),
            address,
            wires: Vec::new(),
            rng: Rng::new(),
        };
        let thread = std::thread::spawn(move || while engine.turn() {});
        Proxy { address, shared, thread: Some(thread) }
    }

    /// A proxy to where a URL points.
    pub fn to_url(url: &str) -> Proxy {
        Proxy::to(url.strip_prefix("http://").unwrap().parse().unwrap())
    }

    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    pub fn change(&self, change: impl FnOnce(&mut Rules)) {
        change(&mut self.shared.rules.lock().unwrap());
    }

    /// From now on nothing is done to anybody, but to bring them to the upstream.
    pub fn relent(&self) {
        self.change(|rules| *rules = Rules::fair(rules.to));
    }

    /// Another upstream behind the same address; connections stay where they are.
    pub fn move_to(&self, url: &str) {
        let to = url.strip_prefix("http://").unwrap().parse().unwrap();
        self.change(|rules| rules.to = to);
    }

    /// Breaks all connections there are.
    pub fn break_all(&self, reset: bool) {
        *self.shared.breaking.lock().unwrap() = Some(reset);
    }

    pub fn counts(&self) -> Counts {
        *self.shared.counts.lock().unwrap()
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        *self.shared.over.lock().unwrap() = true;
        let thread = self.thread.take().unwrap();
        let _the_test_says_what_failed = thread.join();
    }
}

impl Rules {
    fn fair(to: SocketAddr) -> Rules {
        let (delay, way) = (Duration::ZERO, Way::default());
        let door = Door::Open;
        Rules { to, door, delay, jitter: delay, up: way, down: way, cut: None, reset: true }
    }
}

fn listen(address: SocketAddr) -> TcpListener {
    let listener = super::until("the proxy's own port", || TcpListener::bind(address).ok());
    listener.set_nonblocking(true).unwrap();
    listener
}

struct Engine {
    shared: Arc<Shared>,
    listener: Option<TcpListener>,
    address: SocketAddr,
    wires: Vec<Wire>,
    rng: Rng,
}

impl Engine {
    fn turn(&mut self) -> bool {
        if *self.shared.over.lock().unwrap() {
            return false;
        }
        let rules = *self.shared.rules.lock().unwrap();
        match (rules.door == Door::Shut, self.listener.is_some()) {
            (true, true) => self.listener = None,
            (false, false) => self.listener = Some(listen(self.address)),
            _ => {}
        }
        self.wait(&rules);
        // What was changed meanwhile holds for whoever comes.
        let rules = *self.shared.rules.lock().unwrap();
        let breaking = self.shared.breaking.lock().unwrap().take();
        if let Some(reset) = breaking {
            for wire in self.wires.drain(..) {
                wire.end(reset);
            }
        }
        while let Some(Ok((near, _))) = self.listener.as_ref().map(TcpListener::accept) {
            self.shared.counts.lock().unwrap().taken += 1;
            self.wires.extend(Wire::new(near, &rules));
        }
        let mut counts = *self.shared.counts.lock().unwrap();
        for mut wire in std::mem::take(&mut self.wires) {
            match wire.step(&rules, &mut self.rng, &mut counts) {
                Step::Goes => self.wires.push(wire),
                Step::Ended => wire.end(false),
                Step::Cut => {
                    counts.cut += 1;
                    wire.end(rules.reset);
                }
            }
        }
        counts.open = self.wires.len();
        *self.shared.counts.lock().unwrap() = counts;
        true
    }

    /// Sleeps until something may be done, or a short while.
    fn wait(&self, rules: &Rules) {
        let mut fds: Vec<PollFd<'_>> = Vec::new();
        if let Some(listener) = &self.listener {
            fds.push(PollFd::from_borrowed_fd(listener.as_fd(), PollFlags::IN));
        }
        let mut wait = TURN;
        let now = Instant::now();
        for wire in &self.wires {
            let Some(far) = &wire.far else { continue };
            let ends =
                [(&wire.near, far, &wire.up, rules.up), (far, &wire.near, &wire.down, rules.down)];
            for (from, into, pipe, way) in ends {
                if pipe.has_room(way) {
                    fds.push(PollFd::from_borrowed_fd(from.as_fd(), PollFlags::IN));
                }
                match pipe.due(way) {
                    Some(due) if due <= now => {
                        fds.push(PollFd::from_borrowed_fd(into.as_fd(), PollFlags::OUT));
                    }
                    Some(due) => wait = wait.min(due - now),
                    None => {}
                }
            }
        }
        let wait = Timespec { tv_sec: 0, tv_nsec: i64::from(wait.subsec_nanos()) };
        poll(&mut fds, Some(&wait)).unwrap();
    }
}

/// One connection.
struct Wire {
    near: TcpStream,
    /// None: nobody is asked.
    far: Option<TcpStream>,
    up: Pipe,
    down: Pipe,
    parts: Parts,
}

enum Step {
    Goes,
    Ended,
    Cut,
}

impl Wire {
    /// None: the upstream is not there, which the client is told by RST.
    fn new(near: TcpStream, rules: &Rules) -> Option<Wire> {
        let far = match rules.door {
            Door::Mute => None,
            _ => match TcpStream::connect(rules.to) {
                Ok(far) => Some(far),
                Err(_) => {
                    end(near, true);
                    return None;
                }
            },
        };
        for stream in [Some(&near), far.as_ref()].into_iter().flatten() {
            stream.set_nonblocking(true).unwrap();
            let _gone_already = stream.set_nodelay(true);
        }
        let (up, down, parts) = (Pipe::default(), Pipe::default(), Parts::default());
        Some(Wire { near, far, up, down, parts })
    }

    fn step(&mut self, rules: &Rules, rng: &mut Rng, counts: &mut Counts) -> Step {
        let Some(far) = &self.far else {
            // Whoever gives up is let go.
            let gone = matches!((&self.near).read(&mut [0; 4096]), Ok(0));
            return if gone { Step::Ended } else { Step::Goes };
        };
        let delay = |rng: &mut Rng| {
            let jitter = u64::try_from(rules.jitter.as_micros()).unwrap();
            rules.delay + Duration::from_micros(if jitter == 0 { 0 } else { rng.below(jitter) })
        };
        let before = self.down.carried;
        let parts = &mut self.parts;
        let moved = [
            self.up.fill(&self.near, rules.up, delay(rng), |bytes, taken| match rules.cut {
                Some(Cut::Sent(limit)) => allowed(limit, taken, bytes.len()),
                _ => bytes.len(),
            }),
            self.down.fill(far, rules.down, delay(rng), |bytes, taken| match rules.cut {
                Some(Cut::After(limit)) => {
                    let count = allowed(limit, taken, bytes.len());
                    parts.before(&bytes[..count], NOWHERE)
                }
                Some(Cut::In { part, nth, at }) => parts.before(bytes, (part, nth, at)),
                _ => parts.before(bytes, NOWHERE),
            }),
            self.up.flush(far, rules.up),
            self.down.flush(&self.near, rules.down),
        ];
        counts.down += self.down.carried - before;
        match self.parts.take_start().as_deref() {
            Some("resume") => counts.resumed += 1,
            Some("snapshot") => counts.started_over += 1,
            _ => {}
        }
        if moved.contains(&Moved::Cut) {
            Step::Cut
        } else if moved.contains(&Moved::Broken) || (self.up.closed && self.down.closed) {
            Step::Ended
        } else {
            Step::Goes
        }
    }

    fn end(self, reset: bool) {
        end(self.near, reset);
        if let Some(far) = self.far {
            end(far, reset);
        }
    }
}

fn allowed(limit: u64, carried: u64, len: usize) -> usize {
    len.min(usize::try_from(limit.saturating_sub(carried)).unwrap_or(usize::MAX))
}

fn end(stream: TcpStream, reset: bool) {
    if reset {
        let _gone_already = SockRef::from(&stream).set_linger(Some(Duration::ZERO));
    }
    drop(stream);
}
