//! From the C entry point to the functions and tables: what happens when a host loads the library.

use std::ffi::{CString, c_char, c_int};

use sqlite_loadable::ext::{sqlite3, sqlite3_api_routines};

use super::api;
use super::guard::guard;
use super::os;
use crate::error::{Error, ErrorKind, Result};

/// `SQLITE_OK_LOAD_PERMANENTLY`: the host never unloads us, so our threads cannot lose their code.
const OK_LOAD_PERMANENTLY: c_int = 256;

/// A connection that is being given our functions and tables.
pub struct Registrar {
    db: *mut sqlite3,
}

impl Registrar {
    pub(super) fn raw(&self) -> *mut sqlite3 {
        self.db
    }
}

/// The body of the C entry point: takes the host's routines and registers on `db` whatever
/// `register` defines. Returns the code for the host; on failure the reason is in `*message`, in
/// the host's memory.
///
/// # Safety
/// The three pointers must be those the host passed to the entry point.
pub unsafe fn load(
    db: *mut sqlite3,
    message: *mut *mut c_char,
    routines: *mut sqlite3_api_routines,
    register: fn(&Registrar) -> Result<()>,
) -> c_int {
    let loaded = guard("load", || {
        if db.is_null() {
            return Err(Error::new(ErrorKind::Usage, "the host passed no connection"));
        }
        if let Some(other) = os::other_copy() {
            return Err(Error::new(
                ErrorKind::Unsupported,
                format!(
                    "another copy of this extension, {other}, is loaded in this process; two \
                     would not know of each other's work and spoil it: load that one on every \
                     connection, or restart the process"
                ),
            ));
        }
        // SAFETY: the caller vouches for the pointer.
        unsafe { api::install(routines) }?;
        let registered = register(&Registrar { db });
        if registered.is_err() {
            // The host unloads what failed to load, but some functions may point into us already.
            os::pin_library();
        }
        registered
    });
    match loaded {
        Ok(()) => OK_LOAD_PERMANENTLY,
        Err(error) => {
            let text = format!("litestream: {error}");
            // SAFETY: the caller vouches for both pointers.
            unsafe { tell(message, routines, &text) };
            match error.sqlite_code() {
                0 | OK_LOAD_PERMANENTLY => 1,
                code => code,
            }
        }
    }
}

/// Stores `text` where the host looks for it. Uses the host's own allocator, and not [`api::api`]:
/// the failure may be that there is none, or that it is another SQLite's.
///
/// # Safety
/// `message` and `routines` must be NULL or what the host passed.
unsafe fn tell(message: *mut *mut c_char, routines: *const sqlite3_api_routines, text: &str) {
    if message.is_null() || routines.is_null() {
        return;
    }
    let Ok(text) = CString::new(text.replace('\0', " ")) else { return };
    // SAFETY: one of the oldest fields, present in every SQLite 3 that loads extensions.
    let Some(mprintf) = (unsafe { (*routines).mprintf }) else { return };
    // SAFETY: the format takes exactly one string, which is NUL-terminated and outlives the call.
    let copy = unsafe { mprintf(c"%s".as_ptr(), text.as_ptr()) };
    // SAFETY: the host gave us the place.
    unsafe { *message = copy };
}
