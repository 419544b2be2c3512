//! The databases this process works on, and starting and stopping the work.
//!
//! | thing              | changed by                       | while holding                   |
//! |--------------------|----------------------------------|---------------------------------|
//! | `DATABASES`        | whoever starts or stops work     | itself, briefly                 |
//! | what is started    | the call that starts or stops it | the database's `steering`, then `work` |
//!
//! `steering` serialises the calls that start and stop work on one database and may be held over
//! SQLite and sockets; everything else takes only `work`, for as long as a copy takes.

mod address;
mod archives;
mod numbers;
mod rows;
mod verify;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant, SystemTime};

use crate::capture::{Capture, CaptureConfig};
use crate::error::{Error, ErrorKind, Result, lock};
use crate::follow::{self, FollowConfig, Follower};
use crate::pos::Pos;
use crate::registry::{self, Level};
use crate::serve::{self, ServeOptions, Served};
use address::Address;
use archives::Archives;
pub use archives::{ReplicateRequest, archives, captured, replicate, snapshot, sync};
use numbers::Numbers;
pub use rows::{DatabaseRow, ReplicaRow, database_rows, replica_rows};
pub use verify::verify;

static DATABASES: Mutex<BTreeMap<PathBuf, Arc<Database>>> = Mutex::new(BTreeMap::new());

/// How long a wait sleeps before it asks whether the statement was interrupted.
const INTERRUPT_POLL: Duration = Duration::from_millis(20);

/// A database with work in this process.
pub struct Database {
    /// Canonical.
    pub path: PathBuf,
    archives: Arc<Archives>,
    steering: Mutex<()>,
    work: Mutex<Work>,
}

#[derive(Default)]
struct Work {
    capture: Option<Arc<Capture>>,
    served: Option<Arc<Served>>,
    addresses: Vec<Arc<Address>>,
    follower: Option<Arc<Follower>>,
    since: Option<SystemTime>,
}

/// What `litestream_serve` was asked for.
#[derive(Clone, Debug)]
pub struct ServeRequest {
    /// The address as given.
    pub addr: String,
    /// Token and the like.
    pub options: ServeOptions,
    /// VFS and bounds.
    pub capture: CaptureConfig,
    /// How long the call may wait for the first snapshot.
    pub wait: Duration,
}

/// Which work to stop.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum What {
    /// Serving.
    Serve,
    /// Following.
    Follow,
    /// Archiving.
    Replicate,
    /// All of it.
    All,
}

/// The database with work at `path`, if there is one.
pub fn find(path: &Path) -> Option<Arc<Database>> {
    lock(&DATABASES).get(path).cloned()
}

/// All databases with work, by path.
pub fn all() -> Vec<Arc<Database>> {
    lock(&DATABASES).values().cloned().collect()
}

fn find_or_add(path: &Path) -> Arc<Database> {
    let add = || {
        Arc::new(Database {
            path: path.to_owned(),
            archives: Arc::default(),
            steering: Mutex::new(()),
            work: Mutex::default(),
        })
    };
    Arc::clone(lock(&DATABASES).entry(path.to_owned()).or_insert_with(add))
}

/// Serves a database. Returns the URL followers use. Asking again for the same is answered the
/// same.
pub fn serve(request: &ServeRequest, interrupted: &dyn Fn() -> bool) -> Result<String> {
    registry::check_fork()?;
    let path = &request.capture.path;
    refuse_replica(path)?;
    let database = find_or_add(path);
    let (capture, address, started) = database.open_address(request)?;
    // Nothing is held meanwhile: litestream_stop ends this wait.
    if let Err(error) = wait_ready(&capture, request.wait, interrupted) {
        if started {
            database.stop_if_serving(&capture);
        }
        return Err(error);
    }
    if address.is_first_answer() {
        registry::log(Level::Info, path, &format!("serves on {}", address.url()));
    }
    Ok(address.url())
}

fn refuse_replica(path: &Path) -> Result<()> {
    if follow::is_replica(path)? {
        let why = "this database is a replica; follow its upstream elsewhere, or make it an \
                   ordinary database with litestream_promote() first";
        return Err(Error::new(ErrorKind::Refused, why));
    }
    Ok(())
}

/// Waits for the first snapshot. Time over is no error, the work goes on; but somebody who was in
/// the way until then is one.
fn wait_ready(capture: &Capture, wait: Duration, interrupted: &dyn Fn() -> bool) -> Result<()> {
    let deadline = Instant::now() + wait;
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        match capture.wait_ready(left.min(INTERRUPT_POLL)) {
            Some(outcome) => return outcome.map(|_| ()),
            None if left.is_zero() => return capture.held_up().map_or(Ok(()), Err),
            None if interrupted() => return Err(stopped()),
            None => {}
        }
    }
}

