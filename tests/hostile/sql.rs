//! Bad input from SQL: whatever is passed, the host lives and the error says what was wrong.

use crate::common::*;

/// Every function the extension defines, as SQLite lists them.
fn functions(db: &Db) -> Vec<(String, i64)> {
    let sql = "SELECT DISTINCT name, narg FROM pragma_function_list
               WHERE name LIKE 'litestream%' ORDER BY name, narg";
    let list: Vec<(String, i64)> = db
        .rows(sql)
        .iter()
        .map(|row| (row[0].as_str().unwrap().to_owned(), row[1].as_i64().unwrap()))
        .collect();
    assert!(list.len() >= 10, "{list:?}");
    list
}

/// Arguments nobody should pass. No well-formed address, URL or path of a database is among them.
fn bad_values() -> Vec<Value> {
    vec![
        json!(null),
        json!(0),
        json!(-1),
        json!(i64::MAX),
        json!(i64::MIN),
        json!(1.5),
        json!(-1e300),
        json!(""),
        json!(" "),
        json!("x"),
        json!("a\u{0}b"),
        json!("%s%n%d"),
        json!("\u{fffd}\u{1f600}"),
        json!("{"),
        json!("[]"),
        json!("{\"surprise\": 1}"),
        json!("{\"schema\": 7}"),
        json!("{\"schema\": \"nowhere\"}"),
        json!("../../etc/passwd"),
        json!("http://"),
        json!("http://[::1"),
        json!("http://127.0.0.1:99999/"),
        json!("ftp://127.0.0.1/"),
        json!("0000000000000000/0000000000000000:0000000000000000"),
        json!("ffffffffffffffff/ffffffffffffffff:ffffffffffffffff"),
        json!({"hex": ""}),
        json!({"hex": "00ff00ff"}),
        json!({"repeat": ["x", 1 << 20]}),
        json!({"repeat": ["[", 1 << 20]}),
        json!({"repeat": ["\u{0}", 1 << 20]}),
    ]
}

#[test]
fn no_argument_of_any_function_harms_the_host() {
    let folder = Folder::new("arguments");
    let host = Host::app();
    let db = host.open(folder.file("a.db"));
    db.script("CREATE TABLE t(x); INSERT INTO t VALUES (1)");
    let mut refused = 0;
    for (name, arity) in functions(&db) {
        // litestream_run() blocks by design; its test interrupts it.
        if name == "litestream_run" && arity <= 0 {
            continue;
        }
        let arities: Vec<usize> = match usize::try_from(arity) {
            Ok(count) => vec![count],
            Err(_) => vec![0, 1, 2, 3, 4],
        };
        for count in arities {
            for mut values in argument_lists(count) {
                // Where a good value may stand, the wait it causes is short.
                values.truncate(count);
                let marks = vec!["?"; count].join(", ");
                let sql = format!("SELECT {name}({marks})");
                let outcome = db.send_with(&sql, json!(values)).outcome(DEADLINE);
                if let Err(error) = outcome {
                    let known = error.starts_with(&format!("{name}: "))
                        || error.contains("wrong number of arguments");
                    assert!(known, "{sql} {}: {error}", shown(&values));
                    assert!(error.len() <= 4096, "{sql}: the error repeats its input");
                    refused += 1;
                }
            }
        }
    }
    assert!(refused > 100, "hardly anything was refused: {refused}");
    assert_eq!(db.int("SELECT x FROM t"), 1);
    assert_eq!(db.text("PRAGMA integrity_check"), "ok");
    let peak = host.peak_kib();
    assert!(peak < 200 << 10, "{peak} KiB for a few bad arguments");
}

/// Lists of `count` bad values: every value in every place, the others NULL, or the same.
fn argument_lists(count: usize) -> Vec<Vec<Value>> {
    if count == 0 {
        return vec![vec![]];
    }
    let mut lists = Vec::new();
    for value in bad_values() {
        lists.push(vec![value.clone(); count]);
        for place in 0..count {
            let mut list = vec![Value::Null; count];
            list[place] = value.clone();
            lists.push(list);
        }
    }
    lists
}

fn shown(values: &[Value]) -> String {
    format!("{values:?}").chars().take(200).collect()
}

