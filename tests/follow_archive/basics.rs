//! A replica of an archive: filled, kept up, resumed, promoted; one of many.

use std::time::{Duration, Instant};

use super::archiver::{Archiver, Maker, follow, primary, snapshots_received, url};
use super::common::Folder;
use super::stage::{Stage, reach};
use super::support::{catch_up, dump, eventually, host, open, pages};

#[test]
fn an_archive_is_followed() {
    let Stage { folder, path, store, mut primary, mut archiver } = Stage::new("archive", Maker::We);
    primary.run("INSERT INTO t VALUES (1, randomblob(3000))");
    archiver.put(&primary.history);
    let follower = follow(&path, &store);
    catch_up(&follower);
    assert_eq!(follower.position(), Some(primary.history.end()));
    assert_eq!(dump(&path), dump(&primary.path));
    for round in 2..60 {
        primary.run(&format!("INSERT INTO t VALUES ({round}, randomblob({}))", round * 97));
        if round % 10 == 0 {
            primary.run("DELETE FROM t WHERE n % 3 = 0");
            primary.run("VACUUM");
        }
        if round % 7 == 0 {
            // A snapshot now and then changes nothing for who is beyond it.
            primary.restart(round % 2 == 0);
        }
        archiver.frames = if round % 2 == 0 { 5 } else { usize::MAX };
        archiver.put(&primary.history);
    }
    reach(&follower, &primary, &path);
    assert_eq!(snapshots_received(&path), 1);
    eventually("streaming", || follower.status().state == "streaming");
    assert!(follower.lag() < 1e-9, "{}", follower.lag());
    assert_eq!(follower.status().error, None);
    follower.stop().unwrap();
    drop(follower);
    let same = primary.pages(&folder.file("same.db"));
    assert_eq!(pages(&path), same);
}

#[test]
fn it_goes_on_where_it_was() {
    let Stage { folder: _folder, path, store, mut primary, mut archiver } =
        Stage::new("resume", Maker::We);
    // Once with nothing after the snapshot, and now and then at the end of an index.
    for round in 0..12 {
        archiver.put(&primary.history);
        let follower = follow(&path, &store);
        catch_up(&follower);
        follower.stop().unwrap();
        drop(follower);
        assert_eq!(dump(&path), dump(&primary.path));
        if round % 4 == 2 {
            primary.restart(false);
        } else {
            primary.run(&format!("INSERT INTO t VALUES ({round}, randomblob(2000))"));
        }
    }
    assert_eq!(snapshots_received(&path), 1, "positions were known all along");
}

#[test]
fn an_empty_archive_is_waited_for() {
    let folder = Folder::new("empty");
    let (path, store) = (folder.file("replica.db"), folder.file("store"));
    let mut primary = primary(&folder.file("primary.db"));
    let follower = follow(&path, &store);
    eventually("an error", || follower.status().error.is_some());
    let status = follower.status();
    assert!(status.error.unwrap().contains("holds no snapshot and no WAL segment yet"));
    assert!(follower.refusal().is_none(), "it may come");
    primary.run("INSERT INTO t VALUES (1, 'x')");
    Archiver::new(&store, Maker::We).put(&primary.history);
    catch_up(&follower);
    // It may have looked when the snapshot was there, and no segment yet.
    eventually("the row", || dump(&path) == dump(&primary.path));
    assert_eq!(follower.status().error, None);
}

#[test]
fn many_follow_one_archive_and_one_is_promoted() {
    let folder = Folder::new("many");
    let store = folder.file("store");
    let mut primary = primary(&folder.file("primary.db"));
    let mut archiver = Archiver::new(&store, Maker::We);
    archiver.put(&primary.history);
    let paths: Vec<_> = (0..10).map(|n| folder.file(&format!("replica{n}.db"))).collect();
    let followers: Vec<_> = paths.iter().map(|path| follow(path, &store)).collect();
    for n in 0..20 {
        primary.run(&format!("INSERT INTO t VALUES ({n}, randomblob(2000))"));
        archiver.put(&primary.history);
        std::thread::sleep(Duration::from_millis(20));
    }
    let (end, content) = (primary.history.end(), dump(&primary.path));
    for (path, follower) in paths.iter().zip(&followers) {
        assert!(follower.wait(end, Duration::from_secs(60)), "{:?}", follower.status());
        assert_eq!(dump(path), content);
    }
    let replica = open(&paths[0]);
    assert!(replica.execute("INSERT INTO t VALUES (100, '')").is_err());
    assert_eq!(followers[0].promote().unwrap(), Some(end));
    replica.execute("INSERT INTO t VALUES (100, '')").unwrap();
}

#[test]
fn what_is_no_archive_is_refused_at_once() {
    host();
    let folder = Folder::new("refused");
    let config = |url: &str| litestream::follow::FollowConfig {
        path: folder.file("replica.db"),
        url: url.to_owned(),
        ..Default::default()
    };
    for url in ["file:", "file://relative/path", "s3://"] {
        assert!(litestream::follow::start(config(url)).is_err(), "{url}");
    }
    let _unused = url(&folder.file("x"));
}

/// Who comes late reads ahead, and a transaction may be in many segments.
#[test]
fn very_many_segments_are_read_soon() {
    let Stage { folder: _folder, path, store, mut primary, mut archiver } =
        Stage::new("segments", Maker::We);
    archiver.frames = 1;
    for n in 0..10 {
        primary.run(&format!("INSERT INTO t VALUES ({n}, randomblob(60000))"));
        if n % 4 == 3 {
            primary.restart(false);
        }
    }
    primary.run("DELETE FROM t WHERE n = 1");
    archiver.put(&primary.history);
    let begun = Instant::now();
    let follower = follow(&path, &store);
    catch_up(&follower);
    println!("1200 segments in {:?}", begun.elapsed());
    assert_eq!(dump(&path), dump(&primary.path));
    // One is lost on the way: everything before it is applied, and nothing after it.
    follower.stop().unwrap();
    let (lost, before) = (primary.history.end(), dump(&primary.path));
    primary.run("UPDATE t SET pad = randomblob(9000)");
    archiver.put(&primary.history);
    archiver.remove_segment(lost.index.get(), lost.offset.get() + 536 * 20);
    let follower = follow(&path, &store);
    eventually("an error", || follower.status().error.is_some());
    let error = follower.status().error.unwrap();
    assert!(error.contains("is missing, and no snapshot is newer"), "{error}");
    assert_eq!(dump(&path), before, "its transaction is not complete");
}
