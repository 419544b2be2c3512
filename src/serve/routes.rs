//! Which request gets which answer.
//!
//! | route          | method | answer                                        |
//! |----------------|--------|-----------------------------------------------|
//! | `/stream`      | GET    | 200 and records without end                   |
//! | `/checksums`   | GET    | 200 and a checksum a page (`checksums.rs`)    |
//! | `/ack`         | POST   | 204; 404 if no such follower is connected     |
//! | `/healthz`     | any    | 200 `ok`, or 503 and why; asks for no token   |
//! | `/metrics`     | any    | 200, Prometheus text                          |
//! | `/status`      | GET    | 200, JSON (`status.rs`)                       |
//! | `/`            | GET    | 200, the same as a page                       |
//! | anything else  |        | 404                                           |
//!
//! With a token everything but `/healthz` needs `Authorization: Bearer TOKEN`. Without one the
//! server is protected: it answers this machine only, and only under a name of this machine,
//! because a web page may point a name of its own at 127.0.0.1 and have the visitor's browser ask.

use std::net::IpAddr;
use std::os::unix::ffi::OsStrExt;
use std::sync::Arc;

use super::Shared;
use super::metrics::{Metric, render};
use super::query::{Features, StreamQuery, Target, follower};
use super::reply::Reply;
use super::served::Served;
use super::socket::Peer;
use super::status;
use crate::log::Start;
use crate::pos::Pos;

/// A request, as far as routes care.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Asked<'a> {
    pub(crate) method: &'a str,
    pub(crate) target: &'a str,
    pub(crate) peer: Peer,
    pub(crate) minor: u8,
    pub(crate) authorization: Option<&'a str>,
    pub(crate) host: Option<&'a str>,
}

/// What to do about it.
pub(crate) enum Answer {
    Reply(Reply),
    Stream(StreamRequest),
}

/// A stream that may begin.
pub(crate) struct StreamRequest {
    pub(crate) served: Arc<Served>,
    pub(crate) start: Start,
    pub(crate) features: Features,
    pub(crate) follower: Option<String>,
    /// Whether the body is in chunks (HTTP/1.1).
    pub(crate) chunked: bool,
    /// Not records are wanted, but the checksums of all pages.
    pub(crate) checksums: bool,
}

impl std::fmt::Debug for StreamRequest {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "stream of {} from {:?}", self.served.path().display(), self.start)
    }
}

/// Answers any request, quickly: nothing here waits for a disk or a peer.
pub(crate) fn answer(shared: &Shared, asked: &Asked<'_>) -> Answer {
    let target = Target::parse(asked.target);
    if target.path == b"/healthz" {
        let trusted = refuse(shared, asked).is_none();
        return Answer::Reply(healthz(shared, trusted));
    }
    if let Some(refusal) = refuse(shared, asked) {
        return Answer::Reply(refusal);
    }
    match (target.path.as_slice(), asked.method) {
        (path @ (b"/stream" | b"/checksums"), "GET") => {
            match stream(shared, &target, asked.minor > 0, path == b"/checksums") {
                Ok(request) => Answer::Stream(request),
                Err(reply) => Answer::Reply(reply),
            }
        }
        (b"/stream" | b"/checksums", _) => Answer::Reply(wrong_method("GET")),
        (b"/ack", "POST") => Answer::Reply(ack(shared, &target).unwrap_or_else(|reply| reply)),
        (b"/ack", _) => Answer::Reply(wrong_method("POST")),
        (b"/metrics", _) => Answer::Reply(metrics(shared)),
        (b"/status", "GET" | "HEAD") => Answer::Reply(status::json(shared)),
        (b"/", "GET" | "HEAD") => Answer::Reply(status::page(shared)),
        (b"/status" | b"/", _) => Answer::Reply(wrong_method("GET, HEAD")),
        _ => Answer::Reply(Reply::text(404, "404 page not found")),
    }
}

fn wrong_method(allowed: &'static str) -> Reply {
    Reply::text(405, "Method not allowed").with("Allow", allowed)
}

