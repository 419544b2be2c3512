//! Pages of one transaction of ours, on their way into the WAL.
//!
//! A batch holds at most [`BATCH_BYTES`] of pages; a page staged twice is there once, as it was
//! last. Many commits of the upstream may become one of ours: readers then see the state after the
//! last.

use std::collections::HashMap;
use std::collections::hash_map::Entry;

use crate::wal::{Chain, PageSize, PageSum, WAL_FRAME_HEADER_SIZE};

/// Pages held in memory before they are written as frames that do not commit. Large enough that
/// most transactions need one write, small enough to forget.
pub const BATCH_BYTES: usize = 4 << 20;

/// Where page 1 says that the database is in WAL mode (write and read version, 2 each).
const VERSIONS_AT: std::ops::Range<usize> = 18..20;
const WAL_MODE: [u8; 2] = [2, 2];

/// Pages by number, in the order they were first staged, each behind the room for its frame's
/// header: they are written from where they were put.
pub struct Batch {
    page_size: PageSize,
    numbers: Vec<u32>,
    /// Which of them a page is.
    places: HashMap<u32, usize>,
    /// What each adds to a chain; none: to be found out.
    sums: Vec<Option<PageSum>>,
    bytes: Vec<u8>,
}

impl Batch {
    /// Without pages.
    pub fn new(page_size: PageSize) -> Self {
        let (numbers, places, sums, bytes) = Default::default();
        Self { page_size, numbers, places, sums, bytes }
    }

    /// Whether it holds no page.
    pub fn is_empty(&self) -> bool {
        self.numbers.is_empty()
    }

    /// Bytes of pages.
    pub fn len_bytes(&self) -> usize {
        self.numbers.len() * self.page_size.bytes()
    }

    /// Whether another page, unless it replaces one, has to wait.
    pub fn is_full(&self) -> bool {
        self.len_bytes() + self.page_size.bytes() > BATCH_BYTES
    }

    /// The page numbers, in the order of the frames.
    pub fn numbers(&self) -> &[u32] {
        &self.numbers
    }

    /// Whether the page is there.
    pub fn contains(&self, page_no: u32) -> bool {
        self.places.contains_key(&page_no)
    }

    /// Adds or replaces a page of the right length; `sum` is what it adds to a chain, if known.
    pub fn put(&mut self, page_no: u32, page: &[u8], sum: Option<PageSum>) {
        debug_assert_eq!(page.len(), self.page_size.bytes());
        // Page 1 is not taken as it is.
        let sum = sum.filter(|_| page_no != 1);
        let frame_size = self.page_size.frame_size();
        let at = match self.places.entry(page_no) {
            Entry::Occupied(place) => {
                let (place, at) = (*place.get(), *place.get() * frame_size + WAL_FRAME_HEADER_SIZE);
                self.sums[place] = sum;
                self.bytes[at..at + page.len()].copy_from_slice(page);
                at
            }
            Entry::Vacant(place) => {
                place.insert(self.numbers.len());
                self.numbers.push(page_no);
                self.sums.push(sum);
                self.bytes.extend_from_slice(&[0; WAL_FRAME_HEADER_SIZE]);
                self.bytes.extend_from_slice(page);
                self.bytes.len() - page.len()
            }
        };
        if page_no == 1 {
            self.bytes[at..][VERSIONS_AT].copy_from_slice(&WAL_MODE);
        }
    }

    /// Makes its pages frames that continue `chain`, and takes it past them. The last one commits
    /// if `page_count` is not 0.
    pub fn seal(&mut self, chain: &mut Chain, page_count: u32) {
        let last = self.numbers.len().saturating_sub(1);
        let frames = self.bytes.chunks_exact_mut(self.page_size.frame_size());
        for (at, ((page_no, sum), frame)) in
            self.numbers.iter().zip(&self.sums).zip(frames).enumerate()
        {
            let (header, page) = frame.split_at_mut(WAL_FRAME_HEADER_SIZE);
            let known = sum.filter(|sum| sum.order() == chain.order);
            let sum = known.unwrap_or_else(|| PageSum::of(chain.order, chain.page_size, page));
            let page_count = if at == last { page_count } else { 0 };
            header.copy_from_slice(&chain.seal(*page_no, page_count, &sum));
        }
    }

    /// The frames, once they are sealed.
    pub fn frames(&self) -> &[u8] {
        &self.bytes
    }

    /// Forgets its pages, and gives back memory an unusual transaction needed.
    pub fn clear(&mut self) {
        const KEEP: usize = BATCH_BYTES / 4;
        self.numbers.clear();
        self.places.clear();
        self.sums.clear();
        self.bytes.clear();
        if self.bytes.capacity() > KEEP {
            let pages = KEEP / self.page_size.bytes();
            self.bytes.shrink_to(KEEP);
            self.numbers.shrink_to(pages);
            self.places.shrink_to(pages);
            self.sums.shrink_to(pages);
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
            batch.put(page_no, &[byte; 512], None);
        }
        assert_eq!(batch.numbers(), [3, 2]);
        let mut end = chain();
        batch.seal(&mut end, 7);
        let found = scan(chain(), batch.frames());
        assert_eq!((found.frames, found.commits, found.page_count), (2, 1, 7));
        assert_eq!(found.end, end);
        assert_eq!(batch.frames()[24], 9);
        batch.clear();
        assert!(batch.is_empty() && !batch.contains(3));
    }

    #[test]
    fn page_1_is_always_in_wal_mode() {
        let mut batch = Batch::new(PageSize::MIN);
        batch.put(1, &[1; 512], None);
        batch.put(1, &[3; 512], None);
        batch.seal(&mut chain(), 0);
        assert_eq!(batch.frames()[24 + 17..24 + 21], [3, 2, 2, 3]);
    }

    /// Whether what pages add was known, and how it was found, makes no difference.
    #[test]
    fn the_sums_of_pages_are_those_of_what_is_written() {
        let sum = |order, byte| Some(PageSum::of(order, PageSize::MIN, &[byte; 512]));
        let mut batch = Batch::new(PageSize::MIN);
        batch.put(2, &[2; 512], sum(ByteOrder::Little, 2));
        batch.put(3, &[3; 512], sum(ByteOrder::Big, 3));
        batch.put(1, &[1; 512], sum(ByteOrder::Little, 1));
        batch.put(4, &[4; 512], sum(ByteOrder::Little, 4));
        batch.put(4, &[5; 512], None);
        batch.put(2, &[6; 512], sum(ByteOrder::Little, 6));
        let mut end = chain();
        batch.seal(&mut end, 4);
        let found = scan(chain(), batch.frames());
        assert_eq!((found.frames, found.committed_frames), (4, 4));
        assert_eq!(found.end, end);
    }

    #[test]
    fn full_before_it_is_too_large() {
        let mut batch = Batch::new(PageSize::MAX);
        let mut page_no = 2;
        while !batch.is_full() {
            batch.put(page_no, &[0; 65536], None);
            page_no += 1;
        }
        assert_eq!(batch.len_bytes(), BATCH_BYTES);
    }
}
