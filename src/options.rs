//! The options argument of the SQL functions: one JSON object.
//!
//! A function takes the options it knows by name and then calls [`Options::finish`], which refuses
//! any other. NULL, for the whole or for one option, is the same as leaving it out. SQL has no
//! booleans, so 0 and 1 (what `json_object('x', true)` makes) count as such. Errors name the option
//! and what is allowed; the function's name is put in front by the SQL layer.

use std::collections::HashSet;
use std::ops::RangeInclusive;
use std::time::Duration;

use serde_json::{Map, Value};

use crate::error::{Error, Result};

/// How much of a wrong value an error shows, in characters.
const SHOWN_CHARS_MAX: usize = 40;

/// Options whose values no error shows.
const SECRET: [&str; 5] =
    ["access_key_id", "age_identities", "secret_access_key", "session_token", "token"];

/// Options not yet taken.
#[derive(Debug)]
pub struct Options {
    values: Map<String, Value>,
    known: Vec<&'static str>,
}

impl Options {
    /// Reads the argument; `None` is SQL's NULL or an argument left out.
    pub fn parse(text: Option<&str>) -> Result<Self> {
        let values = match text {
            None => Map::new(),
            Some(text) => parse_object(text)?,
        };
        Ok(Self { values, known: Vec::new() })
    }

    /// A text.
    pub fn opt_str(&mut self, key: &'static str) -> Result<Option<String>> {
        match self.take(key) {
            None => Ok(None),
            Some(Value::String(text)) => Ok(Some(text)),
            Some(other) => Err(unexpected(key, "a text", &other)),
        }
    }

    /// A text, or several in an array, which must not be empty.
    pub fn opt_strs(&mut self, key: &'static str) -> Result<Vec<String>> {
        let one = |value: Value| match value {
            Value::String(text) => Ok(text),
            other => Err(unexpected(key, "texts", &other)),
        };
        match self.take(key) {
            None => Ok(Vec::new()),
            // Nothing in a list is more likely a mistake than the wish for nothing.
            Some(Value::Array(values)) if !values.is_empty() => {
                values.into_iter().map(one).collect()
            }
            Some(Value::String(text)) => Ok(vec![text]),
            Some(other) => Err(unexpected(key, "a text or an array of texts", &other)),
        }
    }

    /// A length of time in `range`: a text such as `500ms`, `30s`, `24h`, `7d`, or a number of
    /// seconds.
    pub fn opt_duration(
        &mut self,
        key: &'static str,
        range: RangeInclusive<Duration>,
    ) -> Result<Option<Duration>> {
        let Some(value) = self.take(key) else { return Ok(None) };
        let duration = match &value {
            Value::String(text) => humantime::parse_duration(text.trim()).ok(),
            other => other.as_f64().and_then(|seconds| Duration::try_from_secs_f64(seconds).ok()),
        };
        let shortest = humantime::format_duration(*range.start());
        let longest = humantime::format_duration(*range.end());
        duration.filter(|duration| range.contains(duration)).map(Some).ok_or_else(|| {
            let allowed = format!(
                "a length of time such as \"30s\" or \"24h\", from {shortest} to {longest}"
            );
            unexpected(key, &allowed, &value)
        })
    }

    /// A whole number in `range`.
    pub fn opt_u64(
        &mut self,
        key: &'static str,
        range: RangeInclusive<u64>,
    ) -> Result<Option<u64>> {
        let Some(value) = self.take(key) else { return Ok(None) };
        match value.as_u64() {
            Some(number) if range.contains(&number) => Ok(Some(number)),
            _ => {
                let allowed = format!("a whole number from {} to {}", range.start(), range.end());
                Err(unexpected(key, &allowed, &value))
            }
        }
    }

