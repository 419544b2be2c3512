//! Tail to files: segments are merged up to [`SEGMENT_BYTES_MAX`] and written once; old indexes go.
//!
//! A file survives the end of the process from its rename on, and a power loss from the next
//! durable flush on. What a power loss may take is found missing at start: every segment tells its
//! size, so the next one's offset shows a hole, and where a finished index ends is written in its
//! file `end`.

use std::collections::BTreeSet;
use std::fs::{File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::segment::{SEGMENT_BYTES_MAX, Segment, Stored};
use super::{Log, after, layout};
use crate::error::{Context, Error, Result, lock};
use crate::fault;
use crate::lz4;
use crate::pos::{Index, Pos};

/// How segments are packed into their LZ4 frames.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pack {
    /// Stored blocks: as fast as a copy, for when the writer is faster than compression.
    Stored,
    /// Compressed blocks.
    Compressed,
}

/// Files renamed but not yet synced, in order.
#[derive(Default)]
pub(super) struct Unsynced(Vec<PathBuf>);

impl Unsynced {
    pub(super) fn clear(&mut self) {
        self.0.clear();
    }
}

/// Makes files and their names survive a power loss. One that was deleted since needs it no more.
/// `settled` is the folder of which that was done last: it and those above it are not new.
fn sync_all(paths: &[PathBuf], root: &Path, settled: &mut PathBuf) -> Result<()> {
    let mut folders = BTreeSet::new();
    for path in paths {
        sync(path, root)?;
        folders.extend(path.parent());
    }
    for folder in folders {
        sync(folder, root)?;
        if folder != settled {
            let above = folder.ancestors().skip(1).take_while(|above| above.starts_with(root));
            above.into_iter().try_for_each(|above| sync(above, root))?;
            folder.clone_into(settled);
        }
    }
    Ok(())
}

/// A file, or a folder, of ours: a link that somebody put in its place is not followed. The log's
/// own folder may be one.
fn sync(path: &Path, root: &Path) -> Result<()> {
    let open = || match path == root {
        true => File::open(path),
        false => {
            let flags = libc::O_NOFOLLOW | libc::O_NONBLOCK;
            OpenOptions::new().read(true).custom_flags(flags).open(path)
        }
    };
    match fault::at("log/flush/open").and_then(|()| open()) {
        Ok(file) => fault::at("log/flush/sync")
            .and_then(|()| file.sync_all())
            .context(|| format!("cannot sync {}", path.display())),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(Error::from(error).context(format!("cannot open {}", path.display()))),
    }
}

impl Log {
    /// Writes everything captured so far into files. Without `durable` it survives the end of the
    /// process but perhaps not a power loss, until the next flush.
    pub fn flush(&self, pack: Pack, durable: bool) -> Result<()> {
        let mut unsynced = lock(&self.flusher);
        // What is captured meanwhile is the next flush's: a writer that is faster than this would
        // keep whoever flushes here for as long as it writes.
        let (until, mark) = {
            let state = lock(&self.state);
            (state.tip.map(|tip| tip.pos).unwrap_or_default(), state.mark)
        };
        while let Some(group) = self.next_group(until) {
            self.end_index_before(&group, &mut unsynced)?;
            let stored = self.write_group(&group, pack)?;
            unsynced.0.push(stored.path.clone());
            self.enter(&group, stored);
        }
        self.note_mark(mark)?;
        drop(unsynced);
        if durable { self.sync_files() } else { Ok(()) }
    }

    /// Syncs what was written so far. Whoever writes meanwhile does not wait for the disk; whoever
    /// syncs does, so that nobody is told of a sync that is still under way.
    fn sync_files(&self) -> Result<()> {
        let mut settled = lock(&self.syncing);
        let paths = std::mem::take(&mut lock(&self.flusher).0);
        let done = sync_all(&paths, self.root(), &mut settled);
        if done.is_err() {
            let later = std::mem::replace(&mut lock(&self.flusher).0, paths);
            lock(&self.flusher).0.extend(later);
        }
        done
    }

    /// How many files a power loss could take.
    pub fn unsynced_files(&self) -> usize {
        lock(&self.flusher).0.len()
    }

    /// The next segments of one index that make one file, of those before `until`.
    fn next_group(&self, until: Pos) -> Option<Vec<Arc<Segment>>> {
        let state = lock(&self.state);
        let first = state.tail.partition_point(|segment| !after(segment.end(), state.flushed));
        let mut group: Vec<Arc<Segment>> = Vec::new();
        let mut bytes = 0;
        for segment in state.tail.range(first..).take_while(|it| after(until, it.pos)) {
            let same_index = group.first().is_none_or(|head| head.pos.index == segment.pos.index);
            bytes += segment.raw.len();
            if !same_index || (bytes > SEGMENT_BYTES_MAX && !group.is_empty()) {
                break;
            }
            group.push(Arc::clone(segment));
        }
        (!group.is_empty()).then_some(group)
    }

