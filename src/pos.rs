//! Positions: where a database's history has got to.
//!
//! Text form: `GENERATION/INDEX:OFFSET`, three times 16 lowercase hexadecimal digits, so that
//! within a generation the order of the texts is the order of the positions.
//!
//! | part       | meaning                                                                       |
//! |------------|-------------------------------------------------------------------------------|
//! | generation | an unbroken history of one database, named at random                          |
//! | index      | how often the WAL has been restarted in this generation, from 0               |
//! | offset     | bytes into that WAL: 0 before its header, then `32 + n * (24 + page size)`    |
//!
//! A position names the next byte wanted, so everything before it is known. Index and offset never
//! exceed `i64::MAX`, since other implementations hold them in signed integers.

use std::cmp::Ordering;
use std::fmt;
use std::str::FromStr;

use crate::error::{Error, Result};

/// Characters in the name of a generation.
pub const GENERATION_NAME_LEN: usize = 16;

/// The largest index or offset: what a signed 64-bit integer holds.
const NUMBER_MAX: u64 = i64::MAX.unsigned_abs();

/// The name of an unbroken history. [`Generation::ZERO`] stands for "none".
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Generation(u64);

impl Generation {
    /// No generation.
    pub const ZERO: Self = Self(0);

    /// The generation whose 16 digits are this number.
    pub const fn from_bits(bits: u64) -> Self {
        Self(bits)
    }

    /// The 16 digits as a number.
    pub const fn to_bits(self) -> u64 {
        self.0
    }

    /// Whether this is [`Generation::ZERO`].
    pub const fn is_zero(self) -> bool {
        self.0 == 0
    }

    /// Reads exactly 16 lowercase hexadecimal digits.
    pub fn parse(text: &str) -> Result<Self> {
        if !is_generation_name(text) {
            return Err(Error::usage(format!(
                "invalid generation {text:?}: expected {GENERATION_NAME_LEN} lowercase hexadecimal \
                 digits"
            )));
        }
        let bits = u64::from_str_radix(text, 16);
        bits.map(Self).map_err(|why| Error::usage(format!("invalid generation {text:?}: {why}")))
    }

    /// As [`Generation::parse`], but leading zeros may be spaces: the form in which earlier
    /// Litestream releases send a generation that starts with zeros.
    pub fn parse_padded(text: &str) -> Result<Self> {
        let digits = text.trim_start_matches(' ');
        if text.len() != GENERATION_NAME_LEN || digits.is_empty() {
            return Self::parse(text);
        }
        Self::parse(&format!("{digits:0>GENERATION_NAME_LEN$}"))
    }
}

impl fmt::Display for Generation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

impl FromStr for Generation {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        Self::parse(text)
    }
}

/// Whether `text` has the length of a generation's name and only lowercase hexadecimal digits.
pub fn is_generation_name(text: &str) -> bool {
    text.len() == GENERATION_NAME_LEN && text.bytes().all(is_hex_char)
}

/// Whether `byte` is a lowercase hexadecimal digit.
pub fn is_hex_char(byte: u8) -> bool {
    matches!(byte, b'0'..=b'9' | b'a'..=b'f')
}

/// How often the WAL has been restarted in a generation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Index(u64);

/// Bytes from the start of a WAL.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Offset(u64);

impl Index {
    /// The first index of a generation.
    pub const ZERO: Self = Self(0);

    /// Fails above `i64::MAX`.
    pub fn new(index: u64) -> Result<Self> {
        bounded(index, "index", index).map(Self)
    }

    /// The number.
    pub const fn get(self) -> u64 {
        self.0
    }

    /// The index after this one. Stays at `i64::MAX`, which no database reaches.
    #[must_use]
    pub fn next(self) -> Self {
        Self((self.0 + 1).min(NUMBER_MAX))
    }
}

impl Offset {
    /// The start of a WAL, before its header.
    pub const ZERO: Self = Self(0);