/// Who may not ask, and what they are told.
fn refuse(shared: &Shared, asked: &Asked<'_>) -> Option<Reply> {
    if let Some(token) = &shared.token {
        return (!token.is_shown_by(asked.authorization)).then(|| {
            Reply::text(401, "Authorization required: send 'Authorization: Bearer TOKEN'")
                .with("WWW-Authenticate", "Bearer")
        });
    }
    if shared.allow_anonymous {
        return None;
    }
    if !asked.peer.is_local() {
        return Some(Reply::text(
            403,
            "This server has no token, so it answers its own machine only. Give litestream_serve \
             the option \"token\" (or set LITESTREAM_TOKEN) and send it as \
             'Authorization: Bearer TOKEN', or allow everybody with \"allow_anonymous\": true.",
        ));
    }
    let foreign = asked.host.is_some_and(|host| !is_local_name(host));
    foreign.then(|| {
        Reply::text(
            403,
            "This server has no token, so it answers under an address or as localhost only: use \
             http://127.0.0.1, or give litestream_serve the option \"token\".",
        )
    })
}

/// Whether a `Host` header is an address, or a name that means this machine everywhere.
fn is_local_name(host: &str) -> bool {
    let without_port = match host.rsplit_once(':') {
        Some((name, port)) if port.bytes().all(|byte| byte.is_ascii_digit()) => name,
        _ => host,
    };
    let bare = without_port.trim_start_matches('[').trim_end_matches(']');
    let name = without_port.to_ascii_lowercase();
    bare.is_empty()
        || bare.parse::<IpAddr>().is_ok()
        || name == "localhost"
        || name.ends_with(".localhost")
}

/// The database a request is about: by its whole path, by its file name if only one is called so,
/// or the only one there is.
fn database(shared: &Shared, target: &Target) -> Result<Arc<Served>, Reply> {
    let databases = shared.databases();
    let not_found = || Reply::text(404, "Database not found");
    let Some(wanted) = target.bytes("path") else {
        return match databases.as_slice() {
            [only] => Ok(Arc::clone(only)),
            [] => Err(not_found()),
            _ => Err(Reply::text(400, "Database name required")),
        };
    };
    let by_path = databases.iter().find(|served| served.path().as_os_str().as_bytes() == wanted);
    if let Some(found) = by_path {
        return Ok(Arc::clone(found));
    }
    let named = |served: &&Arc<Served>| {
        served.path().file_name().is_some_and(|name| name.as_bytes() == wanted)
    };
    let mut by_name = databases.iter().filter(named);
    match (by_name.next(), by_name.next()) {
        (Some(only), None) => Ok(Arc::clone(only)),
        _ => Err(not_found()),
    }
}

fn stream(
    shared: &Shared,
    target: &Target,
    chunked: bool,
    checksums: bool,
) -> Result<StreamRequest, Reply> {
    // The ancestor's order: name missing, bad parameters, unknown name.
    if target.bytes("path").is_none() && shared.databases().len() > 1 {
        return Err(Reply::text(400, "Database name required"));
    }
    let query = StreamQuery::parse(target).map_err(|text| Reply::text(400, text))?;
    let served = database(shared, target)?;
    if !served.log().is_ready() {
        return Err(Reply::text(503, "No generation available").with("Retry-After", "1"));
    }
    let StreamQuery { start, features, follower } = query;
    Ok(StreamRequest { served, start, features, follower, chunked, checksums })
}

fn ack(shared: &Shared, target: &Target) -> Result<Reply, Reply> {
    let bad = |text: &str| Reply::text(400, text);
    let name = follower(target).map_err(bad)?;
    let name = name.ok_or_else(|| bad("Follower name required"))?;
    let pos = target.text("pos").ok_or_else(|| bad("Position required"))?;
    let pos: Pos = pos.parse().map_err(|_| bad("Invalid pos query parameter"))?;
    if database(shared, target)?.acknowledge(&name, pos) {
        Ok(Reply::empty(204))
    } else {
        Err(Reply::text(404, "Follower not found"))
    }
}

fn healthz(shared: &Shared, trusted: bool) -> Reply {
    let databases = shared.databases();
    let mut troubles = databases.iter().filter_map(|served| Some((served, served.trouble()?)));
    match troubles.next() {
        None => Reply::text(200, "ok"),
        Some((served, trouble)) if trusted => {
            Reply::text(503, format!("{}: {trouble}", served.path().display()))
        }
        // Whoever has shown no token learns no path.
        Some(_) => Reply::text(503, "not ready"),
    }
}

fn metrics(shared: &Shared) -> Reply {
    let version = env!("CARGO_PKG_VERSION");
    let mut all = vec![
        Metric::gauge("litestream_build_info", "Always 1; its labels say what runs.", 1.0)
            .with("version", version),
    ];
    all.extend(shared.databases().iter().flat_map(|served| served.metrics()));
    Reply::new(200, "text/plain; version=0.0.4; charset=utf-8", render(&all))
}
