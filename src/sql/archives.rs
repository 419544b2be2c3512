//! The tables of snapshots, segments and generations: those of the log beside the database and of
//! the archives it is replicated to, or of any archive that is named.
//!
//! | asked for as                 | lists                                                        |
//! |------------------------------|--------------------------------------------------------------|
//! | `FROM t`                     | the local log, then each archive of this database            |
//! | `FROM t WHERE replica = 'R'` | R of these alone: no other archive is contacted              |
//! | `FROM t('URL', 'OPTIONS')`   | the archive at URL, whatever this connection has open        |
//! | `FROM t(NULL)`               | nothing                                                      |
//!
//! Archives are listed in a thread of their own, so that the statement can be interrupted. Of an
//! archive, sizes and times are the store's, and nothing is opened: a generation's end is what its
//! position object says, or what can be told from names if that is further.

use std::sync::Arc;
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::time::{Duration, Instant, SystemTime};

use crate::archive::{Archive, ArchiveOptions, Listing};
use crate::databases;
use crate::error::{Error, ErrorKind, Result};
use crate::host::caller::Caller;
use crate::host::function::Answer;
use crate::host::table::{Given, Input, Listing as Found, Rows, SearchDef};
use crate::info::{SnapshotInfo, WalSegmentInfo, total};
use crate::log::Log;
use crate::options::Options;
use crate::pos::{Generation, Offset, Pos};
use crate::registry;

use super::tables::integer;
use super::target::known_path;
use super::time;

/// What the column `replica` says of the log beside the database.
const LOCAL: &str = "local";
/// The longest a scan may take to list archives.
const LIST_MAX: Duration = Duration::from_secs(60);
/// How often the listing is interrupted to ask whether the statement is.
const INTERRUPT_POLL: Duration = Duration::from_millis(20);

/// The tables, in the order of the documentation.
pub(super) static ALL: [SearchDef; 3] = [
    SearchDef {
        name: "litestream_snapshots",
        columns: &[
            "replica TEXT",
            "generation TEXT",
            "idx INTEGER",
            "size INTEGER",
            "created_at TEXT",
            "pos TEXT",
            "archive HIDDEN",
            "options HIDDEN",
        ],
        key: 3,
        inputs: &[Input::Filter(0), Input::Argument(6), Input::Argument(7)],
        rows: snapshots,
    },
    SearchDef {
        name: "litestream_wal_segments",
        columns: &[
            "replica TEXT",
            "generation TEXT",
            "idx INTEGER",
            "\"offset\" INTEGER",
            "size INTEGER",
            "created_at TEXT",
            "pos TEXT",
            "archive HIDDEN",
            "options HIDDEN",
        ],
        key: 4,
        inputs: &[Input::Filter(0), Input::Argument(7), Input::Argument(8)],
        rows: wal_segments,
    },
    SearchDef {
        name: "litestream_generations",
        columns: &[
            "replica TEXT",
            "generation TEXT",
            "current INTEGER",
            "start TEXT",
            "\"end\" TEXT",
            "snapshots INTEGER",
            "segments INTEGER",
            "size INTEGER",
            "archive HIDDEN",
            "options HIDDEN",
        ],
        key: 2,
        inputs: &[Input::Filter(0), Input::Argument(8), Input::Argument(9)],
        rows: generations,
    },
];

/// Rows of one kind, made of small things when they are asked for: an archive may have a million.
struct Listed<T> {
    /// With what the column `replica` says.
    items: Vec<(Arc<str>, T)>,
    row: fn(&T) -> Vec<Answer>,
    /// The hidden column's value.
    archive: Option<String>,
    /// How many columns there are before it.
    columns: usize,
}

impl<T> Rows for Listed<T> {
    fn count(&self) -> usize {
        self.items.len()
    }

    fn row(&self, at: usize) -> Vec<Answer> {
        let Some((replica, item)) = self.items.get(at) else { return Vec::new() };
        let mut row = vec![Answer::from(&**replica)];
        row.append(&mut (self.row)(item));
        row.resize(self.columns, Answer::Null);
        // Its options may hold secrets: they are never shown.
        row.push(self.archive.clone().into());
        row
    }
}

/// What is wanted of the log (`local`) and of archives (`held`).
fn listed<T: 'static>(
    caller: &Caller,
    given: &[Given],
    local: impl Fn(&Log) -> Vec<T>,
    held: impl Fn(&[Listing]) -> Vec<T>,
    row: fn(&T) -> Vec<Answer>,
    columns: usize,
) -> Found {
    let wanted = Wanted::of(given)?;
    let mut items = Vec::new();
    if let Some(log) = wanted.log(caller)? {
        items.extend(local(&log).into_iter().map(|item| (Arc::from(LOCAL), item)));
    }
    for (url, listings) in wanted.list(caller)? {
        items.extend(held(&listings).into_iter().map(|item| (Arc::clone(&url), item)));
    }
    Ok(Box::new(Listed { items, row, archive: wanted.archive_url(), columns }))
}

