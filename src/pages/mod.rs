//! One state of a WAL database, page by page, past the pager; and what tells two of them apart.
//!
//! | file       | has                                                                       |
//! |------------|---------------------------------------------------------------------------|
//! | `regions`  | the mapped wal-index: which frame holds a page                            |
//! | `frozen`   | a state that stays while others write: a read mark at an exact header     |
//! | `sums`     | checksums of pages, and the pages by which two states differ              |
//!
//! Lock contract of a [`Frozen`]: SQLite's own for readers. A read slot is held SHARED with the
//! frozen header's mxFrame as its mark, so no checkpoint copies a frame after it and the WAL does
//! not restart. Writers go on; the WAL grows meanwhile, as it does under any long reader.

mod frozen;
mod regions;
mod sums;

pub use frozen::Frozen;
pub use regions::{Regions, probe};
pub use sums::{BATCH_BYTES, Differences, Sum, Total, page_sum};
