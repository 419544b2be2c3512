//! Which faults a round has, as text that plays it again.

use std::collections::BTreeMap;

use crate::common::*;

/// The three processes of a round that may be made to fail.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Side {
    Primary,
    Follower,
    Restorer,
}

pub const SIDES: [Side; 3] = [Side::Primary, Side::Follower, Side::Restorer];

impl Side {
    pub fn name(self) -> &'static str {
        match self {
            Side::Primary => "primary",
            Side::Follower => "follower",
            Side::Restorer => "restorer",
        }
    }
}

/// A plan for each side, as `litestream_fault` takes it.
#[derive(Clone, Debug, Default)]
pub struct Cast(pub BTreeMap<Side, Value>);

impl Cast {
    /// The one that `FAULTS` names.
    pub fn asked_for() -> Option<Cast> {
        let text = std::env::var("FAULTS").ok()?;
        let value: Value = serde_json::from_str(&text).expect("FAULTS is JSON");
        let plan = |side: Side| Some((side, value.get(side.name())?.clone()));
        Some(Cast(SIDES.into_iter().filter_map(plan).collect()))
    }

    /// A plan that only counts, for all.
    pub fn counting() -> Cast {
        Cast(SIDES.into_iter().map(|side| (side, json!({}))).collect())
    }

    pub fn kills(&self, side: Side) -> bool {
        self.0.get(&side).is_some_and(|plan| plan["kind"] == "kill")
    }
}

impl std::fmt::Display for Cast {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let all = self.0.iter().map(|(side, plan)| (side.name().to_owned(), plan.clone()));
        write!(f, "FAULTS='{}'", Value::Object(all.collect()))
    }
}

/// What a side met: how often each name, and which failed first.
#[derive(Clone, Debug, Default)]
pub struct Met {
    pub points: BTreeMap<String, u64>,
    pub fired: Option<String>,
}

impl Met {
    pub fn of(told: &str) -> Met {
        let told: Value = serde_json::from_str(told).unwrap();
        let points = told["points"].as_object().unwrap().iter();
        Met {
            points: points.map(|(name, count)| (name.clone(), count.as_u64().unwrap())).collect(),
            fired: told["fired"].as_str().map(str::to_owned),
        }
    }
}
