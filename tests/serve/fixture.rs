//! A primary without SQLite: a log filled as capture fills it, and served.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::SystemTime;

use litestream::log::layout::Layout;
use litestream::log::{Log, Pack, Segment};
use litestream::pos::{Generation, Offset, Pos};
use litestream::serve::{Attachment, Metric, Report, ServeOptions, Served, attach};
use litestream::wal::{ByteOrder, Chain, PageSize, WalHeader};

pub const GENERATION: u64 = 0xfb74_4889_fe01_aa13;

static FOLDERS: AtomicU32 = AtomicU32::new(0);

/// A folder that is gone afterwards.
pub struct Folder(pub PathBuf);

impl Folder {
    pub fn new() -> Folder {
        let number = FOLDERS.fetch_add(1, Ordering::Relaxed);
        let name = format!("litestream-serve-{}-{number}", std::process::id());
        let path = std::env::temp_dir().join(name);
        std::fs::create_dir_all(&path).unwrap();
        Folder(path)
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        std::fs::remove_dir_all(&self.0).ok();
    }
}

struct Numbers(Option<String>);

impl Report for Numbers {
    fn metrics(&self) -> Vec<Metric> {
        vec![Metric::gauge("litestream_db_size", "Bytes of the database.", 8192.0)]
    }

    fn error(&self) -> Option<String> {
        self.0.clone()
    }
}

/// A database's history, written by hand.
pub struct Primary {
    _folder: Folder,
    pub path: PathBuf,
    pub log: Arc<Log>,
    pub served: Arc<Served>,
    pub page_size: PageSize,
    pub snapshot: Vec<u8>,
    pub pos: Pos,
    pub chain: Option<Chain>,
    /// The WAL of the current index.
    pub wal: Vec<u8>,
}

impl Primary {
    /// One without a generation.
    pub fn empty(name: &str, error: Option<&str>) -> Primary {
        let folder = Folder::new();
        let path = folder.0.join(name);
        std::fs::write(&path, b"stands in for a database").unwrap();
        let log = Arc::new(Log::new(Layout::beside(&path).unwrap()));
        assert_eq!(log.load().unwrap(), None);
        let report = Numbers(error.map(str::to_owned));
        let served = Served::new(path.clone(), Arc::clone(&log), Box::new(report));
        let page_size = PageSize::new(512).unwrap();
        let (snapshot, wal) = (Vec::new(), Vec::new());
        let (pos, chain) = (Pos::default(), None);
        Primary { _folder: folder, path, log, served, page_size, snapshot, pos, chain, wal }
    }

    /// One with a snapshot of `pages` pages at index 0.
    pub fn new(page_size: u32, pages: usize) -> Primary {
        let mut primary = Primary::empty("app.db", None);
        primary.begin(GENERATION, page_size, pages);
        primary
    }

    pub fn begin(&mut self, generation: u64, page_size: u32, pages: usize) {
        self.page_size = PageSize::new(page_size).unwrap();
        let generation = Generation::from_bits(generation);
        self.log.begin_generation(generation, self.page_size);
        self.pos = Pos { generation, ..Pos::default() };
        (self.chain, self.wal) = (None, Vec::new());
        self.snapshot = noise(pages * self.page_size.bytes());
        self.take_snapshot();
    }

    pub fn take_snapshot(&self) {
        let size = self.snapshot.len() as u64;
        let now = SystemTime::now();
        let mut writer = self.log.snapshot_writer(self.pos.index, size, now).unwrap();
        writer.write(&self.snapshot).unwrap();
        self.log.add_snapshot(writer).unwrap();
        self.log.flush(Pack::Compressed, true).unwrap();
        self.log.adopt().unwrap();
    }

    /// Appends frames of these pages, the last of which commits (or not).
    pub fn append(&mut self, pages: &[u32], commit: bool) {
        let mut raw = Vec::new();
        let mut chain = self.chain.unwrap_or_else(|| {
            let salts = [7 + u32::try_from(self.pos.index.get()).unwrap(), 9];
            let header = WalHeader::new(ByteOrder::Little, self.page_size, 0, salts);
            raw.extend_from_slice(&header.encode());
            Chain::start(&header)
        });
        for (at, page) in pages.iter().enumerate() {
            let last = commit && at + 1 == pages.len();
            let content = vec![page.to_le_bytes()[0]; self.page_size.bytes()];
            chain.append(*page, if last { 100 } else { 0 }, &content, &mut raw);
        }
        self.append_raw(raw, chain, commit);
    }

    pub fn append_raw(&mut self, raw: Vec<u8>, chain: Chain, commit: bool) {
        self.wal.extend_from_slice(&raw);
        let segment = Segment::new(self.pos, raw, commit, SystemTime::now());
        self.pos = segment.end();
        self.chain = Some(chain);
        self.log.append(segment, chain).unwrap();
    }

    pub fn commit(&mut self, pages: &[u32]) {
        self.append(pages, true);
    }

    /// The next index begins.
    pub fn restart(&mut self) {
        self.log.flush(Pack::Compressed, true).unwrap();
        let (index, offset) = (self.pos.index.next(), Offset::ZERO);
        self.pos = Pos { index, offset, ..self.pos };
        (self.chain, self.wal) = (None, Vec::new());
    }

    pub fn serve(&self, address: &str, options: ServeOptions) -> Attachment {
        attach(address, options, Arc::clone(&self.served)).unwrap()
    }

    /// Serves it alone, on a port of its own.
    pub fn serve_alone(&self) -> Attachment {
        self.serve(&unique_address(), ServeOptions::default())
    }

    pub fn name(&self) -> &Path {
        &self.path
    }
}

/// A loopback address no other test shares a server at: they run in one process.
pub fn unique_address() -> String {
    let number = FOLDERS.fetch_add(1, Ordering::Relaxed);
    let [.., high, low] = number.to_be_bytes();
    format!("127.1.{high}.{low}:0")
}

/// Bytes that do not shrink.
pub fn noise(len: usize) -> Vec<u8> {
    let mut state = 0x2545_f491_4f6c_dd1d_u64;
    let mut out = Vec::with_capacity(len + 8);
    while out.len() < len {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        out.extend_from_slice(&state.to_le_bytes());
    }
    out.truncate(len);
    out
}
