//! Clocks that are set while everything runs: hours and years ahead, and back.

use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, SystemTime};

use super::common::*;

const HOUR: i64 = 3600;
const YEAR: i64 = 365 * 24 * HOUR;
const YEARS: &str = "SELECT CAST(strftime('%Y', 'now') AS INTEGER)";

/// The clock of one process (tests/network/clock.c).
struct Clock {
    host: Host,
    offset: PathBuf,
    slept: PathBuf,
}

impl Clock {
    fn new(folder: &Folder, name: &str) -> Clock {
        let source = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/network/clock.c");
        let (library, offset) = (folder.file(&format!("{name}.so")), folder.file(name));
        let compiler = std::env::var("CC").unwrap_or_else(|_| "cc".to_owned());
        let flags = ["-shared", "-fPIC", "-O1", source, "-o"];
        let built = Command::new(compiler).args(flags).arg(&library).status().unwrap();
        assert!(built.success(), "{source} does not compile");
        let slept = folder.file(&format!("{name}-slept"));
        std::fs::write(&offset, "0").unwrap();
        std::fs::write(&slept, "0").unwrap();
        let preload = format!("LD_PRELOAD={}", library.display());
        let control = format!("CLOCK_OFFSET={}", offset.display());
        let sleep = format!("CLOCK_SLEPT={}", slept.display());
        Clock { host: Host::under(&["env", &preload, &control, &sleep]), offset, slept }
    }

    /// The machine slept for so many seconds, in all.
    fn sleep(&self, seconds: i64) {
        std::fs::write(&self.slept, seconds.to_string()).unwrap();
        self.set(seconds);
    }

    /// Sets it so many seconds ahead of what it is.
    fn set(&self, seconds: i64) {
        // In place of the old file, or a reader might find none of it.
        let next = self.offset.with_extension("next");
        std::fs::write(&next, seconds.to_string()).unwrap();
        std::fs::rename(next, &self.offset).unwrap();
    }
}

#[test]
fn a_stream_does_not_care_what_time_it_is() {
    let folder = Folder::new("net-clock");
    let (here, there) = (Clock::new(&folder, "here"), Clock::new(&folder, "there"));
    let path = folder.file("p.db");
    let db = here.host.open(&path);
    make_ledger(&db);
    let url = serve(&db);
    let replica = there.host.open(folder.file("r.db"));
    follow(&replica, &url);
    let year = db.int(YEARS);
    let writer = here.host.work("ledger_writer", json!({"path": path, "pause": 0.005}));
    for (ours, theirs) in
        [(HOUR, 0), (-2 * HOUR, HOUR), (10 * YEAR, -YEAR), (-20 * YEAR, 10 * YEAR), (0, 0)]
    {
        here.set(ours);
        there.set(theirs);
        assert!((db.int(YEARS) - year - ours / YEAR).abs() <= 1, "the clock is set");
        writer.advance(30);
        catch_up(&db, &replica);
        assert_eq!(db.int("SELECT litestream_wait_followers(1, 50000)"), 1);
        for (host, table) in [(&db, "litestream_followers"), (&replica, "litestream_databases")] {
            let lags = format!("SELECT ifnull(max(lag), 0), ifnull(min(lag), 0) FROM {table}");
            let row = host.rows(&lags).remove(0);
            let sane = |lag: &Value| (0.0..60.0).contains(&lag.as_f64().unwrap());
            assert!(sane(&row[0]) && sane(&row[1]), "a lag of {row} in {table}");
        }
        let error = "SELECT error FROM litestream_databases";
        assert_eq!((db.value(error), replica.value(error)), (Value::Null, Value::Null));
        db.run("SELECT litestream_sync()").unwrap();
    }
    let times = "SELECT created_at FROM litestream_wal_segments WHERE replica = 'local'
        ORDER BY pos";
    let times: Vec<String> = db.rows(times).iter().map(|row| row[0].to_string()).collect();
    assert!(times.is_sorted(), "what is captured later is not older: {times:?}");
    writer.finish();
    assert_same(&db, &replica);
    assert_eq!(snapshots_received(&replica), 1);
}

