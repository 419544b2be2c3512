//! A primary, its archive and a replica at work while everything they ask of their files is
//! recorded.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use super::common::*;
use super::disk::{Disk, Image, Moment};
use super::journal::{self, CALLS, Event, What};

/// What the primary was after one commit.
#[derive(Clone)]
pub struct State {
    pub pos: String,
    pub content: String,
}

/// Every state a database ever was in, by the number in its ledger.
pub type States = BTreeMap<i64, State>;

/// A host of which everything it asks of its files is recorded.
pub struct Recorded {
    pub host: Host,
    path: PathBuf,
}

impl Recorded {
    /// Needs strace, and the right to trace a process of one's own.
    pub fn start(path: PathBuf) -> Recorded {
        let output = path.display().to_string();
        let trace = format!("trace={CALLS}");
        let words = ["strace", "-D", "-f", "-qq", "-y", "-xx", "-ttt", "--seccomp-bpf"];
        let more = ["-s", "268435456", "-e", &trace, "-e", "signal=none", "-o", &output];
        let command: Vec<&str> = words.into_iter().chain(more).collect();
        Recorded { host: Host::under(&command), path }
    }

    /// What happened below `folder` before `end` was said on `db`.
    pub fn events(&self, db: &Db, folder: &Path) -> Vec<Event> {
        mark(db, "end");
        // All of it is read once: what says that it is whole is looked for in what was added.
        let wanted = journal::hexadecimal(b"mark <end>");
        let (mut file, mut added, mut said) = (File::open(&self.path).unwrap(), Vec::new(), false);
        until("the recording to be whole", || {
            file.read_to_end(&mut added).unwrap();
            said |= added.windows(wanted.len()).any(|part| part == wanted.as_bytes());
            added.drain(..added.len().saturating_sub(wanted.len()));
            if !said {
                return None;
            }
            let mut events = journal::read(&self.path, folder);
            let is_end = |event: &Event| marks(event).is_some_and(|said| said == "end");
            let end = events.iter().position(is_end)?;
            events.truncate(end);
            Some(events)
        })
    }
}

/// Leaves a mark in the recording.
pub fn mark(db: &Db, text: &str) {
    db.text(&format!("SELECT 'mark <{text}>'"));
}

fn marks(event: &Event) -> Option<&str> {
    let What::Mark(said) = &event.what else { return None };
    Some(said.split_once("mark <")?.1.split_once('>')?.0)
}

/// A recording read: disks, and what was said when.
pub struct Story {
    pub events: Vec<Event>,
    pub marks: Vec<(Moment, String)>,
}

impl Story {
    pub fn new(events: Vec<Event>) -> Story {
        let said = events.iter().filter_map(|event| Some((event.ended, marks(event)?.to_owned())));
        Story { marks: said.collect(), events }
    }

    pub fn disk(&self, folder: &Path) -> Disk {
        self.disk_on(folder, &Image::new())
    }

    pub fn disk_on(&self, folder: &Path, base: &Image) -> Disk {
        Disk::new(folder, base, &self.events)
    }

    /// The last number said with `word` before a moment.
    pub fn said(&self, word: &str, at: Moment) -> Option<i64> {
        let before = self.marks.iter().filter(|(when, _)| *when < at);
        before.filter_map(|(_, said)| said.strip_prefix(word)?.trim().parse().ok()).next_back()
    }

    /// A moment after `word` was said: any change of a file is as likely.
    pub fn moment(&self, after: &str, rng: &mut Rng) -> Moment {
        let begin = self.marks.iter().find(|(_, said)| said == after);
        let begin = begin.map_or(0, |(at, _)| *at);
        let changes = |event: &&Event| !matches!(event.what, What::Mark(_)) && event.ended > begin;
        let all: Vec<Moment> =
            self.events.iter().filter(changes).map(|one| one.ended + 1).collect();
        all[rng.index(all.len())]
    }

    /// When a moment of this recording was, in microseconds.
    pub fn time(&self, at: Moment) -> u64 {
        let before = self.events.iter().take_while(|event| event.ended < at);
        before.map(|event| event.time).max().unwrap_or(0)
    }

