//! Archives behind a bad network: what breaks off is done again, nothing twice and nothing not at
//! all; a restore is right or says why it is not; a replica of the archive goes on.

use std::path::PathBuf;
use std::time::Duration;

use super::common::proxy::{Cut, Door, Proxy};
use super::common::servers::S3Server;
use super::common::*;

#[test]
fn an_archive_on_seaweedfs_behind_a_bad_network() {
    let server = S3Server::weed();
    let folder = Folder::new("net-weed");
    archived_through_faults(&server, &folder);
}

/// Its objects are files, so each byte of the archive can be looked at.
#[test]
fn an_archive_on_rclone_behind_a_bad_network() {
    let server = S3Server::rclone();
    let folder = Folder::new("net-rclone");
    let pos = archived_through_faults(&server, &folder);
    let archived = read_only_generation(&server.bucket_folder().join("app"));
    archived.assert_whole();
    let (index, offset) = pos.split_once('/').unwrap().1.split_once(':').unwrap();
    let number = |text| u64::from_str_radix(text, 16).unwrap();
    assert_eq!(archived.end(), (number(index), number(offset)));
}

/// The position it was archived up to.
fn archived_through_faults(server: &S3Server, folder: &Folder) -> String {
    let (path, url) = (folder.file("p.db"), server.url("app"));
    let (writing, reading) = (Proxy::to_url(&server.endpoint()), Proxy::to_url(&server.endpoint()));
    let options = |proxy: &Proxy, more: Value| {
        let mut options = server.options();
        options["endpoint"] = json!(proxy.url());
        options.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        options
    };
    let (host, db) = ledger(&path);
    let often = json!({"sync_interval": "20ms", "log_bytes": 1 << 20});
    db.text(&format!("SELECT litestream_replicate('{url}', '{}')", options(&writing, often)));
    let other = Host::app();
    let replica = other.open(folder.file("r.db"));
    let often = options(&reading, json!({"poll_interval": "50ms"}));
    replica.text(&format!("SELECT litestream_follow('{url}', '{often}')"));
    let load = json!({"path": path, "pause": 0.02, "size": 5000});
    let writer = host.work("ledger_writer", load);
    let mut rng = Rng::new();
    for round in 0..scaled(9, 150) {
        misbehave(&writing, &mut rng);
        misbehave(&reading, &mut rng);
        let restoring = (round % 3 == 2).then(|| {
            let target = folder.file(&format!("restored-{round}.db"));
            Restoring::begin(&other, &url, &options(&reading, json!({})), target)
        });
        std::thread::sleep(Duration::from_millis(rng.below(500)));
        writing.relent();
        reading.relent();
        if let Some((target, Err(why))) = restoring.map(|it| (it.target.clone(), it.end(&other))) {
            assert!(why.contains("litestream_restore: "), "{why}");
            assert!(!target.exists(), "half a database, after {why}");
        }
        // Some of what it does goes well.
        if rng.below(2) == 0 {
            db.text("SELECT litestream_sync(55000)");
        }
    }
    writer.finish();
    let pos = db.text("SELECT litestream_sync(55000)");
    // What could not be deleted meanwhile is tried again by and by.
    let failing = "SELECT count(error) FROM litestream_replicas";
    until("the archive to be without an error", || (db.int(failing) == 0).then_some(()));
    let began = "SELECT count(*) FROM litestream_log WHERE message LIKE '%new generation%'";
    assert_eq!(db.int(began), 1, "the history goes on");
    assert_eq!(replica.int(&format!("SELECT litestream_wait('{pos}', 55000)")), 1);
    assert_eq!(db.content(), replica.content());
    assert_eq!(snapshots_received(&replica), 1);
    let target = folder.file("restored.db");
    let options = options(&reading, json!({}));
    Restoring::begin(&other, &url, &options, target.clone()).end(&other).unwrap();
    assert_eq!(other.open_plain(&target).content(), db.content());
    db.run("SELECT litestream_stop()").unwrap();
    pos
}

/// A restore under way.
struct Restoring {
    nowhere: Db,
    pending: Pending,
    target: PathBuf,
}

impl Restoring {
    fn begin(host: &Host, url: &str, options: &Value, target: PathBuf) -> Restoring {
        let nowhere = host.open(":memory:");
        let to = target.display();
        let pending =
            nowhere.send(&format!("SELECT litestream_restore('{url}', '{to}', '{options}')"));
        Restoring { nowhere, pending, target }
    }

    /// What comes out is whole, and the ledger's law holds.
    fn end(self, host: &Host) -> Result<(), String> {
        let outcome = self.pending.outcome(2 * DEADLINE);
        self.nowhere.close();
        outcome?;
        let copy = host.open_plain(&self.target);
        assert_eq!(copy.text("PRAGMA integrity_check"), "ok");
        let law = "SELECT n = ifnull((SELECT max(n) FROM entry), 0) AND
            bytes = (SELECT ifnull(sum(length(pad)), 0) FROM entry) FROM ledger";
        assert_eq!(copy.int(law), 1);
        copy.close();
        Ok(())
    }
}

fn misbehave(proxy: &Proxy, rng: &mut Rng) {
    let number = rng.number();
    match rng.below(9) {
        // In the middle of a request: its head, a body; in an answer's head, an object, a listing.
        0 | 1 => proxy.change(|rules| rules.cut = Some(Cut::Sent(number % 30_000))),
        2 | 3 => proxy.change(|rules| rules.cut = Some(Cut::After(number % 3000))),
        4 => proxy.change(|rules| rules.delay = Duration::from_millis(number % 200)),
        5 => proxy.change(|rules| rules.up.rate = 20_000 + number % 200_000),
        6 => proxy.change(|rules| rules.down.rate = 20_000 + number % 200_000),
        7 => proxy.change(|rules| rules.door = Door::Shut),
        _ => proxy.change(|rules| rules.down.stopped = true),
    }
    if rng.below(2) == 0 {
        proxy.break_all(number.is_multiple_of(2));
    }
}
