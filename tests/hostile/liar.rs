//! A server that speaks the protocol and lies. It shares no code with the product but the checksum
//! chain of the WAL: a lie must be told well to be worth telling.

use std::io::{self, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use litestream::lz4;
use litestream::wal::{ByteOrder, PageSize, WalHeader, checksum};

/// What it does with a connection that asked for the stream.
pub type Lie = fn(&mut Out) -> io::Result<()>;

/// A server on a port of its own, until dropped.
pub struct Liar {
    pub url: String,
    asked: Arc<AtomicU32>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Liar {
    pub fn start(lie: Lie) -> Liar {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}/", listener.local_addr().unwrap());
        let (asked, stop) = (Arc::new(AtomicU32::new(0)), Arc::new(AtomicBool::new(false)));
        let (count, end) = (Arc::clone(&asked), Arc::clone(&stop));
        let thread = std::thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                if end.load(Ordering::Relaxed) {
                    break;
                }
                let _the_peer_may_leave_any_time = serve(stream, lie, &count, &end);
            }
        });
        Liar { url, asked, stop, thread: Some(thread) }
    }

    /// How often the stream was asked for.
    pub fn asked(&self) -> u32 {
        self.asked.load(Ordering::Relaxed)
    }
}

impl Drop for Liar {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        let address = self.url.trim_start_matches("http://").trim_end_matches('/');
        let _wakes_it_up = TcpStream::connect(address);
        self.thread.take().unwrap().join().unwrap();
    }
}

fn serve(stream: TcpStream, lie: Lie, count: &AtomicU32, stop: &Arc<AtomicBool>) -> io::Result<()> {
    stream.set_read_timeout(Some(Duration::from_secs(2)))?;
    stream.set_write_timeout(Some(Duration::from_secs(5)))?;
    let mut out = Out { stream, stop: Arc::clone(stop) };
    let mut head = Vec::new();
    let mut byte = [0];
    while !head.ends_with(b"\r\n\r\n") && head.len() < 10_000 {
        out.stream.read_exact(&mut byte)?;
        head.push(byte[0]);
    }
    if head.starts_with(b"GET /stream") {
        count.fetch_add(1, Ordering::Relaxed);
        lie(&mut out)
    } else {
        out.raw(b"HTTP/1.1 204 No Content\r\nConnection: close\r\n\r\n")
    }
}

/// The connection, and the words of the protocol.
pub struct Out {
    stream: TcpStream,
    stop: Arc<AtomicBool>,
}

/// The generation every lie is told in.
pub const GENERATION: u64 = 0x0123_4567_89ab_cdef;
pub const SNAPSHOT: u32 = 1;
pub const SEGMENT: u32 = 2;
pub const HEARTBEAT: u32 = 3;

impl Out {
    pub fn raw(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.stream.write_all(bytes)
    }

    /// An honest beginning: 200, a page size, chunks.
    pub fn begin(&mut self, page_size: &str) -> io::Result<()> {
        let head = format!(
            "HTTP/1.1 200 OK\r\nLitestream-page-size: {page_size}\r\n\
             Litestream-Features: heartbeat,lz4,split\r\nTransfer-Encoding: chunked\r\n\r\n"
        );
        self.raw(head.as_bytes())
    }

    pub fn chunk(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.raw(format!("{:x}\r\n", bytes.len()).as_bytes())?;
        self.raw(bytes)?;
        self.raw(b"\r\n")
    }

    /// A record's header alone.
    pub fn head(&mut self, kind: u32, flags: u32, at: (u64, u64), size: u64) -> io::Result<()> {
        let mut head = Vec::new();
        head.extend(kind.to_be_bytes());
        head.extend(flags.to_be_bytes());
        for number in [GENERATION, at.0, at.1, size] {
            head.extend(number.to_be_bytes());
        }
        self.chunk(&head)
    }

    /// A whole record. `at` is index and offset.
    pub fn record(
        &mut self,
        kind: u32,
        flags: u32,
        at: (u64, u64),
        payload: &[u8],
    ) -> io::Result<()> {
        self.head(kind, flags, at, payload.len() as u64)?;
        self.chunk(payload)
    }

