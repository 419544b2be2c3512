//! A state of a WAL database that can be read page by page while others write and checkpoint.
//!
//! ```text
//! header H --> a read slot with mark H.mxFrame, SHARED --> header still H?  --> frozen
//! ```
//!
//! The second look is what makes it exact: a checkpoint that was under way when the mark came has
//! read an mxFrame no later than H's, and one that begins afterwards sees the mark. The WAL cannot
//! restart under any slot from 1 to 4. A page is then its last frame up to H.mxFrame that was not
//! copied into the database yet, or what the database holds: so readers see it that begin now.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use super::regions::Regions;
use crate::error::{Context, Error, Result};
use crate::fault;
use crate::host::file::{Door, Mode, ShmLock};
use crate::wal::{PageSize, WAL_FRAME_HEADER_SIZE, wal_size};
use crate::walindex::{
    BACKFILL_OFFSET, HEADER_FIRST_OFFSET, HEADER_SECOND_OFFSET, HEADER_SIZE, IndexHeader,
    READ_MARKS, lock_read, read_mark_offset,
};

/// One state. Dropping it lets the WAL go.
pub struct Frozen {
    door: Arc<Door>,
    regions: Regions,
    wal: File,
    header: IndexHeader,
    /// Frames up to here are read from the database, as every reader does that begins now.
    backfilled: u32,
    page_size: PageSize,
    page_count: u32,
    _slot: ShmLock,
}

impl Frozen {
    /// The header shown now; none while a writer is publishing, or died doing so.
    pub fn header_of(door: &Arc<Door>) -> Result<Option<IndexHeader>> {
        read_header(&mut Regions::new(door), door)
    }

    /// The state `header` stands for, if it is still the one shown and a read slot is free. `door`
    /// is used for nothing else.
    pub fn try_new(door: &Arc<Door>, header: &IndexHeader) -> Result<Option<Self>> {
        let mut regions = Regions::new(door);
        let Some(slot) = take_slot(&mut regions, door, header.max_frame)? else { return Ok(None) };
        let backfilled = regions.get(0)?.load_u32(BACKFILL_OFFSET);
        door.barrier();
        if read_header(&mut regions, door)?.as_ref() != Some(header) {
            return Ok(None);
        }
        let page_size = door.page_size();
        let page_count = match header.page_count {
            // Recovered from a WAL without frames: the file tells.
            0 => u32::try_from(door.db_size()? / u64::from(page_size.get()))
                .map_err(|_| Error::corrupt("the database has too many pages"))?,
            count => count,
        };
        let wal = fault::at("pages/wal/open")
            .and_then(|()| File::open(door.wal_path()))
            .context(|| format!("cannot open {}", door.wal_path().display()))?;
        let door = Arc::clone(door);
        Ok(Some(Self {
            door,
            regions,
            wal,
            header: *header,
            backfilled,
            page_size,
            page_count,
            _slot: slot,
        }))
    }

    /// What it was frozen at.
    pub fn header(&self) -> &IndexHeader {
        &self.header
    }

    /// Whether nothing was committed since.
    pub fn is_newest(&self) -> Result<bool> {
        Ok(Self::header_of(&self.door)?.as_ref() == Some(&self.header))
    }

    /// Bytes of a page.
    pub fn page_size(&self) -> PageSize {
        self.page_size
    }

    /// Size of the database, in pages.
    pub fn page_count(&self) -> u32 {
        self.page_count
    }

    /// Reads the pages from `first` on into `out`, whole pages. What is not there reads as zeros.
    pub fn read(&mut self, first: u32, out: &mut [u8]) -> Result<()> {
        let bytes = u64::from(self.page_size.get());
        let at = u64::from(first.saturating_sub(1)) * bytes;
        let read = self.door.read_db(out, at)?;
        if let Some(rest) = out.get_mut(read..) {
            rest.fill(0);
        }
        for (page_no, page) in (first..).zip(out.chunks_exact_mut(self.page_size.bytes())) {
            let Some(frame) = self.regions.find(page_no, self.backfilled, self.header.max_frame)?
            else {
                continue;
            };
            let at = wal_size(self.page_size, u64::from(frame - 1)) + WAL_FRAME_HEADER_SIZE as u64;
            fault::at("pages/wal/read")
                .and_then(|()| self.wal.read_exact_at(page, at))
                .context(|| format!("cannot read frame {frame} of the WAL"))?;
        }
        Ok(())
    }
}

fn read_header(regions: &mut Regions, door: &Door) -> Result<Option<IndexHeader>> {
    let region = regions.get(0)?;
    let first = region.load_bytes::<HEADER_SIZE>(HEADER_FIRST_OFFSET);
    door.barrier();
    let second = region.load_bytes::<HEADER_SIZE>(HEADER_SECOND_OFFSET);
    Ok(IndexHeader::decode_pair(&first, &second).ok())
}

/// A slot with this mark, SHARED: one that has it already, or else a free one that is given it.
fn take_slot(regions: &mut Regions, door: &Arc<Door>, mark: u32) -> Result<Option<ShmLock>> {
    let region = regions.get(0)?;
    for slot in 1..READ_MARKS {
        let shown = || region.load_u32(read_mark_offset(slot)) == mark;
        if !shown() {
            let Some(exclusive) = door.try_lock(lock_read(slot), 1, Mode::Exclusive)? else {
                continue;
            };
            region.store_u32(read_mark_offset(slot), mark);
            drop(exclusive);
        }
        let Some(shared) = door.try_lock(lock_read(slot), 1, Mode::Shared)? else { continue };
        // Somebody may have given it another mark between the two locks.
        if shown() {
            return Ok(Some(shared));
        }
    }
    Ok(None)
}
