//! Names in an archive. Two trees are read, mixed if need be; one is written.
//!
//! | object        | `v0.4` (default; the log beside a database has it too) | `v0.3` (stock Litestream 0.3 and 0.5 restore it) |
//! |---------------|---------------------------------------------|--------------------------------------------------|
//! | snapshot      | `generations/G/snapshots/%016x.snapshot.lz4`| `generations/G/snapshots/%08x.snapshot.lz4`      |
//! | segment       | `generations/G/wal/%016x/%016x.wal.lz4`     | `generations/G/wal/%08x_%08x.wal.lz4`            |
//! | end of an index | `generations/G/wal/%016x/%016x.end`       | `generations/G/wal/%08x_%08x.end`                |
//! | position      | `generations/G/position`                    | the same                                         |
//!
//! Numbers are index and offset. The end of an index is an empty object whose name says at which
//! offset a finished index ends: a segment missing there would not show otherwise. (The log beside
//! a database has a file `end` with the offset in it instead.) The position is the one object that
//! is replaced: all before it is in the archive, though there may be more. Other readers pass over
//! both.

use std::str::FromStr;

use crate::error::{Error, ErrorKind, Result};
use crate::info::{SNAPSHOT_EXT, WAL_DIR_NAME, WAL_SEGMENT_EXT};
use crate::pos::{Generation, Index, Offset, Pos};

/// Ends the name of an index's end.
const END_EXT: &str = ".end";
/// The folder of all generations, with its slash.
pub const GENERATIONS: &str = "generations/";

/// A way to name objects.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Tree {
    /// Litestream 0.4's, and the log's: 16 digits, a folder for each index.
    #[default]
    V04,
    /// Litestream 0.3's: 8 digits.
    V03,
}

/// What the option `"layout"` takes.
impl FromStr for Tree {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        match text {
            "v0.4" => Ok(Tree::V04),
            "v0.3" => Ok(Tree::V03),
            _ => {
                let shown: String = text.chars().take(40).collect();
                let why = format!("option \"layout\": expected v0.4 or v0.3, got {shown:?}");
                Err(Error::usage(why))
            }
        }
    }
}

/// What a name stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Name {
    /// A snapshot at the start of its index.
    Snapshot(Index, Tree),
    /// WAL bytes from an offset of an index.
    Segment(Index, Offset, Tree),
    /// Where an index ends.
    End(Index, Offset),
    /// The same, told by the object's content.
    EndFile(Index),
    /// How far the archive reaches at least.
    Position,
}

/// The folder of a generation, with its slash.
pub fn folder(generation: Generation) -> String {
    format!("{GENERATIONS}{generation}/")
}

/// The folder of a generation's snapshots, with its slash.
pub fn snapshots(generation: Generation) -> String {
    format!("{}snapshots/", folder(generation))
}

/// Where a generation's position is kept.
pub fn position(generation: Generation) -> String {
    format!("{}position", folder(generation))
}

impl Tree {
    /// What the keys of an index's segments begin with, and that of its end; `None` if this tree
    /// cannot name the index.
    pub fn index(self, generation: Generation, index: Index) -> Option<String> {
        let folder = format!("{}{WAL_DIR_NAME}/", folder(generation));
        match self {
            Tree::V04 => Some(format!("{folder}{index}/")),
            Tree::V03 => short(index.get()).ok().map(|short| format!("{folder}{short}_")),
        }
    }

    /// A snapshot's key.
    pub fn snapshot(self, generation: Generation, index: Index) -> Result<String> {
        let folder = folder(generation);
        Ok(match self {
            Tree::V04 => format!("{folder}snapshots/{index}{SNAPSHOT_EXT}"),
            Tree::V03 => format!("{folder}snapshots/{}{SNAPSHOT_EXT}", short(index.get())?),
        })
    }

    /// A segment's key.
    pub fn segment(self, pos: Pos) -> Result<String> {
        self.in_wal(pos, WAL_SEGMENT_EXT)
    }

    /// The key that says that `end` is the end of its index.
    pub fn end(self, end: Pos) -> Result<String> {
        self.in_wal(end, END_EXT)
    }

    fn in_wal(self, pos: Pos, ext: &str) -> Result<String> {
        let Pos { generation, index, offset } = pos;
        let folder = format!("{}{WAL_DIR_NAME}/", folder(generation));
        Ok(match self {
            Tree::V04 => format!("{folder}{index}/{offset}{ext}"),
            Tree::V03 => {
                format!("{folder}{}_{}{ext}", short(index.get())?, short(offset.get())?)
            }
        })
    }
}

/// Eight digits, all that layout v0.3 has room for.
fn short(number: u64) -> Result<String> {
    if number > u64::from(u32::MAX) {
        let why = format!(
            "layout v0.3 cannot name {number:#x}: it has 8 digits for an index or an offset; \
             archive in the default layout, or checkpoint the WAL"
        );
        return Err(Error::new(ErrorKind::Unsupported, why));
    }
    Ok(format!("{number:08x}"))
}

