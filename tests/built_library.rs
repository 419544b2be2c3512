//! The built library as a guest of SQLite: it brings no SQLite of its own, and asks for none when
//! it is loaded.
//!
//! A second SQLite in a process breaks the first one's POSIX locks: closing any descriptor of a
//! file drops all of them. And a library that asks the linker for `sqlite3_*` finds whichever copy
//! the process happens to have, or none. Everything must go through the routines the host hands
//! over.
#![allow(missing_docs)]
#![allow(clippy::unwrap_used)]

use std::path::PathBuf;
use std::process::Command;

const ENTRY_POINT: &str = "sqlite3_litestream_init";

fn library() -> PathBuf {
    let name = if cfg!(target_os = "macos") { "liblitestream.dylib" } else { "liblitestream.so" };
    std::env::current_exe().unwrap().with_file_name(name)
}

/// What tests use to make operations fail (the module `fault`) is no part of it: neither the
/// function nor the variable, nor any of the names.
#[test]
fn nothing_in_it_fails_on_purpose() {
    let bytes = std::fs::read(library()).unwrap();
    let all = String::from_utf8_lossy(&bytes);
    assert!(all.contains("litestream_replicate"), "the search finds what is there");
    for text in ["litestream_fault", "LITESTREAM_FAULT", "log/file/sync", "follow/wal/write"] {
        assert!(!all.contains(text), "{text}");
    }
}

#[test]
fn it_holds_no_sqlite_and_links_to_none() {
    let library = library();
    let output = Command::new("nm").arg(&library).output().unwrap();
    assert!(output.status.success(), "nm {}: {output:?}", library.display());
    let text = String::from_utf8(output.stdout).unwrap();

    // "address kind name", or "kind name" for what is not in the library.
    let symbols = text.lines().filter_map(|line| {
        let mut words = line.split_whitespace().rev();
        let (name, kind) = (words.next()?, words.next()?);
        Some((kind, name.strip_prefix('_').filter(|_| cfg!(target_os = "macos")).unwrap_or(name)))
    });
    let found: Vec<_> = symbols.filter(|(_, name)| name.starts_with("sqlite3_")).collect();
    assert_eq!(found, [("T", ENTRY_POINT)], "only the entry point may be called sqlite3_...");
}
