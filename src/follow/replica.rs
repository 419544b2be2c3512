//! The local end: a database file in one of the states a follower finds or makes, and the way pages
//! take into it.
//!
//! | file                                | then                                             |
//! |-------------------------------------|--------------------------------------------------|
//! | empty                               | the first snapshot is written into it (image.rs) |
//! | half-written first snapshot of ours | started over, the same way                       |
//! | a replica                           | resumed where it is; compared if that is unknown |
//! | no tables, or `overwrite`           | compared                                         |
//! | anything else                       | refused                                          |
//!
//! Compared: each page of the upstream's snapshot is held against what readers see now; those that
//! differ become, with the WAL that makes the snapshot exact, one transaction. Readers go from the
//! old state to the new, and their schema with them (schema.rs): page 1 waits for the commit.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use super::apply::Applier;
use super::cursor::Point;
use super::dir::ReplicaDir;
use super::image::{self, Image};
use super::intents::UpstreamPos;
use super::keeper::Keeper;
use super::left::{self, identity};
use super::pace::{CHECKPOINT_FRAMES, Moment, drain_budget, next_drain};
use super::plan::{Found, Plan, decide};
use super::schema::{next_shift, shift_version};
use super::shared::Shared;
use crate::error::{Error, ErrorKind, Result};
use crate::files::with_suffix;
use crate::host::conn::Connection;
use crate::pos::Pos;
use crate::registry::{self, Level};
use crate::wal::{PageSize, PageSum};

/// How often a drain looks for its gap.
const DRAIN_STEP: Duration = Duration::from_micros(500);

/// The database a follower writes.
pub struct Replica {
    path: PathBuf,
    vfs: String,
    dir: ReplicaDir,
    upstream: String,
    /// Before the applier: its connection must not be the last to close.
    keeper: Option<Keeper>,
    applier: Option<Applier>,
    /// Which files the applier has open: the database and its WAL.
    files: Option<[Option<(u64, u64)>; 2]>,
    image: Option<Image>,
    /// An image became a database, whether or not that could be opened then.
    is_filled: bool,
    /// Frames from which the WAL may stop applying for a gap.
    drain_at: u32,
    page: Vec<u8>,
    /// Page 1 of the content that is to replace what readers see.
    first: Option<Vec<u8>>,
    /// What is added to the upstream's schema version.
    schema_shift: u32,
    /// How large it may become.
    bytes_max: u64,
}

impl Replica {
    /// Looks at the file and refuses what must not be replaced; opens what can be applied to.
    pub fn open(path: &Path, vfs: &str, upstream: &str, overwrite: bool) -> Result<Self> {
        let dir = ReplicaDir::of(path);
        let look = image::look(path, vfs)?;
        let is_replica = dir.is_replica()?;
        let is_filling = dir.is_filling()?;
        let has_tables = look.size > 0 && !is_replica && !is_filling && has_tables(path, vfs)?;
        let found = Found { look, is_filling, is_replica, has_tables };
        let plan = decide(found, overwrite, path)?;
        let mut replica = Self {
            path: path.to_owned(),
            vfs: vfs.to_owned(),
            schema_shift: dir.schema_shift()?,
            dir,
            upstream: upstream.to_owned(),
            keeper: None,
            applier: None,
            files: None,
            image: None,
            is_filled: false,
            drain_at: 0,
            page: Vec::new(),
            first: None,
            bytes_max: u64::MAX,
        };
        match plan {
            Plan::Fill => {}
            Plan::Open => {
                let as_left = left::is_as_left(&replica.dir, path);
                // Somebody took it out of WAL mode; not asked otherwise, because the connection
                // that does it may be the last to close, and then the WAL and the position are
                // gone.
                if !look.is_wal {
                    set_wal_mode(path, vfs)?;
                }
                replica.apply_to(None)?;
                replica.doubt(as_left, is_replica && !is_filling)?;
            }
            Plan::Adopt => {
                set_wal_mode(path, vfs)?;
                replica.apply_to(None)?;
            }
        }
        Ok(replica)
    }

    /// The same, for a database of at most `bytes_max` bytes.
    #[must_use]
    pub fn with_bytes_max(self, bytes_max: u64) -> Self {
        Self { bytes_max, ..self }
    }

    /// Fails if a database of `pages` pages is larger than this one may become, or the transaction
    /// under way has more than that in the WAL.
    pub fn require_room(&self, pages: u32, page_size: PageSize) -> Result<()> {
        let bytes = |pages: u32| u64::from(pages) * u64::from(page_size.get());
        let spilled = self.applier.as_ref().map_or(0, Applier::spilled);
        let what = match () {
            () if bytes(pages) > self.bytes_max => "database is larger",
            () if bytes(spilled) > self.bytes_max => "transaction needs more",
            () => return Ok(()),
        };
        let max = self.bytes_max;
        let why = format!("the upstream's {what} than the {max} bytes of the option \"max_bytes\"");
        Err(Error::new(ErrorKind::Refused, why))
    }

