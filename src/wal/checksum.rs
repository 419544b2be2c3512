//! The checksum that chains the frames of a WAL, and guards the headers of WAL and wal-index.
//!
//! Two sums over 32-bit words taken in pairs, modulo 2^32: `s0 += first + s1; s1 += second + s0`.
//! The words are read little-endian or big-endian, as the WAL's magic says; the sums themselves are
//! big-endian in the WAL either way, and native in the wal-index.
//!
//! Each step waits for the one before, but all of it is linear: `n` units of 8 bytes take the sums
//! `s` to `M^n s + t`, where `M` is the matrix (1 1; 1 2) and `t`, the [`PageSum`], is what those
//! bytes make of sums that begin at zero. So a page is summed in four parts side by side, and once
//! for all the chains it becomes part of: the upstream's and the replica's own.

use std::fmt;
use std::str::FromStr;

use crate::error::{Error, Result};
use crate::pos::is_hex_char;

use super::{PageSize, join, words};

/// How checksums read the words they add up.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ByteOrder {
    /// Lowest byte first.
    Little,
    /// Highest byte first.
    Big,
}

impl ByteOrder {
    /// The order of this machine, in which SQLite writes a new WAL.
    pub const NATIVE: Self = if cfg!(target_endian = "big") { Self::Big } else { Self::Little };
}

/// A running checksum. The default is where a WAL's header starts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct Checksum {
    /// The first sum.
    pub s0: u32,
    /// The second sum.
    pub s1: u32,
}

impl Checksum {
    /// As in the file: both sums big-endian.
    pub fn to_bytes(self) -> [u8; 8] {
        join([self.s0.to_be_bytes(), self.s1.to_be_bytes()])
    }
}

/// 16 hexadecimal digits: first sum, second sum.
impl fmt::Display for Checksum {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:08x}{:08x}", self.s0, self.s1)
    }
}

/// Takes exactly 16 hexadecimal digits, lowercase.
impl FromStr for Checksum {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        // from_str_radix alone would take a sign and capitals.
        let well_formed = text.len() == 16 && text.bytes().all(is_hex_char);
        match u64::from_str_radix(text, 16) {
            Ok(bits) if well_formed => {
                let [s0, s1] = words(bits.to_be_bytes());
                Ok(Self { s0, s1 })
            }
            _ => Err(Error::usage(format!(
                "invalid checksum {text:?}: expected 16 lowercase hexadecimal digits"
            ))),
        }
    }
}

/// Continues `from` over `bytes`, whose length must be a multiple of 8: what is over is ignored.
/// For lengths not known to be right there is [`checked_checksum`].
#[inline]
pub fn checksum(order: ByteOrder, from: Checksum, bytes: &[u8]) -> Checksum {
    debug_assert!(bytes.len().is_multiple_of(8), "misaligned checksum byte slice");
    match order {
        ByteOrder::Little => sum(from, bytes, u32::from_le_bytes),
        ByteOrder::Big => sum(from, bytes, u32::from_be_bytes),
    }
}

/// [`checksum`], or an error if the length of `bytes` is not a multiple of 8.
pub fn checked_checksum(order: ByteOrder, from: Checksum, bytes: &[u8]) -> Result<Checksum> {
    if !bytes.len().is_multiple_of(8) {
        let message = format!("misaligned checksum byte slice: {} bytes", bytes.len());
        return Err(Error::usage(message));
    }
    Ok(checksum(order, from, bytes))
}

/// The sums each depend on the one before, so latency is all there is. Adding the word to the old
/// sum first leaves one addition on the critical path of each step.
#[inline]
fn sum(from: Checksum, bytes: &[u8], word: impl Fn([u8; 4]) -> u32) -> Checksum {
    let Checksum { mut s0, mut s1 } = from;
    for unit in bytes.as_chunks::<8>().0 {
        let [a, b, c, d, e, f, g, h] = *unit;
        s0 = s0.wrapping_add(word([a, b, c, d])).wrapping_add(s1);
        s1 = s1.wrapping_add(word([e, f, g, h])).wrapping_add(s0);
    }
    Checksum { s0, s1 }
}

