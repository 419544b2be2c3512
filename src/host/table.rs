//! Eponymous, read-only tables: what lists rows becomes something to SELECT from.
//!
//! Each scan takes one snapshot of the rows, at its start. There is no index: SQLite filters. A
//! table may have *inputs*, columns whose value its rows may depend on:
//!
//! | input    | a column               | `= value` on it                                         |
//! |----------|------------------------|---------------------------------------------------------|
//! | argument | hidden: `table(a, b)`  | is needed to list anything, and not looked at again     |
//! | filter   | as any other           | may spare the work for other rows; SQLite checks again  |
//!
//! Tables reach beyond the database, to paths, URLs and stores, so a schema cannot use them
//! (SQLITE_VTAB_DIRECTONLY): a view or a trigger in a file somebody sent must not tell what else
//! this process works on.
//!
//! A scan that repeats the one before, as joins do, uses its rows again. SQLite may run one scan
//! for each side of an OR and tells rows that come twice by their rowid: theirs is made of what
//! identifies the row.
//!
//! Error texts go through `sqlite-loadable`, which uses them as a printf format, so every `%` is
//! doubled in `table_error` and nowhere else.

use std::ffi::c_int;
use std::hash::{DefaultHasher, Hash, Hasher};

use sqlite_loadable::ext::{
    sqlite3, sqlite3_context, sqlite3_value, sqlite3_vtab, sqlite3_vtab_cursor,
};
use sqlite_loadable::table::{ConstraintOperator, IndexInfo, VTab, VTabArguments, VTabCursor};
use sqlite_loadable::{BestIndexError, define_table_function};
use sqlite3ext_sys::SQLITE_VTAB_DIRECTONLY;

use super::api;
use super::caller::Caller;
use super::function::{Answer, Args, answer_with, prefixed};
use super::guard::guard;
use super::load::Registrar;
use crate::error::{Error, ErrorKind, Result};

/// What the planner is told a scan costs: little, but more than a row of a real table.
const SCAN_COST: f64 = 1000.0;
/// A scan of everything, where an input would have spared most of it.
const WIDE_SCAN_COST: f64 = 1_000_000.0;

/// One table: what it is called, what its columns are, and where its rows come from.
pub struct TableDef {
    /// As in `SELECT * FROM name`.
    pub name: &'static str,
    /// Column declarations, such as `pos TEXT`.
    pub columns: &'static [&'static str],
    /// The rows, each with one answer per column.
    pub rows: fn(&Caller) -> Result<Vec<Vec<Answer>>>,
}

/// A table with inputs.
pub struct SearchDef {
    /// As in `SELECT * FROM name`.
    pub name: &'static str,
    /// Column declarations, such as `pos TEXT` or `path HIDDEN`.
    pub columns: &'static [&'static str],
    /// So many of the first columns identify a row.
    pub key: usize,
    /// What rows may depend on.
    pub inputs: &'static [Input],
    /// The rows for these inputs, in the order of `inputs`.
    pub rows: fn(&Caller, &[Given]) -> Listing,
}

/// What comes of asking for rows.
pub type Listing = Result<Box<dyn Rows>>;

/// A column, counted from 0, that rows may depend on.
#[derive(Clone, Copy, Debug)]
pub enum Input {
    /// A hidden column. What is said of it is taken for true and not checked again, so it need not
    /// be shown.
    Argument(usize),
    /// Any other. Rows for which it is false may be left out; those that are not are dropped.
    Filter(usize),
}

/// An input's value in one scan.
#[derive(Clone, Debug, PartialEq)]
pub enum Given {
    /// Nothing is said of it.
    Nothing,
    /// It must equal this text.
    Text(String),
    /// It must equal something else, of this type: `null`, `integer`, `real` or `blob`.
    Other(&'static str),
}

/// Rows, made when they are asked for.
pub trait Rows {
    /// How many there are.
    fn count(&self) -> usize;

    /// One of them, counted from 0: an answer per column. Columns left out at the end are NULL.
    fn row(&self, at: usize) -> Vec<Answer>;
}

impl Rows for Vec<Vec<Answer>> {
    fn count(&self) -> usize {
        self.len()
    }

