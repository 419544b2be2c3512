//! What a restore refuses, what it does when it cannot go on, and that it leaves nothing behind.

use std::fs;
use std::path::Path;
use std::process::Command;

use litestream::pos::{Offset, Pos};

use crate::common::*;
use crate::support::*;

fn small() -> (Primary, String) {
    let mut primary = Primary::start("restore-refusals", "CREATE TABLE t(x)");
    primary.commit("INSERT INTO t VALUES (randomblob(5000))");
    let url = primary.archive().remove(0);
    (primary, url)
}

/// Restores, which must fail; what it says.
fn fails(db: &Db, url: &str, path: &Path, options: &Value) -> String {
    let error = restore(db, url, path, options).unwrap_err();
    assert!(error.starts_with("litestream_restore: "), "{error}");
    error
}

#[test]
fn a_path_that_is_taken() {
    let (primary, url) = small();
    let host = Host::app();
    let db = host.open(":memory:");
    let path = primary.folder.file("out.db");
    for suffix in ["", "-wal", "-shm", "-journal", "-litestream"] {
        let taken = beside(&path, suffix);
        fs::write(&taken, b"precious").unwrap();
        let error = fails(&db, &url, &path, &json!({}));
        assert!(error.contains(taken.to_str().unwrap()), "{error}");
        assert_eq!(fs::read(&taken).unwrap(), b"precious");
        fs::remove_file(&taken).unwrap();
        fs::create_dir(&taken).unwrap();
        fails(&db, &url, &path, &json!({}));
        fs::remove_dir(&taken).unwrap();
        std::os::unix::fs::symlink("/nonexistent/somewhere", &taken).unwrap();
        fails(&db, &url, &path, &json!({}));
        fs::remove_file(&taken).unwrap();
    }
    assert_eq!(names(path.parent().unwrap(), "out.db"), [""; 0]);
    // Whether it is taken does not matter to who only asks for the plan.
    let plan = restore(&db, &url, &primary.path, &json!({"dry_run": true})).unwrap();
    let plan: Value = serde_json::from_str(&plan).unwrap();
    assert_eq!(plan["pos"], json!(primary.history.last().unwrap().pos));
    for fact in ["generation", "time", "size"] {
        assert!(!plan[fact].is_null(), "{fact}: {plan}");
    }
    assert!(plan["snapshot"]["key"].as_str().unwrap().starts_with("generations/"), "{plan}");
    assert!(plan["segments"]["count"].as_u64().unwrap() >= 1, "{plan}");
}

#[test]
fn a_place_that_cannot_be_written() {
    let (primary, url) = small();
    let host = Host::app();
    let db = host.open(":memory:");
    for path in ["/nonexistent/out.db", "/proc/out.db", "/dev/null/out.db", "/", ".."] {
        let error = fails(&db, &url, Path::new(path), &json!({}));
        assert!(error.contains(path.trim_end_matches("out.db")), "{path}: {error}");
    }
    let relative = restore(&db, &url, Path::new("nowhere/out.db"), &json!({})).unwrap_err();
    assert!(relative.contains("nowhere"), "{relative}");
    drop(primary);
}

#[test]
fn options_that_make_no_sense() {
    let (primary, url) = small();
    let host = Host::app();
    let db = host.open(":memory:");
    let path = primary.folder.file("out.db");
    let last = primary.history.last().unwrap();
    let other = "0123456789abcdef";
    for (options, expected) in [
        (json!({"timestamp": "yesterday"}), "ISO 8601"),
        (json!({"timestamp": true}), "ISO 8601"),
        (json!({"timestamp": -1}), "ISO 8601"),
        (json!({"timestamp": "2026-11-22", "pos": last.pos}), "exclude each other"),
        (json!({"pos": "here"}), "GENERATION/INDEX:OFFSET"),
        (json!({"pos": 5}), "expected a text"),
        (json!({"pos": last.pos, "generation": other}), "not in generation"),
        (json!({"generation": "x"}), "invalid generation"),
        (json!({"generation": other}), "holds no snapshot"),
        (json!({"pos": format!("{other}/0:20")}), other),
        (json!({"timestamp": "1999-12-31"}), "what it holds begins 20"),
        (json!({"timestamp": 1000}), "later than the time"),
        (json!({"parallelism": 0}), "from 1 to 64"),
        (json!({"dry_run": true, "integrity_check": true}), "exclude each other"),
        (json!({"time": "2026"}), "unknown option"),
        (json!({"layout": "v9"}), "v0.3"),
    ] {
        let error = fails(&db, &url, &path, &options);
        assert!(error.contains(expected), "{options}: {error}");
    }
    let beyond = last.pos.replace(":0", ":1");
    assert!(fails(&db, &url, &path, &json!({"pos": beyond})).contains("missing"));
    let (generation, _) = last.pos.split_once('/').unwrap();
    let beyond = format!("{generation}/0000000000000009:0000000000000020");
    assert!(fails(&db, &url, &path, &json!({"pos": beyond})).contains("beyond"));
    for (url, path, expected) in [
        (json!(null), json!(path), "must be text"),
        (json!(url), json!(null), "must be text"),
        (json!(url), json!(""), "empty"),
        (json!("http://127.0.0.1/"), json!(path), "http"),
        (json!("file:///nonexistent/archive"), json!(path), "no snapshot"),
    ] {
        let sent = db.send_with("SELECT litestream_restore(?, ?)", json!([url, path]));
        let error = sent.outcome(DEADLINE).unwrap_err();
        assert!(error.contains(expected), "{url} {path}: {error}");
    }
    // A view is not the application.
    db.script("CREATE VIEW v AS SELECT litestream_restore('file:///tmp', '/tmp/x')");
    assert!(db.fails("SELECT * FROM v").contains("unsafe use"));
    assert_eq!(names(path.parent().unwrap(), "out.db"), [""; 0]);
    // Right ones: a number of seconds, a generation.
    let later = last.at.duration_since(std::time::UNIX_EPOCH).unwrap().as_secs() + 60;
    let options = json!({"timestamp": later, "generation": generation});
    assert_eq!(restore(&db, &url, &path, &options).unwrap(), last.pos);
    assert_is(&primary.plain, &path, last);
    fs::remove_file(&path).unwrap();
    let options = json!({"timestamp": "9999-12-31T23:59:59Z"});
    assert_eq!(restore(&db, &url, &path, &options).unwrap(), last.pos);
}

