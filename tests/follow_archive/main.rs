//! Followers of an archive, and the tables that list one: in this process on archives made piece by
//! piece, and in processes of their own as users have them.
#![allow(unsafe_code, clippy::unwrap_used, clippy::panic, clippy::cast_possible_truncation)]
#![allow(clippy::undocumented_unsafe_blocks, clippy::multiple_unsafe_ops_per_block)]
#![allow(dead_code, reason = "some modules are those of other test programs")]

mod archiver;
mod basics;
mod buckets;
#[path = "../common/mod.rs"]
mod common;
mod crash;
mod foreign;
mod hosts;
mod moves;
mod stage;
#[path = "../follow/support.rs"]
mod support;
mod tables;
#[path = "../follow/upstream.rs"]
mod upstream;
