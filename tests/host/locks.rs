//! Shared-memory locks and regions, and the danger that keeps `std::fs` away from the database.

use std::io::Read;
use std::path::Path;
use std::sync::Arc;

use litestream::error::ErrorKind;
use litestream::host::conn::{CHECKPOINT_PASSIVE, CHECKPOINT_TRUNCATE, Connection};
use litestream::host::file::{Door, Mode};
use litestream::host::shm::REGION_BYTES;
use litestream::walindex::{IndexHeader, LOCK_CKPT, LOCK_WRITE, lock_read};

use crate::folder::Folder;
use crate::sqlite::{application, elsewhere, wal};

/// Another process opens the database, reads and closes it: the "last close" deletes the WAL if it
/// finds no lock of anybody.
fn visitor(path: &Path) -> String {
    elsewhere(path, "SELECT count(*) FROM t")
}

/// Why nothing in here may open the database or its `-shm` with `std::fs`: closing a descriptor
/// drops every POSIX lock the process has on the file. (For most versions the database alone is
/// enough; the newest look for a lock on the `-shm` as well before they delete.) If this test ever
/// fails, the rule may be relaxed.
#[test]
fn a_plain_open_and_close_loses_the_applications_commit() {
    let folder = Folder::new("host");
    let path = folder.file("a.db");
    let connection = application(&path);
    drop(std::fs::File::open(&path).unwrap());
    drop(std::fs::File::open(folder.file("a.db-shm")).unwrap());

    assert_eq!(visitor(&path), "1");
    assert!(!wal(&path).exists(), "the visitor took itself for the last one");
    connection.execute("INSERT INTO t VALUES (2)").unwrap();
    assert_eq!(visitor(&path), "1", "the commit returned OK and is lost");
}

/// The same visit beside a door, and after one came and went.
#[test]
fn a_door_loses_nothing() {
    let folder = Folder::new("host");
    let path = folder.file("a.db");
    let connection = application(&path);
    for round in 1..4 {
        let door = Door::open(&path, "").unwrap();
        let mut page = [0; 512];
        door.read_db(&mut page, 0).unwrap();
        door.map(0, false).unwrap().unwrap();
        let held = door.try_lock(LOCK_CKPT, 1, Mode::Exclusive).unwrap();
        std::fs::File::open(door.wal_path()).unwrap().read_exact(&mut [0; 32]).unwrap();
        if round == 2 {
            drop(held);
            drop(door);
        }

        assert_eq!(visitor(&path), round.to_string());
        assert!(wal(&path).exists());
        connection.execute("INSERT INTO t VALUES (2)").unwrap();
        assert_eq!(visitor(&path), (round + 1).to_string());
    }
}

/// A door outlives the application's connection: nobody else may delete the WAL, or leave WAL mode.
#[test]
fn a_door_alone_keeps_the_wal() {
    let folder = Folder::new("host");
    let path = folder.file("a.db");
    let connection = application(&path);
    let door = Door::open(&path, "").unwrap();
    drop(connection);

    assert_eq!(visitor(&path), "1");
    assert!(wal(&path).exists());
    assert!(elsewhere(&path, "PRAGMA journal_mode = DELETE").contains("database is locked"));
    drop(door);
    assert!(wal(&path).exists(), "its own close does not checkpoint");
    assert_eq!(visitor(&path), "1");
}

