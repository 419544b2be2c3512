//! One address a database is served on, in this process or, while it stands by, soon.
//!
//! ```text
//! Capture standby --lock file is ours--> running --> attach to the address (retried while taken)
//! ```
//!
//! Which process captures a database is decided by its lock file; that process opens the address
//! and writes the URL down in `DB-litestream/address`, so that those who stand by can answer with
//! it.

use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

use crate::capture::Capture;
use crate::error::{Error, ErrorKind, Result, lock};
use crate::files::text_beside;
use crate::log::layout;
use crate::registry::{self, Level};
use crate::serve::{self, Attachment, ServeOptions, Served, TlsFiles};

/// Between two tries to open an address after taking over.
const RETRY: Duration = Duration::from_millis(100);

/// An address, open or waiting to be.
pub struct Address {
    addr: String,
    options: ServeOptions,
    inner: Arc<Inner>,
    watcher: Mutex<Option<JoinHandle<()>>>,
    answered: AtomicBool,
}

struct Inner {
    attachment: Mutex<Option<Attachment>>,
    url: Mutex<String>,
    closing: AtomicBool,
}

impl Address {
    /// Opens `addr` now, or as soon as this process is the one that captures.
    pub fn open(
        addr: &str,
        options: &ServeOptions,
        capture: &Arc<Capture>,
        served: Arc<Served>,
    ) -> Result<Address> {
        let inner = Arc::new(Inner {
            attachment: Mutex::new(None),
            url: Mutex::new(String::new()),
            closing: AtomicBool::new(false),
        });
        let mut watcher = None;
        if capture.is_standby() {
            // The call that made the mistake is the one to hear of it.
            options.tls.as_ref().map_or(Ok(()), TlsFiles::check)?;
            let url = written_url(capture.path());
            *lock(&inner.url) = url.unwrap_or_else(|| addr.to_owned());
            let (inner, capture) = (Arc::clone(&inner), Arc::clone(capture));
            let (addr, options) = (addr.to_owned(), options.clone());
            watcher = Some(registry::spawn_worker("litestream-wait", move || {
                inner.take_over(&addr, &options, &capture, &served);
            })?);
        } else {
            inner.attach(addr, options, capture, served)?;
        }
        let (addr, options) = (addr.to_owned(), options.clone());
        let answered = AtomicBool::new(false);
        Ok(Address { addr, options, inner, watcher: Mutex::new(watcher), answered })
    }

    /// The address as asked for.
    pub fn addr(&self) -> &str {
        &self.addr
    }

    /// The URL followers use.
    pub fn url(&self) -> String {
        lock(&self.inner.url).clone()
    }

    /// What is wrong with its server, though it serves.
    pub fn error(&self) -> Option<String> {
        lock(&self.inner.attachment).as_ref().and_then(Attachment::error)
    }

    /// True once: for the call that opened it.
    pub fn is_first_answer(&self) -> bool {
        !self.answered.swap(true, Ordering::AcqRel)
    }

    /// An error if the address was opened with other options.
    pub fn require_same(&self, options: &ServeOptions) -> Result<()> {
        if self.options == *options {
            return Ok(());
        }
        let why = format!(
            "this database is served on {} already, with other options; \
             litestream_stop('serve') first",
            self.addr
        );
        Err(Error::new(ErrorKind::Refused, why))
    }

    /// Closes the address for this database.
    pub fn close(&self) {
        self.inner.closing.store(true, Ordering::Release);
        self.inner.detach();
        if let Some(watcher) = lock(&self.watcher).take() {
            registry::join(watcher);
        }
        self.inner.detach();
    }
}

impl Inner {
    /// Gives the attachment up. The lock is not held meanwhile: the server may be answering a
    /// request for what is told of this address.
    fn detach(&self) {
        let attachment = lock(&self.attachment).take();
        drop(attachment);
    }

    fn attach(
        &self,
        addr: &str,
        options: &ServeOptions,
        capture: &Capture,
        served: Arc<Served>,
    ) -> Result<()> {
        let attachment = serve::attach(addr, options.clone(), served)?;
        let url = attachment.url().to_owned();
        let layout = capture.log().layout();
        let written =
            layout.write_once(&layout.root().join("address"), &[url.as_bytes(), b"\n"], false);
        *lock(&self.url) = url;
        *lock(&self.attachment) = Some(attachment);
        written
    }

    fn take_over(
        &self,
        addr: &str,
        options: &ServeOptions,
        capture: &Capture,
        served: &Arc<Served>,
    ) {
        let mut told = false;
        while !self.closing.load(Ordering::Acquire) {
            if !capture.wait_running(RETRY) {
                continue;
            }
            match self.attach(addr, options, capture, Arc::clone(served)) {
                Ok(()) => {
                    let message = format!("took over and serves on {}", lock(&self.url));
                    registry::log(Level::Info, capture.path(), &message);
                    return;
                }
                Err(error) if told => drop(error),
                Err(error) => {
                    told = true;
                    let message = format!("took over, but {error}; trying again");
                    registry::log(Level::Error, capture.path(), &message);
                }
            }
            std::thread::sleep(RETRY);
        }
    }
}

/// Which process serves it, for those who stand by: the URL it wrote down.
fn written_url(path: &Path) -> Option<String> {
    let text = text_beside(&layout::meta_dir(path).join("address")).ok()?;
    Some(text.trim_end().to_owned()).filter(|url| !url.is_empty())
}
