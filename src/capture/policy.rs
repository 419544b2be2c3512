//! When to checkpoint, when to pack how, when to take a snapshot: decisions without clocks or
//! files.

use std::time::Duration;

use crate::log::Pack;

/// Frames in the WAL before we checkpoint: SQLite's own default.
pub(super) const CHECKPOINT_FRAMES: u32 = 1000;
/// A busy writer is tried again after this many more frames.
const RETRY_FRAMES: u32 = 250;
/// A writer this quiet is likely between transactions.
const QUIET: Duration = Duration::from_millis(1);
/// At most this many bytes wait in memory for the keeper; capture writes them itself beyond.
pub(super) const UNFLUSHED_BYTES_MAX: usize = 8 << 20;
/// Batches up to this size are compressed; larger ones come from a writer faster than compression.
const COMPRESS_BYTES_MAX: usize = 1 << 20;
/// The least a log may hold before a new snapshot bounds it, in bytes.
pub const LOG_BYTES_MIN: u64 = 64 << 20;

/// What the checkpoint decision looks at.
#[derive(Clone, Copy, Debug)]
pub(super) struct Wal {
    /// Frames captured in this WAL.
    pub(super) frames: u32,
    /// Frames when we last tried.
    pub(super) tried_at: u32,
    /// Time without a new frame.
    pub(super) quiet: Duration,
    /// Everything is checkpointed already: the next writer restarts the WAL.
    pub(super) armed: bool,
}

/// How hard the gate may be tried.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Gate {
    /// How long to wait for running transactions to end; nobody is kept out meanwhile.
    pub(super) budget: Duration,
    /// How long it may stay closed.
    pub(super) limit: Duration,
    /// How many times as long as it was closed it stays open at least.
    pub(super) open_for: u32,
    /// It may be closed for this many frames; more are checkpointed with the gate open first.
    pub(super) frames: u32,
}

/// A WAL that has grown far beyond the threshold is worth more patience, a longer hold on a device
/// that syncs slowly, and a larger part of the writers' time: at first a tenth, in the end half.
///
/// SQLite's own waits for a gate get longer, and at 38 ms one of them ends at 39.6 ms: a writer
/// that met the gate as it closed goes on then. The next would end at 48.4 ms. Whoever is in one
/// when the gate opens begins before it may close again, since no wait is as long as all before it.
pub(super) fn gate(frames: u32) -> Gate {
    let ms = |ms: u32| Duration::from_millis(ms.into());
    let (limit, open_for, tail) = match frames / CHECKPOINT_FRAMES {
        0..4 => (20, 9, 250),
        4..8 => (38, 3, 1000),
        _ => (38, 1, 4000),
    };
    let budget = (frames / CHECKPOINT_FRAMES).clamp(2, 16);
    Gate { budget: ms(budget), limit: ms(limit), open_for, frames: tail }
}

/// Whether to checkpoint now.
pub(super) fn wants_checkpoint(wal: Wal) -> bool {
    let grown = wal.frames.saturating_sub(wal.tried_at) >= RETRY_FRAMES;
    let fresh = wal.frames != wal.tried_at;
    wal.frames >= CHECKPOINT_FRAMES && !wal.armed && (grown || (fresh && wal.quiet >= QUIET))
}

/// How to pack a batch of this many bytes.
pub(super) fn pack(bytes: usize) -> Pack {
    if bytes <= COMPRESS_BYTES_MAX { Pack::Compressed } else { Pack::Stored }
}

/// Whether the segments since the newest snapshot outweigh a new one.
pub(super) fn wants_snapshot(segment_bytes: u64, database_bytes: u64, bytes_min: u64) -> bool {
    segment_bytes > log_bytes_max(database_bytes, bytes_min)
}

/// Segment bytes the log may hold.
pub(super) fn log_bytes_max(database_bytes: u64, bytes_min: u64) -> u64 {
    database_bytes.max(bytes_min)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(frames: u32, tried_at: u32, quiet_us: u64, armed: bool, expected: bool) {
        let wal = Wal { frames, tried_at, quiet: Duration::from_micros(quiet_us), armed };
        assert_eq!(wants_checkpoint(wal), expected, "{wal:?}");
    }

    #[test]
    fn checkpoints_at_the_threshold_when_quiet_or_grown() {
        check(999, 0, 5000, false, false);
        check(1000, 0, 0, false, true);
        check(1000, 900, 0, false, false);
        check(1000, 900, 1000, false, true);
        check(1150, 900, 0, false, true);
        check(5000, 0, 5000, true, false);
    }

    #[test]
    fn a_try_is_not_repeated_on_the_same_frames() {
        check(1500, 1500, 10_000, false, false);
        check(1501, 1500, 10_000, false, true);
        check(u32::MAX, u32::MAX, 10_000, false, false);
    }

    #[test]
    fn the_gate_is_tried_harder_the_longer_the_wal() {
        let check = |wal, budget, limit, open_for, frames| {
            let (budget, limit) = (Duration::from_millis(budget), Duration::from_millis(limit));
            assert_eq!(gate(wal), Gate { budget, limit, open_for, frames }, "{wal}");
        };
        check(0, 2, 20, 9, 250);
        check(3999, 3, 20, 9, 250);
        check(4000, 4, 38, 3, 1000);
        check(8000, 8, 38, 1, 4000);
        check(u32::MAX, 16, 38, 1, 4000);
    }

    #[test]
    fn the_log_is_bounded_by_the_larger_of_database_and_minimum() {
        assert!(!wants_snapshot(64 << 20, 1 << 20, LOG_BYTES_MIN));
        assert!(wants_snapshot((64 << 20) + 1, 1 << 20, LOG_BYTES_MIN));
        assert!(!wants_snapshot(900 << 20, 1 << 30, LOG_BYTES_MIN));
    }

    #[test]
    fn only_small_batches_are_compressed() {
        assert_eq!(pack(1 << 20), Pack::Compressed);
        assert_eq!(pack((1 << 20) + 1), Pack::Stored);
    }
}
