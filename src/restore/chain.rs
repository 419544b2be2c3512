//! From a chain of objects to a database file: segments newest first, then the snapshot.
//!
//! Segments are fetched and proved by several threads and come out newest first. Each must end
//! where the newer one begins, with the checksum that one's first frame continues; the oldest of an
//! index begins with the WAL's header, which needs no other proof. Frames after the last commit
//! that is wanted are proved, but not applied.

use std::path::Path;
use std::sync::Arc;

use serde_json::{Value, json};

use super::image::Image;
use super::segment::{self, Link, Segment};
use super::snapshot;
use super::stop::Stop;
use crate::archive::plan::{Chain, LabelTimes, Reach, Times, missing, shown};
use crate::archive::sink::PageSink;
use crate::archive::{Archive, SegmentObject};
use crate::error::{Error, Result};
use crate::header::page_size_of;
use crate::info::total;
use crate::pos::{Index, Offset, Pos};
use crate::team::in_order;
use crate::wal::PageSize;

/// Threads, files and the end of it all, for every step.
pub struct Means<'a> {
    /// Where objects come from.
    pub archive: &'a Arc<Archive>,
    /// Where what is too large for memory goes.
    pub folder: &'a Path,
    /// How many threads.
    pub threads: usize,
    /// Whether anybody still waits.
    pub stop: &'a Arc<Stop>,
}

/// Fills the image with the chain's state. Returns the position reached.
pub fn fill(means: &Means, chain: &Chain, image: &mut Image) -> Result<Pos> {
    let page_size = page_size(means.archive, chain)?;
    let Some(page_size) = page_size else {
        // An empty database, and nothing was ever written to it.
        image.begin(PageSize::MIN, 0)?;
        return Ok(chain.snapshot.info.pos());
    };
    let jobs: Vec<_> = chain.segments.iter().rev().copied().collect();
    let (archive, stop) = (Arc::clone(means.archive), Arc::clone(means.stop));
    let (folder, cut) = (means.folder.to_owned(), chain.cut);
    let last = chain.segments.last().map(|last| last.info.index);
    let fetch = move |object: SegmentObject| {
        let cut = cut.filter(|_| Some(object.info.index) == last);
        segment::fetch(&archive, &object, page_size, cut, &folder, &stop)
    };
    let (newer, folder) = (None, means.folder);
    let mut walk = Walk { chain, image, page_size, folder, newer, reached: None, applied: None };
    in_order("litestream-restore", means.threads, jobs, fetch, |segment| walk.step(segment))?;
    let Walk { newer, reached, applied, .. } = walk;
    if let Some(Newer { link: Some(link), .. }) = newer {
        // The plan begins each index at offset 0.
        return Err(Error::bug(format!("{} has nothing before it", link.name())));
    }
    let reached = reached.unwrap_or_else(|| chain.snapshot.info.pos());
    check_exact(chain, reached)?;
    if applied.is_none() {
        image.begin(page_size, u32::MAX)?;
    }
    let below = image.below()?;
    let size = snapshot::write(means.archive, &chain.snapshot, &below, page_size, means.threads)?;
    let pages = size / u64::from(page_size.get());
    image.put_rest(pages)?;
    if applied.is_none() {
        image.set_page_count(u32::try_from(pages).unwrap_or(u32::MAX));
    }
    Ok(reached)
}

/// As the snapshot says, or, if that is empty, the WAL after it; `None` if there is neither.
fn page_size(archive: &Archive, chain: &Chain) -> Result<Option<PageSize>> {
    let header = snapshot::read_header(archive, &chain.snapshot)?;
    if !header.is_empty() {
        let size = page_size_of(&header).ok_or_else(|| {
            let key = archive.snapshot_key(&chain.snapshot).unwrap_or_default();
            Error::corrupt("its content is no database").context(archive.name(&key))
        });
        return size.map(Some);
    }
    let first = chain.segments.first();
    let header = first.map(|first| segment::read_header(archive, first)).transpose()?;
    Ok(header.map(|header| header.page_size))
}

/// The way back through a chain's segments.
struct Walk<'a> {
    chain: &'a Chain,
    image: &'a mut Image,
    page_size: PageSize,
    folder: &'a Path,
    newer: Option<Newer>,
    /// The end of the state.
    reached: Option<Pos>,
    /// The oldest index of which a commit was found.
    applied: Option<Index>,
}

/// The segment before in the walk: after in history.
struct Newer {
    index: Index,
    link: Option<Link>,
}

impl Walk<'_> {
    fn step(&mut self, mut segment: Segment) -> Result<()> {
        match &self.newer {
            None => check_last(self.chain, &segment)?,
            Some(newer) if newer.index == segment.pos.index => match &newer.link {
                Some(link) => segment.follows(link)?,
                None => return Err(missing(segment.pos)),
            },
            Some(_) => self.check_end(&segment)?,
        }
        self.newer = Some(Newer { index: segment.pos.index, link: segment.link() });
        let index = segment.pos.index;
        if self.applied == Some(index) {
            return segment.parts(segment.end, |frames| self.image.put_frames(frames));
        }
        let Some(commit) = segment.commit else {
            return match header_alone(self.chain, segment.pos)? {
                Some(pos) => self.reaches(pos),
                None => Ok(()),
            };
        };
        match self.applied {
            None => {
                self.image.begin(self.page_size, commit.page_count)?;
                self.image.wait_for_snapshot(self.folder);
            }
            Some(_) => self.image.lower_limit(commit.page_count),
        }
        self.applied = Some(index);
        self.reaches(Pos { offset: commit.end, ..segment.pos })?;
        segment.parts(commit.end, |frames| self.image.put_frames(frames))
    }

    /// The end of the state, if it was not found yet: the newest comes first.
    fn reaches(&mut self, pos: Pos) -> Result<()> {
        if self.reached.is_none() {
            check_exact(self.chain, pos)?;
            self.reached = Some(pos);
        }
        Ok(())
    }

    /// Whether an index ends where it should.
    fn check_end(&self, segment: &Segment) -> Result<()> {
        let end = Pos { offset: segment.end, ..segment.pos };
        match self.chain.ends.get(&segment.pos.index) {
            Some(offset) if *offset == segment.end => Ok(()),
            Some(offset) if *offset < segment.end => {
                let why = format!("it ends at {end}, but its index ends at offset {offset}");
                Err(Error::corrupt(why).context(&segment.name))
            }
            None if !segment.is_labelled => Ok(()),
            _ => Err(missing(end)),
        }
    }
}

