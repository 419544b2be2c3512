//! The beginning of a database file, as far as it matters here.
//!
//! | at | bytes | |
//! |----|-------|---|
//! | 0  | 16    | `SQLite format 3`, NUL |
//! | 16 | 2     | the page size, big-endian; 1 stands for 65536 |
//!
//! From SQLite's public "Database File Format".

use crate::wal::PageSize;

/// How every SQLite database begins.
pub const MAGIC: [u8; 16] = *b"SQLite format 3\0";
/// Bytes of a database's header.
pub const HEADER_SIZE: usize = 100;

/// The page size a database's first bytes tell; `None` if they begin no database.
pub fn page_size_of(file: &[u8]) -> Option<PageSize> {
    let field = file.get(MAGIC.len()..MAGIC.len() + 2)?.try_into().ok()?;
    let bytes = match u16::from_be_bytes(field) {
        1 => 65536,
        other => u32::from(other),
    };
    file.starts_with(&MAGIC).then(|| PageSize::new(bytes).ok())?
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn page_sizes() {
        let check = |field: [u8; 2], expected: Option<u32>| {
            let file = [&MAGIC[..], &field].concat();
            assert_eq!(page_size_of(&file).map(PageSize::get), expected, "{field:?}");
            assert_eq!(page_size_of(&file[..17]), None);
            assert_eq!(page_size_of(&file[1..]), None);
        };
        check([2, 0], Some(512));
        check([16, 0], Some(4096));
        check([0, 1], Some(65536));
        check([0, 0], None);
        check([16, 1], None);
    }
}
