//! Shared memory of a WAL database: mapped regions and lock bytes.
//!
//! A region is 32768 bytes and stays mapped while its [`Door`] is open, which it keeps open. Other
//! processes read and write the same memory, so every access is an atomic load or store of 2 or 4
//! bytes: loads Acquire, stores Release. What larger units mean (two equal header copies, say) is
//! for the reader to check. An access outside the region or misaligned is a mistake in our own
//! arithmetic: an assertion in tests, 0 or nothing in a release build, never a stray pointer.
//!
//! A lock is held by the [`ShmLock`] and by nothing else: dropping it unlocks. Locks belong to the
//! door, not to a thread or to the process, so two doors in one process exclude each other.

use std::ffi::{c_int, c_void};
use std::ptr::{self, NonNull};
use std::sync::Arc;
use std::sync::atomic::{AtomicU16, AtomicU32, Ordering};

use sqlite3ext_sys::{
    SQLITE_BUSY, SQLITE_SHM_EXCLUSIVE, SQLITE_SHM_LOCK, SQLITE_SHM_SHARED, SQLITE_SHM_UNLOCK,
};

use super::file::Door;
use super::raw::method;
use super::stmt::{check, code, fault_at};
use crate::error::{Error, ErrorKind, Result, lock};

/// Size of one mapped region in bytes.
pub const REGION_BYTES: usize = 32768;

/// Number of lock bytes.
pub const LOCK_COUNT: u8 = 8;

/// How a lock byte is held.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// Beside other shared holders.
    Shared,
    /// Alone.
    Exclusive,
}

impl Mode {
    fn flag(self) -> u32 {
        match self {
            Mode::Shared => SQLITE_SHM_SHARED,
            Mode::Exclusive => SQLITE_SHM_EXCLUSIVE,
        }
    }
}

impl Door {
    /// Maps region number `region`. With `extend` the shared memory grows to hold it; without, the
    /// answer is None if nobody has made it yet.
    pub fn map(self: &Arc<Self>, region: u32, extend: bool) -> Result<Option<Region>> {
        let what = || self.handle.what(&format!("map shared-memory region {region} of"));
        fault_at("host/shm/map", what)?;
        let map = method!(self.handle, xShmMap)?;
        let number = c_int::try_from(region)
            .map_err(|_| Error::new(ErrorKind::Bug, format!("shared-memory region {region}")))?;
        let size = c_int::try_from(REGION_BYTES).unwrap_or(c_int::MAX);
        let mut memory: *mut c_void = ptr::null_mut();
        let rc = {
            let _shm = lock(&self.shm);
            // SAFETY: the file is open and the result ours.
            unsafe { map(self.handle.file, number, size, c_int::from(extend), &raw mut memory) }
        };
        check(rc, what)?;
        let Some(memory) = NonNull::new(memory.cast::<u8>()) else { return Ok(None) };
        if !memory.cast::<AtomicU32>().is_aligned() {
            return Err(Error::new(ErrorKind::Unsupported, "shared memory is not aligned"));
        }
        Ok(Some(Region { memory, number: region, _door: Arc::clone(self) }))
    }

    /// A full memory barrier, in the VFS's own way.
    pub fn barrier(&self) {
        // Looked for when the door was opened, so it is there.
        if let Ok(barrier) = method!(self.handle, xShmBarrier) {
            // SAFETY: the file is open; the call touches no state of it that needs a lock.
            unsafe { barrier(self.handle.file) };
        }
    }

    /// Tries to lock `count` bytes from `first` on, without waiting; None if somebody else holds
    /// one in the way. Shared locks are taken one byte at a time. A byte this door holds already is
    /// an error.
    pub fn try_lock(self: &Arc<Self>, first: u8, count: u8, mode: Mode) -> Result<Option<ShmLock>> {
        let mask = mask(first, count, mode)?;
        let what = || self.handle.what(&format!("lock byte {first} of"));
        fault_at("host/shm/lock", what)?;
        let lock_bytes = method!(self.handle, xShmLock)?;
        let mut held = lock(&self.shm);
        if *held & mask != 0 {
            return Err(Error::new(
                ErrorKind::Bug,
                format!("lock bytes {first}+{count} are held by this door already"),
            ));
        }
        let flags = code(SQLITE_SHM_LOCK | mode.flag());
        let (from, number) = (c_int::from(first), c_int::from(count));
        // SAFETY: the file is open, and its connection runs no SQL that could touch its locks.
        let rc = unsafe { lock_bytes(self.handle.file, from, number, flags) };
        if rc & 0xff == code(SQLITE_BUSY) {
            return Ok(None);
        }
        check(rc, what)?;
        *held |= mask;
        Ok(Some(ShmLock { door: Arc::clone(self), first, count, mode }))
    }

    /// The lock bytes held through this door, one bit each.
    pub fn held(&self) -> u8 {
        *lock(&self.shm)
    }
}

/// Checks a range of lock bytes and returns its bits.
fn mask(first: u8, count: u8, mode: Mode) -> Result<u8> {
    let fits = first.checked_add(count).is_some_and(|end| end <= LOCK_COUNT);
    if count == 0 || !fits || (mode == Mode::Shared && count != 1) {
        return Err(Error::new(
            ErrorKind::Bug,
            format!("lock bytes {first}+{count} ({mode:?}) make no range"),
        ));
    }
    Ok((u8::MAX >> (LOCK_COUNT - count)) << first)
}

/// Lock bytes held in the shared memory. Dropping it unlocks.
pub struct ShmLock {
    door: Arc<Door>,
    first: u8,
    count: u8,
    mode: Mode,
}

impl ShmLock {
    /// The first byte held.
    pub fn first(&self) -> u8 {
        self.first
    }

