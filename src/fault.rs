//! Faults on purpose: every file, socket and SQLite call of ours has a name, and a test may make
//! any of them fail.
//!
//! ```text
//! fault::at("log/file/sync")?;          before the operation it names
//! fault::write(POINT, bytes, write)     a write, of which a fault may let half pass
//! fault::Tap::new(file, POINT)          every read and every write of a stream
//! ```
//!
//! A name is `module/thing/operation`, a literal at the place that has it. All of this is there
//! only with the cargo feature `faults`, which no release has: without it every call is nothing,
//! and the built library holds none of the names (`tests/built_library.rs`).
//!
//! What fails is said by `litestream_fault(PLAN)`, or before the start by `LITESTREAM_FAULT=PLAN`
//! in the environment, PLAN being a JSON object:
//!
//! | key    | means                                                                             |
//! |--------|-----------------------------------------------------------------------------------|
//! | point  | operations of this name; with `*` at the end, of all that begin so; all without   |
//! | nth    | the how manyth of them since the plan was made; 0: none, they are counted         |
//! | sticky | that one and all that follow, until another plan comes                            |
//! | kind   | `eio`, `enospc`, `reset`: the error; `short`: half of a write, then `enospc`;     |
//! |        | `kill`: SIGKILL; `hang`: waits, then goes on                                      |
//! | without| names, with spaces between: these fail every time, and are not counted           |
//! | ms     | how long `hang` waits, if no other plan ends it before                            |
//!
//! The answer tells what was met since the plan before: how many, which failed first, and how often
//! each name.

use std::io::{self, Read, Write};

#[cfg(feature = "faults")]
mod armed;

#[cfg(feature = "faults")]
pub use armed::{arm, at, write};

/// The operation named `point` is about to happen.
#[cfg(not(feature = "faults"))]
#[inline(always)]
pub fn at(_point: &'static str) -> io::Result<()> {
    Ok(())
}

/// Writes `bytes` by `write`, which writes all of what it gets.
#[cfg(not(feature = "faults"))]
#[inline(always)]
pub fn write(
    _point: &'static str,
    bytes: &[u8],
    write: impl FnOnce(&[u8]) -> io::Result<()>,
) -> io::Result<()> {
    write(bytes)
}

/// A reader or writer whose every call is the operation of one name.
#[derive(Debug)]
pub struct Tap<T> {
    inner: T,
    #[cfg(feature = "faults")]
    point: &'static str,
}

impl<T> Tap<T> {
    /// `inner`, under this name.
    #[inline(always)]
    pub fn new(inner: T, _point: &'static str) -> Tap<T> {
        Tap {
            inner,
            #[cfg(feature = "faults")]
            point: _point,
        }
    }

    /// What is inside.
    pub fn get_ref(&self) -> &T {
        &self.inner
    }

    /// The same, for good.
    pub fn into_inner(self) -> T {
        self.inner
    }
}

#[cfg(not(feature = "faults"))]
impl<T: Read> Read for Tap<T> {
    #[inline(always)]
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        self.inner.read(out)
    }
}

#[cfg(feature = "faults")]
impl<T: Read> Read for Tap<T> {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        at(self.point)?;
        self.inner.read(out)
    }
}

#[cfg(not(feature = "faults"))]
impl<T: Write> Write for Tap<T> {
    #[inline(always)]
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.inner.write(bytes)
    }

    #[inline(always)]
    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}

#[cfg(feature = "faults")]
impl<T: Write> Write for Tap<T> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let inner = &mut self.inner;
        write(self.point, bytes, |part| inner.write_all(part))?;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}
