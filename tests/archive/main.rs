//! Archives' stores: one suite of rules on folders and on real S3 servers, and what is special to
//! each.
#![allow(clippy::unwrap_used, clippy::panic, clippy::cast_possible_truncation)]
#![allow(clippy::print_stdout)]

#[path = "../common/mod.rs"]
mod common;

mod crypt;
mod file;
mod odd;
mod rules;
mod s3;
