//! The short run that every `cargo test` makes: each target over its corpus, and over changed
//! copies of it. `SEED=n` repeats a run, `SOAK=1` makes it long.

use std::path::{Path, PathBuf};

use super::{TARGETS, Target};

#[allow(dead_code, missing_docs, reason = "of the tests' kit only the numbers are needed here")]
#[path = "../../tests/common/kit.rs"]
mod kit;

use kit::{Rng, scaled};

/// Changed inputs are not longer.
const BYTES_MAX: usize = 2048;

fn corpus(name: &str) -> Vec<(PathBuf, Vec<u8>)> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus").join(name);
    let mut paths: Vec<PathBuf> =
        std::fs::read_dir(&folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    paths.sort();
    paths.into_iter().map(|path| (path.clone(), std::fs::read(path).unwrap())).collect()
}

/// A copy of one input with a few changes, or of parts of two.
fn changed(corpus: &[(PathBuf, Vec<u8>)], rng: &mut Rng) -> Vec<u8> {
    const TELLING: [u8; 8] = [0, 1, 0x7f, 0x80, 0xff, b'/', b'"', b'\n'];
    let mut bytes = corpus[rng.index(corpus.len())].1.clone();
    for _ in 0..=rng.index(4) {
        let at = rng.index(bytes.len() + 1);
        match rng.index(6) {
            0 => bytes.truncate(at),
            1 => bytes.insert(at, TELLING[rng.index(TELLING.len())]),
            2 => {
                let other = &corpus[rng.index(corpus.len())].1;
                bytes.truncate(at);
                bytes.extend_from_slice(&other[rng.index(other.len() + 1)..]);
            }
            3 => {
                let count = rng.index(16);
                let more = rng.bytes(count);
                bytes.splice(at..at, more);
            }
            _ if at < bytes.len() => {
                let byte = rng.number().to_le_bytes()[0];
                bytes[at] = if rng.index(2) == 0 { bytes[at] ^ (1 << (byte % 8)) } else { byte };
            }
            _ => {}
        }
    }
    bytes.truncate(BYTES_MAX);
    bytes
}

/// Leaves the input behind if the target fails.
struct Keep<'a>(&'a str, Option<&'a [u8]>);

impl Drop for Keep<'_> {
    fn drop(&mut self) {
        if let Some(bytes) = self.1.filter(|_| std::thread::panicking()) {
            let path = std::env::temp_dir().join(format!("litestream-fuzz-{}-failed", self.0));
            let _ = std::fs::write(&path, bytes);
            eprintln!("{} fails; make it fuzz/corpus/{}/NAME", path.display(), self.0);
        }
    }
}

fn run(target: &Target, bytes: &[u8]) {
    let mut keep = Keep(target.0, Some(bytes));
    (target.1)(bytes);
    keep.1 = None;
}

fn holds(name: &str) {
    let target = TARGETS.iter().find(|(known, _)| *known == name).unwrap();
    let corpus = corpus(name);
    for (_, bytes) in &corpus {
        run(target, bytes);
    }
    let mut rng = Rng::new();
    for _ in 0..scaled(400, 100_000) {
        run(target, &changed(&corpus, &mut rng));
    }
}

macro_rules! holds {
    ($($name:ident)*) => {
        const TESTED: &[&str] = &[$(stringify!($name)),*];

        $(
            #[test]
            fn $name() {
                holds(stringify!($name));
            }
        )*
    };
}

holds!(
    answers connection cursor head intents label log ltx lz4 names options position record restore
    routes stream time wal walindex
);

#[test]
fn every_target_is_tested_and_has_a_program() {
    let names: Vec<&str> = TARGETS.iter().map(|(name, _)| *name).collect();
    assert_eq!(names, TESTED);
    let manifest = include_str!("../Cargo.toml");
    let programs: Vec<&str> = manifest
        .lines()
        .filter_map(|line| line.strip_prefix("name = \"")?.strip_suffix('"'))
        .filter(|name| *name != "litestream-fuzz")
        .collect();
    assert_eq!(names, programs);
}
