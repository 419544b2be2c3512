//! What is deleted, and when; and that a restore never loses its chain.

use std::time::{Duration, Instant};

use crate::common::*;
use crate::primary::{Primary, place, restored, restored_with};

/// Short times: what takes days otherwise.
const SHORT: &str = r#"{"retention": "2s", "delete_after": "1s", "snapshot_interval": "1s",
    "sync_interval": "20ms"}"#;

fn snapshots(primary: &Primary) -> Vec<u64> {
    let keys = objects(&primary.archive);
    let of = |key: &String| {
        let name = key.split_once("/snapshots/")?.1;
        u64::from_str_radix(name.split('.').next()?, 16).ok()
    };
    keys.keys().filter_map(of).collect()
}

#[test]
fn old_chains_go_and_the_newest_stays() {
    let folder = Folder::new("archive-retention");
    let primary = Primary::new(&folder, SHORT);
    let pos = primary.sync();
    until("the first snapshot to go", || {
        primary.add(1);
        (!snapshots(&primary).contains(&0)).then_some(())
    });
    let archived = primary.assert_archived_at_rest();
    assert_eq!(archived.generation, generation(&pos));
    let first = *archived.snapshots.first_key_value().unwrap().0;
    assert_eq!(archived.wals.first_key_value().map(|(index, _)| *index), Some(first));
    assert!(archived.ends.keys().all(|index| *index >= first), "no end without its index");
    // With nothing to write no snapshot is made, and the last one stays for ever.
    std::thread::sleep(Duration::from_secs(4));
    primary.assert_archived();
}

#[test]
fn what_is_within_the_time_stays() {
    let folder = Folder::new("archive-kept");
    let primary = Primary::new(&folder, r#"{"snapshot_interval": "1s", "sync_interval": "20ms"}"#);
    let began = Instant::now();
    until("a second snapshot", || {
        primary.add(1);
        (snapshots(&primary).len() >= 2).then_some(())
    });
    assert!(began.elapsed() >= Duration::from_secs(1));
    let archived = primary.assert_archived();
    assert!(archived.snapshots.contains_key(&0), "a week is not over");
}

/// Restores in this process hold deletion off; those elsewhere have the time of "delete_after".
#[test]
fn restores_in_a_loop_while_old_chains_go() {
    let folder = Folder::new("archive-restores");
    let primary = Primary::new(&folder, SHORT);
    let first = primary.sync();
    let load = primary.load(0.005);
    let elsewhere = Host::app();
    let nowhere = elsewhere.open(":memory:");
    let (mut rounds, mut deleted) = (0, false);
    let begin = Instant::now();
    while !deleted || rounds < scaled(6, 200) {
        for (db, name) in [(&primary.db, "here.db"), (&nowhere, "there.db")] {
            let path = folder.file(name);
            let call =
                format!("SELECT litestream_restore('{}', '{}')", primary.url(), path.display());
            let reached = db.text(&call);
            assert_eq!(generation(&reached), generation(&first));
            std::fs::remove_file(&path).unwrap();
        }
        rounds += 1;
        deleted = !snapshots(&primary).contains(&0);
        assert!(begin.elapsed() < DEADLINE * 2, "nothing is deleted: {:?}", snapshots(&primary));
    }
    load.finish();
    primary.assert_archived_at_rest();
}

/// A history that ended goes as a whole when a newer one has lasted.
#[test]
fn old_generations_go_whole() {
    let folder = Folder::new("archive-generations");
    let primary = Primary::new(&folder, SHORT);
    primary.add(3);
    let old = primary.sync();
    let primary = primary.with_a_new_history();
    assert_eq!(read_archive(&primary.archive).len(), 2);
    let end = primary.archived(&old).end();
    assert_eq!(end, place(&old));
    until("the old generation to go", || {
        primary.add(1);
        let folders = std::fs::read_dir(primary.archive.join("generations")).unwrap();
        (folders.count() == 1).then_some(())
    });
    let archived = primary.assert_archived_at_rest();
    assert_ne!(archived.generation, generation(&old));
    assert_eq!(restored(&primary.url(), &folder.file("r.db")), primary.db.content());
}

/// A copy of an archive has the times of copying, in any order: what is the newer history is told
/// by the objects themselves.
#[test]
fn the_newer_generation_of_a_copy_stays() {
    let folder = Folder::new("archive-copied");
    let primary = Primary::new(&folder, "{}");
    primary.add(3);
    let old = primary.sync();
    let primary = primary.with_a_new_history();
    primary.add(1);
    let new = primary.sync();
    let content = primary.db.content();
    primary.db.int("SELECT litestream_stop('replicate')");
    let now = std::time::SystemTime::now();
    for (pos, hours) in [(&new, 3), (&old, 2)] {
        let name = format!("generations/{}/", generation(pos));
        for key in objects(&primary.archive).keys().filter(|key| key.starts_with(&name)) {
            let file = std::fs::File::open(primary.archive.join(key)).unwrap();
            file.set_modified(now - Duration::from_secs(hours * 3600)).unwrap();
        }
    }
    // Another database goes on writing to it, with a new history.
    let options = r#"{"retention": "1h", "delete_after": "0s"}"#;
    let other = Primary::idle(folder.file("other.db"), primary.archive.clone(), options);
    make_ledger(&other.db);
    other.replicate();
    other.add(1);
    other.sync();
    std::thread::sleep(Duration::from_secs(1));
    assert_eq!(read_archive(&primary.archive).len(), 3);
    let options = json!({"pos": new});
    assert_eq!(restored_with(&primary.url(), &options, &folder.file("r.db")), content);
}
