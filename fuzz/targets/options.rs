//! JSON options, taken as every function takes them: no error shows a secret.

use std::time::Duration;

use serde_json::{Map, Value};

use super::Input;
use crate::archive::ArchiveOptions;
use crate::error::Result;
use crate::options::Options;

/// Stands for a secret, in any kind of value.
const MARK: &str = "7ba2c9d4secret";
const SECRETS: [&str; 5] =
    ["token", "access_key_id", "secret_access_key", "session_token", "age_identities"];

pub fn target(data: &[u8]) {
    let mut input = Input(data);
    let (way, kind) = (input.byte(), input.byte());
    let text = String::from_utf8_lossy(input.0);
    let result = take(way, &text);
    if let Err(error) = &result {
        assert!(error.to_string().len() < 4096, "an error as long as what was given");
    }
    // The same with secrets in it.
    let Ok(Value::Object(mut values)) = serde_json::from_str(&text) else {
        assert!(result.is_err(), "no object, and no error");
        return;
    };
    for key in SECRETS {
        if let Some(value) = values.get_mut(key) {
            *value = secret(kind);
        }
    }
    let text = Value::Object(values).to_string();
    if let Err(error) = take(way, &text) {
        assert!(!error.to_string().contains(MARK), "{error}");
    }
}

fn secret(kind: u8) -> Value {
    let text = || Value::from(MARK);
    match kind % 4 {
        0 => text(),
        1 => Value::Array(vec![text(), Value::Array(vec![text()])]),
        2 => Value::Object(Map::from_iter([(MARK.to_owned(), text())])),
        _ => Value::Array(vec![Value::from(1), text()]),
    }
}

/// As functions do: some of these, in some order, then no more.
fn take(way: u8, text: &str) -> Result<()> {
    let mut options = Options::parse(Some(text))?;
    let second = Duration::from_secs(1);
    if way & 1 == 1 {
        drop(ArchiveOptions::take(&mut options)?);
    }
    if way & 2 == 2 {
        options.opt_str("schema")?;
        options.opt_u64("wait_ms", 0..=86_400_000)?;
        options.opt_str("token")?;
        options.opt_bool("allow_anonymous")?;
        options.opt_u64("log_bytes", 1..=1 << 40)?;
    }
    if way & 4 == 4 {
        options.opt_str("token")?;
        options.opt_str("path")?;
        options.opt_str("archive")?;
        options.opt_duration("poll_interval", second / 10..=second * 3600)?;
        options.opt_bool("overwrite")?;
    }
    if way & 8 == 8 {
        options.opt_duration("retention", second..=second * 86_400 * 36_500)?;
        options.opt_strs("age_identities")?;
        options.opt_value("timestamp");
    }
    let _ = options.has("token");
    options.finish()
}