    /// The first segment of an index says that the one before is finished.
    fn end_index_before(&self, group: &[Arc<Segment>], unsynced: &mut Unsynced) -> Result<()> {
        let flushed = self.flushed();
        let next = group.first().is_some_and(|head| head.pos.index > flushed.index);
        if next {
            let path = self.layout.end_of_index(flushed.generation, flushed.index);
            let end = format!("{}\n", flushed.offset);
            self.layout.create_dir(&self.layout.wal_index(flushed.generation, flushed.index))?;
            self.layout.write_once(&path, &[end.as_bytes()], false)?;
            unsynced.0.push(path);
        }
        Ok(())
    }

    fn write_group(&self, group: &[Arc<Segment>], pack: Pack) -> Result<Stored> {
        let head = group.first().ok_or_else(Error::no_wal_segments)?;
        let path = self.layout.segment(head.pos);
        self.layout.create_dir(&self.layout.wal_index(head.pos.generation, head.pos.index))?;
        let bytes: usize = group.iter().map(|part| part.raw.len()).sum();
        let raw_size = u64::try_from(bytes).unwrap_or(u64::MAX);
        let (file, tmp) = self.layout.create_tmp(&path)?;
        let file = fault::Tap::new(file, "log/segment/write");
        let mut encoder = match pack {
            Pack::Compressed => lz4::Encoder::new(file, Some(raw_size)),
            Pack::Stored => lz4::Encoder::stored(file, Some(raw_size)),
        }?;
        for part in group {
            encoder.write_all(&part.raw).context(|| format!("cannot write {}", tmp.display()))?;
        }
        let file = encoder.finish()?.into_inner();
        let size = file.metadata().context(|| format!("cannot measure {}", tmp.display()))?.len();
        layout::publish(&file, &tmp, &path, false)?;
        Ok(Stored { pos: head.pos, raw_size, size, created_at: self.now(), path })
    }

    /// Makes a written group part of the log, and lets go of tail that is safely behind.
    fn enter(&self, group: &[Arc<Segment>], stored: Stored) {
        let mut state = lock(&self.state);
        if let Some(last) = group.last()
            && state.tip.is_some_and(|tip| tip.pos.generation == stored.pos.generation)
        {
            state.flushed = last.end();
            let written: usize = group.iter().map(|segment| segment.raw.len()).sum();
            state.unflushed_bytes = state.unflushed_bytes.saturating_sub(written);
            state.disk.entry(stored.pos.index).or_default().push(stored);
        }
        let kept = state.tail_bytes_kept();
        while state.tail_bytes > kept {
            let flushed = state.flushed;
            let done = state.tail.front().is_some_and(|segment| !after(segment.end(), flushed));
            let Some(segment) = done.then(|| state.tail.pop_front()).flatten() else { break };
            state.tail_bytes -= segment.raw.len();
        }
    }

    /// Deletes the oldest indexes while the files of all segments exceed `bytes_max`: never the
    /// newest snapshot or anything after it, and nothing a follower still reads unless the log is
    /// four times over its bound (that follower starts again from the snapshot), and nothing an
    /// archive has a claim on.
    pub fn trim(&self, bytes_max: u64) -> Result<()> {
        // First out of sight, then off the disk: a session either has the file or is told. Whoever
        // writes segments meanwhile does not wait for the disk.
        let mut folders = Vec::new();
        {
            let mut unsynced = lock(&self.flusher);
            while let Some(index) = self.next_victim(bytes_max) {
                let gone = lock(&self.state).disk.remove(&index).unwrap_or_default();
                if let Some(first) = gone.first() {
                    let folder = self.layout.wal_index(first.pos.generation, index);
                    unsynced.0.retain(|path| !path.starts_with(&folder));
                    folders.push(folder);
                }
            }
        }
        let stale = self.take_stale_snapshots();
        // What cannot be removed keeps nothing else; the first of it is told.
        let folders = folders.iter().map(|folder| layout::remove_tree(folder));
        let snapshots = stale.iter().map(|path| {
            fault::at("log/snapshot/remove")
                .and_then(|()| std::fs::remove_file(path))
                .context(|| format!("cannot remove {}", path.display()))
        });
        folders.chain(snapshots).fold(Ok(()), Result::and)
    }

    fn next_victim(&self, bytes_max: u64) -> Option<Index> {
        let (oldest, gone) = {
            let state = lock(&self.state);
            let newest = *state.snapshots.keys().next_back()?;
            let bytes: u64 = state.disk.values().flatten().map(|stored| stored.size).sum();
            let oldest = *state.disk.keys().next()?;
            let leased = state.leases.values().min().is_some_and(|index| *index <= oldest);
            let spared = leased && bytes <= bytes_max.saturating_mul(4);
            (oldest, oldest < newest && bytes > bytes_max && !spared)
        };
        (gone && !self.is_claimed(oldest)).then_some(oldest)
    }

