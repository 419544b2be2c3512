//! The schema version of a replica whose content was replaced.
//!
//! Every connection keeps the schema it has read for as long as the schema version in page 1 (4
//! bytes, big-endian, at 40) is the one it was read under. Two histories count up independently: if
//! one replaces the other under the same version, connections that are open go on with the tables
//! of the old one at the pages of the new, and read one table for another. So what readers are
//! shown never repeats or falls: it is the upstream's version plus a shift, which grows when
//! content is replaced and the version has not.

/// Where the version is in page 1.
const VERSION: std::ops::Range<usize> = 40..44;
/// Where the root of the schema's tree begins in page 1, and how if it is all of the tree.
const ROOT: usize = 100;
const LEAF: u8 = 0x0d;

/// The version in a page 1.
fn version(page: &[u8]) -> u32 {
    let bytes = page.get(VERSION).and_then(|bytes| bytes.try_into().ok());
    u32::from_be_bytes(bytes.unwrap_or_default())
}

/// Makes the upstream's page 1 the replica's.
pub fn shift_version(page: &mut [u8], shift: u32) {
    let shown = version(page).wrapping_add(shift);
    if let Some(bytes) = page.get_mut(VERSION) {
        bytes.copy_from_slice(&shown.to_be_bytes());
    }
}

/// The shift from now on, when the upstream's page 1 `new` replaces `shown`, which readers see.
pub fn next_shift(shown: &[u8], new: &[u8], shift: u32) -> u32 {
    let (old, next) = (version(shown), version(new).wrapping_add(shift));
    let ahead = next.wrapping_sub(old);
    let same = ahead == 0 && new.get(ROOT) == Some(&LEAF) && shown.get(ROOT..) == new.get(ROOT..);
    if same || (1..=u32::MAX / 2).contains(&ahead) {
        return shift;
    }
    old.wrapping_add(1).wrapping_sub(version(new))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn page(version: u32, content: u8) -> Vec<u8> {
        let mut page = vec![content; 512];
        page[VERSION].copy_from_slice(&version.to_be_bytes());
        page[ROOT] = LEAF;
        page
    }

    #[test]
    fn what_is_shown_only_grows() {
        for (shown, new, shift) in
            [(5, 5, 0), (5, 3, 0), (5, 6, 0), (9, 5, 3), (9, 5, 4), (0, u32::MAX, 0), (1, 1, 7)]
        {
            let next = next_shift(&page(shown, 1), &page(new, 2), shift);
            let mut made = page(new, 2);
            shift_version(&mut made, next);
            let ahead = version(&made).wrapping_sub(shown);
            assert!((1..=u32::MAX / 2).contains(&ahead), "{shown} {new} {shift}: {next}");
        }
        assert_eq!(next_shift(&page(5, 1), &page(6, 2), 0), 0, "no more than is needed");
    }

    #[test]
    fn the_same_schema_keeps_its_version() {
        assert_eq!(next_shift(&page(5, 1), &page(5, 1), 0), 0);
        assert_eq!(next_shift(&page(7, 1), &page(5, 1), 2), 2);
        let mut tree = page(5, 1);
        tree[ROOT] = 0x05;
        assert_eq!(next_shift(&tree, &tree, 0), 1, "the rest of the tree may differ");
    }
}
