//! A hostile database file: its views, triggers, generated columns, constraints and indexes name
//! our functions and tables, and an application that loaded the extension reads and writes it.

use std::path::Path;

use crate::common::*;

/// What one file tries: how it is made, what its author then writes into the schema by hand (what
/// is called so, and its statement), and what the application does.
struct Trap {
    name: &'static str,
    made: &'static str,
    forged: Option<(&'static str, &'static str)>,
    act: &'static str,
}

const TRAPS: [Trap; 7] = [
    Trap {
        name: "a view",
        made: "CREATE VIEW trap AS SELECT {}",
        forged: None,
        act: "SELECT * FROM trap",
    },
    Trap {
        name: "a trigger",
        made: "CREATE TRIGGER trap AFTER INSERT ON t BEGIN INSERT INTO loot SELECT {}; END",
        forged: None,
        act: "INSERT INTO t(x) VALUES (1)",
    },
    Trap {
        name: "a trigger on a view",
        made: "CREATE VIEW trap AS SELECT 1 AS x;
               CREATE TRIGGER spring INSTEAD OF DELETE ON trap
               BEGIN INSERT INTO loot SELECT {}; END",
        forged: None,
        act: "DELETE FROM trap",
    },
    Trap {
        name: "a default",
        made: "CREATE TABLE trap(x, y)",
        forged: Some(("trap", "CREATE TABLE trap(x, y DEFAULT ({}))")),
        act: "INSERT INTO trap(x) VALUES (1)",
    },
    Trap {
        name: "a constraint",
        made: "CREATE TABLE trap(x)",
        forged: Some(("trap", "CREATE TABLE trap(x, CHECK ({} IS NOT 7))")),
        act: "INSERT INTO trap VALUES (1)",
    },
    Trap {
        name: "a generated column",
        made: "CREATE TABLE trap(x); INSERT INTO trap VALUES (1)",
        forged: Some(("trap", "CREATE TABLE trap(x, y AS ({}))")),
        act: "SELECT y FROM trap",
    },
    Trap {
        name: "an index",
        made: "CREATE TABLE trap(x); CREATE INDEX spring ON trap(x)",
        forged: Some(("spring", "CREATE INDEX spring ON trap({})")),
        act: "INSERT INTO trap VALUES (1)",
    },
];

fn calls(folder: &Folder) -> Vec<String> {
    let functions = [
        "litestream_serve('127.0.0.1:0')",
        "litestream_follow('http://127.0.0.1:1')",
        "litestream_replicate('file://{folder}/trap')",
        "litestream_restore('file://{folder}/trap', '{folder}/loot.db')",
        "litestream_stop()",
        "litestream_promote()",
        "litestream_run()",
        "litestream_snapshot()",
        "litestream_sync()",
        "litestream_checkpoint()",
        "litestream_pos()",
        "litestream_wait('x')",
        "litestream_wait_followers(1)",
        "litestream_lag()",
        "litestream_debug()",
        "litestream_version()",
        "litestream_verify()",
    ];
    let here = folder.file("");
    let here = here.to_str().unwrap().trim_end_matches('/');
    functions.map(|call| call.replace("{folder}", here)).to_vec()
}

/// No function that has effects, or tells something, is forgotten.
fn assert_tried(db: &Db, attempts: &[String]) {
    let sql = "SELECT DISTINCT name FROM pragma_function_list WHERE name LIKE 'litestream%'
        AND name <> 'litestream_pos_compare'";
    let rows = db.rows(sql);
    assert!(!rows.is_empty());
    for row in rows {
        let start = format!("{}(", row[0].as_str().unwrap());
        assert!(attempts.iter().any(|call| call.starts_with(&start)), "{start}...) is not tried");
    }
}

fn tables(db: &Db) -> Vec<String> {
    let sql = "SELECT name FROM pragma_module_list WHERE name LIKE 'litestream%' ORDER BY name";
    db.rows(sql).iter().map(|row| row[0].as_str().unwrap().to_owned()).collect()
}

/// Whether a statement was refused because the schema, and not the application, asks.
fn is_refused(error: &str) -> bool {
    // 3.35 looks for the table before it forbids the subquery.
    let words = ["unsafe use of", "prohibited in", "is not constant", "no such table: litestream"];
    words.iter().any(|words| error.contains(words))
}

