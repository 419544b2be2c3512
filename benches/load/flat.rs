//! Writers that never pause, in turns on two databases: one without the extension, one served to a
//! follower. Whatever drifts on the machine meets both.
//!
//! A slow commit is explained as far as it can be: how long our gate was closed during it (from
//! `/metrics`, asked at once), and at most how long its thread was ready and had no processor (from
//! the scheduler). The rest is the disk, and whoever else uses it.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use rusqlite::Connection;
use serde_json::{Value, json};

use super::child::{self, ROWS, now_us};
use super::histogram::Histogram;
use super::process::Process;
use super::report::Report;
use super::usage::folder_bytes;
use super::{Folder, setting};

const CASES: &str = "NORMAL:1,OFF:1,FULL:1,NORMAL:2";
const TURN: Duration = Duration::from_secs(5);
/// Slow commits listed, of each turn and in the end.
const SLOWEST: usize = 8;
/// What is slow enough to be looked into.
const SLOW: Duration = Duration::from_millis(10);
/// Between two looks at the scheduler's account, in commits.
const ACCOUNT_EVERY: u64 = 64;
const FRAME: u64 = 4096 + 24;

// --- the writing process -------------------------------------------------------------------------

/// Writes for a while; how long the commits took.
pub fn write(with: &Value) -> Value {
    let writers = with["writers"].as_u64().unwrap();
    let run = |number| {
        let with = with.clone();
        thread::spawn(move || one_writer(number, &with))
    };
    let threads: Vec<_> = (1..=writers).map(run).collect();
    json!(threads.into_iter().map(|thread| thread.join().unwrap()).collect::<Vec<_>>())
}

fn one_writer(number: u64, with: &Value) -> Value {
    let db = Connection::open(with["path"].as_str().unwrap()).unwrap();
    db.busy_timeout(Duration::from_secs(60)).unwrap();
    let synchronous = with["synchronous"].as_str().unwrap();
    db.execute_batch(&format!("PRAGMA synchronous = {synchronous}")).unwrap();
    let sql = "UPDATE items SET content = randomblob(100) WHERE id = ?";
    let mut update = db.prepare(sql).unwrap();
    let turn = Duration::from_millis(with["ms"].as_u64().unwrap());
    let mut random = with["seed"].as_u64().unwrap() ^ (number << 32) | 1;
    let (mut times, mut slowest) = (Histogram::new(), Vec::new());
    let mut waited = run_delay_us();
    let begin = Instant::now();
    while begin.elapsed() < turn {
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        let started = Instant::now();
        update.execute([i64::try_from(1 + random % ROWS).unwrap()]).unwrap();
        let took = started.elapsed();
        times.add(took);
        if took >= SLOW {
            slowest.push(explain(took, waited, with["url"].as_str()));
            slowest.sort_by_key(|one: &Value| std::cmp::Reverse(one["us"].as_u64()));
            slowest.truncate(SLOWEST);
        }
        if took >= SLOW || times.count().is_multiple_of(ACCOUNT_EVERY) {
            waited = run_delay_us();
        }
    }
    json!({"times": times.json(), "slowest": slowest, "us": micros(begin.elapsed())})
}

fn explain(took: Duration, waited: u64, url: Option<&str>) -> Value {
    let end = now_us();
    let us = micros(took);
    let no_processor_us = run_delay_us().saturating_sub(waited).min(us);
    let gate_us = url.map(|url| {
        let text = child::metrics(url);
        let micros = |name| micros(Duration::from_secs_f64(child::metric(&text, name)));
        let opened = micros("litestream_gate_last_timestamp_seconds");
        let closed = opened.saturating_sub(micros("litestream_gate_last_seconds"));
        opened.min(end).saturating_sub(closed.max(end - us))
    });
    json!({"us": us, "at": end, "gate_us": gate_us, "no_processor_us": no_processor_us})
}

fn micros(time: Duration) -> u64 {
    u64::try_from(time.as_micros()).unwrap()
}

/// How long this thread was ready to run and did not, since it began.
fn run_delay_us() -> u64 {
    let text = fs::read_to_string("/proc/thread-self/schedstat").unwrap_or_default();
    text.split_whitespace().nth(1).map_or(0, |ns| ns.parse::<u64>().unwrap() / 1000)
}

