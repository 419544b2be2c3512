//! Where a stream is, and what may come next: the order of records and the upstream's checksum
//! chain. Decides only; holds no pages and does no I/O.
//!
//! ```text
//! snapshot(G/I:0) --> segment(G/I:0) --> segment(G/I:O)* --> segment(G/I+1:0) --> ...
//! resume(G/I:O)   --> segment(G/I:O), or segment(G/I+1:0), or segment(G/I:0): skip up to O
//! ```
//!
//! A segment starts where the one before ended, or a new WAL starts at a commit. At offset 0 it
//! begins with the WAL's header; every frame continues the chain. What an ancestor sends again from
//! the start of an index is verified but not applied, and must reach our offset with our checksum:
//! otherwise the histories have parted ([`ErrorKind::ChecksumMismatch`]).

use std::cmp::Ordering;

use super::intents::UpstreamPos;
use crate::error::{Error, ErrorKind, Result};
use crate::pos::{Offset, Pos, compare_pos};
use crate::record::{FLAG_LZ4, RecordType, StreamRecordHeader};
use crate::wal::{Chain, FrameHeader, PageSize, PageSum, WAL_HEADER_SIZE, WalHeader};

/// Pages are numbered up to here; SQLite allows no more.
pub const PAGE_NO_MAX: u32 = 0xffff_fffe;

/// A state of the upstream's database between two transactions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Point {
    /// Where.
    pub upstream: UpstreamPos,
    /// Size of the database, in pages.
    pub page_count: u32,
}

/// Where the stream is.
pub struct Cursor {
    page_size: PageSize,
    /// The next byte; none before a snapshot.
    pos: Option<Pos>,
    chain: Option<Chain>,
    /// The last commit boundary; none while skipping.
    point: Option<Point>,
    /// Frames came after it.
    open: bool,
    /// What of this stream is applied already.
    skip: Option<Point>,
    /// No segment came yet.
    fresh: bool,
}

impl Cursor {
    /// A stream that is to continue at `from`, or to begin with a snapshot.
    pub fn new(page_size: PageSize, from: Option<Point>) -> Self {
        Self {
            page_size,
            pos: from.map(|point| point.upstream.pos),
            chain: from.and_then(|point| point.upstream.chain),
            point: from,
            open: false,
            skip: None,
            fresh: true,
        }
    }

    /// The last boundary between two transactions, if the stream is at or past one to be shown.
    pub fn point(&self) -> Option<Point> {
        self.point
    }

    /// Whether the stream is inside a transaction.
    pub fn is_open(&self) -> bool {
        self.open
    }

    /// The generation of what is being received.
    pub fn generation(&self) -> Option<crate::pos::Generation> {
        self.pos.map(|pos| pos.generation)
    }

    /// A snapshot of `pages` pages was received whole: the stream goes on from its index.
    pub fn snapshot(&mut self, header: &StreamRecordHeader, pages: u32) {
        let pos = header.pos().truncate();
        let upstream = UpstreamPos { pos, chain: None };
        let point = Point { upstream, page_count: pages };
        *self = Self { fresh: false, ..Self::new(self.page_size, Some(point)) };
    }

    /// Checks that a segment may come now.
    pub fn segment(&mut self, header: &StreamRecordHeader) -> Result<()> {
        let start = header.pos();
        let Some(expected) = self.pos else {
            return Err(Error::peer(format!("WAL segment {start} came before any snapshot")));
        };
        let fresh = std::mem::take(&mut self.fresh);
        if start == expected {
            return Ok(());
        }
        let same_generation = start.generation == expected.generation;
        if same_generation && start.offset == Offset::ZERO {
            // After the last index there is comes none, not even itself again.
            let next = expected.index.next();
            let is_next = start.index == next && next > expected.index;
            if self.skip.is_none() && !self.open && is_next {
                self.pos = Some(start);
                self.chain = None;
                return Ok(());
            }
            if fresh && start.index == expected.index {
                self.skip = self.point.take();
                self.pos = Some(start);
                self.chain = None;
                return Ok(());
            }
            if self.skip.is_some() {
                return Err(parted(expected));
            }
        }
        Err(Error::peer(format!("WAL segment {start} came where {expected} was to come")))
    }

