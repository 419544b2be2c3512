//! One stream: a thread that sends one follower the records it needs, for as long as it reads.
//!
//! ```text
//! 200 head [heartbeat] [snapshot] segment segment ... [heartbeat a second] ... until one leaves
//! ```
//!
//! One record is one HTTP chunk and ends in a flush. The order of records is the log's. Nothing is
//! held but the subscription, so a slow follower costs memory for one segment; one that takes no
//! byte for a while ([`Limits::stall`]), or stops to acknowledge ([`Limits::silence`]), is dropped
//! and may connect again. The second is for those whose system, or somebody on the way, takes our
//! bytes and hands them to nobody.

use std::io::{self, Read};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use super::channel::Channel;
use super::chunk::Sink;
use super::limits::Limits;
use super::reply::{Reply, http_date, push_header, status_line};
use super::routes::StreamRequest;
use super::served::{Follower, Served};
use super::socket::Peer;
use crate::error::{Context, Error, ErrorKind, Result};
use crate::log::{Item, Large, Segment, Snapshot, Subscription};
use crate::lz4;
use crate::pos::Pos;
use crate::record::{FLAG_LZ4, Heartbeat, RecordType, StreamRecordHeader};
use crate::registry::{self, Level};

/// Between two heartbeats.
const HEARTBEAT: Duration = Duration::from_secs(1);
/// How long a session sleeps at most before it looks whether its follower is still there.
const SLICE: Duration = HEARTBEAT;
/// Bytes of a snapshot read at once.
const COPY_BYTES: usize = 256 << 10;

/// A stream that is about to begin.
pub(crate) struct Session {
    pub(crate) channel: Channel,
    pub(crate) peer: Peer,
    pub(crate) request: StreamRequest,
    pub(crate) stopping: Arc<AtomicBool>,
    pub(crate) limits: Limits,
}

impl Session {
    /// Streams until either end leaves, and says in the log of the extension why it ended.
    pub(crate) fn run(self) {
        let served = Arc::clone(&self.request.served);
        let peer = self.peer;
        let outcome = self.serve();
        if let Err(error) = outcome {
            let quiet = matches!(error.kind(), ErrorKind::GenerationChanged | ErrorKind::Stopped);
            let level = if quiet { Level::Info } else { Level::Warn };
            registry::log(level, served.path(), &format!("follower {peer}: {error}"));
        }
    }

    fn serve(mut self) -> Result<()> {
        self.channel
            .make_blocking(self.limits.stall)
            .context(|| "cannot prepare the socket".into())?;
        if self.request.checksums {
            return self.send_checksums();
        }
        let log = self.request.served.log();
        let opened = log.subscribe(&self.request.start, !self.request.features.split);
        let (subscription, page_size) =
            match opened.and_then(|opened| Ok((opened, log.page_size()?))) {
                Ok(opened) => opened,
                Err(error) => return self.turn_away(error),
            };
        let head = {
            let start = if subscription.begins_with_snapshot() { "snapshot" } else { "resume" };
            self.head(page_size.get(), start)
        };
        let request = &self.request;
        let follower = Follower::new(request.follower.clone(), self.peer.to_string());
        follower.sent(subscription.position());
        // Before the head: who has seen that may acknowledge.
        let _membership = request.served.join(&follower);
        let mut sink = Sink::new(&mut self.channel, request.chunked);
        sink.head(&head).context(|| "cannot begin to send".into())?;
        let mut stream = Stream {
            served: &request.served,
            follower: &follower,
            subscription,
            sink,
            heartbeat: request.features.heartbeat,
            lz4: request.features.lz4,
            near: self.peer.is_local(),
            limits: self.limits,
        };
        let outcome = stream.run(&self.stopping);
        self.channel.finish(std::net::Shutdown::Both);
        outcome
    }

    /// The database cannot be served after all: an ordinary answer.
    pub(super) fn turn_away(&mut self, error: Error) -> Result<()> {
        let reply = match error.kind() {
            ErrorKind::NoGeneration => {
                Reply::text(503, "No generation available").with("Retry-After", "1")
            }
            ErrorKind::Busy => Reply::text(503, error.to_string()).with("Retry-After", "1"),
            _ => Reply::text(500, error.to_string()),
        };
        let bytes = reply.encode(u8::from(self.request.chunked), false, true);
        let mut sink = Sink::new(&mut self.channel, false);
        sink.head(&bytes).context(|| "cannot answer".into())?;
        Err(error)
    }

