//! Where in a stream's answer a byte is: what one must know to cut a connection in a certain place.
//!
//! ```text
//! HTTP/1.1 200 OK ... CR LF CR LF    Head
//! 1f4 CR LF                          ChunkLine    one record is one chunk
//! 40 bytes                           RecordHeader
//! the rest of the chunk              Payload      an LZ4 frame, or a heartbeat's 32 bytes
//! CR LF                              ChunkEnd
//! ```
//!
//! An answer that is not chunked (an acknowledgement's) is all Head.

/// What a byte belongs to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Part {
    #[default]
    Head,
    ChunkLine,
    RecordHeader,
    Payload,
    ChunkEnd,
}

pub const PARTS: [Part; 5] =
    [Part::Head, Part::ChunkLine, Part::RecordHeader, Part::Payload, Part::ChunkEnd];

const RECORD_HEADER: u64 = 40;

/// Follows one connection's answer, byte by byte.
#[derive(Default)]
pub struct Parts {
    part: Part,
    /// Bytes of this part that went by.
    at: u64,
    /// Parts of each kind that began before this one.
    begun: [u32; 5],
    /// The end of what went by, and of what the chunk still has.
    last: [u8; 4],
    left: u64,
    head: Vec<u8>,
    start: Option<String>,
}

impl Parts {
    /// What the head of a stream said of its start, once it is whole; only once.
    pub fn take_start(&mut self) -> Option<String> {
        self.start.take()
    }

    /// How many of the bytes come before a place: a part of a kind, which of them, where in it.
    pub fn before(&mut self, bytes: &[u8], (part, nth, at): (Part, u32, u64)) -> usize {
        for (count, byte) in bytes.iter().enumerate() {
            if self.part == part && self.begun[part as usize] == nth && self.at == at {
                return count;
            }
            self.step(*byte);
        }
        bytes.len()
    }

    fn step(&mut self, byte: u8) {
        self.last.rotate_left(1);
        self.last[3] = byte;
        self.at += 1;
        match self.part {
            Part::Head if &self.last == b"\r\n\r\n" => {
                let head = String::from_utf8_lossy(&self.head).into_owned();
                self.head.clear();
                let chunked = head.contains("Transfer-Encoding: chunked");
                let line = head.lines().find_map(|line| line.strip_prefix("Litestream-Start: "));
                self.start = line.map(str::to_owned);
                self.enter(if chunked { Part::ChunkLine } else { Part::Head });
            }
            Part::Head => self.head.push(byte),
            Part::ChunkLine => match char::from(byte).to_digit(16) {
                Some(digit) => self.left = self.left.wrapping_mul(16) + u64::from(digit),
                None if byte == b'\n' => self.enter(Part::RecordHeader),
                None => {}
            },
            Part::RecordHeader | Part::Payload => {
                self.left = self.left.saturating_sub(1);
                if self.left == 0 {
                    self.enter(Part::ChunkEnd);
                } else if self.part == Part::RecordHeader && self.at == RECORD_HEADER {
                    self.enter(Part::Payload);
                }
            }
            Part::ChunkEnd if byte == b'\n' => self.enter(Part::ChunkLine),
            Part::ChunkEnd => {}
        }
    }

    fn enter(&mut self, part: Part) {
        self.begun[self.part as usize] += 1;
        self.part = part;
        self.at = 0;
        if part == Part::ChunkLine {
            self.left = 0;
        }
    }
}
