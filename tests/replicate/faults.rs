//! A store that is down, hangs, is full or is gone: the primary goes on, the tables tell what is
//! wrong, and when the store is back nothing is lost.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use crate::common::servers::{BUCKET, S3Server};
use crate::common::*;
use crate::primary::{Primary, pause_up_to, restored, restored_with};

/// A small disk of its own; gone with its value.
struct Disk(PathBuf);

impl Disk {
    /// `None` where nobody may mount one.
    fn new(path: PathBuf, size: &str) -> Option<Disk> {
        std::fs::create_dir(&path).unwrap();
        let done = mount(&["-t", "tmpfs", "-o", &format!("size={size}"), "tmpfs"], &path);
        if !done {
            println!("no leave to mount a tmpfs: a disk that fills up is not tested here");
        }
        done.then_some(Disk(path))
    }

    fn resize(&self, size: &str) {
        assert!(mount(&["-o", &format!("remount,size={size}")], &self.0));
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(&self.0).status();
    }
}

fn mount(arguments: &[&str], path: &Path) -> bool {
    let output = Command::new("mount").args(arguments).arg(path).output();
    output.is_ok_and(|output| output.status.success())
}

#[test]
fn a_full_disk() {
    let folder = Folder::new("archive-full");
    let Some(disk) = Disk::new(folder.file("disk"), "600k") else { return };
    let path = folder.file("p.db");
    let options = r#"{"sync_interval": "20ms"}"#;
    let primary = Primary::idle(path, disk.0.join("archive"), options);
    make_ledger(&primary.db);
    primary.replicate();
    let load = primary.load(0.001);
    until("the disk to be full", || {
        primary.replica("error").contains("No space left").then_some(())
    });
    load.advance(100);
    load.finish();
    assert!(primary.replica("state").contains("retrying"));
    let error = primary.db.fails("SELECT litestream_sync(300)");
    assert!(error.contains("No space left"), "{error}");
    disk.resize("64m");
    primary.assert_archived();
    assert_eq!(primary.replica("error"), "null");
    assert_eq!(primary.told("is reached again"), 1);
    let found = Command::new("find").arg(&disk.0).args(["-name", "*.tmp"]).output().unwrap();
    assert_eq!(String::from_utf8(found.stdout).unwrap(), "", "nothing half is left");
    primary.db.int("SELECT litestream_stop()");
}

fn archived_in(folder: &Folder, server: &S3Server, more: Value) -> (Primary, String, Value) {
    let options = server.options();
    let mut all = options.clone();
    for (key, value) in more.as_object().unwrap() {
        all[key] = value.clone();
    }
    let primary = Primary::idle(folder.file("p.db"), folder.file("none"), &all.to_string());
    make_ledger(&primary.db);
    let url = server.url("app");
    primary.replicate_to(&url);
    (primary, url, options)
}

fn assert_same_in(primary: &Primary, url: &str, options: &Value, folder: &Folder) {
    primary.sync();
    let content = restored_with(url, options, &folder.file("restored.db"));
    assert_eq!(content, primary.db.content());
}

/// What is not captured cannot be archived: the archive shows why.
#[test]
fn capture_fails() {
    let folder = Folder::new("archive-no-capture");
    let primary = Primary::new(&folder, "{}");
    let first = primary.sync();
    let generations = folder.file("p.db-litestream").join("generations");
    std::fs::remove_dir_all(&generations).unwrap();
    std::fs::write(&generations, "").unwrap();
    until("the error to show", || {
        primary.add(1);
        primary.replica("error").contains("capture: ").then_some(())
    });
    std::fs::remove_file(&generations).unwrap();
    until("capture to run", || (primary.replica("error") == "null").then_some(()));
    let pos = primary.sync();
    assert_ne!(generation(&pos), generation(&first));
    assert_eq!(primary.replica("error"), "null");
    assert!(primary.replica("state").contains("streaming"));
    primary.archived(&pos).assert_whole();
}

/// SeaweedFS stops and starts in `kills_on_both_sides`.
#[test]
fn a_server_stops_and_starts() {
    let mut server = S3Server::rclone();
    let folder = Folder::new("archive-s3-down");
    let (primary, url, options) = archived_in(&folder, &server, json!({"sync_interval": "50ms"}));
    let load = primary.load(0.002);
    load.advance(100);
    assert_same_in_progress(&primary);
    server.stop();
    until("the error to show", || (primary.replica("error") != "null").then_some(()));
    load.advance(200);
    assert!(primary.replica("state").contains("retrying"));
    server.start();
    until("the archive to be reached", || (primary.replica("error") == "null").then_some(()));
    load.advance(50);
    load.finish();
    assert_same_in(&primary, &url, &options, &folder);
    assert_eq!(primary.told("new generation"), 1, "the history goes on");
}

