//! An archive in a folder, read by nothing of ours: names, labels, LZ4 frames (lz4_flex), offsets,
//! ends and the WAL's checksums are all checked here again, from their descriptions.

use std::collections::BTreeMap;
use std::io::Read;
use std::path::{Path, PathBuf};

/// What an archive holds of one generation, whole and consistent.
pub struct Archived {
    pub generation: String,
    /// The database file in each snapshot, and when it says it was made (microseconds).
    pub snapshots: BTreeMap<u64, (Vec<u8>, u64)>,
    /// The WAL bytes of each index that is there from its start.
    pub wals: BTreeMap<u64, Vec<u8>>,
    pub ends: BTreeMap<u64, u64>,
    /// Index and offset of its position.
    pub position: Option<(u64, u64)>,
    pub objects: usize,
}

/// Reads and checks all of a folder's archive.
pub fn read_archive(root: &Path) -> Vec<Archived> {
    let mut names: Vec<_> = children(&root.join("generations"));
    names.sort();
    names.iter().map(|folder| read_generation(folder)).collect()
}

/// The same, of an archive with one generation.
pub fn read_only_generation(root: &Path) -> Archived {
    let mut all = read_archive(root);
    assert_eq!(all.len(), 1, "one generation");
    all.remove(0)
}

/// Every object's key, size and time.
pub fn objects(root: &Path) -> BTreeMap<String, (u64, std::time::SystemTime)> {
    let mut found = BTreeMap::new();
    for path in files(root) {
        let Ok(meta) = path.metadata() else { continue };
        let key = path.strip_prefix(root).unwrap().to_str().unwrap().to_owned();
        found.insert(key, (meta.len(), meta.modified().unwrap()));
    }
    found
}

fn files(root: &Path) -> Vec<PathBuf> {
    let (mut found, mut pending) = (Vec::new(), vec![root.to_owned()]);
    while let Some(path) = pending.pop() {
        match path.is_dir() {
            true => pending.extend(children(&path)),
            false => found.push(path),
        }
    }
    // What is being written is no object yet.
    found.retain(|path| path.extension().is_none_or(|extension| extension != "tmp"));
    found
}

fn children(folder: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(folder).into_iter().flatten();
    entries.flatten().map(|entry| entry.path()).collect()
}

fn hex(text: &str) -> u64 {
    u64::from_str_radix(text, 16).unwrap_or_else(|_| panic!("{text:?} is no number"))
}

fn read_generation(folder: &Path) -> Archived {
    let generation = folder.file_name().unwrap().to_str().unwrap().to_owned();
    let mut archived = Archived {
        generation,
        snapshots: BTreeMap::new(),
        wals: BTreeMap::new(),
        ends: BTreeMap::new(),
        position: None,
        objects: 0,
    };
    let mut segments = BTreeMap::new();
    for path in files(folder) {
        let key = path.strip_prefix(folder).unwrap().to_str().unwrap().to_owned();
        let parts: Vec<&str> = key.split(['/', '_', '.']).collect();
        archived.objects += 1;
        match parts.as_slice() {
            ["position"] => {
                let text = std::fs::read_to_string(&path).unwrap();
                let (name, pos) = text.trim_end().split_once('/').unwrap();
                assert_eq!(name, archived.generation);
                let (index, offset) = pos.split_once(':').unwrap();
                archived.position = Some((hex(index), hex(offset)));
            }
            ["snapshots", index, "snapshot", "lz4"] => {
                let (label, bytes) = read_object(&path, 1);
                assert_eq!(label.place, (hex(&archived.generation), hex(index), 0), "{key}");
                archived.snapshots.insert(hex(index), (bytes, label.created_at));
            }
            ["wal", index, offset, "wal", "lz4"] => {
                let (label, bytes) = read_object(&path, 2);
                let place = (hex(&archived.generation), hex(index), hex(offset));
                assert_eq!(label.place, place, "{key}");
                segments.insert((hex(index), hex(offset)), (label, bytes));
            }
            ["wal", index, offset, "end"] => {
                assert_eq!(path.metadata().unwrap().len(), 0);
                let before = archived.ends.insert(hex(index), hex(offset));
                assert_eq!(before, None, "{key}: an index has one end");
            }
            _ => panic!("{}: what is {key}?", archived.generation),
        }
    }
    let mut latest = 0;
    for ((index, offset), (label, bytes)) in segments {
        let wal = archived.wals.entry(index).or_default();
        assert_eq!(wal.len() as u64, offset, "index {index:x}: no hole and no overlap");
        wal.extend_from_slice(&bytes);
        let end = wal.len() as u64;
        assert!(label.created_at >= latest, "time does not go back");
        for (at, time) in label.moments {
            assert!(at > offset && at <= end && time >= latest, "moments ascend");
            latest = time;
        }
        latest = latest.max(label.created_at);
    }
    for (index, wal) in &archived.wals {
        check_wal(wal);
        let end = archived.ends.get(index);
        assert!(end.is_none_or(|end| *end == wal.len() as u64), "index {index:x} ends elsewhere");
    }
    archived
}

