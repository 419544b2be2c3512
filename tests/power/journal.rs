//! What a process asked of its files, in order: the recording, by strace, and its reading.
//!
//! strace sees the system calls themselves, so nothing escapes: SQLite's writes, those of the
//! standard library, and those that go past libc. One line each, or two if another thread's call
//! came in between; strings in hexadecimal. A call that this reader does not know fails the test if
//! it is about the folder that is recorded.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

/// The calls recorded. Memory mapped files are not seen: SQLite maps `-shm` alone, which a power
/// loss takes anyway.
pub const CALLS: &str = "open,openat,openat2,creat,close,lseek,write,pwrite64,writev,pwritev,\
    pwritev2,truncate,ftruncate,fallocate,rename,renameat,renameat2,link,linkat,symlink,symlinkat,\
    unlink,unlinkat,mkdir,mkdirat,rmdir,fsync,fdatasync,sync_file_range,sync,syncfs,\
    copy_file_range,sendfile,splice";

/// A call that was carried out.
pub struct Event {
    /// The lines of the recording where it began and ended.
    pub began: usize,
    pub ended: usize,
    /// When it began, in microseconds: recordings of several processes are put in order by it.
    pub time: u64,
    pub what: What,
}

#[derive(Debug)]
pub enum What {
    /// Opened so that it is made if it is missing.
    Create(PathBuf),
    Resize(PathBuf, u64),
    Write(PathBuf, u64, Vec<u8>),
    Sync(PathBuf),
    Rename(PathBuf, PathBuf),
    Link(PathBuf, PathBuf),
    Unlink(PathBuf),
    Mkdir(PathBuf),
    Rmdir(PathBuf),
    /// Said to whoever controls the process.
    Mark(String),
}

/// A value in a line: text, a descriptor with what it leads to, a number, or a word.
#[derive(Debug)]
enum Token {
    Text(Vec<u8>),
    Open(i64, PathBuf),
    Number(i64),
    Word(String),
}

/// Reads a recording, as far as it has come: what happened below `folder`, and the marks.
pub fn read(recording: &Path, folder: &Path) -> Vec<Event> {
    let text = std::fs::read(recording).unwrap_or_default();
    // Hexadecimal, so bytes are characters; a line being written is left for the next time.
    let text = String::from_utf8_lossy(&text);
    let whole = text.rfind('\n').map_or("", |end| &text[..end]);
    let wanted = hexadecimal(bytes_of(folder));
    let mut reader = Reader { folder, places: HashMap::new(), events: Vec::new() };
    let mut begun: HashMap<&str, (usize, u64, &str)> = HashMap::new();
    for (number, line) in whole.lines().enumerate() {
        let Some((process, time, call)) = split(line) else { continue };
        if let Some(start) = call.strip_suffix(" <unfinished ...>") {
            begun.insert(process, (number, time, start));
        } else if call.starts_with("<... ") {
            let (_, rest) = call.split_once(" resumed>").unwrap();
            // One that was on its way when the recording began is of no interest: nothing was
            // asked of the process before.
            let Some((began, time, start)) = begun.remove(process) else { continue };
            if start.contains(&wanted) || rest.contains(&wanted) || is_said(start) {
                reader.call(&format!("{start}{rest}"), (began, number), time);
            }
        } else if call.contains(&wanted) || is_said(call) {
            reader.call(call, (number, number), time);
        }
    }
    reader.events.sort_by_key(|event| event.ended);
    reader.events
}

/// As the recording writes a text.
pub fn hexadecimal(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("\\x{byte:02x}")).collect()
}

fn is_said(call: &str) -> bool {
    call.starts_with("write(1<") && !call.contains("= -1 ")
}

/// Process, time in microseconds, the rest.
fn split(line: &str) -> Option<(&str, u64, &str)> {
    let (process, rest) = line.split_once(' ')?;
    let (time, call) = rest.trim_start().split_once(' ')?;
    let (seconds, micros) = time.split_once('.')?;
    let time = seconds.parse::<u64>().ok()? * 1_000_000 + micros.parse::<u64>().ok()?;
    (!call.starts_with("+++") && !call.starts_with("---")).then_some((process, time, call))
}

struct Reader<'f> {
    folder: &'f Path,
    /// Where the next plain write goes, of each descriptor.
    places: HashMap<(i64, PathBuf), u64>,
    events: Vec<Event>,
}

