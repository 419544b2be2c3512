//! The database a call is about, and the ways it can be unfit.

use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::error::{Context, Error, ErrorKind, Result};
use crate::host::api;
use crate::host::caller::Caller;
use crate::host::function::Args;
use crate::options::Options;

/// A day: the longest any call may be told to wait, in milliseconds.
pub(super) const WAIT_MS_MAX: u64 = 86_400_000;
/// How long `litestream_serve` and `litestream_follow` wait unless told otherwise, in milliseconds.
pub(super) const WAIT_MS: u64 = 30_000;

/// A database file and how the calling connection reaches it.
pub(super) struct Target {
    /// Canonical.
    pub(super) path: PathBuf,
    /// The VFS of the calling connection.
    pub(super) vfs: String,
}

/// Which database a call is about that has options for nothing else: they are its last argument, a
/// JSON object, and may be left out.
pub(super) struct Which {
    schema: String,
    /// How many arguments there are without them.
    pub(super) given: usize,
}

impl Which {
    /// Of a call whose first `required` arguments cannot be options.
    pub(super) fn of(args: &Args, required: usize) -> Result<Which> {
        let last = args.len().checked_sub(1).filter(|last| *last >= required);
        let text = last.and_then(|last| args.text(last).ok().flatten());
        let object = text.filter(|text| text.trim_start().starts_with('{'));
        let given = args.len() - usize::from(object.is_some());
        Ok(Which { schema: schema_of(object)?, given })
    }

    /// Of a call that takes nothing but options.
    pub(super) fn only(args: &Args) -> Result<Which> {
        Ok(Which { schema: schema_of(args.text(0)?)?, given: 0 })
    }

    /// The database's canonical path.
    pub(super) fn path(&self, caller: &Caller) -> Result<PathBuf> {
        path_of(caller, &self.schema)
    }

    /// The same for those who only look: `None` if there is no file behind it.
    pub(super) fn known_path(&self, caller: &Caller) -> Result<Option<PathBuf>> {
        known_path(caller, &self.schema)
    }

    /// The VFS of the calling connection.
    pub(super) fn vfs(&self, caller: &Caller) -> Result<String> {
        caller.vfs(&self.schema)
    }
}

/// The canonical path of a connection's database; `None` if there is no file behind it.
pub(super) fn known_path(caller: &Caller, schema: &str) -> Result<Option<PathBuf>> {
    Ok(caller.filename(schema)?.and_then(|path| std::fs::canonicalize(path).ok()))
}

fn schema_of(text: Option<&str>) -> Result<String> {
    let mut options = Options::parse(text)?;
    let schema = options.opt_str("schema")?;
    options.finish()?;
    Ok(schema.unwrap_or_else(|| "main".to_owned()))
}

/// The canonical path of the database `options` name (`"schema"`, default `main`).
pub(super) fn named_path(caller: &Caller, options: &mut Options) -> Result<PathBuf> {
    let schema = options.opt_str("schema")?.unwrap_or_else(|| "main".to_owned());
    path_of(caller, &schema)
}

fn path_of(caller: &Caller, schema: &str) -> Result<PathBuf> {
    let Some(path) = caller.filename(schema)? else {
        let why = format!(
            "{schema} is an in-memory or temporary database; replication needs a database file"
        );
        return Err(Error::new(ErrorKind::Unsupported, why));
    };
    // Names, not descriptors: the database itself is never opened here.
    resolve(&path).context(|| format!("cannot resolve {}", path.display()))
}

/// The canonical path. A file that was removed is still known by its folder, so that work on it can
/// be stopped.
fn resolve(path: &Path) -> std::io::Result<PathBuf> {
    std::fs::canonicalize(path).or_else(|error| match (path.parent(), path.file_name()) {
        (Some(folder), Some(name)) if error.kind() == std::io::ErrorKind::NotFound => {
            Ok(std::fs::canonicalize(folder)?.join(name))
        }
        _ => Err(error),
    })
}

impl Target {
    /// The database `options` name (`"schema"`, default `main`), fit for background work.
    pub(super) fn of(caller: &Caller, options: &mut Options) -> Result<Target> {
        let schema = options.opt_str("schema")?.unwrap_or_else(|| "main".to_owned());
        api::require_threadsafe()?;
        let path = path_of(caller, &schema)?;
        let target = Target { path, vfs: caller.vfs(&schema)? };
        if caller.readonly(&schema)? {
            let why = format!("{} is open for reading only", target.path.display());
            return Err(Error::new(ErrorKind::Refused, why));
        }
        if caller.in_transaction() {
            let why = "the connection is inside a transaction; COMMIT or ROLLBACK first";
            return Err(Error::new(ErrorKind::Refused, why));
        }
        target.require_shared_locking(caller, &schema)?;
        Ok(target)
    }

    /// With `locking_mode=EXCLUSIVE` nobody else, not even this library, can open the database.
    fn require_shared_locking(&self, caller: &Caller, schema: &str) -> Result<()> {
        let quoted = schema.replace('"', "\"\"");
        let mode = caller.query_text(&format!("PRAGMA \"{quoted}\".locking_mode"))?;
        if mode.is_some_and(|mode| mode.eq_ignore_ascii_case("exclusive")) {
            let why = "the connection has locking_mode=EXCLUSIVE, which keeps every other \
                       connection out; set PRAGMA locking_mode=NORMAL and read the database once";
            return Err(Error::new(ErrorKind::Unsupported, why));
        }
        Ok(())
    }
}

/// The option `"wait_ms"`.
pub(super) fn wait_ms(options: &mut Options) -> Result<Duration> {
    let wait = options.opt_u64("wait_ms", 0..=WAIT_MS_MAX)?;
    Ok(Duration::from_millis(wait.unwrap_or(WAIT_MS)))
}
