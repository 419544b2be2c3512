//! Which objects make a state: choosing a chain from what an archive lists, by rules alone.
//!
//! A *chain* is a snapshot and the segments after it up to the target, without a hole.
//!
//! | target   | generation                          | snapshot                                  |
//! |----------|-------------------------------------|-------------------------------------------|
//! | latest   | the one that began last             | its newest                                |
//! | time     | the one that began last before it   | its newest that is not younger            |
//! | position | its own                             | the newest before it that is exact there  |
//!
//! Times are those of labels: a snapshot's is the moment before its copy began, so the state of any
//! later time is exact from it on; a segment's moments say when its commits were seen. Objects of
//! other makers have only the store's time: that of a segment is later than its commits, so a
//! target's time takes whole segments. Times ascend with positions, so few labels are read.
//!
//! What the listing alone cannot tell (how long a segment is) is left to who reads the objects:
//! each segment must end where the next begins, a finished index where its end says, and the last
//! one as [`Reach`] demands.

use std::collections::BTreeMap;
use std::time::SystemTime;

use super::label::Moment;
use super::{Archive, Listing, SegmentObject, SnapshotObject};
use crate::error::{Error, ErrorKind, Result};
use crate::info::showable;
use crate::pos::{Generation, Index, Offset, Pos};

/// A state asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Goal {
    /// All there is.
    Latest,
    /// Everything committed at or before this time.
    Time(SystemTime),
    /// Everything before this position.
    Pos(Pos),
}

/// When the commits of a segment were made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Commits {
    /// None of them is older.
    pub first: SystemTime,
    /// Ascending.
    pub moments: Vec<Moment>,
    /// Whether the segment itself says so, or only its store.
    pub is_labelled: bool,
}

/// Answers for labels, which cost a request each.
pub trait Times {
    /// When a snapshot was made.
    fn snapshot(&mut self, snapshot: &SnapshotObject) -> Result<SystemTime>;

    /// When the commits of a segment were made.
    fn segment(&mut self, segment: &SegmentObject) -> Result<Commits>;
}

/// What a state is made of.
#[derive(Clone, Debug)]
pub struct Chain {
    /// Its history.
    pub generation: Generation,
    /// Where it begins.
    pub snapshot: SnapshotObject,
    /// In order; may be empty.
    pub segments: Vec<SegmentObject>,
    /// Where finished indexes among them end.
    pub ends: BTreeMap<Index, Offset>,
    /// Nothing past this offset of the last segment's index belongs to the state.
    pub cut: Option<Offset>,
    /// What the end of the last segment must be.
    pub reach: Reach,
}

/// Where the last segment of a chain must end, or more may be missing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reach {
    /// Anywhere.
    Anywhere,
    /// Here or later.
    AtLeast(Pos),
    /// Here.
    Exactly(Pos),
    /// Anywhere if it has no label; in an archive of ours a finished index has an end, and this one
    /// has none.
    Unmarked,
}

/// Chooses the chain for `goal` from what an archive holds of each generation.
pub fn choose(listings: Vec<Listing>, goal: Goal, times: &mut dyn Times) -> Result<Chain> {
    let mut listings: Vec<Listing> = listings.into_iter().filter(Listing::has_content).collect();
    for listing in &mut listings {
        // An archive whose layout was changed may have a name twice.
        listing.snapshots.dedup_by_key(|snapshot| snapshot.info.index);
        listing.segments.dedup_by_key(|segment| (segment.info.index, segment.info.offset));
    }
    if listings.is_empty() {
        return Err(Error::new(ErrorKind::NoGeneration, "it holds no snapshot and no WAL segment"));
    }
    let chosen = choose_generation(&listings, goal, times)?;
    let listing = listings.swap_remove(chosen);
    match goal {
        Goal::Latest => latest(&listing),
        Goal::Time(time) => at_time(&listing, time, times),
        Goal::Pos(pos) => at_pos(&listing, pos, times),
    }
}

fn choose_generation(listings: &[Listing], goal: Goal, times: &mut dyn Times) -> Result<usize> {
    if let Goal::Pos(pos) = goal {
        let found = listings.iter().position(|listing| listing.generation == pos.generation);
        return found.ok_or_else(|| {
            let held: Vec<String> =
                listings.iter().map(|listing| listing.generation.to_string()).collect();
            let why = format!("generation {} is not in it: {}", pos.generation, held.join(", "));
            Error::new(ErrorKind::NoGeneration, why)
        });
    }
    let Goal::Time(time) = goal else {
        return newest(listings, times)?.ok_or_else(Error::no_generation);
    };
    let begins = begins(listings, times)?;
    let found = begins.iter().filter(|(begin, _)| *begin <= time).max();
    let oldest = begins.iter().min();
    found.map(|(_, at)| *at).ok_or_else(|| {
        let oldest = oldest.map_or(SystemTime::UNIX_EPOCH, |(begin, _)| *begin);
        let why = format!("what it holds begins {}, later than the time", shown(oldest));
        Error::new(ErrorKind::NoSnapshots, why)
    })
}