/// The state at a position is that of a commit: what is between two is no state.
#[test]
fn positions_between_commits() {
    let (mut primary, _) = small();
    primary.commit("INSERT INTO t VALUES (randomblob(5000))");
    let url = primary.archive().remove(0);
    let host = Host::app();
    let db = host.open(":memory:");
    let path = primary.folder.file("out.db");
    let last = primary.history.last().unwrap();
    let (at, before) = (last.pos(), primary.history[primary.history.len() - 2].pos());
    assert!(before.index == at.index && before.offset < at.offset);
    // In the first frame, at its end, before the last one, in the last one.
    let frame = 24 + 4096;
    let end = at.offset.get();
    for offset in [before.offset.get() + 1, before.offset.get() + frame, end - frame, end - 1] {
        let pos = Pos { offset: Offset::new(offset).unwrap(), ..at };
        for dry_run in [false, true] {
            let options = json!({"pos": pos.to_string(), "dry_run": dry_run});
            let error = fails(&db, &url, &path, &options);
            assert!(error.contains(&format!("ends at {before}")), "{pos}: {error}");
        }
    }
    assert_eq!(names(path.parent().unwrap(), "out.db"), [""; 0]);
    let options = json!({"pos": before.to_string()});
    assert_eq!(restore(&db, &url, &path, &options).unwrap(), before.to_string());
}

/// The plan is that of a restore that works, or there is none.
#[test]
fn a_plan_of_what_is_not_whole() {
    let mut primary = Primary::start("restore-plan", "CREATE TABLE t(x)");
    for _ in 0..3 {
        primary.commit("INSERT INTO t VALUES (randomblob(5000))");
        primary.sync();
    }
    let host = Host::app();
    let db = host.open(":memory:");
    let path = primary.folder.file("out.db");
    for url in primary.archive() {
        let options = json!({"dry_run": true});
        let plan: Value =
            serde_json::from_str(&restore(&db, &url, &path, &options).unwrap()).unwrap();
        assert_eq!(plan["pos"], json!(primary.history.last().unwrap().pos));
        assert!(plan["segments"]["count"].as_u64().unwrap() >= 2, "{plan}");
        let last = plan["segments"]["last"].as_str().unwrap();
        fs::remove_file(Path::new(url.strip_prefix("file://").unwrap()).join(last)).unwrap();
        for options in [json!({}), options] {
            let error = fails(&db, &url, &path, &options);
            assert!(error.contains("is missing"), "{options}: {error}");
        }
    }
}

/// A disk that is full, by a limit on the size of files: the first page past it cannot be written.
#[test]
fn a_disk_that_is_full() {
    let mut primary = Primary::start("restore-full", "CREATE TABLE t(x)");
    primary.commit("INSERT INTO t VALUES (randomblob(500000))");
    primary.snapshot();
    primary.commit("INSERT INTO t VALUES (randomblob(500000))");
    let url = primary.archive().remove(0);
    let host = Host::app();
    let db = host.open(":memory:");
    let pid = host.pid().to_string();
    let limit = |bytes: &str| {
        let what = format!("--fsize={bytes}:");
        let done = Command::new("prlimit").args(["--pid", &pid, &what]).status();
        assert!(done.expect("prlimit is needed: install util-linux").success());
    };
    let path = primary.folder.file("out.db");
    for bytes in ["4096", "200000", "900000"] {
        limit(bytes);
        let error = fails(&db, &url, &path, &json!({}));
        assert!(error.contains("cannot write the new file"), "{error}");
        limit("unlimited");
        assert_eq!(names(path.parent().unwrap(), "out.db"), [""; 0]);
    }
    restore(&db, &url, &path, &json!({})).unwrap();
    assert_is(&primary.plain, &path, primary.history.last().unwrap());
    full_tmpfs(&primary, &db, &url);
}

