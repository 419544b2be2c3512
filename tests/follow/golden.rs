//! The stream recorded from Litestream v0.4.0-beta.2, followed to its end.

use std::io::Read;
use std::path::Path;

use super::folder::Folder;
use super::support::{catch_up, follow, host, pages};
use super::upstream::replay;

pub fn gunzip(name: &str) -> Vec<u8> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/litestream-0.4.0-beta.2");
    let file = std::fs::read(folder.join(name)).unwrap();
    let mut bytes = Vec::new();
    flate2::read::GzDecoder::new(&file[..]).read_to_end(&mut bytes).unwrap();
    bytes
}

#[test]
fn a_recorded_ancestor_is_followed_to_its_end() {
    host();
    let folder = Folder::new("follow-golden");
    let path = folder.file("replica.db");
    let url = replay(gunzip("stream.bin.gz"), 4096);
    let follower = follow(&path, &url);
    catch_up(&follower);
    let end = "fb744889fe01aa13/0000000000000008:000000000000c140";
    super::support::eventually("the end", || {
        follower.position().is_some_and(|pos| pos.to_string() == end)
    });
    assert_eq!(follower.status().state, "streaming");
    assert_eq!(follower.lag(), 0.0);
    follower.stop().unwrap();
    assert_eq!(litestream::follow::read_position(&path).unwrap().to_string(), end);
    assert!(litestream::follow::is_replica(&path).unwrap());
    assert!(pages(&path) == gunzip("final.db.gz"), "the pages differ");
}
