//! The start of a session: the locks, then proof that the WAL continues the log, else a new
//! generation.
//!
//! The log's end is (salts, frame, checksum). The WAL continues it if and only if its header has
//! those salts, it is at least that long, and its frame there has that checksum; the frames after
//! it are then proved one by one as always. A WAL that started over meanwhile continues it under
//! the conditions of [`super::rejoin`]. Nothing else proves anything: salts of a restarted WAL may
//! be random.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::pin::Pin;
use super::rejoin::rejoin;
use super::scanner::Scanner;
use super::{Shared, State, policy};
use crate::error::{Context, Error, ErrorKind, Result};
use crate::fault;
use crate::files::sync_folder_of;
use crate::host::api;
use crate::host::conn::Connection;
use crate::host::file::Door;
use crate::log::{SnapshotWriter, Tip};
use crate::pos::{Generation, Pos};
use crate::registry::{self, Level};
use crate::wal::{FrameHeader, WAL_FRAME_HEADER_SIZE, WAL_HEADER_SIZE};

/// How long others' checkpoints may keep us from starting.
const START_BUDGET: Duration = Duration::from_secs(10);
/// How long a writer may take to publish a commit it has written.
const PROVE_BUDGET: Duration = Duration::from_millis(100);
/// Bytes of the database read at once for a snapshot.
const COPY_BYTES: usize = 1 << 20;

/// A session's parts, made in the order they depend on each other.
pub(super) struct Begun {
    pub(super) door: Arc<Door>,
    pub(super) pin: Pin,
    pub(super) sql: Connection,
    pub(super) scanner: Scanner,
    /// The log has no snapshot for this generation yet.
    pub(super) fresh: bool,
}

/// Opens the connections, takes the locks and finds the place to go on from.
pub(super) fn begin(shared: &Shared) -> Result<Begun> {
    let path = &shared.config.path;
    let sql = Connection::open(path, &shared.config.vfs, false)?;
    sql.busy_timeout(2000)?;
    become_wal(&sql)?;
    sql.execute("PRAGMA wal_autocheckpoint=0; PRAGMA synchronous=NORMAL")?;
    sql.busy_timeout(0)?;
    let door = Door::open(path, &shared.config.vfs)?;
    // SQLite syncs the name of a WAL only through the connection that made it. If that is ours, the
    // application's commits would be in a file whose name a power loss may take.
    sync_folder_of(door.wal_path())?;
    let pin = Pin::new(&door)?;
    lock_down(shared, &pin, &sql)?;
    let (tip, frame, fresh) = match shared.log.tip().filter(|_| !shared.log.snapshots().is_empty())
    {
        Some(tip) => match prove(&door, &pin, tip)? {
            Ok(frame) if shared.log.damage().is_none() => (tip, frame, false),
            Ok(_) => begin_generation(shared, &door, "the log was given up"),
            Err(why) => match rejoin(shared, &door, &pin, tip)? {
                Some(tip) if shared.log.damage().is_none() => (tip, 0, false),
                _ => begin_generation(shared, &door, why),
            },
        },
        None => begin_generation(shared, &door, "the log is empty"),
    };
    let scanner = Scanner::new(&door, &shared.log, tip, frame, pin.let_go())?;
    Ok(Begun { door, pin, sql, scanner, fresh })
}

/// Puts the database in WAL mode if it is not.
fn become_wal(sql: &Connection) -> Result<()> {
    let mode = sql.query_text("PRAGMA journal_mode=WAL").map_err(|error| {
        // Not Busy: the statement that makes the call may be in the way, and would wait for itself.
        Error::new(ErrorKind::Refused, error.to_string()).context(
            "cannot switch the database to WAL mode, which needs it to be free for a moment (a \
             statement that reads it, even the one that makes this call, keeps it busy)",
        )
    });
    let mode = mode?.unwrap_or_default();
    if mode.eq_ignore_ascii_case("wal") {
        return Ok(());
    }
    let why = format!("the database stays in journal mode {mode}; replication needs WAL mode");
    Err(Error::new(ErrorKind::Refused, why))
}

