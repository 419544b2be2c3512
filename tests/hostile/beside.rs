//! Another user of the machine, who was at `DB-litestream/` first: links to what is not theirs,
//! FIFOs nobody writes to, folders of their own. Nothing waits, and nothing outside is touched.

use std::os::unix::fs::{MetadataExt, PermissionsExt, chown, symlink};
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, FileType, Mode, mknodat};

use crate::common::*;

/// What may stand where a file of ours is to be.
#[derive(Clone, Copy, Debug)]
enum Trap {
    Fifo,
    Link,
    Dangling,
    Folder,
}

const TRAPS: [Trap; 4] = [Trap::Fifo, Trap::Link, Trap::Dangling, Trap::Folder];

impl Trap {
    fn set(self, at: &Path, victim: &Path) {
        std::fs::create_dir_all(at.parent().unwrap()).unwrap();
        match self {
            Trap::Fifo => {
                mknodat(CWD, at, FileType::Fifo, Mode::RUSR | Mode::WUSR, 0).unwrap();
            }
            Trap::Link => symlink(victim, at).unwrap(),
            Trap::Dangling => symlink(victim.with_extension("new"), at).unwrap(),
            Trap::Folder => std::fs::create_dir(at).unwrap(),
        }
    }
}

/// A file that must stay as it is.
struct Victim {
    path: PathBuf,
    mode: u32,
}

impl Victim {
    fn new(folder: &Folder) -> Victim {
        let path = folder.file("precious");
        std::fs::write(&path, "precious").unwrap();
        std::fs::set_permissions(&path, PermissionsExt::from_mode(0o640)).unwrap();
        Victim { mode: path.metadata().unwrap().mode(), path }
    }

    fn is_well(&self) -> bool {
        !self.path.with_extension("new").exists()
            && self.path.metadata().unwrap().mode() == self.mode
            && std::fs::read(&self.path).unwrap() == b"precious"
    }
}

#[test]
fn traps_beside_a_database_harm_nobody() {
    let folder = Folder::new("beside");
    let victim = Victim::new(&folder);
    let host = Host::app();
    let source = host.open(folder.file("source.db"));
    source.script("CREATE TABLE t(x); INSERT INTO t VALUES (1)");
    let url = serve(&source);
    let of_primary =
        ["lock", "generation", "generation.tmp", "address", "address.tmp", "change", "change.tmp"];
    let of_replica =
        ["replica", "replica.tmp", "position", "filling", "intents-0", "intents-1", "lock"];
    let names = of_primary.map(|name| (name, true)).into_iter();
    for (name, is_primary) in names.chain(of_replica.map(|name| (name, false))) {
        for trap in TRAPS {
            let path = folder.file(&format!("{name}-{trap:?}-{is_primary}.db"));
            let db = host.open(&path);
            if is_primary {
                db.run("CREATE TABLE t(x)").unwrap();
            }
            trap.set(
                &folder.file(&format!("{name}-{trap:?}-{is_primary}.db-litestream/{name}")),
                &victim.path,
            );
            let begin = std::time::Instant::now();
            // It works, or says why not; it does not wait for what never comes.
            let outcome = if is_primary {
                db.run("SELECT litestream_serve('127.0.0.1:0', '{\"wait_ms\": 200}')")
            } else {
                db.run(&format!("SELECT litestream_follow('{url}', '{{\"wait_ms\": 200}}')"))
            };
            // On a busy machine it may not have got there yet.
            let outcome = match outcome {
                Err(error) if error.contains("goes on trying") => until("an outcome", || {
                    let found = "SELECT error, state FROM litestream_databases WHERE error NOTNULL \
                        OR state = 'streaming'";
                    let found = db.run(found).unwrap();
                    let row = found.as_array()?.first()?;
                    Some(row[0].as_str().map_or(Ok(Value::Null), |error| Err(error.to_owned())))
                }),
                outcome => outcome,
            };
            if let Err(error) = &outcome {
                let named = format!("-litestream/{}", name.trim_end_matches(".tmp"));
                assert!(error.contains(&named), "{name}, {trap:?}: {error}");
            }
            assert!(victim.is_well(), "{name}, {trap:?}: {outcome:?}");
            db.run("SELECT litestream_stop()").unwrap();
            assert!(begin.elapsed() < DEADLINE, "{name}, {trap:?}: {:?}", begin.elapsed());
            db.close();
        }
    }
    assert_eq!(source.int("SELECT count(*) FROM t"), 1);
}

