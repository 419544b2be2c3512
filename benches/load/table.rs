//! One table of what the programs found, in Markdown: ours, the best peer, the floor, the reach.
//!
//! What the ancestor could do is in the issue that set the reach; it is no package any more, so
//! these figures are quoted: `(quoted)`. Everything else was measured by the programs whose JSON
//! lines are read here.

use std::fs;
use std::path::Path;

use serde_json::{Value, json};

/// One row: a figure of ours, in the unit given, and what it is compared with.
struct Row<'r> {
    what: &'r str,
    unit: &'r str,
    ours: Option<f64>,
    peer: (Option<f64>, &'r str),
    floor: (Option<f64>, &'r str),
    reach: f64,
    /// Whether the reach is the least or the most.
    least: bool,
}

/// Lines of all programs.
struct Lines(Vec<Value>);

impl Lines {
    fn read(folder: &Path) -> Lines {
        let files = ["live", "load", "archive"].map(|name| folder.join(format!("{name}.jsonl")));
        let texts = files.iter().filter_map(|path| fs::read_to_string(path).ok());
        let parse = |text: String| -> Vec<Value> {
            text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
        };
        Lines(texts.flat_map(parse).collect())
    }

    /// A field of the first line that has all of these.
    fn get(&self, keys: &[(&str, Value)], field: &str) -> Option<f64> {
        let is = |line: &&Value| keys.iter().all(|(key, value)| line[*key] == *value);
        self.0.iter().find(is).and_then(|line| line[field].as_f64())
    }

    fn of(&self, bench: &str, field: &str) -> Option<f64> {
        self.get(&[("bench", json!(bench))], field)
    }
}

pub fn print(folder: &Path) {
    let lines = Lines::read(folder);
    println!("\n| what | ours | peer | ours / peer | floor | ours / floor | reach | met |");
    println!("|---|---:|---:|---:|---:|---:|---:|---|");
    for row in live(&lines).iter().chain(&catching_up(&lines)).chain(&standing(&lines)) {
        row.print();
    }
}

fn live(lines: &Lines) -> Vec<Row<'static>> {
    let at_50 = [("bench", json!("lag")), ("interval_ms", json!(50))];
    let mut rows = Vec::new();
    let trip = lines.of("floor", "round_trip_us").map(|us| us / 1e3);
    for (what, field, reach) in [
        ("commit to visible, one commit each 50 ms, p50", "p50_us", 0.5),
        ("the same, p99", "p99_us", 2.0),
    ] {
        rows.push(Row {
            what,
            unit: "ms",
            ours: lines.get(&at_50, field).map(|us| us / 1e3),
            peer: (lines.of("peer", field).map(|us| us / 1e3), "0.5"),
            floor: (trip, "round trip"),
            reach,
            least: false,
        });
    }
    for (what, count, quoted, reach) in [
        ("the same, 10 followers, p99", 10, Some(37.0), 5.0),
        ("the same, 100 followers, p99", 100, None, 50.0),
    ] {
        let keys = [("bench", json!("reach")), ("followers", json!(count))];
        rows.push(Row {
            what,
            unit: "ms",
            ours: lines.get(&keys, "p99_us").map(|us| us / 1e3),
            peer: (quoted, "0.4, quoted"),
            floor: (trip, "round trip"),
            reach,
            least: false,
        });
    }
    for (what, mode, reach) in [
        ("write rate, sync OFF", "OFF", 0.8),
        ("write rate, sync NORMAL", "NORMAL", 0.95),
        ("write rate, sync FULL", "FULL", 1.0),
    ] {
        let keys = [("bench", json!("rate")), ("synchronous", json!(mode))];
        rows.push(Row {
            what,
            unit: "of plain",
            ours: lines.get(&keys, "ratio"),
            peer: ((mode == "OFF").then_some(0.65), "0.4, quoted"),
            floor: (Some(1.0), "plain SQLite"),
            reach,
            least: true,
        });
    }
    rows
}

fn catching_up(lines: &Lines) -> Vec<Row<'static>> {
    let bytes = lines.of("burst", "mib").map(|mib| mib * 1.048_576);
    let pwrite = lines.of("floor", "pwrite_mb_s");
    let mut rows = vec![
        Row {
            what: "behind after a burst of WAL",
            unit: "s",
            ours: lines.of("burst", "behind_s"),
            peer: (Some(6.0), "0.4, quoted"),
            floor: (bytes.zip(pwrite).map(|(mb, speed)| mb / speed), "pwrite of it"),
            reach: 1.0,
            least: false,
        },
        Row {
            what: "slowest read on the replica meanwhile",
            unit: "ms",
            ours: lines.of("burst", "slowest_us").map(|us| us / 1e3),
            peer: (None, "0.4: errors"),
            floor: (None, ""),
            reach: 20.0,
            least: false,
        },
        Row {
            what: "reads that failed meanwhile",
            unit: "reads",
            ours: lines.of("burst", "errors"),
            peer: (None, "0.4: errors"),
            floor: (None, ""),
            reach: 0.0,
            least: false,
        },
    ];
    let pipe = lines.of("first", "pipe_s");
    rows.push(Row {
        what: "first snapshot until every row is visible",
        unit: "s",
        ours: lines.of("first", "seconds"),
        peer: (Some(14.3), "0.4, quoted"),
        floor: (pipe, "cp through a pipe"),
        reach: pipe.unwrap_or(f64::NAN) * 1.5,
        least: false,
    });
    for (what, pages, reach) in
        [("apply, one-page commits", 1, 2.5), ("apply, thousand-page commits", 1000, 1.5)]
    {
        let keys = [("bench", json!("apply")), ("pages", json!(pages))];
        let plain = lines.get(&keys, "plain_per_s");
        rows.push(Row {
            what,
            unit: "/s",
            ours: lines.get(&keys, "applied_per_s"),
            peer: (plain, "plain SQLite"),
            floor: (pwrite.map(|speed| speed * 1e6 / f64::from(4120 * pages)), "pwrite"),
            reach: plain.unwrap_or(f64::NAN) * reach,
            least: true,
        });
    }
    rows
}

