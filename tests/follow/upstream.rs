//! A small upstream: serves a history over HTTP, either as the ancestor did or as we do.
//!
//! The history comes from a real database whose WAL is cut at its commits, or from a recording.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::time::Duration;

use litestream::host::conn::Connection;
use litestream::lz4::write_stored;
use litestream::pos::{Generation, Index, Offset, Pos};
use litestream::record::{Heartbeat, RecordType, StreamRecordHeader};
use litestream::wal::{Chain, WAL_HEADER_SIZE, WalHeader, scan};

/// One WAL of a history, from its header on, and the snapshot at its start if there is one.
#[derive(Clone, Default)]
pub struct Wal {
    pub snapshot: Option<Vec<u8>>,
    pub bytes: Vec<u8>,
}

/// What is served. Indexes count from `first`.
#[derive(Clone, Default)]
pub struct History {
    pub generation: u64,
    pub page_size: u32,
    pub wals: Vec<Wal>,
}

impl History {
    pub fn end(&self) -> Pos {
        let last = self.wals.len() - 1;
        pos(self.generation, last as u64, self.wals[last].bytes.len() as u64)
    }
}

pub fn pos(generation: u64, index: u64, offset: u64) -> Pos {
    let generation = Generation::from_bits(generation);
    Pos::new(generation, Index::new(index).unwrap(), Offset::new(offset).unwrap())
}

/// How it behaves.
#[derive(Clone, Copy, Default)]
pub struct Manners {
    /// Sends heartbeats, and understands offset and checksum.
    pub modern: bool,
    /// Cuts segments into pieces of about so many frames, not only at commits; 0: one per commit.
    pub split_frames: usize,
}

struct State {
    history: Mutex<History>,
    changed: Condvar,
    manners: Manners,
    /// Ends connections that are idle, and takes no more.
    closed: AtomicBool,
    /// How often it ended all its connections.
    cuts: AtomicU32,
    /// Says nothing more on any connection.
    frozen: AtomicBool,
    snapshots_sent: AtomicU32,
    /// The last requests' first lines.
    requests: Mutex<Vec<String>>,
}

pub struct Upstream {
    pub url: String,
    state: Arc<State>,
}

impl Upstream {
    pub fn serve(history: History, manners: Manners) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let state = Arc::new(State {
            history: Mutex::new(history),
            changed: Condvar::new(),
            manners,
            closed: AtomicBool::new(false),
            cuts: AtomicU32::new(0),
            frozen: AtomicBool::new(false),
            snapshots_sent: AtomicU32::new(0),
            requests: Mutex::new(Vec::new()),
        });
        let shared = Arc::clone(&state);
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let state = Arc::clone(&shared);
                std::thread::spawn(move || answer(&state, stream.unwrap()));
            }
        });
        Self { url, state }
    }

    /// Serves another history, or more of the same. Open connections of another generation end.
    pub fn set(&self, history: History) {
        *self.state.history.lock().unwrap() = history;
        self.state.changed.notify_all();
    }

    /// Ends the streams there are; new ones may begin.
    pub fn cut(&self) {
        self.state.cuts.fetch_add(1, Ordering::Relaxed);
        self.state.changed.notify_all();
    }

    pub fn freeze(&self) {
        self.state.frozen.store(true, Ordering::Relaxed);
    }

    pub fn snapshots_sent(&self) -> u32 {
        self.state.snapshots_sent.load(Ordering::Relaxed)
    }

    pub fn requests(&self) -> Vec<String> {
        self.state.requests.lock().unwrap().clone()
    }
}

impl Drop for Upstream {
    fn drop(&mut self) {
        self.state.closed.store(true, Ordering::Relaxed);
        self.state.changed.notify_all();
    }
}

fn parameter<'a>(request: &'a str, key: &str) -> Option<&'a str> {
    let query = request.split_whitespace().nth(1)?.split_once('?')?.1;
    query.split('&').find_map(|pair| pair.strip_prefix(key)?.strip_prefix('='))
}

fn answer(state: &State, mut stream: TcpStream) {
    stream.set_nodelay(true).unwrap();
    let mut reader = BufReader::new(stream.try_clone().unwrap());
    loop {
        let mut request = String::new();
        if reader.read_line(&mut request).unwrap_or(0) == 0 {
            return;
        }
        let mut line = String::new();
        while reader.read_line(&mut line).unwrap_or(0) > 2 {
            line.clear();
        }
        state.requests.lock().unwrap().push(request.trim().to_owned());
        if request.starts_with("POST /ack") {
            let _ = stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n");
            continue;
        }
        if state.closed.load(Ordering::Relaxed) {
            return;
        }
        // The peer may leave at any time.
        let _ = respond(state, &request, &mut stream);
        let _ = stream.shutdown(std::net::Shutdown::Both);
        return;
    }
}

