//! Reads new frames from the WAL, proves them and appends them to the log.
//!
//! A frame is taken if and only if it is at or before the published `mxFrame`, its salts are the
//! WAL's and its checksum continues the chain; and the chain at `mxFrame` must equal the header's
//! own checksum. `mxFrame` is always the end of a transaction, so nothing uncommitted is ever read.
//!
//! After a restart the wal-index shows new salts and `mxFrame` 0 before the WAL's header is
//! written, and the salts may change once more. The old end stays our position until the first
//! commit of the new WAL.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use super::pin::LetGo;
use super::{Counters, policy, view::View};
use crate::error::{Context, Error, ErrorKind, Result, lock, try_lock};
use crate::fault;
use crate::host::file::Door;
use crate::log::{Log, Pack, SEGMENT_BYTES_MAX, Segment, Tip};
use crate::pos::{Offset, Pos};
use crate::wal::{self, Chain, PageSize, WAL_HEADER_SIZE, WalHeader};
use crate::walindex::IndexHeader;

/// A torn header is normal for microseconds while a writer publishes.
const TORN_PATIENCE: Duration = Duration::from_millis(5);

/// How often one who cannot wait for ever asks for the scanner.
const LOCK_POLL: Duration = Duration::from_micros(50);

/// What a look at the WAL brought.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Progress {
    /// Nothing new.
    Nothing,
    /// This many frames were appended to the log.
    Captured(u32),
    /// The header's copies differ: a writer is publishing, or died doing so.
    Torn,
}

/// A scanner for several threads. Who follows every commit has it most of the time, and a mutex
/// alone would give it to him again and again: he gives way to those who wait.
pub(super) struct ScannerLock {
    scanner: Mutex<Scanner>,
    waiting: AtomicU32,
}

impl ScannerLock {
    pub(super) fn new(scanner: Scanner) -> ScannerLock {
        ScannerLock { scanner: Mutex::new(scanner), waiting: AtomicU32::new(0) }
    }

    /// Waits for it, for about as long as a segment takes.
    pub(super) fn lock(&self) -> MutexGuard<'_, Scanner> {
        self.waiting.fetch_add(1, Ordering::AcqRel);
        let scanner = lock(&self.scanner);
        self.waiting.fetch_sub(1, Ordering::AcqRel);
        scanner
    }

    /// The same, but gives up at `deadline`.
    pub(super) fn lock_until(&self, deadline: Instant) -> Option<MutexGuard<'_, Scanner>> {
        self.waiting.fetch_add(1, Ordering::AcqRel);
        let scanner = loop {
            match try_lock(&self.scanner) {
                None if Instant::now() < deadline => std::thread::sleep(LOCK_POLL),
                scanner => break scanner,
            }
        };
        self.waiting.fetch_sub(1, Ordering::AcqRel);
        scanner
    }

    /// Captures until somebody else wants to. `None`: somebody does already.
    pub(super) fn catch_up_meanwhile(&self, counters: &Counters) -> Result<Option<Progress>> {
        let alone = || self.waiting.load(Ordering::Acquire) == 0;
        let scanner = if alone() { try_lock(&self.scanner) } else { None };
        scanner.map(|mut scanner| scanner.catch_up(counters, alone)).transpose()
    }
}

/// The reader of one WAL.
pub(super) struct Scanner {
    view: View,
    wal: File,
    log: Arc<Log>,
    page_size: PageSize,
    tip: Tip,
    frame: u32,
    let_go: LetGo,
}

impl Scanner {
    /// Reads on from `tip`, `frame` frames into its index, until the WAL is let go.
    pub(super) fn new(
        door: &Arc<Door>,
        log: &Arc<Log>,
        tip: Tip,
        frame: u32,
        let_go: LetGo,
    ) -> Result<Scanner> {
        let path = door.wal_path();
        let wal = fault::at("capture/wal/open")
            .and_then(|()| File::open(path))
            .context(|| format!("cannot open {}", path.display()))?;
        let page_size = door.page_size();
        let view = View::open(door)?;
        let log = Arc::clone(log);
        Ok(Scanner { view, wal, log, page_size, tip, frame, let_go })
    }

    /// Where it has read to.
    pub(super) fn tip(&self) -> Tip {
        self.tip
    }

    /// Frames of the current WAL that are captured.
    pub(super) fn frames(&self) -> u32 {
        self.frame
    }

    /// Whether all the header tells of is captured.
    pub(super) fn is_at(&self, header: &IndexHeader) -> bool {
        let same = self.tip.chain.is_some_and(|chain| chain.salts == header.file_salts());
        same && self.frame == header.max_frame
    }

