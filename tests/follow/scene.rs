//! What most tests of following begin with.

use std::path::PathBuf;
use std::sync::Arc;

use litestream::follow::Follower;

use super::folder::Folder;
use super::support::{catch_up, follow};
use super::upstream::{Manners, Primary, Upstream};

/// How today's upstreams behave.
pub const MODERN: Manners = Manners { modern: true, split_frames: 0 };
/// A table of five pages.
pub const TABLE: &str = "CREATE TABLE t(x); INSERT INTO t VALUES (randomblob(20000))";

/// A primary whose history is served, and a replica that has all of it. To be taken apart.
pub struct Scene {
    pub folder: Folder,
    pub primary: Primary,
    pub upstream: Upstream,
    pub path: PathBuf,
    pub follower: Arc<Follower>,
}

impl Scene {
    /// The database is [`TABLE`] and then `sql`, in a transaction of its own.
    pub fn new(test: &str, manners: Manners, sql: &str) -> Self {
        let folder = Folder::new(test);
        let mut primary = Primary::new(&folder.file("primary.db"), 4096, TABLE);
        primary.run(sql);
        let upstream = Upstream::serve(primary.history.clone(), manners);
        let path = folder.file("replica.db");
        let follower = follow(&path, &upstream.url);
        catch_up(&follower);
        Self { folder, primary, upstream, path, follower }
    }
}
