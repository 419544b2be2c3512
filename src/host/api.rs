//! The host's SQLite: the routines it handed to our entry point, checked once.
//!
//! `sqlite3_api_routines` carries no size and grows with each release, so a field is read only
//! after the host's version says it exists, and used only if it is not NULL (a host may be built
//! without a feature). [`install`] copies what this crate uses into [`Api`], whose fields are plain
//! functions: past that point nothing can be missing. It happens once per process; a second,
//! different SQLite that loads the same library is refused, because two SQLites that share a file
//! break each other's locks.

use std::ffi::{CStr, CString, c_char, c_int, c_uchar, c_void};
use std::ptr;
use std::sync::atomic::{AtomicPtr, Ordering};
use std::sync::{Mutex, OnceLock};

use sqlite_loadable::ext::{
    sqlite3, sqlite3_api_routines, sqlite3_context, sqlite3_stmt, sqlite3_value,
};
use sqlite3ext_sys::sqlite3_mutex;

use crate::error::{Error, ErrorKind, Result, lock};

/// The oldest host, as `sqlite3_libversion_number` counts. Every field [`Api`] copies is older.
pub const OLDEST_HOST: i32 = 3_035_000;

/// The table the host gave us, for telling a second SQLite from the first.
static HOST: AtomicPtr<sqlite3_api_routines> = AtomicPtr::new(ptr::null_mut());
/// What we took out of it.
static ROUTINES: OnceLock<Api> = OnceLock::new();

type Destructor = Option<unsafe extern "C" fn(*mut c_void)>;

macro_rules! routines {
    ($($name:ident: $type:ty,)*) => {
        /// The host's functions, by their SQLite names. Calling one is `unsafe` as it is in C.
        pub struct Api { $(pub(super) $name: $type,)* }

        impl Api {
            /// # Safety
            /// `raw` must point to the routines of a SQLite not older than [`OLDEST_HOST`].
            unsafe fn copy_from(raw: *const sqlite3_api_routines) -> Result<Api> {
                Ok(Api { $($name: {
                    // SAFETY: the caller vouches for a table that is long enough for this field.
                    let routine: Option<$type> = unsafe { (*raw).$name };
                    routine.ok_or_else(|| missing(stringify!($name)))?
                },)* })
            }
        }
    };
}

