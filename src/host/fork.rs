//! `fork` in a process that has threads of ours: what the child must not inherit.
//!
//! **Descriptors.** A child gets a copy of every one. A listening socket that lives on in it keeps
//! its port: connections are accepted there by nobody, and nobody else can listen. A connected one
//! hides from the peer that this process has died. So sockets are owned by a [`Private`], and the
//! child closes them before `fork` returns in it. (After `exec` they would be gone anyway.) Files
//! may stay: POSIX locks are not inherited, and closing one in the child takes none from the
//! parent.
//!
//! **Locks of SQLite.** A thread that exists in the parent only may be in the midst of an
//! allocation: the child's next call of SQLite, about any database, would wait for it for ever. So
//! whoever forks takes SQLite's global mutexes first, and parent and child give them back.
//!
//! | thing    | changed by                                   | while holding                   |
//! |----------|----------------------------------------------|---------------------------------|
//! | `MARKED` | owners, each the bit of a descriptor it owns | nothing: a bit has one owner    |
//! | `HELD`   | the thread that forks                        | all of [`ORDER`]                |
//!
//! In the child one thread runs, and may do only what a signal handler may: it unlocks, reads the
//! bits and calls `close`.

use std::ffi::c_int;
use std::ops::Deref;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd};
use std::sync::Once;
use std::sync::atomic::{AtomicBool, AtomicPtr, AtomicU64, Ordering};

use sqlite3ext_sys::sqlite3_mutex;

use super::api;

/// Descriptors with larger numbers are not looked after.
const DESCRIPTORS_MAX: usize = 1 << 16;

/// One bit for each descriptor a child is to close.
static MARKED: [AtomicU64; DESCRIPTORS_MAX / 64] =
    [const { AtomicU64::new(0) }; DESCRIPTORS_MAX / 64];

/// SQLite's static mutexes by their numbers, in an order that fits its own: what is taken while
/// another one is held comes later. Random numbers, the library, files (three), the page cache
/// (two), memory.
const ORDER: [c_int; 8] = [5, 2, 11, 12, 13, 6, 7, 3];

/// The mutexes of `ORDER`; NULL if there is none.
static MUTEXES: [AtomicPtr<sqlite3_mutex>; ORDER.len()] =
    [const { AtomicPtr::new(std::ptr::null_mut()) }; ORDER.len()];
static HELD: AtomicBool = AtomicBool::new(false);

/// Looks after every `fork` from now on. Called before there is a thread or a socket of ours.
pub fn watch() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        if let Ok(api) = api::api() {
            for (number, mutex) in ORDER.iter().zip(&MUTEXES) {
                // SAFETY: a static mutex is not made, only found; all numbers are older than any
                // host.
                mutex.store(unsafe { (api.mutex_alloc)(*number) }, Ordering::Relaxed);
            }
        }
        // SAFETY: the handlers live as long as the process: the library is never unloaded once a
        // load of it succeeded. The call fails only without memory; children then inherit all.
        let _outcome = unsafe {
            libc::pthread_atfork(Some(before), Some(after_in_parent), Some(after_in_child))
        };
    });
}

extern "C" fn before() {
    let Ok(api) = api::api() else { return };
    for mutex in &MUTEXES {
        // SAFETY: a mutex of the host's, or NULL, which does nothing. No code that holds one calls
        // `fork`.
        unsafe { (api.mutex_enter)(mutex.load(Ordering::Relaxed)) };
    }
    HELD.store(true, Ordering::Relaxed);
}

extern "C" fn after_in_parent() {
    let Ok(api) = api::api() else { return };
    if !HELD.swap(false, Ordering::Relaxed) {
        return; // the handlers were set while this fork was under way
    }
    for mutex in MUTEXES.iter().rev() {
        // SAFETY: taken by this thread in `before`; in the child it is the same thread.
        unsafe { (api.mutex_leave)(mutex.load(Ordering::Relaxed)) };
    }
}

extern "C" fn after_in_child() {
    after_in_parent();
    close_all();
}

/// A socket that stays in this process.
#[derive(Debug)]
pub struct Private<T: AsFd>(T);

impl<T: AsFd> Private<T> {
    /// Takes a socket over.
    pub fn new(socket: T) -> Self {
        watch();
        if let Some((word, bit)) = place(socket.as_fd().as_raw_fd()) {
            word.fetch_or(bit, Ordering::Relaxed);
        }
        Private(socket)
    }
}

impl<T: AsFd> Drop for Private<T> {
    /// Before the socket itself goes: its number may be somebody else's right after.
    fn drop(&mut self) {
        if let Some((word, bit)) = place(self.0.as_fd().as_raw_fd()) {
            word.fetch_and(!bit, Ordering::Relaxed);
        }
    }
}

impl<T: AsFd> Deref for Private<T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.0
    }
}

impl<T: AsFd> AsFd for Private<T> {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

fn place(descriptor: RawFd) -> Option<(&'static AtomicU64, u64)> {
    let number = usize::try_from(descriptor).ok()?;
    Some((MARKED.get(number / 64)?, 1 << (number % 64)))
}

/// The child's copies go.
fn close_all() {
    for (at, word) in MARKED.iter().enumerate() {
        let mut bits = word.swap(0, Ordering::Relaxed);
        while bits != 0 {
            let number = at * 64 + bits.trailing_zeros() as usize;
            bits &= bits - 1;
            if let Ok(descriptor) = RawFd::try_from(number) {
                // SAFETY: the child's copy of a socket whose owner exists in the parent only.
                unsafe { libc::close(descriptor) };
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::TcpListener;

    fn marked(descriptor: RawFd) -> bool {
        let (word, bit) = place(descriptor).unwrap();
        word.load(Ordering::Relaxed) & bit != 0
    }

    #[test]
    fn a_descriptor_is_marked_while_it_is_owned() {
        let socket = TcpListener::bind("127.0.0.1:0").unwrap();
        let number = socket.as_raw_fd();
        assert!(!marked(number));
        let owned = Private::new(socket);
        assert!(marked(number) && owned.local_addr().is_ok());
        // Another thread may get the number again at once, but not as a Private: nobody else here.
        drop(owned);
        assert!(!marked(number));
        assert!(place(-1).is_none());
    }
}
