//! When to take a snapshot, when to try again, when to look for what may be deleted: decisions
//! without clocks or stores.

use std::time::Duration;

/// The first pause after an error.
const PAUSE_MIN: Duration = Duration::from_millis(200);
/// The longest pause between two tries.
const PAUSE_MAX: Duration = Duration::from_secs(10);
/// Between two looks for what may be deleted, at most and at least.
const RETENTION_EVERY: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(3600));

/// What the snapshot decision looks at.
#[derive(Clone, Copy, Debug)]
pub(super) struct Since {
    /// Time since the archive got its newest snapshot.
    pub(super) age: Duration,
    /// Segment bytes it got since, as stored.
    pub(super) bytes: u64,
    /// Bytes of that snapshot, as stored.
    pub(super) snapshot_bytes: u64,
}

/// Whether it is time for another snapshot: a restore should not read more segments than snapshot.
pub(super) fn wants_snapshot(since: Since, interval: Duration, bytes_min: u64) -> bool {
    let outgrown = since.bytes > since.snapshot_bytes.max(bytes_min);
    outgrown || (since.age >= interval && since.bytes > 0)
}

/// How long to wait after so many failures in a row; `random` spreads those who failed together.
pub(super) fn pause(failures: u32, random: u32) -> Duration {
    let longest = PAUSE_MIN.saturating_mul(1 << failures.saturating_sub(1).min(16)).min(PAUSE_MAX);
    longest / 2 + longest.mul_f64(f64::from(random) / f64::from(u32::MAX) / 2.0)
}

/// How often to look for what may be deleted.
pub(super) fn retention_every(retention: Duration, delete_after: Duration) -> Duration {
    ((retention + delete_after) / 10).clamp(RETENTION_EVERY.0, RETENTION_EVERY.1)
}

/// The same after so many looks in a row that failed: a network that was down for a moment is not
/// waited for as long as a store that allows no deletion, which has much to list each time.
pub(super) fn retention_again(every: Duration, failures: u32) -> Duration {
    match failures {
        0 => every,
        _ => every.min(RETENTION_EVERY.0.saturating_mul(1 << (failures - 1).min(16))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DAY: Duration = Duration::from_secs(86_400);

    fn check(age: Duration, bytes: u64, snapshot_bytes: u64, expected: bool) {
        let since = Since { age, bytes, snapshot_bytes };
        assert_eq!(wants_snapshot(since, DAY, 64), expected, "{since:?}");
    }

    #[test]
    fn a_snapshot_is_due_when_old_or_outgrown() {
        check(Duration::ZERO, 64, 10, false);
        check(Duration::ZERO, 65, 10, true);
        check(Duration::ZERO, 65, 65, false);
        check(DAY, 1, 65, true);
        check(DAY, 0, 65, false);
    }

    #[test]
    fn pauses_grow_to_a_limit() {
        let ms = |failures, random| pause(failures, random).as_millis();
        assert_eq!((ms(1, 0), ms(1, u32::MAX)), (100, 200));
        assert_eq!((ms(3, 0), ms(3, u32::MAX)), (400, 800));
        assert_eq!((ms(u32::MAX, 0), ms(u32::MAX, u32::MAX)), (5000, 10_000));
    }

    #[test]
    fn short_retention_is_looked_at_often() {
        let s = Duration::from_secs;
        assert_eq!(retention_every(s(1), s(0)), s(1));
        assert_eq!(retention_every(s(100), s(50)), s(15));
        assert_eq!(retention_every(7 * DAY, s(3600)), s(3600));
    }

    #[test]
    fn a_failed_look_is_soon_done_again_and_many_are_not() {
        let check = |failures, expected_s| {
            let again = retention_again(Duration::from_secs(3600), failures);
            assert_eq!(again, Duration::from_secs(expected_s), "after {failures}");
        };
        check(0, 3600);
        check(1, 1);
        check(4, 8);
        check(12, 2048);
        check(13, 3600);
        check(u32::MAX, 3600);
        assert_eq!(retention_again(Duration::from_secs(1), 9), Duration::from_secs(1));
    }
}