/// Which generation began last, of those the archive holds anything of.
pub fn newest(listings: &[Listing], times: &mut dyn Times) -> Result<Option<usize>> {
    let mut held = listings.iter().enumerate().filter(|(_, listing)| listing.has_content());
    // Nothing has to be read to know the only one.
    if let (only, None) = (held.next(), held.next()) {
        return Ok(only.map(|(at, _)| at));
    }
    Ok(begins(listings, times)?.into_iter().max().map(|(_, at)| at))
}

/// When each generation with content began, and where it is in `listings`.
fn begins(listings: &[Listing], times: &mut dyn Times) -> Result<Vec<(SystemTime, usize)>> {
    let held = listings.iter().enumerate().filter(|(_, listing)| listing.has_content());
    held.map(|(at, listing)| Ok((begin(listing, times)?, at))).collect()
}

/// When a generation began, as far as can still be seen.
pub fn begin(listing: &Listing, times: &mut dyn Times) -> Result<SystemTime> {
    let snapshot = listing.snapshots.first().map(|first| times.snapshot(first)).transpose()?;
    let segment = listing.segments.first().map(|first| times.segment(first)).transpose()?;
    let segment = segment.map(|commits| commits.first);
    Ok(snapshot.into_iter().chain(segment).min().unwrap_or(SystemTime::UNIX_EPOCH))
}

fn latest(listing: &Listing) -> Result<Chain> {
    let snapshot = listing.snapshots.last().ok_or_else(|| no_snapshot(listing))?;
    build(listing, snapshot, listing.segments.len(), None)
}

fn at_time(listing: &Listing, time: SystemTime, times: &mut dyn Times) -> Result<Chain> {
    if listing.snapshots.is_empty() {
        return Err(no_snapshot(listing));
    }
    let found = partition_point(&listing.snapshots, |it| Ok(times.snapshot(it)? <= time))?;
    let Some(snapshot) = found.checked_sub(1).and_then(|at| listing.snapshots.get(at)) else {
        let first = listing.snapshots.first().map(|first| times.snapshot(first)).transpose()?;
        let why = format!(
            "generation {} had begun at that time, but its first snapshot is of {}; option \
             \"generation\" restores another one",
            listing.generation,
            shown(first.unwrap_or(SystemTime::UNIX_EPOCH))
        );
        return Err(Error::new(ErrorKind::NoSnapshots, why));
    };
    let after = first_after(listing, snapshot);
    let segments = &listing.segments[after..];
    let end = partition_point(segments, |it| Ok(times.segment(it)?.first <= time))?;
    let commits = match end.checked_sub(1).and_then(|at| segments.get(at)) {
        Some(last) => Some(times.segment(last)?),
        None => None,
    };
    build(listing, snapshot, after + end, commits.and_then(|commits| cut_at(&commits, time)))
}

/// The offset that ends what was committed by `time`, if more than that is in the segment.
fn cut_at(commits: &Commits, time: SystemTime) -> Option<Offset> {
    let later = commits.moments.iter().position(|moment| moment.at > time)?;
    // The first moment is not later, or the segment would not have been chosen.
    later.checked_sub(1).and_then(|at| commits.moments.get(at)).map(|moment| moment.end)
}

