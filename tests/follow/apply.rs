//! Commits of a real database, applied under readers.

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use litestream::host::file::Door;

use super::folder::Folder;
use super::scene::MODERN;
use super::support::{catch_up, dump, follow, open, pages};
use super::upstream::{Manners, Primary, Upstream};

const BANK: &str = "CREATE TABLE account(id INTEGER PRIMARY KEY, balance INTEGER);
    CREATE TABLE log(n INTEGER PRIMARY KEY, pad BLOB);
    WITH RECURSIVE c(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM c WHERE i < 100)
    INSERT INTO account SELECT i, 1000 FROM c";

/// A process that reads `path` over and over and reports, when its input ends, what it saw wrong.
struct Reader(Child);

impl Reader {
    fn start(path: &Path, hold_ms: u32) -> Self {
        const SCRIPT: &str = "
import sqlite3, sys, time, threading
path, hold = sys.argv[1], int(sys.argv[2]) / 1000
done = threading.Event()
threading.Thread(target=lambda: (sys.stdin.read(), done.set()), daemon=True).start()
db = sqlite3.connect('file:' + path + '?mode=ro', uri=True, timeout=5, isolation_level=None)
print('ready', flush=True)
reads, last, wrong = 0, -1, []
while not done.is_set():
    try:
        db.execute('BEGIN')
        total = db.execute('SELECT sum(balance) FROM account').fetchone()[0]
        top = db.execute('SELECT coalesce(max(n), 0) FROM log').fetchone()[0]
        if hold: time.sleep(hold)
        again = db.execute('SELECT coalesce(max(n), 0), count(*) FROM log').fetchone()
        db.execute('COMMIT')
        if total != 100000: wrong.append(f'sum {total}')
        if top < last: wrong.append(f'back from {last} to {top}')
        if again[0] != top: wrong.append('not stable')
        if reads % 50 == 0:
            check = db.execute('PRAGMA integrity_check').fetchone()[0]
            if check != 'ok': wrong.append(check)
        last = top
        reads += 1
    except sqlite3.Error as error:
        wrong.append(str(error))
        if db.in_transaction: db.execute('ROLLBACK')
print(reads, last, wrong[:5], flush=True)
";
        let mut child = Command::new("python3")
            .args(["-c", SCRIPT])
            .arg(path)
            .arg(hold_ms.to_string())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = String::new();
        let mut out = BufReader::new(child.stdout.as_mut().unwrap());
        out.read_line(&mut line).unwrap();
        assert_eq!(line.trim(), "ready");
        Self(child)
    }

    /// Reads done, the last row seen, and complaints.
    fn end(mut self) -> String {
        drop(self.0.stdin.take());
        let output = self.0.wait_with_output().unwrap();
        String::from_utf8_lossy(&output.stdout).trim().to_owned()
    }
}

/// Moves money about and logs it; now and then something larger.
fn work(primary: &mut Primary, n: u32) {
    let (from, to) = (n * 7 % 100 + 1, n * 13 % 100 + 1);
    primary.run(&format!(
        "BEGIN; UPDATE account SET balance = balance - {n} WHERE id = {from};
         UPDATE account SET balance = balance + {n} WHERE id = {to};
         INSERT INTO log VALUES ({n}, randomblob({})); COMMIT",
        n * 37 % 9000
    ));
    match n % 50 {
        10 => primary.run("CREATE TABLE extra(x); INSERT INTO extra VALUES (randomblob(50000))"),
        20 => primary.run("DROP TABLE extra"),
        30 => primary.run(&format!("DELETE FROM log WHERE n < {} AND n % 2", n)),
        40 => primary.run("VACUUM"),
        45 => primary.restart(n % 100 == 45),
        _ => {}
    }
}

fn follow_a_bank(page_size: u32, manners: Manners) {
    let folder = Folder::new("follow-bank");
    let mut primary = Primary::new(&folder.file("primary.db"), page_size, BANK);
    for n in 1..60 {
        work(&mut primary, n);
    }
    let upstream = Upstream::serve(primary.history.clone(), manners);
    let path = folder.file("replica.db");
    let follower = follow(&path, &upstream.url);
    catch_up(&follower);
    let readers: Vec<Reader> = [0, 3, 40].map(|hold| Reader::start(&path, hold)).into();
    for n in 60..300 {
        work(&mut primary, n);
        upstream.set(primary.history.clone());
        if n % 40 == 0 {
            let end = primary.history.end();
            assert!(follower.wait(end, Duration::from_secs(60)), "{:?}", follower.status());
        }
    }
    let end = primary.history.end();
    assert!(follower.wait(end, Duration::from_secs(60)), "{:?}", follower.status());
    for reader in readers {
        let said = reader.end();
        assert!(said.ends_with("[]"), "{said}");
    }
    assert_eq!(dump(&path), dump(&primary.path));
    assert_eq!(upstream.snapshots_sent(), 1);
    let local = open(&path);
    local.busy_timeout(0).unwrap();
    let refused = local.execute("INSERT INTO log VALUES (9999, 0)").unwrap_err();
    assert!(refused.to_string().contains("locked"), "{refused}");
    drop(local);
    follower.stop().unwrap();
    assert!(pages(&path) == primary.pages(&folder.file("expected.db")), "the pages differ");
}