struct LabelRead {
    place: (u64, u64, u64),
    created_at: u64,
    moments: Vec<(u64, u64)>,
}

fn read_object(path: &Path, piece: u32) -> (LabelRead, Vec<u8>) {
    let object = std::fs::read(path).unwrap();
    let (label, frame) = split_label(&object, piece);
    let mut content = Vec::new();
    let mut decoder = lz4_flex::frame::FrameDecoder::new(frame);
    let read = decoder.read_to_end(&mut content);
    read.unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    (label, content)
}

fn split_label(object: &[u8], piece: u32) -> (LabelRead, &[u8]) {
    let le = |at: usize| u32::from_le_bytes(object[at..at + 4].try_into().unwrap());
    assert_eq!(le(0), 0x184D_2A5E);
    let size = le(4) as usize;
    let payload = &object[8..8 + size];
    let be32 = |at: usize| u32::from_be_bytes(payload[at..at + 4].try_into().unwrap());
    let be64 = |at: usize| u64::from_be_bytes(payload[at..at + 8].try_into().unwrap());
    assert_eq!(&payload[..4], b"LSA1");
    assert_eq!(be32(4), piece);
    let hash = twox_hash::XxHash32::oneshot(0, &payload[..size - 4]);
    assert_eq!(be32(size - 4), hash);
    let count = be32(40) as usize;
    assert_eq!(size, 48 + 16 * count);
    let moments = (0..count).map(|n| (be64(44 + 16 * n), be64(52 + 16 * n))).collect();
    let label = LabelRead { place: (be64(8), be64(16), be64(24)), created_at: be64(32), moments };
    (label, &object[8 + size..])
}

/// Checks every frame of a WAL: salts and running checksum.
fn check_wal(wal: &[u8]) {
    let be = |at: usize| u32::from_be_bytes(wal[at..at + 4].try_into().unwrap());
    let big = be(0) & 1 == 1;
    let sum = |mut state: (u32, u32), bytes: &[u8]| {
        for pair in bytes.chunks(8) {
            let word = |part: &[u8]| {
                let bytes = part.try_into().unwrap();
                if big { u32::from_be_bytes(bytes) } else { u32::from_le_bytes(bytes) }
            };
            state.0 = state.0.wrapping_add(word(&pair[..4])).wrapping_add(state.1);
            state.1 = state.1.wrapping_add(word(&pair[4..])).wrapping_add(state.0);
        }
        state
    };
    let mut state = sum((0, 0), &wal[..24]);
    assert_eq!(state, (be(24), be(28)), "the WAL's header");
    let frame = page_size(wal) + 24;
    assert_eq!((wal.len() - 32) % frame, 0, "whole frames");
    for at in (32..wal.len()).step_by(frame) {
        assert_eq!((be(at + 8), be(at + 12)), (be(16), be(20)), "salts");
        state = sum(state, &wal[at..at + 8]);
        state = sum(state, &wal[at + 24..at + frame]);
        assert_eq!(state, (be(at + 16), be(at + 20)), "checksum at {at:x}");
    }
}

fn page_size(wal: &[u8]) -> usize {
    u32::from_be_bytes(wal[8..12].try_into().unwrap()) as usize
}

impl Archived {
    /// Index and offset where it ends.
    pub fn end(&self) -> (u64, u64) {
        self.wals.last_key_value().map_or((0, 0), |(index, wal)| (*index, wal.len() as u64))
    }

    /// Fails unless everything from its oldest snapshot on is there.
    pub fn assert_whole(&self) {
        assert!(!self.snapshots.is_empty(), "a snapshot");
        self.assert_no_gap();
        assert!(self.position.is_none_or(|position| position <= self.end()), "position");
    }

    /// The same as far as it goes: it may have ended before all of it was archived.
    pub fn assert_no_gap(&self) {
        let Some((&first, _)) = self.snapshots.first_key_value() else { return };
        let (last, _) = self.end();
        for index in first..last {
            assert!(self.wals.contains_key(&index), "index {index:x} is missing");
            assert!(self.ends.contains_key(&index), "index {index:x} has no end");
        }
    }

    /// Writes the database as of its end, starting from the snapshot at `index`.
    pub fn materialize(&self, index: u64, path: &Path) {
        let mut pages = self.snapshots[&index].0.clone();
        for wal in self.wals.range(index..).map(|(_, wal)| wal) {
            let page = page_size(wal);
            let mut open = Vec::new();
            for frame in wal[32..].chunks(24 + page) {
                open.push(frame);
                let size = u32::from_be_bytes(frame[4..8].try_into().unwrap()) as usize;
                if size == 0 {
                    continue;
                }
                for frame in open.drain(..) {
                    let number = u32::from_be_bytes(frame[..4].try_into().unwrap()) as usize;
                    let end = number * page;
                    if pages.len() < end {
                        pages.resize(end, 0);
                    }
                    pages[end - page..end].copy_from_slice(&frame[24..]);
                }
                pages.resize(size * page, 0);
            }
        }
        std::fs::write(path, pages).unwrap();
    }
}
