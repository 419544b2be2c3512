//! CRC-64 as LTX files use it: polynomial x^64 + x^4 + x^3 + x + 1, bits reflected, all ones before
//! and after ("CRC-64/GO-ISO").
//!
//! The polynomial has so few terms that no table is needed: times x^64 is, modulo it, times
//! (x^4 + x^3 + x + 1), a few shifts for eight bytes. Squared three times it has as few:
//! x^512 = x^32 + x^24 + x^8 + 1. So eight words are folded at once, each on its own.

/// A running checksum.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Crc64(u64);

/// Words that are folded side by side.
const LANES: usize = 8;
/// Their bytes.
const STRIDE: usize = 8 * LANES;

impl Crc64 {
    /// Of nothing.
    pub const fn new() -> Self {
        Self(!0)
    }

    /// Of everything so far.
    pub const fn value(self) -> u64 {
        !self.0
    }

    /// Goes on over `bytes`.
    pub fn update(&mut self, bytes: &[u8]) {
        let mut rest = bytes;
        if bytes.len() >= 2 * STRIDE {
            rest = self.update_wide(bytes);
        }
        let (words, tail) = rest.as_chunks::<8>();
        for word in words {
            self.0 = times_x64(self.0 ^ u64::from_le_bytes(*word));
        }
        for byte in tail {
            let with = self.0 ^ u64::from(*byte);
            let out = with << 56;
            self.0 = with >> 8 ^ out ^ out >> 1 ^ out >> 3 ^ out >> 4;
        }
    }

    /// All of `bytes` but what does not fill a stride; returns that.
    fn update_wide<'b>(&mut self, bytes: &'b [u8]) -> &'b [u8] {
        let (strides, rest) = bytes.as_chunks::<STRIDE>();
        let mut lanes = [0; LANES];
        let Some((first, others)) = strides.split_first() else { return rest };
        for (lane, word) in lanes.iter_mut().zip(first.as_chunks::<8>().0) {
            *lane = u64::from_le_bytes(*word);
        }
        lanes[0] ^= self.0;
        for stride in others {
            for (lane, word) in lanes.iter_mut().zip(stride.as_chunks::<8>().0) {
                *lane = times_x512(*lane) ^ u64::from_le_bytes(*word);
            }
        }
        self.0 = lanes.into_iter().fold(0, |state, lane| times_x64(state ^ lane));
        rest
    }
}

/// The lowest bits are the highest powers: what a shift to the right drops is to be multiplied by
/// x^64 once more.
fn times_x64(word: u64) -> u64 {
    let dropped = word << 63 ^ word << 61 ^ word << 60;
    by_terms(word ^ dropped)
}

fn times_x512(word: u64) -> u64 {
    let dropped = word << 56 ^ word << 40 ^ word << 32;
    word ^ word >> 8 ^ word >> 24 ^ word >> 32 ^ by_terms(dropped)
}

/// Times (x^4 + x^3 + x + 1), without what is dropped.
fn by_terms(word: u64) -> u64 {
    word ^ word >> 1 ^ word >> 3 ^ word >> 4
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A bit at a time, from the definition.
    fn slowly(bytes: &[u8]) -> u64 {
        let mut state = !0_u64;
        for byte in bytes {
            state ^= u64::from(*byte);
            for _ in 0..8 {
                let low = state & 1;
                state >>= 1;
                if low == 1 {
                    state ^= 0xd800_0000_0000_0000;
                }
            }
        }
        !state
    }

    #[test]
    fn the_published_check_value() {
        let mut crc = Crc64::new();
        crc.update(b"123456789");
        assert_eq!(crc.value(), 0xb909_56c7_75a4_1001);
        assert_eq!(Crc64::new().value(), 0);
    }

    #[test]
    fn every_length_and_any_parts() {
        let bytes: Vec<u8> =
            (0..1000_u32).map(|n| n.wrapping_mul(2_654_435_761).to_be_bytes()[0]).collect();
        for len in (0..400).chain([1000]) {
            let mut whole = Crc64::new();
            whole.update(&bytes[..len]);
            assert_eq!(whole.value(), slowly(&bytes[..len]), "{len}");
            let mut parts = Crc64::new();
            let (left, right) = bytes[..len].split_at(len / 3);
            parts.update(left);
            parts.update(right);
            assert_eq!(parts, whole, "{len}");
        }
    }
}