fn snapshots(caller: &Caller, given: &[Given]) -> Found {
    let held = |listings: &[Listing]| {
        let found = listings.iter().flat_map(|listing| &listing.snapshots);
        found.map(|snapshot| snapshot.info).collect()
    };
    let row = |info: &SnapshotInfo| {
        vec![
            info.generation.to_string().into(),
            integer(info.index.get()),
            integer(info.size),
            time::text(info.created_at),
            info.pos().to_string().into(),
        ]
    };
    listed(caller, given, |log| log.snapshots(), held, row, 6)
}

fn wal_segments(caller: &Caller, given: &[Given]) -> Found {
    let held = |listings: &[Listing]| {
        let found = listings.iter().flat_map(|listing| &listing.segments);
        found.map(|segment| segment.info).collect()
    };
    let row = |info: &WalSegmentInfo| {
        vec![
            info.generation.to_string().into(),
            integer(info.index.get()),
            integer(info.offset.get()),
            integer(info.size),
            time::text(info.created_at),
            info.pos().to_string().into(),
        ]
    };
    listed(caller, given, |log| log.segments(), held, row, 7)
}

fn generations(caller: &Caller, given: &[Given]) -> Found {
    let row = |summary: &Summary| {
        vec![
            summary.generation.to_string().into(),
            Answer::Integer(i64::from(summary.is_current)),
            summary.start.to_string().into(),
            summary.end.to_string().into(),
            integer(summary.snapshots),
            integer(summary.segments),
            integer(summary.size),
        ]
    };
    let local = |log: &Log| Summary::of_log(log).into_iter().collect();
    listed(caller, given, local, summaries, row, 8)
}

/// A generation, as the table shows it.
#[derive(Debug, PartialEq)]
struct Summary {
    generation: Generation,
    is_current: bool,
    start: Pos,
    end: Pos,
    snapshots: usize,
    segments: usize,
    size: u64,
}

impl Summary {
    fn of_log(log: &Log) -> Option<Summary> {
        let (start, end) = (log.start()?, log.position()?);
        let totals = log.totals();
        Some(Summary {
            generation: end.generation,
            is_current: true,
            start,
            end,
            snapshots: totals.snapshots,
            segments: totals.segments,
            size: totals.size,
        })
    }
}

/// An archive's generations. The one that began last, by the store's clock, is the current one.
fn summaries(listings: &[Listing]) -> Vec<Summary> {
    let newest = listings.iter().filter_map(|listing| Some((began(listing)?, listing.generation)));
    let newest = newest.max().map(|(_, generation)| generation);
    let summary = |listing: &Listing| {
        let snapshots = listing.snapshots.iter().map(|snapshot| snapshot.info);
        let segments = listing.segments.iter().map(|segment| segment.info);
        let starts = snapshots.clone().map(|info| (info.index, Offset::ZERO));
        let pieces = starts.clone().chain(segments.clone().map(|info| (info.index, info.offset)));
        let (index, offset) = starts.min().or_else(|| pieces.clone().min())?;
        let start = Pos::new(listing.generation, index, offset);
        let ends = listing.ends.iter().map(|(index, offset)| (*index, *offset));
        let told = listing.position.map(|pos| (pos.index, pos.offset));
        let (index, offset) = pieces.chain(ends).chain(told).max()?;
        let end = Pos::new(listing.generation, index, offset);
        Some(Summary {
            generation: listing.generation,
            is_current: newest == Some(listing.generation),
            start,
            end,
            snapshots: listing.snapshots.len(),
            segments: listing.segments.len(),
            size: total(snapshots.map(|it| it.size).chain(segments.map(|it| it.size))),
        })
    };
    listings.iter().filter_map(summary).collect()
}

/// When the first of what is left of a generation was stored.
fn began(listing: &Listing) -> Option<SystemTime> {
    let snapshots = listing.snapshots.iter().map(|snapshot| snapshot.info.created_at);
    snapshots.chain(listing.segments.iter().map(|segment| segment.info.created_at)).min()
}

/// What a statement asks for.
struct Wanted {
    /// The archive it names; none: the log and the archives of this database.
    archive: Option<(String, ArchiveOptions)>,
    replica: Given,
}

impl Wanted {
    fn of(given: &[Given]) -> Result<Wanted> {
        let [replica, archive, options] = given else {
            return Err(Error::bug("a table with other inputs"));
        };
        let mut replica = replica.clone();
        let url = match archive {
            Given::Nothing => None,
            // As everything compared with NULL: no row, so a LEFT JOIN may have URLs that are NULL.
            Given::Other("null") => {
                replica = Given::Other("null");
                None
            }
            Given::Text(url) => Some(url.clone()),
            Given::Other(kind) => {
                let why = format!("an archive is a text such as 's3://bucket/prefix', not {kind}");
                return Err(Error::usage(why));
            }
        };
        let options = match options {
            Given::Nothing | Given::Other("null") => None,
            Given::Text(text) => Some(text.as_str()),
            Given::Other(kind) => {
                return Err(Error::usage(format!("options must be text, not {kind}")));
            }
        };
        let mut options_left = Options::parse(options)?;
        let taken = ArchiveOptions::take(&mut options_left)?;
        options_left.finish()?;
        if *archive == Given::Nothing && options.is_some() {
            return Err(Error::usage("options need an archive they are for"));
        }
        let archive = url.map(|url| (url, taken));
        Ok(Wanted { archive, replica })
    }

