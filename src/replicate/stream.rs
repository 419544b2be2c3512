//! One session: from a comparison on, every commit in order, and what falls due in between.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant, SystemTime};

use super::batch::Batch;
use super::compare::{self, Survey, Verdict};
use super::note::{Note, Place, Sent};
use super::retention::{Looked, Retention};
use super::snapshots::Waiting;
use super::{Shared, State, covers};
use crate::archive::label::Moment;
use crate::archive::store::Put;
use crate::error::{Error, ErrorKind, Result, lock};
use crate::log::{Item, Segment, Subscription};
use crate::pos::{Generation, Index, Pos};
use crate::registry::{self, Level};

/// With nothing new for so long the archive's own position is brought up to date.
const POSITION_AFTER: Duration = Duration::from_secs(5);
/// At the end of an index it is, too, but not more often than this.
const POSITION_EVERY: Duration = Duration::from_secs(1);
/// However much there is to send, so often other things have their turn.
const DRAIN_MAX: Duration = Duration::from_secs(1);
/// With nothing due it is looked around so often.
const IDLE: Duration = Duration::from_secs(60);

/// How a session ended, if not with an error.
pub(super) enum Over {
    /// It was told to.
    Stopped,
    /// Another generation has begun, or the log let go of what comes next.
    History,
    /// The archive has another history of this name.
    Parted(Generation),
    /// An object of this name is there already.
    Rejected(String),
}

/// The worker's place in history.
pub(super) struct Stream<'s> {
    pub(super) shared: &'s Shared,
    pub(super) subscription: Subscription,
    pub(super) note: Note,
    /// The archive's end.
    pub(super) at: Place,
    /// The last moment given.
    pub(super) latest: SystemTime,
    pub(super) batch: Batch,
    pub(super) carried: Option<Arc<Segment>>,
    /// Segments of the index the archive is in that were sent since the comparison.
    pub(super) sent_of_index: usize,
    /// There is more to send than fits into one object.
    pub(super) behind: bool,
    pub(super) sent: Instant,
    /// What the archive's position says, and when that was written.
    pub(super) position: (Option<Pos>, Instant),
    /// The first snapshot of this chain is exact from here on.
    pub(super) needed: Option<Pos>,
    pub(super) waiting: Option<Waiting>,
    pub(super) newest: Option<Index>,
    /// How old that was, and when.
    pub(super) newest_age: (Duration, Instant),
    pub(super) newest_bytes: u64,
    pub(super) bytes_since: u64,
    /// When a snapshot was asked for last, and in which index.
    pub(super) asked: Option<(Instant, Index)>,
    /// None while it works.
    pub(super) retention: Option<Retention>,
    pub(super) rejected: Option<String>,
}

