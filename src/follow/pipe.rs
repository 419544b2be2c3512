//! Bytes on their way from a thread that fetches to the one that applies: bounded, and ended by
//! either side or by whoever stops the follower.
//!
//! | thing   | changed by                        | while holding |
//! |---------|-----------------------------------|---------------|
//! | `bytes` | who fetches adds, who applies takes | `state`     |
//! | `end`   | whoever is first                  | `state`       |
//!
//! No lock here is held while a disk, a socket or SQLite is used.

use std::collections::VecDeque;
use std::io;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::shared::Cut;
use super::stream::{Body, Manners};
use crate::error::{Error, ErrorKind, Result, lock};

/// Bytes held at most: what is fetched while something is applied.
const PIPE_BYTES_MAX: usize = 4 << 20;
/// The longest piece of a payload.
const PIECE_BYTES_MAX: usize = 256 << 10;

#[derive(Default)]
struct State {
    /// Said before the first record.
    manners: Option<Manners>,
    bytes: VecDeque<u8>,
    /// Nothing is added any more: properly, or for this reason.
    end: Option<Option<Error>>,
    /// Nobody takes any more.
    cut: bool,
}

/// A bounded pipe.
pub struct Pipe {
    state: Mutex<State>,
    changed: Condvar,
    on_cut: Box<dyn Fn() + Send + Sync>,
}

impl Pipe {
    /// An empty one. `on_cut` must make what the fetching thread waits for end.
    pub fn new(on_cut: impl Fn() + Send + Sync + 'static) -> Arc<Pipe> {
        Arc::new(Pipe {
            state: Mutex::default(),
            changed: Condvar::new(),
            on_cut: Box::new(on_cut),
        })
    }

    /// Waits for what the source says before its first record.
    pub fn manners(&self) -> Result<Manners> {
        let mut state = lock(&self.state);
        loop {
            if state.cut {
                return Err(stopped());
            }
            if let Some(manners) = state.manners {
                return Ok(manners);
            }
            if let Some(end) = state.end.take() {
                return Err(end.unwrap_or_else(|| Error::bug("a stream without a beginning")));
            }
            state = self.wait(state, Duration::from_secs(3600));
        }
    }

    fn wait<'a>(&self, state: MutexGuard<'a, State>, limit: Duration) -> MutexGuard<'a, State> {
        let waited = self.changed.wait_timeout(state, limit);
        waited.map_or_else(|poisoned| PoisonError::into_inner(poisoned).0, |(state, _)| state)
    }
}

impl Cut for Pipe {
    /// Ends it for both sides.
    fn cut(&self) {
        lock(&self.state).cut = true;
        self.changed.notify_all();
        (self.on_cut)();
    }
}

fn stopped() -> Error {
    Error::new(ErrorKind::Stopped, "stopped")
}

/// The end that is read. Dropping it cuts the pipe.
pub struct Reading(pub Arc<Pipe>);

impl Body for Reading {
    fn read(&mut self, out: &mut [u8], wait: Duration) -> Result<Option<usize>> {
        let deadline = Instant::now() + wait;
        let mut state = lock(&self.0.state);
        loop {
            if state.cut {
                return Err(stopped());
            }
            if !state.bytes.is_empty() {
                // Copying from a slice is not reading from a device: it cannot fail.
                let read = io::Read::read(&mut state.bytes, out)?;
                drop(state);
                self.0.changed.notify_all();
                return Ok(Some(read));
            }
            match state.end.take() {
                Some(Some(error)) => {
                    state.end = Some(None);
                    return Err(error);
                }
                Some(None) => {
                    state.end = Some(None);
                    return Ok(Some(0));
                }
                None => {}
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(None);
            }
            state = self.0.wait(state, left);
        }
    }
}

impl Drop for Reading {
    fn drop(&mut self) {
        self.0.cut();
    }
}

/// The end that is written. Dropping it without [`Writing::finish`] says that the thread died.
pub struct Writing {
    pipe: Arc<Pipe>,
    done: bool,
}

impl Writing {
    /// There must be only one.
    pub fn new(pipe: &Arc<Pipe>) -> Writing {
        Writing { pipe: Arc::clone(pipe), done: false }
    }

    /// Says what is known before the first record.
    pub fn begin(&self, manners: Manners) {
        lock(&self.pipe.state).manners = Some(manners);
        self.pipe.changed.notify_all();
    }

    /// Nothing more will come, and why.
    pub fn finish(mut self, outcome: Result<()>) {
        self.end(outcome.err());
    }

