//! The position of a database that another process captures, for those who stand by.
//!
//! The wal-index tells which WAL it is (its salts) and how many frames are committed; the log's
//! newest index tells, in its first 32 bytes, which WAL that index is. The capturing process writes
//! those 32 bytes the moment it sees a new WAL, so the two meet within moments.

use std::time::{Duration, Instant};

use super::Shared;
use super::view::View;
use crate::error::{Error, ErrorKind, Result};
use crate::host::file::Door;
use crate::log::newest_wal;
use crate::pos::{Offset, Pos};
use crate::wal::wal_size;

/// How long the capturing process may take to notice that the WAL was restarted.
const PATIENCE: Duration = Duration::from_secs(1);
const POLL: Duration = Duration::from_millis(1);

/// A position that covers every commit made before the call.
pub(super) fn position(shared: &Shared) -> Result<Pos> {
    let door = Door::open(&shared.config.path, &shared.config.vfs)?;
    let view = View::open(&door)?;
    let deadline = Instant::now() + PATIENCE;
    loop {
        // The header first: what the log says later can only be further on.
        let header = view.header();
        let newest = newest_wal(&shared.layout)?;
        if let (Some(header), Some(newest)) = (header, newest) {
            if header.max_frame == 0 {
                // Restarted and not written since: what came before is all in files.
                return Ok(newest.end);
            }
            if newest.salts == Some(header.file_salts()) {
                let offset = wal_size(door.page_size(), u64::from(header.max_frame));
                return Ok(Pos { offset: Offset::new(offset)?, ..newest.end });
            }
        }
        if Instant::now() >= deadline {
            let why = "the process that captures this database has not noticed its newest commits";
            return Err(Error::new(ErrorKind::Busy, why));
        }
        std::thread::sleep(POLL);
    }
}
