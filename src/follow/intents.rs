//! What each commit of ours stands for, written down before it can exist.
//!
//! A replica's WAL has its own salts and checksums; nothing in it names a position of the upstream.
//! So before the frames of a commit are written, a record goes to a file beside the database: once
//! they are there, the upstream is at U; our WAL is then at L. After a crash SQLite recovers some
//! WAL; the last record whose L is what it recovered names the position, and no such record means:
//! unknown.
//!
//! Record, 96 bytes, big-endian:
//!
//! | at | size | field                                                                      |
//! |----|------|----------------------------------------------------------------------------|
//! | 0  | 4    | magic "LSIN"                                                               |
//! | 4  | 1    | version 1                                                                  |
//! | 5  | 1    | U: checksum order (0 little-endian, 1 big-endian, 2: no chain at offset 0) |
//! | 6  | 2    | 0                                                                          |
//! | 8  | 24   | U: generation, index, offset                                               |
//! | 32 | 4    | U: page size                                                               |
//! | 36 | 8    | U: salts                                                                   |
//! | 44 | 8    | U: running checksum                                                        |
//! | 52 | 8    | L: salts                                                                   |
//! | 60 | 4    | L: mxFrame (0: a WAL that has only its header)                             |
//! | 64 | 8    | L: running checksum after mxFrame (0 if mxFrame is 0)                      |
//! | 72 | 8    | sequence number, grows by 1                                                |
//! | 80 | 8    | 0                                                                          |
//! | 88 | 8    | SQLite's WAL checksum (big-endian words) of the 88 bytes before it         |
//!
//! Two files take turns: a new WAL (new salts) begins the other file from scratch. The one before
//! is kept, because until the new WAL's header is on disk a power loss brings the old WAL back.
//! Bytes that are no valid record end a file. The files are synced before a checkpoint syncs the
//! WAL.

use std::fs::{File, OpenOptions};
use std::io::{BufReader, Read};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use crate::error::{Context, Result, lock};
use crate::fault::{self, Tap};
use crate::files::{open_beside, read_beside, sync_folder_of};
use crate::pos::{Generation, Index, Offset, Pos};
use crate::wal::{ByteOrder, Chain, Checksum, PageSize, Salts, checksum};

/// Bytes of a record.
const RECORD_SIZE: usize = 96;
const MAGIC: [u8; 4] = *b"LSIN";
const VERSION: u8 = 1;
/// The two files, in `DB-litestream/`.
pub const FILE_NAMES: [&str; 2] = ["intents-0", "intents-1"];

/// Where in the upstream's history something is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct UpstreamPos {
    /// The next byte wanted.
    pub pos: Pos,
    /// What proves the next frame; none at offset 0.
    pub chain: Option<Chain>,
}

/// What a WAL of ours is: equal states are equal content.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LocalState {
    /// The WAL's salts, as numbers.
    pub salts: Salts,
    /// The last frame of the last commit; 0: none.
    pub max_frame: u32,
    /// The running checksum after it; zero if there is none.
    pub checksum: Checksum,
}

impl LocalState {
    /// A WAL with these salts and no frame.
    pub fn empty(salts: Salts) -> Self {
        Self { salts, max_frame: 0, checksum: Checksum::default() }
    }
}

/// One record.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Intent {
    upstream: UpstreamPos,
    local: LocalState,
    sequence: u64,
}