/// A folder's objects are dated by this machine: a clock that jumped made all of them old.
#[test]
fn a_clock_that_jumps_ages_no_history() {
    let folder = Folder::new("net-clock-archive");
    let clock = Clock::new(&folder, "here");
    let archive = folder.file("archive");
    let db = clock.host.open(folder.file("p.db"));
    make_ledger(&db);
    let options = json!({"sync_interval": "20ms", "retention": "2h", "snapshot_interval": "1h"});
    let url = format!("file://{}", archive.display());
    db.text(&format!("SELECT litestream_replicate('{url}', '{options}')"));
    // An index has one snapshot: the WAL starts over before each.
    let snapshot = || {
        db.text("SELECT litestream_checkpoint('RESTART')");
        db.run("INSERT INTO ledger VALUES (1, 1, 1)").unwrap();
        db.text("SELECT litestream_snapshot()");
        db.text("SELECT litestream_sync()");
    };
    let snapshots = || objects(&archive).into_keys().filter(|it| it.contains("/snapshots/"));
    snapshot();
    let before: Vec<String> = snapshots().collect();
    assert!(!before.is_empty());
    clock.set(10 * YEAR);
    snapshot();
    // The system's own clock cannot be set here; what it would have dated is dated by hand.
    let ten_years = Duration::from_secs(10 * YEAR.unsigned_abs());
    for name in snapshots().filter(|name| !before.contains(name)) {
        let file = std::fs::File::options().write(true).open(archive.join(name)).unwrap();
        file.set_modified(SystemTime::now() + ten_years).unwrap();
    }
    snapshot();
    let told = "SELECT count(*) FROM litestream_log WHERE message LIKE '%clock has moved ahead%'";
    until("the jump to be told of", || {
        db.run("INSERT INTO ledger VALUES (2, 2, 2)").unwrap();
        (db.int(told) == 1).then_some(())
    });
    clock.set(-YEAR);
    snapshot();
    for name in before {
        assert!(archive.join(&name).exists(), "{name} was deleted");
    }
    // Those that were asked for, and the first; none because of the time.
    assert!(snapshots().count() <= 5, "{:?}", snapshots().collect::<Vec<_>>());
    assert_eq!(db.value("SELECT error FROM litestream_replicas"), Value::Null);
    db.run("SELECT litestream_stop()").unwrap();
}

/// A machine that slept has not got a wrong clock: it was said to, and kept what was old.
#[test]
fn a_machine_that_slept_is_believed() {
    let folder = Folder::new("net-clock-slept");
    let clock = Clock::new(&folder, "here");
    let db = clock.host.open(folder.file("p.db"));
    make_ledger(&db);
    let options = json!({"sync_interval": "20ms", "retention": "2h", "snapshot_interval": "1h"});
    let url = format!("file://{}", folder.file("archive").display());
    db.text(&format!("SELECT litestream_replicate('{url}', '{options}')"));
    let snapshot = || {
        db.text("SELECT litestream_checkpoint('RESTART')");
        db.run("INSERT INTO ledger VALUES (1, 1, 1)").unwrap();
        db.text("SELECT litestream_snapshot()");
        db.text("SELECT litestream_sync()");
    };
    snapshot();
    let told = "SELECT count(*) FROM litestream_log WHERE message LIKE '%clock has moved ahead%'";
    clock.sleep(5 * HOUR);
    snapshot();
    snapshot();
    assert_eq!(db.int(told), 0);
    // Unlike one that was set: this is the same, and noticed.
    clock.set(5 * HOUR + 10 * HOUR);
    snapshot();
    until("the jump to be told of", || {
        db.run("INSERT INTO ledger VALUES (2, 2, 2)").unwrap();
        (db.int(told) == 1).then_some(())
    });
    db.run("SELECT litestream_stop()").unwrap();
}
