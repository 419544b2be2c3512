//! What an archive was sent last, in a small file beside the database.
//!
//! | line of `DB-litestream/archives/NAME` | is                                            |
//! |---------------------------------------|-----------------------------------------------|
//! | 1                                     | the archive, in one spelling of its URL       |
//! | 2                                     | the snapshot sent last, or `-`                |
//! | 3                                     | where the archive ended before the segment sent last |
//! | 4                                     | where that segment begins                     |
//! | 5                                     | where it ends                                 |
//!
//! Lines 3 and 5 are a position, a space, and the WAL's running checksum there (`-`: at offset 0).
//! NAME is made of two hashes of line 1. The file is written before the object is sent, so a
//! listing of the archive tells which of the two ends is the archive's. It is needed where the
//! archive itself cannot tell: its objects cannot be read back here, or the log does not reach back
//! to them. A note that a power loss took back or made unreadable leaves a doubt, never an error.

use std::path::PathBuf;

use twox_hash::XxHash32;

use crate::archive::url::identity;
use crate::error::Result;
use crate::fault;
use crate::files::text_beside;
use crate::log::layout::Layout;
use crate::pos::Pos;
use crate::wal::Checksum;

/// The most of a note that is read, in bytes.
const NOTE_BYTES_MAX: usize = 8 << 10;

/// A place in history, and the WAL's running checksum there if it is known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Place {
    /// Where.
    pub(super) pos: Pos,
    /// None at the start of an index.
    pub(super) checksum: Option<Checksum>,
}

/// What was sent last.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Note {
    /// A snapshot.
    pub(super) snapshot: Option<Pos>,
    /// A segment.
    pub(super) segment: Option<Sent>,
}

/// A segment that was sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Sent {
    /// Where the archive ended.
    pub(super) before: Place,
    /// Where the segment begins.
    pub(super) begin: Pos,
    /// Where the archive ends if it got there.
    pub(super) end: Place,
}

impl Note {
    /// The note about the archive at `url`; an empty one if there is none to go by.
    pub(super) fn read(layout: &Layout, url: &str) -> Note {
        let archive = identity(url);
        let path = path(layout, &archive);
        let read = || fault::at("replicate/note/read").and_then(|()| text_beside(&path));
        let text = read().unwrap_or_default();
        parse(&text, &archive).unwrap_or_default()
    }

    /// Writes it, in place of the one before.
    pub(super) fn write(&self, layout: &Layout, url: &str) -> Result<()> {
        let archive = identity(url);
        let path = path(layout, &archive);
        if let Some(folder) = path.parent() {
            layout.create_dir(folder)?;
        }
        layout.write_once(&path, &[self.text(&archive).as_bytes()], false)
    }

    fn text(&self, archive: &str) -> String {
        let snapshot = self.snapshot.map_or_else(|| "-".to_owned(), |pos| pos.to_string());
        let place = |Place { pos, checksum }: Place| match checksum {
            Some(checksum) => format!("{pos} {checksum}"),
            None => format!("{pos} -"),
        };
        let segment = self.segment.map(|Sent { before, begin, end }| {
            format!("{}\n{begin}\n{}\n", place(before), place(end))
        });
        format!("{archive}\n{snapshot}\n{}", segment.unwrap_or_else(|| "-\n".to_owned()))
    }
}

fn path(layout: &Layout, archive: &str) -> PathBuf {
    let [one, two] = [0, 1].map(|seed| XxHash32::oneshot(seed, archive.as_bytes()));
    layout.root().join("archives").join(format!("{one:08x}{two:08x}"))
}

fn parse(text: &str, archive: &str) -> Option<Note> {
    let mut lines = text.get(..text.len().min(NOTE_BYTES_MAX))?.lines();
    if lines.next()? != archive {
        return None;
    }
    let snapshot = match lines.next()? {
        "-" => None,
        pos => Some(pos.parse().ok()?),
    };
    let place = |line: &str| {
        let (pos, checksum) = line.split_once(' ')?;
        let checksum = match checksum {
            "-" => None,
            checksum => Some(checksum.parse().ok()?),
        };
        Some(Place { pos: pos.parse().ok()?, checksum })
    };
    let segment = match lines.next()? {
        "-" => None,
        before => {
            let before = place(before)?;
            let begin = lines.next()?.parse().ok()?;
            Some(Sent { before, begin, end: place(lines.next()?)? })
        }
    };
    Some(Note { snapshot, segment })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pos::{Generation, Index, Offset};

    /// A folder has many names; by another one its note was not found, and the archive was doubted.
    #[test]
    fn a_note_is_found_under_every_name_of_the_archive() {
        let folder = std::env::temp_dir().join(format!("litestream-note-{}", std::process::id()));
        let _ = std::fs::remove_dir_all(&folder);
        std::fs::create_dir_all(folder.join("archive")).unwrap();
        std::os::unix::fs::symlink("archive", folder.join("link")).unwrap();
        let database = folder.join("a.db");
        std::fs::write(&database, "").unwrap();
        let layout = Layout::beside(&database).unwrap();
        let pos = Pos::new(Generation::from_bits(7), Index::ZERO, Offset::ZERO);
        let note = Note { snapshot: Some(pos), segment: None };
        let url = |name: &str| format!("file://{}/{name}", folder.display());
        note.write(&layout, &url("archive")).unwrap();
        for name in ["archive", "archive/", "./archive", "x/../archive", "%61rchive", "link"] {
            assert_eq!(Note::read(&layout, &url(name)), note, "{name}");
        }
        assert_eq!(Note::read(&layout, &url("other")), Note::default());
        std::fs::remove_dir_all(&folder).unwrap();
    }

    #[test]
    fn a_note_is_read_as_written() {
        let url = "file:///a b/c";
        let pos = |offset| {
            Pos::new(Generation::from_bits(7), Index::ZERO.next(), Offset::new(offset).unwrap())
        };
        let start = Place { pos: pos(0), checksum: None };
        let end = Place { pos: pos(32), checksum: Some("00000001000000ff".parse().unwrap()) };
        for note in [
            Note::default(),
            Note { snapshot: Some(pos(0)), segment: None },
            Note { snapshot: None, segment: Some(Sent { before: start, begin: pos(0), end }) },
        ] {
            let text = note.text(url);
            assert_eq!(parse(&text, url), Some(note));
            assert_eq!(parse(&text, "file:///a"), None);
            for cut in 0..text.len() - 1 {
                // A number cut short may still be one; a note is whole or not there.
                let _no_panic = parse(&text[..cut], url);
            }
        }
    }
}
