//! A follower's way through the log: a snapshot if it needs one, then every segment in order.
//!
//! ```text
//! subscribe --cannot resume--> Snapshot --> Segment* --caught up--> Idle --commit--> Segment ...
//!           --can resume-----------------^
//! any state --other generation, or index no longer held--> error; the follower connects again
//! ```
//!
//! A subscription leases the index it reads, so `Log::trim` leaves it alone. Nothing is held while
//! a file is read.

use std::io::{self, Read};
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::segment::{Segment, last_frame_header};
use super::snapshot::Snapshot;
use super::{Log, State};
use crate::error::{Error, ErrorKind, Result, lock};
use crate::pos::{Generation, Index, Offset, Pos};
use crate::wal::{Checksum, FrameHeader, PageSize, WAL_HEADER_SIZE, WalHeader};

/// Where a follower wants to begin.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Start {
    /// It has nothing.
    Fresh,
    /// It has everything before this index (all the ancestor's followers can say).
    Index {
        /// Its generation.
        generation: Generation,
        /// Resume at this index's offset 0.
        index: Index,
    },
    /// It has everything before this byte, and the WAL's running checksum there was this.
    Exact {
        /// Its generation.
        generation: Generation,
        /// The index of the next byte wanted.
        index: Index,
        /// The offset of the next byte wanted.
        offset: Offset,
        /// Running checksum of the WAL up to `offset`.
        checksum: Checksum,
    },
}

/// What a follower is sent next.
pub enum Item {
    /// The database at the start of an index.
    Snapshot(Snapshot),
    /// WAL bytes.
    Segment(Arc<Segment>),
    /// One transaction too large for a segment, for a follower that cannot take it in parts.
    Large(Large),
    /// Nothing new within the wait.
    Idle,
}

/// WAL bytes of more than one segment that end in a commit.
pub struct Large {
    /// Where the bytes start.
    pub pos: Pos,
    /// How many there are.
    pub raw_size: u64,
    log: Arc<Log>,
}

/// A follower's place in the log. Dropping it gives up the lease.
pub struct Subscription {
    log: Arc<Log>,
    next: Pos,
    snapshot: Option<Snapshot>,
    whole: bool,
    /// `whole`: how far the transaction at `next` was read without finding its end.
    unfinished: Option<Pos>,
    lease: u64,
}

impl Log {
    /// Begins at `start` if history there is the follower's, else with the newest snapshot.
    /// `whole`: the follower takes only whole transactions. `NoGeneration` if nothing can be served
    /// yet.
    pub fn subscribe(self: &Arc<Self>, start: &Start, whole: bool) -> Result<Subscription> {
        let resumed = self.resume_point(start)?;
        let mut state = lock(&self.state);
        let tip = state.tip.filter(|_| state.ready && !state.closed);
        let tip = tip.ok_or_else(Error::no_generation)?;
        let held = |pos: &Pos| pos.generation == tip.pos.generation && state.holds(pos.index);
        let (next, snapshot) = match resumed.filter(held) {
            Some(pos) => (pos, None),
            None => {
                let newest = state.snapshots.values().next_back().cloned();
                let newest = newest.ok_or_else(Error::no_snapshots)?;
                (newest.pos(), Some(newest))
            }
        };
        state.leases_made += 1;
        let lease = state.leases_made;
        state.leases.insert(lease, next.index);
        drop(state);
        Ok(Subscription { log: Arc::clone(self), next, snapshot, whole, unfinished: None, lease })
    }

    /// The position a follower may continue from, if its history is ours.
    fn resume_point(&self, start: &Start) -> Result<Option<Pos>> {
        let Some(tip) = self.tip() else { return Ok(None) };
        let ours = tip.pos.generation;
        match *start {
            Start::Index { generation, index } if generation == ours && index <= tip.pos.index => {
                Ok(Some(Pos { generation, index, offset: Offset::default() }))
            }
            Start::Exact { generation, index, offset, checksum } if generation == ours => {
                let known = checksum_at(self, index, offset)?;
                Ok((known == Some(checksum)).then_some(Pos { generation, index, offset }))
            }
            _ => Ok(None),
        }
    }
}

