//! One connection to the upstream, from its first record to its end.
//!
//! ```text
//! open --200--> (snapshot --> segments until exact)? --> segments, heartbeats ... --> end or error
//! ```
//!
//! A snapshot is shown together with the WAL that makes it exact: up to the position of the first
//! heartbeat on this connection; with an ancestor, which sends none, until nothing more came for
//! [`DRY`]. A commit is shown at once when nothing more is at hand, else grouped (pace.rs).
//! Whatever the peer got wrong ends the session; what is published stays, what is staged goes.

use std::io::Read;
use std::time::{Duration, Instant};

use super::cursor::{Cursor, Point, check_flags};
use super::pace::{Moment, Publish, publish};
use super::replica::Replica;
use super::shared::{Shared, State, covers};
use super::stream::{Filled, Stream, cut_short, read_unit};
use crate::error::{Error, ErrorKind, Result};
use crate::lz4::Decoder;
use crate::pos::Pos;
use crate::record::{Heartbeat, RecordType, StreamRecordHeader};
use crate::registry::{self, Level};
use crate::wal::{PageSize, WAL_FRAME_HEADER_SIZE, WAL_HEADER_SIZE};

/// An ancestor that sends nothing for this long has sent what it had.
const DRY: Duration = Duration::from_millis(20);
/// A connection that lasted this long was a good one.
const LASTING: Duration = Duration::from_secs(3);
/// How often the wal-index is looked after while nothing comes.
const TICK: Duration = Duration::from_millis(100);
/// An upstream that sends heartbeats every second is gone after this long without a byte.
const SILENCE_MAX: Duration = Duration::from_millis(4500);
/// Pages of a large record after which a commit in the middle of it is shown.
const GROUP_BYTES: usize = 1 << 20;
/// Memory for a segment's content is kept up to this size for the next one, in bytes.
const CONTENT_KEPT: usize = 1 << 20;

/// One connection at work.
pub struct Session<'a> {
    shared: &'a Shared,
    replica: &'a mut Replica,
    stream: Stream,
    page_size: PageSize,
    cursor: Cursor,
    /// A snapshot is not exact yet: nothing of it may be shown.
    inexact: bool,
    /// A snapshot came, and nothing of it was shown yet.
    unshown: bool,
    /// What the upstream had when this connection was made, in the history it sends.
    goal: Option<Pos>,
    beats: bool,
    heard: Instant,
    began: Instant,
    published: Instant,
    /// Where a frame is put together, and where segments are decoded.
    frame: Vec<u8>,
    content: Vec<u8>,
    /// Something was applied, or found to be.
    worked: bool,
}

impl<'a> Session<'a> {
    /// Reads `stream`, which was asked to continue at `from`, into `replica`.
    pub fn new(
        shared: &'a Shared,
        replica: &'a mut Replica,
        stream: Stream,
        from: Option<Point>,
    ) -> Result<Self> {
        let page_size = stream.manners().page_size;
        replica.check_page_size(page_size)?;
        let now = Instant::now();
        let from = from.filter(|_| !stream.manners().starts_over);
        Ok(Self {
            shared,
            replica,
            page_size,
            cursor: Cursor::new(page_size, from),
            inexact: false,
            unshown: false,
            goal: None,
            beats: false,
            heard: now,
            began: now,
            // Long ago: the first commit need not wait.
            published: now.checked_sub(Duration::from_secs(1)).unwrap_or(now),
            frame: vec![0; page_size.frame_size()],
            content: Vec::new(),
            stream,
            worked: false,
        })
    }