/// Parts of a page that are summed side by side. More of them find no free adder.
const PARTS: usize = 4;
/// log2 of the units of 8 bytes in the largest page.
const POWERS: usize = (PageSize::MAX.bytes() / 8).ilog2() as usize;
/// `M^(2^k)` for each k.
const JUMPS: [Jump; POWERS + 1] = Jump::doublings();

/// A power of `M`; all of them are symmetric.
#[derive(Clone, Copy)]
struct Jump {
    a: u32,
    b: u32,
    d: u32,
}

impl Jump {
    const fn doublings() -> [Jump; POWERS + 1] {
        let mut jumps = [Jump { a: 1, b: 1, d: 2 }; POWERS + 1];
        let mut k = 1;
        while k < jumps.len() {
            let Jump { a, b, d } = jumps[k - 1];
            let bb = b.wrapping_mul(b);
            jumps[k] = Jump {
                a: a.wrapping_mul(a).wrapping_add(bb),
                b: b.wrapping_mul(a.wrapping_add(d)),
                d: bb.wrapping_add(d.wrapping_mul(d)),
            };
            k += 1;
        }
        jumps
    }

    /// Past as many bytes, a power of two and at most a page.
    fn past(bytes: usize) -> Jump {
        JUMPS[(bytes / 8).trailing_zeros() as usize]
    }

    fn take(self, Checksum { s0, s1 }: Checksum, then: Checksum) -> Checksum {
        let Jump { a, b, d } = self;
        let sum = |x: u32, y: u32, z: u32| {
            x.wrapping_mul(s0).wrapping_add(y.wrapping_mul(s1)).wrapping_add(z)
        };
        Checksum { s0: sum(a, b, then.s0), s1: sum(b, d, then.s1) }
    }
}

/// What a page adds to the sums of a chain, whatever they were before.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PageSum {
    order: ByteOrder,
    page_size: PageSize,
    sum: Checksum,
}

impl PageSum {
    /// Of a page, which must have the length of one.
    pub fn of(order: ByteOrder, page_size: PageSize, page: &[u8]) -> PageSum {
        debug_assert_eq!(page.len(), page_size.bytes());
        let sum = match order {
            ByteOrder::Little => sum_in_parts(page_size, page, u32::from_le_bytes),
            ByteOrder::Big => sum_in_parts(page_size, page, u32::from_be_bytes),
        };
        PageSum { order, page_size, sum }
    }

    /// How the words were read.
    pub fn order(&self) -> ByteOrder {
        self.order
    }

    /// `from`, continued over the page.
    pub fn after(&self, from: Checksum) -> Checksum {
        Jump::past(self.page_size.bytes()).take(from, self.sum)
    }
}

