//! Hosts for the end-to-end tests: applications in processes of their own, under remote control.
//!
//! [`Host`] is a Python process (tests/py/host.py) with a chosen SQLite, with or without the
//! extension; [`Db`] is one connection in it; [`Work`] is an application's load running in it.
//! Every wait has a deadline. A host ends with its value: killed, by its own id. Nothing of ours
//! may ever write to a host's stdout or stderr, so a word on stderr fails the test.
#![allow(dead_code, reason = "each test program uses its own part of this")]
#![allow(clippy::unwrap_used, clippy::panic, clippy::print_stderr, clippy::print_stdout)]
#![allow(clippy::cast_possible_truncation, missing_docs)]

mod archive;
mod folder;
mod kit;
mod pipe;
pub mod proxy;
mod scenario;
pub mod servers;
mod shell;
pub mod stream_parts;

#[allow(unused_imports, reason = "not every test program archives")]
pub use archive::*;
pub use folder::Folder;
pub use kit::*;
#[allow(unused_imports, reason = "each test program uses its own part of this")]
pub use scenario::*;
#[allow(unused_imports, reason = "not every test program needs a shell")]
pub use shell::Shell;

use std::collections::HashMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::path::Path;
use std::process::{Child, ChildStdin, Command, ExitStatus, Stdio};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

pub use serde_json::{Value, json};

type Waiting = Arc<Mutex<Option<HashMap<u64, Sender<Value>>>>>;

/// What the two ends of a host's pipes share.
struct Line {
    stdin: Mutex<Option<ChildStdin>>,
    /// `None` once the host is gone.
    waiting: Waiting,
    next: Mutex<u64>,
}

impl Line {
    fn send(&self, mut request: Value) -> Pending {
        let (sender, receiver) = channel();
        let mut next = self.next.lock().unwrap();
        *next += 1;
        request["id"] = json!(*next);
        let what = request.to_string();
        if let Some(waiting) = self.waiting.lock().unwrap().as_mut() {
            waiting.insert(*next, sender);
        }
        if let Some(stdin) = self.stdin.lock().unwrap().as_mut() {
            let _gone_is_seen_by_the_reader =
                writeln!(stdin, "{what}").and_then(|()| stdin.flush());
        }
        let what = what.chars().take(300).collect();
        Pending { what, receiver }
    }
}

/// A request on its way.
pub struct Pending {
    what: String,
    receiver: Receiver<Value>,
}

impl Pending {
    /// The answer, or why the host refused; fails the test if there is none in time.
    pub fn outcome(self, limit: Duration) -> Result<Value, String> {
        use std::sync::mpsc::RecvTimeoutError::{Disconnected, Timeout};
        match self.receiver.recv_timeout(limit) {
            Ok(answer) => self.read(answer),
            Err(Timeout) => panic!("no answer within {limit:?} to {}", self.what),
            Err(Disconnected) => panic!("the host ended before it answered {}", self.what),
        }
    }

    /// The same, of a host that may end first: then there is no outcome.
    pub fn outcome_if_any(self, limit: Duration) -> Option<Result<Value, String>> {
        use std::sync::mpsc::RecvTimeoutError::{Disconnected, Timeout};
        match self.receiver.recv_timeout(limit) {
            Ok(answer) => Some(self.read(answer)),
            Err(Timeout) => panic!("no answer within {limit:?} to {}", self.what),
            Err(Disconnected) => None,
        }
    }

    fn read(&self, mut answer: Value) -> Result<Value, String> {
        match answer["error"].as_str() {
            None => Ok(answer["rows"].take()),
            Some(error) if answer["code"] == -1 => panic!("{error}: {}", self.what),
            Some(error) => Err(error.to_owned()),
        }
    }

    /// The outcome, if there is one yet.
    pub fn poll(&self) -> Option<Result<Value, String>> {
        let mut answer = self.receiver.try_recv().ok()?;
        Some(answer["error"].as_str().map(str::to_owned).map_or(Ok(answer["rows"].take()), Err))
    }

