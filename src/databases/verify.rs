//! Whether a database holds what it should: a replica, what its upstream holds; a primary, what its
//! archives do.
//!
//! With an archive, what a restore of it gives is compared: into a file without a name beside the
//! database, as large as that, which is gone afterwards. All of the restore's own checks are made,
//! too.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::{Database, find, sync};
use crate::archive::ArchiveOptions;
use crate::archive::sink::{Target, Until};
use crate::error::{Context, Error, ErrorKind, Result};
use crate::fault;
use crate::files::with_suffix;
use crate::follow::{self, Follower, InArchive, Verdict};
use crate::pages::{BATCH_BYTES, Differences, Frozen, page_sum};
use crate::pos::Pos;
use crate::registry::{self, Level};
use crate::restore::{self, Request};

/// Threads that restore.
const THREADS: usize = 4;

/// Compares every page of a replica with its upstream, of a primary with its archives.
pub fn verify(
    path: &Path,
    timeout: Duration,
    repair: bool,
    interrupted: &dyn Fn() -> bool,
) -> Result<String> {
    let database = find(path);
    if let Some(follower) = database.as_ref().and_then(|database| database.follower()) {
        return follower.verify(timeout, repair, archive_of(&follower), interrupted);
    }
    if let Some(database) = database.filter(|database| !database.archives.all().is_empty()) {
        if repair {
            let why = "option \"repair\" is for replicas; litestream_snapshot() archives all of \
                       this database anew";
            return Err(Error::usage(why));
        }
        return verify_archives(&database, timeout, interrupted);
    }
    let why = match follow::is_replica(path)? {
        true => {
            "this replica is not followed by this process; call litestream_follow first, or \
                 litestream_verify where it is followed"
        }
        false => {
            "this database follows nothing and is not archived, so there is nothing to \
                  compare it with"
        }
    };
    Err(Error::new(ErrorKind::Refused, why))
}

/// For a follower of an archive.
fn archive_of(follower: &Follower) -> Arc<InArchive> {
    let config = follower.config();
    let (path, url) = (config.path.clone(), config.url.clone());
    let options = config.archive_options.clone();
    Arc::new(move |ours, shift, pos, interrupted| {
        compare(&path, ours, shift, pos, &url, &options, interrupted)
    })
}

/// Each archive in turn, all at one position.
fn verify_archives(
    database: &Database,
    timeout: Duration,
    interrupted: &dyn Fn() -> bool,
) -> Result<String> {
    let deadline = Instant::now() + timeout;
    let is_late = || Instant::now() >= deadline;
    let capture = database.capture().ok_or_else(|| Error::bug("archives without a capture"))?;
    let (mut ours, pos) = capture.freeze()?;
    sync(&database.path, timeout, interrupted)?;
    for archive in database.archives.all() {
        let config = archive.config();
        let (url, options) = (&config.url, &config.archive);
        let stop = || interrupted() || is_late();
        let found = compare(&database.path, &mut ours, 0, pos, url, options, &stop);
        let found = found.map_err(|error| match is_late() {
            true => Error::new(
                ErrorKind::Timeout,
                format!("not done within {} ms: {error}", timeout.as_millis()),
            ),
            false => error.context(archive.url()),
        })?;
        if !found.differences.is_empty() {
            let text = found.describe(archive.url());
            registry::log(Level::Error, &database.path, &format!("verify: {text}"));
            let why = format!("{text}; litestream_snapshot() archives all of this database anew");
            return Err(Error::new(ErrorKind::ChecksumMismatch, why));
        }
    }
    registry::log(Level::Info, &database.path, &format!("verify: archived right at {pos}"));
    Ok("ok".to_owned())
}

/// Compares a state at a position with what the archive has there.
fn compare(
    path: &Path,
    ours: &mut Frozen,
    shift: u32,
    pos: Pos,
    url: &str,
    options: &ArchiveOptions,
    interrupted: &dyn Fn() -> bool,
) -> Result<Verdict> {
    let request = Request {
        url: url.to_owned(),
        options: options.clone(),
        path: with_suffix(path, "-verify"),
        target: Target { generation: Some(pos.generation), until: Until::Pos(pos.to_string()) },
        dry_run: false,
        integrity_check: false,
        threads: THREADS,
    };
    let theirs = restore::scratch(request, interrupted)?;
    let size = ours.page_size();
    let length = theirs.metadata().context(|| "cannot read what was restored".into())?.len();
    let page_count =
        u32::try_from(length / u64::from(size.get())).unwrap_or(u32::MAX).min(u32::MAX - 1);
    let batch = u32::try_from(BATCH_BYTES / size.bytes()).unwrap_or(1);
    let mut pages = [vec![0; BATCH_BYTES], vec![0; BATCH_BYTES]];
    let mut differences = Differences::default();
    let last = page_count.max(ours.page_count());
    let mut next = 1;
    while next <= last {
        if interrupted() {
            return Err(Error::new(ErrorKind::Stopped, "interrupted"));
        }
        let count = batch.min(last - next + 1);
        let bytes = usize::try_from(count).unwrap_or(0) * size.bytes();
        let [mine, restored] = pages.each_mut().map(|pages| pages.get_mut(..bytes));
        let (mine, restored) = (mine.unwrap_or_default(), restored.unwrap_or_default());
        ours.read(next, mine)?;
        read(&theirs, restored, u64::from(next - 1) * u64::from(size.get()))?;
        let both = mine.chunks_exact_mut(size.bytes()).zip(restored.chunks_exact_mut(size.bytes()));
        for (page_no, (mine, restored)) in (next..).zip(both) {
            let there = page_no <= page_count && page_no <= ours.page_count();
            let sums = (page_sum(page_no, mine, size, shift), page_sum(page_no, restored, size, 0));
            if !there || sums.0 != sums.1 {
                differences.add(page_no);
            }
        }
        next = next.saturating_add(count);
    }
    Ok(Verdict { pos, page_count, differences })
}

/// Reads what there is; the rest is zeros.
fn read(file: &File, out: &mut [u8], offset: u64) -> Result<()> {
    let mut done = 0;
    while let Some(rest) = out.get_mut(done..).filter(|rest| !rest.is_empty()) {
        let read = fault::at("verify/restored/read")
            .and_then(|()| file.read_at(rest, offset + done as u64));
        match read.context(|| "cannot read what was restored".into())? {
            0 => {
                rest.fill(0);
                return Ok(());
            }
            read => done += read,
        }
    }
    Ok(())
}
