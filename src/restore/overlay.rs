//! Pages of the WAL that wait for the part of the snapshot they belong into.
//!
//! Pages changed here and there, written one by one into the new file, cost more than all the rest
//! of a restore. So they go one after the other into a file without a name, and from there with
//! their neighbours from the snapshot into the new one, in large writes. That file is gone by then
//! before the disk has heard of most of it. Memory holds eight bytes for each page.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use super::destination::nameless;
use crate::error::{Context, Result};
use crate::fault;
use crate::wal::PageSize;

/// Written at once.
const PENDING_BYTES_MAX: usize = 1 << 20;
/// Pages that may wait; more go where they belong at once.
const PAGES_MAX: usize = 1 << 21;

/// A page's number, and how many were put before it.
type Place = (u32, u32);

/// Pages being put.
pub struct Waiting {
    folder: PathBuf,
    page_size: PageSize,
    file: Option<File>,
    pending: Vec<u8>,
    written: u64,
    places: Vec<Place>,
}

/// All pages that were put.
#[derive(Default)]
pub struct Overlay {
    file: Option<File>,
    page_size: u64,
    /// By page number.
    places: Vec<Place>,
}

impl Waiting {
    /// None yet. `folder`: where a file without a name may be made.
    pub fn new(folder: &Path, page_size: PageSize) -> Waiting {
        Waiting {
            folder: folder.to_owned(),
            page_size,
            file: None,
            pending: Vec::new(),
            written: 0,
            places: Vec::new(),
        }
    }

    /// Whether another page may wait.
    pub fn has_room(&self) -> bool {
        self.places.len() < PAGES_MAX
    }

    /// Takes a page that was not put before.
    pub fn put(&mut self, page_no: u32, page: &[u8]) -> Result<()> {
        let count = u32::try_from(self.places.len()).unwrap_or(u32::MAX);
        self.places.push((page_no, count));
        self.pending.extend_from_slice(page);
        if self.pending.len() >= PENDING_BYTES_MAX { self.flush() } else { Ok(()) }
    }

    fn flush(&mut self) -> Result<()> {
        if self.pending.is_empty() {
            return Ok(());
        }
        let file = match self.file.take() {
            Some(file) => file,
            None => nameless(&self.folder)?,
        };
        let write = |pages: &[u8]| file.write_all_at(pages, self.written);
        let written = fault::write("restore/overlay/write", &self.pending, write);
        written.context(|| format!("cannot write the new file in {}", self.folder.display()))?;
        self.written += self.pending.len() as u64;
        self.pending.clear();
        self.file = Some(file);
        Ok(())
    }

    /// Nothing more will be put.
    pub fn finish(mut self) -> Result<Overlay> {
        self.flush()?;
        self.places.sort_unstable();
        let page_size = u64::from(self.page_size.get());
        Ok(Overlay { file: self.file, page_size, places: self.places })
    }
}

impl Overlay {
    /// Those of `count` pages from `first` on that were put.
    pub fn within(&self, first: u64, count: usize) -> &[Place] {
        let before = |page_no: u64| self.places.partition_point(|it| u64::from(it.0) < page_no);
        &self.places[before(first)..before(first.saturating_add(count as u64))]
    }

    /// Reads pages, one after the other, into the beginning of `out`, which grows if it has to.
    pub fn read(&self, places: &[Place], out: &mut Vec<u8>) -> Result<()> {
        let size = usize::try_from(self.page_size).unwrap_or(usize::MAX);
        if out.len() < places.len() * size {
            out.resize(places.len() * size, 0);
        }
        let Some(file) = &self.file else { return Ok(()) };
        let mut at = 0;
        // Neighbours were mostly put one after the other.
        for run in places.chunk_by(|a, b| b.1 == a.1 + 1) {
            let Some((_, first)) = run.first() else { continue };
            let room = &mut out[at..at + run.len() * size];
            let read = fault::at("restore/overlay/read")
                .and_then(|()| file.read_exact_at(room, u64::from(*first) * self.page_size));
            read.context(|| "cannot read back pages of the new file".to_owned())?;
            at += room.len();
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_come_back_by_number() {
        let mut waiting = Waiting::new(&std::env::temp_dir(), PageSize::MIN);
        let numbers = [7, 8, 9, 3, 4, 100_000, 1, u32::MAX];
        for page_no in numbers {
            assert!(waiting.has_room());
            waiting.put(page_no, &[page_no.to_le_bytes()[0]; 512]).unwrap();
        }
        let overlay = waiting.finish().unwrap();
        let check = |first: u64, count: usize, expected: &[u32]| {
            let places = overlay.within(first, count);
            assert_eq!(places.iter().map(|it| it.0).collect::<Vec<_>>(), expected);
            let mut out = vec![0xff; 3];
            overlay.read(places, &mut out).unwrap();
            for (page, page_no) in out.chunks_exact(512).zip(expected) {
                assert!(page.iter().all(|byte| *byte == page_no.to_le_bytes()[0]), "{page_no}");
            }
        };
        check(1, 2, &[1]);
        check(2, 1, &[]);
        check(3, 6, &[3, 4, 7, 8]);
        check(9, usize::MAX, &[9, 100_000, u32::MAX]);
        assert!(Overlay::default().within(1, 1000).is_empty());
    }
}
