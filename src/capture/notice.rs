//! Noticing commits: asleep until the WAL grows, then looking for a moment, never spinning.
//!
//! inotify fires at the write of the frames, before SQLite publishes the header; so after an event
//! the header is looked at until the first hit, ever more rarely: between the two lies the writer's
//! fsync, or a scheduler that had other plans, and a commit must not be seen late for that. Being
//! woken per commit costs a busy writer more than it gains, so after two hits within 2 ms the WAL
//! is polled every 0.5 ms until it is quiet for 5 ms. The mere watch costs it 7 % of the time of a
//! small commit, so it is for one event and set again before the next sleep, with a look after it
//! at what was written in between. Idle, the header is looked at twice a second
//! in case there are no events after all (some file systems stacked on others); if that finds
//! commits again and again and no event ever comes, it is looked at every 10 ms.
//!
//! This thread also opens the gate in time ([`super::pin`]), so it waits for nobody: where another
//! captures, that one's disk may be stuck.

use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fd::OwnedFd;
use rustix::fs::inotify;

use super::scanner::Progress;
use super::{Session, Shared, policy};
use crate::error::{Context, Error, ErrorKind, Result};
use crate::fault;

const IDLE_POLL: Duration = Duration::from_millis(500);
const BUSY_POLL: Duration = Duration::from_micros(500);
/// Without events the header itself is looked at, this often.
const NO_EVENTS_POLL: Duration = Duration::from_millis(10);
/// Hits in a row without an event, after a long silence each, that show there are none.
const UNANNOUNCED_MAX: u32 = 3;
/// Two hits this close together: the writer is busy.
const BUSY_GAP: Duration = Duration::from_millis(2);
/// No hit for this long: it is not.
const QUIET: Duration = Duration::from_millis(5);
/// First and last pause between two looks for the header of frames that were just written.
const LOOK_PAUSE_MIN: Duration = Duration::from_micros(50);
const LOOK_PAUSE_MAX: Duration = Duration::from_millis(5);
/// A pause is this part of the time since the event: what it adds to the time until a hit.
const LOOK_PAUSE_PART: u32 = 8;
/// Frames without a header for this long are a long transaction's: the event at its end is enough.
const LOOK_MAX: Duration = Duration::from_secs(1);
/// Looked at so long after a hit: the event may have been that of the next commit's frames as well.
const LOOK_ON: Duration = Duration::from_millis(20);
/// A header torn for longer than this is a dead writer's.
const TORN_MAX: Duration = Duration::from_millis(5);

/// Watches the WAL of one session until it ends.
pub(super) struct Notice<'s> {
    shared: &'s Shared,
    session: &'s Session,
    events: Option<Events>,
}

/// Why a sleep was over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Woken {
    /// The WAL was written, or somebody rang.
    Announced,
    /// Nothing happened for so long.
    InTime,
    /// It did not sleep: writes have been watched since now only.
    NotYet,
}

impl<'s> Notice<'s> {
    /// Starts watching; without events (no inotify left) the WAL is polled.
    pub(super) fn new(shared: &'s Shared, session: &'s Session, wal: &Path) -> Notice<'s> {
        Notice { shared, session, events: Events::new(wal).ok() }
    }

    /// Captures until the session ends, or an error does.
    pub(super) fn run(&mut self) -> Result<()> {
        let mut last_hit = Instant::now();
        let mut torn_since = None;
        let mut busy = false;
        // Since when, and for how long, the header is looked at without waiting for an event.
        let mut looking: Option<(Instant, Duration)> = None;
        // Hits found by nothing but a look at an idle WAL, and whether this look is one of those.
        let (mut unannounced, mut is_idle_look) = (0, false);
        while !self.session.over.load(Ordering::Acquire) {
            let now = Instant::now();
            self.session.pin.watch(now)?;
            match self.look()? {
                None => {
                    let going_on = looking.filter(|(since, limit)| now - *since < *limit);
                    looking = Some(going_on.unwrap_or((now, LOOK_MAX)));
                }
                Some(Progress::Captured(_)) => {
                    torn_since = None;
                    unannounced += u32::from(is_idle_look);
                    looking = Some((now, LOOK_ON));
                    busy = now.duration_since(last_hit) < BUSY_GAP;
                    last_hit = now;
                    self.tell_keeper();
                }
                Some(Progress::Torn) => {
                    let since = *torn_since.get_or_insert(now);
                    if now.duration_since(since) > TORN_MAX {
                        self.session.torn.store(true, Ordering::Release);
                        self.shared.wake_keeper();
                    }
                }
                Some(Progress::Nothing) => {
                    torn_since = None;
                    busy = busy && now.duration_since(last_hit) < QUIET;
                }
            }
            is_idle_look = false;
            if torn_since.is_some() {
                std::thread::sleep(LOOK_PAUSE_MIN);
            } else if busy || self.session.pin.is_gate_closed() {
                // Nothing wakes us behind the gate, and it is we who open it when its time is over.
                std::thread::sleep(BUSY_POLL);
            } else {
                let pause = pause(looking, now);
                let limit = if unannounced < UNANNOUNCED_MAX { pause } else { NO_EVENTS_POLL };
                let woken = self.sleep(limit.min(pause))?;
                is_idle_look = woken == Woken::InTime && pause == IDLE_POLL;
                if woken == Woken::Announced {
                    unannounced = 0;
                    looking = Some((Instant::now(), LOOK_MAX));
                }
            }
        }
        Ok(())
    }

    /// `None`: somebody else captures at the moment, perhaps not up to now.
    fn look(&self) -> Result<Option<Progress>> {
        self.session.scanner.catch_up_meanwhile(&self.shared.counters)
    }

    /// A WAL past the threshold is the keeper's to checkpoint.
    fn tell_keeper(&self) {
        let frames = self.shared.counters.wal_frames.load(Ordering::Relaxed);
        if frames >= u64::from(policy::CHECKPOINT_FRAMES) {
            self.shared.wake_keeper();
        }
    }

    /// Waits for an event or the bell, for less than a second.
    fn sleep(&mut self, limit: Duration) -> Result<Woken> {
        let newly_armed = self.events.as_mut().map(Events::arm).transpose();
        match newly_armed {
            Ok(Some(true)) => return Ok(Woken::NotYet),
            Ok(_) => {}
            // No watch left in this system: polled from now on, as from the beginning without.
            Err(_) => self.events = None,
        }
        let limit = if self.events.is_some() { limit } else { limit.min(NO_EVENTS_POLL) };
        let timeout = Timespec { tv_sec: 0, tv_nsec: limit.subsec_nanos().into() };
        let bell = self.session.pin.bell();
        let mut fds = vec![PollFd::new(bell, PollFlags::IN)];
        fds.extend(self.events.as_ref().map(|events| PollFd::new(&events.queue, PollFlags::IN)));
        match poll(&mut fds, Some(&timeout)) {
            Ok(0) | Err(rustix::io::Errno::INTR) => return Ok(Woken::InTime),
            Ok(_) => {}
            Err(error) => return Err(Error::from(std::io::Error::from(error)).context("poll")),
        }
        let is_written = fds.get(1).is_some_and(|fd| !fd.revents().is_empty());
        drop(fds);
        bell.stop();
        match &mut self.events {
            Some(events) if is_written => events.drain().map(|()| Woken::Announced),
            _ => Ok(Woken::InTime),
        }
    }
}

