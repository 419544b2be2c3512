//! The options argument of the SQL functions: one JSON object.
//!
//! A function takes the options it knows by name and then calls [`Options::finish`], which refuses
//! any other. NULL, for the whole or for one option, is the same as leaving it out. SQL has no
//! booleans, so 0 and 1 (what `json_object('x', true)` makes) count as such. Errors name the option and
//! what is allowed; the function's name is put in front by the SQL layer.

use std::collections::HashSet;
use std::ops::RangeInclusive;

use serde_json::{Map, Value};

use crate::error::{Error, Result};

/// How much of a wrong value an error shows, in characters.
const SHOWN_CHARS_MAX: usize = 40;

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

fn unexpected(key: &str, allowed: &str, found: &Value) -> Error {
    Error::usage(format!("option \"{key}\": expected {allowed}, got {}", shown(found)))
}

/// A value as JSON, cut short if it is long.
fn shown(value: &Value) -> String {
    let text = value.to_string();
    match text.char_indices().nth(SHOWN_CHARS_MAX) {
        Some((end, _)) => format!("{}...", &text[..end]),
        None => text,
    }
}
