//! The head of a request, read from bytes a stranger sent.
//!
//! A head counts only when it is whole and every part of it is understood; what is passed on to the
//! router is written anew from those parts, so nothing a client sends can mean one thing here and
//! another there, and no header of ours can be forged. Bodies come with a `Content-Length` or not
//! at all.

use super::reply::Reply;

/// The most bytes of a request head, the empty line included.
pub(crate) const HEAD_BYTES_MAX: usize = 16 << 10;
/// The most bytes of a request body.
pub(crate) const BODY_BYTES_MAX: usize = 64 << 10;
/// The most header lines.
const HEADERS_MAX: usize = 64;
/// So many bytes are looked at before the head is whole, to turn garbage away at once.
const EAGER_BYTES: usize = 512;

/// Header by which the front tells the router which of its connections a request came from.
pub(crate) const CONNECTION_HEADER: &str = "Litestream-Connection";
/// Headers passed on to the router.
const PASSED_ON: [&str; 4] = ["Host", "Authorization", "Accept", "Content-Type"];

/// A request head, understood.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Head {
    /// The method, any token.
    pub(crate) method: String,
    /// The target, visible ASCII.
    pub(crate) target: String,
    /// The client speaks HTTP/1.`minor`.
    pub(crate) minor: u8,
    /// Bytes of body that follow.
    pub(crate) body_len: usize,
    /// Whether the client wants the connection closed after the answer.
    pub(crate) close: bool,
    /// Whether it waits for `100 Continue` before it sends the body.
    pub(crate) expects_continue: bool,
    passed_on: Vec<(&'static str, String)>,
}

impl Head {
    /// Whether the answer must have no body.
    pub(crate) fn is_head(&self) -> bool {
        self.method == "HEAD"
    }

    /// The head as the router gets it, for a connection with this number.
    pub(crate) fn rewrite(&self, connection: u64) -> Vec<u8> {
        let mut out = format!("{} {} HTTP/1.{}\r\n", self.method, self.target, self.minor);
        for (name, value) in &self.passed_on {
            out.extend([name, ": ", value, "\r\n"]);
        }
        if self.body_len > 0 {
            out.push_str(&format!("Content-Length: {}\r\n", self.body_len));
        }
        out.push_str(&format!("{CONNECTION_HEADER}: {connection}\r\nConnection: close\r\n\r\n"));
        out.into_bytes()
    }
}

/// Reads the head at the start of `bytes`: `None` until it is whole, else the head and its length.
/// An error is the answer to give before closing.
pub(crate) fn read_head(bytes: &[u8]) -> Result<Option<(Head, usize)>, Reply> {
    let whole = find_end(bytes).is_some();
    let seen = if whole { bytes } else { bytes.get(..EAGER_BYTES).unwrap_or(bytes) };
    let mut headers = [httparse::EMPTY_HEADER; HEADERS_MAX];
    let mut request = httparse::Request::new(&mut headers);
    let len = match request.parse(seen) {
        Ok(httparse::Status::Complete(len)) => len,
        Ok(httparse::Status::Partial) if bytes.len() < HEAD_BYTES_MAX => return Ok(None),
        Ok(httparse::Status::Partial) | Err(httparse::Error::TooManyHeaders) => {
            return Err(too_large());
        }
        Err(httparse::Error::Version) => {
            return Err(Reply::text(505, "This server speaks HTTP/1.0 and HTTP/1.1"));
        }
        Err(_) => return Err(Reply::text(400, "Bad request")),
    };
    if len > HEAD_BYTES_MAX {
        return Err(too_large());
    }
    understand(&request).map(|head| Some((head, len)))
}

fn too_large() -> Reply {
    Reply::text(
        431,
        format!("Request head larger than {HEAD_BYTES_MAX} bytes or {HEADERS_MAX} lines"),
    )
}

/// Where the first empty line after some text ends.
fn find_end(bytes: &[u8]) -> Option<usize> {
    let start = bytes.iter().position(|byte| !matches!(byte, b'\r' | b'\n'))?;
    let mut lines = bytes.iter().enumerate().skip(start).filter(|(_, byte)| **byte == b'\n');
    lines.find_map(|(at, _)| match bytes.get(at + 1..)? {
        [b'\n', ..] => Some(at + 2),
        [b'\r', b'\n', ..] => Some(at + 3),
        _ => None,
    })
}