routines! {
    busy_timeout: unsafe extern "C" fn(*mut sqlite3, c_int) -> c_int,
    close_v2: unsafe extern "C" fn(*mut sqlite3) -> c_int,
    column_bytes: unsafe extern "C" fn(*mut sqlite3_stmt, c_int) -> c_int,
    column_int64: unsafe extern "C" fn(*mut sqlite3_stmt, c_int) -> i64,
    column_text: unsafe extern "C" fn(*mut sqlite3_stmt, c_int) -> *const c_uchar,
    column_type: unsafe extern "C" fn(*mut sqlite3_stmt, c_int) -> c_int,
    context_db_handle: unsafe extern "C" fn(*mut sqlite3_context) -> *mut sqlite3,
    create_function_v2: unsafe extern "C" fn(
        *mut sqlite3,
        *const c_char,
        c_int,
        c_int,
        *mut c_void,
        Option<unsafe extern "C" fn(*mut sqlite3_context, c_int, *mut *mut sqlite3_value)>,
        Option<unsafe extern "C" fn(*mut sqlite3_context, c_int, *mut *mut sqlite3_value)>,
        Option<unsafe extern "C" fn(*mut sqlite3_context)>,
        Destructor,
    ) -> c_int,
    db_config: unsafe extern "C" fn(*mut sqlite3, c_int, ...) -> c_int,
    db_filename: unsafe extern "C" fn(*mut sqlite3, *const c_char) -> *const c_char,
    db_mutex: unsafe extern "C" fn(*mut sqlite3) -> *mut sqlite3_mutex,
    db_readonly: unsafe extern "C" fn(*mut sqlite3, *const c_char) -> c_int,
    errmsg: unsafe extern "C" fn(*mut sqlite3) -> *const c_char,
    errstr: unsafe extern "C" fn(c_int) -> *const c_char,
    extended_result_codes: unsafe extern "C" fn(*mut sqlite3, c_int) -> c_int,
    file_control: unsafe extern "C" fn(*mut sqlite3, *const c_char, c_int, *mut c_void) -> c_int,
    finalize: unsafe extern "C" fn(*mut sqlite3_stmt) -> c_int,
    get_autocommit: unsafe extern "C" fn(*mut sqlite3) -> c_int,
    interruptx: unsafe extern "C" fn(*mut sqlite3),
    libversion: unsafe extern "C" fn() -> *const c_char,
    libversion_number: unsafe extern "C" fn() -> c_int,
    log: unsafe extern "C" fn(c_int, *const c_char, ...),
    next_stmt: unsafe extern "C" fn(*mut sqlite3, *mut sqlite3_stmt) -> *mut sqlite3_stmt,
    mutex_alloc: unsafe extern "C" fn(c_int) -> *mut sqlite3_mutex,
    mutex_enter: unsafe extern "C" fn(*mut sqlite3_mutex),
    mutex_leave: unsafe extern "C" fn(*mut sqlite3_mutex),
    open_v2: unsafe extern "C" fn(*const c_char, *mut *mut sqlite3, c_int, *const c_char) -> c_int,
    prepare_v2: unsafe extern "C" fn(
        *mut sqlite3,
        *const c_char,
        c_int,
        *mut *mut sqlite3_stmt,
        *mut *const c_char,
    ) -> c_int,
    randomness: unsafe extern "C" fn(c_int, *mut c_void),
    reset: unsafe extern "C" fn(*mut sqlite3_stmt) -> c_int,
    result_double: unsafe extern "C" fn(*mut sqlite3_context, f64),
    result_error: unsafe extern "C" fn(*mut sqlite3_context, *const c_char, c_int),
    result_error_code: unsafe extern "C" fn(*mut sqlite3_context, c_int),
    result_int64: unsafe extern "C" fn(*mut sqlite3_context, i64),
    result_null: unsafe extern "C" fn(*mut sqlite3_context),
    result_text64: unsafe extern "C" fn(
        *mut sqlite3_context,
        *const c_char,
        u64,
        Destructor,
        c_uchar,
    ),
    sql: unsafe extern "C" fn(*mut sqlite3_stmt) -> *const c_char,
    step: unsafe extern "C" fn(*mut sqlite3_stmt) -> c_int,
    stmt_busy: unsafe extern "C" fn(*mut sqlite3_stmt) -> c_int,
    user_data: unsafe extern "C" fn(*mut sqlite3_context) -> *mut c_void,
    value_bytes: unsafe extern "C" fn(*mut sqlite3_value) -> c_int,
    value_double: unsafe extern "C" fn(*mut sqlite3_value) -> f64,
    value_int64: unsafe extern "C" fn(*mut sqlite3_value) -> i64,
    value_text: unsafe extern "C" fn(*mut sqlite3_value) -> *const c_uchar,
    value_type: unsafe extern "C" fn(*mut sqlite3_value) -> c_int,
    vtab_config: unsafe extern "C" fn(*mut sqlite3, c_int, ...) -> c_int,
    wal_checkpoint_v2: unsafe extern "C" fn(
        *mut sqlite3,
        *const c_char,
        c_int,
        *mut c_int,
        *mut c_int,
    ) -> c_int,
    xthreadsafe: unsafe extern "C" fn() -> c_int,
}

fn missing(name: &str) -> Error {
    Error::new(
        ErrorKind::Unsupported,
        format!("this SQLite was built without sqlite3_{name}, which the extension needs"),
    )
}

/// Takes the host's routines. Calling it again with the same table does nothing; a different table
/// is an error, since it means two SQLite libraries in one process.
///
/// # Safety
/// `raw` must be NULL or the routines pointer a SQLite passes to an extension's entry point.
pub unsafe fn install(raw: *mut sqlite3_api_routines) -> Result<()> {
    static INSTALLING: Mutex<()> = Mutex::new(());
    // Before the lock, which a thread of this process's parent may hold for ever.
    if !raw.is_null() && HOST.load(Ordering::Acquire) == raw {
        return Ok(());
    }
    let _one_at_a_time = lock(&INSTALLING);

    if raw.is_null() {
        return Err(Error::new(ErrorKind::Unsupported, "the host passed no SQLite routines"));
    }
    let host = HOST.load(Ordering::Acquire);
    if host == raw {
        return Ok(());
    }
    if !host.is_null() {
        return Err(Error::new(
            ErrorKind::Unsupported,
            "another SQLite library in this process already uses this extension; two SQLite \
             libraries in one process break each other's file locks, so it serves only the first",
        ));
    }

    // SAFETY: libversion_number is one of the oldest fields; every SQLite 3 that loads extensions
    // has it.
    let version =
        unsafe { (*raw).libversion_number }.ok_or_else(|| missing("libversion_number"))?;
    // SAFETY: the function takes nothing and returns a constant.
    let version = unsafe { version() };
    if version < OLDEST_HOST {
        return Err(Error::new(
            ErrorKind::Unsupported,
            format!("the host is SQLite {}; 3.35.0 or newer is needed", version_text(version)),
        ));
    }
    // SAFETY: the version was checked just above.
    let routines = unsafe { Api::copy_from(raw) }?;
    // SAFETY: called under INSTALLING and before anything uses the crate's own pointer, once.
    unsafe { sqlite_loadable::ext::faux_sqlite_extension_init2(raw) };
    let _ = ROUTINES.set(routines); // a failed earlier attempt never gets this far
    HOST.store(raw, Ordering::Release);
    Ok(())
}

