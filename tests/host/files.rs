//! Database bytes through the VFS, and the rule about who may open files at all.

use std::path::{Path, PathBuf};

use litestream::error::ErrorKind;
use litestream::host::conn::{CHECKPOINT_TRUNCATE, Connection};
use litestream::host::file::{Door, RawFile};
use litestream::host::os;

use crate::folder::Folder;
use crate::sqlite::{application, elsewhere, start};

#[test]
fn a_door_reads_the_database() {
    let folder = Folder::new("host");
    let path = folder.file("a.db");
    let connection = application(&path);
    connection.execute("INSERT INTO t VALUES (zeroblob(100000))").unwrap();
    connection.checkpoint(CHECKPOINT_TRUNCATE).unwrap();
    let door = Door::open(&path, "").unwrap();

    let pages = u64::try_from(connection.query_i64("PRAGMA page_count").unwrap()).unwrap();
    let page = u64::from(door.page_size().get());
    let size = door.db_size().unwrap();
    assert_eq!(size, pages * page);
    let mut first = vec![0xaa; 100];
    assert_eq!(door.read_db(&mut first, 0).unwrap(), 100);
    assert!(first.starts_with(b"SQLite format 3\0"));
    let mut tail = vec![0xaa; 100];
    assert_eq!(door.read_db(&mut tail, size - 60).unwrap(), 60);
    assert!(tail[60..].iter().all(|byte| *byte == 0), "what is past the end reads as zero");
    assert_eq!(door.read_db(&mut tail, size + 5).unwrap(), 0);
    assert_eq!(door.read_db(&mut [], 0).unwrap(), 0);
    assert!(door.read_db(&mut tail, u64::MAX - 5).is_err());
}

#[test]
fn a_door_writes_the_database() {
    let folder = Folder::new("host");
    let path = folder.file("a.db");
    let connection = application(&path);
    connection.checkpoint(CHECKPOINT_TRUNCATE).unwrap();
    let door = Door::open(&path, "").unwrap();
    let size = door.db_size().unwrap();
    let page = door.page_size().bytes();
    door.write_db(&vec![7; page], size).unwrap();
    door.sync_db().unwrap();
    assert_eq!(door.db_size().unwrap(), size + u64::try_from(page).unwrap());
    let mut back = vec![0; page];
    assert_eq!(door.read_db(&mut back, size).unwrap(), page);
    assert!(back.iter().all(|byte| *byte == 7));
    door.truncate_db(size).unwrap();
    assert_eq!(door.db_size().unwrap(), size);
}

/// An empty database becomes a copy of another one under the eyes of its own open connection.
#[test]
fn a_raw_file_fills_an_empty_database() {
    let folder = Folder::new("host");
    let source = folder.file("source.db");
    let original = application(&source);
    original.execute("INSERT INTO t VALUES (randomblob(50000))").unwrap();
    original.checkpoint(CHECKPOINT_TRUNCATE).unwrap();
    let door = Door::open(&source, "").unwrap();
    let mut bytes = vec![0; usize::try_from(door.db_size().unwrap()).unwrap()];
    door.read_db(&mut bytes, 0).unwrap();

    let path = folder.file("copy.db");
    let reader = Connection::open(&path, "", true).unwrap();
    assert_eq!(reader.query_i64("SELECT count(*) FROM sqlite_master").unwrap(), 0);
    let raw = RawFile::open(&path, "").unwrap();
    assert_eq!((raw.size().unwrap(), raw.path()), (0, path.as_path()));
    raw.begin_exclusive().unwrap();
    let second = RawFile::open(&path, "").unwrap();
    assert_eq!(second.begin_exclusive().unwrap_err().kind(), ErrorKind::Busy);
    let page = door.page_size().bytes();
    raw.write(&bytes[page..], page.try_into().unwrap()).unwrap();
    raw.sync().unwrap();
    assert_eq!(elsewhere(&path, "SELECT count(*) FROM t"), "database is locked");
    raw.write(&bytes[..page], 0).unwrap();
    raw.sync().unwrap();
    let mut back = vec![0; bytes.len()];
    assert_eq!(raw.read(&mut back, 0).unwrap(), bytes.len());
    assert_eq!(back, bytes);
    raw.rollback().unwrap();

    assert_eq!(reader.query_i64("SELECT count(*) FROM t").unwrap(), 2);
    assert_eq!(reader.query_text("PRAGMA integrity_check").unwrap().unwrap(), "ok");
    assert_eq!(reader.query_text("PRAGMA journal_mode").unwrap().unwrap(), "wal");
    assert_eq!(elsewhere(&path, "SELECT count(*) FROM t"), "2");
    drop(raw);
    reader.execute("INSERT INTO t VALUES (3)").unwrap();
    assert_eq!(elsewhere(&path, "SELECT count(*) FROM t"), "3");
}

