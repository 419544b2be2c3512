//! A state of the captured database at a position that is known exactly.
//!
//! The state is frozen first and its position found afterwards: no WAL restarts under a read slot,
//! so the one capture is in when it has caught up is the one that was frozen, and so many frames of
//! it are so many bytes.

use std::time::{Duration, Instant};

use super::Capture;
use crate::error::{Error, ErrorKind, Result};
use crate::host::file::Door;
use crate::pages::Frozen;
use crate::pos::{Offset, Pos};
use crate::wal::wal_size;

/// How long a writer that publishes without a pause may keep us from it, or readers from a slot.
const PATIENCE: Duration = Duration::from_secs(5);

/// Between two tries.
const POLL: Duration = Duration::from_micros(500);

impl Capture {
    /// Freezes the state after some commit, no earlier than the call.
    pub fn freeze(&self) -> Result<(Frozen, Pos)> {
        let config = &self.shared.config;
        let door = Door::open(&config.path, &config.vfs)?;
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Some(header) = Frozen::header_of(&door)?
                && let Some(frozen) = Frozen::try_new(&door, &header)?
                && let Some(pos) = self.position_of(&frozen)?
            {
                return Ok((frozen, pos));
            }
            if Instant::now() >= deadline {
                let why = "readers hold every slot of the WAL, or its index is being recovered";
                return Err(Error::new(ErrorKind::Busy, why));
            }
            std::thread::sleep(POLL);
        }
    }

    /// Where a frozen state is in history; none: try another.
    fn position_of(&self, frozen: &Frozen) -> Result<Option<Pos>> {
        let session = self.shared.running()?;
        let mut scanner = session.scanner.lock();
        match scanner.catch_up_now(&self.shared.counters) {
            Err(error) if error.kind() == ErrorKind::Busy => return Ok(None),
            done => done?,
        }
        let (tip, header) = (scanner.tip(), frozen.header());
        if header.max_frame == 0 {
            // Restarted, and nothing written since: the end of the WAL before, if that still is the
            // end.
            let still = frozen.is_newest()?;
            return Ok(still.then_some(tip.pos));
        }
        let same = tip.chain.is_some_and(|chain| chain.salts == header.file_salts());
        if !same || scanner.frames() < header.max_frame {
            return Ok(None);
        }
        let offset = wal_size(frozen.page_size(), u64::from(header.max_frame));
        Ok(Some(Pos { offset: Offset::new(offset)?, ..tip.pos }))
    }
}
