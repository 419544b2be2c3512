//! Others that take their time: a writer that gets no processor while it publishes a commit, a disk
//! that does not come back from a checkpoint.

use std::fs::OpenOptions;
use std::os::unix::fs::FileExt;
use std::path::Path;

use crate::build::library;
use crate::cast::Met;
use crate::common::*;

/// A process whose operations can be made to hang, and its connection to tell it so.
struct Hanging {
    host: Host,
    control: Db,
}

impl Hanging {
    fn start() -> Hanging {
        let host = Host::loading(library());
        let control = host.open(":memory:");
        Hanging { host, control }
    }

    /// The next operation of this name hangs for as long as it may.
    fn hang(&self, point: &str) {
        let plan = json!({"point": point, "nth": 1, "kind": "hang", "ms": 600_000});
        self.control.text(&format!("SELECT litestream_fault('{plan}')"));
    }

    fn wait_until_it_hangs(&self) {
        until("the hang", || Met::of(&self.control.text("SELECT litestream_fault()")).fired);
    }

    fn go_on(&self) {
        self.control.text("SELECT litestream_fault('{}')");
    }

    /// Waits until it has told of something in its log.
    fn wait_until_it_says(&self, what: &str) {
        let said = format!("SELECT count(*) FROM litestream_log WHERE message LIKE '%{what}%'");
        until_within(3 * DEADLINE, what, || (self.control.int(&said) > 0).then_some(()));
    }
}

/// The two copies of the wal-index's header differ, as between the two stores of a writer.
struct HalfPublished {
    shm: std::fs::File,
    whole: [u8; 48],
}

impl HalfPublished {
    /// The caller keeps everybody else from writing.
    fn new(database: &Path) -> HalfPublished {
        let mut name = database.as_os_str().to_owned();
        name.push("-shm");
        let shm = OpenOptions::new().read(true).write(true).open(name).unwrap();
        let mut whole = [0; 48];
        shm.read_exact_at(&mut whole, 48).unwrap();
        // Its count of changes.
        shm.write_all_at(&[!whole[8]], 48 + 8).unwrap();
        HalfPublished { shm, whole }
    }

    fn finish(self) {
        self.shm.write_all_at(&self.whole, 48).unwrap();
    }
}

/// Neither dead nor done: the call waits for it, and says nothing of it.
#[test]
fn serving_begins_beside_a_writer_that_publishes_slowly() {
    let folder = Folder::new("slow-publish");
    let path = folder.file("p.db");
    let primary = Hanging::start();
    let db = primary.host.open(&path);
    db.script("PRAGMA journal_mode = WAL; CREATE TABLE t(x); INSERT INTO t VALUES (1)");
    let other = Host::plain();
    let writer = other.open(&path);
    for sql in ["BEGIN IMMEDIATE", "INSERT INTO t VALUES (2)"] {
        writer.run(sql).unwrap();
    }

    // Between the look whether the header is whole and the first use of it.
    primary.hang("capture/wal/open");
    let served = db.send("SELECT litestream_serve('127.0.0.1:0')");
    primary.wait_until_it_hangs();
    let published = HalfPublished::new(&path);
    primary.go_on();
    primary.wait_until_it_says("while publishing a commit");
    assert_eq!(served.poll(), None, "it waits");
    published.finish();

    served.outcome(DEADLINE).unwrap();
    writer.run("COMMIT").unwrap();
    db.text("SELECT litestream_pos()");
    assert_eq!(db.value("SELECT error FROM litestream_databases"), Value::Null);
}

/// A checkpoint of ours that hangs holds a read slot, and no WAL can start over meanwhile: the
/// application's comes first after a minute. What follows then is a new generation, told of, and
/// nothing is missing in it.
#[test]
fn a_checkpoint_that_hangs_lets_go_of_the_wal() {
    let folder = Folder::new("stuck");
    let path = folder.file("p.db");
    let primary = Hanging::start();
    let db = primary.host.open(&path);
    make_ledger(&db);
    let url = serve(&db);
    let before = db.text("SELECT litestream_pos()");
    let far = Host::app();
    let replica = far.open(folder.file("r.db"));
    follow(&replica, &url);
    let other = Host::plain();
    let application = other.open(&path);
    let add = "INSERT INTO entry SELECT n + 1, 'x' FROM ledger; \
               UPDATE ledger SET n = n + 1, bytes = bytes + 1";
    let truncated = || application.int("PRAGMA wal_checkpoint(TRUNCATE)") == 0;

    application.script(add);
    primary.hang("host/sql/checkpoint");
    let asked = db.send("SELECT litestream_checkpoint('PASSIVE')");
    primary.wait_until_it_hangs();
    assert!(!truncated(), "the WAL is held");
    // Whoever captures does not wait for the checkpoint.
    application.script(add);
    let rows = || (replica.int("SELECT count(*) FROM entry") == 2).then_some(());
    until("what is committed meanwhile", rows);

    until_within(3 * DEADLINE, "the WAL to be let go", || truncated().then_some(()));
    primary.wait_until_it_says("checkpointing was stuck");
    application.script(add);
    primary.go_on();
    let _it_may_have_failed = asked.outcome(DEADLINE);
    until("a new session", || db.run("SELECT litestream_pos()").ok());
    assert_same(&db, &replica);
    assert_ne!(generation(&db.text("SELECT litestream_pos()")), generation(&before));
    assert_eq!(replica.int("SELECT count(*) FROM entry"), 3);
}