/// The same on a real file system, where this user may make one.
fn full_tmpfs(primary: &Primary, db: &Db, url: &str) {
    let folder = primary.folder.file("tiny");
    fs::create_dir(&folder).unwrap();
    let mut mount = Command::new("mount");
    let mount = mount.args(["-t", "tmpfs", "-o", "size=300k", "tmpfs"]).arg(&folder).output();
    if !mount.is_ok_and(|output| output.status.success()) {
        println!("no leave to mount a tmpfs: the limit on file sizes has to do");
        return;
    }
    let outcome = restore(db, url, &folder.join("out.db"), &json!({}));
    let left = names(&folder, "");
    assert!(Command::new("umount").arg(&folder).status().unwrap().success());
    let error = outcome.unwrap_err();
    assert!(error.contains("No space left"), "{error}");
    assert_eq!(left, [""; 0]);
}

#[test]
fn of_several_restores_to_one_path_one_wins() {
    let (primary, url) = small();
    let path = primary.folder.file("out.db");
    let hosts = [Host::app(), Host::app()];
    let dbs: Vec<Db> =
        hosts.iter().flat_map(|host| [host.open(":memory:"), host.open(":memory:")]).collect();
    let sql = "SELECT litestream_restore(?, ?)";
    for _ in 0..scaled(5, 100) {
        let sent: Vec<Pending> =
            dbs.iter().map(|db| db.send_with(sql, json!([url, path]))).collect();
        let outcomes: Vec<_> = sent.into_iter().map(|one| one.outcome(DEADLINE)).collect();
        let errors: Vec<_> = outcomes.into_iter().filter_map(Result::err).collect();
        assert_eq!(errors.len(), dbs.len() - 1, "{errors:?}");
        assert!(errors.iter().all(|error| error.contains("exists already")), "{errors:?}");
        assert_is(&primary.plain, &path, primary.history.last().unwrap());
        fs::remove_file(&path).unwrap();
        assert_eq!(names(path.parent().unwrap(), "out.db"), [""; 0]);
    }
}

#[test]
fn an_interrupted_restore_leaves_nothing() {
    let mut primary = Primary::start("restore-interrupt", "CREATE TABLE t(x)");
    let rows = "WITH n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 400)
        INSERT INTO t SELECT randomblob(100000) FROM n";
    primary.commit(rows);
    primary.snapshot();
    primary.commit(rows);
    let url = primary.archive().remove(0);
    let host = Host::app();
    let db = host.open(":memory:");
    let path = primary.folder.file("out.db");
    let mut rng = Rng::new();
    let (mut broken, mut whole) = (0, 0);
    let options = json!({"parallelism": 1, "integrity_check": true}).to_string();
    while broken < scaled(4, 40) {
        let values = json!([url, path, options]);
        let sent = db.send_with("SELECT litestream_restore(?, ?, ?)", values);
        std::thread::sleep(std::time::Duration::from_millis(rng.below(250 / (whole + 1))));
        db.interrupt();
        match sent.outcome(DEADLINE) {
            Err(why) => {
                assert!(why.contains("interrupted"), "{why}");
                broken += 1;
            }
            Ok(_) => {
                fs::remove_file(&path).unwrap();
                whole += 1;
            }
        }
        assert_eq!(names(path.parent().unwrap(), "out.db"), [""; 0]);
    }
    // The end of the process, too: the file has no name yet.
    let _never_ends = db.send_with("SELECT litestream_restore(?, ?)", json!([url, path]));
    std::thread::sleep(std::time::Duration::from_millis(100));
    host.kill();
    let left = names(path.parent().unwrap(), "out.db");
    assert!(left.is_empty() || left == ["out.db"], "{left:?}");
}

#[test]
fn a_database_that_goes_on_from_a_restored_file_is_a_new_history() {
    let (primary, url) = small();
    let path = primary.folder.file("out.db");
    let host = Host::app();
    let memory = host.open(":memory:");
    let reached = restore(&memory, &url, &path, &json!({})).unwrap();
    let db = host.open(&path);
    serve(&db);
    let begun = db.text("SELECT litestream_pos()");
    assert_ne!(generation(&begun), generation(&reached));
    db.run("INSERT INTO t VALUES (1)").unwrap();
    assert_eq!(db.int("SELECT count(*) FROM t"), 2);
}
