//! A new database file from an archive.
//!
//! ```text
//! path free? -> plan (archive/plan.rs, archive/ltx.rs) -> file without a name
//!   -> segments, newest first (chain.rs, segment.rs) -> snapshot (snapshot.rs) -> image.rs
//!   -> sync -> integrity_check, if asked for -> name (destination.rs)
//! ```
//!
//! Everything is read, proved and on the disk before the file gets its name; whatever goes wrong
//! before that leaves nothing behind. All of it happens on threads of ours: the caller's only
//! waits, and stops them if it is interrupted.

mod below;
mod chain;
mod destination;
#[cfg(any(test, fuzzing))]
#[path = "../../fuzz/targets/restore.rs"]
pub(crate) mod fuzz;
mod image;
mod overlay;
mod segment;
mod snapshot;
mod stop;

use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use crossbeam_channel::{RecvTimeoutError, bounded};

use crate::archive::plan::{self, Goal, LabelTimes};
use crate::archive::sink::{Target, Until};
use crate::archive::{Archive, ArchiveOptions, hold, ltx};
use crate::error::ErrorKind::{Missing, NoGeneration, NoSnapshots, NoWalSegments};
use crate::error::{Error, Result};
use crate::host::conn::Connection;
use crate::host::guard::guard;
use crate::registry;
use chain::Means;
use destination::Destination;
use image::Image;
use stop::Stop;

/// How often a chain is chosen at most: an object of it may have been deleted meanwhile, and a
/// listing made while the archive grows may show something and not what came before it.
const TRIES_MAX: u32 = 3;
/// How soon an interrupted caller is noticed.
const POLL: Duration = Duration::from_millis(50);

/// A restore.
#[derive(Clone, Debug)]
pub struct Request {
    /// The archive.
    pub url: String,
    /// How to reach and read it.
    pub options: ArchiveOptions,
    /// The file to make.
    pub path: PathBuf,
    /// The state to restore.
    pub target: Target,
    /// Only tell the plan.
    pub dry_run: bool,
    /// Have SQLite check the file before it gets its name.
    pub integrity_check: bool,
    /// Threads that fetch and decode.
    pub threads: usize,
}

/// Restores, or tells the plan. Returns the position restored, or the plan as JSON.
pub fn run(request: Request, interrupted: &dyn Fn() -> bool) -> Result<String> {
    let body = move |stop: &Arc<Stop>| work(&request, true, stop).map(|(told, _)| told);
    on_thread(body, interrupted)
}

/// Restores into a file without a name, in the folder of the path. It is gone when it is closed.
pub fn scratch(request: Request, interrupted: &dyn Fn() -> bool) -> Result<File> {
    let body = move |stop: &Arc<Stop>| {
        let (_, file) = work(&request, false, stop)?;
        file.ok_or_else(|| Error::bug("a plan is no file"))
    };
    on_thread(body, interrupted)
}

/// Does it on a thread of ours, which stops when the caller is interrupted.
fn on_thread<T: Send + 'static>(
    work: impl FnOnce(&Arc<Stop>) -> Result<T> + Send + 'static,
    interrupted: &dyn Fn() -> bool,
) -> Result<T> {
    let stop = Arc::new(Stop::default());
    let (report, outcome) = bounded(1);
    let inside = Arc::clone(&stop);
    let body = move || {
        let result = guard("restore", || work(&inside));
        let _nobody_waits_any_more = report.send(result);
    };
    let worker = registry::spawn_worker("litestream-restore", body)?;
    let result = loop {
        match outcome.recv_timeout(POLL) {
            Ok(result) => break result,
            Err(RecvTimeoutError::Timeout) if interrupted() => stop.set(),
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => {
                break Err(Error::bug("the restore's thread ended early"));
            }
        }
    };
    registry::join(worker);
    // A store that was closed, a statement that was broken off: all for one reason.
    result.map_err(|error| stop.check().err().unwrap_or(error))
}

