//! A disk that takes its time: every fsync of the primary's process, and no other's, takes 30 ms
//! longer. A checkpoint syncs twice, so none is done within the time the gate is closed at first.

use super::*;

/// The tracer may complain where the host may not.
const SLOW: &str = "exec 3>&2 2>/dev/null; exec strace -D -f -qq --seccomp-bpf -o /dev/null \
                    -e trace=fsync,fdatasync -e inject=fsync,fdatasync:delay_enter=30000 \
                    sh -c 'exec \"$@\" 2>&3 3>&-' sh \"$@\"";
/// A writer that never pauses does not make the WAL grow for as long as it runs.
#[test]
fn a_slow_disk_does_not_keep_the_wal_from_starting_over() {
    let folder = Folder::new("disk");
    let path = folder.file("p.db");
    let host = Host::under(&["sh", "-c", SLOW, "sh"]);
    let db = host.open(&path);
    make_ledger(&db);
    let url = serve(&db);
    let index = || metric(&url, "litestream_shadow_wal_index");
    let begin = index();
    let plain = Host::plain();
    // Never for long enough to be checkpointed up to its end.
    let writer = plain.work("ledger_writer", json!({"path": path, "pause": 0.0005}));
    until("the WAL to have started over three times", || {
        assert_wal_starts_over(&url);
        (index() >= begin + 3.0).then_some(())
    });
    writer.advance(1);
    writer.finish();
    let other = Host::app();
    let replica = other.open(folder.file("r.db"));
    follow(&replica, &url);
    assert_same(&db, &replica);
    assert!(host.quit().success());
}
