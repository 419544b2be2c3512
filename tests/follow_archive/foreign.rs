//! Archives of stock Litestream 0.3, which say less of themselves.

use std::path::Path;

use super::archiver::{Archiver, Maker, follow, snapshots_received};
use super::common::Folder;
use super::stage::{Stage, reach};
use super::support::{catch_up, dump, eventually};

#[test]
fn an_archive_of_0_3_is_followed() {
    let Stage { folder: _folder, path, store, mut primary, mut archiver } =
        Stage::new("stock", Maker::Stock);
    primary.run("INSERT INTO t VALUES (1, randomblob(3000))");
    archiver.put(&primary.history);
    let mut follower = follow(&path, &store);
    catch_up(&follower);
    for round in 2..30 {
        primary.run(&format!("INSERT INTO t VALUES ({round}, randomblob(3000))"));
        // Transactions cut in the middle, and several in one segment.
        archiver.frames = 1 + round % 5;
        if round % 5 == 0 {
            primary.restart(round % 2 == 0);
        }
        if round % 3 == 0 {
            archiver.put(&primary.history);
        }
        if round == 15 {
            follower.stop().unwrap();
            follower = follow(&path, &store);
        }
    }
    primary.run("INSERT INTO t VALUES (1000, 'the end')");
    archiver.put(&primary.history);
    reach(&follower, &primary, &path);
    assert_eq!(snapshots_received(&path), 1);
}

/// The same history in other pieces: what is applied of a segment already is left out.
#[test]
fn a_position_may_be_in_the_middle_of_a_segment() {
    for maker in [Maker::We, Maker::Stock] {
        let Stage { folder: _folder, path, store, mut primary, mut archiver } =
            Stage::new("recut", maker);
        for n in 0..5 {
            primary.run(&format!("INSERT INTO t VALUES ({n}, randomblob(3000))"));
            archiver.put(&primary.history);
        }
        let follower = follow(&path, &store);
        catch_up(&follower);
        follower.stop().unwrap();
        for n in 5..10 {
            primary.run(&format!("INSERT INTO t VALUES ({n}, randomblob(3000))"));
        }
        std::fs::remove_dir_all(&store).unwrap();
        Archiver::new(&store, maker).put(&primary.history);
        let follower = follow(&path, &store);
        catch_up(&follower);
        assert_eq!(follower.position(), Some(primary.history.end()));
        assert_eq!(dump(&path), dump(&primary.path));
        assert_eq!(snapshots_received(&path), 1);
    }
}

/// What 0.5 writes is another format; it is not waited for.
#[test]
fn an_archive_of_0_5_cannot_be_followed() {
    let folder = Folder::new("five");
    let store = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/ltx-0.5.17");
    let follower = follow(&folder.file("replica.db"), &store);
    eventually("a refusal", || follower.refusal().is_some());
    let error = follower.refusal().unwrap().to_string();
    assert!(error.contains("can be restored, not followed"), "{error}");
}