fn at_pos(listing: &Listing, pos: Pos, times: &mut dyn Times) -> Result<Chain> {
    if listing.snapshots.is_empty() {
        return Err(no_snapshot(listing));
    }
    let before = listing.snapshots.partition_point(|it| it.info.index <= pos.index);
    let mut snapshot = None;
    for candidate in listing.snapshots[..before].iter().rev() {
        if candidate.info.index < pos.index || is_exact(listing, candidate, pos, times)? {
            snapshot = Some(candidate);
            break;
        }
    }
    let Some(snapshot) = snapshot else {
        let first = listing.snapshots.first().map(|first| first.info.pos()).unwrap_or_default();
        let why = format!(
            "{pos} is not to be had any more, or never was: the first snapshot, at {first}, was \
             copied after it"
        );
        return Err(Error::new(ErrorKind::NoSnapshots, why));
    };
    let end = listing.segments.partition_point(|it| is_before(it.info.pos(), pos));
    let last = listing.segments[..end].last().map(|last| last.info.index);
    // An index's offset 0 is the end of the index before.
    let is_start = pos.offset == Offset::ZERO;
    let reaches = if is_start {
        pos == snapshot.info.pos() || last.is_some_and(|last| last.next() == pos.index)
    } else {
        last == Some(pos.index)
    };
    if !reaches {
        return Err(beyond(listing, pos));
    }
    let mut chain = build(listing, snapshot, end, (!is_start).then_some(pos.offset))?;
    if !is_start {
        chain.reach = Reach::AtLeast(pos);
    } else if !chain.segments.is_empty()
        && matches!(chain.reach, Reach::Anywhere | Reach::AtLeast(_))
    {
        return Err(beyond(listing, pos));
    }
    Ok(chain)
}

/// Whether a snapshot holds nothing that was committed after `pos`, a position in its own index:
/// it was copied while that index was being written, and pages of it may be in the copy.
fn is_exact(
    listing: &Listing,
    snapshot: &SnapshotObject,
    pos: Pos,
    times: &mut dyn Times,
) -> Result<bool> {
    let made = times.snapshot(snapshot)?;
    let segments = &listing.segments[first_after(listing, snapshot)..];
    let count = segments.partition_point(|it| it.info.index == snapshot.info.index);
    let segments = &segments[..count];
    let known = partition_point(segments, |it| Ok(times.segment(it)?.first <= made))?;
    let least = match known.checked_sub(1).and_then(|at| segments.get(at)) {
        Some(segment) => {
            let commits = times.segment(segment)?;
            let before = commits.moments.iter().rev().find(|moment| moment.at <= made);
            match (commits.is_labelled, before) {
                (true, Some(moment)) => Some(moment.end),
                (true, None) => Some(segment.info.offset),
                // What was captured before the copy may have been stored after it.
                (false, _) => segments.get(known + 1).map(|next| next.info.offset),
            }
        }
        None => match segments.first().map(|first| times.segment(first)).transpose()? {
            Some(first) if !first.is_labelled => segments.get(1).map(|next| next.info.offset),
            _ => Some(Offset::ZERO),
        },
    };
    Ok(least.is_some_and(|least| pos.offset >= least))
}

/// The chain of a snapshot and the segments after it, up to and without the one at `end`.
fn build(
    listing: &Listing,
    snapshot: &SnapshotObject,
    end: usize,
    cut: Option<Offset>,
) -> Result<Chain> {
    let start = first_after(listing, snapshot).min(end);
    let segments = &listing.segments[start..end];
    let mut expected = snapshot.info.index;
    let mut previous: Option<&SegmentObject> = None;
    for segment in segments {
        let pos = segment.info.pos();
        let same = previous.is_some_and(|it| it.info.index == pos.index);
        if !same && (pos.index != expected || pos.offset != Offset::ZERO) {
            return Err(missing(Pos::new(listing.generation, expected, Offset::ZERO)));
        }
        expected = pos.index.next();
        previous = Some(segment);
    }
    let reach = match cut {
        Some(_) => Reach::Anywhere,
        None => reach(listing, snapshot, segments.last(), listing.segments.get(end))?,
    };
    let last = segments.last().map_or(snapshot.info.index, |last| last.info.index);
    let other =
        listing.other_ends.iter().find(|(index, _)| (snapshot.info.index..=last).contains(index));
    if let Some((index, offset)) = other {
        let first = listing.ends.get(index).copied().unwrap_or(Offset::ZERO);
        let why = format!(
            "two databases have written to generation {}: index {index} ends at offset {first} \
             and at {offset}; option \"pos\" or \"timestamp\" restores what was before",
            listing.generation
        );
        return Err(Error::corrupt(why));
    }
    let ends = listing.ends.range(snapshot.info.index..last);
    Ok(Chain {
        generation: listing.generation,
        snapshot: *snapshot,
        segments: segments.to_vec(),
        ends: ends.map(|(index, end)| (*index, *end)).collect(),
        cut,
        reach,
    })
}

