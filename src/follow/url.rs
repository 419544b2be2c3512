//! Where an upstream is, and the requests a follower makes there.
//!
//! | form                                | means                                             |
//! |-------------------------------------|---------------------------------------------------|
//! | `http://host:port`                  | the one database served there                     |
//! | `http://host:port/stream?path=NAME` | the database NAME, by path or by unique file name |
//! | `https://host/prefix/stream`        | the same behind TLS and a reverse proxy           |
//! | `unix:/run/app.sock`                | a server on a Unix socket                         |
//!
//! Requests: `GET .../stream` with the parameters of [`Resume`], `GET .../checksums`, and
//! `POST .../ack`.

use std::fmt::Write as _;
use std::path::PathBuf;

use crate::error::{Error, Result};
use crate::percent;
use crate::pos::Pos;
use crate::redact::shown;
use crate::wal::Checksum;

/// What this follower understands beyond the ancestor's protocol.
pub const FEATURES: &str = "heartbeat,lz4,split";

/// An upstream's address, parsed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Upstream {
    /// Scheme, host and whatever comes before `stream`, with a slash at the end.
    base: String,
    /// The database's path or file name there; none: the only one it serves.
    database: Option<String>,
    /// The socket to connect to instead of the host in `base`.
    socket: Option<PathBuf>,
}

/// Where a stream is to continue.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Resume {
    /// The next byte wanted.
    pub pos: Pos,
    /// The upstream WAL's running checksum there; none at offset 0, where there is no WAL yet.
    pub checksum: Option<Checksum>,
}

impl Upstream {
    /// Takes an upstream's URL apart. `database` (an option) wins over the URL's own `path`.
    pub fn parse(url: &str, database: Option<&str>) -> Result<Self> {
        let bad = |why: &str| {
            let shown = shown(url);
            Error::usage(format!(
                "invalid upstream {shown}: {why}; expected http://HOST:PORT, https://HOST:PORT \
                 or unix:/SOCKET, with the database's path on the upstream in the option \
                 \"path\", or an archive, file:///FOLDER or s3://BUCKET/PREFIX"
            ))
        };
        if url.bytes().any(|byte| byte.is_ascii_whitespace() || byte.is_ascii_control()) {
            return Err(bad("it contains white space or control characters"));
        }
        let database = database.map(str::to_owned);
        if let Some(path) = url.strip_prefix("unix:") {
            let path = path.strip_prefix("//").unwrap_or(path);
            if !path.starts_with('/') {
                return Err(bad("the path of the socket must be absolute"));
            }
            let base = "http://localhost/".to_owned();
            return Ok(Self { base, database, socket: Some(PathBuf::from(path)) });
        }
        let (scheme, rest) = url.split_once("://").ok_or_else(|| bad("there is no scheme"))?;
        if scheme != "http" && scheme != "https" {
            return Err(bad("the scheme is neither http nor https"));
        }
        let (rest, query) = rest.split_once('?').map_or((rest, None), |(a, b)| (a, Some(b)));
        if rest.contains('#') || query.is_some_and(|query| query.contains('#')) {
            return Err(bad("there is a fragment"));
        }
        let (host, path) = rest.split_once('/').unwrap_or((rest, ""));
        check_host(host).map_err(bad)?;
        let prefix = match path.trim_end_matches('/') {
            "" | "stream" => "",
            path => path
                .strip_suffix("/stream")
                .ok_or_else(|| bad("the path of the URL does not end in /stream"))?,
        };
        let slash = if prefix.is_empty() { "" } else { "/" };
        let base = format!("{scheme}://{host}/{prefix}{slash}");
        let named = query.map(query_path).transpose().map_err(bad)?.flatten();
        Ok(Self { base, database: database.or(named), socket: None })
    }

    /// The Unix socket to connect to, if it is one.
    pub fn socket(&self) -> Option<&PathBuf> {
        self.socket.as_ref()
    }

    /// The URL of a stream.
    pub fn stream_url(&self, resume: Option<&Resume>, follower: &str) -> String {
        let mut url = format!("{}stream?features={FEATURES}&follower={follower}", self.base);
        if let Some(database) = &self.database {
            push_parameter(&mut url, "path", database);
        }
        if let Some(Resume { pos, checksum }) = resume {
            push_parameter(&mut url, "generation", &pos.generation.to_string());
            push_parameter(&mut url, "index", &pos.index.to_string());
            push_parameter(&mut url, "offset", &pos.offset.to_string());
            if let Some(checksum) = checksum {
                push_parameter(&mut url, "checksum", &checksum.to_string());
            }
        }
        url
    }

    /// The URL of the checksums of all pages.
    pub fn checksums_url(&self) -> String {
        let mut url = format!("{}checksums?", self.base);
        if let Some(database) = &self.database {
            push_parameter(&mut url, "path", database);
        }
        url
    }

