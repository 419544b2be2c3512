//! What the child processes do: fill the database, be the application, restore, tell what a
//! database holds. Everybody's application makes the same changes.

use std::io::{BufRead, Write};
use std::time::Duration;

use rusqlite::{Connection, LoadExtensionGuard};
use serde_json::{Value, json};

/// Bytes of a document's text, on average.
const TEXT_BYTES: u64 = 1500;
/// Documents a transaction changes. Each is on a page of its own, nearly always.
const DOCUMENTS: u64 = 50;
/// Bytes of WAL that one changed document makes: its page, and now and then another.
const FRAME_BYTES: u64 = 4120;

struct Child {
    db: Option<Connection>,
    random: u64,
}

/// Answers calls until the end of input.
pub fn run(_role: &str) {
    let mut child = Child { db: None, random: 88_172_645_463_325_252 };
    for line in std::io::stdin().lock().lines().map_while(Result::ok) {
        let request: Value = serde_json::from_str(&line).unwrap();
        let answer = child.call(request["call"].as_str().unwrap(), &request["with"]);
        let mut out = std::io::stdout().lock();
        writeln!(out, "{answer}").unwrap();
        out.flush().unwrap();
    }
}

impl Child {
    fn call(&mut self, call: &str, with: &Value) -> Value {
        match call {
            "fill" => self.fill(with),
            "open" => self.open(with),
            "replicate" => self.function("litestream_replicate", &[&with["url"]]),
            "write" => self.write(with["mib"].as_u64().unwrap()),
            "sync" => self.query("SELECT litestream_sync(600000)", &[]),
            "close" => self.close(),
            "restore" => {
                let db = Connection::open_in_memory().unwrap();
                load(&db);
                self.db = Some(db);
                self.function("litestream_restore", &[&with["url"], &with["path"]])
            }
            "digest" => {
                self.db = Some(Connection::open(with["path"].as_str().unwrap()).unwrap());
                self.digest()
            }
            _ => panic!("{call}?"),
        }
    }

    fn db(&self) -> &Connection {
        self.db.as_ref().unwrap()
    }

    fn function(&self, name: &str, arguments: &[&Value]) -> Value {
        let marks = vec!["?"; arguments.len()].join(", ");
        let texts: Vec<&str> = arguments.iter().map(|value| value.as_str().unwrap()).collect();
        self.query(&format!("SELECT {name}({marks})"), &texts)
    }

    fn query(&self, sql: &str, texts: &[&str]) -> Value {
        let answer = self.db().query_row(sql, rusqlite::params_from_iter(texts), |row| {
            row.get::<_, rusqlite::types::Value>(0)
        });
        json!(format!("{:?}", answer.unwrap()))
    }

    /// Documents until there are so many MiB.
    fn fill(&mut self, with: &Value) -> Value {
        let db = Connection::open(with["path"].as_str().unwrap()).unwrap();
        db.execute_batch(
            "PRAGMA page_size = 4096; PRAGMA journal_mode = OFF; PRAGMA synchronous = OFF;
             CREATE TABLE documents (
               id INTEGER PRIMARY KEY, author TEXT, changed INTEGER, text TEXT, hash BLOB);
             BEGIN;",
        )
        .unwrap();
        let bytes = with["mib"].as_u64().unwrap() << 20;
        let insert = "INSERT INTO documents VALUES (?1, ?2, ?3, ?4, ?5)";
        {
            let mut insert = db.prepare(insert).unwrap();
            // Two documents fill a page.
            for id in 0..i64::try_from(bytes / 2048).unwrap() {
                let author = format!("author {}", self.below(500));
                let (text, hash) = (self.text(), self.bytes(200));
                insert.execute((id, author, 1_700_000_000 + id, text, hash)).unwrap();
            }
        }
        db.execute_batch("COMMIT; PRAGMA journal_mode = WAL;").unwrap();
        json!("filled")
    }

