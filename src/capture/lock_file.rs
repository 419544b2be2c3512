//! Which process captures: the one that holds the POSIX lock on `DB-litestream/lock`.
//!
//! The lock is on the file, not on its name. So the name is looked up again and again: if somebody
//! removed it, our lock keeps nobody out any more, and we start over.

use std::fs::{File, Metadata};
use std::os::unix::fs::MetadataExt;
use std::sync::Arc;
use std::time::Duration;

use crossbeam_channel::Receiver;
use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::pin::Bell;
use super::{Shared, State};
use crate::error::{Result, lock};
use crate::host::os;
use crate::registry;

/// How often a standby looks whether the lock is free. It is told when the process that has it
/// ends, where the system can tell.
const STANDBY_POLL: Duration = Duration::from_millis(250);

/// The file whose lock decides which process captures. It stays open as long as we do: its POSIX
/// lock dies with the process and is not inherited by a fork.
pub(super) struct LockFile {
    file: File,
    ours: bool,
}

impl LockFile {
    /// Opens it and tries the lock once.
    pub(super) fn open(shared: &Shared) -> Result<LockFile> {
        shared.layout.create_dir(shared.layout.root())?;
        let file = shared.layout.open_in_place(&shared.layout.lock_file())?;
        let mut opened = LockFile { file, ours: false };
        opened.try_lock(shared)?;
        Ok(opened)
    }

    /// Whether the name still leads to the file we have open. If somebody removed it, another
    /// process may make and lock a new one: ours means nothing any more.
    pub(super) fn is_in_place(&self, shared: &Shared) -> bool {
        let named = std::fs::metadata(shared.layout.lock_file());
        let opened = self.file.metadata();
        named
            .and_then(|named| opened.map(|opened| identity(&named) == identity(&opened)))
            .unwrap_or(false)
    }

    /// Starts over in a folder that was removed while we had it.
    fn open_again(&mut self, shared: &Shared) -> Result<()> {
        self.ours = false;
        shared.log.forget();
        *self = LockFile::open(shared)?;
        Ok(())
    }

    /// Tries the lock, and once it is ours reads what the last process left. After that the folder
    /// is ours alone to write.
    fn try_lock(&mut self, shared: &Shared) -> Result<()> {
        if !os::lock_file(&self.file)? || !self.is_in_place(shared) {
            shared.set_state(State::Standby);
            return Ok(());
        }
        if let Some(error) = shared.log.load()? {
            let why = format!("the log cannot be continued: {error}");
            registry::log(registry::Level::Warn, &shared.config.path, &why);
        }
        self.ours = true;
        Ok(())
    }

    /// Sleeps until the process that has the lock has ended, [`STANDBY_POLL`] is over, or we are
    /// to stop. Nobody holds the WAL until one of those who stand by does.
    fn wait_for_holder(&self, shared: &Shared, woken: &Receiver<()>) {
        let (Some(holder), Ok(leave)) = (os::lock_holder(&self.file), Bell::new()) else {
            shared.pause(woken, STANDBY_POLL);
            return;
        };
        let leave = Arc::new(leave);
        *lock(&shared.leave) = Some(Arc::clone(&leave));
        let flags = PollFlags::IN;
        let mut fds = [PollFd::new(&holder, flags), PollFd::new(&*leave, flags)];
        let millis = i64::try_from(STANDBY_POLL.as_millis()).unwrap_or(0);
        let wait = Timespec { tv_sec: 0, tv_nsec: millis * 1_000_000 };
        // Whoever stops us says so before he rings.
        if !shared.stopping() {
            // Whatever comes of it, the lock is tried next.
            let _ = poll(&mut fds, Some(&wait));
        }
        *lock(&shared.leave) = None;
    }

    /// Waits until this process is the one that captures. False: it was stopped first.
    pub(super) fn stand_by(&mut self, shared: &Shared, woken: &Receiver<()>) -> Result<bool> {
        loop {
            if shared.stopping() {
                return Ok(false);
            }
            if !self.is_in_place(shared) {
                self.open_again(shared)?;
            }
            if self.ours {
                break;
            }
            self.wait_for_holder(shared, woken);
            self.try_lock(shared)?;
        }
        shared.set_state(State::Starting);
        Ok(true)
    }
}

/// Which file it is, whatever its name.
pub(super) fn identity(meta: &Metadata) -> (u64, u64) {
    (meta.dev(), meta.ino())
}
