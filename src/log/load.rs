//! What an earlier process left in `DB-litestream/`: taken over if it is one unbroken history, else
//! left for the next generation to replace.
//!
//! Every segment says where it starts (its name) and how long it is (its LZ4 frame); a finished
//! index has a file `end`. So a hole shows without reading content, and everything before it is
//! dropped. Of the newest index the header and the last segment are read: they give the end of
//! history and its running checksum. Everything else is checked when it is used.

use std::collections::BTreeMap;
use std::sync::atomic::Ordering;
use std::sync::{Condvar, Mutex};
use std::time::SystemTime;

use super::layout::{self, Layout};
use super::segment::{Stored, last_frame_header};
use super::snapshot::Snapshot;
use super::{LOGS, Log, State, Tip, mark};
use crate::error::{Context, Error, ErrorKind, Result, lock};
use crate::fault;
use crate::files::{remove_tmp_files, sync_folder_of, text_beside};
use crate::info::SNAPSHOT_EXT;
use crate::pos::{Generation, Index, Offset, Pos, parse_offset};
use crate::wal::{Chain, FrameHeader, PageSize, Salts, WAL_HEADER_SIZE, WalHeader};

impl Log {
    /// An empty log at `layout`. Only the process that captures may [`Log::load`] or write it.
    pub fn new(layout: Layout) -> Log {
        LOGS.fetch_add(1, Ordering::Relaxed);
        Log {
            layout,
            state: Mutex::default(),
            changed: Condvar::new(),
            flusher: Mutex::default(),
            syncing: Mutex::default(),
            claims: Mutex::default(),
            clock: Mutex::new(SystemTime::UNIX_EPOCH),
        }
    }

    /// Takes over the history an earlier process left. History that cannot be read back is returned
    /// as an error: the log is empty then, and capture starts a new generation.
    pub fn load(&self) -> Result<Option<Error>> {
        self.layout.create_dir(self.layout.root())?;
        remove_tmp_files(self.layout.root())?;
        let (state, error) = match load(&self.layout) {
            Ok(state) => (state, None),
            Err(error) => (State::default(), Some(error)),
        };
        self.replace(state);
        Ok(error)
    }

    /// Lets go of a history that is not there any more; every subscription ends.
    pub fn forget(&self) {
        self.replace(State::default());
    }

    fn replace(&self, state: State) {
        let segments = state.disk.values().flatten().map(|stored| stored.created_at);
        let snapshots = state.snapshots.values().map(|snapshot| snapshot.info.created_at);
        if let Some(found) = segments.chain(snapshots).max() {
            let mut clock = lock(&self.clock);
            *clock = found.max(*clock);
        }
        let mut unsynced = lock(&self.flusher);
        unsynced.clear();
        let mut current = lock(&self.state);
        // Leases of before may still be given back: their numbers are not used again.
        *current = State { leases_made: current.leases_made, ..state };
        drop(current);
        self.changed.notify_all();
    }

    /// Serves the history found at start, once capture has proved that the WAL continues it.
    pub fn resume(&self) {
        lock(&self.state).ready = true;
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
    remove_other_generations(layout, generation)?;
    drop_before_hole(layout, &mut disk)?;
    drop_open_transaction(&mut disk)?;
    let tip = match disk.iter().next_back() {
        Some((_, stored)) => tip_of(stored)?,
        None => {
            let pos = Pos { generation, index: newest, offset: Offset::default() };
            (Tip { pos, chain: None }, None)
        }
    };
    let (tip, page_size) = tip;
    let flushed = tip.pos;
    let reachable = disk.keys().next().is_none_or(|oldest| *oldest <= newest);
    if !reachable || tip.pos.index < newest {
        let why = format!("generation {generation}: segments after snapshot {newest} are missing");
        return Err(Error::new(ErrorKind::Corrupt, why));
    }
    let mark = mark::read(layout, tip.pos);
    let tip = Some(tip);
    Ok(State { flushed, tip, page_size, disk, snapshots, mark, noted: mark, ..State::default() })
}

/// Generations that never got their first snapshot, or whose deletion did not finish.
pub(super) fn remove_other_generations(layout: &Layout, current: Generation) -> Result<()> {
    let current = current.to_string();
    let others =
        layout::list(&layout.generations(), |name| (name != current).then(|| name.to_owned()))?;
    others.iter().try_for_each(|(_, dir)| layout::remove_tree(dir))
}

fn read_generation(layout: &Layout) -> Result<Option<Generation>> {
    let path = layout.generation_file();
    match fault::at("log/generation/read").and_then(|()| text_beside(&path)) {
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
            stored.push(Stored::find(Pos { generation, index, offset }, path)?);
        }
        if !stored.is_empty() {
            disk.insert(index, stored);
        }
    }
    Ok(disk)
}