impl Intent {
    fn encode(&self) -> [u8; RECORD_SIZE] {
        let mut out = [0; RECORD_SIZE];
        out[0..4].copy_from_slice(&MAGIC);
        out[4] = VERSION;
        let pos = self.upstream.pos;
        out[8..16].copy_from_slice(&pos.generation.to_bits().to_be_bytes());
        out[16..24].copy_from_slice(&pos.index.get().to_be_bytes());
        out[24..32].copy_from_slice(&pos.offset.get().to_be_bytes());
        out[5] = match self.upstream.chain.map(|chain| chain.order) {
            Some(ByteOrder::Little) => 0,
            Some(ByteOrder::Big) => 1,
            None => 2,
        };
        if let Some(chain) = self.upstream.chain {
            out[32..36].copy_from_slice(&chain.page_size.get().to_be_bytes());
            put_pair(&mut out[36..44], chain.salts);
            put_pair(&mut out[44..52], [chain.checksum.s0, chain.checksum.s1]);
        }
        put_pair(&mut out[52..60], self.local.salts);
        out[60..64].copy_from_slice(&self.local.max_frame.to_be_bytes());
        put_pair(&mut out[64..72], [self.local.checksum.s0, self.local.checksum.s1]);
        out[72..80].copy_from_slice(&self.sequence.to_be_bytes());
        let sum = checksum(ByteOrder::Big, Checksum::default(), &out[..88]);
        put_pair(&mut out[88..96], [sum.s0, sum.s1]);
        debug_assert_eq!(Self::decode(&out), Some(*self));
        out
    }

    fn decode(bytes: &[u8; RECORD_SIZE]) -> Option<Self> {
        let sum = checksum(ByteOrder::Big, Checksum::default(), &bytes[..88]);
        let stored = pair(bytes, 88);
        if bytes[..4] != MAGIC || bytes[4] != VERSION || stored != [sum.s0, sum.s1] {
            return None;
        }
        let pos = Pos::new(
            Generation::from_bits(long(bytes, 8)),
            Index::new(long(bytes, 16)).ok()?,
            Offset::new(long(bytes, 24)).ok()?,
        );
        let order = match bytes[5] {
            0 => Some(ByteOrder::Little),
            1 => Some(ByteOrder::Big),
            2 => None,
            _ => return None,
        };
        let chain = match order {
            None => None,
            Some(order) => {
                let [s0, s1] = pair(bytes, 44);
                let page_size = PageSize::new(word(bytes, 32)).ok()?;
                let checksum = Checksum { s0, s1 };
                Some(Chain { order, page_size, salts: pair(bytes, 36), checksum })
            }
        };
        let [s0, s1] = pair(bytes, 64);
        let local = LocalState {
            salts: pair(bytes, 52),
            max_frame: word(bytes, 60),
            checksum: Checksum { s0, s1 },
        };
        let upstream = UpstreamPos { pos, chain };
        Some(Self { upstream, local, sequence: long(bytes, 72) })
    }
}

const _: () = assert!(4 + 1 + 1 + 2 + 24 + 4 + 8 + 8 + 8 + 4 + 8 + 8 + 8 + 8 == RECORD_SIZE);

fn put_pair(out: &mut [u8], [a, b]: [u32; 2]) {
    out[..4].copy_from_slice(&a.to_be_bytes());
    out[4..8].copy_from_slice(&b.to_be_bytes());
}

fn word(bytes: &[u8; RECORD_SIZE], at: usize) -> u32 {
    let mut out = [0; 4];
    out.copy_from_slice(&bytes[at..at + 4]);
    u32::from_be_bytes(out)
}

fn pair(bytes: &[u8; RECORD_SIZE], at: usize) -> [u32; 2] {
    [word(bytes, at), word(bytes, at + 4)]
}

fn long(bytes: &[u8; RECORD_SIZE], at: usize) -> u64 {
    u64::from(word(bytes, at)) << 32 | u64::from(word(bytes, at + 4))
}

/// The two files of a replica. `append` and `begin` belong to the applier; `sync` may be called
/// from any thread.
pub struct Intents {
    directory: PathBuf,
    state: Mutex<Journal>,
}

/// Where the next record goes.
struct Journal {
    /// Which of the two files; its handle.
    turn: usize,
    file: Arc<File>,
    /// Bytes of valid records in it.
    length: u64,
    sequence: u64,
    dirty: bool,
}

