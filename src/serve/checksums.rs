//! `GET /checksums?path=P`: the checksum of every page of the database after one commit, by which a
//! replica proves that it holds the same.
//!
//! ```text
//! 200, Litestream-Page-Size: bytes, Litestream-Page-Count: N, Litestream-Pos: position
//! checksum of page 1, ... of page N       8 bytes each, big-endian: see pages/sums.rs
//! checksum of the checksums               8 bytes, big-endian
//! ```
//!
//! The database itself is read, not the log: in the state after some commit that is no older than
//! the request, frozen as by a reader (pages/frozen.rs). Writers go on; the WAL cannot restart
//! meanwhile and grows. So there is one such request at a time for each database, a pause after it
//! (turns.rs; 503 meanwhile), and one that takes longer than [`READING_MAX`] is broken off.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use super::chunk::Sink;
use super::session::Session;
use crate::error::{Context, Error, ErrorKind, Result};
use crate::fault;
use crate::pages::{BATCH_BYTES, Frozen, Total, page_sum};

/// The longest the WAL is kept from restarting.
const READING_MAX: Duration = Duration::from_secs(600);

impl Session {
    /// Answers with the checksums of all pages.
    pub(super) fn send_checksums(&mut self) -> Result<()> {
        let served = Arc::clone(&self.request.served);
        let _turn = match served.reading() {
            Ok(turn) => turn,
            Err(error) => return self.turn_away(error),
        };
        let (mut frozen, pos) = match served.freeze() {
            Ok(frozen) => frozen,
            Err(error) => return self.turn_away(error),
        };
        let head = self.head_with(&[
            ("Litestream-Page-Size", frozen.page_size().to_string()),
            ("Litestream-Page-Count", frozen.page_count().to_string()),
            ("Litestream-Pos", pos.to_string()),
        ]);
        let mut sink = Sink::new(&mut self.channel, self.request.chunked);
        sink.head(&head).context(|| "cannot begin to send".into())?;
        let sent = send_sums(&mut frozen, &mut sink, &self.stopping);
        self.channel.finish(std::net::Shutdown::Both);
        sent.map_err(|error| error.context("checksums of all pages"))
    }
}

fn send_sums(frozen: &mut Frozen, sink: &mut Sink<'_>, stopping: &AtomicBool) -> Result<()> {
    let deadline = Instant::now() + READING_MAX;
    let size = frozen.page_size();
    let batch = u32::try_from(BATCH_BYTES / size.bytes()).unwrap_or(1);
    let mut pages = vec![0; BATCH_BYTES];
    let mut total = Total::default();
    let mut out = Vec::new();
    let mut next = 1;
    while next <= frozen.page_count() {
        if stopping.load(Ordering::Acquire) || sink.has_left() {
            return Err(Error::new(ErrorKind::Stopped, "broken off"));
        }
        if Instant::now() >= deadline {
            let why = format!("not read by the follower within {} s", READING_MAX.as_secs());
            return Err(Error::new(ErrorKind::Timeout, why));
        }
        let count = batch.min(frozen.page_count() - next + 1);
        let bytes = usize::try_from(count).unwrap_or(0) * size.bytes();
        let part = pages.get_mut(..bytes).unwrap_or_default();
        frozen.read(next, part)?;
        out.clear();
        for (page_no, page) in (next..).zip(part.chunks_exact_mut(size.bytes())) {
            let sum = page_sum(page_no, page, size, 0);
            total.add(sum);
            out.extend_from_slice(&sum.to_be_bytes());
        }
        put_chunk(sink, &out)?;
        next += count;
    }
    put_chunk(sink, &total.get().to_be_bytes())?;
    sink.finish().context(|| "cannot send".into())
}

fn put_chunk(sink: &mut Sink<'_>, bytes: &[u8]) -> Result<()> {
    let len = u64::try_from(bytes.len()).unwrap_or(u64::MAX);
    let begun = fault::at("serve/checksums/send").and_then(|()| sink.begin(len));
    let sent = begun.and_then(|()| sink.put(bytes)).and_then(|()| sink.end());
    sent.context(|| "cannot send".into())
}
