//! What becomes of a file that is to be a replica: decided by what is found in it and beside it.

use std::path::Path;

use super::image::Look;
use crate::error::{Error, ErrorKind, Result};

/// What may become of a database file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Plan {
    /// Fill it with a first snapshot.
    Fill,
    /// Open it: it is a replica.
    Open,
    /// Make it a replica, whatever it holds.
    Adopt,
}

/// A database as it is found.
#[derive(Debug, Clone, Copy)]
pub struct Found {
    /// Its first bytes.
    pub look: Look,
    /// A first snapshot of it was begun and not finished.
    pub is_filling: bool,
    /// It is somebody's replica.
    pub is_replica: bool,
    /// Readers see tables in it.
    pub has_tables: bool,
}

/// What becomes of it, or why nothing may.
pub fn decide(found: Found, overwrite: bool, path: &Path) -> Result<Plan> {
    let Found { look, is_filling, is_replica, has_tables } = found;
    match () {
        () if look.size == 0 => Ok(Plan::Fill),
        () if is_filling && !look.has_magic => Ok(Plan::Fill),
        () if is_filling || is_replica => Ok(Plan::Open),
        () if overwrite || !has_tables => Ok(Plan::Adopt),
        () => Err(Error::new(
            ErrorKind::Refused,
            format!(
                "{} holds data that did not come from an upstream; follow into an empty or new \
                 file, or pass \"overwrite\": true to replace all of it",
                path.display()
            ),
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_replaced_and_what_is_not() {
        let base = Found {
            look: Look { size: 8192, has_magic: true, is_wal: true },
            is_filling: false,
            is_replica: false,
            has_tables: true,
        };
        let check = |found: Found, overwrite: bool, plan: Option<Plan>| {
            let decided = decide(found, overwrite, Path::new("a.db"));
            assert_eq!(decided.ok(), plan, "{found:?} {overwrite}");
        };
        let half = Look { size: 8192, has_magic: false, is_wal: false };
        let empty = Look { size: 0, has_magic: false, is_wal: false };
        check(base, false, None);
        check(base, true, Some(Plan::Adopt));
        check(Found { has_tables: false, ..base }, false, Some(Plan::Adopt));
        check(Found { is_replica: true, ..base }, false, Some(Plan::Open));
        check(Found { look: empty, ..base }, false, Some(Plan::Fill));
        check(Found { look: empty, is_replica: true, ..base }, false, Some(Plan::Fill));
        check(Found { look: half, ..base }, false, None);
        check(
            Found { look: half, is_replica: true, is_filling: true, ..base },
            false,
            Some(Plan::Fill),
        );
        check(Found { is_replica: true, is_filling: true, ..base }, false, Some(Plan::Open));
        let error = decide(base, false, Path::new("a.db")).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Refused);
        assert!(error.to_string().contains("overwrite"), "{error}");
    }
}