    /// The head of the answer: the ancestor's lines, and ours for what was asked for.
    fn head(&self, page_size: u32, start: &str) -> Vec<u8> {
        let features = self.request.features.names();
        let mut ours = vec![("Litestream-Page-Size", page_size.to_string())];
        if !features.is_empty() {
            ours.push(("Litestream-Features", features));
            ours.push(("Litestream-Start", start.to_owned()));
        }
        self.head_with(&ours)
    }

    /// The head of an answer whose length is not known, with these lines.
    pub(super) fn head_with(&self, lines: &[(&str, String)]) -> Vec<u8> {
        let request = &self.request;
        let mut out = status_line(u8::from(request.chunked), 200);
        push_header(&mut out, "Litestream-Database", &header_text(&request.served));
        for (name, value) in lines {
            push_header(&mut out, name, value);
        }
        push_header(&mut out, "Date", &http_date(SystemTime::now()));
        push_header(&mut out, "Content-Type", "application/octet-stream");
        if request.chunked {
            push_header(&mut out, "Transfer-Encoding", "chunked");
        } else {
            push_header(&mut out, "Connection", "close");
        }
        out.extend_from_slice(b"\r\n");
        out
    }
}

/// The path of a database as a header's value: `%` and what is not visible ASCII percent-encoded.
fn header_text(served: &Served) -> String {
    let mut out = String::new();
    for byte in served.path().as_os_str().as_encoded_bytes() {
        match byte {
            b'%' => out.push_str("%25"),
            b'!'..=b'~' => out.push(char::from(*byte)),
            _ => out.push_str(&format!("%{byte:02X}")),
        }
    }
    out
}

/// A stream whose head is sent.
struct Stream<'a> {
    served: &'a Served,
    follower: &'a Follower,
    subscription: Subscription,
    sink: Sink<'a>,
    heartbeat: bool,
    lz4: bool,
    /// The peer is on this machine: compressing costs more than sending.
    near: bool,
    limits: Limits,
}

