//! `litestream_verify` on a replica: every page of it against its upstream, both at one position.
//!
//! ```text
//! caught up? --> the follower stands (meet.rs) --> GET /checksums: the upstream's state at P
//!   --> the follower goes on to P, is frozen there, and goes on --> compared, as checksums come
//! ```
//!
//! Nothing stops for longer than the upstream takes to answer: not the writers there, not the
//! readers here, and the follower applies on while its frozen state is read. Both WALs grow
//! meanwhile. An archive is compared at the position where the follower stood, with what a restore
//! of it would give.
//!
//! Thread "litestream-verify" does it; the caller waits, and cuts it short.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use crossbeam_channel::{RecvTimeoutError, bounded};

use super::client::Checksums;
use super::shared::{Shared, State};
use super::source::Source;
use super::{Follower, source};
use crate::error::{Error, ErrorKind, Result};
use crate::host::file::Door;
use crate::host::guard::guard;
use crate::pages::{BATCH_BYTES, Differences, Frozen, Total, page_sum};
use crate::pos::Pos;
use crate::registry::{self, Level};
use crate::transport::Link;

/// How soon an interrupted caller is noticed.
const POLL: Duration = Duration::from_millis(50);
/// How long the replica may take to the upstream's position.
const REACH_MAX: Duration = Duration::from_secs(10);
/// How long the upstream may pause between two checksums.
const STALL_MAX: Duration = Duration::from_secs(15);
/// What a replica is compared with, in messages.
const UPSTREAM: &str = "the upstream";
/// Between two tries.
const PAUSE: Duration = Duration::from_millis(100);
/// Bytes of a checksum.
const SUM_SIZE: usize = 8;

/// What was found.
pub struct Verdict {
    /// Where both were.
    pub pos: Pos,
    /// Pages of the upstream's database.
    pub page_count: u32,
    /// The pages that are not its.
    pub differences: Differences,
}

impl Verdict {
    /// In words; `from`: what was compared with.
    pub fn describe(&self, from: &str) -> String {
        let pages = self.differences.describe();
        let (count, pos) = (self.differences.count(), self.pos);
        let differ = if count == 1 { "differs" } else { "differ" };
        format!("{pages} ({count} of {}) {differ} from {from} at {pos}", self.page_count)
    }
}

/// How a state at a position of an archive's is compared with the archive; `shift` was added to its
/// schema version. The last argument tells whether to stop.
pub type InArchive =
    dyn Fn(&mut Frozen, u32, Pos, &dyn Fn() -> bool) -> Result<Verdict> + Send + Sync;

/// One verification.
struct Work {
    shared: Arc<Shared>,
    source: Source,
    in_archive: Arc<InArchive>,
    path: PathBuf,
    vfs: String,
    repair: bool,
    deadline: Instant,
    timeout: Duration,
    stopped: Arc<AtomicBool>,
    link: Arc<Link>,
}

impl Follower {
    /// Compares all pages with the upstream's. Returns what to tell the user; an error names the
    /// pages that differ, unless they were to be replaced (`repair`) and are.
    pub fn verify(
        &self,
        timeout: Duration,
        repair: bool,
        in_archive: Arc<InArchive>,
        interrupted: &dyn Fn() -> bool,
    ) -> Result<String> {
        let stopped = Arc::new(AtomicBool::new(false));
        let link = self.shared.new_link();
        let work = Work {
            shared: Arc::clone(&self.shared),
            source: source(&self.config)?,
            in_archive,
            path: self.config.path.clone(),
            vfs: self.config.vfs.clone(),
            repair,
            deadline: Instant::now() + timeout,
            timeout,
            stopped: Arc::clone(&stopped),
            link: Arc::clone(&link),
        };
        let (report, outcome) = bounded(1);
        let worker = registry::spawn_worker("litestream-verify", move || {
            let result = guard("verify", || work.run());
            let _nobody_waits_any_more = report.send(result);
        })?;
        let deadline = Instant::now() + timeout;
        let mut is_late = false;
        let result = loop {
            match outcome.recv_timeout(POLL) {
                Ok(result) => break result,
                Err(RecvTimeoutError::Timeout) if interrupted() => {
                    stopped.store(true, Ordering::Release);
                    link.close();
                }
                Err(RecvTimeoutError::Timeout) if Instant::now() >= deadline => {
                    is_late = true;
                    link.close();
                }
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => {
                    break Err(Error::bug("the thread that verifies ended early"));
                }
            }
        };
        registry::join(worker);
        if stopped.load(Ordering::Acquire) {
            return Err(Error::new(ErrorKind::Stopped, "interrupted"));
        }
        result.map_err(|error| match is_late && error.kind() != ErrorKind::Timeout {
            true => late(timeout).context(error),
            false => error,
        })
    }
}

