//! One error type for the whole library: a kind, which says who must act, and a sentence, which
//! says what was tried, on what, and why it failed.
//!
//! The sentence grows from the inside out: each layer puts its own phrase and a colon in front
//! ("cannot open /a/b: permission denied"). The name of the SQL function is added by the SQL layer
//! alone. Kinds map to SQLite result codes in exactly one place, [`Error::sqlite_code`].

use std::fmt;
use std::io;
use std::sync::{Mutex, MutexGuard, PoisonError, TryLockError};

/// The result of everything here that can fail.
pub type Result<T> = std::result::Result<T, Error>;

/// Who must act on an error, or which condition it names.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ErrorKind {
    /// The caller: an argument, an option or the order of calls is wrong.
    Usage,
    /// Nobody: a lock is held elsewhere, trying again later may help.
    Busy,
    /// The operator: a file or a socket failed.
    Io,
    /// The operator: bytes on this machine are not what they must be.
    Corrupt,
    /// The other end of a connection broke the protocol, or left.
    Peer,
    /// The host's SQLite reported this (extended) result code.
    Host(i32),
    /// The work was interrupted or is being shut down.
    Stopped,
    /// The time allowed is over.
    Timeout,
    /// Doing it would destroy something, or is not allowed to this caller.
    Refused,
    /// This host, database or file system cannot do it.
    Unsupported,
    /// We: this should be impossible, please report it.
    Bug,
    /// What was asked for is not there: an object of an archive, a file.
    Missing,
    /// The database was closed while it was being worked on.
    DbClosed,
    /// The database has no generation yet.
    NoGeneration,
    /// The generation changed while a position in the old one was being used.
    GenerationChanged,
    /// An archive or a log holds no snapshot that would do.
    NoSnapshots,
    /// An archive or a log holds no WAL segment that would do.
    NoWalSegments,
    /// A replica's content is not what its position says.
    ChecksumMismatch,
}

/// A kind and a sentence.
#[derive(Clone, PartialEq, Eq)]
pub struct Error {
    kind: ErrorKind,
    message: String,
}

impl Error {
    /// An error of this kind that reads as `message`: lower case, no full stop.
    pub fn new(kind: ErrorKind, message: impl Into<String>) -> Self {
        Self { kind, message: message.into() }
    }

    /// Who must act.
    pub fn kind(&self) -> ErrorKind {
        self.kind
    }

    /// The same error, with "`what`: " in front of its sentence.
    #[must_use]
    pub fn context(self, what: impl fmt::Display) -> Self {
        Self { kind: self.kind, message: format!("{what}: {}", self.message) }
    }

    /// The caller's fault.
    pub fn usage(message: impl Into<String>) -> Self {
        Self::new(ErrorKind::Usage, message)
    }

    /// Bytes on this machine are damaged.
    pub fn corrupt(message: impl Into<String>) -> Self {
        Self::new(ErrorKind::Corrupt, message)
    }

    /// The other end of a connection is at fault.
    pub fn peer(message: impl Into<String>) -> Self {
        Self::new(ErrorKind::Peer, message)
    }

    /// Something that was asked for is not there.
    pub fn missing(message: impl Into<String>) -> Self {
        Self::new(ErrorKind::Missing, message)
    }

    /// Our own fault.
    pub fn bug(message: impl Into<String>) -> Self {
        Self::new(ErrorKind::Bug, message)
    }

    /// The database was closed.
    pub fn db_closed() -> Self {
        Self::new(ErrorKind::DbClosed, "database closed")
    }

    /// There is no generation yet.
    pub fn no_generation() -> Self {
        Self::new(ErrorKind::NoGeneration, "no generation available")
    }

    /// The generation changed under the caller.
    pub fn generation_changed() -> Self {
        Self::new(ErrorKind::GenerationChanged, "generation changed")
    }

    /// There is no snapshot.
    pub fn no_snapshots() -> Self {
        Self::new(ErrorKind::NoSnapshots, "no snapshots available")
    }

    /// There are no WAL segments.
    pub fn no_wal_segments() -> Self {
        Self::new(ErrorKind::NoWalSegments, "no wal segments available")
    }

    /// A replica is not what its position says.
    pub fn checksum_mismatch() -> Self {
        Self::new(ErrorKind::ChecksumMismatch, "invalid replica, checksum mismatch")
    }

    /// The SQLite result code a caller in SQL sees. Exhaustive, so that a new kind needs a
    /// decision.
    pub fn sqlite_code(&self) -> i32 {
        const ERROR: i32 = 1;
        const INTERNAL: i32 = 2;
        const BUSY: i32 = 5;
        const INTERRUPT: i32 = 9;
        const IOERR: i32 = 10;
        const CORRUPT: i32 = 11;
        match self.kind {
            ErrorKind::Host(code) => code,
            ErrorKind::Busy | ErrorKind::Timeout => BUSY,
            ErrorKind::Io => IOERR,
            ErrorKind::Corrupt | ErrorKind::ChecksumMismatch => CORRUPT,
            ErrorKind::Stopped => INTERRUPT,
            ErrorKind::Bug => INTERNAL,
            ErrorKind::Usage
            | ErrorKind::Peer
            | ErrorKind::Refused
            | ErrorKind::Unsupported
            | ErrorKind::Missing
            | ErrorKind::DbClosed
            | ErrorKind::NoGeneration
            | ErrorKind::GenerationChanged
            | ErrorKind::NoSnapshots
            | ErrorKind::NoWalSegments => ERROR,
        }
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}: {}", self.kind, self.message)
    }
}

impl std::error::Error for Error {}

