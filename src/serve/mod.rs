//! The HTTP server: gives followers a database's history, and tells people and monitors how it is.
//!
//! | file       | has                                                       | uses            |
//! |------------|-----------------------------------------------------------|-----------------|
//! | `address`  | what to listen on                                         |                 |
//! | `front`    | the accept thread; connections that are not streams       | `conn`          |
//! | `conn`     | one such connection                                       | `hub`, `head`   |
//! | `channel`  | its bytes, plain or through TLS                           | `socket`        |
//! | `tls`      | the certificate, read again when it changes               |                 |
//! | `hub`      | tiny_http behind a private socket, the router's thread    | `routes`        |
//! | `routes`   | which request gets which answer                           | `query`         |
//! | `sessions` | the streams there are                                     | `session`       |
//! | `session`  | a stream: one thread that writes records to a follower    | `chunk`         |
//! | `checksums`| the checksums of a database's pages, for a replica        | `session`       |
//! | `status`   | what there is, for programs and for people                | `served`        |
//! | `served`   | a database and its followers                              | `metrics`, `turns` |
//! | `turns`    | who reads all pages of a database, and when               |                 |
//!
//! Locks, in the order in which they may be taken: `SERVERS`, `Shared::databases`,
//! `Sessions::live`, `Served`'s; none is held while a socket or a file is used, but `SERVERS` while
//! one is bound.

mod address;
mod channel;
mod checksums;
mod chunk;
mod conn;
mod front;
#[cfg(any(test, fuzzing))]
#[path = "../../fuzz/targets/serve.rs"]
pub(crate) mod fuzz;
mod head;
mod hub;
mod limits;
mod metrics;
mod query;
mod reply;
mod routes;
mod served;
mod session;
mod sessions;
mod socket;
mod status;
mod tls;
mod turns;

use std::net::SocketAddr;
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

pub use metrics::{Metric, MetricKind, count};
pub use served::{FollowerRow, Report, Row, Served, Status};
pub use tls::TlsFiles;

use crate::error::{Context, Error, ErrorKind, Result, lock};
use crate::registry::{self, Level};
use crate::token::Token;
use address::{Address, Bound, SocketFile};
use front::Front;
use hub::Hub;
use limits::Limits;
use sessions::Sessions;
use tls::Identity;

/// How long a stop waits for threads.
const STOP: Duration = Duration::from_secs(5);

/// Every server of the process.
static SERVERS: Mutex<Vec<Arc<Server>>> = Mutex::new(Vec::new());

/// Who may ask.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ServeOptions {
    /// What a client must show; if there is none, `LITESTREAM_TOKEN` is looked up when the server
    /// is attached to.
    pub token: Option<Token>,
    /// Answer everybody, with no token.
    pub allow_anonymous: bool,
    /// Speak HTTPS.
    pub tls: Option<TlsFiles>,
}

/// What all threads of one server share.
pub(crate) struct Shared {
    token: Option<Token>,
    allow_anonymous: bool,
    tls: Option<Identity>,
    limits: Limits,
    databases: Mutex<Vec<Arc<Served>>>,
    hub: Hub,
    sessions: Sessions,
}

/// One listening server.
struct Server {
    key: String,
    url: String,
    addresses: Vec<SocketAddr>,
    shared: Arc<Shared>,
    /// The process that made it: a child of `fork` has none of its threads.
    process: u32,
    running: Mutex<Option<Running>>,
}

/// What a stop ends.
struct Running {
    /// Closing it stops the front.
    wake: UnixStream,
    threads: Vec<JoinHandle<()>>,
    socket_file: Option<SocketFile>,
}

/// A database's place on a server. Dropping it takes the database away and, if it was the last one,
/// ends the server.
pub struct Attachment {
    server: Arc<Server>,
    served: Arc<Served>,
}

/// Serves a database at an address, on the server that is already there if there is one.
pub fn attach(addr: &str, options: ServeOptions, served: Arc<Served>) -> Result<Attachment> {
    let address = Address::parse(addr)?;
    if options.tls.is_some() && address.is_unix() {
        let why = "options \"tls_cert\" and \"tls_key\" are for TCP; who may open the socket file \
                   is a matter of its folder's mode";
        return Err(Error::new(ErrorKind::Usage, why));
    }
    let token = Token::or_environment(options.token)?;
    let protected = token.is_none() && !options.allow_anonymous;
    let mut servers = lock(&SERVERS);
    let ours = |server: &&Arc<Server>| {
        server.process == std::process::id()
            && (server.key == address.key() || address.is_covered_by(&server.addresses, protected))
    };
    let is_same = |server: &Arc<Server>| {
        let shared = &server.shared;
        let files = shared.tls.as_ref().map(Identity::files);
        shared.token == token
            && shared.allow_anonymous == options.allow_anonymous
            && files == options.tls.as_ref()
    };
    let mut found = servers.iter().filter(ours);
    let found = match address.is_any_port() {
        // Those who do not care which port it is can have another one.
        true => found.find(|server| is_same(server)).cloned(),
        false => found.next().cloned(),
    };
    let server = match found {
        Some(server) => {
            if !is_same(&server) {
                return Err(Error::new(
                    ErrorKind::Usage,
                    format!(
                        "cannot listen on {}: this process serves another database there with \
                         another token, allow_anonymous or certificate; give both the same",
                        address.key()
                    ),
                ));
            }
            server
        }
        None => {
            // Before the port is taken: a standby tries again while it is.
            let tls = options.tls.as_ref().map(Identity::load).transpose()?;
            let bound = address.bind(protected)?;
            let bound = if tls.is_some() { bound.encrypted() } else { bound };
            let limits = Limits::default();
            let shared = Shared::new(token, options.allow_anonymous, tls, limits);
            let server = Arc::new(Server::start(address.key(), bound, shared)?);
            servers.push(Arc::clone(&server));
            if protected {
                let text = format!(
                    "{} answers this machine only: no token and no allow_anonymous were given",
                    server.url
                );
                registry::log(Level::Info, served.path(), &text);
            }
            server
        }
    };
    if let Err(error) = server.shared.add(&served) {
        drop(servers);
        return Err(error);
    }
    Ok(Attachment { server, served })
}

