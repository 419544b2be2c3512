//! The streams of one server, so that they can be counted and ended.
//!
//! `live` is the truth: a session is in it from before its thread starts until after it has let go
//! of the log. `ended` is signalled with `live` held.

use std::net::Shutdown;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant};

use super::Shared;
use super::channel::Channel;
use super::reply::Reply;
use super::routes::StreamRequest;
use super::served::Served;
use super::session::Session;
use super::socket::{Peer, Socket};
use crate::error::lock;
use crate::registry::{self, Level};

/// The sessions of one server.
#[derive(Default)]
pub(crate) struct Sessions {
    live: Mutex<Vec<Live>>,
    ended: Condvar,
}

struct Live {
    served: Arc<Served>,
    socket: Arc<Socket>,
    stopping: Arc<AtomicBool>,
}

/// Takes a session out of the list when its thread is done with it.
struct Place {
    shared: Arc<Shared>,
    socket: Arc<Socket>,
}

impl Drop for Place {
    fn drop(&mut self) {
        let sessions = &self.shared.sessions;
        lock(&sessions.live).retain(|live| !Arc::ptr_eq(&live.socket, &self.socket));
        sessions.ended.notify_all();
    }
}

impl Sessions {
    /// Ends the streams of a database and waits for their threads, at most `wait`.
    pub(crate) fn end(&self, served: &Arc<Served>, wait: Duration) {
        let deadline = Instant::now() + wait;
        let mut live = lock(&self.live);
        loop {
            let mut left = 0;
            for session in live.iter().filter(|live| Arc::ptr_eq(&live.served, served)) {
                left += 1;
                session.stopping.store(true, Ordering::Release);
                session.socket.shutdown(Shutdown::Both);
            }
            served.log().wake();
            let time = deadline.saturating_duration_since(Instant::now());
            if left == 0 || time.is_zero() {
                return;
            }
            let waited = self.ended.wait_timeout(live, time);
            live = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
    }
}

impl Shared {
    /// How many streams there are.
    pub(crate) fn streams(&self) -> usize {
        lock(&self.sessions.live).len()
    }

    /// Gives a stream its thread.
    pub(crate) fn begin_stream(
        self: &Arc<Self>,
        channel: Channel,
        peer: Peer,
        request: StreamRequest,
    ) {
        let (socket, is_plain) = (Arc::clone(channel.socket()), channel.is_plain());
        let stopping = Arc::new(AtomicBool::new(false));
        let served = Arc::clone(&request.served);
        {
            // With the databases held: one that is taken away meanwhile sees this session, or we
            // see that.
            let databases = lock(&self.databases);
            if !databases.iter().any(|other| Arc::ptr_eq(other, &served)) {
                return;
            }
            let (served, socket, stopping) =
                (Arc::clone(&served), Arc::clone(&socket), Arc::clone(&stopping));
            lock(&self.sessions.live).push(Live { served, socket, stopping });
        }
        let place = Place { shared: Arc::clone(self), socket: Arc::clone(&socket) };
        let limits = self.limits;
        let session = Session { channel, peer, request, stopping, limits };
        let spawned = registry::spawn_worker("litestream-send", move || {
            let place = place;
            session.run();
            drop(place);
        });
        if let Err(error) = spawned {
            let reply = Reply::text(503, "Out of threads").with("Retry-After", "1");
            if is_plain {
                let _ = socket.send(&[std::io::IoSlice::new(&reply.encode(1, false, true))]);
            }
            registry::log(Level::Warn, served.path(), &format!("follower {peer}: {error}"));
        }
    }
}
