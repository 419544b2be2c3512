//! Litestream inside SQLite: live read replicas from one loadable library. Modules in reading
//! order; imports point up this list only.

pub mod error;
pub mod pos;

pub mod info;
pub mod wal;

pub mod fault;
pub mod files;
pub mod header;
pub mod lz4;
pub mod options;
pub mod percent;
pub mod record;
pub mod redact;
pub mod token;
pub mod walindex;

pub mod host;
pub mod registry;
pub mod team;
pub mod transport;

pub mod archive;
pub mod log;
pub mod pages;
pub mod restore;

pub mod capture;
pub mod follow;
pub mod replicate;
pub mod serve;

pub mod databases;

pub mod sql;

#[cfg(any(test, fuzzing))]
#[path = "../fuzz/targets/mod.rs"]
pub mod fuzz;

use std::ffi::{c_char, c_int};

use sqlite_loadable::ext::{sqlite3, sqlite3_api_routines};

/// What `.load ./liblitestream` and `sqlite3_load_extension` call.
///
/// # Safety
/// Only SQLite calls it, with a connection, a place for an error text and its routines.
#[expect(unsafe_code, reason = "the C entry point; everything it does is in host::load")]
#[unsafe(no_mangle)]
pub unsafe extern "C" fn sqlite3_litestream_init(
    db: *mut sqlite3,
    message: *mut *mut c_char,
    routines: *mut sqlite3_api_routines,
) -> c_int {
    host::guard::keep_panics_quiet();
    // SAFETY: the pointers are passed on as they came.
    unsafe { host::load::load(db, message, routines, sql::register) }
}