/// Makes a database a live replica. Returns the position reached, if any yet.
pub fn follow(
    config: FollowConfig,
    wait: Duration,
    interrupted: &dyn Fn() -> bool,
) -> Result<Option<Pos>> {
    registry::check_fork()?;
    let database = find_or_add(&config.path);
    let (follower, started) = {
        let _one_at_a_time = lock(&database.steering);
        let mut work = lock(&database.work);
        if work.capture.is_some() {
            let why = "this database is served or archived from here; litestream_stop() first";
            return Err(Error::new(ErrorKind::Refused, why));
        }
        match &work.follower {
            Some(follower) if is_same(follower.config(), &config) => (Arc::clone(follower), false),
            Some(follower) => {
                let now = follower.config();
                let named = now.upstream_path.as_ref().map(|path| format!(" (path {path})"));
                let why = format!(
                    "this database follows {}{} already; litestream_stop('follow') first",
                    now.url,
                    named.unwrap_or_default()
                );
                return Err(Error::new(ErrorKind::Refused, why));
            }
            None => {
                drop(work);
                let message = format!("follows {}", config.url);
                let follower = follow::start(config)?;
                registry::log(Level::Info, &database.path, &message);
                work = lock(&database.work);
                work.follower = Some(Arc::clone(&follower));
                work.since = Some(SystemTime::now());
                (follower, true)
            }
        }
    };
    let deadline = Instant::now() + wait;
    while !wait.is_zero() && !follower.wait_caught_up(INTERRUPT_POLL) {
        if interrupted() {
            return Err(stopped());
        }
        if let Some(error) = follower.refusal().filter(|_| started) {
            database.stop(What::Follow)?;
            return Err(error);
        }
        if Instant::now() >= deadline {
            return Err(not_caught_up(&follower, wait));
        }
    }
    Ok(follower.position())
}

/// Whether both ask for the same database of the same upstream.
fn is_same(now: &FollowConfig, wanted: &FollowConfig) -> bool {
    now.url == wanted.url && now.upstream_path == wanted.upstream_path
}

fn not_caught_up(follower: &Follower, wait: Duration) -> Error {
    let status = follower.status();
    let detail = match status.error {
        Some(error) => format!("last error: {error}"),
        None => format!("it is {}", status.state),
    };
    let why = format!(
        "not caught up with {} within {} ms ({detail}); it goes on trying in the background",
        follower.config().url,
        wait.as_millis()
    );
    Error::new(ErrorKind::Timeout, why)
}

fn stopped() -> Error {
    Error::new(ErrorKind::Stopped, "interrupted")
}

/// Stops work on a database; says how many kinds of work that were.
pub fn stop(path: &Path, what: What) -> Result<usize> {
    let Some(database) = find(path) else { return Ok(0) };
    database.stop(what)
}

/// Ends following for good: the file is an ordinary database afterwards.
pub fn promote(path: &Path, vfs: &str) -> Result<Option<Pos>> {
    registry::check_fork()?;
    let Some(database) = find(path) else { return follow::promote_idle(path, vfs) };
    let _one_at_a_time = lock(&database.steering);
    let follower = database.follower();
    match follower {
        Some(follower) => {
            let reached = follower.promote()?;
            lock(&database.work).follower = None;
            Ok(reached)
        }
        None => follow::promote_idle(path, vfs),
    }
}

/// A position covering every commit made before the call (primary), or applied (replica); `None` if
/// nothing is known of the database.
pub fn position(path: &Path) -> Result<Option<Pos>> {
    registry::check_fork()?;
    if let Some(database) = find(path) {
        if let Some(capture) = database.capture() {
            return capture.position().map(Some);
        }
        if let Some(follower) = database.follower() {
            return Ok(follower.position());
        }
    }
    Ok(follow::read_position(path))
}

/// Waits until the database has reached `pos`; false at the deadline.
pub fn wait_for(
    path: &Path,
    pos: Pos,
    wait: Duration,
    interrupted: &dyn Fn() -> bool,
) -> Result<bool> {
    let deadline = Instant::now() + wait;
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        let slice = left.min(INTERRUPT_POLL);
        let reached = match find(path).and_then(|database| database.follower()) {
            Some(follower) => follower.wait(pos, slice),
            None => {
                let reached = follow::covers(position(path)?, pos);
                if !reached {
                    // Another process follows; its position is a file.
                    std::thread::sleep(slice.min(Duration::from_millis(1)));
                }
                reached
            }
        };
        if reached {
            return Ok(true);
        }
        if left.is_zero() {
            return Ok(false);
        }
        if interrupted() {
            return Err(stopped());
        }
    }
}

impl Database {
    /// The capture, if it is served here.
    pub fn capture(&self) -> Option<Arc<Capture>> {
        lock(&self.work).capture.clone()
    }

