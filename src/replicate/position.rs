//! The archive's note of how far it reaches, which is also how a worker notices that an archive is
//! not as it was left: emptied, put back as it once was, on a disk that is not mounted. To one that
//! only adds objects nothing else would show it.

use std::time::Instant;

use super::covers;
use super::stream::Stream;
use crate::error::{Error, Result};

impl Stream<'_> {
    /// Brings it up to date, if what was put there last is there.
    pub(super) fn put_position(&mut self) -> Result<()> {
        if !self.is_complete() || self.position.0 == Some(self.at.pos) {
            return Ok(());
        }
        // A position that is ahead is another writer's, and told by the segments.
        if let Some(left) = self.position.0 {
            let found = self.shared.archive.position(left.generation)?;
            if found.is_none_or(|found| !covers(found, left)) {
                let found = found.map_or("nowhere".to_owned(), |found| found.to_string());
                return Err(self.lost(&format!("it was left at {left}, and reaches {found}")));
            }
        }
        self.shared.archive.put_position(self.at.pos)?;
        self.position = (Some(self.at.pos), Instant::now());
        self.progress();
        Ok(())
    }

    /// What was added since may be of no use, and there may be a hole before it: a new generation
    /// needs none of it.
    pub(super) fn lost(&self, why: &str) -> Error {
        self.shared
            .capture
            .log()
            .part(&format!("archive {}: {why}; what was in it is gone", self.shared.archive.url()));
        Error::generation_changed()
    }
}
