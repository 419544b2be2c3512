//! The file store: the rules, and what is special to folders.

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use litestream::archive::store::{Put, Store};
use litestream::archive::{Archive, ArchiveOptions};
use litestream::error::ErrorKind;

use crate::common::Folder;
use crate::rules::{Place, check_all, fails_with, get, keys, put};

fn url(path: &Path) -> String {
    format!("file://{}", path.display())
}

fn open(path: &Path) -> std::sync::Arc<dyn Store> {
    let archive = Archive::open(&url(path), &ArchiveOptions::default()).unwrap();
    std::sync::Arc::clone(archive.store())
}

/// Every file and folder below, relative, sorted.
fn tree(root: &Path) -> Vec<String> {
    let mut found = Vec::new();
    let mut pending = vec![root.to_owned()];
    while let Some(path) = pending.pop() {
        for entry in fs::read_dir(path).unwrap() {
            let path = entry.unwrap().path();
            found.push(path.strip_prefix(root).unwrap().to_str().unwrap().to_owned());
            if path.is_dir() && !path.is_symlink() {
                pending.push(path);
            }
        }
    }
    found.sort();
    found
}

#[test]
fn rules_on_a_folder() {
    let folder = Folder::new("archive-file");
    check_all(&Place::new(url(&folder.file("deep/er")), ArchiveOptions::default()));
    let left: Vec<_> =
        tree(&folder.file("")).into_iter().filter(|name| name.ends_with(".tmp")).collect();
    assert_eq!(left, [""; 0]);
}

#[test]
fn nothing_is_touched_before_it_is_needed() {
    let folder = Folder::new("archive-file");
    let store = open(&folder.file("a/b"));
    assert_eq!(keys(&*store, ""), [""; 0]);
    store.delete(&["x/y".into()]).unwrap();
    assert_eq!(tree(&folder.file("")), [""; 0]);
    put(&*store, "x/y/z", b"1");
    assert_eq!(tree(&folder.file("a/b")), ["x", "x/y", "x/y/z"]);
    store.delete(&["x/y/z".into()]).unwrap();
    assert_eq!(tree(&folder.file("a")), ["b"], "empty folders go, the archive's own stays");
}

/// The archive's folder decides who may read; one that was made is its owner's alone.
#[test]
fn modes_follow_the_archives_folder() {
    let folder = Folder::new("archive-file");
    let mode = |path: PathBuf| fs::metadata(path).unwrap().permissions().mode() & 0o777;
    let made = folder.file("made");
    put(&*open(&made), "x/y", b"1");
    assert_eq!((mode(made.clone()), mode(made.join("x"))), (0o700, 0o700));
    assert_eq!(mode(made.join("x/y")), 0o600);
    let given = folder.file("given");
    fs::create_dir(&given).unwrap();
    for (root, sub, file) in [(0o750, 0o750, 0o640), (0o500, 0o700, 0o600)] {
        let permissions = fs::Permissions::from_mode(root | 0o700);
        fs::set_permissions(&given, permissions).unwrap();
        put(&*open(&given), &format!("{root:o}/y"), b"1");
        let name = format!("{root:o}");
        assert_eq!((mode(given.join(&name)), mode(given.join(name).join("y"))), (sub, file));
    }
}

#[test]
fn links_lead_nowhere() {
    let folder = Folder::new("archive-file");
    let (real, outside) = (folder.file("real"), folder.file("outside"));
    fs::create_dir_all(outside.join("sub")).unwrap();
    fs::write(outside.join("sub/secret"), "secret").unwrap();
    fs::create_dir(&real).unwrap();
    symlink(&real, folder.file("root")).unwrap();
    let store = open(&folder.file("root"));
    put(&*store, "x/y", b"1");
    assert_eq!(get(&*open(&real), "x/y"), b"1", "the archive's folder may be a link");

    symlink(&outside, real.join("g")).unwrap();
    symlink(outside.join("sub/secret"), real.join("x/link")).unwrap();
    assert_eq!(keys(&*store, ""), ["x/y"]);
    assert_eq!(store.folders("").unwrap(), ["x"]);
    fails_with(store.get("g/sub/secret", None).map(|_| ()), ErrorKind::Missing);
    fails_with(store.get("x/link", None).map(|_| ()), ErrorKind::Missing);
    store.delete(&["g/sub/secret".into()]).unwrap();
    assert!(outside.join("sub/secret").exists());
    fails_with(store.create("g/sub/new").map(|_| ()), ErrorKind::Io);
    assert_eq!(put(&*store, "x/link", b"2"), Put::Exists);
    store.replace("x/link", b"3").unwrap();
    assert_eq!(get(&*store, "x/link"), b"3");
    assert_eq!(fs::read(outside.join("sub/secret")).unwrap(), b"secret");
    assert_eq!(tree(&outside), ["sub", "sub/secret"]);
}

