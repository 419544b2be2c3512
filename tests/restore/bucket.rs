//! Restores from a bucket: the same states, and what happens when its server does not answer.

use std::fs;
use std::time::{Duration, Instant};

use crate::common::servers::S3Server;
use crate::common::*;
use crate::support::*;

fn merged(options: &Value, more: Value) -> Value {
    let mut all = options.clone();
    for (key, value) in more.as_object().unwrap() {
        all[key] = value.clone();
    }
    all
}

#[test]
fn a_bucket_is_as_good_as_a_folder() {
    let mut server = S3Server::rclone();
    let (url, access) = (server.url("restore"), server.options());
    let mut primary = Primary::start("restore-bucket", "CREATE TABLE t(x)");
    let options = merged(&access, json!({"sync_interval": 0.05})).to_string();
    let begin = primary.db.send_with("SELECT litestream_replicate(?, ?)", json!([url, options]));
    begin.outcome(DEADLINE).unwrap();
    for number in 0..12 {
        primary.commit("INSERT INTO t VALUES (randomblob(50000))");
        match number {
            4 => drop(primary.db.text("SELECT litestream_checkpoint('RESTART')")),
            8 => drop(primary.db.text("SELECT litestream_snapshot()")),
            _ => {}
        }
    }
    primary.sync();
    let host = Host::app();
    let db = host.open(":memory:");
    let path = primary.folder.file("out.db");
    for number in [0, 3, 7, 12] {
        let state = &primary.history[number];
        for asked in [json!({"pos": state.pos}), json!({"timestamp": iso(state.at)})] {
            restore(&db, &url, &path, &merged(&access, asked)).unwrap();
            assert_is(&primary.plain, &path, state);
            fs::remove_file(&path).unwrap();
        }
    }
    let plan = restore(&db, &url, &path, &merged(&access, json!({"dry_run": true}))).unwrap();
    let last = primary.history.last().unwrap();
    assert!(plan.contains(&last.pos), "{plan}");

    // A server that hangs: the caller does not have to wait for it.
    server.pause();
    let values = json!([url, path, access.to_string()]);
    let sent = db.send_with("SELECT litestream_restore(?, ?, ?)", values);
    std::thread::sleep(Duration::from_millis(300));
    let begin = Instant::now();
    db.interrupt();
    let error = sent.outcome(DEADLINE).unwrap_err();
    assert!(error.contains("interrupted"), "{error}");
    assert!(begin.elapsed() < Duration::from_secs(5), "{:?}", begin.elapsed());
    server.resume();
    // One that is gone.
    server.stop();
    let error = restore(&db, &url, &path, &access).unwrap_err();
    assert!(error.starts_with("litestream_restore: "), "{error}");
    assert!(!error.contains("testsecret"), "{error}");
    assert_eq!(names(path.parent().unwrap(), "out.db"), [""; 0]);
    server.start();
    restore(&db, &url, &path, &access).unwrap();
    assert_is(&primary.plain, &path, last);
}
