//! The rows of the table: which line of which program each comes from.

use serde_json::{Value, json};

use super::{Lines, Named, Row, Wanted};

const NOBODY: Named = (None, "");

pub fn all(lines: &Lines) -> Vec<Row> {
    let parts = [live(lines), catching_up(lines), flat(lines), idle(lines), restore(lines)];
    parts.into_iter().flatten().collect()
}

fn live(lines: &Lines) -> Vec<Row> {
    let at_50 = [("bench", json!("lag")), ("interval_ms", json!(50))];
    let trip = (lines.of("floor", "round_trip_us").map(|us| us / 1e3), "round trip");
    let mut rows = Vec::new();
    for (what, field, quoted, reach) in [
        ("commit to visible, one commit each 50 ms, p50", "p50_us", 14.0, 0.5),
        ("the same, p99", "p99_us", 17.0, 2.0),
    ] {
        rows.push(Row {
            what: what.into(),
            unit: "ms",
            ours: lines.get(&at_50, field).map(|us| us / 1e3),
            peer: (lines.of("peer", field).map(|us| us / 1e3), "0.5"),
            quoted: Some(quoted),
            floors: vec![trip],
            reach: Wanted::Most(reach),
        });
    }
    for (count, quoted, reach) in [(10, Some(37.0), 5.0), (100, None, 50.0)] {
        let keys = [("bench", json!("reach")), ("followers", json!(count))];
        rows.push(Row {
            what: format!("the same, {count} followers, p99"),
            unit: "ms",
            ours: lines.get(&keys, "p99_us").map(|us| us / 1e3),
            peer: NOBODY,
            quoted,
            floors: vec![trip],
            reach: Wanted::Most(reach),
        });
    }
    for (mode, reach) in [("OFF", 0.8), ("NORMAL", 0.95), ("FULL", 1.0)] {
        let keys = [("bench", json!("rate")), ("synchronous", json!(mode))];
        rows.push(Row {
            what: format!("write rate, sync {mode}"),
            unit: "of plain",
            ours: lines.get(&keys, "ratio"),
            peer: NOBODY,
            quoted: Some(0.65),
            floors: vec![(Some(1.0), "plain SQLite")],
            reach: Wanted::Least(reach),
        });
    }
    rows
}

/// What the machine needs for so many megabytes at least, each on its own.
fn floors(lines: &Lines, of: impl Fn(f64) -> f64) -> Vec<Named> {
    let speed = |field| lines.of("floor", field).map(&of);
    vec![
        (speed("pwrite_mb_s"), "pwrite"),
        (speed("checksum_mb_s"), "checksum"),
        (speed("memcpy_mb_s"), "memcpy"),
    ]
}

fn catching_up(lines: &Lines) -> Vec<Row> {
    let mib = lines.of("burst", "mib");
    let size = mib.map_or(String::new(), |mib| format!("{mib} MiB of "));
    let burst = |what: &str, unit, ours, reach| Row {
        what: what.into(),
        unit,
        ours,
        peer: NOBODY,
        quoted: None,
        floors: Vec::new(),
        reach: Wanted::Most(reach),
    };
    let pipe = (lines.of("first", "pipe_s"), "cp through a pipe");
    let slowest = lines.of("burst", "slowest_us").map(|us| us / 1e3);
    let errors = lines.of("burst", "errors");
    let mut rows = vec![
        Row {
            quoted: Some(6.0),
            floors: mib.map_or(Vec::new(), |mib| floors(lines, |speed| mib * 1.048_576 / speed)),
            ..burst(
                &format!("behind after a burst of {size}WAL"),
                "s",
                lines.of("burst", "behind_s"),
                1.0,
            )
        },
        burst("slowest read on the replica meanwhile", "ms", slowest, 20.0),
        burst("reads that failed meanwhile (0.4: some)", "reads", errors, 0.0),
        Row {
            what: "first snapshot until every row is visible".into(),
            unit: "s",
            ours: lines.of("first", "seconds"),
            peer: NOBODY,
            quoted: Some(14.3),
            floors: vec![pipe],
            reach: Wanted::MostTimes(1.5, pipe),
        },
    ];
    for (what, pages, reach) in
        [("apply, one-page commits", 1, 2.5), ("apply, thousand-page commits", 1000, 1.5)]
    {
        let keys = [("bench", json!("apply")), ("pages", json!(pages))];
        let plain = (lines.get(&keys, "plain_per_s"), "plain SQLite");
        rows.push(Row {
            what: what.into(),
            unit: "/s",
            ours: lines.get(&keys, "applied_per_s"),
            peer: plain,
            quoted: None,
            floors: floors(lines, |speed| speed * 1e6 / f64::from(4120 * pages)),
            reach: Wanted::LeastTimes(reach, plain),
        });
    }
    rows
}