// --- the measurement -----------------------------------------------------------------------------

/// One of the two databases.
struct Side {
    name: &'static str,
    process: Process,
    path: PathBuf,
    url: Option<String>,
    times: Histogram,
    slowest: Vec<Value>,
    us: u64,
    wal_bytes: u64,
    log_bytes: u64,
}

pub fn run(folder: &Folder, report: &mut Report) {
    let minutes: f64 = setting("MINUTES", "1").parse().unwrap();
    let cases = setting("WRITERS", CASES);
    let cases: Vec<&str> = cases.split(',').collect();
    let each = Duration::from_secs_f64(minutes * 60.0) / u32::try_from(cases.len()).unwrap();
    println!("\nwriters flat out, one-row commits in turns of {} s; times in us", TURN.as_secs());
    println!(
        "{:<10} {:<7} {:>9} {:>5} {:>6} {:>6} {:>8} {:>7} {:>6} {:>9} {:>8} {:>7} {:>7}",
        "case",
        "",
        "commits/s",
        "p50",
        "p99",
        "p99.9",
        "max",
        ">50ms",
        "WAL",
        "frames",
        "log",
        "gates",
        "max us"
    );
    let mut slowest = Vec::new();
    for case in cases {
        let (synchronous, writers) = case.split_once(':').unwrap();
        let writers: u64 = writers.parse().unwrap();
        let turns = each.as_micros().div_ceil(TURN.as_micros()).max(1);
        let turns = u32::try_from(turns).unwrap();
        let of = Case { name: case, synchronous, writers, turn: each / turns, turns };
        slowest.push((case, of.run(folder, report)));
    }
    for (case, (plain, served)) in slowest {
        for (name, list) in [("plain", plain), ("served", served)] {
            println!("\n{case} {name}: slowest commits, ms (gate of ours, no processor at most)");
            for one in &list {
                let ms = |name: &str| {
                    one[name].as_f64().map_or("-".into(), |us| format!("{:.1}", us / 1e3))
                };
                println!("  {:>8} ({}, {})", ms("us"), ms("gate_us"), ms("no_processor_us"));
            }
        }
    }
}

struct Case<'c> {
    name: &'c str,
    synchronous: &'c str,
    writers: u64,
    turn: Duration,
    turns: u32,
}

impl Case<'_> {
    /// The slowest commits of both.
    fn run(&self, folder: &Folder, report: &mut Report) -> (Vec<Value>, Vec<Value>) {
        let name = format!("flat-{}", self.name);
        let place = folder.make(&name);
        let mut plain = Side::open("plain", &place);
        let mut served = Side::open("served", &place);
        let mut replica = Process::start("replica");
        let path = place.join("replica.db");
        replica.call("open", &json!({"paths": [path], "load": true}));
        let url = served.url.clone().unwrap();
        replica.call("each", &json!({"sql": format!("SELECT litestream_follow('{url}')")}));
        for seed in 1..=self.turns {
            let with = json!({
                "synchronous": self.synchronous, "writers": self.writers, "seed": seed,
                "ms": u64::try_from(self.turn.as_millis()).unwrap(),
            });
            plain.turn(&with);
            served.turn(&with);
            // No work is left to the other's turn.
            let wait = "SELECT litestream_wait_followers(1, 60000)";
            assert_eq!(served.process.call("each", &json!({"sql": wait})), json!([1]));
            served.process.call("each", &json!({"sql": "SELECT litestream_sync()"}));
        }
        let all = json!({"sql": "SELECT count(*) || hex(min(content)) || hex(max(content)) || \
                          total(instr(content, x'00')) FROM items"});
        assert_eq!(served.process.call("each", &all), replica.call("each", &all));
        let text = child::metrics(&url);
        for side in [&plain, &served] {
            side.report(report, self.name, if side.url.is_some() { &text } else { "" });
        }
        let found = (plain.slowest.clone(), served.slowest.clone());
        drop(replica);
        drop((plain, served));
        folder.remove(&name);
        found
    }
}

