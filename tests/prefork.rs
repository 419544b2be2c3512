//! A preforking web server: every worker calls litestream_serve with the same arguments, one of
//! them serves. It is killed again and again while requests write; another one takes over, and the
//! follower has every row a client was told of, from one history, without a second snapshot.
#![allow(clippy::unwrap_used, clippy::panic, clippy::print_stdout)]

mod common;

use std::io::{Read, Write};
use std::net::TcpStream;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use common::*;

const WORKERS: usize = 4;
const CLIENTS: usize = 3;

/// One request to a web server; None if nobody answered it whole.
fn ask(port: u16, request: &str) -> Option<String> {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).ok()?;
    stream.set_read_timeout(Some(DEADLINE)).ok()?;
    stream.write_all(format!("{request} HTTP/1.0\r\nHost: localhost\r\n\r\n").as_bytes()).ok()?;
    let mut text = String::new();
    stream.read_to_string(&mut text).ok()?;
    let (head, body) = text.split_once("\r\n\r\n")?;
    head.lines().next()?.contains(" 200").then(|| body.to_owned())
}

/// The web server: its parent process, and where its application answers.
struct Web {
    parent: Child,
    port: u16,
    _stdin: ChildStdin,
}

impl Web {
    fn start(mut server: Command, port: impl FnOnce(&mut Child) -> u16) -> Web {
        let mut parent = server.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let port = port(&mut parent);
        until("the web server to answer", || ask(port, "GET /"));
        Web { _stdin: parent.stdin.take().unwrap(), parent, port }
    }
}

impl Drop for Web {
    fn drop(&mut self) {
        let _gone_already = self.parent.kill();
        let _ = self.parent.wait();
    }
}

/// Clients that write until told to stop. What they were told of is there to stay.
struct Clients {
    stop: Arc<AtomicBool>,
    newest: Arc<AtomicU64>,
    threads: Vec<JoinHandle<u64>>,
}

impl Clients {
    fn start(port: u16, pause: Duration) -> Clients {
        let (stop, newest) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let client = || {
            let (stop, newest) = (Arc::clone(&stop), Arc::clone(&newest));
            std::thread::spawn(move || {
                let mut count = 0;
                while !stop.load(Ordering::Relaxed) {
                    // A worker that is killed may take a request with it.
                    if let Some(number) = ask(port, "POST /").and_then(|body| body.parse().ok()) {
                        newest.fetch_max(number, Ordering::Relaxed);
                        count += 1;
                    }
                    std::thread::sleep(pause);
                }
                count
            })
        };
        let threads = (0..CLIENTS).map(|_| client()).collect();
        Clients { stop, newest, threads }
    }

    /// The newest row anybody was told of.
    fn newest(&self) -> i64 {
        i64::try_from(self.newest.load(Ordering::Relaxed)).unwrap()
    }

    fn finish(self) -> u64 {
        self.stop.store(true, Ordering::Relaxed);
        self.threads.into_iter().map(|client| client.join().unwrap()).sum()
    }
}

/// The process that has the lock on the log's folder: the one that serves.
fn server_of(path: &Path) -> Option<u32> {
    let lock = PathBuf::from(format!("{}-litestream/lock", path.display()));
    let inode = format!(":{}", std::fs::metadata(lock).ok()?.ino());
    let all = std::fs::read_to_string("/proc/locks").unwrap();
    let fields = all.lines().map(|line| line.split_whitespace().collect::<Vec<_>>());
    let mut held = fields.filter(|field| field[1] == "POSIX" && field[5].ends_with(&inode));
    held.next()?[4].parse().ok()
}

/// What a run came to.
struct Outcome {
    /// Rows that clients were told of.
    answered: u64,
    /// How often the follower received the database from its beginning.
    snapshots: i64,
    /// Why those who took over began another history.
    parted: Vec<String>,
}

