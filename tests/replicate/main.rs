//! `litestream_replicate`: what is in an archive is the log, whole, once, and soon; whatever
//! happens to the primary, to the store, or to two primaries at once.
#![allow(missing_docs)]
#![allow(clippy::unwrap_used, clippy::panic, clippy::cast_possible_truncation)]
#![allow(clippy::print_stdout)]

#[path = "../common/mod.rs"]
mod common;

mod crash;
mod daily;
mod encrypted;
mod faults;
mod lost;
mod parted;
mod primary;
mod retention;
mod several;