impl Side {
    fn open(name: &'static str, place: &Path) -> Side {
        let path = place.join(format!("{name}.db"));
        let mut process = Process::start(name);
        let fill = format!(
            "PRAGMA journal_mode = WAL;
             CREATE TABLE items(id INTEGER PRIMARY KEY, content BLOB);
             WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < {ROWS})
               INSERT INTO items SELECT i, randomblob(100) FROM n;"
        );
        let load = name == "served";
        process.call("open", &json!({"paths": [path], "load": load, "sql": fill}));
        let serve = json!({"sql": "SELECT litestream_serve('127.0.0.1:0')"});
        let url = load.then(|| process.call("each", &serve)[0].as_str().unwrap().to_owned());
        let (times, slowest) = (Histogram::new(), Vec::new());
        Side { name, process, path, url, times, slowest, us: 0, wal_bytes: 0, log_bytes: 0 }
    }

    fn turn(&mut self, with: &Value) {
        let mut with = with.clone();
        with["path"] = json!(self.path);
        with["url"] = json!(self.url);
        let log = Watch::start(self.beside("-litestream"));
        let answer = self.process.call("flat_out", &with);
        self.log_bytes = self.log_bytes.max(log.end());
        for one in answer.as_array().unwrap() {
            self.times.merge(&one["times"]);
            self.us += one["us"].as_u64().unwrap();
            self.slowest.extend(one["slowest"].as_array().unwrap().iter().cloned());
        }
        self.slowest.sort_by_key(|one| std::cmp::Reverse(one["us"].as_u64()));
        self.slowest.truncate(SLOWEST);
        // The file never shrinks: its size is the highest there was.
        self.wal_bytes = fs::metadata(self.beside("-wal")).map_or(0, |meta| meta.len());
    }

    fn beside(&self, suffix: &str) -> PathBuf {
        let mut path = self.path.clone().into_os_string();
        path.push(suffix);
        path.into()
    }

    fn report(&self, report: &mut Report, case: &str, metrics: &str) {
        let (name, times) = (self.name, &self.times);
        let writers: u64 = case.rsplit(':').next().unwrap().parse().unwrap();
        let rate = times.count() as f64 * 1e6 * writers as f64 / self.us as f64;
        let (p50, p99, p999) = (times.part(500_000), times.part(990_000), times.part(999_000));
        let slow = times.above(50_000);
        let frames = self.wal_bytes / FRAME;
        let (wal, log) = (self.wal_bytes >> 20, self.log_bytes >> 20);
        let gates = child::metric(metrics, "litestream_gate_count");
        let gate_max = child::metric(metrics, "litestream_gate_seconds_max") * 1e6;
        println!(
            "{case:<10} {name:<7} {rate:>9.0} {p50:>5} {p99:>6} {p999:>6} {:>8} {slow:>7} {wal:>6} \
             {frames:>9} {log:>8} {gates:>7} {gate_max:>7.0}",
            times.max_us
        );
        report.json(&json!({
            "bench": "flat", "case": case, "side": name, "commits": times.count(),
            "seconds": self.us as f64 / 1e6 / writers as f64, "per_s": rate,
            "p50_us": p50, "p99_us": p99, "p999_us": p999, "max_us": times.max_us,
            "above_10ms": times.above(10_000), "above_50ms": slow,
            "wal_bytes": self.wal_bytes, "wal_frames": frames, "log_bytes": self.log_bytes,
            "gates": gates, "gate_max_us": gate_max,
            "gate_s": child::metric(metrics, "litestream_gate_seconds_total"),
            "checkpoints": child::metric(metrics, "litestream_checkpoint_count"),
            "slowest": self.slowest,
        }));
    }
}

/// The most a folder held while it was watched, in bytes.
struct Watch {
    over: Arc<AtomicBool>,
    most: Arc<AtomicU64>,
    thread: thread::JoinHandle<()>,
}

impl Watch {
    fn start(folder: PathBuf) -> Watch {
        let (over, most) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let (end, found) = (Arc::clone(&over), Arc::clone(&most));
        let thread = thread::spawn(move || {
            while !end.load(Ordering::Relaxed) {
                found.fetch_max(folder_bytes(&folder), Ordering::Relaxed);
                thread::sleep(Duration::from_millis(50));
            }
        });
        Watch { over, most, thread }
    }

    fn end(self) -> u64 {
        self.over.store(true, Ordering::Relaxed);
        self.thread.join().unwrap();
        self.most.load(Ordering::Relaxed)
    }
}
