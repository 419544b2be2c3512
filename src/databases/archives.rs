//! The archives of a database: starting and stopping them, waiting for all of them, their numbers.
//!
//! `Archives` is changed by the call that starts or stops work on the database, which holds its
//! `steering`; everybody else takes a copy of the list.

use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use super::{
    Database, INTERRUPT_POLL, all, find, find_or_add, refuse_replica, stopped, wait_ready,
};
use crate::archive::ArchiveOptions;
use crate::capture::{Capture, CaptureConfig, Patience};
use crate::error::{Error, ErrorKind, Result, lock};
use crate::pos::Pos;
use crate::registry::{self, Level};
use crate::replicate::{self, Replica, ReplicateConfig, State};
use crate::serve::{Metric, count};

/// What `litestream_replicate` was asked for.
#[derive(Clone, Debug)]
pub struct ReplicateRequest {
    /// The archive.
    pub archive: ReplicateConfig,
    /// The database, VFS and bounds.
    pub capture: CaptureConfig,
    /// How long the call may wait for the first snapshot to be in the archive.
    pub wait: Duration,
}

/// The archives of one database.
#[derive(Default)]
pub struct Archives(Mutex<Vec<Arc<Replica>>>);

impl Archives {
    /// A copy of the list.
    pub fn all(&self) -> Vec<Arc<Replica>> {
        lock(&self.0).clone()
    }

    /// For `/metrics`.
    pub fn metrics(&self) -> Vec<Metric> {
        self.all().iter().flat_map(|replica| metrics(replica)).collect()
    }
}

fn metrics(replica: &Replica) -> Vec<Metric> {
    let (counters, status) = (replica.counters(), replica.status());
    let read = |counter: &AtomicU64| count(counter.load(Ordering::Relaxed));
    let operations = |kind: &'static str, counter: &AtomicU64| {
        let help = "Objects stored in an archive, or deleted there.";
        Metric::counter("litestream_replica_operation_total", help, read(counter))
            .with("operation", kind)
    };
    let bytes = |kind: &'static str, counter: &AtomicU64| {
        let help = "Bytes stored in an archive.";
        Metric::counter("litestream_replica_operation_bytes", help, read(counter))
            .with("operation", kind)
    };
    let pos = status.pos.unwrap_or_default();
    let all = [
        operations("segment", &counters.segments),
        operations("snapshot", &counters.snapshots),
        operations("delete", &counters.deleted),
        bytes("segment", &counters.segment_bytes),
        bytes("snapshot", &counters.snapshot_bytes),
        Metric::counter(
            "litestream_replica_error_count",
            "Times archiving started again after an error.",
            read(&counters.errors),
        ),
        Metric::gauge(
            "litestream_replica_lag_seconds",
            "Age of the oldest commit that is not in the archive.",
            status.lag.as_secs_f64(),
        ),
        Metric::gauge(
            "litestream_replica_backlog_bytes",
            "Bytes of segments kept because an archive is in their index, or before it.",
            count(replica.backlog_bytes()),
        ),
        Metric::gauge(
            "litestream_replica_wal_index",
            "Index of the WAL the archive has reached.",
            count(pos.index.get()),
        ),
        Metric::gauge(
            "litestream_replica_wal_offset",
            "Bytes of that index in the archive.",
            count(pos.offset.get()),
        ),
    ];
    all.into_iter().map(|metric| metric.with("url", replica.url())).collect()
}

/// Archives a database. Returns the archive's URL. Asking again for the same is answered the same.
pub fn replicate(request: &ReplicateRequest, interrupted: &dyn Fn() -> bool) -> Result<String> {
    registry::check_fork()?;
    let path = &request.capture.path;
    refuse_replica(path)?;
    let database = find_or_add(path);
    let (capture, replica, started) = database.open_archive(request)?;
    // Nothing is held meanwhile: litestream_stop ends this wait.
    let deadline = Instant::now() + request.wait;
    let ready = wait_ready(&capture, request.wait, interrupted);
    match ready.and_then(|()| wait_complete(&replica, request.wait, deadline, interrupted)) {
        Ok(()) => Ok(replica.url().to_owned()),
        Err(error) => {
            // Only time is over: the work goes on.
            if started && error.kind() != ErrorKind::Timeout {
                database.close_archive(&replica);
            }
            Err(error)
        }
    }
}

fn wait_complete(
    replica: &Replica,
    wait: Duration,
    deadline: Instant,
    interrupted: &dyn Fn() -> bool,
) -> Result<()> {
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        match replica.wait_complete(left.min(INTERRUPT_POLL)) {
            Some(outcome) => return outcome,
            None if wait.is_zero() => return Ok(()),
            None if left.is_zero() => {
                let why = format!(
                    "{} has no snapshot within {} ms ({}); it goes on trying in the background",
                    replica.url(),
                    wait.as_millis(),
                    detail(replica)
                );
                return Err(Error::new(ErrorKind::Timeout, why));
            }
            None if interrupted() => return Err(stopped()),
            None => {}
        }
    }
}

/// Why an archive is not where it should be.
fn detail(replica: &Replica) -> String {
    let status = replica.status();
    match (status.state, status.error) {
        (State::Standby, _) => "another process captures and archives this database".to_owned(),
        (_, Some(error)) => format!("last error: {error}"),
        (state, None) => format!("it is {}", state.as_str()),
    }
}

