//! An archive: a database's snapshots and WAL segments in a folder or a bucket.
//!
//! ```text
//! replicate --put-->  Archive: names (tree), labels, encryption   --> Store: file, s3
//! restore, follow, tables <--list, open--
//! ```
//!
//! A snapshot or segment object is a label (label.rs) and an LZ4 frame; the whole of it is
//! encrypted if the archive is. Objects are write-once. A *chain* is a snapshot and every segment
//! after it without a hole; a restore needs one that reaches its target. What is missing shows:
//! segments of an index follow each other, a finished index has an end, and the position says how
//! far the archive reaches at least.

mod crypt;
mod file;
mod folder;
#[cfg(any(test, fuzzing))]
#[path = "../../fuzz/targets/archive.rs"]
pub(crate) mod fuzz;
pub mod hold;
pub mod label;
mod listing;
pub mod ltx;
pub mod options;
pub mod plan;
mod s3;
pub mod sink;
pub mod store;
pub mod tree;
pub mod url;

use std::io::{self, Read, Write};
use std::sync::Arc;
use std::time::SystemTime;

use crate::error::{Context, Error, ErrorKind, Result};
use crate::lz4;
use crate::pos::{Generation, Pos};
use crypt::Keys;
pub use hold::{Hold, hold};
use label::{Label, Moment, Piece};
pub use listing::{Entry, Listing, SegmentObject, SnapshotObject};
pub use options::ArchiveOptions;
use store::{Put, Store};
use tree::Tree;

/// A small object of text is not longer than this.
const TEXT_BYTES_MAX: u64 = 256;

/// An object being read.
pub struct Opened {
    /// What it says of itself; none from other makers.
    pub label: Option<Label>,
    /// One LZ4 frame.
    pub frame: Box<dyn Read + Send>,
    /// Whether the store has it encrypted.
    pub encrypted: bool,
}

/// One archive, in a store.
pub struct Archive {
    store: Arc<dyn Store>,
    tree: Tree,
    keys: Keys,
}

impl Archive {
    /// The archive at `url`. Nothing is contacted yet.
    pub fn open(url: &str, options: &ArchiveOptions) -> Result<Archive> {
        let store = options.store(url)?;
        Ok(Archive { store, tree: options.tree, keys: Keys::read(options)? })
    }

    /// As people write it.
    pub fn url(&self) -> &str {
        self.store.url()
    }

    /// Whether new objects are encrypted.
    pub fn encrypts(&self) -> bool {
        self.keys.encrypts()
    }

    /// Whether an object that is there is encrypted; needs no key.
    pub fn is_encrypted(&self, key: &str) -> Result<bool> {
        let mut object = self.store.get(key, Some(crypt::HEAD_BYTES))?;
        crypt::is_encrypted(&mut object).map_err(|error| error.context(self.name(key)))
    }

    /// The objects themselves.
    pub fn store(&self) -> &Arc<dyn Store> {
        &self.store
    }