    fn end(&mut self, error: Option<Error>) {
        self.done = true;
        lock(&self.pipe.state).end = Some(error);
        self.pipe.changed.notify_all();
    }

    /// Adds bytes, as soon as there is room for all of them.
    pub fn write(&self, bytes: &[u8]) -> Result<()> {
        let mut state = lock(&self.pipe.state);
        while !state.cut
            && !state.bytes.is_empty()
            && state.bytes.len() + bytes.len() > PIPE_BYTES_MAX
        {
            state = self.pipe.wait(state, Duration::from_secs(3600));
        }
        if state.cut {
            return Err(stopped());
        }
        state.bytes.extend(bytes);
        drop(state);
        self.pipe.changed.notify_all();
        Ok(())
    }

    /// Waits `pause`; fails once the pipe is cut.
    pub fn pause(&self, pause: Duration) -> Result<()> {
        let deadline = Instant::now() + pause;
        let mut state = lock(&self.pipe.state);
        loop {
            if state.cut {
                return Err(stopped());
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(());
            }
            state = self.pipe.wait(state, left);
        }
    }
}

impl Drop for Writing {
    fn drop(&mut self) {
        if !self.done {
            self.end(Some(Error::bug("the thread that fetches died; see litestream_log")));
        }
    }
}

/// Writes a payload in pieces (stream.rs says how).
pub struct Pieces<'a>(pub &'a Writing);

impl Pieces<'_> {
    /// Ends the payload.
    pub fn finish(self) -> Result<()> {
        self.0.write(&[0; 4])
    }
}

impl io::Write for Pieces<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let piece = bytes.get(..PIECE_BYTES_MAX).unwrap_or(bytes);
        if piece.is_empty() {
            return Ok(0);
        }
        let length = u32::try_from(piece.len()).map_err(|_| io::ErrorKind::InvalidInput)?;
        let mut record = Vec::with_capacity(4 + piece.len());
        record.extend_from_slice(&length.to_be_bytes());
        record.extend_from_slice(piece);
        self.0.write(&record)?;
        Ok(piece.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicUsize, Ordering};

    #[test]
    fn bytes_come_out_as_they_went_in_and_never_too_many_at_once() {
        let pipe = Pipe::new(|| {});
        let writing = Writing::new(&pipe);
        let mut reading = Reading(Arc::clone(&pipe));
        let sent = 3 * PIPE_BYTES_MAX;
        let writer = std::thread::spawn(move || {
            let part = vec![7; 100_000];
            let mut left = sent;
            while left > 0 {
                let piece = part.len().min(left);
                writing.write(&part[..piece]).unwrap();
                left -= piece;
            }
            writing.finish(Err(Error::corrupt("the end")));
        });
        let (mut out, mut got) = (vec![0; 70_000], 0);
        let error = loop {
            match reading.read(&mut out, Duration::from_secs(10)) {
                Ok(Some(read)) => got += read,
                Ok(None) => panic!("nothing came"),
                Err(error) => break error,
            }
            assert!(lock(&pipe.state).bytes.len() <= PIPE_BYTES_MAX);
        };
        assert_eq!((got, error.to_string().as_str()), (sent, "the end"));
        assert_eq!(reading.read(&mut out, Duration::ZERO).unwrap(), Some(0));
        writer.join().unwrap();
    }

    #[test]
    fn a_cut_ends_both_sides_at_once() {
        static CUTS: AtomicUsize = AtomicUsize::new(0);
        let pipe = Pipe::new(|| {
            CUTS.fetch_add(1, Ordering::Relaxed);
        });
        let writing = Writing::new(&pipe);
        let mut reading = Reading(Arc::clone(&pipe));
        assert_eq!(reading.read(&mut [0; 9], Duration::from_millis(1)).unwrap(), None);
        let writer = std::thread::spawn(move || {
            let full = vec![0; PIPE_BYTES_MAX];
            writing.write(&full).and_then(|()| writing.write(&full)).unwrap_err().kind()
        });
        std::thread::sleep(Duration::from_millis(20));
        pipe.cut();
        assert_eq!(writer.join().unwrap(), ErrorKind::Stopped);
        assert_eq!(
            reading.read(&mut [0; 9], Duration::ZERO).unwrap_err().kind(),
            ErrorKind::Stopped
        );
        drop(reading);
        assert_eq!(CUTS.load(Ordering::Relaxed), 2);
    }

    #[test]
    fn a_thread_that_dies_does_not_look_like_an_end() {
        let pipe = Pipe::new(|| {});
        drop(Writing::new(&pipe));
        assert_eq!(pipe.manners().unwrap_err().kind(), ErrorKind::Bug);
    }
}
