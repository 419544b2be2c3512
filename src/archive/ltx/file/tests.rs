//! The decoder on files of Litestream 0.5.17, whole and damaged everywhere.

use super::*;
use crate::archive::ltx::tests::golden;

type Page = (u32, Vec<u8>);

/// Everything a file holds.
fn decode(bytes: &[u8]) -> Result<(Header, Vec<Page>)> {
    let mut decoder = Decoder::new(bytes)?;
    let (mut pages, mut page) = (Vec::new(), Vec::new());
    while let Some(number) = decoder.next(&mut page)? {
        pages.push((number, page.clone()));
    }
    assert_eq!(decoder.next(&mut page)?, None, "the end stays the end");
    assert_eq!(decoder.post_apply().is_some(), decoder.header().has_checksums);
    Ok((*decoder.header(), pages))
}

fn snapshot() -> Vec<u8> {
    golden("ltx/9/0000000000000001-0000000000000009.ltx")
}

/// A file as we would write it: `frame` puts pages as the first releases of 0.5 did.
fn encode(header: &[u8; HEADER_SIZE], pages: &[Page], frame: bool, sum: u64) -> Vec<u8> {
    let mut crc = Crc64::new();
    let mut file = header.to_vec();
    crc.update(header);
    let mut index = Vec::new();
    for (number, page) in pages {
        let start = file.len();
        let mut head = number.to_be_bytes().to_vec();
        head.extend_from_slice(&u16::from(!frame).to_be_bytes());
        let packed = if frame { lz4::compress(page).unwrap() } else { block::compress(page) };
        if !frame {
            head.extend_from_slice(&u32::try_from(packed.len()).unwrap().to_be_bytes());
        }
        crc.update(&head);
        crc.update(page);
        file.extend_from_slice(&head);
        file.extend_from_slice(&packed);
        for number in [u64::from(*number), start as u64, (file.len() - start) as u64] {
            varint(number, &mut index);
        }
    }
    index.push(0);
    let mut tail = vec![0; 6];
    tail.extend_from_slice(&index);
    tail.extend_from_slice(&(index.len() as u64).to_be_bytes());
    tail.extend_from_slice(&sum.to_be_bytes());
    crc.update(&tail);
    file.extend_from_slice(&tail);
    file.extend_from_slice(&(crc.value() | CHECKSUM_FLAG).to_be_bytes());
    file
}

fn varint(mut number: u64, out: &mut Vec<u8>) {
    while number >= 0x80 {
        out.push(number.to_le_bytes()[0] | 0x80);
        number >>= 7;
    }
    out.push(number.to_le_bytes()[0]);
}

fn head_of(file: &[u8]) -> [u8; HEADER_SIZE] {
    file[..HEADER_SIZE].try_into().unwrap()
}

#[test]
fn a_snapshot_of_0_5() {
    let (header, pages) = decode(&snapshot()).unwrap();
    assert_eq!((header.page_size.get(), header.page_count), (512, 7));
    assert_eq!((header.min, header.max), (TxId(1), TxId(9)));
    assert_eq!(header.created_at, UNIX_EPOCH + Duration::from_millis(1_795_365_786_002));
    assert!(header.is_snapshot() && !header.has_checksums);
    assert_eq!(pages.iter().map(|(number, _)| *number).collect::<Vec<_>>(), [1, 2, 3, 4, 5, 6, 7]);
    assert!(pages[0].1.starts_with(b"SQLite format 3\0"));
}

#[test]
fn what_we_write_by_the_table_is_what_0_5_writes() {
    let file = snapshot();
    let (header, pages) = decode(&file).unwrap();
    let ours = encode(&head_of(&file), &pages, false, 0);
    assert_eq!(decode(&ours).unwrap(), (header, pages));
}

#[test]
fn pages_in_frames() {
    let file = snapshot();
    let whole = decode(&file).unwrap();
    let framed = encode(&head_of(&file), &whole.1, true, 0);
    assert_eq!(decode(&framed).unwrap(), whole);
    every_damage_shows(&framed);
}

#[test]
fn every_damage_of_a_snapshot_shows() {
    every_damage_shows(&snapshot());
}

#[test]
fn every_damage_of_a_transaction_shows() {
    every_damage_shows(&golden("ltx/0/000000000000000c-000000000000000c.ltx"));
}

