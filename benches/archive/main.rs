//! Archives of one database by this library and by stock Litestream 0.5 and 0.3, side by side in
//! one run on one disk: how long archiving and restoring take, and what is stored.
//!
//! ```text
//! base.db      SIZE_MIB (default 1024) of documents, about half compressible
//! for each     a copy of it, replicated into a folder of its own with the defaults of each:
//!   snapshot   from the start of replication until the archive holds the first snapshot
//!   wal        from the first commit of WAL_MIB (default 200) of WAL, written flat out, until
//!              all of it is archived
//!   restore    from the archive to a new file that is on disk; in turns, ROUNDS times (default 3)
//! floor        `cp` of the database and fsync, in the same turns
//! ```
//!
//! The releases run as their users run them, a process beside the application's; ours is in the
//! application. That all is archived is known from `litestream_sync()`, from `litestream sync` of
//! 0.5, and from the end of 0.3, which archives the rest first. What is restored is compared by
//! content. Prints a table; one JSON object a line goes to `target/bench/archive.jsonl`. Everything
//! is in the page cache.
#![allow(missing_docs)]
#![allow(clippy::unwrap_used, clippy::panic, clippy::print_stdout)]

mod child;
mod contestant;
#[allow(dead_code, reason = "each bench needs its own part of this")]
#[path = "../live/folder.rs"]
mod folder;
#[path = "../live/process.rs"]
mod process;
mod report;
#[path = "../live/run.rs"]
mod run;
#[path = "../live/statistics.rs"]
mod statistics;

use std::fs::{self, File};
use std::path::Path;
use std::process::Command;
use std::time::Instant;

use contestant::{Archived, CONTESTANTS, Contestant};
use folder::Folder;
use process::Process;
use report::{Report, Restored};
use serde_json::json;

fn main() {
    if let Some(role) = std::env::var_os(process::ROLE) {
        return child::run(role.to_str().unwrap());
    }
    let target = std::env::current_exe().unwrap().ancestors().nth(3).unwrap().to_owned();
    let folder = Folder::new(&target, "archive");
    let (size, wal) = (number("SIZE_MIB", 1024), number("WAL_MIB", 200));
    let base = folder.0.join("base.db");
    Process::start("fill").call("fill", &json!({"path": base, "mib": size}));

    let mut report = Report::new(&folder.0);
    report.head(size, wal);
    let mut archived: Vec<Archived> = Vec::new();
    for contestant in CONTESTANTS {
        let one = contestant.archive(&folder.0, &base, wal);
        report.archived(&one);
        archived.push(one);
    }
    let digests: Vec<&str> = archived.iter().map(|one| one.digest.as_str()).collect();
    assert!(digests.windows(2).all(|pair| pair[0] == pair[1]), "they wrote different things");

    let readers: Vec<(Contestant, &Archived)> = archived
        .iter()
        .map(|one| (one.by, one))
        .chain(archived[1..].iter().map(|one| (Contestant::Ours, one)))
        .collect();
    let mut floor = Vec::new();
    let mut times = vec![Vec::new(); readers.len()];
    for _ in 0..number("ROUNDS", 3) {
        floor.push(copy(&archived[0].database, &folder.0.join("copy.db")));
        for ((reader, from), times) in readers.iter().zip(&mut times) {
            times.push(reader.restore(&folder.0, from));
        }
    }
    let restored = readers.iter().zip(times).map(|((by, from), seconds)| Restored {
        by: by.name(),
        from: from.by.name(),
        seconds,
    });
    report.restored(floor, restored.collect());
}

fn number(name: &str, default: u64) -> u64 {
    std::env::var(name).map_or(default, |text| text.parse().unwrap())
}

/// Seconds to copy a file to disk.
fn copy(from: &Path, to: &Path) -> f64 {
    let begin = Instant::now();
    assert!(Command::new("cp").arg(from).arg(to).status().unwrap().success());
    File::open(to).unwrap().sync_all().unwrap();
    let seconds = begin.elapsed().as_secs_f64();
    fs::remove_file(to).unwrap();
    seconds
}
