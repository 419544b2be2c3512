//! Whether a database holds what it should: a replica, what its upstream holds.

use std::path::Path;
use std::time::Duration;

use super::find;
use crate::error::{Error, ErrorKind, Result};
use crate::follow;

/// Compares every page of a replica with its upstream.
pub fn verify(
    path: &Path,
    timeout: Duration,
    repair: bool,
    interrupted: &dyn Fn() -> bool,
) -> Result<String> {
    let database = find(path);
    if let Some(follower) = database.as_ref().and_then(|database| database.follower()) {
        return follower.verify(timeout, repair, interrupted);
    }
    let why = match follow::is_replica(path) {
        true => {
            "this replica is not followed by this process; call litestream_follow first, or \
                 litestream_verify where it is followed"
        }
        false => "this database follows nothing, so there is nothing to compare it with",
    };
    Err(Error::new(ErrorKind::Refused, why))
}
