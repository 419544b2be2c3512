//! The table, and the JSON lines.

use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use crate::contestant::Archived;
use crate::statistics::spread;

pub struct Report {
    lines: File,
    path: PathBuf,
    ours: Option<(f64, f64)>,
}

/// Restores of one archive by one program.
pub struct Restored {
    pub by: &'static str,
    pub from: &'static str,
    pub seconds: Vec<f64>,
}

impl Report {
    pub fn new(folder: &Path) -> Report {
        let path = folder.parent().unwrap().join("archive.jsonl");
        Report { lines: File::create(&path).unwrap(), path, ours: None }
    }

    fn json(&mut self, line: &Value) {
        writeln!(self.lines, "{line}").unwrap();
    }

    pub fn head(&mut self, size_mib: u64, wal_mib: u64) {
        let cores = std::thread::available_parallelism().unwrap().get();
        println!("a database of {size_mib} MiB, then {wal_mib} MiB of WAL; {cores} cores, a disk");
        println!("\narchiving, seconds; in parentheses how many times ours");
        println!(
            "{:<20} {:>15} {:>15} {:>9} {:>9} {:>9}",
            "", "snapshot", "WAL", "(writing)", "MiB", "more MiB"
        );
        self.json(&json!({
            "bench": "machine", "run": crate::run::id(), "cores": cores, "size_mib": size_mib,
            "wal_mib": wal_mib,
        }));
    }

    pub fn archived(&mut self, one: &Archived) {
        let ours = *self.ours.get_or_insert((one.snapshot, one.wal));
        let mib = |bytes: u64| bytes >> 20;
        println!(
            "{:<20} {:>15} {:>15} {:>9.2} {:>9} {:>9}",
            one.by.name(),
            times(one.snapshot, ours.0),
            times(one.wal, ours.1),
            one.writing,
            mib(one.snapshot_bytes),
            mib(one.bytes.saturating_sub(one.snapshot_bytes)),
        );
        self.json(&json!({
            "bench": "archive", "by": one.by.name(),
            "snapshot_s": one.snapshot, "snapshot_bytes": one.snapshot_bytes,
            "wal_s": one.wal, "writing_s": one.writing, "bytes": one.bytes,
            "snapshot_ratio": one.snapshot / ours.0, "wal_ratio": one.wal / ours.1,
        }));
    }

    pub fn restored(&mut self, floor: Vec<f64>, all: Vec<Restored>) {
        println!("\nrestoring, seconds, median (least to most); how many times ours, `cp`");
        let floor = spread(floor);
        self.restore_line("cp, fsync", "", &floor, 0.0, floor.p50);
        let mut ours = None;
        for one in all {
            let found = spread(one.seconds);
            let ours = *ours.get_or_insert(found.p50);
            self.restore_line(one.by, one.from, &found, ours, floor.p50);
        }
        println!("\nas JSON: {}", self.path.display());
    }

    fn restore_line(
        &mut self,
        by: &str,
        from: &str,
        found: &crate::statistics::Spread,
        ours: f64,
        floor: f64,
    ) {
        let what = if from.is_empty() || from == by {
            by.to_owned()
        } else {
            format!("{by}, what {from} archived")
        };
        let spread = format!("({:.2} to {:.2})", found.min, found.max);
        let ratio = if ours == 0.0 { None } else { Some(found.p50 / ours) };
        let of_ours = ratio.map_or(String::new(), |ratio| format!("{ratio:.2}"));
        let of_floor = found.p50 / floor;
        println!("{what:<42} {:>8.2} {spread:>18} {of_ours:>6} {of_floor:>6.2}", found.p50);
        self.json(&json!({
            "bench": "restore", "by": by, "from": from, "rounds": found.count,
            "seconds": found.p50, "min_s": found.min, "p99_s": found.p99, "max_s": found.max,
            "ratio": ratio, "floor_ratio": of_floor,
        }));
    }
}

fn times(seconds: f64, ours: f64) -> String {
    format!("{seconds:.2} ({:.2})", seconds / ours)
}
