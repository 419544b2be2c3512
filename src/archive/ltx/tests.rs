//! Plans and restores of an archive that Litestream 0.5.17 made.

use std::collections::BTreeMap;
use std::io::Cursor;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::{Duration, UNIX_EPOCH};

use super::*;
use crate::archive::crypt::Keys;
use crate::archive::store::{Store, Upload};
use crate::archive::tree::Tree;
use crate::error::lock;
use crate::wal::PageSize;

fn folder() -> std::path::PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/ltx-0.5.17")
}

/// A file of the recorded archive.
pub fn golden(key: &str) -> Vec<u8> {
    std::fs::read(folder().join(key)).unwrap()
}

/// Objects in memory.
#[derive(Default)]
struct Memory(Mutex<BTreeMap<String, (u64, Vec<u8>)>>);

impl Store for Memory {
    fn url(&self) -> &str {
        "memory:"
    }

    fn list(&self, prefix: &str, each: &mut dyn FnMut(Object) -> Result<()>) -> Result<()> {
        for (key, (modified, bytes)) in lock(&self.0).iter() {
            if key.starts_with(prefix) {
                let modified = UNIX_EPOCH + Duration::from_millis(*modified);
                each(Object { key: key.clone(), size: bytes.len() as u64, modified })?;
            }
        }
        Ok(())
    }

    fn folders(&self, _: &str) -> Result<Vec<String>> {
        Ok(Vec::new())
    }

    fn create(&self, _: &str) -> Result<Box<dyn Upload + '_>> {
        Err(Error::bug("only read"))
    }

    fn replace(&self, _: &str, _: &[u8]) -> Result<()> {
        Err(Error::bug("only read"))
    }

    fn get(&self, key: &str, _: Option<u64>) -> Result<Box<dyn Read + Send>> {
        let objects = lock(&self.0);
        let (_, bytes) = objects.get(key).ok_or_else(|| Error::missing("no such object"))?;
        Ok(Box::new(Cursor::new(bytes.clone())))
    }

    fn delete(&self, _: &[String]) -> Result<()> {
        Err(Error::bug("only read"))
    }

    fn close(&self) {}
}

impl Memory {
    fn set(&self, key: &str, modified: u64, bytes: Vec<u8>) {
        lock(&self.0).insert(key.to_owned(), (modified, bytes));
    }
}

/// The recorded archive, as in a folder or as in a bucket.
fn recorded(bucket: bool) -> (Arc<Memory>, Archive) {
    let memory = Arc::new(Memory::default());
    for level in [0, 1, 9] {
        for entry in std::fs::read_dir(folder().join(format!("ltx/{level}"))).unwrap() {
            let name = entry.unwrap().file_name().into_string().unwrap();
            let in_folder = format!("ltx/{level}/{name}");
            let key = if bucket { format!("{level:04x}/{name}") } else { in_folder.clone() };
            memory.set(&key, 1, golden(&in_folder));
        }
    }
    let archive = Archive { store: memory.clone(), tree: Tree::V04, keys: Keys::default() };
    (memory, archive)
}

/// A database in memory.
#[derive(Default)]
struct Image {
    page_size: usize,
    pages: Vec<Option<Vec<u8>>>,
}

impl PageSink for Image {
    fn begin(&mut self, page_size: PageSize, page_count: u32) -> Result<()> {
        assert!(self.pages.is_empty(), "begins once");
        self.page_size = page_size.bytes();
        self.pages = vec![None; page_count as usize];
        Ok(())
    }

    fn wants(&self, page_no: u32) -> bool {
        matches!(self.pages.get(page_no as usize - 1), Some(None))
    }

    fn put(&mut self, page_no: u32, page: &[u8]) -> Result<()> {
        assert_eq!(page.len(), self.page_size);
        assert!(self.wants(page_no), "written once");
        self.pages[page_no as usize - 1] = Some(page.to_vec());
        Ok(())
    }
}

fn target(until: Until) -> Target {
    Target { generation: None, until }
}

fn restore(archive: &Archive, until: Until) -> Result<(String, Vec<u8>)> {
    let plan = choose(archive, &target(until))?.ok_or_else(|| Error::missing("no LTX"))?;
    let mut image = Image::default();
    let reached = plan.fill(archive, &mut image)?;
    let pages = image.pages.into_iter().map(|page| page.unwrap());
    Ok((reached, pages.collect::<Vec<_>>().concat()))
}

fn error(archive: &Archive, until: Until) -> String {
    restore(archive, until).unwrap_err().to_string()
}

/// Transaction, bytes, CRC-64, as the original restores it.
fn states() -> Vec<(String, usize, u64)> {
    let text = String::from_utf8(golden("states.txt")).unwrap();
    let state = |line: &str| {
        let words: Vec<&str> = line.split(' ').collect();
        let crc = u64::from_str_radix(words[2], 16).unwrap();
        (words[0].to_owned(), words[1].parse().unwrap(), crc)
    };
    text.lines().map(state).collect()
}

fn crc(bytes: &[u8]) -> u64 {
    let mut crc = crc::Crc64::new();
    crc.update(bytes);
    crc.value()
}

#[test]
fn every_state_is_the_originals() {
    for bucket in [false, true] {
        let (_, archive) = recorded(bucket);
        for (txid, size, checksum) in states() {
            let (reached, bytes) = restore(&archive, Until::Pos(txid.clone())).unwrap();
            assert_eq!((reached, bytes.len(), crc(&bytes)), (txid, size, checksum));
        }
        let (reached, bytes) = restore(&archive, Until::Latest).unwrap();
        let last = states().pop().unwrap();
        assert_eq!((reached, bytes.len(), crc(&bytes)), last);
    }
}

