//! An application's database: every kind of change there is, and what it holds as text.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use rusqlite::types::ValueRef;
use rusqlite::{Connection, OpenFlags};

use crate::common::Rng;

/// A database in WAL mode, being written.
pub struct Application {
    pub path: PathBuf,
    pub connection: Connection,
    rng: Rng,
}

/// How many [`Application::step`]s are different from each other.
pub const STEPS: usize = 6;

impl Application {
    pub fn new(path: PathBuf, page_size: u32) -> Application {
        let connection = Connection::open(&path).unwrap();
        connection
            .execute_batch(&format!(
                "PRAGMA busy_timeout = 10000;
                 PRAGMA page_size = {page_size};
                 PRAGMA journal_mode = WAL;
                 PRAGMA wal_autocheckpoint = 0;
                 CREATE TABLE t (id INTEGER PRIMARY KEY, text TEXT, bytes BLOB);
                 CREATE TABLE other (a, b, PRIMARY KEY (a, b)) WITHOUT ROWID;"
            ))
            .unwrap();
        Application { path, connection, rng: Rng::new() }
    }

    /// The changes of one moment: several transactions.
    pub fn step(&mut self, number: usize) {
        match number % STEPS {
            0 => self.insert(60, 300),
            1 => self.script(
                "UPDATE t SET text = text || ' again' WHERE id % 3 = 0;
                 INSERT OR REPLACE INTO other SELECT id % 20, text FROM t;",
            ),
            2 => self.script("DELETE FROM t WHERE id % 4 <> 0; VACUUM;"),
            3 => self.insert(40, 4000),
            4 => self.script(
                "CREATE INDEX IF NOT EXISTS by_text ON t (text);
                 BEGIN; DELETE FROM other; INSERT INTO other VALUES (1, 2); COMMIT;",
            ),
            _ => self.script(
                "DROP INDEX by_text; DELETE FROM t WHERE id % 2 = 0; VACUUM;
                 UPDATE t SET bytes = zeroblob(700);",
            ),
        }
    }

    fn insert(&mut self, rows: u64, bytes: u64) {
        for row in 0..rows {
            let len = usize::try_from(self.rng.below(bytes)).unwrap();
            let blob = self.rng.bytes(len);
            let text = format!("row {row} of {}", self.rng.below(1000));
            let insert = "INSERT INTO t (text, bytes) VALUES (?1, ?2)";
            self.connection.execute(insert, (text, blob)).unwrap();
        }
    }

    pub fn script(&self, sql: &str) {
        self.connection.execute_batch(sql).unwrap();
    }

    /// All it holds now.
    pub fn content(&self) -> String {
        content_of(&self.connection)
    }
}

/// All that a database file holds. It must be sound.
pub fn content(path: &Path) -> String {
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE;
    let connection = Connection::open_with_flags(path, flags).unwrap();
    let check: String =
        connection.query_row("PRAGMA integrity_check", (), |row| row.get(0)).unwrap();
    assert_eq!(check, "ok", "{}", path.display());
    content_of(&connection)
}

/// Schema and rows, without what the releases keep in a database for themselves.
fn content_of(connection: &Connection) -> String {
    let mut text = String::new();
    let schema = "SELECT type, name, sql FROM sqlite_schema \
                  WHERE name NOT LIKE '\\_litestream\\_%' ESCAPE '\\' ORDER BY type, name";
    rows(connection, schema, &mut text);
    let tables = "SELECT name FROM sqlite_schema WHERE type = 'table' \
                  AND name NOT LIKE '\\_litestream\\_%' ESCAPE '\\' ORDER BY name";
    let mut statement = connection.prepare(tables).unwrap();
    let names: Vec<String> =
        statement.query_map((), |row| row.get(0)).unwrap().map(Result::unwrap).collect();
    for name in names {
        rows(connection, &format!("SELECT * FROM \"{name}\" ORDER BY 1, 2"), &mut text);
    }
    text
}

fn rows(connection: &Connection, sql: &str, text: &mut String) {
    let mut statement = connection.prepare(sql).unwrap();
    let columns = statement.column_count();
    let mut rows = statement.query(()).unwrap();
    while let Some(row) = rows.next().unwrap() {
        for column in 0..columns {
            match row.get_ref(column).unwrap() {
                ValueRef::Blob(bytes) => write!(text, "{bytes:02x?}|").unwrap(),
                ValueRef::Text(bytes) => {
                    write!(text, "{}|", String::from_utf8_lossy(bytes)).unwrap();
                }
                other => write!(text, "{other:?}|").unwrap(),
            }
        }
        text.push('\n');
    }
}

/// Fails without printing two databases.
pub fn assert_content(found: &str, expected: &str, what: &str) {
    if found == expected {
        return;
    }
    let at = found.lines().zip(expected.lines()).position(|(a, b)| a != b);
    let (found, expected) = (found.lines().count(), expected.lines().count());
    panic!("{what}: {found} rows instead of {expected}, the first that differs is {at:?}");
}
