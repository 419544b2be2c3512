//! Requests to one server, on connections that are kept, each with a [`Link`] of its own, so that
//! [`Http::close`] ends every wait at once.

use std::io::{self, Read};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, Weak};
use std::time::Duration;

use ureq::{Agent, BodyReader, http};

use super::refusal::{Refusal, broken, stalled};
use crate::error::{Error, ErrorKind, Result, lock};
use crate::transport::{Line, Link, Roots};

/// How long a server may stay silent in the middle of a call.
pub const STALL_MAX: Duration = Duration::from_secs(20);
/// What the system buffers of a body at most, in bytes, and what a slow line takes of it a second.
const BUFFERED_MAX: u64 = 4 << 20;
const SLOWEST: u64 = 32 << 10;
/// Connections kept for the next call.
const IDLE_MAX: usize = 8;
/// Bytes of an answer in XML: a thousand objects need a third of a MiB.
const ANSWER_BYTES_MAX: u64 = 16 << 20;

/// A server, and the connections to it.
pub struct Http {
    /// As in error texts.
    pub endpoint: String,
    /// The archive, for error texts.
    pub url: String,
    /// Likewise.
    pub bucket: String,
    roots: Option<Roots>,
    idle: Mutex<Vec<Channel>>,
    live: Mutex<Vec<Weak<Link>>>,
    closed: AtomicBool,
}

/// One connection at a time.
struct Channel {
    agent: Agent,
    link: Arc<Link>,
}

/// A request, signed.
pub struct Call<'a> {
    /// HTTP's.
    pub method: &'static str,
    /// With the signature.
    pub url: String,
    /// Those that need no signature.
    pub headers: &'a [(&'static str, &'a str)],
    /// Empty for none.
    pub body: &'a [u8],
    /// How long the server may stay silent.
    pub patience: Duration,
}

/// A server's answer.
pub struct Answer {
    /// HTTP's.
    pub status: u16,
    headers: http::HeaderMap,
    /// What follows the headers.
    pub body: Body,
}

impl Http {
    /// Nothing is contacted yet.
    pub fn new(endpoint: String, url: String, bucket: String, roots: Option<Roots>) -> Arc<Http> {
        let (idle, live) = (Mutex::default(), Mutex::default());
        Arc::new(Http { endpoint, url, bucket, roots, idle, live, closed: AtomicBool::new(false) })
    }

    /// Ends every call, now and from now on.
    pub fn close(&self) {
        self.closed.store(true, Ordering::Release);
        lock(&self.idle).clear();
        for link in lock(&self.live).iter().filter_map(Weak::upgrade) {
            link.close();
        }
    }

    /// Fails once it is closed.
    pub fn check(&self) -> Result<()> {
        if self.closed.load(Ordering::Acquire) {
            let text = format!("the archive {} was closed", self.url);
            return Err(Error::new(ErrorKind::Stopped, text));
        }
        Ok(())
    }

    /// Sends a request and waits for the answer's headers.
    pub fn call(self: &Arc<Self>, call: &Call<'_>) -> Result<Answer> {
        self.check()?;
        let kept = lock(&self.idle).pop();
        let channel = kept.unwrap_or_else(|| {
            let channel = self.channel(None);
            let mut live = lock(&self.live);
            live.retain(|link| link.strong_count() > 0);
            live.push(Arc::downgrade(&channel.link));
            channel
        });
        // Closed before the link was known.
        self.check()?;
        self.send(channel, call)
    }

    /// Sends a request even if this is closed, and forgets the answer.
    pub fn farewell(self: &Arc<Self>, call: &Call<'_>, limit: Duration) {
        let _nobody_asks = self.send(self.channel(Some(limit)), call);
    }