impl Stream<'_> {
    fn run(&mut self, stopping: &AtomicBool) -> Result<()> {
        // Right away: a follower learns how far the snapshot's WAL must be applied to be exact.
        let mut beat = Instant::now();
        let mut is_first = true;
        loop {
            if stopping.load(Ordering::Acquire) {
                return Ok(());
            }
            self.require_sign_of_life()?;
            let mut wait = SLICE;
            if self.heartbeat {
                let now = Instant::now();
                if now >= beat {
                    self.send_heartbeat(is_first)?;
                    is_first = false;
                    beat = now + HEARTBEAT;
                }
                wait = wait.min(beat.saturating_duration_since(now));
            }
            let stopped = || stopping.load(Ordering::Acquire);
            let item = self.subscription.next_unless(wait, &stopped)?;
            let sent = match &item {
                Item::Idle if self.sink.has_left() => return Ok(()),
                Item::Idle => continue,
                Item::Snapshot(snapshot) => self.send_snapshot(snapshot),
                Item::Segment(segment) => self.send_segment(segment),
                Item::Large(large) => self.send_large(large),
            };
            match sent {
                // The system has closed it by then, which must not look as if the follower had.
                Err(error) if error.kind() == ErrorKind::Timeout => return Err(error),
                Err(error) if stopping.load(Ordering::Acquire) || self.sink.has_left() => {
                    drop(error); // the effect of a stop, or of a follower that went away
                    return Ok(());
                }
                other => other?,
            }
            self.follower.sent(self.subscription.position());
        }
    }

    /// Fails if the follower has acknowledged once and does not any more.
    fn require_sign_of_life(&self) -> Result<()> {
        let limit = self.limits.silence;
        if self.follower.silent().is_none_or(|silent| silent <= limit) {
            return Ok(());
        }
        let why = format!("dropped: it acknowledged nothing for {} s", limit.as_secs_f32());
        Err(Error::new(ErrorKind::Timeout, why))
    }

    /// The first one of a connection covers all that was committed when it was made: a follower
    /// that has reached it knows that it is caught up, and that its snapshot is exact.
    fn send_heartbeat(&mut self, is_first: bool) -> Result<()> {
        let pos = if is_first {
            self.served.position()?
        } else {
            self.served.log().position().ok_or_else(Error::no_generation)?
        };
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let unix_ms = u64::try_from(since.as_millis()).unwrap_or(u64::MAX);
        let record = Heartbeat { pos, unix_ms }.encode_record();
        let len = u64::try_from(record.len()).unwrap_or(u64::MAX);
        self.send(len, |sink| sink.put(&record))
    }

    fn send_snapshot(&mut self, snapshot: &Snapshot) -> Result<()> {
        let pos = snapshot.pos();
        if self.lz4 {
            let size = snapshot.stored_size();
            let mut header = StreamRecordHeader::new(RecordType::Snapshot, pos, size);
            header.flags = FLAG_LZ4;
            self.copy(&header, &mut snapshot.open_stored()?)
        } else {
            let header = StreamRecordHeader::new(RecordType::Snapshot, pos, snapshot.raw_size);
            self.copy(&header, &mut snapshot.open_raw()?)
        }
    }

    /// Sends a record whose payload is read, exactly as long as its header says.
    fn copy(&mut self, header: &StreamRecordHeader, from: &mut dyn Read) -> Result<()> {
        self.send(payload_len(header)?, |sink| {
            sink.put(&header.encode())?;
            copy_exactly(from, header.size, sink)
        })
    }

    fn send_segment(&mut self, segment: &Arc<Segment>) -> Result<()> {
        self.follower.sending(segment.end(), segment.born);
        let raw = &segment.raw;
        let stored_len = raw.len() + lz4::stored_frame_overhead(raw.len());
        let compressed = if self.near { None } else { segment.compressed() };
        let compressed = compressed.filter(|bytes| bytes.len() < stored_len);
        let size = compressed.map_or(stored_len, <[u8]>::len);
        let size = u64::try_from(size).unwrap_or(u64::MAX);
        let header = StreamRecordHeader::new(RecordType::WalSegment, segment.pos, size);
        self.send(payload_len(&header)?, |sink| {
            sink.put(&header.encode())?;
            match compressed {
                Some(bytes) => sink.put(bytes),
                None => lz4::write_stored(sink, raw),
            }
        })
    }

    fn send_large(&mut self, large: &Large) -> Result<()> {
        self.follower.sending(large.end()?, Instant::now());
        let size = lz4::stored_frame_size(large.raw_size);
        let header = StreamRecordHeader::new(RecordType::WalSegment, large.pos, size);
        let mut from = large.open()?;
        self.send(payload_len(&header)?, |sink| {
            sink.put(&header.encode())?;
            lz4::copy_stored(&mut from, large.raw_size, sink)
        })
    }

    /// Sends one record of `len` bytes as one chunk, and counts it.
    fn send(
        &mut self,
        len: u64,
        write: impl FnOnce(&mut Sink<'_>) -> io::Result<()>,
    ) -> Result<()> {
        let sink = &mut self.sink;
        let sent = sink.begin(len).and_then(|()| write(sink)).and_then(|()| sink.end());
        self.served.count_bytes(self.follower, self.sink.take_sent());
        sent.map_err(|error| match error.kind() {
            io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => {
                let why =
                    format!("dropped: it read nothing for {} s", self.limits.stall.as_secs_f32());
                Error::new(ErrorKind::Timeout, why)
            }
            io::ErrorKind::Other => Error::new(ErrorKind::Io, error.to_string()),
            _ => Error::new(ErrorKind::Peer, format!("cannot send: {error}")),
        })
    }
}

/// Bytes of a whole record.
fn payload_len(header: &StreamRecordHeader) -> Result<u64> {
    let head = u64::try_from(StreamRecordHeader::SIZE).unwrap_or(0);
    header.size.checked_add(head).ok_or_else(|| Error::bug("record size overflows"))
}

/// Copies exactly `len` bytes: a source that ends early is an error, what it has beyond is left.
fn copy_exactly(from: &mut dyn Read, len: u64, to: &mut Sink<'_>) -> io::Result<()> {
    let mut buffer = vec![0u8; COPY_BYTES];
    let mut left = len;
    while left > 0 {
        let room = usize::try_from(left).unwrap_or(usize::MAX).min(buffer.len());
        let part = buffer.get_mut(..room).unwrap_or_default();
        let n = match from.read(part) {
            Ok(0) => return Err(io::Error::other("the snapshot is shorter than it says")),
            Ok(n) => n,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(io::Error::other(format!("cannot read it: {error}"))),
        };
        to.put(part.get(..n).unwrap_or_default())?;
        left -= u64::try_from(n).unwrap_or(left);
    }
    Ok(())
}

/// For messages about positions that do not fit.
impl Large {
    fn end(&self) -> Result<Pos> {
        let end = self.pos.offset.get().saturating_add(self.raw_size);
        Ok(Pos { offset: crate::pos::Offset::new(end)?, ..self.pos })
    }
}
