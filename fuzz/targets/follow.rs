//! What an upstream may send a follower, and what a follower may find of its own files. A module of
//! `follow`.
#![allow(clippy::unwrap_used, clippy::panic, clippy::cast_possible_truncation)]

use std::io::Read;
use std::time::Duration;

use super::cursor::{Cursor, Point, check_flags};
use super::dir::ReplicaDir;
use super::intents::{FILE_NAMES, Intents, LocalState, UpstreamPos};
use super::stream::read_unit;
use super::stream::{Body, Manners, STALL_MAX, Stream, UNSIZED};
use super::url::{Resume, Upstream};
use crate::archive::fuzz::pos;
use crate::error::{Error, Result};
use crate::fuzz::{Input, Scratch, page};
use crate::lz4::{self, Decoder};
use crate::pos::Pos;
use crate::record::{Heartbeat, RecordType, StreamRecordHeader};
use crate::wal::{ByteOrder, Chain, Checksum, PageSize, WAL_HEADER_SIZE, WalHeader};

const SIZE: PageSize = PageSize::MIN;

thread_local! {
    static FOLDER: Scratch = Scratch::new("follow");
}

/// The order of a stream: a model of what was taken must agree at every step.
pub(crate) fn cursor(data: &[u8]) {
    let mut input = Input(data);
    let mut steps = Steps::new(&mut input);
    while !input.is_empty() {
        steps.step(&mut input);
        steps.check();
    }
}

struct Steps {
    cursor: Cursor,
    /// The chain by what was taken.
    chain: Option<Chain>,
    at: Option<Pos>,
    shown: Option<Point>,
}

impl Steps {
    fn new(input: &mut Input) -> Steps {
        let from = input.flag().then(|| {
            let header = WalHeader::new(ByteOrder::NATIVE, SIZE, 0, [1, 2]);
            let chain = input.flag().then(|| Chain::start(&header));
            let upstream = UpstreamPos { pos: place(input), chain };
            Point { upstream, page_count: input.byte().into() }
        });
        let upstream = from.map(|point| point.upstream);
        Steps {
            cursor: Cursor::new(SIZE, from),
            chain: upstream.and_then(|upstream| upstream.chain),
            at: upstream.map(|upstream| upstream.pos),
            shown: from,
        }
    }

    fn step(&mut self, input: &mut Input) {
        match input.below(8) {
            0 => {
                let header = record(RecordType::Snapshot, place(input));
                self.cursor.snapshot(&header, input.u32());
                (self.chain, self.at) = (None, Some(header.pos().truncate()));
                self.shown = self.cursor.point();
            }
            1 | 2 => {
                let at = match (input.below(3), self.at) {
                    (0, Some(at)) => at,
                    (1, Some(at)) => pos(at.generation.to_bits(), at.index.next().get(), 0),
                    _ => place(input),
                };
                self.segment(at);
            }
            3 | 4 => {
                let order = if input.flag() { ByteOrder::Big } else { ByteOrder::Little };
                let header = WalHeader::new(order, SIZE, 0, [1, input.byte().into()]);
                let mut bytes = header.encode();
                bytes[input.below(WAL_HEADER_SIZE)] ^= input.byte() & 1;
                // A caller asks first.
                if self.cursor.wants_header() && self.cursor.header(&bytes).is_ok() {
                    assert_eq!(bytes, header.encode());
                    self.chain = Some(Chain::start(&header));
                    self.moved(WAL_HEADER_SIZE);
                }
            }
            _ => self.frame(input),
        }
    }

    fn segment(&mut self, at: Pos) {
        if self.cursor.segment(&record(RecordType::WalSegment, at)).is_err() {
            return;
        }
        let before = self.at.expect("a segment before any snapshot was taken");
        if at != before {
            assert_eq!((at.generation, at.offset.get()), (before.generation, 0));
            let again = at.index == before.index;
            assert!(again || at.index == before.index.next(), "{at} after {before}");
            self.chain = None;
        }
        self.at = Some(at);
    }

