//! An archive somebody else may write to: objects that claim to be enormous, that expand without
//! measure, with labels, headers and names made to mislead, and links. Restoring and following it
//! end in a clear error, in bounded memory, and write nothing elsewhere.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use crate::common::*;
use litestream::lz4;

/// Adds to an LZ4 frame's start: magic, a content size, a sound descriptor.
fn claim(size: u64) -> Vec<u8> {
    let mut descriptor = vec![0x68, 0x70];
    descriptor.extend(size.to_le_bytes());
    let hash = twox_hash::XxHash32::oneshot(0, &descriptor);
    let mut frame = 0x184d_2204_u32.to_le_bytes().to_vec();
    frame.extend(descriptor);
    frame.push(hash.to_le_bytes()[1]);
    frame
}

/// The first object below `root` whose name ends so.
fn object(root: &Path, end: &str) -> PathBuf {
    let mut found: Vec<PathBuf> = all(root).into_keys().collect();
    found.retain(|path| path.to_str().unwrap().ends_with(end));
    found.into_iter().next().unwrap()
}

/// Every file below, and what it holds.
fn all(root: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut found = BTreeMap::new();
    for entry in fs::read_dir(root).unwrap().flatten() {
        let path = entry.path();
        let meta = path.symlink_metadata().unwrap();
        if meta.is_dir() {
            found.extend(all(&path));
        } else if meta.is_file() {
            found.insert(path.clone(), fs::read(&path).unwrap());
        }
    }
    found
}

fn copy(from: &Path, to: &Path) {
    for (path, content) in all(from) {
        let path = to.join(path.strip_prefix(from).unwrap());
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, content).unwrap();
    }
}

/// What is done to an archive, and words of the error that must lead to; none: it is no harm.
struct Attack {
    name: &'static str,
    words: &'static [&'static str],
    make: fn(&Path, &Path),
}

