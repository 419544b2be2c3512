//! The tables: each row source copies what it shows, so a scan holds nothing.

use std::path::Path;

use crate::databases::{self, DatabaseRow, ReplicaRow};
use crate::error::Result;
use crate::host::caller::Caller;
use crate::host::function::Answer;
use crate::host::table::TableDef;
use crate::registry;

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
    let row = |row: DatabaseRow| {
        vec![
            row.path.into(),
            row.role.into(),
            row.state.into(),
            row.pos.map(|pos| pos.generation.to_string()).into(),
            row.pos.map(|pos| pos.to_string()).into(),
            row.page_size.map(i64::from).into(),
            row.wal_size.map_or(Answer::Null, integer),
            row.addr.into(),
            row.upstream.into(),
            row.lag.into(),
            row.error.into(),
            row.since.map_or(Answer::Null, time::text),
        ]
    };
    Ok(databases::database_rows().into_iter().map(row).collect())
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
    let row = |row: ReplicaRow| {
        vec![
            row.database.into(),
            row.url.into(),
            row.pos.map(|pos| pos.to_string()).into(),
            row.state.into(),
            row.last_sync.map_or(Answer::Null, time::text),
            row.error.into(),
        ]
    };
    Ok(databases::replica_rows().into_iter().map(row).collect())
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
