//! Where an archive ends, and whether the log goes on from there.
//!
//! | the archive's generation has        | the log there                       | so                  |
//! |-------------------------------------|-------------------------------------|---------------------|
//! | nothing, or no segment              |                                     | a snapshot first    |
//! | a last segment that ends at E       | has the same running checksum at E  | on from E           |
//! | the same                            | ends before E, or has another there | parted              |
//! | the same                            | does not reach back to E            | a snapshot first, if the note tells that we wrote up to E; else parted |
//! | a last segment we cannot read       |                                     | E is from the note, or parted |
//! | segments, but not the first after its newest snapshot; or no snapshot |     | parted              |

use std::time::{Duration, SystemTime};

use super::Shared;
use super::batch::end_checksum;
use super::note::{Note, Place};
use crate::archive::tree::Tree;
use crate::archive::{Entry, SegmentObject, SnapshotObject};
use crate::error::{Context, Error, ErrorKind, Result};
use crate::log::{SEGMENT_BYTES_MAX, Start};
use crate::lz4;
use crate::pos::{Generation, Index, Offset, Pos};

/// No object of ours has more WAL bytes.
const OBJECT_BYTES_MAX: usize = 2 * SEGMENT_BYTES_MAX;

/// What the archive's newest objects tell.
#[derive(Default)]
pub(super) struct Survey {
    /// The newest snapshot.
    pub(super) snapshot: Option<SnapshotObject>,
    /// The last segment.
    segment: Option<SegmentObject>,
    /// Where the first segment at or after that snapshot begins.
    first: Option<(Index, Offset)>,
    /// Bytes of the segments since that snapshot.
    pub(super) bytes_since: u64,
}

/// How many segments the archive has of an index that ends at `end`, and what it has of it after
/// that, by somebody else.
pub(super) fn look_back(shared: &Shared, end: Pos) -> Result<(usize, Option<Pos>)> {
    let Pos { generation, index, offset } = end;
    let listing = shared.archive.list_index(generation, index, &[Tree::V04, Tree::V03])?;
    let ends = listing.ends.get(&index).copied().into_iter().chain(listing.other_end(index));
    let later = listing.segments.last().map(|last| last.info.offset).filter(|it| *it >= offset);
    let other = ends.filter(|it| *it != offset).chain(later).next();
    Ok((listing.segments.len(), other.map(|offset| Pos { generation, index, offset })))
}

/// The newest time that the archive's other generations give, as far as they can be read here.
pub(super) fn newest_moment(shared: &Shared, current: Generation) -> Result<SystemTime> {
    let archive = &shared.archive;
    let mut newest = SystemTime::UNIX_EPOCH;
    for generation in archive.generations()?.into_iter().filter(|it| *it != current) {
        let Survey { snapshot, segment, .. } = survey(shared, generation)?;
        let snapshot = snapshot.map(|it| archive.snapshot_label(&it));
        let segment = segment.map(|it| archive.segment_label(&it));
        for label in snapshot.into_iter().chain(segment) {
            match label {
                Ok(label) => newest = label.map_or(newest, |it| it.created_at.max(newest)),
                // What cannot be read back here, or not any more, has no say.
                Err(error)
                    if matches!(
                        error.kind(),
                        ErrorKind::Refused | ErrorKind::Corrupt | ErrorKind::Missing
                    ) => {}
                Err(error) => return Err(error),
            }
        }
    }
    Ok(newest)
}

/// What follows.
pub(super) enum Verdict {
    /// Begin here.
    Start(Start, Option<Place>),
    /// Two histories have one name, or it cannot be told; why.
    Parted(String),
}

