//! Bad input from every side: SQL, the port, and an upstream that lies.
#![allow(clippy::unwrap_used, clippy::panic)]

#[path = "../common/mod.rs"]
mod common;

mod liar;
mod port;
mod sql;
mod upstream;
