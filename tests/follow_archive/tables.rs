//! The tables: what is in the log and in archives, whose and which alone is asked.

use std::time::Instant;

use super::common::*;
use super::hosts::{folder_url, replicate};

/// A primary with two archives, and something in them.
fn archived(folder: &Folder) -> (Host, Db, [String; 2]) {
    let (host, db) = ledger(folder.file("p.db"));
    let urls = ["one", "two"].map(|name| folder_url(&folder.file(name)));
    for url in &urls {
        replicate(&db, url, json!({}));
    }
    for n in 1..5 {
        db.run(&format!("INSERT INTO ledger VALUES ({n}, 0, 0)")).unwrap();
        db.text("SELECT litestream_sync()");
    }
    (host, db, urls)
}

#[test]
fn the_log_and_every_archive_are_listed() {
    let folder = Folder::new("tables");
    let (_host, db, urls) = archived(&folder);
    let [one, two] = &urls;
    for table in ["litestream_snapshots", "litestream_wal_segments", "litestream_generations"] {
        let replicas = format!("SELECT DISTINCT replica FROM {table} ORDER BY 1");
        assert_eq!(json!(db.rows(&replicas)), json!([[one], [two], ["local"]]), "{table}");
        let check = |filter: &str, expected: Value| {
            let sql = format!("SELECT DISTINCT replica FROM {table} AS t {filter} ORDER BY 1");
            assert_eq!(json!(db.rows(&sql)), expected, "{sql}");
        };
        check("WHERE replica = 'local'", json!([["local"]]));
        check(&format!("WHERE replica = '{one}'"), json!([[one]]));
        check(&format!("WHERE '{two}' = replica"), json!([[two]]));
        check(&format!("WHERE replica IN ('local', '{two}', 'x')"), json!([[two], ["local"]]));
        check(&format!("WHERE replica = 'local' OR replica = '{one}'"), json!([[one], ["local"]]));
        check("WHERE replica <> 'local'", json!([[one], [two]]));
        check("WHERE replica = 'LOCAL'", json!([]));
        check("WHERE replica = 'LOCAL' COLLATE NOCASE", json!([["local"]]));
        check("WHERE replica = 'local  ' COLLATE RTRIM", json!([["local"]]));
        check("WHERE replica IS NULL OR replica = NULL OR replica = 7", json!([]));
        check("WHERE replica = 'local' AND replica = 'x'", json!([]));
        check("WHERE replica = 'file:///elsewhere'", json!([]));
        check(
            "WHERE (replica = 'local' AND generation > '') OR size > 0 AND replica LIKE '%one'",
            json!([[one], ["local"]]),
        );
        // Each row once, whichever way it is looked for.
        let all = db.int(&format!("SELECT count(*) FROM {table}"));
        for filter in [
            "replica = 'local' OR generation > ''",
            "replica = 'local' OR size > 0",
            "replica >= ''",
            "replica = 'local' OR replica <> 'local'",
        ] {
            assert_eq!(db.int(&format!("SELECT count(*) FROM {table} WHERE {filter}")), all);
        }
        check("JOIN litestream_replicas AS r ON r.url = t.replica", json!([[one], [two]]));
        check("WHERE replica = (SELECT max(url) FROM litestream_replicas)", json!([[two]]));
        // One by one, in either order of nesting.
        let counts = |from: &str| {
            let sql =
                format!("SELECT r.url, count(t.generation) FROM {from} GROUP BY 1 ORDER BY 1");
            json!(db.rows(&sql))
        };
        let join = counts(&format!("litestream_replicas r JOIN {table} t ON t.replica = r.url"));
        let cross =
            counts(&format!("{table} t CROSS JOIN litestream_replicas r ON t.replica = r.url"));
        let left =
            counts(&format!("litestream_replicas r LEFT JOIN {table} t ON t.replica = r.url"));
        let called = counts(&format!("litestream_replicas r JOIN {table}(r.url) t"));
        let called_left =
            counts(&format!("litestream_replicas r LEFT JOIN {table}(r.url, '{{}}') t"));
        let backward = counts(&format!("{table}(r.url) t JOIN litestream_replicas r"));
        assert!([&cross, &left, &called, &called_left, &backward].iter().all(|it| **it == join));
        let none = format!(
            "SELECT count(*), count(t.replica) FROM (SELECT 'x' AS url) r
            LEFT JOIN {table} t ON t.replica = r.url"
        );
        assert_eq!(json!(db.rows(&none)), json!([[1, 0]]));
    }
}