/// The newest WAL in a log that another process writes.
pub struct NewestWal {
    /// Its salts; `None` if nothing was written since the generation began.
    pub salts: Option<Salts>,
    /// Its generation and index, and where its segment files end.
    pub end: Pos,
}

/// Looks into a log that another process writes; `None` if it has no generation, or begins an index
/// at the moment.
pub fn newest_wal(layout: &Layout) -> Result<Option<NewestWal>> {
    let Some(generation) = read_generation(layout)? else { return Ok(None) };
    let indexes = layout::list(&layout.wal(generation), |name| layout::index_of(name, ""))?;
    let Some((index, dir)) = indexes.last() else {
        let end = Pos { generation, ..Pos::default() };
        return Ok(Some(NewestWal { salts: None, end }));
    };
    let mut files = layout::list(dir, layout::offset_of)?;
    let Some((last, last_path)) = files.pop() else { return Ok(None) };
    let first_path = files.first().map_or_else(|| last_path.clone(), |(_, path)| path.clone());
    let pos = |offset| Pos { generation, index: *index, offset };
    let first = Stored::find(pos(Offset::default()), first_path)?;
    let header = WalHeader::decode(&first.head::<WAL_HEADER_SIZE>()?)?;
    let end = Stored::find(pos(last), last_path)?.end();
    Ok(Some(NewestWal { salts: Some(header.salts), end: pos(Offset::new(end)?) }))
}

/// Keeps the newest indexes that are whole and follow each other. An older one that is not is what
/// a deletion leaves that did not finish, or a power loss.
fn drop_before_hole(layout: &Layout, disk: &mut BTreeMap<Index, Vec<Stored>>) -> Result<()> {
    let mut keep_from = None;
    let mut following: Option<Index> = None;
    for (index, stored) in disk.iter().rev() {
        let linked = match following {
            None => true,
            Some(following) => index.next() == following && is_finished(layout, stored)?,
        };
        if !linked || !has_no_hole(stored) {
            break;
        }
        keep_from = Some(*index);
        following = Some(*index);
    }
    if keep_from.is_none() && !disk.is_empty() {
        let why = "the newest WAL index in the log has a hole";
        return Err(Error::new(ErrorKind::Corrupt, why));
    }
    disk.retain(|index, _| keep_from.is_some_and(|from| *index >= from));
    Ok(())
}

/// A large transaction is written in parts. What a process that died left of one goes: the WAL
/// still has it, and history ends at the commit before.
fn drop_open_transaction(disk: &mut BTreeMap<Index, Vec<Stored>>) -> Result<()> {
    let Some((_, stored)) = disk.iter_mut().next_back() else { return Ok(()) };
    let Some(first) = stored.first() else { return Ok(()) };
    let page_size = WalHeader::decode(&first.head::<WAL_HEADER_SIZE>()?)?.page_size;
    while let [_, .., last] = stored.as_slice() {
        if last.load(page_size)?.commit {
            break;
        }
        fault::at("log/segment/remove")
            .and_then(|()| std::fs::remove_file(&last.path))
            .context(|| format!("cannot remove {}", last.path.display()))?;
        sync_folder_of(&last.path)?;
        stored.pop();
    }
    Ok(())
}

/// Whether segments begin at offset 0 and each ends where the next begins.
fn has_no_hole(stored: &[Stored]) -> bool {
    let starts_at_0 = stored.first().is_some_and(|first| first.pos.offset == Offset::default());
    let adjacent = |pair: &[Stored]| match pair {
        [one, next] => one.end() == next.pos.offset.get(),
        _ => false,
    };
    starts_at_0 && stored.windows(2).all(adjacent)
}

/// Whether the index's file `end` says that its last segment is the last.
fn is_finished(layout: &Layout, stored: &[Stored]) -> Result<bool> {
    let Some(last) = stored.last() else { return Ok(false) };
    let path = layout.end_of_index(last.pos.generation, last.pos.index);
    match fault::at("log/end/read").and_then(|()| text_beside(&path)) {
        Ok(text) => Ok(parse_offset(text.trim_end()).is_ok_and(|end| end.get() == last.end())),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(Error::from(error).context(format!("cannot read {}", path.display()))),
    }
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
