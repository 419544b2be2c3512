//! What a process uses, from `/proc`: Linux only, as the extension.

use std::fs;
use std::path::Path;

/// A moment of a process.
#[derive(Clone, Copy, Debug, Default)]
pub struct Usage {
    /// Memory of its own, and its share of what it shares, in KiB.
    pub pss_kib: u64,
    pub threads: u64,
    pub descriptors: u64,
    /// Processor time in microseconds.
    pub cpu_us: u64,
    /// How often its threads went to sleep.
    pub sleeps: u64,
}

impl Usage {
    pub fn of(pid: u32) -> Usage {
        let root = format!("/proc/{pid}");
        let root = Path::new(&root);
        let mut usage = Usage {
            pss_kib: field(&root.join("smaps_rollup"), "Pss:"),
            descriptors: fs::read_dir(root.join("fd")).unwrap().count() as u64,
            ..Usage::default()
        };
        for task in fs::read_dir(root.join("task")).unwrap().flatten() {
            // A thread may end meanwhile.
            let Ok(stat) = fs::read_to_string(task.path().join("schedstat")) else { continue };
            let ns: u64 = stat.split_whitespace().next().unwrap().parse().unwrap();
            usage.threads += 1;
            usage.cpu_us += ns / 1000;
            usage.sleeps += field(&task.path().join("status"), "voluntary_ctxt_switches:");
        }
        usage
    }
}

fn field(path: &Path, name: &str) -> u64 {
    let text = fs::read_to_string(path).unwrap_or_default();
    let line = text.lines().find(|line| line.starts_with(name));
    line.and_then(|line| line.split_whitespace().nth(1)?.parse().ok()).unwrap_or(0)
}

/// Bytes of all files below a folder.
pub fn folder_bytes(folder: &Path) -> u64 {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    let of = |entry: fs::DirEntry| match entry.metadata() {
        Ok(meta) if meta.is_dir() => folder_bytes(&entry.path()),
        Ok(meta) => meta.len(),
        Err(_) => 0,
    };
    entries.map(of).sum()
}