#[test]
fn what_is_wrong_is_named() {
    let folder = Folder::new("named");
    let host = Host::app();
    let db = host.open(folder.file("a.db"));
    db.run("CREATE TABLE t(x)").unwrap();
    let port = free_port();
    let _taken = std::net::TcpListener::bind(("127.0.0.1", port)).unwrap();
    let taken = format!("litestream_serve('127.0.0.1:{port}')");
    // Each names the function, then what was wrong.
    for (call, words) in [
        ("litestream_serve(NULL)", &["NULL"][..]),
        ("litestream_serve(9090)", &[]),
        (taken.as_str(), &["in use"]),
        ("litestream_serve('no.such.host.invalid:80')", &["no.such.host.invalid"]),
        ("litestream_serve('127.0.0.1:70000')", &["70000"]),
        ("litestream_serve('127.0.0.1:0', '{\"nope\": 1}')", &["nope", "schema"]),
        ("litestream_serve('127.0.0.1:0', '{\"schema\": \"aux\"}')", &["aux"]),
        ("litestream_serve('127.0.0.1:0', '[1]')", &["JSON object"]),
        ("litestream_serve('127.0.0.1:0', '{\"token\": 5}')", &["token"]),
        ("litestream_serve('unix:/no/such/folder/s.sock')", &["/no/such/folder"]),
        ("litestream_follow(NULL)", &["NULL"]),
        ("litestream_follow('ftp://x/')", &["ftp"]),
        ("litestream_follow('http://127.0.0.1:1/', '{\"wait_ms\": -1}')", &["wait_ms"]),
        ("litestream_follow('http://127.0.0.1:1/', '{\"wait_ms\": \"soon\"}')", &["wait_ms"]),
        ("litestream_wait('nonsense')", &["nonsense"]),
        ("litestream_wait(NULL)", &["NULL"]),
        ("litestream_checkpoint('SIDEWAYS')", &["SIDEWAYS", "PASSIVE"]),
        ("litestream_stop('everything')", &["everything", "follow"]),
        ("litestream_promote()", &[]),
        ("litestream_pos_compare('x', 'y')", &[]),
    ] {
        let error = db.fails(&format!("SELECT {call}"));
        let name = call.split('(').next().unwrap();
        assert!(error.starts_with(&format!("{name}: ")), "{call}: {error}");
        for word in words {
            assert!(error.contains(word), "{call} does not say {word:?}: {error}");
        }
    }
    assert_eq!(db.int("SELECT count(*) FROM litestream_databases"), 0, "nothing was started");
    // The functions act; a schema may not call them behind a reader's back.
    let sneaky = db.run("CREATE VIEW v AS SELECT litestream_serve('127.0.0.1:0')");
    let used = sneaky.and_then(|_| db.run("SELECT * FROM v"));
    assert!(used.unwrap_err().contains("unsafe use of"), "a view may not open a port");
}

#[test]
fn an_unreachable_upstream_is_an_error_and_then_retried() {
    let folder = Folder::new("unreachable");
    let host = Host::app();
    let replica = host.open(folder.file("r.db"));
    let port = free_port();
    let url = format!("http://127.0.0.1:{port}/");
    for bad in [url.as_str(), "http://no.such.host.invalid/"] {
        let sql = format!("SELECT litestream_follow('{bad}', '{{\"wait_ms\": 400}}')");
        let error = replica.fails(&sql);
        assert!(error.starts_with("litestream_follow: "), "{error}");
        replica.run("SELECT litestream_stop()").unwrap();
    }
    // With nothing to wait for it keeps trying in the background, and says why it has not
    // succeeded.
    replica.run(&format!("SELECT litestream_follow('{url}', '{{\"wait_ms\": 0}}')")).unwrap();
    let error = until("the error to be shown", || {
        replica.value("SELECT error FROM litestream_databases").as_str().map(str::to_owned)
    });
    assert!(error.contains("refused"), "{error}");
    assert_eq!(replica.text("SELECT upstream FROM litestream_databases"), url);
    let other = Host::app();
    let primary = other.open(folder.file("p.db"));
    primary.run("CREATE TABLE t(x)").unwrap();
    primary.text(&format!("SELECT litestream_serve('127.0.0.1:{port}')"));
    until("the replica to connect", || {
        (replica.int("SELECT count(*) FROM sqlite_schema WHERE name = 't'") == 1).then_some(())
    });
    assert_same(&primary, &replica);
    until("the error to be cleared", || {
        replica.value("SELECT error FROM litestream_databases").is_null().then_some(())
    });
}