/// The worst of all cases.
fn flat(lines: &Lines) -> Vec<Row> {
    let served = [("bench", json!("flat")), ("side", json!("served"))];
    let plain = [("bench", json!("flat")), ("side", json!("plain"))];
    let seconds: f64 = lines
        .all(&served)
        .filter_map(|line| line["seconds"].as_f64())
        .fold(0.0, |sum, one| sum + one);
    let row = |what: &str, unit, field, scale: f64, quoted, reach| Row {
        what: what.into(),
        unit,
        ours: lines.most(&served, field).map(|most| most / scale),
        peer: (lines.most(&plain, field).map(|most| most / scale), "plain SQLite"),
        quoted: Some(quoted),
        floors: Vec::new(),
        reach: Wanted::Most(reach),
    };
    let slowest = format!("slowest commit in {seconds:.0} s flat out");
    let ours = "the same, because of us: the longest that our gate was closed";
    vec![
        row(&slowest, "ms", "max_us", 1e3, 3000.0, 50.0),
        Row { peer: NOBODY, ..row(ours, "ms", "gate_max_us", 1e3, 3000.0, 50.0) },
        row("WAL flat out", "MiB", "wal_bytes", f64::from(1 << 20), 600.0, 64.0),
    ]
}

fn idle(lines: &Lines) -> Vec<Row> {
    let one = |what: &str| [("bench", json!("scale")), ("what", json!(what)), ("count", json!(1))];
    let (served, followed) = (one("databases served"), one("followers of one"));
    let mib = |keys: &[(&str, Value)]| lines.get(keys, "pss_kib").map(|kib| kib / 1024.0);
    let row = |what: &str, unit, ours, quoted, reach| Row {
        what: what.into(),
        unit,
        ours,
        peer: NOBODY,
        quoted: Some(quoted),
        floors: Vec::new(),
        reach: Wanted::Most(reach),
    };
    let memory = mib(&served).zip(mib(&followed)).map(|(served, more)| served + more);
    let cpu = lines.get(&followed, "idle_cpu_percent");
    vec![
        row("idle primary with one follower, CPU", "%", cpu, 0.0, 0.1),
        row("the same, memory above the host's", "MiB", memory, 14.0, 10.0),
    ]
}

fn restore(lines: &Lines) -> Vec<Row> {
    let seconds = |by: &str, from: &str| {
        lines.get(
            &[("bench", json!("restore")), ("by", json!(by)), ("from", json!(from))],
            "seconds",
        )
    };
    let own = |by: &str| seconds(by, by);
    let both = [own("Litestream 0.5"), own("Litestream 0.3")];
    let best = (both.into_iter().flatten().reduce(f64::min), "the faster of 0.5 and 0.3");
    vec![Row {
        what: "restore of an archive".into(),
        unit: "s",
        ours: own("litestream (this)"),
        peer: best,
        quoted: None,
        floors: vec![(seconds("cp, fsync", ""), "cp, fsync")],
        reach: Wanted::MostTimes(1.0 / 3.0, best),
    }]
}