fn understand(request: &httparse::Request<'_, '_>) -> Result<Head, Reply> {
    let bad = |what: &str| Reply::text(400, format!("Bad request: {what}"));
    let (Some(method), Some(target), Some(minor)) = (request.method, request.path, request.version)
    else {
        return Err(bad("no request line"));
    };
    let mut head = Head {
        method: method.to_owned(),
        target: ascii(target),
        minor,
        body_len: 0,
        close: minor == 0,
        expects_continue: false,
        passed_on: Vec::new(),
    };
    let mut length = None;
    for header in request.headers.iter() {
        let name = header.name;
        if let Some(known) = PASSED_ON.iter().find(|known| known.eq_ignore_ascii_case(name)) {
            if head.passed_on.iter().any(|(seen, _)| seen == known) {
                return Err(bad(&format!("more than one {known} header")));
            }
            head.passed_on.push((*known, visible(header.value).ok_or_else(|| bad(known))?));
        } else if name.eq_ignore_ascii_case("Content-Length") {
            let value = body_length(header.value).ok_or_else(|| bad("Content-Length"))?;
            if length.is_some_and(|seen| seen != value) {
                return Err(bad("more than one Content-Length"));
            }
            length = Some(value);
        } else if name.eq_ignore_ascii_case("Transfer-Encoding") {
            return Err(Reply::text(411, "Length required: chunked requests are not supported"));
        } else if name.eq_ignore_ascii_case("Connection") {
            let value = header.value.to_ascii_lowercase();
            let has = |token: &[u8]| value.split(|b| *b == b',').any(|t| t.trim_ascii() == token);
            head.close = has(b"close") || (minor == 0 && !has(b"keep-alive"));
        } else if name.eq_ignore_ascii_case("Expect") {
            if !header.value.eq_ignore_ascii_case(b"100-continue") {
                return Err(Reply::text(417, "Expectation failed"));
            }
            head.expects_continue = minor > 0;
        }
    }
    let length = length.unwrap_or(0);
    head.body_len =
        usize::try_from(length).ok().filter(|len| *len <= BODY_BYTES_MAX).ok_or_else(|| {
            Reply::text(413, format!("Request body larger than {BODY_BYTES_MAX} bytes"))
        })?;
    Ok(head)
}

/// Digits only: what two parsers could read differently is no length.
fn body_length(value: &[u8]) -> Option<u64> {
    let digits = !value.is_empty() && value.len() <= 18 && value.iter().all(u8::is_ascii_digit);
    std::str::from_utf8(value).ok().filter(|_| digits)?.parse().ok()
}

/// A header's value if it is text.
fn visible(value: &[u8]) -> Option<String> {
    let plain = value.iter().all(|byte| matches!(byte, b'\t' | b' '..=b'~'));
    String::from_utf8(value.to_vec()).ok().filter(|_| plain)
}