    /// A good snapshot at index 0, and the heartbeat that says it is all there is.
    pub fn snapshot(&mut self) -> io::Result<()> {
        self.begin("512")?;
        self.record(SNAPSHOT, 0, (0, 0), &database())
    }

    pub fn heartbeat(&mut self, at: (u64, u64)) -> io::Result<()> {
        let mut payload = Vec::new();
        for number in [GENERATION, at.0, at.1, 1_700_000_000_000] {
            payload.extend(number.to_be_bytes());
        }
        self.record(HEARTBEAT, 0, at, &payload)
    }

    /// A WAL segment whose content is `bytes`.
    pub fn segment(&mut self, at: (u64, u64), bytes: &[u8]) -> io::Result<()> {
        self.record(SEGMENT, 0, at, &lz4::compress(bytes).unwrap())
    }

    /// Sends the same for ever.
    pub fn for_ever(&mut self, bytes: &[u8]) -> io::Result<()> {
        while !self.stop.load(Ordering::Relaxed) {
            self.raw(bytes)?;
        }
        Ok(())
    }

    /// Says nothing any more, until the peer leaves or the test ends.
    pub fn silence(&mut self) -> io::Result<()> {
        self.stream.set_read_timeout(Some(Duration::from_millis(50)))?;
        let mut byte = [0];
        while !self.stop.load(Ordering::Relaxed) {
            match self.stream.read(&mut byte) {
                Ok(0) => break,
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }
}

/// A database of two pages of 512 bytes with an empty table `lie(x)`, written out by hand.
pub fn database() -> Vec<u8> {
    let mut first = vec![0; 512];
    first[..16].copy_from_slice(b"SQLite format 3\0");
    first[16..24].copy_from_slice(&[2, 0, 2, 2, 0, 64, 32, 32]);
    for (at, number) in [(24, 1_u32), (28, 2), (40, 1), (44, 4), (56, 1), (92, 1), (96, 3_040_001)]
    {
        first[at..at + 4].copy_from_slice(&number.to_be_bytes());
    }
    let sql = b"CREATE TABLE lie(x)";
    let mut cell = vec![0, 1, 6, 23, 19, 19, 1, 13 + 2 * 19];
    cell.extend(b"tablelielie\x02");
    cell.extend(sql);
    cell[0] = u8::try_from(cell.len() - 2).unwrap();
    let start = 512 - cell.len();
    first[100] = 13;
    first[103..105].copy_from_slice(&1_u16.to_be_bytes());
    first[105..107].copy_from_slice(&u16::try_from(start).unwrap().to_be_bytes());
    first[108..110].copy_from_slice(&u16::try_from(start).unwrap().to_be_bytes());
    first[start..].copy_from_slice(&cell);
    let mut second = vec![0; 512];
    second[0] = 13;
    second[5..7].copy_from_slice(&512_u16.to_be_bytes());
    [first, second].concat()
}

/// A WAL of 512-byte pages: its header and one frame per (page number, database size if it
/// commits).
pub fn wal(frames: &[(u32, u32)]) -> Vec<u8> {
    const SALTS: [u32; 2] = [7, 8];
    let header = WalHeader::new(ByteOrder::Little, PageSize::MIN, 0, SALTS);
    let mut bytes = header.encode().to_vec();
    let mut sum = header.checksum;
    let pages = database();
    for (page_no, page_count) in frames {
        let page = if *page_no == 1 { &pages[..512] } else { &pages[512..] };
        let head = [page_no.to_be_bytes(), page_count.to_be_bytes()].concat();
        sum = checksum(ByteOrder::Little, checksum(ByteOrder::Little, sum, &head), page);
        bytes.extend(head);
        for number in [SALTS[0], SALTS[1], sum.s0, sum.s1] {
            bytes.extend(number.to_be_bytes());
        }
        bytes.extend(page);
    }
    bytes
}
