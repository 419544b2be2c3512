//! Times as text: ISO 8601, UTC, milliseconds.

use std::time::SystemTime;

use crate::host::function::Answer;

/// `2026-11-22T13:07:55.123Z`.
pub(super) fn text(time: SystemTime) -> Answer {
    Answer::Text(humantime::format_rfc3339_millis(time).to_string())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn milliseconds_and_zulu() {
        let time = SystemTime::UNIX_EPOCH + Duration::from_millis(1_790_000_000_123);
        assert_eq!(text(time), Answer::from("2026-09-21T14:13:20.123Z"));
    }
}