fn respond(state: &State, request: &str, stream: &mut TcpStream) -> std::io::Result<()> {
    let cuts = state.cuts.load(Ordering::Relaxed);
    let history = state.history.lock().unwrap().clone();
    let features =
        if state.manners.modern { "Litestream-Features: heartbeat,lz4,split\r\n" } else { "" };
    write!(
        stream,
        "HTTP/1.1 200 OK\r\nLitestream-Page-Size: {}\r\n{features}\
         Transfer-Encoding: chunked\r\n\r\n",
        history.page_size
    )?;
    if state.manners.modern {
        beat(stream, &history)?;
    }
    let (mut index, mut offset) = begin(state, &history, request, stream)?;
    loop {
        let (history, news) = {
            let mut history = state.history.lock().unwrap();
            let mut news = history.end() != pos(history.generation, index as u64, offset as u64);
            if !news {
                let wait = Duration::from_secs(1);
                (history, _) = state.changed.wait_timeout(history, wait).unwrap();
                news = history.end() != pos(history.generation, index as u64, offset as u64);
            }
            (history.clone(), news)
        };
        if state.closed.load(Ordering::Relaxed)
            || state.cuts.load(Ordering::Relaxed) != cuts
            || parameter(request, "since").is_some_and(|g| g != history.generation.to_string())
            || history.wals.len() <= index
            || history.wals[index].bytes.len() < offset
        {
            return Ok(());
        }
        while state.frozen.load(Ordering::Relaxed) {
            std::thread::sleep(Duration::from_millis(50));
        }
        if !news && state.manners.modern {
            beat(stream, &history)?;
        }
        while history.wals[index].bytes.len() > offset || history.wals.len() > index + 1 {
            let wal = &history.wals[index].bytes;
            if wal.len() == offset {
                (index, offset) = (index + 1, 0);
                continue;
            }
            let end = piece(wal, offset, history.page_size as usize + 24, state.manners);
            let mut payload = Vec::new();
            write_stored(&mut payload, &wal[offset..end])?;
            let at = pos(history.generation, index as u64, offset as u64);
            record(stream, RecordType::WalSegment, at, &payload)?;
            offset = end;
        }
    }
}

/// Sends a snapshot unless the request can be continued; where the stream goes on.
fn begin(
    state: &State,
    history: &History,
    request: &str,
    stream: &mut TcpStream,
) -> std::io::Result<(usize, usize)> {
    let hex = |key| parameter(request, key).and_then(|v| u64::from_str_radix(v, 16).ok());
    let asked = hex("index").map(|index| index as usize);
    let held = |index: &usize| {
        hex("generation") == Some(history.generation) && *index < history.wals.len()
    };
    if let Some(index) = asked.filter(held) {
        if !state.manners.modern {
            return Ok((index, 0));
        }
        let offset = hex("offset").unwrap() as usize;
        let wal = &history.wals[index].bytes;
        let known = parameter(request, "checksum").map(str::to_owned);
        if offset <= wal.len() && checksum_at(wal, offset) == known {
            return Ok((index, offset));
        }
    }
    let found = history.wals.iter().enumerate().rev().find(|(_, wal)| wal.snapshot.is_some());
    let (index, wal) = found.unwrap();
    let at = pos(history.generation, index as u64, 0);
    state.snapshots_sent.fetch_add(1, Ordering::Relaxed);
    record(stream, RecordType::Snapshot, at, wal.snapshot.as_ref().unwrap())?;
    Ok((index, 0))
}

fn checksum_at(wal: &[u8], offset: usize) -> Option<String> {
    let header = WalHeader::decode(wal.get(..WAL_HEADER_SIZE)?).unwrap();
    let frames = wal.get(WAL_HEADER_SIZE..offset)?;
    Some(scan(Chain::start(&header), frames).end.checksum.to_string())
}

/// Where the segment that starts at `offset` ends.
fn piece(wal: &[u8], offset: usize, frame: usize, manners: Manners) -> usize {
    if offset == 0 {
        return WAL_HEADER_SIZE;
    }
    let mut at = offset;
    let mut frames = 0;
    while at < wal.len() {
        let commits = wal[at + 4..at + 8] != [0; 4];
        at += frame;
        frames += 1;
        if if manners.split_frames > 0 { frames == manners.split_frames } else { commits } {
            break;
        }
    }
    at
}

fn beat(stream: &mut TcpStream, history: &History) -> std::io::Result<()> {
    let beat = Heartbeat { pos: history.end(), unix_ms: 0 };
    record(stream, RecordType::Heartbeat, beat.pos, &beat.encode())
}

