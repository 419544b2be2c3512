//! Pages of one transaction of ours, on their way into the WAL.
//!
//! A batch holds at most [`BATCH_BYTES`] of pages; a page staged twice is there once, as it was
//! last. Many commits of the upstream may become one of ours: readers then see the state after the
//! last.

use std::collections::HashMap;
use std::collections::hash_map::Entry;

use crate::wal::{Chain, PageSize};

/// Pages held in memory before they are written as frames that do not commit. Large enough that
/// most transactions need one write, small enough to forget.
pub const BATCH_BYTES: usize = 4 << 20;

/// Where page 1 says that the database is in WAL mode (write and read version, 2 each).
const VERSIONS_AT: std::ops::Range<usize> = 18..20;
const WAL_MODE: [u8; 2] = [2, 2];

/// Pages by number, in the order they were first staged.
pub struct Batch {
    page_size: PageSize,
    numbers: Vec<u32>,
    places: HashMap<u32, usize>,
    bytes: Vec<u8>,
}

impl Batch {
    /// Without pages.
    pub fn new(page_size: PageSize) -> Self {
        Self { page_size, numbers: Vec::new(), places: HashMap::new(), bytes: Vec::new() }
    }

    /// Whether it holds no page.
    pub fn is_empty(&self) -> bool {
        self.numbers.is_empty()
    }

    /// Bytes of pages.
    pub fn len_bytes(&self) -> usize {
        self.bytes.len()
    }

    /// Whether another page, unless it replaces one, has to wait.
    pub fn is_full(&self) -> bool {
        self.bytes.len() + self.page_size.bytes() > BATCH_BYTES
    }

    /// The page numbers, in the order of the frames `encode` makes.
    pub fn numbers(&self) -> &[u32] {
        &self.numbers
    }

    /// Whether the page is there.
    pub fn contains(&self, page_no: u32) -> bool {
        self.places.contains_key(&page_no)
    }

    /// Adds or replaces a page of the right length.
    pub fn put(&mut self, page_no: u32, page: &[u8]) {
        debug_assert_eq!(page.len(), self.page_size.bytes());
        let at = match self.places.entry(page_no) {
            Entry::Occupied(place) => {
                let at = *place.get();
                self.bytes[at..at + page.len()].copy_from_slice(page);
                at
            }
            Entry::Vacant(place) => {
                let at = *place.insert(self.bytes.len());
                self.numbers.push(page_no);
                self.bytes.extend_from_slice(page);
                at
            }
        };
        if page_no == 1 {
            self.bytes[at..][VERSIONS_AT].copy_from_slice(&WAL_MODE);
        }
    }

    /// Appends its frames to `out` and takes `chain` past them. The last one commits if
    /// `page_count` is not 0.
    pub fn encode(&self, chain: &mut Chain, page_count: u32, out: &mut Vec<u8>) {
        let last = self.numbers.len().saturating_sub(1);
        let pages = self.bytes.chunks_exact(self.page_size.bytes());
        for (at, (page_no, page)) in self.numbers.iter().zip(pages).enumerate() {
            chain.append(*page_no, if at == last { page_count } else { 0 }, page, out);
        }
    }

    /// Forgets its pages, and gives back memory an unusual transaction needed.
    pub fn clear(&mut self) {
        const KEEP: usize = BATCH_BYTES / 4;
        self.numbers.clear();
        self.places.clear();
        self.bytes.clear();
        if self.bytes.capacity() > KEEP {
            self.bytes.shrink_to(KEEP);
            self.numbers.shrink_to(KEEP / self.page_size.bytes());
            self.places.shrink_to(KEEP / self.page_size.bytes());
        }
    }
}

/// Sets the version bytes of a page 1 to WAL mode, as every page 1 written here has them.
pub fn set_wal_mode(page: &mut [u8]) {
    if let Some(versions) = page.get_mut(VERSIONS_AT) {
        versions.copy_from_slice(&WAL_MODE);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wal::{ByteOrder, Checksum, scan};

    fn chain() -> Chain {
        let page_size = PageSize::MIN;
        Chain { order: ByteOrder::Little, page_size, salts: [1, 2], checksum: Checksum::default() }
    }

    #[test]
    fn a_page_staged_twice_is_there_once() {
        let mut batch = Batch::new(PageSize::MIN);
        for (page_no, byte) in [(3, 1), (2, 2), (3, 9)] {
            batch.put(page_no, &[byte; 512]);
        }
        assert_eq!(batch.numbers(), [3, 2]);
        let (mut end, mut out) = (chain(), Vec::new());
        batch.encode(&mut end, 7, &mut out);
        let found = scan(chain(), &out);
        assert_eq!((found.frames, found.commits, found.page_count), (2, 1, 7));
        assert_eq!(found.end, end);
        assert_eq!(out[24], 9);
        batch.clear();
        assert!(batch.is_empty() && !batch.contains(3));
    }

    #[test]
    fn page_1_is_always_in_wal_mode() {
        let mut batch = Batch::new(PageSize::MIN);
        batch.put(1, &[1; 512]);
        batch.put(1, &[3; 512]);
        let (mut end, mut out) = (chain(), Vec::new());
        batch.encode(&mut end, 0, &mut out);
        assert_eq!(out[24 + 17..24 + 21], [3, 2, 2, 3]);
    }

    #[test]
    fn full_before_it_is_too_large() {
        let mut batch = Batch::new(PageSize::MAX);
        let mut page_no = 2;
        while !batch.is_full() {
            batch.put(page_no, &[0; 65536]);
            page_no += 1;
        }
        assert_eq!(batch.len_bytes(), BATCH_BYTES);
    }
}