    fn row(&self, at: usize) -> Vec<Answer> {
        self.get(at).cloned().unwrap_or_default()
    }
}

/// What [`define_table`] takes.
pub trait Definition: Sync {
    /// The table's name.
    fn name(&self) -> &'static str;
    /// Its columns' declarations.
    fn columns(&self) -> &'static [&'static str];
    /// Its inputs.
    fn inputs(&self) -> &'static [Input];
    /// How many columns identify a row; 0: rows are counted.
    fn key(&self) -> usize;
    /// Its rows.
    fn rows(&self, caller: &Caller, given: &[Given]) -> Listing;
}

impl Definition for TableDef {
    fn name(&self) -> &'static str {
        self.name
    }

    fn columns(&self) -> &'static [&'static str] {
        self.columns
    }

    fn inputs(&self) -> &'static [Input] {
        &[]
    }

    fn key(&self) -> usize {
        0
    }

    fn rows(&self, caller: &Caller, _: &[Given]) -> Listing {
        Ok(Box::new((self.rows)(caller)?))
    }
}

impl Definition for SearchDef {
    fn name(&self) -> &'static str {
        self.name
    }

    fn columns(&self) -> &'static [&'static str] {
        self.columns
    }

    fn inputs(&self) -> &'static [Input] {
        self.inputs
    }

    fn key(&self) -> usize {
        self.key
    }

    fn rows(&self, caller: &Caller, given: &[Given]) -> Listing {
        (self.rows)(caller, given)
    }
}

/// Makes `table` readable on a connection.
#[expect(clippy::disallowed_methods, reason = "this is where its error texts are escaped")]
pub fn define_table(db: &Registrar, table: &'static dyn Definition) -> Result<()> {
    define_table_function::<Table>(db.raw(), table.name(), Some(table))
        .map_err(|_| Error::new(ErrorKind::Host(1), format!("define table {}", table.name())))
}

/// Our error as the crate's, safe to be used as a printf format.
fn table_error(table: &dyn Definition, error: Error) -> sqlite_loadable::Error {
    let text = prefixed(table.name(), error).to_string();
    sqlite_loadable::Error::new_message(text.replace('\0', " ").replace('%', "%%"))
}

/// Keeps a hostile schema from using the table that is being connected.
fn forbid_in_schemas(db: *mut sqlite3) -> Result<()> {
    let api = api::api()?;
    let option = c_int::try_from(SQLITE_VTAB_DIRECTONLY).unwrap_or(c_int::MAX);
    // SAFETY: SQLite is connecting a table on this connection; the option takes no argument.
    match unsafe { (api.vtab_config)(db, option) } {
        0 => Ok(()),
        code => Err(Error::new(ErrorKind::Host(code), api::describe(code))),
    }
}

/// SQLite sees only `base`, at the start of the struct.
#[repr(C)]
struct Table {
    base: sqlite3_vtab,
    db: *mut sqlite3,
    table: &'static dyn Definition,
}

impl VTab<'_> for Table {
    type Aux = &'static dyn Definition;
    type Cursor = Scan;

    fn connect(
        db: *mut sqlite3,
        aux: Option<&Self::Aux>,
        _: VTabArguments,
    ) -> sqlite_loadable::Result<(String, Self)> {
        let Some(&table) = aux else { return Err(sqlite_loadable::Error::from("no table")) };
        forbid_in_schemas(db).map_err(|error| table_error(table, error))?;
        // SAFETY: numbers and pointers; all zeroes is how SQLite wants it. It fills it in itself.
        let base = unsafe { std::mem::zeroed() };
        let declaration = format!("CREATE TABLE x({})", table.columns().join(", "));
        Ok((declaration, Table { base, db, table }))
    }

    fn best_index(&self, mut info: IndexInfo) -> std::result::Result<(), BestIndexError> {
        let inputs = self.table.inputs();
        let (mut given, mut values) = (0, 0);
        for (slot, input) in inputs.iter().enumerate() {
            let (column, is_argument) = match input {
                Input::Argument(column) => (column, true),
                Input::Filter(column) => (column, false),
            };
            let mut equal = info.constraints();
            equal.retain(|constraint| {
                usize::try_from(constraint.column_idx()).is_ok_and(|at| at == *column)
                    && constraint.op() == Some(ConstraintOperator::EQ)
            });
            let is_named = !equal.is_empty();
            match equal.iter_mut().find(|constraint| constraint.usable()) {
                Some(constraint) => {
                    values += 1;
                    given |= 1 << slot;
                    constraint.set_argv_index(values);
                    constraint.set_omit(is_argument);
                }
                // It depends on what this plan knows only later.
                None if is_argument && is_named => return Err(BestIndexError::Constraint),
                None => {}
            }
        }
        let is_wide = !inputs.is_empty() && given == 0;
        info.set_idxnum(given);
        info.set_estimated_cost(if is_wide { WIDE_SCAN_COST } else { SCAN_COST });
        Ok(())
    }

    fn open(&mut self) -> sqlite_loadable::Result<Scan> {
        // SAFETY: as in `connect`.
        let base = unsafe { std::mem::zeroed() };
        let rows = Box::new(Vec::new());
        Ok(Scan { base, db: self.db, table: self.table, given: None, rows, at: 0, row: Vec::new() })
    }
}

