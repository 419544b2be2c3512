//! An HTTP client and a record decoder that share nothing with the crate.

use std::io::{self, Read, Write};
use std::net::TcpStream;
use std::os::unix::net::UnixStream;
use std::time::Duration;

/// Any connection.
pub trait Duplex: Read + Write + Send {
    fn patience(&self, wait: Duration);
}

impl Duplex for TcpStream {
    fn patience(&self, wait: Duration) {
        self.set_read_timeout(Some(wait)).unwrap();
    }
}

impl Duplex for UnixStream {
    fn patience(&self, wait: Duration) {
        self.set_read_timeout(Some(wait)).unwrap();
    }
}

/// A connection to a server's URL.
pub fn connect(url: &str) -> Client {
    let socket: Box<dyn Duplex> = match url.strip_prefix("unix:") {
        Some(path) => Box::new(UnixStream::connect(path).unwrap()),
        None => Box::new(TcpStream::connect(url.strip_prefix("http://").unwrap()).unwrap()),
    };
    Client::over(socket)
}

pub struct Client {
    pub socket: Box<dyn Duplex>,
    buffer: Vec<u8>,
    chunked: bool,
}

/// The head of an answer.
#[derive(Debug)]
pub struct Head {
    pub status: u16,
    pub line: String,
    pub headers: Vec<(String, String)>,
}

impl Head {
    pub fn get(&self, name: &str) -> Option<&str> {
        let mut headers = self.headers.iter();
        let found = headers.find(|(key, _)| key.eq_ignore_ascii_case(name));
        found.map(|(_, value)| value.as_str())
    }
}

/// A record as it was on the wire.
#[derive(Debug, PartialEq)]
pub struct Record {
    pub kind: u32,
    pub flags: u32,
    pub generation: u64,
    pub index: u64,
    pub offset: u64,
    pub payload: Vec<u8>,
}

impl Record {
    /// The content of a payload that is an LZ4 frame.
    pub fn expand(&self) -> Vec<u8> {
        let mut out = Vec::new();
        lz4_flex::frame::FrameDecoder::new(&self.payload[..]).read_to_end(&mut out).unwrap();
        out
    }
}

impl Client {
    pub fn over(socket: Box<dyn Duplex>) -> Client {
        socket.patience(Duration::from_secs(20));
        Client { socket, buffer: Vec::new(), chunked: false }
    }

    pub fn send(&mut self, bytes: impl AsRef<[u8]>) {
        self.socket.write_all(bytes.as_ref()).unwrap();
    }

    pub fn get(&mut self, target: &str) -> Head {
        self.send(format!("GET {target} HTTP/1.1\r\nHost: localhost\r\n\r\n"));
        self.head().unwrap()
    }

    fn fill(&mut self) -> io::Result<usize> {
        let mut part = [0u8; 65536];
        let n = self.socket.read(&mut part)?;
        self.buffer.extend_from_slice(&part[..n]);
        Ok(n)
    }

    fn take(&mut self, len: usize) -> io::Result<Vec<u8>> {
        while self.buffer.len() < len {
            if self.fill()? == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
        }
        Ok(self.buffer.drain(..len).collect())
    }

    fn line(&mut self) -> io::Result<String> {
        loop {
            if let Some(at) = self.buffer.windows(2).position(|two| two == b"\r\n") {
                let line = self.take(at + 2)?;
                return Ok(String::from_utf8(line[..at].to_vec()).unwrap());
            }
            if self.fill()? == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
        }
    }

    pub fn head(&mut self) -> io::Result<Head> {
        let line = self.line()?;
        let mut headers = Vec::new();
        loop {
            let header = self.line()?;
            let Some((name, value)) = header.split_once(": ") else { break };
            headers.push((name.to_owned(), value.to_owned()));
        }
        let status = line.split(' ').nth(1).unwrap().parse().unwrap();
        let head = Head { status, line, headers };
        self.chunked = head.get("Transfer-Encoding") == Some("chunked");
        Ok(head)
    }

    /// The body of an answer with a length.
    pub fn body(&mut self, head: &Head) -> String {
        let len = head.get("Content-Length").map_or(0, |len| len.parse().unwrap());
        String::from_utf8(self.take(len).unwrap()).unwrap()
    }

    /// Everything until the connection ends.
    pub fn rest(&mut self) -> Vec<u8> {
        while matches!(self.fill(), Ok(n) if n > 0) {}
        std::mem::take(&mut self.buffer)
    }

    /// The next record, which must be one whole chunk.
    pub fn record(&mut self) -> io::Result<Record> {
        let chunk =
            if self.chunked { Some(u64::from_str_radix(&self.line()?, 16).unwrap()) } else { None };
        let head = self.take(40)?;
        let four = |at: usize| u32::from_be_bytes(head[at..at + 4].try_into().unwrap());
        let eight = |at: usize| u64::from_be_bytes(head[at..at + 8].try_into().unwrap());
        let size = eight(32);
        let payload = self.take(size.try_into().unwrap())?;
        if let Some(chunk) = chunk {
            assert_eq!(chunk, 40 + size, "one record, one chunk");
            assert_eq!(self.take(2)?, b"\r\n");
        }
        Ok(Record {
            kind: four(0),
            flags: four(4),
            generation: eight(8),
            index: eight(16),
            offset: eight(24),
            payload,
        })
    }

    /// The next record that is no heartbeat.
    pub fn data(&mut self) -> Record {
        loop {
            let record = self.record().unwrap();
            if record.kind != 3 {
                return record;
            }
        }
    }
}

/// One request on a connection of its own: status and body.
pub fn ask(url: &str, request: &str) -> (u16, String) {
    let mut client = connect(url);
    client.send(format!("{request}\r\nHost: localhost\r\nConnection: close\r\n\r\n"));
    let head = client.head().unwrap();
    let body = if request.starts_with("HEAD") { String::new() } else { client.body(&head) };
    assert_eq!(client.rest(), b"");
    (head.status, body)
}

pub fn get(url: &str, target: &str) -> (u16, String) {
    ask(url, &format!("GET {target} HTTP/1.1"))
}
