//! What may be deleted, and deleting it.
//!
//! The *horizon* is `retention` and `delete_after` ago, by the store's times; a clock that is ahead
//! of everything in the archive counts no further than the newest object, and one that has moved
//! no further than it is known to have run ([`super::trust`]). Of each generation the
//! *base* is the newest snapshot from before the horizon whose segments reach the next one without
//! a hole: every moment since the horizon is restored from it or from a later one. What is before a
//! base goes; a generation that ended before another's base goes as a whole, if it also began
//! before that one, by their labels: an archive that was copied has the store's times in any order,
//! and a restore chooses by labels. What cannot be read here is not deleted for another's sake. So
//! there is always a snapshot with all that follows it, and whoever chose a chain while it was
//! within `retention` has `delete_after` to read it. Readers in this process are waited for
//! ([`crate::archive::hold`]). Snapshots go before their segments.

use std::collections::BTreeMap;
use std::time::{Duration, Instant, SystemTime};

use humantime::format_duration;

use super::delete::delete;
use super::trust::Seen;
use super::{ReplicateConfig, Shared, policy};
use crate::archive::plan::{self, LabelTimes};
use crate::archive::{Entry, Listing};
use crate::error::{Error, Result, lock};
use crate::host::os::since_boot;
use crate::info::SnapshotInfo;
use crate::pos::{Generation, Index};
use crate::registry::{self, Level};

/// What decides over one generation.
#[derive(Clone, Debug)]
struct Held {
    generation: Generation,
    /// Index and time of its snapshots, by index.
    snapshots: BTreeMap<Index, SystemTime>,
    /// How many indexes from a snapshot's on, before the next one's, are finished.
    ends: BTreeMap<Index, u64>,
    /// The oldest index it has something of.
    oldest: Option<Index>,
    /// Time of its newest object.
    newest: Option<SystemTime>,
    /// Its first snapshot and its first segment, and nothing else.
    first: Listing,
}

/// When generations began, by their labels.
struct Begins<'a> {
    ask: &'a mut dyn FnMut(&Held) -> Result<SystemTime>,
    known: BTreeMap<Generation, Option<SystemTime>>,
    /// Why something is not known.
    failed: Option<Error>,
}

impl Begins<'_> {
    fn of(&mut self, held: &Held) -> Option<SystemTime> {
        if let Some(known) = self.known.get(&held.generation) {
            return *known;
        }
        let begin = match (self.ask)(held) {
            Ok(begin) => Some(begin),
            Err(error) => {
                self.failed = Some(error);
                None
            }
        };
        self.known.insert(held.generation, begin);
        begin
    }

    /// Whether one is known to have begun before another, as a restore sees it.
    fn is_before(&mut self, held: &Held, other: &Held) -> bool {
        match (self.of(held), self.of(other)) {
            (Some(begin), Some(later)) => begin < later,
            _ => false,
        }
    }
}

/// What of a generation may go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Cut {
    Nothing,
    Before(Index),
    All,
}

/// What a look has found.
pub(super) enum Looked {
    /// What was to be deleted is.
    Well,
    /// The archive does not hold what was put into it.
    Lost,
}

/// When it was looked last, and how old things become.
pub(super) struct Retention {
    keep: Duration,
    every: Duration,
    looked: Option<Instant>,
    /// Looks that failed since the last that did not.
    failures: u32,
}

impl Retention {
    pub(super) fn new(config: &ReplicateConfig) -> Retention {
        let every = policy::retention_every(config.retention, config.delete_after);
        Retention { keep: config.retention + config.delete_after, every, looked: None, failures: 0 }
    }

    pub(super) fn due_in(&self) -> Duration {
        let every = policy::retention_again(self.every, self.failures);
        self.looked.map_or(Duration::ZERO, |looked| every.saturating_sub(looked.elapsed()))
    }

    pub(super) fn is_due(&self) -> bool {
        self.due_in().is_zero()
    }

    /// Something has changed.
    pub(super) fn look_soon(&mut self) {
        self.looked = None;
    }

