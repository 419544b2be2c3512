//! Fetching from an archive: where to begin, what comes next, and what to do when it does not.
//!
//! | found at the replica's position            | then                                            |
//! |--------------------------------------------|-------------------------------------------------|
//! | its checksum there                         | goes on from there                              |
//! | another checksum: the histories parted     | starts over with the newest snapshot            |
//! | nothing any more, or a newer generation    | the same                                        |
//! | the archive ends before it                 | waits: what is archived later will reach it     |
//!
//! Then, for ever: the next segment is the one that starts where the last one ended. An index is
//! finished where its end says; if what was read of it has no label, so that no end is to be
//! expected, also where the next index begins. What comes later without a connection is a hole: a
//! newer snapshot leads past it. Each look costs two listings, that of the current index and that
//! of the generations; now and then also those of the next index and the snapshots.
//!
//! An error ends the stream: the replica tries again from where it is.

mod send;

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::archive::{Extent, From};
use super::held::{self, Held};
use super::pipe::Writing;
use crate::archive::hold::hold;
use crate::archive::ltx;
use crate::archive::plan::{self, Goal, LabelTimes};
use crate::archive::sink::{Target, Until};
use crate::archive::tree::Tree;
use crate::archive::{Archive, Listing};
use crate::error::{Context, Error, ErrorKind, Result};
use crate::pos::{Generation, Offset, Pos};
use send::name_of;

/// Every so many looks at the current index, also the next one and the snapshots are looked at.
const WIDE_LOOK_EVERY: u32 = 10;
/// Looks at everything are not further apart than this, however rarely the index is looked at.
const WIDE_LOOK_MAX: Duration = Duration::from_secs(10);
/// An archive that says it reaches further than it does may be in the middle of its first upload:
/// as long as something comes, and then so long.
const OWED_MAX: Duration = Duration::from_secs(60);

/// One stream's worth of fetching.
pub struct Fetcher<'a> {
    archive: &'a Arc<Archive>,
    writing: &'a Writing,
    poll: Duration,
    extent: Extent,
    /// Generations known to have begun no later than ours.
    older: BTreeSet<Generation>,
    /// The next byte to send.
    at: Pos,
    /// The end of what was sent: `at`, or the end of the index before.
    reached: Pos,
    /// How far the archive said it reaches: a snapshot may be exact only there.
    promised: Option<Pos>,
    /// Whether what was read last had a label.
    is_labelled: bool,
    /// How what was read last is named; none: nothing was read yet.
    tree: Option<Tree>,
}

/// The generations that have begun no later than the newest. One that only says how far it will
/// reach is being begun: its first snapshot is on its way.
fn begun(listings: &[Listing], newest: Option<usize>) -> BTreeSet<Generation> {
    // What has no snapshot cannot be followed yet, and may be newer than what is.
    let followable =
        newest.and_then(|at| listings.get(at)).is_some_and(|it| !it.snapshots.is_empty());
    let begun = listings.iter().filter(|it| followable && it.has_content());
    begun.map(|listing| listing.generation).collect()
}

impl<'a> Fetcher<'a> {
    /// Fetches from `archive` into `writing`.
    pub fn new(
        archive: &'a Arc<Archive>,
        writing: &'a Writing,
        poll: Duration,
        extent: Extent,
    ) -> Self {
        Fetcher {
            archive,
            writing,
            poll,
            extent,
            older: BTreeSet::new(),
            at: Pos::default(),
            reached: Pos::default(),
            promised: None,
            is_labelled: true,
            tree: None,
        }
    }

    /// Fetches until there is an error, the pipe is cut, or the extent is reached.
    pub fn run(mut self, from: Option<From>) -> Result<()> {
        let found = self.begin(from)?;
        self.take(&found)?;
        self.beat()?;
        let (mut looks, mut heard) = (0, Instant::now());
        let wide = WIDE_LOOK_MAX.as_millis() / self.poll.as_millis().max(1);
        let wide = u32::try_from(wide).unwrap_or(u32::MAX).clamp(1, WIDE_LOOK_EVERY);
        loop {
            let moved = self.look()?;
            self.beat()?;
            if moved {
                heard = Instant::now();
                continue;
            }
            if heard.elapsed() > OWED_MAX {
                self.require_promised()?;
            }
            if self.extent == Extent::Rest {
                return Ok(());
            }
            self.require_newest_generation()?;
            looks += 1;
            if looks % wide == 0 {
                self.require_no_hole()?;
            }
            self.writing.pause(self.poll)?;
        }
    }

