//! What our archives put in front of each object: which piece of history it is, and when it was
//! made.
//!
//! A store's own times are those of the upload, in whole seconds and by another clock, and a copy
//! of the archive has new ones; a name can be given to the wrong bytes. So each object says both
//! itself, in an LZ4 *skippable frame* that every LZ4 reader passes over:
//!
//! | bytes  | part, big-endian but for the first two                                      |
//! |--------|-----------------------------------------------------------------------------|
//! | 4      | magic 0x184D2A5E, little-endian                                             |
//! | 4      | bytes that follow, little-endian                                            |
//! | 4      | `LSA1`                                                                      |
//! | 4      | 1 snapshot, 2 WAL segment                                                   |
//! | 8 8 8  | generation, index, offset                                                   |
//! | 8      | created at, in microseconds since 1970                                      |
//! | 4      | number of moments                                                           |
//! | 16 n   | moments: a WAL offset, and when all before it was committed (microseconds)  |
//! | 4      | xxHash32 of everything from `LSA1` on                                       |
//!
//! A moment's time is when capture saw the commit, a fraction of a millisecond after it. Objects of
//! other makers have no label.

use std::io::{self, Read};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use twox_hash::XxHash32;

use crate::error::{Error, Result};
use crate::pos::{Generation, Index, Offset, Pos};

const MAGIC: u32 = 0x184D_2A5E;
const TAG: &[u8; 4] = b"LSA1";
/// Bytes of the payload without moments.
const FIXED_BYTES: usize = 4 + 4 + 24 + 8 + 4 + 4;
/// One moment a millisecond is kept; a segment spans about a second, and rarely a minute.
const MOMENTS_MAX: usize = 1 << 16;

/// Which piece of history an object is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Piece {
    /// The database at the start of an index.
    Snapshot,
    /// WAL bytes.
    Segment,
}

/// Everything before `end` was committed at or before `at`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Moment {
    /// Offset in the WAL of the segment's index.
    pub end: Offset,
    /// To the microsecond.
    pub at: SystemTime,
}

/// What an object says of itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Label {
    /// Snapshot or segment.
    pub piece: Piece,
    /// Where its content starts.
    pub pos: Pos,
    /// Of a snapshot: the state it stands for is at least this old. Of a segment: its last moment.
    pub created_at: SystemTime,
    /// Of a segment, ascending; may be empty.
    pub moments: Vec<Moment>,
}

impl Label {
    /// A snapshot's.
    pub fn snapshot(pos: Pos, created_at: SystemTime) -> Label {
        Label { piece: Piece::Snapshot, pos, created_at, moments: Vec::new() }
    }

    /// A segment's. Of moments within one millisecond the last is kept.
    pub fn segment(pos: Pos, created_at: SystemTime, moments: &[Moment]) -> Label {
        let mut kept: Vec<Moment> = Vec::new();
        for moment in moments {
            let same =
                kept.last().is_some_and(|last| micros(last.at) / 1000 == micros(moment.at) / 1000);
            if same || kept.len() == MOMENTS_MAX {
                kept.pop();
            }
            kept.push(*moment);
        }
        Label { piece: Piece::Segment, pos, created_at, moments: kept }
    }

    /// The bytes to put in front of the object.
    pub fn encode(&self) -> Vec<u8> {
        let mut payload = Vec::with_capacity(FIXED_BYTES + 16 * self.moments.len());
        payload.extend_from_slice(TAG);
        let piece: u32 = match self.piece {
            Piece::Snapshot => 1,
            Piece::Segment => 2,
        };
        payload.extend_from_slice(&piece.to_be_bytes());
        let pos = self.pos;
        for word in [pos.generation.to_bits(), pos.index.get(), pos.offset.get()] {
            payload.extend_from_slice(&word.to_be_bytes());
        }
        payload.extend_from_slice(&micros(self.created_at).to_be_bytes());
        let count = u32::try_from(self.moments.len()).unwrap_or(u32::MAX);
        payload.extend_from_slice(&count.to_be_bytes());
        for moment in &self.moments {
            payload.extend_from_slice(&moment.end.get().to_be_bytes());
            payload.extend_from_slice(&micros(moment.at).to_be_bytes());
        }
        let hash = XxHash32::oneshot(0, &payload);
        payload.extend_from_slice(&hash.to_be_bytes());
        let size = u32::try_from(payload.len()).unwrap_or(u32::MAX);
        let mut out = Vec::with_capacity(8 + payload.len());
        out.extend_from_slice(&MAGIC.to_le_bytes());
        out.extend_from_slice(&size.to_le_bytes());
        out.extend_from_slice(&payload);
        out
    }