impl Intents {
    /// Opens the files in `directory`, which exists, and returns the position recorded for `local`,
    /// if there is one.
    pub fn open(
        directory: &Path,
        local: Option<LocalState>,
    ) -> Result<(Self, Option<UpstreamPos>)> {
        let mut found: Option<Intent> = None;
        let mut newest: [Option<u64>; 2] = [None; 2];
        let mut lengths = [0u64; 2];
        for (turn, name) in FILE_NAMES.iter().enumerate() {
            read_records(&directory.join(name), |intent| {
                newest[turn] = Some(intent.sequence);
                lengths[turn] += RECORD_SIZE as u64;
                let newer = found.is_none_or(|old| intent.sequence >= old.sequence);
                if Some(intent.local) == local && newer {
                    found = Some(intent);
                }
            })?;
        }
        let turn = usize::from(newest[1] > newest[0]);
        let sequence = newest[turn].map_or(0, |sequence| sequence.saturating_add(1));
        let file = Arc::new(open_file(&directory.join(FILE_NAMES[turn]))?);
        // The other's name too: it is written to and synced when its turn comes.
        let other = directory.join(FILE_NAMES[1 - turn]);
        drop(open_file(&other)?);
        sync_folder_of(&other)?;
        let journal = Journal { turn, file, length: lengths[turn], sequence, dirty: true };
        let intents = Self { directory: directory.to_owned(), state: Mutex::new(journal) };
        Ok((intents, found.map(|intent| intent.upstream)))
    }

    /// Records that `local` will stand for `upstream`.
    pub fn append(&self, upstream: UpstreamPos, local: LocalState) -> Result<()> {
        let mut journal = lock(&self.state);
        let record = Intent { upstream, local, sequence: journal.sequence }.encode();
        let write = |record: &[u8]| journal.file.write_all_at(record, journal.length);
        fault::write("follow/intents/write", &record, write)
            .context(|| self.what("write", journal.turn))?;
        journal.length += RECORD_SIZE as u64;
        journal.sequence = journal.sequence.saturating_add(1);
        journal.dirty = true;
        Ok(())
    }

    /// Begins the other file: from now on the WAL has other salts, of which `local` is the first
    /// state. On disk when it returns.
    pub fn begin(&self, upstream: UpstreamPos, local: LocalState) -> Result<()> {
        self.sync()?;
        {
            let mut journal = lock(&self.state);
            let turn = 1 - journal.turn;
            let file = open_file(&self.directory.join(FILE_NAMES[turn]))?;
            fault::at("follow/intents/truncate")
                .and_then(|()| file.set_len(0))
                .context(|| self.what("truncate", turn))?;
            journal.turn = turn;
            journal.file = Arc::new(file);
            journal.length = 0;
        }
        self.append(upstream, local)?;
        self.sync()
    }

    /// Makes what was appended survive a loss of power.
    pub fn sync(&self) -> Result<()> {
        let (file, turn) = {
            let mut journal = lock(&self.state);
            if !std::mem::take(&mut journal.dirty) {
                return Ok(());
            }
            (Arc::clone(&journal.file), journal.turn)
        };
        fault::at("follow/intents/sync")
            .and_then(|()| file.sync_data())
            .context(|| self.what("sync", turn))
    }

    fn what(&self, verb: &str, turn: usize) -> String {
        format!("cannot {verb} {}", self.directory.join(FILE_NAMES[turn]).display())
    }
}

fn open_file(path: &Path) -> Result<File> {
    let mut options = OpenOptions::new();
    let options = options.read(true).write(true).create(true).truncate(false);
    fault::at("follow/intents/open")
        .and_then(|()| open_beside(path, options))
        .context(|| format!("cannot open {}", path.display()))
}

