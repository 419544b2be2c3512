//! Segments of the log made into one object.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use crate::archive::label::Moment;
use crate::error::{Error, Result};
use crate::log::{SEGMENT_BYTES_MAX, Segment, last_frame_header};
use crate::lz4;
use crate::pos::Pos;
use crate::wal::{Checksum, FrameHeader, PageSize, WAL_HEADER_SIZE, WalHeader};

/// Consecutive segments of one index, up to [`SEGMENT_BYTES_MAX`] WAL bytes in all.
#[derive(Default)]
pub(super) struct Batch {
    parts: Vec<Arc<Segment>>,
    bytes: usize,
}

impl Batch {
    /// Whether there is nothing to send.
    pub(super) fn is_empty(&self) -> bool {
        self.parts.is_empty()
    }

    /// Where it begins and ends.
    pub(super) fn bounds(&self) -> Option<(Pos, Pos)> {
        Some((self.parts.first()?.pos, self.parts.last()?.end()))
    }

    /// When the first of it was captured.
    pub(super) fn since(&self) -> Option<SystemTime> {
        self.parts.first().map(|part| part.created_at)
    }

    /// Takes a segment that follows; gives it back if it belongs into another object.
    pub(super) fn push(&mut self, segment: Arc<Segment>) -> Option<Arc<Segment>> {
        if let Some((start, _)) = self.bounds() {
            let another = start.index != segment.pos.index;
            if another || self.bytes + segment.raw.len() > SEGMENT_BYTES_MAX {
                return Some(segment);
            }
        }
        self.bytes += segment.raw.len();
        self.parts.push(segment);
        None
    }

    /// When which of it was committed. A clock that was set back is held where it was, `least`
    /// being the last time given before.
    pub(super) fn moments(&self, least: SystemTime) -> Vec<Moment> {
        let mut latest = least;
        let commits = self.parts.iter().filter(|part| part.commit);
        commits
            .map(|part| {
                latest = latest.max(part.created_at);
                Moment { end: part.end().offset, at: latest }
            })
            .collect()
    }

    /// All of it as one LZ4 frame.
    pub(super) fn frame(&self) -> Result<Vec<u8>> {
        let size = u64::try_from(self.bytes).unwrap_or(u64::MAX);
        let mut encoder = lz4::Encoder::new(Vec::with_capacity(64 + self.bytes / 2), Some(size))?;
        for part in &self.parts {
            std::io::Write::write_all(&mut encoder, &part.raw)?;
        }
        encoder.finish()
    }

    /// The WAL's running checksum at its end.
    pub(super) fn checksum(&self, page_size: PageSize) -> Result<Checksum> {
        let last = self.parts.last().ok_or_else(|| Error::bug("an empty batch has no end"))?;
        end_checksum(&last.raw, last.pos, page_size)
    }
}

/// The running checksum after WAL bytes that start at `pos`.
pub(super) fn end_checksum(raw: &[u8], pos: Pos, page_size: PageSize) -> Result<Checksum> {
    let header = if pos.offset.get() == 0 { WAL_HEADER_SIZE } else { 0 };
    if header > 0 && raw.len() == header {
        return Ok(WalHeader::decode(raw)?.checksum);
    }
    let frames = raw.len().checked_sub(header).filter(|len| *len > 0);
    let whole = frames.is_some_and(|len| len.is_multiple_of(page_size.frame_size()));
    let last = last_frame_header(raw, page_size).filter(|_| whole);
    let last = last.ok_or_else(|| Error::corrupt("it is not made of whole frames"))?;
    Ok(FrameHeader::decode(&last).checksum)
}

/// A time as labels have it: a microsecond is the smallest there is.
pub(super) fn in_micros(time: SystemTime) -> SystemTime {
    let since = time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    let micros = u64::try_from(since.as_micros()).unwrap_or(u64::MAX);
    SystemTime::UNIX_EPOCH + Duration::from_micros(micros)
}
