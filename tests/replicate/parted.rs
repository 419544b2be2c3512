//! Two histories of one name: a copied folder, a database put back, a log that has to let go.
//! Nothing in the archive is overwritten, and every chain in it can be restored.

use std::path::Path;

use crate::common::*;
use crate::primary::{Primary, place, restored, restored_with, told};

fn copy_database(from: &Path, to: &Path) {
    let script = "for end in '' -wal -litestream; do cp -a \"$1$end\" \"$2$end\"; done";
    let mut copy = std::process::Command::new("sh");
    let done = copy.args(["-c", script, "sh"]).arg(from).arg(to).status().unwrap();
    assert!(done.success());
}

/// Two primaries with one history, which ends at the position, and one archive.
fn copied(folder: &Folder) -> (String, Primary, Primary) {
    let first = Primary::new(folder, r#"{"sync_interval": "20ms"}"#);
    first.add(3);
    let pos = first.sync();
    let Primary { path, archive, options, host, db: _ } = first;
    host.kill();
    copy_database(&path, &folder.file("copy.db"));
    let first = Primary::idle(path, archive.clone(), &options);
    first.replicate();
    let second = Primary::idle(folder.file("copy.db"), archive, &options);
    second.replicate();
    (pos, first, second)
}

fn unchanged(before: &Archived, after: &Archived) {
    for (index, wal) in &before.wals {
        assert!(after.wals[index].starts_with(wal), "index {index:x} is as it was, or longer");
    }
    for (index, snapshot) in &before.snapshots {
        assert_eq!(after.snapshots.get(index), Some(snapshot));
    }
}

/// The folder of a database was copied, and both go on, into the same archive.
#[test]
fn two_primaries_with_one_history_part() {
    let folder = Folder::new("archive-copied");
    let (pos, first, second) = copied(&folder);
    assert_eq!(first.told("new generation") + second.told("new generation"), 0, "not parted yet");
    first.add(2);
    let first_pos = first.sync();
    assert_eq!(generation(&first_pos), generation(&pos), "the first goes on");
    let before = first.archived(&pos);
    second.add(3);
    second.sync();
    let second_pos = second.sync();
    assert_ne!(generation(&second_pos), generation(&pos), "the second has parted");
    // It has committed less than the first so far, or other things.
    assert_eq!(second.told("the archive % commits "), 1);
    assert_eq!(second.told("new generation"), 1);
    unchanged(&before, &first.archived(&pos));
    first.add(1);
    let end = first.sync();
    assert_eq!(first.archived(&pos).end(), place(&end));
    second.add(1);
    let content = second.db.content();
    second.sync();
    let archived = second.archived(&second_pos);
    archived.assert_whole();
    assert_eq!(restored(&second.url(), &folder.file("r.db")), content, "the latest is the second");
}

/// A database is put back to an earlier state, with its folder: what is archived is ahead of it.
#[test]
fn a_database_put_back_begins_a_new_history() {
    let folder = Folder::new("archive-back");
    let primary = Primary::new(&folder, "{}");
    primary.add(2);
    primary.sync();
    let Primary { path, archive, options, host, db: _ } = primary;
    host.kill();
    copy_database(&path, &folder.file("kept.db"));
    let primary = Primary::idle(path.clone(), archive, &options);
    primary.replicate();
    primary.add(2);
    let pos = primary.sync();
    let before = primary.archived(&pos);
    let Primary { path, archive, options, host, db: _ } = primary;
    host.kill();
    for suffix in ["", "-wal", "-shm"] {
        let _not_there = std::fs::remove_file(format!("{}{suffix}", path.display()));
    }
    std::fs::remove_dir_all(format!("{}-litestream", path.display())).unwrap();
    copy_database(&folder.file("kept.db"), &path);
    let primary = Primary::idle(path, archive, &options);
    primary.replicate();
    until("a new history", || (primary.told("new generation") == 1).then_some(()));
    assert_eq!(primary.told("the archive holds commits up to"), 1);
    primary.add(1);
    let now = primary.sync();
    assert_ne!(generation(&now), generation(&pos));
    primary.archived(&now).assert_whole();
    unchanged(&before, &primary.archived(&pos));
    assert_eq!(restored(&primary.url(), &folder.file("r.db")), primary.db.content());
}

/// What no archive has is kept in the log up to a bound; then it gives way, and says so.
#[test]
fn a_log_that_has_to_let_go_leaves_a_hole_and_says_so() {
    let folder = Folder::new("archive-gap");
    let bounds = r#"{"log_bytes": 1048576, "backlog_bytes": 3000000, "sync_interval": "20ms"}"#;
    let primary = Primary::new(&folder, bounds);
    primary.add(1);
    let pos = primary.sync();
    // A file in the place of the archive's folder: the store is down.
    let aside = folder.file("aside");
    std::fs::rename(&primary.archive, &aside).unwrap();
    std::fs::write(&primary.archive, "").unwrap();
    let arguments = json!({"path": primary.path, "pause": 0.001, "size": 40_000});
    let load = primary.host.work("ledger_writer", arguments);
    until("the archive's claim to give way, and memory to be too small", || {
        let index = place(&primary.db.text("SELECT litestream_pos()")).0;
        (primary.told("too far behind") > 0 && index >= 6).then_some(())
    });
    load.finish();
    assert!(primary.replica("state").contains("retrying"));
    assert_ne!(primary.replica("error"), "null");
    std::fs::remove_file(&primary.archive).unwrap();
    std::fs::rename(&aside, &primary.archive).unwrap();
    primary.add(1);
    let now = primary.sync();
    assert_eq!(primary.replica("error"), "null");
    assert_eq!(generation(&pos), generation(&now), "one history, with a hole");
    assert_eq!(told(&primary.db, "was dropped from the log"), 1);
    let archived = primary.archived(&now);
    assert!(archived.snapshots.len() >= 2);
    let (last, _) = archived.snapshots.last_key_value().unwrap();
    assert!(!archived.wals.contains_key(&(last - 1)), "the hole is before it");
    assert_eq!(restored(&primary.url(), &folder.file("r.db")), primary.db.content());
    // The next process finds its place behind the hole.
    let primary = primary.killed_and_restarted();
    primary.add(1);
    primary.sync();
    assert_eq!(primary.told("new generation"), 0);
    assert_eq!(restored(&primary.url(), &folder.file("r.db")), primary.db.content());
}

/// The log is kept for an archive that is down, beyond its own bound; nothing is lost.
#[test]
fn the_log_is_kept_for_an_archive_that_is_down() {
    let folder = Folder::new("archive-backlog");
    let bounds = r#"{"log_bytes": 1048576, "sync_interval": "20ms"}"#;
    let primary = Primary::new(&folder, bounds);
    primary.add(1);
    primary.sync();
    let aside = folder.file("aside");
    std::fs::rename(&primary.archive, &aside).unwrap();
    std::fs::write(&primary.archive, "").unwrap();
    let load = primary.load(0.001);
    let log = folder.file("p.db-litestream");
    until("a log beyond its bound", || {
        let size: u64 = objects(&log).values().map(|(size, _)| size).sum();
        (size > 5 << 20).then_some(())
    });
    load.finish();
    std::fs::remove_file(&primary.archive).unwrap();
    std::fs::rename(&aside, &primary.archive).unwrap();
    let archived = primary.assert_archived();
    assert_eq!(archived.wals.keys().next(), Some(&0), "from the beginning");
}

/// Two copies of a database in one archive, of which one is ahead by an index: what the other adds
/// to the index before is behind its end. Neither is restored as a mixture of both.
#[test]
fn copies_an_index_apart_part() {
    let folder = Folder::new("archive-apart");
    let (pos, first, second) = copied(&folder);
    second.next_index();
    second.sync();
    first.add(2);
    first.sync();
    let said = first.told("somebody else wrote") + second.told("somebody else wrote");
    assert_eq!(said, 0, "nobody can know yet");
    // The end of its index shows it.
    first.next_index();
    first.add(1);
    let content = first.db.content();
    let end = until("a new generation", || {
        let end = first.sync();
        (generation(&end) != generation(&pos)).then_some(end)
    });
    assert_eq!(first.told("somebody else wrote to index"), 1);
    let restored = |generation: &str| {
        let host = Host::app();
        let options = json!({"generation": generation});
        let (url, path) = (first.url(), folder.file(generation));
        let nowhere = host.open(":memory:");
        let done = nowhere
            .run(&format!("SELECT litestream_restore('{url}', '{}', '{options}')", path.display()));
        done.map(|_| host.open_plain(&path).content())
    };
    assert_eq!(restored(generation(&end)).unwrap(), content);
    let error = restored(generation(&pos)).unwrap_err();
    assert!(error.contains("two databases have written"), "{error}");
}

/// The store is away, the process is killed, and somebody empties the WAL: what was captured and
/// not archived is lost to the archive, and a restore to a moment in between says so.
#[test]
fn what_a_generation_took_with_it_is_missed() {
    let folder = Folder::new("archive-unsent");
    let primary = Primary::new(&folder, r#"{"sync_interval": "20ms"}"#);
    primary.add(3);
    let pos = primary.sync();
    let away = folder.file("away");
    std::fs::rename(&primary.archive, &away).unwrap();
    std::fs::write(&primary.archive, "in the way").unwrap();
    primary.add(5);
    until("the log to hold it", || {
        let end = primary.db.text("SELECT litestream_pos()");
        let log = "SELECT max(\"end\") FROM litestream_generations WHERE replica = 'local'";
        (primary.db.text(log) == end && primary.replica("error IS NOT NULL") == "1").then_some(())
    });
    std::thread::sleep(std::time::Duration::from_millis(1500));
    let moment = primary.db.text("SELECT strftime('%Y-%m-%dT%H:%M:%fZ', 'now')");
    let Primary { path, archive, options, host, db: _ } = primary;
    host.kill();
    let host = Host::plain();
    let db = host.open(&path);
    db.script("PRAGMA wal_checkpoint(TRUNCATE); UPDATE ledger SET n = n + 1;");
    db.script("PRAGMA wal_checkpoint(TRUNCATE)");
    db.close();
    std::fs::remove_file(&archive).unwrap();
    std::fs::rename(&away, &archive).unwrap();
    let primary = Primary::idle(path, archive, &options);
    primary.replicate();
    let end = primary.sync();
    assert_ne!(generation(&end), generation(&pos));
    assert_eq!(primary.told("before all of it was archived"), 1);
    let host = Host::app();
    let (url, copy) = (primary.url(), folder.file("r.db"));
    let restore = |options: Value| {
        host.open(":memory:")
            .run(&format!("SELECT litestream_restore('{url}', '{}', '{options}')", copy.display()))
    };
    let error = restore(json!({"timestamp": moment})).unwrap_err();
    assert!(error.contains("is missing"), "{error}");
    restore(json!({"pos": pos})).unwrap();
    assert_eq!(restored(&url, &folder.file("latest.db")), primary.db.content());
}

/// An archive has a history from a machine whose clock was ahead. A database that goes on elsewhere
/// is the latest all the same.
#[test]
fn a_clock_behind_the_archive_is_lifted() {
    use litestream::archive::{Archive, ArchiveOptions};
    use litestream::pos::{Generation, Pos};
    let folder = Folder::new("archive-clock");
    let host = Host::plain();
    let db = host.open(folder.file("old.db"));
    db.script("CREATE TABLE old(x)");
    db.close();
    let content = std::fs::read(folder.file("old.db")).unwrap();
    let primary = Primary::idle(folder.file("p.db"), folder.file("archive"), "{}");
    let archive = Archive::open(&primary.url(), &ArchiveOptions::default()).unwrap();
    let ahead = std::time::SystemTime::now() + std::time::Duration::from_secs(7200);
    let pos = Pos { generation: Generation::from_bits(0xab), ..Pos::default() };
    let frame = litestream::lz4::compress(&content).unwrap();
    archive.put_snapshot(pos, ahead, &mut frame.as_slice()).unwrap();
    make_ledger(&primary.db);
    primary.replicate();
    primary.add(3);
    primary.sync();
    assert_eq!(primary.told("the clock is%behind what is archived"), 1);
    let latest = || restored(&primary.url(), &folder.file("r.db"));
    assert_eq!(latest(), primary.db.content());
    // Every snapshot and segment after it is dated in order, so positions stay exact.
    primary.next_index();
    let pos = primary.sync();
    let content = primary.db.content();
    primary.db.text("SELECT litestream_snapshot()");
    primary.add(2);
    primary.sync();
    assert_eq!(latest(), primary.db.content());
    let options = json!({"pos": pos});
    assert_eq!(restored_with(&primary.url(), &options, &folder.file("at.db")), content);
}
