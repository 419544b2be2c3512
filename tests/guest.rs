//! A guest's manners: what the extension owes the process it lives in, and databases it must
//! refuse.
#![allow(clippy::unwrap_used, clippy::panic)]

mod common;

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use common::*;

/// A host with a served database in it that has work in flight: a follower, a writer, an idle peer.
fn busy_host(folder: &Folder) -> (Host, Host) {
    let (host, db) = ledger(folder.file("p.db"));
    let url = serve(&db);
    let other = Host::app();
    let replica = other.open(folder.file("r.db"));
    follow(&replica, &url);
    let writer = host.work("ledger_writer", json!({"path": folder.file("p.db")}));
    writer.advance(200);
    (host, other)
}

#[test]
fn python_exits_with_work_in_flight() {
    for _ in 0..3 {
        let folder = Folder::new("exit");
        let (host, other) = busy_host(&folder);
        let begin = Instant::now();
        assert!(host.quit().success());
        assert!(begin.elapsed() < Duration::from_secs(5), "{:?}", begin.elapsed());
        let begin = Instant::now();
        assert!(other.quit().success());
        assert!(begin.elapsed() < Duration::from_secs(5), "{:?}", begin.elapsed());
    }
}

#[test]
fn the_shell_quits_with_work_in_flight() {
    let folder = Folder::new("shell");
    let mut primary = Shell::start(&folder.file("p.db"));
    let url = primary.ask("SELECT litestream_serve('127.0.0.1:0');");
    assert!(url.starts_with("http://127.0.0.1:"), "{url}");
    assert_eq!(primary.ask("CREATE TABLE t(x); INSERT INTO t VALUES ('hello');"), "");
    let mut replica = Shell::start(&folder.file("r.db"));
    let pos = replica.ask(&format!("SELECT litestream_follow('{url}');"));
    assert_eq!(pos, primary.ask("SELECT litestream_pos();"));
    assert_eq!(replica.ask("SELECT x FROM t;"), "hello");
    let refused = replica.ask("INSERT INTO t VALUES (1);");
    assert!(refused.contains("database is locked"), "{refused}");
    primary.say("WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 20000)");
    primary.say("INSERT INTO t SELECT randomblob(1000) FROM n;");
    let begin = Instant::now();
    assert!(primary.quit().success());
    // Its status tells of the refused statement; that it ends at all is what counts.
    assert_eq!(replica.end_of_input().code(), Some(1));
    assert!(begin.elapsed() < Duration::from_secs(10), "{:?}", begin.elapsed());
    let plain = Host::plain();
    assert_eq!(plain.open(folder.file("p.db")).int("SELECT count(*) FROM t"), 20_001);
}

/// One shell that serves, archives and follows; a peer that has asked for the stream and reads no
/// more of the snapshot; a transaction just made: the shell quits, and nothing is lost.
#[test]
fn the_shell_quits_while_it_sends_and_receives_and_archives() {
    let folder = Folder::new("shell-all");
    let upstream = Host::app();
    let other = upstream.open(folder.file("other.db"));
    make_ledger(&other);
    let other_url = serve(&other);
    let load = json!({"path": folder.file("other.db"), "pause": 0.005});
    let writer = upstream.work("ledger_writer", load);
    let archive = folder.file("archive");
    for round in 1..=2_i64 {
        let mut shell = Shell::start(&folder.file("p.db"));
        let library = library().with_extension("");
        assert_eq!(shell.ask(&format!(".load {}", library.display())), "", "loaded twice");
        shell.ask("CREATE TABLE IF NOT EXISTS t(x);");
        let numbers = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n LIMIT 2500)";
        assert_eq!(
            shell.ask(&format!("{numbers} INSERT INTO t SELECT randomblob(3000) FROM n;")),
            ""
        );
        let url = shell.ask("SELECT litestream_serve('127.0.0.1:0');");
        let address = url.strip_prefix("http://").unwrap_or_else(|| panic!("{url}"));
        shell.ask(&format!("SELECT litestream_replicate('file://{}');", archive.display()));
        shell.ask(".connection 1");
        shell.ask(&format!(".open {}", folder.file("r.db").display()));
        shell.ask(&format!(".load {}", library.display()));
        let reached = shell.ask(&format!("SELECT litestream_follow('{other_url}');"));
        assert!(reached.contains('/'), "{reached}");
        shell.ask(".connection 0");
        let mut stalled = TcpStream::connect(address).unwrap();
        stalled.write_all(b"GET /stream HTTP/1.1\r\nHost: localhost\r\n\r\n").unwrap();
        stalled.read_exact(&mut [0; 64 << 10]).unwrap();
        shell.say(&format!("{numbers} INSERT INTO t SELECT randomblob(3000) FROM n;"));
        let begin = Instant::now();
        assert_eq!(shell.quit().code(), Some(0));
        assert!(begin.elapsed() < Duration::from_secs(5), "{:?}", begin.elapsed());
        let plain = Host::plain();
        let db = plain.open(folder.file("p.db"));
        assert_eq!(db.int("SELECT count(*) FROM t"), round * 5000);
        assert_eq!(db.text("PRAGMA integrity_check"), "ok");
    }
    writer.finish();
    // All of it goes on where it was.
    let (host, follower) = (Host::app(), Host::app());
    let (db, replica) = (host.open(folder.file("p.db")), host.open(folder.file("r.db")));
    let copy = follower.open(folder.file("copy.db"));
    follow(&copy, &serve(&db));
    db.text(&format!("SELECT litestream_replicate('file://{}')", archive.display()));
    follow(&replica, &other_url);
    assert_same(&db, &copy);
    assert_same(&other, &replica);
    db.text("SELECT litestream_sync()");
    let restored = folder.file("restored.db");
    let restore = format!("'file://{}', '{}'", archive.display(), restored.display());
    db.text(&format!("SELECT litestream_restore({restore})"));
    assert_eq!(host.open_plain(&restored).content(), db.content());
}