    /// Whether the next bytes of the segment are a WAL's header.
    pub fn wants_header(&self) -> bool {
        self.pos.is_some_and(|pos| pos.offset == Offset::ZERO)
    }

    /// Takes the stream past a WAL's header.
    pub fn header(&mut self, bytes: &[u8]) -> Result<()> {
        let header = WalHeader::decode(bytes).map_err(as_peer)?;
        if header.page_size != self.page_size {
            return Err(Error::peer(format!(
                "the upstream's WAL has pages of {} bytes, its database of {}",
                header.page_size, self.page_size
            )));
        }
        self.chain = Some(Chain::start(&header));
        self.advance(WAL_HEADER_SIZE)?;
        if self.skip.is_none() {
            self.settle(None);
        }
        self.check_skip()
    }

    /// Takes the stream past a frame: its page, which adds so much to any chain, is to be applied,
    /// or (none) is applied already.
    pub fn frame(&mut self, frame: &[u8]) -> Result<Option<(FrameHeader, PageSum)>> {
        let Some(chain) = &mut self.chain else {
            return Err(Error::peer("a WAL segment has no header before its frames"));
        };
        let (header, sum) = chain.verify_summed(frame).map_err(as_peer)?;
        if header.page_no > PAGE_NO_MAX || header.page_count > PAGE_NO_MAX {
            return Err(Error::peer("a frame's numbers are beyond any database"));
        }
        if header.page_no == self.page_size.lock_page() {
            return Err(Error::peer(format!(
                "a frame holds page {}, the lock page",
                header.page_no
            )));
        }
        self.advance(self.page_size.frame_size())?;
        if self.skip.is_some() {
            self.check_skip()?;
            return Ok(None);
        }
        if header.is_commit() {
            self.settle(Some(header.page_count));
        } else {
            self.open = true;
        }
        Ok(Some((header, sum)))
    }

    fn advance(&mut self, bytes: usize) -> Result<()> {
        let pos = self.pos.as_mut().ok_or_else(|| Error::bug("a cursor without a position"))?;
        let bytes = u64::try_from(bytes).unwrap_or(u64::MAX);
        pos.offset = Offset::new(pos.offset.get().saturating_add(bytes)).map_err(as_peer)?;
        Ok(())
    }

    /// Here a transaction ends.
    fn settle(&mut self, page_count: Option<u32>) {
        self.open = false;
        if let (Some(pos), Some(page_count)) =
            (self.pos, page_count.or(self.point.map(|point| point.page_count)))
        {
            let upstream = UpstreamPos { pos, chain: self.chain };
            self.point = Some(Point { upstream, page_count });
        }
    }

    /// Ends the skipping where what is applied ends.
    fn check_skip(&mut self) -> Result<()> {
        let (Some(skip), Some(pos)) = (self.skip, self.pos) else { return Ok(()) };
        match compare_pos(pos, skip.upstream.pos)? {
            Ordering::Less => Ok(()),
            Ordering::Equal if skip.upstream.chain.is_none_or(|ours| self.chain == Some(ours)) => {
                self.skip = None;
                self.point = Some(skip);
                Ok(())
            }
            _ => Err(parted(skip.upstream.pos)),
        }
    }
}

/// Checks what a record's header says of itself. Returns whether its payload is compressed.
pub fn check_flags(header: &StreamRecordHeader) -> Result<bool> {
    let known = if header.kind == RecordType::Snapshot { FLAG_LZ4 } else { 0 };
    if header.flags & !known != 0 {
        return Err(Error::peer(format!("a record has flags {:#x}, not asked for", header.flags)));
    }
    Ok(header.flags & FLAG_LZ4 != 0)
}