fn attack(name: &'static str, words: &'static [&'static str], make: fn(&Path, &Path)) -> Attack {
    Attack { name, words, make }
}

fn replace(root: &Path, end: &str, content: &[u8]) {
    fs::write(object(root, end), content).unwrap();
}

fn sizes() -> Vec<Attack> {
    vec![
        attack("a snapshot that claims 100 GB", &["snapshot.lz4"], |root, _| {
            let mut frame = claim(100 << 30);
            frame.extend(5_u32.to_le_bytes());
            frame.extend(b"short");
            replace(root, "snapshot.lz4", &frame);
        }),
        attack("a segment that claims 100 GB", &["wal.lz4"], |root, _| {
            let mut frame = claim(100 << 30);
            frame.extend((5_u32 | 1 << 31).to_le_bytes());
            frame.extend(b"short");
            replace(root, "wal.lz4", &frame);
        }),
        attack("a snapshot of nothing but zeros", &["snapshot.lz4"], |root, _| {
            replace(root, "snapshot.lz4", &lz4::compress(&vec![0; 96 << 20]).unwrap());
        }),
        attack("a segment of nothing but zeros", &["not ", "WAL"], |root, _| {
            replace(root, "wal.lz4", &lz4::compress(&vec![0; 96 << 20]).unwrap());
        }),
        attack("blocks without content, without end", &["snapshot.lz4"], |root, _| {
            let mut frame = lz4::compress(b"").unwrap()[..7].to_vec();
            frame.extend([0, 0, 0, 0x80].repeat(8 << 20));
            replace(root, "snapshot.lz4", &frame);
        }),
        attack("an object of 100 GB, most of it holes", &["snapshot.lz4"], |root, _| {
            let path = object(root, "snapshot.lz4");
            fs::OpenOptions::new().write(true).open(path).unwrap().set_len(100 << 30).unwrap();
        }),
    ]
}

fn labels() -> Vec<Attack> {
    vec![
        attack("a label of 4 GB", &["label"], |root, _| {
            let mut object = 0x184d_2a5e_u32.to_le_bytes().to_vec();
            object.extend(u32::MAX.to_le_bytes());
            replace(root, "snapshot.lz4", &object);
        }),
        attack("a label that is cut", &["label"], |root, _| {
            let whole = fs::read(object(root, "wal.lz4")).unwrap();
            replace(root, "wal.lz4", &whole[..30]);
        }),
        attack("somebody else's label", &["another's name", "snapshot.lz4"], |root, _| {
            let whole = fs::read(object(root, "wal.lz4")).unwrap();
            replace(root, "snapshot.lz4", &whole);
        }),
        attack("an age header without end", &["header without end"], |root, _| {
            let line = "-> X25519 AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA\n";
            let header = format!("age-encryption.org/v1\n{}", line.repeat(1 << 18));
            replace(root, "snapshot.lz4", header.as_bytes());
        }),
        attack("an age header on one line", &["header without end"], |root, _| {
            let header = format!("age-encryption.org/v1\n-> {}", "a".repeat(32 << 20));
            replace(root, "snapshot.lz4", header.as_bytes());
        }),
    ]
}

fn names() -> Vec<Attack> {
    vec![
        attack("names that lead elsewhere", &[], |root, _| {
            let path = object(root, "snapshot.lz4");
            let folder = path.parent().unwrap();
            for name in ["..snapshot.lz4", "..%2f..%2fx.snapshot.lz4", "...", "x\ny", "0\\..\\x"] {
                fs::write(folder.join(name), "x").unwrap();
            }
            let odd = ["....", "%2e%2e", "0123456789abcdef ", "zzzzzzzzzzzzzzzz"];
            for name in odd {
                fs::create_dir_all(root.join("generations").join(name).join("snapshots")).unwrap();
            }
        }),
        attack("a snapshot that is a link", &["no snapshot"], |root, outside| {
            let path = object(root, "snapshot.lz4");
            fs::rename(&path, outside.join("moved")).unwrap();
            symlink(outside.join("moved"), path).unwrap();
        }),
        attack("a folder that is a link", &["no snapshot"], |root, outside| {
            let path = object(root, "snapshot.lz4");
            let folder = path.parent().unwrap();
            copy(folder, &outside.join("copied"));
            fs::remove_dir_all(folder).unwrap();
            symlink(outside.join("copied"), folder).unwrap();
        }),
        attack("generations that are a link", &["no snapshot"], |root, outside| {
            copy(&root.join("generations"), &outside.join("all"));
            fs::remove_dir_all(root.join("generations")).unwrap();
            symlink(outside.join("all"), root.join("generations")).unwrap();
        }),
        attack("a snapshot that is a FIFO", &["no snapshot"], |root, _| {
            let path = object(root, "snapshot.lz4");
            fs::remove_file(&path).unwrap();
            let mode = rustix::fs::Mode::RUSR;
            rustix::fs::mknodat(rustix::fs::CWD, &path, rustix::fs::FileType::Fifo, mode, 0)
                .unwrap();
        }),
        attack("a snapshot that is a folder", &["no snapshot"], |root, _| {
            let path = object(root, "snapshot.lz4");
            fs::remove_file(&path).unwrap();
            fs::create_dir(&path).unwrap();
        }),
    ]
}

/// A key that opens nothing there is.
fn key() -> String {
    use age::secrecy::ExposeSecret;
    age::x25519::Identity::generate().to_string().expose_secret().to_owned()
}

#[test]
fn no_archive_does_harm() {
    let folder = Folder::new("hostile-archive");
    let good = folder.file("good");
    {
        let host = Host::app();
        let db = host.open(folder.file("p.db"));
        make_ledger(&db);
        db.text(&format!("SELECT litestream_replicate('file://{}')", good.display()));
        db.run("INSERT INTO entry VALUES (1, randomblob(5000))").unwrap();
        db.run("SELECT litestream_sync()").unwrap();
        db.run("SELECT litestream_stop()").unwrap();
    }
    let host = Host::app();
    let any = host.open(":memory:");
    let key = key();
    for (number, Attack { name, words, make }) in
        sizes().into_iter().chain(labels()).chain(names()).enumerate()
    {
        println!("{name}");
        let place = folder.file(&format!("{number}"));
        let (root, outside, out) = (place.join("root"), place.join("outside"), place.join("out"));
        copy(&good, &root);
        fs::create_dir_all(&outside).unwrap();
        fs::create_dir_all(&out).unwrap();
        fs::write(outside.join("precious"), "precious").unwrap();
        make(&root, &outside);
        let before = all(&outside);
        let url = format!("file://{}", root.display());
        let options = json!({"age_identities": key}).to_string();
        let target = out.join("restored.db");
        let values = json!([url, target, options]);
        let restored = any.send_with("SELECT litestream_restore(?, ?, ?)", values);
        let restored = restored.outcome(DEADLINE);
        check(name, words, &restored.map(drop));
        assert_eq!(target.exists(), words.is_empty(), "{name}: a file that should not be");
        let left = fs::read_dir(&out).unwrap().count();
        assert_eq!(left, usize::from(words.is_empty()), "{name}: something was left behind");

        let replica = host.open(out.join("replica.db"));
        let options =
            json!({"age_identities": key, "wait_ms": 0, "max_bytes": 64 << 20}).to_string();
        let follow = replica.send_with("SELECT litestream_follow(?, ?)", json!([url, options]));
        let followed = match follow.outcome(DEADLINE) {
            Ok(_) => until(name, || {
                let found = "SELECT error, state FROM litestream_databases
                    WHERE error NOTNULL OR state = 'streaming'";
                let found = any.run(found).unwrap();
                let row = found.as_array()?.first()?;
                Some(row[0].as_str().map_or(Ok(()), |error| Err(error.to_owned())))
            }),
            Err(error) => Err(error),
        };
        check(name, words, &followed);
        replica.run("SELECT litestream_stop()").unwrap();
        replica.close();
        assert!(all(&outside) == before, "{name}: something was written elsewhere");
        fs::remove_dir_all(&place).unwrap();
    }
    assert_eq!(any.int("SELECT 1"), 1);
    let peak = host.peak_kib();
    assert!(peak < 200 << 10, "{peak} KiB at the peak");
}

fn check(name: &str, words: &[&str], outcome: &Result<(), String>) {
    match outcome {
        Ok(()) => assert!(words.is_empty(), "{name}: nobody noticed"),
        Err(error) => {
            assert!(!words.is_empty(), "{name}: {error}");
            for word in words {
                assert!(error.contains(word), "{name}: no {word:?} in {error:?}");
            }
            assert!(error.len() < 500, "{name}: {error}");
        }
    }
}
