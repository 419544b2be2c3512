//! The locks that keep the WAL from restarting under us, on a connection that runs no SQL.
//!
//! | lock                  | held                                   | so that                              |
//! |-----------------------|----------------------------------------|--------------------------------------|
//! | WAL_CKPT, exclusive   | always, except during our checkpoint   | nobody else raises nBackfill         |
//! | one READ slot, shared | around our checkpoint                  | no restart while CKPT is let go      |
//! | READ 1..3, exclusive  | at the gate only                       | no transaction can begin             |
//! | READ 0, exclusive     | at the end of a gate                   | nor on a WAL that is all checkpointed|
//!
//! The slot's mark is READMARK_NOT_USED, so no reader joins it and no checkpoint stops at it.
//!
//! The keeper takes the locks; the notice thread may take them away ([`Pin::watch`]) when the
//! keeper is stuck on a disk: the gate after [`GATE_MAX`], everything after [`STUCK_MAX`].
//! `Pin::locks` is held only for a lock call, never over SQLite or a disk.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use rustix::event::{EventfdFlags, eventfd};

use super::view::View;
use crate::error::{Context, Error, ErrorKind, Result, lock};
use crate::host::file::Door;
use crate::host::shm::{Mode, ShmLock};
use crate::walindex;

/// The read slot that leaves 1..3 free for the gate.
pub(super) const GATE_SLOT: u8 = 4;
/// A keeper without a sign of life for this long is stuck: the user's database comes first.
const STUCK_MAX: Duration = Duration::from_secs(60);

/// Whether the WAL may have restarted under this session. Set before the locks go and never
/// cleared, so whoever reads the wal-index and *then* finds it unset has read it under the locks.
#[derive(Clone, Default)]
pub(super) struct LetGo(Arc<AtomicBool>);

impl LetGo {
    /// From here on nothing read from the WAL proves anything.
    fn set(&self) {
        self.0.store(true, Ordering::SeqCst);
    }

    /// Asked after reading, not before.
    pub(super) fn is_set(&self) -> bool {
        self.0.load(Ordering::SeqCst)
    }
}

/// The locks of one session.
pub(super) struct Pin {
    door: Arc<Door>,
    view: View,
    locks: Mutex<Locks>,
    let_go: LetGo,
    bell: Bell,
}

/// Wakes a thread that polls: the notice thread, which looks after the gate and leaves with the
/// session; a keeper that stands by, to stop.
pub(super) struct Bell(OwnedFd);

impl Bell {
    pub(super) fn new() -> Result<Bell> {
        let made = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK);
        Ok(Bell(made.map_err(std::io::Error::from).context(|| "eventfd".into())?))
    }

    /// Heard by whoever polls it, until it is [`Bell::stop`]ped.
    pub(super) fn ring(&self) {
        // It fails only if it rings already.
        let _ = rustix::io::write(&self.0, &1_u64.to_ne_bytes());
    }

    /// Makes it silent again.
    pub(super) fn stop(&self) {
        // It fails only if it is silent.
        let _ = rustix::io::read(&self.0, &mut [0; 8]);
    }
}

impl AsFd for Bell {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

struct Locks {
    checkpoint: Option<ShmLock>,
    slot: Option<(u8, ShmLock)>,
    gate: Option<Gate>,
    /// How long the gate was closed that [`Pin::watch`] opened.
    overdue: Option<Duration>,
    alive: Instant,
}

/// READ 1..3, perhaps READ 0, and until when at most they may be held.
struct Gate {
    closed: Instant,
    limit: Duration,
    /// Opened in this order.
    slots: Vec<ShmLock>,
}

impl Pin {
    /// Nothing held yet.
    pub(super) fn new(door: &Arc<Door>) -> Result<Pin> {
        let locks = Locks {
            checkpoint: None,
            slot: None,
            gate: None,
            overdue: None,
            alive: Instant::now(),
        };
        let (door, view, bell) = (Arc::clone(door), View::open(door)?, Bell::new()?);
        Ok(Pin { door, view, locks: Mutex::new(locks), let_go: LetGo::default(), bell })
    }

    /// What wakes the notice thread.
    pub(super) fn bell(&self) -> &Bell {
        &self.bell
    }

    /// For those who read the WAL.
    pub(super) fn let_go(&self) -> LetGo {
        self.let_go.clone()
    }

    /// The wal-index.
    pub(super) fn view(&self) -> &View {
        &self.view
    }

    /// The keeper's sign of life. An error if its locks were taken away.
    pub(super) fn keep_alive(&self) -> Result<()> {
        self.held().map(|_| ())
    }

    /// Whether the header's copies differ, and not only for the moment of a publish.
    pub(super) fn is_torn(&self) -> bool {
        let deadline = Instant::now() + Duration::from_millis(5);
        while self.view.header().is_none() {
            if Instant::now() >= deadline {
                return true;
            }
            std::thread::sleep(Duration::from_micros(100));
        }
        false
    }

    /// The locks, unless they were taken away.
    fn held(&self) -> Result<MutexGuard<'_, Locks>> {
        let mut locks = lock(&self.locks);
        if self.let_go.is_set() {
            return Err(stuck());
        }
        locks.alive = Instant::now();
        Ok(locks)
    }