/// One record in one chunk.
pub fn record(
    stream: &mut TcpStream,
    kind: RecordType,
    at: Pos,
    payload: &[u8],
) -> std::io::Result<()> {
    let header = StreamRecordHeader::new(kind, at, payload.len() as u64).encode();
    let mut chunk = format!("{:x}\r\n", header.len() + payload.len()).into_bytes();
    chunk.extend_from_slice(&header);
    chunk.extend_from_slice(payload);
    chunk.extend_from_slice(b"\r\n");
    stream.write_all(&chunk)
}

/// A real database that makes a history: nobody but `commit` restarts its WAL.
pub struct Primary {
    pub path: PathBuf,
    pub sql: Connection,
    pub history: History,
}

impl Primary {
    pub fn new(path: &Path, page_size: u32, schema: &str) -> Self {
        super::support::host();
        let sql = Connection::open(path, "", true).unwrap();
        sql.execute(&format!(
            "PRAGMA page_size={page_size}; PRAGMA journal_mode=WAL; PRAGMA wal_autocheckpoint=0;
             PRAGMA synchronous=OFF; {schema}; PRAGMA wal_checkpoint(TRUNCATE)"
        ))
        .unwrap();
        let snapshot = Some(std::fs::read(path).unwrap());
        let wals = vec![Wal { snapshot, bytes: Vec::new() }];
        let history = History { generation: 0xabc, page_size, wals };
        Self { path: path.to_owned(), sql, history }
    }

    /// Runs SQL and takes what it wrote into the history.
    pub fn run(&mut self, sql: &str) {
        self.sql.execute(sql).unwrap();
        self.capture();
    }

    pub fn capture(&mut self) {
        let mut wal = self.path.as_os_str().to_owned();
        wal.push("-wal");
        let bytes = std::fs::read(&wal).unwrap();
        let Ok(header) = WalHeader::decode(&bytes) else { return };
        let found = scan(Chain::start(&header), &bytes[WAL_HEADER_SIZE..]);
        let size = 24 + self.history.page_size as usize;
        let end = WAL_HEADER_SIZE + size * found.committed_frames as usize;
        self.history.wals.last_mut().unwrap().bytes = bytes[..end].to_vec();
    }

    /// Starts the WAL over: the next index. With a snapshot there if asked for.
    pub fn restart(&mut self, snapshot: bool) {
        self.capture();
        self.sql.query_i64("PRAGMA wal_checkpoint(TRUNCATE)").unwrap();
        let snapshot = snapshot.then(|| std::fs::read(&self.path).unwrap());
        self.history.wals.push(Wal { snapshot, bytes: Vec::new() });
    }

    /// What the database holds, as a file.
    pub fn pages(&self, to: &Path) -> Vec<u8> {
        let _ = std::fs::remove_file(to);
        let mut file = std::fs::read(&self.path).unwrap();
        let size = self.history.page_size as usize;
        let wal = &self.history.wals.last().unwrap().bytes;
        let mut count = file.len() / size;
        for frame in wal.get(WAL_HEADER_SIZE..).unwrap_or_default().chunks(24 + size) {
            let number = |at: usize| u32::from_be_bytes(frame[at..at + 4].try_into().unwrap());
            let at = (number(0) as usize - 1) * size;
            file.resize(file.len().max(at + size), 0);
            file[at..at + size].copy_from_slice(&frame[24..]);
            if number(4) != 0 {
                count = number(4) as usize;
            }
        }
        file.truncate(count * size);
        file
    }
}

/// A whole body as it was recorded, then silence.
pub fn replay(body: Vec<u8>, page_size: u32) -> String {
    replay_each(page_size, move |_| (body.clone(), true))
}

/// For each connection, counted from 0: a body, and whether the connection then stays open.
pub fn replay_each(
    page_size: u32,
    body: impl Fn(usize) -> (Vec<u8>, bool) + Send + 'static,
) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    std::thread::spawn(move || {
        for (number, stream) in listener.incoming().enumerate() {
            let mut stream = stream.unwrap();
            let (body, stays) = body(number);
            std::thread::spawn(move || {
                let mut request = [0; 4096];
                let _ = stream.read(&mut request);
                let _ = write!(
                    stream,
                    "HTTP/1.1 200 OK\r\nLitestream-Page-Size: {page_size}\r\n\
                     Transfer-Encoding: chunked\r\n\r\n"
                );
                for piece in body.chunks(1777) {
                    let _ = write!(stream, "{:x}\r\n", piece.len());
                    let _ = stream.write_all(piece);
                    let _ = stream.write_all(b"\r\n");
                }
                if stays {
                    // Never ends, as the stream it was recorded from.
                    let _ = stream.read(&mut request);
                }
            });
        }
    });
    url
}
