//! A snapshot into the new file: one thread reads the frame, several expand its blocks and write
//! them, and the content's checksum is taken in order by whoever has the next block.
//!
//! ```text
//! object -> reader: stored blocks -> workers: expand, write pages nobody put -> content, in order
//! ```
//!
//! A block's place in the file is known before it is expanded because every block but the last is
//! full. A frame of linked blocks, or with a short block in its midst, is read again by one thread.

use std::collections::BTreeMap;
use std::io::{BufReader, Read};
use std::sync::{Arc, Mutex};

use crossbeam_channel::{Receiver, Sender, bounded};

use super::below::Below;
use crate::archive::{Archive, SnapshotObject};
use crate::error::{Context, Error, Result, lock};
use crate::header::HEADER_SIZE;
use crate::host::guard::guard;
use crate::lz4::{Content, Decoder, StoredBlock, StoredBlocks};
use crate::registry;
use crate::wal::PageSize;

/// The largest database SQLite can have, in bytes.
const DATABASE_BYTES_MAX: u64 = u32::MAX as u64 * 65536;
/// Read at once.
const READ_BYTES: usize = 256 << 10;

/// The first bytes of the database in a snapshot: its header, or nothing if it is empty.
pub fn read_header(archive: &Archive, snapshot: &SnapshotObject) -> Result<Vec<u8>> {
    let mut header = Vec::new();
    let frame = open(archive, snapshot)?;
    let wanted = HEADER_SIZE as u64;
    let read = Decoder::new(frame, DATABASE_BYTES_MAX).take(wanted).read_to_end(&mut header);
    read.context(|| name(archive, snapshot))?;
    Ok(header)
}

fn open(archive: &Archive, snapshot: &SnapshotObject) -> Result<BufReader<Box<dyn Read + Send>>> {
    Ok(BufReader::with_capacity(READ_BYTES, archive.open_snapshot(snapshot)?.frame))
}

fn name(archive: &Archive, snapshot: &SnapshotObject) -> String {
    archive.snapshot_key(snapshot).map_or_else(|_| "snapshot".into(), |key| archive.name(&key))
}

/// Writes what the snapshot has of the file's missing pages, on up to `threads` threads. Returns
/// the bytes of the database in it.
pub fn write(
    archive: &Archive,
    snapshot: &SnapshotObject,
    below: &Below,
    page_size: PageSize,
    threads: usize,
) -> Result<u64> {
    let named = |error: Error| error.context(name(archive, snapshot));
    let blocks = StoredBlocks::open(open(archive, snapshot)?, DATABASE_BYTES_MAX).map_err(named)?;
    let size = if blocks.is_independent() {
        Team::write(blocks, below, threads).map_err(named)?
    } else {
        None
    };
    let size = match size {
        Some(size) => size,
        None => write_alone(open(archive, snapshot)?, below).map_err(named)?,
    };
    if !size.is_multiple_of(u64::from(page_size.get())) {
        let why = format!("it holds {size} bytes, which is not a number of whole pages");
        return Err(named(Error::corrupt(why)));
    }
    Ok(size)
}

/// One block after the other. What was tried before may have put blocks in wrong places, so every
/// page is written.
fn write_alone(frame: impl Read, below: &Below) -> Result<u64> {
    let mut content = Decoder::new(frame, DATABASE_BYTES_MAX);
    let (mut offset, mut buffer, mut newer) = (0, Vec::new(), Vec::new());
    loop {
        buffer.clear();
        content.by_ref().take(4 << 20).read_to_end(&mut buffer)?;
        if buffer.is_empty() {
            return Ok(offset);
        }
        below.write(offset, &buffer, true, &mut newer)?;
        offset += buffer.len() as u64;
    }
}

type Job = (u64, StoredBlock);

/// What the workers share.
struct Team {
    below: Below,
    block_size: u64,
    state: Mutex<State>,
    /// One for each block on its way, so that memory holds few.
    tickets: Sender<Vec<u8>>,
}

