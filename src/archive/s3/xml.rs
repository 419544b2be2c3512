//! The XML that S3 servers answer with, read by element names alone: servers differ in namespaces,
//! in the order of elements, and even in the name of the outermost one.
//!
//! Answers are machine-made, without comments, CDATA or attributes that matter; what is not so is
//! simply not found.

/// An entity is not longer, both its ends included: `&#x10ffff;`, and one to spare.
const ENTITY_BYTES_MAX: usize = 11;

/// The content of each element of this name, in order.
pub fn elements<'x>(xml: &'x str, name: &str) -> Vec<&'x str> {
    let (open, close) = (format!("<{name}"), format!("</{name}>"));
    let mut found = Vec::new();
    let mut rest = xml;
    while let Some(at) = rest.find(&open) {
        rest = rest.get(at + open.len()..).unwrap_or_default();
        // A longer name begins alike.
        if !rest.starts_with([' ', '>', '/', '\n', '\t', '\r']) {
            continue;
        }
        let Some(end) = rest.find('>') else { break };
        let empty = rest.get(..end).is_some_and(|tag| tag.ends_with('/'));
        rest = rest.get(end + 1..).unwrap_or_default();
        if empty {
            found.push("");
            continue;
        }
        // Without an end here there is none further on: looking again and again takes for ever.
        let Some(end) = rest.find(&close) else { break };
        found.push(rest.get(..end).unwrap_or_default());
        rest = rest.get(end + close.len()..).unwrap_or_default();
    }
    found
}

/// The text of the first element of this name; empty if there is none.
pub fn text(xml: &str, name: &str) -> String {
    elements(xml, name).first().map(|content| unescape(content.trim())).unwrap_or_default()
}

/// The content of a listing, if this is one, and whole: S3 always says whether there is more.
pub fn listing(xml: &str) -> Option<&str> {
    let at = xml.find("<ListBucket")?;
    let name = xml.get(at + 1..)?.split(|c: char| !c.is_ascii_alphanumeric()).next()?;
    let content = elements(xml, name).into_iter().next()?;
    let said = elements(content, "IsTruncated").into_iter().next()?;
    matches!(said.trim(), "true" | "false").then_some(content)
}

fn unescape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find('&') {
        out.push_str(rest.get(..at).unwrap_or_default());
        rest = rest.get(at..).unwrap_or_default();
        let end = rest.bytes().take(ENTITY_BYTES_MAX).position(|byte| byte == b';');
        let decoded = end.and_then(|end| rest.get(1..end)).and_then(entity);
        match (decoded, end) {
            (Some(decoded), Some(end)) => {
                out.push(decoded);
                rest = rest.get(end + 1..).unwrap_or_default();
            }
            _ => {
                out.push('&');
                rest = rest.get(1..).unwrap_or_default();
            }
        }
    }
    out.push_str(rest);
    out
}

fn entity(name: &str) -> Option<char> {
    match name {
        "amp" => Some('&'),
        "lt" => Some('<'),
        "gt" => Some('>'),
        "quot" => Some('"'),
        "apos" => Some('\''),
        _ => {
            let number = name.strip_prefix('#')?;
            let code = match number.strip_prefix(['x', 'X']) {
                Some(hex) => u32::from_str_radix(hex, 16).ok()?,
                None => number.parse().ok()?,
            };
            char::from_u32(code)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn elements_by_name() {
        let xml = "<?xml version=\"1.0\"?>\n<R xmlns=\"x\"><Key>a</Key><KeyCount>2</KeyCount>\
                   <P><Key>b&amp;&#34;&#x41;&x;&</Key></P><Empty/><Key></Key></R>";
        assert_eq!(elements(xml, "Key"), ["a", "b&amp;&#34;&#x41;&x;&", ""]);
        assert_eq!(text(elements(xml, "P")[0], "Key"), "b&\"A&x;&");
        assert_eq!((text(xml, "KeyCount"), text(xml, "None")), ("2".into(), String::new()));
        assert_eq!(elements(xml, "Empty"), [""]);
        for broken in ["<Key", "<Key>", "<Key>a</Ke", "<", "Key", "<Key/", "</Key>"] {
            assert!(elements(broken, "Key").len() <= 1, "{broken}");
        }
    }

    /// A server could keep a thread busy for hours with an answer of some MiB: for each beginning
    /// the end was looked for through all the rest.
    #[test]
    fn what_has_no_end_is_read_once() {
        let many = |part: &str| part.repeat((16 << 20) / part.len());
        assert!(elements(&many("<Key>"), "Key").is_empty());
        assert_eq!(elements(&many("<Keys>"), "Key").len(), 0);
        assert_eq!(text(&format!("<Key>{}</Key>", many("&")), "Key").len(), 16 << 20);
        assert_eq!(listing(&many("<ListBucketResult><IsTruncated>")), None);
    }

    #[test]
    fn a_listing_is_whole_or_none() {
        let whole = "<?xml version=\"1.0\"?>\n<ListBucketResult xmlns=\"x\"><Name>b</Name>\
                     <IsTruncated>false</IsTruncated><Contents/></ListBucketResult>";
        assert!(listing(whole).unwrap().starts_with("<Name>b</Name>"));
        assert!(listing(&whole.replace("false", " true\n")).is_some());
        assert!((0..whole.len()).all(|end| listing(&whole[..end]).is_none()));
        let others = ["", "ok", "{}", "<html><body>hello</body></html>", "<ListBucketResult/>"];
        assert!(others.iter().all(|other| listing(other).is_none()));
        assert_eq!(listing(&whole.replace("IsTruncated", "Truncated")), None);
        assert_eq!(listing(&whole.replace("false", "")), None);
    }
}
