//! A database as followers see it: its log, its numbers, and who follows it.
//!
//! | field                | changed by                             | while holding            |
//! |----------------------|----------------------------------------|--------------------------|
//! | `followers`          | sessions, when they begin and end      | `followers`              |
//! | `Follower::progress` | its session (sent), an acknowledgement | its own, `followers` 1st |
//! | totals               | anyone, they only grow                 | nothing                  |
//!
//! `acknowledged` is signalled after a change of an applied position, with `followers` held, so
//! that a waiter misses none.

use std::collections::VecDeque;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use super::metrics::{Metric, count};
use super::turns::{Turn, Turns};
use crate::error::{Error, ErrorKind, Result, lock};
use crate::log::Log;
use crate::pages::Frozen;
use crate::pos::{Pos, compare_pos};

/// Segments sent but not acknowledged of which the age is known; beyond that neighbours are taken
/// together.
const UNACKNOWLEDGED_MAX: usize = 1024;

/// A row of a table: the names of its columns, and what they hold.
pub type Row = Vec<(&'static str, serde_json::Value)>;

/// What tables tell of one database.
#[derive(Clone, Debug, Default)]
pub struct Status {
    /// Its row of `litestream_databases`.
    pub database: Row,
    /// Its rows of `litestream_replicas`.
    pub replicas: Vec<Row>,
}

/// What the owner of a database says about it.
pub trait Report: Send + Sync {
    /// Its numbers; the label `db` is added to each.
    fn metrics(&self) -> Vec<Metric> {
        Vec::new()
    }

    /// A position that covers everything committed before the call; none: the log's end is all
    /// there is.
    fn position(&self) -> Result<Option<Pos>> {
        Ok(None)
    }

    /// Its state after some commit no earlier than the call, which stays while it is read, and
    /// where that is; none: it cannot be had.
    fn freeze(&self) -> Result<Option<(Frozen, Pos)>> {
        Ok(None)
    }

    /// What `/status` tells of it.
    fn status(&self) -> Status {
        Status::default()
    }

    /// What is wrong with it at the moment.
    fn error(&self) -> Option<String> {
        None
    }
}

/// Nothing to say.
impl Report for () {}

/// A database that is being served.
pub struct Served {
    path: PathBuf,
    log: Arc<Log>,
    report: Box<dyn Report>,
    followers: Mutex<Vec<Arc<Follower>>>,
    acknowledged: Condvar,
    bytes_total: AtomicU64,
    followers_total: AtomicU64,
    /// Who reads all of its pages.
    readings: Turns,
}

/// A row of `litestream_followers`.
#[derive(Clone, Debug, PartialEq)]
pub struct FollowerRow {
    /// The database it follows.
    pub database: PathBuf,
    /// Its address, or `unix`.
    pub remote: String,
    /// The next byte it will be sent.
    pub sent_pos: Pos,
    /// The next byte it will apply, if it says so.
    pub applied_pos: Option<Pos>,
    /// Age of the oldest commit it has not applied, in seconds; `None` if it does not say what it
    /// applied.
    pub lag: Option<f64>,
    /// Bytes sent on this connection.
    pub bytes: u64,
    /// When it connected.
    pub since: SystemTime,
}

impl Served {
    /// A database known by its canonical path.
    pub fn new(path: PathBuf, log: Arc<Log>, report: Box<dyn Report>) -> Arc<Self> {
        Arc::new(Served {
            path,
            log,
            report,
            followers: Mutex::new(Vec::new()),
            acknowledged: Condvar::new(),
            bytes_total: AtomicU64::new(0),
            followers_total: AtomicU64::new(0),
            readings: Turns::default(),
        })
    }

    /// The canonical path.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The log followers read.
    pub fn log(&self) -> &Arc<Log> {
        &self.log
    }

    /// What tables tell of it; at least its path.
    pub(crate) fn status(&self) -> Status {
        let mut status = self.report.status();
        if status.database.is_empty() {
            status.database.push(("path", self.path.to_string_lossy().into_owned().into()));
        }
        status
    }

    /// Why it cannot be served well at the moment, if so.
    pub(crate) fn trouble(&self) -> Option<String> {
        let no_generation = || (!self.log.is_ready()).then(|| "no generation available".to_owned());
        self.report.error().or_else(no_generation)
    }

    /// A position that covers everything committed before the call.
    pub(crate) fn position(&self) -> Result<Pos> {
        match self.report.position()? {
            Some(pos) => Ok(pos),
            None => self.log.position().ok_or_else(Error::no_generation),
        }
    }

    /// The right to read all of the database's pages.
    pub(crate) fn reading(&self) -> Result<Turn<'_>> {
        self.readings.take(Instant::now()).map_err(|why| Error::new(ErrorKind::Busy, why))
    }

    /// Its state after some commit no earlier than the call, and where that is.
    pub(crate) fn freeze(&self) -> Result<(Frozen, Pos)> {
        let none = || Error::new(ErrorKind::Unsupported, "this database's pages cannot be read");
        self.report.freeze()?.ok_or_else(none)
    }

    /// Who follows now.
    pub fn followers(&self) -> Vec<FollowerRow> {
        let now = Instant::now();
        lock(&self.followers).iter().map(|follower| follower.row(&self.path, now)).collect()
    }

    /// Followers that have applied everything before `pos`: waits until there are `wanted`, at most
    /// `wait`, and says how many there are.
    pub fn wait_applied(&self, pos: Pos, wanted: usize, wait: Duration) -> usize {
        let deadline = Instant::now() + wait;
        let mut followers = lock(&self.followers);
        loop {
            let applied = followers.iter().filter(|follower| follower.has_applied(pos)).count();
            let Some(left) = deadline.checked_duration_since(Instant::now()) else {
                return applied;
            };
            if applied >= wanted {
                return applied;
            }
            let waited = self.acknowledged.wait_timeout(followers, left);
            followers = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// Notes what the follower of this name has applied; false if there is none.
    pub(crate) fn acknowledge(&self, name: &str, pos: Pos) -> bool {
        let followers = lock(&self.followers);
        // The newest connection is the living one if an older has not been noticed to be dead.
        let named = |follower: &&Arc<Follower>| follower.name.as_deref() == Some(name);
        let Some(follower) = followers.iter().rev().find(named) else { return false };
        follower.applied(pos);
        self.acknowledged.notify_all();
        true
    }

    /// Lists a follower until what is returned is dropped.
    pub(crate) fn join(self: &Arc<Self>, follower: &Arc<Follower>) -> Membership {
        self.followers_total.fetch_add(1, Ordering::Relaxed);
        lock(&self.followers).push(Arc::clone(follower));
        Membership { served: Arc::clone(self), follower: Arc::clone(follower) }
    }

    pub(crate) fn count_bytes(&self, follower: &Follower, bytes: u64) {
        follower.bytes.fetch_add(bytes, Ordering::Relaxed);
        self.bytes_total.fetch_add(bytes, Ordering::Relaxed);
    }

    /// The numbers of this database, each with its label.
    pub(crate) fn metrics(&self) -> Vec<Metric> {
        let rows = self.followers();
        let mut metrics = self.report.metrics();
        let connected = u64::try_from(rows.len()).unwrap_or(u64::MAX);
        metrics.push(Metric::gauge(
            "litestream_followers",
            "Followers connected.",
            count(connected),
        ));
        metrics.push(Metric::counter(
            "litestream_followers_total",
            "Followers that have connected.",
            count(self.followers_total.load(Ordering::Relaxed)),
        ));
        metrics.push(Metric::counter(
            "litestream_follower_bytes_total",
            "Bytes sent to followers.",
            count(self.bytes_total.load(Ordering::Relaxed)),
        ));
        if let Some(worst) = rows.iter().filter_map(|row| row.lag).reduce(f64::max) {
            metrics.push(Metric::gauge(
                "litestream_follower_lag_seconds",
                "Age of the oldest commit that a connected follower has not applied.",
                worst,
            ));
        }
        let path = self.path.to_string_lossy();
        for metric in &mut metrics {
            metric.labels.insert(0, ("db", path.clone().into_owned()));
        }
        metrics
    }
}

/// A follower's place in the list.
pub(crate) struct Membership {
    served: Arc<Served>,
    follower: Arc<Follower>,
}

impl Drop for Membership {
    fn drop(&mut self) {
        lock(&self.served.followers).retain(|other| !Arc::ptr_eq(other, &self.follower));
    }
}

/// One stream's follower.
pub(crate) struct Follower {
    name: Option<String>,
    remote: String,
    since: SystemTime,
    bytes: AtomicU64,
    progress: Mutex<Progress>,
}

#[derive(Default)]
struct Progress {
    sent: Pos,
    applied: Option<Pos>,
    /// When it said so last.
    heard: Option<Instant>,
    /// End and birth of what was sent after `applied`, oldest first.
    waiting: VecDeque<(Pos, Instant)>,
}

impl Follower {
    pub(crate) fn new(name: Option<String>, remote: String) -> Arc<Self> {
        Arc::new(Follower {
            name,
            remote,
            since: SystemTime::now(),
            bytes: AtomicU64::new(0),
            progress: Mutex::default(),
        })
    }

    /// The next byte it will be sent.
    pub(crate) fn sent(&self, end: Pos) {
        lock(&self.progress).sent = end;
    }

    /// Bytes up to `end`, captured at `born`, are about to be sent.
    pub(crate) fn sending(&self, end: Pos, born: Instant) {
        if self.name.is_none() {
            return;
        }
        let mut progress = lock(&self.progress);
        let full = progress.waiting.len() >= UNACKNOWLEDGED_MAX;
        match progress.waiting.back_mut() {
            Some((last, _)) if full => *last = end,
            _ => progress.waiting.push_back((end, born)),
        }
    }

    fn applied(&self, pos: Pos) {
        let mut progress = lock(&self.progress);
        progress.applied = Some(pos);
        progress.heard = Some(Instant::now());
        while progress.waiting.front().is_some_and(|(end, _)| reaches(pos, *end)) {
            progress.waiting.pop_front();
        }
    }

    /// Since when it has acknowledged nothing; none if it never did.
    pub(crate) fn silent(&self) -> Option<Duration> {
        lock(&self.progress).heard.map(|heard| heard.elapsed())
    }

    fn has_applied(&self, pos: Pos) -> bool {
        lock(&self.progress).applied.is_some_and(|applied| reaches(applied, pos))
    }

    fn row(&self, database: &Path, now: Instant) -> FollowerRow {
        let progress = lock(&self.progress);
        let oldest = progress.waiting.front();
        let age =
            oldest.map_or(0.0, |(_, born)| now.saturating_duration_since(*born).as_secs_f64());
        FollowerRow {
            database: database.to_owned(),
            remote: self.remote.clone(),
            sent_pos: progress.sent,
            applied_pos: progress.applied,
            lag: progress.applied.map(|_| age),
            bytes: self.bytes.load(Ordering::Relaxed),
            since: self.since,
        }
    }
}

/// Whether a follower at `pos` has everything before `end`; never in another history.
fn reaches(pos: Pos, end: Pos) -> bool {
    compare_pos(pos, end).is_ok_and(std::cmp::Ordering::is_ge)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pos::{Generation, Index, Offset};

    fn pos(index: u64, offset: u64) -> Pos {
        let (index, offset) = (Index::new(index).unwrap(), Offset::new(offset).unwrap());
        Pos::new(Generation::from_bits(7), index, offset)
    }

    #[test]
    fn lag_is_the_age_of_the_oldest_commit_not_applied() {
        let follower = Follower::new(Some("f".into()), "unix".into());
        let now = Instant::now();
        let lag = || follower.row(Path::new("/db"), now).lag;
        follower.sending(pos(0, 100), now - Duration::from_secs(9));
        follower.sending(pos(0, 200), now - Duration::from_secs(4));
        assert_eq!(lag(), None);
        follower.applied(pos(0, 50));
        assert_eq!(lag(), Some(9.0));
        follower.applied(pos(0, 100));
        assert_eq!(lag(), Some(4.0));
        assert!(follower.has_applied(pos(0, 99)) && !follower.has_applied(pos(0, 101)));
        follower.applied(pos(1, 0));
        assert_eq!(lag(), Some(0.0));
        assert!(!follower.has_applied(Pos::new(
            Generation::from_bits(8),
            Index::ZERO,
            Offset::ZERO
        )));
    }

    #[test]
    fn what_is_remembered_is_bounded() {
        let follower = Follower::new(Some("f".into()), "unix".into());
        let now = Instant::now();
        for offset in 0..10_000 {
            follower.sending(pos(0, offset), now);
        }
        assert_eq!(lock(&follower.progress).waiting.len(), UNACKNOWLEDGED_MAX);
        follower.applied(pos(0, 9_998));
        assert_eq!(lock(&follower.progress).waiting.len(), 1);
        follower.applied(pos(0, 9_999));
        assert_eq!(follower.row(Path::new("/db"), now).lag, Some(0.0));
    }
}