#[test]
fn locks_exclude_and_are_released_by_drop() {
    let folder = Folder::new("host");
    let path = folder.file("a.db");
    let connection = application(&path);
    let (door, other) = (Door::open(&path, "").unwrap(), Door::open(&path, "").unwrap());

    let held = door.try_lock(LOCK_WRITE, 1, Mode::Exclusive).unwrap().unwrap();
    assert_eq!((held.first(), held.count(), held.mode()), (LOCK_WRITE, 1, Mode::Exclusive));
    assert!(held.covers(LOCK_WRITE) && !held.covers(LOCK_CKPT));
    assert_eq!((door.held(), other.held()), (0b1, 0));
    assert!(other.try_lock(LOCK_WRITE, 1, Mode::Exclusive).unwrap().is_none());
    assert!(other.try_lock(LOCK_WRITE, 1, Mode::Shared).unwrap().is_none());
    let again = door.try_lock(LOCK_WRITE, 1, Mode::Shared).err().unwrap();
    assert_eq!(again.kind(), ErrorKind::Bug);

    let error = connection.execute("INSERT INTO t VALUES (2)").unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Busy);
    assert_eq!(elsewhere(&path, "INSERT INTO t VALUES (2)"), "database is locked");
    assert_eq!(visitor(&path), "1");

    drop(held);
    assert_eq!(door.held(), 0);
    connection.execute("INSERT INTO t VALUES (2)").unwrap();
    assert_eq!(elsewhere(&path, "INSERT INTO t VALUES (3)"), "");
    assert_eq!(visitor(&path), "3");
}

#[test]
fn shared_locks_and_ranges() {
    let folder = Folder::new("host");
    let path = folder.file("a.db");
    let _connection = application(&path);
    let (door, other) = (Door::open(&path, "").unwrap(), Door::open(&path, "").unwrap());

    let slot = lock_read(4);
    let one = door.try_lock(slot, 1, Mode::Shared).unwrap().unwrap();
    let two = other.try_lock(slot, 1, Mode::Shared).unwrap().unwrap();
    assert!(other.try_lock(lock_read(1), 4, Mode::Exclusive).is_err(), "holds one itself");
    drop(two);
    assert!(other.try_lock(lock_read(1), 4, Mode::Exclusive).unwrap().is_none());
    drop(one);
    let all = other.try_lock(lock_read(1), 4, Mode::Exclusive).unwrap().unwrap();
    assert_eq!(other.held(), 0b1111_0000);
    assert!(door.try_lock(slot, 1, Mode::Shared).unwrap().is_none());
    drop(all);
    assert!(door.try_lock(slot, 1, Mode::Shared).unwrap().is_some());
    for (first, count) in [(8, 1), (7, 2), (0, 0)] {
        let error = door.try_lock(first, count, Mode::Exclusive).err().unwrap();
        assert_eq!(error.kind(), ErrorKind::Bug);
    }
}

/// Whoever holds the checkpoint lock decides when frames reach the database.
#[test]
fn the_checkpoint_lock_keeps_others_from_checkpointing() {
    let folder = Folder::new("host");
    let path = folder.file("a.db");
    let connection = application(&path);
    let door = Door::open(&path, "").unwrap();
    let held = door.try_lock(LOCK_CKPT, 1, Mode::Exclusive).unwrap().unwrap();

    let passive = connection.checkpoint(CHECKPOINT_PASSIVE).unwrap();
    assert!(passive.busy, "{passive:?}");
    assert_eq!(elsewhere(&path, "PRAGMA wal_checkpoint(TRUNCATE)"), "1");
    let before = std::fs::metadata(wal(&path)).unwrap().len();
    drop(held);
    let full = connection.checkpoint(CHECKPOINT_TRUNCATE).unwrap();
    assert_eq!((full.busy, full.log, full.checkpointed), (false, 0, 0), "{full:?}");
    assert!(before > 0 && std::fs::metadata(wal(&path)).unwrap().len() == 0);
}

#[test]
fn regions_show_what_sqlite_publishes() {
    let folder = Folder::new("host");
    let path = folder.file("a.db");
    let connection = application(&path);
    let door = Door::open(&path, "").unwrap();
    let region = door.map(0, false).unwrap().unwrap();

    let frame = u64::try_from(door.page_size().frame_size()).unwrap();
    let mut last = 0;
    for _ in 0..5 {
        connection.execute("INSERT INTO t VALUES (2)").unwrap();
        door.barrier();
        let (first, second) = (region.load_bytes::<48>(0), region.load_bytes::<48>(48));
        assert_eq!(first, second);
        let header = IndexHeader::decode(&first).unwrap();
        assert!(header.max_frame > last);
        last = header.max_frame;
        let size = std::fs::metadata(door.wal_path()).unwrap().len();
        assert_eq!(size, 32 + u64::from(last) * frame);
    }
    assert_eq!(region.load_u32(0), 3_007_000);
    assert_ne!(region.load_u16(REGION_BYTES - 16384 + 2 * (383 * 2)), 0, "page 2 is in the hash");
}

