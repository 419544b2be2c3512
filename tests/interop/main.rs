//! Archives across programs: stock Litestream 0.3 and 0.5, as released, and this library.
//!
//! | written by       | read by                       | where                    |
//! |------------------|-------------------------------|--------------------------|
//! | 0.5 (LTX files)  | us, and 0.5 for comparison    | five.rs                  |
//! | 0.3              | us                            | three.rs                 |
//! | us, layout v0.3  | 0.3 and 0.5                   | ours.rs                  |
//! | 0.3 or us, age   | us, or 0.3                    | encrypted.rs             |
//!
//! The releases run as processes beside an application that writes; they are asked to end, and
//! killed with the test. Databases are compared by all they hold, and byte by byte where two
//! programs restore one archive. Changes are made with pauses, and the state of each pause is
//! restored by its time; in folders with databases of several page sizes, and in a bucket.
#![allow(missing_docs)]
#![allow(clippy::unwrap_used, clippy::panic, clippy::print_stderr)]

#[path = "../common/mod.rs"]
mod common;
mod data;
mod encrypted;
mod five;
mod history;
mod ours;
mod place;
mod stock;
mod three;

use common::servers::S3Server;

/// All at once: they wait most of the time.
#[test]
fn every_state_of_every_archive() {
    let server = S3Server::weed();
    std::thread::scope(|scope| {
        for run in [five::run, three::run, ours::run, encrypted::by_three, encrypted::by_us] {
            let server = &server;
            scope.spawn(move || run(server));
        }
    });
}
