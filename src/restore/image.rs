//! The database file being made: which pages it has already, and how pages reach the disk.
//!
//! Pages come newest first, each is written once, in runs. The WAL's pages are put by one thread
//! and wait for their neighbours (overlay.rs); after that the snapshot's blocks are written by
//! several, with the pages that waited in their places. All-zero runs are not written at all: what
//! is not there reads as zeros.
//!
//! A page above what the database held at the end of an index is gone with everything older: the
//! checkpoint that finished the index cut the file there. [`Image::lower_limit`] says so.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;

use super::below::{Below, write};
use super::overlay::{Overlay, Waiting};
use super::stop::Stop;
use crate::archive::sink::PageSink;
use crate::error::{Context, Error, Result};
use crate::fault;
use crate::header::{HEADER_SIZE, page_size_of};
use crate::wal::{PageSize, WAL_FRAME_HEADER_SIZE};

/// Pages put one after the other are written at once up to so many bytes.
const RUN_BYTES_MAX: usize = 1 << 20;
/// The bitmap's pieces come into being when a page of theirs does: 4 KiB for 32,768 pages.
const WORDS: usize = 512;
const PIECE_PAGES: u64 = 64 * WORDS as u64;
/// Pages that waited for neighbours that do not exist are read back so many at once.
const REST_PAGES: usize = 256;

/// A set of page numbers.
#[derive(Clone, Default)]
pub struct Pages {
    pieces: Vec<Option<Box<[u64; WORDS]>>>,
}

impl Pages {
    fn place(page_no: u32) -> (usize, usize, u64) {
        let bit = u64::from(page_no);
        let word = usize::try_from(bit % PIECE_PAGES / 64).unwrap_or(0);
        (usize::try_from(bit / PIECE_PAGES).unwrap_or(0), word, 1 << (bit % 64))
    }

    /// Whether it is in the set.
    pub fn has(&self, page_no: u32) -> bool {
        let (piece, word, bit) = Self::place(page_no);
        self.pieces.get(piece).and_then(Option::as_ref).is_some_and(|words| words[word] & bit != 0)
    }

    fn insert(&mut self, page_no: u32) {
        let (piece, word, bit) = Self::place(page_no);
        if self.pieces.len() <= piece {
            self.pieces.resize(piece + 1, None);
        }
        let words = self.pieces[piece].get_or_insert_with(|| Box::new([0; WORDS]));
        words[word] |= bit;
    }
}

/// A database file without a name.
pub struct Image {
    file: Arc<File>,
    stop: Arc<Stop>,
    page_size: PageSize,
    page_count: u32,
    /// Pages above it are not taken any more.
    limit: u32,
    put: Arc<Pages>,
    /// Pages from `run_start` on that are not written yet.
    run: Vec<u8>,
    run_start: u32,
    waiting: Option<Waiting>,
    overlay: Arc<Overlay>,
}

impl Image {
    /// An empty file to be filled.
    pub fn new(file: File, stop: &Arc<Stop>) -> Image {
        Image {
            file: Arc::new(file),
            stop: Arc::clone(stop),
            page_size: PageSize::MIN,
            page_count: 0,
            limit: 0,
            put: Arc::default(),
            run: Vec::new(),
            run_start: 0,
            waiting: None,
            overlay: Arc::default(),
        }
    }

    /// From now on pages of WAL frames wait for the snapshot's, in a file in `folder`.
    pub fn wait_for_snapshot(&mut self, folder: &Path) {
        self.waiting = Some(Waiting::new(folder, self.page_size));
    }

    /// Says how large the database is, if that was not known before its pages came.
    pub fn set_page_count(&mut self, page_count: u32) {
        self.page_count = page_count;
    }

    /// From now on pages above `page_count` are not taken.
    pub fn lower_limit(&mut self, page_count: u32) {
        self.limit = self.limit.min(page_count);
    }

    /// Puts the pages of WAL frames, of which the last is the newest.
    pub fn put_frames(&mut self, frames: &[u8]) -> Result<()> {
        let frame_size = self.page_size.frame_size();
        let mut fresh = Vec::new();
        for frame in frames.chunks_exact(frame_size).rev() {
            let Some((number, _)) = frame.split_first_chunk() else { continue };
            let page_no = u32::from_be_bytes(*number);
            if self.wants(page_no) {
                Arc::make_mut(&mut self.put).insert(page_no);
                fresh.push((page_no, &frame[WAL_FRAME_HEADER_SIZE..]));
            }
        }
        fresh.sort_unstable_by_key(|(page_no, _)| *page_no);
        self.stop.check()?;
        fresh.into_iter().try_for_each(|(page_no, page)| match &mut self.waiting {
            Some(waiting) if waiting.has_room() => waiting.put(page_no, page),
            _ => self.append(page_no, page),
        })
    }

