//! Where the archive of a round is: in a folder, or in a bucket of the stage's server.

use std::path::{Path, PathBuf};

use super::Round;
use crate::common::servers::S3Server;
use crate::common::*;

impl Round<'_> {
    pub(super) fn archive(&self) -> String {
        match &self.stage.server {
            Some(server) => server.url(&self.archive_name()),
            None => format!("file://{}", self.file("archive").display()),
        }
    }

    /// Of this round, in the bucket.
    pub(super) fn archive_name(&self) -> String {
        format!("round-{}", self.stage.rounds)
    }

    /// These, and what the server needs.
    pub(super) fn archive_options(&self, options: Value) -> Value {
        let mut all = self.stage.server.as_ref().map_or(json!({}), S3Server::options);
        all.as_object_mut().unwrap().extend(options.as_object().unwrap().clone());
        all
    }

    pub(super) fn restore_to(&self, path: &Path) -> String {
        let options = self.archive_options(json!({}));
        format!(
            "SELECT litestream_restore('{}', '{}', '{options}')",
            self.archive(),
            path.display()
        )
    }

    /// The folder that its objects are files in.
    pub(super) fn archive_folder(&self) -> PathBuf {
        match &self.stage.server {
            Some(server) => server.bucket_folder().join(self.archive_name()),
            None => self.file("archive"),
        }
    }
}
