//! Style as a test: what a reader may rely on in every file of this project.
//!
//! | rule                                             | where                |
//! |--------------------------------------------------|----------------------|
//! | 100 columns, ASCII, no tab, no trailing space    | every text file      |
//! | 450 lines a file, 70 lines a function            | Rust                 |
//! | a `//!` sentence on top                          | Rust                 |
//! | no note to self, no test switched off            | Rust, scripts        |
//! | `unsafe` only in `src/host/` and the entry point | `src/`               |
//! | `SAFETY:` before each `unsafe`                   | `src/`               |
//! | imports point down the table of layers           | `src/`, without tests|
//! | threads start in `registry` only                 | `src/`, without tests|
//!
//! Which modules may open files is checked in tests/host/files.rs; banned functions are in
//! clippy.toml.
#![allow(missing_docs)]
#![allow(clippy::unwrap_used, clippy::panic)]

use std::fs;
use std::path::{Path, PathBuf};

const COLUMNS_MAX: usize = 100;
const FILE_LINES_MAX: usize = 450;
const FUNCTION_LINES_MAX: usize = 70;

/// A `SAFETY:` note stands at most so many lines above its `unsafe`.
const NOTE_LINES_MAX: usize = 8;

/// Folders of what was made or found, not written.
const OTHERS: &[&str] =
    &[".git", ".venv", "target", "__pycache__", "corpus", "artifacts", "coverage"];

/// Values and bytes: no I/O on databases, no threads, no SQLite.
const CORE: &[&str] = &[
    "error", "fault", "files", "header", "info", "lz4", "options", "percent", "pos", "record",
    "redact", "token", "wal", "walindex",
];

/// The other modules, and what each may import besides itself and the core. `capture`, `follow` and
/// `serve` do not know each other: they meet in the log.
const LAYERS: &[(&str, &[&str])] = &[
    ("host", &[]),
    ("registry", &["host"]),
    ("team", &["host", "registry"]),
    ("log", &["host", "registry"]),
    ("transport", &["host"]),
    ("archive", &["host", "transport"]),
    ("pages", &["host"]),
    ("capture", &["host", "registry", "log", "pages"]),
    ("follow", &["host", "registry", "team", "log", "pages", "transport", "archive"]),
    ("serve", &["host", "registry", "log", "pages"]),
    ("restore", &["host", "registry", "team", "archive"]),
    ("replicate", &["host", "registry", "log", "capture", "archive"]),
    (
        "databases",
        &[
            "host",
            "registry",
            "log",
            "pages",
            "capture",
            "follow",
            "serve",
            "archive",
            "replicate",
            "restore",
        ],
    ),
    (
        "sql",
        &[
            "host",
            "registry",
            "log",
            "pages",
            "capture",
            "follow",
            "serve",
            "archive",
            "replicate",
            "restore",
            "databases",
        ],
    ),
    ("lib", &["host", "sql"]),
];

/// Spelled in two parts, so that this file does not hold them.
const NOTES: &[&str] = &[
    concat!("TO", "DO"),
    concat!("FIX", "ME"),
    concat!("XX", "X"),
    concat!("#[ig", "nore"),
    concat!("to", "do!("),
    concat!("unimple", "mented!("),
];

#[test]
fn text_is_ascii_within_100_columns() {
    let mut wrong = Vec::new();
    for file in files(&["rs", "md", "toml", "sh", "py", "sql", "expected", "txt", ""]) {
        // Text that is not ours, and lines that cannot be broken.
        let quoted = file.name == "LICENSE" || file.name.starts_with("tests/data/");
        for (number, line) in file.lines() {
            let wide = line.chars().count() > COLUMNS_MAX;
            if wide && !quoted && may_be_broken(&file.name, line) {
                wrong.push(file.at(number, "wider than 100 columns"));
            }
            if !line.is_ascii() {
                wrong.push(file.at(number, "not ASCII"));
            }
            if line.ends_with(' ') || (line.contains('\t') && file.name != "Makefile") {
                wrong.push(file.at(number, "a tab or a space at the end"));
            }
        }
    }
    assert_none(&wrong);
}