/// Everybody who follows a database of this process.
pub fn followers() -> Vec<FollowerRow> {
    let process = std::process::id();
    let servers: Vec<Arc<Server>> = lock(&SERVERS).clone();
    let ours = servers.iter().filter(|server| server.process == process);
    let mut databases: Vec<Arc<Served>> = Vec::new();
    for served in ours.flat_map(|server| server.shared.databases()) {
        // A database may be served at two addresses.
        if !databases.iter().any(|seen| Arc::ptr_eq(seen, &served)) {
            databases.push(served);
        }
    }
    databases.iter().flat_map(|served| served.followers()).collect()
}

impl Shared {
    fn new(
        token: Option<Token>,
        allow_anonymous: bool,
        tls: Option<Identity>,
        limits: Limits,
    ) -> Arc<Self> {
        Arc::new(Shared {
            token,
            allow_anonymous,
            tls,
            limits,
            databases: Mutex::default(),
            hub: Hub::default(),
            sessions: Sessions::default(),
        })
    }

    /// The databases being served.
    pub(crate) fn databases(&self) -> Vec<Arc<Served>> {
        lock(&self.databases).clone()
    }

    fn add(&self, served: &Arc<Served>) -> Result<()> {
        let mut databases = lock(&self.databases);
        if databases.iter().any(|other| other.path() == served.path()) {
            let why = format!("{} is already served there", served.path().display());
            return Err(Error::new(ErrorKind::Usage, why));
        }
        databases.push(Arc::clone(served));
        Ok(())
    }

    /// Takes a database away and ends its streams; true if it was the last one.
    fn remove(&self, served: &Arc<Served>) -> bool {
        let mut databases = lock(&self.databases);
        databases.retain(|other| !Arc::ptr_eq(other, served));
        databases.is_empty()
    }
}

impl Server {
    fn start(key: &str, bound: Bound, shared: Arc<Shared>) -> Result<Self> {
        let Bound { listeners, addresses, url, socket_file } = bound;
        let cannot = || format!("cannot serve {key}");
        let (wake, woken) = UnixStream::pair().context(cannot)?;
        woken.set_nonblocking(true).context(cannot)?;
        let router = {
            let shared = Arc::clone(&shared);
            registry::spawn_worker("litestream-http", move || shared.hub.run(&shared))
        };
        let router = router.map_err(|error| error.context(cannot()))?;
        let front = Front::new(Arc::clone(&shared), listeners, woken);
        let front = match registry::spawn_worker("litestream-net", move || front.run()) {
            Ok(front) => front,
            Err(error) => {
                shared.hub.stop();
                return Err(error.context(cannot()));
            }
        };
        let running = Running { wake, threads: vec![router, front], socket_file };
        Ok(Server {
            key: key.to_owned(),
            url,
            addresses,
            shared,
            process: std::process::id(),
            running: Mutex::new(Some(running)),
        })
    }

    fn stop(&self) {
        let Some(running) = lock(&self.running).take() else { return };
        drop(running.wake);
        self.shared.hub.stop();
        let deadline = Instant::now() + STOP;
        for thread in running.threads {
            while !thread.is_finished() && Instant::now() < deadline {
                std::thread::sleep(Duration::from_millis(1));
            }
            if thread.is_finished() {
                // A panic in it has been caught and reported where it happened.
                let _ = thread.join();
            }
        }
        if let Some(file) = running.socket_file {
            file.remove();
        }
    }
}

impl Attachment {
    /// The URL, with the port really bound.
    pub fn url(&self) -> &str {
        &self.server.url
    }

    /// What is wrong with the server, though it serves.
    pub fn error(&self) -> Option<String> {
        self.server.shared.tls.as_ref().and_then(Identity::error)
    }

    /// The database.
    pub fn served(&self) -> &Arc<Served> {
        &self.served
    }

    /// Stops serving the database: when it returns, no thread sends it any more.
    pub fn detach(self) {
        drop(self);
    }
}

impl Drop for Attachment {
    fn drop(&mut self) {
        if self.server.process != std::process::id() {
            return; // a child of fork: nothing runs here, and the socket file is the parent's
        }
        let last = {
            let mut servers = lock(&SERVERS);
            let last = self.server.shared.remove(&self.served);
            if last {
                servers.retain(|server| !Arc::ptr_eq(server, &self.server));
            }
            last
        };
        if last {
            self.server.stop();
        }
        self.server.shared.sessions.end(&self.served, STOP);
    }
}

#[cfg(test)]
mod tests;
