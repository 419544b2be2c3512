//! What the child processes do. Times are microseconds of the machine's clock, which is the same in
//! every process.

use std::fs::File;
use std::io::{BufRead, Read, Write};
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::time::{Duration, Instant, UNIX_EPOCH};

use rusqlite::{Connection, LoadExtensionGuard};
use serde_json::{Value, json};

use crate::{flat, work};

/// Rows the flat-out writers update, picked at random: about a megabyte.
pub const ROWS: u64 = 10_000;

#[derive(Default)]
struct Child {
    connections: Vec<Connection>,
    shms: Vec<File>,
}

/// Answers calls until the end of input.
pub fn run(_role: &str) {
    let mut child = Child::default();
    // A sleep of some microseconds must not become 50 of them.
    let _ = std::fs::write("/proc/self/timerslack_ns", "1");
    for line in std::io::stdin().lock().lines().map_while(Result::ok) {
        let request: Value = serde_json::from_str(&line).unwrap();
        let with = &request["with"];
        let answer = match request["call"].as_str().unwrap() {
            "pid" => json!(std::process::id()),
            "open" => child.open(with),
            "each" => child.each(with),
            "beat" => child.beat(with),
            "watch" => child.watch(with),
            "flat_out" => flat::write(with),
            "rewrite" => work::rewrite(&child.connections[0], with),
            "await" => work::wait(&child.connections[0], with),
            other => panic!("{other}?"),
        };
        say(&answer);
    }
}

pub fn say(answer: &Value) {
    let mut out = std::io::stdout().lock();
    writeln!(out, "{answer}").unwrap();
    out.flush().unwrap();
}

pub fn now_us() -> u64 {
    u64::try_from(UNIX_EPOCH.elapsed().unwrap().as_micros()).unwrap()
}

impl Child {
    /// A connection to each path, with the extension or without, and what is to be run on it.
    fn open(&mut self, with: &Value) -> Value {
        for path in with["paths"].as_array().unwrap() {
            let db = Connection::open(path.as_str().unwrap()).unwrap();
            db.busy_timeout(Duration::from_secs(60)).unwrap();
            if with["load"] == json!(true) {
                load(&db);
            }
            db.execute_batch(with["sql"].as_str().unwrap_or_default()).unwrap();
            self.connections.push(db);
        }
        json!(self.connections.len())
    }

    /// The answers of a query on every connection, or on some; `%` stands for the connection's
    /// value.
    fn each(&self, with: &Value) -> Value {
        let sql = with["sql"].as_str().unwrap();
        let values = with["values"].as_array();
        let mut answers = Vec::new();
        for (at, db) in self.connections.iter().enumerate() {
            let value = values.map_or("", |values| values[at % values.len()].as_str().unwrap());
            let sql = sql.replace('%', value);
            let answer = db.query_row(&sql, [], |row| row.get::<_, rusqlite::types::Value>(0));
            answers.push(match answer.unwrap_or_else(|why| panic!("{sql}: {why}")) {
                rusqlite::types::Value::Integer(number) => json!(number),
                rusqlite::types::Value::Text(text) => json!(text),
                other => json!(format!("{other:?}")),
            });
        }
        json!(answers)
    }

    /// Commits a row each interval; when each COMMIT returned.
    fn beat(&mut self, with: &Value) -> Value {
        let interval = Duration::from_micros(with["interval_us"].as_u64().unwrap());
        let db = &self.connections[0];
        let mut insert = db.prepare("INSERT INTO beats VALUES (?)").unwrap();
        let begin = Instant::now();
        let mut times = Vec::new();
        for row in 1..=with["rows"].as_i64().unwrap() {
            let due = interval * u32::try_from(row).unwrap();
            std::thread::sleep(due.saturating_sub(begin.elapsed()));
            insert.execute([row]).unwrap();
            times.push(now_us());
        }
        json!(times)
    }

    /// Looks until every replica shows every row; when each of them first showed each.
    ///
    /// A look is a read of the wal-index, the same for any number of replicas: a query only
    /// follows where that has changed. The files stay open, or SQLite would lose its locks.
    fn watch(&mut self, with: &Value) -> Value {
        let rows = usize::try_from(with["rows"].as_u64().unwrap()).unwrap();
        let pause = Duration::from_micros(with["look_us"].as_u64().unwrap());
        for path in with["shms"].as_array().unwrap() {
            self.shms.push(File::open(path.as_str().unwrap()).unwrap());
        }
        let mut seen = vec![(0_u64, Vec::<u64>::new()); self.shms.len()];
        say(&json!("ready"));
        while seen.iter().any(|(_, times)| times.len() < rows) {
            for (at, (mark, times)) in seen.iter_mut().enumerate() {
                // iChange and mxFrame of the header's first copy.
                let (mut change, mut frames) = ([0; 4], [0; 4]);
                self.shms[at].read_exact_at(&mut change, 8).unwrap();
                self.shms[at].read_exact_at(&mut frames, 16).unwrap();
                let now = u64::from(u32::from_ne_bytes(change)) << 32
                    | u64::from(u32::from_ne_bytes(frames));
                if now != *mark {
                    *mark = now;
                    let newest = "SELECT ifnull(max(id), 0) FROM beats";
                    let db = &self.connections[at];
                    let newest = db.prepare(newest).unwrap().query_row([], |row| row.get(0));
                    let newest: i64 = newest.unwrap();
                    times.resize(usize::try_from(newest).unwrap().max(times.len()), now_us());
                }
            }
            std::thread::sleep(pause);
        }
        json!(seen.into_iter().map(|(_, times)| times).collect::<Vec<_>>())
    }
}

/// A page of the server's numbers: the sum of each name's samples.
pub fn metric(text: &str, name: &str) -> f64 {
    let samples = text.lines().filter(|line| line.split(['{', ' ']).next() == Some(name));
    samples.filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok()).sum()
}

/// What `/metrics` answers.
pub fn metrics(url: &str) -> String {
    let address = url.strip_prefix("http://").unwrap().split('/').next().unwrap();
    let mut stream = std::net::TcpStream::connect(address).unwrap();
    stream.write_all(b"GET /metrics HTTP/1.0\r\nHost: localhost\r\n\r\n").unwrap();
    let mut text = String::new();
    stream.read_to_string(&mut text).unwrap();
    text
}

/// The extension cargo built for this run, from the folder of this program.
#[expect(unsafe_code, reason = "loading a library is unsafe, whichever it is")]
pub fn load(db: &Connection) {
    let name = if cfg!(target_os = "macos") { "liblitestream.dylib" } else { "liblitestream.so" };
    let library: PathBuf = std::env::current_exe().unwrap().with_file_name(name);
    // SAFETY: no statement of others runs meanwhile, and the library is our own.
    let guard = unsafe { LoadExtensionGuard::new(db) }.unwrap();
    // SAFETY: as above.
    unsafe { db.load_extension(&library, Some("sqlite3_litestream_init")) }.unwrap();
    drop(guard);
}
