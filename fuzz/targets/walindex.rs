//! The wal-index: headers as found and as made, and where frames and hash slots are.

use super::Input;
use crate::wal::{ByteOrder, Checksum, PageSize, checksum};
use crate::walindex::{
    HASH_OFFSET, HASH_SLOTS, HEADER_SIZE, IndexHeader, REGION_SIZE, decode_page_size,
    encode_page_size, frame_location, hash_key, hash_slot_offset, hash_slot_value, next_hash_key,
    page_number_offset, region_first_frame, region_frames,
};

pub fn target(data: &[u8]) {
    let mut input = Input(data);
    let mut bytes: [u8; HEADER_SIZE] = input.array();
    header(&bytes);
    let sum = checksum(ByteOrder::NATIVE, Checksum::default(), &bytes[..40]);
    bytes[40..44].copy_from_slice(&sum.s0.to_ne_bytes());
    bytes[44..48].copy_from_slice(&sum.s1.to_ne_bytes());
    header(&bytes);
    let mut other = bytes;
    other[input.below(HEADER_SIZE)] ^= input.byte();
    let pair = IndexHeader::decode_pair(&bytes, &other);
    assert!(bytes == other || pair.is_err(), "a torn header was taken");
    place(input.u32().max(1), input.u32());
}

fn header(bytes: &[u8; HEADER_SIZE]) {
    let Ok(mut header) = IndexHeader::decode(bytes) else { return };
    assert_eq!(header.encode(), *bytes);
    assert_eq!(IndexHeader::decode_pair(bytes, bytes).unwrap(), header);
    if let Ok(size) = header.page_size() {
        assert_eq!(encode_page_size(size), header.page_size_raw);
        assert_eq!(decode_page_size(header.page_size_raw).unwrap(), size);
        assert!(size >= PageSize::MIN && size <= PageSize::MAX);
    }
    let before = header;
    header.set_file_salts(before.file_salts());
    header.set_frame_checksum(before.frame_checksum());
    assert_eq!(header, before);
    assert_eq!(header.order() == ByteOrder::Big, header.big_endian_checksum != 0);
}

fn place(frame: u32, page_no: u32) {
    let (region, slot) = frame_location(frame);
    assert!(slot < region_frames(region));
    assert_eq!(region_first_frame(region) + slot, frame);
    assert!(page_number_offset(region, slot) + 4 <= HASH_OFFSET);
    assert_eq!(u32::from(hash_slot_value(slot)), slot + 1);
    let key = hash_key(page_no);
    for key in [key, next_hash_key(key)] {
        assert!(key < HASH_SLOTS && hash_slot_offset(key) + 2 <= REGION_SIZE);
    }
}
