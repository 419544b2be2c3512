//! Objects by name: all that an archive needs of a disk or a bucket.
//!
//! | rule                                                                                        |
//! |---------------------------------------------------------------------------------------------|
//! | a key is `/`-separated, relative to the archive's root, made of `[0-9a-z._/-]` by us        |
//! | an object is there whole or not at all; a kill or a power loss in between leaves nothing visible |
//! | [`Store::create`] never replaces: who comes second is told [`Put::Exists`]                  |
//! | after [`Upload::finish`] the object survives a power loss of this machine                   |
//! | every call ends: with an answer, an error, or, after [`Store::close`], with `Stopped`       |
//! | errors name the object and the archive, never a secret                                      |

use std::io::{Read, Write};
use std::time::SystemTime;

use crate::error::Result;

/// An object as listed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Object {
    /// Relative to the archive's root.
    pub key: String,
    /// Bytes, as stored.
    pub size: u64,
    /// When the store got it, by the store's clock.
    pub modified: SystemTime,
}

/// What became of a new object.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Put {
    /// It is there now.
    Created,
    /// There was one of that name; it is as it was.
    Exists,
}

/// An object being written. Dropped without [`Upload::finish`] it leaves nothing behind.
pub trait Upload: Write + Send {
    /// Gives the object its name.
    fn finish(self: Box<Self>) -> Result<Put>;
}

/// A place for objects.
pub trait Store: Send + Sync {
    /// Where it is, as people write it: without options and secrets.
    fn url(&self) -> &str;

    /// Hands every object whose key begins with `prefix` to `each`, ascending by key, and stops at
    /// its first error. What does not exist is empty.
    fn list(&self, prefix: &str, each: &mut dyn FnMut(Object) -> Result<()>) -> Result<()>;

    /// The names directly below `folder` (empty, or ending in `/`) that have objects below them,
    /// ascending, without slashes.
    fn folders(&self, folder: &str) -> Result<Vec<String>>;

    /// Begins an object that must not exist yet.
    fn create(&self, key: &str) -> Result<Box<dyn Upload + '_>>;

    /// Gives a small object this content, whatever it was before: readers see the old or the new.
    fn replace(&self, key: &str, content: &[u8]) -> Result<()>;

    /// An object's content, or no more than its `first` bytes. Kind `Missing` if there is none of
    /// that name; a connection that breaks off is an error of the read, never a short object.
    fn get(&self, key: &str, first: Option<u64>) -> Result<Box<dyn Read + Send>>;

    /// Removes objects; those that are not there are no error.
    fn delete(&self, keys: &[String]) -> Result<()>;

    /// Removes what a deletion that was cut short left in `folder` and no listing shows: folders
    /// of such names without objects, where folders are things of their own.
    fn tidy(&self, _folder: &str, _named: fn(&str) -> bool) -> Result<()> {
        Ok(())
    }

    /// Ends whatever is under way and refuses all that follows with `Stopped`: from any thread.
    fn close(&self);
}
