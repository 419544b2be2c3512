//! Listings of an archive that is being written.

use super::store::Object;
use super::store::Upload;
use super::*;
use crate::pos::{Index, Offset};

/// A primary writes on while it is listed.
struct Growing;

fn pos(offset: u64) -> Pos {
    Pos::new(Generation::from_bits(0xab), Index::ZERO, Offset::new(offset).unwrap())
}

static LISTED: std::sync::atomic::AtomicBool = std::sync::atomic::AtomicBool::new(false);

impl Store for Growing {
    fn url(&self) -> &str {
        "test:growing"
    }

    fn list(&self, _: &str, each: &mut dyn FnMut(Object) -> Result<()>) -> Result<()> {
        LISTED.store(true, std::sync::atomic::Ordering::Release);
        let key = Tree::V04.segment(pos(0))?;
        each(Object { key, size: 9, modified: SystemTime::UNIX_EPOCH })
    }

    fn get(&self, key: &str, _: Option<u64>) -> Result<Box<dyn Read + Send>> {
        assert_eq!(key, tree::position(pos(0).generation));
        let grown = LISTED.load(std::sync::atomic::Ordering::Acquire);
        let text = pos(if grown { 9000 } else { 32 }).to_string();
        Ok(Box::new(io::Cursor::new(text.into_bytes())))
    }

    fn folders(&self, _: &str) -> Result<Vec<String>> {
        Ok(Vec::new())
    }

    fn create(&self, _: &str) -> Result<Box<dyn Upload + '_>> {
        Err(Error::bug("read only"))
    }

    fn replace(&self, _: &str, _: &[u8]) -> Result<()> {
        Err(Error::bug("read only"))
    }

    fn delete(&self, _: &[String]) -> Result<()> {
        Err(Error::bug("read only"))
    }

    fn close(&self) {}
}

#[test]
fn the_position_is_not_younger_than_what_is_listed() {
    let archive = Archive { store: Arc::new(Growing), tree: Tree::V04, keys: Keys::default() };
    let listing = archive.list(pos(0).generation).unwrap();
    assert_eq!((listing.segments.len(), listing.position), (1, Some(pos(32))));
}
