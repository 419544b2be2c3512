//! When the archive does not simply go on: other generations, other histories, holes, retention,
//! damage.

use std::time::Duration;

use litestream::archive::tree::Tree;

use super::archiver::{Archiver, Maker, follow, primary, snapshots_received};
use super::common::Folder;
use super::stage::{Stage, reach};
use super::support::{catch_up, dump, eventually};
use super::upstream::{Wal, pos};

#[test]
fn another_generation_is_gone_over_to() {
    let Stage { folder: _folder, path, store, mut primary, mut archiver } =
        Stage::new("generation", Maker::We);
    primary.run("INSERT INTO t VALUES (1, randomblob(3000))");
    archiver.put(&primary.history);
    let follower = follow(&path, &store);
    catch_up(&follower);
    // What comes first of it is a segment; its name sorts before the old one's.
    primary.run("INSERT INTO t VALUES (2, randomblob(3000))");
    primary.restart(true);
    primary.history.generation = 0x123;
    primary.history.wals.remove(0);
    primary.run("INSERT INTO t VALUES (3, randomblob(3000))");
    let snapshot = primary.history.wals[0].snapshot.take();
    archiver.begin();
    archiver.put(&primary.history);
    std::thread::sleep(Duration::from_millis(300));
    assert_eq!(follower.status().generation, Some(pos(0xabc, 0, 0).generation));
    primary.history.wals[0].snapshot = snapshot;
    archiver.put(&primary.history);
    reach(&follower, &primary, &path);
    // An old generation that is put back is not gone over to.
    let received = snapshots_received(&path);
    follower.stop().unwrap();
    let follower = follow(&path, &store);
    catch_up(&follower);
    assert_eq!(follower.position(), Some(primary.history.end()));
    assert_eq!((received, snapshots_received(&path)), (2, 2));
}

/// What a primary stores first of a generation is how far its first snapshot needs the WAL.
#[test]
fn a_generation_whose_first_snapshot_is_on_its_way_is_gone_over_to() {
    let Stage { folder: _folder, path, store, mut primary, mut archiver } =
        Stage::new("on-its-way", Maker::We);
    primary.run("INSERT INTO t VALUES (1, randomblob(3000))");
    archiver.put(&primary.history);
    let follower = follow(&path, &store);
    catch_up(&follower);
    follower.stop().unwrap();
    primary.restart(true);
    primary.history.generation = 0x123;
    primary.history.wals.remove(0);
    primary.run("INSERT INTO t VALUES (2, randomblob(3000))");
    archiver.archive.put_position(pos(0x123, 0, 32)).unwrap();
    let follower = follow(&path, &store);
    catch_up(&follower);
    assert_eq!(follower.status().generation, Some(pos(0xabc, 0, 0).generation));
    archiver.begin();
    archiver.put(&primary.history);
    reach(&follower, &primary, &path);
}

/// The same position, other content: the primary lost commits, and somebody archived under the
/// same name what it made instead.
#[test]
fn a_history_that_parted_is_started_over() {
    let folder = Folder::new("parted");
    let (path, store) = (folder.file("replica.db"), folder.file("store"));
    for n in [1, 2] {
        let mut primary = primary(&folder.file(&format!("primary{n}.db")));
        primary.run(&format!("INSERT INTO t VALUES ({n}, randomblob(3000))"));
        let _ = std::fs::remove_dir_all(&store);
        Archiver::new(&store, Maker::We).put(&primary.history);
        let follower = follow(&path, &store);
        eventually("its content", || {
            follower.caught_up_to_start() && dump(&path) == dump(&primary.path)
        });
        assert_eq!(snapshots_received(&path), n);
    }
}

#[test]
fn an_archive_that_is_behind_is_waited_for() {
    let folder = Folder::new("behind");
    let (path, store) = (folder.file("replica.db"), folder.file("store"));
    let mut primary = primary(&folder.file("primary.db"));
    primary.run("INSERT INTO t VALUES (1, randomblob(3000))");
    let before = primary.history.clone();
    primary.run("INSERT INTO t VALUES (2, randomblob(3000))");
    Archiver::new(&store, Maker::We).put(&primary.history);
    let follower = follow(&path, &store);
    catch_up(&follower);
    follower.stop().unwrap();
    std::fs::remove_dir_all(&store).unwrap();
    let mut archiver = Archiver::new(&store, Maker::We);
    archiver.put(&before);
    let follower = follow(&path, &store);
    eventually("an error", || follower.status().error.is_some());
    let error = follower.status().error.unwrap();
    assert!(error.contains("does not reach this replica's"), "{error}");
    assert_eq!(dump(&path), dump(&primary.path), "it does not go back");
    primary.run("INSERT INTO t VALUES (3, randomblob(3000))");
    archiver.put(&primary.history);
    catch_up(&follower);
    assert_eq!(dump(&path), dump(&primary.path));
    assert_eq!(snapshots_received(&path), 1);
}

