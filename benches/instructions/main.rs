//! How many instructions the pure parts take on fixed inputs, counted by callgrind: a figure that
//! does not depend on what else the machine does.
//!
//! The figures of the tree are in `figures.txt` beside this file, with the compiler and the
//! architecture they belong to. A part that takes more than `TOLERANCE_PERCENT` (default 2) above
//! its figure is an error, as is a part without a figure or a figure without a part; one that takes
//! as much less is noted, so that the gain can be kept. `UPDATE=1` writes the file anew.
//!
//! Another compiler makes other code of the same source: its counts are compared with a tolerance
//! of `OTHER_PERCENT` (default 30), which still sees a part that does its work twice. What a part
//! counts may differ between two runs by some tenths of a percent where it hashes page numbers
//! (the standard library's hash tables are seeded), and between machines by which of its copying
//! routines the C library picks.
#![allow(missing_docs)]
#![allow(clippy::unwrap_used, clippy::panic, clippy::print_stdout)]

/// The replica's batch of pages, which nobody outside of the library can reach: the same source
/// once more. It names the WAL as the library does.
#[allow(dead_code, unused_imports, reason = "only its hot part is counted")]
#[path = "../../src/follow/frames.rs"]
mod frames;
mod parts;

use std::fs;
use std::path::Path;
use std::process::{Command, ExitCode};

use litestream::wal;

/// Set in the counted process: the part it is to do.
const PART: &str = "INSTRUCTIONS_PART";

/// What was written before the figures.
const COMPILER: &str = "# by ";

fn main() -> ExitCode {
    if let Ok(name) = std::env::var(PART) {
        parts::run(&name);
        return ExitCode::SUCCESS;
    }
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("benches/instructions/figures.txt");
    let stored = fs::read_to_string(&path).unwrap_or_default();
    let now: Vec<(&str, u64)> = parts::NAMES.iter().map(|name| (*name, count(name))).collect();
    let same = stored.lines().any(|line| line.strip_prefix(COMPILER) == Some(compiler().as_str()));
    let comparison = Comparison::new(&stored, &now, tolerance(same));
    comparison.print(same);
    if std::env::var_os("UPDATE").is_some() {
        fs::write(&path, text(&now)).unwrap();
        println!("written to {}", path.display());
        return ExitCode::SUCCESS;
    }
    if comparison.wrong.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn tolerance(same_compiler: bool) -> f64 {
    let (name, default) =
        if same_compiler { ("TOLERANCE_PERCENT", 2.0) } else { ("OTHER_PERCENT", 30.0) };
    std::env::var(name).map_or(default, |text| text.parse().unwrap())
}

/// Version of the compiler, and what it compiles for.
fn compiler() -> String {
    let rustc = std::env::var_os("RUSTC").unwrap_or_else(|| "rustc".into());
    let said = Command::new(rustc).arg("-V").output().expect("cannot run rustc");
    let said = String::from_utf8(said.stdout).unwrap();
    format!("{} for {}", said.trim(), std::env::consts::ARCH)
}

fn text(figures: &[(&str, u64)]) -> String {
    let mut text =
        format!("# UPDATE=1 make instructions writes this file\n{COMPILER}{}\n", { compiler() });
    for (name, figure) in figures {
        text.push_str(&format!("{name:<20} {figure:>12}\n"));
    }
    text
}

/// The figures of the tree beside those of now.
struct Comparison {
    lines: Vec<String>,
    wrong: Vec<String>,
    better: Vec<String>,
    tolerance: f64,
}

impl Comparison {
    fn new(stored: &str, now: &[(&str, u64)], tolerance: f64) -> Comparison {
        let (mut lines, mut wrong, mut better) = (Vec::new(), Vec::new(), Vec::new());
        let figures = stored.lines().filter(|line| !line.starts_with('#'));
        let figures: Vec<(&str, u64)> = figures
            .map(|line| line.split_once(' ').unwrap())
            .map(|(name, figure)| (name, figure.trim().parse().unwrap()))
            .collect();
        for (name, now) in now {
            let Some((_, before)) = figures.iter().find(|(known, _)| known == name) else {
                lines.push(format!("{name:<20} {:>12} {now:>12} {:>9}", "-", "new"));
                wrong.push(format!("{name}: no figure"));
                continue;
            };
            let percent = (*now as f64 / *before as f64 - 1.0) * 100.0;
            lines.push(format!("{name:<20} {before:>12} {now:>12} {percent:>+8.2}%"));
            if percent > tolerance {
                wrong.push(format!("{name}: {percent:+.2} %"));
            } else if percent < -tolerance {
                better.push(format!("{name}: {percent:+.2} %"));
            }
        }
        for (name, _) in figures.iter().filter(|(name, _)| !now.iter().any(|(it, _)| it == name)) {
            wrong.push(format!("{name}: a figure and no part"));
        }
        Comparison { lines, wrong, better, tolerance }
    }

    fn print(&self, same_compiler: bool) {
        println!("{:<20} {:>12} {:>12}", "instructions", "stored", "now");
        self.lines.iter().for_each(|line| println!("{line}"));
        let tolerance = self.tolerance;
        if !same_compiler {
            println!(
                "\nthe figures are another compiler's, this is {}: up to {tolerance} % are passed; \
                 make them this one's in a commit of its own, before anything else changes",
                compiler()
            );
        }
        if !self.better.is_empty() {
            println!("\nless by more than {tolerance} %, UPDATE=1 keeps it: {:?}", self.better);
        }
        if !self.wrong.is_empty() {
            println!("\nmore by more than {tolerance} %, or not there: {:?}", self.wrong);
            println!("make it cheaper, or say why it has to cost more and run with UPDATE=1");
        }
    }
}

/// What callgrind counts inside of `parts::measured`, without what prepares it.
fn count(name: &str) -> u64 {
    let done = Command::new("valgrind")
        .args(["--tool=callgrind", "--callgrind-out-file=/dev/null", "--collect-atstart=no"])
        .arg("--toggle-collect=*parts::measured*")
        .arg(std::env::current_exe().unwrap())
        .env(PART, name)
        .output()
        .expect("valgrind is missing: make instructions installs it");
    let text = String::from_utf8_lossy(&done.stderr);
    assert!(done.status.success(), "{name}: {text}");
    let collected = text.lines().find_map(|line| line.split_once("Collected :"));
    let figure = collected.unwrap_or_else(|| panic!("{name}: {text}")).1.trim();
    let figure = figure.parse().unwrap();
    assert!(figure > 0, "{name}: nothing was counted");
    figure
}
