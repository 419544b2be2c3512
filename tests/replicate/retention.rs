//! What is deleted, and when; and that a restore never loses its chain.

use std::time::{Duration, Instant};

use crate::common::*;
use crate::primary::{Primary, place, restored};

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
    let Primary { path, archive, options, host, db: _ } = primary;
    assert!(host.quit().success());
    std::fs::remove_dir_all(format!("{}-litestream", path.display())).unwrap();
    let primary = Primary::idle(path, archive, &options);
    primary.replicate();
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