    fn report(self) -> Value {
        let answer = self.receiver.recv_timeout(DEADLINE);
        answer.unwrap_or_else(|why| panic!("{why}: {}", self.what))["report"].take()
    }
}

/// An application in a process of its own.
pub struct Host {
    child: Child,
    line: Arc<Line>,
    reader: Option<JoinHandle<Vec<String>>>,
    complaints: Option<JoinHandle<String>>,
    extension: bool,
    version: String,
}

impl Host {
    /// The system's SQLite, with the extension.
    pub fn app() -> Host {
        Host::loading(&library())
    }

    /// The system's SQLite, with this build of the extension.
    pub fn loading(library: &Path) -> Host {
        Host::start(&[], "sqlite3", None, Some(library))
    }

    /// The system's SQLite, which never heard of the extension.
    pub fn plain() -> Host {
        Host::start(&[], "sqlite3", None, None)
    }

    /// Another SQLite than the system's.
    pub fn of(module: &Module, extension: bool) -> Host {
        let library = extension.then(library);
        Host::start(&[], module.0, Some(&module.1), library.as_deref())
    }

    /// [`Host::app`], started by another command that becomes it, such as `env NAME=VALUE`.
    pub fn under(command: &[&str]) -> Host {
        Host::start(command, "sqlite3", None, Some(&library()))
    }

    fn start(under: &[&str], module: &str, folder: Option<&Path>, library: Option<&Path>) -> Host {
        // The standard module has none of its own: it takes the shared library that is found first.
        let (folder, shared) = if module == "sqlite3" { (None, folder) } else { (folder, None) };
        let setting = json!({"module": module, "folder": folder, "extension": library});
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/py/host.py");
        let python = python().to_str().unwrap();
        let words: Vec<&str> = under.iter().copied().chain([python]).collect();
        let mut child = Command::new(words[0])
            .args(&words[1..])
            .envs(shared.map(|folder| ("LD_LIBRARY_PATH", folder)))
            .arg("-B")
            .arg(script)
            .arg(setting.to_string())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let (first, started) = channel();
        let waiting: Waiting = Arc::new(Mutex::new(Some(HashMap::from([(0, first)]))));
        let stdout = BufReader::new(child.stdout.take().unwrap());
        let mut stderr = child.stderr.take().unwrap();
        let line = Line {
            stdin: Mutex::new(child.stdin.take()),
            waiting: Arc::clone(&waiting),
            next: Mutex::new(0),
        };
        let mut host = Host {
            child,
            line: Arc::new(line),
            reader: Some(std::thread::spawn(move || dispatch(stdout, &waiting))),
            complaints: Some(std::thread::spawn(move || {
                let mut bytes = Vec::new();
                let _ = stderr.read_to_end(&mut bytes);
                String::from_utf8_lossy(&bytes).into_owned()
            })),
            extension: library.is_some(),
            version: String::new(),
        };
        let hello = Pending { what: format!("start of {module}"), receiver: started };
        let rows = hello.outcome(DEADLINE).unwrap();
        host.version = rows[0][0].as_str().unwrap().to_owned();
        let asked = shared.map(|folder| folder.display().to_string()).unwrap_or_default();
        assert!(asked.ends_with(&host.version) || asked.is_empty(), "{asked}: {}", host.version);
        host
    }