#[test]
fn only_what_is_asked_for_is_contacted() {
    let folder = Folder::new("tables-broken");
    let (_host, db, urls) = archived(&folder);
    // Nobody can list what is no folder.
    std::fs::rename(folder.file("two"), folder.file("three")).unwrap();
    std::fs::write(folder.file("two"), "no folder").unwrap();
    for table in ["litestream_snapshots", "litestream_wal_segments", "litestream_generations"] {
        let count = |filter: &str| db.run(&format!("SELECT count(*) FROM {table} {filter}"));
        let error = count("").unwrap_err();
        assert!(error.contains(&urls[1]), "{error}");
        assert!(error.contains("WHERE replica = 'local'"), "{error}");
        assert!(count(&format!("WHERE replica = '{}'", urls[1])).is_err());
        assert!(count("WHERE replica = 'local'").unwrap()[0][0].as_i64().unwrap() > 0);
        let one = format!("WHERE replica = '{}'", urls[0]);
        assert!(count(&one).unwrap()[0][0].as_i64().unwrap() > 0);
        let either = format!("WHERE replica IN ('local', '{}')", urls[0]);
        assert!(count(&either).unwrap()[0][0].as_i64().unwrap() > 0);
    }
    std::fs::remove_file(folder.file("two")).unwrap();
    std::fs::rename(folder.file("three"), folder.file("two")).unwrap();
    assert!(db.int("SELECT count(*) FROM litestream_snapshots") > 2);
}

#[test]
fn an_archive_is_listed_from_anywhere() {
    let folder = Folder::new("tables-anywhere");
    let (_host, db, urls) = archived(&folder);
    let elsewhere = Host::app();
    let memory = elsewhere.open(":memory:");
    let url = &urls[0];
    let theirs = "SELECT replica, generation, idx, size, pos FROM litestream_snapshots".to_owned();
    assert_eq!(
        memory.rows(&format!("{theirs}('{url}')")),
        db.rows(&format!("{theirs} WHERE replica = '{url}'"))
    );
    let row = memory.rows(&format!("SELECT * FROM litestream_generations('{url}')"))[0].clone();
    let pos = db.text("SELECT litestream_pos()");
    assert_eq!(row[0], json!(url));
    assert_eq!(row[2], 1);
    assert_eq!(row[4], json!(pos), "its end is the position it was synced at");
    assert_eq!(row.as_array().unwrap().len(), 8, "hidden columns are hidden");
    let local = db.rows(
        "SELECT generation, start FROM litestream_generations
        WHERE replica = 'local'",
    )[0]
    .clone();
    assert_eq!(json!([row[1], row[3]]), local);
    let created = memory.text(&format!("SELECT created_at FROM litestream_wal_segments('{url}')"));
    assert!(created.starts_with("20") && created.ends_with('Z'), "{created}");
    // What was said of the archive: where, but never how.
    let secret =
        json!({"secret_access_key": "hunter2", "age_identities": ["AGE-SECRET-KEY-1HUNTER3"]});
    let said = memory
        .run(&format!("SELECT archive, options FROM litestream_snapshots('{url}', '{secret}')"));
    match said {
        Ok(rows) => assert_eq!(rows[0], json!([url, null])),
        Err(error) => {
            assert!(!error.to_lowercase().contains("hunter"), "{error}")
        }
    }
    let said = memory.rows(&format!(
        "SELECT archive, options FROM litestream_snapshots('{url}', '{{\"region\": \"x\"}}')"
    ));
    assert_eq!(said[0], json!([url, null]));
    let both = format!("SELECT count(*) FROM litestream_snapshots('{url}')");
    assert_eq!(memory.int(&format!("{both} WHERE archive = '{url}'")), memory.int(&both));
    assert_eq!(memory.int(&format!("{both} WHERE replica = 'local'")), 0);
    assert!(memory.rows("SELECT * FROM litestream_snapshots('file:///nothing/there')").is_empty());
    assert!(memory.rows("SELECT * FROM litestream_snapshots").is_empty());
    for (sql, why) in [
        ("SELECT * FROM litestream_snapshots('nowhere')", "nowhere"),
        ("SELECT * FROM litestream_snapshots('http://127.0.0.1')", "http"),
        ("SELECT * FROM litestream_snapshots(x'00')", "not blob"),
        ("SELECT * FROM litestream_snapshots('file:///x', '{\"x\": 1}')", "unknown option"),
    ] {
        let error = memory.fails(sql);
        assert!(error.contains(why), "{sql}: {error}");
    }
}

