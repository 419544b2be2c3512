//! Follows an upstream: makes a database file a live read replica and keeps it one.
//!
//! ```text
//! client, url, stream          bytes off the wire
//! archive, fetch, held, pipe   the same records out of an archive, proved on the way
//! source                       which of them
//! session, cursor              records in order, proved by the upstream's checksum chain
//! replica, image, schema       into which file, the first snapshot, and another history's
//! apply, found, frames, index  a WAL writer of its own under unmodified readers
//! intents, dir, left           where in the upstream's history the replica is, exactly
//! keeper, worker, pace         checkpoints, threads, when
//! meet, verify                 the replica at one position, compared with its upstream there
//! ```
//!
//! What readers of the replica see is the state after some whole transaction of the upstream, and
//! it never goes back. Whoever else writes gets "database is locked". Errors of the background
//! threads are data ([`Status::error`]), cleared by the next success.

mod apply;
mod archive;
mod client;
mod cursor;
mod dir;
mod fetch;
mod found;
mod frames;
#[cfg(any(test, fuzzing))]
#[path = "../../fuzz/targets/follow.rs"]
pub(crate) mod fuzz;
mod held;
mod image;
mod index;
mod intents;
mod keeper;
mod left;
mod meet;
mod pace;
mod pipe;
mod plan;
mod proved;
mod replica;
mod schema;
mod session;
mod shared;
mod source;
mod stream;
mod url;
mod verify;
mod worker;

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crate::archive::ArchiveOptions;
use crate::archive::options::is_archive_url;
use crate::error::{Error, ErrorKind, Result, lock};
use crate::host::api::randomness;
use crate::pos::{Generation, Pos};
use crate::registry;
use crate::token::Token;
use crate::transport::CONNECT_MAX;
use crate::wal::PageSize;

use apply::Applier;
use archive::{ArchiveSource, POLL};
use client::Client;
use dir::ReplicaDir;
use replica::Replica;
use shared::Shared;
pub use shared::covers;
use source::Source;
use url::Upstream;
pub use verify::{InArchive, Verdict};

/// How long a stop waits for the threads to end: longer than looking up a host's name may take, the
/// one wait of theirs that cannot be cut short.
const STOP_MAX: Duration = Duration::from_secs(CONNECT_MAX.as_secs() + 2);

/// What to follow, and into which file.
#[derive(Debug, Clone, Default)]
pub struct FollowConfig {
    /// The replica's database file. Made if it does not exist.
    pub path: PathBuf,
    /// The VFS it is opened with; empty: the host's default.
    pub vfs: String,
    /// The upstream: `http://host:port`, `https://...` or `unix:/socket`; or an archive,
    /// `file:///...` or `s3://...`.
    pub url: String,
    /// The database's path or file name there; none: the only one it serves.
    pub upstream_path: Option<String>,
    /// Sent as `Authorization: Bearer`; none: LITESTREAM_TOKEN, if it is set.
    pub token: Option<Token>,
    /// A PEM file with the roots to trust for https, instead of the public ones.
    pub ca: Option<PathBuf>,
    /// Whether a file that holds other data may be replaced.
    pub overwrite: bool,
    /// How large the replica's database may become, and what one transaction may have in its WAL,
    /// in bytes; none: any size.
    pub bytes_max: Option<u64>,
    /// An archive to catch up from when the upstream does not hold the replica's position any more.
    pub archive: Option<String>,
    /// How to reach an archive.
    pub archive_options: ArchiveOptions,
    /// How often an archive that is followed is looked at; zero: every second.
    pub poll_interval: Duration,
}

/// What a follower is doing.
#[derive(Debug, Clone)]
pub struct Status {
    /// connecting, snapshot, catching-up, streaming, waiting or stopped.
    pub state: &'static str,
    /// Why it last failed; none since the last success.
    pub error: Option<String>,
    /// The URL it follows.
    pub upstream: String,
    /// The upstream's history it is in.
    pub generation: Option<Generation>,
    /// The position readers see.
    pub position: Option<Pos>,
    /// The page size; none before the first connection.
    pub page_size: Option<PageSize>,
    /// The upstream's own position, as it last told.
    pub upstream_position: Option<Pos>,
}

/// A database being followed into. Dropping it tells its threads to end.
pub struct Follower {
    config: FollowConfig,
    shared: Arc<Shared>,
    threads: Mutex<Vec<JoinHandle<()>>>,
}

/// Begins to follow. Fails at once for what trying again cannot mend: a URL that is none, a file
/// that holds other data or is in use by another follower. The upstream itself is reached for in
/// the background.
pub fn start(config: FollowConfig) -> Result<Arc<Follower>> {
    let source = source(&config)?;
    let replica = Replica::open(&config.path, &config.vfs, &config.url, config.overwrite)?
        .with_bytes_max(config.bytes_max.unwrap_or(u64::MAX));
    let shared = Shared::new(replica.pos());
    let for_ack = match &source {
        Source::Server(client, _) => Some(client.clone()),
        Source::Archive(_) => None,
    };
    let mut threads = Vec::new();
    let state = Arc::clone(&shared);
    threads.push(registry::spawn_worker("follow", move || {
        worker::follow(&state, &source, replica);
    })?);
    let follower = Arc::new(Follower { config, shared, threads: Mutex::new(threads) });
    if let Some(client) = for_ack {
        let state = Arc::clone(&follower.shared);
        let acknowledger = registry::spawn_worker("follow-ack", move || {
            worker::acknowledge(&state, &client);
        });
        lock(&follower.threads).push(acknowledger.inspect_err(|_| follower.shared.stop())?);
    }
    Ok(follower)
}

