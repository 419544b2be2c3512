//! Small HTTP answers of known length, and the dates in them.
//!
//! Error texts end in a newline and are plain text, as the ancestor's are.

use std::time::{SystemTime, UNIX_EPOCH};

/// An answer whose whole body is here.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Reply {
    /// The HTTP status.
    pub(crate) status: u16,
    content_type: &'static str,
    headers: Vec<(&'static str, String)>,
    body: Vec<u8>,
}

impl Reply {
    /// An answer with a body of this type.
    pub(crate) fn new(status: u16, content_type: &'static str, body: impl Into<Vec<u8>>) -> Self {
        Reply { status, content_type, headers: Vec::new(), body: body.into() }
    }

    /// An answer in plain text, one line.
    pub(crate) fn text(status: u16, text: impl AsRef<str>) -> Self {
        let body = format!("{}\n", text.as_ref());
        Reply::new(status, "text/plain; charset=utf-8", body)
            .with("X-Content-Type-Options", "nosniff")
    }

    /// An answer without a body.
    pub(crate) fn empty(status: u16) -> Self {
        Reply::new(status, "", Vec::new())
    }

    /// The same with one more header. `value` must be visible ASCII.
    pub(crate) fn with(mut self, name: &'static str, value: impl Into<String>) -> Self {
        self.headers.push((name, value.into()));
        self
    }

    /// The bytes to send to a client that speaks HTTP/1.`minor`; without the body if it asked for
    /// the head only, and saying whether the connection `close`s.
    pub(crate) fn encode(&self, minor: u8, head_only: bool, close: bool) -> Vec<u8> {
        let mut out = status_line(minor, self.status);
        for (name, value) in &self.headers {
            push_header(&mut out, name, value);
        }
        push_header(&mut out, "Date", &http_date(SystemTime::now()));
        if self.status != 204 {
            push_header(&mut out, "Content-Type", self.content_type);
            push_header(&mut out, "Content-Length", &self.body.len().to_string());
        }
        match (minor, close) {
            (_, true) => push_header(&mut out, "Connection", "close"),
            (0, false) => push_header(&mut out, "Connection", "keep-alive"),
            (_, false) => {}
        }
        out.extend_from_slice(b"\r\n");
        if !head_only {
            out.extend_from_slice(&self.body);
        }
        out
    }
}

/// The first line of an answer.
pub(crate) fn status_line(minor: u8, status: u16) -> Vec<u8> {
    format!("HTTP/1.{minor} {status} {}\r\n", reason(status)).into_bytes()
}

/// One header line.
pub(crate) fn push_header(out: &mut Vec<u8>, name: &str, value: &str) {
    for part in [name, ": ", value, "\r\n"] {
        out.extend_from_slice(part.as_bytes());
    }
}

fn reason(status: u16) -> &'static str {
    match status {
        200 => "OK",
        204 => "No Content",
        400 => "Bad Request",
        401 => "Unauthorized",
        403 => "Forbidden",
        404 => "Not Found",
        405 => "Method Not Allowed",
        408 => "Request Timeout",
        411 => "Length Required",
        413 => "Content Too Large",
        417 => "Expectation Failed",
        431 => "Request Header Fields Too Large",
        503 => "Service Unavailable",
        504 => "Gateway Timeout",
        505 => "HTTP Version Not Supported",
        _ => "Internal Server Error",
    }
}

/// A moment as HTTP writes it: `Sun, 06 Nov 1994 08:49:37 GMT`.
pub(crate) fn http_date(at: SystemTime) -> String {
    // Day 0 was a Thursday.
    const DAYS: [&str; 7] = ["Thu", "Fri", "Sat", "Sun", "Mon", "Tue", "Wed"];
    const MONTHS: [&str; 12] =
        ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"];
    let seconds = at.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
    let (days, of_day) = (seconds / 86_400, seconds % 86_400);
    // Years that begin in March put the leap day last; 146,097 days are 400 of them.
    let shifted = days + 719_468;
    let (era, of_era) = (shifted / 146_097, shifted % 146_097);
    let year = (of_era - of_era / 1_460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year + year / 4 - year / 100);
    let from_march = (5 * of_year + 2) / 153;
    let day = of_year - (153 * from_march + 2) / 5 + 1;
    let month = (from_march + 2) % 12;
    let year = era * 400 + year + u64::from(month < 2);
    let pick = |names: &[&'static str], at: u64| {
        usize::try_from(at).ok().and_then(|at| names.get(at).copied()).unwrap_or_default()
    };
    format!(
        "{}, {day:02} {} {year:04} {:02}:{:02}:{:02} GMT",
        pick(&DAYS, days % 7),
        pick(&MONTHS, month),
        of_day / 3_600,
        of_day / 60 % 60,
        of_day % 60
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn dates_are_right() {
        for (seconds, text) in [
            (0, "Thu, 01 Jan 1970 00:00:00 GMT"),
            (784_111_777, "Sun, 06 Nov 1994 08:49:37 GMT"),
            (951_782_400, "Tue, 29 Feb 2000 00:00:00 GMT"),
            (1_709_251_199, "Thu, 29 Feb 2024 23:59:59 GMT"),
            (1_735_689_600, "Wed, 01 Jan 2025 00:00:00 GMT"),
            (4_107_542_399, "Sun, 28 Feb 2100 23:59:59 GMT"),
            (4_107_542_400, "Mon, 01 Mar 2100 00:00:00 GMT"),
        ] {
            assert_eq!(http_date(UNIX_EPOCH + Duration::from_secs(seconds)), text);
        }
    }

    #[test]
    fn a_head_request_gets_the_length_but_no_body() {
        let reply = Reply::text(404, "404 page not found");
        let whole = String::from_utf8(reply.encode(1, false, false)).unwrap();
        assert!(whole.starts_with("HTTP/1.1 404 Not Found\r\n"), "{whole}");
        assert!(whole.ends_with("\r\n\r\n404 page not found\n"), "{whole}");
        assert!(whole.contains("\r\nContent-Length: 19\r\n"), "{whole}");
        assert!(!whole.contains("Connection"), "{whole}");
        let head = String::from_utf8(reply.encode(0, true, true)).unwrap();
        assert!(head.starts_with("HTTP/1.0 404 "), "{head}");
        assert!(head.contains("Content-Length: 19\r\nConnection: close\r\n\r\n"), "{head}");
        let none = String::from_utf8(Reply::empty(204).encode(1, false, false)).unwrap();
        assert!(!none.contains("Content-"), "{none}");
    }
}