    /// The follower, if it follows.
    pub fn follower(&self) -> Option<Arc<Follower>> {
        lock(&self.work).follower.clone()
    }

    /// The addresses it is served on.
    pub fn urls(&self) -> Vec<String> {
        lock(&self.work).addresses.iter().map(|address| address.url()).collect()
    }

    /// What is wrong with a server it is served by.
    pub fn server_error(&self) -> Option<String> {
        lock(&self.work).addresses.iter().find_map(|address| address.error())
    }

    /// What its followers see.
    pub fn served_here(&self) -> Option<Arc<Served>> {
        lock(&self.work).served.clone()
    }

    /// When the work began.
    pub fn since(&self) -> Option<SystemTime> {
        lock(&self.work).since
    }

    fn served(&self) -> Result<Arc<Served>> {
        self.served_here().ok_or_else(|| Error::bug("a capture without anything to serve"))
    }

    fn address(&self, addr: &str) -> Option<Arc<Address>> {
        lock(&self.work).addresses.iter().find(|address| address.addr() == addr).cloned()
    }

    /// The address asked for, opened if it is not yet, and the capture behind it; whether that is
    /// new.
    fn open_address(&self, request: &ServeRequest) -> Result<(Arc<Capture>, Arc<Address>, bool)> {
        let _one_at_a_time = lock(&self.steering);
        if let (Some(address), Some(capture)) = (self.address(&request.addr), self.capture()) {
            address.require_same(&request.options)?;
            return Ok((capture, address, false));
        }
        let (capture, started) = self.capture_for(&request.capture)?;
        match Address::open(&request.addr, &request.options, &capture, self.served()?) {
            Ok(address) => {
                let address = Arc::new(address);
                lock(&self.work).addresses.push(Arc::clone(&address));
                Ok((capture, address, started))
            }
            Err(error) => {
                if started {
                    self.stop_idle_capture();
                }
                Err(error)
            }
        }
    }

    /// Takes back what a call started that failed, unless somebody stopped it already.
    fn stop_if_serving(&self, capture: &Arc<Capture>) {
        let _one_at_a_time = lock(&self.steering);
        if self.capture().is_some_and(|current| Arc::ptr_eq(&current, capture)) {
            self.stop_serving();
            self.stop_idle_capture();
        }
    }

    /// The running capture, or a new one.
    fn capture_for(&self, config: &CaptureConfig) -> Result<(Arc<Capture>, bool)> {
        let (capture, follower) = (self.capture(), self.follower());
        if follower.is_some() {
            let why = "this database follows an upstream; litestream_promote() first";
            return Err(Error::new(ErrorKind::Refused, why));
        }
        if let Some(capture) = capture {
            return Ok((capture, false));
        }
        let capture = Arc::new(Capture::start(config.clone())?);
        let numbers = Box::new(Numbers::new(Arc::clone(&capture), Arc::clone(&self.archives)));
        let served = Served::new(self.path.clone(), Arc::clone(capture.log()), numbers);
        let mut work = lock(&self.work);
        work.capture = Some(Arc::clone(&capture));
        work.served = Some(served);
        work.since = Some(SystemTime::now());
        Ok((capture, true))
    }

    fn stop(&self, what: What) -> Result<usize> {
        let _one_at_a_time = lock(&self.steering);
        let asked = |kind: What| what == kind || what == What::All;
        // Archives first: what is captured now still gets there.
        let archiving = asked(What::Replicate) && self.stop_archives();
        let serving = asked(What::Serve) && self.stop_serving();
        self.stop_idle_capture();
        let mut stopped = usize::from(serving) + usize::from(archiving);
        if let Some(follower) = self.follower().filter(|_| asked(What::Follow)) {
            follower.stop()?;
            lock(&self.work).follower = None;
            stopped += 1;
        }
        if stopped > 0 {
            registry::log(Level::Info, &self.path, "stopped");
        }
        Ok(stopped)
    }

    fn stop_serving(&self) -> bool {
        let addresses = std::mem::take(&mut lock(&self.work).addresses);
        for address in &addresses {
            address.close();
        }
        !addresses.is_empty()
    }

    /// Ends capture if nobody needs it any more.
    fn stop_idle_capture(&self) {
        if !self.archives.all().is_empty() || !lock(&self.work).addresses.is_empty() {
            return;
        }
        let capture = {
            let mut work = lock(&self.work);
            work.served = None;
            work.capture.take()
        };
        if let Some(capture) = capture {
            capture.stop();
        }
    }
}

/// Every follower of every database served here.
pub fn followers() -> Vec<serve::FollowerRow> {
    let served = all().into_iter().filter_map(|database| database.served_here());
    served.flat_map(|served| served.followers()).collect()
}
