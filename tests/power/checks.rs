//! What must hold of an image, whatever of the disk was lost.

use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};

use litestream::pos::Pos;

use super::common::*;
use super::disk::{self, Image};
use super::scene::{State, States, state, transaction};

/// How often what happened.
#[derive(Debug, Default)]
pub struct Tally {
    pub primaries: u32,
    /// Histories that went on, and new ones.
    pub continued: u32,
    pub begun: u32,
    /// With synchronous = OFF SQLite may lose the database itself.
    pub damaged: u32,
    pub replicas: u32,
    /// Replicas that had nothing to show yet.
    pub unborn: u32,
    pub resumed: u32,
    pub resynchronised: u32,
    /// Replicas that said where they are before anybody followed.
    pub claims: u32,
    pub archives: u32,
    pub restored: u32,
    pub second: u32,
}

/// What a plain SQLite sees.
#[derive(Debug)]
enum Look {
    Nothing,
    Damaged(String),
    At(i64, String),
}

/// Hosts that open one image after another.
pub struct Bench<'f> {
    plain: Host,
    servers: Host,
    pub followers: Host,
    folder: &'f Folder,
    made: u32,
}

impl<'f> Bench<'f> {
    pub fn new(folder: &'f Folder) -> Bench<'f> {
        let (plain, servers, followers) = (Host::plain(), Host::app(), Host::app());
        Bench { plain, servers, followers, folder, made: 0 }
    }

    /// A folder for the next image.
    pub fn place(&mut self) -> PathBuf {
        self.made += 1;
        let place = self.folder.file(&format!("image-{}", self.made));
        fs::create_dir(&place).unwrap();
        place
    }

    /// Opens a copy of an image's database as any application would.
    fn look(&self, image: &Image, name: &str, place: &Path) -> Look {
        let folder = place.join(format!("look-{name}"));
        disk::write(image, &folder);
        let path = folder.join(name);
        if fs::metadata(&path).map_or(0, |meta| meta.len()) == 0 {
            return Look::Nothing;
        }
        let db = self.plain.open(&path);
        let check = || -> Result<(i64, String), String> {
            let checked = db.run("PRAGMA integrity_check")?;
            if checked != json!([["ok"]]) {
                return Err(checked.to_string());
            }
            let rows = db.run("SELECT n FROM ledger")?;
            Ok((rows[0][0].as_i64().unwrap(), db.content()))
        };
        let found = check();
        db.close();
        match found {
            Ok((n, content)) => Look::At(n, content),
            Err(error) if error == "file is not a database" => Look::Nothing,
            Err(error) => Look::Damaged(error),
        }
    }

    /// The number in the ledger, whose state must be one that was.
    fn look_for_state(
        &self,
        image: &Image,
        name: &str,
        place: &Path,
        states: &States,
    ) -> Result<Option<i64>, String> {
        match self.look(image, name, place) {
            Look::Nothing => Ok(None),
            Look::Damaged(error) => Err(error),
            Look::At(n, content) if states.get(&n).is_some_and(|one| one.content == content) => {
                Ok(Some(n))
            }
            Look::At(n, _) => Err(format!("{n} was never so")),
        }
    }
}

/// A primary's image.
pub struct Lost<'i> {
    pub database: &'i Image,
    /// A follower's disk, which lost nothing and may be ahead.
    pub follower: &'i Image,
    /// The archive, if it was on a disk that lost its power too.
    pub archive: Option<&'i Image>,
    pub states: &'i States,
    /// What the application was told is on the disk.
    pub acknowledged: i64,
    /// The position up to which it was told that the log is on the disk.
    pub synced: Option<&'i str>,
    pub is_off: bool,
}

