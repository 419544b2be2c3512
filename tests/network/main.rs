//! Bad networks: connections that break anywhere, that hang, that crawl; peers that vanish; an
//! upstream that moves. Readers see whole transactions in order all the while, the replica ends
//! equal to the primary, and no snapshot is sent twice as long as the log holds its position.
#![allow(clippy::unwrap_used, clippy::panic, missing_docs)]

#[path = "../common/mod.rs"]
mod common;

mod clock;
mod cuts;
mod mixed;
mod peers;
mod store;
mod wire;
