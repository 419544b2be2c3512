//! Functions and tables as SQL sees them: types, errors, panics, interrupts.

use std::time::{Duration, Instant};

use litestream::error::{Error, ErrorKind, Result};
use litestream::host::Registrar;
use litestream::host::conn::{Caller, Connection};
use litestream::host::function::{Answer, Args, FunctionFlags, define};
use litestream::host::table::{TableDef, define_table};

use crate::folder::Folder;
use crate::sqlite::{application, start};

/// What the library under test registers on every connection of this process.
pub fn register(db: &Registrar) -> Result<()> {
    let plain = FunctionFlags::empty();
    define(db, "t_echo", 1, plain, echo)?;
    define(db, "t_integer", 1, plain, |_, args| Ok(args.integer(0)?.into()))?;
    define(db, "t_real", 1, plain, |_, args| Ok(args.real(0)?.into()))?;
    define(db, "t_required", 1, plain, |_, args| Ok(args.text_required(0, "name")?.into()))?;
    define(db, "t_count", -1, plain, |_, args| {
        Ok(Answer::Integer(args.len().try_into().unwrap()))
    })?;
    define(db, "t_fail", 1, plain, |_, args| {
        Err(Error::new(ErrorKind::Busy, args.text(0)?.unwrap_or_default()))
    })?;
    define(db, "t_panic", 0, plain, |_, _| panic!("on purpose"))?;
    define(db, "t_wait", 0, FunctionFlags::DIRECTONLY, wait)?;
    define(db, "t_file", 1, plain, |caller, args| {
        let file = caller.filename(args.text_required(0, "schema")?)?;
        Ok(file.map(|file| file.display().to_string()).into())
    })?;
    define(db, "t_vfs", 1, plain, |caller, args| {
        Ok(caller.vfs(args.text_required(0, "schema")?)?.into())
    })?;
    define(db, "t_facts", 0, plain, |caller, _| {
        let (open, readonly) = (caller.in_transaction(), caller.readonly("main")?);
        let journal = caller.query_text("PRAGMA main.journal_mode")?.unwrap_or_default();
        Ok(format!("{open} {readonly} {journal}").into())
    })?;
    define_table(db, &ROWS)?;
    define_table(db, &PANIC)?;
    define_table(db, &FAIL)
}

static ROWS: TableDef = TableDef {
    name: "t_rows",
    columns: &["name TEXT", "size INTEGER", "lag REAL"],
    rows: |caller| {
        let main = caller.filename("main")?.map(|path| path.display().to_string());
        Ok(vec![
            vec!["one".into(), 1_i64.into(), 0.5.into()],
            vec![main.into(), Answer::Null, Answer::Null],
            vec![], // a short row reads as NULLs
        ])
    },
};
static PANIC: TableDef =
    TableDef { name: "t_rows_panic", columns: &["x"], rows: |_| panic!("again") };
static FAIL: TableDef = TableDef {
    name: "t_rows_fail",
    columns: &["x"],
    rows: |_| Err(Error::new(ErrorKind::Io, "100%s of %n at %d\0end")),
};

fn echo(_: &Caller, args: &Args) -> Result<Answer> {
    Ok(args.text(0)?.into())
}

fn wait(caller: &Caller, _: &Args) -> Result<Answer> {
    let begun = Instant::now();
    let mut asked = 0;
    while begun.elapsed() < Duration::from_secs(20) {
        if caller.interrupted() {
            return Err(Error::new(ErrorKind::Stopped, format!("interrupted, {asked}")));
        }
        asked += 1;
        std::thread::sleep(Duration::from_millis(1));
    }
    Ok(Answer::Integer(0))
}

fn memory() -> (Folder, Connection) {
    start();
    let folder = Folder::new("host");
    let connection = Connection::open(&folder.file("a.db"), "", true).unwrap();
    (folder, connection)
}

fn answer(connection: &Connection, sql: &str) -> String {
    match connection.query_text(sql) {
        Ok(value) => value.unwrap_or_else(|| "NULL".to_owned()),
        Err(error) => error.to_string(),
    }
}

