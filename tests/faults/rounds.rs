//! Which rounds are played. A round has a fault in each of the three processes; some stages play at
//! once.

use std::collections::{BTreeMap, BTreeSet};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, OnceLock};
use std::time::{Duration, Instant};

use crate::cast::{Cast, Met, SIDES, Side};
use crate::common::*;
use crate::points::expected;
use crate::stage::Stage;

/// Rounds played at once: what takes time is waiting.
const STAGES: usize = 4;
const ERRORS: [&str; 3] = ["eio", "enospc", "short"];

/// What each side met.
type AllMet = BTreeMap<Side, Met>;

/// Plays casts until `next` has no more. Fails in the end if a round did.
fn play_all(next: impl FnMut() -> Option<Cast> + Send, seen: impl Fn(&Cast, &AllMet) + Sync) {
    play_all_on(STAGES, Stage::new, next, seen);
}

fn play_all_on(
    stages: usize,
    new: fn() -> Stage,
    next: impl FnMut() -> Option<Cast> + Send,
    seen: impl Fn(&Cast, &AllMet) + Sync,
) {
    let (next, failed) = (Mutex::new(next), Mutex::new(Vec::new()));
    std::thread::scope(|scope| {
        for _ in 0..stages {
            scope.spawn(|| {
                let mut stage = new();
                let ask = || next.lock().unwrap()();
                while let Some(cast) = ask() {
                    let play = || seen(&cast, &stage.play(&cast));
                    match catch_unwind(AssertUnwindSafe(play)) {
                        Ok(()) => {}
                        Err(_) => {
                            println!("failed: {cast}");
                            failed.lock().unwrap().push(cast.to_string());
                            stage = new();
                        }
                    }
                }
            });
        }
    });
    let failed = failed.into_inner().unwrap();
    assert!(failed.is_empty(), "{} rounds failed:\n{}", failed.len(), failed.join("\n"));
}

/// One cast from each side's plans, until the longest list ends.
fn casts(mut plans: BTreeMap<Side, Vec<Value>>) -> Vec<Cast> {
    let mut casts = Vec::new();
    while plans.values().any(|plans| !plans.is_empty()) {
        let next = plans.iter_mut().filter_map(|(side, plans)| Some((*side, plans.pop()?)));
        casts.push(Cast(next.collect()));
    }
    casts
}

/// Each name of each side once, at its first operation, in any order.
fn each_name(met: &AllMet, mut plan: impl FnMut(&str) -> Value) -> BTreeMap<Side, Vec<Value>> {
    let mut rng = Rng::new();
    let mut all = BTreeMap::new();
    for (side, met) in met {
        let mut plans: Vec<Value> = met.points.keys().map(|name| plan(name)).collect();
        for at in (1..plans.len()).rev() {
            plans.swap(at, rng.index(at + 1));
        }
        all.insert(*side, plans);
    }
    all
}

pub fn a_round_without_faults() -> &'static AllMet {
    static MET: OnceLock<AllMet> = OnceLock::new();
    MET.get_or_init(|| {
        let met = Stage::new().play(&Cast::counting());
        let names = met.values().flat_map(|it| it.points.keys().cloned());
        let names: BTreeSet<String> = names.collect();
        let missed: Vec<String> = expected().difference(&names).cloned().collect();
        assert_eq!(missed, [""; 0], "the play never gets there");
        met
    })
}

/// The fault a side had is the one that happened.
fn assert_fired(cast: &Cast, met: &AllMet) {
    for (side, plan) in &cast.0 {
        let (point, fired) = (plan["point"].as_str().unwrap(), met[side].fired.as_deref());
        let wanted = if plan["kind"] == "kill" { "killed" } else { point };
        assert_eq!(fired, Some(wanted), "{side:?}: {plan}");
    }
}

#[test]
fn every_operation_may_fail() {
    if let Some(cast) = Cast::asked_for() {
        let on_server = std::env::var_os("ON_SERVER").is_some();
        if on_server { Stage::with_server() } else { Stage::new() }.play(&cast);
        return;
    }
    let met = a_round_without_faults();
    let mut rng = Rng::new();
    let plans = each_name(
        met,
        |name| json!({"point": name, "nth": 1, "kind": ERRORS[rng.index(ERRORS.len())]}),
    );
    let mut casts = casts(plans).into_iter();
    play_all(|| casts.next(), assert_fired);
}

