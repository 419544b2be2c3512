//! What is told of a database: the same in `litestream_databases`, in `litestream_replicas` and in
//! what a server answers to `GET /status`.

use std::sync::Arc;
use std::time::SystemTime;

use serde_json::Value;

use super::{Database, all, archives, find};
use crate::files::with_suffix;
use crate::info::shown_time;
use crate::pos::Pos;
use crate::replicate::Replica;
use crate::serve::{Row, Status};

/// A row of `litestream_databases`.
#[derive(Clone, Debug)]
pub struct DatabaseRow {
    /// Its canonical path.
    pub path: String,
    /// `primary` or `replica`.
    pub role: &'static str,
    /// What it is doing.
    pub state: &'static str,
    /// Where it is.
    pub pos: Option<Pos>,
    /// Bytes of a page.
    pub page_size: Option<u32>,
    /// Bytes of its WAL.
    pub wal_size: Option<u64>,
    /// Where it is served, with spaces between.
    pub addr: Option<String>,
    /// What it follows.
    pub upstream: Option<String>,
    /// Seconds behind that.
    pub lag: Option<f64>,
    /// What is wrong.
    pub error: Option<String>,
    /// When the work began.
    pub since: Option<SystemTime>,
}

/// A row of `litestream_replicas`.
#[derive(Clone, Debug)]
pub struct ReplicaRow {
    /// The database's canonical path.
    pub database: String,
    /// Which archive.
    pub url: String,
    /// How far that reaches.
    pub pos: Option<Pos>,
    /// What is being done.
    pub state: &'static str,
    /// When it last had everything.
    pub last_sync: Option<SystemTime>,
    /// What is wrong.
    pub error: Option<String>,
}

/// The databases this process works on.
pub fn database_rows() -> Vec<DatabaseRow> {
    all().iter().filter_map(|database| database.row()).collect()
}

/// Their archives.
pub fn replica_rows() -> Vec<ReplicaRow> {
    archives().iter().map(|(database, replica)| database.replica_row(replica)).collect()
}

impl Database {
    fn row(&self) -> Option<DatabaseRow> {
        let wal = with_suffix(&self.path, "-wal");
        let urls = self.urls();
        let row = DatabaseRow {
            path: self.path.to_string_lossy().into_owned(),
            role: "primary",
            state: "",
            pos: None,
            page_size: None,
            wal_size: std::fs::metadata(wal).ok().map(|meta| meta.len()),
            addr: (!urls.is_empty()).then(|| urls.join(" ")),
            upstream: None,
            lag: None,
            error: None,
            since: self.since(),
        };
        if let Some(capture) = self.capture() {
            let (state, error, _) = capture.status();
            return Some(DatabaseRow {
                state: state.as_str(),
                error: error.or_else(|| self.server_error()),
                pos: capture.log().position(),
                page_size: capture.log().page_size().ok().map(|size| size.get()),
                ..row
            });
        }
        let follower = self.follower()?;
        let status = follower.status();
        Some(DatabaseRow {
            role: "replica",
            state: status.state,
            error: status.error,
            pos: status.position,
            page_size: status.page_size.map(|size| size.get()),
            upstream: Some(status.upstream),
            lag: Some(follower.lag()),
            ..row
        })
    }

    fn replica_row(&self, replica: &Replica) -> ReplicaRow {
        let status = replica.status();
        ReplicaRow {
            database: self.path.to_string_lossy().into_owned(),
            url: replica.url().to_owned(),
            pos: status.pos,
            state: status.state.as_str(),
            last_sync: status.last_sync,
            error: status.error,
        }
    }
}

/// What a server tells of the database at `path`.
pub(super) fn status(path: &std::path::Path) -> Status {
    let Some(database) = find(path) else { return Status::default() };
    let replicas: Vec<Arc<Replica>> = database.archives.all();
    Status {
        database: database.row().map(of_database).unwrap_or_default(),
        replicas: replicas.iter().map(|it| of_replica(database.replica_row(it))).collect(),
    }
}

fn of_database(row: DatabaseRow) -> Row {
    vec![
        ("path", row.path.into()),
        ("role", row.role.into()),
        ("state", row.state.into()),
        ("generation", row.pos.map(|pos| pos.generation.to_string()).into()),
        ("pos", shown(row.pos)),
        ("page_size", row.page_size.into()),
        ("wal_size", row.wal_size.into()),
        ("addr", row.addr.into()),
        ("upstream", row.upstream.into()),
        ("lag", row.lag.into()),
        ("error", row.error.into()),
        ("since", row.since.map(shown_time).into()),
    ]
}

fn of_replica(row: ReplicaRow) -> Row {
    vec![
        ("database", row.database.into()),
        ("url", row.url.into()),
        ("pos", shown(row.pos)),
        ("state", row.state.into()),
        ("last_sync", row.last_sync.map(shown_time).into()),
        ("error", row.error.into()),
    ]
}

fn shown(pos: Option<Pos>) -> Value {
    pos.map(|pos| pos.to_string()).into()
}
