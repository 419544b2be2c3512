//! How the threads of a restore are told to stop.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use crate::archive::Archive;
use crate::error::{Error, ErrorKind, Result, lock};
use crate::host::conn::Connection;

/// Whether anybody still waits for a restore. Once set it stays set.
#[derive(Default)]
pub struct Stop {
    is_set: AtomicBool,
    waits: Mutex<Waits>,
}

/// What a restore may be waiting for.
#[derive(Default)]
struct Waits {
    archive: Option<Arc<Archive>>,
    connection: Option<Arc<Connection>>,
}

impl Stop {
    /// An error once the restore is to stop.
    pub fn check(&self) -> Result<()> {
        if self.is_set.load(Ordering::Acquire) {
            return Err(Error::new(ErrorKind::Stopped, "interrupted"));
        }
        Ok(())
    }

    /// Makes the restore stop: whatever it waits for ends.
    pub fn set(&self) {
        self.is_set.store(true, Ordering::Release);
        let waits = lock(&self.waits);
        if let Some(archive) = &waits.archive {
            archive.store().close();
        }
        if let Some(connection) = &waits.connection {
            connection.interrupt();
        }
    }

    /// From now on a stop closes the archive's store.
    pub fn reads(&self, archive: &Arc<Archive>) -> Result<()> {
        lock(&self.waits).archive = Some(Arc::clone(archive));
        self.check()
    }

    /// A stop interrupts the connection, until it is taken away again.
    pub fn runs(&self, connection: Option<&Arc<Connection>>) -> Result<()> {
        lock(&self.waits).connection = connection.map(Arc::clone);
        self.check()
    }
}
