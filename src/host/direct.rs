//! Whether the application itself calls a function, or the schema of a database it opened.
//!
//! SQLITE_DIRECTONLY is to keep schemas out, and does for views and triggers. It does not for CHECK
//! constraints before SQLite 3.50 or so, and in no version for any expression of a table or an
//! index if the schema was read before the function was defined: SQLite marks such an expression
//! when it reads the schema, and only if it knows the function then. A file somebody sent could
//! open ports that way. So a call of the function must stand in the text of
//!
//! * a statement that is running; or
//! * a temporary view that such a statement names, by way of other temporary views or not; or
//! * any temporary trigger, by way of temporary views or not: which statement fires it is not told.
//!
//! All of these are the application's own. What stands in literals and comments is no call. Nothing
//! here uses a function of SQL, which the application may have replaced.
//!
//! What is left: while such a statement runs, or such a trigger exists, a schema can make the very
//! same function run again, with arguments of its own.

use std::collections::HashSet;
use std::ffi::CStr;
use std::ptr;

use sqlite_loadable::ext::{sqlite3, sqlite3_stmt};

use super::api::Api;
use super::caller::Caller;
use crate::error::{Error, ErrorKind, Result};

/// Fails for a call the application did not write.
///
/// # Safety
/// `db` must be open and calling the function, on this thread.
pub(super) unsafe fn require_direct(
    api: &Api,
    db: *mut sqlite3,
    caller: &Caller,
    name: &str,
) -> Result<()> {
    let mut statement = ptr::null_mut();
    let mut running = Vec::new();
    loop {
        // SAFETY: the caller vouches for the connection, and the statement is one of its own.
        statement = unsafe { (api.next_stmt)(db, statement) };
        if statement.is_null() {
            break;
        }
        // SAFETY: nobody finalizes a statement of this connection during the call.
        let Some(sql) = (unsafe { running_text(api, statement) }) else { continue };
        if words(sql).any(|word| word.is_call && word.is(name)) {
            return Ok(());
        }
        running.push(sql);
    }
    let own = "SELECT type, name, sql FROM sqlite_temp_master WHERE type IN ('view', 'trigger')";
    if caller.query_rows(own, 3).is_ok_and(|rows| is_called_by_own(&rows, &running, name)) {
        return Ok(());
    }
    Err(Error::new(ErrorKind::Refused, format!("unsafe use of {name}() in the schema")))
}

/// The text of a statement, if it is running.
///
/// # Safety
/// The statement must not be finalized as long as the text is used.
unsafe fn running_text<'s>(api: &Api, statement: *mut sqlite3_stmt) -> Option<&'s [u8]> {
    // SAFETY: the caller vouches for the statement.
    if unsafe { (api.stmt_busy)(statement) } == 0 {
        return None;
    }
    // SAFETY: as above.
    let text = unsafe { (api.sql)(statement) };
    if text.is_null() {
        return None;
    }
    // SAFETY: it is NUL-terminated and lives as long as the statement.
    Some(unsafe { CStr::from_ptr(text) }.to_bytes())
}

/// Whether a temporary trigger calls the function, or a view that a running statement names. `own`
/// has type, name and statement of each.
fn is_called_by_own(own: &[Vec<String>], running: &[&[u8]], name: &str) -> bool {
    let objects: Vec<_> = own
        .iter()
        .filter_map(|row| match row.as_slice() {
            [kind, name, sql] => Some((kind == "view", name.as_str(), sql.as_bytes())),
            _ => None,
        })
        .collect();
    // Views that call it, and views and triggers that name these.
    let mut calling: HashSet<usize> = HashSet::new();
    loop {
        let calls = |at: &usize| {
            objects.get(*at).is_some_and(|(_, own_name, sql)| {
                words(sql).any(|word| {
                    let of_view = |other: &usize| {
                        let view = objects.get(*other).filter(|(is_view, ..)| *is_view);
                        view.is_some_and(|(_, view, _)| word.is(view) && view != own_name)
                    };
                    (word.is_call && word.is(name)) || calling.iter().any(of_view)
                })
            })
        };
        let more = (0..objects.len()).filter(|at| !calling.contains(at) && calls(at));
        let more: Vec<usize> = more.collect();
        if more.is_empty() {
            break;
        }
        calling.extend(more);
    }
    calling.iter().filter_map(|at| objects.get(*at)).any(|(is_view, view, _)| {
        !is_view || running.iter().any(|sql| words(sql).any(|word| word.is(view)))
    })
}

/// A name in a statement.
struct Word<'s> {
    text: &'s [u8],
    /// It stands in front of a parenthesis.
    is_call: bool,
    /// Its quote, if it has one, which stands twice where it is part of the name.
    quote: Option<u8>,
}

impl Word<'_> {
    fn is(&self, name: &str) -> bool {
        let Some(quote) = self.quote else {
            return self.text.eq_ignore_ascii_case(name.as_bytes());
        };
        let mut bytes = self.text.iter();
        let mut plain = Vec::with_capacity(self.text.len());
        while let Some(byte) = bytes.next() {
            plain.push(*byte);
            if *byte == quote {
                bytes.next();
            }
        }
        plain.eq_ignore_ascii_case(name.as_bytes())
    }
}

