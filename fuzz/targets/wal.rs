//! WAL bytes, as they are and as made: what is accepted continues the chain by another
//! implementation of the checksum, and nothing after the first break is.

use super::Input;
use crate::wal::{
    ByteOrder, Chain, Checksum, FrameHeader, PageSize, WAL_HEADER_SIZE, WalHeader,
    checked_checksum, scan, wal_size,
};

pub fn target(data: &[u8]) {
    let mut input = Input(data);
    if input.flag() {
        any_bytes(input.0);
    } else {
        let order = if input.flag() { ByteOrder::Big } else { ByteOrder::Little };
        let (bytes, intact) = made(&mut input, order);
        let found = any_bytes(&bytes);
        assert!(found.is_none_or(|frames| frames >= intact), "an intact frame was refused");
    }
}

/// The definition of the checksum, word by word.
fn sum(order: ByteOrder, from: Checksum, bytes: &[u8]) -> Checksum {
    let word = |at: usize| {
        let four: [u8; 4] = bytes[at..at + 4].try_into().unwrap();
        match order {
            ByteOrder::Little => u32::from_le_bytes(four),
            ByteOrder::Big => u32::from_be_bytes(four),
        }
    };
    let mut out = from;
    for at in (0..bytes.len()).step_by(8) {
        out.s0 = out.s0.wrapping_add(word(at)).wrapping_add(out.s1);
        out.s1 = out.s1.wrapping_add(word(at + 4)).wrapping_add(out.s0);
    }
    out
}

/// How many frames count; none without a header.
fn any_bytes(bytes: &[u8]) -> Option<u32> {
    let header = WalHeader::decode(bytes).ok()?;
    let (head, frames) = bytes.split_at(WAL_HEADER_SIZE);
    assert_eq!(header.encode(), head);
    assert_eq!(header.checksum, sum(header.order, Checksum::default(), &head[..24]));
    assert_eq!(
        checked_checksum(header.order, Checksum::default(), &head[..24]).unwrap(),
        header.checksum
    );
    let start = Chain::start(&header);
    let found = scan(start, frames);
    let (mut running, mut chain) = (header.checksum, start);
    let (mut count, mut committed, mut commits, mut pages) = (0, 0, 0, 0);
    for frame in frames.chunks_exact(header.page_size.frame_size()) {
        let fields = FrameHeader::decode(frame.first_chunk().unwrap());
        assert_eq!(fields.encode(), frame[..24]);
        let next = sum(header.order, sum(header.order, running, &frame[..8]), &frame[24..]);
        let continues =
            fields.salts == header.salts && fields.page_no != 0 && fields.checksum == next;
        let before = chain;
        assert_eq!(chain.verify(frame).is_ok(), continues);
        if !continues {
            assert_eq!(chain, before, "a refused frame moved the chain");
            break;
        }
        running = next;
        count += 1;
        if fields.is_commit() {
            (committed, pages) = (count, fields.page_count);
            commits += 1;
            assert_eq!(scan(start, &frames[..count as usize * frame.len()]).committed, chain);
        }
    }
    assert_eq!((found.frames, found.committed_frames, found.commits), (count, committed, commits));
    assert_eq!((found.page_count, found.end.checksum), (pages, running));
    let size = wal_size(header.page_size, u64::from(found.frames));
    assert!(size <= bytes.len() as u64);
    Some(count)
}

/// A WAL with a page of each kind the fuzzer asks for, then damaged where it says; and how many
/// frames come before the damage.
pub(crate) fn made(input: &mut Input, order: ByteOrder) -> (Vec<u8>, u32) {
    let size = PageSize::new(512 << input.below(3)).unwrap();
    let header = WalHeader::new(order, size, input.u32(), [input.u32(), input.u32()]);
    let mut bytes = header.encode().to_vec();
    let mut chain = Chain::start(&header);
    let count = input.below(9);
    for _ in 0..count {
        let page = page(input, size);
        let page_no = input.u32().max(1);
        let page_count = if input.flag() { input.u32() } else { 0 };
        chain.append(page_no, page_count, &page, &mut bytes);
    }
    let mut intact = bytes.len();
    for _ in 0..input.below(4) {
        let at = usize::from(input.u16()) % bytes.len();
        bytes[at] ^= input.byte().max(1);
        intact = intact.min(at);
    }
    if input.flag() {
        bytes.truncate(usize::from(input.u16()) % bytes.len());
        intact = intact.min(bytes.len());
    }
    let frames = intact.saturating_sub(WAL_HEADER_SIZE) / size.frame_size();
    (bytes, u32::try_from(frames).unwrap())
}

/// A page of few different bytes: the fuzzer's are precious.
pub(crate) fn page(input: &mut Input, size: PageSize) -> Vec<u8> {
    let seed = input.array::<8>();
    seed.into_iter().cycle().take(size.bytes()).collect()
}