impl Survey {
    /// What nothing can be restored without, if that is gone.
    fn lost(&self) -> Option<&'static str> {
        let Some(snapshot) = self.snapshot else {
            return Some("the archive has segments and no snapshot");
        };
        let begin = (snapshot.info.index, Offset::ZERO);
        let lost = self.first.is_some_and(|first| first != begin);
        lost.then_some("the archive lacks the segments after its newest snapshot")
    }

    /// Where the last segment begins.
    pub(super) fn last(&self) -> Option<Pos> {
        self.segment.map(|segment| segment.info.pos())
    }
}

/// Looks what the archive holds of a generation.
pub(super) fn survey(shared: &Shared, generation: Generation) -> Result<Survey> {
    let mut survey = Survey::default();
    shared.archive.each(generation, &mut |entry| {
        if shared.stopping() {
            return Err(super::stopped());
        }
        match entry {
            Entry::Snapshot(snapshot) => {
                let newer = survey.snapshot.is_none_or(|it| it.info.index <= snapshot.info.index);
                if newer {
                    survey.snapshot = Some(snapshot);
                }
            }
            Entry::Segment(segment) => {
                let place = |it: &SegmentObject| (it.info.index, it.info.offset);
                let later = survey.segment.is_none_or(|it| place(&it) <= place(&segment));
                if later {
                    survey.segment = Some(segment);
                }
                let base = survey.snapshot.map_or(Index::ZERO, |it| it.info.index);
                if segment.info.index >= base {
                    let first = survey.first.get_or_insert_with(|| place(&segment));
                    *first = place(&segment).min(*first);
                    survey.bytes_since = survey.bytes_since.saturating_add(segment.info.size);
                }
            }
            Entry::End(_) | Entry::EndFile(..) | Entry::Position => {}
        }
        Ok(())
    })?;
    Ok(survey)
}

/// An archive is encrypted or it is not: what is secret is in none of its objects, or in all.
pub(super) fn refuse_mixture(shared: &Shared, survey: &Survey) -> Result<()> {
    let archive = &shared.archive;
    let key = match (survey.segment, survey.snapshot) {
        (Some(segment), _) => Some(archive.segment_key(&segment)?),
        (None, Some(snapshot)) => Some(archive.snapshot_key(&snapshot)?),
        (None, None) => any_snapshot(shared)?,
    };
    let Some(key) = key else { return Ok(()) };
    let (is, given) = match (archive.is_encrypted(&key)?, archive.encrypts()) {
        (true, false) => ("encrypted", "no \"age_recipients\" are given"),
        (false, true) => ("not encrypted", "\"age_recipients\" are given"),
        _ => return Ok(()),
    };
    let why = format!("it is {is}, and {given}; an archive is encrypted as a whole or not at all");
    Err(Error::new(ErrorKind::Refused, why).context(archive.name(&key)))
}

fn any_snapshot(shared: &Shared) -> Result<Option<String>> {
    for generation in shared.archive.generations()? {
        if let Some(snapshot) = shared.archive.snapshots(generation)?.last() {
            return shared.archive.snapshot_key(snapshot).map(Some);
        }
    }
    Ok(None)
}

/// Where to begin. The last moment given in the archive goes into `latest`.
pub(super) fn judge(
    shared: &Shared,
    survey: &Survey,
    note: &Note,
    latest: &mut SystemTime,
) -> Result<Verdict> {
    let Some(segment) = survey.segment else {
        // With a snapshot and no segment it is not told whose the snapshot is, but by the note.
        let pos = survey.snapshot.map(|snapshot| snapshot.info.pos());
        let ours =
            pos.filter(|pos| note.snapshot == Some(*pos) && shared.capture.log().holds(pos.index));
        return Ok(match ours {
            Some(pos) => {
                let start = Start::Index { generation: pos.generation, index: pos.index };
                Verdict::Start(start, Some(Place { pos, checksum: None }))
            }
            None => Verdict::Start(Start::Fresh, None),
        });
    };
    if let Some(why) = survey.lost() {
        return Ok(Verdict::Parted(why.to_owned()));
    }
    let end = match shared.can_read() {
        true => read_end(shared, &segment, latest)?,
        false => noted_end(note, segment.info.pos()),
    };
    match end {
        Some(end) => weigh(shared, end, note),
        None => {
            let why = "cannot be read back here, and the note beside the database is not of it";
            let segment = segment.info.pos();
            Ok(Verdict::Parted(format!("the archive's last segment {segment} {why}")))
        }
    }
}

