//! The HTTP side of a follower: opens a stream, reads it in bounded pieces, posts acknowledgements.
//!
//! A [`Stream`] tells apart three things ureq's reader does not: bytes, no bytes yet, and the end.
//! Out of scope: what the bytes mean (session.rs), when to try again (worker.rs).

use std::io::{self, Read};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use ureq::config::Config;
use ureq::tls::{RootCerts, TlsConfig};
use ureq::unversioned::resolver::DefaultResolver;
use ureq::unversioned::transport::{Connector, RustlsConnector};
use ureq::{Agent, BodyReader};

use super::url::{Resume, Upstream};
use crate::error::{Context, Error, ErrorKind, Result};
use crate::pos::Pos;
use crate::transport::{CONNECT_MAX, Dialer, Link, NoResolver, Roots, read_roots};
use crate::wal::PageSize;

/// Bytes of stream held at once. A few hundred small records; a large record passes through.
const BUFFER_BYTES: usize = 256 << 10;
/// A record, once begun, may pause this long.
const STALL_MAX: Duration = Duration::from_secs(10);
/// The answer's headers may take this long: the upstream may have to begin a snapshot first.
const ANSWER_MAX: Duration = Duration::from_secs(30);
/// An acknowledgement may take this long in all.
const ACK_MAX: Duration = Duration::from_secs(5);
/// As much of an error page as is passed on, in bytes.
const REASON_MAX: u64 = 200;

/// Who the upstream is, and how to speak to it.
#[derive(Debug, Clone)]
pub struct Client {
    upstream: Upstream,
    follower: String,
    token: Option<String>,
    roots: Option<Roots>,
}

impl Client {
    /// `follower` identifies this follower to the upstream. `ca` is a PEM file with the roots to
    /// trust instead of the public ones.
    pub fn new(
        upstream: Upstream,
        follower: String,
        token: Option<String>,
        ca: Option<&PathBuf>,
    ) -> Result<Self> {
        let token_is_fine = token.as_ref().is_none_or(|t| t.bytes().all(|b| b.is_ascii_graphic()));
        if !token_is_fine {
            return Err(Error::usage(
                "option \"token\": expected visible ASCII characters without spaces",
            ));
        }
        let roots = ca.map(|path| read_roots(path)).transpose()?;
        Ok(Self { upstream, follower, token, roots })
    }

    /// Asks for the stream and waits for the answer's headers.
    pub fn open(&self, resume: Option<&Resume>, link: &Arc<Link>) -> Result<Stream> {
        link.set_patience(None);
        let agent = self.agent(link, None);
        let mut request = agent.get(self.upstream.stream_url(resume, &self.follower));
        if let Some(token) = &self.token {
            request = request.header("Authorization", format!("Bearer {token}"));
        }
        let response = request.call().map_err(|error| from_ureq(&error))?;
        let status = response.status().as_u16();
        let header = |name: &str| {
            response.headers().get(name).and_then(|value| value.to_str().ok()).map(str::to_owned)
        };
        let page_size = header("Litestream-page-size");
        let features = header("Litestream-Features");
        let starts_over = header("Litestream-Start").is_some_and(|start| start == "snapshot");
        let body = response.into_body();
        if status != 200 {
            return Err(refusal(status, body.into_reader()));
        }
        let page_size = page_size
            .and_then(|text| text.parse().ok())
            .and_then(|bytes| PageSize::new(bytes).ok())
            .ok_or_else(|| {
                Error::peer(
                    "the upstream's answer has no valid Litestream-page-size header: is it a \
                     Litestream server?",
                )
            })?;
        Ok(Stream {
            body: body.into_reader(),
            link: Arc::clone(link),
            page_size,
            features: features.is_some(),
            starts_over,
            buffer: vec![0; BUFFER_BYTES].into_boxed_slice(),
            start: 0,
            end: 0,
        })
    }

    /// What posts acknowledgements, over one connection it keeps.
    pub fn acknowledger(&self, link: &Arc<Link>) -> Acknowledger {
        Acknowledger { agent: self.agent(link, Some(ACK_MAX)), client: self.clone() }
    }

    fn agent(&self, link: &Arc<Link>, total: Option<Duration>) -> Agent {
        let mut tls = TlsConfig::builder();
        if let Some(roots) = &self.roots {
            tls = tls.root_certs(RootCerts::Specific(Arc::clone(roots)));
        }
        let config: Config = Agent::config_builder()
            .http_status_as_error(false)
            .max_redirects(0)
            .max_redirects_will_error(false)
            .proxy(None)
            .user_agent(concat!("litestream-extension/", env!("CARGO_PKG_VERSION")))
            .input_buffer_size(BUFFER_BYTES)
            .max_idle_connections(1)
            .timeout_resolve(Some(CONNECT_MAX))
            .timeout_connect(Some(CONNECT_MAX))
            .timeout_recv_response(Some(ANSWER_MAX))
            .timeout_global(total)
            .tls_config(tls.build())
            .build();
        let socket = self.upstream.socket().cloned();
        let local = socket.is_some();
        let connector = Dialer { link: Arc::clone(link), socket }.chain(RustlsConnector::default());
        if local {
            Agent::with_parts(config, connector, NoResolver)
        } else {
            Agent::with_parts(config, connector, DefaultResolver::default())
        }
    }
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
            request = request.header("Authorization", format!("Bearer {token}"));
        }
        let response = request.send_empty().map_err(|error| from_ureq(&error))?;
        let status = response.status().as_u16();
        let mut body = response.into_body();
        if !(200..300).contains(&status) {
            return Err(refusal(status, body.into_reader()));
        }
        // Read to its end, so that the connection can be used again.
        let mut rest = body.as_reader().take(REASON_MAX);
        io::copy(&mut rest, &mut io::sink()).context(|| "cannot read the answer".into())?;
        Ok(())
    }
}

