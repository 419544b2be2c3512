//! Scalar functions: from a Rust function over typed arguments to one SQL can call.
//!
//! Nothing of it goes through `sqlite-loadable`: that keeps a box per function and connection for
//! ever, frees text results with the wrong size when they hold a NUL byte, and reads no NULL.

use std::ffi::{CString, c_char, c_int, c_uchar, c_void};

use sqlite_loadable::ext::{sqlite3_context, sqlite3_value};
use sqlite3ext_sys::{
    SQLITE_BLOB, SQLITE_BUSY, SQLITE_FLOAT, SQLITE_INTEGER, SQLITE_NOMEM, SQLITE_NULL, SQLITE_TEXT,
    SQLITE_UTF8,
};

use super::api::{self, Api};
use super::caller::Caller;
use super::direct::require_direct;
use super::guard::guard;
use super::load::Registrar;
use super::stmt::{code, error};
use crate::error::{Error, ErrorKind, Result};

pub use sqlite_loadable::FunctionFlags;

/// The most bytes of an error message handed to SQLite.
const ERROR_BYTES_MAX: usize = 4 << 10;

/// A value for SQL.
#[derive(Clone, Debug, PartialEq)]
pub enum Answer {
    /// NULL
    Null,
    /// TEXT
    Text(String),
    /// INTEGER
    Integer(i64),
    /// REAL
    Real(f64),
}

impl From<&str> for Answer {
    fn from(text: &str) -> Self {
        Answer::Text(text.to_owned())
    }
}

impl From<String> for Answer {
    fn from(text: String) -> Self {
        Answer::Text(text)
    }
}

impl From<i64> for Answer {
    fn from(number: i64) -> Self {
        Answer::Integer(number)
    }
}

impl From<f64> for Answer {
    fn from(number: f64) -> Self {
        Answer::Real(number)
    }
}

impl<T: Into<Answer>> From<Option<T>> for Answer {
    fn from(value: Option<T>) -> Self {
        value.map_or(Answer::Null, Into::into)
    }
}

/// The arguments of one call, counted from 0; messages count from 1.
pub struct Args<'a> {
    api: &'static Api,
    values: &'a [*mut sqlite3_value],
}

impl<'a> Args<'a> {
    /// Values SQLite has passed, for as long as it lets us look at them.
    pub(super) fn new(api: &'static Api, values: &'a [*mut sqlite3_value]) -> Self {
        Args { api, values }
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.values.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.values.is_empty()
    }