    /// Takes WAL_CKPT_LOCK, trying for `budget` (zero: once).
    pub(super) fn take_checkpoint(&self, budget: Duration) -> Result<bool> {
        let deadline = Instant::now() + budget;
        loop {
            let mut locks = self.held()?;
            if locks.checkpoint.is_none() {
                locks.checkpoint = self.door.try_lock(walindex::LOCK_CKPT, 1, Mode::Exclusive)?;
            }
            if locks.checkpoint.is_some() {
                return Ok(true);
            }
            drop(locks);
            if Instant::now() >= deadline {
                return Ok(false);
            }
            std::thread::sleep(Duration::from_micros(50));
        }
    }

    /// Lets others checkpoint. Only with a slot held.
    pub(super) fn release_checkpoint(&self) {
        lock(&self.locks).checkpoint = None;
    }

    /// The slot held.
    pub(super) fn slot(&self) -> Option<u8> {
        lock(&self.locks).slot.as_ref().map(|(slot, _)| *slot)
    }

    /// Takes a read slot, from the last down, with its mark unused; false if readers have them all.
    pub(super) fn take_slot(&self) -> Result<bool> {
        let mut locks = self.held()?;
        if locks.slot.is_some() {
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
                locks.slot = Some((slot, shared));
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Lets the WAL restart. Only when all that is checkpointed is in the log's files.
    pub(super) fn release_slot(&self) {
        lock(&self.locks).slot = None;
    }

    /// Keeps every transaction from beginning, for at most `limit`: tries for at most `budget`
    /// until nobody is in one. Transactions that want to begin meanwhile back off by themselves;
    /// they never see SQLITE_BUSY.
    ///
    /// Slots are kept one by one: new transactions share those that are left, so trying keeps
    /// nobody out, and in the end there is one slot to wait for.
    pub(super) fn close_gate(&self, budget: Duration, limit: Duration) -> Result<bool> {
        let deadline = Instant::now() + budget;
        let mut wanted: Vec<u8> = (1..GATE_SLOT).collect();
        let mut slots = Vec::new();
        loop {
            let mut locks = self.held()?;
            let mut missing = Vec::new();
            for slot in wanted {
                match self.door.try_lock(walindex::lock_read(slot), 1, Mode::Exclusive)? {
                    Some(held) => {
                        self.view.clear_mark(slot);
                        slots.push(held);
                    }
                    None => missing.push(slot),
                }
            }
            if missing.is_empty() {
                locks.overdue = None;
                locks.gate = Some(Gate { closed: Instant::now(), limit, slots });
                drop(locks);
                self.bell.ring();
                return Ok(true);
            }
            wanted = missing;
            drop(locks);
            if Instant::now() >= deadline {
                return Ok(false);
            }
            std::thread::yield_now();
        }
    }

    /// Keeps transactions from beginning on slot 0, which they do as soon as all is checkpointed.
    /// One that did would find the other slots taken, and append where it should start the WAL
    /// over. It is the first to be opened: whoever begins then looks for the others only when it
    /// writes, and whoever began on one of the others would append. Not before our checkpoint,
    /// which needs it.
    pub(super) fn close_slot_zero(&self) -> Result<()> {
        let mut locks = self.held()?;
        let Some(gate) = &mut locks.gate else { return Ok(()) };
        let byte = walindex::lock_read(0);
        let zero = self.door.try_lock(byte, 1, Mode::Exclusive)?;
        gate.slots.splice(..0, zero);
        Ok(())
    }

    /// Lets transactions begin again; how long they could not.
    pub(super) fn open_gate(&self) -> Duration {
        let mut locks = lock(&self.locks);
        let overdue = locks.overdue.take();
        let held = locks.gate.take().map(|gate| gate.closed.elapsed());
        held.or(overdue).unwrap_or_default()
    }

    /// Lets others in for a moment, before anything is captured under these locks.
    pub(super) fn step_aside(&self) {
        lock(&self.locks).release();
    }

    /// Whether no transaction can begin at the moment.
    pub(super) fn is_gate_closed(&self) -> bool {
        lock(&self.locks).gate.is_some()
    }

    /// Gives up everything; the WAL is SQLite's own again, and this session reads no more of it.
    pub(super) fn release_all(&self) {
        let mut locks = lock(&self.locks);
        self.let_go.set();
        locks.release();
    }

    /// Called now and then by a thread that is never stuck on a disk. Opening the gate early is
    /// always safe: the slot still keeps the WAL from restarting. Letting everything go ends the
    /// session, and a WAL that restarts meanwhile begins a new generation: an error here, and
    /// nobody reads on.
    pub(super) fn watch(&self, now: Instant) -> Result<()> {
        let mut locks = lock(&self.locks);
        let held = |gate: &Gate| now.saturating_duration_since(gate.closed);
        if locks.gate.as_ref().is_some_and(|gate| held(gate) > gate.limit) {
            locks.overdue = locks.gate.take().map(|gate| gate.closed.elapsed());
        }
        if now.saturating_duration_since(locks.alive) > STUCK_MAX {
            self.let_go.set();
            locks.release();
        }
        if self.let_go.is_set() { Err(stuck()) } else { Ok(()) }
    }
}

impl Locks {
    fn release(&mut self) {
        self.gate = None;
        self.checkpoint = None;
        self.slot = None;
    }
}

fn stuck() -> Error {
    let why = format!("checkpointing was stuck for {} s; the WAL was let go", STUCK_MAX.as_secs());
    Error::new(ErrorKind::Timeout, why)
}