    fn frame(&mut self, input: &mut Input) {
        let base = self
            .chain
            .unwrap_or_else(|| Chain::start(&WalHeader::new(ByteOrder::NATIVE, SIZE, 0, [3, 4])));
        let mut made = base;
        let mut frame = Vec::new();
        let page_no = if input.below(16) == 0 { input.u32().max(1) } else { 1 };
        let commit = if input.flag() { input.u32() } else { 0 };
        made.append(page_no, commit, &page(input, SIZE), &mut frame);
        if input.below(8) == 0 {
            frame[usize::from(input.u16()) % (SIZE.frame_size())] ^= input.byte();
        }
        let Ok(taken) = self.cursor.frame(&frame) else { return };
        let mut chain = self.chain.expect("a frame before any header was taken");
        assert!(!self.cursor.wants_header());
        let header = chain.verify(&frame).expect("a frame that does not continue was taken");
        assert!(taken.is_none_or(|taken| taken.0 == header));
        assert!(header.page_no != SIZE.lock_page() && header.page_no != u32::MAX);
        self.chain = Some(chain);
        self.moved(SIZE.frame_size());
    }

    fn moved(&mut self, bytes: usize) {
        let at = self.at.expect("bytes before any record were taken");
        self.at =
            Some(pos(at.generation.to_bits(), at.index.get(), at.offset.get() + bytes as u64));
    }

    fn check(&mut self) {
        let Some(point) = self.cursor.point() else { return };
        let place = |pos: Pos| (pos.index, pos.offset);
        if let Some(shown) = self.shown {
            let (new, old) = (point.upstream.pos, shown.upstream.pos);
            assert!(place(new) >= place(old), "{new} is shown after {old}");
            assert_eq!(new.generation, old.generation);
        }
        let here = self.at == Some(point.upstream.pos);
        if here && point.upstream.chain.is_some() && point.upstream.pos.offset.get() > 0 {
            assert_eq!(point.upstream.chain, self.chain);
        }
        self.shown = Some(point);
    }
}

/// A position near the beginning, or any.
fn place(input: &mut Input) -> Pos {
    let number = |input: &mut Input| input.number() >> 1;
    match input.flag() {
        true => pos(input.byte().into(), number(input), number(input)),
        false => {
            let frames = u64::from(input.byte() % 4) * SIZE.frame_size() as u64;
            pos(u64::from(input.flag()), u64::from(input.byte() % 3), 32 + frames)
        }
    }
}

fn record(kind: RecordType, pos: Pos) -> StreamRecordHeader {
    StreamRecordHeader::new(kind, pos, 0)
}

struct Pieces {
    bytes: Vec<u8>,
    lengths: Vec<u8>,
    at: usize,
}

impl Body for Pieces {
    fn read(&mut self, out: &mut [u8], _: Duration) -> Result<Option<usize>> {
        let length = self.lengths[self.at % self.lengths.len()];
        self.at += 1;
        if length == 0 {
            return Ok(None);
        }
        let amount = usize::from(length).min(self.bytes.len()).min(out.len());
        let rest = self.bytes.split_off(amount);
        out[..amount].copy_from_slice(&self.bytes);
        self.bytes = rest;
        Ok(Some(amount))
    }
}

/// What a follower makes of a stream.
#[derive(Debug, PartialEq)]
enum Event {
    Beat(Heartbeat),
    Page(u32, Vec<u8>),
    Frame(Option<u32>, Option<Point>),
    Refused,
}

/// A whole stream from a hostile upstream, cut anywhere: the same is applied, and then refused.
pub(crate) fn stream(data: &[u8]) {
    let mut input = Input(data);
    let mut lengths = input.bytes(5).to_vec();
    if lengths.iter().all(|length| *length == 0) {
        lengths = vec![9];
    }
    let local = input.flag();
    let bytes = if input.flag() { input.0.to_vec() } else { sent(&mut input, local) };
    let whole = events(bytes.clone(), vec![255], local);
    assert!(whole == events(bytes, lengths, local), "it depends on how the stream is cut");
}