    /// Says so if what is found is not what was left: its content is compared then.
    fn doubt(&mut self, as_left: bool, is_replica: bool) -> Result<()> {
        let Some(applier) = &mut self.applier else { return Ok(()) };
        let known = applier.upstream().is_some();
        match left::doubts(known, as_left, is_replica) {
            Some(text) => {
                applier.distrust();
                registry::log(Level::Warn, &self.path, &text);
                applier.forget_position()
            }
            None => left::forget(&self.dir),
        }
    }

    /// Stops for good, and notes how the database is left.
    pub fn leave(mut self) -> Result<()> {
        self.discard();
        // The checkpointer first: from then on nobody writes the file.
        self.keeper = None;
        match self.pos() {
            Some(_) => left::leave(&self.dir, &self.path),
            None => Ok(()),
        }
    }

    fn apply_to(&mut self, made: Option<Applier>) -> Result<()> {
        let applier = match made {
            Some(applier) => applier,
            None => {
                self.dir.create(&self.path)?;
                let applier = Applier::open(&self.path, &self.vfs, &self.dir)?;
                self.dir.mark_replica(&self.upstream, self.schema_shift)?;
                self.dir.unmark_filling()?;
                applier
            }
        };
        let (gauge, intents) = applier.for_keeper();
        self.keeper = Some(Keeper::start(&self.path, &self.vfs, gauge, intents)?);
        self.applier = Some(applier);
        self.files = Some([identity(&self.path), identity(&with_suffix(&self.path, "-wal"))]);
        Ok(())
    }

    /// Where it is kept.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The position readers see, if it is known.
    pub fn pos(&self) -> Option<Pos> {
        self.applier.as_ref().and_then(Applier::pos)
    }

    /// Tells other processes no position until the next commit: the upstream's history is not ours.
    pub fn forget_position(&self) -> Result<()> {
        self.applier.as_ref().map_or(Ok(()), Applier::forget_position)
    }

    /// The state readers see, if its position is known.
    pub fn point(&self) -> Result<Option<Point>> {
        let Some(applier) = &self.applier else { return Ok(None) };
        let Some(upstream) = applier.upstream() else { return Ok(None) };
        Ok(Some(Point { upstream, page_count: applier.page_count()? }))
    }

    /// Its page size, once it has pages.
    pub fn page_size(&self) -> Option<PageSize> {
        self.applier.as_ref().map(Applier::page_size)
    }

    /// Fails if a database with pages of this size cannot be followed into the file.
    pub fn check_page_size(&self, page_size: PageSize) -> Result<()> {
        match &self.applier {
            Some(applier) if applier.page_size() != page_size => Err(Error::new(
                ErrorKind::Refused,
                format!(
                    "the upstream has pages of {page_size} bytes, {} of {}; stop following, delete \
                     the file and follow again",
                    self.path.display(),
                    applier.page_size()
                ),
            )),
            _ => Ok(()),
        }
    }

    /// Bytes staged in memory.
    pub fn staged_bytes(&self) -> usize {
        self.applier.as_ref().map_or(0, Applier::staged_bytes)
    }

    /// A snapshot begins.
    pub fn begin_snapshot(&mut self, page_size: PageSize) -> Result<()> {
        if self.applier.is_none() && self.is_filled {
            self.apply_to(None)?;
            self.check_page_size(page_size)?;
        }
        match &mut self.applier {
            Some(applier) => applier.discard(),
            None => {
                self.image = None;
                let (path, vfs) = (&self.path, &self.vfs);
                let image = Image::begin(path, vfs, &self.dir, &self.upstream, page_size)?;
                self.image = Some(image);
                self.schema_shift = 0;
            }
        }
        self.first = None;
        self.page.resize(page_size.bytes(), 0);
        Ok(())
    }

    /// Takes a page of a snapshot.
    pub fn snapshot_page(&mut self, page_no: u32, page: &[u8]) -> Result<()> {
        let Some(applier) = &mut self.applier else {
            return self.stage(page_no, page, None);
        };
        if page_no == 1 {
            image::check_first(page, applier.page_size())?;
            self.first = Some(page.to_owned());
            return Ok(());
        } else if page_no == applier.page_size().lock_page()
            || (applier.read_page(page_no, &mut self.page)? && self.page == page)
        {
            return Ok(());
        }
        applier.stage(page_no, page, None)
    }

    /// Takes a page of the next commit; `sum` is what it adds to a chain, if that is known.
    pub fn stage(&mut self, page_no: u32, page: &[u8], sum: Option<PageSum>) -> Result<()> {
        match (&mut self.applier, &mut self.image) {
            (Some(_), _) if page_no == 1 && self.first.is_some() => {
                self.first = Some(page.to_owned());
                Ok(())
            }
            (Some(applier), _) if page_no == 1 && self.schema_shift > 0 => {
                let mut page = page.to_owned();
                shift_version(&mut page, self.schema_shift);
                applier.stage(page_no, &page, None)
            }
            (Some(applier), _) => applier.stage(page_no, page, sum),
            (None, Some(image)) => image.write(page_no, page),
            (None, None) => Err(Error::peer("WAL came before the snapshot it belongs to")),
        }
    }

