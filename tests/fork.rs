//! Children of `fork`: they have none of our threads and must not act as if they had, nor keep what
//! only the parent can answer for.
#![allow(clippy::unwrap_used, clippy::panic)]

mod common;

use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use common::*;

fn kill(pid: i64) {
    let status = Command::new("kill").args(["-9", &pid.to_string()]).status();
    assert!(status.unwrap().success());
}

/// A child that outlives its parent once kept the parent's port: whoever took over could not listen
/// there, and followers waited for a connection that nobody served.
#[test]
fn a_child_that_outlives_its_parent_keeps_nothing_of_it() {
    let folder = Folder::new("outlive");
    let socket = format!("unix:{}", folder.file("s.sock").display());
    for address in [format!("127.0.0.1:{}", free_port()), socket] {
        let path = folder.file(&format!("{}.db", address.len()));
        let (host, next) = (Host::app(), Host::app());
        let (db, successor) = (host.open(&path), next.open(&path));
        make_ledger(&db);
        let serve_at = format!("SELECT litestream_serve('{address}')");
        let url = db.text(&serve_at);
        assert_eq!(successor.text(&serve_at), url);
        let other = Host::app();
        let replica = other.open(path.with_extension("replica"));
        follow(&replica, &url);
        let child = db.fork("stay");
        // A child of the follower must not keep its connection either.
        let another = replica.fork("stay");
        db.run("INSERT INTO entry VALUES (1, x'01')").unwrap();
        assert_same(&db, &replica);
        host.kill();
        until("the successor to serve", || {
            let state = successor.text("SELECT state || ' ' || addr FROM litestream_databases");
            (state == format!("running {url}")).then_some(())
        });
        successor.run("INSERT INTO entry VALUES (2, x'02')").unwrap();
        assert_same(&successor, &replica);
        let errors = successor.value("SELECT error FROM litestream_databases");
        assert_eq!(errors, Value::Null);
        other.kill();
        until("the server to see that the follower has gone", || {
            (successor.int("SELECT count(*) FROM litestream_followers") == 0).then_some(())
        });
        kill(child);
        kill(another);
    }
}

/// Children come and go, in every way, while everything runs; the parent notices nothing.
#[test]
fn a_parent_goes_on_whatever_its_children_do() {
    let folder = Folder::new("children");
    let (host, db) = ledger(folder.file("p.db"));
    let other = Host::app();
    let socket = folder.file("s.sock");
    let url = db.text(&format!("SELECT litestream_serve('unix:{}')", socket.display()));
    let replica = other.open(folder.file("r.db"));
    let begin = follow(&replica, &url);
    let writer = host.work("ledger_writer", json!({"path": folder.file("p.db"), "pause": 0.002}));
    for _ in 0..scaled(5, 100) {
        for how in ["at once", "exit"] {
            assert_eq!(db.fork(how), 0, "{how}");
            assert_eq!(replica.fork(how), 0, "{how}");
        }
        writer.advance(5);
    }
    writer.finish();
    assert!(socket.exists());
    let end = assert_same(&db, &replica);
    assert_eq!(generation(&begin), generation(&end));
    let told = "SELECT count(*) FROM litestream_log WHERE level <> 'info'";
    assert_eq!((db.int(told), replica.int(told)), (0, 0));
}

