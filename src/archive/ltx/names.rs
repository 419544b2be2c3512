//! Where the LTX files of an archive are, and what each covers.
//!
//! | store  | key                                                      |
//! |--------|----------------------------------------------------------|
//! | folder | `ltx/LEVEL/MIN-MAX.ltx`, the level in decimal            |
//! | S3     | `LEVEL/MIN-MAX.ltx`, the level in four hexadecimal digits |
//!
//! MIN and MAX are the first and the last transaction, 16 hexadecimal digits each, counted from 1.
//! Level 0 has a file for each transaction (or for those of one second), the levels above it the
//! same merged over longer and longer times, and level 9 snapshots, which begin with transaction 1
//! as every file does that has all pages. The same transaction may be in several files.

use std::fmt;

/// The folder of all levels, with its slash, in a folder.
pub const LTX: &str = "ltx/";
/// The level of snapshots, and the highest.
pub const SNAPSHOT_LEVEL: u8 = 9;

/// A transaction's number, from 1 on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TxId(pub u64);

impl fmt::Display for TxId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

/// What a name says.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Span {
    /// 0 to [`SNAPSHOT_LEVEL`].
    pub level: u8,
    /// The first transaction.
    pub min: TxId,
    /// The last one.
    pub max: TxId,
}

/// The folder of a level in a bucket, with its slash.
pub fn bucket_folder(level: u8) -> String {
    format!("{level:04x}/")
}

/// What a key stands for; `None`: no LTX file.
pub fn parse(key: &str) -> Option<Span> {
    let (folder, name) = key.rsplit_once('/')?;
    let level = match folder.strip_prefix(LTX) {
        Some(level) if level.len() == 1 => level.parse().ok()?,
        Some(_) => return None,
        None => (0..=SNAPSHOT_LEVEL).find(|level| bucket_folder(*level) == key[..=folder.len()])?,
    };
    let (min, max) = name.strip_suffix(".ltx")?.split_once('-')?;
    let (min, max) = (number(min)?, number(max)?);
    (1 <= min && min <= max).then_some(Span { level, min: TxId(min), max: TxId(max) })
}

fn number(digits: &str) -> Option<u64> {
    let hex = |byte: u8| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte);
    let sound = digits.len() == 16 && digits.bytes().all(hex);
    sound.then(|| u64::from_str_radix(digits, 16).ok())?
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_folders_and_buckets() {
        let span = |level, min, max| Some(Span { level, min: TxId(min), max: TxId(max) });
        for (key, expected) in [
            ("ltx/0/0000000000000001-0000000000000001.ltx", span(0, 1, 1)),
            ("ltx/9/0000000000000001-000000000000001f.ltx", span(9, 1, 31)),
            ("0002/0000000000000015-0000000000000034.ltx", span(2, 0x15, 0x34)),
            ("0009/0000000000000001-ffffffffffffffff.ltx", span(9, 1, u64::MAX)),
        ] {
            assert_eq!(parse(key), expected, "{key}");
        }
    }

    #[test]
    fn other_names_are_left_alone() {
        for key in [
            "",
            "ltx",
            "ltx/0/",
            "ltx/10/0000000000000001-0000000000000001.ltx",
            "ltx/0000/0000000000000001-0000000000000001.ltx",
            "ltx/x/0000000000000001-0000000000000001.ltx",
            "000a/0000000000000001-0000000000000001.ltx",
            "0/0000000000000001-0000000000000001.ltx",
            "0000000000000001-0000000000000001.ltx",
            "ltx/0/0000000000000001-0000000000000001.ltx.tmp",
            "ltx/0/0000000000000000-0000000000000001.ltx",
            "ltx/0/0000000000000002-0000000000000001.ltx",
            "ltx/0/000000000000000A-000000000000000A.ltx",
            "ltx/0/0000000000000001.ltx",
            "ltx/0/1-1.ltx",
            "generations/00000000000000ab/position",
        ] {
            assert_eq!(parse(key), None, "{key}");
        }
    }
}