    /// Shows readers everything staged.
    pub fn commit(&mut self, page_count: u32, upstream: UpstreamPos) -> Result<()> {
        self.stage_first()?;
        if let Some(applier) = &mut self.applier {
            let is_new = applier.upstream().is_none();
            applier.commit(page_count, upstream)?;
            if is_new {
                left::forget(&self.dir)?;
            }
            let frames = applier.max_frame();
            if let Some(keeper) = &self.keeper {
                keeper.look(frames);
            }
            if frames < CHECKPOINT_FRAMES {
                self.drain_at = 0;
            }
            return Ok(());
        }
        let image = self.image.take();
        let image = image.ok_or_else(|| Error::bug("a commit without a snapshot"))?;
        let complete = image.complete(page_count)?;
        self.is_filled = true;
        let applier = complete.open(upstream)?;
        self.apply_to(Some(applier))
    }

    /// Takes page 1 of content that replaces what readers see. Always, changed or not: a
    /// transaction needs a frame, if only to change the database's size.
    fn stage_first(&mut self) -> Result<()> {
        let (Some(applier), Some(mut first)) = (&mut self.applier, self.first.take()) else {
            return Ok(());
        };
        if applier.read_page(1, &mut self.page)? {
            let shift = next_shift(&self.page, &first, self.schema_shift);
            if shift != self.schema_shift {
                self.dir.mark_replica(&self.upstream, shift)?;
                self.schema_shift = shift;
            }
        }
        shift_version(&mut first, self.schema_shift);
        applier.stage(1, &first, None)
    }

    /// Readers see `pos`: if somebody waits for it, this is the state it stands for.
    pub fn reached(&self, shared: &Shared, pos: Pos) {
        if shared.meeting.target().is_none() {
            return;
        }
        shared.meeting.reached(pos, |door| {
            let applier = self.applier.as_ref().ok_or_else(|| Error::bug("nothing to freeze"))?;
            Ok((applier.freeze(door)?, self.schema_shift))
        });
    }

    /// Forgets everything staged, and a first snapshot that is not complete.
    pub fn discard(&mut self) {
        self.image = None;
        self.first = None;
        if let Some(applier) = &mut self.applier {
            applier.discard();
        }
    }

    /// Starts a long WAL over, if this is the moment for it.
    pub fn restart_wal(&mut self, moment: Moment) -> Result<()> {
        let Some(applier) = &mut self.applier else { return Ok(()) };
        let frames = applier.max_frame();
        if frames < moment.restart_frames()
            || (applier.is_checkpointed() && applier.try_restart()?)
            || moment == Moment::Quiet
            || frames < self.drain_at
        {
            return Ok(());
        }
        let budget = drain_budget(frames);
        let deadline = Instant::now() + budget;
        while Instant::now() < deadline {
            if applier.is_checkpointed() {
                if applier.try_restart()? {
                    return Ok(());
                }
            } else if let Some(keeper) = &self.keeper {
                keeper.call();
            }
            std::thread::sleep(DRAIN_STEP);
        }
        if !budget.is_zero() {
            self.drain_at = next_drain(frames);
        }
        Ok(())
    }

    /// Fails if a file is not at its path any more: what is applied then reaches nobody.
    pub fn require_file(&self) -> Result<()> {
        let Some(files) = &self.files else { return Ok(()) };
        let names = [&self.path, &with_suffix(&self.path, "-wal")];
        for (file, name) in files.iter().zip(names) {
            if identity(name) != *file {
                let why = format!(
                    "{} was removed or replaced while it was followed; litestream_stop('follow'), \
                     close the database everywhere, then follow again",
                    name.display()
                );
                return Err(Error::new(ErrorKind::Refused, why));
            }
        }
        Ok(())
    }

    /// Looks after what others may damage. For when nothing comes.
    pub fn idle(&mut self) -> Result<bool> {
        let healed = self.applier.as_ref().is_some_and(Applier::heal);
        self.restart_wal(Moment::Quiet)?;
        Ok(healed)
    }
}

fn has_tables(path: &Path, vfs: &str) -> Result<bool> {
    let connection = Connection::open(path, vfs, false)?;
    connection.busy_timeout(2000)?;
    Ok(connection.query_i64("SELECT count(*) FROM main.sqlite_master")? > 0)
}

fn set_wal_mode(path: &Path, vfs: &str) -> Result<()> {
    let connection = Connection::open(path, vfs, false)?;
    connection.busy_timeout(2000)?;
    let mode = connection.query_text("PRAGMA main.journal_mode = WAL")?;
    if mode.as_deref() != Some("wal") {
        let text = format!("{} cannot be put in WAL mode", path.display());
        return Err(Error::new(ErrorKind::Unsupported, text));
    }
    Ok(())
}
