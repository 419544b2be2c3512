//! The URLs of archives.
//!
//! | form                  | means                                                       |
//! |-----------------------|-------------------------------------------------------------|
//! | `file:///FOLDER`      | a folder; the path is absolute and percent-encoded          |

use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;
use std::path::PathBuf;

use crate::error::{Error, Result};

/// As much of a URL that is none as an error shows, in characters.
const SHOWN_CHARS_MAX: usize = 100;

/// A URL as an error shows it.
pub fn shown(url: &str) -> String {
    let shown: String = url.chars().take(SHOWN_CHARS_MAX).collect();
    format!("{shown:?}")
}

/// The folder a URL names.
pub fn folder_of(url: &str) -> Result<PathBuf> {
    let bad = |why: &str| {
        let expected = "expected file:///FOLDER with an absolute path, and %20, %3F, %23, %25 for \
                        a space, ?, # and % in it";
        Error::usage(format!("invalid archive {}: {why}; {expected}", shown(url)))
    };
    let rest = url.strip_prefix("file:").ok_or_else(|| bad("it does not begin with file:"))?;
    let path = match rest.strip_prefix("//") {
        Some(rest) => rest.strip_prefix("localhost").filter(|p| p.starts_with('/')).unwrap_or(rest),
        None => rest,
    };
    if !path.starts_with('/') {
        return Err(bad("the path is not absolute"));
    }
    if path.contains(['?', '#']) {
        return Err(bad("it has a query or a fragment"));
    }
    let bytes = unescape(path).ok_or_else(|| bad("a % is not followed by two hex digits"))?;
    if bytes.contains(&0) {
        return Err(bad("it contains a NUL"));
    }
    if bytes.iter().all(|byte| *byte == b'/') {
        return Err(bad("it names no folder"));
    }
    Ok(PathBuf::from(OsString::from_vec(bytes)))
}

/// Takes percent signs for what they stand for.
fn unescape(text: &str) -> Option<Vec<u8>> {
    let mut out = Vec::with_capacity(text.len());
    let mut bytes = text.bytes();
    while let Some(byte) = bytes.next() {
        if byte != b'%' {
            out.push(byte);
            continue;
        }
        let mut digit = || char::from(bytes.next()?).to_digit(16);
        out.push(u8::try_from(digit()? * 16 + digit()?).ok()?);
    }
    Some(out)
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::error::ErrorKind;

    #[test]
    fn folders() {
        let check = |url: &str, path: &str| assert_eq!(folder_of(url).unwrap(), Path::new(path));
        check("file:///a/b", "/a/b");
        check("file:/a/b/", "/a/b/");
        check("file://localhost/a", "/a");
        check("file:///a%20b%25/%3f", "/a b%/?");
        for url in [
            "file:",
            "file://",
            "file:///",
            "file:////",
            "file:a/b",
            "file://host/a",
            "file://localhost",
            "file:///a?b",
            "file:///a#b",
            "file:///a%",
            "file:///a%2",
            "file:///a%zz",
            "file:///a%00",
            "s3://a",
        ] {
            let error = folder_of(url).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Usage, "{url}");
            assert!(error.to_string().contains("file:///FOLDER"), "{error}");
        }
    }
}