    /// How many bytes are held.
    pub fn count(&self) -> u8 {
        self.count
    }

    /// How they are held.
    pub fn mode(&self) -> Mode {
        self.mode
    }

    /// Whether `byte` is among them.
    pub fn covers(&self, byte: u8) -> bool {
        (self.first..self.first + self.count).contains(&byte)
    }
}

impl Drop for ShmLock {
    fn drop(&mut self) {
        let Ok(lock_bytes) = method!(self.door.handle, xShmLock) else { return };
        let Ok(mask) = mask(self.first, self.count, self.mode) else { return };
        let flags = code(SQLITE_SHM_UNLOCK | self.mode.flag());
        let (from, number) = (c_int::from(self.first), c_int::from(self.count));
        let mut held = lock(&self.door.shm);
        // SAFETY: the file is open and this range was locked in this mode by `try_lock`. An unlock
        // that fails leaves the lock with the descriptor; the door's close ends it.
        unsafe { lock_bytes(self.door.handle.file, from, number, flags) };
        *held &= !mask;
    }
}

/// One mapped region of shared memory. Offsets are in bytes from its start.
#[derive(Clone)]
pub struct Region {
    memory: NonNull<u8>,
    number: u32,
    /// Keeps the mapping alive.
    _door: Arc<Door>,
}

// SAFETY: the memory stays mapped while the door lives, and every access is atomic.
unsafe impl Send for Region {}
// SAFETY: as above.
unsafe impl Sync for Region {}

impl Region {
    /// Which region it is.
    pub fn number(&self) -> u32 {
        self.number
    }

    /// Loads 4 bytes, in the machine's order.
    pub fn load_u32(&self, offset: usize) -> u32 {
        self.word(offset).map_or(0, |word| word.load(Ordering::Acquire))
    }

    /// Stores 4 bytes, in the machine's order.
    pub fn store_u32(&self, offset: usize, value: u32) {
        if let Some(word) = self.word(offset) {
            word.store(value, Ordering::Release);
        }
    }

    /// Loads 2 bytes, in the machine's order.
    pub fn load_u16(&self, offset: usize) -> u16 {
        self.half(offset).map_or(0, |half| half.load(Ordering::Acquire))
    }

    /// Stores 2 bytes, in the machine's order; whoever loads them sees what was stored before.
    pub fn store_u16(&self, offset: usize, value: u16) {
        if let Some(half) = self.half(offset) {
            half.store(value, Ordering::Release);
        }
    }

    /// Loads `N` bytes, a multiple of 4, word by word.
    pub fn load_bytes<const N: usize>(&self, offset: usize) -> [u8; N] {
        debug_assert!(N.is_multiple_of(4), "{N} bytes are no whole words");
        let mut bytes = [0; N];
        for (index, word) in bytes.as_chunks_mut::<4>().0.iter_mut().enumerate() {
            *word = self.load_u32(offset + 4 * index).to_ne_bytes();
        }
        bytes
    }

    /// Stores bytes, a multiple of 4, word by word.
    pub fn store_bytes(&self, offset: usize, bytes: &[u8]) {
        debug_assert!(bytes.len().is_multiple_of(4), "{} bytes are no whole words", bytes.len());
        for (index, word) in bytes.as_chunks::<4>().0.iter().enumerate() {
            self.store_u32(offset + 4 * index, u32::from_ne_bytes(*word));
        }
    }

    /// Zeroes `length` bytes, a multiple of 4, word by word.
    pub fn zero_range(&self, offset: usize, length: usize) {
        debug_assert!(length.is_multiple_of(4), "{length} bytes are no whole words");
        for at in (offset..offset.saturating_add(length)).step_by(4) {
            self.store_u32(at, 0);
        }
    }

    fn word(&self, offset: usize) -> Option<&AtomicU32> {
        let inside = offset.is_multiple_of(4) && offset <= REGION_BYTES - 4;
        debug_assert!(inside, "word at {offset} of a region");
        if !inside {
            return None;
        }
        // SAFETY: the region is REGION_BYTES long and `offset + 4` fits.
        let place = unsafe { self.memory.add(offset) };
        // SAFETY: aligned, since the region's start is (checked in `map`); mapped while `self`
        // lives; accessed by atomics only.
        Some(unsafe { AtomicU32::from_ptr(place.cast().as_ptr()) })
    }

    fn half(&self, offset: usize) -> Option<&AtomicU16> {
        let inside = offset.is_multiple_of(2) && offset <= REGION_BYTES - 2;
        debug_assert!(inside, "half word at {offset} of a region");
        if !inside {
            return None;
        }
        // SAFETY: the region is REGION_BYTES long and `offset + 2` fits.
        let place = unsafe { self.memory.add(offset) };
        // SAFETY: as in `word`.
        Some(unsafe { AtomicU16::from_ptr(place.cast().as_ptr()) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lock_ranges() {
        assert_eq!(mask(0, 1, Mode::Exclusive).unwrap(), 0b0000_0001);
        assert_eq!(mask(4, 4, Mode::Exclusive).unwrap(), 0b1111_0000);
        assert_eq!(mask(0, 8, Mode::Exclusive).unwrap(), 0b1111_1111);
        assert_eq!(mask(7, 1, Mode::Shared).unwrap(), 0b1000_0000);
        for (first, count, mode) in [
            (0, 0, Mode::Exclusive),
            (8, 1, Mode::Exclusive),
            (7, 2, Mode::Exclusive),
            (255, 255, Mode::Exclusive),
            (3, 2, Mode::Shared),
        ] {
            assert_eq!(mask(first, count, mode).unwrap_err().kind(), ErrorKind::Bug);
        }
    }
}
