//! What a server's refusal means, and what to do about it.
//!
//! | kind      | when                                                            |
//! |-----------|-----------------------------------------------------------------|
//! | `Missing` | there is no such object                                         |
//! | `Refused` | keys, permissions, bucket, region or clock are wrong            |
//! | `Io`      | the server is busy, full, restarting or out of reach: try again |
//! | `Peer`    | anything else                                                   |
//!
//! A URL of a request is never shown: its signature is good for some minutes.

use std::io;

use super::xml;
use crate::error::{Error, ErrorKind};
use crate::transport::complaint;

/// As much of a server's own words as is passed on, in characters.
const MESSAGE_CHARS_MAX: usize = 200;

/// A server's answer other than success.
pub struct Refusal<'a> {
    /// HTTP's.
    pub status: u16,
    /// The body, or what of it could be read.
    pub body: &'a str,
    /// The bucket's region, if the server says it.
    pub region: Option<&'a str>,
}

impl Refusal<'_> {
    /// S3's name for it; none if the answer has no body.
    pub fn code(&self) -> String {
        xml::text(self.body, "Code")
    }

    /// As an error, said of `bucket` at `endpoint`.
    pub fn error(&self, bucket: &str, endpoint: &str) -> Error {
        let code = self.code();
        let message = clean(&xml::text(self.body, "Message"));
        let (kind, advice) = self.advice(&code, &message, bucket, endpoint);
        let said = match (code.is_empty(), message.is_empty() || message == code) {
            (true, _) => String::new(),
            (false, true) => format!(" {}", clean(&code)),
            (false, false) => format!(" {}: {message}", clean(&code)),
        };
        Error::new(
            kind,
            format!("{advice} (the server at {endpoint} answered {}{said})", self.status),
        )
    }

    fn advice(
        &self,
        code: &str,
        message: &str,
        bucket: &str,
        endpoint: &str,
    ) -> (ErrorKind, String) {
        use ErrorKind::{Io, Missing, Peer, Refused};
        let expired = message.contains("expired") && !code.contains("Token");
        if let Some(region) = self.other_region(code) {
            let text = format!(
                "bucket {bucket} is in region {region}: pass that in the option \"region\" or in \
                 AWS_REGION"
            );
            return (Refused, text);
        }
        match (code, self.status) {
            ("NoSuchBucket", _) => (
                Refused,
                format!(
                    "there is no bucket {bucket} at {endpoint}: make it, or correct the URL \
                         or the option \"endpoint\""
                ),
            ),
            ("NoSuchKey", _) => (Missing, "it is not there".into()),
            ("RequestTimeTooSkewed", _) => (Refused, CLOCK.into()),
            ("AccessDenied", _) if expired => (Refused, CLOCK.into()),
            ("SignatureDoesNotMatch", _) => (
                Refused,
                "the secret key does not fit the access key: see the option \"secret_access_key\" \
                 or AWS_SECRET_ACCESS_KEY"
                    .into(),
            ),
            ("InvalidAccessKeyId", _) => (
                Refused,
                "the server does not know the access key: see the option \"access_key_id\" or \
                 AWS_ACCESS_KEY_ID"
                    .into(),
            ),
            ("ExpiredToken" | "InvalidToken", _) => (
                Refused,
                "the session token has expired or is wrong: see the option \"session_token\" or \
                 AWS_SESSION_TOKEN"
                    .into(),
            ),
            (_, 401 | 403) => {
                (Refused, format!("the access key is not allowed to do this in bucket {bucket}"))
            }
            (_, 404) => (Missing, "it is not there".into()),
            ("BadDigest" | "InvalidDigest", _) => {
                (Io, "the content was damaged on its way to the server".into())
            }
            ("ConditionalRequestConflict", _) => {
                (Io, "somebody else is writing it at this moment".into())
            }
            (_, 507) => (Io, "the server's disk is full".into()),
            (_, 408 | 409 | 429 | 500 | 502 | 503 | 504) => {
                (Io, "the server is overloaded or out of order".into())
            }
            _ => (Peer, "the server refused the request".into()),
        }
    }

    /// The region to go to, if that is what is wrong.
    fn other_region(&self, code: &str) -> Option<String> {
        const CODES: [&str; 5] = [
            "PermanentRedirect",
            "TemporaryRedirect",
            "AuthorizationHeaderMalformed",
            "AuthorizationQueryParametersError",
            "IllegalLocationConstraintException",
        ];
        // The answer to HEAD has no body, so no code.
        let silent = code.is_empty() && self.status == 400;
        if !CODES.contains(&code) && !(300..400).contains(&self.status) && !silent {
            return None;
        }
        let named = xml::text(self.body, "Region");
        let region = if named.is_empty() { self.region?.to_owned() } else { named };
        Some(clean(&region))
    }
}