    /// Deletes what nobody needs. `current`: the generation being written, which has a snapshot at
    /// `newest`. `meanwhile` is called again and again: there may be much to list.
    pub(super) fn run(
        &mut self,
        shared: &Shared,
        current: Generation,
        newest: Option<Index>,
        meanwhile: &mut dyn FnMut() -> Result<()>,
    ) -> Result<Looked> {
        let done = self.delete_old(shared, current, newest, meanwhile);
        self.looked = Some(Instant::now());
        self.failures = if done.is_ok() { 0 } else { self.failures.saturating_add(1) };
        done
    }

    fn delete_old(
        &self,
        shared: &Shared,
        current: Generation,
        newest: Option<Index>,
        meanwhile: &mut dyn FnMut() -> Result<()>,
    ) -> Result<Looked> {
        let snapshots = snapshots(shared)?;
        let is_newest = |it: &SnapshotInfo| it.generation == current && Some(it.index) == newest;
        if !snapshots.iter().any(is_newest) {
            return Ok(Looked::Lost);
        }
        let times = || snapshots.iter().map(|it| it.created_at);
        let Some(newest) = times().max() else { return Ok(Looked::Lost) };
        let now = self.trusted(shared, newest);
        let Some(latest) = now.checked_sub(self.keep) else { return Ok(Looked::Well) };
        // A full look is worth it if there is a snapshot from before that, and another one.
        if snapshots.len() < 2 || !times().any(|at| at <= latest) {
            return Ok(Looked::Well);
        }
        let mut held = Vec::new();
        for generation in shared.archive.generations()? {
            held.push(look(shared, generation, meanwhile)?);
        }
        let Some(horizon) = horizon(&held, now, self.keep) else { return Ok(Looked::Well) };
        let mut ask = |held: &Held| {
            meanwhile()?;
            plan::begin(&held.first, &mut LabelTimes(&shared.archive))
        };
        let mut begins = Begins { ask: &mut ask, known: BTreeMap::new(), failed: None };
        let cuts = choose(&held, current, horizon, &mut begins);
        let failed = begins.failed;
        for (held, cut) in held.iter().zip(cuts) {
            match cut {
                Cut::Nothing => {}
                Cut::Before(index) => delete(shared, held.generation, Some(index), meanwhile)?,
                Cut::All => delete(shared, held.generation, None, meanwhile)?,
            }
        }
        shared.archive.tidy()?;
        failed.map_or(Ok(Looked::Well), Err)
    }
}

impl Retention {
    /// The time, as far as ages may be counted by it. A clock that has jumped ahead must not make
    /// everything old.
    fn trusted(&self, shared: &Shared, newest: SystemTime) -> SystemTime {
        let seen = Seen { now: SystemTime::now(), at: since_boot(), newest };
        let (trusted, news) = lock(&shared.trust).look(seen, self.keep, self.every);
        if let Some(ahead) = news {
            let message = format!(
                "archive {}: the clock has moved ahead by {} beside the time that has passed; \
                 until {} have passed nothing is deleted that is not older by both",
                shared.archive.url(),
                format_duration(whole_seconds(ahead)),
                format_duration(whole_seconds(self.keep + self.every)),
            );
            registry::log(Level::Warn, shared.capture.path(), &message);
        }
        trusted
    }
}

fn whole_seconds(time: Duration) -> Duration {
    Duration::from_secs(time.as_secs())
}

/// What is older may go; ages count no further than the newest object, which another's clock may
/// have dated.
fn horizon(all: &[Held], now: SystemTime, keep: Duration) -> Option<SystemTime> {
    let newest = all.iter().filter_map(|held| held.newest).max()?;
    newest.min(now).checked_sub(keep)
}

fn snapshots(shared: &Shared) -> Result<Vec<SnapshotInfo>> {
    let mut all = Vec::new();
    for generation in shared.archive.generations()? {
        let snapshots = shared.archive.snapshots(generation)?;
        all.extend(snapshots.iter().map(|snapshot| snapshot.info));
    }
    Ok(all)
}

