//! What is known about a snapshot, a WAL or a WAL segment without opening it, and collections of
//! such facts. Order is by position: generation, then index, then offset.

use std::str::FromStr;
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use std::vec;

use crate::error::{Error, Result};
use crate::pos::{Generation, Index, Offset, Pos};

/// Appended to a database's path to name the directory of its log.
pub const META_DIR_SUFFIX: &str = "-litestream";
/// Name of the directory that holds a generation's WAL segments.
pub const WAL_DIR_NAME: &str = "wal";
/// Ends the name of a whole, uncompressed WAL.
pub const WAL_EXT: &str = ".wal";
/// Ends the name of a compressed WAL segment.
pub const WAL_SEGMENT_EXT: &str = ".wal.lz4";
/// Ends the name of a compressed snapshot.
pub const SNAPSHOT_EXT: &str = ".snapshot.lz4";

/// How far a checkpoint goes, as SQLite defines the four.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum CheckpointMode {
    /// Copies what no reader needs; waits for nobody.
    #[default]
    Passive,
    /// Waits for writers and readers, then copies everything.
    Full,
    /// As FULL, and makes the next writer start the WAL over.
    Restart,
    /// As RESTART, and truncates the WAL file to nothing.
    Truncate,
}

impl CheckpointMode {
    /// All four.
    pub const ALL: [Self; 4] = [Self::Passive, Self::Full, Self::Restart, Self::Truncate];

    /// The name as `PRAGMA wal_checkpoint` takes it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Passive => "PASSIVE",
            Self::Full => "FULL",
            Self::Restart => "RESTART",
            Self::Truncate => "TRUNCATE",
        }
    }

    /// The number as `sqlite3_wal_checkpoint_v2` takes it.
    pub const fn code(self) -> i32 {
        match self {
            Self::Passive => 0,
            Self::Full => 1,
            Self::Restart => 2,
            Self::Truncate => 3,
        }
    }
}

/// Either case is taken.
impl FromStr for CheckpointMode {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let found = Self::ALL.into_iter().find(|mode| mode.as_str().eq_ignore_ascii_case(text));
        found.ok_or_else(|| {
            let shown: String = text.chars().take(40).collect();
            Error::usage(format!(
                "unknown checkpoint mode {shown:?}: expected PASSIVE, FULL, RESTART or TRUNCATE"
            ))
        })
    }
}

/// A snapshot: the whole database at the start of an index.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct SnapshotInfo {
    /// Which history it belongs to.
    pub generation: Generation,
    /// The WAL to replay onto it.
    pub index: Index,
    /// Bytes, as stored.
    pub size: u64,
    /// When it was taken.
    pub created_at: SystemTime,
}

impl SnapshotInfo {
    /// Where replay starts.
    pub fn pos(&self) -> Pos {
        Pos::new(self.generation, self.index, Offset::ZERO)
    }
}

/// A whole WAL.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct WalInfo {
    /// Which history it belongs to.
    pub generation: Generation,
    /// Which WAL of that history it is.
    pub index: Index,
    /// When it was begun.
    pub created_at: SystemTime,
}

/// A piece of a WAL.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct WalSegmentInfo {
    /// Which history it belongs to.
    pub generation: Generation,
    /// Which WAL of that history it is a piece of.
    pub index: Index,
    /// Where in that WAL it starts.
    pub offset: Offset,
    /// Bytes, as stored.
    pub size: u64,
    /// When it was written.
    pub created_at: SystemTime,
}

impl WalSegmentInfo {
    /// Where the segment starts.
    pub fn pos(&self) -> Pos {
        Pos::new(self.generation, self.index, self.offset)
    }
}

/// Adds up sizes in bytes; saturates, for a listing may say anything.
pub fn total(sizes: impl Iterator<Item = u64>) -> u64 {
    sizes.fold(0, u64::saturating_add)
}

/// The time itself, or the nearest that a text can show: a store or an object may name one before
/// 1970 or after 9999.
pub fn showable(time: SystemTime) -> SystemTime {
    const LAST_MS: u64 = 253_402_300_799_999;
    time.clamp(UNIX_EPOCH, UNIX_EPOCH + Duration::from_millis(LAST_MS))
}

/// A time as tables and messages show it: `2026-11-22T13:07:55.123Z`.
pub fn shown_time(time: SystemTime) -> String {
    humantime::format_rfc3339_millis(showable(time)).to_string()
}

/// The snapshots taken at `time` or later.
pub fn filter_snapshots_after(snapshots: &[SnapshotInfo], time: SystemTime) -> Vec<SnapshotInfo> {
    snapshots.iter().filter(|snapshot| snapshot.created_at >= time).copied().collect()
}

