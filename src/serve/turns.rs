//! Who may read all pages of a database: one at a time, and the WAL gets time to start over between
//! two.
//!
//! A frozen state keeps the WAL from starting over for as long as it is read. Whoever asks again
//! and again, and reads slowly, would keep it so for ever: after each reading there is a pause as
//! long as that took, up to [`PAUSE_MAX`].

use std::sync::Mutex;
use std::time::{Duration, Instant};

use crate::error::lock;

/// The longest pause: a WAL starts over within a moment, if it may.
const PAUSE_MAX: Duration = Duration::from_secs(30);

/// The turns of one database.
#[derive(Default)]
pub(crate) struct Turns(Mutex<State>);

#[derive(Default)]
struct State {
    taken: bool,
    /// Nobody reads before.
    free_at: Option<Instant>,
}

/// The right to read, until it is dropped.
pub(crate) struct Turn<'a> {
    turns: &'a Turns,
    since: Instant,
}

impl Turns {
    /// The right to read; or why not now.
    pub(crate) fn take(&self, now: Instant) -> Result<Turn<'_>, &'static str> {
        let mut state = lock(&self.0);
        if state.taken {
            return Err("the pages of this database are being read for somebody else");
        }
        if state.free_at.is_some_and(|free_at| now < free_at) {
            return Err("the pages of this database were read a moment ago, and its WAL has to \
                        start over first");
        }
        state.taken = true;
        Ok(Turn { turns: self, since: now })
    }

    fn end(&self, since: Instant, now: Instant) {
        let took = now.saturating_duration_since(since);
        *lock(&self.0) = State { taken: false, free_at: Some(now + took.min(PAUSE_MAX)) };
    }
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        self.turns.end(self.since, Instant::now());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn there_is_a_pause_after_each_reading() {
        let turns = Turns::default();
        let begin = Instant::now();
        let seconds = |n| begin + Duration::from_secs(n);
        let may = |at: Instant| turns.take(at).map(std::mem::forget).is_ok();
        assert!(may(begin));
        assert!(!may(seconds(5)), "one at a time");
        turns.end(begin, seconds(10));
        assert!(!may(seconds(10)) && !may(seconds(19)), "a pause as long as that took");
        assert!(may(seconds(20)));
        turns.end(seconds(20), seconds(620));
        assert!(!may(seconds(649)));
        assert!(may(seconds(650)), "no longer than is needed");
    }

    #[test]
    fn a_turn_ends_when_it_is_dropped() {
        let turns = Turns::default();
        let turn = turns.take(Instant::now()).ok();
        assert!(turn.is_some() && turns.take(Instant::now()).is_err());
        drop(turn);
        assert!(turns.take(Instant::now() + PAUSE_MAX).is_ok());
    }
}