impl Reader<'_> {
    fn call(&mut self, call: &str, (began, ended): (usize, usize), time: u64) {
        let (name, rest) = call.split_once('(').unwrap();
        let (arguments, result) = rest.rsplit_once(") ").unwrap_or((rest, ""));
        let (arguments, result) = match result.trim_start().strip_prefix("= ") {
            Some(result) => (arguments, result),
            // The error's text ends with a parenthesis too.
            None => return,
        };
        let result = tokens(result);
        let done = match result.first() {
            Some(Token::Number(value)) => *value,
            Some(Token::Open(descriptor, _)) => *descriptor,
            _ => return,
        };
        if done < 0 {
            return;
        }
        let opened = result.into_iter().find_map(|token| match token {
            Token::Open(_, path) => Some(path),
            _ => None,
        });
        let whats = self.understand(name, tokens(arguments), done, opened);
        let below = whats.into_iter().filter(|what| what.concerns(self.folder));
        self.events.extend(below.map(|what| Event { began, ended, time, what }));
    }

    fn understand(
        &mut self,
        name: &str,
        tokens: Vec<Token>,
        done: i64,
        opened: Option<PathBuf>,
    ) -> Vec<What> {
        let words: Vec<String> = tokens.iter().filter_map(word).collect();
        let has = |wanted: &str| words.iter().any(|word| word.split('|').any(|one| one == wanted));
        let number = |nth: usize| {
            let mut numbers = tokens.iter().filter_map(|token| match token {
                Token::Number(value) => u64::try_from(*value).ok(),
                _ => None,
            });
            numbers.nth(nth)
        };
        let first = tokens.iter().find_map(|token| match token {
            Token::Open(descriptor, path) => Some((*descriptor, path.clone())),
            _ => None,
        });
        let paths = paths(&tokens);
        match name {
            "open" | "openat" | "creat" => {
                let path = opened.unwrap();
                self.places.insert((done, path.clone()), 0);
                let truncates = has("O_TRUNC") || name == "creat";
                let resize = truncates.then(|| What::Resize(path.clone(), 0));
                let made = (has("O_CREAT") || name == "creat").then_some(What::Create(path));
                made.into_iter().chain(resize).collect()
            }
            "close" => {
                first.map(|first| self.places.remove(&first));
                Vec::new()
            }
            "lseek" => {
                first.map(|first| self.places.insert(first, done.unsigned_abs()));
                Vec::new()
            }
            "write" | "writev" | "pwrite64" | "pwritev" | "pwritev2" => {
                let at = match name {
                    "pwrite64" => Some(number(1).unwrap()),
                    "pwritev" => Some(last_number(&tokens)),
                    "pwritev2" => panic!("a call this reader does not know: {name}"),
                    _ => None,
                };
                vec![self.write(first.unwrap(), at, &tokens, done.unsigned_abs())]
            }
            "truncate" => vec![What::Resize(paths[0].clone(), number(0).unwrap())],
            "ftruncate" => vec![What::Resize(first.unwrap().1, number(0).unwrap())],
            "fsync" | "fdatasync" => vec![What::Sync(first.unwrap().1)],
            "rename" | "renameat" | "renameat2" => {
                assert!(!has("RENAME_EXCHANGE"));
                vec![What::Rename(paths[0].clone(), paths[1].clone())]
            }
            "link" | "linkat" => vec![What::Link(paths[0].clone(), paths[1].clone())],
            "unlinkat" if has("AT_REMOVEDIR") => vec![What::Rmdir(paths[0].clone())],
            "unlink" | "unlinkat" => vec![What::Unlink(paths[0].clone())],
            "mkdir" | "mkdirat" => vec![What::Mkdir(paths[0].clone())],
            "rmdir" => vec![What::Rmdir(paths[0].clone())],
            // Only for `-shm`: it makes room.
            "fallocate" => Vec::new(),
            _ => panic!("a call this reader does not know: {name} {tokens:?}"),
        }
    }

    /// A write of so many bytes, where the descriptor stands if not at a place of its own.
    fn write(&mut self, to: (i64, PathBuf), at: Option<u64>, tokens: &[Token], done: u64) -> What {
        let mut bytes: Vec<u8> = tokens.iter().flat_map(text).copied().collect();
        bytes.truncate(usize::try_from(done).unwrap());
        if to.0 == 1 {
            return What::Mark(String::from_utf8_lossy(&bytes).into_owned());
        }
        let path = to.1.clone();
        let at = at.unwrap_or_else(|| {
            let place = self.places.entry(to).or_default();
            *place += done;
            *place - done
        });
        What::Write(path, at, bytes)
    }
}

