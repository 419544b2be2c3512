//! How fast a replica catches up: after a burst while it follows, and with everything in memory
//! after it was stopped.

use std::path::Path;

use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};

use super::process::Process;
use super::report::Report;
use super::{Folder, setting, work};

/// Rows of a page each: 200 MB.
const ROWS: u64 = 50_000;
const FRAME: u64 = 4096 + 24;
/// Between two looks of the reader.
const LOOK_US: u64 = 500;

struct Group {
    reader: Process,
    replica: Process,
    served: Process,
    plain: Process,
    mark: i64,
}

impl Group {
    fn start(folder: &Folder) -> Group {
        let place = folder.make("catch-up");
        let (path, copy) = (place.join("p.db"), place.join("r.db"));
        let open = |role, path: &Path, load, sql: &str| {
            let mut process = Process::start(role);
            process.call("open", &json!({"paths": [path], "load": load, "sql": sql}));
            process
        };
        let fill = work::schema(ROWS);
        let plain = open("plain", &place.join("plain.db"), false, &fill);
        let mut served = open("served", &path, true, &fill);
        let url = served.call("each", &json!({"sql": "SELECT litestream_serve('127.0.0.1:0')"}));
        let mut replica = open("replica", &copy, true, "");
        replica.call("each", &json!({"sql": "SELECT litestream_follow('%')", "values": url}));
        let reader = open("reader", &copy, false, "SELECT count(*) FROM wide;");
        Group { reader, replica, served, plain, mark: 0 }
    }

    fn watch(&mut self) {
        self.mark += 1;
        self.reader.say("await", &json!({"mark": self.mark, "look_us": LOOK_US}));
        assert_eq!(self.reader.answer(), json!("ready"));
    }

    fn with(&self, commits: u64, pages: u64) -> Value {
        json!({"commits": commits, "pages": pages, "rows": ROWS, "mark": self.mark})
    }

    fn signal(&mut self, signal: Signal) {
        let pid = self.replica_pid();
        kill_process(pid, signal).unwrap();
    }

    fn replica_pid(&self) -> Pid {
        Pid::from_raw(i32::try_from(self.replica.id()).unwrap()).unwrap()
    }
}

fn number(value: &Value) -> f64 {
    value.as_f64().unwrap()
}

/// Commits of a thousand pages, as many as fill the WAL asked for.
pub fn burst(folder: &Folder, report: &mut Report) {
    let mib: u64 = setting("BURST_MIB", "1000").parse().unwrap();
    let mut group = Group::start(folder);
    group.watch();
    let wrote = group.served.call("rewrite", &group.with((mib << 20) / FRAME / 1000, 1000));
    let seen = group.reader.answer();
    let seconds = (number(&seen["at"]) - number(&wrote["at"])) / 1e6;
    println!(
        "\na burst of {mib} MiB of WAL, written in {:.2} s: all visible {seconds:.2} s after its \
         last commit; {} reads meanwhile, {} failed, the slowest {} us",
        number(&wrote["us"]) / 1e6,
        seen["reads"],
        seen["errors"],
        seen["slowest_us"]
    );
    report.json(&json!({
        "bench": "burst", "mib": mib, "write_s": number(&wrote["us"]) / 1e6, "behind_s": seconds,
        "reads": seen["reads"], "errors": seen["errors"], "slowest_us": seen["slowest_us"],
    }));
    drop(group);
    folder.remove("catch-up");
}

/// The replica is stopped while the commits are made, and let go then.
pub fn apply(folder: &Folder, report: &mut Report) {
    let mut group = Group::start(folder);
    println!("\ncommits a second: a stopped replica goes on, plain SQLite executes the same");
    let pages: u64 = setting("APPLY", "200000").parse().unwrap();
    for (pages, commits) in [(1, pages), (1000, pages / 1000)] {
        group.plain.call("rewrite", &group.with(commits / 10, pages));
        let plain = group.plain.call("rewrite", &group.with(commits, pages));
        group.signal(Signal::STOP);
        group.watch();
        group.served.call("rewrite", &group.with(commits, pages));
        let begin = super::child::now_us();
        group.signal(Signal::CONT);
        let seen = group.reader.answer();
        let rate = |us: f64| commits as f64 * 1e6 / us;
        let (plain, ours) = (rate(number(&plain["us"])), rate(number(&seen["at"]) - begin as f64));
        println!("{pages:>5} pages each: {ours:>9.0} applied, {plain:>9.0} executed");
        report.json(&json!({
            "bench": "apply", "pages": pages, "commits": commits, "applied_per_s": ours,
            "plain_per_s": plain, "ratio": ours / plain,
        }));
    }
    drop(group);
    folder.remove("catch-up");
}
