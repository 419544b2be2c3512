//! The replica's wal-index, as its one writer sees it.
//!
//! Contract: whoever calls `insert`, `clean_above` or `publish` holds WAL_WRITE_LOCK through the
//! same door. `restart_marks` needs WAL_CKPT_LOCK and READ locks 1 to 4 as well. Readers in any
//! process look only at frames up to the mxFrame of the header they started from, so entries above
//! the published mxFrame are invisible, and a frame's entry is complete before a header with it is
//! published: page number, then hash slot, then second header copy, then first header copy.

use std::sync::Arc;

use crate::error::{Error, Result};
use crate::host::file::{Door, Region};
use crate::pages::{Regions, probe};
use crate::walindex::{
    BACKFILL_ATTEMPTED_OFFSET, BACKFILL_OFFSET, HASH_SLOTS, HEADER_FIRST_OFFSET,
    HEADER_SECOND_OFFSET, HEADER_SIZE, IndexHeader, READ_MARKS, READMARK_NOT_USED, REGION_SIZE,
    frame_location, hash_slot_offset, hash_slot_value, page_number_offset, read_mark_offset,
    region_frames,
};

/// The header region of a wal-index, for looking only.
#[derive(Clone)]
pub struct Gauge {
    region: Region,
}

impl Gauge {
    /// Frames that are in the database too.
    pub fn backfill(&self) -> u32 {
        self.region.load_u32(BACKFILL_OFFSET)
    }

    /// The header, or why there is no valid one.
    pub fn header(&self) -> Result<IndexHeader> {
        let first: [u8; HEADER_SIZE] = self.region.load_bytes(HEADER_FIRST_OFFSET);
        let second: [u8; HEADER_SIZE] = self.region.load_bytes(HEADER_SECOND_OFFSET);
        IndexHeader::decode_pair(&first, &second)
    }

    /// Whether both copies are exactly this header.
    pub fn shows(&self, header: &IndexHeader) -> bool {
        let expected = header.encode();
        self.region.load_bytes::<HEADER_SIZE>(HEADER_FIRST_OFFSET) == expected
            && self.region.load_bytes::<HEADER_SIZE>(HEADER_SECOND_OFFSET) == expected
    }
}

/// All of it.
pub struct WalIndex {
    door: Arc<Door>,
    gauge: Gauge,
    regions: Regions,
}

impl WalIndex {
    /// Maps its first region.
    pub fn open(door: &Arc<Door>) -> Result<Self> {
        let mut regions = Regions::new(door);
        let gauge = Gauge { region: regions.get(0)?.clone() };
        Ok(Self { door: Arc::clone(door), gauge, regions })
    }

    /// What may be looked at from other threads.
    pub fn gauge(&self) -> &Gauge {
        &self.gauge
    }

    /// Shows this header to readers: everything up to its `max_frame` is theirs from now on.
    pub fn publish(&self, header: &IndexHeader) {
        let bytes = header.encode();
        let region = &self.gauge.region;
        self.door.barrier();
        region.store_bytes(HEADER_SECOND_OFFSET, &bytes);
        self.door.barrier();
        region.store_bytes(HEADER_FIRST_OFFSET, &bytes);
        self.door.barrier();
    }

    /// What a WAL without frames needs before its header is published. Done in this order, dying
    /// after it leaves a WAL whose frames are merely copied again.
    pub fn restart_marks(&self) {
        let region = &self.gauge.region;
        region.store_u32(BACKFILL_OFFSET, 0);
        region.store_u32(BACKFILL_ATTEMPTED_OFFSET, 0);
        region.store_u32(read_mark_offset(1), 0);
        for mark in 2..READ_MARKS {
            region.store_u32(read_mark_offset(mark), READMARK_NOT_USED);
        }
        self.door.barrier();
    }

    /// Enters frame `frame`, which holds page `page_no`.
    pub fn insert(&mut self, frame: u32, page_no: u32) -> Result<()> {
        let (number, slot) = frame_location(frame);
        let place = page_number_offset(number, slot);
        let region = self.region(number)?;
        if slot == 0 {
            region.zero_range(place, REGION_SIZE - place);
        } else if region.load_u32(place) != 0 {
            // A transaction that was dropped, or a writer that died, left entries here.
            clean(region, number, slot);
        }
        let key = free_slot(region, page_no)?;
        region.store_u32(place, page_no);
        region.store_u16(hash_slot_offset(key), hash_slot_value(slot));
        Ok(())
    }

    /// Removes every entry above frame `max_frame` from the region that holds it. Regions after it
    /// are zeroed when their first frame is entered.
    pub fn clean_above(&mut self, max_frame: u32) -> Result<()> {
        if max_frame == 0 {
            return Ok(());
        }
        let (number, slot) = frame_location(max_frame);
        clean(self.region(number)?, number, slot + 1);
        Ok(())
    }

    /// The last frame up to `max_frame` that holds page `page_no` and is not in the database yet.
    pub fn find(&mut self, page_no: u32, max_frame: u32) -> Result<Option<u32>> {
        self.regions.find(page_no, self.gauge.backfill(), max_frame)
    }

    fn region(&mut self, number: u32) -> Result<&Region> {
        self.regions.get(number)
    }
}

fn free_slot(region: &Region, page_no: u32) -> Result<u32> {
    probe(page_no)
        .find(|key| region.load_u16(hash_slot_offset(*key)) == 0)
        .ok_or_else(|| Error::corrupt("a hash table of the wal-index is full"))
}

/// Removes the entries of slot `first` and after.
fn clean(region: &Region, number: u32, first: u32) {
    for key in 0..HASH_SLOTS {
        let place = hash_slot_offset(key);
        if u32::from(region.load_u16(place)) > first {
            region.store_u16(place, 0);
        }
    }
    let from = page_number_offset(number, first);
    let to = page_number_offset(number, region_frames(number));
    region.zero_range(from, to.saturating_sub(from));
}