/// The names in a statement, keywords and numbers among them; not what is in literals and comments.
fn words(sql: &[u8]) -> impl Iterator<Item = Word<'_>> {
    let mut rest = sql;
    std::iter::from_fn(move || {
        loop {
            rest = skip_blank(rest);
            let first = *rest.first()?;
            let (token, after) = rest.split_at(token_len(rest));
            rest = after;
            let is_call = || skip_blank(after).first() == Some(&b'(');
            let inside = token.get(1..token.len().saturating_sub(1)).unwrap_or_default();
            match first {
                b'"' | b'`' => {
                    return Some(Word { text: inside, is_call: is_call(), quote: Some(first) });
                }
                b'[' => return Some(Word { text: inside, is_call: is_call(), quote: None }),
                first if is_name(first) => {
                    return Some(Word { text: token, is_call: is_call(), quote: None });
                }
                _ => {}
            }
        }
    })
}

/// Bytes of the token that `sql` begins with.
fn token_len(sql: &[u8]) -> usize {
    let end = |close: u8| {
        let inside = sql.get(1..).unwrap_or_default();
        inside.iter().position(|byte| *byte == close).map_or(sql.len(), |at| at + 2)
    };
    match sql.first() {
        // One that stands twice is part of it.
        Some(quote @ (b'\'' | b'"' | b'`')) => {
            let mut len = end(*quote);
            while sql.get(len) == Some(quote) {
                let more = sql.get(len + 1..).unwrap_or_default();
                let more = more.iter().position(|byte| byte == quote);
                len = more.map_or(sql.len(), |more| len + more + 2);
            }
            len
        }
        Some(b'[') => end(b']'),
        Some(first) if is_name(*first) => {
            sql.iter().position(|byte| !is_name(*byte)).unwrap_or(sql.len())
        }
        _ => 1.min(sql.len()),
    }
}

fn is_name(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || byte == b'_' || byte == b'$' || !byte.is_ascii()
}

/// What follows white space and comments.
fn skip_blank(mut sql: &[u8]) -> &[u8] {
    loop {
        let blank = sql.iter().position(|byte| !byte.is_ascii_whitespace() && *byte != 0x0b);
        sql = sql.get(blank.unwrap_or(sql.len())..).unwrap_or_default();
        let end = if sql.starts_with(b"--") {
            sql.iter().position(|byte| *byte == b'\n').map(|at| at + 1)
        } else if sql.starts_with(b"/*") {
            let inside = sql.get(2..).unwrap_or_default();
            inside.windows(2).position(|two| two == b"*/").map(|at| at + 4)
        } else {
            return sql;
        };
        sql = sql.get(end.unwrap_or(sql.len())..).unwrap_or_default();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn calls(sql: &str) -> bool {
        words(sql.as_bytes()).any(|word| word.is_call && word.is("f_pos"))
    }

    #[test]
    fn a_call_is_a_name_and_a_parenthesis() {
        for sql in [
            "SELECT f_pos()",
            "select F_POS  ( )",
            "SELECT 1,f_pos /* all */ -- of it\n (1)",
            "SELECT \"f_pos\"(), [x]",
            "SELECT `F_pos`()",
            "SELECT [f_pos] ()",
            "SELECT 'it''s', f_pos()",
            "SELECT '\"', f_pos()",
            "SELECT x'00', f_pos()",
        ] {
            assert!(calls(sql), "{sql}");
        }
        for sql in [
            "",
            "SELECT f_pos",
            "SELECT f_posi()",
            "SELECT af_pos()",
            "SELECT 1f_pos()",
            "SELECT \u{e9}f_pos()",
            "SELECT 'f_pos()'",
            "SELECT 'it''s f_pos()'",
            "SELECT \"a f_pos()\"",
            "SELECT \"f_pos\"\"\"()",
            "SELECT 1 -- f_pos()",
            "SELECT 1 /* f_pos() */",
            "SELECT 1 /* f_pos()",
            "SELECT 'f_pos()",
            "SELECT [f_pos()",
        ] {
            assert!(!calls(sql), "{sql}");
        }
    }

    #[test]
    fn own_views_count_when_they_are_named_and_own_triggers_always() {
        let row = |parts: [&str; 3]| parts.map(str::to_owned).to_vec();
        let views = [
            row(["view", "mine", "CREATE VIEW mine AS SELECT f_pos()"]),
            row(["view", "other", "CREATE VIEW other AS SELECT * FROM \"Mine\""]),
            row(["view", "apart", "CREATE VIEW apart AS SELECT 'f_pos() mine'"]),
        ];
        let by = |own: &[Vec<String>], sql: &str| is_called_by_own(own, &[sql.as_bytes()], "f_pos");
        assert!(by(&views, "SELECT * FROM mine"));
        assert!(by(&views, "SELECT * FROM temp.[MINE]"));
        assert!(by(&views, "SELECT * FROM other"));
        for sql in ["INSERT INTO t VALUES (1)", "SELECT * FROM apart", "SELECT 'mine'"] {
            assert!(!by(&views, sql), "{sql}");
        }
        let trigger = "CREATE TRIGGER mine AFTER INSERT ON t BEGIN SELECT f_pos(); END";
        assert!(by(&[row(["trigger", "tr", trigger])], "INSERT INTO t VALUES (1)"));
        let trigger = "CREATE TRIGGER mine AFTER INSERT ON t BEGIN SELECT * FROM other; END";
        let with_views = [views.as_slice(), &[row(["trigger", "tr", trigger])]].concat();
        assert!(by(&with_views, "INSERT INTO t VALUES (1)"));
        assert!(!by(&[], "SELECT 1"));
    }
}
