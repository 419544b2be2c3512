//! When nothing goes wrong: everything is there, once, and soon; stopping and starting over.

use std::time::{Duration, Instant};

use crate::common::*;
use crate::primary::{Primary, place};

#[test]
fn everything_is_in_the_archive_in_both_layouts() {
    for layout in ["v0.4", "v0.3"] {
        let folder = Folder::new("archive");
        let primary = Primary::new(&folder, &format!(r#"{{"layout": "{layout}"}}"#));
        primary.add(3);
        let load = primary.load(0.0002);
        load.advance(500);
        primary.db.text("SELECT litestream_checkpoint('RESTART')");
        load.advance(100);
        load.finish();
        let archived = primary.assert_archived();
        let wal = std::fs::read(folder.file("p.db-wal")).unwrap();
        let last = archived.wals.last_key_value().unwrap().1;
        assert!(wal.starts_with(last), "the WAL itself, byte for byte");
        let name = match layout {
            "v0.3" => "/wal/00000000_00000000.wal",
            _ => "/wal/0000000000000000/0000000000000000.wal",
        };
        assert!(objects(&primary.archive).keys().any(|key| key.contains(name)));
    }
}

#[test]
fn a_person_at_a_shell() {
    let folder = Folder::new("archive-shell");
    let mut shell = Shell::start(&folder.file("p.db"));
    let url = format!("file://{}", folder.file("archive").display());
    shell.ask("CREATE TABLE t(x); INSERT INTO t VALUES (1);");
    assert_eq!(shell.ask(&format!("SELECT litestream_replicate('{url}');")), url);
    assert_eq!(shell.ask("INSERT INTO t VALUES (2);"), "");
    // The next commit is in the archive a second later, though nobody asks.
    until("the commit to be archived", || {
        let end = read_only_generation(&folder.file("archive")).end();
        (place(&shell.ask("SELECT litestream_pos();")) == end).then_some(())
    });
    assert_eq!(shell.ask("SELECT state, error FROM litestream_replicas;"), "streaming|");
    assert!(shell.quit().success());
}

#[test]
fn commits_are_sent_within_the_interval_and_not_one_by_one() {
    let folder = Folder::new("archive-interval");
    let primary = Primary::new(&folder, r#"{"sync_interval": "300ms"}"#);
    primary.sync();
    let before = objects(&primary.archive).len();
    let began = Instant::now();
    let load = primary.load(0.001);
    load.advance(300);
    let elapsed = began.elapsed();
    let after = objects(&primary.archive).len();
    load.finish();
    // Ends of indexes come in addition.
    let most = usize::try_from(elapsed.as_millis() / 300).unwrap() * 2 + 4;
    assert!(after > before && after - before <= most, "{} objects in {elapsed:?}", after - before);
    let committed = primary.db.text("SELECT litestream_pos()");
    until("the rest to be archived", || {
        (primary.archived(&committed).end() == place(&committed)).then_some(())
    });
}

#[test]
fn nothing_is_written_when_nothing_happens() {
    let folder = Folder::new("archive-idle");
    let primary = Primary::new(&folder, "{}");
    primary.add(1);
    primary.sync();
    let before = objects(&primary.archive);
    std::thread::sleep(scaled(Duration::from_secs(2), Duration::from_secs(20)));
    assert_eq!(objects(&primary.archive), before);
}

#[test]
fn a_stopped_archive_goes_on_where_it_was() {
    let folder = Folder::new("archive-stop");
    let primary = Primary::new(&folder, "{}");
    primary.add(5);
    // What is committed is sent before the stop returns.
    let pos = primary.db.text("SELECT litestream_pos()");
    assert_eq!(primary.db.int("SELECT litestream_stop('replicate')"), 1);
    assert_eq!(primary.archived(&pos).end(), place(&pos));
    assert_eq!(primary.db.rows("SELECT * FROM litestream_replicas"), [""; 0]);
    assert_eq!(primary.db.rows("SELECT * FROM litestream_databases"), [""; 0]);
    let before = objects(&primary.archive);
    primary.add(5);
    primary.replicate();
    primary.assert_archived();
    let after = objects(&primary.archive);
    let kept = before.iter().filter(|(key, _)| !key.ends_with("position"));
    assert!(
        kept.clone().all(|(key, facts)| after.get(key) == Some(facts)),
        "nothing is sent twice"
    );
    assert_eq!(read_archive(&primary.archive).len(), 1, "one history");
    assert_eq!(primary.db.int("SELECT litestream_stop()"), 1);
}

#[test]
fn serving_and_archiving_are_stopped_by_themselves() {
    let folder = Folder::new("archive-serve");
    let primary = Primary::new(&folder, "{}");
    let url = serve(&primary.db);
    assert_eq!(primary.db.int("SELECT litestream_stop('serve')"), 1);
    primary.add(1);
    primary.assert_archived();
    assert_eq!(serve(&primary.db).is_empty(), url.is_empty());
    assert_eq!(primary.db.int("SELECT litestream_stop('replicate')"), 1);
    assert_eq!(primary.db.text("SELECT role FROM litestream_databases"), "primary");
    primary.replicate();
    primary.add(1);
    primary.assert_archived();
    assert_eq!(primary.db.int("SELECT litestream_stop()"), 2);
}

#[test]
fn a_process_that_just_ends_is_continued() {
    let folder = Folder::new("archive-exit");
    let mut primary = Primary::new(&folder, "{}");
    let mut sent = objects(&primary.archive);
    for round in 0..3 {
        primary.add(20);
        let Primary { path, archive, options, host, db: _ } = primary;
        assert!(host.quit().success());
        let others = |(key, _): &(&String, _)| !key.ends_with("position");
        let now = objects(&archive);
        assert!(sent.iter().filter(others).all(|(key, facts)| now.get(key) == Some(facts)));
        sent = now;
        primary = Primary::idle(path, archive, &options);
        primary.replicate();
        assert_eq!(primary.told("new generation"), 0, "round {round}");
        primary.assert_archived();
    }
    let archived = read_only_generation(&primary.archive);
    assert_eq!(archived.snapshots.len(), 1, "one snapshot is enough");
}

#[test]
fn snapshots_when_segments_outgrow_them_and_on_demand() {
    let folder = Folder::new("archive-snapshots");
    let primary = Primary::new(&folder, r#"{"log_bytes": 1048576}"#);
    let arguments = json!({"path": primary.path, "pause": 0.002, "size": 20_000});
    let load = primary.host.work("ledger_writer", arguments);
    until("two further snapshots", || {
        let sent = objects(&primary.archive);
        (sent.keys().filter(|key| key.contains("/snapshots/")).count() >= 3).then_some(())
    });
    load.finish();
    primary.assert_archived();
    primary.next_index();
    let pos = primary.db.text("SELECT litestream_snapshot()");
    let archived = primary.assert_archived();
    assert!(archived.snapshots.contains_key(&place(&pos).0), "{pos}");
}

#[test]
fn an_interval_brings_a_snapshot_of_a_later_index() {
    let folder = Folder::new("archive-interval-snapshot");
    let primary = Primary::new(&folder, r#"{"snapshot_interval": "1s"}"#);
    // Few commits: the WAL would not start over by itself.
    until("a second snapshot", || {
        primary.add(1);
        let archived = read_only_generation(&primary.archive);
        (archived.snapshots.len() >= 2).then_some(())
    });
    primary.assert_archived();
}

#[test]
fn what_is_refused() {
    let folder = Folder::new("archive-refused");
    let primary = Primary::new(&folder, "{}");
    let url = primary.url();
    let call = |db: &Db, options: &str| {
        db.fails(&format!("SELECT litestream_replicate('{url}', '{options}')"))
    };
    primary.replicate();
    let error = call(&primary.db, r#"{"retention": "3d"}"#);
    assert!(error.contains("with other options"), "{error}");
    let other = primary.host.open(folder.file("other.db"));
    let error = call(&other, "{}");
    assert!(error.contains("another database's archive"), "{error}");
    assert_eq!(primary.db.int("SELECT count(*) FROM litestream_replicas"), 1);
    assert_eq!(primary.db.int("SELECT count(*) FROM litestream_databases"), 1);
    for (options, expected) in [
        (r#"{"retention": 0}"#, "retention"),
        (r#"{"layout": "v0.5"}"#, "layout"),
        (r#"{"backlog_bytes": 1}"#, "backlog_bytes"),
        (r#"{"interval": 1}"#, "unknown option"),
    ] {
        let error = call(&other, options);
        assert!(error.contains(expected), "{error}");
    }
    for url in ["", "ftp://x/y", "file://host/x", "s3://"] {
        let error = other.fails(&format!("SELECT litestream_replicate('{url}')"));
        assert!(error.starts_with("litestream_replicate: "), "{error}");
    }
    let memory = primary.host.open(":memory:");
    let error = memory.fails("SELECT litestream_replicate('file:///tmp/x')");
    assert!(error.contains("in-memory"), "{error}");
    // A replica's history is its upstream's to archive.
    let upstream = serve(&primary.db);
    let host = Host::app();
    let replica = host.open(folder.file("r.db"));
    follow(&replica, &upstream);
    let error = call(&replica, "{}");
    assert!(error.contains("replica"), "{error}");
    let error = primary.db.fails(&format!("SELECT litestream_follow('{upstream}')"));
    assert!(error.contains("served or archived"), "{error}");
}

#[test]
fn a_forked_child_is_told() {
    let folder = Folder::new("archive-fork");
    let primary = Primary::new(&folder, "{}");
    for call in [
        format!("SELECT litestream_replicate('{}')", primary.url()),
        "SELECT litestream_sync()".to_owned(),
        "SELECT litestream_stop('replicate')".to_owned(),
        "SELECT * FROM litestream_replicas".to_owned(),
    ] {
        let error = primary.db.in_a_child(&primary.path, &call).unwrap_err();
        assert!(error.contains("forked"), "{error}");
    }
    primary.add(1);
    primary.assert_archived();
}

#[test]
fn metrics_tell_of_each_archive() {
    let folder = Folder::new("archive-metrics");
    let primary = Primary::new(&folder, "{}");
    let url = serve(&primary.db);
    primary.add(3);
    primary.sync();
    assert!(metric(&url, "litestream_replica_operation_total") >= 2.0);
    assert!(metric(&url, "litestream_replica_operation_bytes") > 100.0);
    assert_eq!(metric(&url, "litestream_replica_error_count"), 0.0);
    assert_eq!(metric(&url, "litestream_replica_lag_seconds"), 0.0);
}
