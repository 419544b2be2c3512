//! The whole way: a database archived by `litestream_replicate`, restored at any of its states, and
//! after its process was killed.

use std::fs;
use std::time::Duration;

use crate::common::*;
use crate::support::*;

fn replicate(db: &Db, url: &str, options: &Value) -> Result<Value, String> {
    let sent = db.send_with("SELECT litestream_replicate(?, ?)", json!([url, options.to_string()]));
    sent.outcome(DEADLINE)
}

#[test]
fn every_state_of_a_replicated_database() {
    let mut rng = Rng::new();
    let table = "CREATE TABLE t(id INTEGER PRIMARY KEY, x)";
    let mut primary = Primary::start("restore-replicated", table);
    let urls = ["a", "b"].map(|name| file_url(&primary.folder.file(name)));
    let layouts = ["v0.4", "v0.3"];
    for (url, layout) in urls.iter().zip(layouts) {
        let options = json!({"layout": layout, "sync_interval": 0.02});
        replicate(&primary.db, url, &options).unwrap();
    }
    for number in 0..scaled(25, 400) {
        let size = rng.below(6000);
        let sql = match rng.below(4) {
            0 => format!("DELETE FROM t WHERE id % 9 = {}", rng.below(9)),
            1 => format!("UPDATE t SET x = randomblob({size}) WHERE id % 5 = {}", rng.below(5)),
            _ => format!("INSERT INTO t VALUES (NULL, randomblob({size}))"),
        };
        primary.commit(&sql);
        match number % 20 {
            7 => drop(primary.db.text("SELECT litestream_checkpoint('RESTART')")),
            13 => drop(primary.db.text("SELECT litestream_snapshot()")),
            _ => std::thread::sleep(Duration::from_millis(rng.below(20))),
        }
    }
    primary.sync();
    let host = Host::app();
    let db = host.open(":memory:");
    let path = primary.folder.file("out.db");
    let last = primary.history.last().unwrap();
    for (url, layout) in urls.iter().zip(layouts) {
        let check = |options: Value, states: &[&State]| {
            let reached = restore(&db, url, &path, &options)
                .unwrap_or_else(|error| panic!("{layout} {options}: {error}"));
            // A WAL's header alone changes nothing: it is the state of the end of the WAL before.
            let header = reached.ends_with(":0000000000000020").then(|| &states[0]);
            let found = states.iter().find(|state| state.pos == reached).or(header);
            let state = found.unwrap_or_else(|| {
                let expected: Vec<&str> = states.iter().map(|state| state.pos.as_str()).collect();
                panic!("{layout} {options}: restored {reached}, expected one of {expected:?}")
            });
            assert_is(&primary.plain, &path, state);
            fs::remove_file(&path).unwrap();
        };
        check(json!({}), &[last]);
        for state in primary.history.iter().filter(|_| soak() || rng.below(4) == 0) {
            check(json!({"pos": state.pos}), &[state]);
            check(json!({"timestamp": iso(state.at)}), &[state]);
        }
        let span = last.at.duration_since(primary.history[0].at).unwrap();
        for _ in 0..scaled(8, 200) {
            let micros = rng.below(u64::try_from(span.as_micros()).unwrap());
            let time = primary.history[0].at + Duration::from_micros(micros);
            // A state's time is taken just after its commit was captured.
            let before = primary.history.iter().rposition(|state| state.at <= time).unwrap();
            let states: Vec<&State> = primary.history[before..].iter().take(2).collect();
            check(json!({"timestamp": iso(time)}), &states);
        }
    }
}

/// Whatever was archived when the process was killed is some whole transaction's state, and once it
/// runs again nothing is missing.
#[test]
fn after_the_primary_was_killed() {
    let mut rng = Rng::new();
    let folder = Folder::new("restore-killed");
    let (path, out) = (folder.file("app.db"), folder.file("out.db"));
    let url = file_url(&folder.file("archive"));
    let plain = Host::plain();
    make_ledger(&plain.open(&path));
    let writer = plain.work("ledger_writer", json!({"path": path, "pause": 0.001}));
    let reader = Host::app();
    let memory = reader.open(":memory:");
    let options = json!({"sync_interval": 0.01, "snapshot_interval": 1});
    let mut last = 0;
    for round in 0..scaled(3, 200) {
        let host = Host::app();
        let db = host.open(&path);
        replicate(&db, &url, &options).unwrap();
        let known = db.int("SELECT n FROM ledger");
        db.text("SELECT litestream_sync()");
        std::thread::sleep(Duration::from_millis(rng.below(300)));
        host.kill();
        restore(&memory, &url, &out, &json!({"integrity_check": true}))
            .unwrap_or_else(|error| panic!("round {round}: {error}"));
        let copy = plain.open(&out);
        let n = copy.int("SELECT n FROM ledger");
        assert!(n >= known && n >= last, "round {round}: {n}, but {known} was synced");
        last = n;
        let law = copy.rows(
            "SELECT max(e.n) = l.n AND count(*) = min(l.n, keep) AND sum(length(pad)) = bytes
             FROM entry e, ledger l",
        );
        assert_eq!(law[0][0], 1, "round {round}: no transaction's state");
        copy.close();
        fs::remove_file(&out).unwrap();
        assert_eq!(names(out.parent().unwrap(), "out.db"), [""; 0]);
    }
    writer.finish();
    let host = Host::app();
    let db = host.open(&path);
    replicate(&db, &url, &options).unwrap();
    db.text("SELECT litestream_sync()");
    restore(&memory, &url, &out, &json!({})).unwrap();
    assert_eq!(plain.open(&out).content(), db.content());
}