#[test]
fn run_blocks_until_interrupted() {
    let folder = Folder::new("run");
    let host = Host::app();
    let db = host.open(folder.file("p.db"));
    serve(&db);
    let run = db.send("SELECT litestream_run()");
    let another = host.open(folder.file("p.db"));
    another.run("CREATE TABLE t(x)").unwrap();
    // An interrupt that comes before the statement has begun is lost, so it is repeated.
    let outcome = until("the statement to end", || {
        db.interrupt();
        run.poll()
    });
    assert!(outcome.is_ok() || outcome.unwrap_err().contains("interrupt"));
    // In the shell, Ctrl-C does it.
    let mut shell = Shell::start(&folder.file("s.db"));
    let url = shell.ask("SELECT litestream_serve('127.0.0.1:0');");
    assert!(url.starts_with("http://"), "{url}");
    shell.say("SELECT litestream_run();");
    let replica = host.open(folder.file("r.db"));
    follow(&replica, &url);
    // A signal that comes before the statement has begun is lost. Once it runs it looks around now
    // and then, while a shell that waits for a line does nothing at all.
    let turns = shell.turns();
    until("the statement to run", || (shell.turns() >= turns + 3).then_some(()));
    let pid = shell.pid().to_string();
    let kill = std::process::Command::new("sh").args(["-c", "kill -INT $0", &pid]).status();
    assert!(kill.unwrap().success());
    // A shell that reads a script ends at Ctrl-C.
    shell.say("SELECT 'not reached';");
    let begin = Instant::now();
    let said = shell.wait();
    assert!(begin.elapsed() < Duration::from_secs(5), "{:?}", begin.elapsed());
    assert!(said.contains("interrupted") && !said.contains("not reached"), "{said}");
}

/// Long waits of every function end when the statement is interrupted.
#[test]
fn waits_can_be_interrupted() {
    let folder = Folder::new("interrupt");
    let host = Host::app();
    let db = host.open(folder.file("p.db"));
    serve(&db);
    let pos = db.text("SELECT litestream_pos()");
    let later = format!("{}7", &pos[..pos.len() - 1]);
    let replica = host.open(folder.file("r.db"));
    let dead = format!("http://127.0.0.1:{}/", free_port());
    for (db, call) in [
        (&db, "litestream_wait_followers(3, 60000)".to_owned()),
        (&db, format!("litestream_wait('{later}', 60000)")),
        (&replica, format!("litestream_follow('{dead}', '{{\"wait_ms\": 60000}}')")),
    ] {
        let waiting = db.send(&format!("SELECT {call}"));
        let begin = Instant::now();
        let outcome = until(&call, || {
            db.interrupt();
            waiting.poll()
        });
        assert!(outcome.as_ref().is_err_and(|error| error.contains("interrupt")), "{outcome:?}");
        assert!(begin.elapsed() < Duration::from_secs(3), "after {:?}", begin.elapsed());
    }
}