fn late(timeout: Duration) -> Error {
    Error::new(ErrorKind::Timeout, format!("not done within {} ms", timeout.as_millis()))
}

impl Work {
    fn run(&self) -> Result<String> {
        let found = self.verdict()?;
        if found.differences.is_empty() {
            self.log(Level::Info, &format!("the same as upstream at {}", found.pos));
            return Ok("ok".to_owned());
        }
        let described = found.describe(UPSTREAM);
        self.log(Level::Error, &described);
        if !self.repair {
            return Err(Error::new(
                ErrorKind::ChecksumMismatch,
                format!("{described}; litestream_verify('{{\"repair\": true}}') replaces them"),
            ));
        }
        let streams = self.shared.get().streams;
        self.shared.distrust(format!("{described}; the content is compared with a snapshot"));
        self.until(|shared| shared.get().streams != streams)?;
        let again = self.verdict()?;
        if !again.differences.is_empty() {
            let why = format!("{}, after they were replaced", again.describe(UPSTREAM));
            return Err(Error::new(ErrorKind::ChecksumMismatch, why));
        }
        let pages = found.differences.describe();
        self.log(Level::Info, &format!("repaired {pages}; the same as upstream at {}", again.pos));
        Ok(format!("repaired {pages}"))
    }

    fn log(&self, level: Level, text: &str) {
        registry::log(level, &self.path, &format!("verify: {text}"));
    }

    /// An error once nobody waits any more, or for too long.
    fn check(&self) -> Result<()> {
        if self.stopped.load(Ordering::Acquire) || self.shared.is_stopping() {
            return Err(Error::new(ErrorKind::Stopped, "stopped"));
        }
        if Instant::now() >= self.deadline {
            return Err(late(self.timeout));
        }
        Ok(())
    }

    /// Waits for something, and tells what kept it from coming.
    fn until(&self, done: impl Fn(&Shared) -> bool) -> Result<()> {
        while !done(&self.shared) {
            self.check().map_err(|error| {
                let inner = self.shared.get();
                let detail = inner.error.unwrap_or_else(|| "no error".to_owned());
                let state = inner.state.as_str();
                error.context(format!("this replica is not caught up ({state}: {detail})"))
            })?;
            std::thread::sleep(POLL);
        }
        Ok(())
    }

    /// Compares at a position that comes about; whatever kept it from that may go better again.
    fn verdict(&self) -> Result<Verdict> {
        loop {
            let caught_up = |inner: &super::shared::Inner| {
                inner.state == State::Streaming && inner.position.is_some()
            };
            self.until(|shared| caught_up(&shared.get()))?;
            let missed = match self.attempt() {
                Err(error) if matches!(error.kind(), ErrorKind::Busy | ErrorKind::NoGeneration) => {
                    error
                }
                done => return done,
            };
            self.check().map_err(|error| error.context(missed))?;
            std::thread::sleep(PAUSE);
        }
    }

