//! The wal-index of one database, mapped region by region as far as ever needed.
//!
//! Entries above the mxFrame of the header a reader started from are not its own; whoever looks a
//! page up names the last frame that counts.

use std::sync::Arc;

use crate::error::{Error, ErrorKind, Result};
use crate::host::file::{Door, Region};
use crate::walindex::{
    HASH_SLOTS, frame_location, hash_key, hash_slot_offset, next_hash_key, page_number_offset,
    region_first_frame, region_frames,
};

/// Mapped regions: region `n` is at `n`.
pub struct Regions {
    door: Arc<Door>,
    regions: Vec<Region>,
}

impl Regions {
    /// Nothing is mapped yet.
    pub fn new(door: &Arc<Door>) -> Self {
        Self { door: Arc::clone(door), regions: Vec::new() }
    }

    /// A region, mapped now if it was not.
    pub fn get(&mut self, number: u32) -> Result<&Region> {
        let at = usize::try_from(number).map_err(|_| too_many())?;
        while self.regions.len() <= at {
            let next = u32::try_from(self.regions.len()).map_err(|_| too_many())?;
            self.regions.push(map(&self.door, next)?);
        }
        self.regions.get(at).ok_or_else(too_many)
    }

    /// The last frame after `backfilled`, up to `max_frame`, that holds page `page_no`. Those
    /// before are in the database, and that is where readers look for them.
    pub fn find(&mut self, page_no: u32, backfilled: u32, max_frame: u32) -> Result<Option<u32>> {
        if max_frame <= backfilled {
            return Ok(None);
        }
        let ((first, _), (last, _)) = (frame_location(backfilled + 1), frame_location(max_frame));
        for number in (first..=last).rev() {
            let base = region_first_frame(number);
            let region = self.get(number)?;
            let mut found = None;
            for key in probe(page_no) {
                let value = u32::from(region.load_u16(hash_slot_offset(key)));
                let Some(slot) = value.checked_sub(1) else { break };
                let frame = base + slot;
                let wanted = backfilled < frame && frame <= max_frame;
                let fits = slot < region_frames(number) && wanted;
                if fits && region.load_u32(page_number_offset(number, slot)) == page_no {
                    found = found.max(Some(frame));
                }
            }
            if found.is_some() {
                return Ok(found);
            }
        }
        Ok(None)
    }
}

/// The hash slots to look at for a page number, each once.
pub fn probe(page_no: u32) -> impl Iterator<Item = u32> {
    std::iter::successors(Some(hash_key(page_no)), |key| Some(next_hash_key(*key)))
        .take(usize::try_from(HASH_SLOTS).unwrap_or(usize::MAX))
}

fn map(door: &Arc<Door>, number: u32) -> Result<Region> {
    door.map(number, true)?.ok_or_else(|| {
        let text = format!("shared-memory region {number} could not be made");
        Error::new(ErrorKind::Io, text)
    })
}

fn too_many() -> Error {
    Error::new(ErrorKind::Unsupported, "the WAL has too many frames")
}
