//! Several archives of a database, several processes on one database.

use crate::common::*;
use crate::primary::{Primary, place};

#[test]
fn each_archive_has_everything() {
    let folder = Folder::new("archive-several");
    let primary = Primary::new(&folder, "{}");
    let second = folder.file("second");
    let url = format!("file://{}", second.display());
    primary.add(2);
    primary.db.text(&format!(
        r#"SELECT litestream_replicate('{url}', '{{"layout": "v0.3", "sync_interval": "50ms"}}')"#
    ));
    let load = primary.load(0.001);
    load.advance(100);
    load.finish();
    let pos = primary.sync();
    for archive in [&primary.archive, &second] {
        let archived = read_only_generation(archive);
        archived.assert_whole();
        assert_eq!(archived.end(), place(&pos), "{}", archive.display());
        primary.assert_restores(&archived);
    }
    primary.next_index();
    let snapshot = primary.db.text("SELECT litestream_snapshot()");
    for archive in [&primary.archive, &second] {
        let archived = read_only_generation(archive);
        assert!(archived.snapshots.contains_key(&place(&snapshot).0), "{}", archive.display());
    }
    assert_eq!(primary.db.int("SELECT count(*) FROM litestream_replicas"), 2);
    assert_eq!(primary.db.int("SELECT litestream_stop('replicate')"), 1, "one kind of work");
    assert_eq!(primary.db.int("SELECT count(*) FROM litestream_replicas"), 0);
}

/// One folder is one archive, whatever it is called; and no database's log is one.
#[test]
fn one_archive_by_any_name() {
    let folder = Folder::new("archive-names");
    let primary = Primary::new(&folder, "{}");
    std::os::unix::fs::symlink(&primary.archive, folder.file("link")).unwrap();
    let real = primary.archive.display().to_string();
    let names = [
        format!("file:{real}/"),
        format!("file://{}", real.replace("/archive", "/./x/../archive")),
        format!("file://{}", folder.file("link").display()),
    ];
    let other = primary.host.open(folder.file("other.db"));
    other.script("CREATE TABLE t(x)");
    for name in &names {
        let call = format!("SELECT litestream_replicate('{name}')");
        assert_eq!(primary.db.text(&call), primary.url(), "{name}");
        let error = other.fails(&call);
        assert!(error.contains("another database's archive"), "{name}: {error}");
    }
    let own = format!("{}-litestream", primary.path.display());
    for name in
        [own.clone(), format!("{own}/"), format!("{own}/archives/x"), format!("{own}/a/../b")]
    {
        for db in [&primary.db, &other] {
            let error = db.fails(&format!("SELECT litestream_replicate('file://{name}')"));
            assert!(error.contains("of its own"), "{name}: {error}");
        }
    }
    assert_eq!(primary.db.int("SELECT count(*) FROM litestream_replicas"), 1);
}

/// One that lags is named, and the other is not held up.
#[test]
fn a_sync_names_the_archive_that_lags() {
    let folder = Folder::new("archive-lags");
    let primary = Primary::new(&folder, "{}");
    let second = folder.file("second");
    let url = format!("file://{}", second.display());
    primary.db.text(&format!("SELECT litestream_replicate('{url}')"));
    std::fs::rename(&second, folder.file("aside")).unwrap();
    std::fs::write(&second, "").unwrap();
    primary.add(1);
    let pos = primary.db.text("SELECT litestream_pos()");
    let error = primary.db.fails("SELECT litestream_sync(700)");
    assert!(error.contains("not archived within 700 ms"), "{error}");
    assert!(error.contains(&url) && !error.contains(&primary.url()), "{error}");
    assert!(error.contains("last error: "), "{error}");
    assert_eq!(read_only_generation(&primary.archive).end(), place(&pos));
    std::fs::remove_file(&second).unwrap();
    std::fs::rename(folder.file("aside"), &second).unwrap();
    assert_eq!(primary.sync(), pos);
    assert_eq!(read_only_generation(&second).end(), place(&pos));
}

/// Processes of one application: one captures and archives, the next takes over.
#[test]
fn whoever_captures_archives() {
    let folder = Folder::new("archive-standby");
    let mut primary = Primary::new(&folder, r#"{"sync_interval": "20ms"}"#);
    let pos = primary.sync();
    for _ in 0..scaled(2, 10) {
        let next = Primary::idle(primary.path.clone(), primary.archive.clone(), &primary.options);
        next.replicate();
        assert_eq!(next.db.text("SELECT state FROM litestream_replicas"), "standby");
        let error = next.db.fails("SELECT litestream_sync(5000)");
        assert!(error.contains("another process captures"), "{error}");
        let load = next.load(0.001);
        load.advance(50);
        primary.host.kill();
        load.advance(50);
        load.finish();
        until("the next to take over", || {
            next.replica("state").contains("streaming").then_some(())
        });
        primary = next;
        assert_eq!(primary.told("new generation"), 0);
        primary.assert_archived();
    }
    assert_eq!(generation(&pos), generation(&primary.sync()));
    assert_eq!(read_archive(&primary.archive).len(), 1);
}

/// Databases in one process, each with its prefix.
#[test]
fn databases_side_by_side() {
    let folder = Folder::new("archive-many");
    let host = Host::app();
    let mut databases = Vec::new();
    for number in 0..scaled(8, 40) {
        let db = host.open(folder.file(&format!("{number}.db")));
        db.script("CREATE TABLE t(x); INSERT INTO t VALUES (1)");
        let archive = folder.file("archive").join(number.to_string());
        db.text(&format!("SELECT litestream_replicate('file://{}')", archive.display()));
        databases.push((db, archive));
    }
    for (db, archive) in &databases {
        db.run("INSERT INTO t VALUES (2)").unwrap();
        let pos = db.text("SELECT litestream_sync()");
        assert_eq!(read_only_generation(archive).end(), place(&pos));
    }
    for (db, _) in &databases {
        assert_eq!(db.int("SELECT litestream_stop()"), 1);
    }
}
