//! Restores from archives that are whole, damaged or made up. A module of `restore`.
//!
//! A history is invented, archived as we would archive it, and then harmed where the fuzzer says.
//! Whatever the restore makes of it must be an error or a state of that history, under its own
//! position; of a whole archive it must be the state asked for.
#![allow(clippy::unwrap_used, clippy::panic, clippy::cast_possible_truncation)]

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use super::chain::{self, Means};
use super::image::Image;
use super::stop::Stop;
use super::{Plan, Request, plan};
use crate::archive::fuzz::{Memory, label_of, pos};
use crate::archive::label::{Moment, Piece};
use crate::archive::sink::{Target, Until};
use crate::archive::tree::{self, Tree};
use crate::archive::{Archive, ArchiveOptions};
use crate::fuzz::{Input, Scratch, page};
use crate::header::MAGIC;
use crate::lz4;
use crate::pos::Pos;
use crate::wal::{ByteOrder, Chain, PageSize, WAL_HEADER_SIZE, WalHeader};

const GENERATION: u64 = 0xab;
const SIZE: PageSize = PageSize::MIN;

thread_local! {
    static FOLDER: Scratch = Scratch::new("restore");
}

/// A history as it was, and the objects it was archived as.
#[derive(Default)]
struct History {
    objects: BTreeMap<String, (Vec<u8>, u64, SystemTime)>,
    /// What the database was at each position that ends a transaction, and since when. In order.
    states: Vec<State>,
    clock: u64,
}

#[derive(Clone, Default)]
struct State {
    pos: Pos,
    since: Option<SystemTime>,
    bytes: Vec<u8>,
}

pub(crate) fn target(data: &[u8]) {
    let mut input = Input(data);
    let until = input.below(4);
    let mut history = History::new(&mut input);
    let harmed = history.harm(&mut input);
    let latest = history.states.last().cloned().unwrap_or_default();
    let chosen = history.states.get(input.below(16)).unwrap_or(&latest);
    let (goal, wanted) = match until {
        0 => (Until::Time(chosen.since.unwrap_or(UNIX_EPOCH)), Some(chosen)),
        1 => (Until::Pos(chosen.pos.to_string()), Some(chosen)),
        2 => (Until::Pos(input.text()), None),
        _ => (Until::Latest, Some(&latest)),
    };
    let archive = Memory(std::mem::take(&mut history.objects)).archive();
    match restore(&archive, goal) {
        // A position that is older than the snapshot of its index is refused.
        Err(error) => assert!(harmed || (1..=2).contains(&until), "a whole archive: {error}"),
        Ok((reached, bytes)) => {
            let mut states = history.states.iter();
            let Some(state) = states.find(|state| state.pos == reached) else {
                panic!("no transaction ends at {reached}")
            };
            assert!(state.bytes == bytes, "it was another database at {reached}");
            let Some(wanted) = wanted.filter(|_| !harmed) else { return };
            assert!(wanted.bytes == bytes, "{reached}, not {}", wanted.pos);
            assert!(until == 0 || wanted.pos == reached, "{reached}, not {}", wanted.pos);
        }
    }
}

fn restore(archive: &Arc<Archive>, until: Until) -> crate::error::Result<(Pos, Vec<u8>)> {
    let request = Request {
        url: String::new(),
        options: ArchiveOptions::default(),
        path: "out.db".into(),
        target: Target { generation: None, until },
        dry_run: false,
        integrity_check: false,
        threads: 1,
    };
    let Plan::Chain(chosen) = plan(&request, archive)? else { panic!("there are no LTX files") };
    FOLDER.with(|folder| {
        let stop = Arc::new(Stop::default());
        let means = Means { archive, folder: folder.path(), threads: 1, stop: &stop };
        let told = chain::describe(&means, &chosen);
        let path = folder.path().join("out.db");
        let _none_from_before = std::fs::remove_file(&path);
        let file = std::fs::File::options().read(true).write(true).create_new(true).open(&path);
        let mut image = Image::new(file.unwrap(), &stop);
        let reached = chain::fill(&means, &chosen, &mut image)?;
        image.finish()?;
        let told = told.unwrap()["pos"].as_str().unwrap().to_owned();
        assert_eq!(told, reached.to_string(), "the plan said something else");
        assert!(std::fs::metadata(&path).unwrap().len() < 1 << 20);
        Ok((reached, std::fs::read(&path).unwrap()))
    })
}

/// A database as its pages.
type Database = Vec<Vec<u8>>;

fn first_page(seed: &[u8]) -> Vec<u8> {
    let mut page: Vec<u8> = seed.iter().copied().cycle().take(SIZE.bytes()).collect();
    page[..16].copy_from_slice(&MAGIC);
    page[16..18].copy_from_slice(&[2, 0]);
    page
}

impl History {
    fn new(input: &mut Input) -> History {
        let mut history = History { clock: 1_000_000, ..History::default() };
        let mut database: Database = vec![first_page(b"x")];
        let indexes = 1 + input.below(3) as u64;
        let layout = if input.flag() { Tree::V03 } else { Tree::V04 };
        for index in 0..indexes {
            if index == 0 || input.flag() {
                history.snapshot(index, layout, &database);
            }
            let end = history.wal(input, index, layout, &mut database);
            if index + 1 < indexes {
                history.put(layout.end(end).unwrap(), Vec::new());
            }
        }
        if input.flag() {
            let last = history.states.last().unwrap().pos;
            let position = format!("{last}\n").into_bytes();
            history.put(tree::position(last.generation), position);
        }
        history
    }

