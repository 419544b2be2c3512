//! What live replication gives and what it costs, measured across real processes.
//!
//! ```text
//! plain   a writer on its own database, without the extension
//! served  the same writer, with the extension: it serves its database ...
//! replica ... to this follower, the only one
//! reader  another process, without the extension, that reads the replica's file
//! ```
//!
//! * Lag: from the return of the served writer's COMMIT until the reader sees the row, one commit
//!   each 50 ms and one each 2 ms.
//! * Write rate: both writers flat out in turns (plain, served, plain, served ...), one-row
//!   UPDATEs, at synchronous OFF, NORMAL and FULL. The ratio of each pair counts, not the rates:
//!   machines and disks drift. Between two turns the follower catches up, so no work is left to the
//!   other.
//!
//! Prints a table; one JSON object a line goes to `target/bench/live.jsonl`. `ROUNDS` is how many
//! pairs (default 7), `TURN_MS` how long a turn is (default 1000). The SQLite is the bundled one.
#![allow(missing_docs)]
#![allow(clippy::unwrap_used, clippy::panic, clippy::print_stdout)]

mod child;
#[allow(dead_code, reason = "each bench needs its own part of this")]
mod folder;
mod process;
mod run;
mod statistics;

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::Duration;

use folder::Folder;
use process::Process;
use serde_json::{Value, json};
use statistics::{Spread, spread};

const LAGS: [(Duration, usize); 2] =
    [(Duration::from_millis(50), 200), (Duration::from_millis(2), 2500)];
const MODES: [&str; 3] = ["OFF", "NORMAL", "FULL"];
const ROUNDS: u64 = 7;
const TURN_MS: u64 = 1000;

fn main() {
    if let Some(role) = std::env::var_os(process::ROLE) {
        return child::run(role.to_str().unwrap());
    }
    let target = std::env::current_exe().unwrap().ancestors().nth(3).unwrap().to_owned();
    let folder = Folder::new(&target, "live");
    let mut report = Report::new(&folder.0);

    let mut group = Group::start(&folder.0.join("lag"), "NORMAL");
    report.head(group.served.call("version", &Value::Null));
    for (interval, commits) in LAGS {
        let lags = group.lags(interval, commits);
        report.lag(interval, &spread(lags));
    }
    drop(group);
    report.rates_head();
    for mode in MODES {
        let mut group = Group::start(&folder.0.join(mode), mode);
        let pairs: Vec<_> = (0..number("ROUNDS", ROUNDS)).map(|_| group.pair()).collect();
        report.rates(mode, &pairs);
    }
    report.tail();
}

fn number(name: &str, default: u64) -> u64 {
    std::env::var(name).map_or(default, |text| text.parse().unwrap())
}

/// Commits per second of a turn of each writer.
struct Pair {
    plain: f64,
    served: f64,
}

/// The four processes. They end with their values, the reader first.
struct Group {
    reader: Process,
    replica: Process,
    served: Process,
    plain: Process,
}

impl Group {
    /// On new databases, with the follower caught up.
    fn start(folder: &Path, synchronous: &str) -> Group {
        let database = |name: &str| {
            let folder = folder.join(name);
            fs::create_dir_all(&folder).unwrap();
            folder.join("app.db")
        };
        let setting = |path: &Path| json!({"path": path, "synchronous": synchronous});
        let mut plain = Process::start("plain");
        plain.call("open", &setting(&database("plain")));
        let mut served = Process::start("served");
        let url = served.call("open", &setting(&database("served")));
        let mut replica = Process::start("replica");
        let path = database("replica");
        replica.call("open", &json!({"path": path, "url": url}));
        let mut reader = Process::start("reader");
        reader.call("open", &json!({"path": path}));
        Group { reader, replica, served, plain }
    }

    /// From commit to sight, in microseconds, of each commit.
    fn lags(&mut self, interval: Duration, commits: usize) -> Vec<f64> {
        let micros = u64::try_from(interval.as_micros()).unwrap();
        self.reader.say("watch", &json!({"rows": commits}));
        assert_eq!(self.reader.answer(), json!("ready"));
        let committed = self.served.call("beat", &json!({"rows": commits, "interval_us": micros}));
        let seen = self.reader.answer();
        let times = |list: &Value| -> Vec<f64> {
            list.as_array().unwrap().iter().map(|at| at.as_f64().unwrap()).collect()
        };
        times(&seen).iter().zip(times(&committed)).map(|(seen, at)| seen - at).collect()
    }

    fn pair(&mut self) -> Pair {
        let turn = json!({"ms": number("TURN_MS", TURN_MS)});
        let plain = self.plain.call("flat_out", &turn).as_f64().unwrap();
        let served = self.served.call("flat_out", &turn).as_f64().unwrap();
        self.served.call("settle", &Value::Null);
        assert_eq!(self.replica.call("alive", &Value::Null), json!(true));
        Pair { plain, served }
    }
}

// --- the report ----------------------------------------------------------------------------------

struct Report {
    lines: fs::File,
    path: PathBuf,
}

impl Report {
    fn new(folder: &Path) -> Report {
        let path = folder.parent().unwrap().join("live.jsonl");
        Report { lines: fs::File::create(&path).unwrap(), path }
    }

    fn json(&mut self, line: &Value) {
        writeln!(self.lines, "{line}").unwrap();
    }

    fn head(&mut self, version: Value) {
        let cores = std::thread::available_parallelism().unwrap().get();
        let text = version.as_str().unwrap();
        println!("{text}, {cores} cores, loopback\n");
        println!("from COMMIT's return to the replica's reader, in microseconds");
        println!(
            "{:<22} {:>8} {:>8} {:>8} {:>8}",
            "one commit each", "commits", "p50", "p99", "max"
        );
        self.json(&json!({
            "bench": "machine", "run": run::id(), "cores": cores, "versions": text,
        }));
    }

    fn lag(&mut self, interval: Duration, lag: &Spread) {
        let name = format!("{} ms", interval.as_millis());
        let Spread { count, p50, p99, max, .. } = lag;
        println!("{name:<22} {count:>8} {p50:>8.0} {p99:>8.0} {max:>8.0}");
        self.json(&json!({
            "bench": "lag", "interval_ms": interval.as_millis(), "commits": count,
            "p50_us": p50, "p99_us": p99, "max_us": max,
        }));
    }

    fn rates_head(&self) {
        println!("\none-row commits flat out, without the extension and served to one follower");
        println!(
            "{:<22} {:>8} {:>8} {:>8} {:>14}",
            "synchronous", "plain/s", "served/s", "ratio", "ratios"
        );
    }

    fn rates(&mut self, mode: &str, pairs: &[Pair]) {
        let plain = spread(pairs.iter().map(|pair| pair.plain).collect());
        let served = spread(pairs.iter().map(|pair| pair.served).collect());
        let ratio = spread(pairs.iter().map(|pair| pair.served / pair.plain).collect());
        let range = format!("{:.2} to {:.2}", ratio.min, ratio.max);
        println!(
            "{mode:<22} {:>8.0} {:>8.0} {:>8.2} {range:>14}",
            plain.p50, served.p50, ratio.p50
        );
        self.json(&json!({
            "bench": "rate", "synchronous": mode, "pairs": pairs.len(),
            "plain_per_s": plain.p50, "served_per_s": served.p50,
            "ratio": ratio.p50, "ratio_min": ratio.min, "ratio_max": ratio.max,
        }));
    }

    fn tail(&self) {
        println!("\nrates and ratio are medians; as JSON: {}", self.path.display());
    }
}
