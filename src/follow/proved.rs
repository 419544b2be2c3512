//! Objects of an archive on their way into a stream: passed on as they are, but not before they
//! have proved to be sound.

use std::cell::RefCell;
use std::io::{self, Read, Write};

use crate::error::{Error, Result};
use crate::lz4;

/// Blocks without content are not held for ever: a block with some has 4 MiB at most.
const SEEN_BYTES_MAX: usize = 16 << 20;
/// Bytes decoded at once.
const PART_BYTES: usize = 256 << 10;

/// Copies a frame, a block at a time, each only when what follows it was read and proved: all of a
/// frame of one block. Otherwise who applies it would see damage first, and cannot name the object.
/// `first` is called with the beginning of the content before anything is written. Returns the
/// content's size.
pub fn copy_checked(
    frame: Box<dyn Read + Send>,
    out: &mut impl Write,
    first: impl FnOnce(&[u8]) -> Result<()>,
) -> Result<u64> {
    let seen = RefCell::new(Vec::new());
    let mut content = lz4::Decoder::new(Seen { frame, seen: &seen }, u64::MAX);
    let (mut part, mut size, mut first) = (vec![0; PART_BYTES], 0, Some(first));
    let mut held = Vec::new();
    loop {
        let read = content.read(&mut part)?;
        if let Some(first) = first.take() {
            first(part.get(..read).unwrap_or_default())?;
        }
        let more = std::mem::take(&mut *seen.borrow_mut());
        if read == 0 || !more.is_empty() {
            out.write_all(&held)?;
            held = more;
        }
        if read == 0 {
            out.write_all(&held)?;
            return Ok(size);
        }
        size += read as u64;
    }
}

/// Remembers what was read.
struct Seen<'a> {
    frame: Box<dyn Read + Send>,
    seen: &'a RefCell<Vec<u8>>,
}

impl Read for Seen<'_> {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        let read = self.frame.read(out)?;
        let mut seen = self.seen.borrow_mut();
        if seen.len() > SEEN_BYTES_MAX {
            return Err(Error::corrupt("its LZ4 frame has too many blocks without content").into());
        }
        seen.extend_from_slice(out.get(..read).unwrap_or_default());
        Ok(read)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lz4;

    /// The start of a frame, then blocks of no bytes without end.
    #[test]
    fn blocks_without_content_are_not_held_for_ever() {
        let mut stored = lz4::Encoder::stored(Vec::new(), None).unwrap();
        io::Write::write_all(&mut stored, b"x").unwrap();
        let stored = stored.finish().unwrap();
        let start = stored.get(..7).unwrap().to_vec();
        let has_checksums = stored[4] & 0x10 != 0;
        let block: &[u8] =
            if has_checksums { b"\0\0\0\x80\x05\x5d\xcc\x02" } else { b"\0\0\0\x80" };
        let blocks = block.repeat(6 << 20);
        let frame = Box::new(io::Cursor::new(start).chain(io::Cursor::new(blocks)));
        let error = copy_checked(frame, &mut Vec::new(), |_| Ok(())).unwrap_err().to_string();
        assert!(error.contains("without content"), "{error}");
    }
}