/// The snapshot with the lowest index in `generation`, the first if several have it.
pub fn find_min_snapshot_by_generation(
    snapshots: &[SnapshotInfo],
    generation: Generation,
) -> Option<&SnapshotInfo> {
    let own = snapshots.iter().filter(|snapshot| snapshot.generation == generation);
    own.min_by_key(|snapshot| snapshot.index)
}

/// Snapshots one by one, from wherever they are listed. An `Err` ends the iteration.
pub trait SnapshotIterator: Iterator<Item = Result<SnapshotInfo>> {
    /// Gives back what the listing holds, and reports what failed on the way, if the items did not.
    fn close(&mut self) -> Result<()> {
        Ok(())
    }
}

/// WAL segments one by one, from wherever they are listed. An `Err` ends the iteration.
pub trait WalSegmentIterator: Iterator<Item = Result<WalSegmentInfo>> {
    /// Gives back what the listing holds, and reports what failed on the way, if the items did not.
    fn close(&mut self) -> Result<()> {
        Ok(())
    }
}

/// Iterates over facts already in memory.
#[derive(Debug, Clone)]
pub struct SliceIterator<T>(vec::IntoIter<T>);

/// Snapshots already in memory.
pub type SnapshotInfoSliceIterator = SliceIterator<SnapshotInfo>;
/// WAL segments already in memory.
pub type WalSegmentInfoSliceIterator = SliceIterator<WalSegmentInfo>;

impl<T> SliceIterator<T> {
    /// Iterates over `items` in their order.
    pub fn new(items: Vec<T>) -> Self {
        Self(items.into_iter())
    }
}

impl<T> Iterator for SliceIterator<T> {
    type Item = Result<T>;

    fn next(&mut self) -> Option<Result<T>> {
        self.0.next().map(Ok)
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        self.0.size_hint()
    }
}

impl SnapshotIterator for SnapshotInfoSliceIterator {}
impl WalSegmentIterator for WalSegmentInfoSliceIterator {}

/// Everything a snapshot iterator has left. Closes it, also after an error.
pub fn slice_snapshot_iterator(items: &mut dyn SnapshotIterator) -> Result<Vec<SnapshotInfo>> {
    let found: Result<Vec<_>> = items.collect();
    let closed = items.close();
    found.and_then(|found| closed.map(|()| found))
}