/// Python's multiprocessing, forking from a process that serves.
#[test]
fn a_pool_of_processes_works_beside_a_server() {
    const SCRIPT: &str = "
import multiprocessing, sqlite3, sys
db = sqlite3.connect(sys.argv[1], isolation_level=None)
db.enable_load_extension(True)
db.load_extension(sys.argv[2])
print(db.execute('SELECT litestream_serve(?)', ('127.0.0.1:0',)).fetchone()[0], flush=True)
db.execute('CREATE TABLE squares(n, square)')
def square(n):
    return n * n
for round in range(int(sys.argv[3])):
    with multiprocessing.get_context('fork').Pool(3) as pool:
        for n, result in enumerate(pool.map(square, range(20))):
            db.execute('INSERT INTO squares VALUES (?, ?)', (n, result))
print(db.execute('SELECT litestream_pos()').fetchone()[0], flush=True)
sys.stdin.read()
";
    let folder = Folder::new("pool");
    let rounds = scaled(3, 100);
    let path = folder.file("p.db");
    let mut parent = python_script(SCRIPT, &[&path, &library(), &rounds.to_string()])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut said = BufReader::new(parent.stdout.take().unwrap()).lines().map(Result::unwrap);
    let url = said.next().unwrap();
    let other = Host::app();
    let replica = other.open(folder.file("r.db"));
    follow(&replica, &url);
    let pos = said.next().expect("it ended before its work was done");
    assert_eq!(replica.int(&format!("SELECT litestream_wait('{pos}', 55000)")), 1);
    assert_eq!(replica.int("SELECT count(*) FROM squares"), rounds * 20);
    drop(parent.stdin.take());
    assert!(until("the parent to exit", || parent.try_wait().unwrap()).success());
}

/// Every call answers in a child, at once, though a thread that exists in the parent only may have
/// had any of our locks when it was forked.
#[test]
fn every_call_in_a_child_answers_at_once() {
    let folder = Folder::new("calls");
    let (_host, db) = ledger(folder.file("p.db"));
    let other = Host::app();
    let url = serve(&db);
    let replica = other.open(folder.file("r.db"));
    let pos = follow(&replica, &url);
    // In another process: threads of the host's own could have any lock of SQLite at a fork.
    let writer = other.work("ledger_writer", json!({"path": folder.file("p.db"), "pause": 0.001}));
    let archive = format!("file://{}", folder.file("archive").display());
    let refused = [
        "SELECT litestream_serve('127.0.0.1:0')".to_owned(),
        format!("SELECT litestream_follow('{url}')"),
        format!("SELECT litestream_replicate('{archive}')"),
        format!("SELECT litestream_restore('{archive}', '{}')", folder.file("x.db").display()),
        format!("SELECT litestream_wait('{pos}', 60000)"),
        "SELECT litestream_wait_followers(1, 60000)".to_owned(),
        "SELECT litestream_pos()".to_owned(),
        "SELECT litestream_lag()".to_owned(),
        "SELECT litestream_promote()".to_owned(),
        "SELECT litestream_stop()".to_owned(),
        "SELECT litestream_run()".to_owned(),
        "SELECT litestream_snapshot()".to_owned(),
        "SELECT litestream_sync()".to_owned(),
        "SELECT litestream_checkpoint()".to_owned(),
        "SELECT * FROM litestream_databases".to_owned(),
        "SELECT * FROM litestream_followers".to_owned(),
        "SELECT * FROM litestream_replicas".to_owned(),
        "SELECT * FROM litestream_log".to_owned(),
    ];
    let asked = ["SELECT litestream_version()", "SELECT litestream_pos_compare(NULL, NULL)"];
    let begin = Instant::now();
    for _ in 0..scaled(4, 100) {
        for call in &refused {
            let error = db.in_a_child(&folder.file("c.db"), call).unwrap_err();
            assert!(error.contains("forked from process"), "{call}: {error}");
        }
        for call in asked {
            db.in_a_child(&folder.file("c.db"), call).unwrap();
        }
        for table in ["litestream_snapshots", "litestream_wal_segments", "litestream_generations"] {
            let call = format!("SELECT count(*) FROM {table}");
            if let Err(error) = db.in_a_child(&folder.file("c.db"), &call) {
                assert!(error.contains("forked from process"), "{call}: {error}");
            }
        }
    }
    assert!(begin.elapsed() < scaled(Duration::from_secs(60), Duration::from_secs(600)));
    writer.finish();
    assert_same(&db, &replica);
}
