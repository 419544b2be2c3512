//! Times as text: ISO 8601, UTC, milliseconds.

use std::time::SystemTime;

use jiff::civil::{DateTime, ISOWeekDate};
use jiff::fmt::temporal::Pieces;
use jiff::{SignedDuration, Timestamp};

use crate::host::function::Answer;
use crate::info::shown_time;

/// `2026-11-22T13:07:55.123Z`.
pub(super) fn text(time: SystemTime) -> Answer {
    Answer::Text(shown_time(time))
}

/// An ISO 8601 date, or date and time, with an offset from UTC or in UTC. A date alone is its
/// first moment. `None` if it is none, or before 1970.
pub(super) fn parse(text: &str) -> Option<SystemTime> {
    let text = text.trim();
    let epoch = DateTime::constant(1970, 1, 1, 0, 0, 0, 0);
    let week = || text.parse::<ISOWeekDate>().ok().map(|week| week.date().at(0, 0, 0, 0));
    let since: SignedDuration = match text.parse::<Timestamp>() {
        Ok(stamp) => stamp.as_duration(),
        Err(_) => match text.parse::<DateTime>().ok().or_else(week) {
            Some(time) => time.duration_since(epoch),
            None => late(text)?.duration_since(epoch),
        },
    };
    SystemTime::UNIX_EPOCH.checked_add(since.try_into().ok()?)
}

/// The last day there is has no time stamp in every zone: of that, only UTC.
fn late(text: &str) -> Option<DateTime> {
    let pieces = Pieces::parse(text).ok()?;
    let is_utc = pieces.to_numeric_offset().is_some_and(jiff::tz::Offset::is_zero);
    let last = pieces.date().year() == 9999;
    (is_utc && last).then_some(pieces.date().to_datetime(pieces.time()?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn times_as_people_write_them() {
        let check = |text: &str, expected: &str| {
            let found = parse(text).map(|time| humantime::format_rfc3339_micros(time).to_string());
            assert_eq!(found.as_deref(), Some(expected), "{text}");
        };
        let ten = "2026-11-22T10:00:00.000000Z";
        for text in [
            "2026-11-22T10:00:00Z",
            "2026-11-22T10:00:00z",
            " 2026-11-22 10:00:00 ",
            "2026-11-22T10:00:00",
            "2026-11-22T10:00",
            "2026-11-22 10:00",
            "2026-11-22T10:00Z",
            "2026-11-22T12:00:00+02:00",
            "2026-11-22T12:00:00+0200",
            "2026-11-22T12:00:00+02",
            "2026-11-22 04:30:00-05:30",
            "20261122T100000Z",
            "20261122T120000+0200",
            "2026-11-22T11:00:00+01:00[Europe/Berlin]",
            "2026-11-22T10:00:00.000Z",
            "2026-11-22T10:00:00,000Z",
        ] {
            check(text, ten);
        }
        check("2026-11-22T10:00:00.123456789Z", "2026-11-22T10:00:00.123456Z");
        check("2026-11-22 10:00:00.5", "2026-11-22T10:00:00.500000Z");
        check("2026-11-22", "2026-11-22T00:00:00.000000Z");
        check("20261122", "2026-11-22T00:00:00.000000Z");
        check("2026-W47-7", "2026-11-22T00:00:00.000000Z");
        for text in ["9999-12-31T23:59:59Z", "9999-12-31 23:59:59", "9999-12-31T23:59:59+00:00"] {
            check(text, "9999-12-31T23:59:59.000000Z");
        }
        for text in ["", "now", "10:00:00", "2026-13-01", "2026-11-22T25:00", "1969-12-31", "1.5"] {
            assert_eq!(parse(text), None, "{text}");
        }
    }

    #[test]
    fn milliseconds_and_zulu() {
        let time = SystemTime::UNIX_EPOCH + Duration::from_millis(1_790_000_000_123);
        assert_eq!(text(time), Answer::from("2026-09-21T14:13:20.123Z"));
    }
}