    fn open(&mut self, with: &Value) -> Value {
        let db = Connection::open(with["path"].as_str().unwrap()).unwrap();
        db.busy_timeout(Duration::from_secs(60)).unwrap();
        if with["extension"] == json!(true) {
            load(&db);
        }
        db.execute_batch("PRAGMA synchronous = NORMAL; SELECT count(*) FROM sqlite_schema;")
            .unwrap();
        self.db = Some(db);
        json!("open")
    }

    /// Changes documents until there were so many MiB of WAL.
    fn write(&mut self, mib: u64) -> Value {
        let count = "SELECT count(*) FROM documents";
        let all = self.db().query_row(count, [], |row| row.get::<_, u32>(0)).unwrap();
        let update = "UPDATE documents SET text = ?1, changed = changed + 1 WHERE id = ?2";
        for _ in 0..(mib << 20) / (DOCUMENTS * FRAME_BYTES) {
            let mut one = || (self.text(), i64::try_from(self.below(all.into())).unwrap());
            let changes: Vec<(String, i64)> = (0..DOCUMENTS).map(|_| one()).collect();
            let db = self.db();
            db.execute_batch("BEGIN IMMEDIATE").unwrap();
            {
                let mut update = db.prepare(update).unwrap();
                for change in changes {
                    update.execute(change).unwrap();
                }
            }
            db.execute_batch("COMMIT").unwrap();
        }
        json!("written")
    }

    /// The digest, and the end of everything here.
    fn close(&mut self) -> Value {
        let digest = self.digest();
        let _busy_or_not = self.db().query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |_| Ok(()));
        self.db = None;
        digest
    }

    fn digest(&self) -> Value {
        let sql = "SELECT count(*) || ' ' || sum(changed) || ' ' || sum(length(text)) || ' ' ||
                          sum(id * unicode(substr(text, 1 + id % 900, 1))) || ' ' ||
                          sum(id * unicode(substr(text, 1 + (id * 7) % 800, 1)))
                   FROM documents";
        json!(self.db().query_row(sql, [], |row| row.get::<_, String>(0)).unwrap())
    }

    /// Words from a vocabulary, as in prose, some of them numbers.
    fn text(&mut self) -> String {
        const SYLLABLES: [&str; 16] = [
            "ka", "lo", "mi", "ne", "ru", "sta", "ter", "von", "wi", "xe", "yo", "zu", "pra",
            "qui", "del", "and",
        ];
        let len = TEXT_BYTES / 2 + self.below(TEXT_BYTES);
        let mut text = String::new();
        while (text.len() as u64) < len {
            let word = self.below(1 << 16);
            if word.is_multiple_of(7) {
                text.push_str(&word.to_string());
            } else {
                // Few words are frequent, most are rare.
                for place in 0..2 + word % 3 {
                    let digit = word >> (4 * place) & if place == 0 { 15 } else { 7 };
                    text.push_str(SYLLABLES[usize::try_from(digit).unwrap()]);
                }
            }
            text.push(' ');
        }
        text
    }

    fn bytes(&mut self, count: usize) -> Vec<u8> {
        (0..count).map(|_| self.number().to_be_bytes()[0]).collect()
    }

    fn below(&mut self, end: u64) -> u64 {
        (self.number() >> 20) % end
    }

    fn number(&mut self) -> u64 {
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        self.random
    }
}

/// The extension as built for this very run, which is beside this program.
#[expect(unsafe_code, reason = "loading a library is unsafe, whichever it is")]
fn load(db: &Connection) {
    let name = if cfg!(target_os = "macos") { "liblitestream.dylib" } else { "liblitestream.so" };
    let library = std::env::current_exe().unwrap().with_file_name(name);
    // SAFETY: no statement of others runs meanwhile, and the library is our own.
    let guard = unsafe { LoadExtensionGuard::new(db) }.unwrap();
    // SAFETY: as above.
    unsafe { db.load_extension(&library, Some("sqlite3_litestream_init")) }.unwrap();
    drop(guard);
}
