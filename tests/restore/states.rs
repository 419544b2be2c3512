//! Every state of a history comes back: the latest, each position, any time.

use std::time::Duration;

use crate::common::*;
use crate::support::*;

const TABLE: &str = "CREATE TABLE t(id INTEGER PRIMARY KEY, pad BLOB)";

/// One random transaction.
fn change(rng: &mut Rng) -> String {
    let (id, size) = (rng.below(60), rng.below(9000));
    match rng.below(10) {
        0 => format!("DELETE FROM t WHERE id % 7 = {}", id % 7),
        1..=3 => format!("UPDATE t SET pad = randomblob({size}) WHERE id = {id}"),
        _ => format!("INSERT OR REPLACE INTO t VALUES ({id}, randomblob({size}))"),
    }
}

#[test]
fn every_position_and_any_time() {
    let mut rng = Rng::new();
    let mut primary = Primary::start("restore-states", TABLE);
    primary.archive();
    for number in 0..scaled(30, 400) {
        primary.commit(&change(&mut rng));
        if number % 11 == 10 {
            primary.db.text("SELECT litestream_checkpoint('RESTART')");
        }
        if number % 13 == 12 {
            primary.snapshot();
        }
    }
    for url in primary.archive() {
        let db = Host::app();
        let db = (db.open(":memory:"), db);
        let path = primary.folder.file("out.db");
        let last = primary.history.last().unwrap().clone();
        assert_eq!(restore(&db.0, &url, &path, &json!({})).unwrap(), last.pos);
        assert_is(&primary.plain, &path, &last);
        std::fs::remove_file(&path).unwrap();
        let options = json!({"integrity_check": true, "parallelism": 1});
        assert_eq!(restore(&db.0, &url, &path, &options).unwrap(), last.pos);
        assert_is(&primary.plain, &path, &last);
        std::fs::remove_file(&path).unwrap();
        for state in primary.history.iter().filter(|_| soak() || rng.below(2) == 0) {
            let reached = restore(&db.0, &url, &path, &json!({"pos": state.pos})).unwrap();
            assert_eq!(reached, state.pos);
            assert_is(&primary.plain, &path, state);
            std::fs::remove_file(&path).unwrap();
        }
        let first = primary.history[0].at;
        let span = last.at.duration_since(first).unwrap() + Duration::from_millis(5);
        for _ in 0..scaled(25, 50) {
            let micros = rng.below(u64::try_from(span.as_micros()).unwrap());
            let time = first + Duration::from_micros(micros);
            let state = primary.history.iter().rev().find(|state| state.at <= time).unwrap();
            let reached = restore(&db.0, &url, &path, &json!({"timestamp": iso(time)})).unwrap();
            // Of a WAL that was begun there may be the header alone.
            let begun =
                state.pos.ends_with(":0000000000000000") || reached.ends_with(":0000000000000020");
            assert!(reached == state.pos || begun, "at {}: {reached}", iso(time));
            assert_is(&primary.plain, &path, state);
            std::fs::remove_file(&path).unwrap();
        }
        assert_eq!(names(std::path::Path::new(&path).parent().unwrap(), "out.db"), [""; 0]);
    }
}
