//! What a restore is asked for, and where the pages it finds go: the seam between readers of
//! archives, of whatever layout, and the file being made (restore/).
//!
//! ```text
//! choose a plan for a Target  ->  PageSink::begin, once  ->  PageSink::put, newest pages first
//! ```
//!
//! Pages come newest first, so that each is written once: of several versions of a page the first
//! one put is the one that stays. What is never put reads as zeros. Whoever puts pages has checked
//! all there is to check about them before it says that it is done; until then the file has no
//! name.

use std::time::SystemTime;

use crate::error::Result;
use crate::pos::Generation;
use crate::wal::PageSize;

/// Which state to restore.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target {
    /// Only this history; none: the one that was current then.
    pub generation: Option<Generation>,
    /// The last state up to here.
    pub until: Until,
}

/// How far to go.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Until {
    /// All there is.
    Latest,
    /// Everything committed at or before this time.
    Time(SystemTime),
    /// Everything before this position, as the user wrote it: `GENERATION/INDEX:OFFSET`, or a
    /// transaction's number where an archive has those.
    Pos(String),
}

/// Takes the pages of a database.
pub trait PageSink {
    /// Says how large the database will be: once, before any page.
    fn begin(&mut self, page_size: PageSize, page_count: u32) -> Result<()>;

    /// Whether a page is still to come: it is within the database and was not put yet.
    fn wants(&self, page_no: u32) -> bool;

    /// Takes a page, of exactly the page size, unless it has a newer one already or has no place
    /// for it. Fails with `Stopped` if nobody waits for the restore any more.
    fn put(&mut self, page_no: u32, page: &[u8]) -> Result<()>;
}