#[inline]
fn sum_in_parts(page_size: PageSize, page: &[u8], word: impl Fn([u8; 4]) -> u32) -> Checksum {
    let part = page_size.bytes() / PARTS;
    let mut rest = page.as_chunks::<8>().0;
    let parts: [&[[u8; 8]]; PARTS] = std::array::from_fn(|_| {
        let (part, others) = rest.split_at(rest.len().min(part / 8));
        rest = others;
        part
    });
    let [first, second, third, fourth] = parts;
    let mut sums = [Checksum::default(); PARTS];
    for (((p, q), r), s) in first.iter().zip(second).zip(third).zip(fourth) {
        for (sum, unit) in sums.iter_mut().zip([p, q, r, s]) {
            let [a, b, c, d, e, f, g, h] = *unit;
            sum.s0 = sum.s0.wrapping_add(word([a, b, c, d])).wrapping_add(sum.s1);
            sum.s1 = sum.s1.wrapping_add(word([e, f, g, h])).wrapping_add(sum.s0);
        }
    }
    let jump = Jump::past(part);
    sums.into_iter().reduce(|before, sum| jump.take(before, sum)).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The definition, word by word.
    fn slow(order: ByteOrder, from: Checksum, bytes: &[u8]) -> Checksum {
        let Checksum { mut s0, mut s1 } = from;
        for unit in bytes.chunks(8) {
            let word = |at: usize| {
                let four = [unit[at], unit[at + 1], unit[at + 2], unit[at + 3]];
                match order {
                    ByteOrder::Little => u32::from_le_bytes(four),
                    ByteOrder::Big => u32::from_be_bytes(four),
                }
            };
            s0 = s0.wrapping_add(word(0).wrapping_add(s1));
            s1 = s1.wrapping_add(word(4).wrapping_add(s0));
        }
        Checksum { s0, s1 }
    }

    #[test]
    fn small_sums() {
        let check = |order, from: (u32, u32), bytes: &[u8], expected: (u32, u32)| {
            let from = Checksum { s0: from.0, s1: from.1 };
            let found = checksum(order, from, bytes);
            assert_eq!((found.s0, found.s1), expected);
            assert_eq!(checked_checksum(order, from, bytes).unwrap(), found);
        };
        check(ByteOrder::Little, (0, 0), &[], (0, 0));
        check(ByteOrder::Big, (7, 9), &[], (7, 9));
        let bytes = [1, 0, 0, 0, 0, 0, 0, 1];
        check(ByteOrder::Little, (0, 0), &bytes, (1, 0x0100_0001));
        check(ByteOrder::Big, (0, 0), &bytes, (0x0100_0000, 0x0100_0001));
        check(ByteOrder::Big, (1, 2), &[0; 16], (3 + 5, 5 + 8));
        let max = u32::MAX;
        check(ByteOrder::Little, (max, max), &[0xff; 8], (max - 2, max - 4));
    }

    #[test]
    fn agrees_with_the_definition() {
        let bytes: Vec<u8> =
            (0..4096_u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
        let from = Checksum { s0: 0xdead_beef, s1: 0xcafe_f00d };
        for order in [ByteOrder::Little, ByteOrder::Big] {
            for len in (0..256).step_by(8).chain([4088, 4096]) {
                let found = checksum(order, from, &bytes[..len]);
                assert_eq!(found, slow(order, from, &bytes[..len]));
                // In two goes it is the same.
                let middle = len / 16 * 8;
                let first = checksum(order, from, &bytes[..middle]);
                assert_eq!(checksum(order, first, &bytes[middle..len]), found);
            }
        }
    }

    #[test]
    fn a_page_adds_the_same_to_every_chain() {
        let mut bytes: Vec<u8> =
            (0..65536_u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
        for fill in [None, Some(0), Some(0xff)] {
            if let Some(fill) = fill {
                bytes.fill(fill);
            }
            for size in (9..=16).map(|bits| 1 << bits) {
                let (page_size, page) = (PageSize::new(size).unwrap(), &bytes[..size as usize]);
                for order in [ByteOrder::Little, ByteOrder::Big] {
                    let sum = PageSum::of(order, page_size, page);
                    for (s0, s1) in [(0, 0), (1, 0), (0, 1), (0xdead_beef, 0xcafe_f00d)] {
                        let from = Checksum { s0, s1 };
                        assert_eq!(sum.after(from), slow(order, from, page), "{size} {order:?}");
                    }
                }
            }
        }
    }

    #[test]
    fn misaligned() {
        for len in [1, 4, 7, 9, 4095] {
            let bytes = vec![0; len];
            let error = checked_checksum(ByteOrder::Big, Checksum::default(), &bytes).unwrap_err();
            assert_eq!(error.to_string(), format!("misaligned checksum byte slice: {len} bytes"));
        }
    }

    #[test]
    fn text() {
        let check = |s0: u32, s1: u32, text: &str| {
            let value = Checksum { s0, s1 };
            assert_eq!(value.to_string(), text);
            assert_eq!(text.parse::<Checksum>().unwrap(), value);
            let hex: String = value.to_bytes().iter().map(|byte| format!("{byte:02x}")).collect();
            assert_eq!(hex, text);
        };
        check(0, 0, "0000000000000000");
        check(1, 0, "0000000100000000");
        check(0x0b7d_e5c8, 0x611d_3603, "0b7de5c8611d3603");
        check(u32::MAX, u32::MAX, "ffffffffffffffff");
        for text in [
            "",
            "0",
            "000000000000000",
            "00000000000000000",
            "000000000000000A",
            "+000000000000000",
            "00000000 0000000",
            "\u{e9}00000000000000",
        ] {
            let error = text.parse::<Checksum>().unwrap_err().to_string();
            assert!(error.starts_with(&format!("invalid checksum {text:?}")), "{error}");
        }
    }
}