/// Whether the log goes on from the archive's end.
fn weigh(shared: &Shared, end: Place, note: &Note) -> Result<Verdict> {
    let log = shared.capture.log();
    let Place { pos: Pos { generation, index, offset }, checksum } = end;
    let Some(tip) = log.position().filter(|tip| tip.generation == generation) else {
        return Err(Error::generation_changed());
    };
    let ours = log.checksum_at(index, offset)?;
    if let (Some(checksum), true) = (checksum, ours == checksum) {
        let start = Start::Exact { generation, index, offset, checksum };
        return Ok(Verdict::Start(start, Some(end)));
    }
    if checksum.is_none() && offset == Offset::ZERO && log.holds(index) {
        // A snapshot got there, and no segment after it.
        return Ok(Verdict::Start(Start::Index { generation, index }, Some(end)));
    }
    if !super::covers(tip, end.pos) {
        let why =
            format!("the archive holds commits up to {}, this database's end at {tip}", end.pos);
        return Ok(Verdict::Parted(why));
    }
    if log.holds(index) {
        let why = format!("the archive and this database have other commits before {}", end.pos);
        return Ok(Verdict::Parted(why));
    }
    let sent = note.segment.is_some_and(|sent| sent.before == end || sent.end == end);
    if sent {
        return Ok(Verdict::Start(Start::Fresh, Some(end)));
    }
    let why = format!("the archive ends at {}, and nothing here reaches back so far", end.pos);
    Ok(Verdict::Parted(why))
}

/// The end of a segment as the archive has it.
fn read_end(
    shared: &Shared,
    segment: &SegmentObject,
    latest: &mut SystemTime,
) -> Result<Option<Place>> {
    let archive = &shared.archive;
    let key = archive.segment_key(segment)?;
    let opened = archive.open_segment(segment)?;
    let mut raw = Vec::new();
    let limit = u64::try_from(OBJECT_BYTES_MAX).unwrap_or(u64::MAX);
    let read = || -> Result<Place> {
        lz4::decompress(opened.frame, limit, &mut raw)?;
        let pos = segment.info.pos();
        let len = u64::try_from(raw.len()).unwrap_or(u64::MAX);
        let offset = Offset::new(pos.offset.get().saturating_add(len))?;
        let checksum = end_checksum(&raw, pos, shared.capture.log().page_size()?)?;
        Ok(Place { pos: Pos { offset, ..pos }, checksum: Some(checksum) })
    };
    match read() {
        Ok(end) => {
            if let Some(label) = opened.label {
                *latest = label.created_at;
            }
            Ok(Some(end))
        }
        // Nothing can be appended to what is damaged: a new generation leaves it alone.
        Err(error) if error.kind() == ErrorKind::Corrupt => Ok(None),
        Err(error) => Err(error).context(|| format!("cannot read {}", archive.name(&key))),
    }
}

/// The end of the segment at `pos` as the note has it: written before the segment was sent.
fn noted_end(note: &Note, pos: Pos) -> Option<Place> {
    let sent = note.segment?;
    if sent.begin == pos {
        return Some(sent.end);
    }
    // The one noted did not get there.
    super::covers(sent.begin, pos).then_some(sent.before)
}

impl Shared {
    /// Whether what is written here can be read back here.
    pub(super) fn can_read(&self) -> bool {
        !self.archive.encrypts() || !self.config.archive.age_identities.is_empty()
    }
}

/// Time since an object was stored, by two clocks.
pub(super) fn age(stored: SystemTime) -> Duration {
    SystemTime::now().duration_since(stored).unwrap_or_default()
}
