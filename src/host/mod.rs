//! The only door to SQLite, and the only place with `unsafe`. Knows connections, files, shared
//! memory and locks; knows no replication words.
//!
//! Rules that hold everywhere in here:
//! * Every call goes through the routines the host handed to our entry point ([`mod@api`]). A
//!   second SQLite in the process would break the host's POSIX locks.
//! * The database and its `-shm` are never opened with `std::fs`: closing any descriptor of a file
//!   drops every POSIX lock the process holds on it. They are reached through `sqlite3_file`
//!   handles of our own connections ([`mod@file`]).
//! * A connection whose raw shared-memory locks are in use runs no SQL, so each role has two: a
//!   [`file::Door`] and a [`conn::Connection`].
//! * No panic and no untrusted format string crosses into C ([`mod@guard`]).
#![allow(unsafe_code)]

pub mod api;
pub mod caller;
pub mod conn;
mod direct;
pub mod file;
pub mod fork;
pub mod function;
pub mod guard;
pub mod load;
pub mod os;
pub mod raw;
pub mod shm;
mod stmt;
pub mod table;

pub use load::Registrar;
