//! As users have it: a primary that archives, replicas of the archive in processes of their own,
//! and readers that never heard of any of this.

use std::path::Path;
use std::time::Duration;

use super::common::*;

/// Archives into a folder, often.
pub fn replicate(db: &Db, url: &str, more: Value) -> String {
    let mut options = json!({"sync_interval": "50ms"});
    options.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    db.text(&format!("SELECT litestream_replicate('{url}', '{options}')"))
}

/// Follows an archive, looking often.
pub fn follow_archive(db: &Db, url: &str, more: Value) -> String {
    let mut options = json!({"poll_interval": "50ms"});
    options.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    db.text(&format!("SELECT litestream_follow('{url}', '{options}')"))
}

/// Waits until the replica has everything, by way of the archive, and compares all of it.
pub fn assert_same_through(primary: &Db, replica: &Db) {
    let pos = primary.text("SELECT litestream_sync()");
    let reached = replica.int(&format!("SELECT litestream_wait('{pos}', 55000)"));
    assert_eq!(reached, 1, "the replica never reached {pos}");
    assert_eq!(primary.content(), replica.content(), "the replica differs at {pos}");
    assert_eq!(replica.text("PRAGMA integrity_check"), "ok");
}

pub fn folder_url(path: &Path) -> String {
    format!("file://{}", path.display())
}

/// Readers in other processes, on a replica that is killed now and then.
#[test]
fn readers_see_whole_transactions_whatever_happens_to_the_replica() {
    let folder = Folder::new("archive-bank");
    let (path, copy) = (folder.file("p.db"), folder.file("r.db"));
    let url = folder_url(&folder.file("store"));
    let host = Host::app();
    let db = host.open(&path);
    let writer = host.work("bank_writer", json!({"path": path, "create": true, "pause": 0.002}));
    writer.advance(1);
    replicate(&db, &url, json!({}));
    let mut other = Host::app();
    let mut replica = other.open(&copy);
    follow_archive(&replica, &url, json!({}));
    let outside = Host::plain();
    let reads: Vec<Work> = ["tight", "long", "reopen"]
        .map(|mode| outside.work("bank_reader", json!({"path": copy, "mode": mode})))
        .into();
    let busy = host.open(&path);
    busy.run("PRAGMA busy_timeout = 20000").unwrap();
    let mut rng = Rng::new();
    for round in 0..scaled(4, 120) {
        writer.advance(25);
        std::thread::sleep(Duration::from_millis(rng.below(300)));
        if round % 3 == 1 {
            busy.run("VACUUM").unwrap();
            busy.run("SELECT litestream_checkpoint('TRUNCATE')").unwrap();
        }
        other.kill();
        other = Host::app();
        replica = other.open(&copy);
        assert_ne!(replica.value("SELECT litestream_pos()"), Value::Null, "it knows where it is");
        follow_archive(&replica, &url, json!({}));
        assert_eq!(snapshots_received(&replica), 0, "it went on where it was");
    }
    writer.finish();
    assert_same_through(&db, &replica);
    for work in reads {
        let report = work.finish();
        assert!(report["states"].as_u64().unwrap() > 5, "the replica hardly moved: {report}");
    }
    assert!(replica.fails("DELETE FROM accounts").contains("locked"));
    replica.text("SELECT litestream_promote()");
    replica.run("DELETE FROM moves").unwrap();
}

/// The primary is killed and comes back; then it is gone, and another one goes on from its file.
#[test]
fn ten_replicas_of_an_archive_outlive_its_primary() {
    let folder = Folder::new("archive-ten");
    let path = folder.file("p.db");
    let url = folder_url(&folder.file("store"));
    let (mut host, mut db) = ledger(&path);
    replicate(&db, &url, json!({}));
    let others: Vec<Host> = (0..2).map(|_| Host::app()).collect();
    let replicas: Vec<Db> =
        (0..10).map(|n| others[n % 2].open(folder.file(&format!("r{n}.db")))).collect();
    for replica in &replicas {
        follow_archive(replica, &url, json!({}));
    }
    for round in 0..4 {
        let load = json!({"path": path, "pause": 0.0005});
        let writer = host.work("ledger_writer", load);
        writer.advance(300);
        if round < 2 {
            host.kill();
            host = Host::app();
        } else {
            writer.finish();
            db.run("SELECT litestream_stop()").unwrap();
            // Somebody else writes and restarts the WAL: what follows is another history.
            let sql = "INSERT INTO ledger VALUES (-1, 0, 0); VACUUM; \
                PRAGMA wal_checkpoint(TRUNCATE)";
            Host::plain().open(&path).script(sql);
        }
        db = host.open(&path);
        replicate(&db, &url, json!({}));
    }
    for replica in &replicas {
        assert_same_through(&db, replica);
        assert_eq!(replica.value("SELECT error FROM litestream_databases"), Value::Null);
    }
    let generations = db.int(&format!("SELECT count(*) FROM litestream_generations('{url}')"));
    assert!(generations > 1, "there was another history");
    host.kill();
    let late = others[0].open(folder.file("late.db"));
    follow_archive(&late, &url, json!({}));
    assert_eq!(late.content(), replicas[0].content());
}