#[test]
fn what_a_killed_writer_left_goes_when_it_is_old() {
    let folder = Folder::new("archive-file");
    let store = open(&folder.file("a"));
    put(&*store, "x/1", b"1");
    let leave = |name: &str, age: u64| {
        let file = fs::File::create(folder.file("a/x").join(name)).unwrap();
        file.set_modified(SystemTime::now() - Duration::from_secs(age)).unwrap();
    };
    leave("2.abc.tmp", 4000);
    leave("3.abc.tmp", 10);
    assert_eq!(keys(&*store, ""), ["x/1"]);
    put(&*open(&folder.file("a")), "x/4", b"4");
    assert_eq!(tree(&folder.file("a/x")), ["1", "3.abc.tmp", "4"]);
    leave("3.abc.tmp", 4000);
    store.delete(&["x/1".into(), "x/4".into()]).unwrap();
    assert_eq!(tree(&folder.file("a")), [""; 0]);
}

/// Nobody came back for the folders of a generation whose last object was gone.
#[test]
fn what_a_deletion_that_was_cut_short_left_goes() {
    let folder = Folder::new("archive-file");
    let archive = Archive::open(&url(&folder.file("a")), &ArchiveOptions::default()).unwrap();
    let made = |path: &str| fs::create_dir_all(folder.file("a/generations").join(path)).unwrap();
    let (gone, used) = ("0000000000000001", "0000000000000002");
    archive.tidy().unwrap();
    made(&format!("{gone}/wal/0000000000000003"));
    made(&format!("{gone}/snapshots"));
    made("not one of ours");
    put(&**archive.store(), &format!("generations/{used}/x/1"), b"1");
    made(&format!("{used}/wal"));
    archive.tidy().unwrap();
    let left = [used, &format!("{used}/wal"), &format!("{used}/x"), &format!("{used}/x/1")];
    assert_eq!(tree(&folder.file("a/generations")), [&left[..], &["not one of ours"]].concat());
    let target = folder.file("target");
    fs::create_dir_all(target.join("empty")).unwrap();
    symlink(&target, folder.file("a/generations").join(gone)).unwrap();
    archive.tidy().unwrap();
    assert_eq!(tree(&target), ["empty"]);
}

#[test]
fn what_cannot_be_an_archive_says_so() {
    let folder = Folder::new("archive-file");
    let file = folder.file("file");
    fs::write(&file, "x").unwrap();
    let store = open(&file);
    let text = fails_with(store.list("", &mut |_| Ok(())), ErrorKind::Io);
    assert!(text.contains(file.to_str().unwrap()), "{text}");
    let text = fails_with(store.create("a/b").map(|_| ()), ErrorKind::Io);
    assert!(text.contains("object a/b") && text.contains("directory"), "{text}");
    let options = ArchiveOptions::default();
    for url in ["file:a", "ftp://x", "", "x"] {
        fails_with(Archive::open(url, &options).map(|_| ()), ErrorKind::Usage);
    }
}

/// An object that is no file does not keep its reader waiting.
#[test]
fn a_pipe_is_no_object() {
    let folder = Folder::new("archive-file");
    let store = open(&folder.file("a"));
    put(&*store, "x/1", b"1");
    let made = std::process::Command::new("mkfifo").arg(folder.file("a/x/pipe")).status();
    assert!(made.unwrap().success());
    assert_eq!(keys(&*store, ""), ["x/1"]);
    fails_with(store.get("x/pipe", None).map(|_| ()), ErrorKind::Missing);
}