/// A schema is somebody else's code: it must not make a reader of it list what it likes.
#[test]
fn a_schema_cannot_list_archives() {
    let folder = Folder::new("tables-schema");
    let host = Host::app();
    let db = host.open(folder.file("a.db"));
    let url = folder_url(&folder.file("store"));
    for (number, table) in
        ["litestream_snapshots", "litestream_wal_segments", "litestream_generations"]
            .iter()
            .enumerate()
    {
        for from in [format!("{table}('{url}')"), (*table).to_owned()] {
            db.script(&format!(
                "DROP VIEW IF EXISTS spy{number}; CREATE VIEW spy{number} AS SELECT * FROM {from}"
            ));
            let error = db.fails(&format!("SELECT * FROM spy{number}"));
            assert!(error.contains("unsafe use of virtual table"), "{error}");
        }
    }
    db.script(
        "CREATE TABLE t(x); CREATE TRIGGER spy AFTER INSERT ON t BEGIN
        INSERT INTO t SELECT count(*) FROM litestream_generations; END",
    );
    assert!(db.fails("INSERT INTO t VALUES (1)").contains("unsafe use of virtual table"));
}

/// Every version of SQLite plans in its own way.
#[test]
fn every_sqlite_version_asks_for_the_same() {
    let folder = Folder::new("tables-versions");
    let (_host, _db, urls) = archived(&folder);
    for module in other_versions() {
        let host = Host::of(&module, true);
        let db = host.open(":memory:");
        let begun = Instant::now();
        let [one, two] = &urls;
        db.script(&format!("CREATE TABLE u(url); INSERT INTO u VALUES ('{one}'), ('{two}')"));
        let sql = "SELECT url, replica = url, count(*) FROM u JOIN litestream_wal_segments(url)
            GROUP BY 1 ORDER BY 1";
        let rows = db.rows(sql);
        assert_eq!(rows.len(), 2, "SQLite {}: {rows:?}", host.version());
        assert!(rows.iter().all(|row| row[1] == 1 && row[2].as_i64().unwrap() > 0), "{rows:?}");
        let sql = format!(
            "SELECT count(*) FROM u LEFT JOIN litestream_snapshots('{one}') s
            ON s.replica = u.url"
        );
        assert_eq!(db.int(&sql), 2);
        assert!(begun.elapsed() < DEADLINE);
    }
}

/// NULL is nobody's URL: no rows, as with every other comparison with it.
#[test]
fn no_archive_has_no_rows() {
    let folder = Folder::new("tables-null");
    let (_host, db, urls) = archived(&folder);
    for table in ["litestream_snapshots", "litestream_wal_segments", "litestream_generations"] {
        for from in [
            format!("{table}(NULL)"),
            format!("{table}(NULL, NULL)"),
            format!("{table}(NULL, '{{\"region\": \"x\"}}')"),
            format!("{table} WHERE archive = NULL"),
            format!("{table}(NULL) WHERE replica = 'local'"),
        ] {
            assert_eq!(db.int(&format!("SELECT count(*) FROM {from}")), 0, "{from}");
        }
        assert!(
            db.fails(&format!("SELECT * FROM {table}(NULL, '{{\"x\": 1}}')")).contains("\"x\"")
        );
        let listed = db.rows(&format!(
            "WITH wanted(url) AS (VALUES ('{}'), (NULL))
             SELECT url, count(found.generation) > 0
             FROM wanted LEFT JOIN {table}(wanted.url) AS found GROUP BY url ORDER BY url",
            urls[0]
        ));
        assert_eq!(listed, [json!([null, 0]), json!([urls[0], 1])]);
    }
}
