//! Killed at any moment, a follower of an archive comes back where it was, without a new snapshot.

use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use super::archiver::{Maker, follow, snapshots_received};
use super::stage::Stage;
use super::support::{catch_up, dump, host, open};

const PATH: &str = "TEST_FOLLOW_ARCHIVE_PATH";
const STORE: &str = "TEST_FOLLOW_ARCHIVE_STORE";

/// Not a test of its own: the process that is killed.
#[test]
fn child() {
    let (Some(path), Some(store)) = (std::env::var_os(PATH), std::env::var_os(STORE)) else {
        return;
    };
    host();
    let _follower = follow(Path::new(&path), Path::new(&store));
    loop {
        std::thread::sleep(Duration::from_secs(1));
    }
}

#[test]
fn killed_again_and_again() {
    let Stage { folder: _folder, path, store, mut primary, mut archiver } =
        Stage::new("kill", Maker::We);
    primary.run("CREATE TABLE u(n INTEGER PRIMARY KEY)");
    archiver.put(&primary.history);
    let follower = follow(&path, &store);
    catch_up(&follower);
    follower.stop().unwrap();
    drop(follower);
    let reader = open(&path);
    let (mut last, mut moved) = (0, 0);
    let kills = if std::env::var_os("SOAK").is_some() { 150 } else { 12 };
    for kill in 1..=kills {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "crash::child", "--nocapture"])
            .env(PATH, &path)
            .env(STORE, &store)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        for step in 0..30 {
            let n = kill * 1000 + step;
            primary.run(&format!(
                "BEGIN; INSERT INTO t VALUES ({n}, randomblob({})); INSERT INTO u VALUES ({n});
                 COMMIT",
                (n * 7919) % 20_000
            ));
            if step == 20 && kill % 3 == 0 {
                primary.restart(false);
            }
            if step % 3 == 0 {
                archiver.put(&primary.history);
            }
            std::thread::sleep(Duration::from_millis(3));
        }
        std::thread::sleep(Duration::from_millis(kill * 37 % 60));
        child.kill().unwrap();
        child.wait().unwrap();
        let n = reader.query_i64("SELECT coalesce(max(n), 0) FROM t").unwrap();
        assert_eq!(n, reader.query_i64("SELECT coalesce(max(n), 0) FROM u").unwrap());
        assert!(n >= last, "back from {last} to {n}");
        moved += usize::from(n > last);
        last = n;
    }
    assert!(moved > 3, "it hardly ever applied anything before it was killed");
    archiver.put(&primary.history);
    let received = snapshots_received(&path);
    let follower = follow(&path, &store);
    assert!(follower.position().is_some(), "the position is known");
    catch_up(&follower);
    assert_eq!(dump(&path), dump(&primary.path));
    assert_eq!(snapshots_received(&path), received, "positions were known all along");
}
