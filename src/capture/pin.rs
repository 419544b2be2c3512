//! The locks that keep the WAL from restarting under us, on a connection that runs no SQL.
//!
//! | lock                  | held                                   | so that                              |
//! |-----------------------|----------------------------------------|--------------------------------------|
//! | WAL_CKPT, exclusive   | always, except during our checkpoint   | nobody else raises nBackfill         |
//! | one READ slot, shared | around our checkpoint                  | no restart while CKPT is let go      |
//! | READ 1..3, exclusive  | at the gate only                       | no transaction can begin             |
//!
//! The slot's mark is READMARK_NOT_USED, so no reader joins it and no checkpoint stops at it.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::view::View;
use crate::error::Result;
use crate::host::file::Door;
use crate::host::shm::{Mode, ShmLock};
use crate::walindex;

/// The read slot that leaves 1..3 free for the gate.
pub(super) const GATE_SLOT: u8 = 4;

/// The locks of one session.
pub(super) struct Pin {
    door: Arc<Door>,
    view: View,
    checkpoint: Option<ShmLock>,
    slot: Option<(u8, ShmLock)>,
    gate: Option<ShmLock>,
}

impl Pin {
    /// Nothing held yet.
    pub(super) fn new(door: &Arc<Door>) -> Result<Pin> {
        let view = View::open(door)?;
        Ok(Pin { door: Arc::clone(door), view, checkpoint: None, slot: None, gate: None })
    }

    /// The wal-index.
    pub(super) fn view(&self) -> &View {
        &self.view
    }

    /// Takes WAL_CKPT_LOCK, trying for `budget` (zero: once).
    pub(super) fn take_checkpoint(&mut self, budget: Duration) -> Result<bool> {
        let deadline = Instant::now() + budget;
        while self.checkpoint.is_none() {
            self.checkpoint = self.door.try_lock(walindex::LOCK_CKPT, 1, Mode::Exclusive)?;
            if self.checkpoint.is_none() {
                if Instant::now() >= deadline {
                    return Ok(false);
                }
                std::thread::sleep(Duration::from_micros(50));
            }
        }
        Ok(true)
    }

    /// Lets others checkpoint. Only with a slot held.
    pub(super) fn release_checkpoint(&mut self) {
        self.checkpoint = None;
    }

    /// The slot held.
    pub(super) fn slot(&self) -> Option<u8> {
        self.slot.as_ref().map(|(slot, _)| *slot)
    }

    /// Takes a read slot, from the last down, with its mark unused; false if readers have them all.
    pub(super) fn take_slot(&mut self) -> Result<bool> {
        if self.slot.is_some() {
            return Ok(true);
        }
        for slot in (1..=GATE_SLOT).rev() {
            let byte = walindex::lock_read(slot);
            let Some(exclusive) = self.door.try_lock(byte, 1, Mode::Exclusive)? else { continue };
            self.view.clear_mark(slot);
            drop(exclusive);
            // Between the two locks a reader may have taken the slot and given it a mark.
            let Some(shared) = self.door.try_lock(byte, 1, Mode::Shared)? else { continue };
            if self.view.mark(slot) == walindex::READMARK_NOT_USED {
                self.slot = Some((slot, shared));
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Lets the WAL restart. Only when all that is checkpointed is in the log's files.
    pub(super) fn release_slot(&mut self) {
        self.slot = None;
    }

    /// Keeps every transaction from beginning: spins for at most `budget` until nobody is in one.
    /// Transactions that want to begin meanwhile back off by themselves; they never see SQLITE_BUSY.
    pub(super) fn close_gate(&mut self, budget: Duration) -> Result<bool> {
        let deadline = Instant::now() + budget;
        let first = walindex::lock_read(1);
        loop {
            self.gate = self.door.try_lock(first, GATE_SLOT - 1, Mode::Exclusive)?;
            if self.gate.is_some() {
                (1..GATE_SLOT).for_each(|slot| self.view.clear_mark(slot));
                return Ok(true);
            }
            if Instant::now() >= deadline {
                return Ok(false);
            }
            std::thread::yield_now();
        }
    }

    /// Lets transactions begin again.
    pub(super) fn open_gate(&mut self) {
        self.gate = None;
    }

    /// Gives up everything; the WAL is SQLite's own again.
    pub(super) fn release_all(&mut self) {
        self.gate = None;
        self.checkpoint = None;
        self.slot = None;
    }
}
