//! What an earlier process left in `DB-litestream/`: taken over if it is one unbroken history, else left
//! for the next generation to replace.
//!
//! Files say where they start; where one ends is where the next begins. Only the newest index's last
//! segment and header are read here (that gives the end of history and its running checksum); the rest is
//! checked when it is used. Flush order guarantees that nothing before a file that exists is missing, also
//! after a power loss, so a hole means damage and everything before the hole is dropped.

use std::collections::BTreeMap;
use std::sync::{Condvar, Mutex};
use std::time::SystemTime;

use super::layout::{self, Layout};
use super::segment::{Stored, last_frame_header};
use super::snapshot::Snapshot;
use super::{Log, State, Tip};
use crate::error::{Context, Error, ErrorKind, Result};
use crate::files::remove_tmp_files;
use crate::info::SNAPSHOT_EXT;
use crate::pos::{Generation, Index, Offset, Pos};
use crate::wal::{Chain, FrameHeader, PageSize, WAL_HEADER_SIZE, WalHeader};

impl Log {
    /// Opens the log at `layout`, empty or with the history an earlier process left. History that cannot
    /// be read back is an error of kind `Corrupt` in the second place: the log is empty then, and
    /// capture starts a new generation.
    pub fn open(layout: Layout) -> Result<(Log, Option<Error>)> {
        layout.create_dir(layout.root())?;
        remove_tmp_files(layout.root())?;
        let (state, error) = match load(&layout) {
            Ok(state) => (state, None),
            Err(error) => (State::default(), Some(error)),
        };
        let log = Log {
            layout,
            state: Mutex::new(state),
            changed: Condvar::new(),
            flusher: Mutex::default(),
        };
        Ok((log, error))
    }

    /// Serves the history found at start, once capture has proved that the WAL continues it.
    pub fn resume(&self) {
        crate::error::lock(&self.state).ready = true;
        self.changed.notify_all();
    }
}

fn load(layout: &Layout) -> Result<State> {
    let Some(generation) = read_generation(layout)? else { return Ok(State::default()) };
    let mut disk = list_segments(layout, generation)?;
    let snapshots = list_snapshots(layout, generation)?;
    let Some(newest) = snapshots.keys().next_back().copied() else {
        return Err(Error::no_snapshots().context(format!("generation {generation}")));
    };
    drop_before_hole(&mut disk);
    let tip = match disk.iter().next_back() {
        Some((_, stored)) => tip_of(stored)?,
        None => {
            let pos = Pos { generation, index: newest, offset: Offset::default() };
            (Tip { pos, chain: None }, None)
        }
    };
    let (tip, page_size) = tip;
    let reachable = disk.keys().next().is_none_or(|oldest| *oldest <= newest);
    if !reachable || tip.pos.index < newest {
        let why = format!("generation {generation}: segments after snapshot {newest} are missing");
        return Err(Error::new(ErrorKind::Corrupt, why));
    }
    Ok(State { flushed: tip.pos, tip: Some(tip), page_size, disk, snapshots, ..State::default() })
}

fn read_generation(layout: &Layout) -> Result<Option<Generation>> {
    let path = layout.generation_file();
    match std::fs::read_to_string(&path) {
        Ok(text) => {
            let name = text.trim_end().parse::<Generation>();
            name.map(Some).map_err(|error| error.context(format!("in {}", path.display())))
        }
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(Error::from(error).context(format!("cannot read {}", path.display()))),
    }
}

fn list_snapshots(layout: &Layout, generation: Generation) -> Result<BTreeMap<Index, Snapshot>> {
    let found =
        layout::list(&layout.snapshots(generation), |name| layout::index_of(name, SNAPSHOT_EXT))?;
    found
        .into_iter()
        .map(|(index, path)| Ok((index, Snapshot::find(generation, index, &path)?)))
        .collect()
}

fn list_segments(layout: &Layout, generation: Generation) -> Result<BTreeMap<Index, Vec<Stored>>> {
    let indexes = layout::list(&layout.wal(generation), |name| layout::index_of(name, ""))?;
    let mut disk = BTreeMap::new();
    for (index, dir) in indexes {
        let mut stored = Vec::new();
        for (offset, path) in layout::list(&dir, layout::offset_of)? {
            let meta =
                std::fs::metadata(&path).context(|| format!("cannot read {}", path.display()))?;
            let created_at = meta.modified().unwrap_or(SystemTime::UNIX_EPOCH);
            let pos = Pos { generation, index, offset };
            stored.push(Stored { pos, raw_size: None, size: meta.len(), created_at, path });
        }
        measure(&mut stored);
        if !stored.is_empty() {
            disk.insert(index, stored);
        }
    }
    Ok(disk)
}

/// Each segment ends where the next begins.
fn measure(stored: &mut [Stored]) {
    let starts: Vec<u64> = stored.iter().skip(1).map(|next| next.pos.offset.get()).collect();
    for (segment, next) in stored.iter_mut().zip(starts) {
        segment.raw_size = next.checked_sub(segment.pos.offset.get());
    }
}

/// Keeps the newest indexes that follow each other and start at offset 0. An older one that is cut short
/// is what a deletion leaves that did not finish.
fn drop_before_hole(disk: &mut BTreeMap<Index, Vec<Stored>>) {
    let mut keep_from = None;
    let mut expected: Option<u64> = None;
    for (index, stored) in disk.iter().rev() {
        let whole = stored.first().is_some_and(|first| first.pos.offset == Offset::default());
        if !whole || expected.is_some_and(|expected| expected != index.get()) {
            break;
        }
        keep_from = Some(*index);
        expected = index.get().checked_sub(1);
        if expected.is_none() {
            break;
        }
    }
    disk.retain(|index, _| keep_from.is_some_and(|from| *index >= from));
}

/// The end of the newest index, proved by its first and last segment.
fn tip_of(stored: &[Stored]) -> Result<(Tip, Option<PageSize>)> {
    let (Some(first), Some(last)) = (stored.first(), stored.last()) else {
        return Err(Error::no_wal_segments());
    };
    // The page size is in the header, so the header comes before anything that needs it.
    let head = first.head::<WAL_HEADER_SIZE>()?;
    let header = WalHeader::decode(&head)
        .map_err(|error| error.context(format!("in {}", first.path.display())))?;
    let page_size = header.page_size;
    let mut chain = Chain::start(&header);
    let segment = last.load(page_size)?;
    if !segment.commit {
        let why = format!("{} ends in the middle of a transaction", last.path.display());
        return Err(Error::new(ErrorKind::Corrupt, why));
    }
    if let Some(frame) = last_frame_header(&segment.raw, page_size) {
        let frame = FrameHeader::decode(&frame);
        if frame.salts != header.salts {
            let why = format!("{} is of another WAL than its index", last.path.display());
            return Err(Error::new(ErrorKind::Corrupt, why));
        }
        chain.checksum = frame.checksum;
    }
    Ok((Tip { pos: segment.end(), chain: Some(chain) }, Some(page_size)))
}
