//! A segment: WAL bytes of one index from one offset, as captured (in memory) or as stored (a
//! file).
//!
//! Offset 0 starts with the 32-byte WAL header; everything else is whole frames. Concatenating an
//! index's segments by offset gives the WAL file byte for byte. A segment need not end in a commit:
//! a transaction larger than [`SEGMENT_BYTES_MAX`] is split, and only its last part does.

use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::time::{Instant, SystemTime};

use crate::error::{Context, Error, ErrorKind, Result};
use crate::fault::{self, Tap};
use crate::files::read_beside;
use crate::info::WalSegmentInfo;
use crate::lz4;
use crate::pos::{Offset, Pos};
use crate::wal::{PageSize, WAL_FRAME_HEADER_SIZE, WAL_HEADER_SIZE};

/// The most WAL bytes in one segment, about a thousand pages of 4 KiB: a follower holds one in
/// memory.
pub const SEGMENT_BYTES_MAX: usize = 4 << 20;

/// Bytes of an LZ4 frame up to its content size: magic (4), FLG, BD, then 8 bytes little-endian.
pub(super) const FRAME_HEAD: usize = 14;

/// The content size in an LZ4 frame's head, if FLG's bit 3 says it is there.
pub(super) fn content_size(head: &[u8; FRAME_HEAD]) -> Option<u64> {
    let known = head.starts_with(&0x184D_2204_u32.to_le_bytes()) && head[4] & 0x08 != 0;
    let bytes = head.get(6..)?.try_into().ok()?;
    known.then(|| u64::from_le_bytes(bytes))
}

/// WAL bytes shared by every follower.
#[derive(Debug)]
pub struct Segment {
    /// Where the bytes start.
    pub pos: Pos,
    /// WAL bytes: the header first if the offset is 0, then whole frames.
    pub raw: Vec<u8>,
    /// Whether the last frame commits (or there is no frame, only the header).
    pub commit: bool,
    /// When it was captured, by a clock that may be set.
    pub created_at: SystemTime,
    /// The same by one that may not: how old it is does not depend on what the time is said to be.
    pub born: Instant,
    compressed: OnceLock<Option<Vec<u8>>>,
}

impl Segment {
    /// Wraps captured bytes.
    pub fn new(pos: Pos, raw: Vec<u8>, commit: bool, created_at: SystemTime) -> Self {
        Segment { pos, raw, commit, created_at, born: Instant::now(), compressed: OnceLock::new() }
    }

    /// The same of something older. Nothing is older than the machine's start: a time from before
    /// that tells of a clock that was set, not of an age.
    fn found(self) -> Self {
        let age = SystemTime::now().duration_since(self.created_at).unwrap_or_default();
        Segment { born: self.born.checked_sub(age).unwrap_or(self.born), ..self }
    }

    /// The byte after the last one.
    pub fn end(&self) -> Pos {
        let len = u64::try_from(self.raw.len()).unwrap_or(u64::MAX);
        let offset = Offset::new(self.pos.offset.get().saturating_add(len));
        Pos { offset: offset.unwrap_or(self.pos.offset), ..self.pos }
    }

    /// The bytes as one LZ4 frame, made by the first who asks and shared by the rest; `None` if
    /// they cannot be compressed.
    pub fn compressed(&self) -> Option<&[u8]> {
        self.compressed.get_or_init(|| lz4::compress(&self.raw).ok()).as_deref()
    }

    /// The part from `offset` on, or `None` if the segment does not reach there.
    pub fn cut(&self, offset: Offset) -> Option<Segment> {
        let skip = usize::try_from(offset.get().checked_sub(self.pos.offset.get())?).ok()?;
        let raw = self.raw.get(skip..).filter(|raw| !raw.is_empty())?.to_vec();
        let pos = Pos { offset, ..self.pos };
        Some(Segment { born: self.born, ..Segment::new(pos, raw, self.commit, self.created_at) })
    }
}

/// A segment on disk.
#[derive(Clone, Debug)]
pub struct Stored {
    /// Where the bytes start.
    pub pos: Pos,
    /// WAL bytes in it.
    pub raw_size: u64,
    /// Bytes of the file.
    pub size: u64,
    /// When it was written.
    pub created_at: SystemTime,
    /// The LZ4 frame.
    pub path: PathBuf,
}

