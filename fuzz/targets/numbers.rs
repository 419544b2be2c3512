//! Positions, their parts and checksums as text: what is read is written the same, and read again.

use std::cmp::Ordering;

use crate::pos::{
    Generation, Index, Offset, Pos, compare_pos, format_index, format_offset, is_generation_name,
    parse_index, parse_offset,
};
use crate::wal::{Checksum, PageSize};

pub fn target(data: &[u8]) {
    let text = String::from_utf8_lossy(data);
    let (first, second) = text.split_once('\n').unwrap_or((&text, ""));
    number(first);
    let (a, b) = (position(first), position(second));
    if let (Some(a), Some(b)) = (a, b) {
        match compare_pos(a, b) {
            Ok(order) => {
                assert_eq!(order, compare_pos(b, a).unwrap().reverse());
                assert_eq!(order == Ordering::Equal, a == b);
            }
            Err(_) => assert_ne!(a.generation, b.generation),
        }
    }
    let [a, b, c, d, ..] = data else { return };
    let bytes = u32::from_le_bytes([*a, *b, *c, *d]);
    let size = PageSize::new(bytes);
    assert_eq!(size.is_ok(), (512..=65536).contains(&bytes) && bytes.count_ones() == 1);
}

fn position(text: &str) -> Option<Pos> {
    let pos: Pos = text.parse().ok()?;
    let shown = pos.to_string();
    if pos.is_zero() {
        assert_eq!(shown, "");
        return Some(pos);
    }
    assert_eq!(shown.parse::<Pos>().unwrap(), pos);
    assert!(shown.bytes().all(|byte| byte.is_ascii_hexdigit() || b"/:".contains(&byte)));
    assert_eq!(pos.truncate().offset, Offset::ZERO);
    Some(pos)
}

fn number(text: &str) {
    if let Ok(generation) = Generation::parse(text) {
        assert_eq!(generation.to_string(), text);
        assert!(is_generation_name(text));
        assert_eq!(Generation::parse_padded(text).unwrap(), generation);
    } else {
        assert!(!is_generation_name(text));
    }
    if let Ok(index) = parse_index(text) {
        assert_eq!(parse_index(&format_index(index)).unwrap(), index);
        assert_eq!(Index::new(index.get()).unwrap(), index);
        assert!(index.next() >= index && i64::try_from(index.get()).is_ok());
    }
    if let Ok(offset) = parse_offset(text) {
        assert_eq!(parse_offset(&format_offset(offset)).unwrap(), offset);
    }
    if let Ok(checksum) = text.parse::<Checksum>() {
        assert_eq!(checksum.to_string(), text);
    }
}
