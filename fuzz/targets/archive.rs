//! What an archive's owner, or whoever can write to it, may have put there: names, labels, LTX
//! files, and an S3 server's answers. A module of `archive`.
#![allow(clippy::unwrap_used, clippy::panic, clippy::cast_possible_truncation)]

use std::collections::BTreeMap;
use std::io::{Cursor, Read};
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use super::crypt::Keys;
use super::label::{Label, Moment, Piece};
use super::ltx::{Decoder, Header};
use super::ltx::{cover, names};
use super::store::{Object, Store, Upload};
use super::tree::{self, Name, Tree};
use super::{Archive, url};
use crate::archive::s3::xml;
use crate::error::{Error, Result};
use crate::fuzz::{Cut, Input};
use crate::log::layout;
use crate::pos::{Generation, Index, Offset, Pos};
use crate::wal::PageSize;

/// Objects in memory, read only. A size may be a lie, as a server's may.
pub(crate) struct Memory(pub(crate) BTreeMap<String, (Vec<u8>, u64, SystemTime)>);

impl Memory {
    /// The archive of these objects.
    pub(crate) fn archive(self) -> Arc<Archive> {
        Arc::new(Archive { store: Arc::new(self), tree: Tree::V04, keys: Keys::default() })
    }
}

impl Store for Memory {
    fn url(&self) -> &str {
        "test:memory"
    }

    fn list(&self, prefix: &str, each: &mut dyn FnMut(Object) -> Result<()>) -> Result<()> {
        let within = self.0.range(prefix.to_owned()..);
        for (key, (_, size, modified)) in within.take_while(|(key, _)| key.starts_with(prefix)) {
            each(Object { key: key.clone(), size: *size, modified: *modified })?;
        }
        Ok(())
    }

    fn folders(&self, folder: &str) -> Result<Vec<String>> {
        let below = self.0.keys().filter_map(|key| key.strip_prefix(folder)?.split_once('/'));
        let mut names: Vec<String> = below.map(|(name, _)| name.to_owned()).collect();
        names.dedup();
        Ok(names)
    }

    fn create(&self, _: &str) -> Result<Box<dyn Upload + '_>> {
        Err(Error::bug("read only"))
    }

    fn replace(&self, _: &str, _: &[u8]) -> Result<()> {
        Err(Error::bug("read only"))
    }

    fn get(&self, key: &str, first: Option<u64>) -> Result<Box<dyn Read + Send>> {
        assert!(key.split('/').all(|part| !part.is_empty() && part != ".." && part != "."));
        let (bytes, ..) = self.0.get(key).ok_or_else(|| Error::missing("it is not there"))?;
        Ok(Box::new(Cursor::new(bytes.clone()).take(first.unwrap_or(u64::MAX))))
    }

    fn delete(&self, _: &[String]) -> Result<()> {
        Err(Error::bug("read only"))
    }

    fn close(&self) {}
}

/// Keys as they may be listed: what is taken for ours has the one name we would give it.
pub(crate) fn names(data: &[u8]) {
    let mut input = Input(data);
    let generation = Generation::from_bits(input.u64());
    let text = String::from_utf8_lossy(input.0);
    for key in [text.to_string(), format!("{}{text}", tree::folder(generation))] {
        let Some(name) = tree::parse(generation, &key) else { continue };
        let at = |index, offset| Pos { generation, index, offset };
        let ours = match name {
            Name::Snapshot(index, tree) => tree.snapshot(generation, index).unwrap(),
            Name::Segment(index, offset, tree) => tree.segment(at(index, offset)).unwrap(),
            Name::End(index, offset) => {
                let names = [Tree::V04, Tree::V03].map(|tree| tree.end(at(index, offset)));
                let mut names = names.into_iter().filter_map(Result::ok);
                names.find(|name| *name == key).unwrap_or_default()
            }
            Name::EndFile(index) => {
                format!("{}end", Tree::V04.index(generation, index).unwrap())
            }
            Name::Position => tree::position(generation),
        };
        assert_eq!(ours, key);
    }
    if let Some(span) = names::parse(&text) {
        let file = format!("{}-{}.ltx", span.min, span.max);
        let (folder, name) = text.rsplit_once('/').unwrap();
        assert_eq!(name, file);
        assert!(folder == format!("ltx/{}", span.level) || folder == format!("{:04x}", span.level));
    }
    if let Some(index) = layout::index_of(&text, "") {
        assert_eq!(index.to_string(), text);
    }
    if let Some(offset) = layout::offset_of(&text) {
        assert_eq!(format!("{offset}.wal.lz4"), text);
    }
    places(&text);
    covers(&mut Input(data));
}