impl Subscription {
    /// The next byte it will hand out.
    pub fn position(&self) -> Pos {
        self.next
    }

    /// Whether a snapshot comes next.
    pub fn begins_with_snapshot(&self) -> bool {
        self.snapshot.is_some()
    }

    /// The next thing to send; waits at most `wait` for something new. An error of kind
    /// `GenerationChanged` ends the connection: the follower's next one starts from a snapshot.
    pub fn next(&mut self, wait: Duration) -> Result<Item> {
        self.next_unless(wait, &|| false)
    }

    /// The same; [`Item::Idle`] at once if [`Log::wake`] finds `cut` true.
    pub fn next_unless(&mut self, wait: Duration, cut: &dyn Fn() -> bool) -> Result<Item> {
        if let Some(snapshot) = self.snapshot.take() {
            snapshot.check().map_err(|error| self.unreadable(&snapshot, error))?;
            return Ok(Item::Snapshot(snapshot));
        }
        let deadline = Instant::now() + wait;
        loop {
            // Read before the poll: whatever is appended after this ends the wait at once.
            let seen = self.log.tip().ok_or_else(Error::generation_changed)?.pos;
            if let Some(item) = self.poll()? {
                return Ok(item);
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() || !self.log.wait_past(seen, left, cut) {
                return Ok(Item::Idle);
            }
        }
    }

    /// What can be sent now, without waiting.
    fn poll(&mut self) -> Result<Option<Item>> {
        let mut end = match self.unfinished {
            Some(end) => end,
            None => {
                let Some(segment) = segment_at(&self.log, &mut self.next)? else { return Ok(None) };
                lock(&self.log.state).leases.insert(self.lease, self.next.index);
                if segment.commit || !self.whole {
                    self.next = segment.end();
                    return Ok(Some(Item::Segment(segment)));
                }
                segment.end()
            }
        };
        let start = self.next;
        loop {
            self.unfinished = Some(end);
            let mut at = end;
            let Some(part) = segment_at(&self.log, &mut at)? else { return Ok(None) };
            if at.index != start.index {
                let why = format!("index {} ends inside a transaction", start.index);
                return Err(self.damaged(Error::new(ErrorKind::Corrupt, why)));
            }
            end = part.end();
            if part.commit {
                break;
            }
        }
        self.unfinished = None;
        self.next = end;
        let raw_size = end.offset.get() - start.offset.get();
        Ok(Some(Item::Large(Large { pos: start, raw_size, log: Arc::clone(&self.log) })))
    }

    /// A snapshot that is gone because a newer one replaced it is no damage.
    fn unreadable(&self, snapshot: &Snapshot, error: Error) -> Error {
        let held = lock(&self.log.state).snapshots.contains_key(&snapshot.info.index);
        if held { self.damaged(error) } else { Error::generation_changed() }
    }

    fn damaged(&self, error: Error) -> Error {
        self.log.report_damage(&error);
        error
    }
}

impl Drop for Subscription {
    fn drop(&mut self) {
        lock(&self.log.state).leases.remove(&self.lease);
    }
}

impl Large {
    /// The bytes, read from the log as they are wanted.
    pub fn open(&self) -> Result<Box<dyn Read + Send>> {
        let reader = LargeReader {
            log: Arc::clone(&self.log),
            next: self.pos,
            left: self.raw_size,
            part: None,
            at: 0,
        };
        Ok(Box::new(reader))
    }
}

struct LargeReader {
    log: Arc<Log>,
    next: Pos,
    left: u64,
    part: Option<Arc<Segment>>,
    at: usize,
}

impl Read for LargeReader {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        if self.left == 0 || out.is_empty() {
            return Ok(0);
        }
        if self.part.as_ref().is_none_or(|part| self.at >= part.raw.len()) {
            let part = segment_at(&self.log, &mut self.next).map_err(io::Error::other)?;
            let part = part.ok_or(io::ErrorKind::UnexpectedEof)?;
            self.next = part.end();
            self.part = Some(part);
            self.at = 0;
        }
        let rest = self.part.as_ref().and_then(|part| part.raw.get(self.at..)).unwrap_or_default();
        let room = usize::try_from(self.left).unwrap_or(usize::MAX).min(out.len());
        let len = rest.len().min(room);
        for (to, from) in out.iter_mut().zip(&rest[..len]) {
            *to = *from;
        }
        self.at += len;
        self.left -= u64::try_from(len).unwrap_or(self.left);
        Ok(len)
    }
}