    fn append(&mut self, page_no: u32, page: &[u8]) -> Result<()> {
        let pages = self.run.len() / self.page_size.bytes();
        let follows = u64::from(self.run_start) + pages as u64 == u64::from(page_no);
        if !follows || self.run.len() + page.len() > RUN_BYTES_MAX {
            self.flush()?;
            self.run_start = page_no;
        }
        self.run.extend_from_slice(page);
        Ok(())
    }

    /// Writes what was put so far.
    fn flush(&mut self) -> Result<()> {
        self.stop.check()?;
        if self.run.is_empty() {
            return Ok(());
        }
        let offset = u64::from(self.run_start.saturating_sub(1)) * u64::from(self.page_size.get());
        write(&self.file, &self.run, offset)?;
        self.run.clear();
        Ok(())
    }

    /// For the threads that write the snapshot, when nothing newer is to come.
    pub fn below(&mut self) -> Result<Below> {
        self.flush()?;
        if let Some(waiting) = self.waiting.take() {
            self.overlay = Arc::new(waiting.finish()?);
        }
        Ok(Below {
            file: Arc::clone(&self.file),
            stop: Arc::clone(&self.stop),
            page_size: self.page_size,
            limit: self.limit,
            put: Arc::clone(&self.put),
            overlay: Arc::clone(&self.overlay),
        })
    }

    /// Puts the pages that waited and are past the end of the snapshot, which has `page_count`.
    pub fn put_rest(&mut self, page_count: u64) -> Result<()> {
        let overlay = Arc::clone(&self.overlay);
        let (size, mut pages) = (self.page_size.bytes(), Vec::new());
        for places in overlay.within(page_count + 1, usize::MAX).chunks(REST_PAGES) {
            overlay.read(places, &mut pages)?;
            for ((page_no, _), page) in places.iter().zip(pages.chunks_exact(size)) {
                self.append(*page_no, page)?;
            }
        }
        self.flush()
    }

    /// Completes the file and brings it to the disk.
    pub fn finish(mut self) -> Result<()> {
        self.flush()?;
        let size = u64::from(self.page_count) * u64::from(self.page_size.get());
        fault::at("restore/file/truncate")
            .and_then(|()| self.file.set_len(size))
            .context(|| "cannot set the size of the new file".to_owned())?;
        if size > 0 {
            let mut header = [0; HEADER_SIZE];
            fault::at("restore/file/read")
                .and_then(|()| self.file.read_exact_at(&mut header, 0))
                .context(|| "cannot read the new file".to_owned())?;
            if page_size_of(&header) != Some(self.page_size) {
                let why = "what the archive holds does not make a database: its first page is none";
                return Err(Error::corrupt(why));
            }
        }
        self.stop.check()?;
        fault::at("restore/file/sync")
            .and_then(|()| self.file.sync_all())
            .context(|| "cannot sync the new file".to_owned())
    }
}

impl PageSink for Image {
    fn begin(&mut self, page_size: PageSize, page_count: u32) -> Result<()> {
        (self.page_size, self.page_count, self.limit) = (page_size, page_count, page_count);
        self.stop.check()
    }

    fn wants(&self, page_no: u32) -> bool {
        (1..=self.limit).contains(&page_no) && !self.put.has(page_no)
    }