fn events(bytes: Vec<u8>, lengths: Vec<u8>, local: bool) -> Vec<Event> {
    let manners = Manners { page_size: SIZE, beats: true, takes_acks: false, starts_over: false };
    let stall = (!local).then_some(STALL_MAX);
    let mut stream = Stream::new(Box::new(Pieces { bytes, lengths, at: 0 }), manners, stall);
    let (mut cursor, mut events) = (Cursor::new(SIZE, None), Vec::new());
    loop {
        if one_record(&mut stream, &mut cursor, &mut events).is_err() {
            events.push(Event::Refused);
            return events;
        }
    }
}

/// As a session does, but for the replica.
fn one_record(stream: &mut Stream, cursor: &mut Cursor, events: &mut Vec<Event>) -> Result<()> {
    let mut own = [0; StreamRecordHeader::SIZE];
    stream.read_exact(&mut own)?;
    let header = StreamRecordHeader::decode(&own)?;
    let compressed = check_flags(&header)?;
    match header.kind {
        RecordType::Heartbeat => {
            let mut bytes = [0; Heartbeat::SIZE];
            if header.size != bytes.len() as u64 {
                return Err(Error::peer("a heartbeat of another size"));
            }
            stream.read_exact(&mut bytes)?;
            events.push(Event::Beat(Heartbeat::decode(&bytes)?));
        }
        RecordType::Snapshot => {
            let mut payload = stream.payload(header.size);
            let mut pages = 0;
            let mut take = |from: &mut dyn Read| -> Result<()> {
                let mut page = vec![0; SIZE.bytes()];
                let mut from = from;
                while read_unit(&mut from, &mut page)? {
                    pages += 1;
                    events.push(Event::Page(pages, page.clone()));
                }
                Ok(())
            };
            match compressed {
                true => take(&mut Decoder::new(&mut payload, u64::MAX))?,
                false => take(&mut payload)?,
            }
            payload.finish()?;
            cursor.snapshot(&header, pages);
        }
        RecordType::WalSegment => {
            cursor.segment(&header)?;
            let mut payload = stream.payload(header.size);
            let mut content = Decoder::new(&mut payload, u64::MAX);
            if cursor.wants_header() {
                let mut bytes = [0; WAL_HEADER_SIZE];
                content.read_exact(&mut bytes)?;
                cursor.header(&bytes)?;
            }
            let mut frame = vec![0; SIZE.frame_size()];
            while read_unit(&mut content, &mut frame)? {
                let found = cursor.frame(&frame)?.map(|header| header.0.page_no);
                events.push(Event::Frame(found, cursor.point()));
            }
            payload.finish()?;
        }
    }
    Ok(())
}

/// A stream as an upstream would send it, with a byte changed here and there.
fn sent(input: &mut Input, local: bool) -> Vec<u8> {
    let mut out = Vec::new();
    let (mut at, mut chain) = (pos(1, input.byte().into(), 0), None);
    while !input.is_empty() {
        let mut flags = 0;
        let (kind, payload) = match input.below(6) {
            0 => {
                at = at.truncate();
                chain = None;
                let pages = page(input, SIZE).repeat(input.below(4));
                flags = u32::from(input.byte() & 3 != 0);
                let frame = lz4::compress(&pages).unwrap();
                (RecordType::Snapshot, if flags == 1 { frame } else { pages })
            }
            1 => {
                let beat = Heartbeat { pos: at, unix_ms: input.u64() };
                (RecordType::Heartbeat, beat.encode().to_vec())
            }
            2 => {
                at = pos(at.generation.to_bits(), at.index.next().get(), 0);
                chain = None;
                continue;
            }
            _ => (RecordType::WalSegment, segment(input, &mut chain)),
        };
        let pieces = local && input.flag();
        let size = if pieces { UNSIZED } else { payload.len() as u64 };
        let header = StreamRecordHeader { flags, ..StreamRecordHeader::new(kind, at, size) };
        let start = out.len();
        out.extend_from_slice(&header.encode());
        if pieces {
            for piece in payload.chunks(100) {
                out.extend_from_slice(&u32::try_from(piece.len()).unwrap().to_be_bytes());
                out.extend_from_slice(piece);
            }
            out.extend_from_slice(&[0; 4]);
        } else {
            out.extend_from_slice(&payload);
        }
        if input.below(10) == 0 {
            let room = out.len() - start;
            out[start + usize::from(input.u16()) % room] ^= input.byte();
        }
        if kind == RecordType::WalSegment
            && let Ok(Some(raw)) = raw_len(&payload)
        {
            let (generation, index) = (at.generation.to_bits(), at.index.get());
            at = pos(generation, index, at.offset.get() + raw);
        }
    }
    out
}