fn parted(pos: Pos) -> Error {
    let text = format!("the upstream's history is not this replica's at {pos}");
    Error::new(ErrorKind::ChecksumMismatch, text)
}

/// What would be damage in a file of ours is the peer's fault in its stream.
fn as_peer(error: Error) -> Error {
    Error::peer(error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pos::{Generation, Index};
    use crate::wal::{ByteOrder, Checksum};

    const SIZE: PageSize = PageSize::MIN;

    fn pos(index: u64, offset: u64) -> Pos {
        let generation = Generation::from_bits(1);
        Pos::new(generation, Index::new(index).unwrap(), Offset::new(offset).unwrap())
    }

    fn record(kind: RecordType, index: u64, offset: u64) -> StreamRecordHeader {
        StreamRecordHeader::new(kind, pos(index, offset), 0)
    }

    fn segment(index: u64, offset: u64) -> StreamRecordHeader {
        record(RecordType::WalSegment, index, offset)
    }

    /// A WAL: its header, and frames of one page each; those with `true` commit at 9 pages.
    fn wal(salt: u32, commits: &[bool]) -> (WalHeader, Vec<Vec<u8>>, Chain) {
        let header = WalHeader::new(ByteOrder::Little, SIZE, 0, [salt, 2]);
        let mut chain = Chain::start(&header);
        let frames = commits
            .iter()
            .map(|commit| {
                let mut frame = Vec::new();
                chain.append(3, if *commit { 9 } else { 0 }, &[7; 512], &mut frame);
                frame
            })
            .collect();
        (header, frames, chain)
    }

    #[test]
    fn a_snapshot_then_its_wal_then_the_next() {
        let mut cursor = Cursor::new(SIZE, None);
        assert!(cursor.segment(&segment(0, 0)).is_err());
        cursor.snapshot(&record(RecordType::Snapshot, 4, 0), 5);
        assert_eq!(cursor.point().unwrap().upstream, UpstreamPos { pos: pos(4, 0), chain: None });
        let (header, frames, chain) = wal(1, &[false, true]);
        cursor.segment(&segment(4, 0)).unwrap();
        assert!(cursor.wants_header());
        cursor.header(&header.encode()).unwrap();
        let point = cursor.point().unwrap();
        assert_eq!((point.page_count, point.upstream.pos), (5, pos(4, 32)));
        cursor.frame(&frames[0]).unwrap().unwrap();
        assert!(cursor.is_open());
        assert_eq!(cursor.point(), Some(point));
        // A new WAL cannot come inside a transaction.
        assert!(cursor.segment(&segment(5, 0)).is_err());
        cursor.frame(&frames[1]).unwrap().unwrap();
        let end = UpstreamPos { pos: pos(4, 32 + 2 * 536), chain: Some(chain) };
        assert_eq!(cursor.point(), Some(Point { upstream: end, page_count: 9 }));
        cursor.segment(&segment(5, 0)).unwrap();
        assert!(cursor.wants_header());
    }

    #[test]
    fn order_is_strict() {
        let check = |index: u64, offset: u64| {
            let mut cursor = Cursor::new(SIZE, None);
            cursor.snapshot(&record(RecordType::Snapshot, 4, 0), 5);
            cursor.segment(&segment(4, 0)).unwrap();
            cursor.header(&wal(1, &[]).0.encode()).unwrap();
            cursor.segment(&segment(index, offset)).is_ok()
        };
        assert!(check(4, 32));
        assert!(check(5, 0));
        assert!(!check(4, 0));
        assert!(!check(4, 568));
        assert!(!check(6, 0));
        assert!(!check(3, 0));
        assert!(!check(5, 32));
    }

    #[test]
    fn what_is_applied_already_is_skipped() {
        let (header, frames, _) = wal(1, &[true, true, true]);
        let mut ours = Chain::start(&header);
        ours.verify(&frames[0]).unwrap();
        ours.verify(&frames[1]).unwrap();
        let upstream = UpstreamPos { pos: pos(4, 32 + 2 * 536), chain: Some(ours) };
        let from = Point { upstream, page_count: 9 };
        let mut cursor = Cursor::new(SIZE, Some(from));
        cursor.segment(&segment(4, 0)).unwrap();
        cursor.header(&header.encode()).unwrap();
        assert_eq!(cursor.point(), None);
        assert_eq!(cursor.frame(&frames[0]).unwrap(), None);
        assert_eq!(cursor.frame(&frames[1]).unwrap(), None);
        assert_eq!(cursor.point(), Some(from));
        assert!(cursor.frame(&frames[2]).unwrap().is_some());

        // Another history: other salts, hence another chain.
        let (header, frames, _) = wal(9, &[true, true, true]);
        let mut cursor = Cursor::new(SIZE, Some(from));
        cursor.segment(&segment(4, 0)).unwrap();
        cursor.header(&header.encode()).unwrap();
        cursor.frame(&frames[0]).unwrap();
        let error = cursor.frame(&frames[1]).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::ChecksumMismatch);
        // The same if its WAL ends before our position.
        let mut cursor = Cursor::new(SIZE, Some(from));
        cursor.segment(&segment(4, 0)).unwrap();
        cursor.header(&header.encode()).unwrap();
        let error = cursor.segment(&segment(5, 0)).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::ChecksumMismatch);
    }

    #[test]
    fn resuming_in_the_next_wal() {
        let chain = wal(1, &[]).2;
        let upstream = UpstreamPos { pos: pos(4, 568), chain: Some(chain) };
        let mut cursor = Cursor::new(SIZE, Some(Point { upstream, page_count: 9 }));
        cursor.segment(&segment(5, 0)).unwrap();
        assert!(cursor.wants_header());
    }

    #[test]
    fn bad_frames() {
        let refuse = |page_no: u32, page_count: u32| {
            let header = WalHeader::new(ByteOrder::Little, SIZE, 0, [1, 2]);
            let mut frame = Vec::new();
            Chain::start(&header).append(page_no, page_count, &[0; 512], &mut frame);
            let mut cursor = Cursor::new(SIZE, None);
            cursor.snapshot(&record(RecordType::Snapshot, 0, 0), 5);
            cursor.segment(&segment(0, 0)).unwrap();
            assert_eq!(cursor.frame(&frame).unwrap_err().kind(), ErrorKind::Peer);
            cursor.header(&header.encode()).unwrap();
            cursor.frame(&frame).unwrap_err().kind() == ErrorKind::Peer
        };
        assert!(refuse(0x4000_0000 / 512 + 1, 5));
        assert!(refuse(u32::MAX, 5));
        assert!(refuse(5, u32::MAX));
        let mut cursor = Cursor::new(SIZE, None);
        cursor.snapshot(&record(RecordType::Snapshot, 0, 0), 5);
        cursor.segment(&segment(0, 0)).unwrap();
        let other = WalHeader::new(ByteOrder::Little, PageSize::MAX, 0, [1, 2]);
        assert_eq!(cursor.header(&other.encode()).unwrap_err().kind(), ErrorKind::Peer);
        let chain = Chain { checksum: Checksum::default(), ..wal(1, &[]).2 };
        assert_ne!(chain, wal(1, &[]).2);
    }

    #[test]
    fn flags_that_were_not_asked_for() {
        let mut header = record(RecordType::Snapshot, 0, 0);
        assert!(!check_flags(&header).unwrap());
        header.flags = FLAG_LZ4;
        assert!(check_flags(&header).unwrap());
        header.flags = 2;
        assert!(check_flags(&header).is_err());
        let mut header = segment(0, 0);
        header.flags = FLAG_LZ4;
        assert!(check_flags(&header).is_err());
    }
}