fn standing(lines: &Lines) -> Vec<Row<'static>> {
    let served = [("bench", json!("scale")), ("what", json!("databases served"))];
    let followed = [("bench", json!("scale")), ("what", json!("followers of one"))];
    let kib = |keys: &[(&str, Value)]| lines.get(keys, "pss_kib").map(|kib| kib / 1024.0);
    let flat = |field| {
        let keys = [("bench", json!("flat")), ("side", json!("served"))];
        let plain = [("bench", json!("flat")), ("side", json!("plain"))];
        (lines.get(&keys, field), lines.get(&plain, field))
    };
    let (slowest, plain) = flat("max_us");
    let restore = |by: &str| {
        lines.get(&[("bench", json!("restore")), ("by", json!(by)), ("from", json!(by))], "seconds")
    };
    let row = |what, unit, ours, peer, floor, reach| Row {
        what,
        unit,
        ours,
        peer,
        floor,
        reach,
        least: false,
    };
    let (five, three) = (restore("Litestream 0.5"), restore("Litestream 0.3"));
    let best = five.zip(three).map_or(f64::NAN, |(five, three)| f64::min(five, three));
    let (plain, none) = ((plain.map(|us| us / 1e3), "plain SQLite"), (None, ""));
    let mib = |bytes: Option<f64>| bytes.map(|bytes| bytes / f64::from(1 << 20));
    let memory = kib(&served).zip(kib(&followed)).map(|(served, more)| served + more);
    let copy = lines.get(&[("bench", json!("restore")), ("by", json!("cp, fsync"))], "seconds");
    vec![
        row(
            "slowest commit flat out",
            "ms",
            slowest.map(|us| us / 1e3),
            (Some(3000.0), "0.4, quoted"),
            plain,
            50.0,
        ),
        row(
            "WAL flat out",
            "MiB",
            mib(flat("wal_bytes").0),
            (Some(600.0), "0.4, quoted"),
            (mib(flat("wal_bytes").1), "plain SQLite"),
            64.0,
        ),
        row(
            "idle primary with one follower, CPU",
            "%",
            lines.get(&followed, "idle_cpu_percent"),
            (Some(0.0), "0.4, quoted"),
            none,
            0.1,
        ),
        row("the same, memory", "MiB", memory, (Some(14.0), "0.4, quoted"), none, 10.0),
        row(
            "restore of an archive",
            "s",
            restore("litestream (this)"),
            (Some(best), "0.5 and 0.3, the faster"),
            (copy, "cp, fsync"),
            best / 3.0,
        ),
    ]
}

impl Row<'_> {
    fn print(&self) {
        let unit = self.unit;
        let ratio = |other: Option<f64>| {
            self.ours.zip(other).filter(|(_, other)| *other > 0.0 && other.is_finite())
        };
        let ratio = |other| ratio(other).map_or("-".into(), |(ours, other)| short(ours / other));
        let beside = |(value, name): (Option<f64>, &str)| match value {
            Some(value) if value.is_finite() => format!("{} ({name})", short(value)),
            _ if name.is_empty() => "-".into(),
            _ => format!("- ({name})"),
        };
        let met = |ours: f64| if self.least { ours >= self.reach } else { ours <= self.reach };
        let met = match self.ours {
            Some(ours) if self.reach.is_finite() => {
                if met(ours) {
                    "yes"
                } else {
                    "no"
                }
            }
            _ => "not measured",
        };
        let sign = if self.least { "at least" } else { "at most" };
        println!(
            "| {}, {unit} | {} | {} | {} | {} | {} | {sign} {} | {met} |",
            self.what,
            self.ours.map_or("-".into(), short),
            beside(self.peer),
            ratio(self.peer.0),
            beside(self.floor),
            ratio(self.floor.0),
            if self.reach.is_finite() { short(self.reach) } else { "-".into() },
        );
    }
}

/// Three figures that count.
fn short(value: f64) -> String {
    match value.abs() {
        size if size >= 100.0 => format!("{value:.0}"),
        size if size >= 10.0 => format!("{value:.1}"),
        _ => format!("{value:.2}"),
    }
}
