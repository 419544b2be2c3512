//! One direction of one connection of the proxy: bytes that wait for their time, in order.

use std::collections::VecDeque;
use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::time::{Duration, Instant};

/// Bytes on their way, at most.
const QUEUE_MAX: usize = 256 << 10;
/// Bytes read at once.
const PIECE: usize = 16 << 10;

/// How it is treated.
#[derive(Clone, Copy, Debug, Default)]
pub struct Way {
    pub rate: u64,
    pub stopped: bool,
}

/// One direction of one connection.
#[derive(Default)]
pub struct Pipe {
    queue: VecDeque<(Instant, Vec<u8>)>,
    queued: usize,
    /// Bytes taken from one end, and handed to the other.
    taken: u64,
    pub carried: u64,
    /// When the rate allows another byte.
    free_at: Option<Instant>,
    /// No more will come.
    ended: bool,
    /// And the other end was told.
    pub closed: bool,
    /// It breaks when all that was taken is handed on.
    cut: bool,
}

#[derive(PartialEq)]
pub enum Moved {
    Fine,
    Cut,
    Broken,
}

impl Pipe {
    /// Whether more is taken.
    pub fn has_room(&self, way: Way) -> bool {
        !way.stopped && !self.ended && self.queued < QUEUE_MAX
    }

    /// When something is to be handed on.
    pub fn due(&self, way: Way) -> Option<Instant> {
        let (due, _) = self.queue.front().filter(|_| !way.stopped)?;
        Some(self.free_at.filter(|_| way.rate > 0).map_or(*due, |free| free.max(*due)))
    }

    /// Takes what there is from one end. `pass` says how many of the bytes may go on; fewer than
    /// all: it is cut after them.
    pub fn fill(
        &mut self,
        mut from: &TcpStream,
        way: Way,
        delay: Duration,
        pass: impl FnOnce(&[u8], u64) -> usize,
    ) -> Moved {
        if !self.has_room(way) {
            return Moved::Fine;
        }
        let mut piece = [0; PIECE];
        match from.read(&mut piece) {
            Ok(0) => self.ended = true,
            Ok(count) => {
                let may = pass(&piece[..count], self.taken);
                self.cut = may < count;
                self.ended = self.cut;
                self.taken += may as u64;
                let now = Instant::now();
                let after = self.queue.back().map_or(now, |(due, _)| *due);
                self.queue.push_back(((now + delay).max(after), piece[..may].to_vec()));
                self.queued += may;
            }
            Err(error) if error.kind() == ErrorKind::WouldBlock => {}
            Err(_) => return Moved::Broken,
        }
        Moved::Fine
    }

    /// Hands on to the other end what is due.
    pub fn flush(&mut self, mut into: &TcpStream, way: Way) -> Moved {
        let now = Instant::now();
        while self.due(way).is_some_and(|due| due <= now) {
            let Some((_, bytes)) = self.queue.front_mut() else { break };
            let slice = if way.rate == 0 { u64::MAX } else { (way.rate / 50).max(1) };
            let room = bytes.len().min(usize::try_from(slice).unwrap_or(usize::MAX));
            let sent = match into.write(&bytes[..room]) {
                Ok(sent) => sent,
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                Err(_) => return Moved::Broken,
            };
            bytes.drain(..sent);
            self.queued -= sent;
            self.carried += sent as u64;
            if bytes.is_empty() {
                self.queue.pop_front();
            }
            let micros = (1_000_000 * sent as u64).checked_div(way.rate);
            self.free_at = micros.map(|micros| now + Duration::from_micros(micros));
        }
        if self.ended && self.queue.is_empty() && !self.closed {
            if self.cut {
                return Moved::Cut;
            }
            self.closed = true;
            let _gone_already = into.shutdown(Shutdown::Write);
        }
        Moved::Fine
    }
}
