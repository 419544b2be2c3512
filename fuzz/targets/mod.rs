//! What the fuzzer runs: each target is a function of any bytes that must return, in bounded
//! memory, with every assertion in it true. `make fuzz` looks for bytes where one does not, guided
//! by coverage; the unit tests (smoke.rs) run each over `fuzz/corpus/` and changed copies of it.
//!
//! Part of the library only in its tests and in the fuzzer. A new target is a function, a line in
//! [`TARGETS`] and one in `fuzz/Cargo.toml`.
#![allow(missing_docs, clippy::unwrap_used, clippy::panic)]
#![allow(clippy::cast_possible_truncation, reason = "numbers made of the fuzzer's bytes")]

mod input;
mod log;
mod lz4;
mod numbers;
mod options;
mod record;
#[cfg(test)]
mod smoke;
mod wal;
mod walindex;

use crate::{archive, follow, restore, serve, sql};

pub(crate) use input::{Cut, Input, Scratch};
pub(crate) use wal::page;

/// A target, and the function behind it.
pub type Target = (&'static str, fn(&[u8]));

/// Every target, by name.
pub const TARGETS: &[Target] = &[
    ("answers", archive::fuzz::answers),
    ("connection", serve::fuzz::connection),
    ("cursor", follow::fuzz::cursor),
    ("head", serve::fuzz::head),
    ("intents", follow::fuzz::intents),
    ("label", archive::fuzz::label),
    ("log", log::target),
    ("ltx", archive::fuzz::ltx),
    ("lz4", lz4::target),
    ("names", archive::fuzz::names),
    ("options", options::target),
    ("position", numbers::target),
    ("record", record::target),
    ("restore", restore::fuzz::target),
    ("routes", serve::fuzz::routes),
    ("stream", follow::fuzz::stream),
    ("time", sql::fuzz::target),
    ("wal", wal::target),
    ("walindex", walindex::target),
];

/// Runs one target.
pub fn run(name: &str, data: &[u8]) {
    let target = TARGETS.iter().find(|(known, _)| *known == name);
    target.unwrap_or_else(|| panic!("no target is called {name}")).1(data);
}
