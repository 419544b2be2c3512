//! A panic stops here and becomes an error: it must never unwind into the host's C frames.
//!
//! The standard hook would print to the host's stderr. The C entry point calls
//! [`keep_panics_quiet`], which replaces it (the hook belongs to this library's own copy of std, so
//! the host's is untouched) with one that remembers where the panic happened, for [`guard`] to put
//! into the error.

use std::any::Any;
use std::cell::RefCell;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Once;

use crate::error::{Error, ErrorKind, Result};

thread_local! {
    /// `file:line` of this thread's last panic.
    static PANICKED_AT: RefCell<Option<String>> = const { RefCell::new(None) };
}

/// Runs `body`; a panic inside becomes an [`ErrorKind::Bug`] that says where and why.
pub fn guard<T>(what: &str, body: impl FnOnce() -> Result<T>) -> Result<T> {
    catch_unwind(AssertUnwindSafe(body)).unwrap_or_else(|payload| {
        let place = PANICKED_AT.try_with(RefCell::take).ok().flatten();
        let place = place.map_or_else(String::new, |place| format!(" at {place}"));
        let why = message(payload.as_ref());
        Err(Error::new(
            ErrorKind::Bug,
            format!("{what}: internal panic{place}: {why}; this is a bug, please report it"),
        ))
    })
}

/// Replaces the panic hook, once per process, by one that prints nothing.
pub fn keep_panics_quiet() {
    static HOOK: Once = Once::new();
    HOOK.call_once(|| {
        std::panic::set_hook(Box::new(|info| {
            let place = info.location().map(|at| format!("{}:{}", at.file(), at.line()));
            // The slot is gone only while its thread ends; then nobody is left to ask.
            let _ = PANICKED_AT.try_with(|slot| slot.replace(place));
        }));
    });
}

fn message(payload: &(dyn Any + Send)) -> &str {
    if let Some(text) = payload.downcast_ref::<&str>() {
        text
    } else if let Some(text) = payload.downcast_ref::<String>() {
        text
    } else {
        "no message"
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_panic_becomes_an_error_with_its_message() {
        let error = guard("check", || -> Result<()> { panic!("number {}", 7) }).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Bug);
        assert!(error.to_string().contains("check: internal panic"), "{error}");
        assert!(error.to_string().contains("number 7"), "{error}");
    }

    #[test]
    fn results_pass_through() {
        assert_eq!(guard("check", || Ok(3)).unwrap(), 3);
        let error = guard("check", || -> Result<()> { Err(Error::new(ErrorKind::Busy, "wait")) });
        assert_eq!(error.unwrap_err().to_string(), "wait");
    }
}