/// How long the long form of a loop may take, so that what is left of it can be told. It plays
/// numbers far apart first.
const LOOP_MAX: Duration = Duration::from_secs(25 * 60);
/// Every so manyth operation, then those next to them, and so on.
const STRIDE: u64 = 8;
/// More operations than any side has, for the first look.
const OPERATIONS_MAX: u64 = 4000;

/// The Nth operation of those with such names, for every N, until there are no more. Now and then
/// all that follow fail, too.
fn each_nth(point: &'static str, stages: usize, new: fn() -> Stage, rounds: u64) {
    let mut rng = Rng::new();
    // The first number that a side did not get to.
    let ends = Mutex::new(SIDES.map(|side| (side, OPERATIONS_MAX)).into_iter().collect());
    let kinds = ["eio", "enospc", "short", "reset", "hang"];
    let mut numbers = (1..=STRIDE).flat_map(|first| (first..OPERATIONS_MAX).step_by(8)).enumerate();
    let (began, played) = (Instant::now(), AtomicU64::new(0));
    let next = || loop {
        let (count, nth) = numbers.next()?;
        if played.load(Ordering::Relaxed) >= rounds || began.elapsed() > LOOP_MAX {
            println!("over after {count} numbers, at {nth}");
            return None;
        }
        let ends: &BTreeMap<Side, u64> = &ends.lock().unwrap();
        let left = ends.iter().filter(|(_, end)| nth < **end);
        let sticky = rng.below(16) == 0;
        let plan = |(side, _): (&Side, &u64)| {
            let kind = kinds[rng.index(kinds.len())];
            let sticky = sticky && kind != "hang";
            (*side, json!({"point": point, "nth": nth, "kind": kind, "sticky": sticky}))
        };
        let cast = Cast(left.map(plan).collect());
        if !cast.0.is_empty() {
            played.fetch_add(1, Ordering::Relaxed);
            return Some(cast);
        }
    };
    play_all_on(stages, new, next, |cast, met| {
        for (side, plan) in cast.0.iter().filter(|(side, _)| met[*side].fired.is_none()) {
            let mut ends = ends.lock().unwrap();
            let end = ends.get_mut(side).unwrap();
            *end = plan["nth"].as_u64().unwrap().min(*end);
        }
    });
    let played = played.into_inner();
    println!("{played} rounds in {:?}; ends: {:?}", began.elapsed(), ends.into_inner());
}

#[test]
fn every_single_operation_may_fail() {
    each_nth("*", STAGES, Stage::new, scaled(2, u64::MAX));
}

/// The sockets of the archive's client, and of the follower's.
#[test]
fn every_use_of_a_socket_may_fail() {
    each_nth("transport/*", 2, Stage::with_server, scaled(3, u64::MAX));
}

/// kill -9 at an operation, and half of a write done if it is one.
#[test]
fn every_operation_may_be_the_last() {
    let met = a_round_without_faults();
    let mut rng = Rng::new();
    let kill = |name: &str, nth: u64| json!({"point": name, "nth": nth, "kind": "kill"});
    let mut first = casts(each_name(met, |name| kill(name, 1)));
    first.truncate(scaled(12, usize::MAX));
    let (mut count, rounds) = (0, scaled(first.len(), 1000));
    let next = || {
        count += 1;
        let any = |(side, met): (&Side, &Met)| {
            let (name, times) = met.points.iter().nth(rng.index(met.points.len()))?;
            Some((*side, kill(name, 1 + rng.below(*times))))
        };
        let cast = first.pop().unwrap_or_else(|| Cast(met.iter().filter_map(any).collect()));
        (count <= rounds).then_some(cast)
    };
    play_all(next, |cast, met| {
        let is_first = |plan: &Value| plan["nth"] == 1;
        if cast.0.values().all(is_first) {
            assert_fired(cast, met);
        }
    });
}
