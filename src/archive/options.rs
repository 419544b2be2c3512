//! What SQL may say about an archive, and where its store is.

use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;

use super::file::FileStore;
use super::s3::config;
use super::store::Store;
use super::tree::Tree;
use crate::error::{Error, Result};
use crate::options::Options;
use crate::redact::shown;

/// Options of every function that names an archive.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct ArchiveOptions {
    /// S3: the server's URL; none: Amazon's of the region.
    pub endpoint: Option<String>,
    /// S3: the region; none: `AWS_REGION`, `AWS_DEFAULT_REGION`, else `us-east-1`.
    pub region: Option<String>,
    /// S3: the bucket in the path of the URL and not in its host; none: as the endpoint suggests.
    pub path_style: Option<bool>,
    /// S3: none: `AWS_ACCESS_KEY_ID`.
    pub access_key_id: Option<String>,
    /// S3: none: `AWS_SECRET_ACCESS_KEY`.
    pub secret_access_key: Option<String>,
    /// S3: none: `AWS_SESSION_TOKEN`.
    pub session_token: Option<String>,
    /// S3: a PEM file with the roots to trust for https, instead of the public ones.
    pub ca: Option<PathBuf>,
    /// How new objects are named.
    pub tree: Tree,
    /// Who can read what is written: age public keys. Empty: everybody, nothing is encrypted.
    pub age_recipients: Vec<String>,
    /// What reads encrypted objects: age secret keys.
    pub age_identities: Vec<String>,
}

/// Without what is secret.
impl fmt::Debug for ArchiveOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ArchiveOptions")
            .field("endpoint", &self.endpoint)
            .field("region", &self.region)
            .field("path_style", &self.path_style)
            .field("ca", &self.ca)
            .field("tree", &self.tree)
            .field("age_recipients", &self.age_recipients)
            .finish_non_exhaustive()
    }
}

impl ArchiveOptions {
    /// Takes an archive's options out of a call's.
    pub fn take(options: &mut Options) -> Result<ArchiveOptions> {
        let tree = options.opt_str("layout")?.map(|text| text.parse()).transpose()?;
        Ok(ArchiveOptions {
            endpoint: options.opt_str("endpoint")?,
            region: options.opt_str("region")?,
            path_style: options.opt_bool("path_style")?,
            access_key_id: options.opt_str("access_key_id")?,
            secret_access_key: options.opt_str("secret_access_key")?,
            session_token: options.opt_str("session_token")?,
            ca: options.opt_str("ca")?.map(PathBuf::from),
            tree: tree.unwrap_or_default(),
            age_recipients: options.opt_strs("age_recipients")?,
            age_identities: options.opt_strs("age_identities")?,
        })
    }

    /// The store at `url`.
    pub(super) fn store(&self, url: &str) -> Result<Arc<dyn Store>> {
        if url.starts_with("file:") {
            return Ok(Arc::new(FileStore::new(url)?));
        }
        if url.starts_with("s3:") {
            let environment = |name: &str| std::env::var(name).ok();
            return Ok(Arc::new(config::store(url, self, &environment)?));
        }
        let expected = "expected file:///FOLDER or s3://BUCKET/PREFIX";
        Err(Error::usage(format!("invalid archive {}: {expected}", shown(url))))
    }
}

/// Whether a URL is an archive's, and not an upstream's.
pub fn is_archive_url(url: &str) -> bool {
    url.starts_with("file:") || url.starts_with("s3:")
}