#[derive(Default)]
struct State {
    content: Content,
    /// The block the content goes on with; `None` while somebody adds it.
    next: Option<u64>,
    waiting: BTreeMap<u64, (StoredBlock, Vec<u8>, usize)>,
    /// What was expanded into, to be used again.
    rooms: Vec<Vec<u8>>,
    /// A block that was not full: the last one, if the frame is regular.
    short: Option<u64>,
    error: Option<Error>,
}

impl Team {
    /// The size of the content; `None` if the frame is not regular.
    fn write(
        mut blocks: StoredBlocks<impl Read>,
        below: &Below,
        threads: usize,
    ) -> Result<Option<u64>> {
        let on_the_way = threads + 2;
        let (tickets, returned) = bounded(on_the_way);
        for _ in 0..on_the_way {
            tickets.send(Vec::new()).map_err(|_| Error::bug("no room for a ticket"))?;
        }
        let state = State { next: Some(0), ..State::default() };
        let team = Arc::new(Team {
            below: below.clone(),
            block_size: blocks.block_size() as u64,
            state: Mutex::new(state),
            tickets,
        });
        let (give, given) = bounded(on_the_way);
        let mut workers = Vec::new();
        for _ in 0..threads {
            let (team, given) = (Arc::clone(&team), given.clone());
            let body = move || team.run(&given);
            workers.push(registry::spawn_worker("litestream-restore", body)?);
        }
        drop(given);
        let read = team.feed(&mut blocks, &give, &returned);
        drop(give);
        workers.into_iter().for_each(registry::join);
        let count = read?;
        let state = std::mem::take(&mut *lock(&team.state));
        if let Some(error) = state.error {
            return Err(error);
        }
        if state.short.is_some_and(|at| at + 1 != count) {
            return Ok(None);
        }
        if state.next != Some(count) {
            return Err(Error::bug("a thread of the restore ended early"));
        }
        state.content.check(blocks.end()?)?;
        Ok(Some(state.content.size()))
    }

    /// Hands out all blocks, and says how many there were.
    fn feed(
        &self,
        blocks: &mut StoredBlocks<impl Read>,
        give: &Sender<Job>,
        returned: &Receiver<Vec<u8>>,
    ) -> Result<u64> {
        let died = || Error::bug("a thread of the restore ended early");
        let mut at = 0;
        loop {
            let room = returned.recv().map_err(|_| died())?;
            if lock(&self.state).error.is_some() {
                return Ok(at);
            }
            match blocks.next(room)? {
                Some(block) => give.send((at, block)).map_err(|_| died())?,
                None => return Ok(at),
            }
            at += 1;
        }
    }

    fn run(&self, given: &Receiver<Job>) {
        let mut newer = Vec::new();
        for (at, block) in given {
            let done = guard("restore", || self.work(at, block, &mut newer));
            if let Err((error, buffer)) = done.map_err(|error| (error, Vec::new())) {
                lock(&self.state).error.get_or_insert(error);
                let _nobody_reads_any_more = self.tickets.try_send(buffer);
            }
        }
    }

    fn work(&self, at: u64, block: StoredBlock, newer: &mut Vec<u8>) -> Result<()> {
        let mut room = lock(&self.state).rooms.pop().unwrap_or_default();
        let bytes = block.content(&mut room)?;
        let (len, is_full) = (bytes.len(), bytes.len() as u64 == self.block_size);
        let last = u64::MAX / self.block_size;
        self.below.write(at.min(last) * self.block_size, bytes, false, newer)?;
        let mut state = lock(&self.state);
        if !is_full {
            // Of two, the first.
            state.short = Some(state.short.map_or(at, |short| short.min(at)));
        }
        state.waiting.insert(at, (block, room, len));
        while let Some(next) = state.next {
            let Some((block, expanded, len)) = state.waiting.remove(&next) else { break };
            state.next = None;
            let mut content = std::mem::take(&mut state.content);
            drop(state);
            content.add(block.expanded(&expanded, len));
            let _nobody_reads_any_more = self.tickets.try_send(block.into_buffer());
            state = lock(&self.state);
            state.rooms.push(expanded);
            state.content = content;
            state.next = Some(next + 1);
        }
        Ok(())
    }
}
