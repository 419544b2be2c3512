//! How fast a replica catches up: after a burst while it follows, and with everything in memory
//! after it was stopped by a signal.

use std::path::Path;
use std::time::Instant;

use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};

use super::process::Process;
use super::report::Report;
use super::statistics::spread;
use super::{Folder, setting, work};

/// Rows of a page each: 200 MB for the burst, 40 MB for applying.
const BURST_ROWS: u64 = 50_000;
const APPLY_ROWS: u64 = 10_000;
/// Rounds of applying, the sides in turns.
const ROUNDS: usize = 3;
/// A server lets go of a follower that takes nothing for 15 s. One that stood still for longer than
/// this may have had to connect again: that is not what is to be measured.
const STILL_MAX_S: f64 = 10.0;
const FRAME: u64 = 4096 + 24;
/// Between two looks of the reader.
const LOOK_US: u64 = 500;

/// A writer with a follower that has a reader, and a writer without the extension.
pub struct Group {
    pub reader: Process,
    replica: Process,
    pub served: Process,
    pub plain: Process,
    rows: u64,
    mark: i64,
    /// From the call until the replica had the first snapshot.
    pub first_s: f64,
}

/// A stopped process would not end, and whoever waits for it would wait forever.
impl Drop for Group {
    fn drop(&mut self) {
        self.signal(Signal::CONT);
    }
}

impl Group {
    /// With so many rows in the database; the other writer's may be an empty one.
    pub fn start(folder: &Folder, rows: u64, plain: bool) -> Group {
        let place = folder.make("catch-up");
        let (path, copy) = (place.join("p.db"), place.join("r.db"));
        let open = |role, path: &Path, load, sql: &str| {
            let mut process = Process::start(role);
            process.call("open", &json!({"paths": [path], "load": load, "sql": sql}));
            process
        };
        let fill = work::schema(rows);
        let other = if plain { &fill } else { "" };
        let plain = open("plain", &place.join("plain.db"), false, other);
        let mut served = open("served", &path, true, &fill);
        let url = served.call("each", &json!({"sql": "SELECT litestream_serve('127.0.0.1:0')"}));
        let mut replica = open("replica", &copy, true, "");
        let begin = Instant::now();
        replica.call("each", &json!({"sql": "SELECT litestream_follow('%')", "values": url}));
        let first_s = begin.elapsed().as_secs_f64();
        let reader = open("reader", &copy, false, "SELECT count(*) FROM wide;");
        Group { reader, replica, served, plain, rows, mark: 0, first_s }
    }

    /// The reader waits for the next mark, and looks so often.
    pub fn watch(&mut self, look_us: u64) {
        self.mark += 1;
        self.reader.say("await", &json!({"mark": self.mark, "look_us": look_us}));
        assert_eq!(self.reader.answer(), json!("ready"));
    }

    pub fn with(&self, commits: u64, pages: u64) -> Value {
        json!({"commits": commits, "pages": pages, "rows": self.rows, "mark": self.mark})
    }

    fn signal(&self, signal: Signal) {
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
    let mut group = Group::start(folder, BURST_ROWS, false);
    group.watch(LOOK_US);
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
    let mut group = Group::start(folder, APPLY_ROWS, true);
    println!("\ncommits a second: a stopped replica goes on, plain SQLite executes the same");
    let pages: u64 = setting("APPLY", "40000").parse().unwrap();
    for (pages, commits) in [(1, pages), (1000, (pages / 1000).max(4))] {
        let mut commits = commits;
        // Whatever is to be there at the first time is there then.
        group.plain.call("rewrite", &group.with(commits.div_ceil(10), pages));
        let mut rounds = Vec::new();
        while rounds.len() < ROUNDS {
            let round = one_round(&mut group, commits, pages);
            if round.still_s <= STILL_MAX_S || commits < 8 {
                rounds.push(round);
            } else {
                println!("{pages:>5} pages each: {:.0} s for {commits}, half of it", round.still_s);
                (commits, rounds) = (commits / 2, Vec::new());
            }
        }
        let middle = |of: &dyn Fn(&Round) -> f64| spread(rounds.iter().map(of).collect()).p50;
        let (ours, plain) = (middle(&|round| round.applied), middle(&|round| round.plain));
        let ratio = middle(&|round| round.applied / round.plain);
        println!(
            "{pages:>5} pages each: {ours:>9.0} applied, {plain:>9.0} executed, {ratio:.2} times"
        );
        report.json(&json!({
            "bench": "apply", "pages": pages, "commits": commits, "rounds": ROUNDS,
            "applied_per_s": ours, "plain_per_s": plain, "ratio": ratio,
            "still_s": middle(&|round| round.still_s),
        }));
    }
    drop(group);
    folder.remove("catch-up");
}

/// Commits a second of both sides, and how long the replica stood still before.
struct Round {
    applied: f64,
    plain: f64,
    still_s: f64,
}

fn one_round(group: &mut Group, commits: u64, pages: u64) -> Round {
    let plain = group.plain.call("rewrite", &group.with(commits, pages));
    group.watch(LOOK_US);
    group.signal(Signal::STOP);
    let wrote = group.served.call("rewrite", &group.with(commits, pages));
    // The primary's own work is over, too: the log is in files, the WAL checkpointed.
    group.served.call("each", &json!({"sql": "SELECT litestream_sync()"}));
    let begin = super::child::now_us();
    group.signal(Signal::CONT);
    let seen = group.reader.answer();
    let rate = |us: f64| commits as f64 * 1e6 / us;
    Round {
        applied: rate(number(&seen["at"]) - begin as f64),
        plain: rate(number(&plain["us"])),
        still_s: number(&wrote["us"]) / 1e6,
    }
}
