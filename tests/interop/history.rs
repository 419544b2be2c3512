//! Applications that write while a release archives them, and what they held when.

use std::path::Path;
use std::thread::sleep;
use std::time::{Duration, SystemTime};

use serde_json::json;

use crate::common::{DEADLINE, Db, Folder, Host, soak, until};
use crate::data::{Application, STEPS, assert_content, content};
use crate::place::Place;
use crate::stock::{Config, Release};

/// What everybody held at a time.
pub struct Moment {
    pub time: SystemTime,
    pub held: Vec<String>,
}

/// Databases, archived by a release that has ended.
pub struct History {
    pub config: Config,
    pub databases: Vec<Application>,
    pub places: Vec<Place>,
    moments: Vec<Moment>,
}

impl History {
    /// Every step of an application, with time for the release to archive each.
    pub fn record(release: Release, folder: &Folder, all: Vec<(u32, Place)>) -> History {
        History::of(release, folder, all, |config, databases, _| {
            let litestream = config.replicate();
            // It may take its time, and then there is no state of the first moment.
            for database in databases {
                let to = folder.file("first");
                until("the archive to begin", || config.restore(&database.path, &to, &[]).ok());
                remove(&to);
            }
            move || litestream.stop()
        })
    }

    /// The same with us, in layout v0.3; the configuration is that of a release that restores.
    pub fn ours(release: Release, folder: &Folder, all: Vec<(u32, Place)>) -> History {
        History::of(release, folder, all, |_, databases, places| {
            let host = Host::app();
            let more = json!({"layout": "v0.3", "sync_interval": "50ms"});
            let start = |(database, place): (&Application, &Place)| {
                let db = host.open(&database.path);
                let options = place.options(&more).to_string();
                let sql = "SELECT litestream_replicate(?, ?)";
                let started = db.send_with(sql, json!([place.url(), options]));
                started.outcome(DEADLINE).unwrap();
                db
            };
            let all: Vec<Db> = databases.iter().zip(places).map(start).collect();
            move || {
                for db in &all {
                    db.value("SELECT litestream_sync()");
                }
                host.quit();
            }
        })
    }

    fn of<Stop: FnOnce()>(
        release: Release,
        folder: &Folder,
        all: Vec<(u32, Place)>,
        start: impl FnOnce(&Config, &[Application], &[Place]) -> Stop,
    ) -> History {
        let (sizes, places): (Vec<u32>, Vec<Place>) = all.into_iter().unzip();
        let new = |(number, size): (usize, &u32)| {
            Application::new(folder.file(&format!("{number}-{size}.db")), *size)
        };
        let mut databases: Vec<Application> = sizes.iter().enumerate().map(new).collect();
        let config = History::config(release, folder, &databases, &places);
        let stop = start(&config, &databases, &places);
        let mut moments = Vec::new();
        for step in 0..STEPS {
            for database in &mut databases {
                database.step(step);
            }
            let held = databases.iter().map(Application::content).collect();
            moments.push(Moment { time: pause(), held });
        }
        stop();
        History { config, databases, places, moments }
    }

    fn config(
        release: Release,
        folder: &Folder,
        databases: &[Application],
        places: &[Place],
    ) -> Config {
        let paths = databases.iter().map(|one| one.path.as_path());
        let pairs: Vec<(&Path, &Place)> = paths.zip(places).collect();
        Config::new(release, folder, &pairs)
    }

    /// Has another release restore.
    pub fn restored_by(&mut self, release: Release, folder: &Folder) {
        self.config = History::config(release, folder, &self.databases, &self.places);
    }

    /// The moments at which database `number` is to be looked at, the last not among them: all of
    /// them in the long form, else two, others for each database.
    pub fn moments(&self, number: usize) -> impl Iterator<Item = &Moment> {
        let before = &self.moments[..self.moments.len() - 1];
        let picked = [number, number + 2].map(|at| at % before.len());
        let moments = before.iter().enumerate();
        moments.filter(move |(at, _)| soak() || picked.contains(at)).map(|(_, moment)| moment)
    }

    /// What database `number` held last.
    pub fn last(&self, number: usize) -> &str {
        &self.moments.last().unwrap().held[number]
    }

    /// Restores with the release itself.
    pub fn theirs(&self, number: usize, to: &Path, arguments: &[&str]) {
        let restored = self.config.restore(&self.databases[number].path, to, arguments);
        restored.unwrap_or_else(|said| panic!("{arguments:?}: {said}"));
    }
}

/// Lets a second pass, and some more until the next whole one: buckets tell whole seconds, rounded
/// down. Returns a time just before it, for a file's may be some milliseconds too early.
fn pause() -> SystemTime {
    let now = SystemTime::UNIX_EPOCH.elapsed().unwrap();
    let end = Duration::from_secs((now + Duration::from_millis(1100)).as_secs() + 1);
    sleep(end + Duration::from_millis(20) - now);
    SystemTime::UNIX_EPOCH + end - Duration::from_millis(100)
}

/// A host that restores.
pub struct Restorer {
    db: Db,
    _host: Host,
}

impl Restorer {
    pub fn new() -> Restorer {
        let host = Host::app();
        Restorer { db: host.open(":memory:"), _host: host }
    }

    /// `litestream_restore`.
    pub fn restore(&self, place: &Place, options: serde_json::Value, to: &Path) {
        let options = place.options(&options).to_string();
        let sql = "SELECT litestream_restore(?, ?, ?)";
        let pending = self.db.send_with(sql, json!([place.url(), to, options]));
        let restored = pending.outcome(DEADLINE);
        restored.unwrap_or_else(|error| panic!("{}: {error}", place.url()));
    }

    /// A restore that must not succeed, and why it does not.
    pub fn fails(&self, place: &Place, to: &Path) -> String {
        let sql = "SELECT litestream_restore(?, ?, ?)";
        let values = json!([place.url(), to, place.options(&json!({})).to_string()]);
        let error = self.db.send_with(sql, values).outcome(DEADLINE).unwrap_err();
        assert!(!to.exists(), "it left something behind");
        error
    }

    /// Restores, and compares by content.
    pub fn check(&self, place: &Place, options: serde_json::Value, to: &Path, expected: &str) {
        let what = format!("{} with {options}", place.url());
        self.restore(place, options, to);
        assert_content(&content(to), expected, &what);
        remove(to);
    }
}

/// As the releases and we take times.
pub fn text(time: SystemTime) -> String {
    humantime::format_rfc3339_millis(time).to_string()
}

/// A database and what SQLite put beside it.
pub fn remove(database: &Path) {
    for suffix in ["", "-wal", "-shm"] {
        let mut path = database.as_os_str().to_owned();
        path.push(suffix);
        let _may_not_exist = std::fs::remove_file(path);
    }
}
