//! Against archives: a replica of one, and a primary that has some.

use std::fs;
use std::path::{Path, PathBuf};

use crate::common::*;
use crate::support::*;

/// A primary with rows of a page each, archived to a folder.
fn archived(name: &str) -> (Folder, Host, Db, String) {
    let folder = Folder::new(name);
    let host = Host::app();
    let primary = host.open(folder.file("p.db"));
    primary.script(
        "PRAGMA journal_mode = WAL;
         CREATE TABLE t(i INTEGER PRIMARY KEY, pad BLOB);
         WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 100)
         INSERT INTO t SELECT i, randomblob(3500) FROM n;",
    );
    let url = format!("file://{}", folder.file("archive").display());
    primary.text(&format!("SELECT litestream_replicate('{url}')"));
    (folder, host, primary, url)
}

/// Every file below a folder with this ending.
fn files(folder: &Path, ending: &str) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.extend(files(&path, ending));
        } else if path.to_str().unwrap().ends_with(ending) {
            found.push(path);
        }
    }
    found.sort();
    found
}

#[test]
fn a_primary_and_its_archives() {
    let (folder, host, primary, _) = archived("verify-archives");
    let second = format!("file://{}", folder.file("second").display());
    primary.text(&format!("SELECT litestream_replicate('{second}')"));
    let load = json!({"path": folder.file("p.db"), "create": true, "pause": 0.003});
    let load = host.work("bank_writer", load);
    load.advance(5);
    for _ in 0..scaled(4, 100) {
        assert_eq!(primary.text(VERIFY), "ok");
        primary.text("SELECT litestream_checkpoint('RESTART')");
    }
    load.finish();
    let error = primary.fails(REPAIR);
    assert!(error.contains("litestream_snapshot() archives all"), "{error}");
    // The database is not what was archived: its file was written to behind everybody's back.
    primary.text("SELECT litestream_checkpoint('TRUNCATE')");
    flip(&folder.file("p.db"), 40);
    let error = primary.fails(VERIFY);
    assert!(error.contains("page 40 (1 of "), "{error}");
    assert!(error.contains(" differs from file://"), "{error}");
    flip(&folder.file("p.db"), 40);
    assert_eq!(primary.text(VERIFY), "ok");
    // An archive that is damaged names the object.
    let damaged = files(&folder.file("second"), ".snapshot.lz4").pop().unwrap();
    let size = fs::metadata(&damaged).unwrap().len();
    flip_at(&damaged, size / 2);
    let error = primary.fails(VERIFY);
    assert!(error.contains(damaged.file_name().unwrap().to_str().unwrap()), "{error}");
    // Nothing is left of what was restored.
    let left = fs::read_dir(folder.file("p.db").parent().unwrap()).unwrap();
    assert!(left.flatten().all(|entry| !entry.file_name().to_str().unwrap().contains("verify")));
    let interrupted = primary.fails(r#"SELECT litestream_verify('{"timeout_ms": 1}')"#);
    assert!(interrupted.contains("within 1 ms"), "{interrupted}");
}

#[test]
fn a_replica_of_an_archive() {
    let (folder, host, primary, url) = archived("verify-follower");
    let replica_host = Host::app();
    let path = folder.file("r.db");
    let replica = replica_host.open(&path);
    let options = r#"{"poll_interval": "100ms"}"#;
    replica.text(&format!("SELECT litestream_follow('{url}', '{options}')"));
    let load = json!({"path": folder.file("p.db"), "create": true, "pause": 0.003});
    let load = host.work("bank_writer", load);
    load.advance(5);
    for _ in 0..scaled(4, 30) {
        assert_eq!(replica.text(VERIFY), "ok");
    }
    load.finish();
    primary.text("SELECT litestream_sync()");
    catch_up(&primary, &replica);
    settle(&replica);
    flip(&path, 30);
    flip(&path, 31);
    let error = replica.fails(VERIFY);
    assert!(error.contains("pages 30-31 (2 of "), "{error}");
    assert_eq!(replica.text(REPAIR), "repaired pages 30-31");
    assert_eq!(replica.text(VERIFY), "ok");
    assert_same(&primary, &replica);
}