    /// Runs until the connection ends or the follower stops; whether anything came of it.
    pub fn run(mut self) -> (bool, Result<()>) {
        // The upstream may have lost its latest commits and made others in their place: a position
        // in the old history reads like one in the new. Ours counts only while it is continued.
        let continued = self.replica.pos().filter(|_| !self.stream.manners().starts_over);
        self.shared.update(|inner| {
            inner.state = State::CatchingUp;
            inner.position = continued;
            inner.page_size = Some(self.page_size);
            inner.acknowledges = self.stream.manners().takes_acks;
            inner.streams = inner.streams.wrapping_add(1);
        });
        let result = self.records();
        if result.is_err() {
            self.replica.discard();
        }
        self.shared.meeting.broke_off();
        // An upstream that beats but breaks off before it sends anything is left alone for longer
        // each time.
        let worked = self.worked || self.began.elapsed() > LASTING;
        (worked, result)
    }

    fn records(&mut self) -> Result<()> {
        if self.stream.manners().starts_over {
            self.replica.forget_position()?;
        }
        while !self.shared.is_stopping() {
            let next = match self.stream.buffered() {
                bytes if bytes.len() >= StreamRecordHeader::SIZE => {
                    Some(StreamRecordHeader::decode(bytes)?)
                }
                _ => None,
            };
            let whole = next.is_some_and(|header| {
                let size = (StreamRecordHeader::SIZE as u64).saturating_add(header.size);
                self.stream.buffered().len() as u64 >= size
            });
            if self.is_due() && !self.grouped(whole)? {
                continue;
            }
            self.meet()?;
            match next {
                Some(header) => self.record(&header)?,
                None => {
                    if self.await_bytes()? {
                        break;
                    }
                }
            }
        }
        Ok(())
    }

    /// Does what somebody else wants of this replica between two transactions.
    fn meet(&mut self) -> Result<()> {
        if let Some(why) = self.shared.take_distrust() {
            return Err(Error::new(ErrorKind::ChecksumMismatch, why));
        }
        let between = !self.cursor.is_open() && !self.inexact && !self.unshown;
        if !between || !self.shared.meeting.wants_to_stand() {
            return Ok(());
        }
        // Before a snapshot is shown, the position is that of another history.
        let shown = self.shared.get().position;
        let Some(pos) = self.replica.pos().filter(|pos| shown == Some(*pos)) else {
            return Ok(());
        };
        if self.is_due() {
            self.publish()?;
        }
        let pos = self.replica.pos().unwrap_or(pos);
        self.shared.meeting.stand(pos, &|| self.shared.is_stopping());
        self.replica.reached(self.shared, pos);
        self.heard = Instant::now();
        Ok(())
    }

    /// Whether a commit is complete that readers do not see.
    fn is_due(&self) -> bool {
        let Some(point) = self.cursor.point() else { return false };
        // A snapshot's history may have parted from ours and end at the very same position.
        let is_new = self.unshown || self.replica.pos() != Some(point.upstream.pos);
        is_new && !self.inexact && !self.cursor.is_open()
    }

    /// Publishes, or takes more into the group first. Returns false if more came and it is to be
    /// looked at again.
    fn grouped(&mut self, whole: bool) -> Result<bool> {
        match publish(self.published.elapsed(), whole) {
            Publish::Within(_) if whole => Ok(true),
            Publish::Within(left) if !self.stream.is_full() => {
                let more = self.stream.fill(left)? == Filled::More;
                if !more {
                    self.publish()?;
                }
                Ok(!more)
            }
            // The first look costs no wait: what is there belongs into the group.
            Publish::Now if !whole && !self.stream.is_full() => {
                let more = self.published.elapsed() < Duration::from_millis(1)
                    && self.stream.fill(Duration::ZERO)? == Filled::More;
                if !more {
                    self.publish()?;
                }
                Ok(!more)
            }
            _ => self.publish().map(|()| true),
        }
    }

    fn publish(&mut self) -> Result<()> {
        let Some(point) = self.cursor.point() else { return Ok(()) };
        self.replica.commit(point.page_count, point.upstream)?;
        self.published = Instant::now();
        self.unshown = false;
        self.worked = true;
        let pos = point.upstream.pos;
        self.replica.reached(self.shared, pos);
        let met = self.goal.is_some_and(|goal| covers(Some(pos), goal));
        let now = self.published;
        self.shared.update(|inner| {
            inner.position = Some(pos);
            inner.error = None;
            if met {
                inner.caught_up = true;
                inner.state = State::Streaming;
            } else if inner.state == State::Snapshot {
                inner.state = State::CatchingUp;
            }
            if inner.upstream_position.is_some_and(|known| covers(Some(pos), known)) {
                inner.equal_at = Some(now);
            }
        });
        let behind = self.stream.buffered().len() >= StreamRecordHeader::SIZE;
        self.replica.restart_wal(if behind { Moment::Behind } else { Moment::Streaming })
    }

