//! `litestream_restore`: what comes out of an archive is what the primary was, or an error.
#![allow(missing_docs)]
#![allow(clippy::unwrap_used, clippy::panic, clippy::print_stdout)]

#[path = "../common/mod.rs"]
mod common;

mod support;

mod bucket;
mod damage;
mod refusals;
mod replicated;
mod shapes;
mod states;