/// What a key within [`folder`] stands for; `None`: not ours to touch.
pub fn parse(generation: Generation, key: &str) -> Option<Name> {
    let rest = key.strip_prefix(folder(generation).as_str())?;
    if rest == "position" {
        return Some(Name::Position);
    }
    if let Some(name) = rest.strip_prefix("snapshots/") {
        let digits = name.strip_suffix(SNAPSHOT_EXT)?;
        let tree = if digits.len() == 8 { Tree::V03 } else { Tree::V04 };
        return Some(Name::Snapshot(index(digits, tree)?, tree));
    }
    let name = rest.strip_prefix(WAL_DIR_NAME)?.strip_prefix('/')?;
    let (tree, parent, file) = match (name.split_once('/'), name.split_once('_')) {
        (Some((parent, file)), _) => (Tree::V04, parent, file),
        (None, Some((parent, file))) => (Tree::V03, parent, file),
        (None, None) => return None,
    };
    let index = index(parent, tree)?;
    if tree == Tree::V04 && file == "end" {
        return Some(Name::EndFile(index));
    }
    if let Some(digits) = file.strip_suffix(WAL_SEGMENT_EXT) {
        return Some(Name::Segment(index, offset(digits, tree)?, tree));
    }
    Some(Name::End(index, offset(file.strip_suffix(END_EXT)?, tree)?))
}

fn index(digits: &str, tree: Tree) -> Option<Index> {
    Index::new(number(digits, tree)?).ok()
}

fn offset(digits: &str, tree: Tree) -> Option<Offset> {
    Offset::new(number(digits, tree)?).ok()
}

/// Names have all their digits, and lowercase ones: a number has one name.
fn number(digits: &str, tree: Tree) -> Option<u64> {
    let width = match tree {
        Tree::V04 => 16,
        Tree::V03 => 8,
    };
    let hex = |byte: u8| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte);
    let ours = digits.len() == width && digits.bytes().all(hex);
    ours.then(|| u64::from_str_radix(digits, 16).ok())?
}

#[cfg(test)]
mod tests {
    use super::*;

    const G: Generation = Generation::from_bits(0xab);

    fn pos(index: u64, offset: u64) -> Pos {
        Pos::new(G, Index::new(index).unwrap(), Offset::new(offset).unwrap())
    }

    #[test]
    fn names_are_read_as_written() {
        let pos = pos(3, 0x1038);
        for tree in [Tree::V04, Tree::V03] {
            let check = |key: String, name: Name| assert_eq!(parse(G, &key), Some(name), "{key}");
            check(tree.snapshot(G, pos.index).unwrap(), Name::Snapshot(pos.index, tree));
            check(tree.segment(pos).unwrap(), Name::Segment(pos.index, pos.offset, tree));
            check(tree.end(pos).unwrap(), Name::End(pos.index, pos.offset));
        }
        assert_eq!(parse(G, &position(G)), Some(Name::Position));
        let end = "generations/00000000000000ab/wal/0000000000000003/end";
        assert_eq!(parse(G, end), Some(Name::EndFile(pos.index)));
    }

    #[test]
    fn the_names_of_0_3_are_its_own() {
        let check = |made: Result<String>, key: &str| assert_eq!(made.unwrap(), key);
        let folder = "generations/00000000000000ab";
        let pos = pos(0x1f, 0x20);
        check(
            Tree::V03.snapshot(G, pos.index),
            &format!("{folder}/snapshots/0000001f.snapshot.lz4"),
        );
        check(Tree::V03.segment(pos), &format!("{folder}/wal/0000001f_00000020.wal.lz4"));
        assert_eq!(
            Tree::V03.segment(self::pos(0, 1 << 32)).unwrap_err().kind(),
            ErrorKind::Unsupported
        );
    }

    #[test]
    fn other_names_are_left_alone() {
        let folder = "generations/00000000000000ab/";
        for rest in [
            "",
            "snapshots/",
            "snapshots/3.snapshot.lz4",
            "snapshots/0000000G.snapshot.lz4",
            "snapshots/000000000000000A.snapshot.lz4",
            "snapshots/00000003.snapshot.lz4.tmp",
            "wal/00000003.wal.lz4",
            "wal/00000003_0000000.wal.lz4",
            "wal/0000000000000003/0000000000001038.wal.lz4.tmp",
            "wal/0000000000000003/ffffffffffffffff.wal.lz4",
            "wal/00000003/00001038.wal.lz4",
            "wal/0000000000000003/../x.end",
            "positions",
        ] {
            assert_eq!(parse(G, &format!("{folder}{rest}")), None, "{rest}");
        }
        assert_eq!(parse(G, "generations/00000000000000ac/position"), None);
    }
}