    /// Fails above `i64::MAX`.
    pub fn new(offset: u64) -> Result<Self> {
        bounded(offset, "offset", offset).map(Self)
    }

    /// The number of bytes.
    pub const fn get(self) -> u64 {
        self.0
    }
}

impl fmt::Display for Index {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

impl fmt::Display for Offset {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

impl FromStr for Index {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        parse_index(text)
    }
}

impl FromStr for Offset {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        parse_offset(text)
    }
}

/// An index as 16 hexadecimal digits.
pub fn format_index(index: Index) -> String {
    index.to_string()
}

/// An offset as 16 hexadecimal digits.
pub fn format_offset(offset: Offset) -> String {
    offset.to_string()
}

/// Reads a hexadecimal index: any number of digits, either case, no sign, no prefix.
pub fn parse_index(text: &str) -> Result<Index> {
    parse_hex(text, "index").map(Index)
}

/// Reads a hexadecimal offset by the same rules as [`parse_index`].
pub fn parse_offset(text: &str) -> Result<Offset> {
    parse_hex(text, "offset").map(Offset)
}

fn parse_hex(text: &str, what: &str) -> Result<u64> {
    // from_str_radix alone would take a leading plus sign.
    let hex = text.bytes().all(|byte| byte.is_ascii_hexdigit());
    match u64::from_str_radix(text, 16) {
        Ok(number) if hex => bounded(number, what, format_args!("{text:?}")),
        _ => Err(Error::usage(format!("cannot parse {what}: {text:?}"))),
    }
}

fn bounded(number: u64, what: &str, shown: impl fmt::Display) -> Result<u64> {
    if number > NUMBER_MAX {
        return Err(Error::usage(format!("{what} too large: {shown}")));
    }
    Ok(number)
}

/// A position in the history of a database. The default is "nowhere".
///
/// Positions of different generations have no order, hence no `Ord`: see [`compare_pos`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct Pos {
    /// Which history.
    pub generation: Generation,
    /// Which WAL in that history.
    pub index: Index,
    /// Bytes into that WAL.
    pub offset: Offset,
}

impl Pos {
    /// The position with these parts.
    pub const fn new(generation: Generation, index: Index, offset: Offset) -> Self {
        Self { generation, index, offset }
    }

    /// Whether this is the default, "nowhere".
    pub fn is_zero(self) -> bool {
        self == Self::default()
    }

    /// The start of the same WAL.
    #[must_use]
    pub fn truncate(self) -> Self {
        Self { offset: Offset::ZERO, ..self }
    }
}

/// Empty for the default position.
impl fmt::Display for Pos {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.is_zero() {
            return Ok(());
        }
        write!(f, "{}/{}:{}", self.generation, self.index, self.offset)
    }
}

/// An empty text is an error: whoever allows "no position" asks for it before parsing.
impl FromStr for Pos {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let parts = text.split_once('/').and_then(|(generation, rest)| {
            rest.split_once(':').map(|(index, offset)| (generation, index, offset))
        });
        let Some((generation, index, offset)) = parts else {
            return Err(Error::usage(format!(
                "invalid position {text:?}: expected GENERATION/INDEX:OFFSET"
            )));
        };
        let read = || -> Result<Self> {
            Ok(Self::new(
                Generation::parse(generation)?,
                parse_index(index)?,
                parse_offset(offset)?,
            ))
        };
        read().map_err(|error| error.context(format_args!("invalid position {text:?}")))
    }
}

/// Compares two positions of one generation; an error if the generations differ.
pub fn compare_pos(a: Pos, b: Pos) -> Result<Ordering> {
    if a.generation != b.generation {
        return Err(Error::usage(format!(
            "generation mismatch: {} and {} are positions in different histories",
            a.generation, b.generation
        )));
    }
    Ok((a.index, a.offset).cmp(&(b.index, b.offset)))
}

#[cfg(test)]
mod tests;
