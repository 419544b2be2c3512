//! The scripts in `sql/`, run as a person runs them: real `sqlite3` shells, `.load`, in order.
//!
//! A script's first line names the shell that runs it (`-- shell: primary`); a shell stays open
//! from script to script. What is typed and what is answered is compared with the script's
//! `.expected`. What differs from run to run is masked: the port, the folder, generations and
//! times. So is what differs between versions of the shell: where it says an error is, and its
//! code. `UPDATE_EXPECTED=1` rewrites the files.
#![allow(missing_docs)]
#![allow(clippy::unwrap_used, clippy::panic)]

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::Duration;

/// The port the scripts name. Each run uses one that is free.
const PORT: &str = "9090";
/// No statement takes longer.
const DEADLINE: Duration = Duration::from_secs(60);

#[test]
fn scripts_print_what_is_expected() {
    let folder = Folder::new();
    let library =
        if cfg!(target_os = "macos") { "liblitestream.dylib" } else { "liblitestream.so" };
    let built = std::env::current_exe().unwrap().parent().unwrap().join(library);
    std::os::unix::fs::symlink(built, folder.0.join(library)).unwrap();
    let masks = Masks { port: free_port(), folder: folder.0.to_str().unwrap().to_owned() };
    let update = std::env::var_os("UPDATE_EXPECTED").is_some();

    let mut shells = BTreeMap::new();
    let mut wrong = String::new();
    for script in scripts() {
        let text = fs::read_to_string(&script).unwrap();
        let name = text.strip_prefix("-- shell: ").unwrap().lines().next().unwrap().to_owned();
        let shell = shells.entry(name).or_insert_with_key(|name| Shell::start(&folder.0, name));
        let mut transcript = String::new();
        for statement in statements(&text) {
            let said = shell.ask(&statement.replace(PORT, &masks.port));
            writeln!(transcript, "{}> {statement}", shell.name).unwrap();
            for line in said.iter().filter(|line| !points_at_the_error(line)) {
                writeln!(transcript, "{}", masks.apply(line)).unwrap();
            }
        }
        let expected = script.with_extension("expected");
        if update {
            fs::write(&expected, &transcript).unwrap();
            continue;
        }
        let text = fs::read_to_string(&expected).unwrap_or_default();
        if text != transcript {
            writeln!(wrong, "{}:\n{}", expected.display(), difference(&text, &transcript)).unwrap();
        }
    }
    assert!(wrong.is_empty(), "\n{wrong}if that is right: make update-expected");
}

fn scripts() -> Vec<PathBuf> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("sql");
    let entries = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    let mut scripts: Vec<_> =
        entries.filter(|path| path.extension().is_some_and(|ending| ending == "sql")).collect();
    scripts.sort();
    assert!(scripts.len() > 5);
    scripts
}

/// The lines between what both begin with and what both end with.
fn difference(expected: &str, found: &str) -> String {
    let [mut old, mut new] = [expected, found].map(|text| text.lines().collect::<Vec<_>>());
    let same = old.iter().zip(&new).take_while(|(old, new)| old == new).count();
    old.drain(..same);
    new.drain(..same);
    while !old.is_empty() && old.last() == new.last() {
        old.pop();
        new.pop();
    }
    let old = old.iter().map(|line| format!("- {line}\n"));
    old.chain(new.iter().map(|line| format!("+ {line}\n"))).collect()
}

/// Some versions of the shell repeat an erroneous statement and draw an arrow.
fn points_at_the_error(line: &str) -> bool {
    line.starts_with("  ")
}

/// Dot commands, and SQL up to a line's last semicolon; no comments.
fn statements(script: &str) -> Vec<String> {
    let mut found = Vec::new();
    let mut open = String::new();
    let lines = script.lines().map(str::trim);
    for line in lines.filter(|line| !line.is_empty() && !line.starts_with("--")) {
        open.push_str(line);
        if line.ends_with(';') || line.starts_with('.') {
            found.push(std::mem::take(&mut open));
        } else {
            open.push(' ');
        }
    }
    assert!(open.is_empty(), "no semicolon after {open}");
    found
}

fn free_port() -> String {
    let listener = TcpListener::bind(("127.0.0.1", 0)).unwrap();
    listener.local_addr().unwrap().port().to_string()
}

// --- a shell -------------------------------------------------------------------------------------

struct Shell {
    name: String,
    child: Child,
    stdin: ChildStdin,
    lines: Receiver<String>,
}

