//! The wal-index as a reader sees it: two header copies that must agree, and the checkpoint
//! counters.

use std::sync::Arc;

use crate::error::{Error, ErrorKind, Result};
use crate::host::file::Door;
use crate::host::shm::Region;
use crate::walindex::{self, IndexHeader};

/// Region 0 of the shared memory.
pub(super) struct View {
    door: Arc<Door>,
    region: Region,
}

impl View {
    /// Maps the region the connection behind `door` already uses.
    pub(super) fn open(door: &Arc<Door>) -> Result<View> {
        let region = door.map(0, true)?.ok_or_else(|| {
            let why = format!("the host has no shared memory for {}", door.path().display());
            Error::new(ErrorKind::Unsupported, why)
        })?;
        Ok(View { door: Arc::clone(door), region })
    }

    /// The header, if both copies are equal and valid. A writer that is between the two copies, or
    /// died there, shows as `None`.
    pub(super) fn header(&self) -> Option<IndexHeader> {
        let first = self.region.load_bytes::<48>(walindex::HEADER_FIRST_OFFSET);
        self.door.barrier();
        let second = self.region.load_bytes::<48>(walindex::HEADER_SECOND_OFFSET);
        IndexHeader::decode_pair(&first, &second).ok()
    }

    /// Frames already copied into the database.
    pub(super) fn backfilled(&self) -> u32 {
        self.region.load_u32(walindex::BACKFILL_OFFSET)
    }

    /// The read mark of a slot.
    pub(super) fn mark(&self, slot: u8) -> u32 {
        self.region.load_u32(walindex::read_mark_offset(slot))
    }

    /// Marks a slot unused. Only under that slot's exclusive lock.
    pub(super) fn clear_mark(&self, slot: u8) {
        self.region.store_u32(walindex::read_mark_offset(slot), walindex::READMARK_NOT_USED);
    }

    /// Frames that are not in the database yet.
    pub(super) fn tail(&self) -> u32 {
        self.header().map_or(u32::MAX, |header| header.max_frame.saturating_sub(self.backfilled()))
    }

    /// Whether the whole WAL is checkpointed, so that the next writer restarts it.
    pub(super) fn is_armed(&self) -> bool {
        self.header().is_some_and(|header| header.max_frame == self.backfilled())
    }
}
