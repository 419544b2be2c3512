//! What a follower finds when it opens a WAL: the lock, a valid header, and what that stands for.
//!
//! A WAL's state is its salts, its last committed frame and the checksum there; equal states are
//! equal content. Without a frame the salts tell alone:
//!
//! | salts in the wal-index | how that came to be                             | state          |
//! |------------------------|-------------------------------------------------|----------------|
//! | some                   | started over, or recovered with no frame valid  | these salts    |
//! | zeroes                 | recovered from a file with nothing but a header | the file's     |
//! | zeroes                 | recovered from an empty file                    | none: not ours |

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::index::WalIndex;
use super::intents::LocalState;
use crate::error::{Context, Error, ErrorKind, Result};
use crate::fault;
use crate::host::conn::Connection;
use crate::host::file::{Door, Mode, ShmLock};
use crate::wal::{Chain, WAL_HEADER_SIZE, WalHeader};
use crate::walindex::{IndexHeader, LOCK_WRITE};

/// How long to wait for a local writer to end its transaction when a follower begins.
const WRITE_LOCK_MAX: Duration = Duration::from_secs(2);

/// The header on file; none if it is cut short or is not one.
pub fn read_wal_header(wal: &File) -> Result<Option<WalHeader>> {
    let mut bytes = [0; WAL_HEADER_SIZE];
    match fault::at("follow/wal/look").and_then(|()| wal.read_exact_at(&mut bytes, 0)) {
        Ok(()) => Ok(WalHeader::decode(&bytes).ok()),
        Err(error) if error.kind() == std::io::ErrorKind::UnexpectedEof => Ok(None),
        Err(error) => Err(error).context(|| "cannot read the WAL".into()),
    }
}

/// What the WAL is, in the terms of an intent. Without frames, the salts tell: SQLite leaves them
/// zero after recovering a WAL that is nothing but a header, and only then the file's own count.
pub fn local_state(header: &IndexHeader, on_file: Option<&WalHeader>) -> Option<LocalState> {
    if header.max_frame > 0 {
        return Some(LocalState {
            salts: header.file_salts(),
            max_frame: header.max_frame,
            checksum: header.frame_checksum(),
        });
    }
    match header.file_salts() {
        [0, 0] => on_file.map(|header| LocalState::empty(header.salts)),
        salts => Some(LocalState::empty(salts)),
    }
}

/// The end of a WAL with frames, if header and wal-index agree.
pub fn published_chain(header: &IndexHeader, on_file: Option<&WalHeader>) -> Result<Chain> {
    let page_size = header.page_size()?;
    if on_file.map(|header| header.salts) != Some(header.file_salts()) {
        return Err(Error::corrupt("the WAL's header and the wal-index disagree"));
    }
    let (order, salts) = (header.order(), header.file_salts());
    Ok(Chain { order, page_size, salts, checksum: header.frame_checksum() })
}

/// Takes WAL_WRITE_LOCK and a valid header. A header that is not valid means that recovery is due,
/// which is SQLite's business and needs the lock.
pub fn take_write_lock(
    door: &Arc<Door>,
    index: &WalIndex,
    path: &Path,
    vfs: &str,
) -> Result<(ShmLock, IndexHeader)> {
    let deadline = Instant::now() + WRITE_LOCK_MAX;
    loop {
        let why = match door.try_lock(LOCK_WRITE, 1, Mode::Exclusive)? {
            Some(lock) => match index.gauge().header() {
                Ok(header) => return Ok((lock, header)),
                Err(error) if error.kind() == ErrorKind::Unsupported => return Err(error),
                Err(error) => {
                    drop(lock);
                    let connection = Connection::open(path, vfs, false)?;
                    connection.query_i64("SELECT count(*) FROM main.sqlite_master")?;
                    error
                }
            },
            None => Error::new(
                ErrorKind::Busy,
                format!(
                    "{} is being written, or followed, by another connection or process",
                    path.display()
                ),
            ),
        };
        if Instant::now() >= deadline {
            return Err(why);
        }
        std::thread::sleep(Duration::from_millis(10));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wal::{ByteOrder, Checksum, PageSize};
    use crate::walindex::{HEADER_SIZE, encode_page_size};

    fn index(max_frame: u32, salts: [u32; 2]) -> IndexHeader {
        let mut bytes = [0; HEADER_SIZE];
        bytes[..4].copy_from_slice(&crate::wal::WAL_VERSION.to_ne_bytes());
        let mut header = IndexHeader::decode(&bytes).unwrap_or_else(|_| {
            bytes[12] = 1;
            let sum = crate::wal::checksum(ByteOrder::NATIVE, Checksum::default(), &bytes[..40]);
            bytes[40..44].copy_from_slice(&sum.s0.to_ne_bytes());
            bytes[44..48].copy_from_slice(&sum.s1.to_ne_bytes());
            IndexHeader::decode(&bytes).unwrap()
        });
        header.max_frame = max_frame;
        header.set_file_salts(salts);
        header.page_size_raw = encode_page_size(PageSize::MIN);
        header.frame_checksum = [5, 6];
        header
    }

    fn file(salts: [u32; 2]) -> WalHeader {
        WalHeader::new(ByteOrder::Little, PageSize::MIN, 0, salts)
    }

    #[test]
    fn states() {
        let frames =
            LocalState { salts: [1, 2], max_frame: 9, checksum: Checksum { s0: 5, s1: 6 } };
        let check = |header: IndexHeader, on_file: Option<WalHeader>, state: Option<LocalState>| {
            assert_eq!(local_state(&header, on_file.as_ref()), state);
        };
        check(index(9, [1, 2]), Some(file([1, 2])), Some(frames));
        // Started over, and the new header is not on file yet: the old one proves nothing.
        check(index(0, [2, 7]), Some(file([1, 2])), Some(LocalState::empty([2, 7])));
        check(index(0, [0, 0]), Some(file([3, 4])), Some(LocalState::empty([3, 4])));
        check(index(0, [0, 0]), None, None);
    }

    #[test]
    fn a_wal_and_an_index_that_disagree() {
        assert!(published_chain(&index(9, [1, 2]), Some(&file([1, 2]))).is_ok());
        assert!(published_chain(&index(9, [1, 2]), Some(&file([1, 3]))).is_err());
        assert!(published_chain(&index(9, [1, 2]), None).is_err());
    }
}