/// Half of the rounds took no longer, and the longest.
fn spread(times: &mut [Duration]) -> String {
    times.sort();
    format!("half within {:?}, all within {:?}", times[times.len() / 2], times[times.len() - 1])
}

/// Why the worker that serves began another history, if it did.
fn why_parted(web: &Web, serving: u32) -> Option<String> {
    let log = until("the worker that serves to answer", || {
        let answer: Value = serde_json::from_str(&ask(web.port, "GET /")?).unwrap();
        (answer["pid"].as_u64() == Some(u64::from(serving))).then(|| answer["log"].clone())
    });
    let messages = log.as_array().unwrap().iter().map(|line| line.as_str().unwrap());
    let mut newest_first = messages.rev();
    let begun = newest_first.find(|line| line.starts_with("new generation "));
    begun.map(|line| line.split_once(": ").unwrap().1.to_owned())
}

/// Kills the worker that serves, `rounds` times.
fn kill_the_serving_worker(
    name: &str,
    rounds: usize,
    pause: Duration,
    start: impl FnOnce(&Path, &str) -> Web,
) -> Outcome {
    let folder = Folder::new(name);
    let path = folder.file("p.db");
    let plain = Host::plain();
    make_ledger(&plain.open(&path));
    let port = free_port();
    let address = format!("127.0.0.1:{port}");
    let web = start(&path, &address);
    let clients = Clients::start(web.port, pause);
    let other = Host::app();
    let replica = other.open(folder.file("r.db"));
    follow(&replica, &format!("http://{address}"));
    let (mut served, mut applied, mut parted) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..rounds {
        let serving = until("a worker to serve", || server_of(&path)).to_string();
        let begin = Instant::now();
        assert!(Command::new("kill").args(["-9", &serving]).status().unwrap().success());
        until("another worker to serve", || ask(port, "GET /healthz"));
        served.push(begin.elapsed());
        let committed = clients.newest();
        until("the replica to have what was committed meanwhile", || {
            (replica.int("SELECT n FROM ledger") >= committed).then_some(())
        });
        applied.push(begin.elapsed());
        let heir = until("the lock to be somebody's", || server_of(&path));
        assert_ne!(heir.to_string(), serving);
        parted.extend(why_parted(&web, heir));
        let goal = clients.newest() + 10;
        until("more requests to be answered", || (clients.newest() >= goal).then_some(()));
        // Rows may hide what pages tell: that a commit in between was missed.
        assert_eq!(replica.text("SELECT litestream_verify()"), "ok");
    }
    let newest = clients.newest();
    let answered = clients.finish();
    println!("{name}: {rounds} kills, {answered} rows; served again: {}", spread(&mut served));
    println!("{name}: on the replica: {}", spread(&mut applied));
    // One more that stands by, for a position to compare at.
    let host = Host::app();
    let db = host.open(&path);
    db.text(&format!("SELECT litestream_serve('{address}')"));
    assert_same(&db, &replica);
    assert!(replica.int("SELECT n FROM ledger") >= newest);
    let count = |message: &str| {
        let sql = "SELECT count(*) FROM litestream_log WHERE message LIKE";
        replica.int(&format!("{sql} '%{message}%'"))
    };
    let snapshots = count("receiving a snapshot");
    // That alone ends a history, and nothing else costs a snapshot.
    let restarted = "the WAL was restarted while nobody captured it";
    assert!(parted.iter().all(|why| why == restarted), "{parted:?}");
    assert!(snapshots <= 1 + parted.len() as i64, "{snapshots} snapshots, {parted:?}");
    Outcome { answered, snapshots, parted }
}

fn environment(server: &mut Command, path: &Path, address: &str, autocheckpoint: &str) {
    server.env("EXTENSION", library()).env("DATABASE", path).env("ADDRESS", address);
    server.env("AUTOCHECKPOINT", autocheckpoint);
}