    /// How far a generation reaches at least; `None` if that was never written.
    pub fn position(&self, generation: Generation) -> Result<Option<Pos>> {
        let key = tree::position(generation);
        match self.text(&key) {
            Ok(text) => {
                let pos: Pos = text
                    .trim_end()
                    .parse()
                    .map_err(|error: Error| error.context(self.name(&key)))?;
                if pos.generation != generation {
                    return Err(
                        Error::corrupt("it is of another generation").context(self.name(&key))
                    );
                }
                Ok(Some(pos))
            }
            Err(error) if error.kind() == ErrorKind::Missing => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Notes how far a generation reaches.
    pub fn put_position(&self, pos: Pos) -> Result<()> {
        self.store.replace(&tree::position(pos.generation), format!("{pos}\n").as_bytes())
    }

    /// Stores a snapshot: `frame` is the database file as one LZ4 frame.
    pub fn put_snapshot(
        &self,
        pos: Pos,
        created_at: SystemTime,
        frame: &mut dyn Read,
    ) -> Result<Put> {
        let key = self.tree.snapshot(pos.generation, pos.index)?;
        self.put(&key, &Label::snapshot(pos, created_at), frame)
    }

    /// Stores WAL bytes from `pos` on: `frame` is one LZ4 frame of them.
    pub fn put_segment(
        &self,
        pos: Pos,
        created_at: SystemTime,
        moments: &[Moment],
        frame: &mut dyn Read,
    ) -> Result<Put> {
        let key = self.tree.segment(pos)?;
        self.put(&key, &Label::segment(pos, created_at, moments), frame)
    }

    /// Notes that an index is finished and ends at `end`.
    pub fn put_end(&self, end: Pos) -> Result<Put> {
        self.store.create(&self.tree.end(end)?)?.finish()
    }

    fn put(&self, key: &str, label: &Label, frame: &mut dyn Read) -> Result<Put> {
        let name = || format!("cannot write {}", self.name(key));
        let mut upload = self.store.create(key)?;
        match self.keys.encrypt(&mut upload).map_err(|error| error.context(name()))? {
            Ok(mut encrypted) => {
                encrypted.write_all(&label.encode()).context(name)?;
                io::copy(frame, &mut encrypted).context(name)?;
                encrypted.finish().context(name)?;
            }
            Err(plain) => {
                plain.write_all(&label.encode()).context(name)?;
                io::copy(frame, plain).context(name)?;
            }
        }
        upload.finish()
    }

    /// Opens a snapshot. Fails if what is there says that it is something else.
    pub fn open_snapshot(&self, snapshot: &SnapshotObject) -> Result<Opened> {
        self.open_piece(&self.snapshot_key(snapshot)?, Piece::Snapshot, snapshot.info.pos(), None)
    }

    /// Opens a segment. Fails if what is there says that it is something else.
    pub fn open_segment(&self, segment: &SegmentObject) -> Result<Opened> {
        self.open_piece(&self.segment_key(segment)?, Piece::Segment, segment.info.pos(), None)
    }

    /// A snapshot's label, without the rest of it.
    pub fn snapshot_label(&self, snapshot: &SnapshotObject) -> Result<Option<Label>> {
        self.label(&self.snapshot_key(snapshot)?, Piece::Snapshot, snapshot.info.pos())
    }

    /// A segment's label, without the rest of it.
    pub fn segment_label(&self, segment: &SegmentObject) -> Result<Option<Label>> {
        self.label(&self.segment_key(segment)?, Piece::Segment, segment.info.pos())
    }

    fn label(&self, key: &str, piece: Piece, pos: Pos) -> Result<Option<Label>> {
        let opened = match self.open_piece(key, piece, pos, Some(LABEL_BYTES)) {
            // A longer label looks as if it was cut; so does the piece of it that is encrypted.
            Err(error) if error.kind() == ErrorKind::Corrupt => {
                self.open_piece(key, piece, pos, None)
            }
            opened => opened,
        };
        Ok(opened?.label)
    }

    fn open_piece(&self, key: &str, piece: Piece, pos: Pos, first: Option<u64>) -> Result<Opened> {
        let name = || self.name(key);
        let object = self.store.get(key, first)?;
        let (mut object, encrypted) =
            self.keys.decrypt(object).map_err(|error| error.context(name()))?;
        let (label, taken) = Label::take(&mut object).map_err(|error| error.context(name()))?;
        if let Some(label) = &label
            && (label.piece, label.pos) != (piece, pos)
        {
            let why =
                format!("it is the {} at {}, under another's name", kind(label.piece), label.pos);
            return Err(Error::corrupt(why).context(name()));
        }
        // A damaged label must not pass for none: the store's times would be believed instead.
        if label.is_none() && !lz4::is_frame(&taken) {
            let why = "it begins neither with a label nor with an LZ4 frame";
            return Err(Error::corrupt(why).context(name()));
        }
        Ok(Opened { label, frame: Box::new(io::Cursor::new(taken).chain(object)), encrypted })
    }

    /// Removes snapshots, then segments and ends: what is left of a deletion that does not finish
    /// has no snapshot, so nobody takes it for a chain.
    pub fn delete(
        &self,
        snapshots: &[SnapshotObject],
        segments: &[SegmentObject],
        ends: &[Pos],
    ) -> Result<()> {
        let snapshots: Result<Vec<_>> =
            snapshots.iter().map(|object| self.snapshot_key(object)).collect();
        self.store.delete(&snapshots?)?;
        let segments: Result<Vec<_>> =
            segments.iter().map(|object| self.segment_key(object)).collect();
        self.store.delete(&segments?)?;
        let ends = ends.iter().flat_map(|end| [Tree::V04.end(*end), Tree::V03.end(*end)]);
        self.store.delete(&ends.filter_map(Result::ok).collect::<Vec<_>>())
    }

    /// Removes the note of how far a generation reaches, once nothing else of it is left.
    pub fn delete_position(&self, generation: Generation) -> Result<()> {
        self.store.delete(&[tree::position(generation)])
    }

    /// Removes what is left of generations whose deletion was cut short and that show no more.
    pub fn tidy(&self) -> Result<()> {
        self.store.tidy(tree::GENERATIONS, |name| name.parse::<Generation>().is_ok())
    }

    /// A snapshot's key.
    pub fn snapshot_key(&self, snapshot: &SnapshotObject) -> Result<String> {
        snapshot.tree.snapshot(snapshot.info.generation, snapshot.info.index)
    }

    /// A segment's key.
    pub fn segment_key(&self, segment: &SegmentObject) -> Result<String> {
        segment.tree.segment(segment.info.pos())
    }

    /// What an object is called in messages.
    pub fn name(&self, key: &str) -> String {
        format!("object {key} of {}", self.url())
    }

    fn text(&self, key: &str) -> Result<String> {
        let mut text = String::new();
        let read = self.store.get(key, None)?.take(TEXT_BYTES_MAX).read_to_string(&mut text);
        read.context(|| format!("cannot read {}", self.name(key)))?;
        Ok(text)
    }
}

/// A label is in the first so many bytes of an object, unless it has very many moments: then the
/// object is opened again, as a whole.
const LABEL_BYTES: u64 = 128 << 10;

fn kind(piece: Piece) -> &'static str {
    match piece {
        Piece::Snapshot => "snapshot",
        Piece::Segment => "segment",
    }
}

#[cfg(test)]
mod tests;