/// Whether the newest segment is long enough.
fn check_last(chain: &Chain, segment: &Segment) -> Result<()> {
    let end = Pos { offset: segment.end, ..segment.pos };
    let past = |pos: Pos| {
        let why = format!("it ends at {end}, past {pos}, where the next one begins");
        Error::corrupt(why).context(&segment.name)
    };
    match chain.reach {
        Reach::Anywhere => Ok(()),
        Reach::AtLeast(pos) if end.offset < pos.offset => Err(missing(end)),
        Reach::AtLeast(_) => Ok(()),
        Reach::Exactly(pos) if end.offset < pos.offset => Err(missing(end)),
        Reach::Exactly(pos) if end.offset > pos.offset => Err(past(pos)),
        Reach::Exactly(_) => Ok(()),
        Reach::Unmarked if segment.is_labelled => Err(missing(end)),
        Reach::Unmarked => Ok(()),
    }
}

/// A header alone is a state, too: that of the end of the index before.
fn header_alone(chain: &Chain, start: Pos) -> Result<Option<Pos>> {
    let header = Offset::new(crate::wal::WAL_HEADER_SIZE as u64)?;
    let within = chain.cut.is_none_or(|cut| cut >= header);
    let is_header = start.offset == Offset::ZERO && within;
    Ok(is_header.then_some(Pos { offset: header, ..start }))
}

/// Whether a position that was asked for is one of a state, and not between two.
fn check_exact(chain: &Chain, reached: Pos) -> Result<()> {
    match chain.reach {
        Reach::AtLeast(asked) if chain.cut == Some(asked.offset) && reached != asked => {
            let why = format!(
                "no commit ends at {asked}; the last one before it ends at {reached} (option \
                 \"pos\")"
            );
            Err(Error::usage(why))
        }
        _ => Ok(()),
    }
}

/// What a restore would do, for `"dry_run"`.
pub fn describe(means: &Means, chain: &Chain) -> Result<Value> {
    let archive = means.archive;
    let mut times = LabelTimes(archive);
    let key = |end: Option<&SegmentObject>| end.map(|it| archive.segment_key(it)).transpose();
    let (first, last) = (key(chain.segments.first())?, key(chain.segments.last())?);
    let bytes = total(chain.segments.iter().map(|segment| segment.info.size));
    let commits = chain.segments.last().map(|last| times.segment(last)).transpose()?;
    let moment = commits.as_ref().and_then(|commits| {
        let within = |end: Offset| chain.cut.is_none_or(|cut| end <= cut);
        commits.moments.iter().rev().find(|moment| within(moment.end))
    });
    let snapshot_time = times.snapshot(&chain.snapshot)?;
    let time = match (&commits, moment) {
        (_, Some(moment)) => moment.at,
        (Some(commits), None) => commits.first,
        (None, None) => snapshot_time,
    };
    Ok(json!({
        "generation": chain.generation.to_string(),
        "snapshot": {
            "key": archive.snapshot_key(&chain.snapshot)?,
            "pos": chain.snapshot.info.pos().to_string(),
            "size": chain.snapshot.info.size,
            "created_at": shown(snapshot_time),
        },
        "segments": {
            "count": chain.segments.len(),
            "size": bytes,
            "first": first,
            "last": last,
        },
        "pos": end(means, chain)?.to_string(),
        "time": shown(time),
        "size": bytes.saturating_add(chain.snapshot.info.size),
    }))
}

/// The position a restore would reach, from the chain's last segments; what it would refuse of them
/// is refused.
fn end(means: &Means, chain: &Chain) -> Result<Pos> {
    let Some(page_size) = page_size(means.archive, chain)? else {
        return Ok(chain.snapshot.info.pos());
    };
    let last = chain.segments.last().map(|last| last.info.index);
    for object in chain.segments.iter().rev() {
        let cut = chain.cut.filter(|_| Some(object.info.index) == last);
        let (archive, folder, stop) = (means.archive, means.folder, means.stop);
        let segment = segment::fetch(archive, object, page_size, cut, folder, stop)?;
        if chain.segments.last() == Some(object) {
            check_last(chain, &segment)?;
        }
        let reached = match segment.commit {
            Some(commit) => Some(Pos { offset: commit.end, ..segment.pos }),
            None => header_alone(chain, segment.pos)?,
        };
        if let Some(reached) = reached {
            return check_exact(chain, reached).map(|()| reached);
        }
    }
    let reached = chain.snapshot.info.pos();
    check_exact(chain, reached).map(|()| reached)
}
