//! The snapshot's part of a new database file, written by several threads, with the newer pages
//! that waited for it (overlay.rs) in their places.

use std::fs::File;
use std::io::{ErrorKind as Io, IoSlice};
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use super::image::Pages;
use super::overlay::Overlay;
use super::stop::Stop;
use crate::error::{Context, Result};
use crate::fault;
use crate::host::os;
use crate::wal::PageSize;

/// The system takes so many pieces in one write.
const PIECES_MAX: usize = 1024;

/// The oldest layer: takes any page that is not there yet, and brings the newer ones that waited
/// for it.
#[derive(Clone)]
pub struct Below {
    /// The new file.
    pub file: Arc<File>,
    /// Whether anybody still waits.
    pub stop: Arc<Stop>,
    /// Of the new database.
    pub page_size: PageSize,
    /// Pages above it are not taken.
    pub limit: u32,
    /// Pages that are newer than this layer's.
    pub put: Arc<Pages>,
    /// Those of them that waited.
    pub overlay: Arc<Overlay>,
}

/// Neighbouring bytes of the file: of the block, or of the newer pages read for it.
enum Piece {
    Block(Range<usize>),
    Newer(Range<usize>),
}

impl Below {
    /// Writes those of the whole pages that start at byte `offset` that belong into the file, and
    /// newer ones in the place of those that do not. `dense` writes zeros, too, because something
    /// else may be in their place. `newer`: room for newer pages.
    pub fn write(&self, offset: u64, block: &[u8], dense: bool, newer: &mut Vec<u8>) -> Result<()> {
        self.stop.check()?;
        let size = self.page_size.bytes();
        let first = offset / u64::from(self.page_size.get()) + 1;
        let count = block.len() / size;
        let places = self.overlay.within(first, count);
        self.overlay.read(places, newer)?;
        let (mut pieces, mut start, mut next) = (Vec::new(), 0, 0);
        for at in 0..count {
            let page_no = first + at as u64;
            let waited = places.get(next).is_some_and(|(number, _)| u64::from(*number) == page_no);
            let number = u32::try_from(page_no).unwrap_or(u32::MAX);
            if waited {
                push(&mut pieces, Piece::Newer(next * size..(next + 1) * size));
                next += 1;
            } else if number <= self.limit && !self.put.has(number) {
                push(&mut pieces, Piece::Block(at * size..(at + 1) * size));
            } else {
                self.put(offset, start * size, &mut pieces, block, newer, dense)?;
                start = at + 1;
                continue;
            }
            if pieces.len() == PIECES_MAX {
                self.put(offset, start * size, &mut pieces, block, newer, dense)?;
                start = at + 1;
            }
        }
        self.put(offset, start * size, &mut pieces, block, newer, dense)?;
        // The disk works while the next blocks are being expanded.
        os::start_writeback(&self.file, offset, block.len() as u64);
        Ok(())
    }

    /// Writes neighbouring pieces, of which the first is `start` bytes into the block.
    fn put(
        &self,
        offset: u64,
        start: usize,
        pieces: &mut Vec<Piece>,
        block: &[u8],
        newer: &[u8],
        dense: bool,
    ) -> Result<()> {
        let pieces = std::mem::take(pieces);
        let zero = |piece: &Piece| match piece {
            Piece::Block(range) => block[range.clone()].iter().all(|byte| *byte == 0),
            Piece::Newer(_) => false,
        };
        if !dense && pieces.iter().all(zero) {
            return Ok(());
        }
        let slices = pieces.iter().map(|piece| match piece {
            Piece::Block(range) => IoSlice::new(&block[range.clone()]),
            Piece::Newer(range) => IoSlice::new(&newer[range.clone()]),
        });
        write_pieces(&self.file, &mut slices.collect::<Vec<_>>(), offset + start as u64)
    }
}

/// Adds a piece, to the last one if it continues that.
fn push(pieces: &mut Vec<Piece>, piece: Piece) {
    match (pieces.last_mut(), &piece) {
        (Some(Piece::Block(last)), Piece::Block(next))
        | (Some(Piece::Newer(last)), Piece::Newer(next))
            if last.end == next.start =>
        {
            last.end = next.end;
        }
        _ => pieces.push(piece),
    }
}

fn write_pieces(file: &File, mut slices: &mut [IoSlice<'_>], mut offset: u64) -> Result<()> {
    let what = || "cannot write the new file".to_owned();
    fault::at("restore/file/write").context(what)?;
    while !slices.is_empty() {
        match rustix::io::pwritev(file, slices, offset) {
            Ok(0) => return Err(std::io::Error::from(Io::WriteZero)).context(what),
            Ok(written) => {
                offset += written as u64;
                IoSlice::advance_slices(&mut slices, written);
            }
            Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(std::io::Error::from(error)).context(what),
        }
    }
    Ok(())
}

/// Writes all of it.
pub fn write(file: &File, bytes: &[u8], offset: u64) -> Result<()> {
    let write = |bytes: &[u8]| file.write_all_at(bytes, offset);
    fault::write("restore/file/write", bytes, write)
        .context(|| "cannot write the new file".to_owned())
}