    fn put(&mut self, page_no: u32, page: &[u8]) -> Result<()> {
        if page.len() != self.page_size.bytes() {
            let why = format!("page {page_no} has {} bytes, not {}", page.len(), self.page_size);
            return Err(Error::bug(why));
        }
        if self.wants(page_no) {
            Arc::make_mut(&mut self.put).insert(page_no);
            self.append(page_no, page)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::header::MAGIC;

    fn image(page_count: u32) -> (Image, Arc<File>) {
        let path = std::env::temp_dir()
            .join(format!("litestream-image-{}-{page_count}", std::process::id()));
        let open = File::options().read(true).write(true).create_new(true).open(&path);
        std::fs::remove_file(&path).unwrap();
        let mut image = Image::new(open.unwrap(), &Arc::default());
        image.begin(PageSize::MIN, page_count).unwrap();
        let file = Arc::clone(&image.file);
        (image, file)
    }

    fn first_page() -> Vec<u8> {
        let mut page = vec![1; 512];
        page[..16].copy_from_slice(&MAGIC);
        page[16..18].copy_from_slice(&[2, 0]);
        page
    }

    fn content(file: &File) -> Vec<u8> {
        let mut bytes = vec![0; usize::try_from(file.metadata().unwrap().len()).unwrap()];
        file.read_exact_at(&mut bytes, 0).unwrap();
        bytes
    }

    #[test]
    fn the_first_version_put_stays() {
        let (mut image, file) = image(5);
        image.put(1, &first_page()).unwrap();
        for (page_no, byte) in [(3, 3), (4, 4), (3, 9), (6, 9), (0, 9)] {
            image.put(page_no, &[byte; 512]).unwrap();
        }
        assert!(image.wants(2) && image.wants(5) && !image.wants(3) && !image.wants(6));
        assert!(image.put(2, &[0; 511]).is_err());
        image.lower_limit(4);
        image.put(5, &[9; 512]).unwrap();
        let below = image.below().unwrap();
        let block = [[8; 512], [9; 512], [9; 512], [9; 512]].concat();
        below.write(512, &block, false, &mut Vec::new()).unwrap();
        image.finish().unwrap();
        let rest: Vec<u8> = [8, 3, 4, 0].iter().flat_map(|byte| [*byte; 512]).collect();
        assert!(content(&file) == [first_page(), rest].concat());
    }

    #[test]
    fn of_frames_the_last_is_the_newest() {
        let (mut image, file) = image(3);
        let mut frames = Vec::new();
        for (page_no, byte) in [(2_u32, 1), (3, 2), (2, 3)] {
            frames.extend_from_slice(&page_no.to_be_bytes());
            frames.resize(frames.len() + 20, 0);
            frames.extend_from_slice(&[byte; 512]);
        }
        image.put_frames(&frames).unwrap();
        image.put(1, &first_page()).unwrap();
        image.finish().unwrap();
        assert!(content(&file)[512..] == [[3; 512], [2; 512]].concat());
    }

    #[test]
    fn pages_that_waited_go_with_their_neighbours() {
        let (mut image, file) = image(9);
        image.put(1, &first_page()).unwrap();
        image.wait_for_snapshot(&std::env::temp_dir());
        let frame = |page_no: u32, byte: u8| {
            let mut frame = page_no.to_be_bytes().to_vec();
            frame.resize(24, 0);
            frame.resize(24 + 512, byte);
            frame
        };
        image.put_frames(&[frame(8, 8), frame(5, 5), frame(3, 3), frame(4, 4)].concat()).unwrap();
        image.put_frames(&[frame(3, 99), frame(9, 9)].concat()).unwrap();
        let below = image.below().unwrap();
        for dense in [false, true] {
            let mut room = Vec::new();
            below.write(0, &[1; 4 * 512], dense, &mut room).unwrap();
            below.write(4 * 512, &[2; 2 * 512], dense, &mut room).unwrap();
        }
        image.put_rest(6).unwrap();
        image.finish().unwrap();
        let rest: Vec<u8> = [1, 3, 4, 5, 2, 0, 8, 9].iter().flat_map(|byte| [*byte; 512]).collect();
        assert!(content(&file) == [first_page(), rest].concat());
    }

    #[test]
    fn what_is_no_database_is_refused() {
        let (mut none, _) = image(1);
        none.put(1, &[1; 512]).unwrap();
        assert!(none.finish().unwrap_err().to_string().contains("first page"));
        let (empty, file) = image(0);
        empty.finish().unwrap();
        assert_eq!(content(&file), [0; 0]);
    }

    #[test]
    fn far_apart_pages_cost_little() {
        let mut pages = Pages::default();
        for page_no in [1, 63, 64, 32_767, 32_768, u32::MAX] {
            assert!(!pages.has(page_no));
            pages.insert(page_no);
            assert!(pages.has(page_no));
        }
        assert!(!pages.has(2) && !pages.has(u32::MAX - 1));
        assert_eq!(pages.pieces.iter().flatten().count(), 3);
    }
}