/// The host's routines, or an error if no host loaded this library.
pub fn api() -> Result<&'static Api> {
    ROUTINES.get().ok_or_else(|| {
        Error::new(ErrorKind::Unsupported, "no SQLite has loaded this extension in this process")
    })
}

/// The host's version as a number, such as 3040001; 0 before [`install`].
pub fn libversion_number() -> i32 {
    // SAFETY: the function takes nothing and returns a constant.
    api().map_or(0, |api| unsafe { (api.libversion_number)() })
}

/// The host's version as text, such as `3.40.1`; empty before [`install`].
pub fn libversion() -> String {
    let Ok(api) = api() else { return String::new() };
    // SAFETY: the function takes nothing and returns a static string.
    let text = unsafe { (api.libversion)() };
    // SAFETY: see above; the string is NUL-terminated and lives for ever.
    unsafe { text_at(text) }.unwrap_or_default()
}

/// Whether the host's SQLite was built with mutexes. Without them no thread of ours may call it.
/// (A host that switched them off at run time is found when a connection is opened.)
pub fn threadsafe() -> bool {
    // SAFETY: the function takes nothing and returns a constant.
    api().is_ok_and(|api| unsafe { (api.xthreadsafe)() } != 0)
}

/// The error of every call that would need a second thread in a host without mutexes.
pub fn require_threadsafe() -> Result<()> {
    if threadsafe() { Ok(()) } else { Err(single_threaded()) }
}

pub(super) fn single_threaded() -> Error {
    Error::new(
        ErrorKind::Unsupported,
        "the host's SQLite runs without mutexes (SQLITE_THREADSAFE=0 or \
         SQLITE_CONFIG_SINGLETHREAD), so no background thread can use it",
    )
}

/// Writes a line to the host's error log (`sqlite3_log`). `code` is an SQLite result code.
pub fn log(code: i32, message: &str) {
    let (Ok(api), Ok(message)) = (api(), CString::new(message.replace('\0', " "))) else { return };
    // SAFETY: the format takes exactly one string, which is NUL-terminated and outlives the call.
    unsafe { (api.log)(code, c"%s".as_ptr(), message.as_ptr()) };
}

/// Fills `bytes` from the host's random generator; leaves them alone before [`install`].
pub fn randomness(bytes: &mut [u8]) {
    let Ok(api) = api() else { return };
    for chunk in bytes.chunks_mut(1 << 20) {
        let Ok(length) = c_int::try_from(chunk.len()) else { return };
        // SAFETY: the pointer is good for `length` bytes.
        unsafe { (api.randomness)(length, chunk.as_mut_ptr().cast()) };
    }
}

/// A random number from the host's generator.
pub fn random() -> u32 {
    let mut bytes = [0; 4];
    randomness(&mut bytes);
    u32::from_ne_bytes(bytes)
}

/// SQLite's own words for a result code.
pub(super) fn describe(code: i32) -> String {
    let Ok(api) = api() else { return format!("code {code}") };
    // SAFETY: any number is allowed; the answer is a static string.
    let text = unsafe { (api.errstr)(code) };
    // SAFETY: see above.
    unsafe { text_at(text) }.unwrap_or_else(|| format!("code {code}"))
}

/// Copies a C string; None for NULL. Bytes that are not UTF-8 become replacement characters.
///
/// # Safety
/// `text` must be NULL or a NUL-terminated string that nobody changes meanwhile.
pub(super) unsafe fn text_at(text: *const c_char) -> Option<String> {
    if text.is_null() {
        return None;
    }
    // SAFETY: the caller vouches for the string.
    Some(unsafe { CStr::from_ptr(text) }.to_string_lossy().into_owned())
}

fn version_text(number: i32) -> String {
    format!("{}.{}.{}", number / 1_000_000, number / 1000 % 1000, number % 1000)
}