#[test]
fn readers_see_whole_transactions_512() {
    follow_a_bank(512, MODERN);
}

#[test]
fn readers_see_whole_transactions_4096() {
    follow_a_bank(4096, MODERN);
}

#[test]
fn readers_see_whole_transactions_65536() {
    follow_a_bank(65536, MODERN);
}

#[test]
fn readers_see_whole_transactions_of_an_ancestor() {
    follow_a_bank(4096, Manners::default());
}

#[test]
fn readers_see_whole_transactions_that_come_in_pieces() {
    follow_a_bank(1024, Manners { modern: true, split_frames: 3 });
}

#[test]
fn a_transaction_larger_than_memory_is_shown_whole() {
    let folder = Folder::new("follow-large");
    let mut primary = Primary::new(&folder.file("primary.db"), 4096, BANK);
    let manners = Manners { modern: true, split_frames: 500 };
    let upstream = Upstream::serve(primary.history.clone(), manners);
    let path = folder.file("replica.db");
    let follower = follow(&path, &upstream.url);
    catch_up(&follower);
    let reader = Reader::start(&path, 0);
    primary.run(
        "BEGIN; INSERT INTO log VALUES (1, zeroblob(30000000));
         UPDATE account SET balance = balance + 5 WHERE id = 1;
         UPDATE account SET balance = balance - 5 WHERE id = 2; COMMIT",
    );
    upstream.set(primary.history.clone());
    let end = primary.history.end();
    assert!(follower.wait(end, Duration::from_secs(60)), "{:?}", follower.status());
    let said = reader.end();
    assert!(said.ends_with("[]"), "{said}");
    follower.stop().unwrap();
    assert!(pages(&path) == primary.pages(&folder.file("expected.db")), "the pages differ");
}

#[test]
fn others_find_it_locked_until_the_first_snapshot_is_whole() {
    let folder = Folder::new("follow-first");
    let primary = Primary::new(&folder.file("primary.db"), 4096, BANK);
    let path = folder.file("replica.db");
    // The application's own connection, opened before, on a file that is still empty.
    std::fs::write(&path, b"").unwrap();
    let application = open(&path);
    assert_eq!(application.query_i64("SELECT count(*) FROM sqlite_master").unwrap(), 0);
    let upstream = Upstream::serve(primary.history.clone(), MODERN);
    let follower = follow(&path, &upstream.url);
    catch_up(&follower);
    assert_eq!(application.query_i64("SELECT sum(balance) FROM account").unwrap(), 100_000);
    let mode = application.query_text("PRAGMA journal_mode").unwrap();
    assert_eq!(mode.as_deref(), Some("wal"));
    follower.stop().unwrap();
}

/// The words of a region that recovery makes too: all but iChange, the header's checksum, and what
/// checkpointers and readers left.
fn made_by_recovery(path: &Path) -> Vec<Vec<u32>> {
    let door = Door::open(path, "").unwrap();
    let mut regions = Vec::new();
    while let Some(region) = door.map(regions.len() as u32, false).unwrap() {
        let mut words: Vec<u32> = (0..8192).map(|at| region.load_u32(at * 4)).collect();
        if regions.is_empty() {
            for at in [2, 10, 11].into_iter().chain(12..34) {
                words[at] = 0;
            }
        }
        regions.push(words);
    }
    regions
}

#[test]
fn the_wal_index_is_what_recovery_would_make() {
    let folder = Folder::new("follow-index");
    let mut primary = Primary::new(&folder.file("primary.db"), 512, BANK);
    let manners = Manners { modern: true, split_frames: 300 };
    let upstream = Upstream::serve(primary.history.clone(), manners);
    let path = folder.file("replica.db");
    let follower = follow(&path, &upstream.url);
    catch_up(&follower);
    // A long read keeps the WAL from starting over.
    let reader = open(&path);
    reader.execute("BEGIN").unwrap();
    reader.query_i64("SELECT count(*) FROM log").unwrap();
    for n in 1..40 {
        primary.run(&format!("INSERT INTO log VALUES ({n}, randomblob(90000))"));
        upstream.set(primary.history.clone());
    }
    primary.run("UPDATE account SET balance = balance + 1; DELETE FROM log WHERE n % 3");
    upstream.set(primary.history.clone());
    assert!(follower.wait(primary.history.end(), Duration::from_secs(60)));
    let ours = made_by_recovery(&path);
    assert!(ours.len() > 2, "{} regions", ours.len());
    let copy = folder.file("copy.db");
    std::fs::copy(folder.file("replica.db-wal"), folder.file("copy.db-wal")).unwrap();
    // The database itself is not opened here: that would drop this process's locks on it.
    let status = Command::new("cp").arg(&path).arg(&copy).status().unwrap();
    assert!(status.success());
    let theirs = made_by_recovery(&copy);
    assert_eq!(ours.len(), theirs.len());
    for (number, (ours, theirs)) in ours.iter().zip(&theirs).enumerate() {
        let differ = ours.iter().zip(theirs).position(|(a, b)| a != b);
        assert_eq!(differ, None, "a word of region {number}");
    }
    drop(reader);
    follower.stop().unwrap();
}
