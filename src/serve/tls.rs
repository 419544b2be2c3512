//! The server's certificate and key: read, proved to belong together, and read again when the files
//! change.
//!
//! ```text
//! connection accepted, a second since the last look --> did a file change? --> load both
//!                                                     a bad pair: the old one stays, and is told
//! ```
//!
//! They are read by the thread that accepts: at most once a second, at most 2 MiB, and nothing that
//! could make it wait but the disk they are on. Streams go on meanwhile. A connection gets the
//! newest certificate there is, also the first one after a day; another thread could not promise
//! that without making it wait as well. Keep them on a local disk.
//!
//! TLS 1.2 and 1.3, with the same library and the same cryptography as the client side. No early
//! data, no renegotiation. The files are the user's: nothing of their content is in an error.

use std::fs::Metadata;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use rustls::crypto::ring;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{InconsistentKeys, ServerConfig, ServerConnection};

use crate::error::{Context, Error, Result, lock};
use crate::files::read_small_file;
use crate::registry::{self, Level};

/// Between two looks at the files.
const LOOK: Duration = Duration::from_secs(1);
/// A certificate with all its chain is a few kilobytes.
const FILE_BYTES_MAX: u64 = 1 << 20;

/// Where certificate and key are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TlsFiles {
    /// The certificate and those that vouch for it, in PEM.
    pub cert: PathBuf,
    /// Its private key, in PEM.
    pub key: PathBuf,
}

/// What a server shows to its clients.
pub(crate) struct Identity {
    files: TlsFiles,
    state: Mutex<State>,
}

struct State {
    config: Arc<ServerConfig>,
    /// What the files were when they were read.
    stamps: [Stamp; 2],
    looked: Instant,
    /// Why what the files hold now is not used.
    error: Option<String>,
}

/// Certificate and key, as they were read.
struct Pair {
    config: Arc<ServerConfig>,
    stamps: [Stamp; 2],
    /// Anybody may read the key.
    is_public: bool,
}

/// What tells one version of a file from another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Stamp {
    inode: u64,
    size: u64,
    modified: (i64, i64),
}

impl TlsFiles {
    /// Whether they can be used; what is wrong with them if not.
    pub fn check(&self) -> Result<()> {
        self.load().map(|_| ())
    }

    fn load(&self) -> Result<Pair> {
        let (cert, cert_meta) = read(&self.cert, "tls_cert")?;
        let (key, key_meta) = read(&self.key, "tls_key")?;
        let config = configure(&cert, &key, self)?;
        let is_public = key_meta.mode() & 0o004 != 0;
        let stamps = [Stamp::of(&cert_meta), Stamp::of(&key_meta)];
        Ok(Pair { config: Arc::new(config), stamps, is_public })
    }

    fn stamps(&self) -> Option<[Stamp; 2]> {
        let stamp = |path: &Path| std::fs::metadata(path).ok().map(|meta| Stamp::of(&meta));
        Some([stamp(&self.cert)?, stamp(&self.key)?])
    }
}

impl Identity {
    /// Reads the files.
    pub(crate) fn load(files: &TlsFiles) -> Result<Self> {
        let pair = files.load()?;
        pair.warn(files);
        let Pair { config, stamps, .. } = pair;
        let state = State { config, stamps, looked: Instant::now(), error: None };
        Ok(Identity { files: files.clone(), state: Mutex::new(state) })
    }

    /// Where it comes from.
    pub(crate) fn files(&self) -> &TlsFiles {
        &self.files
    }

    /// A session for a connection that was just accepted.
    pub(crate) fn begin(&self, now: Instant) -> std::result::Result<ServerConnection, Error> {
        let config = {
            let mut state = lock(&self.state);
            if now.saturating_duration_since(state.looked) >= LOOK {
                state.looked = now;
                self.renew(&mut state);
            }
            Arc::clone(&state.config)
        };
        ServerConnection::new(config).map_err(|error| Error::bug(error.to_string()))
    }

    /// Why a changed certificate is not used.
    pub(crate) fn error(&self) -> Option<String> {
        lock(&self.state).error.clone()
    }

    /// Loads the files if they changed, or were bad: they may have been read half written.
    fn renew(&self, state: &mut State) {
        let unchanged = self.files.stamps().is_some_and(|stamps| stamps == state.stamps);
        if unchanged && state.error.is_none() {
            return;
        }
        match self.files.load() {
            Ok(pair) => {
                let cert = self.files.cert.display();
                let text = format!("uses the certificate {cert} as it is now");
                registry::log(Level::Info, Path::new(""), &text);
                pair.warn(&self.files);
                (state.config, state.stamps, state.error) = (pair.config, pair.stamps, None);
            }
            Err(error) => {
                let text = format!("goes on with the certificate it had: {error}");
                if state.error.as_ref() != Some(&text) {
                    registry::log(Level::Warn, Path::new(""), &text);
                }
                state.error = Some(text);
            }
        }
    }
}

impl Stamp {
    fn of(meta: &Metadata) -> Self {
        let modified = (meta.mtime(), meta.mtime_nsec());
        Stamp { inode: meta.ino(), size: meta.size(), modified }
    }
}

impl Pair {
    fn warn(&self, files: &TlsFiles) {
        if self.is_public {
            let key = files.key.display();
            let text = format!("everybody on this machine may read the key {key}: chmod 600 it");
            registry::log(Level::Warn, Path::new(""), &text);
        }
    }
}

fn read(path: &Path, option: &str) -> Result<(Vec<u8>, Metadata)> {
    let what = || format!("option \"{option}\": cannot read {}", path.display());
    read_small_file(path, FILE_BYTES_MAX).context(what)
}

fn configure(cert: &[u8], key: &[u8], files: &TlsFiles) -> Result<ServerConfig> {
    let refuse = |option: &str, path: &Path, why: &str| {
        Error::usage(format!("option \"{option}\": {} {why}", path.display()))
    };
    let chain: std::result::Result<Vec<_>, _> = CertificateDer::pem_slice_iter(cert).collect();
    let chain = chain.ok().filter(|chain| !chain.is_empty());
    let chain = chain.ok_or_else(|| refuse("tls_cert", &files.cert, "holds no PEM certificate"))?;
    let key = PrivateKeyDer::from_pem_slice(key).map_err(|_| {
        let encrypted = key.windows(9).any(|part| part == b"ENCRYPTED");
        let why = if encrypted {
            "is encrypted; decrypt it, for example with openssl pkey -in KEY -out PLAIN"
        } else {
            "holds no PEM private key"
        };
        refuse("tls_key", &files.key, why)
    })?;
    let provider = Arc::new(ring::default_provider());
    let builder = ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13, &rustls::version::TLS12])
        .map_err(|error| Error::bug(error.to_string()))?;
    let config = builder.with_no_client_auth().with_single_cert(chain, key);
    let mut config = config.map_err(|error| match error {
        rustls::Error::InconsistentKeys(InconsistentKeys::KeyMismatch) => {
            let why = format!("is not the key of the certificate {}", files.cert.display());
            refuse("tls_key", &files.key, &why)
        }
        rustls::Error::InvalidCertificate(_) => {
            refuse("tls_cert", &files.cert, "holds no valid certificate")
        }
        _ => refuse("tls_key", &files.key, "holds no RSA, ECDSA or Ed25519 key that can be used"),
    })?;
    config.alpn_protocols = vec![b"http/1.1".to_vec(), b"http/1.0".to_vec()];
    Ok(config)
}
