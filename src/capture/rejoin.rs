//! A WAL that started over while nobody captured it: its history goes on if nothing is missing.
//!
//! Of the WAL before, what was committed last may be in the file still, behind what the new one has
//! written so far. All of this must hold, or it is a new generation:
//!
//! | what                                                                | so                     |
//! |---------------------------------------------------------------------|------------------------|
//! | the file has our last frame, of our salts and checksum              | the new WAL has not    |
//! |                                                                     | reached what follows it|
//! | the new salt-1 is ours plus 1                                       | it started over once   |
//! | the log's end, and the wal-index's count of commits there, are known|                        |
//! | commits since, by that count = commits of our chain after our last  | all are in these two,  |
//! | frame + commits in the new WAL                                      | and nothing else is    |
//!
//! Salts alone would do for most, but not for a commit that its writer did not live to publish:
//! its frames look like any other's, and the count does not have it. A recovery of the wal-index
//! starts the count anew: then it is too small for what the file shows.
//!
//! The caller holds a read slot, so the WAL cannot start over again meanwhile; writers go on, and
//! what they overwrite breaks the chain.

use std::fs::File;
use std::os::unix::fs::FileExt;

use super::Shared;
use super::pin::Pin;
use crate::error::{Context, Error, Result};
use crate::fault;
use crate::host::file::Door;
use crate::log::{SEGMENT_BYTES_MAX, Segment, Tip};
use crate::registry::{self, Level};
use crate::wal::{
    self, Chain, FrameHeader, WAL_FRAME_HEADER_SIZE, WAL_HEADER_SIZE, WalHeader, wal_size,
};
use crate::walindex::IndexHeader;

/// More than this is not read back: it has to be in memory at once.
const BYTES_MAX: usize = 64 << 20;

/// Brings what is left of the WAL before into the log, if that proves that nothing is missing. The
/// log's new end; the WAL there is now follows it.
pub(super) fn rejoin(shared: &Shared, door: &Door, pin: &Pin, tip: Tip) -> Result<Option<Tip>> {
    let (Some(ours), Some(header)) = (tip.chain, pin.view().header()) else { return Ok(None) };
    let Some(change) = shared.log.change_at(tip.pos) else { return Ok(None) };
    let [salt, _] = header.file_salts();
    if salt != ours.salts[0].wrapping_add(1) || ours.page_size != door.page_size() {
        return Ok(None);
    }
    let wal = fault::at("capture/wal/prove")
        .and_then(|()| File::open(door.wal_path()))
        .context(|| format!("cannot open {}", door.wal_path().display()))?;
    let since = header.change.wrapping_sub(change);
    let end = tip.pos.offset.get();
    if !is_there(&wal, ours, end) {
        return Ok(None);
    }
    let Some(new) = commits_of(&wal, &header, ours) else { return Ok(None) };
    let Some((raw, commits)) = tail(&wal, ours, end)? else { return Ok(None) };
    if u64::from(since) != u64::from(new) + u64::from(commits) {
        return Ok(None);
    }
    let at_end = header.change.wrapping_sub(new);
    let tip = append(shared, tip, ours, &raw, at_end)?;
    let text = format!(
        "the WAL was restarted while nobody captured it; {commits} commits of its end were there"
    );
    registry::log(Level::Info, &shared.config.path, &text);
    Ok(Some(tip))
}

/// Whether the frame that ends at `end` is the last of ours.
fn is_there(wal: &File, ours: Chain, end: u64) -> bool {
    let frame_size = u64::try_from(ours.page_size.frame_size()).unwrap_or(u64::MAX);
    let mut bytes = [0u8; WAL_FRAME_HEADER_SIZE];
    let at = end.checked_sub(frame_size).filter(|at| *at >= wal_size(ours.page_size, 0));
    let Some(at) = at else { return false };
    if wal.read_exact_at(&mut bytes, at).is_err() {
        return false;
    }
    let frame = FrameHeader::decode(&bytes);
    frame.salts == ours.salts && frame.checksum == ours.checksum
}

/// How many commits the new WAL has, all of it proved; `None` if it is not.
fn commits_of(wal: &File, header: &IndexHeader, ours: Chain) -> Option<u32> {
    if header.max_frame == 0 {
        return Some(0); // its header may not be written yet
    }
    let mut bytes = [0u8; WAL_HEADER_SIZE];
    wal.read_exact_at(&mut bytes, 0).ok()?;
    let file = WalHeader::decode(&bytes).ok()?;
    if file.salts != header.file_salts() || file.page_size != ours.page_size {
        return None;
    }
    let (mut chain, mut left, mut commits) = (Chain::start(&file), header.max_frame, 0);
    let frame_size = ours.page_size.frame_size();
    let room = u32::try_from(SEGMENT_BYTES_MAX / frame_size).unwrap_or(1);
    let mut at = wal_size(ours.page_size, 0);
    while left > 0 {
        let frames = left.min(room);
        let mut raw = vec![0; frame_size * usize::try_from(frames).ok()?];
        wal.read_exact_at(&mut raw, at).ok()?;
        let scan = wal::scan(chain, &raw);
        if scan.frames != frames {
            return None;
        }
        chain = scan.end;
        commits += scan.commits;
        at += u64::try_from(raw.len()).ok()?;
        left -= frames;
    }
    (chain.checksum == header.frame_checksum()).then_some(commits)
}

/// What continues our chain behind `end`, up to its last commit, and how many commits that has.
fn tail(wal: &File, ours: Chain, end: u64) -> Result<Option<(Vec<u8>, u32)>> {
    let size = wal.metadata().context(|| "cannot measure the WAL".into())?.len();
    let behind = usize::try_from(size.saturating_sub(end)).unwrap_or(usize::MAX);
    // What is there of older WALs may be more than we would ever keep: it is cut by the chain.
    let mut raw = vec![0; behind.min(BYTES_MAX)];
    if wal.read_exact_at(&mut raw, end).is_err() {
        return Ok(None);
    }
    let scan = wal::scan(ours, &raw);
    let frame_size = ours.page_size.frame_size();
    let frames = usize::try_from(scan.frames).unwrap_or(usize::MAX);
    if behind > BYTES_MAX && (frames + 1).saturating_mul(frame_size) > BYTES_MAX {
        return Ok(None);
    }
    raw.truncate(frame_size * usize::try_from(scan.committed_frames).unwrap_or(0));
    Ok(Some((raw, scan.commits)))
}

/// Appends whole commits to the log, in segments. `change` is the wal-index's count at their end.
fn append(
    shared: &Shared,
    mut tip: Tip,
    mut chain: Chain,
    mut raw: &[u8],
    change: u32,
) -> Result<Tip> {
    let frame_size = chain.page_size.frame_size();
    let room = SEGMENT_BYTES_MAX / frame_size * frame_size;
    while !raw.is_empty() {
        let scan = wal::scan(chain, raw.get(..room.min(raw.len())).unwrap_or_default());
        let (taken, end, commit) = match scan.committed_frames {
            0 => (scan.frames, scan.end, false),
            frames => (frames, scan.committed, true),
        };
        if taken == 0 {
            return Err(Error::bug("frames that were proved do not continue the WAL"));
        }
        let (part, rest) = raw.split_at(frame_size * usize::try_from(taken).unwrap_or(0));
        let segment = Segment::new(tip.pos, part.to_vec(), commit, shared.log.now());
        tip = Tip { pos: segment.end(), chain: Some(end) };
        shared.log.append_counted(segment, end, rest.is_empty().then_some(change))?;
        (chain, raw) = (end, rest);
    }
    Ok(tip)
}