/// Each line is a query and what its answer, or its error, contains.
#[test]
fn values_and_errors() {
    let (_folder, connection) = memory();
    for (sql, wanted) in [
        ("SELECT t_echo('text')", "text"),
        ("SELECT typeof(t_echo(''))", "text"),
        ("SELECT t_echo(NULL)", "NULL"),
        ("SELECT hex(t_echo(char(97, 0, 98)))", "610062"),
        ("SELECT length(t_echo(printf('%.*c', 1000000, 'x')))", "1000000"),
        ("SELECT t_echo(1)", "t_echo: argument 1 must be text, not integer"),
        ("SELECT t_echo(1.5)", "t_echo: argument 1 must be text, not real"),
        ("SELECT t_echo(x'00')", "t_echo: argument 1 must be text, not blob"),
        ("SELECT t_echo(zeroblob(0))", "t_echo: argument 1 must be text, not blob"),
        ("SELECT t_echo(CAST(x'ff' AS TEXT))", "t_echo: argument 1 is not valid UTF-8"),
        ("SELECT t_integer(-9223372036854775808)", "-9223372036854775808"),
        ("SELECT t_integer('1')", "t_integer: argument 1 must be an integer, not text"),
        ("SELECT t_integer(NULL)", "NULL"),
        ("SELECT t_real(2)", "2.0"),
        ("SELECT t_real(2.5)", "2.5"),
        ("SELECT t_required(NULL)", "t_required: name must be text, not NULL"),
        ("SELECT t_count()", "0"),
        ("SELECT t_count(1, NULL, 'x')", "3"),
        ("SELECT t_fail('50%s off %n')", "t_fail: 50%s off %n"),
        ("SELECT t_fail('a' || char(0) || 'b')", "t_fail: a b"),
        ("SELECT t_panic()", "t_panic: internal panic"),
        ("SELECT 'still ' || t_echo('here')", "still here"),
        ("SELECT group_concat(name || size || lag) FROM t_rows", "one10.5"),
        ("SELECT count(*) FROM t_rows", "3"),
        ("SELECT count(*) FROM t_rows a, t_rows b", "9"),
        ("SELECT size FROM t_rows WHERE name = 'one'", "1"),
        ("SELECT t_file('main') = (SELECT name FROM t_rows WHERE rowid = 1)", "1"),
        ("SELECT * FROM t_rows_panic", "t_rows_panic: internal panic"),
        ("SELECT * FROM t_rows_fail", "t_rows_fail: 100%s of %n at %d end"),
        ("SELECT * FROM t_rows_fail", "t_rows_fail: 100%s of %n at %d end"),
        ("INSERT INTO t_rows VALUES (1, 2, 3)", "may not be modified"),
        ("CREATE VIRTUAL TABLE v USING t_rows", "no such module"),
        ("SELECT t_vfs('main')", "unix"),
        ("SELECT t_vfs('nosuch')", "nosuch"),
        ("SELECT t_file('nosuch')", "no database named \"nosuch\""),
        ("SELECT t_facts()", "false false delete"),
    ] {
        let found = answer(&connection, sql);
        assert!(found.contains(wanted), "{sql}\n  gave   {found}\n  wanted {wanted}");
    }
}

#[test]
fn an_error_carries_its_code_and_can_be_long() {
    let (_folder, connection) = memory();
    let error = connection.query_text("SELECT t_fail('x')").unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Busy);
    let error = connection.query_text("SELECT t_fail(printf('%.*c', 1000000, 'x'))").unwrap_err();
    assert!(error.to_string().len() < 70_000);
}

#[test]
fn a_caller_knows_its_databases() {
    let folder = Folder::new("host");
    let path = folder.file("a.db");
    let connection = application(&path);
    connection.execute("BEGIN; ATTACH ':memory:' AS mem").unwrap();
    assert_eq!(answer(&connection, "SELECT t_facts()"), "true false wal");
    assert_eq!(answer(&connection, "SELECT t_file('main')"), path.display().to_string());
    assert_eq!(answer(&connection, "SELECT t_file('mem')"), "NULL");
    connection.execute("COMMIT").unwrap();
}

/// `sqlite3_interrupt` from another thread reaches a function that only sleeps and asks, and leaves
/// no trace on the connection.
#[test]
fn an_interrupt_reaches_a_waiting_function() {
    let (_folder, connection) = memory();
    let begun = Instant::now();
    let error = std::thread::scope(|scope| {
        scope.spawn(|| {
            // The flag is dropped if no statement runs yet, so it is raised until one sees it.
            while begun.elapsed() < Duration::from_secs(10) {
                std::thread::sleep(Duration::from_millis(50));
                connection.interrupt();
                if begun.elapsed() > Duration::from_millis(200) {
                    break;
                }
            }
        });
        connection.query_text("SELECT t_wait()").unwrap_err()
    });
    assert!(begun.elapsed() < Duration::from_secs(10));
    assert_eq!(error.kind(), ErrorKind::Stopped);
    assert!(error.to_string().contains("t_wait: interrupted"), "{error}");
    assert_eq!(answer(&connection, "SELECT t_echo('again')"), "again");
}

#[test]
fn direct_only_functions_stay_out_of_schemas() {
    let (_folder, connection) = memory();
    connection
        .execute("CREATE VIEW v AS SELECT t_wait() AS x; CREATE VIEW w AS SELECT t_count() AS x")
        .unwrap();
    let found = answer(&connection, "SELECT x FROM v");
    assert!(found.contains("unsafe use of t_wait"), "{found}");
    assert_eq!(answer(&connection, "SELECT x FROM w"), "0");
}