fn assert_same_in_progress(primary: &Primary) {
    primary.sync();
    assert!(primary.replica("state").contains("streaming"));
}

/// Everything that was archived is gone; a new chain begins.
#[test]
fn a_bucket_is_removed_and_made_again() {
    let folder = Folder::new("archive-s3-bucket");
    let server = S3Server::rclone();
    let (primary, url, options) = archived_in(&folder, &server, json!({"sync_interval": "50ms"}));
    primary.add(3);
    assert_same_in(&primary, &url, &options, &folder);
    server.remove_bucket(BUCKET);
    primary.add(3);
    until("the error to show", || (primary.replica("error") != "null").then_some(()));
    primary.add(3);
    server.make_bucket(BUCKET);
    assert_same_in(&primary, &url, &options, &folder);
    assert_eq!(primary.replica("error"), "null");
}

/// A store that takes connections and does nothing with them.
#[test]
fn a_store_that_hangs() {
    let folder = Folder::new("archive-s3-hangs");
    let server = S3Server::rclone();
    let (primary, url, options) = archived_in(&folder, &server, json!({"sync_interval": "20ms"}));
    primary.add(1);
    assert_same_in(&primary, &url, &options, &folder);
    let time = |count| {
        let began = Instant::now();
        primary.add(count);
        began.elapsed()
    };
    let before = time(200);
    server.pause();
    let during = time(200);
    println!("200 commits: {before:?}, while the store hangs {during:?}");
    assert!(during < before * 4 + Duration::from_secs(1), "{during:?} after {before:?}");
    let began = Instant::now();
    let error = primary.db.fails("SELECT litestream_sync(500)");
    assert!(error.contains("not archived within 500 ms"), "{error}");
    assert!(began.elapsed() < Duration::from_secs(5), "{:?}", began.elapsed());
    let began = Instant::now();
    assert_eq!(primary.db.int("SELECT litestream_stop()"), 1);
    assert!(began.elapsed() < Duration::from_secs(5), "{:?}", began.elapsed());
    println!("stopped in {:?}", began.elapsed());
    server.resume();
    primary.replicate_to(&url);
    primary.add(1);
    assert_same_in(&primary, &url, &options, &folder);
    assert_eq!(primary.told("new generation"), 1, "the history goes on");
}

/// A process whose store hangs ends as any other.
#[test]
fn a_process_ends_though_its_store_hangs() {
    let folder = Folder::new("archive-s3-exit");
    let server = S3Server::rclone();
    let (primary, _, _) = archived_in(&folder, &server, json!({"sync_interval": "20ms"}));
    server.pause();
    primary.add(3);
    std::thread::sleep(Duration::from_millis(100));
    let began = Instant::now();
    assert!(primary.host.quit().success());
    assert!(began.elapsed() < Duration::from_secs(5), "{:?}", began.elapsed());
    server.resume();
}

/// kill -9 of the primary, restarts of the server, at any time.
#[test]
fn kills_on_both_sides() {
    let folder = Folder::new("archive-s3-kills");
    let mut server = S3Server::weed();
    let (mut primary, url, options) =
        archived_in(&folder, &server, json!({"sync_interval": "20ms", "log_bytes": 1 << 20}));
    let rounds = scaled(3, 40);
    let mut broken = 0;
    for round in 0..rounds {
        let load = primary.load(0.001);
        load.advance(50);
        let n = primary.db.int("SELECT n FROM ledger");
        primary.sync();
        pause_up_to(300);
        if round % 2 == 1 {
            server.stop();
            load.advance(50);
        }
        let Primary { path, archive, options: all, host, db: _ } = primary;
        host.kill();
        if round % 2 == 1 {
            server.start();
        }
        let copies = Host::app();
        let nowhere = copies.open(":memory:");
        let copy = folder.file("copy.db");
        let call = format!("SELECT litestream_restore('{url}', '{}', '{options}')", copy.display());
        // A server that has just started may know its names before its disks.
        until("a restore", || nowhere.run(&call).ok());
        let copy = copies.open_plain(&copy);
        let restored = copy.int("SELECT n FROM ledger");
        assert!(restored >= n, "round {round}: {restored} of {n}");
        copy.close();
        std::fs::remove_file(folder.file("copy.db")).unwrap();
        primary = Primary::idle(path, archive, &all);
        primary.replicate_to(&url);
        broken += primary.told("new generation");
        assert!(primary.db.int("SELECT n FROM ledger") >= restored, "round {round}");
    }
    assert_same_in(&primary, &url, &options, &folder);
    println!("new histories: {broken} of {rounds}");
    assert!(broken <= 1 + rounds / 20, "{broken}");
}