/// The folder itself is somebody else's: it would hold all of the database.
#[test]
fn a_folder_of_another_user_is_not_written_to() {
    let folder = Folder::new("foreign");
    let host = Host::app();
    let source = host.open(folder.file("source.db"));
    source.run("CREATE TABLE t(x)").unwrap();
    let url = serve(&source);
    let refused = |name: &str, expected: &str| {
        for is_primary in [true, false] {
            let path = folder.file(&format!("{name}-{is_primary}.db"));
            let db = host.open(&path);
            if is_primary {
                db.run("CREATE TABLE t(x)").unwrap();
            }
            std::fs::set_permissions(&path, PermissionsExt::from_mode(0o600)).ok();
            let beside = folder.file(&format!("{name}-{is_primary}.db-litestream"));
            let elsewhere = folder.file(&format!("{name}-{is_primary}-elsewhere"));
            match name {
                "file" => std::fs::write(&beside, "").unwrap(),
                "link" => {
                    std::fs::create_dir(&elsewhere).unwrap();
                    chown(&elsewhere, Some(4711), Some(4711)).unwrap();
                    symlink(&elsewhere, &beside).unwrap();
                }
                _ => {
                    std::fs::create_dir(&beside).unwrap();
                    let mode = if name == "open" { 0o777 } else { 0o755 };
                    std::fs::set_permissions(&beside, PermissionsExt::from_mode(mode)).unwrap();
                    if name == "foreign" {
                        chown(&beside, Some(4711), Some(4711)).unwrap();
                    }
                }
            }
            let error = db.fails(&if is_primary {
                "SELECT litestream_serve('127.0.0.1:0')".to_owned()
            } else {
                format!("SELECT litestream_follow('{url}')")
            });
            assert!(error.contains(expected), "{name}: {error}");
            let into = if elsewhere.exists() { elsewhere } else { beside };
            assert!(into.is_file() || into.read_dir().unwrap().next().is_none(), "{name}");
            db.close();
        }
    };
    refused("file", "ot a "); // in our words, or in the system's
    refused("open", "everybody may write to it");
    // Only root can make files that belong to somebody else.
    if rustix::process::geteuid().is_root() {
        refused("foreign", "it belongs to another user");
        refused("link", "it belongs to another user");
    }
    // A link of the owner's to a folder of the owner's is their choice.
    let db = host.open(folder.file("own.db"));
    db.run("CREATE TABLE t(x)").unwrap();
    std::fs::create_dir(folder.file("other-disk")).unwrap();
    symlink(folder.file("other-disk"), folder.file("own.db-litestream")).unwrap();
    serve(&db);
    assert!(folder.file("other-disk/lock").exists());
}

/// One of a group that shares a database serves it first: the others, its owner among them, could
/// not serve it any more.
#[test]
fn a_group_that_shares_a_database_shares_its_folder() {
    if !rustix::process::geteuid().is_root() {
        return; // only root can make files that belong to somebody else
    }
    const OWNER: u32 = 4711;
    const COLLEAGUE: u32 = 4712;
    const GROUP: u32 = 4800;
    let outer = Folder::new("group");
    let host = Host::app();
    // Mode of the database, of the folder above, group and mode of its `-litestream`.
    for (name, database, above, group, mode, may) in [
        ("shared", 0o660, 0o2770, GROUP, 0o2770, true),
        ("other-group", 0o660, 0o2770, GROUP + 1, 0o770, false),
        ("not-theirs-to-write", 0o640, 0o2770, GROUP, 0o770, false),
        ("anybody-could-have-made-it", 0o660, 0o3777, GROUP, 0o770, false),
        ("open", 0o660, 0o2770, GROUP, 0o777, false),
        ("link", 0o660, 0o2770, GROUP, 0o770, false),
    ] {
        let folder = outer.file(name);
        std::fs::create_dir(&folder).unwrap();
        let path = folder.join("a.db");
        let db = host.open(&path);
        db.run("CREATE TABLE t(x)").unwrap();
        chown(&path, Some(OWNER), Some(GROUP)).unwrap();
        std::fs::set_permissions(&path, PermissionsExt::from_mode(database)).unwrap();
        let beside = folder.join("a.db-litestream");
        std::fs::create_dir(&beside).unwrap();
        chown(&beside, Some(COLLEAGUE), Some(group)).unwrap();
        std::fs::set_permissions(&beside, PermissionsExt::from_mode(mode)).unwrap();
        if name == "link" {
            std::fs::rename(&beside, folder.join("theirs")).unwrap();
            symlink("theirs", &beside).unwrap();
            rustix::fs::chownat(
                CWD,
                &beside,
                Some(rustix::fs::Uid::from_raw(COLLEAGUE)),
                Some(rustix::fs::Gid::from_raw(GROUP)),
                rustix::fs::AtFlags::SYMLINK_NOFOLLOW,
            )
            .unwrap();
        }
        chown(&folder, Some(OWNER), Some(GROUP)).unwrap();
        std::fs::set_permissions(&folder, PermissionsExt::from_mode(above)).unwrap();
        let outcome = db.run("SELECT litestream_serve('127.0.0.1:0')");
        assert_eq!(outcome.is_ok(), may, "{name}: {outcome:?}");
        if let Err(error) = outcome {
            assert!(error.contains("cannot be used: "), "{name}: {error}");
        }
        db.run("SELECT litestream_stop()").unwrap();
        db.close();
    }
}
