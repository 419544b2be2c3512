//! An application in C with threads (host.c): connections that open, load, serve, follow, write,
//! stop and close in any order at once, and an end of the process in the middle of it. Every row
//! that was committed is there, and a replica in another process has it.
#![allow(clippy::unwrap_used, clippy::panic, clippy::print_stdout, missing_docs)]

#[path = "../common/mod.rs"]
mod common;

use std::io::{BufRead, BufReader, Lines};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, Stdio};

use common::*;

const THREADS: usize = 6;

fn compile(folder: &Folder) -> PathBuf {
    let source = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/threads/host.c");
    let program = folder.file("host");
    let compiler = std::env::var("CC").unwrap_or_else(|_| "cc".to_owned());
    let flags = ["-Wall", "-Wextra", "-Werror", "-g", "-O1", source, "-o"];
    // No package for developers is needed for that name.
    let libraries = ["-lpthread", "-l:libsqlite3.so.0"];
    let built = Command::new(compiler).args(flags).arg(&program).args(libraries).status().unwrap();
    assert!(built.success(), "{source} does not compile");
    program
}

/// The application, running.
struct Threads {
    child: Child,
    lines: Lines<BufReader<ChildStdout>>,
}

impl Threads {
    /// `sqlite`: of which folder, if not the system's.
    fn start(folder: &Folder, how: &str, address: &str, sqlite: Option<&Path>) -> Threads {
        let mut command = Command::new(compile(folder));
        command.arg(how).arg(library()).arg(folder.file("p.db")).arg(folder.file("r.db"));
        command.args([address, &THREADS.to_string(), &scaled(20, 300).to_string()]);
        command.arg(Rng::new().number().to_string()).stdin(Stdio::piped()).stdout(Stdio::piped());
        if let Some(sqlite) = sqlite {
            command.env("LD_LIBRARY_PATH", sqlite);
        }
        let mut child = command.spawn().unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        Threads { child, lines }
    }

    fn line(&mut self) -> String {
        self.lines.next().expect("the application says what it committed").unwrap()
    }

    /// How many rows each thread has committed at least.
    fn committed(&mut self) -> Vec<i64> {
        let mut rows = Vec::new();
        for thread in 0..THREADS {
            let line = self.line();
            let (name, count) = line.split_once(' ').unwrap();
            assert_eq!(name, thread.to_string(), "{line}");
            rows.push(count.parse().unwrap());
        }
        rows
    }

    /// Waits until it has ended, as it should.
    fn end(mut self) {
        let status = until("the application to end", || self.child.try_wait().unwrap());
        let rest: Vec<String> = self.lines.by_ref().map_while(Result::ok).collect();
        assert!(status.success(), "{status}: {rest:?}");
    }
}

impl Drop for Threads {
    fn drop(&mut self) {
        let _gone_already = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Each thread's rows are there in order, as many as it said at least, and nobody else's.
fn assert_rows(db: &Db, committed: &[i64]) {
    assert_eq!(db.text("PRAGMA integrity_check"), "ok");
    let rows = db.rows("SELECT thread, count(*), min(n), max(n) FROM t GROUP BY thread");
    for (thread, least) in committed.iter().enumerate() {
        let found = rows.iter().find(|row| row[0] == thread);
        let Some(row) = found else { panic!("thread {thread}: {least} rows, none is there") };
        assert!(row[1].as_i64().unwrap() >= *least, "{row} is less than {least} rows");
        assert_eq!((&row[1], row[2].as_i64()), (&row[3], Some(1)), "a hole: {row}");
    }
    assert_eq!(rows.len(), committed.len(), "{rows:?}");
}

fn stops_in_order(name: &str, sqlite: Option<&Path>) {
    let folder = Folder::new(name);
    let address = format!("127.0.0.1:{}", free_port());
    let mut threads = Threads::start(&folder, "join", &address, sqlite);
    let other = Host::app();
    let replica = other.open(folder.file("other.db"));
    let wait = "{\"wait_ms\": 0}";
    replica.run(&format!("SELECT litestream_follow('http://{address}', '{wait}')")).unwrap();
    let committed = threads.committed();
    println!("{name}: {committed:?} rows");
    assert_eq!(threads.line(), "serves");
    // It stands by, for a position to compare at.
    let standby = Host::app();
    let db = standby.open(folder.file("p.db"));
    db.text(&format!("SELECT litestream_serve('{address}')"));
    assert_same(&db, &replica);
    assert_rows(&replica, &committed);
    drop(threads.child.stdin.take());
    threads.end();
}

#[test]
fn threads_in_any_order_lose_nothing() {
    stops_in_order("threads", None);
}

#[test]
fn with_the_oldest_sqlite_too() {
    stops_in_order("threads-oldest", Some(&oldest().1));
}

#[test]
fn main_returns_while_they_work() {
    for _ in 0..scaled(4, 50) {
        let folder = Folder::new("threads-exit");
        let address = format!("127.0.0.1:{}", free_port());
        let mut threads = Threads::start(&folder, "exit", &address, None);
        let committed = threads.committed();
        threads.end();
        assert_rows(&Host::plain().open(folder.file("p.db")), &committed);
        // Somebody goes on with what it left.
        let (host, other) = (Host::app(), Host::app());
        let (db, replica) = (host.open(folder.file("p.db")), other.open(folder.file("other.db")));
        follow(&replica, &serve(&db));
        db.run("DELETE FROM t WHERE n % 3 = 0").unwrap();
        assert_same(&db, &replica);
    }
}