/// Tables, settings and what a program printed have lines as long as they are.
fn may_be_broken(name: &str, line: &str) -> bool {
    let one_line = [".toml", ".expected", ".txt", "Makefile"];
    let table = ["|", "//! |", "/// |"].iter().any(|start| line.starts_with(start));
    !table && !one_line.iter().any(|end| name.ends_with(end))
}

#[test]
fn files_and_functions_fit_a_reader() {
    let mut wrong = Vec::new();
    for file in files(&["rs"]) {
        let lines = file.text.lines().count();
        if lines > FILE_LINES_MAX {
            wrong.push(file.at(lines, &format!("more than {FILE_LINES_MAX} lines")));
        }
        if !file.text.starts_with("//! ") {
            wrong.push(file.at(1, "no //! sentence on top"));
        }
        for (number, length) in functions(&code_of(&file.text)) {
            if length > FUNCTION_LINES_MAX {
                wrong.push(file.at(number, &format!("a function of {length} lines")));
            }
        }
    }
    assert_none(&wrong);
}

#[test]
fn no_notes_to_self_and_no_switched_off_tests() {
    let mut wrong = Vec::new();
    for file in files(&["rs", "toml", "sh", "py", "sql", "md", ""]) {
        for (number, line) in file.lines() {
            for note in NOTES.iter().filter(|note| line.contains(**note)) {
                wrong.push(file.at(number, note));
            }
        }
    }
    assert_none(&wrong);
}

#[test]
fn unsafe_stays_in_the_host_and_gives_its_reasons() {
    let mut wrong = Vec::new();
    for file in sources() {
        let at_home = file.name.starts_with("src/host/") || file.name == "src/lib.rs";
        let text: Vec<&str> = file.text.lines().collect();
        for (index, line) in code_of(&file.text).iter().enumerate() {
            if !has_word(line, "unsafe") {
                continue;
            }
            if !at_home {
                wrong.push(file.at(index + 1, "unsafe outside src/host/"));
            }
            let declares =
                ["unsafe fn", "unsafe extern", "unsafe("].iter().any(|it| line.contains(it));
            let above = &text[index.saturating_sub(NOTE_LINES_MAX)..=index];
            let noted = above.iter().any(|line| line.contains("SAFETY:"));
            if !declares && !noted {
                wrong.push(file.at(index + 1, "unsafe without a SAFETY: note"));
            }
        }
    }
    assert_none(&wrong);
}

#[test]
fn imports_point_down() {
    let mut wrong = Vec::new();
    for file in sources() {
        let module = module_of(&file.name);
        for (index, line) in product_of(&file.text).iter().enumerate() {
            for import in imports(line) {
                if !may_import(&module, import) {
                    let what = format!("{module} must not import {import}");
                    wrong.push(file.at(index + 1, &what));
                }
            }
        }
    }
    assert_none(&wrong);
}

#[test]
fn threads_start_in_the_registry() {
    let mut wrong = Vec::new();
    for file in sources().into_iter().filter(|file| file.name != "src/registry.rs") {
        for (index, line) in product_of(&file.text).iter().enumerate() {
            let starts = ["thread::spawn", "thread::Builder", "thread::scope"];
            if starts.iter().any(|start| line.contains(start)) {
                wrong.push(file.at(index + 1, "a thread outside registry::spawn_worker"));
            }
        }
    }
    assert_none(&wrong);
}

#[test]
fn the_checks_see_what_they_look_for() {
    let code = code_of("let x = \"unsafe { // \\\" }\"; // unsafe\nlet c = '\"'; let l: &'a u8;\n");
    assert_eq!(code, ["let x = \"\"; ", "let c = ''; let l: &'a u8;"]);
    let raw = code_of("a(r#\"unsafe \" {\"#, /* { /* { */ */ b'{');");
    assert_eq!(raw, ["a(\"\",  b'');"]);
    let lines: Vec<String> = ["fn f() {", "    {}", "}", "fn g();"].map(String::from).into();
    assert_eq!(functions(&lines), [(1, 3)]);
    assert!(may_import("capture", "log") && may_import("serve", "pos"));
    assert!(!may_import("capture", "serve") && !may_import("pos", "log"));
    assert!(!may_import("host", "log") && !may_import("log", "capture"));
    assert_eq!(
        imports("use crate::{log::Log, lz4}; crate::error::lock(x)"),
        ["log", "lz4", "error"]
    );
}

