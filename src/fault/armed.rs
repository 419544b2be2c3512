//! The plan under which operations fail, and the count of those that were met.
//!
//! | thing   | changed by                    | while holding |
//! |---------|-------------------------------|---------------|
//! | `STATE` | every operation, and `arm`    | its own mutex |
//!
//! Nothing is done while holding it but counting.

use std::collections::BTreeMap;
use std::io;
use std::sync::{Condvar, LazyLock, Mutex};
use std::time::{Duration, Instant};

use rustix::io::Errno;
use rustix::process::{Signal, getpid, kill_process};
use serde_json::json;

use crate::error::{Error, Result, lock};
use crate::options::Options;

/// Where the first plan comes from.
const VARIABLE: &str = "LITESTREAM_FAULT";
/// A longer hang is a mistake in a test.
const HANG_MS_MAX: u64 = 600_000;

static STATE: LazyLock<Mutex<State>> = LazyLock::new(|| {
    let plan = std::env::var(VARIABLE).ok().and_then(|text| Plan::parse(&text).ok());
    Mutex::new(State { plan: plan.unwrap_or_default(), ..State::default() })
});
static CHANGED: Condvar = Condvar::new();

#[derive(Default)]
struct State {
    plan: Plan,
    /// Of which plan this is the count.
    turn: u64,
    /// Operations the plan is about.
    met: u64,
    /// All operations.
    count: u64,
    points: BTreeMap<&'static str, u64>,
    /// The first that failed, and how many did.
    fired: Option<&'static str>,
    failures: u64,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Kind {
    #[default]
    Eio,
    Enospc,
    Reset,
    Short,
    Kill,
    Hang,
}

#[derive(Clone, Debug, Default)]
struct Plan {
    point: String,
    nth: u64,
    sticky: bool,
    kind: Kind,
    ms: u64,
    without: String,
}

impl Plan {
    fn parse(text: &str) -> Result<Plan> {
        let mut options = Options::parse(Some(text))?;
        let kind = match options.opt_str("kind")?.as_deref() {
            None | Some("eio") => Kind::Eio,
            Some("enospc") => Kind::Enospc,
            Some("reset") => Kind::Reset,
            Some("short") => Kind::Short,
            Some("kill") => Kind::Kill,
            Some("hang") => Kind::Hang,
            Some(other) => return Err(Error::usage(format!("unknown kind {other:?}"))),
        };
        let plan = Plan {
            point: options.opt_str("point")?.unwrap_or_else(|| "*".to_owned()),
            nth: options.opt_u64("nth", 0..=u64::MAX)?.unwrap_or(0),
            sticky: options.opt_bool("sticky")?.unwrap_or(false),
            kind,
            ms: options.opt_u64("ms", 0..=HANG_MS_MAX)?.unwrap_or(1000),
            without: options.opt_str("without")?.unwrap_or_default(),
        };
        options.finish()?;
        Ok(plan)
    }

    fn is_without(&self, point: &str) -> bool {
        self.without.split(' ').any(|name| name == point)
    }

    fn is_about(&self, point: &str) -> bool {
        match self.point.strip_suffix('*') {
            Some(start) => point.starts_with(start),
            None => self.point == point,
        }
    }
}

/// Makes a plan, or none; tells what was met under the one before.
pub fn arm(plan: Option<&str>) -> Result<String> {
    let plan = plan.map(Plan::parse).transpose()?;
    let mut state = lock(&STATE);
    let told = json!({
        "count": state.count,
        "fired": state.fired,
        "failures": state.failures,
        "points": state.points,
    });
    if let Some(plan) = plan {
        *state = State { plan, turn: state.turn + 1, ..State::default() };
        CHANGED.notify_all();
    }
    Ok(told.to_string())
}

/// What is to become of the operation.
fn meet(point: &'static str) -> Option<Kind> {
    let mut state = lock(&STATE);
    state.count += 1;
    *state.points.entry(point).or_default() += 1;
    if !state.plan.is_about(point) {
        return state.plan.is_without(point).then_some(Kind::Eio);
    }
    state.met += 1;
    let (met, nth) = (state.met, state.plan.nth);
    if nth == 0 || met < nth || (met > nth && !state.plan.sticky) {
        return None;
    }
    state.fired.get_or_insert(point);
    state.failures += 1;
    Some(state.plan.kind)
}

/// The operation named `point` is about to happen.
pub fn at(point: &'static str) -> io::Result<()> {
    match meet(point) {
        None => Ok(()),
        Some(Kind::Hang) => {
            hang();
            Ok(())
        }
        Some(Kind::Kill) => kill(),
        Some(Kind::Eio) => Err(Errno::IO.into()),
        Some(Kind::Enospc | Kind::Short) => Err(Errno::NOSPC.into()),
        Some(Kind::Reset) => Err(Errno::CONNRESET.into()),
    }
}

/// Writes `bytes` by `write`, which writes all of what it gets; half of them before it fails short
/// or is killed.
pub fn write(
    point: &'static str,
    bytes: &[u8],
    write: impl FnOnce(&[u8]) -> io::Result<()>,
) -> io::Result<()> {
    let half = bytes.get(..bytes.len() / 2).unwrap_or_default();
    match meet(point) {
        None => write(bytes),
        Some(Kind::Hang) => {
            hang();
            write(bytes)
        }
        Some(Kind::Short) => {
            write(half)?;
            Err(Errno::NOSPC.into())
        }
        Some(Kind::Kill) => {
            write(half)?;
            kill()
        }
        Some(Kind::Eio) => Err(Errno::IO.into()),
        Some(Kind::Enospc) => Err(Errno::NOSPC.into()),
        Some(Kind::Reset) => Err(Errno::CONNRESET.into()),
    }
}

fn kill() -> io::Result<()> {
    kill_process(getpid(), Signal::KILL)?;
    Err(Errno::INTR.into())
}

fn hang() {
    let mut state = lock(&STATE);
    let turn = state.turn;
    let deadline = Instant::now() + Duration::from_millis(state.plan.ms);
    while state.turn == turn {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return;
        }
        let waited = CHANGED.wait_timeout(state, left);
        state = match waited {
            Ok((state, _)) => state,
            Err(poisoned) => poisoned.into_inner().0,
        };
    }
}
