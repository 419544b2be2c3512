//! Others at a replica's files: noticed, said, and put right, in one step for those who read.

use std::fs::{self, OpenOptions};

use crate::common::*;
use crate::support::*;

/// Says that the replica's files are not as they were left.
const TOLD: &str = "all of it is compared with the upstream";

/// Stops the follower, does something to the files, and follows again; whether it was noticed.
fn done_meanwhile(pair: &mut Pair, blow: impl FnOnce(&Pair)) -> bool {
    let told_before = lines(&pair.replica);
    pair.replica.int("SELECT litestream_stop('follow')");
    blow(pair);
    pair.primary.script("UPDATE t SET pad = randomblob(3400) WHERE i = 3");
    follow(&pair.replica, &pair.url);
    assert_eq!(pair.verify(), "ok");
    lines(&pair.replica) > told_before
}

fn lines(db: &Db) -> i64 {
    db.int(&format!("SELECT count(*) FROM litestream_log WHERE message LIKE '%{TOLD}%'"))
}

fn cut(path: &std::path::Path, pages: u64) {
    OpenOptions::new().write(true).open(path).unwrap().set_len(pages * 4096).unwrap();
}

#[test]
fn a_file_that_was_written_while_nobody_followed() {
    let mut pair = Pair::of_rows("verify-stopped", 100);
    let path = pair.replica_path();
    assert!(!done_meanwhile(&mut pair, |_| {}), "nothing happened, nothing is said");
    let other = pair.folder.file("other.db");
    fs::copy(pair.replica_path(), &other).unwrap();
    flip(&other, 60);
    // The frames of a WAL that stands for a position are there all along.
    assert!(done_meanwhile(&mut pair, |_| flip(&path, 50)), "a flipped bit");
    pair.settle();
    let copy = |_: &Pair| assert!(fs::copy(&other, &path).unwrap() > 0);
    assert!(done_meanwhile(&mut pair, copy), "a copy over it");
    pair.settle();
    assert!(done_meanwhile(&mut pair, |_| cut(&path, 40)), "cut short");
    pair.settle();
    assert!(!done_meanwhile(&mut pair, |_| {}), "it is right again");
    assert_same(&pair.primary, &pair.replica);
}

#[test]
fn a_plain_sqlite_wrote_or_checkpointed_while_nobody_followed() {
    let mut pair = Pair::of_rows("verify-plain", 100);
    let path = pair.replica_path();
    let plain = Host::plain();
    for script in [
        "UPDATE t SET pad = x'00' WHERE i = 9",
        "PRAGMA wal_checkpoint(TRUNCATE); DELETE FROM t WHERE i > 50; VACUUM",
        "UPDATE t SET pad = x'00' WHERE i = 9; PRAGMA wal_checkpoint(TRUNCATE)",
        "CREATE TABLE mine(x)",
    ] {
        let blow = |_: &Pair| {
            let db = plain.open(&path);
            db.script(script);
            db.close();
        };
        assert!(done_meanwhile(&mut pair, blow), "{script}");
        assert_same(&pair.primary, &pair.replica);
    }
}

#[test]
fn a_cut_file_is_found_while_it_is_followed() {
    let pair = Pair::of_rows("verify-cut-file", 100);
    let pages = u64::try_from(pair.replica.int("PRAGMA page_count")).unwrap();
    cut(&pair.replica_path(), pages - 20);
    let error = pair.replica.fails(VERIFY);
    let named = format!("pages {}-{} (20 of {pages})", pages - 19, pages);
    assert!(error.contains(&named), "{error}");
    assert_eq!(pair.replica.text(REPAIR), format!("repaired pages {}-{}", pages - 19, pages));
    assert_same(&pair.primary, &pair.replica);
}

#[test]
fn a_wal_that_was_removed_while_it_is_followed_is_said() {
    let pair = Pair::of_rows("verify-no-wal", 20);
    fs::remove_file(pair.folder.file("r.db-wal")).unwrap();
    let error = until("the follower to notice", || {
        let error = pair.replica.value("SELECT error FROM litestream_databases");
        error.as_str().map(str::to_owned)
    });
    assert!(error.contains("r.db-wal was removed or replaced while it was followed"), "{error}");
    assert!(error.contains("close the database everywhere, then follow again"), "{error}");
    // As it says.
    pair.replica.int("SELECT litestream_stop('follow')");
    pair.replica.close();
    let replica = pair.replica_host.open(pair.folder.file("r.db"));
    follow(&replica, &pair.url);
    assert_eq!(replica.text(VERIFY), "ok");
    assert_same(&pair.primary, &replica);
}