/// Whether bytes of the stream are at hand.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Filled {
    /// More than before.
    More,
    /// None came in the time given, or the buffer is full.
    Dry,
    /// None will come any more.
    End,
}

/// An open stream of records.
pub struct Stream {
    body: BodyReader<'static>,
    link: Arc<Link>,
    page_size: PageSize,
    features: bool,
    starts_over: bool,
    buffer: Box<[u8]>,
    start: usize,
    end: usize,
}

impl Stream {
    /// The page size of the upstream's database.
    pub fn page_size(&self) -> PageSize {
        self.page_size
    }

    /// Whether the upstream speaks more than the ancestor's protocol: it sends heartbeats then.
    pub fn has_features(&self) -> bool {
        self.features
    }

    /// Whether the upstream said that it does not continue where it was asked to, but sends a
    /// snapshot: what this follower holds may be of a history that is no more.
    pub fn starts_over(&self) -> bool {
        self.starts_over
    }

    /// What has arrived and was not read yet, or as much of it as the buffer holds.
    pub fn buffered(&self) -> &[u8] {
        &self.buffer[self.start..self.end]
    }

    /// Whether the buffer cannot hold more before something is read.
    pub fn is_full(&self) -> bool {
        self.end - self.start == self.buffer.len()
    }

    /// Waits at most `wait` for more bytes to be buffered.
    pub fn fill(&mut self, wait: Duration) -> Result<Filled> {
        if self.start > 0 {
            self.buffer.copy_within(self.start..self.end, 0);
            self.end -= self.start;
            self.start = 0;
        }
        if self.end == self.buffer.len() {
            return Ok(Filled::Dry);
        }
        self.link.set_patience(Some(wait));
        match self.body.read(&mut self.buffer[self.end..]) {
            Ok(0) => Ok(Filled::End),
            Ok(n) => {
                self.end += n;
                Ok(Filled::More)
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(Filled::Dry),
            Err(error) => Err(from_body(error)),
        }
    }
}

/// Reads what has been begun: waits for bytes as long as the peer may pause within a record.
impl Read for Stream {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        if self.start == self.end {
            let deadline = Instant::now() + STALL_MAX;
            loop {
                let left = deadline.saturating_duration_since(Instant::now());
                match self.fill(left)? {
                    Filled::More => break,
                    Filled::End => return Ok(0),
                    Filled::Dry if left.is_zero() => {
                        let text = "the upstream stopped in the middle of a record";
                        return Err(Error::new(ErrorKind::Timeout, text).into());
                    }
                    Filled::Dry => {}
                }
            }
        }
        let amount = out.len().min(self.end - self.start);
        out[..amount].copy_from_slice(&self.buffer[self.start..self.start + amount]);
        self.start += amount;
        Ok(amount)
    }
}

/// What an answer other than 200 means to the user.
fn refusal(status: u16, body: impl Read) -> Error {
    let mut text = Vec::new();
    // The status says enough if the text cannot be read.
    let _ = body.take(REASON_MAX).read_to_end(&mut text);
    let text = String::from_utf8_lossy(&text).replace(|c: char| c.is_control(), " ");
    let text = text.trim();
    let (kind, advice) = match status {
        401 => (
            ErrorKind::Refused,
            "; pass the upstream's token in the option \"token\" or in LITESTREAM_TOKEN",
        ),
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
        ureq::Error::Io(_) | ureq::Error::HostNotFound | ureq::Error::ConnectionFailed => {
            ErrorKind::Io
        }
        ureq::Error::Timeout(_) => ErrorKind::Timeout,
        _ => ErrorKind::Peer,
    };
    let text = match error {
        ureq::Error::Io(inner) => inner.to_string(),
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

    #[test]
    fn refusals_pass_the_reason_on_and_advise() {
        let check = |status: u16, body: &str, kind: ErrorKind, text: &str| {
            let error = refusal(status, body.as_bytes());
            assert_eq!(error.kind(), kind);
            assert!(error.to_string().contains(text), "{error}");
        };
        check(401, "", ErrorKind::Refused, "LITESTREAM_TOKEN");
        check(403, "loopback only\n", ErrorKind::Refused, "answered 403: loopback only");
        check(400, "Database name required", ErrorKind::Refused, "option \"path\"");
        check(404, "Database not found", ErrorKind::Refused, "option \"path\"");
        check(503, "", ErrorKind::NoGeneration, "answered 503");
        check(302, "", ErrorKind::Refused, "redirects");
        check(500, "a\x1b[1mb", ErrorKind::Peer, "500: a [1mb");
        let long = "x".repeat(10_000);
        assert!(refusal(500, long.as_bytes()).to_string().len() < 300);
    }
}