/// What is told of it, and the file, if one was made. `named`: it is to have its name.
fn work(request: &Request, named: bool, stop: &Arc<Stop>) -> Result<(String, Option<File>)> {
    if named && !request.dry_run {
        destination::check(&request.path)?;
    }
    let archive = Arc::new(Archive::open(&request.url, &request.options)?);
    stop.reads(&archive)?;
    let _nothing_is_deleted_meanwhile = hold(archive.url());
    for _ in 1..TRIES_MAX {
        match attempt(request, named, &archive, stop) {
            Err(error) if matches!(error.kind(), Missing | NoWalSegments) => stop.check()?,
            result => return result,
        }
    }
    attempt(request, named, &archive, stop)
}

fn attempt(
    request: &Request,
    is_named: bool,
    archive: &Arc<Archive>,
    stop: &Arc<Stop>,
) -> Result<(String, Option<File>)> {
    if request.dry_run {
        return dry_run(request, archive, stop).map(|plan| (plan, None));
    }
    let (mut destination, file) = Destination::begin(&request.path)?;
    let folder = destination.folder().to_owned();
    let means = Means { archive, folder: &folder, threads: request.threads, stop };
    let keep = file.try_clone()?;
    let mut image = Image::new(file, stop);
    let reached = match plan(request, archive)? {
        Plan::Chain(chain) => chain::fill(&means, &chain, &mut image)?.to_string(),
        Plan::Ltx(plan) => plan.fill(archive, &mut image)?,
    };
    let named = |error: Error| error.context(format!("cannot restore {}", request.path.display()));
    image.finish().map_err(named)?;
    if request.integrity_check {
        integrity_check(destination.name(&keep)?, stop).map_err(named)?;
    }
    stop.check()?;
    if is_named {
        destination.publish(&keep)?;
    }
    Ok((reached, Some(keep)))
}

/// Of either kind of archive.
enum Plan {
    Chain(Box<plan::Chain>),
    Ltx(Box<ltx::Plan>),
}

fn plan(request: &Request, archive: &Archive) -> Result<Plan> {
    let named = |error: Error| match error.kind() {
        NoGeneration | NoSnapshots | NoWalSegments => error.context(archive.url()),
        _ => error,
    };
    if let Some(plan) = ltx::choose(archive, &request.target)? {
        return Ok(Plan::Ltx(Box::new(plan)));
    }
    let generations = match request.target.generation {
        Some(generation) => vec![generation],
        None => archive.generations()?,
    };
    let goal = match &request.target.until {
        Until::Latest => Goal::Latest,
        Until::Time(time) => Goal::Time(*time),
        Until::Pos(text) => {
            Goal::Pos(text.parse().map_err(|error: Error| error.context("option \"pos\""))?)
        }
    };
    let listings: Result<Vec<_>> =
        generations.into_iter().map(|generation| archive.list(generation)).collect();
    let chain = plan::choose(listings?, goal, &mut LabelTimes(archive)).map_err(named)?;
    Ok(Plan::Chain(Box::new(chain)))
}

fn dry_run(request: &Request, archive: &Arc<Archive>, stop: &Arc<Stop>) -> Result<String> {
    let folder = std::env::temp_dir();
    let means = Means { archive, folder: &folder, threads: request.threads, stop };
    let plan = match plan(request, archive)? {
        Plan::Chain(chain) => chain::describe(&means, &chain)?,
        Plan::Ltx(plan) => plan.describe(),
    };
    Ok(plan.to_string())
}

/// Has SQLite read all of the file.
fn integrity_check(path: &Path, stop: &Stop) -> Result<()> {
    let connection = Arc::new(Connection::open(path, "", false)?);
    stop.runs(Some(&connection))?;
    let found = connection.query_text("PRAGMA integrity_check(1)");
    stop.runs(None)?;
    match found?.as_deref() {
        Some("ok") => Ok(()),
        found => {
            let found = found.unwrap_or("no answer").replace('\n', " ");
            Err(Error::corrupt(format!("integrity_check of what was restored: {found}")))
        }
    }
}

#[cfg(test)]
mod tests;