/// The target with everything but visible ASCII percent-encoded.
fn ascii(target: &str) -> String {
    let mut out = String::with_capacity(target.len());
    for byte in target.bytes() {
        match byte {
            b'!'..=b'~' => out.push(char::from(byte)),
            _ => out.push_str(&format!("%{byte:02X}")),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn head(text: &str) -> Head {
        let (head, len) = read_head(text.as_bytes()).unwrap().unwrap();
        assert_eq!(len, text.len());
        head
    }

    fn status(bytes: &[u8]) -> u16 {
        read_head(bytes).map_or_else(|reply| reply.status, |_| 0)
    }

    #[test]
    fn a_head_cut_anywhere_is_not_whole() {
        let text =
            "\r\nGET /stream?path=/a HTTP/1.1\r\nHost: h:1\r\nAuthorization: Bearer x\r\n\r\n";
        for cut in 0..text.len() {
            assert_eq!(read_head(&text.as_bytes()[..cut]), Ok(None), "{cut}");
        }
        let got = head(text);
        assert_eq!((got.method.as_str(), got.target.as_str()), ("GET", "/stream?path=/a"));
        assert_eq!((got.minor, got.close, got.body_len), (1, false, 0));
        let more = format!("{text}GET / HTTP/1.1\r\n\r\n");
        assert_eq!(read_head(more.as_bytes()).unwrap().unwrap().1, text.len());
    }

    #[test]
    fn only_known_parts_are_passed_on() {
        let got = head(
            "POST /ack?x=\u{e9} HTTP/1.1\r\nhost: h\r\nlitestream-connection: 9\r\nTE: chunked\r\n\
             content-length: 3\r\nX: y\r\nExpect: 100-Continue\r\n\r\n",
        );
        assert!(got.expects_continue);
        let rewritten = String::from_utf8(got.rewrite(7)).unwrap();
        let expected = "POST /ack?x=%C3%A9 HTTP/1.1\r\nHost: h\r\nContent-Length: 3\r\n\
                        Litestream-Connection: 7\r\nConnection: close\r\n\r\n";
        assert_eq!(rewritten, expected);
    }

    #[test]
    fn connections_close_or_stay() {
        for (text, close) in [
            ("GET / HTTP/1.0\r\n\r\n", true),
            ("GET / HTTP/1.0\r\nConnection: Keep-Alive\r\n\r\n", false),
            ("GET / HTTP/1.1\r\nConnection: Keep-Alive\r\n\r\n", false),
            ("GET / HTTP/1.1\r\nConnection: x, Close\r\n\r\n", true),
            ("GET / HTTP/1.1\n\n", false),
        ] {
            assert_eq!(head(text).close, close, "{text:?}");
        }
    }

    #[test]
    fn what_is_not_understood_is_refused() {
        for (text, expected) in [
            ("GET /\r\n\r\n", 400),
            ("GET / HTTP/2.0\r\n\r\n", 505),
            ("GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n", 400),
            ("GET / HTTP/1.1\r\nHost : a\r\n\r\n", 400),
            ("GET / HTTP/1.1\r\nA: b\r\n folded\r\n\r\n", 400),
            ("GET /\0 HTTP/1.1\r\n\r\n", 400),
            ("GET / HTTP/1.1\r\nA: \0\r\n\r\n", 400),
            ("GET / HTTP/1.1\r\nAuthorization: \u{e9}\r\n\r\n", 400),
            ("GET / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n", 411),
            ("GET / HTTP/1.1\r\nContent-Length: -1\r\n\r\n", 400),
            ("GET / HTTP/1.1\r\nContent-Length: +1\r\n\r\n", 400),
            ("GET / HTTP/1.1\r\nContent-Length:\r\n\r\n", 400),
            ("GET / HTTP/1.1\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n", 400),
            ("GET / HTTP/1.1\r\nContent-Length: 65537\r\n\r\n", 413),
            ("GET / HTTP/1.1\r\nContent-Length: 999999999999999999999\r\n\r\n", 400),
            ("GET / HTTP/1.1\r\nExpect: a pony\r\n\r\n", 417),
            ("\x16\x03\x01\x02\0\x01\0", 400),
        ] {
            assert_eq!(status(text.as_bytes()), expected, "{text:?}");
        }
    }

    #[test]
    fn heads_are_bounded() {
        let lines = "A: b\r\n".repeat(65);
        assert_eq!(status(format!("GET / HTTP/1.1\r\n{lines}\r\n").as_bytes()), 431);
        let long = format!("GET /{} HTTP/1.1\r\n\r\n", "x".repeat(HEAD_BYTES_MAX));
        assert_eq!(status(long.as_bytes()), 431);
        let endless = vec![b'x'; HEAD_BYTES_MAX];
        assert_eq!(status(&endless), 431);
        assert_eq!(status(&vec![b'\n'; HEAD_BYTES_MAX]), 431);
        let fits = format!("GET /{} HTTP/1.1\r\n\r\n", "x".repeat(HEAD_BYTES_MAX - 18));
        assert_eq!(fits.len(), HEAD_BYTES_MAX);
        assert_eq!(head(&fits).target.len(), HEAD_BYTES_MAX - 17);
    }

    #[test]
    fn no_bytes_panic() {
        let mut seed = 0x2545_f491_4f6c_dd1d_u64;
        let whole = b"POST /stream?path=%2Fa HTTP/1.1\r\nHost: h\r\nContent-Length: 5\r\n\r\nhello";
        for _ in 0..20_000 {
            let mut bytes = whole.to_vec();
            for _ in 0..4 {
                seed ^= seed << 13;
                seed ^= seed >> 7;
                seed ^= seed << 17;
                let [at, value, ..] = seed.to_le_bytes();
                let at = usize::from(at) % bytes.len();
                bytes[at] = value;
            }
            if let Ok(Some((head, len))) = read_head(&bytes) {
                assert!(len <= bytes.len());
                assert!(head.rewrite(1).is_ascii());
            }
        }
    }
}
