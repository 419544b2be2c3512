//! Checksums of pages, and the pages by which two states differ.
//!
//! A page's checksum is XXH64 (seed 0) of its bytes; the lock page's is 0. Page 1 is taken as a
//! replica keeps it: its two version bytes (at 18) say WAL mode, and of its schema version (4
//! bytes, big-endian, at 40) the replica's own shift is taken away first. 64 bits tell accidents
//! apart (one in 2^64 pages that differ goes unnoticed) at many times the speed of a disk; they are
//! no proof against a page made up on purpose, and need not be: who can write pages can also lie.

use std::fmt::Write as _;

use twox_hash::XxHash64;

use crate::wal::PageSize;

/// Bytes of pages looked at together.
pub const BATCH_BYTES: usize = 1 << 20;
/// Ranges of pages named in a message.
const RANGES_SHOWN: usize = 8;
/// Ranges remembered.
const RANGES_MAX: usize = 64;

/// A page's checksum.
pub type Sum = u64;

/// The checksum of page `page_no`, which is changed to what is compared. `shift` was added to its
/// schema version.
pub fn page_sum(page_no: u32, page: &mut [u8], page_size: PageSize, shift: u32) -> Sum {
    if page_no == page_size.lock_page() {
        return 0;
    }
    if page_no == 1 {
        if let Some(versions) = page.get_mut(18..20) {
            versions.fill(2);
        }
        if let Some(schema) = page.get_mut(40..44).and_then(|field| field.first_chunk_mut()) {
            *schema = u32::from_be_bytes(*schema).wrapping_sub(shift).to_be_bytes();
        }
    }
    XxHash64::oneshot(0, page)
}

/// The checksum of checksums, which ends a list of them.
#[derive(Default)]
pub struct Total(u64);

impl Total {
    /// Takes the next checksum.
    pub fn add(&mut self, sum: Sum) {
        self.0 = (self.0 ^ sum).wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(29);
    }

    /// Of all so far.
    pub fn get(&self) -> Sum {
        self.0
    }
}

/// Pages that differ: how many, and which, in ranges.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Differences {
    count: u64,
    ranges: Vec<(u32, u32)>,
}

impl Differences {
    /// Notes a page. They come in order.
    pub fn add(&mut self, page_no: u32) {
        self.count += 1;
        let is_full = self.ranges.len() >= RANGES_MAX;
        match self.ranges.last_mut() {
            Some((_, last)) if last.checked_add(1) == Some(page_no) => *last = page_no,
            _ if is_full => {}
            _ => self.ranges.push((page_no, page_no)),
        }
    }

    /// How many there are.
    pub fn count(&self) -> u64 {
        self.count
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// `pages 3, 7-9, 12`, the first few of them.
    pub fn describe(&self) -> String {
        let mut text = String::from(if self.count == 1 { "page " } else { "pages " });
        for (at, (first, last)) in self.ranges.iter().take(RANGES_SHOWN).enumerate() {
            let comma = if at > 0 { ", " } else { "" };
            // Writing to a String cannot fail.
            let _ = match first == last {
                true => write!(text, "{comma}{first}"),
                false => write!(text, "{comma}{first}-{last}"),
            };
        }
        if self.ranges.len() > RANGES_SHOWN {
            text.push_str(", ...");
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sums_are_xxh64() {
        // From the specification's test vectors.
        assert_eq!(XxHash64::oneshot(0, b""), 0xef46_db37_51d8_e999);
        assert_eq!(XxHash64::oneshot(0, b"a"), 0xd24e_c4f1_a98c_6e5b);
        assert_eq!(page_sum(2, &mut [0; 512], PageSize::MIN, 9), XxHash64::oneshot(0, &[0; 512]));
    }

    #[test]
    fn what_a_replica_has_of_its_own_is_no_difference() {
        let page = |versions: [u8; 2], schema: u32| {
            let mut page = [7; 512];
            page[18..20].copy_from_slice(&versions);
            page[40..44].copy_from_slice(&schema.to_be_bytes());
            page
        };
        let sum = |no, mut page: [u8; 512], shift| page_sum(no, &mut page, PageSize::MIN, shift);
        let primary = sum(1, page([1, 1], u32::MAX), 0);
        assert_eq!(sum(1, page([2, 2], 4), 5), primary);
        assert_ne!(sum(1, page([2, 2], 4), 4), primary);
        assert_ne!(sum(2, page([1, 1], 4), 5), sum(2, page([2, 2], 4), 5));
        let lock_page = PageSize::MIN.lock_page();
        assert_eq!(sum(lock_page, page([1, 1], 4), 5), 0);
    }

    #[test]
    fn differences_are_named_in_ranges() {
        let of = |pages: &[u32]| {
            let mut found = Differences::default();
            pages.iter().for_each(|page_no| found.add(*page_no));
            found.describe()
        };
        assert_eq!(of(&[3]), "page 3");
        assert_eq!(of(&[3, 7, 8, 9, 12]), "pages 3, 7-9, 12");
        let many: Vec<u32> = (0..1000).map(|n| n * 2 + 1).collect();
        assert_eq!(of(&many), "pages 1, 3, 5, 7, 9, 11, 13, 15, ...");
    }

    #[test]
    fn a_total_depends_on_the_order() {
        let of = |sums: &[u64]| {
            let mut total = Total::default();
            sums.iter().for_each(|sum| total.add(*sum));
            total.get()
        };
        assert_ne!(of(&[1, 2]), of(&[2, 1]));
        assert_ne!(of(&[1, 2, 0]), of(&[1, 2]));
    }
}