/// How long to wait for the next event before the header is looked at without one.
fn pause(looking: Option<(Instant, Duration)>, now: Instant) -> Duration {
    let passed = looking.map(|(since, limit)| (now.duration_since(since), limit));
    match passed.filter(|(passed, limit)| passed < limit) {
        Some((passed, _)) => (passed / LOOK_PAUSE_PART).clamp(LOOK_PAUSE_MIN, LOOK_PAUSE_MAX),
        None => IDLE_POLL,
    }
}

/// The next write to the WAL, told once.
struct Events {
    queue: OwnedFd,
    wal: PathBuf,
    armed: bool,
}

impl Events {
    fn new(wal: &Path) -> Result<Events> {
        fault::at("capture/events/open")?;
        let flags = inotify::CreateFlags::NONBLOCK | inotify::CreateFlags::CLOEXEC;
        let queue = inotify::init(flags).map_err(std::io::Error::from);
        let queue = queue.context(|| "inotify".into())?;
        let mut events = Events { queue, wal: wal.to_owned(), armed: false };
        events.arm()?;
        Ok(events)
    }

    /// Asks for the next write's event. False: it was asked for before, and not told yet.
    fn arm(&mut self) -> Result<bool> {
        if self.armed {
            return Ok(false);
        }
        let flags = inotify::WatchFlags::MODIFY | inotify::WatchFlags::ONESHOT;
        inotify::add_watch(&self.queue, &self.wal, flags)
            .map_err(std::io::Error::from)
            .context(|| format!("cannot watch {}", self.wal.display()))?;
        self.armed = true;
        Ok(true)
    }

    /// Takes all waiting events; what they say is always the same.
    fn drain(&mut self) -> Result<()> {
        fault::at("capture/events/read").context(|| "inotify".into())?;
        self.armed = false;
        let mut buffer = [0u8; 4096];
        loop {
            match rustix::io::read(&self.queue, &mut buffer) {
                Ok(0) => return Err(Error::new(ErrorKind::Io, "inotify ended")),
                Ok(_) => {}
                Err(rustix::io::Errno::AGAIN | rustix::io::Errno::INTR) => return Ok(()),
                Err(error) => {
                    return Err(Error::from(std::io::Error::from(error)).context("inotify"));
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn looks_are_ever_rarer_until_an_event_is_waited_for() {
        let begin = Instant::now();
        let check = |passed_us, limit, expected_us| {
            let now = begin + Duration::from_micros(passed_us);
            let expected = Duration::from_micros(expected_us);
            assert_eq!(pause(Some((begin, limit)), now), expected, "{passed_us} us");
        };
        check(0, LOOK_MAX, 50);
        check(800, LOOK_MAX, 100);
        check(16_000, LOOK_MAX, 2_000);
        check(999_000, LOOK_MAX, 5_000);
        check(1_000_000, LOOK_MAX, 500_000);
        check(19_000, LOOK_ON, 2_375);
        check(20_000, LOOK_ON, 500_000);
        assert_eq!(pause(None, begin), IDLE_POLL);
    }
}