    /// True or false.
    pub fn opt_bool(&mut self, key: &'static str) -> Result<Option<bool>> {
        let Some(value) = self.take(key) else { return Ok(None) };
        match (value.as_bool(), value.as_u64()) {
            (Some(flag), _) => Ok(Some(flag)),
            (None, Some(0)) => Ok(Some(false)),
            (None, Some(1)) => Ok(Some(true)),
            _ => Err(unexpected(key, "true or false", &value)),
        }
    }

    /// Whether an option has a value that nobody took yet.
    pub fn has(&self, key: &str) -> bool {
        self.values.get(key).is_some_and(|value| !value.is_null())
    }

    /// Anything, for a caller that knows more kinds of values than there are here.
    pub fn opt_value(&mut self, key: &'static str) -> Option<Value> {
        self.take(key)
    }

    /// Fails if an option is left that nobody took.
    pub fn finish(mut self) -> Result<()> {
        let Some(key) = self.values.keys().next() else { return Ok(()) };
        let key = shown(&Value::String(key.clone()));
        if self.known.is_empty() {
            return Err(Error::usage(format!("unknown option {key}; no options are known")));
        }
        self.known.sort_unstable();
        let known = self.known.join(", ");
        Err(Error::usage(format!("unknown option {key}; known options: {known}")))
    }

    fn take(&mut self, key: &'static str) -> Option<Value> {
        self.known.push(key);
        self.values.remove(key).filter(|value| !value.is_null())
    }
}

fn parse_object(text: &str) -> Result<Map<String, Value>> {
    let allowed = "options must be one JSON object, such as {\"name\": \"value\"}";
    if text.trim().is_empty() {
        return Err(Error::usage(format!("{allowed}, got an empty text")));
    }
    let value = serde_json::from_str(text)
        .map_err(|why| Error::usage(format!("{allowed}, got invalid JSON: {why}")))?;
    let Value::Object(values) = value else {
        return Err(Error::usage(format!("{allowed}, got {}", shown(&value))));
    };
    match duplicate_key(text) {
        Some(key) => Err(Error::usage(format!("option {} is given twice", shown(&key.into())))),
        None => Ok(values),
    }
}

/// A key that valid JSON text of an object has twice: serde_json keeps the last and says nothing.
fn duplicate_key(text: &str) -> Option<String> {
    let mut seen = HashSet::new();
    let mut depth = 0;
    let mut bytes = text.bytes().enumerate();
    // The last string seen: in front of a colon it is a key.
    let mut string = 0..0;
    while let Some((at, byte)) = bytes.next() {
        match byte {
            b'{' | b'[' => depth += 1,
            b'}' | b']' => depth -= 1,
            b'"' => {
                while let Some((end, byte)) = bytes.next() {
                    if byte == b'\\' {
                        bytes.next();
                    } else if byte == b'"' {
                        string = at..end + 1;
                        break;
                    }
                }
            }
            b':' if depth == 1 => {
                let key = serde_json::from_str::<String>(text.get(string.clone())?).ok()?;
                if !seen.insert(key.clone()) {
                    return Some(key);
                }
            }
            _ => {}
        }
    }
    None
}

/// An option whose value is not `allowed`.
pub fn unexpected(key: &str, allowed: &str, found: &Value) -> Error {
    let found = match found {
        _ if !SECRET.contains(&key) => shown(found),
        Value::Array(values) if values.is_empty() => "an empty array".to_owned(),
        Value::Array(_) => "an array".to_owned(),
        Value::Object(_) => "an object".to_owned(),
        Value::Number(_) => "a number".to_owned(),
        _ => "another value".to_owned(),
    };
    Error::usage(format!("option \"{key}\": expected {allowed}, got {found}"))
}