fn raw_len(frame: &[u8]) -> Result<Option<u64>> {
    let mut raw = Vec::new();
    lz4::decompress(frame, 1 << 20, &mut raw)?;
    Ok(Some(raw.len() as u64))
}

fn segment(input: &mut Input, chain: &mut Option<Chain>) -> Vec<u8> {
    let mut raw = Vec::new();
    let mut next = chain.unwrap_or_else(|| {
        let header = WalHeader::new(ByteOrder::NATIVE, SIZE, 0, [input.byte().into(), 2]);
        raw.extend_from_slice(&header.encode());
        Chain::start(&header)
    });
    for _ in 0..input.below(4) {
        let commit = if input.flag() { 5 } else { 0 };
        next.append(input.byte().max(1).into(), commit, &page(input, SIZE), &mut raw);
    }
    *chain = Some(next);
    lz4::compress(&raw).unwrap()
}

/// The two files of intents, whatever is in them.
pub(crate) fn intents(data: &[u8]) {
    FOLDER.with(|folder| {
        let mut input = Input(data);
        let way = input.byte();
        let local = LocalState {
            salts: [input.u32(), input.u32()],
            max_frame: input.u32(),
            checksum: Checksum { s0: input.u32(), s1: input.u32() },
        };
        let first = input.piece();
        folder.put(FILE_NAMES[0], if way & 1 == 0 { first } else { &[] });
        folder.put(FILE_NAMES[1], input.0);
        let (intents, _) = Intents::open(folder.path(), Some(local)).unwrap();
        let upstream = UpstreamPos { pos: place(&mut input), chain: None };
        if way & 2 == 2 {
            intents.begin(upstream, local).unwrap();
        } else {
            intents.append(upstream, local).unwrap();
        }
        drop(intents);
        let (_, found) = Intents::open(folder.path(), Some(local)).unwrap();
        assert_eq!(found, Some(upstream));
        replica(&mut Input(data), folder);
        urls(data);
    });
}

/// The files that say that a database is a replica.
fn replica(input: &mut Input, folder: &Scratch) {
    let dir = ReplicaDir::of(&folder.path().join("a.db"));
    let position = input.piece();
    folder.put("a.db-litestream/position", position);
    folder.put("a.db-litestream/replica", input.0);
    if let Some(pos) = dir.read_position() {
        let again: Pos = pos.to_string().parse().unwrap();
        assert_eq!(again, pos);
    }
    let _any_number = dir.schema_shift();
    assert!(dir.is_replica().unwrap());
}

/// URLs of upstreams: what is asked for is what was named, and nothing else.
fn urls(data: &[u8]) {
    let text = String::from_utf8_lossy(data);
    let (url, database) = text.split_once('\n').unwrap_or((&text, ""));
    for database in [None, Some(database)] {
        let Ok(upstream) = Upstream::parse(url, database) else { continue };
        let at = pos(1, 2, 3);
        let resume = Resume { pos: at, checksum: Some(Checksum { s0: 1, s1: 2 }) };
        let asked = upstream.stream_url(Some(&resume), "me");
        for made in [&asked, &upstream.ack_url("me", at)] {
            let plain = |byte: u8| !byte.is_ascii_whitespace() && !byte.is_ascii_control();
            assert!(made.bytes().all(plain), "{made}");
            assert!(made.contains("follower=me") && !made.contains('#'));
        }
        assert_eq!(asked.matches("generation=").count() - url.matches("generation=").count(), 1);
    }
}