    fn archive_url(&self) -> Option<String> {
        self.archive.as_ref().map(|(url, _)| url.clone())
    }

    /// Whether rows of this replica may be wanted. SQLite compares once more, by whatever collation
    /// the statement names, so this one takes for equal what any of the usual ones does.
    fn wants(&self, replica: &str) -> bool {
        match &self.replica {
            Given::Nothing => true,
            Given::Text(text) => text.trim_end().eq_ignore_ascii_case(replica.trim_end()),
            Given::Other(_) => false,
        }
    }

    /// The log beside the calling connection's `main` database, if it is captured here and wanted.
    fn log(&self, caller: &Caller) -> Result<Option<Arc<Log>>> {
        if self.archive.is_some() || !self.wants(LOCAL) {
            return Ok(None);
        }
        let Some(path) = known_path(caller, "main")? else { return Ok(None) };
        let capture = databases::find(&path).and_then(|database| database.capture());
        Ok(capture.map(|capture| Arc::clone(capture.log())))
    }

    /// Lists the archives that are wanted.
    fn list(&self, caller: &Caller) -> Result<Vec<(Arc<str>, Vec<Listing>)>> {
        let named = self.archive.iter().map(|(url, options)| (url.clone(), options.clone()));
        let mut archives: Vec<(String, ArchiveOptions)> = named.collect();
        let is_named = !archives.is_empty();
        if !is_named && let Some(path) = known_path(caller, "main")? {
            archives = databases::find(&path).map_or_else(Vec::new, |found| found.archives());
        }
        archives.retain(|(url, _)| self.wants(url));
        let archives = archives.iter().map(|(url, options)| Archive::open(url, options));
        let archives = archives.collect::<Result<Vec<_>>>()?;
        let Some(others) = archives.len().checked_sub(1) else { return Ok(Vec::new()) };
        list_all(archives, &|| caller.interrupted()).map_err(|error| {
            let more = others > 0 || (!is_named && self.replica == Given::Nothing);
            match more && error.kind() != ErrorKind::Stopped {
                true => {
                    let why = format!("{error}; WHERE replica = '{LOCAL}' reads the log alone");
                    Error::new(error.kind(), why)
                }
                false => error,
            }
        })
    }
}

/// Lists archives in a thread of their own, which is told to end if the statement is interrupted or
/// it takes too long.
fn list_all(
    archives: Vec<Archive>,
    interrupted: &dyn Fn() -> bool,
) -> Result<Vec<(Arc<str>, Vec<Listing>)>> {
    let archives = Arc::new(archives);
    let (sender, receiver) = channel();
    let theirs = Arc::clone(&archives);
    registry::spawn_worker("archive-list", move || {
        for archive in theirs.iter() {
            let outcome = list_one(archive);
            let failed = outcome.is_err();
            if sender.send(outcome).is_err() || failed {
                return;
            }
        }
    })?;
    let deadline = Instant::now() + LIST_MAX;
    let mut found = Vec::new();
    let outcome = loop {
        let Some(archive) = archives.get(found.len()) else { break Ok(()) };
        let fail = |kind, why: String| Err(Error::new(kind, format!("{}: {why}", archive.url())));
        match receiver.recv_timeout(INTERRUPT_POLL) {
            Ok(Ok(listings)) => found.push((Arc::from(archive.url()), listings)),
            Ok(Err(error)) => break Err(error),
            Err(RecvTimeoutError::Disconnected) => {
                break fail(ErrorKind::Bug, "the listing died; see litestream_log".to_owned());
            }
            Err(RecvTimeoutError::Timeout) if interrupted() => {
                break Err(Error::new(ErrorKind::Stopped, "interrupted"));
            }
            Err(RecvTimeoutError::Timeout) if Instant::now() >= deadline => {
                let why = format!("not listed within {} seconds", LIST_MAX.as_secs());
                break fail(ErrorKind::Timeout, why);
            }
            Err(RecvTimeoutError::Timeout) => {}
        }
    };
    if outcome.is_err() {
        archives.iter().for_each(|archive| archive.store().close());
    }
    outcome.map(|()| found)
}

fn list_one(archive: &Archive) -> Result<Vec<Listing>> {
    let what = |error: Error| error.context(format!("cannot list {}", archive.url()));
    let generations = archive.generations().map_err(what)?;
    generations.into_iter().map(|name| archive.list(name).map_err(what)).collect()
}
