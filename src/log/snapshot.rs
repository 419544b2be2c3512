//! Snapshots in the log: the database file, page 1 first, as one LZ4 frame with its content size.
//!
//! A snapshot at an index may already hold pages from frames of that index; replaying the index
//! from offset 0 makes it exact. It is copied once per snapshot, and every follower is served from
//! the copy.

use std::fs::File;
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::SystemTime;

use super::layout::{self, Layout};
use super::segment::{FRAME_HEAD, content_size};
use crate::error::{Context, Error, ErrorKind, Result};
use crate::fault::{self, Tap};
use crate::files::read_beside;
use crate::info::SnapshotInfo;
use crate::lz4;
use crate::pos::{Generation, Index, Pos};

/// A finished snapshot.
#[derive(Clone, Debug)]
pub struct Snapshot {
    /// Generation, index, file size and age.
    pub info: SnapshotInfo,
    /// Bytes of the database file in it.
    pub raw_size: u64,
    /// The LZ4 frame.
    pub path: PathBuf,
    /// Its content was written, or read and found whole, by this process.
    checked: Arc<AtomicBool>,
}

impl Snapshot {
    /// Reads a snapshot that an earlier process left once to its end, before a follower gets it:
    /// one that is damaged would be refused by every follower for ever.
    pub(super) fn check(&self) -> Result<()> {
        if !self.checked.load(Ordering::Acquire) {
            let read = io::copy(&mut self.open_raw()?, &mut io::sink());
            let size = read.context(|| format!("cannot read snapshot {}", self.path.display()))?;
            if size != self.raw_size {
                let why = format!("snapshot {}: {size} bytes", self.path.display());
                return Err(Error::corrupt(why));
            }
            self.checked.store(true, Ordering::Release);
        }
        Ok(())
    }

    /// The position it stands for: offset 0 of its index.
    pub fn pos(&self) -> Pos {
        self.info.pos()
    }

    /// Bytes of the file.
    pub fn stored_size(&self) -> u64 {
        self.info.size
    }

    /// The LZ4 frame as stored.
    pub fn open_stored(&self) -> Result<File> {
        fault::at("log/snapshot/open")
            .and_then(|()| read_beside(&self.path))
            .context(|| format!("cannot open snapshot {}", self.path.display()))
    }

    /// The database file, decoded as it is read.
    pub fn open_raw(&self) -> Result<Box<dyn Read + Send>> {
        let file = Tap::new(self.open_stored()?, "log/snapshot/read");
        let file = io::BufReader::with_capacity(1 << 20, file);
        Ok(Box::new(lz4::Decoder::new(file, self.raw_size)))
    }

    /// Reads a snapshot's size and age from a file found at start.
    pub fn find(generation: Generation, index: Index, path: &Path) -> Result<Self> {
        let name = || format!("cannot read snapshot {}", path.display());
        let open = fault::at("log/snapshot/open").and_then(|()| read_beside(path));
        let mut file = open.context(name)?;
        let meta = file.metadata().context(name)?;
        let mut head = [0; FRAME_HEAD];
        fault::at("log/snapshot/read").and_then(|()| file.read_exact(&mut head)).context(name)?;
        let info = SnapshotInfo {
            generation,
            index,
            size: meta.len(),
            created_at: meta.modified().context(name)?,
        };
        let raw_size = content_size(&head).ok_or_else(|| {
            Error::new(ErrorKind::Corrupt, "the LZ4 frame does not say its size").context(name())
        })?;
        let checked = Arc::new(AtomicBool::new(false));
        Ok(Snapshot { info, raw_size, path: path.to_owned(), checked })
    }
}

/// Written bytes of a snapshot are brought to the disk this often: a device too slow for its size
/// shows as many short waits, and the sync at the end is one of them.
const SYNC_EVERY: u64 = 64 << 20;

/// A `.tmp` file: gone if the snapshot does not come about, so that tries that fail for lack of
/// space do not take what is left of it.
struct Tmp(PathBuf);

impl Drop for Tmp {
    fn drop(&mut self) {
        // After the rename there is nothing of that name.
        let _gone_or_left_to_the_next_start =
            fault::at("log/tmp/remove").and_then(|()| std::fs::remove_file(&self.0));
    }
}

/// Takes a snapshot's pages in order.
pub struct SnapshotWriter {
    encoder: lz4::Encoder<Tap<File>>,
    file: File,
    unsynced: u64,
    layout: Layout,
    tmp: Tmp,
    path: PathBuf,
    raw_size: u64,
    written: u64,
    generation: Generation,
    index: Index,
    created_at: SystemTime,
}

impl SnapshotWriter {
    pub(super) fn create(
        layout: &Layout,
        generation: Generation,
        index: Index,
        raw_size: u64,
        created_at: SystemTime,
    ) -> Result<Self> {
        layout.create_dir(&layout.snapshots(generation))?;
        let path = layout.snapshot(generation, index);
        let (file, tmp) = layout.create_tmp(&path)?;
        let tmp = Tmp(tmp);
        let same = file.try_clone().context(|| format!("cannot write {}", tmp.0.display()))?;
        Ok(SnapshotWriter {
            encoder: lz4::Encoder::new(Tap::new(same, "log/snapshot/write"), Some(raw_size))?,
            file,
            unsynced: 0,
            layout: layout.clone(),
            tmp,
            path,
            raw_size,
            written: 0,
            generation,
            index,
            created_at,
        })
    }

    /// The next bytes of the database file.
    pub fn write(&mut self, bytes: &[u8]) -> Result<()> {
        let len = u64::try_from(bytes.len()).unwrap_or(u64::MAX);
        self.written += len;
        self.unsynced += len;
        let name = || format!("cannot write snapshot {}", self.tmp.0.display());
        self.encoder.write_all(bytes).context(name)?;
        if self.unsynced >= SYNC_EVERY {
            self.unsynced = 0;
            fault::at("log/snapshot/sync").and_then(|()| self.file.sync_data()).context(name)?;
        }
        Ok(())
    }

    /// Ends the frame, syncs the file and gives it its name.
    pub(super) fn finish(self) -> Result<Snapshot> {
        let name = self.tmp.0.display().to_string();
        if self.written != self.raw_size {
            let why = format!("snapshot {name}: {} of {} bytes", self.written, self.raw_size);
            return Err(Error::new(ErrorKind::Bug, why));
        }
        let finished = self.encoder.finish();
        let file = finished.map_err(|error| error.context(format!("cannot finish {name}")))?;
        let file = file.into_inner();
        // Its age is the moment the copy began, and it must still be so after a restart.
        file.set_modified(self.created_at).context(|| format!("cannot date {name}"))?;
        let size = file.metadata().context(|| format!("cannot measure {name}"))?.len();
        layout::publish(&file, &self.tmp.0, &self.path, true)?;
        self.layout.sync_names(&self.layout.snapshots(self.generation))?;
        let info = SnapshotInfo {
            generation: self.generation,
            index: self.index,
            size,
            created_at: self.created_at,
        };
        let checked = Arc::new(AtomicBool::new(true));
        Ok(Snapshot { info, raw_size: self.raw_size, path: self.path.clone(), checked })
    }
}