const CLOCK: &str = "this machine's clock and the server's differ by more than 15 minutes: set it";

/// A connection that could not be made, or broke. `waited` is the longest pause, in seconds.
pub fn broken(error: &ureq::Error, endpoint: &str, waited: u64) -> Error {
    let text = match error {
        ureq::Error::Io(error) => return stalled(error, endpoint, waited),
        ureq::Error::HostNotFound => "its name cannot be resolved".to_owned(),
        ureq::Error::Timeout(_) => "it takes too long".to_owned(),
        // The words of the others may hold the URL.
        ureq::Error::BadUri(_) => "its URL is not accepted".to_owned(),
        other => other.to_string(),
    };
    unreachable(endpoint, &clean(&text))
}

/// The same for an error of the socket.
pub fn stalled(error: &io::Error, endpoint: &str, waited: u64) -> Error {
    match error.kind() {
        io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => {
            let text = format!("the server at {endpoint} did not answer for {waited} s");
            Error::new(ErrorKind::Io, text)
        }
        io::ErrorKind::ConnectionRefused => unreachable(endpoint, "nobody listens there"),
        _ => {
            let complaint = complaint(error);
            unreachable(endpoint, &complaint.unwrap_or_else(|| clean(&error.to_string())))
        }
    }
}

fn unreachable(endpoint: &str, why: &str) -> Error {
    Error::new(ErrorKind::Io, format!("cannot reach the server at {endpoint}: {why}"))
}

/// As much of a server's own words as an error may hold: nothing if the request is among them,
/// since its signature and its session token are parameters of the URL.
pub fn clean(text: &str) -> String {
    if text.to_ascii_lowercase().contains("x-amz-") {
        return "it repeats the request, which is not shown".to_owned();
    }
    text.chars().filter(|c| !c.is_control()).take(MESSAGE_CHARS_MAX).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refusals_say_what_to_do() {
        let check = |status: u16, code: &str, rest: &str, kind: ErrorKind, part: &str| {
            let body = format!("<Error><Code>{code}</Code>{rest}</Error>");
            let refusal = Refusal { status, body: &body, region: Some("eu-west-9") };
            let error = refusal.error("buck", "http://end");
            assert_eq!(error.kind(), kind, "{error}");
            assert!(error.to_string().contains(part), "{error}");
        };
        let (refused, io) = (ErrorKind::Refused, ErrorKind::Io);
        check(404, "NoSuchBucket", "", refused, "no bucket buck at http://end");
        check(404, "NoSuchKey", "", ErrorKind::Missing, "not there");
        check(403, "AccessDenied", "", refused, "not allowed");
        check(403, "AccessDenied", "<Message>Request has expired</Message>", refused, "clock");
        check(403, "RequestTimeTooSkewed", "", refused, "clock");
        check(403, "SignatureDoesNotMatch", "", refused, "secret_access_key");
        check(403, "InvalidAccessKeyId", "", refused, "AWS_ACCESS_KEY_ID");
        check(400, "ExpiredToken", "", refused, "session_token");
        check(503, "SlowDown", "<Message>Reduce</Message>", io, "answered 503 SlowDown: Reduce");
        check(500, "InternalError", "", io, "out of order");
        check(301, "PermanentRedirect", "", refused, "region eu-west-9");
        let named = "<Region>us-x</Region>";
        check(400, "AuthorizationHeaderMalformed", named, refused, "region us-x");
        check(400, "BadDigest", "", io, "damaged");
        check(418, "Teapot", "", ErrorKind::Peer, "answered 418 Teapot");
        let silent = Refusal { status: 403, body: "", region: None };
        assert!(silent.error("b", "e").to_string().ends_with("(the server at e answered 403)"));
    }
}