// --- files ---------------------------------------------------------------------------------------

struct Source {
    /// Relative to the root, with slashes.
    name: String,
    text: String,
}

impl Source {
    fn at(&self, number: usize, what: &str) -> String {
        format!("{}:{number}: {what}", self.name)
    }

    fn lines(&self) -> impl Iterator<Item = (usize, &str)> {
        self.text.lines().enumerate().map(|(index, line)| (index + 1, line))
    }
}

/// Our own text files with one of these endings ("" is none at all), generated ones left out.
fn files(endings: &[&str]) -> Vec<Source> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut paths = Vec::new();
    collect(root, &mut paths);
    let mut found = Vec::new();
    for path in paths {
        let ending = path.extension().unwrap_or_default().to_str().unwrap();
        let name = path.strip_prefix(root).unwrap().to_str().unwrap().to_owned();
        let hidden = name.starts_with('.') && name != ".ci/run";
        let generated = name == "Cargo.lock" || name.starts_with("vendor/");
        if endings.contains(&ending) && !hidden && !generated {
            let text = fs::read_to_string(&path).unwrap_or_else(|why| panic!("{name}: {why}"));
            found.push(Source { name, text });
        }
    }
    assert!(found.len() > 10, "the project is not where this looks for it");
    found
}

fn sources() -> Vec<Source> {
    files(&["rs"]).into_iter().filter(|file| file.name.starts_with("src/")).collect()
}

fn collect(folder: &Path, into: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_str().unwrap();
        if !path.is_dir() {
            into.push(path);
        } else if !OTHERS.contains(&name) {
            collect(&path, into);
        }
    }
}

fn assert_none(wrong: &[String]) {
    assert!(wrong.is_empty(), "{} places:\n{}", wrong.len(), wrong.join("\n"));
}

// --- Rust ----------------------------------------------------------------------------------------

/// The module of the crate a file belongs to: `src/log/reader.rs` is part of `log`.
fn module_of(name: &str) -> String {
    let inside = name.strip_prefix("src/").unwrap();
    inside.split(['/', '.']).next().unwrap().to_owned()
}

fn may_import(module: &str, import: &str) -> bool {
    let layer = LAYERS.iter().find(|(name, _)| *name == module);
    let below = layer.map_or(&[][..], |(_, below)| below);
    assert!(layer.is_some() || CORE.contains(&module), "{module} has no place in LAYERS");
    import == module || CORE.contains(&import) || below.contains(&import)
}

/// The modules a line names after `crate::`, alone or in braces.
fn imports(line: &str) -> Vec<&str> {
    let mut found = Vec::new();
    for rest in line.split("crate::").skip(1) {
        let list = rest.strip_prefix('{').map(|list| list.split('}').next().unwrap());
        for item in list.unwrap_or(rest).split(',') {
            let ends = |c: char| !c.is_ascii_lowercase() && !c.is_ascii_digit();
            found.push(item.trim().split(ends).next().unwrap());
            if list.is_none() {
                break;
            }
        }
    }
    found.retain(|name| !name.is_empty());
    found
}

/// The code of a file without its unit tests, which stand at the end or in files of their own.
fn product_of(text: &str) -> Vec<String> {
    let lines = code_of(text);
    let end = lines.iter().position(|line| line.trim() == "#[cfg(test)]").unwrap_or(lines.len());
    lines[..end].to_vec()
}

