//! What the library says about itself, and the pure helpers.

use std::cmp::Ordering;

use crate::error::Result;
use crate::host::api;
use crate::host::caller::Caller;
use crate::host::function::{Answer, Args};
use crate::pos::{Pos, compare_pos};

const VERSION: &str = concat!("v", env!("CARGO_PKG_VERSION"));

pub(super) fn version(_: &Caller, _: &Args) -> Result<Answer> {
    Ok(Answer::from(VERSION))
}

/// One fact a line, `name: value`.
pub(super) fn debug(_: &Caller, _: &Args) -> Result<Answer> {
    let thread_mode = if api::threadsafe() { "threadsafe" } else { "single-thread" };
    let facts = [
        ("version", VERSION.to_owned()),
        ("commit", option_env!("LITESTREAM_COMMIT").unwrap_or("unknown").to_owned()),
        ("target", format!("{}-{}", std::env::consts::ARCH, std::env::consts::OS)),
        ("profile", if cfg!(debug_assertions) { "debug" } else { "release" }.to_owned()),
        ("sqlite", api::libversion()),
        ("sqlite thread mode", thread_mode.to_owned()),
        ("features", "http, https upstreams, lz4".to_owned()),
    ];
    let lines: Vec<String> = facts.iter().map(|(name, value)| format!("{name}: {value}")).collect();
    Ok(Answer::Text(lines.join("\n")))
}

/// -1, 0 or 1; NULL if either is NULL, as SQL compares.
pub(super) fn pos_compare(_: &Caller, args: &Args) -> Result<Answer> {
    let (Some(a), Some(b)) = (args.text(0)?, args.text(1)?) else { return Ok(Answer::Null) };
    let order = compare_pos(a.parse::<Pos>()?, b.parse::<Pos>()?)?;
    Ok(Answer::Integer(match order {
        Ordering::Less => -1,
        Ordering::Equal => 0,
        Ordering::Greater => 1,
    }))
}