impl<'s> Stream<'s> {
    /// Compares the archive with the log and finds the place to go on from.
    pub(super) fn begin(shared: &'s Shared) -> Result<std::result::Result<Stream<'s>, Over>> {
        let (log, url) = (shared.capture.log(), shared.archive.url());
        let generation = log.generation().ok_or_else(Error::no_generation)?;
        let note = Note::read(log.layout(), url);
        let survey = compare::survey(shared, generation)?;
        compare::refuse_mixture(shared, &survey)?;
        let mut latest = SystemTime::UNIX_EPOCH;
        let (start, end) = match compare::judge(shared, &survey, &note, &mut latest)? {
            Verdict::Start(start, end) => (start, end),
            Verdict::Parted(why) => {
                log.part(&format!("archive {url}: {why}"));
                return Ok(Err(Over::Parted(generation)));
            }
        };
        let position = shared.archive.position(generation)?;
        let subscription = log.subscribe(&start, false)?;
        let at = end.unwrap_or(Place { pos: Pos { generation, ..Pos::default() }, checksum: None });
        let mut stream = Stream {
            shared,
            subscription,
            note,
            at,
            latest,
            batch: Batch::default(),
            carried: None,
            sent_of_index: 0,
            behind: false,
            sent: Instant::now(),
            position: (position, Instant::now()),
            needed: position.filter(|position| !covers(at.pos, *position)),
            waiting: None,
            newest: None,
            newest_age: (Duration::ZERO, Instant::now()),
            newest_bytes: 0,
            bytes_since: survey.bytes_since,
            asked: None,
            retention: Some(Retention::new(&shared.config)),
            rejected: None,
        };
        stream.take_over(&survey);
        shared.claim.advance(generation, stream.subscription.position().index);
        if stream.subscription.begins_with_snapshot() {
            stream.report_hole(end);
        } else {
            stream.resumed();
        }
        Ok(Ok(stream))
    }

    /// To have listed an archive does not mend what could not be written to it.
    fn resumed(&self) {
        if self.shared.capture.log().position() == Some(self.at.pos) {
            self.shared.succeed();
        }
        self.shared.update(|progress| {
            if progress.error.is_none() {
                progress.state = State::Streaming;
            }
        });
        self.progress();
    }

    fn take_over(&mut self, survey: &Survey) {
        if let Some(snapshot) = survey.snapshot {
            self.newest = Some(snapshot.info.index);
            let sent = lock(&self.shared.progress).snapshot_sent;
            let ours = sent.filter(|(pos, _)| *pos == snapshot.info.pos()).map(|(_, at)| at);
            // By two clocks only if it was sent by another process.
            let age = || (compare::age(snapshot.info.created_at), Instant::now());
            self.newest_age = ours.map_or_else(age, |at| (Duration::ZERO, at));
            self.newest_bytes = snapshot.info.size;
        }
    }

    /// What the log let go of before it was archived.
    fn report_hole(&self, end: Option<Place>) {
        let Some(end) = end else { return };
        let why = format!(
            "archive {}: history after {} was dropped from the log before it could be archived \
             (\"backlog_bytes\" is {}); no time up to the next snapshot can be restored",
            self.shared.archive.url(),
            end.pos,
            self.shared.config.backlog_bytes
        );
        registry::log(Level::Error, self.shared.capture.path(), &why);
    }

    /// Archives until something ends it.
    pub(super) fn run(mut self) -> Result<Over> {
        loop {
            if self.shared.stopping() {
                return Ok(Over::Stopped);
            }
            if let Some(key) = self.rejected.take() {
                return Ok(Over::Rejected(key));
            }
            match self.turn() {
                Ok(()) => {}
                Err(error) if error.kind() == ErrorKind::GenerationChanged => {
                    return Ok(Over::History);
                }
                Err(error) => return Err(error),
            }
        }
    }

    fn turn(&mut self) -> Result<()> {
        if self.shared.is_urgent() {
            self.drain()?;
        }
        self.chores()?;
        if self.rejected.is_some() {
            return Ok(());
        }
        let shared = self.shared;
        let next = match self.carried.take() {
            Some(segment) => Item::Segment(segment),
            None => self.subscription.next_unless(self.next_chore(), &|| shared.is_urgent())?,
        };
        match next {
            Item::Snapshot(snapshot) => self.begin_chain(&snapshot),
            Item::Segment(segment) => {
                self.carried = Some(segment);
                self.progress();
                if !self.behind {
                    let due = shared.config.sync_interval.saturating_sub(self.sent.elapsed());
                    shared.sleep(due, || shared.is_urgent());
                }
                self.drain()
            }
            Item::Large(_) => Err(Error::bug("a large transaction was not split")),
            Item::Idle => Ok(()),
        }
    }

    /// Sends what is captured, until there is no more or other things are due.
    pub(super) fn drain(&mut self) -> Result<()> {
        let began = Instant::now();
        loop {
            self.behind = self.fill()?;
            if self.batch.is_empty() || self.shared.stopping() {
                return Ok(());
            }
            if !self.send()? || !self.behind || began.elapsed() >= DRAIN_MAX {
                return Ok(());
            }
        }
    }

    /// Gathers what goes into one object. True: there is more.
    fn fill(&mut self) -> Result<bool> {
        loop {
            let segment = match self.carried.take() {
                Some(segment) => segment,
                None if self.subscription.begins_with_snapshot() => return Ok(false),
                None => match self.subscription.next(Duration::ZERO)? {
                    Item::Segment(segment) => segment,
                    _ => return Ok(false),
                },
            };
            self.carried = self.batch.push(segment);
            if self.carried.is_some() {
                return Ok(true);
            }
        }
    }

    /// Sends one object of segments. False: there is one of this name.
    fn send(&mut self) -> Result<bool> {
        let Some((begin, end)) = self.batch.bounds() else { return Ok(true) };
        let (archive, log) = (&self.shared.archive, self.shared.capture.log());
        if begin.index != self.at.pos.index {
            self.end_index()?;
        }
        let checksum = Some(self.batch.checksum(log.page_size()?)?);
        let end = Place { pos: end, checksum };
        self.note.segment = Some(Sent { before: self.at, begin, end });
        self.note.write(log.layout(), archive.url())?;
        let moments: Vec<Moment> = self.batch.moments(self.latest);
        let last = moments.last().map_or(self.latest, |moment| moment.at);
        let created_at = self.batch.since().map_or(last, |since| last.max(since));
        let frame = self.batch.frame()?;
        let size = u64::try_from(frame.len()).unwrap_or(u64::MAX);
        let put = archive.put_segment(begin, created_at, &moments, &mut frame.as_slice())?;
        self.batch = Batch::default();
        if put == Put::Exists {
            self.rejected = Some(format!("for {begin}"));
            return Ok(false);
        }
        self.at = end;
        self.sent_of_index += 1;
        self.latest = created_at;
        self.sent = Instant::now();
        self.bytes_since = self.bytes_since.saturating_add(size);
        let counters = &self.shared.counters;
        counters.segments.fetch_add(1, Ordering::Relaxed);
        counters.segment_bytes.fetch_add(size, Ordering::Relaxed);
        self.shared.claim.advance(end.pos.generation, end.pos.index);
        self.shared.succeed();
        self.progress();
        Ok(true)
    }

    /// The index the archive is in is finished.
    fn end_index(&mut self) -> Result<()> {
        let sent = std::mem::take(&mut self.sent_of_index);
        // Before the first segment of a chain there is none.
        if self.at.checksum.is_some() {
            let end = self.at.pos;
            let _there_is_one_of_the_same_offset = self.shared.archive.put_end(end)?;
            let (found, other) = compare::look_back(self.shared, end)?;
            if found < sent {
                let index = end.index;
                return Err(
                    self.lost(&format!("of index {index} it has {found} of {sent} segments"))
                );
            }
            if let Some(other) = other {
                let (log, url) = (self.shared.capture.log(), self.shared.archive.url());
                log.part(&format!(
                    "archive {url}: somebody else wrote to index {} of this history: it ends at \
                     {end}, and also has {other}",
                    end.index
                ));
                return Err(Error::generation_changed());
            }
            if self.position.1.elapsed() >= POSITION_EVERY {
                self.put_position()?;
            }
        }
        Ok(())
    }

    /// Whether the newest chain can be restored.
    pub(super) fn is_complete(&self) -> bool {
        self.newest.is_some() && self.needed.is_none_or(|needed| covers(self.at.pos, needed))
    }

    /// Tells the tables and those who wait.
    pub(super) fn progress(&self) {
        let complete = self.is_complete() && !self.subscription.begins_with_snapshot();
        let pos = self.at.pos;
        let noted = self.position.0.filter(|_| complete);
        let behind = self.carried.as_ref().map(|segment| segment.born);
        let level = self.shared.capture.log().position() == Some(pos);
        let snapshot = self.newest.map(|index| Pos { index, ..pos.truncate() });
        self.shared.update(|progress| {
            progress.pos = Some(pos);
            progress.noted = noted;
            progress.snapshot = snapshot;
            progress.complete = complete;
            progress.behind_since = behind;
            if level && complete {
                progress.last_sync = Some(SystemTime::now());
            }
        });
    }

    /// All that may be due besides segments.
    fn chores(&mut self) -> Result<()> {
        if self.subscription.begins_with_snapshot() || self.rejected.is_some() {
            return Ok(());
        }
        let first = self.needed.is_some() && self.is_complete();
        if first {
            self.needed = None;
        }
        self.answer()?;
        if first || self.sent.elapsed() >= POSITION_AFTER {
            self.put_position()?;
        }
        if first {
            self.progress();
        }
        self.snapshot_if_due()?;
        if self.is_complete() && self.retention.as_ref().is_some_and(Retention::is_due) {
            self.delete_old()?;
        }
        Ok(())
    }

    /// Deletes what nobody needs; commits go on meanwhile. Leave to write is not leave to delete:
    /// without that the archive grows, and says so.
    fn delete_old(&mut self) -> Result<()> {
        let Some(mut retention) = self.retention.take() else { return Ok(()) };
        let (shared, generation, newest) = (self.shared, self.at.pos.generation, self.newest);
        let mut failed = None;
        let mut meanwhile = || self.go_on().inspect_err(|error| failed = Some(error.clone()));
        let done = retention.run(shared, generation, newest, &mut meanwhile);
        self.retention = Some(retention);
        if let Some(error) = failed {
            return Err(error);
        }
        if matches!(done, Ok(Looked::Lost)) {
            return Err(self.lost("its newest snapshot is not there"));
        }
        let kept = done.err().map(|error| format!("nothing old can be deleted: {error}"));
        let mut news = false;
        shared.update(|progress| {
            news = kept.is_some() && progress.kept != kept;
            progress.kept.clone_from(&kept);
        });
        if let Some(why) = kept.filter(|_| news) {
            let message = format!("archive {}: {why}", shared.archive.url());
            registry::log(Level::Warn, shared.capture.path(), &message);
        }
        Ok(())
    }

    /// Sends what is due in the middle of something long.
    pub(super) fn go_on(&mut self) -> Result<()> {
        if self.shared.stopping() {
            return Err(super::stopped());
        }
        let due = self.sent.elapsed() >= self.shared.config.sync_interval;
        if (due || self.shared.is_urgent()) && self.rejected.is_none() {
            self.sent = Instant::now();
            self.drain()?;
            self.answer()?;
        }
        Ok(())
    }

    fn next_chore(&self) -> Duration {
        let position = if self.position.0 == Some(self.at.pos) {
            IDLE
        } else {
            POSITION_AFTER.saturating_sub(self.sent.elapsed())
        };
        let retention = self.retention.as_ref().map_or(IDLE, Retention::due_in);
        position.min(retention).min(IDLE)
    }

    /// Does what calls wait for.
    pub(super) fn answer(&mut self) -> Result<()> {
        if !self.shared.urgent.swap(false, Ordering::AcqRel) {
            return Ok(());
        }
        let want = lock(&self.shared.progress).want;
        if let Some(want) = want {
            let newer = want.generation != self.at.pos.generation;
            if newer || covers(self.at.pos, want) {
                self.put_position()?;
                self.shared.update(|progress| {
                    if progress.want == Some(want) {
                        progress.want = None;
                    }
                });
            } else {
                // Not in the log yet, or the store gave up in between.
                self.shared.urgent.store(true, Ordering::Release);
                self.shared.sleep(Duration::from_millis(20), || self.shared.stopping());
            }
        }
        self.progress();
        Ok(())
    }
}
