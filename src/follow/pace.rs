//! When to publish, to drain and to try again: decisions without a clock or a lock of their own.

use std::time::Duration;

/// Frames in the WAL from which it is checkpointed, and then started over.
pub const CHECKPOINT_FRAMES: u32 = 1000;
/// While more is at hand, readers get a new header at most this often: at full speed they would
/// starve.
const GROUP: Duration = Duration::from_millis(1);
/// While nothing more is at hand, at most this often.
const SPACING: Duration = Duration::from_micros(200);
/// First and last pause between two tries to connect.
const PAUSE_MIN: Duration = Duration::from_millis(100);
const PAUSE_MAX: Duration = Duration::from_secs(5);

/// What to do with a commit that is complete and not yet published.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Publish {
    /// Show it to readers.
    Now,
    /// Take more commits into it first, and ask again after this time at the latest.
    Within(Duration),
}

/// `since`: the time since the last publish; `more`: whether another whole record is at hand.
pub fn publish(since: Duration, more: bool) -> Publish {
    let gap = if more { GROUP } else { SPACING };
    match gap.checked_sub(since) {
        None | Some(Duration::ZERO) => Publish::Now,
        Some(left) => Publish::Within(left),
    }
}

/// When the WAL might start over, which costs the one who applies some syncs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Moment {
    /// Nothing has come for a while.
    Quiet,
    /// A commit was just shown, and the next may come any time: it would wait for the syncs.
    Streaming,
    /// There is more to apply anyway.
    Behind,
}

impl Moment {
    /// The frames a WAL must have to be worth it.
    pub fn restart_frames(self) -> u32 {
        match self {
            Self::Quiet | Self::Behind => CHECKPOINT_FRAMES,
            Self::Streaming => 4 * CHECKPOINT_FRAMES,
        }
    }
}

/// How long applying may stop, to give a WAL of this many frames a gap between its readers in which
/// it can start over. Readers that overlap for ever make it grow, as they do in SQLite itself.
pub fn drain_budget(frames: u32) -> Duration {
    Duration::from_millis(match frames / CHECKPOINT_FRAMES {
        0..4 => 0,
        4..16 => 15,
        16..256 => 60,
        _ => 250,
    })
}

/// How many frames a WAL must have before the next such stop, if one at `frames` was in vain.
pub fn next_drain(frames: u32) -> u32 {
    frames.saturating_add(CHECKPOINT_FRAMES.max(frames / 4))
}

/// What the checkpointer does now. `behind`: frames not in the database; `idle`: since when no
/// frame came.
pub fn checkpoint_due(behind: u32, idle: Duration) -> bool {
    const IDLE: Duration = Duration::from_secs(2);
    behind >= CHECKPOINT_FRAMES || (behind > 0 && idle >= IDLE)
}

/// Pauses between tries: doubling, with jitter so that the followers of one upstream do not come
/// all at once.
#[derive(Debug, Default)]
pub struct Backoff {
    failures: u32,
}

impl Backoff {
    /// Something worked.
    pub fn reset(&mut self) {
        self.failures = 0;
    }

    /// How long to wait before the next try. `random` is any number.
    pub fn next(&mut self, random: u32) -> Duration {
        let pause = PAUSE_MIN.saturating_mul(1 << self.failures.min(8)).min(PAUSE_MAX);
        self.failures = self.failures.saturating_add(1);
        // Between one half and all of it.
        pause.mul_f64(0.5 + f64::from(random) / f64::from(u32::MAX) / 2.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn publishing() {
        let ms = Duration::from_millis;
        let us = Duration::from_micros;
        assert_eq!(publish(ms(5), true), Publish::Now);
        assert_eq!(publish(us(400), true), Publish::Within(us(600)));
        assert_eq!(publish(us(400), false), Publish::Now);
        assert_eq!(publish(us(50), false), Publish::Within(us(150)));
        assert_eq!(publish(us(200), false), Publish::Now);
    }

    #[test]
    fn draining() {
        let check = |frames, ms| assert_eq!(drain_budget(frames), Duration::from_millis(ms));
        check(0, 0);
        check(3999, 0);
        check(4000, 15);
        check(16_000, 60);
        check(u32::MAX, 250);
        assert_eq!(next_drain(4000), 5000);
        assert_eq!(next_drain(40_000), 50_000);
        assert_eq!(next_drain(u32::MAX), u32::MAX);
    }

    #[test]
    fn checkpointing() {
        let second = Duration::from_secs(1);
        assert!(!checkpoint_due(0, second * 9));
        assert!(!checkpoint_due(1, second));
        assert!(checkpoint_due(1, second * 2));
        assert!(checkpoint_due(1000, Duration::ZERO));
    }

    #[test]
    fn pauses_double_up_to_a_limit() {
        let mut backoff = Backoff::default();
        let ms: Vec<u128> = (0..9).map(|_| backoff.next(u32::MAX).as_millis()).collect();
        assert_eq!(ms, [100, 200, 400, 800, 1600, 3200, 5000, 5000, 5000]);
        backoff.reset();
        assert_eq!(backoff.next(0), Duration::from_millis(50));
        for _ in 0..100 {
            backoff.next(7);
        }
    }
}
