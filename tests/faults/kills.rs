//! kill -9 again and again, of the primary, its follower and plain processes that write beside it:
//! half of the time when an operation with a name comes, half of the time at any time.
//!
//! Two writers wait for each commit before the next; what they were told must be there for good. A
//! row whose commit was not answered may be there: the next writer tries the same again.
//!
//! | looked at              | when           | must be                                             |
//! |------------------------|----------------|-----------------------------------------------------|
//! | the writers            | always         | never met with an error                             |
//! | the primary, a replica | each round     | have every row that was acknowledged                |
//! | a restored archive     | now and then   | the same                                            |
//! | all of an archive      | in the end     | no hole in a generation, whatever ended it          |
//! | the replica            | in the end     | equals the primary                                  |

use std::cell::Cell;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use crate::build::library;
use crate::cast::Side;
use crate::common::*;
use crate::rounds::a_round_without_faults;

/// Rounds in one folder, with one database.
const ROUNDS: usize = 25;
const MODES: [&str; 4] = ["PASSIVE", "FULL", "RESTART", "TRUNCATE"];
const SIDES: [Side; 2] = [Side::Primary, Side::Follower];

/// A plain process that adds row after row.
struct Writer {
    host: Host,
    stop: Arc<AtomicBool>,
    writes: JoinHandle<()>,
}

impl Writer {
    /// Goes on after the `acked` rows of writer `number` that are there for good.
    fn start(path: &Path, number: usize, acked: &Arc<AtomicU64>) -> Writer {
        let (host, acked) = (Host::plain(), Arc::clone(acked));
        let db = host.open(path);
        let stop = Arc::new(AtomicBool::new(false));
        let asked_to = Arc::clone(&stop);
        let writes = std::thread::spawn(move || {
            while !asked_to.load(Ordering::Relaxed) {
                let n = acked.load(Ordering::SeqCst) + 1;
                let size = 1 + n * 37 % 3000;
                let sql = match n % 64 {
                    0 => format!("PRAGMA wal_checkpoint({})", MODES[n as usize / 64 % 4]),
                    _ => String::new(),
                };
                let add = format!(
                    "INSERT OR IGNORE INTO added VALUES ({number}, {n}, randomblob({size}))"
                );
                for sql in [add, sql].iter().filter(|sql| !sql.is_empty()) {
                    let began = std::time::Instant::now();
                    match db.send(sql).outcome_if_any(DEADLINE) {
                        Some(Ok(_)) => acked.fetch_max(n, Ordering::SeqCst),
                        Some(Err(error)) => {
                            panic!("writer {number}, after {:?}: {sql}: {error}", began.elapsed())
                        }
                        None => return,
                    };
                }
            }
        });
        Writer { host, stop, writes }
    }

    fn kill(self) {
        self.host.kill();
        self.writes.join().unwrap();
    }

    fn finish(self) {
        self.stop.store(true, Ordering::Relaxed);
        self.writes.join().unwrap();
    }
}

/// The primary or the follower.
struct Actor {
    host: Host,
    db: Db,
}

struct Storm {
    folder: Folder,
    address: String,
    acked: [Arc<AtomicU64>; 2],
    writers: Vec<Writer>,
    actors: Vec<Actor>,
    rng: Rng,
    restored: u32,
    /// Kills at names, and at any time.
    at_names: Cell<u32>,
    at_any_time: Cell<u32>,
}

impl Storm {
    fn begin(rng: Rng) -> Storm {
        let folder = Folder::new("kills");
        let host = Host::plain();
        host.open(folder.file("p.db")).script(
            "PRAGMA journal_mode = WAL;
             CREATE TABLE added(w INTEGER, n INTEGER, pad BLOB, PRIMARY KEY (w, n));",
        );
        drop(host);
        let mut storm = Storm {
            address: format!("127.0.0.1:{}", free_port()),
            acked: Default::default(),
            writers: Vec::new(),
            actors: Vec::new(),
            rng,
            folder,
            restored: 0,
            at_names: Cell::new(0),
            at_any_time: Cell::new(0),
        };
        for side in SIDES {
            let actor = storm.started(side, None);
            storm.actors.push(actor);
        }
        for number in 0..2 {
            let writer = Writer::start(&storm.folder.file("p.db"), number, &storm.acked[number]);
            storm.writers.push(writer);
        }
        storm
    }

    fn archive(&self) -> String {
        format!("file://{}", self.folder.file("archive").display())
    }

    /// A process at work; with a plan it may die on the way there, and another is started.
    fn started(&self, side: Side, plan: Option<&str>) -> Actor {
        let host = Host::loading(library());
        let name = if side == Side::Primary { "p.db" } else { "r.db" };
        let db = host.open(self.folder.file(name));
        if let Some(plan) = plan {
            db.text(&format!("SELECT litestream_fault('{plan}')"));
        }
        let archiving = r#"{"sync_interval": "20ms"}"#;
        let calls = match side {
            Side::Primary => vec![
                format!("SELECT litestream_serve('{}')", self.address),
                format!("SELECT litestream_replicate('{}', '{archiving}')", self.archive()),
            ],
            _ => vec![format!("SELECT litestream_follow('http://{}')", self.address)],
        };
        for call in calls {
            let answered = db.send(&call).outcome_if_any(DEADLINE);
            if let Some(Err(error)) = &answered {
                panic!("{call}: {error}");
            }
            if answered.is_none() {
                self.at_names.update(|count| count + 1);
                return self.started(side, None);
            }
        }
        Actor { host, db }
    }

