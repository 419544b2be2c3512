//! Power loss: what a disk may hold after the power went, at any moment, and what is made of it.
//!
//! A primary, its archive and a replica run with everything they ask of their files recorded
//! (journal.rs, scene.rs). From one recording come hundreds of images of the disk (disk.rs), each
//! as a power loss could have left it; of each it is checked what must hold (checks.rs).
//!
//! What is on the disk after the power came back:
//!
//! | asked for                        | what is there                                             |
//! |----------------------------------|-----------------------------------------------------------|
//! | written or cut, then synced      | all of it                                                 |
//! | written or cut, not synced       | none, all, or each unit (a 4 KiB page or a 512 byte       |
//! |                                  | sector) as it was at some moment since; so is the size    |
//! | made, renamed, removed, and its  | the new name                                              |
//! | folder synced                    |                                                           |
//! | the same, folder not synced      | one of three models, by chance: each name as before or as |
//! |                                  | after; the same, but a sync of a new file keeps its name, |
//! |                                  | too; all names in order up to the latest sync of anything |
//! |                                  | and some beyond, as a journal of names does               |
//! | in memory mapped files (`-shm`)  | nothing: SQLite makes them anew                           |
//!
//! A sector is written whole or not at all, and a sync that returned did what it says: that is what
//! SQLite asks of a disk, too ("Atomic Commit In SQLite", sections 2 and 9). That a name needs a
//! sync of its folder is what fsync(2) says. With `PRAGMA synchronous = OFF` SQLite does not
//! promise that there is a database afterwards; an image in which a plain SQLite finds none is
//! passed over, and counted.
#![cfg(target_os = "linux")]
#![allow(missing_docs, clippy::unwrap_used, clippy::panic, clippy::print_stdout)]
#![allow(clippy::cast_possible_truncation, clippy::print_stderr)]

#[path = "../common/mod.rs"]
mod common;

mod checks;
mod disk;
mod journal;
mod scene;
mod tests;