/// A value as JSON, cut short if it is long.
fn shown(value: &Value) -> String {
    let text = value.to_string();
    match text.char_indices().nth(SHOWN_CHARS_MAX) {
        Some((end, _)) => format!("{}...", &text[..end]),
        None => text,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Takes options as a function would.
    fn take(text: Option<&str>) -> Result<(Option<String>, Option<u64>, Option<bool>)> {
        let mut options = Options::parse(text)?;
        let wait_ms = options.opt_u64("wait_ms", 0..=86_400_000)?;
        let taken = (options.opt_str("token")?, wait_ms, options.opt_bool("overwrite")?);
        options.finish()?;
        Ok(taken)
    }

    #[test]
    fn secrets_are_not_shown() {
        let text = r#"{"token": ["secret"], "age_identities": [["secret"]], "session_token": 5}"#;
        let mut options = Options::parse(Some(text)).unwrap();
        let errors = [
            options.opt_str("token").unwrap_err().to_string(),
            options.opt_strs("age_identities").unwrap_err().to_string(),
            options.opt_str("session_token").unwrap_err().to_string(),
        ];
        assert_eq!(errors[0], "option \"token\": expected a text, got an array");
        assert!(
            errors.iter().all(|it| !it.contains("secret\"]") && !it.contains('5')),
            "{errors:?}"
        );
    }

    #[test]
    fn values() {
        let check = |text: Option<&str>, token: Option<&str>, wait_ms, overwrite| {
            assert_eq!(take(text).unwrap(), (token.map(str::to_owned), wait_ms, overwrite));
        };
        check(None, None, None, None);
        check(Some("{}"), None, None, None);
        check(Some(" {\n} "), None, None, None);
        check(Some(r#"{"token":"a"}"#), Some("a"), None, None);
        check(Some(r#"{"token":""}"#), Some(""), None, None);
        check(Some(r#"{"token":null,"wait_ms":null,"overwrite":null}"#), None, None, None);
        check(Some(r#"{"token":"\u00e9\n\"{:"}"#), Some("\u{e9}\n\"{:"), None, None);
        check(Some(r#"{"wait_ms":0}"#), None, Some(0), None);
        check(Some(r#"{"wait_ms":86400000,"overwrite":true}"#), None, Some(86_400_000), Some(true));
        check(Some(r#"{"overwrite":false}"#), None, None, Some(false));
        check(Some(r#"{"overwrite":1}"#), None, None, Some(true));
        check(Some(r#"{"overwrite":0}"#), None, None, Some(false));
    }

    #[track_caller]
    fn check_error(text: &str, expected: &str) {
        let error = take(Some(text)).unwrap_err();
        assert_eq!(error.to_string(), expected);
        assert_eq!(error.kind(), crate::error::ErrorKind::Usage);
    }

    #[test]
    fn wrong_values() {
        let wait = |got: &str| {
            let allowed = "option \"wait_ms\": expected a whole number from 0 to 86400000, got ";
            check_error(&format!("{{\"wait_ms\":{got}}}"), &format!("{allowed}{got}"));
        };
        for got in ["\"x\"", "\"5\"", "-1", "86400001", "1.5", "5.0", "true", "[]", "{}"] {
            wait(got);
        }
        wait("18446744073709551615");
        check_error(r#"{"token":5}"#, r#"option "token": expected a text, got a number"#);
        check_error(r#"{"token":["a"]}"#, r#"option "token": expected a text, got an array"#);
        for got in ["2", "-1", "\"true\"", "0.0", "1.5"] {
            let text = format!("{{\"overwrite\":{got}}}");
            check_error(&text, &format!("option \"overwrite\": expected true or false, got {got}"));
        }
        let long = format!("{{\"wait_ms\":\"{}\"}}", "\u{e9}".repeat(100));
        let shown = format!("\"{}...", "\u{e9}".repeat(39));
        let allowed = "option \"wait_ms\": expected a whole number from 0 to 86400000, got ";
        check_error(&long, &format!("{allowed}{shown}"));
    }

    #[test]
    fn unknown_options() {
        let known = "known options: overwrite, token, wait_ms";
        check_error(r#"{"foo":1}"#, &format!("unknown option \"foo\"; {known}"));
        check_error(r#"{"foo":null}"#, &format!("unknown option \"foo\"; {known}"));
        check_error(r#"{"Token":"a"}"#, &format!("unknown option \"Token\"; {known}"));
        check_error(r#"{"":1,"token":"a"}"#, &format!("unknown option \"\"; {known}"));
        check_error(r#"{"a\u0000\n":1}"#, &format!("unknown option \"a\\u0000\\n\"; {known}"));
        let error = Options::parse(Some(r#"{"a":1}"#)).unwrap().finish().unwrap_err();
        assert_eq!(error.to_string(), "unknown option \"a\"; no options are known");
    }

    #[test]
    fn lengths_of_time() {
        let day = Duration::from_secs(86_400);
        let take = |text: &str| {
            let mut options = Options::parse(Some(&format!("{{\"x\":{text}}}")))?;
            options.opt_duration("x", Duration::from_millis(10)..=day * 30)
        };
        let check = |text: &str, ms| {
            assert_eq!(take(text).unwrap(), Some(Duration::from_millis(ms)), "{text}");
        };
        check("\"500ms\"", 500);
        check("\" 24h \"", 86_400_000);
        check("\"7d\"", 7 * 86_400_000);
        check("\"1h 30m\"", 5_400_000);
        check("2", 2000);
        check("0.25", 250);
        assert_eq!(take("null").unwrap(), None);
        for text in ["\"\"", "\"7\"", "\"-1s\"", "-1", "1e300", "0", "\"31d\"", "[]", "true"] {
            let error = take(text).unwrap_err().to_string();
            assert!(error.contains("from 10ms to 30days"), "{text}: {error}");
        }
    }

    #[test]
    fn one_text_or_several() {
        let take = |text: &str| Options::parse(Some(text))?.opt_strs("x");
        let check = |text: &str, expected: &[&str]| assert_eq!(take(text).unwrap(), expected);
        check("{}", &[]);
        check(r#"{"x":"a"}"#, &["a"]);
        check(r#"{"x":["a","b"]}"#, &["a", "b"]);
        for text in [r#"{"x":1}"#, r#"{"x":[]}"#, r#"{"x":["a",1]}"#, r#"{"x":{}}"#] {
            assert!(take(text).unwrap_err().to_string().contains("texts"), "{text}");
        }
    }

    #[test]
    fn duplicate_options() {
        let check = |text: &str, key: &str| {
            check_error(text, &format!("option \"{key}\" is given twice"));
        };
        check(r#"{"token":"a","token":"b"}"#, "token");
        check(r#"{"token":"a","token":"a"}"#, "token");
        check(r#"{"token":"a", "\u0074oken" : "b"}"#, "token");
        check(r#"{"x":{"y":[1,{"y":2}],"z":":"},"x":1}"#, "x");
        // Twice in different objects is not twice.
        let error = take(Some(r#"{"foo":{"token":1},"token":"\"}{:"}"#)).unwrap_err().to_string();
        assert!(error.starts_with("unknown option \"foo\""), "{error}");
    }

    #[test]
    fn not_an_object() {
        let allowed = "options must be one JSON object, such as {\"name\": \"value\"}";
        check_error("", &format!("{allowed}, got an empty text"));
        check_error(" \n", &format!("{allowed}, got an empty text"));
        for got in ["[]", "1", "null", "true", "\"{}\""] {
            check_error(got, &format!("{allowed}, got {got}"));
        }
        let deep = "[".repeat(1_000_000);
        let nested = format!("{{\"a\":{}", "{\"a\":".repeat(1_000_000));
        for text in
            ["{", "}", "{a:1}", "{'a':1}", "{} {}", "{},", "{\"a\":1,}", "\0", &deep, &nested]
        {
            let error = take(Some(text)).unwrap_err().to_string();
            assert!(error.starts_with(&format!("{allowed}, got invalid JSON: ")), "{error}");
            assert!(error.len() < 200, "{error}");
        }
    }
}
