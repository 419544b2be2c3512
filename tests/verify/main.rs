//! `litestream_verify`: never a false alarm, whatever goes on; every damaged page named; repaired,
//! and no reader sees a half of it. Damage is done to the files from this process, behind the backs
//! of the hosts that have them open.
#![allow(clippy::unwrap_used, clippy::panic, clippy::cast_possible_truncation)]

mod archived;
mod between;
#[path = "../common/mod.rs"]
mod common;
mod damage;
mod equal;
mod foreign;
mod support;
