//! The standing loop: operation after operation is made to fail, or the process is killed there,
//! and nothing may come of it but a message. See the module `fault` of the library, and `stage` for
//! what is looked at after each round.
//!
//! `FAULTS='...'` plays again the round that printed this, with `ON_SERVER=1` if that did.
#![allow(missing_docs)]
#![allow(clippy::unwrap_used, clippy::panic, clippy::cast_possible_truncation)]
#![allow(clippy::print_stdout)]

#[path = "../common/mod.rs"]
mod common;

mod build;
mod cast;
mod hangs;
mod kills;
mod points;
mod rare;
mod rounds;
mod stage;