    /// Snapshots that cannot be used (their index is gone) or are not needed (a newer one is
    /// there).
    fn take_stale_snapshots(&self) -> Vec<PathBuf> {
        let mut state = lock(&self.state);
        let Some(newest) = state.snapshots.keys().next_back().copied() else { return Vec::new() };
        let stale = state.snapshots.range(..newest).map(|(_, old)| old.path.clone()).collect();
        state.snapshots.retain(|index, _| *index == newest);
        stale
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::sync::atomic::{AtomicBool, Ordering};

    use super::super::mark;
    use super::super::tests::{Folder, Writer, open, snapshot};
    use super::*;

    /// A writer faster than the files can be written must not keep whoever flushes for ever.
    #[test]
    fn a_flush_ends_where_the_log_ended_when_it_began() {
        let folder = Folder::new("until");
        let (log, _) = open(&folder);
        let mut writer = Writer::new(&log, 0xabc);
        writer.write(&log, &[1]);
        snapshot(&log, 0, &[5; 512]);
        log.flush(Pack::Stored, false).unwrap();
        let until = log.position().unwrap();
        assert!(log.next_group(until).is_none());
        writer.write(&log, &[2]);
        assert!(log.next_group(until).is_none(), "it came later");
        assert_eq!(log.flushed(), until);
        log.flush(Pack::Stored, false).unwrap();
        assert_eq!(log.flushed(), log.position().unwrap());
    }

    /// What the wal-index had counted was noted only if nothing was captured during the flush:
    /// beside a busy writer a kill -9 then found a note that was not about the files' end.
    #[test]
    fn the_count_at_the_end_of_the_files_is_noted_beside_a_busy_writer() {
        let folder = Folder::new("busy");
        let (log, _) = open(&folder);
        let mut writer = Writer::new(&log, 0xabc);
        let mut write = move |log: &Log, change| {
            let (segment, chain) = writer.segment(&[1], true);
            log.append_counted(segment, chain, Some(change)).unwrap();
        };
        write(&log, 1);
        snapshot(&log, 0, &[5; 512]);
        let over = AtomicBool::new(false);
        let unnoted = std::thread::scope(|scope| {
            scope.spawn(|| {
                for change in 2.. {
                    write(&log, change);
                    while log.unflushed_bytes() > 1 << 20 && !over.load(Ordering::Relaxed) {
                        std::thread::yield_now();
                    }
                    if over.load(Ordering::Relaxed) {
                        break;
                    }
                }
            });
            let unnoted = (0..20).find_map(|_| {
                while log.unflushed_bytes() == 0 {
                    std::thread::yield_now();
                }
                log.flush(Pack::Stored, false).unwrap();
                let end = log.flushed();
                mark::read(log.layout(), end).is_none().then_some(end)
            });
            over.store(true, Ordering::Relaxed);
            unnoted
        });
        assert_eq!(unnoted, None);
    }

    /// Deleting ended at the first that could not be: all after it stayed for ever.
    #[test]
    fn what_cannot_be_removed_keeps_nothing_else() {
        let folder = Folder::new("stuck");
        let (log, _) = open(&folder);
        let mut writer = Writer::new(&log, 0xabc);
        writer.write(&log, &[1]);
        snapshot(&log, 0, &[5; 512]);
        for _ in 0..3 {
            writer.restart();
            writer.write(&log, &[1, 2, 3]);
            log.flush(Pack::Stored, true).unwrap();
        }
        snapshot(&log, 3, &[6; 512]);
        let generation = log.position().unwrap().generation;
        let index = |number| log.layout().wal_index(generation, Index::new(number).unwrap());
        // No folder any more: not even root can remove it as one.
        fs::remove_dir_all(index(0)).unwrap();
        fs::write(index(0), "in the way").unwrap();
        let old = log
            .layout()
            .root()
            .join(format!("generations/{generation}/snapshots/0000000000000000.snapshot.lz4"));
        assert!(old.is_file() && index(1).is_dir() && index(2).is_dir());
        let error = log.trim(0).unwrap_err().to_string();
        assert!(error.contains(index(0).to_str().unwrap()), "{error}");
        assert!(!index(1).exists() && !index(2).exists() && !old.exists());
        assert!(index(3).is_dir());
    }

    /// Whoever may write to the log's folder could have any file opened by putting a link there.
    #[test]
    fn what_is_synced_is_no_link() {
        let folder = Folder::new("sync");
        let (log, _) = open(&folder);
        let mut writer = Writer::new(&log, 0xabc);
        writer.write(&log, &[1]);
        snapshot(&log, 0, &[5; 512]);
        writer.write(&log, &[2]);
        log.flush(Pack::Stored, false).unwrap();
        let at = log.layout().wal_index(log.position().unwrap().generation, Index::ZERO);
        let segment = fs::read_dir(&at).unwrap().flatten().map(|entry| entry.path()).max().unwrap();
        let elsewhere = log.layout().database().with_extension("precious");
        fs::rename(&segment, &elsewhere).unwrap();
        std::os::unix::fs::symlink(&elsewhere, &segment).unwrap();
        let error = log.flush(Pack::Stored, true).unwrap_err().to_string();
        assert!(error.contains(segment.to_str().unwrap()), "{error}");
    }
}
