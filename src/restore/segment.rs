//! One WAL segment: fetched, decompressed, and every frame of it proved but the first, whose proof
//! is the end of the segment before ([`Segment::follows`]).
//!
//! A segment that is too large for memory, as other makers may write them, goes to a file without a
//! name.

use std::fs::File;
use std::io::{Read, Write};
use std::os::unix::fs::FileExt;
use std::path::Path;

use super::destination::nameless;
use super::stop::Stop;
use crate::archive::{Archive, SegmentObject};
use crate::error::{Context, Error, Result};
use crate::fault;
use crate::lz4::Decoder;
use crate::pos::{Offset, Pos};
use crate::wal::{
    ByteOrder, Chain, Checksum, FrameHeader, PageSize, Salts, WAL_HEADER_SIZE, WalHeader,
};

/// The most bytes of a segment held in memory.
const MEMORY_BYTES_MAX: u64 = 32 << 20;
/// The largest WAL there can be: 2^32 frames.
const WAL_BYTES_MAX: u64 = 1 << 49;
/// About so many bytes of frames are looked at at once.
const PART_BYTES: u64 = 1 << 20;

/// Where WAL bytes are.
enum Raw {
    Memory(Vec<u8>),
    Spool(File, u64),
}

/// A commit in a segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Commit {
    /// Where it ends.
    pub end: Offset,
    /// Pages of the database after it.
    pub page_count: u32,
}

/// A segment, proved but for its first frame.
pub struct Segment {
    /// Where it starts.
    pub pos: Pos,
    /// Its object, as messages call it.
    pub name: String,
    /// Whether it is ours.
    pub is_labelled: bool,
    /// Where it ends.
    pub end: Offset,
    /// The last commit that is wanted.
    pub commit: Option<Commit>,
    page_size: PageSize,
    raw: Raw,
    salts: Salts,
    /// The running checksum at its end.
    checksum: Checksum,
    /// The first frame, if there is none to prove it in the segment itself.
    first: Option<Vec<u8>>,
}

/// What the next newer segment needs of the one before it.
pub struct Link {
    pos: Pos,
    salts: Salts,
    first: Vec<u8>,
    page_size: PageSize,
    name: String,
}

/// Fetches a segment and proves it. Of its commits those up to `cut` are wanted.
pub fn fetch(
    archive: &Archive,
    object: &SegmentObject,
    page_size: PageSize,
    cut: Option<Offset>,
    folder: &Path,
    stop: &Stop,
) -> Result<Segment> {
    stop.check()?;
    let name = archive.name(&archive.segment_key(object)?);
    let opened = archive.open_segment(object)?;
    let is_labelled = opened.label.is_some();
    let read = || {
        let raw = Raw::read(Decoder::new(opened.frame, WAL_BYTES_MAX), folder, stop)?;
        let proof = prove(&raw, object.info.pos(), page_size, cut, stop)?;
        Ok(Segment { pos: object.info.pos(), name: String::new(), is_labelled, raw, ..proof })
    };
    let segment: Result<Segment> = read();
    let segment = segment.map_err(|error: Error| error.context(&name))?;
    Ok(Segment { name, ..segment })
}

/// The WAL header at the start of an index.
pub fn read_header(archive: &Archive, object: &SegmentObject) -> Result<WalHeader> {
    let mut header = [0; WAL_HEADER_SIZE];
    let opened = archive.open_segment(object)?;
    let read = Decoder::new(opened.frame, WAL_BYTES_MAX).read_exact(&mut header);
    let header = read.map_err(Error::from).and_then(|()| WalHeader::decode(&header));
    let key = archive.segment_key(object)?;
    header.map_err(|error| error.context(archive.name(&key)))
}