    /// The type of argument `index`, in SQL's words; `null` if there is no such argument.
    pub fn type_name(&self, index: usize) -> &'static str {
        match self.kind(index) {
            SQLITE_INTEGER => "integer",
            SQLITE_FLOAT => "real",
            SQLITE_TEXT => "text",
            SQLITE_BLOB => "blob",
            _ => "null",
        }
    }

    /// Text, whole, with any NUL inside it; None if it is NULL or missing. Other types are an
    /// error.
    pub fn text(&self, index: usize) -> Result<Option<&str>> {
        let Some(value) = self.value_of(index, "text", &[SQLITE_TEXT])? else { return Ok(None) };
        // SAFETY: the value is SQLite's, for the length of the call.
        let text = unsafe { (self.api.value_text)(value) };
        // SAFETY: as above; asked after the text, so it counts that text's bytes.
        let length = unsafe { (self.api.value_bytes)(value) };
        if text.is_null() {
            return Err(error(code(SQLITE_NOMEM), "out of memory".to_owned()));
        }
        let length = usize::try_from(length).unwrap_or(0);
        // SAFETY: SQLite keeps `length` bytes there until the value is converted, which nobody
        // does: it is read again only as the text it is.
        let bytes = unsafe { std::slice::from_raw_parts(text, length) };
        std::str::from_utf8(bytes).map(Some).map_err(|_| {
            Error::new(ErrorKind::Usage, format!("argument {} is not valid UTF-8", index + 1))
        })
    }

    /// Text that must be there; `name` is what the message calls it.
    pub fn text_required(&self, index: usize, name: &str) -> Result<&str> {
        self.text(index)?
            .ok_or_else(|| Error::new(ErrorKind::Usage, format!("{name} must be text, not NULL")))
    }

    /// An integer; None if it is NULL or missing. Other types are an error.
    pub fn integer(&self, index: usize) -> Result<Option<i64>> {
        let value = self.value_of(index, "an integer", &[SQLITE_INTEGER])?;
        // SAFETY: the value is SQLite's, for the length of the call.
        Ok(value.map(|value| unsafe { (self.api.value_int64)(value) }))
    }

    /// A number; None if it is NULL or missing. Other types are an error.
    pub fn real(&self, index: usize) -> Result<Option<f64>> {
        let value = self.value_of(index, "a number", &[SQLITE_INTEGER, SQLITE_FLOAT])?;
        // SAFETY: the value is SQLite's, for the length of the call.
        Ok(value.map(|value| unsafe { (self.api.value_double)(value) }))
    }

    fn kind(&self, index: usize) -> u32 {
        let Some(value) = self.values.get(index) else { return SQLITE_NULL };
        // SAFETY: the value is SQLite's, for the length of the call.
        unsafe { (self.api.value_type)(*value) }.cast_unsigned()
    }

    fn value_of(
        &self,
        index: usize,
        wanted: &str,
        kinds: &[u32],
    ) -> Result<Option<*mut sqlite3_value>> {
        let kind = self.kind(index);
        if kind == SQLITE_NULL {
            return Ok(None);
        }
        if !kinds.contains(&kind) {
            let (number, found) = (index + 1, self.type_name(index));
            return Err(Error::new(
                ErrorKind::Usage,
                format!("argument {number} must be {wanted}, not {found}"),
            ));
        }
        Ok(self.values.get(index).copied())
    }
}

/// What stands behind an SQL function.
pub type Body = fn(&Caller, &Args) -> Result<Answer>;

/// Makes `body` callable as `name` with `arguments` arguments (-1: any number). Its errors read
/// `name: what happened`. With `DIRECTONLY` among the flags no schema may call it, see
/// [`super::direct`].
pub fn define(
    db: &Registrar,
    name: &'static str,
    arguments: i32,
    flags: FunctionFlags,
    body: Body,
) -> Result<()> {
    let api = api::api()?;
    let bad_name = |_| Error::new(ErrorKind::Bug, format!("define {name}: bad name"));
    let text = CString::new(name).map_err(bad_name)?;
    let is_direct = flags.contains(FunctionFlags::DIRECTONLY);
    let function = Box::into_raw(Box::new(Function { api, name, body, is_direct })).cast();
    let flags = (flags | FunctionFlags::UTF8).bits();
    let (run, drop) = (Some(run as Run), Some(release as Release));
    // SAFETY: the connection is open, and the name ends in a NUL. SQLite calls `release` for the
    // pointer once: when the function goes, or before it returns with an error.
    let rc = unsafe {
        let define = api.create_function_v2;
        define(db.raw(), text.as_ptr(), arguments, flags, function, run, None, None, drop)
    };
    // Loaded before on this connection, and in use at this moment: what is there stays.
    if rc == 0 || rc == code(SQLITE_BUSY) {
        return Ok(());
    }
    Err(error(rc, format!("define {name}: {}", api::describe(rc))))
}

/// What SQLite keeps of a function, once for each connection.
struct Function {
    api: &'static Api,
    name: &'static str,
    body: Body,
    is_direct: bool,
}

type Run = unsafe extern "C" fn(*mut sqlite3_context, c_int, *mut *mut sqlite3_value);
type Release = unsafe extern "C" fn(*mut c_void);

/// # Safety
/// Only SQLite calls it, for a function that [`define`] made.
unsafe extern "C" fn run(
    context: *mut sqlite3_context,
    count: c_int,
    values: *mut *mut sqlite3_value,
) {
    let Ok(api) = api::api() else { return };
    // SAFETY: SQLite calls us with a live context.
    let function = unsafe { (api.user_data)(context) }.cast::<Function>();
    // SAFETY: it is the pointer that `define` passed, not yet released.
    let Function { api, name, body, is_direct } = unsafe { &*function };
    let values = match usize::try_from(count) {
        Ok(count @ 1..) if !values.is_null() => {
            // SAFETY: there are so many values, for the length of the call.
            unsafe { std::slice::from_raw_parts(values, count) }
        }
        _ => &[],
    };
    call(api, context, values, name, *body, *is_direct);
}

