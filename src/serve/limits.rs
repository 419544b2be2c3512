//! What a client can make the server hold: connections and time. Bytes are bounded in `head` and
//! `conn`.

use std::time::Duration;

use rustix::process::{Resource, getrlimit};

/// The most connections, streams included.
const CONNECTIONS_MAX: usize = 1024;
/// The fewest, however few descriptors the host may open.
const CONNECTIONS_MIN: usize = 16;

/// Bounds of one server.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Limits {
    /// Connections at once, streams included.
    pub(crate) connections: usize,
    /// From accept (or, between two requests, from the first byte) to a request's last byte.
    pub(crate) head: Duration,
    /// Between two requests.
    pub(crate) idle: Duration,
    /// To answer, and to take the answer.
    pub(crate) answer: Duration,
    /// How long a stream's follower may take no byte.
    pub(crate) stall: Duration,
    /// How long one that has acknowledged may be silent. A live one repeats itself every five
    /// seconds, whether it has news or not.
    pub(crate) silence: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        // The descriptors are the host's: at most a quarter of what it may open.
        let files = getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX) / 4;
        let files = usize::try_from(files).unwrap_or(usize::MAX);
        Limits {
            connections: files.clamp(CONNECTIONS_MIN, CONNECTIONS_MAX),
            head: Duration::from_secs(10),
            idle: Duration::from_secs(60),
            answer: Duration::from_secs(15),
            stall: Duration::from_secs(15),
            silence: Duration::from_secs(20),
        }
    }
}