    /// Waits for the next record to begin; whether the stream ended.
    fn await_bytes(&mut self) -> Result<bool> {
        let settling = !self.stream.manners().beats
            && !self.cursor.is_open()
            && (self.inexact || self.shared.get().state != State::Streaming);
        match self.stream.fill(if settling { DRY } else { TICK })? {
            Filled::More => {
                self.heard = Instant::now();
                Ok(false)
            }
            // An archive that was to be followed only to its end.
            Filled::End if self.stream.is_local() => Ok(true),
            Filled::End => Err(Error::peer("the upstream ended the stream")),
            Filled::Dry if settling && self.stream.buffered().is_empty() => {
                self.dry()?;
                Ok(false)
            }
            Filled::Dry => {
                self.idle()?;
                Ok(false)
            }
        }
    }

    /// An ancestor has sent all it had.
    fn dry(&mut self) -> Result<()> {
        if self.cursor.point().is_none() {
            return Ok(());
        }
        self.inexact = false;
        if self.is_due() {
            self.publish()?;
        }
        self.worked = true;
        self.shared.update(|inner| {
            inner.caught_up = true;
            inner.state = State::Streaming;
            inner.error = None;
            inner.equal_at = Some(Instant::now());
        });
        Ok(())
    }

    fn idle(&mut self) -> Result<()> {
        if self.beats && !self.stream.is_local() && self.heard.elapsed() > SILENCE_MAX {
            let text = "the upstream is silent: no heartbeat came";
            return Err(Error::new(ErrorKind::Timeout, text));
        }
        self.replica.require_file()?;
        if self.replica.idle()? {
            let text = "somebody damaged the wal-index; it was put back";
            registry::log(Level::Warn, self.replica.path(), text);
        }
        if !self.stream.manners().beats {
            self.shared.update(|inner| inner.equal_at = Some(Instant::now()));
        }
        Ok(())
    }

    fn record(&mut self, header: &StreamRecordHeader) -> Result<()> {
        self.heard = Instant::now();
        let mut own = [0; StreamRecordHeader::SIZE];
        self.stream.read_exact(&mut own)?;
        let compressed = check_flags(header)?;
        match header.kind {
            RecordType::Heartbeat => self.heartbeat(header),
            RecordType::Snapshot => self.snapshot(header, compressed),
            RecordType::WalSegment => self.segment(header),
        }?;
        self.heard = Instant::now();
        self.reach()
    }

    fn heartbeat(&mut self, header: &StreamRecordHeader) -> Result<()> {
        self.replica.require_file()?;
        let mut bytes = [0; Heartbeat::SIZE];
        if header.size != bytes.len() as u64 {
            return Err(Error::peer(format!("a heartbeat of {} bytes", header.size)));
        }
        self.stream.read_exact(&mut bytes)?;
        let beat = Heartbeat::decode(&bytes)?;
        self.beats = true;
        let usable = |goal: Pos| Some(goal.generation) == self.cursor.generation();
        if !self.goal.is_some_and(usable) {
            self.goal = Some(beat.pos);
        }
        let now = self.heard;
        let goal = self.goal;
        self.shared.update(|inner| {
            inner.upstream_position = Some(beat.pos);
            if covers(inner.position, beat.pos) {
                inner.equal_at = Some(now);
            }
            if goal.is_some_and(|goal| covers(inner.position, goal)) && !self.inexact {
                inner.caught_up = true;
                inner.state = State::Streaming;
                inner.error = None;
            }
        });
        Ok(())
    }

