//! Snapshots on their way into an archive: the first of a chain, and those that follow.

use std::fs::File;
use std::io::{self, Read};
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant, SystemTime};

use super::batch::in_micros;
use super::note::Place;
use super::retention::Retention;
use super::stream::Stream;
use super::{Shared, State, compare, covers, policy};
use crate::archive::store::Put;
use crate::capture::Patience;
use crate::error::{Context, Error, Result, lock};
use crate::info::CheckpointMode;
use crate::log::Snapshot;
use crate::pos::{Index, Pos};
use crate::registry::{self, Level};

/// A snapshot that could not be had is asked for again after this.
const SNAPSHOT_RETRY: Duration = Duration::from_secs(10);
/// How long capture may take for a snapshot.
const SNAPSHOT_WAIT: Duration = Duration::from_secs(3600);

/// A snapshot waiting for the commits it may hold pages of.
pub(super) struct Waiting {
    snapshot: Snapshot,
    file: File,
    needed: Pos,
}

impl Stream<'_> {
    /// The first snapshot of a chain: the position first, which says from where on it is exact.
    pub(super) fn begin_chain(&mut self, snapshot: &Snapshot) -> Result<()> {
        self.shared.set_state(State::Snapshot);
        let (archive, log) = (&self.shared.archive, self.shared.capture.log());
        let file = snapshot.open_stored()?;
        let needed = log.position().filter(|pos| covers(*pos, snapshot.pos()));
        let needed = needed.ok_or_else(Error::generation_changed)?;
        self.close_generation_before()?;
        let created_at = self.dated(snapshot)?;
        let before = self.note.snapshot;
        self.note.snapshot = Some(snapshot.pos());
        self.note.write(log.layout(), archive.url())?;
        archive.put_position(needed)?;
        self.position = (Some(needed), Instant::now());
        let mut file = Watched { file, shared: self.shared };
        let put = archive.put_snapshot(snapshot.pos(), created_at, &mut file)?;
        let known = put == Put::Created || before == Some(snapshot.pos());
        if !known && !self.is_same(snapshot, created_at)? {
            let why = format!("it has another snapshot {}", snapshot.pos());
            log.part(&format!("archive {}: {why}", archive.url()));
            return Err(Error::generation_changed());
        }
        self.at = Place { pos: snapshot.pos(), checksum: None };
        self.sent_of_index = 0;
        self.needed = Some(needed);
        self.has_snapshot(snapshot);
        self.bytes_since = 0;
        self.shared.succeed();
        self.progress();
        self.drain()
    }

    /// What the generation before had captured and not archived went with its log. Its position
    /// says how far it came, so a restore to a time in between tells what is missing.
    fn close_generation_before(&self) -> Result<()> {
        let (archive, capture) = (&self.shared.archive, &self.shared.capture);
        let current = self.subscription.position().generation;
        let ended = capture.log().ended().filter(|ended| ended.generation != current);
        let Some(ended) = ended else { return Ok(()) };
        let Some(noted) = archive.position(ended.generation)? else { return Ok(()) };
        if covers(noted, ended) {
            return Ok(());
        }
        // The note is of what was sent; whether it got there the archive knows.
        let last = compare::survey(self.shared, ended.generation)?.last();
        archive.put_position(ended)?;
        let arrived = self.note.segment.filter(|sent| last == Some(sent.begin));
        if arrived.is_none_or(|sent| !covers(sent.end.pos, ended)) {
            let why = format!(
                "archive {}: generation {} ended at {ended} before all of it was archived; the \
                 moments after {noted} may not be restored",
                archive.url(),
                ended.generation
            );
            registry::log(Level::Error, capture.path(), &why);
        }
        Ok(())
    }

    /// When a generation's first snapshot was made: after everything the archive has of others, or
    /// a database that goes on where the clock is behind would never be the latest.
    fn dated(&mut self, snapshot: &Snapshot) -> Result<SystemTime> {
        let (archive, capture) = (&self.shared.archive, &self.shared.capture);
        let newest = compare::newest_moment(self.shared, snapshot.info.generation)?;
        let created_at = snapshot.info.created_at.max(self.latest);
        if newest < created_at {
            return Ok(created_at);
        }
        let created_at = newest + Duration::from_micros(1);
        let behind = created_at.duration_since(snapshot.info.created_at).unwrap_or_default();
        let why = format!(
            "archive {}: the clock is {} behind what is archived already; until it has caught up, \
             moments cannot be told apart",
            archive.url(),
            humantime::format_duration(Duration::from_millis(
                u64::try_from(behind.as_millis()).unwrap_or(u64::MAX)
            ))
        );
        registry::log(Level::Error, capture.path(), &why);
        capture.log().raise_clock(created_at);
        self.latest = created_at;
        Ok(created_at)
    }

    /// Whether the archive's snapshot of this name is this very one.
    fn is_same(&self, snapshot: &Snapshot, created_at: SystemTime) -> Result<bool> {
        let survey = compare::survey(self.shared, snapshot.info.generation)?;
        let Some(theirs) = survey.snapshot.filter(|it| it.info.pos() == snapshot.pos()) else {
            return Ok(false);
        };
        if !self.shared.can_read() {
            return Ok(false);
        }
        let label = self.shared.archive.snapshot_label(&theirs)?;
        Ok(label.is_some_and(|label| label.created_at == in_micros(created_at)))
    }

    fn has_snapshot(&mut self, snapshot: &Snapshot) {
        self.newest = Some(snapshot.info.index);
        let sent = Instant::now();
        self.newest_age = (Duration::ZERO, sent);
        self.shared.update(|progress| progress.snapshot_sent = Some((snapshot.pos(), sent)));
        self.newest_bytes = snapshot.stored_size();
        self.asked = None;
        let counters = &self.shared.counters;
        counters.snapshots.fetch_add(1, Ordering::Relaxed);
        counters.snapshot_bytes.fetch_add(snapshot.stored_size(), Ordering::Relaxed);
    }

    pub(super) fn snapshot_if_due(&mut self) -> Result<()> {
        if let Some(waiting) = self.waiting.take() {
            return if covers(self.at.pos, waiting.needed) {
                self.add_snapshot(waiting)
            } else {
                self.waiting = Some(waiting);
                Ok(())
            };
        }
        let wanted = lock(&self.shared.progress).want_snapshot;
        let asked = wanted.filter(|pos| {
            pos.generation == self.at.pos.generation && Some(pos.index) > self.newest
        });
        if asked.is_none() && wanted.is_some() {
            self.shared.update(|progress| progress.want_snapshot = None);
        }
        let since = policy::Since {
            age: self.newest_age.0 + self.newest_age.1.elapsed(),
            bytes: self.bytes_since,
            snapshot_bytes: self.newest_bytes,
        };
        let config = &self.shared.config;
        let due =
            policy::wants_snapshot(since, config.snapshot_interval, config.snapshot_bytes_min);
        let index = self.shared.capture.log().position().map(|pos| pos.index);
        let lately = self
            .asked
            .is_some_and(|(asked, of)| Some(of) == index && asked.elapsed() < SNAPSHOT_RETRY);
        // Without one, because somebody deleted it, segments are of no use.
        let due = due || self.newest.is_none();
        if asked.is_none() && (!due || lately) {
            return Ok(());
        }
        self.choose_snapshot()
    }

    /// The log's newest snapshot, or a new one, waits for its commits to be archived.
    fn choose_snapshot(&mut self) -> Result<()> {
        let (capture, shared) = (&self.shared.capture, self.shared);
        let log = capture.log();
        let interrupted = || shared.stopping();
        let patience = Patience { wait: SNAPSHOT_WAIT, interrupted: &interrupted };
        let newer = |snapshot: &Snapshot| {
            let info = snapshot.info;
            info.generation == self.at.pos.generation && Some(info.index) > self.newest
        };
        let mut found = log.newest_snapshot().filter(newer);
        if found.is_none() {
            let index = log.position().map_or(Index::ZERO, |pos| pos.index);
            self.asked = Some((Instant::now(), index));
            let current = Some(index) <= self.newest;
            let done = if current {
                // An index has one snapshot: the WAL has to start over first.
                capture.checkpoint(CheckpointMode::Passive, &patience).map(|_| ())
            } else {
                capture.snapshot(&patience).map(|_| ())
            };
            if let Err(error) = done {
                let message = format!("archive {} gets no snapshot: {error}", shared.archive.url());
                registry::log(Level::Warn, capture.path(), &message);
            }
            found = log.newest_snapshot().filter(newer);
        }
        if let Some(snapshot) = found {
            let file = snapshot.open_stored()?;
            let needed = log.position().ok_or_else(Error::no_generation)?;
            self.waiting = Some(Waiting { snapshot, file, needed });
            if covers(self.at.pos, needed) {
                return self.snapshot_if_due();
            }
        }
        Ok(())
    }

    /// Stores a further snapshot. Segments go on meanwhile.
    fn add_snapshot(&mut self, waiting: Waiting) -> Result<()> {
        let Waiting { snapshot, file, .. } = waiting;
        // Everything it may hold is archived by now: it is exact from the last of that on.
        let (pos, created_at) = (snapshot.pos(), snapshot.info.created_at.max(self.latest));
        let shared = self.shared;
        self.note.snapshot = Some(pos);
        self.note.write(shared.capture.log().layout(), shared.archive.url())?;
        let bytes_before = self.bytes_since;
        let mut reader = Interleaved { file, stream: self, failed: None };
        let put = shared.archive.put_snapshot(pos, created_at, &mut reader);
        if let Some(error) = reader.failed.take() {
            return Err(error);
        }
        let _there_is_one_already = put?;
        self.has_snapshot(&snapshot);
        self.bytes_since = self.bytes_since.saturating_sub(bytes_before);
        self.retention.iter_mut().for_each(Retention::look_soon);
        self.put_position()?;
        self.progress();
        Ok(())
    }
}

/// A file that is read until the worker is stopped.
struct Watched<'s> {
    file: File,
    shared: &'s Shared,
}

impl Read for Watched<'_> {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        if self.shared.stopping() {
            return Err(super::stopped().into());
        }
        self.file.read(out)
    }
}

/// A snapshot's file; while it is read the stream goes on.
struct Interleaved<'a, 's> {
    file: File,
    stream: &'a mut Stream<'s>,
    failed: Option<Error>,
}

impl Read for Interleaved<'_, '_> {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        if let Err(error) = self.stream.go_on() {
            let told = io::Error::other(error.to_string());
            self.failed = Some(error);
            return Err(told);
        }
        self.file.read(out).context(|| "cannot read the snapshot".to_owned()).map_err(Into::into)
    }
}
