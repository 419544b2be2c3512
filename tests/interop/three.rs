//! What 0.3 archives, we restore: any state, over several indexes and snapshots.

use std::time::SystemTime;

use serde_json::json;

use crate::common::Folder;
use crate::common::servers::S3Server;
use crate::history::{History, Restorer, text};
use crate::place::Place;
use crate::stock::Release::Three;

pub fn check(folder: &Folder, history: &History) {
    let restorer = Restorer::new();
    let to = folder.file("ours");
    for (number, place) in history.places.iter().enumerate() {
        restorer.check(place, json!({"integrity_check": true}), &to, history.last(number));
        for moment in history.moments(number) {
            let options = json!({"timestamp": text(moment.time)});
            restorer.check(place, options, &to, &moment.held[number]);
        }
        let after = json!({"timestamp": text(SystemTime::now())});
        restorer.check(place, after, &to, history.last(number));
    }
}

pub fn run(server: &S3Server) {
    let folder = Folder::new("interop-three");
    let place = |size: u32| (size, Place::folder(&folder, &format!("archive{size}")));
    let mut all: Vec<(u32, Place)> = [512, 4096, 65_536].map(place).into();
    all.push((1024, Place::bucket(server, "three/archive")));
    let history = History::record(Three, &folder, all);
    for place in &history.places[..3] {
        let (mut snapshots, mut indexes) = (0, Vec::new());
        for generation in std::fs::read_dir(place.path().join("generations")).unwrap() {
            let generation = generation.unwrap().path();
            snapshots += std::fs::read_dir(generation.join("snapshots")).unwrap().count();
            for segment in std::fs::read_dir(generation.join("wal")).unwrap() {
                let name = segment.unwrap().file_name().into_string().unwrap();
                indexes.push(name[..8].to_owned());
            }
        }
        indexes.sort();
        indexes.dedup();
        assert!(snapshots > 1 && indexes.len() > 2, "{snapshots} snapshots, indexes {indexes:?}");
    }
    check(&folder, &history);
}