/// Cut anywhere, or with any bit flipped, a file is an error, or decodes to the same: a block can
/// say the same in two ways.
fn every_damage_shows(file: &[u8]) {
    let whole = decode(file).unwrap();
    for cut in 0..file.len() {
        assert!(decode(&file[..cut]).is_err(), "cut at {cut}");
    }
    let mut same = 0;
    for bit in 0..file.len() * 8 {
        let mut bytes = file.to_vec();
        bytes[bit / 8] ^= 1 << (bit % 8);
        if let Ok(found) = decode(&bytes) {
            assert_eq!(found, whole, "bit {bit}");
            same += 1;
        }
    }
    assert!(same < file.len() / 10, "{same} flips went by");
    let longer = [file, &[0]].concat();
    assert!(decode(&longer).unwrap_err().to_string().contains("goes on after its end"));
}

#[test]
fn a_failed_file_stays_failed() {
    let mut file = snapshot();
    let end = file.len() - 1;
    file[end] ^= 1;
    let mut decoder = Decoder::new(file.as_slice()).unwrap();
    let mut page = Vec::new();
    while decoder.next(&mut page).is_ok_and(|number| number.is_some()) {}
    let error = decoder.next(&mut page).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Corrupt);
}

#[test]
fn pages_that_cannot_be() {
    let file = snapshot();
    let (_, pages) = decode(&file).unwrap();
    let check = |pages: Vec<Page>, part: &str| {
        let error = decode(&encode(&head_of(&file), &pages, false, 0)).unwrap_err().to_string();
        assert!(error.contains(part), "{error}");
    };
    let changed = |at: usize, number: u32| {
        let mut pages = pages.clone();
        pages[at].0 = number;
        pages
    };
    check(changed(1, 1), "page 1 cannot follow page 1");
    check(changed(6, 8), "page 8 cannot follow page 6");
    check(pages[..6].to_vec(), "a snapshot of 7 pages has only 6");
    let mut short = pages.clone();
    short[3].1.pop();
    check(short, "page 4 has 511 bytes");
    let mut long = pages.clone();
    long[3].1.push(0);
    check(long, "cannot be decompressed");
}

#[test]
fn the_lock_page_is_in_no_file() {
    let mut header = head_of(&snapshot());
    header[8..12].copy_from_slice(&65_536_u32.to_be_bytes());
    header[12..16].copy_from_slice(&20_000_u32.to_be_bytes());
    header[16..24].copy_from_slice(&3_u64.to_be_bytes());
    let page = |number| (number, vec![7; 65_536]);
    let decoded = decode(&encode(&header, &[page(16_384), page(16_386)], false, 0)).unwrap();
    assert_eq!((decoded.0.lock_page(), decoded.0.content_pages()), (16_385, 19_999));
    let error = decode(&encode(&header, &[page(16_385)], false, 0)).unwrap_err();
    assert!(error.to_string().contains("page 16385 cannot follow"), "{error}");
}

#[test]
fn headers_that_cannot_be() {
    let good = head_of(&snapshot());
    let check = |at: usize, bytes: &[u8], kind: ErrorKind| {
        let mut header = good;
        header[at..at + bytes.len()].copy_from_slice(bytes);
        assert_eq!(Header::decode(&header).unwrap_err().kind(), kind, "{at}");
    };
    check(0, b"LTX2", ErrorKind::Corrupt);
    check(7, &[6], ErrorKind::Unsupported);
    check(8, &513_u32.to_be_bytes(), ErrorKind::Corrupt);
    check(12, &0_u32.to_be_bytes(), ErrorKind::Corrupt);
    check(16, &0_u64.to_be_bytes(), ErrorKind::Corrupt);
    check(16, &10_u64.to_be_bytes(), ErrorKind::Corrupt);
    let span = Span { level: 9, min: TxId(1), max: TxId(9) };
    let header = Header::decode(&good).unwrap();
    header.check_name(span).unwrap();
    assert!(header.check_name(Span { max: TxId(8), ..span }).is_err());
    // Whatever the time, there is no panic.
    let mut late = good;
    late[32..40].copy_from_slice(&u64::MAX.to_be_bytes());
    let _either = Header::decode(&late);
}

#[test]
fn a_database_checksum_is_given_out() {
    let mut header = head_of(&snapshot());
    header[7] = 0;
    let (_, pages) = decode(&snapshot()).unwrap();
    let sum = pages.iter().fold(0, |sum, (number, page)| sum ^ page_checksum(*number, page));
    let sum = database_checksum(sum);
    let file = encode(&header, &pages, false, sum);
    let mut decoder = Decoder::new(file.as_slice()).unwrap();
    let mut page = Vec::new();
    while decoder.next(&mut page).unwrap().is_some() {}
    assert_eq!(decoder.post_apply(), Some(sum));
    let without = encode(&header, &pages, false, 0);
    assert!(decode(&without).unwrap_err().to_string().contains("must have"));
}
