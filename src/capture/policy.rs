//! When to checkpoint, when to pack how, when to take a snapshot: decisions without clocks or
//! files.

use std::time::Duration;

use crate::log::Pack;

/// Frames in the WAL before we checkpoint: SQLite's own default.
pub(super) const CHECKPOINT_FRAMES: u32 = 1000;
/// A busy writer is tried again after this many more frames: the disk has to sync no more often
/// than for SQLite's own checkpoints.
const RETRY_FRAMES: u32 = CHECKPOINT_FRAMES;
/// A writer this quiet is likely between transactions.
const QUIET: Duration = Duration::from_millis(1);
/// At most this many bytes wait in memory for the keeper; capture writes them itself beyond.
pub(super) const UNFLUSHED_BYTES_MAX: usize = 8 << 20;
/// Batches up to this size are compressed; larger ones come from a writer faster than compression.
const COMPRESS_BYTES_MAX: usize = 1 << 20;
/// Segments are synced every second as long as no more than this was captured in it.
pub(super) const SYNCED_BYTES_MAX: u64 = 1 << 20;
/// More files than these are synced by a thread of their own.
pub(super) const SYNCED_FILES_MAX: usize = 4;
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

/// Frames below which only short holds are worth it: half of what the WAL is to be at most.
const LONG_FRAMES: u32 = 8 * CHECKPOINT_FRAMES;
/// Frames from which on writers may be held up for half of the time.
const VERY_LONG_FRAMES: u32 = 12 * CHECKPOINT_FRAMES;
/// What a writer hardly notices.
const SHORT_HOLD: Duration = Duration::from_millis(5);
/// Trying keeps nobody out, but takes a processor.
const BUDGET_MS_MAX: u32 = 250;
/// How often the limit may double: 38 ms become 1.2 s.
pub(super) const STRETCH_MAX: u32 = 5;

/// The longer the WAL, the more patience, and the larger the part of the writers' time: at first a
/// fifth, in the end half. See also [`is_worth_it`].
///
/// Where two syncs take longer than a hold, no hold is of any use, and the WAL would grow for as
/// long as somebody writes. So each hold that was too short doubles the next one (`stretch`).
///
/// SQLite's own waits for a gate get longer, and at 38 ms one of them ends at 39.6 ms: a writer
/// that met the gate as it closed goes on then. The next would end at 48.4 ms. Whoever is in one
/// when the gate opens begins before it may close again, since no wait is as long as all before it.
pub(super) fn gate(frames: u32, stretch: u32) -> Gate {
    let ms = |ms: u32| Duration::from_millis(ms.into());
    let (limit, open_for, tail) = match frames {
        0..LONG_FRAMES => (20, 4, 500),
        LONG_FRAMES..VERY_LONG_FRAMES => (38 << stretch.min(STRETCH_MAX), 2, 1000),
        _ => (38 << stretch.min(STRETCH_MAX), 1, 4000),
    };
    let budget = (frames / CHECKPOINT_FRAMES).clamp(2, BUDGET_MS_MAX);
    Gate { budget: ms(budget), limit: ms(limit), open_for, frames: tail }
}

/// Whether a writer that never pauses is to be held up for the WAL's sake, when the last hold took
/// so long. A checkpoint syncs twice. Behind a writer that syncs each commit there is little left
/// to sync, and a short WAL is faster for it; else it is done once for many frames, where SQLite
/// has its writers wait for it every [`CHECKPOINT_FRAMES`].
pub(super) fn is_worth_it(frames: u32, last: Option<Duration>) -> bool {
    frames >= LONG_FRAMES || last.is_none_or(|held| held <= SHORT_HOLD)
}

/// How often the limit is to be doubled after a hold of `held`.
pub(super) fn stretch_after(held: Duration, limit: Duration, stretch: u32) -> u32 {
    if held > limit {
        (stretch + 1).min(STRETCH_MAX)
    } else if held * 4 < limit {
        stretch.saturating_sub(1)
    } else {
        stretch
    }
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
        check(1899, 900, 0, false, false);
        check(1900, 900, 0, false, true);
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
            assert_eq!(gate(wal, 0), Gate { budget, limit, open_for, frames }, "{wal}");
        };
        check(0, 2, 20, 4, 500);
        check(7999, 7, 20, 4, 500);
        check(8000, 8, 38, 2, 1000);
        check(12_000, 12, 38, 1, 4000);
        check(64_000, 64, 38, 1, 4000);
        check(u32::MAX, 250, 38, 1, 4000);
    }

    #[test]
    fn a_hold_gets_as_long_as_the_device_needs_and_no_longer() {
        let ms = Duration::from_millis;
        let mut stretch = 0;
        for expected in [38, 76, 152, 304] {
            let limit = gate(8000, stretch).limit;
            assert_eq!(limit, ms(expected));
            stretch = stretch_after(ms(200), limit, stretch);
        }
        assert_eq!(stretch, 3, "long enough");
        assert_eq!(gate(7999, stretch).limit, ms(20));
        for expected in [2, 1, 0, 0] {
            stretch = stretch_after(ms(5), gate(8000, stretch).limit, stretch);
            assert_eq!(stretch, expected);
        }
        assert_eq!(gate(u32::MAX, 99).limit, ms(38 << STRETCH_MAX));
        assert_eq!(stretch_after(ms(9999), ms(1216), STRETCH_MAX), STRETCH_MAX);
    }

    #[test]
    fn a_short_wal_is_worth_a_short_hold_only() {
        let check = |frames, last_ms: Option<u64>, expected| {
            let last = last_ms.map(Duration::from_millis);
            assert_eq!(is_worth_it(frames, last), expected, "{frames} {last_ms:?}");
        };
        check(1000, None, true);
        check(1000, Some(5), true);
        check(7999, Some(6), false);
        check(8000, Some(1000), true);
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
