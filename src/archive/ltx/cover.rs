//! Which LTX files make a state: the fewest that cover every transaction from the first to the
//! last wanted, without a gap.
//!
//! Files may overlap: one that holds transactions 5 to 10 is right on top of a state at 7 too, for
//! it has the last version of every page that these changed. So from each state reached the file
//! goes on that reaches furthest, beginning with a file that has all pages.

use std::time::SystemTime;

use super::names::{Span, TxId};
use crate::error::{Error, ErrorKind, Result};

/// A file as listed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct File {
    /// What its name says.
    pub span: Span,
    /// Relative to the archive's root.
    pub key: String,
    /// Bytes.
    pub size: u64,
    /// By the store's clock.
    pub modified: SystemTime,
}

/// How far to go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Limit {
    /// All there is.
    None,
    /// Up to this transaction, with it.
    TxId(TxId),
    /// Up to the last transaction seen at or before this time.
    Time(SystemTime),
}

/// The files to apply, oldest first. `time` tells a file's own time; it is asked about a few.
pub fn cover(
    files: &[File],
    limit: Limit,
    time: &mut dyn FnMut(&File) -> Result<SystemTime>,
) -> Result<Vec<File>> {
    let allowed = allowed(files, limit, time)?;
    let mut chosen: Vec<File> = Vec::new();
    let mut reached = TxId(0);
    loop {
        let next = allowed
            .iter()
            .filter(|file| file.span.min.0 <= reached.0.saturating_add(1))
            .max_by_key(|file| (file.span.max, file.span.level));
        match next {
            Some(next) if next.span.max > reached => {
                reached = next.span.max;
                chosen.push((*next).clone());
            }
            _ => break,
        }
    }
    check(files, &allowed, reached, limit)?;
    Ok(chosen)
}

/// The files that do not go beyond the limit.
fn allowed<'f>(
    files: &'f [File],
    limit: Limit,
    time: &mut dyn FnMut(&File) -> Result<SystemTime>,
) -> Result<Vec<&'f File>> {
    let until = match limit {
        Limit::None => return Ok(files.iter().collect()),
        Limit::TxId(last) => return Ok(files.iter().filter(|f| f.span.max <= last).collect()),
        Limit::Time(until) => until,
    };
    let mut allowed = Vec::new();
    for level in 0..=super::names::SNAPSHOT_LEVEL {
        let mut of_level: Vec<&File> = files.iter().filter(|f| f.span.level == level).collect();
        of_level.sort_by_key(|file| file.span.max);
        // Within a level times ascend with the last transaction.
        let (mut within, mut beyond) = (0, of_level.len());
        while within < beyond {
            let middle = within + (beyond - within) / 2;
            if time(of_level[middle])? <= until { within = middle + 1 } else { beyond = middle }
        }
        allowed.extend(&of_level[..within]);
    }
    Ok(allowed)
}