    /// The URL that takes note of an applied position.
    pub fn ack_url(&self, follower: &str, pos: Pos) -> String {
        let mut url = format!("{}ack?follower={follower}", self.base);
        if let Some(database) = &self.database {
            push_parameter(&mut url, "path", database);
        }
        push_parameter(&mut url, "pos", &pos.to_string());
        url
    }
}

fn check_host(host: &str) -> std::result::Result<(), &'static str> {
    if host.contains('@') {
        return Err("names and passwords do not belong in it (use the option \"token\")");
    }
    let (name, port) = match host.rsplit_once(':') {
        Some((name, port)) if !port.contains(']') => (name, Some(port)),
        _ => (host, None),
    };
    if name.is_empty() {
        return Err("there is no host");
    }
    match port.map(str::parse::<u16>) {
        None => Ok(()),
        Some(Ok(port)) if port != 0 => Ok(()),
        Some(_) => Err("the port is not a number from 1 to 65535"),
    }
}

/// The `path` in a URL's query. Other parameters are ours to set.
fn query_path(query: &str) -> std::result::Result<Option<String>, &'static str> {
    let mut found = None;
    for pair in query.split('&').filter(|pair| !pair.is_empty()) {
        match pair.split_once('=') {
            Some(("path", value)) => found = Some(path_of(value)?),
            _ => return Err("its query has a parameter other than path"),
        }
    }
    Ok(found.filter(|path| !path.is_empty()))
}

fn path_of(value: &str) -> std::result::Result<String, &'static str> {
    let bytes = percent::decode(value, true).ok_or("its path has a bad % escape")?;
    String::from_utf8(bytes).map_err(|_| "its path is not UTF-8")
}

fn push_parameter(url: &mut String, key: &str, value: &str) {
    url.push('&');
    url.push_str(key);
    url.push('=');
    for byte in value.bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' | b'/' | b':' => {
                url.push(char::from(byte));
            }
            // Writing to a String cannot fail.
            _ => drop(write!(url, "%{byte:02X}")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pos::{Generation, Index, Offset};

    fn check(url: &str, option: Option<&str>, expected: &str) {
        let upstream = Upstream::parse(url, option).unwrap();
        let tail = format!("?features={FEATURES}&follower=f1");
        let stream = upstream.stream_url(None, "f1");
        assert_eq!(stream.replace(&tail, "?"), expected, "{url}");
    }

    #[test]
    fn forms() {
        check("http://a:9090", None, "http://a:9090/stream?");
        check("http://a:9090/", Some("/x y.db"), "http://a:9090/stream?&path=/x%20y.db");
        check("http://[::1]:9090", None, "http://[::1]:9090/stream?");
        check("http://a/stream?path=%2Fd%2Be.db", None, "http://a/stream?&path=/d%2Be.db");
        check("http://a/stream?path=one", Some("two"), "http://a/stream?&path=two");
        check("https://a/p/q/stream", None, "https://a/p/q/stream?");
        check("unix:/run/a.sock", None, "http://localhost/stream?");
        let unix = Upstream::parse("unix:///run/a.sock", None).unwrap();
        assert_eq!(unix.socket(), Some(&PathBuf::from("/run/a.sock")));
    }

    #[test]
    fn refusals_say_why() {
        let check = |url: &str, why: &str| {
            let error = Upstream::parse(url, None).unwrap_err().to_string();
            assert!(error.contains(why), "{url}: {error}");
            assert!(!error.contains("SECRET"), "{url}: {error}");
        };
        check("", "no scheme");
        check("a:9090", "no scheme");
        check("ftp://a", "neither http nor https");
        check("http://", "no host");
        check("http://:80", "no host");
        check("http://a:0", "port");
        check("http://a:65536", "port");
        check("http://a:x", "port");
        check("http://u:SECRET@a", "passwords");
        check("http://u:SEC?RET/SECRET@a", "port");
        check("http://a/stream?token=SECRET", "other than path");
        check("http://a/b.db", "does not end in /stream");
        check("http://a#b", "fragment");
        check("http://a b", "white space");
        check("http://a/stream?generation=1", "other than path");
        check("http://a/stream?path=%zz", "% escape");
        check("http://a/stream?path=%ff", "UTF-8");
        check("unix:a.sock", "absolute");
    }

    #[test]
    fn resuming_sends_all_that_is_known() {
        let upstream = Upstream::parse("http://a", None).unwrap();
        let pos =
            Pos::new(Generation::from_bits(0xab), Index::new(2).unwrap(), Offset::new(32).unwrap());
        let checksum = Some(Checksum { s0: 1, s1: 2 });
        let url = upstream.stream_url(Some(&Resume { pos, checksum }), "f");
        assert!(url.ends_with(
            "&generation=00000000000000ab&index=0000000000000002&offset=0000000000000020\
             &checksum=0000000100000002"
        ));
        let ack = upstream.ack_url("f", pos);
        assert_eq!(
            ack,
            "http://a/ack?follower=f&pos=00000000000000ab/0000000000000002:0000000000000020"
        );
    }
}