    /// The moment of this recording at a time.
    pub fn at(&self, time: u64) -> Moment {
        let before = self.events.iter().filter(|event| event.time <= time);
        before.map(|event| event.ended + 1).max().unwrap_or(0)
    }
}

/// The story of a primary, its archive and a replica. The primary is still there.
pub struct Scene {
    pub folder: Folder,
    pub synchronous: &'static str,
    pub states: States,
    pub primary: Story,
    pub replica: Story,
    pub db: Db,
    pub url: String,
    /// Held: they serve.
    _primary: Recorded,
}

impl Scene {
    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.file(name)
    }

    /// Records `rounds` commits at a primary with this setting of `PRAGMA synchronous`.
    pub fn record(synchronous: &'static str, page_size: u32, rounds: i64, rng: &mut Rng) -> Scene {
        let folder = Folder::new("power");
        for name in ["p", "r", "a"] {
            std::fs::create_dir(folder.file(name)).unwrap();
        }
        let primary = Recorded::start(folder.file("primary.trace"));
        let db = primary.host.open(folder.file("p/p.db"));
        db.script(&format!("PRAGMA page_size = {page_size}"));
        make_ledger(&db);
        db.script(&format!("UPDATE ledger SET keep = 20; PRAGMA synchronous = {synchronous}"));
        let url = serve(&db);
        let archive = format!("file://{}", folder.file("a").display());
        db.text(&format!(
            "SELECT litestream_replicate('{archive}', '{{\"sync_interval\": 0.05}}')"
        ));
        let recorded = Recorded::start(folder.file("replica.trace"));
        let replica = recorded.host.open(folder.file("r/r.db"));
        mark(&replica, "begin");
        follow(&replica, &url);
        // From here on even a primary that never syncs has its tables.
        db.text("SELECT litestream_checkpoint('TRUNCATE')");
        let mut states = States::from([(0, state(&db))]);
        mark(&db, "begin");
        for n in 1..=rounds {
            db.script(&transaction(rng));
            mark(&db, &format!("n {n}"));
            states.insert(n, state(&db));
            meddle(&db, &replica, n, rng);
        }
        catch_up(&db, &replica);
        let story = Story::new(recorded.events(&replica, &folder.file("r")));
        recorded.host.kill();
        let whole = Story::new(primary.events(&db, folder.file("p").parent().unwrap()));
        Scene {
            synchronous,
            states,
            primary: whole,
            replica: story,
            db,
            url,
            _primary: primary,
            folder,
        }
    }
}

/// What else goes on between two commits.
fn meddle(db: &Db, replica: &Db, n: i64, rng: &mut Rng) {
    match rng.below(16) {
        0 | 1 => {
            db.text("SELECT litestream_sync()");
            mark(db, &format!("synced {n}"));
        }
        2 => drop(db.text("SELECT litestream_checkpoint('TRUNCATE')")),
        3 => drop(db.text("SELECT litestream_checkpoint('PASSIVE')")),
        4 => drop(db.text("SELECT litestream_snapshot()")),
        5 => drop(catch_up(db, replica)),
        // The threads of the library get their turn.
        6..9 => std::thread::sleep(std::time::Duration::from_millis(rng.below(40))),
        _ => {}
    }
}

/// What the database is now.
pub fn state(db: &Db) -> State {
    State { pos: db.text("SELECT litestream_pos()"), content: db.content() }
}

/// The next transaction of the ledger (tests/py/work.py): mostly small.
pub fn transaction(rng: &mut Rng) -> String {
    let size = if rng.below(8) == 0 { 20_000 + rng.below(60_000) } else { 1 + rng.below(3000) };
    format!(
        "BEGIN IMMEDIATE;
         UPDATE ledger SET n = n + 1, bytes = bytes + {size} - (SELECT ifnull(sum(length(pad)), 0)
            FROM entry WHERE entry.n <= ledger.n + 1 - keep);
         INSERT INTO entry SELECT n, randomblob({size}) FROM ledger;
         DELETE FROM entry WHERE n <= (SELECT n - keep FROM ledger);
         COMMIT"
    )
}