impl Stored {
    /// As the tables show it.
    pub fn info(&self) -> WalSegmentInfo {
        WalSegmentInfo {
            generation: self.pos.generation,
            index: self.pos.index,
            offset: self.pos.offset,
            size: self.size,
            created_at: self.created_at,
        }
    }

    /// The offset after the last byte.
    pub fn end(&self) -> u64 {
        self.pos.offset.get().saturating_add(self.raw_size)
    }

    /// A segment found at start: its size and age.
    pub fn find(pos: Pos, path: PathBuf) -> Result<Stored> {
        let name = || format!("cannot read segment {}", path.display());
        let mut file = open(&path).context(name)?;
        let meta = file.get_ref().metadata().context(name)?;
        let mut head = [0; FRAME_HEAD];
        file.read_exact(&mut head).context(name)?;
        let raw_size = content_size(&head).ok_or_else(|| {
            Error::new(ErrorKind::Corrupt, "the LZ4 frame does not say its size").context(name())
        })?;
        let created_at = meta.modified().context(name)?;
        Ok(Stored { pos, raw_size, size: meta.len(), created_at, path })
    }

    /// The first bytes of the content: the WAL header, of a segment at offset 0.
    pub fn head<const N: usize>(&self) -> Result<[u8; N]> {
        let name = || format!("cannot read segment {}", self.path.display());
        let file = open(&self.path).context(name)?;
        let mut head = [0; N];
        lz4::Decoder::new(file, u64::MAX).read_exact(&mut head).context(name)?;
        Ok(head)
    }

    /// Reads and checks the whole segment.
    pub fn load(&self, page_size: PageSize) -> Result<Segment> {
        let bad = |why: String| Error::new(ErrorKind::Corrupt, why);
        let name = || format!("cannot read segment {}", self.path.display());
        let file = open(&self.path).context(name)?;
        let limit = u64::try_from(SEGMENT_BYTES_MAX + page_size.frame_size() + WAL_HEADER_SIZE)
            .unwrap_or(u64::MAX);
        let mut raw = Vec::new();
        lz4::decompress(file, limit, &mut raw).map_err(|error| error.context(name()))?;
        let len = u64::try_from(raw.len()).unwrap_or(u64::MAX);
        if len != self.raw_size {
            let why = format!("it holds {len} bytes, not {}", self.raw_size);
            return Err(bad(why).context(name()));
        }
        let commit = ends_in_commit(&raw, self.pos, page_size)
            .ok_or_else(|| bad("it is not made of whole frames".into()).context(name()))?;
        Ok(Segment::new(self.pos, raw, commit, self.created_at).found())
    }
}

fn open(path: &Path) -> io::Result<Tap<File>> {
    fault::at("log/segment/open")?;
    Ok(Tap::new(read_beside(path)?, "log/segment/read"))
}

/// Whether WAL bytes starting at `pos` end in a commit frame or hold only the header; `None` if
/// they are not whole frames.
pub fn ends_in_commit(raw: &[u8], pos: Pos, page_size: PageSize) -> Option<bool> {
    let header = if pos.offset.get() == 0 { WAL_HEADER_SIZE } else { 0 };
    let frames = raw.len().checked_sub(header)?;
    if raw.is_empty() || frames % page_size.frame_size() != 0 {
        return None;
    }
    if frames == 0 {
        return Some(true);
    }
    let last = raw.get(raw.len() - page_size.frame_size()..)?;
    let page_count = last.get(4..8)?;
    Some(page_count.iter().any(|byte| *byte != 0))
}

/// The header of the last frame in WAL bytes, if they hold a frame.
pub fn last_frame_header(raw: &[u8], page_size: PageSize) -> Option<[u8; WAL_FRAME_HEADER_SIZE]> {
    let start = raw.len().checked_sub(page_size.frame_size())?;
    raw.get(start..start + WAL_FRAME_HEADER_SIZE)?.try_into().ok()
}
