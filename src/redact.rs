//! URLs in error texts, where a secret may be in any of them: `scheme://...@host/path?...`.

/// As much of a URL that is none as an error shows, in characters.
const SHOWN_CHARS_MAX: usize = 100;

/// A URL as an error shows it, in quotes: without what may be a key, in front of a host or in a
/// query.
pub fn shown(url: &str) -> String {
    let (scheme, rest) = match url.split_once("://") {
        Some((scheme, rest)) => (format!("{scheme}://"), rest),
        None => (String::new(), url),
    };
    let (rest, query) = rest.split_once('?').map_or((rest, None), |(a, b)| (a, Some(b)));
    // A secret may have slashes, and question marks.
    let rest = match rest.rsplit_once('@') {
        _ if query.is_some_and(|query| query.contains('@')) => "...".to_owned(),
        Some((_, rest)) => format!("...@{rest}"),
        None => rest.to_owned(),
    };
    let query = query.map_or("", |_| "?...");
    let shown: String = format!("{scheme}{rest}{query}").chars().take(SHOWN_CHARS_MAX).collect();
    format!("{shown:?}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_not_shown() {
        let check = |url: &str, text: &str| assert_eq!(shown(url), format!("{text:?}"));
        check("s3://abc/d", "s3://abc/d");
        check("s3://key:sec/ret@abc/d", "s3://...@abc/d");
        check("https://u:secret@h/x?y", "https://...@h/x?...");
        check("s3://abc/d?secret-access-key=secret", "s3://abc/d?...");
        check("http://u:sec?ret@h", "http://...?...");
        check("/tmp/x", "/tmp/x");
        check("a\n://u:p@b", "a\n://...@b");
        let long = format!("http://{}", "h".repeat(200));
        assert_eq!(shown(&long), format!("{:?}", &long[..100]));
    }
}