/// URLs: a bucket's prefix stays below it, and what may be a key is not shown.
fn places(text: &str) {
    if let Ok((bucket, prefix)) = url::bucket_of(text) {
        assert!(!bucket.is_empty() && (prefix.is_empty() || prefix.ends_with('/')));
        let odd = |part: &str| part == ".." || part == ".";
        assert!(!prefix.trim_end_matches('/').split('/').any(odd), "{prefix}");
    }
    if let Ok(folder) = url::folder_of(text) {
        assert!(folder.is_absolute());
    }
    let secret = format!("s3://KEYSECRET:{text}@bucket/x");
    let shown = crate::redact::shown(&secret);
    assert!(shown.len() < 1500 && !shown.contains("KEYSECRET"), "{shown}");
}

/// A plan of LTX files has no hole and ends where it was to end.
fn covers(input: &mut Input) {
    let mut files = Vec::new();
    let limit = match input.byte() % 3 {
        0 => cover::Limit::None,
        1 => cover::Limit::TxId(names::TxId(u64::from(input.byte()) + 1)),
        _ => cover::Limit::Time(UNIX_EPOCH + Duration::from_secs(input.byte().into())),
    };
    while !input.is_empty() && files.len() < 24 {
        let min = u64::from(input.byte() % 16) + 1;
        let max = if input.byte() == 255 { u64::MAX } else { min + u64::from(input.byte() % 8) };
        let (min, max) = (names::TxId(min), names::TxId(max));
        let key = format!("ltx/{}/{min}-{max}.ltx", input.byte() % 10);
        let span = names::parse(&key).unwrap();
        files.push(cover::File { span, key, size: input.number(), modified: UNIX_EPOCH });
    }
    let mut time = |file: &cover::File| {
        Ok(UNIX_EPOCH + Duration::from_secs(file.span.max.0.min(u64::from(u32::MAX))))
    };
    let Ok(chosen) = cover::cover(&files, limit, &mut time) else { return };
    let mut reached = 0;
    for file in &chosen {
        assert!(file.span.min.0 <= reached + 1 && file.span.max.0 > reached, "a hole");
        reached = file.span.max.0;
    }
    if let cover::Limit::TxId(last) = limit {
        assert_eq!(reached, last.0);
    }
}

/// Labels: taken off as they were put on, and nothing of the object is lost.
pub(crate) fn label(data: &[u8]) {
    let mut input = Input(data);
    let object = if input.flag() { input.0.to_vec() } else { labelled(&mut input) };
    let mut rest = object.as_slice();
    let taken = Label::take(&mut rest);
    let mut cut = Cut::new(&object, &[3, 1, 9]);
    let again = Label::take(&mut cut);
    match (taken, again) {
        (Ok((label, read)), Ok(again)) => {
            assert_eq!((&label, &read), (&again.0, &again.1));
            let front = label.as_ref().map(Label::encode).unwrap_or_default();
            assert!([front.as_slice(), &read, rest].concat() == object);
        }
        (taken, again) => assert!(taken.is_err() && again.is_err()),
    }
}

/// A label whose checksum is right, in front of anything; or with one bit changed.
fn labelled(input: &mut Input) -> Vec<u8> {
    let mut payload = b"LSA1".to_vec();
    payload.extend_from_slice(&u32::from(input.byte() % 4).to_be_bytes());
    for _ in 0..4 {
        payload.extend_from_slice(&input.number().to_be_bytes());
    }
    let count = input.byte() % 8;
    let told = if input.byte() == 0 { input.u32() } else { count.into() };
    payload.extend_from_slice(&told.to_be_bytes());
    for _ in 0..count {
        payload.extend_from_slice(&input.number().to_be_bytes());
        payload.extend_from_slice(&input.number().to_be_bytes());
    }
    let hash = twox_hash::XxHash32::oneshot(0, &payload);
    payload.extend_from_slice(&hash.to_be_bytes());
    let mut object = 0x184D_2A5E_u32.to_le_bytes().to_vec();
    object.extend_from_slice(&u32::try_from(payload.len()).unwrap().to_le_bytes());
    object.extend_from_slice(&payload);
    object.extend_from_slice(input.0);
    object
}

/// The label of what a fuzzed archive holds.
pub(crate) fn label_of(piece: Piece, pos: Pos, at: SystemTime, moments: &[Moment]) -> Vec<u8> {
    match piece {
        Piece::Snapshot => Label::snapshot(pos, at).encode(),
        Piece::Segment => Label::segment(pos, at, moments).encode(),
    }
}

/// CRC-64 as Go has it (ISO 3309), bit by bit.
fn crc(bytes: &[u8]) -> u64 {
    let step = |crc: u64, byte: &u8| {
        (0..8).fold(crc ^ u64::from(*byte), |crc, _| {
            (crc >> 1) ^ if crc & 1 == 1 { 0xd800_0000_0000_0000 } else { 0 }
        })
    };
    !bytes.iter().fold(!0, step)
}

