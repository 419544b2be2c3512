//! An archive as an upstream: a thread fetches what is new and hands it on as the wire's records.
//!
//! ```text
//! store --list, get--> fetch, by itself --Pipe--> Stream --> session, as from a server
//! ```
//!
//! Nobody is asked and nobody is told anything: any number of replicas may follow one archive, and
//! the primary need not run. A replica sees a commit once it is archived and looked for, so it is
//! behind by the primary's `sync_interval` and the replica's `poll_interval`; its lag counts from
//! when it last had all the archive held. Heartbeats carry the archive's end.

use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use super::fetch::Fetcher;
use super::intents::UpstreamPos;
use super::pipe::{Pipe, Reading, Writing};
use super::shared::{Cut, Shared};
use super::stream::{Body, Stream};
use crate::archive::{Archive, ArchiveOptions};
use crate::error::Result;
use crate::registry;
use crate::wal::PageSize;

/// How often an archive is looked at unless told otherwise.
pub const POLL: Duration = Duration::from_secs(1);
/// The thread that fetches ends at once when it is told to; this long it is waited for.
const END_MAX: Duration = Duration::from_secs(2);

/// How much of an archive is wanted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Extent {
    /// Everything, and what is added later; from a snapshot on if need be.
    Endless,
    /// What it holds now after the replica's position, or nothing.
    Rest,
}

/// Where a replica is, in the archive's history.
#[derive(Debug, Clone, Copy)]
pub struct From {
    /// What it holds.
    pub upstream: UpstreamPos,
    /// Its page size.
    pub page_size: PageSize,
}

/// An archive to follow.
#[derive(Debug, Clone)]
pub struct ArchiveSource {
    url: String,
    options: ArchiveOptions,
    poll: Duration,
}

impl ArchiveSource {
    /// Fails at once for what can be no archive. `poll`: how often it is looked at.
    pub fn new(url: &str, options: &ArchiveOptions, poll: Duration) -> Result<Self> {
        Archive::open(url, options)?;
        Ok(Self { url: url.to_owned(), options: options.clone(), poll })
    }

    /// Where it is.
    pub fn url(&self) -> &str {
        &self.url
    }

    /// Begins to fetch; waits until it is known from where on.
    pub fn open(&self, from: Option<From>, extent: Extent, shared: &Shared) -> Result<Stream> {
        let archive = Arc::new(Archive::open(&self.url, &self.options)?);
        let store = Arc::clone(archive.store());
        let pipe = Pipe::new(move || store.close());
        shared.adopt(Arc::clone(&pipe) as Arc<dyn Cut>);
        let mut body = Fetched { reading: Reading(Arc::clone(&pipe)), thread: None };
        let writing = Writing::new(&pipe);
        let poll = self.poll;
        body.thread = Some(registry::spawn_worker("follow-fetch", move || {
            let outcome = Fetcher::new(&archive, &writing, poll, extent).run(from);
            writing.finish(outcome);
        })?);
        let manners = pipe.manners()?;
        Ok(Stream::new(Box::new(body), manners, None))
    }
}

/// What the thread fetches. Dropping it ends the thread.
struct Fetched {
    reading: Reading,
    thread: Option<JoinHandle<()>>,
}

impl Body for Fetched {
    fn read(&mut self, out: &mut [u8], wait: Duration) -> Result<Option<usize>> {
        self.reading.read(out, wait)
    }
}

impl Drop for Fetched {
    fn drop(&mut self) {
        self.reading.0.cut();
        let deadline = Instant::now() + END_MAX;
        let Some(thread) = self.thread.take() else { return };
        while !thread.is_finished() {
            if Instant::now() >= deadline {
                return;
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        registry::join(thread);
    }
}