impl State {
    /// Whether all of `index` is held, in files or in memory.
    pub(super) fn holds(&self, index: Index) -> bool {
        self.disk.contains_key(&index)
            || self.tip.is_some_and(|tip| tip.pos.index == index)
            || self.starts_in_tail(index)
    }

    fn starts_in_tail(&self, index: Index) -> bool {
        let first = self.tail.partition_point(|segment| segment.pos.index < index);
        self.tail.get(first).is_some_and(|segment| {
            segment.pos.index == index && segment.pos.offset == Offset::default()
        })
    }

    /// Moves `next` from the end of a finished index to the start of the following one.
    fn advance(&self, next: &mut Pos) -> Result<()> {
        let Some(tip) = self.tip else { return Err(Error::no_generation()) };
        if self.closed || tip.pos.generation != next.generation {
            return Err(Error::generation_changed());
        }
        if next.index < tip.pos.index && self.end_of(next.index) == Some(next.offset) {
            *next = Pos { index: next.index.next(), offset: Offset::default(), ..*next };
        }
        Ok(())
    }

    /// Where a finished index ends.
    fn end_of(&self, index: Index) -> Option<Offset> {
        let past = self.tail.partition_point(|segment| segment.pos.index <= index);
        let in_tail = past.checked_sub(1).and_then(|last| self.tail.get(last));
        if let Some(segment) = in_tail.filter(|segment| segment.pos.index == index) {
            return Some(segment.end().offset);
        }
        Offset::new(self.disk.get(&index)?.last()?.end()).ok()
    }
}

enum Found {
    InTail(Arc<Segment>),
    OnDisk(super::Stored, PageSize),
    Nothing,
}

/// The segment that holds byte `next` (moved to the following index if its own is finished), cut to
/// start there; `None` at the end of history.
fn segment_at(log: &Log, next: &mut Pos) -> Result<Option<Arc<Segment>>> {
    let found = {
        let state = lock(&log.state);
        state.advance(next)?;
        find(&state, *next)?
    };
    let whole = match found {
        Found::Nothing => return Ok(None),
        Found::InTail(segment) => segment,
        Found::OnDisk(stored, page_size) => match stored.load(page_size) {
            Ok(segment) => Arc::new(segment),
            Err(error) => return Err(missing_or_damaged(log, &stored, error)),
        },
    };
    if whole.pos == *next {
        return Ok(Some(whole));
    }
    Ok(whole.cut(next.offset).map(Arc::new))
}

fn find(state: &State, next: Pos) -> Result<Found> {
    let key = (next.index, next.offset);
    let past = state.tail.partition_point(|segment| (segment.pos.index, segment.pos.offset) <= key);
    let in_tail = past.checked_sub(1).and_then(|at| state.tail.get(at));
    if let Some(segment) = in_tail
        .filter(|segment| segment.pos.index == next.index && segment.end().offset > next.offset)
    {
        return Ok(Found::InTail(Arc::clone(segment)));
    }
    let at_end = state.tip.is_some_and(|tip| tip.pos == next);
    let Some(stored) = state.disk.get(&next.index).filter(|_| !at_end) else {
        // An index behind the end that is in neither place was deleted under a follower too slow
        // for it.
        let gone = state.tip.is_some_and(|tip| next.index < tip.pos.index);
        return if gone { Err(Error::generation_changed()) } else { Ok(Found::Nothing) };
    };
    let past = stored.partition_point(|segment| segment.pos.offset <= next.offset);
    let Some(stored) = past.checked_sub(1).and_then(|at| stored.get(at)) else {
        return Ok(Found::Nothing);
    };
    let page_size = state.page_size.ok_or_else(Error::no_generation)?;
    Ok(Found::OnDisk(stored.clone(), page_size))
}