    fn now(&mut self) -> SystemTime {
        self.clock += 2000;
        UNIX_EPOCH + Duration::from_micros(self.clock)
    }

    fn put(&mut self, key: String, bytes: Vec<u8>) {
        let (size, now) = (bytes.len() as u64, self.now());
        self.objects.insert(key, (bytes, size, now));
    }

    fn snapshot(&mut self, index: u64, layout: Tree, database: &Database) {
        let pos = pos(GENERATION, index, 0);
        let now = self.now();
        let mut object = label_of(Piece::Snapshot, pos, now, &[]);
        object.extend_from_slice(&lz4::compress(&database.concat()).unwrap());
        self.put(layout.snapshot(pos.generation, pos.index).unwrap(), object);
        self.reached(pos, now, database);
    }

    fn reached(&mut self, pos: Pos, at: SystemTime, database: &Database) {
        self.states.push(State { pos, since: Some(at), bytes: database.concat() });
    }

    /// The WAL of an index, in segments; where it ends.
    fn wal(&mut self, input: &mut Input, index: u64, layout: Tree, database: &mut Database) -> Pos {
        let order = if input.flag() { ByteOrder::Big } else { ByteOrder::Little };
        let header = WalHeader::new(order, SIZE, 0, [input.byte().into(), index as u32]);
        let mut chain = Chain::start(&header);
        let mut raw = header.encode().to_vec();
        let (mut start, mut moments) = (0, Vec::new());
        let header_end = pos(GENERATION, index, WAL_HEADER_SIZE as u64);
        let mut now = self.now();
        self.reached(header_end, now, database);
        for _ in 0..1 + input.below(4) {
            self.transaction(input, &mut chain, &mut raw, database);
            let end = pos(GENERATION, index, start + raw.len() as u64);
            now = self.now();
            self.reached(end, now, database);
            moments.push(Moment { end: end.offset, at: now });
            if input.flag() {
                let at = pos(GENERATION, index, start);
                start += raw.len() as u64;
                self.segment(layout, at, now, &mut moments, &std::mem::take(&mut raw));
            }
        }
        if !raw.is_empty() {
            let at = pos(GENERATION, index, start);
            start += raw.len() as u64;
            self.segment(layout, at, now, &mut moments, &raw);
        }
        pos(GENERATION, index, start)
    }

    fn segment(
        &mut self,
        layout: Tree,
        at: Pos,
        now: SystemTime,
        moments: &mut Vec<Moment>,
        raw: &[u8],
    ) {
        let mut object = label_of(Piece::Segment, at, now, moments);
        moments.clear();
        object.extend_from_slice(&lz4::compress(raw).unwrap());
        self.put(layout.segment(at).unwrap(), object);
    }

    /// Writes some pages, and every page by which the database grows.
    fn transaction(
        &mut self,
        input: &mut Input,
        chain: &mut Chain,
        raw: &mut Vec<u8>,
        database: &mut Database,
    ) {
        let pages = 1 + input.below(6);
        let mut written: Vec<usize> = (database.len()..pages).collect();
        written.extend((0..input.below(3)).map(|_| input.below(pages)));
        if written.is_empty() {
            written.push(0);
        }
        database.resize(pages, Vec::new());
        let last = written.len() - 1;
        for (at, number) in written.into_iter().enumerate() {
            let seed = input.array::<2>();
            let content = if number == 0 { first_page(&seed) } else { page(input, SIZE) };
            let commit = if at == last { pages as u32 } else { 0 };
            chain.append(number as u32 + 1, commit, &content, raw);
            database[number] = content;
        }
    }

    /// What may happen to an archive; whether anything did.
    fn harm(&mut self, input: &mut Input) -> bool {
        let rounds = input.below(4);
        for _ in 0..rounds {
            let Some(key) =
                self.objects.keys().nth(input.below(self.objects.len().max(1))).cloned()
            else {
                break;
            };
            let way = input.byte() % 6;
            let at = usize::from(input.u16());
            match way {
                0 => drop(self.objects.remove(&key)),
                1 => {
                    let other = self.objects.keys().nth(input.below(self.objects.len())).cloned();
                    let bytes = self.objects[&key].clone();
                    self.objects.insert(other.unwrap(), bytes);
                }
                2 => {
                    let name = input.text();
                    let bytes = self.objects[&key].clone();
                    let folder = tree::folder(pos(GENERATION, 0, 0).generation);
                    self.objects.insert(format!("{folder}{name}"), bytes);
                }
                _ => {
                    let change = input.byte().max(1);
                    let lie = input.number();
                    let Some((bytes, size, _)) = self.objects.get_mut(&key) else { break };
                    *size = if way == 3 { lie } else { *size };
                    let at = at % bytes.len().max(1);
                    match (way, bytes.get_mut(at)) {
                        (4, _) => bytes.truncate(at),
                        (5, Some(byte)) => *byte ^= change,
                        _ => {}
                    }
                }
            }
        }
        rounds > 0
    }
}