/// The number of the first line, and how many lines, of each function that has a body.
fn functions(code: &[String]) -> Vec<(usize, usize)> {
    let mut found = Vec::new();
    for (start, line) in code.iter().enumerate().filter(|(_, line)| has_word(line, "fn")) {
        let begins = line.trim_start();
        let words = ["fn ", "pub", "const fn", "async fn", "unsafe ", "extern "];
        if !words.iter().any(|word| begins.starts_with(word)) {
            continue;
        }
        let mut depth = 0;
        'body: for (end, line) in code.iter().enumerate().skip(start) {
            for byte in line.bytes() {
                match byte {
                    b'{' => depth += 1,
                    b'}' => depth -= 1,
                    b';' if depth == 0 => break 'body,
                    _ => {}
                }
                if byte == b'}' && depth == 0 {
                    found.push((start + 1, end - start + 1));
                    break 'body;
                }
            }
        }
    }
    found
}

fn has_word(line: &str, word: &str) -> bool {
    line.split(|c: char| !c.is_ascii_alphanumeric() && c != '_').any(|it| it == word)
}

/// The lines of a Rust file without comments, and with every literal's content taken out.
fn code_of(text: &str) -> Vec<String> {
    let mut out = String::new();
    let mut rest = text;
    while let Some(first) = rest.chars().next() {
        let skipped = match first {
            '/' if rest.starts_with("//") => rest.find('\n').unwrap_or(rest.len()),
            '/' if rest.starts_with("/*") => block_comment(rest),
            '"' => push(&mut out, "\"\"", string(rest)),
            'r' if !ends_in_word(&out) && raw_hashes(rest).is_some() => {
                push(&mut out, "\"\"", raw_string(rest, raw_hashes(rest).unwrap()))
            }
            '\'' => match character(rest) {
                Some(length) => push(&mut out, "''", length),
                None => push(&mut out, "'", 1),
            },
            other => push(&mut out, other.encode_utf8(&mut [0; 4]), other.len_utf8()),
        };
        // Lines keep their numbers.
        if !rest.starts_with('\n') {
            out.extend(rest[..skipped].chars().filter(|c| *c == '\n'));
        }
        rest = &rest[skipped..];
    }
    out.lines().map(str::to_owned).collect()
}

fn push(out: &mut String, text: &str, length: usize) -> usize {
    out.push_str(text);
    length
}

fn ends_in_word(out: &str) -> bool {
    out.ends_with(|c: char| c.is_ascii_alphanumeric() && c != 'b' && c != 'c' || c == '_')
}

fn block_comment(rest: &str) -> usize {
    let (mut depth, mut at) = (0, 0);
    while at < rest.len() {
        if rest[at..].starts_with("/*") {
            (depth, at) = (depth + 1, at + 2);
        } else if rest[at..].starts_with("*/") {
            (depth, at) = (depth - 1, at + 2);
            if depth == 0 {
                return at;
            }
        } else {
            at += rest[at..].chars().next().unwrap().len_utf8();
        }
    }
    at
}

fn string(rest: &str) -> usize {
    let mut escaped = false;
    for (at, c) in rest.char_indices().skip(1) {
        match c {
            _ if escaped => escaped = false,
            '\\' => escaped = true,
            '"' => return at + 1,
            _ => {}
        }
    }
    rest.len()
}

/// How many `#` a raw string that begins here has, if one does.
fn raw_hashes(rest: &str) -> Option<usize> {
    let after = rest[1..].trim_start_matches('#');
    after.starts_with('"').then(|| rest.len() - 1 - after.len())
}

fn raw_string(rest: &str, hashes: usize) -> usize {
    let end = format!("\"{}", "#".repeat(hashes));
    let begin = 2 + hashes;
    rest[begin..].find(&end).map_or(rest.len(), |at| begin + at + end.len())
}

/// The length of the character literal that begins here; `None` for a lifetime.
fn character(rest: &str) -> Option<usize> {
    if rest[1..].starts_with('\\') {
        return rest[3..].find('\'').map(|at| at + 4);
    }
    let mut following = rest.char_indices().skip(2);
    following.next().filter(|(_, c)| *c == '\'').map(|(at, _)| at + 1)
}
