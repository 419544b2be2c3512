//! One checkpoint by us, so arranged that no frame can be lost and no writer waits for long.
//!
//! ```text
//!   CKPT held, no slot
//!     | take a slot                       restart blocked by the slot from here
//!     | capture up to the header, flush
//!     | release CKPT, PASSIVE, take CKPT
//!     | captured and in files >= nBackfill, same WAL?  drop the slot
//!   CKPT held, no slot; nBackfill == mxFrame: armed, the next writer restarts the WAL
//! ```
//!
//! A writer that never pauses keeps mxFrame ahead of nBackfill; once the tail is short, or after
//! two rounds, the gate is closed for it: no transaction can begin, the tail is checkpointed, the
//! gate opens on an armed WAL. The longer the WAL is already, the larger the part of the time the
//! gate may be closed ([`policy::gate`]): a writer faster than the disk is slowed down to it.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant, UNIX_EPOCH};

use super::pin::{GATE_SLOT, Pin};
use super::scanner::ScannerLock;
use super::{Counters, Shared, policy};
use crate::error::{Error, ErrorKind, Result};
use crate::host::conn::{Checkpointed, Connection};
use crate::info::CheckpointMode;
use crate::log::{Log, Pack};
use crate::pos::{Offset, Pos};
use crate::wal::wal_size;

/// How long to try to get WAL_CKPT_LOCK back from an application's own checkpoint.
const RETAKE_BUDGET: Duration = Duration::from_millis(5);
/// After a try that missed, nothing is tried for this many times as long, at most.
const GATE_MISS_FACTOR: u32 = 4;

/// The checkpointing half of a session.
pub(super) struct Cycle<'s> {
    pub(super) pin: &'s Pin,
    pub(super) sql: Connection,
    pub(super) scanner: &'s ScannerLock,
    pub(super) log: &'s Log,
    pub(super) counters: &'s Counters,
    stop: &'s AtomicBool,
    gate_again: Instant,
    /// When the gate was opened last, and how long it had been closed.
    gated: Option<(Instant, Duration)>,
    /// How often holds were too short for the device, see [`policy::gate`].
    stretch: u32,
}

impl<'s> Cycle<'s> {
    /// Takes over the locks of a session that has begun.
    pub(super) fn new(
        pin: &'s Pin,
        sql: Connection,
        scanner: &'s ScannerLock,
        shared: &'s Shared,
    ) -> Self {
        let (log, counters, stop) = (shared.log.as_ref(), &shared.counters, &shared.stop);
        let gate_again = Instant::now();
        Cycle { pin, sql, scanner, log, counters, stop, gate_again, gated: None, stretch: 0 }
    }

    /// Checkpoints. Afterwards the WAL is armed, or a writer was too busy and it is tried again
    /// later.
    pub(super) fn run(&mut self) -> Result<Checkpointed> {
        self.run_as(false)
    }

    /// The same; `asked`: for somebody who wants all of the WAL checkpointed, however short it is.
    fn run_as(&mut self, asked: bool) -> Result<Checkpointed> {
        let mut done = Checkpointed { busy: true, log: -1, checkpointed: -1 };
        // A second round shortens the tail for the gate.
        for _ in 0..=u32::from(self.needs_gate(asked)) {
            if !self.pin.take_slot()? {
                return Ok(done);
            }
            self.capture()?;
            self.log.flush(policy::pack(self.log.unflushed_bytes()), false)?;
            done = self.checkpoint(CheckpointMode::Passive, RETAKE_BUDGET)?;
            if !self.settle()? || self.pin.view().is_armed() {
                return Ok(done);
            }
            if self.pin.view().tail() <= self.patience().frames {
                break;
            }
        }
        if !self.may_close_gate(asked) {
            return Ok(done);
        }
        let gate = self.gate()?;
        Ok(gate.unwrap_or(done))
    }

    /// Gives up a slot that an earlier run had to keep. False: not yet.
    pub(super) fn settle(&mut self) -> Result<bool> {
        if self.pin.slot().is_none() {
            return Ok(true);
        }
        if !self.pin.take_checkpoint(Duration::ZERO)? {
            return Ok(false);
        }
        if !self.may_restart()? {
            self.capture()?;
            self.log.flush(Pack::Stored, false)?;
            if !self.may_restart()? {
                return Ok(false);
            }
        }
        self.pin.release_slot();
        Ok(true)
    }