impl What {
    fn concerns(&self, folder: &Path) -> bool {
        match self {
            What::Mark(_) => true,
            What::Rename(from, to) | What::Link(from, to) => {
                let inside = [from, to].map(|path| path.starts_with(folder));
                assert_eq!(inside[0], inside[1], "{from:?} to {to:?}");
                inside[0]
            }
            What::Create(path)
            | What::Resize(path, _)
            | What::Write(path, _, _)
            | What::Sync(path)
            | What::Unlink(path)
            | What::Mkdir(path)
            | What::Rmdir(path) => path.starts_with(folder),
        }
    }
}

fn text(token: &Token) -> &[u8] {
    if let Token::Text(bytes) = token { bytes } else { &[] }
}

fn word(token: &Token) -> Option<String> {
    if let Token::Word(word) = token { Some(word.clone()) } else { None }
}

fn last_number(tokens: &[Token]) -> u64 {
    match tokens.last() {
        Some(Token::Number(value)) => u64::try_from(*value).unwrap(),
        other => panic!("{other:?} is no offset"),
    }
}

/// The paths named: absolute, or below the folder whose descriptor stands before them.
fn paths(tokens: &[Token]) -> Vec<PathBuf> {
    let mut below = PathBuf::new();
    let mut found = Vec::new();
    for token in tokens {
        match token {
            Token::Open(_, folder) => folder.clone_into(&mut below),
            Token::Text(bytes) => found.push(below.join(path_of(bytes))),
            _ => {}
        }
    }
    found
}

/// The values in a line, in order, brackets and names of fields left out.
fn tokens(line: &str) -> Vec<Token> {
    let mut found = Vec::new();
    let mut rest = line;
    loop {
        rest = rest.trim_start_matches([' ', ',', '[', ']', '{', '}']);
        if rest.is_empty() {
            return found;
        }
        if let Some(quoted) = rest.strip_prefix('"') {
            let (text, after) = quoted.split_once('"').unwrap();
            assert!(!after.starts_with("..."), "a string was cut short: {}", text.len());
            found.push(Token::Text(unhex(text)));
            rest = after;
            continue;
        }
        let end = rest.find([' ', ',', ']', '}', '<', '"', '=']).unwrap_or(rest.len());
        let (word, after) = rest.split_at(end);
        rest = after;
        if let Some(path) = rest.strip_prefix('<') {
            let (path, after) = path.split_once('>').unwrap();
            // -100 is AT_FDCWD. What was deleted and is still open is of no interest.
            let gone = after.starts_with("(deleted)");
            let path = if gone { PathBuf::new() } else { path_of(&unhex(path)) };
            found.push(Token::Open(word.parse().unwrap_or(-100), path));
            rest = after.strip_prefix("(deleted)").unwrap_or(after);
        } else if let Some(after) = rest.strip_prefix('=') {
            rest = after;
        } else if let Ok(number) = word.parse() {
            found.push(Token::Number(number));
        } else {
            found.push(Token::Word(word.to_owned()));
        }
    }
}

/// `\x2f\x74` as bytes. What leads to no file (a pipe, a socket) is not written so.
fn unhex(text: &str) -> Vec<u8> {
    if !text.starts_with("\\x") {
        return text.as_bytes().to_vec();
    }
    let digit = |byte: u8| char::from(byte).to_digit(16).unwrap() as u8;
    text.as_bytes().chunks(4).map(|code| digit(code[2]) << 4 | digit(code[3])).collect()
}

fn bytes_of(path: &Path) -> &[u8] {
    std::os::unix::ffi::OsStrExt::as_bytes(path.as_os_str())
}

fn path_of(bytes: &[u8]) -> PathBuf {
    PathBuf::from(<std::ffi::OsStr as std::os::unix::ffi::OsStrExt>::from_bytes(bytes))
}
