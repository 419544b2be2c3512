//! What 0.5 archives, we restore: any state it restores, to the same bytes.

use std::time::SystemTime;

use serde_json::{Value, json};

use crate::common::Folder;
use crate::common::servers::S3Server;
use crate::history::{History, Restorer, remove, text};
use crate::place::Place;
use crate::stock::Release::Five;

/// Compares every state that was recorded.
fn check(folder: &Folder, history: &History) {
    let restorer = Restorer::new();
    let (ours, theirs) = (folder.file("ours"), folder.file("theirs"));
    for (number, place) in history.places.iter().enumerate() {
        let compare = |options: Value, arguments: &[&str], expected: &str| {
            let what = format!("{} {options}", place.url());
            history.theirs(number, &theirs, arguments);
            restorer.restore(place, options.clone(), &ours);
            let same = std::fs::read(&ours).unwrap() == std::fs::read(&theirs).unwrap();
            assert!(same, "{what}: we restore other bytes");
            remove(&ours);
            remove(&theirs);
            restorer.check(place, options, &ours, expected);
        };
        compare(json!({}), &[], history.last(number));
        for moment in history.moments(number) {
            let time = text(moment.time);
            let held = &moment.held[number];
            compare(json!({"timestamp": time}), &["-timestamp", &time], held);
        }
        let after = json!({"timestamp": text(SystemTime::now())});
        restorer.check(place, after, &ours, history.last(number));
    }
}

pub fn run(server: &S3Server) {
    let folder = Folder::new("interop-five");
    let place = |size: u32| (size, Place::folder(&folder, &format!("archive{size}")));
    let mut all: Vec<(u32, Place)> = [512, 4096, 65_536].map(place).into();
    all.push((1024, Place::bucket(server, "five/archive")));
    let history = History::record(Five, &folder, all);
    check(&folder, &history);
    for place in &history.places[..3] {
        let levels = [1, 2, 9].map(|level| place.path().join(format!("ltx/{level}")).is_dir());
        assert_eq!(levels, [true; 3], "it compacted, and made snapshots");
    }
}