    /// The rule: what is checkpointed is captured and in files, in the same incarnation of the WAL.
    fn may_restart(&self) -> Result<bool> {
        let backfilled = self.pin.view().backfilled();
        if backfilled == 0 {
            return Ok(true);
        }
        let Some(header) = self.pin.view().header() else { return Ok(false) };
        let (tip, frames) = {
            let scanner = self.scanner.lock();
            (scanner.tip(), scanner.frames())
        };
        let same = tip.chain.is_some_and(|chain| chain.salts == header.file_salts());
        // Not all that is captured: a busy writer's newest frames never are in files.
        let end = Offset::new(wal_size(header.page_size()?, u64::from(backfilled)))?;
        Ok(same && backfilled <= frames && self.flushed_to(Pos { offset: end, ..tip.pos }))
    }

    /// Whether everything before `pos` is in files.
    fn flushed_to(&self, pos: Pos) -> bool {
        let flushed = self.log.flushed();
        flushed.generation == pos.generation
            && (flushed.index, flushed.offset) >= (pos.index, pos.offset)
    }

    fn capture(&self) -> Result<()> {
        self.scanner.lock().catch_up_now(self.counters)
    }

    /// Lets go of WAL_CKPT_LOCK for one checkpoint of ours. A slot is held, so no restart happens.
    fn checkpoint(&mut self, mode: CheckpointMode, retake: Duration) -> Result<Checkpointed> {
        self.pin.release_checkpoint();
        let done = self.sql.checkpoint(mode.code());
        // Without it at once, somebody else's checkpoint got in: the slot stays until it is ours
        // again.
        self.pin.take_checkpoint(retake)?;
        self.counters.checkpoints.fetch_add(1, Ordering::Relaxed);
        done
    }

    /// How hard the gate may be tried now.
    fn patience(&self) -> policy::Gate {
        policy::gate(self.scanner.lock().frames(), self.stretch)
    }

    fn needs_gate(&self, asked: bool) -> bool {
        let last = self.gated.map(|(_, held)| held);
        asked || policy::is_worth_it(self.scanner.lock().frames(), last)
    }

    /// Whether it is needed, and writers have had their time since the gate was closed last.
    fn may_close_gate(&self, asked: bool) -> bool {
        let now = Instant::now();
        let open_for = self.patience().open_for;
        let rested = |(opened, held): (Instant, Duration)| now >= opened + held * open_for;
        self.needs_gate(asked) && now >= self.gate_again && self.gated.is_none_or(rested)
    }

    /// `None`: the gate could not be closed, nothing was done.
    fn gate(&mut self) -> Result<Option<Checkpointed>> {
        if !self.pin.take_slot()? {
            return Ok(None);
        }
        // What is in files already need not be written while writers wait.
        self.capture()?;
        self.log.flush(Pack::Stored, false)?;
        let patience = self.patience();
        let closed = self.pin.slot() == Some(GATE_SLOT)
            && self.pin.close_gate(patience.budget, patience.limit)?;
        if !closed {
            // Trying takes a processor from the writer it waits for.
            let pause = patience.budget * patience.open_for.min(GATE_MISS_FACTOR);
            self.gate_again = Instant::now() + pause;
            self.counters.gates_missed.fetch_add(1, Ordering::Relaxed);
            self.settle()?;
            return Ok(None);
        }
        let done = self.behind_the_gate(Instant::now() + patience.limit);
        let held = self.pin.open_gate();
        self.count_gate(held, patience.limit);
        self.stretch = policy::stretch_after(held, patience.limit, self.stretch);
        self.gated = Some((Instant::now(), held));
        done
    }

    /// Nobody can append: the rest is captured, written, checkpointed, and the WAL is armed.
    ///
    /// `None`: somebody else captures and waits for a disk. No writer may wait for that, and while
    /// one holds the scanner nobody but the keeper could open the gate.
    fn behind_the_gate(&mut self, until: Instant) -> Result<Option<Checkpointed>> {
        let Some(mut scanner) = self.scanner.lock_until(until) else { return Ok(None) };
        scanner.catch_up_now(self.counters)?;
        drop(scanner);
        self.log.flush(Pack::Stored, false)?;
        // One try: a waiting checkpoint of the application would keep the gate shut.
        let done = self.checkpoint(CheckpointMode::Passive, Duration::ZERO)?;
        self.pin.close_slot_zero()?;
        self.settle()?;
        Ok(Some(done))
    }

