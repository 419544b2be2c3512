//! What an archive holds: its objects by what they are, and listing them.

use std::collections::BTreeMap;

use super::Archive;
use super::store::Object;
use super::tree::{self, Name, Tree};
use crate::error::Result;
use crate::info::{SnapshotInfo, WalSegmentInfo};
use crate::pos::{Generation, Index, Offset, Pos, parse_offset};

/// A snapshot in an archive.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SnapshotObject {
    /// Size and time are the store's.
    pub info: SnapshotInfo,
    pub(super) tree: Tree,
}

/// A segment in an archive.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SegmentObject {
    /// Size and time are the store's.
    pub info: WalSegmentInfo,
    pub(super) tree: Tree,
}

impl SegmentObject {
    /// How it is named.
    pub fn tree(&self) -> Tree {
        self.tree
    }
}

/// What an archive holds of one generation.
#[derive(Clone, Debug)]
pub struct Listing {
    /// Which one.
    pub generation: Generation,
    /// By index.
    pub snapshots: Vec<SnapshotObject>,
    /// By index and offset.
    pub segments: Vec<SegmentObject>,
    /// Where finished indexes end.
    pub ends: BTreeMap<Index, Offset>,
    /// Other ends of the same indexes.
    pub other_ends: Vec<(Index, Offset)>,
    /// The archive reaches at least so far.
    pub position: Option<Pos>,
}

impl Listing {
    /// Nothing of a generation.
    pub fn empty(generation: Generation) -> Listing {
        Listing {
            generation,
            snapshots: Vec::new(),
            segments: Vec::new(),
            ends: BTreeMap::new(),
            other_ends: Vec::new(),
            position: None,
        }
    }

    /// Whether it holds any state or commit, and not only says how far it will reach.
    pub fn has_content(&self) -> bool {
        !self.snapshots.is_empty() || !self.segments.is_empty()
    }

    fn add_end(&mut self, index: Index, offset: Offset) {
        let first = *self.ends.entry(index).or_insert(offset);
        if first != offset {
            self.other_ends.push((index, offset));
        }
    }

    /// Another end of an index than that in `ends`: two wrote under one name.
    pub fn other_end(&self, index: Index) -> Option<Offset> {
        self.other_ends.iter().find(|(at, _)| *at == index).map(|(_, offset)| *offset)
    }
}

/// One thing in a generation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Entry {
    /// A snapshot.
    Snapshot(SnapshotObject),
    /// A segment.
    Segment(SegmentObject),
    /// An index is finished and ends here.
    End(Pos),
    /// The same, told by the content of this object.
    EndFile(Index, String),
    /// The note of how far it reaches.
    Position,
}

impl Archive {
    /// All generations it holds something of, by name: which is no order in time.
    pub fn generations(&self) -> Result<Vec<Generation>> {
        let names = self.store.folders(tree::GENERATIONS)?;
        Ok(names.iter().filter_map(|name| name.parse().ok()).collect())
    }

    /// Hands everything it holds of a generation to `each`, as it is listed: snapshots first, each
    /// tree of names in order. However much there is, little memory is needed.
    pub fn each(
        &self,
        generation: Generation,
        each: &mut dyn FnMut(Entry) -> Result<()>,
    ) -> Result<()> {
        self.each_below(generation, &tree::folder(generation), each)
    }

    fn each_below(
        &self,
        generation: Generation,
        prefix: &str,
        each: &mut dyn FnMut(Entry) -> Result<()>,
    ) -> Result<()> {
        self.store.list(prefix, &mut |object: Object| {
            let Object { key, size, modified: created_at } = object;
            match tree::parse(generation, &key) {
                Some(Name::Snapshot(index, tree)) => {
                    let info = SnapshotInfo { generation, index, size, created_at };
                    each(Entry::Snapshot(SnapshotObject { info, tree }))
                }
                Some(Name::Segment(index, offset, tree)) => {
                    let info = WalSegmentInfo { generation, index, offset, size, created_at };
                    each(Entry::Segment(SegmentObject { info, tree }))
                }
                Some(Name::End(index, offset)) => {
                    each(Entry::End(Pos { generation, index, offset }))
                }
                Some(Name::EndFile(index)) => each(Entry::EndFile(index, key)),
                Some(Name::Position) => each(Entry::Position),
                None => Ok(()),
            }
        })
    }

    /// A generation's snapshots by index, without looking at the rest.
    pub fn snapshots(&self, generation: Generation) -> Result<Vec<SnapshotObject>> {
        Ok(self.list_below(generation, &[tree::snapshots(generation)])?.snapshots)
    }

    /// Everything it holds of a generation.
    pub fn list(&self, generation: Generation) -> Result<Listing> {
        // First: it grows while all is listed, and what it says must not be missed in the listing.
        let position = self.position(generation)?;
        Ok(Listing { position, ..self.list_below(generation, &[tree::folder(generation)])? })
    }

    /// What it holds of one index in these trees: segments, and the end.
    pub fn list_index(
        &self,
        generation: Generation,
        index: Index,
        trees: &[Tree],
    ) -> Result<Listing> {
        let folders = trees.iter().filter_map(|tree| tree.index(generation, index));
        self.list_below(generation, &folders.collect::<Vec<_>>())
    }

    fn list_below(&self, generation: Generation, prefixes: &[String]) -> Result<Listing> {
        let mut listing = Listing::empty(generation);
        let mut end_files = Vec::new();
        let mut each = |entry| {
            match entry {
                Entry::Snapshot(snapshot) => listing.snapshots.push(snapshot),
                Entry::Segment(segment) => listing.segments.push(segment),
                Entry::End(end) => listing.add_end(end.index, end.offset),
                Entry::EndFile(index, key) => end_files.push((index, key)),
                Entry::Position => {}
            }
            Ok(())
        };
        prefixes.iter().try_for_each(|prefix| self.each_below(generation, prefix, &mut each))?;
        // Two trees may be mixed, and then the keys' order is not that of positions.
        listing.snapshots.sort_by_key(|snapshot| snapshot.info.index);
        listing.segments.sort_by_key(|segment| (segment.info.index, segment.info.offset));
        for (index, key) in end_files {
            let text = self.text(&key)?;
            let offset =
                parse_offset(text.trim_end()).map_err(|error| error.context(self.name(&key)))?;
            listing.ends.insert(index, offset);
        }
        Ok(listing)
    }
}