/// Every valid record up to the first that is not; none if there is no file.
fn read_records(path: &Path, mut each: impl FnMut(Intent)) -> Result<()> {
    let what = || format!("cannot read {}", path.display());
    let file = match fault::at("follow/intents/open").and_then(|()| read_beside(path)) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        other => other.context(what)?,
    };
    let file = Tap::new(file, "follow/intents/read");
    let mut reader = BufReader::with_capacity(RECORD_SIZE * 1024, file);
    let mut bytes = [0; RECORD_SIZE];
    loop {
        match reader.read_exact(&mut bytes) {
            Ok(()) => {}
            Err(error) if error.kind() == std::io::ErrorKind::UnexpectedEof => return Ok(()),
            Err(error) => return Err(error).context(what),
        }
        match Intent::decode(&bytes) {
            Some(intent) => each(intent),
            None => return Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn upstream(offset: u64) -> UpstreamPos {
        let pos = Pos::new(
            Generation::from_bits(7),
            Index::new(3).unwrap(),
            Offset::new(offset).unwrap(),
        );
        let chain = Chain {
            order: ByteOrder::Big,
            page_size: PageSize::MAX,
            salts: [1, 2],
            checksum: Checksum { s0: 3, s1: 4 },
        };
        UpstreamPos { pos, chain: (offset > 0).then_some(chain) }
    }

    fn local(salt: u32, max_frame: u32) -> LocalState {
        let s = max_frame.wrapping_mul(77);
        LocalState { salts: [salt, 9], max_frame, checksum: Checksum { s0: s, s1: s } }
    }

    fn directory(name: &str) -> PathBuf {
        let path = std::env::temp_dir().join(format!("ls-intents-{}-{name}", std::process::id()));
        let _ = std::fs::remove_dir_all(&path);
        std::fs::create_dir_all(&path).unwrap();
        path
    }

    #[test]
    fn records_round_trip_and_any_flipped_bit_shows() {
        for offset in [0, 32, 1 << 40] {
            let intent = Intent { upstream: upstream(offset), local: local(5, 6), sequence: 8 };
            let bytes = intent.encode();
            assert_eq!(Intent::decode(&bytes), Some(intent));
            for bit in 0..RECORD_SIZE * 8 {
                let mut damaged = bytes;
                damaged[bit / 8] ^= 1 << (bit % 8);
                assert_eq!(Intent::decode(&damaged), None, "bit {bit}");
            }
        }
    }

    #[test]
    fn the_last_match_wins_and_no_match_is_unknown() {
        let dir = directory("match");
        let (intents, found) = Intents::open(&dir, Some(local(1, 1))).unwrap();
        assert_eq!(found, None);
        intents.append(upstream(32), local(1, 1)).unwrap();
        intents.append(upstream(64), local(1, 2)).unwrap();
        intents.append(upstream(96), local(1, 2)).unwrap();
        let check = |local, expected| {
            assert_eq!(Intents::open(&dir, Some(local)).unwrap().1, expected);
        };
        check(local(1, 1), Some(upstream(32)));
        check(local(1, 2), Some(upstream(96)));
        check(local(1, 3), None);
        check(local(2, 2), None);
        assert_eq!(Intents::open(&dir, None).unwrap().1, None);
    }

    #[test]
    fn a_new_wal_keeps_the_file_of_the_one_before_and_no_other() {
        let dir = directory("turns");
        let (intents, _) = Intents::open(&dir, None).unwrap();
        for salt in 1..=3 {
            intents.begin(upstream(u64::from(salt) * 32), LocalState::empty([salt, 9])).unwrap();
            intents.append(upstream(u64::from(salt) * 100), local(salt, 4)).unwrap();
        }
        let check = |local, expected| {
            assert_eq!(Intents::open(&dir, Some(local)).unwrap().1, expected);
        };
        check(local(1, 4), None);
        check(local(2, 4), Some(upstream(200)));
        check(LocalState::empty([3, 9]), Some(upstream(96)));
        // Reopened, it goes on in the newest file.
        let (again, _) = Intents::open(&dir, Some(local(3, 4))).unwrap();
        again.append(upstream(500), local(3, 5)).unwrap();
        check(local(3, 5), Some(upstream(500)));
        check(local(2, 4), Some(upstream(200)));
    }

    #[test]
    fn a_torn_tail_is_overwritten() {
        let dir = directory("torn");
        let (intents, _) = Intents::open(&dir, None).unwrap();
        intents.append(upstream(32), local(1, 1)).unwrap();
        let path = dir.join(FILE_NAMES[0]);
        let mut bytes = std::fs::read(&path).unwrap();
        bytes.extend_from_slice(&[0xaa; 40]);
        std::fs::write(&path, bytes).unwrap();
        let (intents, found) = Intents::open(&dir, Some(local(1, 1))).unwrap();
        assert_eq!(found, Some(upstream(32)));
        intents.append(upstream(64), local(1, 2)).unwrap();
        assert_eq!(Intents::open(&dir, Some(local(1, 2))).unwrap().1, Some(upstream(64)));
    }
}
