//! A primary whose every state is remembered, archives made of its log, and restores of them.
//!
//! A state is remembered by its position, its time, the database file a checkpoint would have made
//! just then, and a digest of its content. The file comes from SQLite itself: a copy of database
//! and WAL, opened and checkpointed by a host that never heard of the extension.

use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use litestream::archive::label::Moment;
use litestream::archive::tree::Tree;
use litestream::archive::{Archive, ArchiveOptions};
use litestream::lz4;
use litestream::pos::{Offset, Pos};

use crate::common::*;

/// What the primary was after one commit.
#[derive(Clone)]
pub struct State {
    pub pos: String,
    pub at: SystemTime,
    pub content: String,
    /// As checkpointed at this position.
    pub file: PathBuf,
}

impl State {
    pub fn pos(&self) -> Pos {
        self.pos.parse().unwrap()
    }
}

/// A served database.
pub struct Primary {
    pub folder: Folder,
    _host: Host,
    pub plain: Host,
    pub db: Db,
    pub path: PathBuf,
    pub history: Vec<State>,
    archives: Vec<(String, Tree)>,
}

impl Primary {
    pub fn start(test: &str, script: &str) -> Primary {
        let folder = Folder::new(test);
        let path = folder.file("app.db");
        let (host, plain) = (Host::app(), Host::plain());
        let db = host.open(&path);
        db.script(&format!("{script}; PRAGMA journal_mode = WAL;"));
        serve(&db);
        // The first snapshot of a large database takes its time.
        let limit = Duration::from_secs(300);
        until_within(limit, "capture to run", || db.run("SELECT litestream_pos()").ok());
        let archives = [("ours", Tree::V04), ("stock", Tree::V03)];
        let archives = archives.map(|(name, tree)| (file_url(&folder.file(name)), tree)).into();
        let mut primary =
            Primary { folder, _host: host, plain, db, path, history: Vec::new(), archives };
        primary.remember();
        primary
    }

    /// Commits, and remembers the state.
    pub fn commit(&mut self, sql: &str) -> &State {
        self.db.script(sql);
        self.remember()
    }

    /// Remembers the state. Nobody may be writing.
    pub fn remember(&mut self) -> &State {
        let pos = self.db.text("SELECT litestream_pos()");
        let at = SystemTime::now();
        // The next commit is in another millisecond: labels keep one moment of each.
        std::thread::sleep(Duration::from_millis(2));
        let file = self.folder.file(&format!("state-{}.db", self.history.len()));
        // The WAL first: a checkpoint in between writes pages that are in it as well.
        std::fs::copy(beside(&self.path, "-wal"), beside(&file, "-wal")).unwrap();
        std::fs::copy(&self.path, &file).unwrap();
        let copy = self.plain.open(&file);
        let content = content(&copy, &file);
        copy.run("PRAGMA wal_checkpoint(TRUNCATE)").unwrap();
        copy.close();
        self.history.push(State { pos, at, content, file });
        self.history.last().unwrap()
    }

    /// Brings everything into the log's files.
    pub fn sync(&self) {
        self.db.text("SELECT litestream_sync()");
    }

    /// The URL of the log, which is an archive without labels.
    pub fn log_url(&self) -> String {
        file_url(&beside(&self.path, "-litestream"))
    }

    /// Takes a snapshot, and keeps in the archives what the log does not keep for ever.
    pub fn snapshot(&self) {
        self.archive();
        self.db.text("SELECT litestream_snapshot()");
        self.archive();
    }

    /// Copies the log into one archive of each layout, as ours are: with labels, ends and a
    /// position. Their URLs.
    pub fn archive(&self) -> Vec<String> {
        self.sync();
        for (url, tree) in &self.archives {
            self.archive_into(url, *tree);
        }
        self.archives.iter().map(|(url, _)| url.clone()).collect()
    }

