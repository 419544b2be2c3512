//! `litestream_serve(addr [, options])`.

use crate::capture::{CaptureConfig, LOG_BYTES_MIN};
use crate::databases::{self, ServeRequest};
use crate::error::{Context, Error, Result};
use crate::host::caller::Caller;
use crate::host::function::{Answer, Args};
use crate::options::Options;
use crate::serve::{ServeOptions, TlsFiles};
use crate::token::Token;

use super::target::{Target, wait_ms};

/// The bounds of the option `"log_bytes"`.
pub(super) const LOG_BYTES: std::ops::RangeInclusive<u64> = (1 << 20)..=(1 << 50);

pub(super) fn serve(caller: &Caller, args: &Args) -> Result<Answer> {
    let addr = args.text_required(0, "an address such as ':9090'")?.to_owned();
    let mut options = Options::parse(args.text(1)?)?;
    let target = Target::of(caller, &mut options)?;
    let token = Token::or_environment(Token::given(options.opt_str("token")?)?)?;
    let allow_anonymous = options.opt_bool("allow_anonymous")?.unwrap_or(false);
    let tls = tls_files(&mut options)?;
    let log_bytes_min = options.opt_u64("log_bytes", LOG_BYTES)?.unwrap_or(LOG_BYTES_MIN);
    let wait = wait_ms(&mut options)?;
    options.finish()?;
    let request = ServeRequest {
        addr,
        options: ServeOptions { token, allow_anonymous, tls },
        capture: CaptureConfig { path: target.path, vfs: target.vfs, log_bytes_min },
        wait,
    };
    databases::serve(&request, &|| caller.interrupted()).map(Answer::from)
}

/// The options `"tls_cert"` and `"tls_key"`, which go together.
fn tls_files(options: &mut Options) -> Result<Option<TlsFiles>> {
    let (cert, key) = (options.opt_str("tls_cert")?, options.opt_str("tls_key")?);
    let (cert, key) = match (cert, key) {
        (None, None) => return Ok(None),
        (Some(cert), Some(key)) => (cert, key),
        (Some(_), None) => {
            return Err(Error::usage("option \"tls_cert\" needs \"tls_key\", the file of its key"));
        }
        (None, Some(_)) => {
            let why = "option \"tls_key\" needs \"tls_cert\", the file of its certificate";
            return Err(Error::usage(why));
        }
    };
    // They are read again later, when the host may be in another folder.
    let whole = |option: &str, path: String| {
        std::path::absolute(path).context(|| format!("option \"{option}\""))
    };
    Ok(Some(TlsFiles { cert: whole("tls_cert", cert)?, key: whole("tls_key", key)? }))
}