#[test]
fn no_schema_gets_at_a_function_or_a_table() {
    let folder = Folder::new("schema");
    let mut hosts = vec![Host::app()];
    hosts.extend(other_versions().iter().map(|module| Host::of(module, true)));
    assert!(hosts.len() >= 4);
    for (number, host) in hosts.iter().enumerate() {
        // Something is at work that a table could tell of.
        let app = host.open(folder.file(&format!("app{number}.db")));
        app.run("CREATE TABLE t(x)").unwrap();
        serve(&app);
        let tables = tables(&app);
        assert_eq!(tables.len(), 7, "{tables:?}");
        let mut attempts = calls(&folder);
        assert_tried(&app, &attempts);
        attempts
            .extend(tables.iter().map(|name| format!("(SELECT group_concat(rowid) FROM {name})")));
        attempts.push("(SELECT message FROM litestream_log)".to_owned());
        for (at, attempt) in attempts.iter().enumerate() {
            // Each version tries the first and some of the others.
            if at > 0 && at % scaled(hosts.len(), 1) != number % scaled(hosts.len(), 1) {
                continue;
            }
            let path = folder.file(&format!("trap{number}-{at}.db"));
            for trap in &TRAPS {
                forge(host, &path, trap, attempt);
                // The extension may come before the schema is read, or after.
                for late in [false, true] {
                    let victim = if late { host.open_plain(&path) } else { host.open(&path) };
                    if late {
                        let _ = victim.run("SELECT count(*) FROM t");
                        victim.load();
                    }
                    let (version, name) = (host.version(), trap.name);
                    let what = format!("{version}, {late}: {name} with {attempt}");
                    let outcome = victim.run(trap.act);
                    let error = outcome.map_or_else(|error| error, |_| "it ran".into());
                    assert!(is_refused(&error), "{what}: {error}");
                    let loot = victim.run("SELECT count(*) FROM loot");
                    assert!(loot.map_or(true, |rows| rows[0][0] == 0), "{what}: it has loot");
                    victim.close();
                }
            }
        }
        assert_eq!(app.int("SELECT count(*) FROM litestream_databases"), 1);
        // What the application itself asks is answered, in a view of its own too.
        app.run("CREATE TEMP VIEW mine AS SELECT path FROM litestream_databases").unwrap();
        assert!(app.text("SELECT path FROM mine").ends_with(&format!("app{number}.db")));
    }
}

/// Makes the file, without the extension: nobody can stop its author.
fn forge(host: &Host, path: &Path, trap: &Trap, attempt: &str) {
    let _ = std::fs::remove_file(path);
    let db = host.open_plain(path);
    db.script("PRAGMA synchronous = OFF; CREATE TABLE t(x); CREATE TABLE loot(x)");
    db.script(&trap.made.replace("{}", attempt));
    if let Some((name, statement)) = trap.forged {
        db.run("PRAGMA writable_schema = ON").unwrap();
        let values = json!([statement.replace("{}", attempt), name]);
        let sql = "UPDATE sqlite_schema SET sql = ? WHERE name = ?";
        db.send_with(sql, values).outcome(DEADLINE).unwrap();
    }
    db.close();
}

/// What the application has of its own, in TEMP or in a literal, once opened the same function to
/// every schema; and so did a function `lower` of its own.
#[test]
fn what_the_application_has_opens_nothing_to_a_schema() {
    let folder = Folder::new("schema-own");
    let call = "litestream_debug()";
    let mut hosts = vec![Host::app()];
    hosts.extend(other_versions().iter().map(|module| Host::of(module, true)));
    for (number, host) in hosts.iter().enumerate() {
        let path = folder.file(&format!("trap{number}.db"));
        let trap = TRAPS.iter().find(|trap| trap.name == "a constraint").unwrap();
        forge(host, &path, trap, call);
        let victim = host.open_plain(&path);
        let _ = victim.run("SELECT count(*) FROM t");
        victim.load();
        let version = host.version();
        victim.script(
            "CREATE TEMP VIEW mine AS SELECT litestream_debug() AS fact;
             CREATE TEMP VIEW theirs AS SELECT * FROM mine;
             CREATE TEMP TABLE notes AS SELECT 'litestream_debug() is a function' AS note",
        );
        for act in [
            "INSERT INTO trap VALUES (1)",
            "INSERT INTO trap VALUES ('litestream_debug()')",
            "INSERT INTO trap SELECT 1 -- litestream_debug() and mine",
            "INSERT INTO trap SELECT 1 AS litestream_debugger",
        ] {
            let outcome = victim.run(act);
            let error = outcome.map_or_else(|error| error, |_| "it ran".into());
            assert!(is_refused(&error), "{version}: {act}: {error}");
        }
        for own in ["mine", "theirs", "temp.\"MINE\""] {
            assert!(victim.text(&format!("SELECT fact FROM {own}")).contains("v0"), "{version}");
        }
        victim.close();
    }
}
