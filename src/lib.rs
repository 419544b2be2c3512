//! Litestream inside SQLite: live read replicas, a continuous log and point-in-time restore, from one
//! loadable library. Modules in reading order; imports point up this list only.

pub mod error;
pub mod files;
pub mod info;
pub mod lz4;
pub mod options;
pub mod pos;
pub mod record;
pub mod wal;
pub mod walindex;

pub mod host;

pub mod log;

pub mod capture;
pub mod follow;
pub mod serve;

pub mod registry;
pub mod sql;
