//! The log of one database: its snapshots and WAL segments in order, in memory at the tail and
//! below that in `DB-litestream/`.
//!
//! Capture appends, sessions read; neither waits for the other. A commit is in the tail the moment
//! it is proved and every session is woken; files are written in batches, and always before the WAL
//! they came from may restart. Sessions share one copy of each tail segment; one that falls behind
//! the tail reads files at its own speed.
//!
//! | thing                  | changed only by      | while holding              | read by            |
//! |------------------------|----------------------|----------------------------|--------------------|
//! | `State::end`, `tail`   | capture              | `Log::state`               | anyone, by copy    |
//! | segment, snapshot files| whoever flushes      | `Log::flusher` (write-once)| sessions           |
//! | `State::disk`          | whoever flushes      | `flusher`, then `state`    | sessions           |
//! | deletion of an index   | `Log::trim`          | `flusher`, then `state`, and no lease or claim at or below it; the files go after that | |
//!
//! `state` is never held over a file operation, `flusher` never over a sync; `syncing` is, and is
//! taken before `flusher`. A generation has no gap: a segment is written only
//! after every earlier one is in its file, and an index is begun on disk only after the one before
//! is synced.

mod claim;
mod flush;
pub mod layout;
mod load;
mod mark;
mod reader;
mod segment;
mod snapshot;

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::time::{Duration, Instant, SystemTime};

pub use claim::Claim;
pub use flush::Pack;
pub use load::{NewestWal, newest_wal};
pub use reader::{Item, Large, Start, Subscription};
pub use segment::{SEGMENT_BYTES_MAX, Segment, Stored, ends_in_commit, last_frame_header};
pub use snapshot::{Snapshot, SnapshotWriter};

use crate::error::{Error, ErrorKind, Result, lock};
use crate::files::sync_folder_of;
use crate::info::{SnapshotInfo, WalSegmentInfo};
use crate::pos::{Generation, Index, Offset, Pos};
use crate::wal::{Chain, Checksum, PageSize};
use layout::Layout;

/// Tail bytes kept in memory after they are in files, for readers a moment behind: of one log, and
/// of all logs of the process together, but of each at least [`TAIL_BYTES_MIN`]. A log that nobody
/// reads keeps none.
const TAIL_BYTES_KEPT: usize = 16 << 20;
const TAILS_BYTES_KEPT: usize = 128 << 20;
const TAIL_BYTES_MIN: usize = 1 << 20;

/// How many logs there are in the process.
static LOGS: AtomicUsize = AtomicUsize::new(0);

/// Where history ends, and the WAL's running state there (`None` at offset 0: no header seen yet).
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Tip {
    /// The next byte wanted.
    pub pos: Pos,
    /// Salts, byte order and running checksum up to `pos`.
    pub chain: Option<Chain>,
}

/// One database's log. Shared by capture, flusher and sessions.
pub struct Log {
    layout: Layout,
    state: Mutex<State>,
    changed: Condvar,
    flusher: Mutex<flush::Unsynced>,
    /// Held while files are synced; the folder synced last.
    syncing: Mutex<PathBuf>,
    claims: Mutex<BTreeMap<u64, claim::Wanted>>,
    /// The latest time given.
    clock: Mutex<SystemTime>,
}

#[derive(Default)]
struct State {
    tip: Option<Tip>,
    page_size: Option<PageSize>,
    /// Followers may come: there is a snapshot and everything after it.
    ready: bool,
    closed: bool,
    disk: BTreeMap<Index, Vec<Stored>>,
    snapshots: BTreeMap<Index, Snapshot>,
    tail: VecDeque<Arc<Segment>>,
    tail_bytes: usize,
    /// Of these, what is in no file yet.
    unflushed_bytes: usize,
    flushed: Pos,
    leases: HashMap<u64, Index>,
    leases_made: u64,
    damage: Option<String>,
    /// Where the generation before ended.
    ended: Option<Pos>,
    /// The wal-index's count at the tip, if it is known.
    mark: Option<mark::Mark>,
    /// What of it is noted in files.
    noted: Option<mark::Mark>,
}

/// Sizes for the tables and metrics.
#[derive(Clone, Copy, Debug, Default)]
pub struct Totals {
    /// Snapshots held.
    pub snapshots: usize,
    /// Segments held in files.
    pub segments: usize,
    /// Bytes of all files.
    pub size: u64,
}

impl Log {
    /// The time, for what is captured: a clock that was set back stands still until it is there
    /// again, so that no snapshot says it is older than the commits it has pages of.
    pub fn now(&self) -> SystemTime {
        let mut latest = lock(&self.clock);
        *latest = SystemTime::now().max(*latest);
        *latest
    }

    /// Nothing is dated before `time` from now on.
    pub fn raise_clock(&self, time: SystemTime) {
        let mut latest = lock(&self.clock);
        *latest = time.max(*latest);
    }

    /// Where the generation before this one ended, if this process has seen its end.
    pub fn ended(&self) -> Option<Pos> {
        lock(&self.state).ended
    }