    /// Whether a snapshot has become exact with what was received last.
    fn reach(&mut self) -> Result<()> {
        if self.inexact && self.stream.manners().beats && !self.cursor.is_open() {
            let pos = self.cursor.point().map(|point| point.upstream.pos);
            self.inexact = !self.goal.is_some_and(|goal| covers(pos, goal));
        }
        Ok(())
    }

    fn snapshot(&mut self, header: &StreamRecordHeader, compressed: bool) -> Result<()> {
        self.shared.enter(State::Snapshot);
        let text = format!("follow: receiving a snapshot, at {}", header.pos());
        registry::log(Level::Info, self.replica.path(), &text);
        self.inexact = true;
        self.unshown = true;
        if self.goal.is_some_and(|goal| goal.generation != header.generation) {
            self.goal = None;
        }
        self.replica.begin_snapshot(self.page_size)?;
        let mut payload = self.stream.payload(header.size);
        let pages = if compressed {
            let mut content = Decoder::new(&mut payload, u64::MAX);
            read_pages(&mut content, self.page_size, self.replica)?
        } else {
            read_pages(&mut payload, self.page_size, self.replica)?
        };
        payload.finish()?;
        if pages == 0 {
            return Err(Error::peer("the upstream's snapshot is empty"));
        }
        self.cursor.snapshot(header, pages);
        Ok(())
    }

    fn segment(&mut self, header: &StreamRecordHeader) -> Result<()> {
        self.cursor.segment(header)?;
        // The link's reader and the rest of the session are used side by side.
        let Self { stream, cursor, replica, frame, shared, content, .. } = self;
        let mut payload = stream.payload(header.size);
        let mut content = Decoder::with_buffer(&mut payload, u64::MAX, std::mem::take(content));
        if cursor.wants_header() {
            let mut bytes = [0; WAL_HEADER_SIZE];
            content.read_exact(&mut bytes).map_err(cut_short("a WAL header"))?;
            cursor.header(&bytes)?;
        }
        let mut shown: Option<Pos> = None;
        while let Some(frame) = content.unit(frame).map_err(cut_short("a page"))? {
            let Some((found, sum)) = cursor.frame(frame)? else { continue };
            replica.require_room(found.page_no.max(found.page_count), self.page_size)?;
            let page = frame.get(WAL_FRAME_HEADER_SIZE..).unwrap_or_default();
            replica.stage(found.page_no, page, Some(sum))?;
            let full = replica.staged_bytes() >= GROUP_BYTES;
            if self.inexact || !found.is_commit() {
                continue;
            }
            let target = shared.meeting.target();
            let show = |point: &Point| full || target == Some(point.upstream.pos);
            if let Some(point) = cursor.point().filter(show) {
                replica.commit(point.page_count, point.upstream)?;
                replica.reached(shared, point.upstream.pos);
                replica.restart_wal(Moment::Behind)?;
                shown = Some(point.upstream.pos);
            }
        }
        self.content = content.into_buffer();
        self.content.shrink_to(CONTENT_KEPT);
        payload.finish()?;
        if shown.is_some() {
            self.published = Instant::now();
            self.unshown = false;
            self.shared.update(|inner| {
                inner.position = shown;
                inner.error = None;
            });
        }
        Ok(())
    }
}

/// Reads a snapshot's pages into the replica; how many there were.
fn read_pages(from: &mut impl Read, page_size: PageSize, replica: &mut Replica) -> Result<u32> {
    let mut page = vec![0; page_size.bytes()];
    let mut pages: u32 = 0;
    while read_unit(from, &mut page)? {
        pages = pages
            .checked_add(1)
            .filter(|pages| *pages <= super::cursor::PAGE_NO_MAX)
            .ok_or_else(|| Error::peer("the upstream's snapshot has too many pages"))?;
        replica.require_room(pages, page_size)?;
        if pages != page_size.lock_page() {
            replica.snapshot_page(pages, &page)?;
        }
    }
    Ok(pages)
}