    /// A kill at the Nth operation of a name that this side has.
    fn plan(&mut self, side: Side) -> String {
        let points = &a_round_without_faults()[&side].points;
        let name = points.keys().nth(self.rng.index(points.len())).unwrap();
        json!({"point": name, "nth": 1, "kind": "kill"}).to_string()
    }

    fn round(&mut self) {
        match self.rng.below(4) {
            0 => {
                let number = self.rng.index(2);
                self.pause();
                let path = self.folder.file("p.db");
                self.writers.remove(number).kill();
                self.at_any_time.update(|count| count + 1);
                let next = Writer::start(&path, number, &self.acked[number]);
                self.writers.insert(number, next);
            }
            1 => self.strike(1),
            2 => self.strike(0),
            // The writers and the primary that is to take over from them, at once.
            _ => {
                self.strike(0);
                self.strike(1);
            }
        }
        self.check();
    }

    fn pause(&mut self) {
        // Not to wait for anything: the moment of the next blow is what is random here.
        std::thread::sleep(Duration::from_millis(self.rng.below(40)));
    }

    /// The primary (0) or the follower (1) dies, and another takes its place.
    fn strike(&mut self, number: usize) {
        let side = SIDES[number];
        if self.rng.below(2) == 0 {
            let plan = self.plan(side);
            let armed = format!("SELECT litestream_fault('{plan}')");
            // It may die before it has answered.
            let _told = self.actors[number].db.send(&armed).outcome_if_any(DEADLINE);
        }
        self.pause();
        let asked = self.actors[number].db.send("SELECT 1").outcome_if_any(DEADLINE);
        let met = asked.is_none();
        (if met { &self.at_names } else { &self.at_any_time }).update(|count| count + 1);
        let plan = (self.rng.below(2) == 0).then(|| self.plan(side));
        self.actors.remove(number).host.kill();
        let next = self.started(side, plan.as_deref());
        self.actors.insert(number, next);
        // What it did not get to on its way is over.
        let over = "SELECT litestream_fault('{}')";
        if self.actors[number].db.send(over).outcome_if_any(DEADLINE).is_none() {
            self.actors.remove(number).host.kill();
            let next = self.started(side, None);
            self.actors.insert(number, next);
        }
    }

    /// How many rows of each writer were acknowledged.
    fn told(&self) -> [u64; 2] {
        self.acked.each_ref().map(|acked| acked.load(Ordering::SeqCst))
    }

    fn check(&mut self) {
        let told = self.told();
        let pos = self.actors[0].db.text("SELECT litestream_pos()");
        assert_has(&self.actors[0].db, told, "the primary");
        let wait = format!("SELECT litestream_wait('{pos}', 55000)");
        assert_eq!(self.actors[1].db.int(&wait), 1, "the replica never reached {pos}");
        assert_has(&self.actors[1].db, told, "the replica");
        if self.rng.below(10) == 0 {
            self.check_archive();
        }
    }

    fn check_archive(&mut self) {
        let told = self.told();
        let primary = &self.actors[0].db;
        primary.text("SELECT litestream_sync(55000)");
        let path = self.folder.file("copy.db");
        primary.text(&format!(
            "SELECT litestream_restore('{}', '{}')",
            self.archive(),
            path.display()
        ));
        let plain = Host::plain();
        let copy = plain.open(&path);
        assert_has(&copy, told, "the archive");
        copy.close();
        std::fs::remove_file(path).unwrap();
        self.restored += 1;
    }

    fn end(mut self) {
        for writer in std::mem::take(&mut self.writers) {
            writer.finish();
        }
        self.check_archive();
        assert_same(&self.actors[0].db, &self.actors[1].db);
        let archives = read_archive(&self.folder.file("archive"));
        archives.iter().for_each(Archived::assert_no_gap);
        let current = self.actors[0].db.text("SELECT litestream_sync()");
        let is_current = |it: &&Archived| it.generation == generation(&current);
        archives.iter().find(is_current).unwrap().assert_whole();
        println!(
            "{} killed at names, {} at any time; {:?} rows, {} restores, {} generations",
            self.at_names.get(),
            self.at_any_time.get(),
            self.told(),
            self.restored,
            archives.len()
        );
    }
}

/// All rows up to the last acknowledged, and no gap in what came after.
fn assert_has(db: &Db, told: [u64; 2], what: &str) {
    for (number, told) in told.into_iter().enumerate() {
        let sql = format!("SELECT count(*), ifnull(max(n), 0) FROM added WHERE w = {number}");
        let row = &db.rows(&sql)[0];
        let (count, last) = (row[0].as_u64().unwrap(), row[1].as_u64().unwrap());
        assert!(count == last && last >= told, "{what}: {count} rows, last {last} of {told}");
    }
}

#[test]
fn killed_again_and_again() {
    let rounds: usize = scaled(12, 1000);
    let stages = scaled(1, 4);
    let turns = rounds.div_ceil(ROUNDS);
    std::thread::scope(|scope| {
        for stage in 0..stages {
            scope.spawn(move || {
                for turn in (stage..turns).step_by(stages) {
                    let mut storm = Storm::begin(Rng::of(seed() ^ ((turn as u64) << 40)));
                    for _ in 0..ROUNDS.min(rounds - turn * ROUNDS) {
                        storm.round();
                    }
                    storm.end();
                }
            });
        }
    });
}
