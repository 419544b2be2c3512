//! The tables: each row source copies what it shows, so a scan holds nothing.

use std::path::Path;
use std::sync::Arc;

use crate::databases::{self, Database};
use crate::error::Result;
use crate::files::with_suffix;
use crate::host::caller::Caller;
use crate::host::function::Answer;
use crate::host::table::TableDef;
use crate::log::Log;
use crate::registry;

use super::target::known_path;
use super::time;

type Rows = Result<Vec<Vec<Answer>>>;

/// The archive column for the log beside the database.
const LOCAL: &str = "local";

/// Every table, in the order of the documentation.
pub(super) static ALL: [TableDef; 6] = [
    TableDef {
        name: "litestream_snapshots",
        columns: &[
            "replica TEXT",
            "generation TEXT",
            "idx INTEGER",
            "size INTEGER",
            "created_at TEXT",
            "pos TEXT",
        ],
        rows: snapshots,
    },
    TableDef {
        name: "litestream_wal_segments",
        columns: &[
            "replica TEXT",
            "generation TEXT",
            "idx INTEGER",
            "\"offset\" INTEGER",
            "size INTEGER",
            "created_at TEXT",
            "pos TEXT",
        ],
        rows: wal_segments,
    },
    TableDef {
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
        ],
        rows: generations,
    },
    TableDef {
        name: "litestream_databases",
        columns: &[
            "path TEXT",
            "role TEXT",
            "state TEXT",
            "generation TEXT",
            "pos TEXT",
            "page_size INTEGER",
            "wal_size INTEGER",
            "addr TEXT",
            "upstream TEXT",
            "lag REAL",
            "error TEXT",
            "since TEXT",
        ],
        rows: all_databases,
    },
    TableDef {
        name: "litestream_followers",
        columns: &[
            "database TEXT",
            "remote TEXT",
            "sent_pos TEXT",
            "applied_pos TEXT",
            "lag REAL",
            "bytes INTEGER",
            "since TEXT",
        ],
        rows: followers,
    },
    TableDef {
        name: "litestream_log",
        columns: &["at TEXT", "level TEXT", "database TEXT", "message TEXT"],
        rows: log_lines,
    },
];

fn integer(number: impl TryInto<i64>) -> Answer {
    Answer::Integer(number.try_into().unwrap_or(i64::MAX))
}

fn shown(path: &Path) -> Answer {
    Answer::Text(path.to_string_lossy().into_owned())
}

/// The log beside the calling connection's `main` database, if it is captured here.
fn local_log(caller: &Caller) -> Result<Option<Arc<Log>>> {
    let Some(path) = known_path(caller)? else { return Ok(None) };
    let capture = databases::find(&path).and_then(|database| database.capture());
    Ok(capture.map(|capture| Arc::clone(capture.log())))
}

fn snapshots(caller: &Caller) -> Rows {
    let Some(log) = local_log(caller)? else { return Ok(Vec::new()) };
    let row = |info: crate::info::SnapshotInfo| {
        vec![
            LOCAL.into(),
            info.generation.to_string().into(),
            integer(info.index.get()),
            integer(info.size),
            time::text(info.created_at),
            info.pos().to_string().into(),
        ]
    };
    Ok(log.snapshots().into_iter().map(row).collect())
}

fn wal_segments(caller: &Caller) -> Rows {
    let Some(log) = local_log(caller)? else { return Ok(Vec::new()) };
    let row = |info: crate::info::WalSegmentInfo| {
        vec![
            LOCAL.into(),
            info.generation.to_string().into(),
            integer(info.index.get()),
            integer(info.offset.get()),
            integer(info.size),
            time::text(info.created_at),
            info.pos().to_string().into(),
        ]
    };
    Ok(log.segments().into_iter().map(row).collect())
}

fn generations(caller: &Caller) -> Rows {
    let Some(log) = local_log(caller)? else { return Ok(Vec::new()) };
    let (Some(start), Some(end)) = (log.start(), log.position()) else { return Ok(Vec::new()) };
    let totals = log.totals();
    Ok(vec![vec![
        LOCAL.into(),
        end.generation.to_string().into(),
        Answer::Integer(1),
        start.to_string().into(),
        end.to_string().into(),
        integer(totals.snapshots),
        integer(totals.segments),
        integer(totals.size),
    ]])
}

fn all_databases(_: &Caller) -> Rows {
    registry::check_fork()?;
    Ok(databases::all().iter().filter_map(|database| row_of(database)).collect())
}

fn row_of(database: &Database) -> Option<Vec<Answer>> {
    let wal = with_suffix(&database.path, "-wal");
    let wal_size = std::fs::metadata(wal).ok().map(|meta| integer(meta.len()));
    let (role, state, error, pos, page_size, upstream, lag);
    if let Some(capture) = database.capture() {
        let status = capture.status();
        role = "primary";
        state = status.0.as_str();
        error = status.1;
        pos = capture.log().position();
        page_size = capture.log().page_size().ok();
        upstream = None;
        lag = None;
    } else {
        let follower = database.follower()?;
        role = "replica";
        let status = follower.status();
        (state, error) = (status.state, status.error);
        pos = status.position;
        page_size = status.page_size;
        upstream = Some(status.upstream);
        lag = Some(follower.lag());
    }
    let urls = database.urls();
    Some(vec![
        shown(&database.path),
        role.into(),
        state.into(),
        pos.map(|pos| pos.generation.to_string()).into(),
        pos.map(|pos| pos.to_string()).into(),
        page_size.map(|size| i64::from(size.get())).into(),
        wal_size.unwrap_or(Answer::Null),
        (!urls.is_empty()).then(|| urls.join(" ")).into(),
        upstream.into(),
        lag.into(),
        error.into(),
        database.since().map_or(Answer::Null, time::text),
    ])
}

fn followers(_: &Caller) -> Rows {
    registry::check_fork()?;
    let row = |follower: crate::serve::FollowerRow| {
        vec![
            shown(&follower.database),
            follower.remote.into(),
            follower.sent_pos.to_string().into(),
            follower.applied_pos.map(|pos| pos.to_string()).into(),
            follower.lag.into(),
            integer(follower.bytes),
            time::text(follower.since),
        ]
    };
    Ok(databases::followers().into_iter().map(row).collect())
}

fn log_lines(_: &Caller) -> Rows {
    let row = |line: registry::Line| {
        let database = Some(line.database.to_string_lossy().into_owned());
        vec![
            time::text(line.at),
            line.level.as_str().into(),
            database.filter(|path| !path.is_empty()).into(),
            line.message.into(),
        ]
    };
    Ok(registry::lines().into_iter().map(row).collect())
}
