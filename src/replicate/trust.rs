//! Whether the clock may be believed when it says that something is old.
//!
//! Objects in a folder are dated by this machine's clock. One that jumps ahead, if only for a
//! minute, would make all history older than any retention time at the next object it dates. So
//! the clock is compared with one that nobody sets, and that goes on while the machine sleeps:
//!
//! | since the last look the clock moved         | the time, for deleting                         |
//! |---------------------------------------------|------------------------------------------------|
//! | as far as time has passed, or back          | what it says                                   |
//! | ahead, by more than [`TOLERANCE`]           | where it would be without that                 |
//! | the same, and all of `keep` has passed since| what it says: what was there then is old by now|
//!
//! At the first look of a process the newest snapshot takes the place of the last look: a machine
//! that was off for a week deletes what has aged meanwhile only after it was on for `keep`.

use std::time::{Duration, SystemTime};

/// A clock that is ahead by no more than this is being corrected, not wrong.
const TOLERANCE: Duration = Duration::from_secs(300);

/// What one looks at.
#[derive(Clone, Copy, Debug)]
pub(super) struct Seen {
    /// What the clock says.
    pub(super) now: SystemTime,
    /// The same moment, by the clock that nobody sets.
    pub(super) at: Duration,
    /// The time of the archive's newest snapshot.
    pub(super) newest: SystemTime,
}

/// When the clock was last right, as far as can be known.
#[derive(Debug, Default)]
pub(super) struct Trust {
    right: Option<(SystemTime, Duration)>,
    /// It was said that the clock has moved.
    told: bool,
}

impl Trust {
    /// The time that ages may be counted by; and, once, by how much the clock is ahead of it. For
    /// those who keep everything for `keep` and look again after `every`.
    pub(super) fn look(
        &mut self,
        seen: Seen,
        keep: Duration,
        every: Duration,
    ) -> (SystemTime, Option<Duration>) {
        let Seen { now, at, newest } = seen;
        let first = self.right.is_none();
        let (right, since) = self.right.unwrap_or((newest.min(now), at));
        let passed = at.saturating_sub(since);
        let expected = right.checked_add(passed).unwrap_or(now);
        let ahead = now.duration_since(expected).unwrap_or_default();
        // What was stored between the last look and the jump is younger than `passed`.
        if ahead <= TOLERANCE.min(every) || passed >= keep.saturating_add(every) {
            self.right = Some((now, at));
            self.told = false;
            return (now, None);
        }
        self.right = Some((right, since));
        // To have been off is no fault of the clock's.
        let news = !first && !self.told;
        self.told = true;
        (expected, news.then_some(ahead))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEEP: Duration = Duration::from_secs(86_400);
    const EVERY: Duration = Duration::from_secs(3600);
    const YEAR: u64 = 365 * 86_400;

    /// Looks at (time passed, what the clock says, the newest object), in seconds; what is trusted
    /// and what is said.
    #[track_caller]
    fn check(looks: &[(u64, u64, u64, u64, Option<u64>)]) {
        let (mut trust, start) = (Trust::default(), Duration::from_secs(5));
        let at = |seconds| SystemTime::UNIX_EPOCH + Duration::from_secs(10 * YEAR + seconds);
        for (passed, now, newest, trusted, said) in looks {
            let at_passed = start + Duration::from_secs(*passed);
            let seen = Seen { now: at(*now), at: at_passed, newest: at(*newest) };
            let found = trust.look(seen, KEEP, EVERY);
            let expected = (at(*trusted), said.map(Duration::from_secs));
            assert_eq!(found, expected, "after {passed} s");
        }
    }

    #[test]
    fn a_clock_that_runs_is_believed() {
        check(&[(0, 1000, 990, 1000, None), (3600, 4600, 9999, 4600, None)]);
        // Corrected by a minute, and back by an hour.
        check(&[(0, 1000, 990, 1000, None), (3600, 4660, 1, 4660, None), (3601, 60, 99, 60, None)]);
    }

    #[test]
    fn a_clock_that_jumps_ahead_is_not_until_all_there_was_is_old() {
        let day = KEEP.as_secs();
        check(&[
            (0, 1000, 1000, 1000, None),
            (3600, 4600 + YEAR, 4600 + YEAR, 4600, Some(YEAR)),
            (7200, 8200 + YEAR, 8200 + YEAR, 8200, None),
            (day + 3599, day + YEAR, day + YEAR, day + 4599, None),
            (day + 3600, day + 4600 + YEAR, day + YEAR, day + 4600 + YEAR, None),
            (day + 7200, day + 8200 + 2 * YEAR, day, day + 8200 + YEAR, Some(YEAR)),
        ]);
        // And comes back.
        check(&[
            (0, 1000, 1000, 1000, None),
            (3600, 4600 + YEAR, 4600 + YEAR, 4600, Some(YEAR)),
            (7200, 8200, 4600 + YEAR, 8200, None),
            (9000, 10_000, 10_000, 10_000, None),
        ]);
    }

    #[test]
    fn a_process_that_was_off_waits_and_says_nothing() {
        let day = KEEP.as_secs();
        check(&[
            (0, 7 * day, 1000, 1000, None),
            (3600, 7 * day + 3600, 7 * day, 4600, None),
            (day + 3600, 8 * day + 3600, 8 * day, 8 * day + 3600, None),
        ]);
        // Started with a clock that is not set yet.
        check(&[(0, 0, YEAR, 0, None), (3600, YEAR + 3600, YEAR, 3600, Some(YEAR))]);
    }
}
