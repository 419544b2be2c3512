//! One round: a new database is served, archived, followed and restored, while operations fail or
//! processes die as the cast says; then all is mended and looked at.
//!
//! | looked at                    | must be                                                       |
//! |------------------------------|---------------------------------------------------------------|
//! | each process                 | alive, unless it was to be killed; no panic in its messages   |
//! | an operation that failed     | seen in a table or as the error of a call (but points.rs)     |
//! | the primary                  | has all that was committed                                    |
//! | the archive after a kill     | restores to no less than what was synced                      |
//! | readers of the replica       | saw whole transactions, and never the past                    |
//! | at the end                   | replica and restored copy equal the primary; no hole          |

mod after;
mod place;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::build::library;
use crate::cast::{Cast, Met, Side};
use crate::common::servers::S3Server;
use crate::common::*;
use crate::points::is_best_effort;

/// How long a call may take that an operation made fail.
const CALL_MAX: Duration = DEADLINE;
/// How long to wait for what a failed operation may have prevented.
const PREVENTED_MAX: Duration = Duration::from_secs(1);

const VERIFY: &str = "SELECT litestream_verify('{\"timeout_ms\": 5000}')";

/// The processes, one round after the other.
pub struct Stage {
    folder: Folder,
    hosts: BTreeMap<Side, Host>,
    plain: Host,
    rounds: u32,
    /// Where the archive is, if not in a folder.
    server: Option<S3Server>,
}

impl Stage {
    /// With the archive in a folder.
    pub fn new() -> Stage {
        Stage::with(None)
    }

    /// With the archive in a bucket.
    pub fn with_server() -> Stage {
        Stage::with(Some(S3Server::rclone()))
    }

    fn with(server: Option<S3Server>) -> Stage {
        let start = |side| (side, Host::loading(library()));
        Stage {
            folder: Folder::new("faults"),
            hosts: crate::cast::SIDES.into_iter().map(start).collect(),
            plain: Host::plain(),
            rounds: 0,
            server,
        }
    }

    /// Plays a round and checks everything. What each side met.
    pub fn play(&mut self, cast: &Cast) -> BTreeMap<Side, Met> {
        self.rounds += 1;
        let folder = self.folder.file(&format!("round-{}-", self.rounds));
        std::fs::create_dir(&folder).unwrap();
        println!("{}{cast}", if self.server.is_some() { "ON_SERVER=1 " } else { "" });
        let met = Round::begin(self, cast, &folder).play();
        std::fs::remove_dir_all(folder).unwrap();
        met
    }
}

struct Round<'s> {
    stage: &'s mut Stage,
    cast: &'s Cast,
    folder: &'s Path,
    address: String,
    dbs: BTreeMap<Side, Db>,
    /// The moment it began, by each side's own clock.
    since: BTreeMap<Side, String>,
    /// Errors of calls.
    said: BTreeMap<Side, Vec<String>>,
    met: BTreeMap<Side, Met>,
    armed: Option<Side>,
    reader: Option<Work>,
    /// Rows committed, and those of them that were synced.
    rows: i64,
    synced: i64,
    /// Whether a row is being committed: it may be there after a kill, or not.
    commits: bool,
}