    fn count_gate(&self, held: Duration, limit: Duration) {
        let micros = |time: Duration| u64::try_from(time.as_micros()).unwrap_or(u64::MAX);
        let us = micros(held);
        self.counters.gates.fetch_add(1, Ordering::Relaxed);
        self.counters.gate_us.fetch_add(us, Ordering::Relaxed);
        self.counters.gate_us_max.fetch_max(us, Ordering::Relaxed);
        self.counters.gate_us_last.store(us, Ordering::Relaxed);
        let opened = UNIX_EPOCH.elapsed().map_or(0, micros);
        self.counters.gate_opened_us.store(opened, Ordering::Relaxed);
        self.counters.gates_overdue.fetch_add(u64::from(held > limit), Ordering::Relaxed);
    }

    /// A writer died between the two copies of the header. Recovery needs WAL_CKPT_LOCK: a reader
    /// of ours does it while a slot keeps the WAL as it is.
    pub(super) fn recover(&mut self) -> Result<()> {
        if !self.pin.take_slot()? {
            // Without one the WAL might restart unseen while we recover: let go of it properly.
            let why = "a writer died while publishing a commit, and readers hold every slot";
            return Err(Error::new(ErrorKind::Timeout, why));
        }
        self.pin.release_checkpoint();
        let read = self.sql.query_i64("SELECT count(*) FROM sqlite_schema");
        self.pin.take_checkpoint(RETAKE_BUDGET)?;
        read.map_err(|error| error.context("cannot recover the WAL's index"))?;
        self.settle().map(|_| ())
    }

    /// The application's checkpoint, in its place: everything captured, then the mode it asked for.
    pub(super) fn on_request(&mut self, mode: CheckpointMode) -> Result<Checkpointed> {
        if mode == CheckpointMode::Passive {
            return self.run();
        }
        let deadline = Instant::now() + Duration::from_secs(5);
        loop {
            let done = self.run_as(true)?;
            let armed = self.pin.view().is_armed();
            if mode == CheckpointMode::Truncate {
                let may = armed && self.pin.slot().is_none();
                if let Some(done) = if may { self.truncate()? } else { None } {
                    return Ok(done);
                }
            }
            let finished = armed && mode != CheckpointMode::Truncate;
            if finished || Instant::now() >= deadline || self.stop.load(Ordering::Acquire) {
                return Ok(Checkpointed { busy: !finished, ..done });
            }
            std::thread::sleep(Duration::from_millis(2));
        }
    }

    /// TRUNCATE restarts the WAL itself, so no slot may be held and anybody's checkpoint may get
    /// in. Whether a commit went by unseen shows in the header, which counts them: anything but
    /// what was captured lets go of the WAL, and the next session begins a new generation. `None`:
    /// a writer was quicker, nothing was done.
    fn truncate(&mut self) -> Result<Option<Checkpointed>> {
        // Nobody captures meanwhile: what lies behind a gap must not become our end.
        let mut scanner = self.scanner.lock();
        scanner.catch_up_now(self.counters)?;
        let Some(before) = self.pin.view().header() else { return Ok(None) };
        if before.max_frame != 0 && !scanner.is_at(&before) || !self.pin.view().is_armed() {
            return Ok(None);
        }
        let seen = self.counters.commits.load(Ordering::Relaxed);
        self.pin.release_checkpoint();
        let done = self.sql.checkpoint(CheckpointMode::Truncate.code());
        let proved = self.pin.take_checkpoint(RETAKE_BUDGET).and_then(|retaken| {
            scanner.catch_up_now(self.counters)?;
            let seen = self.counters.commits.load(Ordering::Relaxed).wrapping_sub(seen);
            let after = self.pin.view().header().filter(|_| retaken);
            let made = after.map(|after| u64::from(after.change.wrapping_sub(before.change)));
            Ok(made == Some(seen))
        });
        if !matches!(proved, Ok(true)) {
            self.pin.release_all();
            return Err(Error::generation_changed().context("TRUNCATE met another checkpoint"));
        }
        done.map(Some)
    }
}
