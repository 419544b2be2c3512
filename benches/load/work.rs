//! Statements that make WAL, and a reader that waits for them.

use std::time::{Duration, Instant};

use rusqlite::Connection;
use serde_json::{Value, json};

use super::child::{now_us, say};

/// A table whose rows have a page each.
pub fn schema(rows: u64) -> String {
    format!(
        "PRAGMA journal_mode = WAL; PRAGMA synchronous = OFF;
         CREATE TABLE wide(id INTEGER PRIMARY KEY, seen INTEGER, content BLOB);
         WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < {rows})
           INSERT INTO wide SELECT i, 0, randomblob(3500) FROM n;
         PRAGMA wal_checkpoint(TRUNCATE);"
    )
}

/// So many commits of so many rows each; how long they took and when the last one returned. The
/// last commit marks row 1 with the number given.
pub fn rewrite(db: &Connection, with: &Value) -> Value {
    let number = |name: &str| with[name].as_i64().unwrap();
    let (commits, pages, rows) = (number("commits"), number("pages"), number("rows"));
    let sql = "UPDATE wide SET seen = seen + 1 WHERE id = 2 + (?1 % ?2)";
    let mut update = db.prepare(sql).unwrap();
    let begin = Instant::now();
    let mut row = 0;
    for _ in 0..commits {
        if pages > 1 {
            db.execute_batch("BEGIN").unwrap();
        }
        for _ in 0..pages {
            update.execute((row, rows - 1)).unwrap();
            row += 7;
        }
        if pages > 1 {
            db.execute_batch("COMMIT").unwrap();
        }
    }
    db.execute("UPDATE wide SET seen = ?1 WHERE id = 1", [number("mark")]).unwrap();
    json!({"us": u64::try_from(begin.elapsed().as_micros()).unwrap(), "at": now_us()})
}

/// Longer than anything here takes on a machine that is not broken.
const PATIENCE: Duration = Duration::from_secs(300);

/// Reads until row 1 has the mark; when that was, and what reading was like until then.
pub fn wait(db: &Connection, with: &Value) -> Value {
    let mark = with["mark"].as_i64().unwrap();
    let pause = Duration::from_micros(with["look_us"].as_u64().unwrap());
    say(&json!("ready"));
    let (mut reads, mut errors, mut slowest) = (0_u64, 0_u64, Duration::ZERO);
    let mut look = db.prepare("SELECT seen FROM wide WHERE id = 1").unwrap();
    let patience = Instant::now() + PATIENCE;
    loop {
        let begin = Instant::now();
        assert!(begin < patience, "the replica does not show the last commit");
        let seen = look.query_row([], |row| row.get::<_, i64>(0));
        slowest = slowest.max(begin.elapsed());
        reads += 1;
        match seen {
            Ok(seen) if seen == mark => break,
            Ok(_) => {}
            Err(_) => errors += 1,
        }
        std::thread::sleep(pause);
    }
    let slowest = u64::try_from(slowest.as_micros()).unwrap();
    json!({"at": now_us(), "reads": reads, "errors": errors, "slowest_us": slowest})
}
