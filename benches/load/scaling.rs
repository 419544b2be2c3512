//! What a commit, a follower, a database cost as there are more of them or they become larger: a
//! plot each in `target/bench/`, both axes logarithmic, and a JSON object a line for each point.
//!
//! Each series says with which power of x it may grow. A step that grows by more than `MARGIN`
//! above that is told, for somebody to look at: the first steps are mostly what costs the same
//! always, and a machine that does other work shows steps that are none.

use std::fs;
use std::path::Path;

use serde_json::json;

use super::catch_up::Group;
use super::plot::{Series, svg};
use super::report::Report;
use super::statistics::spread;
use super::{Folder, reach, scale, setting};

const MARGIN: f64 = 0.25;
/// Small commits at each size of the database.
const COMMITS: usize = 30;
/// Bytes of disk for each byte of the largest database: itself, its WAL, a replica, a snapshot.
const DISK: u64 = 4;

pub fn run(folder: &Folder, report: &mut Report, plots: &Path) {
    let only = setting("SCALING", "sizes,commits,followers,databases");
    for part in only.split(',') {
        let (title, x_name, series) = match part {
            "sizes" => ("A database of so many MiB", "MiB", sizes(folder, plots)),
            "commits" => ("A commit of so many pages", "pages", commits(folder)),
            "followers" => ("So many followers of one database", "followers", followers(folder)),
            "databases" => ("So many databases in one process", "databases", databases(folder)),
            other => panic!("SCALING: what is {other}?"),
        };
        let file = plots.join(format!("scaling-{part}.svg"));
        fs::write(&file, svg(title, x_name, &series)).unwrap();
        println!("\n{title}: {}", file.display());
        for one in &series {
            tell(report, part, x_name, one);
        }
    }
}

fn tell(report: &mut Report, part: &str, x_name: &str, series: &Series) {
    println!("  {} (may grow with the power {})", series.name, series.may_grow);
    let slopes = series.slopes();
    for (at, (x, y)) in series.points.iter().enumerate() {
        let slope = at.checked_sub(1).map(|before| slopes[before]);
        let much = slope.is_some_and(|slope| slope > series.may_grow + MARGIN);
        let note = if much { "  more than it should" } else { "" };
        let told = slope.map_or(String::new(), |slope| format!("power {slope:.2}"));
        println!("    {x:>8} {x_name:<10} {y:>12.3}  {told}{note}");
        report.json(&json!({
            "bench": "scaling", "part": part, "series": series.name, "x": x, "y": y,
            "power": slope, "may_grow": series.may_grow, "too_much": much,
        }));
    }
}

/// 1, 10, 100 ... up to a number.
fn tens(up_to: u64) -> impl Iterator<Item = u64> {
    std::iter::successors(Some(1_u64), |last| last.checked_mul(10))
        .take_while(move |size| *size <= up_to)
}

fn sizes(folder: &Folder, plots: &Path) -> Vec<Series> {
    let gb: f64 = setting("MAX_GB", "1").parse().unwrap();
    let up_to = (gb * 1000.0).round();
    let mut first = Series::new("first snapshot until visible, ms", 1.0);
    let mut lag = Series::new("one-page commit to visible, p50, ms", 0.0);
    for mib in tens(10_000_000).take_while(|mib| *mib as f64 <= up_to) {
        let stat = rustix::fs::statvfs(plots).unwrap();
        if stat.f_bavail * stat.f_frsize < (DISK * mib) << 20 {
            println!("{mib} MiB: not enough room on the disk for it");
            break;
        }
        let mut group = Group::start(folder, mib * 256, false);
        first.points.push((mib as f64, group.first_s * 1e3));
        lag.points.push((mib as f64, visible(&mut group, COMMITS, 1).0));
        drop(group);
        folder.remove("catch-up");
    }
    vec![first, lag]
}

fn commits(folder: &Folder) -> Vec<Series> {
    let up_to: u64 = setting("MAX_PAGES", "100000").parse().unwrap();
    // Rows are taken in steps of seven: none twice, if their number is no multiple of it.
    let rows = (up_to + 2).max(1000);
    let mut group =
        Group::start(folder, if (rows - 1).is_multiple_of(7) { rows + 1 } else { rows }, true);
    let mut lag = Series::new("from its return until visible, p50, ms", 1.0);
    let mut wrote = Series::new("the commit itself, served, p50, ms", 1.0);
    let mut plain = Series::new("the commit itself, without the extension, p50, ms", 1.0);
    for pages in tens(up_to) {
        let count = usize::try_from((3000 / pages).clamp(3, 30)).unwrap();
        let found = visible(&mut group, count, pages);
        lag.points.push((pages as f64, found.0));
        wrote.points.push((pages as f64, found.1));
        let times = (0..count).map(|_| {
            group.plain.call("rewrite", &group.with(1, pages))["us"].as_f64().unwrap() / 1e3
        });
        plain.points.push((pages as f64, spread(times.collect()).p50));
    }
    drop(group);
    folder.remove("catch-up");
    vec![lag, wrote, plain]
}

/// Medians in milliseconds: from a commit's return until a reader of the replica sees it, and how
/// long it took.
fn visible(group: &mut Group, count: usize, pages: u64) -> (f64, f64) {
    let (mut lags, mut took) = (Vec::new(), Vec::new());
    for _ in 0..count {
        group.watch(50);
        let wrote = group.served.call("rewrite", &group.with(1, pages));
        let seen = group.reader.answer();
        // The clocks of two processes agree to the microsecond.
        lags.push(((seen["at"].as_f64().unwrap() - wrote["at"].as_f64().unwrap()) / 1e3).max(1e-3));
        took.push(wrote["us"].as_f64().unwrap() / 1e3);
    }
    (spread(lags).p50, spread(took).p50)
}

/// As many as there may be, in steps of about three.
fn counts() -> impl Iterator<Item = usize> {
    let most: usize = setting("MAX_COUNT", "100").parse().unwrap();
    [1, 3, 10, 30, 100].into_iter().take_while(move |count| *count <= most)
}

fn followers(folder: &Folder) -> Vec<Series> {
    let mut p50 = Series::new("commit to visible, p50, ms", 1.0);
    let mut p99 = Series::new("commit to visible, p99, ms", 1.0);
    let mut primary = Series::new("the primary's processor time, us a commit", 1.0);
    let mut replicas = Series::new("all replicas' processor time, us a commit", 1.0);
    for count in counts() {
        let (each, _, cost) = reach::lags(folder, count);
        let (each, x) = (spread(each), count as f64);
        p50.points.push((x, each.p50.max(1.0) / 1e3));
        p99.points.push((x, each.p99.max(1.0) / 1e3));
        primary.points.push((x, cost.0.max(1) as f64));
        replicas.points.push((x, cost.1.max(1) as f64));
        folder.remove("reach");
    }
    vec![p50, p99, primary, replicas]
}

fn databases(folder: &Folder) -> Vec<Series> {
    let mut memory = Series::new("memory above the host's, KiB", 1.0);
    let mut threads = Series::new("threads", 1.0);
    let mut descriptors = Series::new("descriptors", 1.0);
    let mut wakeups = Series::new("wake-ups while idle, a second", 1.0);
    for count in counts() {
        let cost = scale::served(folder, count);
        let x = count as f64;
        memory.points.push((x, cost.pss_kib.max(1) as f64));
        threads.points.push((x, cost.threads.max(1) as f64));
        descriptors.points.push((x, cost.descriptors.max(1) as f64));
        wakeups.points.push((x, cost.wakeups_per_s.max(0.1)));
    }
    vec![memory, threads, descriptors, wakeups]
}
