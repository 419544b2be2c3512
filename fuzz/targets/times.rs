//! Times as SQL may give them. A module of `sql`.
#![allow(clippy::unwrap_used, clippy::panic, clippy::cast_possible_truncation)]

use std::time::UNIX_EPOCH;

use super::time;
use crate::host::function::Answer;

/// What is read is written, to the millisecond, as the same.
pub(crate) fn target(data: &[u8]) {
    let text = String::from_utf8_lossy(data);
    let Some(at) = time::parse(&text) else { return };
    let since = at.duration_since(UNIX_EPOCH).expect("a time before 1970 was taken");
    // Five digits are no year.
    if since.as_secs() < 253_402_300_800 {
        let Answer::Text(shown) = time::text(at) else { panic!("a time is no text") };
        let again = time::parse(&shown).unwrap_or_else(|| panic!("{shown} is not read"));
        let again = again.duration_since(UNIX_EPOCH).unwrap();
        assert_eq!(again.as_millis(), since.as_millis(), "{text} became {shown}");
    }
}