/// A file that is gone because its index was deleted is no damage.
fn missing_or_damaged(log: &Log, stored: &super::Stored, error: Error) -> Error {
    if lock(&log.state).disk.contains_key(&stored.pos.index) {
        log.report_damage(&error);
        return error;
    }
    Error::generation_changed()
}

/// The running checksum up to (`index`, `offset`), from the tip or from the frame that ends there.
pub(super) fn checksum_at(log: &Log, index: Index, offset: Offset) -> Result<Option<Checksum>> {
    let Some(tip) = log.tip() else { return Ok(None) };
    if (index, offset) == (tip.pos.index, tip.pos.offset) {
        return Ok(tip.chain.map(|chain| chain.checksum));
    }
    let held = lock(&log.state).holds(index);
    let Some(last) = offset.get().checked_sub(1).filter(|_| held) else { return Ok(None) };
    let page_size = log.page_size()?;
    let mut at = Pos { index, offset: Offset::new(last)?, ..tip.pos };
    let wanted = at;
    let whole = {
        let state = lock(&log.state);
        find(&state, at)?
    };
    let segment = match whole {
        Found::Nothing => return Ok(None),
        Found::InTail(segment) => segment,
        Found::OnDisk(stored, page_size) => {
            at = stored.pos;
            let loaded = stored.load(page_size);
            Arc::new(loaded.map_err(|error| missing_or_damaged(log, &stored, error))?)
        }
    };
    debug_assert!(at.index == wanted.index);
    let len = usize::try_from(offset.get() - segment.pos.offset.get()).unwrap_or(usize::MAX);
    let Some(upto) = segment.raw.get(..len) else { return Ok(None) };
    if segment.pos.offset == Offset::default() && len == WAL_HEADER_SIZE {
        return Ok(Some(WalHeader::decode(upto)?.checksum));
    }
    let header = if segment.pos.offset == Offset::default() { WAL_HEADER_SIZE } else { 0 };
    let aligned = len >= header && (len - header) % page_size.frame_size() == 0;
    let frame = last_frame_header(upto, page_size).filter(|_| aligned && len > header);
    Ok(frame.map(|frame| FrameHeader::decode(&frame).checksum))
}

#[cfg(test)]
mod tests {
    use super::super::tests::{Folder, Writer, open, snapshot};
    use super::*;

    #[test]
    fn a_transaction_in_many_parts_is_read_on_from_where_it_was_not_finished() {
        let folder = Folder::new("parts");
        let log = open(&folder).0;
        let mut writer = Writer::new(&log, 7);
        snapshot(&log, 0, &[1; 512]);
        writer.write(&log, &[1]);
        log.adopt().unwrap();
        let mut subscription = log.subscribe(&Start::Fresh, true).unwrap();
        assert!(matches!(subscription.next(Duration::ZERO).unwrap(), Item::Snapshot(_)));
        while !matches!(subscription.next(Duration::ZERO).unwrap(), Item::Idle) {}
        let start = subscription.position();
        for page in 2..40 {
            let (part, chain) = writer.segment(&[page], page == 39);
            let end = part.end();
            log.append(part, chain).unwrap();
            let item = subscription.next(Duration::ZERO).unwrap();
            if page == 39 {
                let Item::Large(large) = item else { panic!("the end is there") };
                let size = end.offset.get() - start.offset.get();
                assert_eq!((large.pos, large.raw_size), (start, size));
                assert_eq!((subscription.position(), subscription.unfinished), (end, None));
                break;
            }
            // What was read is not read again: it may be hundreds of files by now.
            assert!(matches!(item, Item::Idle));
            assert_eq!((subscription.position(), subscription.unfinished), (start, Some(end)));
        }
    }
}
