//! Puts a history into an archive in chosen pieces: as we archive, or as Litestream 0.3 does.

use std::io::Write;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use litestream::archive::label::Moment;
use litestream::archive::store::Put;
use litestream::archive::tree::Tree;
use litestream::archive::{Archive, ArchiveOptions};
use litestream::follow::{FollowConfig, Follower};
use litestream::lz4;
use litestream::pos::Offset;

use super::upstream::{History, Primary, pos};

/// How objects are made.
#[derive(Clone, Copy, PartialEq)]
pub enum Maker {
    /// With labels and ends.
    We,
    /// Named as 0.3 does, without anything of ours.
    Stock,
}

pub struct Archiver {
    pub archive: Archive,
    pub maker: Maker,
    /// The most frames in one segment.
    pub frames: usize,
    /// Of each index: bytes stored, and whether its snapshot and its end are.
    done: Vec<(usize, bool, bool)>,
    pub generation: u64,
}

impl Archiver {
    pub fn new(folder: &Path, maker: Maker) -> Self {
        let archive = Archive::open(&url(folder), &ArchiveOptions::default()).unwrap();
        Self { archive, maker, frames: usize::MAX, done: Vec::new(), generation: 0 }
    }

    /// Begins another generation: nothing of it is stored yet.
    pub fn begin(&mut self) {
        self.done.clear();
    }

    /// Stores what of `history` is not stored yet.
    pub fn put(&mut self, history: &History) {
        self.generation = history.generation;
        for (index, wal) in history.wals.iter().enumerate() {
            if self.done.len() == index {
                self.done.push((0, false, false));
            }
            if let Some(snapshot) = wal.snapshot.as_ref().filter(|_| !self.done[index].1) {
                self.snapshot(index, snapshot);
            }
            while self.done[index].0 < wal.bytes.len() {
                let at = self.done[index].0;
                let frame = history.page_size as usize + 24;
                let room = self.frames.saturating_mul(frame).saturating_add(32);
                let mut end = wal.bytes.len().min(at.saturating_add(room));
                if self.frames != usize::MAX && end != wal.bytes.len() {
                    end = 32 + (end - 32) / frame * frame;
                }
                self.segment(index, at, &wal.bytes[at..end]);
                self.done[index].0 = end;
            }
            if index + 1 < history.wals.len() && !self.done[index].2 && self.maker == Maker::We {
                self.done[index].2 = true;
                let end = pos(self.generation, index as u64, wal.bytes.len() as u64);
                assert_eq!(self.archive.put_end(end).unwrap(), Put::Created);
            }
        }
    }

    /// The same, but no index is said to be finished.
    pub fn put_without_end(&mut self, history: &History) {
        for done in &mut self.done {
            done.2 = true;
        }
        while self.done.len() < history.wals.len() {
            self.done.push((0, false, true));
        }
        self.put(history);
    }

    fn snapshot(&mut self, index: usize, file: &[u8]) {
        self.done[index].1 = true;
        let at = pos(self.generation, index as u64, 0);
        let frame = lz4::compress(file).unwrap();
        let put = match self.maker {
            Maker::We => {
                self.archive.put_snapshot(at, SystemTime::now(), &mut frame.as_slice()).unwrap()
            }
            Maker::Stock => {
                let key = Tree::V03.snapshot(at.generation, at.index).unwrap();
                self.raw(&key, file)
            }
        };
        assert_eq!(put, Put::Created);
    }

    fn segment(&self, index: usize, offset: usize, bytes: &[u8]) {
        let at = pos(self.generation, index as u64, offset as u64);
        let put = match self.maker {
            Maker::We => {
                let frame = lz4::compress(bytes).unwrap();
                let now = SystemTime::now();
                let end = Offset::new((offset + bytes.len()) as u64).unwrap();
                let moments = [Moment { end, at: now }];
                self.archive.put_segment(at, now, &moments, &mut frame.as_slice()).unwrap()
            }
            Maker::Stock => self.raw(&Tree::V03.segment(at).unwrap(), bytes),
        };
        assert_eq!(put, Put::Created);
    }

    /// An object without a label, and without a content size, as the ancestor writes it.
    fn raw(&self, key: &str, bytes: &[u8]) -> Put {
        let mut encoder = lz4::Encoder::new(Vec::new(), None).unwrap();
        encoder.write_all(bytes).unwrap();
        let mut upload = self.archive.store().create(key).unwrap();
        upload.write_all(&encoder.finish().unwrap()).unwrap();
        upload.finish().unwrap()
    }

    /// Removes a segment.
    pub fn remove_segment(&self, index: u64, offset: u64) {
        let key = Tree::V04.segment(pos(self.generation, index, offset)).unwrap();
        self.archive.store().delete(&[key]).unwrap();
    }

    /// Removes everything before the newest snapshot, as retention does.
    pub fn clean(&self) {
        let generation = pos(self.generation, 0, 0).generation;
        let listing = self.archive.list(generation).unwrap();
        let kept = listing.snapshots.last().unwrap().info.index;
        let snapshots: Vec<_> =
            listing.snapshots.into_iter().filter(|it| it.info.index < kept).collect();
        let segments: Vec<_> =
            listing.segments.into_iter().filter(|it| it.info.index < kept).collect();
        let ends = listing.ends.into_iter().filter(|(index, _)| *index < kept);
        let ends: Vec<_> =
            ends.map(|(index, end)| pos(self.generation, index.get(), end.get())).collect();
        self.archive.delete(&snapshots, &segments, &ends).unwrap();
    }
}

pub fn url(folder: &Path) -> String {
    format!("file://{}", folder.display())
}

/// A database with one table, in pages of 512 bytes.
pub fn primary(path: &Path) -> Primary {
    Primary::new(path, 512, "CREATE TABLE t(n INTEGER PRIMARY KEY, pad BLOB)")
}

/// Follows the archive in `folder`, looking often.
pub fn follow(path: &Path, folder: &Path) -> Arc<Follower> {
    let config = FollowConfig {
        path: path.to_owned(),
        url: url(folder),
        poll_interval: Duration::from_millis(50),
        ..FollowConfig::default()
    };
    litestream::follow::start(config).unwrap()
}

/// How often the replica at `path` received a snapshot.
pub fn snapshots_received(path: &Path) -> usize {
    let lines = litestream::registry::lines();
    let received = lines.iter().filter(|line| line.message.contains("receiving a snapshot"));
    received.filter(|line| line.database == path).count()
}
