//! Killed at any moment, a follower comes back where it was: exactly, and without a new snapshot.

use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use super::folder::Folder;
use super::support::{catch_up, dump, follow, open, pages};
use super::upstream::{Manners, Primary, Upstream};

const PATH: &str = "TEST_FOLLOW_PATH";
const URL: &str = "TEST_FOLLOW_URL";
const SCHEMA: &str = "CREATE TABLE a(n, pad); CREATE TABLE b(n, pad);
    INSERT INTO a VALUES (0, ''); INSERT INTO b VALUES (0, '')";

/// Not a test of its own: the process that is killed.
#[test]
fn child() {
    let (Some(path), Ok(url)) = (std::env::var_os(PATH), std::env::var(URL)) else { return };
    super::support::host();
    let _follower = follow(Path::new(&path), &url);
    loop {
        std::thread::sleep(Duration::from_secs(1));
    }
}

fn start_child(path: &Path, url: &str) -> Child {
    Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "crash::child", "--nocapture"])
        .env(PATH, path)
        .env(URL, url)
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap()
}

fn killed_again_and_again(kills: u64, with_reader: bool) {
    let folder = Folder::new("follow-kill");
    let mut primary = Primary::new(&folder.file("primary.db"), 512, SCHEMA);
    let upstream =
        Upstream::serve(primary.history.clone(), Manners { modern: true, split_frames: 7 });
    let path = folder.file("replica.db");
    let follower = follow(&path, &upstream.url);
    catch_up(&follower);
    follower.stop().unwrap();
    drop(follower);
    // Keeps shared memory, and so whatever a killed writer left in it, alive.
    let reader = with_reader.then(|| open(&path));
    let mut last = 0;
    for kill in 1..=kills {
        let mut child = start_child(&path, &upstream.url);
        for step in 0..40 {
            let n = kill * 1000 + step;
            primary.run(&format!(
                "BEGIN; INSERT INTO a VALUES ({n}, randomblob({})); INSERT INTO b VALUES ({n}, '');
                 COMMIT",
                (n * 7919) % 20_000
            ));
            if step == 20 && kill % 3 == 0 {
                primary.restart(false);
            }
            upstream.set(primary.history.clone());
            std::thread::sleep(Duration::from_millis(2));
        }
        std::thread::sleep(Duration::from_millis(kill * 37 % 60));
        child.kill().unwrap();
        child.wait().unwrap();
        if let Some(reader) = &reader {
            let n = reader.query_i64("SELECT max(n) FROM a").unwrap();
            assert_eq!(n, reader.query_i64("SELECT max(n) FROM b").unwrap());
            assert!(n >= last, "back from {last} to {n}");
            last = n;
        }
    }
    let follower = follow(&path, &upstream.url);
    assert!(follower.position().is_some(), "the position is known");
    catch_up(&follower);
    assert_eq!(dump(&path), dump(&primary.path));
    assert_eq!(upstream.snapshots_sent(), 1, "positions were known all along");
    follower.stop().unwrap();
    drop(reader);
    assert!(pages(&path) == primary.pages(&folder.file("expected.db")), "the pages differ");
}

#[test]
fn killed_with_nobody_else_there() {
    killed_again_and_again(12, false);
}

#[test]
fn killed_while_others_read() {
    killed_again_and_again(12, true);
}

#[test]
fn killed_in_its_first_snapshot() {
    let folder = Folder::new("follow-killfirst");
    let schema = "CREATE TABLE t(x); INSERT INTO t VALUES (zeroblob(60000000))";
    let primary = Primary::new(&folder.file("primary.db"), 4096, schema);
    let manners = Manners { modern: true, split_frames: 0 };
    let upstream = Upstream::serve(primary.history.clone(), manners);
    for pause in [40, 60, 80, 100, 130, 160, 200] {
        let path = folder.file(&format!("replica-{pause}.db"));
        let mut child = start_child(&path, &upstream.url);
        std::thread::sleep(Duration::from_millis(pause));
        child.kill().unwrap();
        child.wait().unwrap();
        super::support::host();
        let follower = follow(&path, &upstream.url);
        catch_up(&follower);
        let count = open(&path).query_i64("SELECT sum(length(x)) FROM t").unwrap();
        assert_eq!(count, 60_000_000);
        follower.stop().unwrap();
    }
}
