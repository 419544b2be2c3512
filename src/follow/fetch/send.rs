//! What is fetched, as records: segments, the snapshot a stream starts over with, heartbeats.
//!
//! Frames go out as they are stored. Only a segment whose beginning the replica has already is
//! packed anew.

use std::io::{self, Read, Write};
use std::ops::RangeInclusive;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use super::super::archive::Extent;
use super::super::held;
use super::super::pipe::Pieces;
use super::super::proved::copy_checked;
use super::super::stream::{Manners, UNSIZED};
use super::Fetcher;
use crate::archive::{Archive, Listing, Opened, SegmentObject, SnapshotObject};
use crate::error::{Context, Error, Result};
use crate::header::page_size_of;
use crate::lz4;
use crate::pos::{Offset, Pos};
use crate::record::{FLAG_LZ4, Heartbeat, RecordType, StreamRecordHeader};
use crate::team::in_order;
use crate::wal::PageSize;

/// Segments up to this size, as stored, are read several at a time when there are many.
const SMALL_BYTES: u64 = 4 << 20;
/// That is, so many.
const BATCH: RangeInclusive<usize> = 8..=256;
/// By so many threads.
const THREADS: usize = 4;

impl<'a> Fetcher<'a> {
    pub(super) fn say(&self, page_size: PageSize, starts_over: bool) {
        self.writing.begin(Manners { page_size, beats: true, takes_acks: false, starts_over });
    }

    /// Sends what of `listing` comes next, as far as it is connected.
    pub(super) fn take(&mut self, listing: &Listing) -> Result<()> {
        while let Some(next) = held::leads_on(listing, self.at, self.is_labelled) {
            self.at = next;
            let many = held::from(listing, next);
            let small = many.iter().take_while(|it| it.info.size <= SMALL_BYTES).count();
            if small >= *BATCH.start() && many.first().is_some_and(|it| it.info.pos() == next) {
                self.batch(listing, &many[..small.min(*BATCH.end())])?;
            } else if let Some(segment) = held::segment_at(listing, next) {
                self.segment(segment)?;
            }
        }
        Ok(())
    }

    /// Sends segments as far as they are connected, reading ahead.
    fn batch(&mut self, listing: &Listing, segments: &[SegmentObject]) -> Result<()> {
        let archive = Arc::clone(self.archive);
        let read = move |segment: SegmentObject| {
            let name = || name_of(&archive, &segment);
            let Opened { label, frame, .. } = archive.open_segment(&segment).context(name)?;
            let mut bytes = Vec::new();
            // A store may say one size and send another.
            let frame = Box::new(frame.take(SMALL_BYTES));
            let content = copy_checked(frame, &mut bytes, |_| Ok(())).context(name)?;
            Ok((segment, label.is_some(), bytes, content))
        };
        in_order(
            "litestream-fetch",
            THREADS,
            segments.to_vec(),
            read,
            |(segment, labelled, frame, sent)| {
                if held::leads_on(listing, self.at, self.is_labelled) != Some(segment.info.pos()) {
                    return Ok(());
                }
                self.at = segment.info.pos();
                let mut out = self.begin_segment(&segment)?;
                out.write_all(&frame)?;
                self.end_segment(out, &segment, labelled, sent)
            },
        )
    }

    /// Sends a segment as it is.
    fn segment(&mut self, segment: &SegmentObject) -> Result<()> {
        let Opened { label, frame, .. } = self.archive.open_segment(segment)?;
        let mut out = self.begin_segment(segment)?;
        let sent = copy_checked(frame, &mut out, |_| Ok(()));
        let sent = sent.context(|| name_of(self.archive, segment))?;
        self.end_segment(out, segment, label.is_some(), sent)
    }

    fn begin_segment(&self, segment: &SegmentObject) -> Result<Pieces<'a>> {
        self.header(RecordType::WalSegment, 0, segment.info.pos())?;
        Ok(Pieces(self.writing))
    }

    fn end_segment(
        &mut self,
        out: Pieces,
        segment: &SegmentObject,
        is_labelled: bool,
        sent: u64,
    ) -> Result<()> {
        out.finish()?;
        if sent == 0 {
            return Err(Error::corrupt("it is empty").context(name_of(self.archive, segment)));
        }
        self.is_labelled = is_labelled;
        self.tree = Some(segment.tree());
        self.advance(sent)
    }

    /// Sends a segment from the current position on.
    pub(super) fn rest_of(&mut self, segment: &SegmentObject) -> Result<()> {
        let what = || name_of(self.archive, segment);
        let frame = self.archive.open_segment(segment)?.frame;
        let mut content = lz4::Decoder::new(frame, u64::MAX);
        let skip = self.at.offset.get().saturating_sub(segment.info.offset.get());
        io::copy(&mut content.by_ref().take(skip), &mut io::sink()).context(what)?;
        self.header(RecordType::WalSegment, 0, self.at)?;
        let mut encoder = lz4::Encoder::stored(Pieces(self.writing), None)?;
        let sent = io::copy(&mut content, &mut encoder).context(what)?;
        encoder.finish()?.finish()?;
        self.advance(sent)
    }

    fn advance(&mut self, sent: u64) -> Result<()> {
        self.at.offset = Offset::new(self.at.offset.get().saturating_add(sent))?;
        self.reached = self.at;
        Ok(())
    }

    /// Says that the stream starts over, and sends the snapshot it starts with.
    pub(super) fn snapshot(&mut self, snapshot: &SnapshotObject) -> Result<()> {
        let key = self.archive.snapshot_key(snapshot)?;
        let what = || self.archive.name(&key);
        let Opened { label, frame, .. } = self.archive.open_snapshot(snapshot)?;
        let pos = snapshot.info.pos();
        let mut begun = false;
        let mut out = Pieces(self.writing);
        let size = copy_checked(frame, &mut out, |first| {
            begun = true;
            let page_size = page_size_of(first);
            self.say(page_size.ok_or_else(|| Error::corrupt("it is no database"))?, true);
            self.header(RecordType::Snapshot, FLAG_LZ4, pos)
        });
        let size = size.context(what)?;
        if size == 0 || !begun {
            return Err(Error::corrupt("it is empty").context(what()));
        }
        out.finish()?;
        (self.at, self.reached) = (pos, pos);
        self.is_labelled = label.is_some();
        Ok(())
    }

    fn header(&self, kind: RecordType, flags: u32, pos: Pos) -> Result<()> {
        let header = StreamRecordHeader { flags, ..StreamRecordHeader::new(kind, pos, UNSIZED) };
        self.writing.write(&header.encode())
    }

    /// Tells the archive's end. A replica that catches up has another goal.
    pub(super) fn beat(&self) -> Result<()> {
        if self.extent == Extent::Rest {
            return Ok(());
        }
        let pos = self.owed().unwrap_or(self.reached);
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let unix_ms = u64::try_from(since.as_millis()).unwrap_or(u64::MAX);
        self.writing.write(&Heartbeat { pos, unix_ms }.encode_record())
    }
}

/// What a segment is called in messages.
pub(super) fn name_of(archive: &Archive, segment: &SegmentObject) -> String {
    let key = archive.segment_key(segment);
    key.map_or_else(|_| segment.info.pos().to_string(), |key| archive.name(&key))
}