/// Everything a segment iterator has left. Closes it, also after an error.
pub fn slice_wal_segment_iterator(
    items: &mut dyn WalSegmentIterator,
) -> Result<Vec<WalSegmentInfo>> {
    let found: Result<Vec<_>> = items.collect();
    let closed = items.close();
    found.and_then(|found| closed.map(|()| found))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: u64) -> SystemTime {
        UNIX_EPOCH + Duration::from_secs(seconds)
    }

    fn snapshot(generation: u64, index: u64, created_at: u64) -> SnapshotInfo {
        SnapshotInfo {
            generation: Generation::from_bits(generation),
            index: Index::new(index).unwrap(),
            size: 100,
            created_at: at(created_at),
        }
    }

    fn segment(generation: u64, index: u64, offset: u64) -> WalSegmentInfo {
        WalSegmentInfo {
            generation: Generation::from_bits(generation),
            index: Index::new(index).unwrap(),
            offset: Offset::new(offset).unwrap(),
            size: 100,
            created_at: at(0),
        }
    }

    #[test]
    fn checkpoint_modes() {
        let check = |text: &str, mode: CheckpointMode, code: i32| {
            assert_eq!(text.parse::<CheckpointMode>().unwrap(), mode);
            assert_eq!(text.to_lowercase().parse::<CheckpointMode>().unwrap(), mode);
            assert_eq!(mode.as_str(), text);
            assert_eq!(mode.code(), code);
        };
        check("PASSIVE", CheckpointMode::Passive, 0);
        check("FULL", CheckpointMode::Full, 1);
        check("RESTART", CheckpointMode::Restart, 2);
        check("TRUNCATE", CheckpointMode::Truncate, 3);
        assert_eq!(CheckpointMode::default(), CheckpointMode::Passive);
        for text in ["", " PASSIVE", "PASSIVE;", "0"] {
            let error = text.parse::<CheckpointMode>().unwrap_err().to_string();
            assert!(error.starts_with(&format!("unknown checkpoint mode {text:?}")), "{error}");
        }
    }

    /// A store that lists absurd sizes, or an object from before 1970, made the tables and plans of
    /// a restore fail with an internal panic.
    #[test]
    fn what_a_store_says_can_be_added_up_and_shown() {
        assert_eq!(total([1, 2, 3].into_iter()), 6);
        assert_eq!(total([1, u64::MAX, 5].into_iter()), u64::MAX);
        let shown = |time| humantime::format_rfc3339_micros(showable(time)).to_string();
        let day = Duration::from_secs(86_400);
        assert_eq!(shown(UNIX_EPOCH - day), "1970-01-01T00:00:00.000000Z");
        assert_eq!(shown(UNIX_EPOCH + day), "1970-01-02T00:00:00.000000Z");
        assert_eq!(shown(UNIX_EPOCH + 5_000_000 * day), "9999-12-31T23:59:59.999000Z");
    }

    #[test]
    fn positions() {
        let start = "0000000000000001/0000000000000002:0000000000000000";
        assert_eq!(snapshot(1, 2, 0).pos().to_string(), start);
        let inside = "0000000000000001/0000000000000002:0000000000000003";
        assert_eq!(segment(1, 2, 3).pos().to_string(), inside);
    }

    #[test]
    fn order_is_by_position() {
        // Facts other than the position must not outweigh it.
        let mut low = snapshot(1, 2, 900);
        low.size = 900;
        assert!(low < snapshot(1, 3, 0) && snapshot(1, 3, 0) < snapshot(2, 0, 0));
        let mut segments =
            vec![segment(2, 0, 0), segment(1, 3, 0), segment(1, 2, 9), segment(1, 2, 8)];
        segments.sort();
        let sorted = [segment(1, 2, 8), segment(1, 2, 9), segment(1, 3, 0), segment(2, 0, 0)];
        assert_eq!(segments, sorted);
        let wal = |generation, index, created_at| {
            let SnapshotInfo { generation, index, created_at, .. } =
                snapshot(generation, index, created_at);
            WalInfo { generation, index, created_at }
        };
        assert!(wal(1, 2, 900) < wal(1, 3, 0) && wal(1, 3, 0) < wal(2, 0, 0));
    }

    #[test]
    fn snapshots_after() {
        let all = [snapshot(1, 0, 10), snapshot(1, 1, 20), snapshot(1, 2, 30)];
        let check = |time: u64, expected: &[SnapshotInfo]| {
            assert_eq!(filter_snapshots_after(&all, at(time)), expected);
        };
        check(0, &all);
        check(10, &all);
        check(11, &all[1..]);
        check(30, &all[2..]);
        check(31, &[]);
        assert_eq!(filter_snapshots_after(&[], at(0)), []);
    }

    #[test]
    fn min_snapshot() {
        let all = [snapshot(1, 5, 0), snapshot(2, 1, 0), snapshot(1, 3, 1), snapshot(1, 3, 2)];
        let check = |generation: u64, expected: Option<&SnapshotInfo>| {
            let found = find_min_snapshot_by_generation(&all, Generation::from_bits(generation));
            assert_eq!(found, expected);
        };
        check(1, Some(&all[2]));
        check(2, Some(&all[1]));
        check(3, None);
        assert_eq!(find_min_snapshot_by_generation(&[], Generation::ZERO), None);
    }

    #[test]
    fn slices_and_back() {
        let snapshots = vec![snapshot(1, 0, 0), snapshot(1, 1, 0)];
        let mut items = SnapshotInfoSliceIterator::new(snapshots.clone());
        assert_eq!(slice_snapshot_iterator(&mut items).unwrap(), snapshots);
        assert_eq!(slice_snapshot_iterator(&mut items).unwrap(), []);
        let segments = vec![segment(1, 0, 0), segment(1, 0, 32)];
        let mut items = WalSegmentInfoSliceIterator::new(segments.clone());
        assert_eq!(items.next().unwrap().unwrap(), segments[0]);
        assert_eq!(slice_wal_segment_iterator(&mut items).unwrap(), segments[1..]);
    }

    /// Yields an item, then fails where it is told to.
    struct Failing {
        items: vec::IntoIter<Result<SnapshotInfo>>,
        close: Result<()>,
        closed: bool,
    }

    impl Iterator for Failing {
        type Item = Result<SnapshotInfo>;

        fn next(&mut self) -> Option<Self::Item> {
            self.items.next()
        }
    }

    impl SnapshotIterator for Failing {
        fn close(&mut self) -> Result<()> {
            self.closed = true;
            self.close.clone()
        }
    }

    #[test]
    fn errors_while_slicing() {
        let check = |items: Vec<Result<SnapshotInfo>>, close: Result<()>, expected: &str| {
            let mut items = Failing { items: items.into_iter(), close, closed: false };
            let error = slice_snapshot_iterator(&mut items).unwrap_err();
            assert_eq!(error.to_string(), expected);
            assert!(items.closed);
        };
        let fail = |text: &str| Error::corrupt(text);
        check(vec![Ok(snapshot(1, 0, 0)), Err(fail("item"))], Ok(()), "item");
        check(vec![Ok(snapshot(1, 0, 0)), Err(fail("item"))], Err(fail("close")), "item");
        check(vec![Ok(snapshot(1, 0, 0))], Err(fail("close")), "close");
    }
}