impl Shell {
    /// On a database of the shell's name. Both its outputs come through one pipe, in order.
    fn start(folder: &Path, name: &str) -> Shell {
        let program = std::env::var("SQLITE3").unwrap_or_else(|_| "sqlite3".to_owned());
        let mut child = Command::new("sh")
            .args(["-c", "exec \"$0\" -batch -init /dev/null \"$1\" 2>&1", &program])
            .arg(format!("{name}.db"))
            .current_dir(folder)
            .env_remove("LITESTREAM_TOKEN")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let (sender, lines) = channel();
        let out = BufReader::new(child.stdout.take().unwrap());
        std::thread::spawn(move || {
            out.lines().map_while(Result::ok).try_for_each(|line| sender.send(line))
        });
        let stdin = child.stdin.take().unwrap();
        Shell { name: name.to_owned(), child, stdin, lines }
    }

    fn ask(&mut self, statement: &str) -> Vec<String> {
        const END: &str = "-- end --";
        writeln!(self.stdin, "{statement}\n.print '{END}'").unwrap();
        self.stdin.flush().unwrap();
        let mut said = Vec::new();
        loop {
            match self.lines.recv_timeout(DEADLINE) {
                Ok(line) if line == END => return said,
                Ok(line) => said.push(line),
                Err(why) => panic!("{statement}: {why} after {said:?}"),
            }
        }
    }
}

impl Drop for Shell {
    fn drop(&mut self) {
        let _gone_already = self.child.kill();
        let _ = self.child.wait();
    }
}

struct Folder(PathBuf);

impl Folder {
    fn new() -> Folder {
        let name = format!("litestream-sql-{}", std::process::id());
        let path = std::env::temp_dir().canonicalize().unwrap().join(name);
        fs::create_dir_all(&path).unwrap();
        Folder(path)
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

// --- masks ---------------------------------------------------------------------------------------

struct Masks {
    port: String,
    folder: String,
}

impl Masks {
    fn apply(&self, line: &str) -> String {
        let line = line.replace(&self.folder, "/folder").replace(&self.port, PORT);
        // One spelling for "Runtime error near line 3: text (5)", "Parse error: text", "Error:
        // text".
        let (before, text) = line.split_once(": ").unwrap_or(("", &line));
        let is_error = before.split(' ').any(|word| word.eq_ignore_ascii_case("error"));
        let line = match is_error {
            true => format!("error: {}", without_code(text)),
            false => line,
        };
        mask_times(&mask_remotes(&mask_generations(&line)))
    }
}

/// Newer shells put the result code in brackets at the end.
fn without_code(text: &str) -> &str {
    let Some((rest, code)) = text.strip_suffix(')').and_then(|text| text.rsplit_once(" (")) else {
        return text;
    };
    if code.bytes().all(|byte| byte.is_ascii_digit()) { rest } else { text }
}

/// 16 hex digits, unless they are spelled somewhere: indexes and offsets are small here.
fn mask_generations(line: &str) -> String {
    replace_runs(
        line,
        |c| c.is_ascii_hexdigit(),
        |run| {
            let spelled = ["0123456789abcdef", "0123456789ABCDEF", "1125899906842624"];
            let spelled = run.starts_with("00000000") || spelled.contains(&run);
            (run.len() == 16 && !spelled).then(|| "GENERATION".to_owned())
        },
    )
}

fn mask_remotes(line: &str) -> String {
    replace_runs(
        line,
        |c| c.is_ascii_digit() || c == '.' || c == ':',
        |run| {
            let port = run.strip_prefix("127.0.0.1:").filter(|port| *port != PORT && *port != "0");
            port.filter(|port| port.parse::<u16>().is_ok()).map(|_| "127.0.0.1:PORT".to_owned())
        },
    )
}

fn mask_times(line: &str) -> String {
    replace_runs(
        line,
        |c| c.is_ascii_digit() || "-:.TZ".contains(c),
        |run| (run.len() == 24 && run.ends_with('Z')).then(|| "TIME".to_owned()),
    )
}

/// Replaces each longest run of characters in `class` for which there is a replacement.
fn replace_runs(
    line: &str,
    class: impl Fn(char) -> bool,
    replacement: impl Fn(&str) -> Option<String>,
) -> String {
    let mut out = String::new();
    let mut rest = line;
    while !rest.is_empty() {
        let begin = rest.find(&class).unwrap_or(rest.len());
        out.push_str(&rest[..begin]);
        rest = &rest[begin..];
        let end = rest.find(|c| !class(c)).unwrap_or(rest.len());
        let run = &rest[..end];
        out.push_str(&replacement(run).unwrap_or_else(|| run.to_owned()));
        rest = &rest[end..];
    }
    out
}
