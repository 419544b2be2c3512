//! One table of what the programs of one run found, in Markdown: ours, the best peer, what the
//! ancestor did, the floor, the reach.
//!
//! The ancestor is no package any more, so its figures are quoted, from other hours of another
//! machine. Everything else was measured by the programs whose JSON lines are read here. Lines of
//! `live` and `archive` that belong to another run than those of `load` are not used, and that is
//! said.

use std::fs;
use std::path::Path;

use serde_json::{Value, json};

mod rows;

/// A figure and where it is from.
type Named = (Option<f64>, &'static str);

/// One row: a figure of ours, in the unit given, and what it is compared with.
struct Row {
    what: String,
    unit: &'static str,
    ours: Option<f64>,
    /// The best that was measured in this run.
    peer: Named,
    /// Litestream 0.4's, quoted; the better end where it is a range.
    quoted: Option<f64>,
    floors: Vec<Named>,
    reach: Wanted,
}

/// What is wanted.
#[derive(Clone, Copy)]
enum Wanted {
    Most(f64),
    Least(f64),
    /// So many times what this run measured of something.
    MostTimes(f64, Named),
    LeastTimes(f64, Named),
}

impl Wanted {
    /// The figure; none: what it is a multiple of was not measured.
    fn figure(self) -> Option<f64> {
        match self {
            Wanted::Most(figure) | Wanted::Least(figure) => Some(figure),
            Wanted::MostTimes(times, of) | Wanted::LeastTimes(times, of) => {
                of.0.map(|of| times * of)
            }
        }
    }

    fn is_least(self) -> bool {
        matches!(self, Wanted::Least(_) | Wanted::LeastTimes(..))
    }

    fn text(self) -> String {
        let sign = if self.is_least() { "at least" } else { "at most" };
        let figure = self.figure().map_or("-".into(), short);
        match self {
            Wanted::Most(_) | Wanted::Least(_) => format!("{sign} {figure}"),
            Wanted::MostTimes(times, of) | Wanted::LeastTimes(times, of) => {
                format!("{sign} {} x {}, in this run {figure}", short(times), of.1)
            }
        }
    }
}

/// Lines of all programs.
struct Lines(Vec<Value>);

impl Lines {
    /// Of one run; the programs that have lines of another one or none at all.
    fn read(folder: &Path) -> (Lines, String, Vec<&'static str>) {
        let lines = |name: &str| -> Vec<Value> {
            let text = fs::read_to_string(folder.join(format!("{name}.jsonl")));
            text.unwrap_or_default()
                .lines()
                .map(|line| serde_json::from_str(line).unwrap())
                .collect()
        };
        let run = |lines: &[Value]| {
            lines.first().and_then(|line| line["run"].as_str().map(str::to_owned))
        };
        let mut all = lines("load");
        let this = run(&all).expect("no lines of this program");
        let mut missing = Vec::new();
        for name in ["live", "archive"] {
            let others = lines(name);
            if run(&others).as_ref() == Some(&this) {
                all.extend(others);
            } else {
                missing.push(name);
            }
        }
        (Lines(all), this, missing)
    }

    /// Those that have all of these.
    fn all<'l>(&'l self, keys: &'l [(&str, Value)]) -> impl Iterator<Item = &'l Value> {
        let is = |line: &&Value| keys.iter().all(|(key, value)| line[*key] == *value);
        self.0.iter().filter(is)
    }

    /// A field of the first line that has all of these.
    fn get(&self, keys: &[(&str, Value)], field: &str) -> Option<f64> {
        self.all(keys).next().and_then(|line| line[field].as_f64())
    }

    /// The largest of a field in the lines that have all of these.
    fn most(&self, keys: &[(&str, Value)], field: &str) -> Option<f64> {
        self.all(keys).filter_map(|line| line[field].as_f64()).reduce(f64::max)
    }

    fn of(&self, bench: &str, field: &str) -> Option<f64> {
        self.get(&[("bench", json!(bench))], field)
    }
}

pub fn print(folder: &Path) {
    let (lines, run, missing) = Lines::read(folder);
    let machine = &lines.0[0];
    println!(
        "\nRun {run}: {} cores, SQLite {}, load before: {}\n",
        machine["cores"], machine["sqlite"], machine["load"]
    );
    for name in missing {
        println!("`{name}` has no lines of this run: its rows say not measured\n");
    }
    println!(
        "| what | ours | peer | ours / peer | 0.4, quoted | floor | ours / floor | reach | met |"
    );
    println!("|---|---:|---:|---:|---:|---:|---:|---|---|");
    for row in rows::all(&lines) {
        println!("{}", row.text());
    }
}

impl Row {
    fn text(&self) -> String {
        let ratio = |other: Option<f64>| {
            let both = self.ours.zip(other).filter(|(_, other)| *other > 0.0);
            both.map_or("-".into(), |(ours, other)| short(ours / other))
        };
        let beside = |(value, name): &Named| {
            value.map_or("-".to_owned(), |value| format!("{} ({name})", short(value)))
        };
        let measured: Vec<&Named> =
            self.floors.iter().filter(|(value, _)| value.is_some()).collect();
        let floors: Vec<String> = measured.iter().map(|floor| beside(floor)).collect();
        // The one that bounds most: ours cannot get past any of them.
        let values = measured.iter().filter_map(|(value, _)| *value);
        let bound = values.reduce(if self.reach.is_least() { f64::min } else { f64::max });
        let met = self
            .ours
            .zip(self.reach.figure())
            .map(|(ours, reach)| if self.reach.is_least() { ours >= reach } else { ours <= reach });
        format!(
            "| {}, {} | {} | {} | {} | {} | {} | {} | {} | {} |",
            self.what,
            self.unit,
            self.ours.map_or("-".into(), short),
            beside(&self.peer),
            ratio(self.peer.0),
            self.quoted.map_or("-".into(), short),
            if floors.is_empty() { "-".to_owned() } else { floors.join(", ") },
            ratio(bound),
            self.reach.text(),
            met.map_or("not measured", |met| if met { "yes" } else { "no" })
        )
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
