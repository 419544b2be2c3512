//! The pure parts, each on the same input in every run: a mebibyte of pages, or so many small
//! values.

use std::hint::black_box;
use std::time::{Duration, UNIX_EPOCH};

use litestream::archive::label::{Label, Moment};
use litestream::archive::tree::{self, Tree};
use litestream::lz4;
use litestream::pages::{Total, page_sum};
use litestream::pos::{Generation, Index, Offset, Pos};
use litestream::record::{Heartbeat, RecordReader, RecordType, StreamReader, StreamRecordHeader};
use litestream::wal::{
    ByteOrder, Chain, Checksum, PageSize, PageSum, WAL_HEADER_SIZE, WalHeader, checksum, scan,
};
use litestream::walindex::{HEADER_SIZE, IndexHeader, encode_page_size};

use super::frames::Batch;

pub const NAMES: [&str; 20] = [
    "checksum",
    "checksum-swapped",
    "wal-append",
    "wal-verify",
    "wal-scan",
    "index-header",
    "batch-put",
    "batch-merge",
    "batch-seal",
    "batch-seal-summed",
    "lz4-store",
    "lz4-take-stored",
    "lz4-compress",
    "lz4-decompress",
    "record-headers",
    "record-reader",
    "label",
    "names",
    "positions",
    "page-sums",
];

const PAGE: usize = 4096;
const PAGES: u32 = 256;
/// Of small values.
const VALUES: u64 = 2_000;

pub fn run(name: &str) {
    let size = PageSize::new(4096).unwrap();
    let header = WalHeader::new(ByteOrder::Little, size, 1, [1, 2]);
    let start = Chain::start(&header);
    let mut pages = pages();
    match name {
        "checksum" => measured(|| checksum(ByteOrder::Little, Checksum::default(), &pages)),
        "checksum-swapped" => measured(|| checksum(ByteOrder::Big, Checksum::default(), &pages)),
        "wal-append" => measured(|| append(start, &pages)),
        "wal-verify" => {
            let frames = append(start, &pages);
            measured(|| verify(start, &frames));
        }
        "wal-scan" => {
            let frames = append(start, &pages);
            measured(|| scan(start, &frames));
        }
        "index-header" => index_headers(),
        "batch-put" | "batch-merge" | "batch-seal" | "batch-seal-summed" => {
            batch(name, start, &pages);
        }
        "lz4-store" | "lz4-take-stored" | "lz4-compress" | "lz4-decompress" => {
            lz4_frame(name, &append(start, &pages));
        }
        "record-headers" => measured(records),
        "record-reader" => record_reader(&pages),
        "label" => labels(),
        "names" => names(),
        "positions" => positions(),
        "page-sums" => measured(|| {
            let mut total = Total::default();
            for (page, number) in pages.chunks_exact_mut(PAGE).zip(1..) {
                total.add(page_sum(number, page, size, 1));
            }
            total.get()
        }),
        other => panic!("{other}?"),
    }
}

/// What callgrind is told to count. It looks for the name.
#[inline(never)]
fn measured<T>(work: impl FnOnce() -> T) {
    black_box(work());
}

/// A mebibyte, about half compressible: words that come again, and noise.
fn pages() -> Vec<u8> {
    let mut random = 88_172_645_463_325_252_u64;
    let mut bytes = Vec::new();
    while bytes.len() < PAGE * PAGES as usize {
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        let noise = random.to_be_bytes();
        bytes.extend_from_slice(if random & 3 == 0 { &noise } else { b"a word, " });
    }
    bytes
}

/// Commits of eight pages each.
fn append(mut chain: Chain, pages: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(pages.len() * 2 + WAL_HEADER_SIZE);
    for (page, number) in pages.chunks_exact(PAGE).zip(1_u32..) {
        let page_count = if number.is_multiple_of(8) { PAGES } else { 0 };
        chain.append(number, page_count, page, &mut out);
    }
    out
}

fn verify(mut chain: Chain, frames: &[u8]) -> Chain {
    for frame in frames.chunks_exact(PAGE + 24) {
        chain.verify(frame).unwrap();
    }
    chain
}

/// Both copies, as each look at a wal-index reads them.
fn index_headers() {
    let size = PageSize::new(4096).unwrap();
    let header = |number| {
        let header = IndexHeader {
            version: litestream::wal::WAL_VERSION,
            unused: 0,
            change: number,
            is_init: 1,
            big_endian_checksum: 0,
            page_size_raw: encode_page_size(size),
            max_frame: number,
            page_count: PAGES,
            frame_checksum: [3, 4],
            salts: [1, 2],
            checksum: [0, 0],
        };
        header.encode()
    };
    let headers: Vec<[u8; HEADER_SIZE]> = (1..=2_000).map(header).collect();
    measured(|| {
        let decode = |bytes| IndexHeader::decode_pair(bytes, bytes).unwrap().max_frame;
        headers.iter().map(decode).fold(0, u32::wrapping_add)
    });
}

