//! Lines for people on stdout, lines for programs in a file.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use super::run;

pub struct Report {
    lines: fs::File,
    path: PathBuf,
}

impl Report {
    pub fn new(path: &Path) -> Report {
        let mut report = Report { lines: fs::File::create(path).unwrap(), path: path.to_owned() };
        let cores = std::thread::available_parallelism().unwrap().get();
        let load = fs::read_to_string("/proc/loadavg").unwrap_or_default();
        println!("SQLite {}, {cores} cores, load before: {}", rusqlite::version(), load.trim_end());
        report.json(&json!({
            "bench": "machine", "run": run::id(), "cores": cores, "sqlite": rusqlite::version(),
            "load": load.trim(),
        }));
        report
    }

    pub fn json(&mut self, line: &Value) {
        writeln!(self.lines, "{line}").unwrap();
    }

    pub fn tail(&self) {
        println!("\nas JSON: {}", self.path.display());
    }
}
