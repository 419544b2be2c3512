//! The host layer against real hosts: a SQLite inside this process, and shells and Python beside
//! it.
#![allow(unsafe_code, clippy::unwrap_used, clippy::panic)]
#![allow(clippy::undocumented_unsafe_blocks, clippy::multiple_unsafe_ops_per_block)]

mod files;
#[path = "../common/folder.rs"]
mod folder;
mod functions;
mod loading;
mod locks;
mod sqlite;
