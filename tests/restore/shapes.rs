//! Databases of every shape: page sizes, VACUUM, shrinking and growing again, several generations,
//! more than a gigabyte.

use std::fs;

use crate::common::*;
use crate::support::*;

/// Restores the latest state and a few others, and compares.
fn check(primary: &Primary, rng: &mut Rng) {
    let host = Host::app();
    let db = host.open(":memory:");
    let path = primary.folder.file("out.db");
    let urls = primary.archive();
    for url in &urls {
        let last = primary.history.last().unwrap();
        restore(&db, url, &path, &json!({})).unwrap();
        assert_is(&primary.plain, &path, last);
        fs::remove_file(&path).unwrap();
    }
    for _ in 0..scaled(3, 30) {
        let state = &primary.history[rng.index(primary.history.len())];
        let url = &urls[rng.index(urls.len())];
        restore(&db, url, &path, &json!({"pos": state.pos})).unwrap();
        assert_is(&primary.plain, &path, state);
        fs::remove_file(&path).unwrap();
    }
}

const ROWS: &str = "WITH n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 60)
    INSERT INTO t SELECT NULL, randomblob(1500) FROM n";

#[test]
fn all_page_sizes() {
    let mut rng = Rng::new();
    for shift in 9..=16 {
        let table =
            format!("PRAGMA page_size = {}; CREATE TABLE t(id INTEGER PRIMARY KEY, x)", 1 << shift);
        let mut primary = Primary::start("restore-page-size", &table);
        primary.archive();
        primary.commit(ROWS);
        primary.db.text("SELECT litestream_checkpoint('RESTART')");
        primary.commit("UPDATE t SET x = randomblob(700) WHERE id % 3 = 0");
        primary.commit("DELETE FROM t WHERE id > 30");
        assert_eq!(primary.db.int("PRAGMA page_size"), 1 << shift);
        check(&primary, &mut rng);
    }
}

#[test]
fn databases_that_shrink_and_grow() {
    let mut rng = Rng::new();
    for vacuum in ["NONE", "FULL", "INCREMENTAL"] {
        let table = format!(
            "PRAGMA page_size = 1024; PRAGMA auto_vacuum = {vacuum};
             CREATE TABLE t(id INTEGER PRIMARY KEY, x)"
        );
        let mut primary = Primary::start("restore-shrink", &table);
        primary.archive();
        for round in 0..scaled(3, 12) {
            primary.commit(ROWS);
            primary.commit("DELETE FROM t WHERE id % 4 > 0");
            primary.commit("PRAGMA incremental_vacuum(7)");
            if round % 2 == 0 {
                primary.db.text("SELECT litestream_checkpoint('RESTART')");
            }
            primary.commit("VACUUM");
            if round % 3 == 1 {
                primary.db.text("SELECT litestream_checkpoint('TRUNCATE')");
                primary.commit("DELETE FROM t");
                primary.snapshot();
            }
            primary.commit("VACUUM");
            primary.db.text("SELECT litestream_checkpoint('RESTART')");
            primary.commit("INSERT INTO t VALUES (NULL, randomblob(90000))");
        }
        check(&primary, &mut rng);
    }
}

/// A generation that ended, and one that goes on: the latest is the second's, and a time or a
/// position in the first still comes back.
#[test]
fn across_generations() {
    let mut primary = Primary::start("restore-generations", "CREATE TABLE t(x)");
    primary.commit("INSERT INTO t VALUES (1)");
    primary.archive();
    let before = primary.history.clone();
    assert_eq!(primary.db.int("SELECT litestream_stop()"), 1);
    fs::remove_dir_all(beside(&primary.path, "-litestream")).unwrap();
    primary.db.run("INSERT INTO t VALUES (2)").unwrap();
    serve(&primary.db);
    primary.remember();
    primary.commit("INSERT INTO t VALUES (3)");
    let (last, old) = (primary.history.last().unwrap().clone(), before.last().unwrap());
    assert_ne!(generation(&last.pos), generation(&old.pos));
    let host = Host::app();
    let db = host.open(":memory:");
    let path = primary.folder.file("out.db");
    for url in primary.archive() {
        let asked = [
            (json!({}), &last),
            (json!({"timestamp": iso(last.at)}), &last),
            (json!({"timestamp": iso(old.at)}), old),
            (json!({"pos": old.pos}), old),
            (json!({"generation": generation(&old.pos)}), old),
            (json!({"generation": generation(&last.pos)}), &last),
        ];
        for (options, state) in asked {
            assert_eq!(restore(&db, &url, &path, &options).unwrap(), state.pos, "{options}");
            assert_is(&primary.plain, &path, state);
            fs::remove_file(&path).unwrap();
        }
    }
}

/// Past the first gigabyte lies a page SQLite never uses. The file stays sparse.
#[test]
fn more_than_a_gigabyte() {
    if !soak() {
        return;
    }
    let blob = "INSERT INTO t VALUES (NULL, zeroblob(300000000));".repeat(4);
    let table = "PRAGMA page_size = 65536; CREATE TABLE t(id INTEGER PRIMARY KEY, x);";
    let mut primary = Primary::start("restore-large", &format!("{table} {blob}"));
    primary.commit("INSERT INTO t VALUES (NULL, randomblob(100000))");
    primary.snapshot();
    primary.commit("UPDATE t SET x = randomblob(10) WHERE id = 2");
    let host = Host::app();
    let db = host.open(":memory:");
    let path = primary.folder.file("out.db");
    for url in primary.archive() {
        restore(&db, &url, &path, &json!({})).unwrap();
        assert_is(&primary.plain, &path, primary.history.last().unwrap());
        fs::remove_file(&path).unwrap();
    }
}
