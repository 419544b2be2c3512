//! Eponymous, read-only tables: a function that lists rows becomes something to SELECT from.
//!
//! Each scan takes one snapshot of the rows, at its start. There is no index: SQLite filters. Error
//! texts go through `sqlite-loadable`, which uses them as a printf format, so every `%` is doubled
//! in `table_error` and nowhere else.

use std::ffi::c_int;

use sqlite_loadable::ext::{
    sqlite3, sqlite3_context, sqlite3_value, sqlite3_vtab, sqlite3_vtab_cursor,
};
use sqlite_loadable::table::{IndexInfo, VTab, VTabArguments, VTabCursor};
use sqlite_loadable::{BestIndexError, define_table_function};

use super::api;
use super::caller::Caller;
use super::function::{Answer, answer_with, prefixed};
use super::guard::guard;
use super::load::Registrar;
use crate::error::{Error, ErrorKind, Result};

/// What the planner is told a scan costs: little, but more than a row of a real table.
const SCAN_COST: f64 = 1000.0;

/// One table: what it is called, what its columns are, and where its rows come from.
pub struct TableDef {
    /// As in `SELECT * FROM name`.
    pub name: &'static str,
    /// Column declarations, such as `pos TEXT`.
    pub columns: &'static [&'static str],
    /// The rows, each with one answer per column.
    pub rows: fn(&Caller) -> Result<Vec<Vec<Answer>>>,
}

/// Makes `table` readable on a connection.
#[expect(clippy::disallowed_methods, reason = "this is where its error texts are escaped")]
pub fn define_table(db: &Registrar, table: &'static TableDef) -> Result<()> {
    define_table_function::<Table>(db.raw(), table.name, Some(table))
        .map_err(|_| Error::new(ErrorKind::Host(1), format!("define table {}", table.name)))
}

/// Our error as the crate's, safe to be used as a printf format.
fn table_error(table: &TableDef, error: Error) -> sqlite_loadable::Error {
    let text = prefixed(table.name, error).to_string();
    sqlite_loadable::Error::new_message(text.replace('\0', " ").replace('%', "%%"))
}

/// SQLite sees only `base`, at the start of the struct.
#[repr(C)]
struct Table {
    base: sqlite3_vtab,
    db: *mut sqlite3,
    table: &'static TableDef,
}

impl VTab<'_> for Table {
    type Aux = &'static TableDef;
    type Cursor = Scan;

    fn connect(
        db: *mut sqlite3,
        aux: Option<&Self::Aux>,
        _: VTabArguments,
    ) -> sqlite_loadable::Result<(String, Self)> {
        let Some(&table) = aux else { return Err(sqlite_loadable::Error::from("no table")) };
        // SAFETY: numbers and pointers; all zeroes is how SQLite wants it. It fills it in itself.
        let base = unsafe { std::mem::zeroed() };
        let declaration = format!("CREATE TABLE x({})", table.columns.join(", "));
        Ok((declaration, Table { base, db, table }))
    }

    fn best_index(&self, mut info: IndexInfo) -> std::result::Result<(), BestIndexError> {
        info.set_estimated_cost(SCAN_COST);
        Ok(())
    }

    fn open(&mut self) -> sqlite_loadable::Result<Scan> {
        // SAFETY: as in `connect`.
        let base = unsafe { std::mem::zeroed() };
        Ok(Scan { base, db: self.db, table: self.table, rows: Vec::new(), at: 0 })
    }
}

/// SQLite sees only `base`, at the start of the struct.
#[repr(C)]
struct Scan {
    base: sqlite3_vtab_cursor,
    db: *mut sqlite3,
    table: &'static TableDef,
    rows: Vec<Vec<Answer>>,
    at: usize,
}

impl VTabCursor for Scan {
    fn filter(
        &mut self,
        _: c_int,
        _: Option<&str>,
        _: &[*mut sqlite3_value],
    ) -> sqlite_loadable::Result<()> {
        self.at = 0;
        self.rows = Vec::new();
        let rows = guard(self.table.name, || {
            let api = api::api()?;
            // SAFETY: the connection is running the statement that scans us, on this thread.
            let caller = unsafe { Caller::new(api, self.db) };
            (self.table.rows)(&caller)
        });
        self.rows = rows.map_err(|error| table_error(self.table, error))?;
        Ok(())
    }

    fn next(&mut self) -> sqlite_loadable::Result<()> {
        self.at = self.at.saturating_add(1);
        Ok(())
    }

    fn eof(&self) -> bool {
        self.at >= self.rows.len()
    }

    fn column(&self, context: *mut sqlite3_context, column: c_int) -> sqlite_loadable::Result<()> {
        let row = self.rows.get(self.at);
        let answer = usize::try_from(column).ok().and_then(|column| row?.get(column));
        let answer = answer.cloned().unwrap_or(Answer::Null);
        let api = api::api().map_err(|error| table_error(self.table, error))?;
        // SAFETY: SQLite passes the context of the column it asks for.
        unsafe { answer_with(api, context, Ok(answer)) };
        Ok(())
    }

    fn rowid(&self) -> sqlite_loadable::Result<i64> {
        Ok(i64::try_from(self.at).unwrap_or(i64::MAX))
    }
}
