//! An archive with one object damaged: the right content or an error that names the object, never a
//! wrong database, and nothing left behind.

use std::fs;
use std::path::{Path, PathBuf};

use crate::common::*;
use crate::support::*;

/// Every object of an archive.
fn objects(folder: &Path) -> Vec<PathBuf> {
    let (mut pending, mut found) = (vec![folder.to_owned()], Vec::new());
    while let Some(path) = pending.pop() {
        if path.is_dir() {
            pending.extend(fs::read_dir(&path).unwrap().map(|entry| entry.unwrap().path()));
        } else {
            found.push(path);
        }
    }
    found.sort();
    found
}

struct Trial<'a> {
    primary: &'a Primary,
    db: Db,
    url: String,
    root: PathBuf,
    out: PathBuf,
    right: u32,
    refused: u32,
}

impl Trial<'_> {
    /// Restores the latest state and an earlier one from what is there now.
    fn check(&mut self, what: &str, damaged: &[&Path], rng: &mut Rng) {
        let names: Vec<String> = damaged
            .iter()
            .map(|path| path.strip_prefix(&self.root).unwrap().to_str().unwrap().to_owned())
            .collect();
        let states = &self.primary.history;
        let (last, any) = (states.last().unwrap(), &states[rng.index(states.len())]);
        let asked = [
            (last, json!({})),
            (any, json!({"pos": any.pos})),
            (any, json!({"timestamp": iso(any.at)})),
        ];
        let one = rng.index(3);
        let asked = asked.into_iter().enumerate().filter(|(at, _)| soak() || *at == one);
        for (_, (state, options)) in asked {
            match restore(&self.db, &self.url, &self.out, &options) {
                Ok(_) => {
                    let same = fs::read(&self.out).unwrap() == fs::read(&state.file).unwrap();
                    assert!(same, "{what} {names:?}, {options}: a wrong database");
                    fs::remove_file(&self.out).unwrap();
                    self.right += 1;
                }
                Err(why) => {
                    let named = names.iter().any(|name| why.contains(name.as_str()));
                    assert!(named || is_missing(&why), "{what} {names:?}, {options}: {why}");
                    self.refused += 1;
                }
            }
            let left = names_in(&self.out);
            assert_eq!(left, [""; 0], "{what} {names:?}, {options}: left behind");
        }
    }
}

/// What is gone is named by its position.
fn is_missing(why: &str) -> bool {
    (why.contains("the WAL segment at ") && why.contains("is missing"))
        || ["no snapshot", "first snapshot", "what it holds begins"]
            .iter()
            .any(|part| why.contains(part))
}

fn names_in(out: &Path) -> Vec<String> {
    names(out.parent().unwrap(), out.file_name().unwrap().to_str().unwrap())
}

#[test]
fn each_object_damaged_in_turn() {
    let mut rng = Rng::new();
    let mut primary = Primary::start("restore-damage", "CREATE TABLE t(id INTEGER PRIMARY KEY, x)");
    primary.archive();
    for round in 0..3 {
        for number in 0..4 {
            primary.commit(&format!("INSERT INTO t VALUES (NULL, randomblob({}))", 50 << number));
            primary.sync();
        }
        primary.db.text("SELECT litestream_checkpoint('RESTART')");
        primary.commit("UPDATE t SET x = randomblob(20)");
        if round == 1 {
            primary.snapshot();
        }
    }
    let host = Host::app();
    for url in primary.archive() {
        let root = PathBuf::from(url.strip_prefix("file://").unwrap());
        let folder = primary.folder.file("damage");
        let _ = fs::create_dir(&folder);
        let out = folder.join("out.db");
        let db = host.open(":memory:");
        let mut trial = Trial { primary: &primary, db, url, root, out, right: 0, refused: 0 };
        trial.check("nothing", &[], &mut rng);
        assert!(trial.right > 0);
        let objects = objects(&trial.root);
        assert!(objects.len() > 15, "{objects:?}");
        for path in &objects {
            let whole = fs::read(path).unwrap();
            one_object(&mut trial, path, &whole, &mut rng);
            fs::write(path, &whole).unwrap();
        }
        for _ in 0..scaled(15, 300) {
            let (a, b) = (rng.index(objects.len()), rng.index(objects.len()));
            let (a, b) = (objects[a].as_path(), objects[b].as_path());
            swap(a, b);
            trial.check("swap", &[a, b], &mut rng);
            swap(a, b);
        }
        trial.check("nothing", &[], &mut rng);
        println!("{}: {} right, {} refused", trial.url, trial.right, trial.refused);
        assert!(trial.refused > 10 && trial.right > 10);
    }
}

fn one_object(trial: &mut Trial, path: &Path, whole: &[u8], rng: &mut Rng) {
    fs::remove_file(path).unwrap();
    trial.check("remove", &[path], rng);
    let len = whole.len();
    let mut cuts = vec![[0, len.saturating_sub(1)][rng.index(2)]];
    cuts.extend((0..scaled(1, 20)).map(|_| rng.index(len.max(1))));
    for cut in cuts.into_iter().filter(|cut| *cut < len) {
        fs::write(path, &whole[..cut]).unwrap();
        trial.check(&format!("cut at {cut}"), &[path], rng);
    }
    for _ in 0..scaled(1, 60) {
        if len == 0 {
            break;
        }
        let mut bytes = whole.to_vec();
        let at = rng.index(len);
        bytes[at] ^= 1 << rng.below(8);
        fs::write(path, &bytes).unwrap();
        trial.check(&format!("flip in byte {at}"), &[path], rng);
    }
}

fn swap(a: &Path, b: &Path) {
    if a != b {
        let (one, two) = (fs::read(a).unwrap(), fs::read(b).unwrap());
        fs::write(a, two).unwrap();
        fs::write(b, one).unwrap();
    }
}