impl Raw {
    fn read(mut content: impl Read, folder: &Path, stop: &Stop) -> Result<Raw> {
        let mut bytes = Vec::new();
        content.by_ref().take(MEMORY_BYTES_MAX).read_to_end(&mut bytes)?;
        if (bytes.len() as u64) < MEMORY_BYTES_MAX {
            return Ok(Raw::Memory(bytes));
        }
        let mut file = nameless(folder)?;
        let mut size = 0;
        while !bytes.is_empty() {
            stop.check()?;
            fault::write("restore/spool/write", &bytes, |bytes| file.write_all(bytes))
                .context(|| "cannot write a large segment aside".to_owned())?;
            size += bytes.len() as u64;
            bytes.clear();
            content.by_ref().take(PART_BYTES).read_to_end(&mut bytes)?;
        }
        Ok(Raw::Spool(file, size))
    }

    fn size(&self) -> u64 {
        match self {
            Raw::Memory(bytes) => bytes.len() as u64,
            Raw::Spool(_, size) => *size,
        }
    }

    /// The bytes from `start` to `end`, which are there.
    fn part<'a>(&'a self, start: u64, end: u64, room: &'a mut Vec<u8>) -> Result<&'a [u8]> {
        let outside = || Error::bug("a part outside of a segment");
        let len = usize::try_from(end.checked_sub(start).ok_or_else(outside)?);
        let len = len.map_err(|_| outside())?;
        match self {
            Raw::Memory(bytes) => {
                let start = usize::try_from(start).map_err(|_| outside())?;
                bytes.get(start..start + len).ok_or_else(outside)
            }
            Raw::Spool(file, _) => {
                room.resize(len, 0);
                let read =
                    fault::at("restore/spool/read").and_then(|()| file.read_exact_at(room, start));
                read.context(|| "cannot read a large segment back".to_owned())?;
                Ok(room)
            }
        }
    }
}

/// A segment with everything in it but its content and its name.
fn prove(
    raw: &Raw,
    pos: Pos,
    page_size: PageSize,
    cut: Option<Offset>,
    stop: &Stop,
) -> Result<Segment> {
    let frame_size = page_size.frame_size() as u64;
    let header_size = if pos.offset == Offset::ZERO { WAL_HEADER_SIZE as u64 } else { 0 };
    let frames = raw.size().checked_sub(header_size).filter(|bytes| bytes % frame_size == 0);
    let before = pos.offset.get().saturating_sub(WAL_HEADER_SIZE as u64);
    if frames.is_none() || raw.size() == 0 || !before.is_multiple_of(frame_size) {
        let why =
            format!("{} bytes are not WAL frames with pages of {page_size} bytes", raw.size());
        return Err(Error::corrupt(why));
    }
    let mut room = Vec::new();
    let mut proof = if header_size > 0 {
        Proof::of_header(raw.part(0, header_size, &mut room)?, page_size)?
    } else {
        Proof::of_first(raw.part(0, frame_size, &mut room)?, page_size)
    };
    let part = PART_BYTES.next_multiple_of(frame_size);
    let mut start = header_size;
    while start < raw.size() {
        stop.check()?;
        let end = raw.size().min(start + part);
        proof.add(raw.part(start, end, &mut room)?, pos.offset.get() + start, cut)?;
        start = end;
    }
    Ok(Segment {
        pos,
        name: String::new(),
        is_labelled: false,
        end: Offset::new(pos.offset.get().saturating_add(raw.size()))?,
        commit: proof.commit,
        page_size,
        raw: Raw::Memory(Vec::new()),
        salts: proof.chain.salts,
        checksum: proof.chain.checksum,
        first: proof.first,
    })
}

/// The chain through a segment.
struct Proof {
    chain: Chain,
    /// Whether the chain's byte order is known, and not only likely.
    knows_order: bool,
    first: Option<Vec<u8>>,
    /// Whether `first` is still to be passed over.
    at_first: bool,
    commit: Option<Commit>,
}

impl Proof {
    fn of_header(header: &[u8], page_size: PageSize) -> Result<Proof> {
        let header = WalHeader::decode(header)?;
        if header.page_size != page_size {
            let (wal, snapshot) = (header.page_size, page_size);
            let why = format!("pages of {wal} bytes, but the snapshot has pages of {snapshot}");
            return Err(Error::corrupt(why));
        }
        let chain = Chain::start(&header);
        Ok(Proof { chain, knows_order: true, first: None, at_first: false, commit: None })
    }