    fn send(self: &Arc<Self>, channel: Channel, call: &Call<'_>) -> Result<Answer> {
        channel.link.set_patience(Some(call.patience));
        let mut request = http::Request::builder().method(call.method).uri(call.url.as_str());
        for (name, value) in call.headers {
            request = request.header(*name, *value);
        }
        let response = match call.method {
            "PUT" | "POST" => {
                // A body of none must say so too.
                request = request.header("content-length", call.body.len());
                let request = request.body(call.body).map_err(|error| self.odd(&error))?;
                channel.agent.run(request)
            }
            _ => channel.agent.run(request.body(()).map_err(|error| self.odd(&error))?),
        };
        let response = response.map_err(|error| {
            let broken = broken(&error, &self.endpoint, call.patience.as_secs());
            self.check().err().unwrap_or(broken)
        })?;
        let (head, body) = response.into_parts();
        let length = head.headers.get("content-length").and_then(|value| value.to_str().ok());
        let left = length.and_then(|text| text.parse().ok()).filter(|_| call.method != "HEAD");
        let body = Body {
            reader: body.into_reader(),
            channel: Some(channel),
            http: Arc::clone(self),
            left,
            patience: call.patience,
        };
        Ok(Answer { status: head.status.as_u16(), headers: head.headers, body })
    }

    fn odd(&self, error: &http::Error) -> Error {
        Error::bug(format!("{}: the request is malformed: {error}", self.url))
    }

    fn channel(&self, limit: Option<Duration>) -> Channel {
        let line = Line { roots: self.roots.clone(), total_max: limit, ..Line::default() };
        let link = Link::new();
        Channel { agent: line.agent(&link), link }
    }
}

impl Answer {
    /// A header's value, if it is text.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name)?.to_str().ok()
    }

    /// The whole body as text.
    pub fn text(&mut self) -> Result<String> {
        let mut bytes = Vec::new();
        (&mut self.body).take(ANSWER_BYTES_MAX + 1).read_to_end(&mut bytes)?;
        if bytes.len() as u64 > ANSWER_BYTES_MAX {
            return Err(Error::peer(format!(
                "the server at {} answered with more than {ANSWER_BYTES_MAX} bytes",
                self.body.http.endpoint
            )));
        }
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    }

    /// What is wrong, of an answer that is no success; and S3's name for it.
    pub fn refusal(mut self) -> (Error, String) {
        // The status says enough if the text cannot be read.
        let body = self.text().unwrap_or_default();
        let region = self.header("x-amz-bucket-region").map(str::to_owned);
        let refusal = Refusal { status: self.status, body: &body, region: region.as_deref() };
        let http = &self.body.http;
        (refusal.error(&http.bucket, &http.endpoint), refusal.code())
    }
}

/// An answer's body. Its connection is kept if it is read to its end.
pub struct Body {
    reader: BodyReader<'static>,
    channel: Option<Channel>,
    http: Arc<Http>,
    /// Bytes still to come, if the server said how many.
    left: Option<u64>,
    patience: Duration,
}

impl Read for Body {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        self.http.check()?;
        if out.is_empty() {
            return Ok(0);
        }
        match self.reader.read(out) {
            Ok(0) => {
                if let Some(left) = self.left.filter(|left| *left > 0) {
                    let text = format!(
                        "the server at {} broke off {left} bytes before the end",
                        self.http.endpoint
                    );
                    self.http.check()?;
                    return Err(Error::new(ErrorKind::Io, text).into());
                }
                self.keep();
                Ok(0)
            }
            Ok(read) => {
                self.left = self.left.map(|left| left.saturating_sub(read as u64));
                Ok(read)
            }
            Err(error) => {
                self.channel = None;
                self.http.check()?;
                let endpoint = &self.http.endpoint;
                Err(stalled(&error, endpoint, self.patience.as_secs()).into())
            }
        }
    }
}

impl Body {
    fn keep(&mut self) {
        let Some(channel) = self.channel.take() else { return };
        let mut idle = lock(&self.http.idle);
        if idle.len() < IDLE_MAX && !self.http.closed.load(Ordering::Acquire) {
            idle.push(channel);
        }
    }
}

/// How long a server may stay silent after a body of so many bytes was handed to the system, which
/// buffers some MiB: what it took may still be on its way when the wait begins.
pub fn patience_for(bytes: usize) -> Duration {
    let on_its_way = u64::try_from(bytes).unwrap_or(u64::MAX).min(BUFFERED_MAX);
    STALL_MAX + Duration::from_secs(on_its_way / SLOWEST)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slow_line_has_the_time_it_takes() {
        let check = |bytes, seconds| assert_eq!(patience_for(bytes).as_secs(), seconds, "{bytes}");
        check(0, 20);
        check(1 << 20, 52);
        check(4 << 20, 148);
        check(128 << 20, 148);
    }
}
