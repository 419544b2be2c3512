//! The fuzzer's bytes as numbers, as pieces, as a reader that is cut anywhere; and a folder.

use std::io::{self, Read};
use std::path::{Path, PathBuf};

/// Takes bytes from the front; what is not there any more is zero.
pub(crate) struct Input<'a>(pub(crate) &'a [u8]);

impl<'a> Input<'a> {
    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// At most so many bytes.
    pub(crate) fn bytes(&mut self, count: usize) -> &'a [u8] {
        let (taken, rest) = self.0.split_at(count.min(self.0.len()));
        self.0 = rest;
        taken
    }

    /// The same; at most 255.
    pub(crate) fn short(&mut self) -> &'a [u8] {
        let count = usize::from(self.byte());
        self.bytes(count)
    }

    /// Bytes that say themselves how many they are.
    pub(crate) fn piece(&mut self) -> &'a [u8] {
        let count = usize::from(self.u16());
        self.bytes(count)
    }

    /// The same, as far as it is text.
    pub(crate) fn text(&mut self) -> String {
        String::from_utf8_lossy(self.piece()).into_owned()
    }

    pub(crate) fn array<const N: usize>(&mut self) -> [u8; N] {
        let mut out = [0; N];
        let taken = self.bytes(N);
        out[..taken.len()].copy_from_slice(taken);
        out
    }

    pub(crate) fn byte(&mut self) -> u8 {
        let [byte] = self.array();
        byte
    }

    pub(crate) fn flag(&mut self) -> bool {
        self.byte() & 1 == 1
    }

    pub(crate) fn u16(&mut self) -> u16 {
        u16::from_le_bytes(self.array())
    }

    pub(crate) fn u32(&mut self) -> u32 {
        u32::from_le_bytes(self.array())
    }

    pub(crate) fn u64(&mut self) -> u64 {
        u64::from_le_bytes(self.array())
    }

    /// From 0 up to, and without, `end`, which is at most 256.
    pub(crate) fn below(&mut self, end: usize) -> usize {
        usize::from(self.byte()) % end
    }

    /// A number near a boundary, or any.
    pub(crate) fn number(&mut self) -> u64 {
        match self.byte() {
            byte @ 0..64 => u64::from(byte),
            byte @ 64..128 => (1 << (byte - 64)) - 1_u64,
            byte @ 128..192 => 1 << (byte - 128),
            192..208 => u64::from(self.u16()),
            208..224 => u64::from(self.u32()),
            _ => self.u64(),
        }
    }
}

/// Reads bytes in pieces whose lengths other bytes say, over and over. A length of 0 is an
/// interruption.
pub(crate) struct Cut<'a> {
    bytes: &'a [u8],
    lengths: std::iter::Cycle<std::slice::Iter<'a, u8>>,
}

impl<'a> Cut<'a> {
    pub(crate) fn new(bytes: &'a [u8], lengths: &'a [u8]) -> Self {
        // All zeros would never come to an end.
        let lengths = if lengths.iter().all(|it| *it == 0) { &[7] } else { lengths };
        Self { bytes, lengths: lengths.iter().cycle() }
    }
}

impl Read for Cut<'_> {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        match self.lengths.next() {
            Some(0) => Err(io::ErrorKind::Interrupted.into()),
            Some(length) => {
                let most = usize::from(*length).min(out.len());
                self.bytes.read(&mut out[..most])
            }
            None => self.bytes.read(out),
        }
    }
}

/// A folder of this process, in memory where there is such a file system. Removed in the end.
pub(crate) struct Scratch(PathBuf);

impl Scratch {
    pub(crate) fn new(name: &str) -> Scratch {
        let memory = Path::new("/dev/shm");
        let place = if memory.is_dir() { memory.to_owned() } else { std::env::temp_dir() };
        let thread = format!("{:?}", std::thread::current().id());
        let thread: String = thread.chars().filter(char::is_ascii_digit).collect();
        let path = place.join(format!("litestream-fuzz-{name}-{}-{thread}", std::process::id()));
        let _ = std::fs::remove_dir_all(&path);
        std::fs::create_dir_all(&path).unwrap();
        Scratch(path)
    }

    pub(crate) fn path(&self) -> &Path {
        &self.0
    }

    /// Writes a file of it.
    pub(crate) fn put(&self, name: &str, bytes: &[u8]) {
        let path = self.0.join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, bytes).unwrap();
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}
