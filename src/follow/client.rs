//! The HTTP side of a follower: opens a stream and reads its bytes, posts acknowledgements.
//!
//! Out of scope: what the bytes mean (session.rs), when to try again (worker.rs).

use std::io::{self, Read};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use ureq::http::HeaderMap;
use ureq::{Agent, BodyReader};

use super::cursor::PAGE_NO_MAX;
use super::stream::{BUFFER_BYTES, Body, Manners, STALL_MAX, Stream};
use super::url::{Resume, Upstream};
use crate::error::{Context, Error, ErrorKind, Result};
use crate::pos::Pos;
use crate::token::Token;
use crate::transport::{Line, Link, Roots, complaint, is_lasting, read_roots};
use crate::wal::PageSize;

/// The answer's headers may take this long: the upstream may have to begin a snapshot first.
const ANSWER_MAX: Duration = Duration::from_secs(20);
/// An acknowledgement may take this long in all.
const ACK_MAX: Duration = Duration::from_secs(5);
/// As much of an error page as is passed on, in characters.
const REASON_MAX: usize = 200;
/// As much of it as is looked at, in bytes: a token in it must be there whole to be found.
const BODY_MAX: u64 = 8 << 10;

/// What servers of Go, and ours, answer where they have nothing.
const NO_ROUTE: &str = "404 page not found";

/// Who the upstream is, and how to speak to it.
#[derive(Debug, Clone)]
pub struct Client {
    upstream: Upstream,
    follower: String,
    token: Option<Token>,
    roots: Option<Roots>,
}

impl Client {
    /// `follower` identifies this follower to the upstream. `ca` is a PEM file with the roots to
    /// trust instead of the public ones.
    pub fn new(
        upstream: Upstream,
        follower: String,
        token: Option<Token>,
        ca: Option<&PathBuf>,
    ) -> Result<Self> {
        let roots = ca.map(|path| read_roots(path)).transpose()?;
        Ok(Self { upstream, follower, token, roots })
    }

    /// Asks for the stream and waits for the answer's headers.
    pub fn open(&self, resume: Option<&Resume>, link: &Arc<Link>) -> Result<Stream> {
        let url = self.upstream.stream_url(resume, &self.follower);
        let (headers, body) = self.get(&url, link)?;
        let header = |name: &str| text_of(&headers, name);
        let page_size = page_size_in(&headers).ok_or_else(|| {
            Error::peer(
                "the upstream's answer has no valid Litestream-page-size header: is it a \
                 Litestream server?",
            )
        })?;
        let beats = header("Litestream-Features").is_some();
        let starts_over = header("Litestream-Start") == Some("snapshot");
        let manners = Manners { page_size, beats, takes_acks: beats, starts_over };
        Ok(Stream::new(Box::new(body), manners, Some(STALL_MAX)))
    }

    /// Asks for the checksums of all pages and waits for the answer's headers.
    pub fn checksums(&self, link: &Arc<Link>) -> Result<Checksums> {
        let unsupported = || {
            let why = "this upstream cannot tell the checksums of its pages: it is Litestream \
                       itself, or an earlier version of this extension";
            Error::new(ErrorKind::Unsupported, why)
        };
        let (headers, body) = match self.get(&self.upstream.checksums_url(), link) {
            Err(error) if error.to_string().contains(NO_ROUTE) => return Err(unsupported()),
            answer => answer?,
        };
        let number = |name: &str| text_of(&headers, name).and_then(|text| text.parse().ok());
        let pos = text_of(&headers, "Litestream-Pos").and_then(|text| text.parse().ok());
        match (pos, page_size_in(&headers), number("Litestream-Page-Count")) {
            (Some(pos), Some(page_size), Some(page_count)) => {
                let page_count = possible(page_count)?;
                Ok(Checksums { pos, page_size, page_count, body: Box::new(body) })
            }
            _ => Err(unsupported()),
        }
    }

