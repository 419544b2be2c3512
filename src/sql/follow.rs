//! `litestream_follow(url [, options])`, `litestream_promote([options])`,
//! `litestream_lag([options])`.

use std::time::Duration;

use crate::archive::ArchiveOptions;
use crate::archive::options::is_archive_url;
use crate::databases;
use crate::error::{Error, Result};
use crate::follow::FollowConfig;
use crate::host::caller::Caller;
use crate::host::function::{Answer, Args};
use crate::options::Options;
use crate::registry;
use crate::token::Token;

use super::target::{Target, Which, wait_ms};

/// How often an archive may be looked at.
const POLL_MIN: Duration = Duration::from_millis(50);
const POLL_MAX: Duration = Duration::from_secs(86_400);

/// The bounds of the option `"max_bytes"`.
const BYTES_MAX: std::ops::RangeInclusive<u64> = (1 << 20)..=(1 << 50);

/// Options that mean nothing to an archive.
const OF_SERVERS: [&str; 2] = ["path", "token"];
/// Options that mean nothing to a server. `ca` is for both.
const OF_ARCHIVES: [&str; 10] = [
    "poll_interval",
    "endpoint",
    "region",
    "path_style",
    "access_key_id",
    "secret_access_key",
    "session_token",
    "layout",
    "age_recipients",
    "age_identities",
];

pub(super) fn follow(caller: &Caller, args: &Args) -> Result<Answer> {
    let url = args.text_required(0, "a URL such as 'http://primary:9090'")?.to_owned();
    let mut options = Options::parse(args.text(1)?)?;
    let target = Target::of(caller, &mut options)?;
    let out_of_place = out_of_place(&url, &options);
    let token = Token::given(options.opt_str("token")?)?;
    let upstream_path = options.opt_str("path")?;
    let archive_options = ArchiveOptions::take(&mut options)?;
    let archive = options.opt_str("archive")?;
    let poll_interval = options.opt_duration("poll_interval", POLL_MIN..=POLL_MAX)?;
    let overwrite = options.opt_bool("overwrite")?.unwrap_or(false);
    let bytes_max = options.opt_u64("max_bytes", BYTES_MAX)?;
    let wait = wait_ms(&mut options)?;
    options.finish()?;
    if let Some(error) = out_of_place {
        return Err(error);
    }
    let config = FollowConfig {
        path: target.path,
        vfs: target.vfs,
        url,
        upstream_path,
        token,
        ca: archive_options.ca.clone(),
        overwrite,
        bytes_max,
        archive,
        archive_options,
        poll_interval: poll_interval.unwrap_or_default(),
    };
    let reached = databases::follow(config, wait, &|| caller.interrupted())?;
    Ok(Answer::from(reached.map(|pos| pos.to_string())))
}

/// An option that would have no effect: whoever gives it expects one.
fn out_of_place(url: &str, options: &Options) -> Option<Error> {
    let given = |keys: &[&'static str]| keys.iter().copied().find(|key| options.has(key));
    if is_archive_url(url) {
        return given(&OF_SERVERS).map(|key| {
            Error::usage(format!(
                "option \"{key}\" is for a server; what is followed is an archive"
            ))
        });
    }
    given(&OF_ARCHIVES).filter(|_| !options.has("archive")).map(|key| {
        Error::usage(format!(
            "option \"{key}\" is for an archive; what is followed is a server, and the option \
             \"archive\" names none"
        ))
    })
}

pub(super) fn promote(caller: &Caller, args: &Args) -> Result<Answer> {
    let which = Which::only(args)?;
    let reached = databases::promote(&which.path(caller)?, &which.vfs(caller)?)?;
    Ok(Answer::from(reached.map(|pos| pos.to_string())))
}

pub(super) fn lag(caller: &Caller, args: &Args) -> Result<Answer> {
    registry::check_fork()?;
    let database = databases::find(&Which::only(args)?.path(caller)?);
    let follower = database.and_then(|database| database.follower());
    Ok(Answer::from(follower.map(|follower| follower.lag())))
}
