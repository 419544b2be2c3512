//! No room: an upstream that sends more than a replica may take, and a disk that is full. What the
//! replica had can be read, the application lives, and it goes on when there is room.

use std::path::Path;
use std::process::Command;

use crate::common::*;
use crate::liar::*;

/// What the small replica may have.
const MAX: u64 = 1 << 20;
/// The same for a transaction that does not fit into memory either.
const MORE: u64 = 6 << 20;

/// Content of pages that fit, again and again, in one transaction.
fn rewrites() -> Vec<u8> {
    let pages = u32::try_from(MORE / 512).unwrap();
    let frames: Vec<(u32, u32)> =
        (0..3).flat_map(|_| (2..pages).map(|page_no| (page_no, 0))).collect();
    wal(&frames)
}

fn lies() -> [(&'static str, u64, Lie); 4] {
    [
        ("database is larger", MAX, |out| {
            out.begin("512")?;
            out.head(SNAPSHOT, 0, (0, 0), 1 << 40)?;
            out.chunk(&database())?;
            out.for_ever(&[&b"10000\r\n"[..], &[0; 1 << 16], b"\r\n"].concat())
        }),
        ("database is larger", MAX, |out| {
            out.snapshot()?;
            out.heartbeat((0, 0))?;
            out.segment((0, 0), &wal(&[(4000, 4000)]))?;
            out.silence()
        }),
        ("database is larger", MAX, |out| {
            out.snapshot()?;
            out.heartbeat((0, 0))?;
            out.segment((0, 0), &wal(&[(2, 1 << 30)]))?;
            out.silence()
        }),
        ("transaction needs more", MORE, |out| {
            out.snapshot()?;
            out.heartbeat((0, 0))?;
            out.segment((0, 0), &rewrites())?;
            out.silence()
        }),
    ]
}

#[test]
fn an_upstream_cannot_make_a_replica_larger_than_it_may_be() {
    let folder = Folder::new("max-bytes");
    let host = Host::app();
    let plain = Host::plain();
    // The replica's own connection may find it locked.
    let any = host.open(":memory:");
    for (number, (expected, max, lie)) in lies().into_iter().enumerate() {
        let path = folder.file(&format!("r{number}.db"));
        let replica = host.open(&path);
        let liar = Liar::start(lie);
        let options = json!({"wait_ms": 0, "max_bytes": max});
        replica.run(&format!("SELECT litestream_follow('{}', '{options}')", liar.url)).unwrap();
        let error = until(expected, || {
            let error = any.value("SELECT error FROM litestream_databases");
            error.as_str().filter(|error| error.contains(expected)).map(str::to_owned)
        });
        assert!(error.contains(&max.to_string()), "{number}: {error}");
        until("it to try again", || (liar.asked() >= 2).then_some(()));
        for name in [format!("r{number}.db"), format!("r{number}.db-wal")] {
            let size = folder.file(&name).metadata().map_or(0, |meta| meta.len());
            assert!(size <= 2 * max, "{number}: {name} has {size} bytes");
        }
        if number > 0 {
            assert_eq!(plain.open(&path).int("SELECT count(*) FROM lie"), 0);
        }
        assert_eq!(replica.int("SELECT litestream_stop()"), 1);
        replica.close();
    }
    // Whoever asks with enough time is told by the call.
    let honest = host.open(folder.file("p.db"));
    honest.script("CREATE TABLE t(x); INSERT INTO t VALUES (zeroblob(2000000))");
    let url = serve(&honest);
    let replica = host.open(folder.file("r.db"));
    let error =
        replica.fails(&format!("SELECT litestream_follow('{url}', '{{\"max_bytes\": {MAX}}}')"));
    assert!(error.contains("\"max_bytes\""), "{error}");
    assert_eq!(
        replica.value("SELECT max(path) FROM litestream_databases WHERE role = 'replica'"),
        Value::Null
    );
    replica
        .run(&format!("SELECT litestream_follow('{url}', '{{\"max_bytes\": 4000000}}')"))
        .unwrap();
    assert_same(&honest, &replica);
    let peak = host.peak_kib();
    assert!(peak < 200 << 10, "{peak} KiB at the peak");
}

/// What keeps a replica from growing, and how it is lifted.
trait Bound {
    fn lift(&self, host: &Host);
}

/// A file system of its own that is nearly full.
struct Disk<'a>(&'a Path);