/// A slot first, so that nothing restarts while we wait for WAL_CKPT_LOCK. A RESTART or TRUNCATE of
/// the application that has that lock waits for our slot too, and every writer waits for it: if
/// nothing is committed meanwhile, it goes first.
fn lock_down(shared: &Shared, pin: &Pin, sql: &Connection) -> Result<()> {
    let deadline = Instant::now() + START_BUDGET;
    let mut seen = None;
    loop {
        let ready = pin.take_slot()? && pin.take_checkpoint(Duration::from_millis(20))?;
        if ready && pin.view().header().is_some() {
            return Ok(());
        }
        if ready {
            // Nobody finished publishing: recovery needs the lock we hold.
            pin.step_aside();
            sql.query_i64("SELECT count(*) FROM sqlite_schema")?;
        } else {
            let commits = pin.view().header().map(|header| header.change);
            if std::mem::replace(&mut seen, commits) == commits {
                pin.step_aside();
            }
        }
        if Instant::now() >= deadline || shared.stopping() {
            let why = "others checkpoint this database without end, or hold every read slot";
            return Err(Error::new(ErrorKind::Busy, why));
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// How many frames of the WAL are the log's, or why it does not continue the log.
fn prove(door: &Arc<Door>, pin: &Pin, tip: Tip) -> Result<std::result::Result<u32, &'static str>> {
    // Torn for a moment is a writer publishing; torn for longer, recovery needs the locks we hold.
    let deadline = Instant::now() + PROVE_BUDGET;
    let header = loop {
        if let Some(header) = pin.view().header() {
            break header;
        }
        if Instant::now() >= deadline {
            return Err(Error::new(ErrorKind::Busy, "a writer died while publishing a commit"));
        }
        std::thread::sleep(Duration::from_micros(50));
    };
    let Some(chain) = tip.chain else {
        // A snapshot and no commit since: only an empty history can continue there, and an empty
        // WAL does not say how often it was restarted.
        return Ok(Err("the log holds no commit to continue from"));
    };
    if chain.salts != header.file_salts() || chain.page_size != door.page_size() {
        return Ok(Err("the WAL was restarted while nobody captured it"));
    }
    let end = tip.pos.offset.get();
    let header_size = u64::try_from(WAL_HEADER_SIZE).unwrap_or(u64::MAX);
    let frame_size = u64::try_from(chain.page_size.frame_size()).unwrap_or(u64::MAX);
    let frames = end.checked_sub(header_size).map(|bytes| bytes / frame_size);
    let Some(frames) = frames.and_then(|frames| u32::try_from(frames).ok()) else {
        return Ok(Err("the log ends inside the WAL's header"));
    };
    if frames > header.max_frame {
        return Ok(Err("the WAL is shorter than the log"));
    }
    if frames == 0 {
        return Ok(Ok(0));
    }
    let mut bytes = [0u8; WAL_FRAME_HEADER_SIZE];
    fault::at("capture/wal/prove")
        .and_then(|()| File::open(door.wal_path())?.read_exact_at(&mut bytes, end - frame_size))
        .context(|| format!("cannot read {}", door.wal_path().display()))?;
    let frame = FrameHeader::decode(&bytes);
    let same = frame.salts == chain.salts && frame.checksum == chain.checksum;
    Ok(if same { Ok(frames) } else { Err("the WAL has other commits than the log") })
}

fn begin_generation(shared: &Shared, door: &Arc<Door>, why: &str) -> (Tip, u32, bool) {
    let mut bits = [0u8; 8];
    let mut generation = Generation::ZERO;
    while generation.is_zero() {
        api::randomness(&mut bits);
        generation = Generation::from_bits(u64::from_be_bytes(bits));
    }
    let message = format!("new generation {generation}: {why}");
    registry::log(Level::Info, &shared.config.path, &message);
    shared.log.begin_generation(generation, door.page_size());
    (Tip { pos: Pos { generation, ..Pos::default() }, chain: None }, 0, true)
}

/// Copies the database into the log while no checkpoint can change it. Writers go on. It is not on
/// the disk yet, and not in the log: that takes no lock on the database, see [`finish`].
///
/// The caller holds WAL_CKPT_LOCK and has just captured up to the published end.
pub(super) fn copy(shared: &Shared, pin: &Pin, door: &Door, at: Pos) -> Result<SnapshotWriter> {
    let before = shared.status_before_snapshot();
    let created_at = shared.log.now();
    let page = u64::from(door.page_size().get());
    // Part of a page at the end is what a crash while growing leaves; no reader looks at it.
    let size = door.db_size()? / page * page;
    if size == 0 {
        return Err(Error::new(ErrorKind::Corrupt, "the database file has no whole page"));
    }
    let mut writer = shared.log.snapshot_writer(at.index, size, created_at)?;
    let mut buffer = vec![0u8; COPY_BYTES];
    let mut offset = 0;
    while offset < size {
        if shared.stopping() {
            return Err(Error::new(ErrorKind::Stopped, "stopped during a snapshot"));
        }
        pin.keep_alive()?;
        if pin.is_torn() {
            // Nobody can read until the index is recovered, which needs the lock held here.
            let why = "a writer died while publishing a commit; the snapshot is taken again";
            return Err(Error::new(ErrorKind::Busy, why));
        }
        let wanted = usize::try_from(size - offset).unwrap_or(COPY_BYTES).min(COPY_BYTES);
        let Some(part) = buffer.get_mut(..wanted) else { break };
        let read = door.read_db(part, offset)?;
        if read != wanted {
            let why = format!("the database ended at {} of {size} bytes", offset);
            return Err(Error::new(ErrorKind::Io, why));
        }
        writer.write(part)?;
        offset += u64::try_from(read).unwrap_or(u64::MAX);
    }
    shared.set_state(before);
    Ok(writer)
}

/// Brings a copy to the disk and into the log, and trims that to its bound. A disk may take its
/// time for both.
pub(super) fn finish(shared: &Shared, copy: SnapshotWriter, bytes_max: u64) -> Result<Pos> {
    let snapshot = shared.log.add_snapshot(copy)?;
    shared.log.flush(policy::pack(shared.log.unflushed_bytes()), false)?;
    shared.log.trim(bytes_max)?;
    Ok(snapshot.pos())
}

impl Shared {
    /// Shows the first snapshot of a generation as a state of its own; later ones are not worth it.
    fn status_before_snapshot(&self) -> State {
        let current = crate::error::lock(&self.status).state;
        if current == State::Starting {
            self.set_state(State::Snapshot);
        }
        current
    }
}