impl Bench<'_> {
    /// The database is one that was; the log is its history, or begins a new one; whoever followed
    /// and whoever begins to follow gets its content and what comes after.
    pub fn primary(&mut self, lost: &Lost, rng: &mut Rng, tally: &mut Tally) {
        tally.primaries += 1;
        let place = self.place();
        let found = self.look_for_state(lost.database, "p.db", &place, lost.states);
        if lost.is_off && found.is_err() {
            tally.damaged += 1;
            fs::remove_dir_all(place).unwrap();
            return;
        }
        let n = found.unwrap().expect("a database");
        assert!(n >= lost.acknowledged, "{n} of {} acknowledged commits", lost.acknowledged);
        if let Some(synced) = lost.synced {
            assert!(has_log(lost.database, synced), "the log was said to reach {synced}");
        }

        disk::write(lost.database, &place.join("p"));
        disk::write(lost.follower, &place.join("old"));
        let db = self.servers.open(place.join("p/p.db"));
        let url = serve(&db);
        assert_eq!(db.int("SELECT n FROM ledger"), n);
        let generation = generation(&db.text("SELECT litestream_pos()")).to_owned();
        if lost.states.values().any(|state| state.pos.starts_with(&generation)) {
            tally.continued += 1;
        } else {
            tally.begun += 1;
        }
        let archive = lost.archive.map(|archive| {
            disk::write(archive, &place.join("a"));
            let url = format!("file://{}", place.join("a").display());
            db.text(&format!("SELECT litestream_replicate('{url}')"));
            url
        });
        let old = self.followers.open(place.join("old/r.db"));
        follow(&old, &url);
        let new = self.followers.open(place.join("new.db"));
        follow(&new, &url);
        let followers = [old, new];
        followers.iter().for_each(|follower| same(&db, follower));
        db.script(&transaction(rng));
        db.text("SELECT litestream_checkpoint('TRUNCATE')");
        db.script(&transaction(rng));
        followers.iter().for_each(|follower| same(&db, follower));
        if let Some(url) = archive {
            db.text("SELECT litestream_sync()");
            let restored = place.join("restored.db");
            let sql = format!("SELECT litestream_restore('{url}', '{}')", restored.display());
            db.text(&sql);
            let restored = self.plain.open(restored);
            assert_eq!(restored.content(), db.content(), "what the archive has");
            restored.close();
            // Older generations end where the power went: perhaps short of what was wanted there.
            let current = db.text("SELECT litestream_pos()");
            let archives = read_archive(&place.join("a"));
            let current = archives.iter().find(|one| current.starts_with(&one.generation));
            current.expect("the current generation").assert_whole();
        }
        for one in followers.into_iter().chain([db]) {
            one.int("SELECT litestream_stop()");
            one.close();
        }
        fs::remove_dir_all(place).unwrap();
    }

    /// The replica is one that was; it says it is at no position that it has not reached; it goes
    /// on to its upstream's `last` state.
    pub fn replica(&mut self, image: &Image, states: &States, upstream: &str, tally: &mut Tally) {
        tally.replicas += 1;
        let place = self.place();
        let found = self.look_for_state(image, "r.db", &place, states).unwrap();
        disk::write(image, &place.join("r"));
        let path = place.join("r/r.db");
        let db = self.followers.open(&path);
        let claim = db.value("SELECT litestream_pos()");
        if let Some(text) = claim.as_str() {
            tally.claims += 1;
            let claimed = covered(states, text);
            assert!(found >= claimed, "at {found:?}, but says {text}: {claimed:?}");
        }
        let last = states.values().next_back().unwrap();
        db.text(&format!("SELECT litestream_follow('{upstream}')"));
        until("the replica to be its upstream", || (db.content() == last.content).then_some(()));
        assert_eq!(db.text("PRAGMA integrity_check"), "ok");
        until("its position", || (db.text("SELECT litestream_pos()") == last.pos).then_some(()));
        let told = format!(
            "SELECT count(*) FROM litestream_log WHERE message LIKE '%receiving a snapshot%'
             AND database = '{}'",
            path.display()
        );
        match (found, db.int(&told)) {
            (None, _) => tally.unborn += 1,
            (Some(_), 0) => tally.resumed += 1,
            (Some(_), _) => tally.resynchronised += 1,
        }
        db.int("SELECT litestream_stop()");
        db.close();
        fs::remove_dir_all(place).unwrap();
    }

    /// What was said to be archived can be restored, exactly.
    pub fn archive(
        &mut self,
        image: &Image,
        states: &States,
        said: Option<i64>,
        tally: &mut Tally,
    ) {
        tally.archives += 1;
        let place = self.place();
        let folder = place.join("a");
        disk::write(image, &folder);
        let path = place.join("restored.db");
        let db = self.servers.open(":memory:");
        let from = folder.display();
        let sql = format!("SELECT litestream_restore('file://{from}', '{}')", path.display());
        let restored = db.run(&sql);
        if let Some(said) = said {
            restored.as_ref().unwrap();
            let restored = Image::from([("x.db".into(), Some(fs::read(&path).unwrap()))]);
            let n = self.look_for_state(&restored, "x.db", &place, states).unwrap().unwrap();
            assert!(n >= said, "restored {n}, archived was {said}");
            tally.restored += 1;
            assert!(!read_archive(&folder).is_empty());
        } else if restored.is_ok() {
            let restored = Image::from([("x.db".into(), Some(fs::read(&path).unwrap()))]);
            self.look_for_state(&restored, "x.db", &place, states).unwrap();
        }
        db.close();
        fs::remove_dir_all(place).unwrap();
    }
}

/// Whether the log in an image reaches a position, whole from the beginning of its index.
fn has_log(image: &Image, synced: &str) -> bool {
    let pos: Pos = synced.parse().unwrap();
    let root = Path::new("p.db-litestream");
    let current = image.get(&root.join("generation")).cloned().flatten().unwrap_or_default();
    let index = format!("generations/{}/wal/{}", pos.generation, pos.index);
    let mut end = 0;
    for (path, bytes) in image.range(root.join(&index)..) {
        let Ok(name) = path.strip_prefix(root.join(&index)) else { break };
        let Some(offset) = name.to_str().and_then(|name| name.strip_suffix(".wal.lz4")) else {
            continue;
        };
        let mut content = Vec::new();
        let frame = bytes.as_deref().unwrap();
        let whole = lz4_flex::frame::FrameDecoder::new(frame).read_to_end(&mut content);
        if whole.is_err() || u64::from_str_radix(offset, 16) != Ok(end) {
            break;
        }
        end += content.len() as u64;
    }
    current == format!("{}\n", pos.generation).as_bytes() && end >= pos.offset.get()
}

/// The last state that a position of its history covers.
fn covered(states: &States, text: &str) -> Option<i64> {
    let place = |pos: &str| {
        let pos: Pos = pos.parse().unwrap();
        (pos.generation, pos.index, pos.offset)
    };
    let claimed = place(text);
    let reached = |state: &State| {
        let (generation, index, offset) = place(&state.pos);
        generation == claimed.0 && (index, offset) <= (claimed.1, claimed.2)
    };
    states.iter().rev().find(|(_, state)| reached(state)).map(|(n, _)| *n)
}

/// Positions of two histories may read the same, so the content decides.
fn same(primary: &Db, replica: &Db) {
    let wanted = state(primary);
    until("the replica to be its upstream", || (replica.content() == wanted.content).then_some(()));
    assert_eq!(replica.text("PRAGMA integrity_check"), "ok");
    until("its position", || {
        (replica.value("SELECT litestream_pos()") == wanted.pos).then_some(())
    });
}