/// LTX files: as they are, and as made; what is whole gives its pages, and damage shows.
pub(crate) fn ltx(data: &[u8]) {
    let mut input = Input(data);
    if input.flag() {
        let whole = ltx_pages(input.0);
        let cut = ltx_pages_from(Cut::new(input.0, &[5, 0, 100]));
        assert!(whole.ok() == cut.ok());
        return;
    }
    let (mut file, pages) = ltx_file(&mut input);
    assert!(ltx_pages(&file).unwrap() == pages);
    let at = usize::from(input.u16()) % file.len();
    match input.byte() {
        0 => file.truncate(at),
        change => file[at] ^= change,
    }
    // The same content may be compressed in more than one way, and the page index is not used.
    if let Ok(read) = ltx_pages(&file) {
        assert!(read == pages, "damage did not show");
    }
}

type Pages = Vec<(u32, Vec<u8>)>;

fn ltx_pages(bytes: &[u8]) -> Result<Pages> {
    ltx_pages_from(bytes)
}

fn ltx_pages_from(reader: impl Read) -> Result<Pages> {
    let mut decoder = Decoder::new(reader)?;
    let header: Header = *decoder.header();
    let (mut page, mut pages) = (Vec::new(), Pages::new());
    loop {
        match decoder.next(&mut page) {
            Ok(Some(number)) => {
                assert_eq!(page.len(), header.page_size.bytes());
                assert!(number > pages.last().map_or(0, |(last, _)| *last));
                assert!(number <= header.page_count && number != header.lock_page());
                pages.push((number, page.clone()));
            }
            Ok(None) => {
                assert_eq!(decoder.next(&mut page).unwrap(), None);
                return Ok(pages);
            }
            Err(error) => {
                assert!(decoder.next(&mut page).is_err(), "a file that failed goes on");
                return Err(error);
            }
        }
    }
}

/// A file that is right, and its pages.
fn ltx_file(input: &mut Input) -> (Vec<u8>, Pages) {
    let size = PageSize::new(512 << input.below(2)).unwrap();
    let count = u32::try_from(input.below(6)).unwrap() + 1;
    let min = u64::from(input.byte() % 3) + 1;
    let mut head = b"LTX1".to_vec();
    for word in [2, size.get(), count] {
        head.extend_from_slice(&u32::to_be_bytes(word));
    }
    for long in [min, min + u64::from(input.byte()), input.u32().into(), 0] {
        head.extend_from_slice(&u64::to_be_bytes(long));
    }
    head.resize(100, input.byte());
    let (mut file, mut hashed, mut pages) = (head.clone(), head, Pages::new());
    let mut entries = Vec::new();
    for number in 1..=count {
        if min > 1 && input.flag() {
            continue;
        }
        let page = crate::fuzz::page(input, size);
        let block = lz4_flex::block::compress(&page);
        let mut front = number.to_be_bytes().to_vec();
        front.extend_from_slice(&1_u16.to_be_bytes());
        front.extend_from_slice(&u32::try_from(block.len()).unwrap().to_be_bytes());
        hashed.extend_from_slice(&front);
        hashed.extend_from_slice(&page);
        file.extend_from_slice(&front);
        file.extend_from_slice(&block);
        entries.extend_from_slice(&[number as u8, 1, 1]);
        pages.push((number, page));
    }
    entries.push(0);
    let mut tail = vec![0; 6];
    tail.extend_from_slice(&entries);
    tail.extend_from_slice(&(entries.len() as u64).to_be_bytes());
    tail.extend_from_slice(&[0; 8]);
    hashed.extend_from_slice(&tail);
    file.extend_from_slice(&tail);
    file.extend_from_slice(&(crc(&hashed) | 1 << 63).to_be_bytes());
    (file, pages)
}

/// An S3 server's answers: parts of them are parts of them.
pub(crate) fn answers(data: &[u8]) {
    let text = String::from_utf8_lossy(data);
    let mut total = 0;
    for name in ["Contents", "Key", "Error", "CommonPrefixes", "IsTruncated"] {
        for content in xml::elements(&text, name) {
            assert!(text.contains(content));
            total += content.len();
        }
        assert!(total <= 5 * text.len(), "elements overlap");
        assert!(xml::text(&text, name).len() <= text.len());
    }
    if let Some(listing) = xml::listing(&text) {
        assert!(text.contains(listing) && !xml::elements(listing, "IsTruncated").is_empty());
        for found in xml::elements(listing, "Contents") {
            let key = xml::text(found, "Key");
            let name = tree::parse(Generation::from_bits(1), &key);
            assert!(name.is_none() || !key.contains(".."));
        }
    }
    let escaped = text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&#x3e;");
    let back = xml::text(&format!("<a><Key>{escaped}</Key></a>"), "Key");
    assert_eq!(back, text.trim());
}

/// Numbers for positions that are there.
pub(crate) fn pos(generation: u64, index: u64, offset: u64) -> Pos {
    let (index, offset) = (Index::new(index).unwrap(), Offset::new(offset).unwrap());
    Pos::new(Generation::from_bits(generation), index, offset)
}