    /// Where its files are.
    pub fn layout(&self) -> &Layout {
        &self.layout
    }

    /// The page size, in bytes; 512 until a generation has begun.
    pub fn page_size(&self) -> Result<PageSize> {
        lock(&self.state).page_size.ok_or_else(Error::no_generation)
    }

    /// The end of what is captured; `None` before the first generation.
    pub fn position(&self) -> Option<Pos> {
        lock(&self.state).tip.map(|tip| tip.pos)
    }

    /// The end of what is captured, with the WAL's running state there.
    pub fn tip(&self) -> Option<Tip> {
        lock(&self.state).tip
    }

    /// Whether followers can be served.
    pub fn is_ready(&self) -> bool {
        let state = lock(&self.state);
        state.ready && !state.closed
    }

    /// Begins a new history at index 0, offset 0. What the old one held is unreachable from now on;
    /// [`Log::adopt`] makes the new one current once it has a snapshot.
    pub fn begin_generation(&self, generation: Generation, page_size: PageSize) {
        let mut unsynced = lock(&self.flusher);
        unsynced.clear();
        let mut state = lock(&self.state);
        let pos = Pos { generation, ..Pos::default() };
        let leases_made = state.leases_made;
        let before = state.tip.filter(|tip| tip.chain.is_some()).map(|tip| tip.pos);
        *state = State {
            ended: before.or(state.ended),
            tip: Some(Tip { pos, chain: None }),
            page_size: Some(page_size),
            flushed: pos,
            leases_made,
            ..State::default()
        };
        drop(state);
        self.changed.notify_all();
    }

    /// Appends captured bytes. They start where history ends, or at offset 0 of the next index.
    pub fn append(&self, segment: Segment, chain: Chain) -> Result<()> {
        self.append_counted(segment, chain, None)
    }

    /// The same. `change`: what the wal-index has counted where they end, if that is known.
    pub fn append_counted(
        &self,
        segment: Segment,
        chain: Chain,
        change: Option<u32>,
    ) -> Result<()> {
        let mut state = lock(&self.state);
        let tip = state.tip.ok_or_else(Error::no_generation)?;
        let same = segment.pos == tip.pos;
        let next = segment.pos.offset == Offset::default()
            && segment.pos.generation == tip.pos.generation
            && tip.pos.index.next() == segment.pos.index;
        if !same && !next {
            let why = format!("segment {} does not continue history at {}", segment.pos, tip.pos);
            return Err(Error::new(ErrorKind::Bug, why));
        }
        state.tip = Some(Tip { pos: segment.end(), chain: Some(chain) });
        state.mark = change.map(|change| mark::Mark { pos: segment.end(), change });
        state.tail_bytes += segment.raw.len();
        state.unflushed_bytes += segment.raw.len();
        state.tail.push_back(Arc::new(segment));
        drop(state);
        self.changed.notify_all();
        Ok(())
    }

    /// Bytes captured but not yet in a file.
    pub fn unflushed_bytes(&self) -> usize {
        lock(&self.state).unflushed_bytes
    }

    /// Everything before this is in files.
    pub fn flushed(&self) -> Pos {
        lock(&self.state).flushed
    }

    /// Starts a snapshot of the database at `index`. `created_at` is after the capture that
    /// precedes the copy, so restoring to any later time is exact.
    pub fn snapshot_writer(
        &self,
        index: Index,
        raw_size: u64,
        created_at: SystemTime,
    ) -> Result<SnapshotWriter> {
        let generation = self.generation().ok_or_else(Error::no_generation)?;
        SnapshotWriter::create(&self.layout, generation, index, raw_size, created_at)
    }

    /// Finishes a snapshot and lets followers start from it.
    pub fn add_snapshot(&self, writer: SnapshotWriter) -> Result<Snapshot> {
        let snapshot = writer.finish()?;
        let mut state = lock(&self.state);
        state.snapshots.insert(snapshot.info.index, snapshot.clone());
        Ok(snapshot)
    }

    /// Makes the generation the current one on disk, serves it, and removes the others.
    pub fn adopt(&self) -> Result<()> {
        let generation = self.generation().ok_or_else(Error::no_generation)?;
        let name = format!("{generation}\n");
        // The folder of the log may be as new as what is in it.
        sync_folder_of(self.layout.root())?;
        self.layout.write_once(&self.layout.generation_file(), &[name.as_bytes()], true)?;
        lock(&self.state).ready = true;
        self.changed.notify_all();
        load::remove_other_generations(&self.layout, generation)
    }

    /// The current generation.
    pub fn generation(&self) -> Option<Generation> {
        lock(&self.state).tip.map(|tip| tip.pos.generation)
    }

