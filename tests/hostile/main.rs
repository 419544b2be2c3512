//! Bad input from every side: SQL, the port, and an upstream that lies.
#![allow(clippy::unwrap_used, clippy::panic)]

#[path = "../common/mod.rs"]
mod common;

#[path = "../common/certs.rs"]
mod certs;

mod archive;
mod beside;
mod full;
mod liar;
mod network;
mod port;
mod schema;
mod secrets;
mod sql;
mod upstream;
