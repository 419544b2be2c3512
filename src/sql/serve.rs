//! `litestream_serve(addr [, options])`.

use crate::capture::{CaptureConfig, LOG_BYTES_MIN};
use crate::databases::{self, ServeRequest};
use crate::error::Result;
use crate::host::caller::Caller;
use crate::host::function::{Answer, Args};
use crate::options::Options;
use crate::serve::{self, ServeOptions};

use super::target::{Target, wait_ms};

/// The bounds of the option `"log_bytes"`.
pub(super) const LOG_BYTES: std::ops::RangeInclusive<u64> = (1 << 20)..=(1 << 50);

pub(super) fn serve(caller: &Caller, args: &Args) -> Result<Answer> {
    let addr = args.text_required(0, "an address such as ':9090'")?.to_owned();
    let mut options = Options::parse(args.text(1)?)?;
    let target = Target::of(caller, &mut options)?;
    let token = serve::token(options.opt_str("token")?)?;
    let allow_anonymous = options.opt_bool("allow_anonymous")?.unwrap_or(false);
    let log_bytes_min = options.opt_u64("log_bytes", LOG_BYTES)?.unwrap_or(LOG_BYTES_MIN);
    let wait = wait_ms(&mut options)?;
    options.finish()?;
    let request = ServeRequest {
        addr,
        options: ServeOptions { token, allow_anonymous },
        capture: CaptureConfig { path: target.path, vfs: target.vfs, log_bytes_min },
        wait,
    };
    databases::serve(&request, &|| caller.interrupted()).map(Answer::from)
}
