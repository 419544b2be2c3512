//! kill -9 of the primary at any moment: what was synced is in the archive, what is in the archive
//! was committed, and the next process goes on where the last one was.

use crate::common::*;
use crate::primary::{Primary, pause_up_to, place};

/// The rows of the ledger from one on.
fn rows(db: &Db, from: i64, to: i64) -> String {
    db.text(&format!(
        "SELECT group_concat(n || ':' || hex(pad)) FROM
         (SELECT n, pad FROM entry WHERE n BETWEEN {from} AND {to} ORDER BY n)"
    ))
}

fn ledger(db: &Db) -> i64 {
    db.int("SELECT n FROM ledger")
}

#[test]
fn a_killed_primary_loses_nothing_that_was_synced() {
    let folder = Folder::new("archive-kill");
    let options = r#"{"sync_interval": "20ms", "log_bytes": 1048576}"#;
    let mut primary = Primary::new(&folder, options);
    let rounds = scaled(4, 200);
    let mut broken = 0;
    for round in 0..rounds {
        // No faster than an unoptimized build compresses.
        let load = primary.load(0.003);
        load.advance(30);
        let synced = (round % 2 == 0).then(|| {
            let n = ledger(&primary.db);
            primary.sync();
            n
        });
        load.advance(Rng::new().below(150));
        pause_up_to(60);
        let Primary { path, archive, options, host, db: _ } = primary;
        host.kill();

        // As the archive is now: whole, and not behind what was synced.
        let copies = Host::app();
        let nowhere = copies.open(":memory:");
        let copy = folder.file("copy.db");
        let url = format!("file://{}", archive.display());
        let reached =
            nowhere.text(&format!("SELECT litestream_restore('{url}', '{}')", copy.display()));
        // All of it takes longer the more there is: the long form does not look each time.
        if round % scaled(1, 20) == 0 {
            let archived = read_archive(&archive);
            let newest = archived.iter().find(|it| it.generation == generation(&reached)).unwrap();
            newest.assert_whole();
            assert_eq!(newest.end(), place(&reached), "round {round}");
            println!("round {round} of {rounds}");
        }
        let copy = copies.open_plain(&copy);
        let n = ledger(&copy);
        assert!(synced.is_none_or(|synced| synced <= n), "round {round}: {n} of {synced:?}");
        assert_eq!(copy.text("PRAGMA integrity_check"), "ok");

        // The archive's state is one the primary had.
        primary = Primary::idle(path, archive, &options);
        primary.replicate();
        broken += primary.told("new generation");
        assert!(ledger(&primary.db) >= n, "round {round}: the archive is ahead");
        let first = primary.db.int("SELECT min(n) FROM entry");
        if first <= n {
            assert_eq!(rows(&copy, first, n), rows(&primary.db, first, n), "round {round}");
        }
        copy.close();
        std::fs::remove_file(folder.file("copy.db")).unwrap();
    }
    primary.add(1);
    primary.assert_archived();
    // Killed between a restart of the WAL and our seeing it, nothing proves it was the only one.
    println!("new histories: {broken} of {rounds}");
    assert!(broken <= 1 + rounds / 20, "{broken}");
}

/// The bytes sent are each sent once, whenever the process dies.
#[test]
fn a_killed_primary_sends_nothing_twice() {
    let folder = Folder::new("archive-kill-once");
    let mut primary = Primary::new(&folder, r#"{"sync_interval": "5ms"}"#);
    let mut sent = objects(&primary.archive);
    for _ in 0..scaled(5, 60) {
        let load = primary.load(0.001);
        load.advance(20);
        pause_up_to(50);
        primary = primary.killed_and_restarted();
        primary.sync();
        let now = objects(&primary.archive);
        let others = |(key, _): &(&String, _)| !key.ends_with("position");
        assert!(sent.iter().filter(others).all(|(key, facts)| now.get(key) == Some(facts)));
        sent = now;
    }
    // Checked in there: each byte of each index is there once.
    primary.assert_archived();
}
