//! The few things asked of the operating system directly: signals, file locks, the process's
//! identity.

use std::ffi::{CStr, CString};
use std::fs::File;
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::time::Duration;

use rustix::fs::{FlockOperation, fcntl_lock};
use rustix::io::Errno;
use rustix::process::{Flock, FlockType, PidfdFlags, fcntl_getlk, pidfd_open};

use crate::error::{Error, ErrorKind, Result};
use crate::fault;

/// Signals a fault raises in the faulting thread. Blocking them would only take the host's own
/// crash handler away.
const FAULTS: [libc::c_int; 7] = [
    libc::SIGABRT,
    libc::SIGBUS,
    libc::SIGFPE,
    libc::SIGILL,
    libc::SIGSEGV,
    libc::SIGSYS,
    libc::SIGTRAP,
];

/// Blocks every signal but the faults in the calling thread, so that the host's signals are handled
/// by the host's threads. A background thread calls it first thing.
pub fn block_signals() {
    set_mask(&all_but_faults());
}

/// Runs `body` with signals blocked and restores the mask after. A thread started inside inherits
/// the block, so it never sees a signal, not even before its first line.
pub fn with_signals_blocked<T>(body: impl FnOnce() -> T) -> T {
    struct Restore(libc::sigset_t);
    impl Drop for Restore {
        fn drop(&mut self) {
            set_mask(&self.0);
        }
    }
    let _restore = Restore(set_mask(&all_but_faults()));
    body()
}

/// Time since some moment before the process began, by a clock that nobody sets and that, unlike
/// [`std::time::Instant`], goes on while the machine is suspended.
pub fn since_boot() -> Duration {
    #[cfg(target_os = "linux")]
    const CLOCK: libc::clockid_t = libc::CLOCK_BOOTTIME;
    #[cfg(not(target_os = "linux"))]
    const CLOCK: libc::clockid_t = libc::CLOCK_MONOTONIC;
    let mut now = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: the pointer is good; on an error nothing is written.
    unsafe { libc::clock_gettime(CLOCK, &raw mut now) };
    let seconds = u64::try_from(now.tv_sec).unwrap_or(0);
    Duration::new(seconds, u32::try_from(now.tv_nsec).unwrap_or(0))
}

fn all_but_faults() -> libc::sigset_t {
    let mut set = MaybeUninit::<libc::sigset_t>::zeroed();
    // SAFETY: the pointer is good; the call initializes the whole set.
    unsafe { libc::sigfillset(set.as_mut_ptr()) };
    // SAFETY: initialized above (and all zeroes is a valid set anyway).
    let mut set = unsafe { set.assume_init() };
    for fault in FAULTS {
        // SAFETY: an initialized set and a valid signal number.
        unsafe { libc::sigdelset(&raw mut set, fault) };
    }
    set
}

/// Sets the thread's mask and returns the one before.
fn set_mask(mask: &libc::sigset_t) -> libc::sigset_t {
    let mut before = MaybeUninit::<libc::sigset_t>::zeroed();
    // SAFETY: both sets are good. The call fails only for an unknown verb.
    unsafe { libc::pthread_sigmask(libc::SIG_SETMASK, mask, before.as_mut_ptr()) };
    // SAFETY: written by the call; all zeroes (no signal blocked) would be valid as well.
    unsafe { before.assume_init() }
}

/// This process's id; differs in the child after `fork`.
pub fn pid() -> u32 {
    std::process::id()
}

/// Tries to take a POSIX write lock on the whole of `file`, without waiting; false if another
/// process has it. The lock ends with the process, and with the close of *any* descriptor this
/// process has of the file. A child of `fork` does not inherit it.
pub fn lock_file(file: &File) -> Result<bool> {
    fault::at("host/lock-file").map_err(|error| Error::from(error).context("lock a file"))?;
    match fcntl_lock(file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(true),
        Err(Errno::AGAIN | Errno::ACCESS) => Ok(false),
        Err(errno) => {
            Err(Error::new(ErrorKind::Io, format!("lock a file: {}", std::io::Error::from(errno))))
        }
    }
}

/// The process that keeps [`lock_file`] from succeeding: readable once it has ended. `None` if
/// there is none by now, or it cannot be told, as of one in another container.
pub fn lock_holder(file: &File) -> Option<OwnedFd> {
    let wanted = Flock::from(FlockType::WriteLock);
    let held = fcntl_getlk(file, &wanted).ok().flatten()?;
    // It may have ended meanwhile and its number be another's: whoever waits asks again at times.
    pidfd_open(held.pid?, PidfdFlags::empty()).ok()
}

