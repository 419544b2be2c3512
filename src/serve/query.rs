//! What a request's target asks for: a decoded path and its parameters.
//!
//! Nothing here touches the file system: a database is found by comparing bytes with the paths
//! being served, never by opening what a client names. The ancestor's rules decide what is an
//! error: a bad `index` is one, an unknown `generation` is not (it means: begin with a snapshot).

use std::borrow::Cow;

use crate::log::Start;
use crate::percent::decode;
use crate::pos::{Generation, parse_index, parse_offset};
use crate::wal::Checksum;

/// Parameters looked at in one request; more are ignored.
const PARAMETERS_MAX: usize = 64;

/// A request's target, decoded.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Target {
    /// The path, percent-decoded.
    pub(crate) path: Vec<u8>,
    parameters: Vec<(Vec<u8>, Vec<u8>)>,
}

impl Target {
    /// Decodes any text; what is not understood is left out.
    pub(crate) fn parse(text: &str) -> Self {
        let text = text.split('#').next().unwrap_or_default();
        let text = without_authority(text);
        let (path, query) = text.split_once('?').unwrap_or((text, ""));
        let parameters = query
            .split('&')
            .filter(|pair| !pair.is_empty() && !pair.contains(';'))
            .take(PARAMETERS_MAX)
            .filter_map(|pair| {
                let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
                Some((decode(name, true)?, decode(value, true)?))
            })
            .collect();
        Target { path: decode(path, false).unwrap_or_default(), parameters }
    }

    /// The first value of a parameter, unless it is empty.
    pub(crate) fn bytes(&self, name: &str) -> Option<&[u8]> {
        let found = self.parameters.iter().find(|(key, _)| key == name.as_bytes());
        found.map(|(_, value)| value.as_slice()).filter(|value| !value.is_empty())
    }

    /// The same as text; what is not UTF-8 is replaced, and so matches nothing.
    pub(crate) fn text(&self, name: &str) -> Option<Cow<'_, str>> {
        self.bytes(name).map(String::from_utf8_lossy)
    }
}

/// `http://host/path` (the form for proxies) as `/path`.
fn without_authority(target: &str) -> &str {
    let Some((scheme, rest)) = target.split_once("://") else { return target };
    if !scheme.eq_ignore_ascii_case("http") && !scheme.eq_ignore_ascii_case("https") {
        return target;
    }
    rest.find(['/', '?']).and_then(|at| rest.get(at..)).unwrap_or("/")
}

/// What a follower understands.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Features {
    /// It wants the server's position and clock every second.
    pub(crate) heartbeat: bool,
    /// It takes a snapshot as one LZ4 frame.
    pub(crate) lz4: bool,
    /// It takes a transaction in several segments.
    pub(crate) split: bool,
}

impl Features {
    /// Reads `a,b,c`; unknown names are left out.
    fn parse(text: &str) -> Self {
        let mut features = Features::default();
        for name in text.split(',') {
            match name.trim() {
                "heartbeat" => features.heartbeat = true,
                "lz4" => features.lz4 = true,
                "split" => features.split = true,
                _ => {}
            }
        }
        features
    }

    /// The names in use, in a fixed order.
    pub(crate) fn names(self) -> String {
        let all = [(self.heartbeat, "heartbeat"), (self.lz4, "lz4"), (self.split, "split")];
        let used: Vec<&str> = all.iter().filter(|(used, _)| *used).map(|(_, name)| *name).collect();
        used.join(",")
    }
}

/// What a `/stream` request asks for, apart from the database.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct StreamQuery {
    /// Where it wants to begin.
    pub(crate) start: Start,
    /// What it understands.
    pub(crate) features: Features,
    /// The name it acknowledges under.
    pub(crate) follower: Option<String>,
}

impl StreamQuery {
    /// Reads the parameters; an error is the text of a 400.
    pub(crate) fn parse(target: &Target) -> Result<Self, &'static str> {
        let features = target.text("features").map(|text| Features::parse(&text));
        Ok(StreamQuery {
            start: start(target)?,
            features: features.unwrap_or_default(),
            follower: follower(target)?,
        })
    }
}

fn start(target: &Target) -> Result<Start, &'static str> {
    let (Some(generation), Some(index)) = (target.text("generation"), target.text("index")) else {
        return Ok(Start::Fresh);
    };
    let index = parse_index(&index).map_err(|_| "Invalid index query parameter")?;
    let exact = match (target.text("offset"), target.text("checksum")) {
        (Some(offset), Some(checksum)) => {
            let offset = parse_offset(&offset).map_err(|_| "Invalid offset query parameter")?;
            let checksum = checksum.parse::<Checksum>();
            Some((offset, checksum.map_err(|_| "Invalid checksum query parameter")?))
        }
        _ => None,
    };
    let Ok(generation) = Generation::parse(&generation) else { return Ok(Start::Fresh) };
    Ok(match exact {
        Some((offset, checksum)) => Start::Exact { generation, index, offset, checksum },
        None => Start::Index { generation, index },
    })
}