#[test]
fn a_raw_file_waits_for_nobody() {
    let folder = Folder::new("host");
    let path = folder.file("a.db");
    start();
    let other = Connection::open(&path, "", true).unwrap();
    other.execute("CREATE TABLE t(x); BEGIN IMMEDIATE").unwrap();
    let raw = RawFile::open(&path, "").unwrap();
    assert_eq!(raw.begin_exclusive().unwrap_err().kind(), ErrorKind::Busy);
    other.execute("COMMIT").unwrap();
    raw.begin_exclusive().unwrap();
    assert_eq!(other.execute("INSERT INTO t VALUES (1)").unwrap_err().kind(), ErrorKind::Busy);
    raw.rollback().unwrap();
    other.execute("INSERT INTO t VALUES (1)").unwrap();
}

/// A lock file keeps other processes out, and its lock ends with the process.
#[test]
fn a_lock_file_is_held_against_other_processes() {
    const SCRIPT: &str = "
import fcntl, sys
file = open(sys.argv[1], 'r+')
try: fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB); print('got it')
except OSError: print('busy')
";
    let folder = Folder::new("host");
    let path = folder.file("lock");
    let try_elsewhere = || {
        let run = std::process::Command::new("python3").args(["-c", SCRIPT]).arg(&path).output();
        crate::sqlite::text(&run.unwrap())
    };
    let file = std::fs::File::create(&path).unwrap();
    assert_eq!(try_elsewhere(), "got it");
    assert!(os::lock_file(&file).unwrap());
    assert!(os::lock_file(&file).unwrap(), "one process holds it as often as it likes");
    assert_eq!(try_elsewhere(), "busy");
    drop(file);
    assert_eq!(try_elsewhere(), "got it");
}

/// Who may open files, and why it is never the database or its `-shm`. A new name needs a reason
/// here.
const MAY_OPEN_FILES: &[(&str, &str)] = &[
    ("files.rs", "what it is given: WAL files and folders of the log"),
    ("wal.rs", "WAL files, which carry no locks"),
    ("log/", "the files beside the database, in DB-litestream/"),
    ("pages/", "the WAL, which carries no locks"),
    ("capture/", "the WAL, which carries no locks"),
    ("follow/", "the WAL, and the position file in DB-litestream/"),
    ("serve/", "certificates and keys"),
    ("replicate/note.rs", "the notes in DB-litestream/archives/"),
    ("databases/address.rs", "the address file in DB-litestream/"),
    ("archive/", "an archive's own files"),
    ("restore/", "the new database, which nobody else has open, and files without a name"),
    ("transport.rs", "certificates"),
];

/// See `locks::a_plain_open_and_close_loses_the_applications_commit` for what is at stake.
#[test]
fn only_known_modules_open_files() {
    const OPENS: &[&str] = &[
        "File::open(",
        "File::create",
        "File::options(",
        "OpenOptions::new(",
        "fs::read(",
        "fs::read_to_string(",
        "fs::write(",
        "fs::copy(",
        "libc::open",
        "rustix::fs::open",
    ];
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut sources = Vec::new();
    collect(&root, &mut sources);
    assert!(sources.len() > 10);
    let mut offenders = Vec::new();
    for source in sources {
        let name = source.strip_prefix(&root).unwrap().to_str().unwrap().to_owned();
        if MAY_OPEN_FILES.iter().any(|(home, _)| name.starts_with(home)) {
            continue;
        }
        let text = std::fs::read_to_string(&source).unwrap();
        let product = text.split("#[cfg(test)]").next().unwrap();
        for (number, line) in product.lines().enumerate() {
            let code = line.split("//").next().unwrap();
            if OPENS.iter().any(|open| code.contains(open)) {
                offenders.push(format!("src/{name}:{}: {}", number + 1, line.trim()));
            }
        }
    }
    assert!(
        offenders.is_empty(),
        "closing a descriptor of the database drops the host's locks on it; go through host::file, \
         or give the module a line in MAY_OPEN_FILES:\n{}",
        offenders.join("\n")
    );
}

fn collect(folder: &Path, into: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            collect(&path, into);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            into.push(path);
        }
    }
}