/// What shows that nothing is missing behind the last segment of a chain.
fn reach(
    listing: &Listing,
    snapshot: &SnapshotObject,
    last: Option<&SegmentObject>,
    next: Option<&SegmentObject>,
) -> Result<Reach> {
    let generation = listing.generation;
    let begin = snapshot.info.pos();
    let next = next.map(|next| next.info.pos());
    let Some(last) = last.map(|last| last.info.pos()) else {
        if next == Some(begin) {
            return Ok(Reach::Anywhere);
        }
        let end = listing.ends.get(&begin.index).is_some_and(|end| end.get() > 0);
        let known = listing.position.is_some_and(|pos| is_before(begin, pos));
        let missed = end || known || next.is_some();
        return if missed { Err(missing(begin)) } else { Ok(Reach::Anywhere) };
    };
    let end = listing.ends.get(&last.index);
    let following = Pos::new(generation, last.index.next(), Offset::ZERO);
    let exactly = |offset: &Offset| Reach::Exactly(Pos { offset: *offset, ..last });
    match (next, end) {
        (Some(next), _) if next.index == last.index => Ok(Reach::Exactly(next)),
        (Some(next), _) if next != following => Err(missing(following)),
        (Some(_), Some(end)) => Ok(exactly(end)),
        (Some(_), None) => Ok(Reach::Unmarked),
        (None, end) => {
            let later = listing.ends.last_key_value().map(|(index, end)| (*index, *end));
            let noted = listing.position.map(|pos| (pos.index, pos.offset));
            let need = later.into_iter().chain(noted).max();
            match (need, end) {
                (Some(need), Some(_)) if need > (following.index, following.offset) => {
                    Err(missing(following))
                }
                (_, Some(end)) => Ok(exactly(end)),
                (Some((index, _)), None) if index > last.index => Ok(Reach::Unmarked),
                (Some((index, offset)), None) if index == last.index => {
                    Ok(Reach::AtLeast(Pos { offset, ..last }))
                }
                _ => Ok(Reach::Anywhere),
            }
        }
    }
}

/// Where the segments from a snapshot on begin.
fn first_after(listing: &Listing, snapshot: &SnapshotObject) -> usize {
    listing.segments.partition_point(|it| it.info.index < snapshot.info.index)
}

fn is_before(a: Pos, b: Pos) -> bool {
    (a.index, a.offset) < (b.index, b.offset)
}

/// The first item for which the answer is no; `items` begin with those for which it is yes.
fn partition_point<T>(items: &[T], mut is: impl FnMut(&T) -> Result<bool>) -> Result<usize> {
    let (mut low, mut high) = (0, items.len());
    while let Some(item) = items.get(low..high).and_then(|rest| rest.get(rest.len() / 2)) {
        let middle = low + (high - low) / 2;
        if is(item)? {
            low = middle + 1;
        } else {
            high = middle;
        }
    }
    Ok(low)
}

/// A segment that must be there and is not.
pub fn missing(pos: Pos) -> Error {
    Error::new(ErrorKind::NoWalSegments, format!("the WAL segment at {pos} is missing"))
}

fn beyond(listing: &Listing, pos: Pos) -> Error {
    let last = listing.segments.last().map(|last| last.info.pos());
    let why = match last {
        Some(last) if is_before(last, pos) => {
            format!("{pos} is beyond its last WAL segment, at {last}")
        }
        _ => format!("it holds no WAL segment with {pos}"),
    };
    Error::new(ErrorKind::NoWalSegments, why)
}

fn no_snapshot(listing: &Listing) -> Error {
    let why = format!(
        "generation {} has no snapshot; option \"generation\" restores another one",
        listing.generation
    );
    Error::new(ErrorKind::NoSnapshots, why)
}

/// As messages show it: microseconds, UTC.
pub fn shown(time: SystemTime) -> String {
    humantime::format_rfc3339_micros(showable(time)).to_string()
}

/// The labels of an archive's objects, read when asked for.
pub struct LabelTimes<'a>(pub &'a Archive);

impl Times for LabelTimes<'_> {
    fn snapshot(&mut self, snapshot: &SnapshotObject) -> Result<SystemTime> {
        let label = self.0.snapshot_label(snapshot)?;
        Ok(label.map_or(snapshot.info.created_at, |label| label.created_at))
    }

    fn segment(&mut self, segment: &SegmentObject) -> Result<Commits> {
        let label = self.0.segment_label(segment)?;
        let is_labelled = label.is_some();
        let created_at = label.as_ref().map_or(segment.info.created_at, |label| label.created_at);
        let moments = label.map(|label| label.moments).unwrap_or_default();
        let first = moments.first().map_or(created_at, |moment| moment.at);
        Ok(Commits { first, moments, is_labelled })
    }
}

#[cfg(test)]
mod tests;