    fn attempt(&self) -> Result<Verdict> {
        let door = Door::open(&self.path, &self.vfs)?;
        let visit = self.shared.meeting.visit().ok_or_else(|| {
            let why = "another litestream_verify compares this replica";
            Error::new(ErrorKind::Busy, why)
        })?;
        let standing = visit.standing(|| self.check())?;
        match &self.source {
            Source::Server(client, _) => {
                let mut theirs = client.checksums(&self.link)?;
                if theirs.pos.generation != standing.generation {
                    let why = "the upstream has begun another history";
                    return Err(Error::new(ErrorKind::Busy, why));
                }
                let frozen = visit.frozen_at(theirs.pos, &door, REACH_MAX, || self.check());
                let (mut ours, shift) = frozen?;
                drop(visit);
                self.compare(&mut ours, shift, &mut theirs)
            }
            Source::Archive(_) => {
                let frozen = visit.frozen_at(standing, &door, REACH_MAX, || self.check());
                let (mut ours, shift) = frozen?;
                drop(visit);
                (self.in_archive)(&mut ours, shift, standing, &|| self.check().is_err())
            }
        }
    }

    fn compare(&self, ours: &mut Frozen, shift: u32, theirs: &mut Checksums) -> Result<Verdict> {
        let size = ours.page_size();
        if size != theirs.page_size {
            let why = format!("the upstream has pages of {} bytes now", theirs.page_size);
            return Err(Error::new(ErrorKind::Refused, why));
        }
        let (pos, page_count) = (theirs.pos, theirs.page_count);
        let batch = u32::try_from(BATCH_BYTES / size.bytes()).unwrap_or(1);
        let mut pages = vec![0; BATCH_BYTES];
        let mut sums = Vec::new();
        let mut differences = Differences::default();
        let mut total = Total::default();
        let mut next = 1;
        while next <= page_count {
            let count = batch.min(page_count - next + 1);
            let length = usize::try_from(count).unwrap_or(0);
            sums.resize(length * SUM_SIZE, 0);
            self.receive(theirs, &mut sums, next)?;
            let part = pages.get_mut(..length * size.bytes()).unwrap_or_default();
            ours.read(next, part)?;
            let both = part.chunks_exact_mut(size.bytes()).zip(sums.as_chunks::<SUM_SIZE>().0);
            for (page_no, (page, sum)) in (next..).zip(both) {
                let sum = u64::from_be_bytes(*sum);
                total.add(sum);
                let same =
                    page_no <= ours.page_count() && page_sum(page_no, page, size, shift) == sum;
                if !same {
                    differences.add(page_no);
                }
            }
            next = next.saturating_add(count);
        }
        let mut end = [0; SUM_SIZE];
        self.receive(theirs, &mut end, next)?;
        if u64::from_be_bytes(end) != total.get() {
            return Err(Error::peer("the upstream's checksums were damaged on their way"));
        }
        (next..=ours.page_count()).for_each(|page_no| differences.add(page_no));
        Ok(Verdict { pos, page_count, differences })
    }

    /// Fills `out` with what the upstream sends.
    fn receive(&self, theirs: &mut Checksums, out: &mut [u8], page_no: u32) -> Result<()> {
        let mut done = 0;
        let mut heard = Instant::now();
        while let Some(rest) = out.get_mut(done..).filter(|rest| !rest.is_empty()) {
            self.check()?;
            let named = |error: Error| {
                let pages = theirs.page_count;
                error.context(format!("the upstream broke off at page {page_no} of {pages}"))
            };
            match theirs.body.read(rest, POLL).map_err(named)? {
                Some(0) => return Err(named(Error::peer("its answer ended"))),
                Some(read) => {
                    done += read;
                    heard = Instant::now();
                }
                None if heard.elapsed() > STALL_MAX => {
                    let why = format!("nothing came for {} s", STALL_MAX.as_secs());
                    return Err(named(Error::new(ErrorKind::Timeout, why)));
                }
                None => {}
            }
        }
        Ok(())
    }
}
