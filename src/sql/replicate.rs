//! `litestream_replicate(url [, options])`.

use std::time::Duration;

use crate::archive::ArchiveOptions;
use crate::capture::{CaptureConfig, LOG_BYTES_MIN};
use crate::databases::{self, ReplicateRequest};
use crate::error::Result;
use crate::host::caller::Caller;
use crate::host::function::{Answer, Args};
use crate::options::Options;
use crate::replicate::ReplicateConfig;

use super::serve::LOG_BYTES;
use super::target::{Target, wait_ms};

const HOUR: Duration = Duration::from_secs(3600);
const DAY: Duration = Duration::from_secs(24 * 3600);
/// The longest anything may be kept or put off: 100 years, of 365.25 days each as in `"100years"`.
const LONGEST: Duration = Duration::from_secs(100 * 31_557_600);
/// How long a commit may wait to be sent, unless told otherwise.
const SYNC_INTERVAL: Duration = Duration::from_secs(1);
/// What the log keeps for an archive at most, unless told otherwise.
const BACKLOG_BYTES: u64 = 1 << 30;

pub(super) fn replicate(caller: &Caller, args: &Args) -> Result<Answer> {
    let what = "an archive such as 'file:///var/backups/app' or 's3://bucket/app'";
    let url = args.text_required(0, what)?.to_owned();
    let mut options = Options::parse(args.text(1)?)?;
    let target = Target::of(caller, &mut options)?;
    let mut length = |key, least, default| {
        options.opt_duration(key, least..=LONGEST).map(|given| given.unwrap_or(default))
    };
    let second = Duration::from_secs(1);
    let sync_interval = length("sync_interval", Duration::from_millis(1), SYNC_INTERVAL)?;
    let snapshot_interval = length("snapshot_interval", second, DAY)?;
    let retention = length("retention", second, 7 * DAY)?;
    let delete_after = length("delete_after", Duration::ZERO, HOUR)?;
    let backlog_bytes = options.opt_u64("backlog_bytes", LOG_BYTES)?.unwrap_or(BACKLOG_BYTES);
    let log_bytes_min = options.opt_u64("log_bytes", LOG_BYTES)?.unwrap_or(LOG_BYTES_MIN);
    let archive = ArchiveOptions::take(&mut options)?;
    let wait = wait_ms(&mut options)?;
    options.finish()?;
    let request = ReplicateRequest {
        archive: ReplicateConfig {
            url,
            archive,
            sync_interval,
            snapshot_interval,
            retention,
            delete_after,
            backlog_bytes,
            snapshot_bytes_min: log_bytes_min,
        },
        capture: CaptureConfig { path: target.path, vfs: target.vfs, log_bytes_min },
        wait,
    };
    databases::replicate(&request, &|| caller.interrupted()).map(Answer::from)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hundred_years_are_the_longest() {
        for text in ["100years", "100y", "36525d"] {
            assert_eq!(humantime::parse_duration(text).unwrap(), LONGEST, "{text}");
            let mut options = Options::parse(Some(&format!("{{\"x\": \"{text}\"}}"))).unwrap();
            assert_eq!(options.opt_duration("x", HOUR..=LONGEST).unwrap(), Some(LONGEST));
        }
        assert_eq!(humantime::format_duration(LONGEST).to_string(), "100years");
    }
}