    /// Captures up to the published end, or up to the end of a segment where it shall not go on.
    fn catch_up(&mut self, counters: &Counters, goes_on: impl Fn() -> bool) -> Result<Progress> {
        let Some(header) = self.view.header() else { return Ok(Progress::Torn) };
        if self.let_go.is_set() {
            // Another WAL may have come and gone unseen; whatever follows our end here would hide
            // the gap, and the next session would prove itself on the far side of it.
            let why = "the WAL was let go; capture begins again where it can be proved";
            return Err(Error::new(ErrorKind::Stopped, why));
        }
        let ours = self.tip.chain.is_some_and(|chain| chain.salts == header.file_salts());
        let from = if ours { self.frame } else { 0 };
        if header.max_frame == from {
            return Ok(Progress::Nothing);
        }
        if header.max_frame < from {
            let why = format!("the WAL went back from frame {from} to {}", header.max_frame);
            return Err(Error::new(ErrorKind::ChecksumMismatch, why));
        }
        if !ours {
            self.enter_new_wal(&header)?;
        }
        let started = self.tip.pos;
        let mut commits = 0;
        while self.frame < header.max_frame && (self.frame == from || goes_on()) {
            commits += self.read_some(&header)?;
            // Here and not after the loop: one transaction may be larger than memory should hold.
            if self.log.unflushed_bytes() > policy::UNFLUSHED_BYTES_MAX {
                self.log.flush(Pack::Stored, false)?;
            }
        }
        counters.commits.fetch_add(u64::from(commits), Ordering::Relaxed);
        let end = self.tip.chain.map(|chain| chain.checksum);
        if self.frame == header.max_frame && end != Some(header.frame_checksum()) {
            let why = format!("the WAL's checksum at {} is not its index's", self.tip.pos);
            return Err(Error::new(ErrorKind::ChecksumMismatch, why));
        }
        let bytes = self.tip.pos.offset.get().saturating_sub(started.offset.get());
        counters.wal_bytes.fetch_add(bytes, Ordering::Relaxed);
        counters.wal_frames.store(u64::from(self.frame), Ordering::Relaxed);
        Ok(Progress::Captured(self.frame - from))
    }

    /// Captures up to the end published now, waiting out a writer in the act of publishing.
    pub(super) fn catch_up_now(&mut self, counters: &Counters) -> Result<()> {
        let deadline = Instant::now() + TORN_PATIENCE;
        while self.catch_up(counters, || true)? == Progress::Torn {
            if Instant::now() > deadline {
                let why = "a writer died while publishing a commit; recovery is under way";
                return Err(Error::new(ErrorKind::Busy, why));
            }
            std::thread::yield_now();
        }
        Ok(())
    }

    /// The WAL was restarted: its header starts the next index, and goes into a file at once.
    /// Whoever begins after a kill -9 can then prove that this WAL followed the one before.
    fn enter_new_wal(&mut self, index: &IndexHeader) -> Result<()> {
        let mut bytes = [0u8; WAL_HEADER_SIZE];
        self.read_exact_at(&mut bytes, 0)?;
        let header = WalHeader::decode(&bytes)?;
        if header.salts != index.file_salts() || header.page_size != self.page_size {
            let why = "the WAL's header is not the one its index names";
            return Err(Error::new(ErrorKind::ChecksumMismatch, why));
        }
        let change = self.log.change_at(self.tip.pos);
        if self.tip.chain.is_some() {
            self.tip.pos =
                Pos { index: self.tip.pos.index.next(), offset: Offset::default(), ..self.tip.pos };
        }
        let chain = Chain::start(&header);
        let segment = Segment::new(self.tip.pos, bytes.to_vec(), true, self.log.now());
        let end = segment.end();
        self.log.append_counted(segment, chain, change)?;
        self.tip = Tip { pos: end, chain: Some(chain) };
        self.frame = 0;
        self.log.flush(Pack::Stored, false)
    }

    /// Reads, proves and appends at most one segment: whole transactions if one ends inside it.
    /// Says how many.
    fn read_some(&mut self, header: &IndexHeader) -> Result<u32> {
        let Some(chain) = self.tip.chain else { return Err(Error::no_wal_segments()) };
        let frame_size = self.page_size.frame_size();
        let room = u32::try_from(SEGMENT_BYTES_MAX / frame_size).unwrap_or(u32::MAX);
        let wanted = (header.max_frame - self.frame).min(room);
        let len = frame_size * usize::try_from(wanted).unwrap_or(0);

        let mut raw = Vec::with_capacity(len);
        self.read_more_at(&mut raw, len, self.tip.pos.offset.get())?;

        let scan = wal::scan(chain, &raw);
        if scan.frames != wanted {
            let why = format!("frame {} does not continue the WAL", self.frame + scan.frames + 1);
            return Err(Error::new(ErrorKind::ChecksumMismatch, why));
        }
        // Cut after the last commit; a transaction that fills the segment is split instead.
        let (taken, chain, commit) = match scan.committed_frames {
            0 => (scan.frames, scan.end, false),
            committed => (committed, scan.committed, true),
        };
        raw.truncate(frame_size * usize::try_from(taken).unwrap_or(0));
        let segment = Segment::new(self.tip.pos, raw, commit, self.log.now());
        let end = segment.end();
        let is_last = self.frame + taken == header.max_frame;
        self.log.append_counted(segment, chain, is_last.then_some(header.change))?;
        self.tip = Tip { pos: end, chain: Some(chain) };
        self.frame += taken;
        Ok(scan.commits)
    }

    /// Fills an empty buffer that nobody has to zero before.
    fn read_more_at(&self, buffer: &mut Vec<u8>, len: usize, offset: u64) -> Result<()> {
        let what = || format!("cannot read {len} bytes of the WAL at {offset}");
        fault::at("capture/wal/read").context(what)?;
        while buffer.len() < len {
            let at = offset + u64::try_from(buffer.len()).unwrap_or(u64::MAX);
            match rustix::io::pread(&self.wal, rustix::buffer::spare_capacity(buffer), at) {
                Ok(0) => return Err(Error::new(ErrorKind::Io, "it is shorter")).context(what),
                Ok(_) | Err(rustix::io::Errno::INTR) => {}
                Err(error) => return Err(std::io::Error::from(error)).context(what),
            }
        }
        // A buffer may have more room than was asked for.
        buffer.truncate(len);
        Ok(())
    }

    fn read_exact_at(&self, buffer: &mut [u8], offset: u64) -> Result<()> {
        fault::at("capture/wal/read")
            .and_then(|()| self.wal.read_exact_at(buffer, offset))
            .context(|| format!("cannot read {} bytes of the WAL at {offset}", buffer.len()))
    }
}
