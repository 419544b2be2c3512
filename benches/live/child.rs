//! What the child processes do: the writers, the follower and the reader, each on one connection.
//!
//! Times are microseconds of the machine's clock, which is the same in every process.

use std::io::{BufRead, Write};
use std::path::PathBuf;
use std::time::{Duration, Instant, UNIX_EPOCH};

use rusqlite::{Connection, LoadExtensionGuard};
use serde_json::{Value, json};

/// Rows the flat-out writers update, picked at random: about a megabyte.
const ROWS: u64 = 10_000;
/// Between two looks of the reader.
const LOOK: Duration = Duration::from_micros(10);

struct Role<'a> {
    name: &'a str,
    db: Option<Connection>,
    random: u64,
}

/// Answers calls until the end of input.
pub fn run(name: &str) {
    let mut role = Role { name, db: None, random: 88_172_645_463_325_252 };
    // A sleep of some microseconds must not become 50 of them. Linux only; elsewhere it may.
    let _ = std::fs::write("/proc/self/timerslack_ns", "1");
    for line in std::io::stdin().lock().lines().map_while(Result::ok) {
        let request: Value = serde_json::from_str(&line).unwrap();
        let answer = role.call(request["call"].as_str().unwrap(), &request["with"]);
        say(&answer);
    }
}

fn say(answer: &Value) {
    let mut out = std::io::stdout().lock();
    writeln!(out, "{answer}").unwrap();
    out.flush().unwrap();
}

#[expect(clippy::cast_precision_loss, reason = "exact below 2^53, which is the year 2255")]
fn now_us() -> f64 {
    UNIX_EPOCH.elapsed().unwrap().as_micros() as f64
}

impl Role<'_> {
    fn call(&mut self, call: &str, with: &Value) -> Value {
        match (call, self.name) {
            ("open", _) => self.open(with),
            ("version", _) => json!(format!(
                "litestream {}, SQLite {}",
                self.text("SELECT litestream_version()"),
                rusqlite::version()
            )),
            ("beat", "served") => self.beat(with),
            ("watch", "reader") => self.watch(with),
            ("flat_out", "plain" | "served") => self.flat_out(with),
            ("settle", "served") => self.settle(),
            ("alive", "replica") => json!(self.integer("SELECT litestream_lag() IS NOT NULL") == 1),
            _ => panic!("{}: {call}?", self.name),
        }
    }

    fn db(&self) -> &Connection {
        self.db.as_ref().unwrap()
    }

    fn text(&self, sql: &str) -> String {
        self.db().query_row(sql, [], |row| row.get(0)).unwrap()
    }

    fn integer(&self, sql: &str) -> i64 {
        self.db().query_row(sql, [], |row| row.get(0)).unwrap()
    }

    fn open(&mut self, with: &Value) -> Value {
        let db = Connection::open(with["path"].as_str().unwrap()).unwrap();
        db.busy_timeout(Duration::from_secs(10)).unwrap();
        if self.name == "served" || self.name == "replica" {
            load(&db);
        }
        self.db = Some(db);
        match self.name {
            "plain" | "served" => {
                self.fill(with["synchronous"].as_str().unwrap());
                let serve = "SELECT litestream_serve('127.0.0.1:0')";
                json!((self.name == "served").then(|| self.text(serve)))
            }
            "replica" => {
                let url = with["url"].as_str().unwrap();
                json!(self.text(&format!("SELECT litestream_follow('{url}')")))
            }
            _ => json!(self.integer("SELECT count(*) FROM beats")),
        }
    }

    fn fill(&self, synchronous: &str) {
        let sql = format!(
            "PRAGMA journal_mode = WAL; PRAGMA synchronous = {synchronous};
             CREATE TABLE beats(id INTEGER PRIMARY KEY);
             CREATE TABLE items(id INTEGER PRIMARY KEY, content BLOB);
             WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < {ROWS})
               INSERT INTO items SELECT i, randomblob(100) FROM n;"
        );
        self.db().execute_batch(&sql).unwrap();
    }

    /// Commits a row each interval; when each COMMIT returned.
    fn beat(&mut self, with: &Value) -> Value {
        let interval = Duration::from_micros(with["interval_us"].as_u64().unwrap());
        self.db().execute("DELETE FROM beats", []).unwrap();
        let mut insert = self.db().prepare("INSERT INTO beats VALUES (?)").unwrap();
        let begin = Instant::now();
        let mut times = Vec::new();
        for (row, due) in (1..=with["rows"].as_u64().unwrap()).zip(1..) {
            std::thread::sleep((interval * due).saturating_sub(begin.elapsed()));
            insert.execute([i64::try_from(row).unwrap()]).unwrap();
            times.push(now_us());
        }
        json!(times)
    }

    /// Looks until it has seen every row; when it first saw each.
    fn watch(&mut self, with: &Value) -> Value {
        let rows = usize::try_from(with["rows"].as_u64().unwrap()).unwrap();
        let mut look = self.db().prepare("SELECT max(id) FROM beats").unwrap();
        let mut newest = || -> usize {
            let id: Option<i64> = look.query_row([], |row| row.get(0)).unwrap();
            usize::try_from(id.unwrap_or(0)).unwrap()
        };
        say(&json!("ready"));
        let mut times: Vec<f64> = Vec::new();
        // The rows of the last run go first.
        while newest() > 1 {
            std::thread::sleep(LOOK);
        }
        while times.len() < rows {
            let seen = newest();
            if seen > times.len() {
                times.resize(seen, now_us());
            }
            std::thread::sleep(LOOK);
        }
        json!(times)
    }

    /// One-row transactions as fast as they go; commits per second.
    #[expect(clippy::cast_precision_loss, reason = "a count")]
    fn flat_out(&mut self, with: &Value) -> Value {
        let turn = Duration::from_millis(with["ms"].as_u64().unwrap());
        let mut random = self.random;
        let sql = "UPDATE items SET content = randomblob(100) WHERE id = ?";
        let mut update = self.db().prepare(sql).unwrap();
        let begin = Instant::now();
        let mut commits = 0_u64;
        while begin.elapsed() < turn {
            random ^= random << 13;
            random ^= random >> 7;
            random ^= random << 17;
            update.execute([i64::try_from(1 + random % ROWS).unwrap()]).unwrap();
            commits += 1;
        }
        let seconds = begin.elapsed().as_secs_f64();
        drop(update);
        self.random = random;
        json!(commits as f64 / seconds)
    }

    /// Waits until the follower has everything and the log is on disk.
    fn settle(&self) -> Value {
        let followers = self.integer("SELECT litestream_wait_followers(1, 60000)");
        assert_eq!(followers, 1, "the follower did not catch up within a minute");
        json!(self.text("SELECT litestream_sync()"))
    }
}

/// The extension cargo built for this run, from the folder of this program.
#[expect(unsafe_code, reason = "loading a library is unsafe, whichever it is")]
fn load(db: &Connection) {
    let name = if cfg!(target_os = "macos") { "liblitestream.dylib" } else { "liblitestream.so" };
    let library: PathBuf = std::env::current_exe().unwrap().with_file_name(name);
    // SAFETY: no statement of others runs meanwhile, and the library is our own.
    let guard = unsafe { LoadExtensionGuard::new(db) }.unwrap();
    // SAFETY: as above.
    unsafe { db.load_extension(&library, Some("sqlite3_litestream_init")) }.unwrap();
    drop(guard);
}
