//! The replica's WAL writer: pages in, transactions visible to every reader out.
//!
//! The replica has an ordinary WAL with salts and checksums of its own; SQLite in any process reads
//! it and no reader needs this library. An [`Applier`] holds WAL_WRITE_LOCK for as long as it
//! lives, so all other writers get "database is locked".
//!
//! ```text
//! stage(page)*  ->  commit(page count, upstream position)   one transaction of ours, or
//!               ->  discard()                               nothing happened
//! ```
//!
//! A commit: intent (intents.rs), frames into the WAL, entries into the wal-index, header. Before
//! the header is published nothing is visible; the intent is on file before the frames, so a crash
//! leaves a WAL whose position is known. More pages than fit a batch are written as frames that do
//! not commit.
//!
//! The WAL file is written with `std::fs`: it carries no locks, and cannot be unlinked while the
//! door is open. The database file is only ever written by checkpoints (keeper.rs).

use std::fs::{File, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::dir::{PositionFile, ReplicaDir};
use super::found::{local_state, published_chain, read_wal_header, take_write_lock};
use super::frames::Batch;
use super::index::{Gauge, WalIndex};
use super::intents::{Intents, LocalState, UpstreamPos};
use crate::error::{Context, Error, ErrorKind, Result};
use crate::fault;
use crate::files::sync_folder_of;
use crate::host::api::random;
use crate::host::file::{Door, Mode, ShmLock};
use crate::pages::Frozen;
use crate::pos::Pos;
use crate::wal::{ByteOrder, Chain, PageSize, PageSum, WAL_FRAME_HEADER_SIZE, WalHeader, wal_size};
use crate::walindex::{IndexHeader, LOCK_CKPT, encode_page_size, lock_read};

/// How long readers may keep every slot from us.
const FREEZE_MAX: Duration = Duration::from_millis(500);
/// Between two tries meanwhile.
const FREEZE_POLL: Duration = Duration::from_micros(500);

/// A WAL file longer than this is cut when it restarts, in bytes.
const WAL_KEEP_BYTES: u64 = 16 << 20;

/// The one writer of a replica.
pub struct Applier {
    door: Arc<Door>,
    index: WalIndex,
    wal: File,
    intents: Arc<Intents>,
    position: PositionFile,
    page_size: PageSize,
    /// As it was last published.
    header: IndexHeader,
    /// What recovery would find; none: a WAL that is not ours.
    local: Option<LocalState>,
    /// What is published; none: unknown.
    upstream: Option<UpstreamPos>,
    /// The end of the published frames; none: the WAL's header is to be written first.
    published: Option<Chain>,
    /// The same, with frames of the transaction under way that did not fit the batch.
    written: Option<Chain>,
    /// How many of these there are.
    spilled: u32,
    /// Bytes may be after the published frames.
    is_torn: bool,
    checkpoint_seq: u32,
    batch: Batch,
    /// Dropped last but one: the lock goes when nothing is written any more.
    _write: ShmLock,
}

impl Applier {
    /// Opens a database in WAL mode for applying and finds out where in the upstream's history it
    /// is.
    pub fn open(path: &Path, vfs: &str, dir: &ReplicaDir) -> Result<Self> {
        let door = Door::open(path, vfs)?;
        let mut index = WalIndex::open(&door)?;
        let (write, header) = take_write_lock(&door, &index, path, vfs)?;
        let mut options = OpenOptions::new();
        let options = options.read(true).write(true).create(true).truncate(false);
        let wal = fault::at("follow/wal/open")
            .and_then(|()| options.open(door.wal_path()))
            .context(|| format!("cannot open {}", door.wal_path().display()))?;
        // SQLite syncs the name of a WAL only through the connection that made it, which is the
        // door's as a rule; checkpoints are another's. A WAL that vanishes after half a checkpoint
        // leaves half a state.
        sync_folder_of(door.wal_path())?;
        let on_file = read_wal_header(&wal)?;
        index.clean_above(header.max_frame)?;
        let local = local_state(&header, on_file.as_ref());
        let published = match header.max_frame {
            0 => None,
            _ => Some(published_chain(&header, on_file.as_ref())?),
        };
        let (intents, upstream) = Intents::open(dir.path(), local)?;
        let page_size = door.page_size();
        let applier = Self {
            index,
            wal,
            intents: Arc::new(intents),
            position: dir.position_file()?,
            page_size,
            header,
            local,
            upstream,
            published,
            written: published,
            spilled: 0,
            is_torn: false,
            checkpoint_seq: on_file.map_or(0, |header| header.checkpoint_seq),
            batch: Batch::new(page_size),
            _write: write,
            door,
        };
        match applier.upstream {
            Some(upstream) => applier.position.write(upstream.pos)?,
            // What stands there was said of other content.
            None => applier.position.forget()?,
        }
        Ok(applier)
    }

    /// The position of what readers see, if it is known.
    pub fn upstream(&self) -> Option<UpstreamPos> {
        self.upstream
    }

    /// The position of what readers see, if it is known.
    pub fn pos(&self) -> Option<Pos> {
        self.upstream.map(|upstream| upstream.pos)
    }

    /// Tells other processes no position until the next commit.
    pub fn forget_position(&self) -> Result<()> {
        self.position.forget()
    }

    /// The database is not what its WAL says it is: its position is not known any more.
    pub fn distrust(&mut self) {
        self.upstream = None;
    }

    /// Bytes of a page.
    pub fn page_size(&self) -> PageSize {
        self.page_size
    }

    /// Frames readers see.
    pub fn max_frame(&self) -> u32 {
        self.header.max_frame
    }

    /// For the checkpointer: what to look at, and what to sync before it.
    pub fn for_keeper(&self) -> (Gauge, Arc<Intents>) {
        (self.index.gauge().clone(), Arc::clone(&self.intents))
    }

    /// Bytes of pages staged since the last commit and held in memory.
    pub fn staged_bytes(&self) -> usize {
        self.batch.len_bytes()
    }

    /// Frames of the transaction under way that are in the WAL already.
    pub fn spilled(&self) -> u32 {
        self.spilled
    }

    /// Takes a page of the next commit. `page` is one page long; `sum` is what it adds to a chain,
    /// if that is known.
    pub fn stage(&mut self, page_no: u32, page: &[u8], sum: Option<PageSum>) -> Result<()> {
        if page.len() != self.page_size.bytes() || page_no == 0 {
            return Err(Error::bug(format!("page {page_no} of {} bytes staged", page.len())));
        }
        if self.batch.is_full() && !self.batch.contains(page_no) {
            self.spill()?;
        }
        self.batch.put(page_no, page, sum);
        Ok(())
    }

    /// Publishes everything staged as one transaction, after which the database has `page_count`
    /// pages and is at `upstream`. Without pages only the position moves.
    pub fn commit(&mut self, page_count: u32, upstream: UpstreamPos) -> Result<()> {
        let done = self.try_commit(page_count, upstream);
        if done.is_err() {
            self.discard();
        }
        done
    }

    fn try_commit(&mut self, page_count: u32, upstream: UpstreamPos) -> Result<()> {
        if self.batch.is_empty() && self.spilled == 0 {
            if let Some(local) = self.local {
                self.intents.append(upstream, local)?;
            }
            self.upstream = Some(upstream);
            return self.position.write(upstream.pos);
        }
        if page_count == 0 {
            return Err(Error::bug("a commit that leaves no pages"));
        }
        let first = self.next_frame()?;
        let mut chain = self.begun_wal()?;
        self.batch.seal(&mut chain, page_count);
        let max_frame = self.frame_after(first, self.batch.numbers().len())? - 1;
        let local = LocalState { salts: chain.salts, max_frame, checksum: chain.checksum };
        self.intents.append(upstream, local)?;
        self.is_torn = true;
        self.write_out(first)?;
        self.enter(first)?;

        let mut header = self.header;
        header.is_init = 1;
        header.change = header.change.wrapping_add(1);
        header.page_size_raw = encode_page_size(self.page_size);
        header.big_endian_checksum = u8::from(chain.order == ByteOrder::Big);
        header.max_frame = max_frame;
        header.page_count = page_count;
        header.set_file_salts(chain.salts);
        header.set_frame_checksum(chain.checksum);
        self.index.publish(&header);
        self.header = header;
        self.local = Some(local);
        self.upstream = Some(upstream);
        self.published = Some(chain);
        self.written = self.published;
        (self.spilled, self.is_torn) = (0, false);
        self.batch.clear();
        self.position.write(upstream.pos)
    }

    /// Forgets what was staged since the last commit, and gives its room on the disk back.
    pub fn discard(&mut self) {
        self.batch.clear();
        self.written = self.published;
        if std::mem::take(&mut self.spilled) > 0 {
            // Entries that stay are found, and removed, when their places are needed.
            let _ = self.index.clean_above(self.header.max_frame);
        }
        if std::mem::take(&mut self.is_torn) {
            // Nobody reads what is after the last commit. What stays is written over.
            let end = wal_size(self.page_size, u64::from(self.header.max_frame));
            if self.wal.metadata().is_ok_and(|meta| meta.len() > end) {
                let _ = self.wal.set_len(end);
            }
        }
    }

    /// Puts the header back if somebody damaged it: readers wait for seconds otherwise.
    pub fn heal(&self) -> bool {
        let damaged = !self.index.gauge().shows(&self.header);
        if damaged {
            self.index.publish(&self.header);
        }
        damaged
    }

    /// Whether every frame readers see is in the database too.
    pub fn is_checkpointed(&self) -> bool {
        self.index.gauge().backfill() == self.header.max_frame
    }

    /// Starts the WAL over if all of it is checkpointed and nobody reads from it; whether it did.
    /// Nothing may be staged.
    pub fn try_restart(&mut self) -> Result<bool> {
        if self.header.max_frame == 0 || self.spilled > 0 || !self.is_checkpointed() {
            return Ok(false);
        }
        let Some(_checkpoint) = self.door.try_lock(LOCK_CKPT, 1, Mode::Exclusive)? else {
            return Ok(false);
        };
        let Some(_readers) = self.door.try_lock(lock_read(1), 4, Mode::Exclusive)? else {
            return Ok(false);
        };
        if !self.is_checkpointed() {
            return Ok(false);
        }
        let [salt_1, _] = self.header.file_salts();
        let salts = [salt_1.wrapping_add(1), random()];
        if let Some(upstream) = self.upstream {
            self.intents.begin(upstream, LocalState::empty(salts))?;
        }
        let mut header = self.header;
        header.max_frame = 0;
        header.set_file_salts(salts);
        self.index.restart_marks();
        self.index.publish(&header);
        self.header = header;
        self.local = Some(LocalState::empty(salts));
        self.published = None;
        self.written = None;
        let length = self.wal.metadata().map_or(0, |meta| meta.len());
        if length > WAL_KEEP_BYTES {
            fault::at("follow/wal/truncate")
                .and_then(|()| self.wal.set_len(0))
                .context(|| self.what("truncate"))?;
        }
        self.write_header(salts)?;
        Ok(true)
    }

    /// What page `page_no` holds for readers now: whether there is such a page, then in `page`.
    pub fn read_page(&mut self, page_no: u32, page: &mut [u8]) -> Result<bool> {
        if self.header.max_frame > 0 && page_no > self.header.page_count {
            return Ok(false);
        }
        if let Some(frame) = self.index.find(page_no, self.header.max_frame)? {
            let at = frame_offset(self.page_size, frame) + WAL_FRAME_HEADER_SIZE as u64;
            fault::at("follow/wal/read")
                .and_then(|()| self.wal.read_exact_at(page, at))
                .context(|| self.what("read"))?;
            return Ok(true);
        }
        let at = u64::from(page_no - 1) * u64::from(self.page_size.get());
        Ok(self.door.read_db(page, at)? == page.len())
    }

    /// What readers see, to be read through `door` while applying goes on.
    pub fn freeze(&self, door: &Arc<Door>) -> Result<Frozen> {
        let deadline = Instant::now() + FREEZE_MAX;
        loop {
            let shown = Frozen::header_of(door)?;
            let ours = |header: &IndexHeader| header.encode() == self.header.encode();
            if let Some(header) = shown.filter(ours)
                && let Some(frozen) = Frozen::try_new(door, &header)?
            {
                return Ok(frozen);
            }
            if Instant::now() >= deadline {
                let why = "readers hold every slot of the WAL, or somebody damaged its index";
                return Err(Error::new(ErrorKind::Busy, why));
            }
            std::thread::sleep(FREEZE_POLL);
        }
    }

    /// Size of what readers see, in pages.
    pub fn page_count(&self) -> Result<u32> {
        if self.header.max_frame > 0 {
            return Ok(self.header.page_count);
        }
        let pages = self.door.db_size()? / u64::from(self.page_size.get());
        u32::try_from(pages).map_err(|_| Error::corrupt("the database has too many pages"))
    }

    /// Writes the batch as frames that do not commit, and empties it.
    fn spill(&mut self) -> Result<()> {
        let first = self.next_frame()?;
        let mut chain = self.begun_wal()?;
        self.batch.seal(&mut chain, 0);
        self.frame_after(first, self.batch.numbers().len())?;
        self.is_torn = true;
        self.write_out(first)?;
        self.enter(first)?;
        let frames = u32::try_from(self.batch.numbers().len()).unwrap_or(u32::MAX);
        self.spilled = self.spilled.saturating_add(frames);
        self.written = Some(chain);
        self.batch.clear();
        Ok(())
    }

    /// The end of the WAL; writes its header first if it has none yet.
    fn begun_wal(&mut self) -> Result<Chain> {
        if let Some(chain) = self.written {
            return Ok(chain);
        }
        let salts = [random(), random()];
        if let Some(upstream) = self.upstream {
            self.intents.begin(upstream, LocalState::empty(salts))?;
        }
        self.write_header(salts)
    }

    /// Writes the header of a WAL without frames and waits until it is on disk: stale frames of an
    /// older WAL after a header that was lost would be taken for history.
    fn write_header(&mut self, salts: [u32; 2]) -> Result<Chain> {
        self.checkpoint_seq = self.checkpoint_seq.wrapping_add(1);
        let header = WalHeader::new(ByteOrder::NATIVE, self.page_size, self.checkpoint_seq, salts);
        let write = |bytes: &[u8]| self.wal.write_all_at(bytes, 0);
        fault::write("follow/wal/begin", &header.encode(), write)
            .and_then(|()| fault::at("follow/wal/sync"))
            .and_then(|()| self.wal.sync_data())
            .context(|| self.what("write"))?;
        let chain = Chain::start(&header);
        self.published = Some(chain);
        self.written = Some(chain);
        Ok(chain)
    }

    fn write_out(&self, first: u32) -> Result<()> {
        let at = frame_offset(self.page_size, first);
        let write = |frames: &[u8]| self.wal.write_all_at(frames, at);
        fault::write("follow/wal/write", self.batch.frames(), write).context(|| self.what("write"))
    }

    fn enter(&mut self, first: u32) -> Result<()> {
        for (frame, page_no) in (first..).zip(self.batch.numbers()) {
            self.index.insert(frame, *page_no)?;
        }
        Ok(())
    }

    fn next_frame(&self) -> Result<u32> {
        self.frame_after(self.header.max_frame, 1)?.checked_add(self.spilled).ok_or_else(too_long)
    }

    fn frame_after(&self, frame: u32, count: usize) -> Result<u32> {
        let count = u32::try_from(count).ok();
        count.and_then(|count| frame.checked_add(count)).ok_or_else(too_long)
    }

    fn what(&self, verb: &str) -> String {
        format!("cannot {verb} {}", self.door.wal_path().display())
    }
}

fn too_long() -> Error {
    Error::new(ErrorKind::Unsupported, "the WAL has too many frames")
}

/// Where frame `frame`, counted from 1, is in the WAL.
fn frame_offset(page_size: PageSize, frame: u32) -> u64 {
    wal_size(page_size, u64::from(frame.saturating_sub(1)))
}