/// Waits until all that is committed is in files of the log and in every archive.
pub fn sync(path: &Path, wait: Duration, interrupted: &dyn Fn() -> bool) -> Result<Pos> {
    let (database, capture) = captured(path)?;
    let deadline = Instant::now() + wait;
    let pos = capture.sync()?;
    let archives = database.archives.all();
    for replica in &archives {
        replica.want_synced(pos);
    }
    let missing = wait_all(&archives, deadline, interrupted, |replica, slice| {
        replica.wait_synced(pos, slice)
    })?;
    if missing.is_empty() {
        return Ok(pos);
    }
    let why = format!("not archived within {} ms: {}", wait.as_millis(), missing.join("; "));
    Err(Error::new(ErrorKind::Timeout, why))
}

/// Takes a snapshot into the log and into every archive.
pub fn snapshot(path: &Path, patience: &Patience) -> Result<Pos> {
    let (database, capture) = captured(path)?;
    let deadline = Instant::now() + patience.wait;
    let pos = capture.snapshot(patience)?;
    let archives = database.archives.all();
    for replica in &archives {
        replica.want_snapshot(pos);
    }
    let missing = wait_all(&archives, deadline, patience.interrupted, |replica, slice| {
        replica.wait_snapshot(pos, slice)
    })?;
    if missing.is_empty() {
        return Ok(pos);
    }
    let why = format!("snapshot {pos} is in the log, but not yet in {}", missing.join("; "));
    Err(Error::new(ErrorKind::Timeout, why))
}

/// Waits for each archive in turn; those that were not there in time, and why.
fn wait_all(
    archives: &[Arc<Replica>],
    deadline: Instant,
    interrupted: &dyn Fn() -> bool,
    look: impl Fn(&Replica, Duration) -> Result<bool>,
) -> Result<Vec<String>> {
    let mut missing = Vec::new();
    for replica in archives {
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            if look(replica, left.min(INTERRUPT_POLL))? {
                break;
            }
            let elsewhere = replica.status().state == State::Standby;
            if left.is_zero() || elsewhere {
                missing.push(format!("{} ({})", replica.url(), detail(replica)));
                break;
            }
            if interrupted() {
                return Err(stopped());
            }
        }
    }
    Ok(missing)
}

/// A database this process captures, or the error of whoever needs one.
pub fn captured(path: &Path) -> Result<(Arc<Database>, Arc<Capture>)> {
    let found = find(path).and_then(|database| {
        let capture = database.capture()?;
        Some((database, capture))
    });
    found.ok_or_else(|| {
        let why = format!("{} is not served or archived by this process", path.display());
        Error::new(ErrorKind::Refused, why)
    })
}

/// Every archive of every database here.
pub fn archives() -> Vec<(Arc<Database>, Arc<Replica>)> {
    let of = |database: Arc<Database>| {
        let replicas = database.archives.all();
        replicas.into_iter().map(move |replica| (Arc::clone(&database), replica))
    };
    all().into_iter().flat_map(of).collect()
}

impl Database {
    /// The archives it is written to, and how they are reached.
    pub fn archives(&self) -> Vec<(String, ArchiveOptions)> {
        let of =
            |replica: Arc<Replica>| (replica.url().to_owned(), replica.config().archive.clone());
        self.archives.all().into_iter().map(of).collect()
    }

    /// The archive asked for, started if it is not yet; whether that is new.
    fn open_archive(
        &self,
        request: &ReplicateRequest,
    ) -> Result<(Arc<Capture>, Arc<Replica>, bool)> {
        let _one_at_a_time = lock(&self.steering);
        let running = self.archives.all();
        let same = running.iter().find(|it| replicate::is_same_archive(it, &request.archive.url));
        if let (Some(replica), Some(capture)) = (same, self.capture()) {
            if replica.config().is_same(&request.archive) {
                return Ok((capture, Arc::clone(replica), false));
            }
            let why = format!(
                "this database is archived in {} already, with other options; \
                 litestream_stop('replicate') first",
                replica.url()
            );
            return Err(Error::new(ErrorKind::Refused, why));
        }
        let (capture, _) = self.capture_for(&request.capture)?;
        match Replica::start(request.archive.clone(), &capture) {
            Ok(replica) => {
                let replica = Arc::new(replica);
                lock(&self.archives.0).push(Arc::clone(&replica));
                let message = format!("archives in {}", replica.url());
                registry::log(Level::Info, &self.path, &message);
                Ok((capture, replica, true))
            }
            Err(error) => {
                self.stop_idle_capture();
                Err(error)
            }
        }
    }

    /// Takes back what a call started that failed, unless somebody stopped it already.
    fn close_archive(&self, replica: &Arc<Replica>) {
        let _one_at_a_time = lock(&self.steering);
        let ours = {
            let mut archives = lock(&self.archives.0);
            let before = archives.len();
            archives.retain(|it| !Arc::ptr_eq(it, replica));
            archives.len() < before
        };
        if ours {
            replicate::stop(std::slice::from_ref(replica));
            self.stop_idle_capture();
        }
    }

    /// Ends archiving; whether there was any.
    pub(super) fn stop_archives(&self) -> bool {
        let archives = std::mem::take(&mut *lock(&self.archives.0));
        if let Some(capture) = self.capture().filter(|_| !archives.is_empty()) {
            let _what_is_not_captured_is_in_the_wal = capture.position();
        }
        replicate::stop(&archives);
        !archives.is_empty()
    }
}
