//! What we archive in layout v0.3, the releases restore: labels, ends and positions do not
//! disturb them.

use std::path::Path;
use std::thread::sleep;
use std::time::{Duration, SystemTime};

use litestream::archive::Archive;
use litestream::archive::label::Moment;
use litestream::archive::options::ArchiveOptions;
use litestream::archive::store::Put;
use litestream::archive::tree::Tree;
use litestream::files::with_suffix;
use litestream::lz4;
use litestream::pos::{Generation, Index, Offset, Pos};

use crate::common::Folder;
use crate::common::servers::S3Server;
use crate::data::{Application, STEPS, assert_content, content};
use crate::history::{History, remove, text};
use crate::place::Place;
use crate::stock::Config;
use crate::stock::Release::{self, Five, Three};

/// Archives a database as a replica does, without one: an index a call.
struct Archiver {
    archive: Archive,
    generation: Generation,
    index: u64,
}

impl Archiver {
    fn new(url: &str) -> Archiver {
        let options = ArchiveOptions { tree: Tree::V03, ..ArchiveOptions::default() };
        let archive = Archive::open(url, &options).unwrap();
        Archiver { archive, generation: Generation::from_bits(0x1234_5678_9abc_def0), index: 0 }
    }

    fn pos(&self, offset: usize) -> Pos {
        let offset = Offset::new(offset as u64).unwrap();
        Pos::new(self.generation, Index::new(self.index).unwrap(), offset)
    }

    /// The database file, which the WAL adds nothing to.
    fn snapshot(&self, database: &Path) {
        let frame = lz4::compress(&std::fs::read(database).unwrap()).unwrap();
        let put = self.archive.put_snapshot(self.pos(0), SystemTime::now(), &mut frame.as_slice());
        assert_eq!(put.unwrap(), Put::Created);
    }

    /// The WAL, in segments of some frames, and its end.
    fn wal(&mut self, database: &Path, frame_size: usize) {
        let wal = std::fs::read(with_suffix(database, "-wal")).unwrap();
        let mut at = 0;
        while at < wal.len() {
            let header = if at == 0 { 32 } else { 0 };
            let end = wal.len().min(at + header + 7 * frame_size);
            let frame = lz4::compress(&wal[at..end]).unwrap();
            let now = SystemTime::now();
            let moments = [Moment { end: Offset::new(end as u64).unwrap(), at: now }];
            let put = self.archive.put_segment(self.pos(at), now, &moments, &mut frame.as_slice());
            assert_eq!(put.unwrap(), Put::Created);
            at = end;
        }
        self.archive.put_end(self.pos(at)).unwrap();
        self.archive.put_position(self.pos(at)).unwrap();
        self.index += 1;
    }
}

/// Several segments an index, snapshots now and then, ends and a position: all at hand.
#[test]
fn every_kind_of_object() {
    let folder = Folder::new("interop-ours");
    for page_size in [512, 4096, 65_536] {
        let path = folder.file(&format!("db{page_size}"));
        let place = Place::folder(&folder, &format!("archive{page_size}"));
        let mut database = Application::new(path.clone(), page_size);
        let mut archiver = Archiver::new(place.url());
        let mut history = Vec::new();
        for step in 0..STEPS {
            database.script("PRAGMA wal_checkpoint(TRUNCATE)");
            if step % 3 == 0 {
                archiver.snapshot(&path);
            }
            database.step(step);
            archiver.wal(&path, 24 + page_size as usize);
            history.push((SystemTime::now(), database.content()));
            if step == 3 {
                sleep(Duration::from_millis(100));
            }
        }
        for release in [Three, Five] {
            let config = Config::new(release, &folder, &[(&path, &place)]);
            let restore = |arguments: &[&str], expected: &str| {
                let what = format!("{release:?} restores {} {arguments:?}", place.url());
                let to = folder.file("restored");
                config.restore(&path, &to, arguments).unwrap_or_else(|e| panic!("{what}: {e}"));
                assert_content(&content(&to), expected, &what);
                remove(&to);
            };
            restore(&[], &history[STEPS - 1].1);
            let (time, held) = &history[3];
            restore(&["-timestamp", &text(*time)], held);
        }
    }
}

/// Every state that was recorded, restored by a release.
pub fn check(folder: &Folder, history: &History, release: Release) {
    let to = folder.file("theirs");
    for (number, place) in history.places.iter().enumerate() {
        let restore = |arguments: &[&str], expected: &str| {
            let what = format!("{release:?} restores {} {arguments:?}", place.url());
            history.theirs(number, &to, arguments);
            assert_content(&content(&to), expected, &what);
            remove(&to);
        };
        restore(&[], history.last(number));
        for moment in history.moments(number) {
            restore(&["-timestamp", &text(moment.time)], &moment.held[number]);
        }
    }
}

pub fn run(server: &S3Server) {
    let folder = Folder::new("interop-ours");
    let place = |size: u32| (size, Place::folder(&folder, &format!("archive{size}")));
    let mut all: Vec<(u32, Place)> = [512, 4096, 65_536].map(place).into();
    all.push((1024, Place::bucket(server, "ours/archive")));
    let mut history = History::ours(Three, &folder, all);
    check(&folder, &history, Three);
    history.restored_by(Five, &folder);
    check(&folder, &history, Five);
}
