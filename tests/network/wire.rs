//! A primary, a proxy before it, and a replica behind that, with readers of its own.

use std::path::Path;

use super::common::proxy::Proxy;
use super::common::*;

/// A bank served by one process and followed by another, through a proxy.
pub struct Wired {
    pub folder: Folder,
    pub primary: Option<Primary>,
    pub proxy: Proxy,
    _other: Host,
    pub replica: Db,
}

/// The serving process and the load in it.
pub struct Primary {
    pub host: Host,
    pub db: Db,
    pub writer: Work,
}

impl Primary {
    fn start(folder: &Folder, create: bool) -> (Primary, String) {
        let path = folder.file("p.db");
        let host = Host::app();
        let db = host.open(&path);
        // Served first: nobody else may start the WAL over.
        let first = create.then(|| write(&host, &path, true));
        let url = serve(&db);
        let writer = first.unwrap_or_else(|| write(&host, &path, false));
        (Primary { host, db, writer }, url)
    }
}

fn write(host: &Host, path: &Path, create: bool) -> Work {
    let load = json!({"path": path, "create": create, "pause": 0.01});
    let writer = host.work("bank_writer", load);
    if create {
        writer.advance(20);
    }
    writer
}

impl Wired {
    /// All of it, caught up.
    pub fn new(test: &str) -> Wired {
        let folder = Folder::new(test);
        let (primary, url) = Primary::start(&folder, true);
        let proxy = Proxy::to_url(&url);
        let other = Host::app();
        let replica = other.open(folder.file("r.db"));
        follow(&replica, &proxy.url());
        let wired = Wired { folder, primary: Some(primary), proxy, _other: other, replica };
        assert_eq!(wired.proxy.counts().started_over, 1);
        wired
    }

    pub fn primary(&self) -> &Primary {
        self.primary.as_ref().unwrap()
    }

    /// Kills the primary and starts it again, on another port.
    pub fn restart_primary(&mut self) {
        self.primary.take().unwrap().host.kill();
        let (primary, url) = Primary::start(&self.folder, false);
        self.primary = Some(primary);
        self.proxy.move_to(&url);
    }

    /// The server moves to another port; the database stays where it is. Nobody writes while
    /// nobody captures: the WAL might start over, and a new history with it.
    pub fn move_server(&mut self) {
        let Primary { host, db, writer } = self.primary.take().unwrap();
        writer.advance(1);
        writer.finish();
        assert_eq!(db.int("SELECT litestream_stop('serve')"), 1);
        self.proxy.move_to(&serve(&db));
        let writer = write(&host, &self.folder.file("p.db"), false);
        self.primary = Some(Primary { host, db, writer });
    }

    /// Readers of the replica, in a process that never heard of the extension.
    pub fn readers(&self, outside: &Host) -> Vec<Work> {
        let path = self.folder.file("r.db");
        let modes = ["tight", "long", "reopen"];
        modes.map(|mode| outside.work("bank_reader", json!({"path": path, "mode": mode}))).into()
    }

    /// The network is good again: everything arrives, and nothing was sent twice.
    pub fn assert_recovers(&mut self, readers: Vec<Work>) {
        self.proxy.relent();
        let Primary { host, db, writer } = self.primary.take().unwrap();
        writer.advance(20);
        writer.finish();
        assert_same(&db, &self.replica);
        for reader in readers {
            let report = reader.finish();
            assert!(report["states"].as_u64().unwrap() > 5, "the replica hardly moved: {report}");
        }
        self.assert_one_snapshot();
        until("the replica to be content", || {
            let state = "SELECT state || ifnull(error, '') FROM litestream_databases";
            (self.replica.text(state) == "streaming").then_some(())
        });
        drop((host, db));
    }

    /// It was sent one snapshot in all, its first.
    pub fn assert_one_snapshot(&self) {
        assert_eq!(self.proxy.counts().started_over, 1, "{:?}", self.proxy.counts());
        assert!(snapshots_received(&self.replica) <= 1);
    }
}