    /// The version of the SQLite it runs.
    pub fn version(&self) -> &str {
        &self.version
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// A new connection; with the extension if the host has it.
    pub fn open(&self, path: impl AsRef<Path>) -> Db {
        self.try_open(path, json!({})).unwrap()
    }

    /// A new connection that does not load the extension, in whatever host.
    pub fn open_plain(&self, path: impl AsRef<Path>) -> Db {
        self.try_open(path, json!({"extension": false})).unwrap()
    }

    /// A new connection, `options` being host.py's.
    pub fn try_open(&self, path: impl AsRef<Path>, options: Value) -> Result<Db, String> {
        let name = self.name("db");
        let mut request = options;
        request["op"] = json!("open");
        request["db"] = json!(name);
        request["path"] = json!(path.as_ref());
        self.line.send(request).outcome(DEADLINE)?;
        Ok(Db { line: Arc::clone(&self.line), name })
    }

    /// Starts a piece of work of tests/py/work.py, on connections of its own.
    pub fn work(&self, kind: &str, arguments: Value) -> Work {
        let name = self.name(kind);
        let mut arguments = arguments;
        arguments["seed"] = json!(Rng::new().number() >> 32);
        let request = json!({"op": "work", "db": name, "kind": kind, "arguments": arguments});
        self.line.send(request).outcome(DEADLINE).unwrap();
        Work { line: Arc::clone(&self.line), name }
    }

    fn name(&self, kind: &str) -> String {
        format!("{kind}{}", self.line.next.lock().unwrap())
    }

    /// The most memory it ever had resident, in KiB.
    pub fn peak_kib(&self) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.pid())).unwrap();
        let line = status.lines().find(|line| line.starts_with("VmHWM:")).unwrap();
        line.split_whitespace().nth(1).unwrap().parse().unwrap()
    }

    /// kill -9, and gone.
    pub fn kill(mut self) {
        self.end();
    }

    /// Ends as a Python program ends, and returns how; fails the test if it hangs.
    pub fn quit(mut self) -> ExitStatus {
        self.line.send(json!({"op": "exit"}));
        self.line.stdin.lock().unwrap().take();
        until("the host to exit", || self.child.try_wait().unwrap())
    }

    fn end(&mut self) {
        let _gone_already = self.child.kill();
        self.child.wait().unwrap();
    }

    fn diagnose(&self) {
        let tell = |sql: &str| {
            let db = self.try_open(":memory:", json!({})).ok()?;
            let request = json!({"op": "run", "db": db.name, "sql": sql});
            let answer = self.line.send(request).receiver.recv_timeout(Duration::from_secs(3));
            for row in answer.ok()?["rows"].as_array()? {
                eprintln!("  {row}");
            }
            Some(())
        };
        eprintln!("host {} (SQLite {}):", self.pid(), self.version);
        tell("SELECT * FROM litestream_databases");
        tell("SELECT * FROM litestream_log ORDER BY rowid DESC LIMIT 25");
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        let failing = std::thread::panicking();
        let alive = matches!(self.child.try_wait(), Ok(None));
        if failing && self.extension && alive && self.line.waiting.lock().unwrap().is_some() {
            self.diagnose();
        }
        self.end();
        let strays = self.reader.take().unwrap().join().unwrap();
        let complaints = self.complaints.take().unwrap().join().unwrap();
        if failing {
            eprintln!("host {} wrote on stderr: {complaints:?}, on stdout: {strays:?}", self.pid());
        } else {
            assert_eq!(strays, [""; 0], "nothing may be written to a host's stdout");
            assert_eq!(complaints, "", "nothing may be written to a host's stderr");
        }
    }
}

/// Hands the host's answers to those who wait for them, until it is gone. Returns what was no
/// answer.
fn dispatch(stdout: impl BufRead, waiting: &Waiting) -> Vec<String> {
    let mut strays = Vec::new();
    for line in stdout.lines().map_while(Result::ok) {
        let answer: Value = serde_json::from_str(&line).unwrap_or(Value::Null);
        match (answer["id"].as_u64(), waiting.lock().unwrap().as_mut()) {
            (Some(id), Some(waiting)) => {
                let sender = waiting.remove(&id);
                let _nobody_waits_any_more = sender.map(|sender| sender.send(answer));
            }
            _ => strays.push(line),
        }
    }
    waiting.lock().unwrap().take();
    strays
}

/// A connection in a host. It stays open until closed, or the host ends.
pub struct Db {
    line: Arc<Line>,
    name: String,
}

impl Db {
    /// Starts a statement.
    pub fn send(&self, sql: &str) -> Pending {
        self.send_with(sql, json!([]))
    }

    /// Starts a statement with values for its parameters (see host.py for those JSON lacks).
    pub fn send_with(&self, sql: &str, values: Value) -> Pending {
        self.request("run", json!({"sql": sql, "values": values}))
    }