    /// Takes the label off the front of an object; gives back what of the object was read and is no
    /// label.
    pub fn take(object: &mut dyn Read) -> Result<(Option<Label>, Vec<u8>)> {
        let mut head = Vec::with_capacity(8);
        object.take(8).read_to_end(&mut head)?;
        let (Some(magic), Some(size)) = (word(&head, 0), word(&head, 4)) else {
            return Ok((None, head));
        };
        if u32::from_le_bytes(magic) != MAGIC {
            return Ok((None, head));
        }
        let size = u32::from_le_bytes(size) as usize;
        let sound = (FIXED_BYTES..=FIXED_BYTES + 16 * MOMENTS_MAX).contains(&size);
        if !sound || !(size - FIXED_BYTES).is_multiple_of(16) {
            return Err(damaged("has an impossible length"));
        }
        let mut payload = vec![0; size];
        object.read_exact(&mut payload).map_err(|error| match error.kind() {
            io::ErrorKind::UnexpectedEof => damaged("is cut short"),
            _ => Error::from(error),
        })?;
        decode(&payload).map(|label| (Some(label), Vec::new()))
    }
}

fn decode(payload: &[u8]) -> Result<Label> {
    let (body, hash) = payload.split_at(payload.len() - 4);
    if XxHash32::oneshot(0, body).to_be_bytes() != hash || !body.starts_with(TAG) {
        return Err(damaged("does not match its checksum"));
    }
    let mut words = body[4..].chunks_exact(4).filter_map(|bytes| word(bytes, 0));
    let mut next_u32 = || words.next().map(u32::from_be_bytes).unwrap_or_default();
    let piece = match next_u32() {
        1 => Piece::Snapshot,
        2 => Piece::Segment,
        _ => return Err(damaged("is of an unknown kind")),
    };
    let mut next_u64 = || u64::from(next_u32()) << 32 | u64::from(next_u32());
    let pos = Pos {
        generation: Generation::from_bits(next_u64()),
        index: Index::new(next_u64())?,
        offset: Offset::new(next_u64())?,
    };
    let created_at = time(next_u64());
    let count = word(body, FIXED_BYTES - 8).map_or(0, u32::from_be_bytes) as usize;
    let moments = body[FIXED_BYTES - 4..].chunks_exact(16).map(|bytes| {
        let number = |at| bytes.get(at..at + 8)?.try_into().ok().map(u64::from_be_bytes);
        let end = Offset::new(number(0).unwrap_or_default())?;
        Ok(Moment { end, at: time(number(8).unwrap_or_default()) })
    });
    let moments = moments.collect::<Result<Vec<_>>>()?;
    if moments.len() != count {
        return Err(damaged("does not hold the moments it announces"));
    }
    Ok(Label { piece, pos, created_at, moments })
}

fn word(bytes: &[u8], at: usize) -> Option<[u8; 4]> {
    bytes.get(at..at + 4)?.try_into().ok()
}

fn damaged(how: &str) -> Error {
    Error::corrupt(format!("its label {how}"))
}

fn micros(time: SystemTime) -> u64 {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_micros()).unwrap_or(u64::MAX)
}

fn time(micros: u64) -> SystemTime {
    UNIX_EPOCH.checked_add(Duration::from_micros(micros)).unwrap_or(UNIX_EPOCH)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> Label {
        let at = |us: u64| UNIX_EPOCH + Duration::from_micros(1_790_000_000_000_000 + us);
        let end = |offset| Offset::new(offset).unwrap();
        let pos = Pos::new(Generation::from_bits(0xabcd), Index::new(3).unwrap(), end(32));
        let moments = [
            Moment { end: end(4152), at: at(100) },
            Moment { end: end(8272), at: at(999) },
            Moment { end: end(12_392), at: at(1000) },
        ];
        Label::segment(pos, at(1000), &moments)
    }

    #[test]
    fn what_is_written_is_read() {
        let label = sample();
        assert_eq!(label.moments.len(), 2, "one a millisecond");
        assert_eq!(label.moments[0].end.get(), 8272);
        let mut bytes = label.encode();
        bytes.extend_from_slice(b"rest");
        let mut object = bytes.as_slice();
        assert_eq!(Label::take(&mut object).unwrap(), (Some(label.clone()), Vec::new()));
        assert_eq!(object, b"rest");
        let snapshot = Label::snapshot(label.pos, label.created_at);
        let taken = Label::take(&mut snapshot.encode().as_slice()).unwrap();
        assert_eq!(taken, (Some(snapshot), Vec::new()));
    }

    #[test]
    fn an_object_without_a_label_is_given_back() {
        for object in [&b""[..], b"abc", b"\x04\x22\x4d\x18 more of it"] {
            let mut rest = object;
            let (label, taken) = Label::take(&mut rest).unwrap();
            assert_eq!((label, [taken.as_slice(), rest].concat()), (None, object.to_vec()));
        }
    }

    #[test]
    fn every_damage_shows() {
        let whole = sample().encode();
        for cut in 8..whole.len() {
            assert!(Label::take(&mut &whole[..cut]).is_err(), "cut at {cut}");
        }
        for bit in 64..whole.len() * 8 {
            let mut bytes = whole.clone();
            bytes[bit / 8] ^= 1 << (bit % 8);
            assert!(Label::take(&mut bytes.as_slice()).is_err(), "bit {bit}");
        }
    }
}