    /// Finds where to begin and says so. Returns what is known of the generation.
    fn begin(&mut self, from: Option<From>) -> Result<Listing> {
        // Kept until the snapshot is read: by then what comes after it is young enough.
        let _hold = hold(self.archive.url());
        let names = self.archive.generations()?;
        let listings: Result<Vec<_>> = names.iter().map(|name| self.archive.list(*name)).collect();
        let mut listings = listings?;
        let newest = plan::newest(&listings, &mut LabelTimes(self.archive))?;
        self.older = begun(&listings, newest);
        if let Some(from) = from
            && let Some(listing) = self.continued(&listings, newest, &from)?
        {
            let at = listings.iter().position(|it| it.generation == listing);
            return at.map(|at| listings.swap_remove(at)).ok_or_else(Error::no_generation);
        }
        if self.extent == Extent::Rest {
            let why = "it does not continue this replica's history";
            return Err(Error::new(ErrorKind::NoWalSegments, why).context(self.archive.url()));
        }
        let Some(newest) = newest else { return Err(self.nothing_there()) };
        let listing = listings.swap_remove(newest);
        let generation = listing.generation;
        if listing.snapshots.is_empty() {
            let why = format!("generation {generation} has no snapshot yet");
            return Err(Error::new(ErrorKind::NoGeneration, why).context(self.archive.url()));
        }
        let mut times = LabelTimes(self.archive);
        let chain = plan::choose(vec![listing], Goal::Latest, &mut times);
        self.snapshot(&chain.context(|| self.archive.url().to_owned())?.snapshot)?;
        // Both may have come since, and were there before the snapshot was.
        self.promised = self.archive.position(generation)?;
        self.archive.list(generation)
    }

    fn nothing_there(&self) -> Error {
        let what = |why: &str, kind| Error::new(kind, why).context(self.archive.url());
        let target = Target { generation: None, until: Until::Latest };
        match ltx::choose(self.archive, &target) {
            Err(error) => error,
            Ok(Some(_)) => what(
                "an archive of Litestream 0.5 (LTX files) can be restored, not followed",
                ErrorKind::Unsupported,
            ),
            Ok(None) => {
                what("it holds no snapshot and no WAL segment yet", ErrorKind::NoGeneration)
            }
        }
    }

    /// Begins where the replica is, if its history continues there: in which generation.
    fn continued(
        &mut self,
        listings: &[Listing],
        newest: Option<usize>,
        from: &From,
    ) -> Result<Option<Generation>> {
        let pos = from.upstream.pos;
        let newest = newest.and_then(|at| listings.get(at));
        let found = listings.iter().find(|listing| listing.generation == pos.generation);
        let Some(listing) = found else { return Ok(None) };
        // A newer generation counts once there is something to begin it with.
        let is_over =
            newest.is_some_and(|it| it.generation != pos.generation && !it.snapshots.is_empty());
        if is_over && self.extent == Extent::Endless {
            return Ok(None);
        }
        let verified = match held::find(listing, pos) {
            Held::At(segment) => {
                let opened = self.archive.open_segment(segment)?;
                self.is_labelled = opened.label.is_some();
                self.tree = Some(segment.tree());
                let end = held::verify(opened, segment.info.offset, from);
                let end = end.map_err(|error| error.context(name_of(self.archive, segment)))?;
                end.map(|end| (end, Some(*segment)))
            }
            Held::AtStart => Some((pos.offset, None)),
            Held::Ahead => return Err(self.ends_before(pos)),
            Held::Gone => None,
        };
        let Some((end, segment)) = verified else { return Ok(None) };
        if end < pos.offset {
            return Err(self.ends_before(pos));
        }
        let newer = listing.snapshots.last().is_some_and(|it| it.info.index > pos.index);
        let end_at = Pos { offset: end, ..pos };
        if held::is_cut_off(listing, end_at, self.is_labelled) {
            return if newer { Ok(None) } else { Err(self.hole(end_at)) };
        }
        self.say(from.page_size, false);
        (self.at, self.reached) = (pos, pos);
        if let Some(segment) = segment.filter(|_| end > pos.offset) {
            self.rest_of(&segment)?;
        }
        Ok(Some(pos.generation))
    }

    fn ends_before(&self, pos: Pos) -> Error {
        let why = format!("{} does not reach this replica's {pos} yet", self.archive.url());
        Error::new(ErrorKind::NoWalSegments, why)
    }