/// An error of ours that travelled through a `Read` or `Write` comes back as it was; time-outs of
/// sockets (both spellings the system has for them) become [`ErrorKind::Timeout`], the rest `Io`.
impl From<io::Error> for Error {
    fn from(error: io::Error) -> Self {
        match error.downcast::<Error>() {
            Ok(ours) => ours,
            Err(error) => {
                let kind = match error.kind() {
                    io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => ErrorKind::Timeout,
                    _ => ErrorKind::Io,
                };
                Self::new(kind, error.to_string())
            }
        }
    }
}

/// For returning our errors from a `Read` or `Write` implementation.
impl From<Error> for io::Error {
    fn from(error: Error) -> Self {
        let kind = match error.kind {
            ErrorKind::Timeout => io::ErrorKind::TimedOut,
            ErrorKind::Corrupt | ErrorKind::ChecksumMismatch => io::ErrorKind::InvalidData,
            _ => io::ErrorKind::Other,
        };
        io::Error::new(kind, error)
    }
}

/// Adds a phrase to whatever error a call returned.
pub trait Context<T> {
    /// Puts "`what()`: " in front of the error's sentence; `what` runs only if there is an error.
    fn context(self, what: impl FnOnce() -> String) -> Result<T>;
}

impl<T, E: Into<Error>> Context<T> for std::result::Result<T, E> {
    fn context(self, what: impl FnOnce() -> String) -> Result<T> {
        self.map_err(|error| error.into().context(what()))
    }
}

/// Locks, whether or not a thread panicked while it held the lock: every critical section here
/// leaves its state valid between any two statements.
pub fn lock<T: ?Sized>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The same, unless somebody holds it.
pub fn try_lock<T: ?Sized>(mutex: &Mutex<T>) -> Option<MutexGuard<'_, T>> {
    match mutex.try_lock() {
        Ok(guard) => Some(guard),
        Err(TryLockError::Poisoned(poisoned)) => Some(poisoned.into_inner()),
        Err(TryLockError::WouldBlock) => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn context_reads_outside_in() {
        let inner: Result<()> = Err(Error::usage("is not a number"));
        let error = inner.context(|| "option \"n\"".into()).unwrap_err().context("litestream_x");
        assert_eq!(error.to_string(), "litestream_x: option \"n\": is not a number");
        assert_eq!(error.kind(), ErrorKind::Usage);
    }

    #[test]
    fn context_takes_foreign_errors_and_is_lazy() {
        let missing = std::fs::metadata("/no/such/file").map(|_| ());
        let error = missing.context(|| "cannot look at the file".into()).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Io);
        assert!(error.to_string().starts_with("cannot look at the file: "), "{error}");
        let fine: io::Result<u8> = Ok(7);
        assert_eq!(fine.context(|| unreachable!("no error, no text")).unwrap(), 7);
    }

    #[test]
    fn our_errors_survive_the_way_through_io() {
        for kind in [ErrorKind::Peer, ErrorKind::Timeout, ErrorKind::Corrupt, ErrorKind::Host(522)]
        {
            let error = Error::new(kind, "text");
            assert_eq!(Error::from(io::Error::from(error.clone())), error);
        }
    }

    #[test]
    fn io_kinds() {
        let check = |kind: io::ErrorKind, expected: ErrorKind| {
            assert_eq!(Error::from(io::Error::from(kind)).kind(), expected);
        };
        check(io::ErrorKind::WouldBlock, ErrorKind::Timeout);
        check(io::ErrorKind::TimedOut, ErrorKind::Timeout);
        check(io::ErrorKind::NotFound, ErrorKind::Io);
        check(io::ErrorKind::UnexpectedEof, ErrorKind::Io);
    }

    #[test]
    fn named_errors_and_their_codes() {
        let check = |error: Error, kind: ErrorKind, text: &str, code: i32| {
            assert_eq!(error.kind(), kind);
            assert_eq!(error.to_string(), text);
            assert_eq!(error.sqlite_code(), code, "{kind:?}");
        };
        check(Error::db_closed(), ErrorKind::DbClosed, "database closed", 1);
        check(Error::no_generation(), ErrorKind::NoGeneration, "no generation available", 1);
        check(Error::generation_changed(), ErrorKind::GenerationChanged, "generation changed", 1);
        check(Error::no_snapshots(), ErrorKind::NoSnapshots, "no snapshots available", 1);
        check(Error::no_wal_segments(), ErrorKind::NoWalSegments, "no wal segments available", 1);
        let mismatch = "invalid replica, checksum mismatch";
        check(Error::checksum_mismatch(), ErrorKind::ChecksumMismatch, mismatch, 11);
        check(Error::bug("x"), ErrorKind::Bug, "x", 2);
        check(Error::peer("x"), ErrorKind::Peer, "x", 1);
        check(Error::corrupt("x"), ErrorKind::Corrupt, "x", 11);
        check(Error::new(ErrorKind::Busy, "x"), ErrorKind::Busy, "x", 5);
        check(Error::new(ErrorKind::Timeout, "x"), ErrorKind::Timeout, "x", 5);
        check(Error::new(ErrorKind::Stopped, "x"), ErrorKind::Stopped, "x", 9);
        check(Error::new(ErrorKind::Host(522), "x"), ErrorKind::Host(522), "x", 522);
    }

    #[test]
    fn a_poisoned_mutex_still_opens() {
        let mutex = std::sync::Arc::new(Mutex::new(1));
        let other = std::sync::Arc::clone(&mutex);
        let panicked = std::thread::spawn(move || {
            let mut held = other.lock().unwrap();
            *held = 2;
            std::panic::resume_unwind(Box::new("poison"));
        });
        assert!(panicked.join().is_err());
        assert_eq!(*lock(&mutex), 2);
    }
}