/// What cannot be mended by waiting is told at once, and nothing is left running.
#[test]
fn keys_and_buckets_that_are_wrong() {
    let folder = Folder::new("archive-s3-wrong");
    let server = S3Server::rclone();
    let (_host, db) = ledger(folder.file("p.db"));
    let mut options = server.options();
    options["secret_access_key"] = json!("wrong");
    let began = Instant::now();
    let call = |url: &str, options: &Value| {
        db.fails(&format!("SELECT litestream_replicate('{url}', '{options}')"))
    };
    let error = call(&server.url("app"), &options);
    assert!(error.contains("key"), "{error}");
    let error = call("s3://no-such-bucket/app", &server.options());
    assert!(error.contains("no-such-bucket"), "{error}");
    assert!(began.elapsed() < Duration::from_secs(20), "{:?}", began.elapsed());
    assert_eq!(db.int("SELECT count(*) FROM litestream_replicas"), 0);
    assert_eq!(db.int("SELECT count(*) FROM litestream_databases"), 0);
    // Nobody listens: that may pass, so it goes on trying.
    let mut options = server.options();
    options["endpoint"] = json!(format!("http://127.0.0.1:{}", free_port()));
    options["wait_ms"] = json!(700);
    let error = call(&server.url("app"), &options);
    assert!(error.contains("it goes on trying"), "{error}");
    assert_eq!(db.int("SELECT count(*) FROM litestream_replicas WHERE error IS NOT NULL"), 1);
    assert_eq!(db.int("SELECT litestream_stop()"), 1);
}

/// Leave to write is not leave to delete: commits go on, and the tables tell.
#[test]
fn what_cannot_be_deleted() {
    let folder = Folder::new("archive-kept");
    let options = r#"{"retention": "1s", "delete_after": "0s", "snapshot_interval": "1s",
        "sync_interval": "20ms"}"#;
    let primary = Primary::new(&folder, options);
    let generation = generation(&primary.sync()).to_owned();
    let first = format!("generations/{generation}/snapshots/0000000000000000.snapshot.lz4");
    let first = primary.archive.join(first);
    // A file with something mounted on it cannot be removed.
    if !mount(&["--bind", first.to_str().unwrap()], &first) {
        println!("no leave to mount anything: refused deletions are not tested here");
        return;
    }
    let held = Disk(first.clone());
    until("the refusal to show", || {
        primary.add(1);
        primary.replica("error").contains("nothing old can be deleted").then_some(())
    });
    primary.sync();
    assert!(primary.replica("state").contains("streaming"));
    drop(held);
    until("the first snapshot to go", || {
        primary.add(1);
        (!first.exists()).then_some(())
    });
    until("the error to go", || (primary.replica("error") == "null").then_some(()));
    primary.assert_archived_at_rest();
}

/// The same folder, full of somebody else's objects.
#[test]
fn others_objects_are_left_alone() {
    let folder = Folder::new("archive-others");
    let archive = folder.file("archive");
    for name in ["README", "generations/notes.txt", "generations/0123456789abcdef/wal/x"] {
        let path = archive.join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, "mine").unwrap();
    }
    let options = r#"{"retention": "1s", "delete_after": "0s", "snapshot_interval": "1s"}"#;
    let primary = Primary::idle(folder.file("p.db"), archive.clone(), options);
    make_ledger(&primary.db);
    primary.replicate();
    until("a first snapshot to go", || {
        primary.add(1);
        (primary.db.int("SELECT litestream_sync() IS NULL") == 0).then_some(())?;
        let snapshots = objects(&archive);
        let first = "/snapshots/0000000000000000.snapshot.lz4";
        (!snapshots.keys().any(|key| key.ends_with(first))).then_some(())
    });
    for name in ["README", "generations/notes.txt", "generations/0123456789abcdef/wal/x"] {
        assert_eq!(std::fs::read_to_string(archive.join(name)).unwrap(), "mine");
    }
    assert_eq!(restored(&primary.url(), &folder.file("r.db")), primary.db.content());
}
