//! How fast `litestream_verify` compares a replica with its upstream, beside what a machine must do
//! for that at least: read the file, and take xxHash64 of it. All in turns, the files in memory.

use std::fs::File;
use std::hash::Hasher;
use std::io::Read;
use std::path::Path;
use std::time::Instant;

use serde_json::json;
use twox_hash::XxHash64;

use super::process::Process;
use super::report::Report;
use super::{Folder, setting};

const ROUNDS: usize = 5;

pub fn run(folder: &Folder, report: &mut Report) {
    let mib: u64 = setting("MIB", "256").parse().unwrap();
    let place = folder.make("verify");
    let (path, copy) = (place.join("p.db"), place.join("r.db"));
    let mut primary = Process::start("primary");
    let sql = format!(
        "PRAGMA journal_mode = WAL; PRAGMA synchronous = OFF; CREATE TABLE t(pad BLOB);
         WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < {mib})
         INSERT INTO t SELECT randomblob(1048576) FROM n;
         PRAGMA wal_checkpoint(TRUNCATE);"
    );
    primary.call("open", &json!({"paths": [path], "load": true, "sql": sql}));
    let url = primary.call("each", &json!({"sql": "SELECT litestream_serve('127.0.0.1:0')"}));
    let mut replica = Process::start("replicas");
    replica.call("open", &json!({"paths": [copy], "load": true}));
    replica.call("each", &json!({"sql": "SELECT litestream_follow('%')", "values": url}));

    println!("\nlitestream_verify of {mib} MiB, in MB/s: primary and replica on this machine");
    println!("{:<10} {:>8} {:>8} {:>8} {:>14}", "round", "verify", "read", "xxh64", "of xxh64");
    for round in 1..=ROUNDS {
        let verify = speed(&path, || {
            let answer = replica.call("each", &json!({"sql": "SELECT litestream_verify()"}));
            assert_eq!(answer, json!(["ok"]));
        });
        let read = speed(&path, || each_part(&path, |_| ()));
        let mut sum = XxHash64::default();
        let hash = speed(&path, || each_part(&path, |part| sum.write(part)));
        let ratio = verify / hash;
        println!("{round:<10} {verify:>8.0} {read:>8.0} {hash:>8.0} {ratio:>14.2}");
        report.json(&json!({
            "bench": "verify", "mib": mib, "round": round, "sum": sum.finish(),
            "verify_mb_s": verify, "read_mb_s": read, "xxh64_mb_s": hash,
        }));
    }
    folder.remove("verify");
}

/// Megabytes of the file a second.
fn speed(path: &Path, work: impl FnOnce()) -> f64 {
    let begin = Instant::now();
    work();
    let seconds = begin.elapsed().as_secs_f64();
    path.metadata().unwrap().len() as f64 / 1e6 / seconds
}

/// No process that has the database open may do this: closing the file drops its locks.
fn each_part(path: &Path, mut part: impl FnMut(&[u8])) {
    let (mut file, mut buffer) = (File::open(path).unwrap(), vec![0; 1 << 20]);
    loop {
        match file.read(&mut buffer).unwrap() {
            0 => return,
            read => part(&buffer[..read]),
        }
    }
}