    /// A chain that goes on from what the first frame says of itself.
    fn of_first(frame: &[u8], page_size: PageSize) -> Proof {
        let header = header_of(frame);
        let (salts, checksum) = (header.salts, header.checksum);
        let chain = Chain { order: ByteOrder::NATIVE, page_size, salts, checksum };
        let first = Some(frame.to_vec());
        Proof { chain, knows_order: false, first, at_first: true, commit: None }
    }

    fn add(&mut self, frames: &[u8], at: u64, cut: Option<Offset>) -> Result<()> {
        let mut end = at;
        for frame in frames.chunks_exact(self.chain.page_size.frame_size()) {
            end += frame.len() as u64;
            let header = if std::mem::take(&mut self.at_first) {
                header_of(frame)
            } else {
                self.step(frame)?
            };
            if header.is_commit() && cut.is_none_or(|cut| end <= cut.get()) {
                self.commit =
                    Some(Commit { end: Offset::new(end)?, page_count: header.page_count });
            }
        }
        Ok(())
    }

    fn step(&mut self, frame: &[u8]) -> Result<FrameHeader> {
        if !self.knows_order {
            self.knows_order = true;
            let order = [ByteOrder::Little, ByteOrder::Big].into_iter().find(|order| {
                let mut chain = Chain { order: *order, ..self.chain };
                chain.verify(frame).is_ok()
            });
            self.chain.order = order.unwrap_or(self.chain.order);
        }
        self.chain.verify(frame)
    }
}

fn header_of(frame: &[u8]) -> FrameHeader {
    let bytes = frame.first_chunk();
    bytes.map_or(FrameHeader::decode(&[0; 24]), FrameHeader::decode)
}

impl Link {
    /// The segment's object, as messages call it.
    pub fn name(&self) -> &str {
        &self.name
    }
}

impl Segment {
    /// Fails unless `newer` goes on where this one ends.
    pub fn follows(&self, newer: &Link) -> Result<()> {
        if self.end != newer.pos.offset {
            let end = Pos { offset: self.end, ..self.pos };
            return Err(if self.end < newer.pos.offset {
                crate::archive::plan::missing(end)
            } else {
                let why = format!("it ends at {end}, inside of {}", newer.name);
                Error::corrupt(why).context(&self.name)
            });
        }
        let (salts, checksum, page_size) = (self.salts, self.checksum, newer.page_size);
        let goes_on = [ByteOrder::Little, ByteOrder::Big].into_iter().any(|order| {
            let mut chain = Chain { order, page_size, salts, checksum };
            chain.verify(&newer.first).is_ok()
        });
        if newer.salts != salts || !goes_on {
            let why = format!("its first frame does not continue {}", self.name);
            return Err(Error::corrupt(why).context(&newer.name));
        }
        Ok(())
    }

    /// What the segment before this one is to be held against; `None` at the start of an index.
    pub fn link(&mut self) -> Option<Link> {
        let first = self.first.take()?;
        let name = self.name.clone();
        Some(Link { pos: self.pos, salts: self.salts, first, page_size: self.page_size, name })
    }

    /// Hands out the frames before `end`, in parts, the last ones first.
    pub fn parts(&self, end: Offset, mut each: impl FnMut(&[u8]) -> Result<()>) -> Result<()> {
        let start = self.pos.offset.get();
        let header_size = if start == 0 { WAL_HEADER_SIZE as u64 } else { 0 };
        let mut end = end.get().min(self.end.get()).saturating_sub(start);
        let part = PART_BYTES.next_multiple_of(self.page_size.frame_size() as u64);
        // In memory it is one part: the fewer there are, the longer the runs of pages.
        let part = if matches!(self.raw, Raw::Memory(_)) { end.max(1) } else { part };
        let mut room = Vec::new();
        while end > header_size {
            let begin = end.saturating_sub(part).max(header_size);
            each(self.raw.part(begin, end, &mut room)?)?;
            end = begin;
        }
        Ok(())
    }
}