    fn request(&self, op: &str, fields: Value) -> Pending {
        let mut request = fields;
        request["op"] = json!(op);
        request["db"] = json!(self.name);
        self.line.send(request)
    }

    /// The rows, or SQLite's error.
    pub fn run(&self, sql: &str) -> Result<Value, String> {
        self.send(sql).outcome(DEADLINE)
    }

    /// The rows.
    pub fn rows(&self, sql: &str) -> Vec<Value> {
        let rows = self.run(sql).unwrap_or_else(|error| panic!("{sql}: {error}"));
        rows.as_array().unwrap().clone()
    }

    /// The first column of the first row; null if there is none.
    pub fn value(&self, sql: &str) -> Value {
        self.rows(sql).first().map_or(Value::Null, |row| row[0].clone())
    }

    pub fn text(&self, sql: &str) -> String {
        let value = self.value(sql);
        value.as_str().unwrap_or_else(|| panic!("{sql}: {value} is no text")).to_owned()
    }

    pub fn int(&self, sql: &str) -> i64 {
        let value = self.value(sql);
        value.as_i64().unwrap_or_else(|| panic!("{sql}: {value} is no integer"))
    }

    /// The error a statement must end with.
    pub fn fails(&self, sql: &str) -> String {
        match self.run(sql) {
            Err(error) => error,
            Ok(rows) => panic!("{sql}: must fail, returned {rows}"),
        }
    }

    /// Several statements at once.
    pub fn script(&self, sql: &str) {
        self.request("script", json!({"sql": sql})).outcome(DEADLINE).unwrap();
    }

    /// Loads the extension into a connection that was opened without it.
    pub fn load(&self) {
        self.request("load", json!({})).outcome(DEADLINE).unwrap();
    }

    /// A digest of everything in the database.
    pub fn content(&self) -> String {
        let rows = self.request("hash", json!({})).outcome(DEADLINE).unwrap();
        rows[0][0].as_str().unwrap().to_owned()
    }

    /// Runs a statement on a connection of a forked child; what it got there.
    pub fn in_a_child(&self, path: &Path, sql: &str) -> Result<Value, String> {
        self.request("fork", json!({"path": path, "sql": sql})).outcome(DEADLINE)
    }

    /// Forks a child of the host that leaves all databases alone; what became of it, see host.py.
    pub fn fork(&self, how: &str) -> i64 {
        let rows = self.request("child", json!({"how": how})).outcome(DEADLINE).unwrap();
        rows[0][0].as_i64().unwrap_or_else(|| panic!("a child that was to end {how}: {rows}"))
    }

    /// `sqlite3_interrupt`.
    pub fn interrupt(&self) {
        self.line.send(json!({"op": "interrupt", "db": self.name})).outcome(DEADLINE).unwrap();
    }

    pub fn close(self) {
        self.request("close", json!({})).outcome(DEADLINE).unwrap();
    }
}

/// An application's load, running in a host.
pub struct Work {
    line: Arc<Line>,
    name: String,
}

impl Work {
    /// How much is done so far.
    pub fn count(&self) -> u64 {
        let rows = self.line.send(json!({"op": "count", "db": self.name})).outcome(DEADLINE);
        rows.unwrap()[0][0].as_u64().unwrap()
    }

    /// Waits until so much more is done.
    pub fn advance(&self, by: u64) {
        let goal = self.count() + by;
        until(&format!("{} to reach {goal}", self.name), || (self.count() >= goal).then_some(()));
    }

    /// Stops it. It must have met no error, no broken law, and done something.
    pub fn finish(self) -> Value {
        let report = self.report();
        assert_eq!(report["wrong"], json!([]), "broken laws: {report}");
        assert_eq!(report["errors"], json!([]), "errors: {report}");
        assert!(report["count"].as_u64().unwrap() > 0, "nothing done: {report}");
        report
    }

    /// Stops it and returns what it has to say.
    pub fn report(self) -> Value {
        self.line.send(json!({"op": "finish", "db": self.name})).report()
    }
}