impl Disk<'_> {
    fn mount(&self, size: &str) -> bool {
        let options = format!("size={size}");
        let mut mount = Command::new("mount");
        mount.args(["-t", "tmpfs", "-o", &options, "tmpfs"]).arg(self.0);
        mount.output().is_ok_and(|output| output.status.success())
    }
}

impl Bound for Disk<'_> {
    fn lift(&self, _: &Host) {
        let grown = Command::new("mount").args(["-o", "remount,size=64m"]).arg(self.0).status();
        assert!(grown.unwrap().success());
    }
}

impl Drop for Disk<'_> {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("--lazy").arg(self.0).output();
    }
}

/// A limit on the size of each file of a process.
struct Limit;

impl Bound for Limit {
    fn lift(&self, host: &Host) {
        let pid = host.pid().to_string();
        let unlimited = ["--fsize=unlimited:unlimited", "--pid", &pid];
        assert!(Command::new("prlimit").args(unlimited).status().unwrap().success());
    }
}

fn outgrow(host: &Host, replica: &Path, expected: &str, bound: &dyn Bound) {
    let elsewhere = Folder::new("outgrow");
    let app = Host::app();
    let primary = app.open(elsewhere.file("p.db"));
    make_ledger(&primary);
    primary.run("INSERT INTO entry VALUES (1, randomblob(200000))").unwrap();
    let url = serve(&primary);
    let db = host.open(replica);
    follow(&db, &url);
    let before = primary.content();
    assert_eq!(db.content(), before);
    primary.run("INSERT INTO entry VALUES (2, randomblob(20000000))").unwrap();
    let error = until("the error to be told", || {
        let error = db.value("SELECT error FROM litestream_databases");
        error.as_str().map(str::to_owned)
    });
    assert!(error.contains(expected), "{error}");
    // Again and again, and readers have what they had.
    let plain = Host::plain();
    for _ in 0..20 {
        let reader = plain.open(replica);
        assert_eq!(reader.content(), before);
        reader.close();
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
    let wal = litestream::files::with_suffix(replica, "-wal");
    until("the disk to be given back", || (wal.metadata().ok()?.len() < 1 << 20).then_some(()));
    // A new replica finds no room for its first snapshot.
    let path = replica.with_extension("new");
    let new = host.open(&path);
    let refused = new.fails(&format!("SELECT litestream_follow('{url}', '{{\"wait_ms\": 2000}}')"));
    // In SQLite's words, which depend on what there is no room for.
    assert!(refused.contains("disk"), "{refused}");
    new.run("SELECT litestream_stop()").unwrap();
    assert_eq!(path.metadata().unwrap().len(), 0, "and takes none");
    bound.lift(host);
    catch_up(&primary, &db);
    assert_same(&primary, &db);
    let snapshots = "SELECT count(*) FROM litestream_log
        WHERE message LIKE '%receiving a snapshot%' AND database LIKE '%r.db'";
    assert_eq!(db.int(snapshots), 1, "no snapshot was needed for that");
    assert_eq!(db.value("SELECT error FROM litestream_databases"), Value::Null);
}

#[test]
fn a_full_disk_stops_a_replica_and_nothing_else() {
    let folder = Folder::new("full");
    let limit = format!("--fsize={}:unlimited", 3 << 20);
    let host = Host::under(&["prlimit", &limit]);
    outgrow(&host, &folder.file("r.db"), "File too large", &Limit);
    drop(host);
    // Only root can make a disk.
    let place = folder.file("disk");
    std::fs::create_dir(&place).unwrap();
    let disk = Disk(&place);
    if rustix::process::geteuid().is_root() && disk.mount("5m") {
        outgrow(&Host::app(), &place.join("r.db"), "No space left on device", &disk);
    }
}