    /// Looks at the current index, and at the next ones if it is finished; whether there was
    /// anything new.
    fn look(&mut self) -> Result<bool> {
        let mut moved = false;
        loop {
            let before = self.at;
            let listing = self.index(self.at)?;
            self.take(&listing)?;
            if self.at == before && !self.is_labelled && self.at.offset != Offset::ZERO {
                self.follow_on()?;
            }
            if self.at == before {
                return Ok(moved);
            }
            moved = true;
        }
    }

    fn index(&self, at: Pos) -> Result<Listing> {
        let both = [Tree::V04, Tree::V03];
        let trees = self.tree.as_ref().map_or(both.as_slice(), std::slice::from_ref);
        self.archive.list_index(at.generation, at.index, trees)
    }

    /// Goes to the next index if it has begun, which proves that there is no more of this one.
    fn follow_on(&mut self) -> Result<()> {
        let next = Pos { index: self.at.index.next(), offset: Offset::ZERO, ..self.at };
        if self.index(next)?.segments.first().is_none_or(|it| it.info.pos() != next) {
            return Ok(());
        }
        // What was stored before the next one began, but after the look.
        let before = self.at;
        let listing = self.index(self.at)?;
        self.take(&listing)?;
        if self.at == before {
            self.at = next;
        }
        Ok(())
    }

    /// What the archive said it reaches, if nothing of the kind has come yet.
    fn owed(&self) -> Option<Pos> {
        let place = |pos: Pos| (pos.index, pos.offset);
        self.promised.filter(|promised| place(*promised) > place(self.reached))
    }

    fn require_promised(&self) -> Result<()> {
        let Some(owed) = self.owed() else { return Ok(()) };
        let why =
            format!("it says it reaches {owed}, but the WAL segment at {} is missing", self.at);
        Err(Error::new(ErrorKind::NoWalSegments, why).context(self.archive.url()))
    }

    /// Fails if a generation has begun after ours that can be followed.
    fn require_newest_generation(&mut self) -> Result<()> {
        let names = self.archive.generations()?;
        self.older.insert(self.at.generation);
        if !names.contains(&self.at.generation) {
            let why = format!("generation {} is not there any more", self.at.generation);
            return Err(Error::new(ErrorKind::NoGeneration, why).context(self.archive.url()));
        }
        // What has no snapshot may not be complete yet.
        let mut followable = false;
        for name in names.iter().filter(|name| !self.older.contains(name)) {
            followable |= !self.archive.snapshots(*name)?.is_empty();
        }
        if !followable {
            return Ok(());
        }
        let listings: Result<Vec<_>> = names.iter().map(|name| self.archive.list(*name)).collect();
        let listings = listings?;
        let newest = plan::newest(&listings, &mut LabelTimes(self.archive))?;
        match newest.and_then(|at| listings.get(at)) {
            Some(found) if found.generation == self.at.generation => {
                self.older = begun(&listings, newest);
            }
            Some(newest) if newest.snapshots.is_empty() => {}
            Some(newest) => {
                let why = format!("the archive goes on with generation {}", newest.generation);
                return Err(Error::new(ErrorKind::GenerationChanged, why));
            }
            None => {}
        }
        Ok(())
    }

    /// Fails if the archive has gone on without a connection to what was sent.
    fn require_no_hole(&mut self) -> Result<()> {
        let generation = self.at.generation;
        let snapshots = self.archive.snapshots(generation)?;
        let is_newer = snapshots.last().is_some_and(|it| it.info.index > self.at.index);
        let next = Pos { index: self.at.index.next(), offset: Offset::ZERO, ..self.at };
        let beyond = held::from(&self.index(self.at)?, self.at).len();
        if !is_newer && beyond == 0 && self.index(next)?.segments.is_empty() {
            return Ok(());
        }
        let before = self.at;
        let listing = self.archive.list(generation)?;
        if !held::is_cut_off(&listing, self.at, self.is_labelled) {
            return Ok(());
        }
        self.take(&listing)?;
        if self.at != before {
            return Ok(());
        }
        if !is_newer {
            return Err(self.hole(before));
        }
        let why = format!("{before} is not continued, there is a newer snapshot");
        Err(Error::new(ErrorKind::NoWalSegments, why).context(self.archive.url()))
    }

    fn hole(&self, at: Pos) -> Error {
        let why = format!("the WAL segment at {at} is missing, and no snapshot is newer");
        Error::new(ErrorKind::NoWalSegments, why).context(self.archive.url())
    }
}