#[test]
fn a_forked_child_is_told_that_the_threads_stayed_behind() {
    let folder = Folder::new("fork");
    let host = Host::app();
    let db = host.open(folder.file("p.db"));
    let before = db.in_a_child(&folder.file("c.db"), "SELECT litestream_version()");
    assert!(before.unwrap()[0][0].as_str().unwrap().starts_with('v'));
    let url = serve(&db);
    for call in [
        "litestream_serve('127.0.0.1:0')".to_owned(),
        format!("litestream_follow('{url}')"),
        "litestream_stop()".to_owned(),
        "litestream_sync()".to_owned(),
        "litestream_snapshot()".to_owned(),
    ] {
        let error = db.in_a_child(&folder.file("c.db"), &format!("SELECT {call}")).unwrap_err();
        let name = call.split('(').next().unwrap();
        assert!(error.starts_with(name) && error.contains("fork"), "{call}: {error}");
    }
    // The parent noticed nothing.
    db.run("CREATE TABLE t(x)").unwrap();
    let other = Host::app();
    let replica = other.open(folder.file("r.db"));
    follow(&replica, &url);
    assert_same(&db, &replica);
}

#[test]
fn databases_that_cannot_be_replicated_are_refused() {
    let folder = Folder::new("refused");
    let host = Host::app();
    let check = |db: &Db, word: &str| {
        for call in ["litestream_serve('127.0.0.1:0')", "litestream_follow('http://127.0.0.1:1/')"]
        {
            let error = db.fails(&format!("SELECT {call}"));
            let name = call.split('(').next().unwrap();
            assert!(error.starts_with(&format!("{name}: ")) && error.contains(word), "{error}");
        }
    };
    check(&host.open(":memory:"), "in-memory");
    check(&host.open(""), "temporary");
    check(&host.open("file:shared?mode=memory&cache=shared"), "in-memory");
    let alone = host.open(folder.file("exclusive.db"));
    alone.script("PRAGMA locking_mode = EXCLUSIVE; PRAGMA journal_mode = WAL; CREATE TABLE t(x)");
    check(&alone, "EXCLUSIVE");
    alone.close();
    let path = folder.file("ro.db");
    host.open(&path).run("CREATE TABLE t(x)").unwrap();
    check(&host.open(format!("file:{}?mode=ro", path.display())), "read");
    let nolock = format!("file:{}?vfs=unix-none", folder.file("nolock.db").display());
    let db = host.open(nolock);
    db.run("CREATE TABLE t(x)").unwrap();
    let outcome = db.run("SELECT litestream_serve('127.0.0.1:0')");
    assert!(outcome.unwrap_err().starts_with("litestream_serve: "));
    let text = folder.file("text.db");
    std::fs::write(&text, "this is no database, ".repeat(1000)).unwrap();
    let db = host.open(&text);
    let error = db.fails("SELECT litestream_serve('127.0.0.1:0')");
    assert!(error.starts_with("litestream_serve: ") && error.contains("not a database"), "{error}");
    let other = host.open(":memory:");
    assert_eq!(other.int("SELECT count(*) FROM litestream_databases"), 0);
}

#[test]
fn an_exclusive_neighbour_is_an_error_and_no_hang() {
    let folder = Folder::new("neighbour");
    let path = folder.file("p.db");
    let plain = Host::plain();
    let alone = plain.open(&path);
    alone.script("PRAGMA journal_mode = WAL; PRAGMA locking_mode = EXCLUSIVE; CREATE TABLE t(x)");
    let host = Host::app();
    let db = host.try_open(&path, json!({"timeout": 0.2})).unwrap();
    let begin = Instant::now();
    let error = db.fails("SELECT litestream_serve('127.0.0.1:0')");
    assert!(error.starts_with("litestream_serve: ") && error.contains("locked"), "{error}");
    assert!(begin.elapsed() < Duration::from_secs(15), "{:?}", begin.elapsed());
    alone.run("INSERT INTO t VALUES (1)").unwrap();
    alone.close();
    serve(&db);
}

