//! What a process pays for each database it serves and for each replica it keeps: memory, threads,
//! descriptors, and processor time and wake-ups while nothing happens.

use std::time::Duration;

use serde_json::{Value, json};

use super::process::Process;
use super::report::Report;
use super::usage::Usage;
use super::{Folder, setting, sizes};

pub fn run(folder: &Folder, report: &mut Report) {
    println!("\none process, nothing happens; what the extension adds, without the connections");
    println!(
        "{:<24} {:>9} {:>9} {:>8} {:>12} {:>11} {:>12}",
        "", "MiB", "KiB each", "threads", "descriptors", "CPU %", "wake-ups/s"
    );
    for count in sizes() {
        let primary = Group::primary(folder, count);
        primary.report(report, "databases served", count);
        drop(primary);
        let (mut primary, replicas) = Group::followed(folder, count);
        replicas.report(report, "replicas", count);
        primary.report(report, "followers of one", count);
        assert_eq!(primary.process.call("each", &followers(count)), json!([count]));
        drop(replicas);
        drop(primary);
        folder.remove("scale");
    }
}

/// What serving so many databases costs.
pub fn served(folder: &Folder, count: usize) -> Cost {
    let cost = Group::primary(folder, count).cost();
    folder.remove("scale");
    cost
}

/// Above the host alone.
pub struct Cost {
    pub pss_kib: u64,
    pub threads: u64,
    pub descriptors: u64,
    cpu_percent: f64,
    pub wakeups_per_s: f64,
}

fn followers(count: usize) -> Value {
    json!({"sql": format!("SELECT litestream_wait_followers({count}, 60000)")})
}

/// A process, what it used before the extension did anything and what it uses now.
struct Group {
    process: Process,
    before: Usage,
    idle: (Usage, Usage),
    seconds: f64,
}

impl Group {
    fn open(folder: &Folder, name: &str, count: usize, sql: &str) -> (Process, u32, Usage) {
        let place = folder.make("scale");
        let paths: Vec<_> = (0..count).map(|at| place.join(format!("{name}{at}.db"))).collect();
        let mut process = Process::start("host");
        process.call("open", &json!({"paths": paths, "load": true, "sql": sql}));
        let pid = u32::try_from(process.call("pid", &Value::Null).as_u64().unwrap()).unwrap();
        (process, pid, Usage::of(pid))
    }

    fn primary(folder: &Folder, count: usize) -> Group {
        let sql = "PRAGMA journal_mode = WAL; CREATE TABLE t(x); INSERT INTO t VALUES (1);";
        let (mut process, pid, before) = Group::open(folder, "served", count, sql);
        let serve = "SELECT litestream_serve('127.0.0.1:0')";
        let url = process.call("each", &json!({"sql": serve}))[0].clone();
        assert!(url.as_str().unwrap().starts_with("http"));
        Group::idle(process, pid, before)
    }

    fn followed(folder: &Folder, count: usize) -> (Group, Group) {
        let sql = "PRAGMA journal_mode = WAL; CREATE TABLE t(x); INSERT INTO t VALUES (1);";
        let (mut primary, pid, before) = Group::open(folder, "primary", 1, sql);
        let serve = "SELECT litestream_serve('127.0.0.1:0')";
        let url = primary.call("each", &json!({"sql": serve}))[0].clone();
        // Served and not followed yet: what is counted is the followers'.
        std::thread::sleep(Duration::from_secs(6));
        let served = Usage::of(pid);
        let (mut replicas, replicas_pid, alone) = Group::open(folder, "replica", count, "");
        let follow = json!({"sql": "SELECT litestream_follow('%')", "values": [url]});
        replicas.call("each", &follow);
        let replicas = Group::idle(replicas, replicas_pid, alone);
        assert!(before.threads <= served.threads);
        (Group::idle(primary, pid, served), replicas)
    }

    fn idle(process: Process, pid: u32, before: Usage) -> Group {
        // What was started comes to rest: the threads that answered end after five seconds.
        std::thread::sleep(Duration::from_secs(7));
        let seconds: f64 = setting("IDLE_S", "5").parse().unwrap();
        let first = Usage::of(pid);
        std::thread::sleep(Duration::from_secs_f64(seconds));
        let last = Usage::of(pid);
        Group { process, before, idle: (first, last), seconds }
    }

    fn cost(&self) -> Cost {
        let (first, now) = self.idle;
        Cost {
            pss_kib: now.pss_kib.saturating_sub(self.before.pss_kib),
            threads: now.threads.saturating_sub(self.before.threads),
            descriptors: now.descriptors.saturating_sub(self.before.descriptors),
            cpu_percent: (now.cpu_us - first.cpu_us) as f64 / self.seconds / 1e4,
            wakeups_per_s: now.sleeps.saturating_sub(first.sleeps) as f64 / self.seconds,
        }
    }

    fn report(&self, report: &mut Report, what: &str, count: usize) {
        let Cost { pss_kib, threads, descriptors, cpu_percent, wakeups_per_s } = self.cost();
        let name = format!("{count} {what}");
        println!(
            "{name:<24} {:>9.1} {:>9} {threads:>8} {descriptors:>12} {cpu_percent:>11.2} \
             {wakeups_per_s:>12.0}",
            pss_kib as f64 / 1024.0,
            pss_kib / count as u64
        );
        report.json(&json!({
            "bench": "scale", "what": what, "count": count, "pss_kib": pss_kib, "threads": threads,
            "descriptors": descriptors, "idle_cpu_percent": cpu_percent,
            "wakeups_per_s": wakeups_per_s,
        }));
    }
}
