//! What many databases, many followers and writers that never pause cost: measured across real
//! processes, printed as tables, and as one JSON object a line in `target/bench/load.jsonl`.
//!
//! ```text
//! scale   1, 10 and 100 databases served by one process, 1, 10 and 100 replicas in one process:
//!         memory, threads, descriptors, and what they cost while nothing happens
//! reach   from the return of COMMIT until 1, 10 and 100 replicas show the row
//! flat    writers flat out, in turns without and with the extension: commit times, the slowest
//!         ones and what they waited for, how long the WAL became and how large the log
//! burst   a gigabyte of WAL at once: how soon after its last commit the replica shows it, and
//!         what a reader there meets meanwhile
//! apply   commits that a replica catches up from memory, beside plain SQLite executing them
//! first   the first snapshot of a database, until every row is visible, beside `cp` through a pipe
//! peer    from COMMIT's return until a replica of Litestream 0.5 (`restore -f`) shows the row
//! floor   what the machine can do: pwrite, memcpy, one pass of the checksum, a round trip, fsync
//! table   one table of everything in `target/bench/` that is of this run, in Markdown; as the only
//!         part, of the last run
//! scaling what grows with what, as plots; only alone: see scaling.rs (`SCALING`, `MAX_GB`,
//!         `MAX_PAGES`, `MAX_COUNT`)
//! verify  litestream_verify, in bytes a second, beside reading the file and hashing it
//! ```
//!
//! | variable    | default       | is                                                            |
//! |-------------|---------------|---------------------------------------------------------------|
//! | `PARTS`     | the first three | which of the parts, with commas                               |
//! | `SIZES`     | `1,10,100`    | how many databases and followers                              |
//! | `MINUTES`   | 1             | how long the served databases are written flat out, in all    |
//! | `WRITERS`   | see `CASES`   | cases of `flat`, such as `NORMAL:1,OFF:2`: synchronous and how many writers |
//! | `MIB`       | 256           | size of the database that is verified                         |
//! | `BURST_MIB` | 1000          | WAL of the burst, and bytes of the floors                     |
//! | `APPLY`     | 40000         | pages that are committed while a replica stands still         |
//! | `FIRST_MIB` | 1024          | size of the database of the first snapshot                    |
//! | `BENCH_RUN` | one's own     | what the run is called, the same in all programs of it        |
//! | `IDLE_S`    | 5             | how long a process is watched doing nothing, in seconds       |
//!
//! The SQLite is the bundled one. With 100 replicas on few processors most of what `reach` measures
//! is a hundred threads taking turns.
#![allow(missing_docs)]
#![allow(clippy::unwrap_used, clippy::panic, clippy::print_stdout)]

mod catch_up;
mod child;
mod first;
mod flat;
mod floor;
#[path = "../live/folder.rs"]
mod folder;
mod histogram;
mod peer;
mod plot;
#[path = "../live/process.rs"]
mod process;
mod reach;
mod report;
#[path = "../live/run.rs"]
mod run;
mod scale;
mod scaling;
#[allow(dead_code, reason = "each bench prints its own part of this")]
#[path = "../live/statistics.rs"]
mod statistics;
mod table;
mod usage;
mod verify;
mod work;

use folder::Folder;
use report::Report;

fn main() {
    if let Some(role) = std::env::var_os(process::ROLE) {
        return child::run(role.to_str().unwrap());
    }
    let target = std::env::current_exe().unwrap().ancestors().nth(3).unwrap().to_owned();
    let parts = setting("PARTS", "scale,reach,flat");
    if parts == "table" {
        // Of the lines the last run left.
        return table::print(&target.join("bench"));
    }
    let folder = Folder::new(&target, "load");
    let bench = target.join("bench");
    if parts == "scaling" {
        let mut report = Report::new(&bench.join("scaling.jsonl"));
        scaling::run(&folder, &mut report, &bench);
        return report.tail();
    }
    let mut report = Report::new(&bench.join("load.jsonl"));
    for part in parts.split(',') {
        match part {
            "scale" => scale::run(&folder, &mut report),
            "reach" => reach::run(&folder, &mut report),
            "flat" => flat::run(&folder, &mut report),
            "burst" => catch_up::burst(&folder, &mut report),
            "apply" => catch_up::apply(&folder, &mut report),
            "first" => first::run(&folder, &mut report),
            "peer" => peer::run(&folder, &mut report),
            "floor" => floor::run(&folder, &mut report),
            "table" => table::print(&bench),
            "verify" => verify::run(&folder, &mut report),
            other => panic!("PARTS: what is {other}?"),
        }
    }
    report.tail();
}

/// An environment variable, or its default.
fn setting(name: &str, default: &str) -> String {
    std::env::var(name).unwrap_or_else(|_| default.to_owned())
}

fn sizes() -> Vec<usize> {
    setting("SIZES", "1,10,100").split(',').map(|size| size.parse().unwrap()).collect()
}