/// Asks the system to bring what was written to a part of `file`, in bytes, to the disk soon,
/// without waiting for it: a hint, that proves nothing.
pub fn start_writeback(file: &File, offset: u64, len: u64) {
    #[cfg(target_os = "linux")]
    if let (Ok(offset), Ok(len)) = (i64::try_from(offset), i64::try_from(len)) {
        let file = std::os::fd::AsRawFd::as_raw_fd(file);
        // SAFETY: an open descriptor and numbers.
        unsafe { libc::sync_file_range(file, offset, len, libc::SYNC_FILE_RANGE_WRITE) };
    }
    #[cfg(not(target_os = "linux"))]
    let _unknown_there = (file, offset, len);
}

/// Keeps this library mapped for the life of the process, whatever the host does with it.
pub(super) fn pin_library() {
    let mut info = MaybeUninit::<libc::Dl_info>::zeroed();
    let address = pin_library as *const libc::c_void;
    // SAFETY: any address may be asked about; the result is ours.
    if unsafe { libc::dladdr(address, info.as_mut_ptr()) } == 0 {
        return;
    }
    // SAFETY: filled by dladdr.
    let name = unsafe { info.assume_init() }.dli_fname;
    if !name.is_null() {
        let flags = libc::RTLD_NOW | libc::RTLD_NOLOAD | libc::RTLD_NODELETE;
        // SAFETY: a NUL-terminated name from the loader; NOLOAD opens only what is mapped already.
        unsafe { libc::dlopen(name, flags) };
    }
}

/// The file of another library in this process that exports our entry point: a second copy, or
/// another version. The same file under another name is the same library to the loader.
#[cfg(target_os = "linux")]
pub(super) fn other_copy() -> Option<String> {
    let mut names: Vec<CString> = Vec::new();
    // SAFETY: `note` gets the vector for the length of the call, and keeps nothing of it.
    unsafe { libc::dl_iterate_phdr(Some(note), (&raw mut names).cast()) };
    let ours = base_of(other_copy as *const libc::c_void)?;
    names.iter().find_map(|name| {
        // SAFETY: a NUL-terminated name; NOLOAD opens only what is mapped already.
        let library = unsafe { libc::dlopen(name.as_ptr(), libc::RTLD_LAZY | libc::RTLD_NOLOAD) };
        if library.is_null() {
            return None;
        }
        // SAFETY: an open library and a NUL-terminated name.
        let entry = unsafe { libc::dlsym(library, c"sqlite3_litestream_init".as_ptr()) };
        // SAFETY: opened above; the host still has it open.
        unsafe { libc::dlclose(library) };
        let theirs = (!entry.is_null()).then(|| base_of(entry)).flatten()?;
        (theirs != ours).then(|| name.to_string_lossy().into_owned())
    })
}

#[cfg(not(target_os = "linux"))]
pub(super) fn other_copy() -> Option<String> {
    None
}

/// Remembers the name of a loaded library.
#[cfg(target_os = "linux")]
extern "C" fn note(
    info: *mut libc::dl_phdr_info,
    _: libc::size_t,
    names: *mut libc::c_void,
) -> libc::c_int {
    // SAFETY: the loader passes what it knows of one library.
    let name = unsafe { (*info).dlpi_name };
    // SAFETY: what `other_copy` passed.
    let names = unsafe { &mut *names.cast::<Vec<CString>>() };
    if !name.is_null() {
        // SAFETY: a NUL-terminated name that lives while the loader waits for us.
        let name = unsafe { CStr::from_ptr(name) };
        if !name.is_empty() {
            names.push(name.to_owned());
        }
    }
    0
}

/// Where the library begins that has `address`.
#[cfg(target_os = "linux")]
fn base_of(address: *const libc::c_void) -> Option<usize> {
    let mut info = MaybeUninit::<libc::Dl_info>::zeroed();
    // SAFETY: any address may be asked about; the result is ours.
    if unsafe { libc::dladdr(address, info.as_mut_ptr()) } == 0 {
        return None;
    }
    // SAFETY: filled by dladdr.
    Some(unsafe { info.assume_init() }.dli_fbase.addr())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn blocked(signal: libc::c_int) -> bool {
        let mut now = MaybeUninit::<libc::sigset_t>::zeroed();
        // SAFETY: asks for the mask without changing it.
        unsafe { libc::pthread_sigmask(libc::SIG_SETMASK, std::ptr::null(), now.as_mut_ptr()) };
        // SAFETY: written by the call.
        let now = unsafe { now.assume_init() };
        // SAFETY: an initialized set and a valid signal number.
        unsafe { libc::sigismember(&raw const now, signal) == 1 }
    }

    #[test]
    fn threads_started_inside_inherit_the_block() {
        assert!(!blocked(libc::SIGUSR1));
        let inside = with_signals_blocked(|| {
            std::thread::spawn(|| (blocked(libc::SIGUSR1), blocked(libc::SIGSEGV))).join()
        });
        assert_eq!(inside.unwrap(), (true, false));
        assert!(!blocked(libc::SIGUSR1));
    }
}
