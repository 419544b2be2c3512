//! Damage: found, named, repaired.

use std::fs;

use crate::common::*;
use crate::support::*;

#[test]
fn damaged_pages_are_named_and_replaced() {
    let pair = Pair::of_rows("verify-damage", 200);
    let path = pair.replica_path();
    let sound = page(&path, 42);
    for page_no in [7, 42, 43, 44, 100] {
        flip(&path, page_no);
    }
    let error = pair.replica.fails(VERIFY);
    assert!(error.contains("pages 7, 42-44, 100 (5 of "), "{error}");
    assert!(error.contains("litestream_verify('{\"repair\": true}')"), "{error}");
    assert!(error.contains(" differ from the upstream at "), "{error}");
    let pos = pair.primary.text("SELECT litestream_pos()");
    assert!(error.contains(&pos), "{error} should be at {pos}");
    assert!(told(&pair.replica, "pages 7, 42-44, 100 "));
    // Until it is told to, it replaces nothing.
    assert!(page(&path, 42) != sound);

    let answer = pair.replica.text(REPAIR);
    assert_eq!(answer, "repaired pages 7, 42-44, 100");
    assert!(told(&pair.replica, "repaired pages"));
    assert_eq!(pair.verify(), "ok");
    assert_eq!(pair.replica.text(REPAIR), "ok", "nothing is left to repair");
    pair.settle();
    assert!(page(&path, 42) == sound, "the page on disk is right again");
    assert_same(&pair.primary, &pair.replica);
}

#[test]
fn what_was_checkpointed_is_read_where_readers_read_it() {
    let pair = Pair::of_rows("verify-backfilled", 20);
    // Frames of these pages stay in the WAL, sound, after the checkpoint; no reader looks at them.
    pair.primary.script("UPDATE t SET pad = randomblob(3500) WHERE i < 6");
    catch_up(&pair.primary, &pair.replica);
    pair.settle();
    for page_no in [5, 6] {
        flip(&pair.replica_path(), page_no);
    }
    let error = pair.replica.fails(VERIFY);
    assert!(error.contains("pages 5-6 (2 of "), "{error}");
    assert_eq!(pair.replica.text(REPAIR), "repaired pages 5-6");
    pair.settle();
    assert_same(&pair.primary, &pair.replica);
}

#[test]
fn repaired_while_readers_read_and_writers_write() {
    // A table that no reader of the bank looks at: its damage is nobody's broken law.
    let pair = Pair::of_rows("verify-repair", 200);
    let plain = Host::plain();
    let load = json!({"path": pair.primary_path(), "create": true, "pause": 0.001});
    let load = plain.work("bank_writer", load);
    load.advance(50);
    catch_up(&pair.primary, &pair.replica);
    let look = json!({"path": pair.replica_path(), "integrity": 1_000_000});
    let reads = plain.work("bank_reader", look);
    let path = pair.replica_path();
    let mut rng = Rng::new();
    for _ in 0..scaled(4, 60) {
        let page_no = 10 + rng.below(150);
        reads.advance(5);
        let sound = page(&path, page_no);
        flip(&path, page_no);
        let error = pair.replica.fails(VERIFY);
        assert!(error.contains(&format!("page {page_no} (1 of ")), "{error}");
        assert_eq!(pair.replica.text(REPAIR), format!("repaired page {page_no}"));
        until("the page to be checkpointed", || (page(&path, page_no) == sound).then_some(()));
    }
    reads.finish();
    load.finish();
    assert_same(&pair.primary, &pair.replica);
}

#[test]
fn refusals() {
    let pair = Pair::of_rows("verify-refusals", 5);
    let replica = &pair.replica;
    let fails = |sql: &str, words: &str| {
        let error = replica.fails(sql);
        assert!(error.contains(words), "{error}");
    };
    let repair = r#"option "repair": expected true or false, got "yes""#;
    fails(r#"SELECT litestream_verify('{"repair": "yes"}')"#, repair);
    let timeout = r#"option "timeout_ms": expected a whole number from 1 to 86400000, got 0"#;
    fails(r#"SELECT litestream_verify('{"timeout_ms": 0}')"#, timeout);
    let unknown = r#"unknown option "page"; known options: repair, schema, timeout_ms"#;
    fails(r#"SELECT litestream_verify('{"page": 1}')"#, unknown);
    let error = pair.primary.fails(r#"SELECT litestream_verify('{"repair": true}')"#);
    assert!(error.contains("nothing to compare"), "{error}");
    replica.int("SELECT litestream_stop('follow')");
    fails(VERIFY, "not followed by this process");
    let plain = pair.replica_host.open(pair.folder.file("other.db"));
    plain.script("CREATE TABLE t(x)");
    assert!(plain.fails(VERIFY).contains("follows nothing"));
    fs::metadata(pair.replica_path()).unwrap();
}
