//! From the return of COMMIT on the primary until replicas show the row: each of them, and the last
//! of them.

use serde_json::{Value, json};

use super::process::Process;
use super::report::Report;
use super::statistics::spread;
use super::usage::Usage;
use super::{Folder, sizes};

/// One commit each this long.
const INTERVAL_US: u64 = 50_000;
const COMMITS: usize = 200;
/// Replicas in one process.
const HOST_MAX: usize = 25;

pub fn run(folder: &Folder, report: &mut Report) {
    println!("\nfrom COMMIT's return to the replicas' readers, one commit each 50 ms, in us");
    println!(
        "{:<15} {:>8} {:>8} {:>8} {:>14} {:>8} {:>8} {:>15} {:>9}",
        "followers", "p50", "p99", "max", "the last: p50", "p99", "max", "CPU a commit", "replicas"
    );
    for count in sizes() {
        let (each, last, cost) = lags(folder, count);
        let (each, last) = (spread(each), spread(last));
        println!(
            "{count:<15} {:>8.0} {:>8.0} {:>8.0} {:>14.0} {:>8.0} {:>8.0} {:>15} {:>9}",
            each.p50, each.p99, each.max, last.p50, last.p99, last.max, cost.0, cost.1
        );
        report.json(&json!({
            "bench": "reach", "followers": count, "commits": COMMITS, "interval_us": INTERVAL_US,
            "p50_us": each.p50, "p99_us": each.p99, "max_us": each.max,
            "last_p50_us": last.p50, "last_p99_us": last.p99, "last_max_us": last.max,
            "primary_cpu_us_a_commit": cost.0, "replicas_cpu_us_a_commit": cost.1,
        }));
        folder.remove("reach");
    }
}

/// Of each replica, of the last one, and the processor time of a commit, in microseconds: the
/// primary's and all replicas'.
pub fn lags(folder: &Folder, count: usize) -> (Vec<f64>, Vec<f64>, (u64, u64)) {
    let place = folder.make("reach");
    let mut primary = Process::start("primary");
    let sql = "PRAGMA journal_mode = WAL; PRAGMA synchronous = NORMAL;
               CREATE TABLE beats(id INTEGER PRIMARY KEY);";
    primary.call("open", &json!({"paths": [place.join("p.db")], "load": true, "sql": sql}));
    let url = primary.call("each", &json!({"sql": "SELECT litestream_serve('127.0.0.1:0')"}));
    let paths: Vec<_> = (0..count).map(|at| place.join(format!("r{at}.db"))).collect();
    let mut hosts = Vec::new();
    for paths in paths.chunks(HOST_MAX) {
        let mut host = Process::start("replicas");
        host.call("open", &json!({"paths": paths, "load": true}));
        host.call("each", &json!({"sql": "SELECT litestream_follow('%')", "values": url}));
        hosts.push(host);
    }
    let mut watcher = Process::start("watcher");
    // With its own wal-index in place: only a read makes SQLite open it.
    let sql = "SELECT count(*) FROM beats;";
    watcher.call("open", &json!({"paths": paths, "load": false, "sql": sql}));
    let shms: Vec<_> = paths.iter().map(|path| format!("{}-shm", path.display())).collect();
    // A look at many costs more: a twentieth of a processor is enough for it.
    let look_us = 10 + 10 * count;
    watcher.say("watch", &json!({"rows": COMMITS, "shms": shms, "look_us": look_us}));
    assert_eq!(watcher.answer(), json!("ready"));
    let before = (cpu_us(&mut [&mut primary]), cpu_us(&mut hosts.iter_mut().collect::<Vec<_>>()));
    let committed = primary.call("beat", &json!({"rows": COMMITS, "interval_us": INTERVAL_US}));
    let seen = watcher.answer();
    let at = |list: &Value, row: usize| list[row].as_f64().unwrap();
    let (mut each, mut last) = (Vec::new(), Vec::new());
    for row in 0..COMMITS {
        let lags =
            seen.as_array().unwrap().iter().map(|times| at(times, row) - at(&committed, row));
        let lags: Vec<f64> = lags.collect();
        last.push(lags.iter().copied().fold(f64::MIN, f64::max));
        each.extend(lags);
    }
    drop(watcher);
    let after = (cpu_us(&mut [&mut primary]), cpu_us(&mut hosts.iter_mut().collect::<Vec<_>>()));
    let cost = |before: u64, after: u64| (after - before) / COMMITS as u64;
    (each, last, (cost(before.0, after.0), cost(before.1, after.1)))
}

fn cpu_us(processes: &mut [&mut Process]) -> u64 {
    let of = |process: &mut &mut Process| {
        let pid = process.call("pid", &Value::Null).as_u64().unwrap();
        Usage::of(u32::try_from(pid).unwrap()).cpu_us
    };
    processes.iter_mut().map(of).sum()
}
