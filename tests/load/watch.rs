//! What noticing commits costs the writer: a watched file makes an event of every write, and the
//! writer pays for it.

use super::*;

/// Watches on files that a host's inotify instances hold at the moment, by the kernel's account.
fn watches(host: &Host) -> usize {
    let infos = std::fs::read_dir(format!("/proc/{}/fdinfo", host.pid())).unwrap().flatten();
    let texts = infos.filter_map(|info| std::fs::read_to_string(info.path()).ok());
    texts.map(|text| text.lines().filter(|line| line.starts_with("inotify wd:")).count()).sum()
}

/// The WAL is watched while nothing is written, and not while somebody writes all the time.
#[test]
fn a_busy_writer_pays_for_no_events() {
    let folder = Folder::new("watch");
    let (host, db) = ledger(folder.file("p.db"));
    let url = serve(&db);
    until("the idle WAL to be watched", || (watches(&host) == 1).then_some(()));
    let plain = Host::plain();
    let writer = plain.work("ledger_writer", json!({"path": folder.file("p.db")}));
    until("the busy WAL not to be watched", || (watches(&host) == 0).then_some(()));
    let (mut busy, mut watched) = (0, 0);
    while busy + watched < 200 {
        writer.advance(1);
        if watches(&host) == 0 { busy += 1 } else { watched += 1 }
    }
    writer.finish();
    // A machine that has no time for the writer leaves pauses in which watching is right.
    assert!(busy * 4 > watched, "watched at {watched} of {} looks", busy + watched);
    until("the idle WAL to be watched again", || (watches(&host) == 1).then_some(()));
    let (other, commits) = (Host::app(), metric(&url, "litestream_commits_total"));
    let replica = other.open(folder.file("r.db"));
    follow(&replica, &url);
    // Each is noticed, however long nothing happened before.
    for n in 1..=20 {
        until("the watch", || (watches(&host) == 1).then_some(()));
        db.script("UPDATE ledger SET keep = keep + 1");
        until("the commit", || {
            (metric(&url, "litestream_commits_total") >= commits + f64::from(n)).then_some(())
        });
    }
    assert_same(&db, &replica);
}