#[test]
fn an_attached_database_is_meant_by_its_schema() {
    let folder = Folder::new("attached");
    let host = Host::app();
    let db = host.open(folder.file("main.db"));
    let aux = folder.file("aux.db");
    db.run(&format!("ATTACH '{}' AS aux", aux.display())).unwrap();
    db.script("CREATE TABLE aux.t(x); INSERT INTO aux.t VALUES (42)");
    let url = db.text("SELECT litestream_serve('127.0.0.1:0', '{\"schema\": \"aux\"}')");
    let paths = db.rows("SELECT path FROM litestream_databases");
    assert_eq!(paths, [json!([aux])]);
    let replica = host.open(folder.file("r.db"));
    follow(&replica, &url);
    assert_eq!(replica.int("SELECT x FROM t"), 42);
    // `main` is neither primary nor replica: who forgets to name the other one is told.
    let of_aux = json!({"schema": "aux"});
    let refused = db.fails("SELECT litestream_sync()");
    assert!(refused.contains("main.db is not served or archived"), "{refused}");
    assert_eq!(db.value("SELECT litestream_pos()"), Value::Null);
    let pos = db.text(&format!("SELECT litestream_pos('{of_aux}')"));
    assert_eq!(db.text(&format!("SELECT litestream_sync('{of_aux}')")), pos);
    assert_eq!(db.text(&format!("SELECT litestream_sync(9000, '{of_aux}')")), pos);
    db.text(&format!("SELECT litestream_snapshot('{of_aux}')"));
    db.text(&format!("SELECT litestream_checkpoint('{of_aux}')"));
    db.text(&format!("SELECT litestream_checkpoint('FULL', '{of_aux}')"));
    assert_eq!(db.int(&format!("SELECT litestream_wait_followers(1, '{of_aux}')")), 1);
    let attached = host.open(":memory:");
    attached.run(&format!("ATTACH '{}' AS aux", folder.file("r.db").display())).unwrap();
    assert_eq!(attached.int(&format!("SELECT litestream_wait('{pos}', '{of_aux}')")), 1);
    assert_eq!(attached.int(&format!("SELECT litestream_wait('{pos}', 9, '{of_aux}')")), 1);
    assert!(attached.value(&format!("SELECT litestream_lag('{of_aux}')")).is_f64());
    attached.text(&format!("SELECT litestream_promote('{of_aux}')"));
    attached.run("INSERT INTO aux.t VALUES (43)").unwrap();
    assert_eq!(db.int("SELECT litestream_stop()"), 0);
    assert_eq!(db.int(&format!("SELECT litestream_stop('follow', '{of_aux}')")), 0);
    assert_eq!(db.int(&format!("SELECT litestream_stop('{of_aux}')")), 1);
}

/// Paths a user may have: spaces, quotes, percent signs, more than ASCII, symbolic links.
#[test]
fn unusual_paths_work() {
    let folder = Folder::new("paths");
    for name in ["with space & 'quote'.db", "50%25.db", "h\u{e9}llo \u{1f600}.db", "#?x=1.db"] {
        let (host, other) = (Host::app(), Host::app());
        let db = host.open(folder.file(name));
        db.run("CREATE TABLE t(x)").unwrap();
        let link = folder.file("link.db");
        std::os::unix::fs::symlink(folder.file(name), &link).unwrap();
        let url = serve(&db);
        let through = host.open(&link);
        assert_eq!(serve(&through), url, "the same database under another name");
        let replica = other.open(folder.file(&format!("r-{name}")));
        follow(&replica, &url);
        through.run("INSERT INTO t VALUES (1)").unwrap();
        assert_same(&db, &replica);
        std::fs::remove_file(link).unwrap();
    }
}

/// A database that is deleted, or replaced, while it is served: an error in the table, and the host
/// lives.
#[test]
fn a_database_deleted_while_served_does_no_harm() {
    let folder = Folder::new("deleted");
    let (host, db) = ledger(folder.file("p.db"));
    let other = Host::app();
    let url = serve(&db);
    let replica = other.open(folder.file("r.db"));
    follow(&replica, &url);
    for name in ["p.db", "p.db-wal", "p.db-shm", "r.db", "r.db-wal", "r.db-shm"] {
        std::fs::remove_file(folder.file(name)).unwrap();
    }
    for name in ["p.db-litestream", "r.db-litestream"] {
        std::fs::remove_dir_all(folder.file(name)).unwrap();
    }
    let _whatever_sqlite_says = db.run("INSERT INTO entry VALUES (1, x'00')");
    assert_eq!(db.int("SELECT count(*) FROM litestream_databases"), 1);
    assert_eq!(db.text("SELECT typeof(litestream_version())"), "text");
    let begin = Instant::now();
    assert!(host.quit().success());
    assert!(other.quit().success());
    assert!(begin.elapsed() < Duration::from_secs(10), "{:?}", begin.elapsed());
}

/// Python's sqlite3 and another SQLite in one process: the second to load the extension is refused.
#[test]
fn a_second_sqlite_in_the_process_is_refused() {
    let (module, folder) = other_versions().into_iter().find(|(name, _)| *name == "apsw").unwrap();
    assert_eq!(module, "apsw");
    const SCRIPT: &str = "
import sys, sqlite3
sys.path.insert(0, sys.argv[1])
import apsw
one = sqlite3.connect(':memory:'); one.enable_load_extension(True); one.load_extension(sys.argv[2])
two = apsw.Connection(':memory:'); two.enable_load_extension(True)
try:
    two.load_extension(sys.argv[2])
    print('loaded')
except apsw.Error as error:
    print(error)
print(one.execute('SELECT litestream_version()').fetchone()[0])
";
    let said = said_by(&mut python_script(SCRIPT, &[&folder, &library()]));
    let mut lines = said.lines();
    assert!(lines.next().unwrap().contains("another SQLite library"), "{said}");
    assert!(lines.next().unwrap().starts_with('v'), "{said}");
}
