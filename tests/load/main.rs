//! Many databases in one process, many followers of one database, followers that do not read: all
//! of them end equal to the primary, what they use is what docs/limits.md says, and nothing is left
//! when they stop.
//!
//! Numbers of threads, descriptors and wake-ups are those of `/proc`. What is asserted of them does
//! not depend on how busy the machine is: a process that gets less time wakes up less often.
#![allow(clippy::unwrap_used, clippy::panic)]
#![allow(missing_docs)]

#[path = "../common/mod.rs"]
mod common;
mod databases;
mod disk;
mod followers;
mod slow;
#[path = "../../benches/load/usage.rs"]
mod usage;
mod watch;

use std::time::Duration;

use common::*;
use usage::Usage;

/// Threads and descriptors of a host; its memory only where that is asked for.
fn usage(host: &Host) -> Usage {
    Usage::of(host.pid())
}

/// Descriptors of a database that SQLite keeps when our connections to it are closed: while the
/// application has it open, closing one would drop its locks. The next connection gets it. And the
/// WAL and wal-index the application has opened itself meanwhile.
const KEPT_EACH: u64 = 4;

/// Waits until a host has the threads it had, and the descriptors but those SQLite keeps of its
/// `databases`. tiny_http's threads end five seconds after their server.
fn until_released(host: &Host, before: Usage, databases: usize) {
    let kept = KEPT_EACH * databases as u64;
    let begin = std::time::Instant::now();
    loop {
        let now = usage(host);
        if now.threads <= before.threads && now.descriptors <= before.descriptors + kept {
            return;
        }
        assert!(begin.elapsed() < DEADLINE, "{now:?} and not {before:?}: {}", open_files(host));
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// What a host's descriptors lead to.
fn open_files(host: &Host) -> String {
    let fds = std::fs::read_dir(format!("/proc/{}/fd", host.pid())).unwrap().flatten();
    let mut names: Vec<String> = fds
        .filter_map(|fd| std::fs::read_link(fd.path()).ok())
        .map(|path| path.display().to_string())
        .collect();
    names.sort();
    names.join(" ")
}

/// How often a host's threads woke up in a second while nobody asked anything of it.
fn wakeups(host: &Host) -> u64 {
    const WATCHED_S: u64 = 3;
    let before = usage(host);
    std::thread::sleep(Duration::from_secs(WATCHED_S));
    let now = usage(host);
    now.sleeps.saturating_sub(before.sleeps) / WATCHED_S
}

/// The rows of statements that run side by side, one on each connection.
fn run_all(dbs: &[Db], sql: impl Fn(usize) -> String) -> Vec<Value> {
    let sent: Vec<Pending> = dbs.iter().enumerate().map(|(at, db)| db.send(&sql(at))).collect();
    let answers = sent.into_iter().map(|pending| pending.outcome(DEADLINE).unwrap());
    answers.map(|rows| rows[0][0].clone()).collect()
}
