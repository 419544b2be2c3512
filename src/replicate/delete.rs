//! Deleting a part of a generation: snapshots before their segments, in batches, and none while
//! somebody in this process reads the archive.

use std::sync::atomic::Ordering;

use super::Shared;
use crate::archive::{Entry, hold};
use crate::error::{Error, ErrorKind, Result};
use crate::pos::{Generation, Index};

/// Objects deleted at once.
const BATCH: usize = 1000;

/// Deletes what is before an index, or all of a generation.
pub(super) fn delete(
    shared: &Shared,
    generation: Generation,
    before: Option<Index>,
    meanwhile: &mut dyn FnMut() -> Result<()>,
) -> Result<()> {
    let archive = &shared.archive;
    let goes = |index: Index| before.is_none_or(|before| index < before);
    loop {
        let (mut snapshots, mut segments, mut ends) = (Vec::new(), Vec::new(), Vec::new());
        let listed = archive.each(generation, &mut |entry| {
            match entry {
                Entry::Snapshot(it) if goes(it.info.index) => snapshots.push(it),
                Entry::Segment(it) if goes(it.info.index) => segments.push(it),
                Entry::End(end) if goes(end.index) => ends.push(end),
                _ => {}
            }
            let full = snapshots.len() + segments.len() + ends.len() >= BATCH;
            if full { Err(enough()) } else { Ok(()) }
        });
        until_enough(listed)?;
        let count = snapshots.len() + segments.len() + ends.len();
        if count == 0 {
            if before.is_none() {
                archive.delete_position(generation)?;
            }
            return Ok(());
        }
        meanwhile()?;
        // Readers first: it is looked again later.
        let Some(_deleting) = hold::deleting(archive.url()) else { return Ok(()) };
        archive.delete(&snapshots, &segments, &ends)?;
        let count = u64::try_from(count).unwrap_or(u64::MAX);
        shared.counters.deleted.fetch_add(count, Ordering::Relaxed);
    }
}

/// Ends a listing early.
fn enough() -> Error {
    Error::new(ErrorKind::Stopped, "enough was listed")
}

/// A listing that was ended early is no error; that the store was closed shows in the next call.
fn until_enough(listed: Result<()>) -> Result<()> {
    match listed {
        Err(error) if error.kind() == ErrorKind::Stopped => Ok(()),
        listed => listed,
    }
}