/// Pages of many commits of the upstream that become one of the replica's. What they add to a chain
/// is known if they came as frames of the upstream's.
fn batch(name: &str, mut chain: Chain, pages: &[u8]) {
    let sum = |page| PageSum::of(chain.order, chain.page_size, page);
    let sums: Vec<Option<PageSum>> = match name {
        "batch-seal" => pages.chunks_exact(PAGE).map(|_| None).collect(),
        _ => pages.chunks_exact(PAGE).map(|page| Some(sum(page))).collect(),
    };
    let put = |batch: &mut Batch| {
        for ((page, sum), number) in pages.chunks_exact(PAGE).zip(&sums).zip(1..) {
            batch.put(number * 7, page, *sum);
        }
    };
    let mut batch = Batch::new(chain.page_size);
    if name == "batch-put" {
        return measured(|| put(&mut batch));
    }
    put(&mut batch);
    match name {
        "batch-merge" => measured(|| put(&mut batch)),
        _ => measured(|| batch.seal(&mut chain, PAGES)),
    }
}

fn lz4_frame(name: &str, frames: &[u8]) {
    let mut stored = Vec::with_capacity(frames.len() * 2);
    let mut content = Vec::with_capacity(frames.len() * 2);
    let size = frames.len() as u64;
    match name {
        "lz4-store" => measured(|| lz4::write_stored(&mut stored, frames).unwrap()),
        "lz4-compress" => measured(|| lz4::compress(frames).unwrap()),
        "lz4-take-stored" => {
            lz4::write_stored(&mut stored, frames).unwrap();
            measured(|| lz4::decompress(&stored[..], size, &mut content).unwrap());
            assert_eq!(content, frames);
        }
        _ => {
            let frame = lz4::compress(frames).unwrap();
            measured(|| lz4::decompress(&frame[..], size, &mut content).unwrap());
            assert_eq!(content, frames);
        }
    }
}

fn pos(number: u64) -> Pos {
    let generation = Generation::from_bits(0x0123_4567_89ab_cdef);
    Pos::new(generation, Index::new(number).unwrap(), Offset::new(number * PAGE as u64).unwrap())
}

fn records() -> u64 {
    let header = |number| {
        let header = StreamRecordHeader::new(RecordType::WalSegment, pos(number), number);
        let heartbeat = Heartbeat { pos: pos(number), unix_ms: number }.encode();
        let header = StreamRecordHeader::decode(black_box(&header.encode())).unwrap().size;
        header + Heartbeat::decode(black_box(&heartbeat)).unwrap().unix_ms
    };
    (0..VALUES).map(header).sum()
}

/// A stream of one-page segments.
fn record_reader(pages: &[u8]) {
    let mut stream = Vec::new();
    for (page, number) in pages.chunks_exact(PAGE).zip(0..) {
        let header = StreamRecordHeader::new(RecordType::WalSegment, pos(number), PAGE as u64);
        stream.extend_from_slice(&header.encode());
        stream.extend_from_slice(page);
    }
    let mut payload = Vec::with_capacity(2 * PAGE);
    measured(|| {
        let mut reader = RecordReader::new(&stream[..]);
        while reader.next().unwrap().is_some() {
            payload.clear();
            reader.read_payload(PAGE as u64, &mut payload).unwrap();
            assert_eq!(payload.len(), PAGE);
        }
    });
}

fn labels() {
    let moment = |number: u64| Moment {
        end: Offset::new(number * PAGE as u64).unwrap(),
        at: UNIX_EPOCH + Duration::from_millis(1_700_000_000_000 + 3 * number),
    };
    let moments: Vec<Moment> = (1..=1_000).map(moment).collect();
    measured(|| {
        let label = Label::segment(pos(7), moments[0].at, &moments).encode();
        Label::take(&mut &label[..]).unwrap().0.unwrap().moments.len()
    });
}

fn names() {
    measured(|| {
        for number in 0..VALUES {
            let (at, generation) = (pos(number), pos(number).generation);
            for tree in [Tree::V04, Tree::V03] {
                let key = tree.segment(at).unwrap();
                assert!(tree::parse(generation, black_box(&key)).is_some());
            }
        }
    });
}

fn positions() {
    measured(|| {
        for number in 0..VALUES {
            let text = pos(number).to_string();
            assert_eq!(black_box(&text).parse::<Pos>().unwrap(), pos(number));
        }
    });
}
