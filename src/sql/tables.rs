//! The tables: each row source copies what it shows, so a scan holds nothing.

use std::path::Path;
use std::sync::Arc;

use crate::databases::{self, Database};
use crate::error::Result;
use crate::files::with_suffix;
use crate::host::caller::Caller;
use crate::host::function::Answer;
use crate::host::table::TableDef;
use crate::registry;
use crate::replicate::Replica;

use super::time;

type Rows = Result<Vec<Vec<Answer>>>;

/// Every table but those of archives.rs, in the order of the documentation.
pub(super) static ALL: [TableDef; 4] = [
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
        name: "litestream_replicas",
        columns: &[
            "database TEXT",
            "url TEXT",
            "pos TEXT",
            "state TEXT",
            "last_sync TEXT",
            "error TEXT",
        ],
        rows: replicas,
    },
    TableDef {
        name: "litestream_log",
        columns: &["at TEXT", "level TEXT", "database TEXT", "message TEXT"],
        rows: log_lines,
    },
];

pub(super) fn integer(number: impl TryInto<i64>) -> Answer {
    Answer::Integer(number.try_into().unwrap_or(i64::MAX))
}

fn shown(path: &Path) -> Answer {
    Answer::Text(path.to_string_lossy().into_owned())
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
        error = status.1.or_else(|| database.server_error());
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

fn replicas(_: &Caller) -> Rows {
    registry::check_fork()?;
    let row = |(database, replica): (Arc<Database>, Arc<Replica>)| {
        let status = replica.status();
        vec![
            shown(&database.path),
            replica.url().into(),
            status.pos.map(|pos| pos.to_string()).into(),
            status.state.as_str().into(),
            status.last_sync.map_or(Answer::Null, time::text),
            status.error.into(),
        ]
    };
    Ok(databases::archives().into_iter().map(row).collect())
}

fn log_lines(_: &Caller) -> Rows {
    registry::check_fork()?;
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
