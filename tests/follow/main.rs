//! Following, end to end: a stream over HTTP on one side, plain SQLite readers on the other.
#![allow(unsafe_code, clippy::unwrap_used, clippy::panic, clippy::cast_possible_truncation)]
#![allow(clippy::undocumented_unsafe_blocks, clippy::multiple_unsafe_ops_per_block)]

mod apply;
mod crash;
#[path = "../common/folder.rs"]
mod folder;
mod golden;
mod hostile;
mod recover;
mod scene;
mod support;
mod upstream;