fn look(
    shared: &Shared,
    generation: Generation,
    meanwhile: &mut dyn FnMut() -> Result<()>,
) -> Result<Held> {
    let (snapshots, ends) = (BTreeMap::new(), BTreeMap::new());
    let first = Listing::empty(generation);
    let mut held = Held { generation, snapshots, ends, oldest: None, newest: None, first };
    let older = |oldest: Option<Index>, index| Some(oldest.map_or(index, |it| it.min(index)));
    shared.archive.each(generation, &mut |entry| {
        match entry {
            Entry::Snapshot(snapshot) => {
                let info = snapshot.info;
                held.oldest = older(held.oldest, info.index);
                held.snapshots.insert(info.index, info.created_at);
                let first = &mut held.first.snapshots;
                if first.first().is_none_or(|it| info.index < it.info.index) {
                    *first = vec![snapshot];
                }
                held.newest = held.newest.max(Some(info.created_at));
            }
            Entry::Segment(segment) => {
                held.oldest = older(held.oldest, segment.info.index);
                held.newest = held.newest.max(Some(segment.info.created_at));
                let place = (segment.info.index, segment.info.offset);
                let first = &mut held.first.segments;
                if first.first().is_none_or(|it| place < (it.info.index, it.info.offset)) {
                    *first = vec![segment];
                }
            }
            Entry::End(end) => {
                let base = held.snapshots.range(..=end.index).next_back();
                if let Some((base, _)) = base {
                    *held.ends.entry(*base).or_default() += 1;
                }
            }
            Entry::EndFile(..) | Entry::Position => {}
        }
        meanwhile()
    })?;
    Ok(held)
}

/// The snapshot of a generation that everything since the horizon can be restored from.
fn base(held: &Held, horizon: SystemTime) -> Option<(Index, SystemTime)> {
    let whole = |index: Index| {
        let next = held.snapshots.range(index.next()..).next();
        next.is_none_or(|(next, _)| {
            held.ends.get(&index).copied().unwrap_or_default() >= next.get() - index.get()
        })
    };
    let old = held.snapshots.iter().rev().filter(|(_, at)| **at <= horizon);
    old.map(|(index, at)| (*index, *at)).find(|(index, _)| whole(*index))
}