/// tests/py/prefork.py
fn prefork(path: &Path, address: &str, autocheckpoint: &str) -> Web {
    let mut server = Command::new(python());
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/py/prefork.py");
    server.arg("-B").arg(script).arg(WORKERS.to_string());
    environment(&mut server, path, address, autocheckpoint);
    Web::start(server, |parent| {
        let mut line = String::new();
        let out = parent.stdout.as_mut().unwrap();
        std::io::BufRead::read_line(&mut std::io::BufReader::new(out), &mut line).unwrap();
        line.trim().parse().unwrap()
    })
}

/// gunicorn, which people use, with the same application.
fn gunicorn(path: &Path, address: &str) -> Web {
    let module = servers::tool("gunicorn", "gunicorn/__init__.py");
    let port = free_port();
    let mut server = Command::new(python());
    server.env("PYTHONPATH", module.ancestors().nth(2).unwrap()).args(["-B", "-m", "gunicorn"]);
    // It calls a worker that is killed an error.
    server.args(["--log-level", "critical", "--workers", &WORKERS.to_string()]);
    server.args(["--bind", &format!("127.0.0.1:{port}")]);
    server.args(["--chdir", concat!(env!("CARGO_MANIFEST_DIR"), "/tests/py"), "webapp:app"]);
    environment(&mut server, path, address, "0");
    Web::start(server, |_| port)
}

/// So few rows that nobody checkpoints: nothing could make the WAL start over while nobody serves,
/// so the history goes on.
#[test]
fn the_next_worker_goes_on_where_the_killed_one_was() {
    let pause = Duration::from_millis(60);
    let outcome = kill_the_serving_worker("prefork", scaled(5, 60), pause, |path, address| {
        prefork(path, address, "0")
    });
    // SQLite writes about four pages for a row, and a checkpoint is due at a thousand.
    let parted = &outcome.parted;
    assert!(outcome.snapshots == 1 || outcome.answered > 200, "started over: {parted:?}");
}

#[test]
fn gunicorns_workers_take_over_from_each_other() {
    let pause = Duration::from_millis(60);
    let outcome = kill_the_serving_worker("gunicorn", scaled(5, 60), pause, gunicorn);
    let parted = &outcome.parted;
    assert!(outcome.snapshots == 1 || outcome.answered > 200, "started over: {parted:?}");
}

/// Many rows, and workers that checkpoint as SQLite does by itself. If the WAL started over while
/// nobody served, that is another history, which costs a snapshot, and no row.
#[test]
fn nothing_is_lost_when_the_workers_checkpoint_too() {
    let rounds = scaled(4, 100);
    let pause = Duration::from_millis(2);
    let outcome = kill_the_serving_worker("prefork-busy", rounds, pause, |path, address| {
        prefork(path, address, "1000")
    });
    println!("{} snapshots in {rounds} rounds", outcome.snapshots);
}

/// Who stands by looks up the position in the log's files, and there was none that told it.
#[test]
fn a_worker_that_stands_by_knows_where_a_database_is_that_nobody_has_written_to() {
    let folder = Folder::new("prefork-empty");
    let path = folder.file("p.db");
    Host::plain().open(&path).run("CREATE TABLE t(x)").unwrap();
    let (first, second) = (Host::app(), Host::app());
    let db = first.open(&path);
    let url = serve(&db);
    let address = url.strip_prefix("http://").unwrap();
    let standby = second.open(&path);
    assert_eq!(standby.text(&format!("SELECT litestream_serve('{address}')")), url);
    let pos = standby.text("SELECT litestream_pos()");
    assert!(pos.ends_with("/0000000000000000:0000000000000000"), "{pos}");
    assert_eq!(pos, db.text("SELECT litestream_pos()"));
    let other = Host::app();
    let replica = other.open(folder.file("r.db"));
    follow(&replica, &url);
    assert_same(&standby, &replica);
    standby.run("INSERT INTO t VALUES (1)").unwrap();
    assert_same(&standby, &replica);
}