/// What the upstream's log does not hold any more comes out of the archive, not as a snapshot.
#[test]
fn a_follower_catches_up_from_an_archive() {
    for helps in [true, false] {
        let folder = Folder::new("archive-catch-up");
        let (path, copy) = (folder.file("p.db"), folder.file("r.db"));
        let url = folder_url(&folder.file("store"));
        let (_host, db) = ledger(&path);
        let start = || {
            let sql = "SELECT litestream_serve('127.0.0.1:0', '{\"log_bytes\": 1048576}')";
            let live = db.text(sql);
            if helps {
                replicate(&db, &url, json!({}));
            }
            let options = json!({"archive": url, "poll_interval": 0.05});
            format!("SELECT litestream_follow('{live}', '{options}')")
        };
        let other = Host::app();
        let replica = other.open(&copy);
        replica.text(&start());
        assert_same(&db, &replica);
        let taken = snapshots_received(&replica);
        assert_eq!(replica.int("SELECT litestream_stop('follow')"), 1);
        let pos = replica.text("SELECT litestream_pos()");
        until("the log to drop the replica's position", || {
            db.run(
                "INSERT INTO entry SELECT value, randomblob(9000) FROM json_each('[1,2,3,4]')
                 WHERE true ON CONFLICT DO UPDATE SET pad = excluded.pad",
            )
            .unwrap();
            let oldest = "SELECT min(pos) FROM litestream_wal_segments WHERE replica = 'local'";
            (db.text(oldest) > pos).then_some(())
        });
        // What is no longer on disk may still be in its memory.
        db.run("SELECT litestream_stop()").unwrap();
        replica.text(&start());
        assert_same(&db, &replica);
        let caught = "SELECT count(*) FROM litestream_log WHERE message LIKE '%catching up from%'";
        assert_eq!(replica.int(caught), i64::from(helps));
        assert_eq!(snapshots_received(&replica) - taken, i64::from(!helps));
        assert_eq!(replica.text("SELECT state FROM litestream_databases"), "streaming");
        // From here on it is live.
        db.run("INSERT INTO ledger VALUES (7, 7, 7)").unwrap();
        assert_same(&db, &replica);
    }
}

/// An archive that nobody can read without the key: with it, it is followed as any other.
#[test]
fn an_encrypted_archive_is_followed() {
    let folder = Folder::new("archive-age");
    let url = folder_url(&folder.file("store"));
    let (_host, db) = ledger(folder.file("p.db"));
    let identity = age::x25519::Identity::generate();
    let secret = identity.to_string();
    let secret = age::secrecy::ExposeSecret::expose_secret(&secret);
    replicate(&db, &url, json!({"age_recipients": identity.to_public().to_string()}));
    let other = Host::app();
    let replica = other.open(folder.file("r.db"));
    let follow = format!("SELECT litestream_follow('{url}', '{{\"wait_ms\": 3000}}')");
    let error = replica.fails(&follow);
    assert!(error.contains("age_identities"), "{error}");
    replica.run("SELECT litestream_stop()").unwrap();
    follow_archive(&replica, &url, json!({"age_identities": secret}));
    for n in 0..12 {
        db.run(&format!("INSERT INTO entry VALUES ({n}, zeroblob(200000))")).unwrap();
        if n % 5 == 4 {
            db.run("SELECT litestream_checkpoint('TRUNCATE')").unwrap();
        }
    }
    assert_same_through(&db, &replica);
    replica.run("SELECT litestream_stop()").unwrap();
    db.run("INSERT INTO entry VALUES (100, zeroblob(9000))").unwrap();
    follow_archive(&replica, &url, json!({"age_identities": [secret]}));
    assert_same_through(&db, &replica);
    assert_eq!(snapshots_received(&replica), 1);
    let said = replica.rows("SELECT * FROM litestream_log");
    assert!(!json!(said).to_string().contains("AGE-SECRET-KEY"), "keys are not shown");
}
