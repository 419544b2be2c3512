//! The first snapshot: a database file made from nothing, page by page.
//!
//! ```text
//! EXCLUSIVE lock -> is it empty? -> signs `replica`, `filling` -> pages 2.. -> sync -> page 1
//!   -> sync -> unlock -> WAL_WRITE_LOCK, nobody wrote? -> page 1 again, as our first commit
//!   -> sign gone
//! ```
//!
//! Others get "database is locked" until it is complete, and never see a part: the WAL records that
//! make the snapshot exact go into the file too. Page 1 comes last, so a file with the sign
//! `filling` and without page 1's magic is a half-written one of ours, and is started over.

use std::path::{Path, PathBuf};

use super::apply::Applier;
use super::dir::ReplicaDir;
use super::frames::set_wal_mode;
use super::intents::UpstreamPos;
use crate::error::{Context, Error, ErrorKind, Result};
use crate::fault;
use crate::files::sync_folder_of;
use crate::header::{MAGIC, page_size_of};
use crate::host::file::RawFile;
use crate::wal::PageSize;

/// A database file being filled.
pub struct Image {
    path: PathBuf,
    vfs: String,
    dir: ReplicaDir,
    raw: RawFile,
    page_size: PageSize,
    first: Option<Box<[u8]>>,
    complete: bool,
    _filling: std::fs::File,
}

/// What a database file is, before anything is decided about it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Look {
    /// Bytes.
    pub size: u64,
    /// Whether it begins as a SQLite database does.
    pub has_magic: bool,
    /// Whether its header says WAL mode.
    pub is_wal: bool,
}

/// Looks at the file, and makes an empty one if there is none.
pub fn look(path: &Path, vfs: &str) -> Result<Look> {
    look_at(&RawFile::open(path, vfs)?)
}

fn look_at(raw: &RawFile) -> Result<Look> {
    let size = raw.size()?;
    let mut head = [0; MAGIC.len() + 4];
    let read = raw.read(&mut head, 0)?;
    let has_magic = read == head.len() && head.starts_with(&MAGIC);
    // Two bytes of page size, then the version that writes it and the one that reads it.
    Ok(Look { size, has_magic, is_wal: has_magic && head.ends_with(&[2, 2]) })
}

impl Image {
    /// Locks an empty (or half-written) file and takes it over for a replica of `upstream`.
    pub fn begin(
        path: &Path,
        vfs: &str,
        dir: &ReplicaDir,
        upstream: &str,
        page_size: PageSize,
    ) -> Result<Self> {
        let raw = RawFile::open(path, vfs)?;
        raw.begin_exclusive()
            .context(|| format!("cannot lock {} to write the first snapshot", path.display()))?;
        let found = look_at(&raw)?;
        if found.size > 0 && (found.has_magic || !dir.is_filling()?) {
            let text = format!("{} was empty and is not any more", path.display());
            return Err(Error::new(ErrorKind::Busy, text));
        }
        dir.create(path)?;
        dir.mark_replica(upstream, 0)?;
        let filling = dir.mark_filling()?;
        raw.truncate(0)?;
        remove_leftovers(path)?;
        // A WAL that came back would be replayed into the new database.
        sync_folder_of(path)?;
        Ok(Self {
            path: path.to_owned(),
            vfs: vfs.to_owned(),
            dir: dir.clone(),
            raw,
            page_size,
            first: None,
            complete: false,
            _filling: filling,
        })
    }

    /// Writes a page; the last one written under a number stays.
    pub fn write(&mut self, page_no: u32, page: &[u8]) -> Result<()> {
        if page_no == 1 {
            check_first(page, self.page_size)?;
            let mut page: Box<[u8]> = page.into();
            set_wal_mode(&mut page);
            self.first = Some(page);
            return Ok(());
        }
        self.raw.write(page, self.offset(page_no))
    }

    /// Completes a file of `page_count` pages: from now on it is a database.
    pub fn complete(mut self, page_count: u32) -> Result<Complete> {
        let first = self
            .first
            .take()
            .ok_or_else(|| Error::peer("the upstream's snapshot has no page 1"))?;
        let end = self.offset(page_count) + u64::from(self.page_size.get());
        if self.raw.size()? < end && page_count > 1 {
            self.raw.write(&vec![0; self.page_size.bytes()], self.offset(page_count))?;
        }
        self.raw.truncate(end)?;
        self.raw.sync()?;
        self.raw.write(&first, 0)?;
        self.raw.sync()?;
        self.complete = true;
        self.raw.rollback()?;
        let (path, vfs, dir) = (self.path.clone(), self.vfs.clone(), self.dir.clone());
        Ok(Complete { path, vfs, dir, first, page_count })
    }

    fn offset(&self, page_no: u32) -> u64 {
        u64::from(page_no.saturating_sub(1)) * u64::from(self.page_size.get())
    }
}

/// A file that was filled and has no commit of its own yet.
pub struct Complete {
    path: PathBuf,
    vfs: String,
    dir: ReplicaDir,
    first: Box<[u8]>,
    page_count: u32,
}

impl Complete {
    /// Its applier, with one commit done, at `upstream`.
    pub fn open(self, upstream: UpstreamPos) -> Result<Applier> {
        let mut applier = Applier::open(&self.path, &self.vfs, &self.dir)?;
        if applier.max_frame() != 0 {
            let text = format!("{} was written by somebody else", self.path.display());
            return Err(Error::new(ErrorKind::Busy, text));
        }
        applier.stage(1, &self.first, None)?;
        applier.commit(self.page_count, upstream)?;
        self.dir.unmark_filling()?;
        Ok(applier)
    }
}

/// One that was given up becomes an empty file again, so that others see no part of it. The lock
/// ends with the connection.
impl Drop for Image {
    fn drop(&mut self) {
        if !self.complete {
            // Whatever stays behind is recognised by the sign and started over.
            let _ = self.raw.truncate(0);
            let _ = self.raw.rollback();
        }
    }
}

/// Checks that a page can be page 1 of a database with this page size.
pub fn check_first(page: &[u8], page_size: PageSize) -> Result<()> {
    if page_size_of(page) != Some(page_size) {
        return Err(Error::peer("the upstream's page 1 is not that of its database"));
    }
    Ok(())
}

/// Removes the side files of a database that is gone: SQLite would replay them into the new one.
/// Only under the EXCLUSIVE lock of an empty file, when nobody can be using them.
fn remove_leftovers(path: &Path) -> Result<()> {
    for suffix in ["-journal", "-wal", "-shm"] {
        let mut name = path.as_os_str().to_owned();
        name.push(suffix);
        let name = PathBuf::from(name);
        match fault::at("follow/leftovers/remove").and_then(|()| std::fs::remove_file(&name)) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                return Err(error).context(|| format!("cannot remove {}", name.display()));
            }
            _ => {}
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn page_1_must_be_one() {
        let page = |size: [u8; 2]| {
            let mut page = vec![0; 512];
            page[..16].copy_from_slice(&MAGIC);
            page[16..18].copy_from_slice(&size);
            page
        };
        assert!(check_first(&page([2, 0]), PageSize::MIN).is_ok());
        assert!(check_first(&page([0, 1]), PageSize::MAX).is_ok());
        assert!(check_first(&page([16, 0]), PageSize::MIN).is_err());
        assert!(check_first(&page([0, 0]), PageSize::MIN).is_err());
        assert!(check_first(&[0; 512], PageSize::MIN).is_err());
        assert!(check_first(&[], PageSize::MIN).is_err());
    }
}
