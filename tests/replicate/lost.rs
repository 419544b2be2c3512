//! An archive that is not as it was left: taken away, emptied, put back. Nothing tells a worker
//! that only adds to it, and what it adds is of no use to anybody.

use std::fs;

use crate::common::*;
use crate::primary::{Primary, restored};

const OPTIONS: &str = r#"{"sync_interval": "20ms"}"#;

/// A disk that is not mounted for a while. The folder it was mounted on is not taken for it.
#[test]
fn an_archive_that_is_away_is_not_begun_anew() {
    let folder = Folder::new("archive-away");
    let primary = Primary::new(&folder, OPTIONS);
    primary.add(3);
    primary.sync();
    let away = folder.file("away");
    fs::rename(&primary.archive, &away).unwrap();
    primary.add(3);
    until("the error to show", || {
        primary.replica("error").contains("was there and is gone").then_some(())
    });
    assert!(primary.replica("state").contains("retrying"));
    let error = primary.db.fails("SELECT litestream_sync(300)");
    assert!(error.contains("was there and is gone"), "{error}");
    assert!(!primary.archive.exists(), "it was made again");
    primary.next_index();
    fs::rename(&away, &primary.archive).unwrap();
    primary.assert_archived();
    assert_eq!(primary.replica("error"), "null");
    assert_eq!(primary.told("new generation"), 1, "the history goes on without a hole");
}

/// Another disk in its place, or somebody who tidied up: a new chain begins, and it is said.
#[test]
fn an_archive_that_was_emptied_is_begun_anew() {
    let folder = Folder::new("archive-emptied");
    let primary = Primary::new(&folder, OPTIONS);
    for rounds in 1..4 {
        primary.add(3);
        primary.sync();
        fs::remove_dir_all(primary.archive.join("generations")).unwrap();
        primary.add(1);
        primary.sync();
        assert_eq!(restored(&primary.url(), &folder.file("r.db")), primary.db.content());
        assert_eq!(primary.told("what was in it is gone"), rounds);
    }
}

/// It has the position it was left with, and nothing to restore from.
#[test]
fn an_archive_without_its_snapshots_is_noticed() {
    let folder = Folder::new("archive-no-snapshots");
    let options = r#"{"sync_interval": "20ms", "retention": "1s", "delete_after": "0s"}"#;
    let primary = Primary::new(&folder, options);
    let pos = primary.sync();
    let snapshots = format!("generations/{}/snapshots", generation(&pos));
    fs::remove_dir_all(primary.archive.join(snapshots)).unwrap();
    until("a new chain", || {
        primary.add(1);
        (generation(&primary.sync()) != generation(&pos)).then_some(())
    });
    assert_eq!(primary.told("its newest snapshot is not there"), 1);
    assert_eq!(restored(&primary.url(), &folder.file("r.db")), primary.db.content());
}

/// What it was an hour ago, from a backup of the backup.
#[test]
fn an_archive_that_was_put_back_has_no_silent_hole() {
    let folder = Folder::new("archive-put-back");
    let primary = Primary::new(&folder, OPTIONS);
    primary.add(3);
    primary.sync();
    let copy = folder.file("copy");
    let copied =
        std::process::Command::new("cp").arg("-a").args([&primary.archive, &copy]).status();
    assert!(copied.unwrap().success());
    primary.add(3);
    primary.sync();
    fs::remove_dir_all(primary.archive.join("generations")).unwrap();
    fs::rename(copy.join("generations"), primary.archive.join("generations")).unwrap();
    primary.add(1);
    primary.sync();
    assert_eq!(primary.told("what was in it is gone"), 1);
    assert_eq!(restored(&primary.url(), &folder.file("r.db")), primary.db.content());
}

/// What it was a moment ago, in the same WAL: its position is the one it was left with.
#[test]
fn an_archive_that_was_put_back_within_a_wal_has_no_silent_hole() {
    let folder = Folder::new("archive-put-back-soon");
    let primary = Primary::new(&folder, OPTIONS);
    primary.sync();
    // Sent, and not synced: the position is not written again before the WAL ends.
    let add = || {
        primary.add(3);
        let pos = primary.db.value("SELECT litestream_pos()").to_string();
        until("all to be sent", || (primary.replica("pos") == pos).then_some(()));
    };
    add();
    let copy = folder.file("copy");
    let copied =
        std::process::Command::new("cp").arg("-a").args([&primary.archive, &copy]).status();
    assert!(copied.unwrap().success());
    add();
    fs::remove_dir_all(primary.archive.join("generations")).unwrap();
    fs::rename(copy.join("generations"), primary.archive.join("generations")).unwrap();
    add();
    primary.next_index();
    until("a new chain", || {
        primary.sync();
        (primary.told("what was in it is gone") == 1).then_some(())
    });
    primary.sync();
    assert_eq!(restored(&primary.url(), &folder.file("r.db")), primary.db.content());
}

/// The history that ends for it is not begun there again before the next one.
#[test]
fn an_archive_that_was_emptied_gets_one_new_chain() {
    let folder = Folder::new("archive-emptied-idle");
    let options = r#"{"sync_interval": "20ms", "retention": "1s", "delete_after": "0s"}"#;
    let primary = Primary::new(&folder, options);
    primary.sync();
    let generations = primary.archive.join("generations");
    fs::remove_dir_all(&generations).unwrap();
    until("a new history", || {
        let synced = primary.db.run("SELECT litestream_sync()").is_ok();
        (synced && primary.told("new generation") == 2).then_some(())
    });
    primary.sync();
    assert_eq!(fs::read_dir(&generations).unwrap().count(), 1);
    assert_eq!(restored(&primary.url(), &folder.file("r.db")), primary.db.content());
}