/// SQLite sees only `base`, at the start of the struct.
#[repr(C)]
struct Scan {
    base: sqlite3_vtab_cursor,
    db: *mut sqlite3,
    table: &'static dyn Definition,
    /// What `rows` were listed for.
    given: Option<Vec<Given>>,
    rows: Box<dyn Rows>,
    at: usize,
    /// The row at `at`.
    row: Vec<Answer>,
}

impl Scan {
    fn list(&mut self, slots: c_int, values: &[*mut sqlite3_value]) -> Result<()> {
        let api = api::api()?;
        let args = Args::new(api, values);
        let mut next = 0..values.len();
        let mut value = || {
            let Some(at) = next.next() else { return Ok(Given::Nothing) };
            match args.type_name(at) {
                "text" => Ok(Given::Text(args.text(at)?.unwrap_or_default().to_owned())),
                other => Ok(Given::Other(other)),
            }
        };
        let inputs = 0..self.table.inputs().len();
        let given = inputs.map(|slot| match slots & (1 << slot) {
            0 => Ok(Given::Nothing),
            _ => value(),
        });
        let given = given.collect::<Result<Vec<_>>>()?;
        if !given.is_empty() && self.given.as_ref() == Some(&given) {
            return Ok(());
        }
        self.given = None;
        self.rows = Box::new(Vec::new());
        // SAFETY: the connection is running the statement that scans us, on this thread.
        let caller = unsafe { Caller::new(api, self.db) };
        self.rows = self.table.rows(&caller, &given)?;
        self.given = Some(given);
        Ok(())
    }

    /// Makes the row at `at`, if there is one.
    fn take(&mut self) -> sqlite_loadable::Result<()> {
        self.row.clear();
        if self.at < self.rows.count() {
            let row = guard(self.table.name(), || Ok(self.rows.row(self.at)));
            self.row = row.map_err(|error| table_error(self.table, error))?;
        }
        Ok(())
    }
}

impl VTabCursor for Scan {
    fn filter(
        &mut self,
        slots: c_int,
        _: Option<&str>,
        values: &[*mut sqlite3_value],
    ) -> sqlite_loadable::Result<()> {
        self.at = 0;
        let listed = guard(self.table.name(), || self.list(slots, values));
        listed.map_err(|error| table_error(self.table, error))?;
        self.take()
    }

    fn next(&mut self) -> sqlite_loadable::Result<()> {
        self.at = self.at.saturating_add(1);
        self.take()
    }

    fn eof(&self) -> bool {
        self.at >= self.rows.count()
    }

    fn column(&self, context: *mut sqlite3_context, column: c_int) -> sqlite_loadable::Result<()> {
        let answer = usize::try_from(column).ok().and_then(|column| self.row.get(column));
        let answer = answer.cloned().unwrap_or(Answer::Null);
        let api = api::api().map_err(|error| table_error(self.table, error))?;
        // SAFETY: SQLite passes the context of the column it asks for.
        unsafe { answer_with(api, context, Ok(answer)) };
        Ok(())
    }

    fn rowid(&self) -> sqlite_loadable::Result<i64> {
        let key = match self.table.key() {
            0 => return Ok(i64::try_from(self.at).unwrap_or(i64::MAX)),
            columns => self.row.iter().take(columns),
        };
        let mut hasher = DefaultHasher::new();
        key.for_each(|answer| match answer {
            Answer::Null => 0_u8.hash(&mut hasher),
            Answer::Text(text) => text.hash(&mut hasher),
            Answer::Integer(number) => number.hash(&mut hasher),
            Answer::Real(number) => number.to_bits().hash(&mut hasher),
        });
        Ok(hasher.finish().cast_signed())
    }
}
