//! The first snapshot of a database: from `litestream_follow` until a reader has counted the rows.

use std::process::Command;
use std::time::Instant;

use rusqlite::Connection;
use serde_json::json;

use super::process::Process;
use super::report::Report;
use super::{Folder, setting, work};

pub fn run(folder: &Folder, report: &mut Report) {
    let mib: u64 = setting("FIRST_MIB", "1024").parse().unwrap();
    let rows = mib * 256;
    let place = folder.make("first");
    let (path, copy) = (place.join("p.db"), place.join("r.db"));
    let mut served = Process::start("served");
    let sql = work::schema(rows);
    served.call("open", &json!({"paths": [path], "load": true, "sql": sql}));
    let url = served.call("each", &json!({"sql": "SELECT litestream_serve('127.0.0.1:0')"}));
    let mut replica = Process::start("replica");
    replica.call("open", &json!({"paths": [copy], "load": true}));
    let begin = Instant::now();
    replica.call("each", &json!({"sql": "SELECT litestream_follow('%')", "values": url}));
    let db = Connection::open(&copy).unwrap();
    let newest = db.query_row("SELECT max(id) FROM wide", [], |row| row.get::<_, i64>(0));
    assert_eq!(newest, Ok(rows.cast_signed()));
    let ours = begin.elapsed().as_secs_f64();
    let counted = db.query_row("SELECT count(*) FROM wide", [], |row| row.get::<_, i64>(0));
    assert_eq!(counted, Ok(rows.cast_signed()));
    drop((db, replica, served));
    let begin = Instant::now();
    let pipe = format!("cat '{}' | cat > '{}'", path.display(), place.join("c.db").display());
    assert!(Command::new("sh").args(["-c", &pipe]).status().unwrap().success());
    let floor = begin.elapsed().as_secs_f64();
    println!("\nfirst snapshot of {mib} MiB: {ours:.2} s; cp through a pipe: {floor:.2} s");
    report.json(&json!({"bench": "first", "mib": mib, "seconds": ours, "pipe_s": floor}));
    folder.remove("first");
}