    /// Sends a request and waits for the answer's headers; what is not 200 is an error.
    fn get(&self, url: &str, link: &Arc<Link>) -> Result<(HeaderMap, HttpBody)> {
        link.set_patience(None);
        let mut request = self.agent(link, None).get(url);
        if let Some(token) = &self.token {
            request = request.header("Authorization", token.header());
        }
        let response = request.call().map_err(|error| from_ureq(&error))?;
        let status = response.status().as_u16();
        let (parts, body) = response.into_parts();
        if status != 200 {
            return Err(self.refusal(status, body.into_reader()));
        }
        let body = HttpBody { body: body.into_reader(), link: Arc::clone(link) };
        Ok((parts.headers, body))
    }

    /// What posts acknowledgements, over one connection it keeps.
    pub fn acknowledger(&self, link: &Arc<Link>) -> Acknowledger {
        Acknowledger { agent: self.agent(link, Some(ACK_MAX)), client: self.clone() }
    }

    /// What an answer other than 200 means, without the token: the peer may have sent it back.
    fn refusal(&self, status: u16, body: impl Read) -> Error {
        refusal(status, body, |text| match &self.token {
            Some(token) => token.hide_in(text),
            None => text.to_owned(),
        })
    }

    fn agent(&self, link: &Arc<Link>, total: Option<Duration>) -> Agent {
        let line = Line {
            socket: self.upstream.socket().cloned(),
            roots: self.roots.clone(),
            buffer: Some(BUFFER_BYTES),
            answer_max: Some(ANSWER_MAX),
            total_max: total,
        };
        line.agent(link)
    }
}

/// An upstream's pages after one commit, as checksums.
pub struct Checksums {
    /// Where in its history that is.
    pub pos: Pos,
    /// Bytes of a page.
    pub page_size: PageSize,
    /// How many pages there are.
    pub page_count: u32,
    /// The checksums: see serve/checksums.rs.
    pub body: Box<dyn Body>,
}

/// A number of pages that a database can have.
fn possible(page_count: u32) -> Result<u32> {
    if page_count > PAGE_NO_MAX {
        return Err(Error::peer(format!("the upstream says it has {page_count} pages")));
    }
    Ok(page_count)
}

/// A header's value, if it is visible ASCII.
fn text_of<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a str> {
    headers.get(name).and_then(|value| value.to_str().ok())
}

fn page_size_in(headers: &HeaderMap) -> Option<PageSize> {
    let bytes = text_of(headers, "Litestream-page-size")?.parse().ok()?;
    PageSize::new(bytes).ok()
}

/// Tells the upstream how far this follower is.
pub struct Acknowledger {
    agent: Agent,
    client: Client,
}

impl Acknowledger {
    /// Posts one position and waits for the answer.
    pub fn post(&self, pos: Pos) -> Result<()> {
        let mut request = self.agent.post(self.client.upstream.ack_url(&self.client.follower, pos));
        if let Some(token) = &self.client.token {
            request = request.header("Authorization", token.header());
        }
        let response = request.send_empty().map_err(|error| from_ureq(&error))?;
        let status = response.status().as_u16();
        let mut body = response.into_body();
        if !(200..300).contains(&status) {
            return Err(self.client.refusal(status, body.into_reader()));
        }
        // Read to its end, so that the connection can be used again.
        let mut rest = body.as_reader().take(BODY_MAX);
        io::copy(&mut rest, &mut io::sink()).context(|| "cannot read the answer".into())?;
        Ok(())
    }
}

/// The body of an answer: bytes, no bytes yet, or the end, which ureq's reader does not tell apart.
struct HttpBody {
    body: BodyReader<'static>,
    link: Arc<Link>,
}

impl Body for HttpBody {
    fn read(&mut self, out: &mut [u8], wait: Duration) -> Result<Option<usize>> {
        self.link.set_patience(Some(wait));
        match self.body.read(out) {
            Ok(read) => Ok(Some(read)),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(None),
            Err(error) => Err(from_body(error)),
        }
    }
}