fn choose(all: &[Held], current: Generation, horizon: SystemTime, begins: &mut Begins) -> Vec<Cut> {
    let bases: Vec<_> = all.iter().map(|held| base(held, horizon)).collect();
    let mut cut = |(held, own): (&Held, &Option<(Index, SystemTime)>)| {
        let mut replaced = all.iter().zip(&bases).filter(|(other, base)| {
            let base = base.filter(|_| other.generation != held.generation);
            base.is_some_and(|(_, at)| held.newest.is_some_and(|newest| newest < at))
        });
        if held.generation != current && replaced.any(|(other, _)| begins.is_before(held, other)) {
            return Cut::All;
        }
        match own {
            Some((index, _)) if held.oldest.is_some_and(|oldest| oldest < *index) => {
                Cut::Before(*index)
            }
            Some(_) | None => Cut::Nothing,
        }
    };
    all.iter().zip(&bases).map(&mut cut).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::ErrorKind;

    fn at(second: u64) -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_secs(second)
    }

    /// Snapshots (index, time, finished indexes up to the next one) and the newest object's time.
    fn held(name: u64, snapshots: &[(u64, u64, u64)], newest: u64) -> Held {
        let index = |number| Index::new(number).unwrap();
        Held {
            generation: Generation::from_bits(name),
            snapshots: snapshots.iter().map(|it| (index(it.0), at(it.1))).collect(),
            ends: snapshots.iter().map(|it| (index(it.0), it.2)).collect(),
            oldest: snapshots.first().map(|it| index(it.0)),
            newest: Some(at(newest)),
            first: Listing::empty(Generation::from_bits(name)),
        }
    }

    /// The labels say what the store's times say.
    #[track_caller]
    fn check(all: &[Held], current: u64, horizon: u64, expected: &[Cut]) {
        let mut first = |held: &Held| Ok(*held.snapshots.values().min().unwrap());
        check_labelled(all, current, horizon, &mut first, expected);
    }

    #[track_caller]
    fn check_labelled(
        all: &[Held],
        current: u64,
        horizon: u64,
        ask: &mut dyn FnMut(&Held) -> Result<SystemTime>,
        expected: &[Cut],
    ) {
        let mut begins = Begins { ask, known: BTreeMap::new(), failed: None };
        let cuts = choose(all, Generation::from_bits(current), at(horizon), &mut begins);
        assert_eq!(cuts, expected);
    }

    fn before(index: u64) -> Cut {
        Cut::Before(Index::new(index).unwrap())
    }

    #[test]
    fn one_generation_keeps_its_base() {
        let one = held(1, &[(0, 100, 5), (5, 200, 5), (10, 300, 2)], 350);
        for (horizon, expected) in [
            (99, Cut::Nothing),
            (199, Cut::Nothing),
            (200, before(5)),
            (299, before(5)),
            (300, before(10)),
            (9999, before(10)),
        ] {
            check(std::slice::from_ref(&one), 1, horizon, &[expected]);
        }
    }

    #[test]
    fn a_hole_makes_no_base() {
        let one = held(1, &[(0, 100, 5), (5, 200, 4), (10, 300, 0)], 350);
        check(std::slice::from_ref(&one), 1, 250, &[Cut::Nothing]);
        check(std::slice::from_ref(&one), 1, 300, &[before(10)]);
    }

    #[test]
    fn old_generations_go_when_a_newer_one_has_a_base() {
        let (old, new) = (held(9, &[(0, 100, 5), (5, 200, 0)], 250), held(1, &[(0, 300, 0)], 400));
        let both = [old, new];
        check(&both, 1, 99, &[Cut::Nothing, Cut::Nothing]);
        check(&both, 1, 150, &[Cut::Nothing, Cut::Nothing]);
        check(&both, 1, 299, &[before(5), Cut::Nothing]);
        check(&both, 1, 300, &[Cut::All, Cut::Nothing]);
        // Never the one being written.
        check(&both, 9, 300, &[before(5), Cut::Nothing]);
    }

    /// Of a copy the store's times are those of copying, in any order.
    #[test]
    fn only_what_began_before_goes_for_another() {
        let all = [held(1, &[(0, 100, 0)], 100), held(2, &[(0, 200, 0)], 200)];
        let nothing = [Cut::Nothing, Cut::Nothing];
        let mut copied = |held: &Held| Ok(at(90 - held.generation.to_bits()));
        check_labelled(&all, 3, 300, &mut copied, &nothing);
        let mut same = |_: &Held| Ok(at(90));
        check_labelled(&all, 3, 300, &mut same, &nothing);
        let mut told = |held: &Held| Ok(at(held.generation.to_bits()));
        check_labelled(&all, 3, 300, &mut told, &[Cut::All, Cut::Nothing]);
        let mut unreadable = |held: &Held| match held.generation.to_bits() {
            1 => Err(Error::new(ErrorKind::Refused, "it is encrypted")),
            bits => Ok(at(bits)),
        };
        check_labelled(&all, 3, 300, &mut unreadable, &nothing);
        let all = [held(1, &[(0, 50, 3), (3, 100, 0)], 100), held(2, &[(0, 200, 0)], 200)];
        check_labelled(&all, 3, 300, &mut unreadable, &[before(3), Cut::Nothing]);
    }

    #[test]
    fn a_clock_that_is_ahead_makes_nothing_old() {
        let all = [held(1, &[(0, 100, 0)], 150), held(2, &[(0, 200, 0)], 500)];
        let keep = Duration::from_secs(70);
        assert_eq!(horizon(&all, at(300), keep), Some(at(230)));
        assert_eq!(horizon(&all, at(9_999_999), keep), Some(at(430)));
        assert_eq!(horizon(&[], at(300), keep), None);
    }

    #[test]
    fn generations_side_by_side_stay() {
        let both = [held(1, &[(0, 100, 0)], 500), held(2, &[(0, 200, 0)], 500)];
        check(&both, 2, 400, &[Cut::Nothing, Cut::Nothing]);
    }
}
