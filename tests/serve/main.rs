//! The server against real sockets: what it sends is decoded by a decoder of the tests' own, and
//! strangers misbehave.
#![allow(clippy::unwrap_used, clippy::panic)]

#[path = "../common/certs.rs"]
mod certs;

mod access;
mod answers;
mod client;
mod fixture;
mod status;
mod strangers;
mod streams;
mod tls;
