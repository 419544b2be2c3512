//! Where thread "follow" meets somebody who wants its replica at one exact position.
//!
//! ```text
//! verifier   Wanted                 Bound(P) ----------------------> frozen state at P
//!               |                   ^    |                           ^
//! follow        +--> Standing(R) ---+    +-- applies up to P, no further, freezes it, goes on
//! ```
//!
//! It stands between two transactions, with everything it received shown, so that the upstream can
//! be asked for a state that is not behind it. It does not stand for longer than [`STAND_MAX`], and
//! is never kept from going on once the state is frozen. One verifier at a time.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::error::{Error, ErrorKind, Result, lock};
use crate::host::file::Door;
use crate::pages::Frozen;
use crate::pos::{Pos, compare_pos};

/// The longest the follower stands still.
const STAND_MAX: Duration = Duration::from_secs(10);
/// How long a wait sleeps before it looks whether it is still wanted.
const SLICE: Duration = Duration::from_millis(50);

/// A replica's state, and what was added to its schema version.
pub type State = (Frozen, u32);

#[derive(Default)]
enum Stage {
    #[default]
    Nobody,
    Wanted,
    Standing(Pos),
    Bound(Pos, Arc<Door>),
    Over(Result<Box<State>>),
}

/// The meeting point.
#[derive(Default)]
pub struct Meeting {
    stage: Mutex<Stage>,
    changed: Condvar,
    /// Somebody is here: cheap to look at for each commit.
    is_on: AtomicBool,
    /// Held by the verifier.
    turn: Mutex<()>,
}

/// A verifier's place. Dropping it lets the follower go on.
pub struct Visit<'a> {
    meeting: &'a Meeting,
    _turn: MutexGuard<'a, ()>,
}

impl Meeting {
    /// Begins to want the follower to stand. `None`: somebody else does already.
    pub fn visit(&self) -> Option<Visit<'_>> {
        let turn = match self.turn.try_lock() {
            Ok(turn) => turn,
            Err(std::sync::TryLockError::Poisoned(poisoned)) => poisoned.into_inner(),
            Err(std::sync::TryLockError::WouldBlock) => return None,
        };
        self.set(Stage::Wanted);
        self.is_on.store(true, Ordering::Release);
        Some(Visit { meeting: self, _turn: turn })
    }

    fn set(&self, stage: Stage) {
        *lock(&self.stage) = stage;
        self.changed.notify_all();
    }

    fn sleep<'a>(&self, stage: MutexGuard<'a, Stage>) -> MutexGuard<'a, Stage> {
        let waited = self.changed.wait_timeout(stage, SLICE);
        waited.unwrap_or_else(PoisonError::into_inner).0
    }

    /// Whether the follower is wanted to stand.
    pub fn wants_to_stand(&self) -> bool {
        self.is_on.load(Ordering::Acquire) && matches!(*lock(&self.stage), Stage::Wanted)
    }

    /// The follower stands at `pos` until it is told where to go on to, or let go.
    pub fn stand(&self, pos: Pos, is_stopping: &dyn Fn() -> bool) {
        let deadline = Instant::now() + STAND_MAX;
        let mut stage = lock(&self.stage);
        if matches!(*stage, Stage::Wanted) {
            *stage = Stage::Standing(pos);
            self.changed.notify_all();
        }
        while matches!(*stage, Stage::Standing(_)) && !is_stopping() && Instant::now() < deadline {
            stage = self.sleep(stage);
        }
        if matches!(*stage, Stage::Standing(_)) {
            *stage = Stage::Over(Err(missed("the follower had to go on before it was told where")));
            self.changed.notify_all();
        }
    }

    /// The position the follower is to be frozen at, if there is one.
    pub fn target(&self) -> Option<Pos> {
        if !self.is_on.load(Ordering::Acquire) {
            return None;
        }
        match &*lock(&self.stage) {
            Stage::Bound(pos, _) => Some(*pos),
            _ => None,
        }
    }

    /// The follower shows `pos`: at the position that is wanted it is frozen, past it is missed.
    pub fn reached(&self, pos: Pos, freeze: impl FnOnce(&Arc<Door>) -> Result<State>) {
        let mut stage = lock(&self.stage);
        let Stage::Bound(target, door) = &*stage else { return };
        if *target == pos {
            let frozen = freeze(door).map(Box::new);
            *stage = Stage::Over(frozen);
        } else if compare_pos(pos, *target).is_ok_and(|order| order.is_lt()) {
            return;
        } else {
            let why = format!("the replica went from before {target} to {pos} in one step");
            *stage = Stage::Over(Err(missed(&why)));
        }
        self.changed.notify_all();
    }

    /// The follower's connection ended.
    pub fn broke_off(&self) {
        let mut stage = lock(&self.stage);
        if matches!(*stage, Stage::Standing(_) | Stage::Bound(..)) {
            *stage = Stage::Over(Err(missed("the connection that is followed ended meanwhile")));
            self.changed.notify_all();
        }
    }
}

impl Visit<'_> {
    /// Waits until the follower stands; where. `go_on` may end the wait with an error.
    pub fn standing(&self, mut go_on: impl FnMut() -> Result<()>) -> Result<Pos> {
        let mut stage = lock(&self.meeting.stage);
        loop {
            match &*stage {
                Stage::Standing(pos) => return Ok(*pos),
                Stage::Over(_) => return Err(missed("the follower went on")),
                _ => {}
            }
            drop(stage);
            go_on()?;
            stage = self.meeting.sleep(lock(&self.meeting.stage));
        }
    }

    /// Lets the follower go on to `pos` and waits until it is frozen there.
    pub fn frozen_at(
        &self,
        pos: Pos,
        door: &Arc<Door>,
        limit: Duration,
        mut go_on: impl FnMut() -> Result<()>,
    ) -> Result<State> {
        let deadline = Instant::now() + limit;
        let mut stage = lock(&self.meeting.stage);
        if matches!(*stage, Stage::Standing(_)) {
            *stage = Stage::Bound(pos, Arc::clone(door));
            self.meeting.changed.notify_all();
        }
        loop {
            if matches!(*stage, Stage::Over(_)) {
                let Stage::Over(state) = std::mem::take(&mut *stage) else { continue };
                return state.map(|state| *state);
            }
            drop(stage);
            go_on()?;
            if Instant::now() >= deadline {
                return Err(missed(&format!("the replica did not get to {pos} in time")));
            }
            stage = self.meeting.sleep(lock(&self.meeting.stage));
        }
    }
}

impl Drop for Visit<'_> {
    fn drop(&mut self) {
        self.meeting.is_on.store(false, Ordering::Release);
        self.meeting.set(Stage::Nobody);
    }
}

/// What may go better the next time.
fn missed(why: &str) -> Error {
    Error::new(ErrorKind::Busy, why)
}
