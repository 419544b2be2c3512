//! Whether an archive holds a replica's position, and what it has there: decisions on a listing,
//! and the proof by the checksum of the frame before.

use std::io::Read;

use super::archive::From;
use crate::archive::{Listing, Opened, SegmentObject};
use crate::error::Result;
use crate::lz4;
use crate::pos::{Offset, Pos};
use crate::wal::{Checksum, FrameHeader, WAL_FRAME_HEADER_SIZE, WAL_HEADER_SIZE, WalHeader};

/// Where a position is in an archive.
#[derive(Debug, PartialEq, Eq)]
pub enum Held<'a> {
    /// The byte before it is in this segment, or past its end.
    At(&'a SegmentObject),
    /// It is the start of an index, which the archive knows.
    AtStart,
    /// Everything the archive has is before it.
    Ahead,
    /// It was deleted, or never archived.
    Gone,
}

/// Looks for `pos` in what is known of its generation.
pub fn find(listing: &Listing, pos: Pos) -> Held<'_> {
    let start = (pos.index, pos.offset);
    let before = listing.segments.partition_point(|it| (it.info.index, it.info.offset) < start);
    let previous = before.checked_sub(1).and_then(|at| listing.segments.get(at));
    if pos.offset == Offset::ZERO {
        let has_snapshot = listing.snapshots.iter().any(|it| it.info.index == pos.index);
        let follows = listing.segments.get(before).is_some_and(|it| it.info.pos() == pos);
        let ended = listing.ends.keys().any(|index| index.next() == pos.index);
        if has_snapshot || follows || ended {
            return Held::AtStart;
        }
    } else if let Some(segment) = previous.filter(|it| it.info.index == pos.index) {
        return Held::At(segment);
    }
    let later = listing.segments.get(before).is_some()
        || listing.snapshots.iter().any(|it| it.info.index > pos.index);
    if later { Held::Gone } else { Held::Ahead }
}

/// Where to read on after `at`, the end of what was read: a segment that starts there, or the next
/// index if this one is finished. `is_labelled`: whether its end must be told.
pub fn leads_on(listing: &Listing, at: Pos, is_labelled: bool) -> Option<Pos> {
    let has = |pos: Pos| segment_at(listing, pos).is_some();
    if has(at) {
        return Some(at);
    }
    let next = Pos { index: at.index.next(), offset: Offset::ZERO, ..at };
    let is_finished = match listing.ends.get(&at.index) {
        Some(end) => *end == at.offset,
        None => !is_labelled && at.offset != Offset::ZERO && has(next),
    };
    is_finished.then_some(next)
}

/// The segment that starts at `pos`.
pub fn segment_at(listing: &Listing, pos: Pos) -> Option<&SegmentObject> {
    let place = (pos.index, pos.offset);
    let found = listing.segments.binary_search_by_key(&place, |it| (it.info.index, it.info.offset));
    found.ok().and_then(|at| listing.segments.get(at))
}

/// The segments that start at `pos` or later.
pub fn from(listing: &Listing, pos: Pos) -> &[SegmentObject] {
    let place = (pos.index, pos.offset);
    let at = listing.segments.partition_point(|it| (it.info.index, it.info.offset) < place);
    &listing.segments[at..]
}

/// Whether the archive has moved on without a connection to `at`, the end of what was read: it has
/// segments past it that nothing leads to, or it has nothing there any more and newer snapshots.
pub fn is_cut_off(listing: &Listing, at: Pos, is_labelled: bool) -> bool {
    if leads_on(listing, at, is_labelled).is_some() {
        return false;
    }
    let past = listing.segments.last();
    past.is_some_and(|it| (it.info.index, it.info.offset) > (at.index, at.offset))
        || find(listing, at) == Held::Gone
}

/// Reads a segment that starts at `start` up to the replica's position and to its end. Returns
/// where it ends, or none if its history is another one.
pub fn verify(opened: Opened, start: Offset, from: &From) -> Result<Option<Offset>> {
    let Some(chain) = from.upstream.chain else { return Ok(None) };
    let mut content = lz4::Decoder::new(opened.frame, u64::MAX);
    let offset = from.upstream.pos.offset.get();
    let header = WAL_HEADER_SIZE as u64;
    // What holds the running checksum of this position: the WAL's header, or the frame before.
    let proof = match offset.checked_sub(from.page_size.frame_size() as u64) {
        Some(frame) if frame >= header => frame,
        _ => 0,
    };
    let Some(skip) = proof.checked_sub(start.get()) else { return Ok(None) };
    let skipped = std::io::copy(&mut content.by_ref().take(skip), &mut std::io::sink())?;
    let mut bytes = Vec::with_capacity(WAL_HEADER_SIZE);
    content.by_ref().take(header).read_to_end(&mut bytes)?;
    let rest = std::io::copy(&mut content, &mut std::io::sink())?;
    let end = Offset::new(start.get() + skipped + bytes.len() as u64 + rest)?;
    if end.get() < offset {
        return Ok(Some(end));
    }
    let checksum = if proof == 0 {
        WalHeader::decode(&bytes).ok().map(|header| (header.salts, header.checksum))
    } else {
        let frame = bytes.first_chunk::<WAL_FRAME_HEADER_SIZE>().map(FrameHeader::decode);
        frame.map(|frame| (frame.salts, frame.checksum))
    };
    let ours: (_, Checksum) = (chain.salts, chain.checksum);
    Ok((checksum == Some(ours)).then_some(end))
}
