//! `litestream_restore(url, path [, options])`.

use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::time::{Duration, SystemTime};

use crate::archive::ArchiveOptions;
use crate::archive::sink::{Target, Until};
use crate::error::{Error, Result};
use crate::host::caller::Caller;
use crate::host::function::{Answer, Args};
use crate::options::{Options, unexpected};
use crate::pos::Generation;
use crate::registry;
use crate::restore::{self, Request};

use super::time;

/// The bounds of the option `"parallelism"`, in threads, and what it is if left out: enough to
/// keep a few requests to a bucket on their way.
const THREADS: RangeInclusive<u64> = 1..=64;
const THREADS_DEFAULT: usize = 4;

pub(super) fn restore(caller: &Caller, args: &Args) -> Result<Answer> {
    registry::check_fork()?;
    let url = args.text_required(0, "a URL such as 'file:///archive' or 's3://bucket'")?;
    let path = args.text_required(1, "the path of the new database")?;
    if path.is_empty() || path.contains('\0') {
        return Err(Error::usage("the path of the new database is empty, or has a NUL in it"));
    }
    if path == ":memory:" || path.starts_with("file:") {
        return Err(Error::usage(format!(
            "{path:?} is not the path of a file: restore into a file, by a plain path such as \
             /folder/app.db, and open that"
        )));
    }
    let mut options = Options::parse(args.text(2)?)?;
    let target = target(&mut options)?;
    let dry_run = options.opt_bool("dry_run")?.unwrap_or(false);
    let integrity_check = options.opt_bool("integrity_check")?.unwrap_or(false);
    let threads = options.opt_u64("parallelism", THREADS)?;
    let archive = ArchiveOptions::take(&mut options)?;
    options.finish()?;
    if dry_run && integrity_check {
        return Err(Error::usage(
            "options \"dry_run\" and \"integrity_check\" exclude each other: there is nothing to \
             check without a file",
        ));
    }
    let request = Request {
        url: url.to_owned(),
        options: archive,
        path: PathBuf::from(path),
        target,
        dry_run,
        integrity_check,
        threads: threads.and_then(|it| usize::try_from(it).ok()).unwrap_or(THREADS_DEFAULT),
    };
    restore::run(request, &|| caller.interrupted()).map(Answer::from)
}

/// The options `"timestamp"`, `"pos"` and `"generation"`.
fn target(options: &mut Options) -> Result<Target> {
    let until_time = until_time(options)?;
    let pos = options.opt_str("pos")?;
    let generation = options.opt_str("generation")?;
    let generation = generation.map(|text| Generation::parse(&text)).transpose();
    let generation = generation.map_err(|error| error.context("option \"generation\""))?;
    let until = match (until_time, pos) {
        (Some(_), Some(_)) => {
            return Err(Error::usage("options \"timestamp\" and \"pos\" exclude each other"));
        }
        (Some(time), None) => Until::Time(time),
        (None, Some(pos)) => {
            let other = generation.filter(|it| !pos.starts_with(&it.to_string()));
            if let Some(generation) = other {
                let why = format!(
                    "option \"pos\" is not in generation {generation} (option \"generation\")"
                );
                return Err(Error::usage(why));
            }
            Until::Pos(pos)
        }
        (None, None) => Until::Latest,
    };
    Ok(Target { generation, until })
}

fn until_time(options: &mut Options) -> Result<Option<SystemTime>> {
    const ALLOWED: &str = "an ISO 8601 time such as \"2026-11-22T10:00:00Z\" (UTC if it names no \
                           zone), or seconds since 1970";
    let Some(value) = options.opt_value("timestamp") else { return Ok(None) };
    let time = match value.as_str() {
        Some(text) => time::parse(text),
        None => value
            .as_f64()
            .and_then(|seconds| Duration::try_from_secs_f64(seconds).ok())
            .and_then(|since| SystemTime::UNIX_EPOCH.checked_add(since)),
    };
    time.map(Some).ok_or_else(|| unexpected("timestamp", ALLOWED, &value))
}