/// The `follower` parameter: 1 to 64 of `[A-Za-z0-9_-]`.
pub(crate) fn follower(target: &Target) -> Result<Option<String>, &'static str> {
    let Some(name) = target.text("follower") else { return Ok(None) };
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_' || byte == b'-';
    if name.len() > 64 || !name.bytes().all(plain) {
        return Err("Invalid follower query parameter");
    }
    Ok(Some(name.into_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stream(query: &str) -> Result<StreamQuery, &'static str> {
        StreamQuery::parse(&Target::parse(&format!("/stream?{query}")))
    }

    #[test]
    fn targets_are_decoded() {
        let target = Target::parse("/str%65am?path=%2Fa%20b+c%c3%a9&x&=1&path=/no&bad=%z&y=a=b#f");
        assert_eq!(target.path, b"/stream");
        assert_eq!(target.bytes("path"), Some("/a b c\u{e9}".as_bytes()));
        assert_eq!(target.bytes("x"), None);
        assert_eq!(target.bytes("bad"), None);
        assert_eq!(target.bytes("y"), Some(&b"a=b"[..]));
        assert_eq!(Target::parse("http://h:1/stream?path=p").path, b"/stream");
        assert_eq!(Target::parse("HTTPS://h").path, b"/");
        assert_eq!(Target::parse("http://h?path=p").bytes("path"), Some(&b"p"[..]));
        assert_eq!(Target::parse("*").path, b"*");
        assert_eq!(Target::parse("/%").path, b"");
        assert_eq!(Target::parse("/?path=%00").bytes("path"), Some(&b"\0"[..]));
        assert_eq!(Target::parse("/a://b").path, b"/a://b");
    }

    #[test]
    fn the_ancestor_s_rules_hold() {
        let generation = "fb744889fe01aa13";
        for index in ["zz", "ffffffffffffffff", "-1", "10000000000000000", "+1", "0x1", "%00"] {
            let got = stream(&format!("generation={generation}&index={index}"));
            assert_eq!(got, Err("Invalid index query parameter"), "{index}");
        }
        for query in [
            "",
            "generation=xyz&index=0000000000000000",
            "generation=fb744889fe01aa13",
            "index=0000000000000000",
            "index=zz",
            "generation=FB744889FE01AA13&index=0",
        ] {
            assert_eq!(stream(query).unwrap().start, Start::Fresh, "{query}");
        }
        let Start::Index { generation: got, index } =
            stream(&format!("generation={generation}&index=D")).unwrap().start
        else {
            panic!("not an index");
        };
        assert_eq!((got.to_string(), index.get()), (generation.to_owned(), 13));
    }

    #[test]
    fn exact_starts_need_both_parameters() {
        let base = "generation=fb744889fe01aa13&index=1";
        let exact = stream(&format!("{base}&offset=20&checksum=00000001ffffffff")).unwrap().start;
        let Start::Exact { offset, checksum, .. } = exact else { panic!("{exact:?}") };
        assert_eq!((offset.get(), checksum.to_string()), (32, "00000001ffffffff".to_owned()));
        assert!(matches!(stream(&format!("{base}&offset=20")).unwrap().start, Start::Index { .. }));
        let bad = stream(&format!("{base}&offset=20&checksum=1"));
        assert_eq!(bad, Err("Invalid checksum query parameter"));
        let bad = stream(&format!("{base}&offset=x&checksum=00000001ffffffff"));
        assert_eq!(bad, Err("Invalid offset query parameter"));
    }

    #[test]
    fn features_and_followers() {
        let got = stream("features=split,delta,+heartbeat,&follower=a_B-9").unwrap();
        assert_eq!(got.features.names(), "heartbeat,split");
        assert_eq!(got.follower.as_deref(), Some("a_B-9"));
        assert_eq!(stream("features=").unwrap().features, Features::default());
        let long = "x".repeat(65);
        for bad in ["a.b", "%00", "a%0d%0ab", "%ff", &long] {
            assert!(stream(&format!("follower={bad}")).is_err(), "{bad}");
        }
    }

    #[test]
    fn no_text_panics() {
        let mut seed = 0x9e37_79b9_7f4a_7c15_u64;
        let alphabet = b"/?&=%+#:;.a0fF-\0\x7f\xc3\xa9 http://path=index=generation=";
        for _ in 0..20_000 {
            let mut bytes = Vec::new();
            for _ in 0..40 {
                seed ^= seed << 13;
                seed ^= seed >> 7;
                seed ^= seed << 17;
                bytes.push(alphabet[usize::try_from(seed >> 33).unwrap() % alphabet.len()]);
            }
            let text = String::from_utf8_lossy(&bytes);
            let target = Target::parse(&text);
            let _ = StreamQuery::parse(&target);
        }
    }
}