    /// Waits until history reaches past `pos` (or changes generation, or closes) or `wait` is over,
    /// or [`Log::wake`] finds `cut` true.
    pub fn wait_past(&self, pos: Pos, wait: Duration, cut: &dyn Fn() -> bool) -> bool {
        let deadline = Instant::now() + wait;
        let mut state = lock(&self.state);
        loop {
            if state.closed || state.tip.is_none_or(|tip| after(tip.pos, pos)) {
                return true;
            }
            if cut() {
                return false;
            }
            let Some(left) = deadline.checked_duration_since(Instant::now()) else {
                return false;
            };
            state = match self.changed.wait_timeout(state, left) {
                Ok((state, _)) => state,
                Err(poisoned) => poisoned.into_inner().0,
            };
        }
    }

    /// Lets whoever waits for new history look whether something else is wanted of it.
    pub fn wake(&self) {
        // Taken, so that nobody is between looking and waiting.
        drop(lock(&self.state));
        self.changed.notify_all();
    }

    /// Ends every subscription.
    pub fn close(&self) {
        lock(&self.state).closed = true;
        self.changed.notify_all();
    }

    /// Snapshots held, oldest first.
    pub fn snapshots(&self) -> Vec<SnapshotInfo> {
        lock(&self.state).snapshots.values().map(|snapshot| snapshot.info).collect()
    }

    /// Segments held in files, in order.
    pub fn segments(&self) -> Vec<WalSegmentInfo> {
        let state = lock(&self.state);
        let stored = state.disk.values().flatten();
        stored.map(Stored::info).collect()
    }

    /// Counts and bytes of what is in files.
    pub fn totals(&self) -> Totals {
        let state = lock(&self.state);
        let snapshots: u64 = state.snapshots.values().map(Snapshot::stored_size).sum();
        let segments: u64 = state.disk.values().flatten().map(|stored| stored.size).sum();
        Totals {
            snapshots: state.snapshots.len(),
            segments: state.disk.values().map(Vec::len).sum(),
            size: snapshots + segments,
        }
    }

    /// Segment bytes in files since the newest snapshot's index began.
    pub fn segment_bytes_since_snapshot(&self) -> u64 {
        let state = lock(&self.state);
        let Some(newest) = state.snapshots.keys().next_back().copied() else { return 0 };
        state.disk.range(newest..).flat_map(|(_, stored)| stored).map(|stored| stored.size).sum()
    }

    /// Whether the newest snapshot is of the current index.
    pub fn is_snapshot_current(&self) -> bool {
        let state = lock(&self.state);
        let newest = state.snapshots.keys().next_back();
        state.tip.is_some_and(|tip| newest == Some(&tip.pos.index))
    }

    /// The newest snapshot, if it is of the current generation: all that followers begin with.
    pub fn newest_snapshot(&self) -> Option<Snapshot> {
        lock(&self.state).snapshots.values().next_back().cloned()
    }

    /// Whether all of an index of the current generation is held.
    pub fn holds(&self, index: Index) -> bool {
        lock(&self.state).holds(index)
    }

    /// Ends this generation, because somebody else has one of the same name and another content.
    pub fn part(&self, why: &str) {
        self.report_damage(&Error::new(ErrorKind::GenerationChanged, why));
    }

    /// The oldest position held.
    pub fn start(&self) -> Option<Pos> {
        lock(&self.state).snapshots.values().next().map(Snapshot::pos)
    }

    /// Notes it as damage if the newest snapshot is not in its place: nobody new could begin.
    pub fn look_for_snapshot(&self) {
        let newest = lock(&self.state).snapshots.values().next_back().cloned();
        let Some(newest) = newest else { return };
        let found = std::fs::metadata(&newest.path).map(|meta| meta.len());
        if !found.is_ok_and(|size| size == newest.stored_size()) {
            let why = format!("{} is not as it was written", newest.path.display());
            self.report_damage(&Error::new(ErrorKind::Corrupt, why));
        }
    }

    /// Notes that a file of the log could not be read back; capture starts a new generation.
    fn report_damage(&self, error: &Error) {
        lock(&self.state).damage.get_or_insert_with(|| error.to_string());
    }

    /// What was found damaged, if anything was.
    pub fn damage(&self) -> Option<String> {
        lock(&self.state).damage.clone()
    }

    /// The files of one database, for messages.
    pub fn root(&self) -> &Path {
        self.layout.root()
    }

    /// The running checksum at an earlier position of this generation, or `None` if it is not held.
    pub fn checksum_at(&self, index: Index, offset: Offset) -> Result<Option<Checksum>> {
        reader::checksum_at(self, index, offset)
    }
}

impl State {
    /// Tail bytes to keep after they are in files.
    fn tail_bytes_kept(&self) -> usize {
        if self.leases.is_empty() {
            return 0;
        }
        let share = TAILS_BYTES_KEPT / LOGS.load(Ordering::Relaxed).max(1);
        share.clamp(TAIL_BYTES_MIN, TAIL_BYTES_KEPT)
    }
}

impl Drop for Log {
    fn drop(&mut self) {
        LOGS.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Positions of one generation in order; another generation is never after.
fn after(a: Pos, b: Pos) -> bool {
    a.generation != b.generation || (a.index, a.offset) > (b.index, b.offset)
}

#[cfg(test)]
mod tests;