/// Fails if the state reached is not the one asked for, or might not be.
fn check(files: &[File], allowed: &[&File], reached: TxId, limit: Limit) -> Result<()> {
    // What is asked for is at least this ...
    let asked = match limit {
        Limit::TxId(last) if last == reached => return Ok(()),
        Limit::TxId(last) => last,
        _ => allowed.iter().map(|file| file.span.max).max().unwrap_or(TxId(0)),
    };
    let after = files.iter().filter(|file| file.span.max > reached);
    let next = after.min_by_key(|file| file.span.min);
    // ... and whatever follows must follow at once: what is missing may be older than the time.
    let hole = next.filter(|next| next.span.min.0 > reached.0.saturating_add(1));
    if reached == TxId(0) {
        let oldest = files.iter().filter(|file| file.span.min == TxId(1));
        let what = match oldest.min_by_key(|file| file.span.max) {
            None => "no LTX file has all pages: none begins with transaction 1".to_owned(),
            Some(file) => format!(
                "the state asked for is older than any of the archive, the oldest LTX file with \
                 all pages is {}",
                file.key
            ),
        };
        return Err(Error::new(ErrorKind::NoSnapshots, what));
    }
    if let Some(next) = hole {
        let (first, last) = (TxId(reached.0 + 1), TxId(next.span.min.0 - 1));
        let key = &next.key;
        let why = format!(
            "transactions {first} to {last} are missing: no LTX file has them, and {key} goes on"
        );
        return Err(Error::new(ErrorKind::NoWalSegments, why));
    }
    if reached < asked {
        let first = TxId(reached.0 + 1);
        let why = match (limit, next) {
            (Limit::TxId(_), Some(next)) => format!(
                "transaction {asked} is not to be had on its own any more: the LTX files have the \
                 state at {reached}, then that at {}",
                next.span.max
            ),
            _ => format!("transactions {first} to {asked} are missing: no LTX file has them"),
        };
        return Err(Error::new(ErrorKind::NoWalSegments, why));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::archive::ltx::names;
    use std::time::{Duration, UNIX_EPOCH};

    /// Of a file that ends with transaction `n` the time is `n` seconds.
    fn file(level: u8, min: u64, max: u64) -> File {
        let key = format!("ltx/{level}/{}-{}.ltx", TxId(min), TxId(max));
        let span = names::parse(&key).unwrap();
        File { span, key, size: 1, modified: UNIX_EPOCH }
    }

    fn plan(files: &[File], limit: Limit) -> Result<Vec<(u8, u64, u64)>> {
        let mut time = |file: &File| Ok(UNIX_EPOCH + Duration::from_secs(file.span.max.0));
        let chosen = cover(files, limit, &mut time)?;
        Ok(chosen.iter().map(|f| (f.span.level, f.span.min.0, f.span.max.0)).collect())
    }

    fn levels() -> Vec<File> {
        let mut files: Vec<File> = (6..=23).map(|n| file(0, n, n)).collect();
        files.extend([file(1, 1, 3), file(1, 4, 8), file(1, 9, 20), file(1, 21, 22)]);
        files.extend([file(2, 1, 3), file(2, 4, 20)]);
        files.extend([file(9, 1, 4), file(9, 1, 11)]);
        files
    }

    fn at(seconds: u64) -> Limit {
        Limit::Time(UNIX_EPOCH + Duration::from_secs(seconds))
    }

    #[test]
    fn the_fewest_files_to_the_newest_state() {
        let newest = vec![(9, 1, 11), (2, 4, 20), (1, 21, 22), (0, 23, 23)];
        assert_eq!(plan(&levels(), Limit::None).unwrap(), newest);
        assert_eq!(plan(&levels(), at(1000)).unwrap(), newest);
        assert_eq!(plan(&[file(0, 1, 1)], Limit::None).unwrap(), [(0, 1, 1)]);
    }

    #[test]
    fn no_further_than_the_time() {
        assert_eq!(plan(&levels(), at(22)).unwrap(), [(9, 1, 11), (2, 4, 20), (1, 21, 22)]);
        let fine = vec![(9, 1, 11), (0, 12, 12), (0, 13, 13)];
        assert_eq!(plan(&levels(), at(13)).unwrap(), fine);
        assert_eq!(plan(&levels(), at(10)).unwrap()[..2], [(9, 1, 4), (1, 4, 8)]);
        // What is left of transactions 4 and 5 ends with the eighth.
        assert_eq!(plan(&levels(), at(5)).unwrap(), [(9, 1, 4)]);
        let error = plan(&levels(), at(2)).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::NoSnapshots);
        assert!(error.to_string().contains("ltx/1/"), "{error}");
    }

    #[test]
    fn one_transaction() {
        let to = |n| plan(&levels(), Limit::TxId(TxId(n)));
        assert_eq!(to(3).unwrap(), [(2, 1, 3)]);
        assert_eq!(to(12).unwrap(), [(9, 1, 11), (0, 12, 12)]);
        let error = to(5).unwrap_err().to_string();
        assert!(error.contains("0000000000000005 is not to be had on its own"), "{error}");
        assert!(to(24).unwrap_err().to_string().contains("are missing"));
        assert_eq!(to(23).unwrap().len(), 4);
    }

    #[test]
    fn a_hole_is_named() {
        let without = |gone: &[(u8, u64)]| -> Vec<File> {
            let keep = |f: &File| !gone.contains(&(f.span.level, f.span.max.0));
            levels().into_iter().filter(keep).collect()
        };
        let hole = without(&[(0, 21), (1, 22), (0, 22)]);
        let error = plan(&hole, Limit::None).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::NoWalSegments);
        let range = "transactions 0000000000000015 to 0000000000000016 are missing";
        assert!(error.to_string().contains(range), "{error}");
        assert!(plan(&hole, at(21)).unwrap_err().to_string().contains(range));
        assert!(plan(&hole, at(20)).unwrap_err().to_string().contains(range));
        assert_eq!(plan(&hole, at(19)).unwrap().last(), Some(&(0, 19, 19)));
        let headless: Vec<File> = levels().into_iter().filter(|f| f.span.min.0 > 1).collect();
        let error = plan(&headless, Limit::None).unwrap_err();
        assert!(error.to_string().contains("no LTX file has all pages"), "{error}");
    }

    #[test]
    fn a_time_that_cannot_be_read_is_an_error() {
        let mut time = |_: &File| Err(Error::corrupt("no header"));
        assert!(cover(&levels(), at(5), &mut time).is_err());
    }
}
