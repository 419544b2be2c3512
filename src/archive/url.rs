//! The URLs of archives.
//!
//! | form                  | means                                                       |
//! |-----------------------|-------------------------------------------------------------|
//! | `file:///FOLDER`      | a folder; the path is absolute and percent-encoded          |
//! | `s3://BUCKET/PREFIX`  | objects below `PREFIX/`; as it stands, nothing is decoded    |
//!
//! One folder has many names: by [`identity`] this process tells that two URLs are one archive.

use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;
use std::path::{Component, Path, PathBuf};

use crate::error::{Error, Result};
use crate::percent;
use crate::redact::shown;

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
    let bytes =
        percent::decode(path, false).ok_or_else(|| bad("a % is not followed by two hex digits"))?;
    if bytes.contains(&0) {
        return Err(bad("it contains a NUL"));
    }
    if bytes.iter().all(|byte| *byte == b'/') {
        return Err(bad("it names no folder"));
    }
    Ok(PathBuf::from(OsString::from_vec(bytes)))
}

/// The same for all names of one archive, whether or not it is there yet.
pub fn identity(url: &str) -> String {
    match folder_of(url) {
        // Quoted, so that names that are no UTF-8 stay apart.
        Ok(folder) => format!("file:{:?}", real(&folder)),
        Err(_) => url.trim_end_matches('/').to_owned(),
    }
}

/// A path without links, `.` and `..`. What does not exist yet is taken at its word.
pub fn real(path: &Path) -> PathBuf {
    let parts: Vec<Component> = path.components().collect();
    for known in (1..=parts.len()).rev() {
        let (there, rest) = parts.split_at(known);
        let there: PathBuf = there.iter().collect();
        let Ok(mut real) = there.canonicalize() else { continue };
        for part in rest {
            match part {
                Component::Normal(name) => real.push(name),
                Component::ParentDir => drop(real.pop()),
                _ => {}
            }
        }
        return real;
    }
    path.to_owned()
}

/// The bucket and the prefix a URL names; the prefix ends in a slash, or is empty.
pub fn bucket_of(url: &str) -> Result<(String, String)> {
    let bad = |why: &str| {
        let expected = "expected s3://BUCKET/PREFIX, with a server other than Amazon's in the \
                        option \"endpoint\"";
        Error::usage(format!("invalid archive {}: {why}; {expected}", shown(url)))
    };
    let rest = url.strip_prefix("s3://").ok_or_else(|| bad("it does not begin with s3://"))?;
    let (bucket, prefix) = rest.split_once('/').unwrap_or((rest, ""));
    if bucket.contains(['@', ':']) {
        return Err(bad("keys, hosts and ports do not belong in it"));
    }
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"._-".contains(&byte);
    if !(3..=255).contains(&bucket.len()) || !bucket.bytes().all(allowed) {
        return Err(bad("that is no bucket's name"));
    }
    let prefix = prefix.trim_end_matches('/');
    if prefix.is_empty() {
        return Ok((bucket.to_owned(), String::new()));
    }
    let odd = |name: &str| name.is_empty() || name == "." || name == "..";
    if prefix.split('/').any(odd) || prefix.len() > 512 {
        return Err(bad("the prefix has an empty part, a . or a .., or is too long"));
    }
    if prefix.contains(|c: char| c.is_control() || "?#%\\".contains(c)) {
        return Err(bad("the prefix has one of ? # % \\ or a control character"));
    }
    Ok((bucket.to_owned(), format!("{prefix}/")))
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

    #[test]
    fn all_names_of_an_archive_are_one() {
        let folder = std::env::temp_dir().join(format!("archive-names-{}", std::process::id()));
        let real = folder.join("real dir");
        std::fs::create_dir_all(&real).unwrap();
        std::os::unix::fs::symlink(&real, folder.join("link")).unwrap();
        let at = folder.to_str().unwrap();
        let id = identity(&format!("file://{at}/real%20dir/new/ar"));
        for other in [
            format!("file:{at}/real dir/new/ar/"),
            format!("file://localhost{at}/./real%20dir//new/./ar"),
            format!("file://{at}/link/new/ar"),
            format!("file://{at}/link/../real%20dir/x/../new/ar"),
        ] {
            assert_eq!(identity(&other), id, "{other}");
        }
        std::fs::create_dir_all(real.join("new/ar")).unwrap();
        assert_eq!(identity(&format!("file://{at}/link/new/ar")), id, "when it is there, too");
        assert_ne!(identity(&format!("file://{at}/link/new/ar2")), id);
        assert_ne!(identity("file:///a%ff"), identity("file:///a%fe"));
        assert_eq!(identity("s3://abc/d//"), identity("s3://abc/d"));
        assert_ne!(identity("s3://abc/d"), identity("s3://abc/e"));
        std::fs::remove_dir_all(folder).unwrap();
    }

    #[test]
    fn buckets() {
        let check = |url: &str, bucket: &str, prefix: &str| {
            assert_eq!(bucket_of(url).unwrap(), (bucket.to_owned(), prefix.to_owned()));
        };
        check("s3://abc", "abc", "");
        check("s3://abc/", "abc", "");
        check("s3://a.b-c/d", "a.b-c", "d/");
        check("s3://abc/d e/f//", "abc", "d e/f/");
        for url in [
            "s3:",
            "s3://",
            "s3://ab",
            "s3://a b c",
            "s3://key@abc/d",
            "s3://abc:9000/d",
            "s3://abc//d",
            "s3://abc/d/../e",
            "s3://abc/d?e",
            "s3://abc/d%20e",
            "s3:abc",
        ] {
            let error = bucket_of(url).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Usage, "{url}");
            assert!(error.to_string().contains("s3://BUCKET/PREFIX"), "{error}");
        }
    }
}