/// # Safety
/// Only SQLite calls it, once, with a pointer of [`define`].
unsafe extern "C" fn release(function: *mut c_void) {
    // SAFETY: it came out of a box of this type.
    drop(unsafe { Box::from_raw(function.cast::<Function>()) });
}

fn call(
    api: &'static Api,
    context: *mut sqlite3_context,
    values: &[*mut sqlite3_value],
    name: &str,
    body: Body,
    is_direct: bool,
) {
    // SAFETY: SQLite calls us with a live context.
    let db = unsafe { (api.context_db_handle)(context) };
    // SAFETY: the connection is busy with the statement that calls us, on this thread, until we
    // return.
    let caller = unsafe { Caller::new(api, db) };
    let answer = guard(name, || {
        if is_direct {
            // SAFETY: as above.
            unsafe { require_direct(api, db, &caller, name) }?;
        }
        body(&caller, &Args::new(api, values))
    });
    // Its nested statement ends before the call does.
    drop(caller);
    // SAFETY: the context is live until we return.
    unsafe { answer_with(api, context, answer.map_err(|error| prefixed(name, error))) };
}

/// Puts the function's name in front, once.
pub(super) fn prefixed(name: &str, error: Error) -> Error {
    let text = error.to_string();
    let named = text.strip_prefix(name).is_some_and(|rest| rest.starts_with(": "));
    if named { error } else { error.context(name) }
}

/// Hands a value or an error to SQLite, which copies it.
///
/// # Safety
/// `context` must be that of the call or column that is being answered.
pub(super) unsafe fn answer_with(api: &Api, context: *mut sqlite3_context, answer: Result<Answer>) {
    match answer {
        // SAFETY: the caller vouches for the context, here and below.
        Ok(Answer::Null) => unsafe { (api.result_null)(context) },
        // SAFETY: as above.
        Ok(Answer::Integer(number)) => unsafe { (api.result_int64)(context, number) },
        // SAFETY: as above.
        Ok(Answer::Real(number)) => unsafe { (api.result_double)(context, number) },
        // SAFETY: as above.
        Ok(Answer::Text(text)) => unsafe { answer_text(api, context, &text) },
        // SAFETY: as above.
        Err(error) => unsafe { answer_error(api, context, &error) },
    }
}

/// # Safety
/// As [`answer_with`].
unsafe fn answer_text(api: &Api, context: *mut sqlite3_context, text: &str) {
    let length = u64::try_from(text.len()).unwrap_or(u64::MAX);
    let place = text.as_ptr().cast::<c_char>();
    let utf8 = c_uchar::try_from(SQLITE_UTF8).unwrap_or(1);
    // SAFETY: SQLITE_TRANSIENT is the address -1, which SQLite compares and never calls.
    let transient =
        unsafe { std::mem::transmute::<isize, Option<unsafe extern "C" fn(*mut c_void)>>(-1) };
    // SAFETY: SQLite copies `length` bytes before it returns (and says "too big" beyond its limit).
    unsafe { (api.result_text64)(context, place, length, transient, utf8) };
}

/// # Safety
/// As [`answer_with`].
unsafe fn answer_error(api: &Api, context: *mut sqlite3_context, error: &Error) {
    let mut text = error.to_string().replace('\0', " ");
    let mut end = text.len().min(ERROR_BYTES_MAX);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    text.truncate(end);
    let length = c_int::try_from(text.len()).unwrap_or(c_int::MAX);
    let place = text.as_ptr().cast::<c_char>();
    // SAFETY: SQLite copies `length` bytes before it returns. It is a plain text, not a format.
    unsafe { (api.result_error)(context, place, length) };
    // SAFETY: the text is set, so this sets only the code.
    unsafe { (api.result_error_code)(context, error.sqlite_code()) };
}