#[test]
fn retention_may_delete_what_comes_next() {
    let Stage { folder: _folder, path, store, mut primary, mut archiver } =
        Stage::new("retention", Maker::We);
    archiver.put(&primary.history);
    let follower = follow(&path, &store);
    catch_up(&follower);
    follower.stop().unwrap();
    drop(follower);
    // While it is away.
    for round in 0..3 {
        primary.run(&format!("INSERT INTO t VALUES ({round}, randomblob(3000))"));
        primary.restart(true);
    }
    archiver.put(&primary.history);
    archiver.clean();
    let follower = follow(&path, &store);
    reach(&follower, &primary, &path);
    assert_eq!(snapshots_received(&path), 2);
    // While it looks on, and has all there is.
    primary.run("INSERT INTO t VALUES (10, randomblob(3000))");
    archiver.put(&primary.history);
    let end = primary.history.end();
    assert!(follower.wait(end, Duration::from_secs(60)), "{:?}", follower.status());
    primary.restart(true);
    archiver.put(&primary.history);
    archiver.clean();
    primary.run("INSERT INTO t VALUES (11, randomblob(3000))");
    archiver.put(&primary.history);
    reach(&follower, &primary, &path);
}

#[test]
fn a_hole_stops_it_and_a_snapshot_leads_past_it() {
    let Stage { folder: _folder, path, store, mut primary, mut archiver } =
        Stage::new("hole", Maker::We);
    primary.run("INSERT INTO t VALUES (1, randomblob(3000))");
    archiver.put(&primary.history);
    let follower = follow(&path, &store);
    catch_up(&follower);
    let before = dump(&primary.path);
    // The rest of this index never comes, and so neither does its end.
    let lost = primary.history.wals[0].bytes.len();
    primary.run("INSERT INTO t VALUES (2, randomblob(3000))");
    let kept = primary.history.wals[0].clone();
    primary.restart(false);
    primary.run("INSERT INTO t VALUES (3, randomblob(3000))");
    let mut holed = primary.history.clone();
    holed.wals[0] = Wal { bytes: kept.bytes[..lost].to_vec(), ..kept };
    archiver.maker = Maker::We;
    archiver.put_without_end(&holed);
    eventually("an error", || follower.status().error.is_some());
    let error = follower.status().error.unwrap();
    assert!(error.contains("is missing, and no snapshot is newer"), "{error}");
    assert_eq!(dump(&path), before);
    primary.restart(true);
    holed.wals.push(primary.history.wals[2].clone());
    archiver.put_without_end(&holed);
    reach(&follower, &primary, &path);
    assert_eq!(snapshots_received(&path), 2);
}

#[test]
fn a_damaged_object_is_named_and_does_no_harm() {
    let Stage { folder: _folder, path, store, mut primary, mut archiver } =
        Stage::new("damage", Maker::We);
    archiver.put(&primary.history);
    let follower = follow(&path, &store);
    catch_up(&follower);
    let before = dump(&primary.path);
    follower.stop().unwrap();
    let at = primary.history.end();
    primary.run("INSERT INTO t VALUES (1, randomblob(9000))");
    archiver.put(&primary.history);
    let key = Tree::V04.segment(at).unwrap();
    let file = store.join(&key);
    let whole = std::fs::read(&file).unwrap();
    for bit in [whole.len() / 2 * 8, whole.len() * 8 - 3, 80] {
        let mut bytes = whole.clone();
        bytes[bit / 8] ^= 1 << (bit % 8);
        std::fs::write(&file, &bytes).unwrap();
        let follower = follow(&path, &store);
        eventually("an error", || follower.status().error.is_some());
        let error = follower.status().error.unwrap();
        assert!(error.contains(&key), "{error}");
        assert_eq!(dump(&path), before);
        std::fs::write(&file, &whole).unwrap();
        // An intact one is taken as soon as it is there.
        if bit == 80 {
            catch_up(&follower);
            assert_eq!(dump(&path), dump(&primary.path));
        }
        follower.stop().unwrap();
        if bit != 80 {
            assert_eq!(follower.position(), Some(at));
        }
    }
}