#[test]
fn times_are_those_in_the_files() {
    let (_, archive) = recorded(false);
    let at = |ms: u64| Until::Time(UNIX_EPOCH + Duration::from_millis(ms));
    for (time, txid) in [
        (1_795_365_781_686, "1"),
        (1_795_365_782_083, "1"),
        (1_795_365_782_084, "2"),
        (1_795_365_785_000, "7"),
        (1_795_365_786_083, "a"),
        (1_795_365_787_783, "c"),
        (1_795_365_787_784, "d"),
        (1_999_999_999_999, "d"),
    ] {
        let (reached, _) = restore(&archive, at(time)).unwrap();
        assert_eq!(reached, format!("{txid:0>16}"), "{time}");
    }
    assert!(error(&archive, at(1_795_365_781_685)).contains("older than any of the archive"));
}

#[test]
fn a_plan_is_told() {
    let (_, archive) = recorded(false);
    let plan = choose(&archive, &target(Until::Latest)).unwrap().unwrap().describe();
    assert_eq!(plan["txid"], "000000000000000d");
    assert_eq!(plan["timestamp"], "2026-11-22T16:43:07.784Z");
    assert_eq!(plan["bytes"], 1099 + 1024 + 257);
    let objects: Vec<&Value> =
        plan["files"].as_array().unwrap().iter().map(|file| &file["object"]).collect();
    assert_eq!(
        objects,
        [
            "ltx/9/0000000000000001-0000000000000009.ltx",
            "ltx/1/000000000000000a-000000000000000b.ltx",
            "ltx/1/000000000000000c-000000000000000d.ltx",
        ]
    );
}

#[test]
fn damage_is_named_or_harmless() {
    let keys = [
        "ltx/9/0000000000000001-0000000000000009.ltx",
        "ltx/1/000000000000000a-000000000000000b.ltx",
        "ltx/1/000000000000000c-000000000000000d.ltx",
    ];
    for (at, key) in keys.iter().enumerate() {
        let (memory, archive) = recorded(false);
        let whole = golden(key);
        let mut flipped = whole.clone();
        let middle = flipped.len() - 12;
        flipped[middle] ^= 4;
        for bytes in [whole[..whole.len() / 2].to_vec(), flipped, Vec::new()] {
            memory.set(key, 1, bytes);
            assert!(error(&archive, Until::Latest).contains(key), "{key}");
        }
        memory.set(key, 1, golden(keys[(at + 1) % 3]));
        assert!(error(&archive, Until::Latest).contains("under another's name"), "{key}");
        // Another way to the same state is found, from the levels below.
        lock(&memory.0).remove(*key);
        let (_, bytes) = restore(&archive, Until::Latest).unwrap();
        assert_eq!(crc(&bytes), states().pop().unwrap().2, "{key}");
    }
}

#[test]
fn what_is_missing_is_named() {
    let (memory, archive) = recorded(false);
    lock(&memory.0).retain(|key, _| !key.contains("-000000000000000b"));
    let error = error(&archive, Until::Latest);
    let range = "transactions 000000000000000b to 000000000000000b are missing";
    assert!(error.contains(range) && error.contains("memory:"), "{error}");
    restore(&archive, Until::Pos("a".into())).unwrap();
}

#[test]
fn a_page_that_no_file_has_is_an_error() {
    let (memory, archive) = recorded(false);
    // The state at 8 has 7 pages, that at 7 only 6; the file between is one of transaction 12.
    let other = golden("ltx/0/000000000000000c-000000000000000c.ltx");
    let mut decoder = Decoder::new(other.as_slice()).unwrap();
    let mut page = Vec::new();
    assert_eq!(decoder.next(&mut page).unwrap(), Some(7));
    lock(&memory.0).clear();
    memory.set("ltx/0/0000000000000001-0000000000000001.ltx", 1, {
        golden("ltx/0/0000000000000001-0000000000000001.ltx")
    });
    memory.set("ltx/0/0000000000000002-0000000000000002.ltx", 1, renamed(&other, 2));
    let error = error(&archive, Until::Latest);
    assert!(error.contains("page 5 of transaction 0000000000000002 is in none"), "{error}");
}

/// A file of one transaction, made that of another.
fn renamed(file: &[u8], txid: u64) -> Vec<u8> {
    let mut bytes = file.to_vec();
    for at in [16, 24] {
        bytes[at..at + 8].copy_from_slice(&txid.to_be_bytes());
    }
    let mut crc = crc::Crc64::new();
    crc.update(&bytes[..100]);
    let len = u32::from_be_bytes(bytes[106..110].try_into().unwrap()) as usize;
    crc.update(&bytes[100..110]);
    crc.update(&lz4_flex::block::decompress(&bytes[110..110 + len], 512).unwrap());
    let end = bytes.len() - 8;
    crc.update(&bytes[110 + len..end]);
    bytes[end..].copy_from_slice(&(crc.value() | 1 << 63).to_be_bytes());
    bytes
}

#[test]
fn of_two_layouts_the_one_written_last() {
    let (memory, archive) = recorded(false);
    let snapshot = "generations/00000000000000ab/snapshots/0000000000000000.snapshot.lz4";
    let chosen = |until| choose(&archive, &target(until)).unwrap().is_some();
    memory.set(snapshot, 0, Vec::new());
    assert!(chosen(Until::Latest));
    memory.set(snapshot, 2, Vec::new());
    assert!(!chosen(Until::Latest));
    assert!(chosen(Until::Pos("1".into())));
    assert!(!chosen(Until::Pos("00000000000000ab/0000000000000000:0000000000000020".into())));
    let generation = Some(crate::pos::Generation::from_bits(0xab));
    assert!(choose(&archive, &Target { generation, until: Until::Latest }).unwrap().is_none());
    lock(&memory.0).clear();
    assert!(!chosen(Until::Latest));
}