/// What an answer other than 200 means to the user.
fn refusal(status: u16, body: impl Read, clean: impl Fn(&str) -> String) -> Error {
    let mut text = Vec::new();
    // The status says enough if the text cannot be read.
    let _ = body.take(BODY_MAX).read_to_end(&mut text);
    let text = clean(&String::from_utf8_lossy(&text)).replace(|c: char| c.is_control(), " ");
    let text: String = text.trim().chars().take(REASON_MAX).collect();
    let (kind, advice) = match status {
        401 => (
            ErrorKind::Refused,
            "; pass the upstream's token in the option \"token\" or in LITESTREAM_TOKEN",
        ),
        // Its text says what to do.
        400 if text.contains("https://") => (ErrorKind::Refused, ""),
        400 => (
            ErrorKind::Refused,
            "; if it serves several databases, name one's path there in the option \"path\"",
        ),
        403 => (ErrorKind::Refused, ""),
        404 => (
            ErrorKind::Refused,
            "; name the database's path on the upstream in the option \"path\"",
        ),
        503 => (ErrorKind::NoGeneration, ""),
        300..=399 => (ErrorKind::Refused, "; redirects are not followed, use the final URL"),
        _ => (ErrorKind::Peer, ""),
    };
    let colon = if text.is_empty() { "" } else { ": " };
    Error::new(kind, format!("the upstream answered {status}{colon}{text}{advice}"))
}

fn from_ureq(error: &ureq::Error) -> Error {
    let kind = match error {
        // Whoever called litestream_follow is told at once.
        ureq::Error::Io(inner) if is_lasting(inner) => ErrorKind::Refused,
        ureq::Error::Io(_) | ureq::Error::HostNotFound | ureq::Error::ConnectionFailed => {
            ErrorKind::Io
        }
        ureq::Error::Timeout(_) => ErrorKind::Timeout,
        _ => ErrorKind::Peer,
    };
    let text = match error {
        ureq::Error::Io(inner) => complaint(inner).unwrap_or_else(|| inner.to_string()),
        other => other.to_string(),
    };
    Error::new(kind, format!("cannot reach the upstream: {text}"))
}

fn from_body(error: io::Error) -> Error {
    Error::new(ErrorKind::Peer, format!("the connection to the upstream broke: {error}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Pages are counted from 1 in 32 bits: of so many there is no end.
    #[test]
    fn there_are_fewer_pages_than_numbers() {
        assert_eq!(possible(u32::MAX - 1).unwrap(), u32::MAX - 1);
        assert_eq!(possible(u32::MAX).unwrap_err().kind(), ErrorKind::Peer);
    }

    #[test]
    fn refusals_pass_the_reason_on_and_advise() {
        let check = |status: u16, body: &str, kind: ErrorKind, text: &str| {
            let error = refusal(status, body.as_bytes(), str::to_owned);
            assert_eq!(error.kind(), kind);
            assert!(error.to_string().contains(text), "{error}");
        };
        check(401, "", ErrorKind::Refused, "LITESTREAM_TOKEN");
        check(403, "loopback only\n", ErrorKind::Refused, "answered 403: loopback only");
        check(400, "Database name required", ErrorKind::Refused, "option \"path\"");
        let tls = refusal(400, &b"This server speaks HTTPS only: use https://"[..], str::to_owned);
        assert!(tls.to_string().ends_with("use https://"), "{tls}");
        check(404, "Database not found", ErrorKind::Refused, "option \"path\"");
        check(503, "", ErrorKind::NoGeneration, "answered 503");
        check(302, "", ErrorKind::Refused, "redirects");
        check(500, "a\x1b[1mb", ErrorKind::Peer, "500: a [1mb");
        let long = "x".repeat(10_000);
        assert!(refusal(500, long.as_bytes(), str::to_owned).to_string().len() < 300);
    }
}