impl<'s> Round<'s> {
    fn begin(stage: &'s mut Stage, cast: &'s Cast, folder: &'s Path) -> Round<'s> {
        let mut round = Round {
            stage,
            cast,
            folder,
            address: format!("127.0.0.1:{}", free_port()),
            dbs: BTreeMap::new(),
            since: BTreeMap::new(),
            said: BTreeMap::new(),
            met: BTreeMap::new(),
            armed: None,
            reader: None,
            rows: 0,
            synced: 0,
            commits: false,
        };
        for side in crate::cast::SIDES {
            round.open(side);
        }
        let primary = &round.dbs[&Side::Primary];
        primary.run("PRAGMA page_size = 512").unwrap();
        make_ledger(primary);
        round
    }

    fn file(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }

    fn open(&mut self, side: Side) {
        let path = match side {
            Side::Primary => self.file("p.db"),
            Side::Follower => self.file("r.db"),
            Side::Restorer => PathBuf::from(":memory:"),
        };
        let db = self.stage.hosts[&side].open(path);
        let now = "SELECT strftime('%Y-%m-%dT%H:%M:%fZ', 'now')";
        self.since.insert(side, db.text(now));
        self.dbs.insert(side, db);
    }

    // --- calls that may fail ------------------------------------------------------------------

    /// A call that may fail, or never come back. Its first value.
    fn call(&mut self, side: Side, sql: &str) -> Option<Value> {
        match self.dbs[&side].send(sql).outcome_if_any(CALL_MAX) {
            Some(Ok(rows)) => Some(rows[0][0].clone()),
            Some(Err(error)) => {
                self.said.entry(side).or_default().push(format!("{sql}: {error}"));
                None
            }
            None => {
                assert!(self.cast.kills(side) && self.armed == Some(side), "{side:?} died: {sql}");
                self.revive(side);
                None
            }
        }
    }

    /// A new process in the place of one that was killed.
    fn revive(&mut self, side: Side) {
        self.armed = None;
        self.met.entry(side).or_default().fired = Some("killed".to_owned());
        self.stage.hosts.insert(side, Host::loading(library()));
        self.open(side);
        match side {
            Side::Primary => {
                self.check_synced();
                self.begin_primary();
            }
            Side::Follower => self.follow(),
            Side::Restorer => {}
        }
    }

    fn arm(&mut self, side: Side) {
        if let Some(plan) = self.cast.0.get(&side) {
            self.dbs[&side].text(&format!("SELECT litestream_fault('{plan}')"));
            self.armed = Some(side);
        }
    }

    /// From now on nothing fails. Looks whether what did was told.
    fn disarm(&mut self, side: Side) {
        if self.armed == Some(side)
            && let Some(told) = self.call(side, "SELECT litestream_fault('{}')")
        {
            self.met.insert(side, Met::of(told.as_str().unwrap()));
        }
        self.armed = None;
        let fired = self.met.get(&side).and_then(|met| met.fired.clone());
        let kind = self.cast.0.get(&side).map(|plan| plan["kind"].clone()).unwrap_or_default();
        if let Some(point) =
            fired.filter(|point| !is_best_effort(point) && !self.is_tried_again(side, point))
            && kind != "kill"
            && kind != "hang"
        {
            let texts = || self.texts(side).into_iter().find(|text| marked(text, &kind));
            until(&format!("{point} to be told: {:?}", self.said), texts);
        }
    }

    /// Whether what such an operation belongs to is done again without a word, unless it fails
    /// again: a request to an archive's server, or an acknowledgement. The first of all connects.
    fn is_tried_again(&self, side: Side, point: &str) -> bool {
        let plan = &self.cast.0[&side];
        let is_first = plan["nth"] == 1 && self.stage.server.is_none();
        point.starts_with("transport/") && plan["sticky"] != true && !is_first
    }

    /// Everything a side says about this round.
    fn texts(&self, side: Side) -> Vec<String> {
        let like = format!("LIKE '%{}%'", self.folder.file_name().unwrap().to_str().unwrap());
        let since = &self.since[&side];
        let sql = format!(
            "SELECT error FROM litestream_databases WHERE path {like} AND error IS NOT NULL
             UNION ALL SELECT error FROM litestream_replicas
                        WHERE database {like} AND error IS NOT NULL
             UNION ALL SELECT message FROM litestream_log
                        WHERE database {like} OR (database IS NULL AND at >= '{since}')"
        );
        // A first snapshot that failed leaves no database to ask.
        let asked = self.stage.hosts[&side].open(":memory:");
        let rows = asked.rows(&sql);
        asked.close();
        let texts = rows.into_iter().map(|row| row[0].as_str().unwrap().to_owned());
        texts.chain(self.said.get(&side).cloned().unwrap_or_default()).collect()
    }

    // --- the play -----------------------------------------------------------------------------

    fn play(mut self) -> BTreeMap<Side, Met> {
        let plays = |side| self.cast.0.contains_key(&side);
        let (follower, restorer) = (plays(Side::Follower), plays(Side::Restorer));
        self.primary_plays();
        if follower {
            self.follower_plays();
        }
        if restorer {
            self.restorer_plays();
        }
        self.compare();
        for side in crate::cast::SIDES {
            let panics = self.texts(side).into_iter().find(|text| text.contains("panic"));
            assert_eq!(panics, None, "{side:?}");
        }
        for side in [Side::Follower, Side::Primary] {
            self.dbs[&side].int("SELECT litestream_stop()");
        }
        for (_, db) in self.dbs {
            db.close();
        }
        self.met
    }

    fn primary_plays(&mut self) {
        self.arm(Side::Primary);
        self.begin_primary();
        self.follow();
        self.add(100);
        self.sync();
        self.call(Side::Primary, "SELECT litestream_checkpoint('RESTART')");
        self.add(100);
        self.watch();
        // It waits for the archive as long as that takes.
        if self.cast.0.get(&Side::Primary).is_none_or(|plan| plan["sticky"] != true) {
            self.call(Side::Primary, "SELECT litestream_snapshot()");
        }
        self.add(300_000);
        self.sync();
        // Of the primary, what the follower asks for and what it has archived.
        self.call(Side::Follower, VERIFY);
        self.call(Side::Primary, VERIFY);
        self.call(Side::Primary, "SELECT litestream_stop()");
        self.begin_primary();
        self.add(100);
        self.sync();
        self.disarm(Side::Primary);
        self.mend(Side::Primary);
    }

    fn follower_plays(&mut self) {
        self.call(Side::Follower, "SELECT litestream_stop()");
        self.stop_reading();
        for name in ["r.db", "r.db-wal", "r.db-shm"] {
            let _not_there = std::fs::remove_file(self.file(name));
        }
        let _not_there = std::fs::remove_dir_all(self.file("r.db-litestream"));
        self.dbs.remove(&Side::Follower).unwrap().close();
        self.open(Side::Follower);
        self.arm(Side::Follower);
        self.follow();
        self.watch();
        self.add(600_000);
        self.caught_up();
        self.restarted();
        self.add(100);
        self.caught_up();
        self.call(Side::Follower, "SELECT litestream_stop('follow')");
        self.call(Side::Follower, "SELECT litestream_pos()");
        self.add(100);
        self.follow();
        self.caught_up();
        self.call(Side::Follower, VERIFY);
        // Nothing tells where it is: it is compared with a snapshot.
        self.call(Side::Follower, "SELECT litestream_stop('follow')");
        for name in ["intents-0", "intents-1"] {
            let _not_there = std::fs::remove_file(self.file("r.db-litestream").join(name));
        }
        self.follow();
        self.caught_up();
        self.call(Side::Follower, "SELECT litestream_stop('follow')");
        self.add(100);
        self.sync();
        let options = self.archive_options(json!({"poll_interval": "50ms", "wait_ms": 100}));
        let follow = format!("SELECT litestream_follow('{}', '{options}')", self.archive());
        self.call(Side::Follower, &follow);
        self.caught_up();
        self.call(Side::Follower, "SELECT litestream_stop('follow')");
        self.follow();
        self.disarm(Side::Follower);
        self.mend(Side::Follower);
    }

    fn restorer_plays(&mut self) {
        self.sync();
        let path = self.file("copy.db");
        let restore = self.restore_to(&path);
        self.arm(Side::Restorer);
        if self.call(Side::Restorer, &restore).is_none() {
            self.disarm(Side::Restorer);
            // What failed at the very end may have left the whole file.
            if path.exists() {
                assert_eq!(self.rows_of(&path), self.rows);
                std::fs::remove_file(&path).unwrap();
            }
            self.dbs[&Side::Restorer].text(&restore);
        }
        self.disarm(Side::Restorer);
        assert_eq!(self.rows_of(&path), self.rows);
    }

    /// Serves and archives.
    fn begin_primary(&mut self) {
        let serve = format!("SELECT litestream_serve('{}', '{{\"wait_ms\": 5000}}')", self.address);
        self.call(Side::Primary, &serve);
        let options = self.archive_options(json!({"sync_interval": "20ms", "wait_ms": 5000}));
        let replicate = format!("SELECT litestream_replicate('{}', '{options}')", self.archive());
        self.call(Side::Primary, &replicate);
    }

    fn follow(&mut self) {
        let options = r#"{"wait_ms": 200}"#;
        let follow = format!("SELECT litestream_follow('http://{}', '{options}')", self.address);
        self.call(Side::Follower, &follow);
    }

    /// Adds a row with so many bytes, by a statement of the application's own.
    fn add(&mut self, bytes: u32) {
        let sql = format!(
            "WITH one(n, pad) AS (SELECT n + 1, randomblob({bytes}) FROM ledger)
             INSERT INTO entry SELECT n, pad FROM one"
        );
        // The counter and the row in one statement each, in one transaction.
        let begin = "BEGIN IMMEDIATE";
        let count = format!("UPDATE ledger SET n = n + 1, bytes = bytes + {bytes}");
        for _ in 0..3 {
            let before = self.rows;
            let made = [begin, &sql, &count];
            if made.iter().all(|sql| self.call(Side::Primary, sql).is_some()) {
                self.commits = true;
                let done = self.call(Side::Primary, "COMMIT").is_some();
                self.commits = false;
                self.rows += i64::from(done);
            }
            if self.rows > before {
                return;
            }
        }
        panic!("the application cannot write: {:?}", self.said);
    }

    fn sync(&mut self) {
        let rows = self.rows;
        if self.call(Side::Primary, "SELECT litestream_sync(5000)").is_some() {
            self.synced = rows;
        }
    }

    /// Waits for the replica, but not if it cannot get there.
    fn caught_up(&mut self) {
        if let Some(pos) = self.call(Side::Primary, "SELECT litestream_pos()") {
            let wait = format!("SELECT litestream_wait({pos}, 600)").replace('"', "'");
            self.call(Side::Follower, &wait);
        }
    }

    /// Waits until the replica's own WAL, which is long now, has started over, if it does.
    fn restarted(&self) {
        let second = self.file("r.db-litestream/intents-1");
        let fails = self.cast.0.get(&Side::Follower).is_some_and(|plan| plan["nth"] != json!(null));
        let begin = std::time::Instant::now();
        let is_empty = || std::fs::metadata(&second).map_or(true, |meta| meta.len() == 0);
        while is_empty() && begin.elapsed() < if fails { PREVENTED_MAX } else { DEADLINE } {
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// Begins to read the replica, if there is something to read.
    fn watch(&mut self) {
        let path = self.file("r.db");
        if self.reader.is_none() {
            // It may die meanwhile, which the next call finds.
            let reads = || self.dbs[&Side::Follower].send("SELECT n FROM ledger");
            let seen = (0..40).find_map(|_| {
                std::thread::sleep(Duration::from_millis(10));
                reads().outcome_if_any(CALL_MAX)?.ok()
            });
            if seen.is_some() {
                let work = json!({"path": path, "pause": 0.002});
                self.reader = Some(self.stage.plain.work("ledger_reader", work));
            }
        }
    }

    fn stop_reading(&mut self) {
        if let Some(reader) = self.reader.take() {
            let report = reader.report();
            assert_eq!(report["wrong"], json!([]), "{report}");
        }
    }
}

/// Whether a text tells of a failure of this kind, and not of another that came by itself.
fn marked(text: &str, kind: &Value) -> bool {
    let (code, of_sqlite) = match kind.as_str() {
        Some("enospc" | "short") => ("os error 28)", "disk is full"),
        Some("reset") => ("os error 104)", "disk I/O error"),
        _ => ("os error 5)", "disk I/O error"),
    };
    text.contains(code) || text.contains(of_sqlite)
}