/// Region 1 does not exist until somebody needs it; its bytes are then the same through any door.
#[test]
fn regions_are_shared_and_extend() {
    let folder = Folder::new("host");
    let path = folder.file("a.db");
    let _connection = application(&path);
    let (door, other) = (Door::open(&path, "").unwrap(), Door::open(&path, "").unwrap());
    assert!(door.map(1, false).unwrap().is_none());
    let region = door.map(1, true).unwrap().unwrap();
    let mirror = other.map(1, false).unwrap().unwrap();
    assert_eq!(region.number(), 1);

    region.store_u32(0, 0xdead_beef);
    region.store_u16(REGION_BYTES - 2, 0x1234);
    region.store_bytes(8, &[1, 2, 3, 4, 5, 6, 7, 8]);
    assert_eq!(mirror.load_u32(0), 0xdead_beef);
    assert_eq!(mirror.load_u16(REGION_BYTES - 2), 0x1234);
    assert_eq!(mirror.load_bytes::<8>(8), [1, 2, 3, 4, 5, 6, 7, 8]);
    region.zero_range(0, REGION_BYTES);
    assert!((0..REGION_BYTES).step_by(4).all(|at| mirror.load_u32(at) == 0));
    drop(other);
    assert_eq!(mirror.load_u32(0), 0, "a region keeps its door open");
}

/// Locks belong to the door: any thread may take and drop them.
#[test]
fn threads_share_a_door() {
    let folder = Folder::new("host");
    let path = folder.file("a.db");
    let connection = application(&path);
    let door = Door::open(&path, "").unwrap();
    std::thread::scope(|scope| {
        for slot in 1..5 {
            let door = Arc::clone(&door);
            scope.spawn(move || {
                let mut page = [0; 512];
                for _ in 0..500 {
                    let held = door.try_lock(lock_read(slot), 1, Mode::Shared).unwrap();
                    door.read_db(&mut page, 0).unwrap();
                    assert!(page.starts_with(b"SQLite format 3\0"));
                    drop(held);
                }
            });
        }
        scope.spawn(|| {
            for _ in 0..50 {
                connection.execute("INSERT INTO t VALUES (2)").unwrap();
            }
        });
    });
    assert_eq!(door.held(), 0);
    assert_eq!(connection.query_i64("SELECT count(*) FROM t").unwrap(), 51);
}

#[test]
fn a_door_needs_a_wal() {
    let folder = Folder::new("host");
    let path = folder.file("a.db");
    let connection = application(&path);
    let error = Door::open(&path, "unix-none").err().unwrap();
    assert_eq!(error.kind(), ErrorKind::Unsupported, "{error}");
    assert!(error.to_string().contains("no shared memory"), "{error}");
    let error = Door::open(&path, "nosuch").err().unwrap();
    assert!(error.to_string().contains("no such vfs: nosuch"), "{error}");

    connection.execute("PRAGMA journal_mode = DELETE").unwrap();
    let error = Door::open(&path, "").err().unwrap();
    assert_eq!(error.kind(), ErrorKind::Refused);
    assert!(error.to_string().contains("journal_mode is delete"), "{error}");

    let missing = folder.file("missing.db");
    let error = Door::open(&missing, "").err().unwrap();
    assert!(error.to_string().contains("missing.db"), "{error}");
    assert!(!missing.exists());
    assert!(Connection::open(Path::new(""), "", true).is_err());
}