    fn archive_into(&self, url: &str, tree: Tree) {
        std::fs::create_dir_all(url.strip_prefix("file://").unwrap()).unwrap();
        let options = ArchiveOptions { tree, ..ArchiveOptions::default() };
        let log = Archive::open(&self.log_url(), &ArchiveOptions::default()).unwrap();
        let archive = Archive::open(url, &options).unwrap();
        for generation in log.generations().unwrap() {
            let listing = log.list(generation).unwrap();
            for snapshot in &listing.snapshots {
                let mut frame = log.open_snapshot(snapshot).unwrap().frame;
                let made = snapshot.info.created_at;
                archive.put_snapshot(snapshot.info.pos(), made, &mut frame).unwrap();
            }
            let mut end = None;
            for segment in &listing.segments {
                let pos = segment.info.pos();
                let mut raw = Vec::new();
                let frame = log.open_segment(segment).unwrap().frame;
                lz4::decompress(frame, 1 << 30, &mut raw).unwrap();
                let ends = Offset::new(pos.offset.get() + raw.len() as u64).unwrap();
                end = Some(Pos { offset: ends, ..pos });
                let moments = self.moments(pos, ends);
                let made = moments.last().map_or(segment.info.created_at, |moment| moment.at);
                let frame = lz4::compress(&raw).unwrap();
                archive.put_segment(pos, made, &moments, &mut frame.as_slice()).unwrap();
            }
            for (index, offset) in &listing.ends {
                archive.put_end(Pos::new(generation, *index, *offset)).unwrap();
            }
            end.map_or(Ok(()), |end| archive.put_position(end)).unwrap();
        }
    }

    fn moments(&self, start: Pos, end: Offset) -> Vec<Moment> {
        let states = self.history.iter().map(|state| (state.pos(), state.at));
        let within = states.filter(|(pos, _)| {
            pos.generation == start.generation
                && pos.index == start.index
                && pos.offset > start.offset
                && pos.offset <= end
        });
        within.map(|(pos, at)| Moment { end: pos.offset, at }).collect()
    }
}

pub fn file_url(folder: &Path) -> String {
    format!("file://{}", folder.display())
}

/// `path` with something behind it.
pub fn beside(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    PathBuf::from(name)
}

/// Restores on a connection that has no database at all.
pub fn restore(db: &Db, url: &str, path: &Path, options: &Value) -> Result<String, String> {
    let values = json!([url, path, options.to_string()]);
    let rows = db.send_with("SELECT litestream_restore(?, ?, ?)", values).outcome(DEADLINE)?;
    Ok(rows[0][0].as_str().unwrap().to_owned())
}

/// A digest of everything in a database. Of a very large one the bytes must do: they are compared
/// as well.
fn content(db: &Db, path: &Path) -> String {
    let large = std::fs::metadata(path).unwrap().len() > 256 << 20;
    if large { String::new() } else { db.content() }
}

/// A restored file must be the state: every page, and everything SQLite says of it.
pub fn assert_is(plain: &Host, path: &Path, state: &State) {
    let (found, expected) = (std::fs::read(path).unwrap(), std::fs::read(&state.file).unwrap());
    if found != expected {
        let size = page_size(&expected);
        let differ = found.chunks(size).zip(expected.chunks(size));
        let pages: Vec<usize> = differ
            .enumerate()
            .filter(|(_, (a, b))| a != b)
            .map(|(at, _)| at + 1)
            .take(20)
            .collect();
        panic!(
            "{} is not the state at {}: {} bytes, {} expected; pages {pages:?} differ",
            path.display(),
            state.pos,
            found.len(),
            expected.len()
        );
    }
    let db = plain.open(path);
    assert_eq!(db.text("PRAGMA integrity_check"), "ok");
    assert_eq!(content(&db, path), state.content);
    db.close();
}

fn page_size(file: &[u8]) -> usize {
    match u16::from_be_bytes([file[16], file[17]]) {
        1 => 65536,
        size => usize::from(size),
    }
}

/// Seconds and microseconds, UTC, as in a label.
pub fn iso(time: SystemTime) -> String {
    let micros = time.duration_since(UNIX_EPOCH).unwrap().as_micros();
    let at = UNIX_EPOCH + Duration::from_micros(u64::try_from(micros).unwrap());
    humantime::format_rfc3339_micros(at).to_string()
}

/// The names in a folder that begin so.
pub fn names(folder: &Path, start: &str) -> Vec<String> {
    let entries = std::fs::read_dir(folder).unwrap();
    let names = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let mut names: Vec<String> = names.filter(|name| name.starts_with(start)).collect();
    names.sort();
    names
}