/// What `config` says is followed.
fn source(config: &FollowConfig) -> Result<Source> {
    let poll = match config.poll_interval {
        Duration::ZERO => POLL,
        poll => poll,
    };
    let archive = |url: &str| ArchiveSource::new(url, &config.archive_options, poll);
    if is_archive_url(&config.url) {
        if config.archive.is_some() {
            let why = "option \"archive\" is for catching up with a server; an archive is followed \
                       alone";
            return Err(Error::usage(why));
        }
        return Ok(Source::Archive(archive(&config.url)?));
    }
    let upstream = Upstream::parse(&config.url, config.upstream_path.as_deref())?;
    let token = Token::or_environment(config.token.clone())?;
    let mut id = [0; 8];
    randomness(&mut id);
    let id = format!("{:016x}", u64::from_ne_bytes(id));
    let client = Client::new(upstream, id, token, config.ca.as_ref())?;
    Ok(Source::Server(client, config.archive.as_deref().map(archive).transpose()?))
}

impl Follower {
    /// How it was started.
    pub fn config(&self) -> &FollowConfig {
        &self.config
    }

    /// What it is doing.
    pub fn status(&self) -> Status {
        let inner = self.shared.get();
        // A panic of the thread is in the log; here it must not look like work.
        let dead = !self.shared.is_stopping()
            && lock(&self.threads).first().is_some_and(JoinHandle::is_finished);
        let error = match dead {
            true => Some("the thread that follows died; see litestream_log".to_owned()),
            false => inner.error,
        };
        Status {
            state: inner.state.as_str(),
            error,
            upstream: self.config.url.clone(),
            generation: inner.position.map(|pos| pos.generation),
            position: inner.position,
            page_size: inner.page_size,
            upstream_position: inner.upstream_position,
        }
    }

    /// The last position published to readers.
    pub fn position(&self) -> Option<Pos> {
        self.shared.get().position
    }

    /// Waits at most `limit` until readers see `pos`; whether they do.
    pub fn wait(&self, pos: Pos, limit: Duration) -> bool {
        self.shared.wait(limit, |inner| shared::covers(inner.position, pos))
    }

    /// Waits at most `limit` until everything is applied that the upstream had committed when the
    /// follower was started; whether it is.
    pub fn wait_caught_up(&self, limit: Duration) -> bool {
        self.shared.wait(limit, |inner| inner.caught_up)
    }

    /// Whether everything is applied that the upstream had committed when the follower was started.
    pub fn caught_up_to_start(&self) -> bool {
        self.shared.get().caught_up
    }

    /// The last failure, if trying again will not mend it: a wrong token, an unknown database, a
    /// file of another page size.
    pub fn refusal(&self) -> Option<Error> {
        let inner = self.shared.get();
        let lasting = [ErrorKind::Refused, ErrorKind::Unsupported];
        let kind = inner.error_kind.filter(|kind| lasting.contains(kind))?;
        inner.error.map(|text| Error::new(kind, text))
    }

    /// Seconds behind the upstream, as far as is known.
    pub fn lag(&self) -> f64 {
        shared::lag(&self.shared.get(), Instant::now())
    }

    /// Ends the threads and releases every lock on the database. The file stays a replica.
    pub fn stop(&self) -> Result<()> {
        self.shared.stop();
        let deadline = Instant::now() + STOP_MAX;
        let mut threads = lock(&self.threads);
        while let Some(thread) = threads.pop() {
            while !thread.is_finished() {
                if Instant::now() >= deadline {
                    threads.push(thread);
                    let text = "a thread that follows has not ended yet; try again";
                    return Err(Error::new(ErrorKind::Timeout, text));
                }
                std::thread::sleep(Duration::from_millis(1));
            }
            registry::join(thread);
        }
        Ok(())
    }

    /// Stops, and makes the file an ordinary writable database. Returns its position.
    pub fn promote(&self) -> Result<Option<Pos>> {
        self.stop()?;
        promote_idle(&self.config.path, &self.config.vfs)
    }
}

impl Drop for Follower {
    fn drop(&mut self) {
        self.shared.stop();
    }
}

/// Whether the database at `path` is a replica, followed now or not.
pub fn is_replica(path: &Path) -> Result<bool> {
    ReplicaDir::of(path).is_replica()
}

/// The position the replica at `path` was last known to be at, by whichever process follows it.
pub fn read_position(path: &Path) -> Option<Pos> {
    ReplicaDir::of(path).read_position()
}

/// Makes a replica that nobody follows an ordinary writable database. Returns its position; none if
/// it is not known.
pub fn promote_idle(path: &Path, vfs: &str) -> Result<Option<Pos>> {
    let dir = ReplicaDir::of(path);
    if !dir.is_replica()? {
        let text = format!("{} is not a replica", path.display());
        return Err(Error::new(ErrorKind::Usage, text));
    }
    if dir.is_filling()? {
        return Err(Error::new(
            ErrorKind::Refused,
            format!("{} never received all of its first snapshot; delete it", path.display()),
        ));
    }
    // Its lock proves that no other process follows; its position is exact.
    let applier = Applier::open(path, vfs, &dir)?;
    let pos = applier.pos();
    dir.unmark_replica()?;
    drop(applier);
    Ok(pos)
}
