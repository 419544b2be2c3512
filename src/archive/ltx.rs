//! Archives of stock Litestream 0.5, which hold LTX files: found, planned and read, never written.
//!
//! One history, numbered by transactions; no generations. What is where is said in ltx/names.rs,
//! what is in a file in ltx/file.rs, which files make a state in ltx/cover.rs.

pub(super) mod cover;
mod crc;
mod file;
pub(super) mod names;

use std::io::Read;
use std::time::SystemTime;

use serde_json::{Value, json};

use super::Archive;
use super::sink::{PageSink, Target, Until};
use super::store::Object;
use super::tree::GENERATIONS;
use crate::error::{Error, ErrorKind, Result};
use crate::info::{showable, total};
use cover::{File, Limit, cover};
pub use file::{Decoder, Header};
pub use names::{Span, TxId};

/// Which files make a target's state.
pub struct Plan {
    /// Oldest first; at least one.
    files: Vec<File>,
    /// Of the newest of them.
    header: Header,
}

/// The plan for `target`; `None` if the archive is not of this kind, or if the target is in that
/// part of it which is not.
pub fn choose(archive: &Archive, target: &Target) -> Result<Option<Plan>> {
    let limit = match &target.until {
        Until::Latest => Limit::None,
        Until::Time(time) => Limit::Time(*time),
        Until::Pos(text) => match transaction(text) {
            Some(number) => Limit::TxId(number),
            None => return Ok(None),
        },
    };
    if target.generation.is_some() {
        return Ok(None);
    }
    let files = list(archive)?;
    if files.is_empty() || (!matches!(limit, Limit::TxId(_)) && is_older(archive, &files, limit)?) {
        return Ok(None);
    }
    let mut time = |file: &File| Ok(header(archive, file)?.created_at);
    let files = cover(&files, limit, &mut time)
        .map_err(|error| error.context(format!("archive {}", archive.url())))?;
    let newest = files.last().ok_or_else(Error::no_snapshots)?;
    let header = header(archive, newest)?;
    Ok(Some(Plan { files, header }))
}

/// A transaction's number as 0.5 writes it, leading zeros or not.
fn transaction(text: &str) -> Option<TxId> {
    let sound = (1..=16).contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_hexdigit());
    sound.then(|| u64::from_str_radix(text, 16).ok().map(TxId))?
}

fn list(archive: &Archive) -> Result<Vec<File>> {
    let mut files = Vec::new();
    let levels = 0..=names::SNAPSHOT_LEVEL;
    let folders = [names::LTX.to_owned()].into_iter().chain(levels.map(names::bucket_folder));
    for folder in folders {
        archive.store().list(&folder, &mut |object: Object| {
            let Object { key, size, modified } = object;
            files.extend(names::parse(&key).map(|span| File { span, key, size, modified }));
            Ok(())
        })?;
    }
    Ok(files)
}

/// Whether the archive has generations too, and one of their objects is the last up to the limit:
/// it was moved from one layout to the other, under one name.
fn is_older(archive: &Archive, files: &[File], limit: Limit) -> Result<bool> {
    let within = |time: SystemTime| !matches!(limit, Limit::Time(until) if time > until);
    let mut last = None;
    archive.store().list(GENERATIONS, &mut |object: Object| {
        if within(object.modified) {
            last = last.max(Some(object.modified));
        }
        Ok(())
    })?;
    Ok(last > files.iter().map(|file| file.modified).filter(|time| within(*time)).max())
}

fn header(archive: &Archive, file: &File) -> Result<Header> {
    let read = || {
        let mut bytes = Vec::new();
        let mut object = archive.store().get(&file.key, Some(file::HEADER_SIZE as u64))?;
        object.by_ref().take(file::HEADER_SIZE as u64).read_to_end(&mut bytes)?;
        let bytes = bytes.as_slice().try_into();
        let header = Header::decode(bytes.map_err(|_| Error::corrupt("LTX file: cut short"))?)?;
        header.check_name(file.span)?;
        Ok(header)
    };
    read().map_err(|error: Error| error.context(archive.name(&file.key)))
}

impl Plan {
    /// What `"dry_run"` tells: a JSON object.
    pub fn describe(&self) -> Value {
        let files = self.files.iter().map(|file| {
            let Span { level, min, max } = file.span;
            json!({
                "object": file.key,
                "level": level,
                "min_txid": min.to_string(),
                "max_txid": max.to_string(),
                "size": file.size,
            })
        });
        let time = showable(self.header.created_at);
        json!({
            "layout": "ltx",
            "txid": self.header.max.to_string(),
            "timestamp": humantime::format_rfc3339_millis(time).to_string(),
            "page_size": self.header.page_size.get(),
            "page_count": self.header.page_count,
            "bytes": total(self.files.iter().map(|file| file.size)),
            "files": files.collect::<Vec<_>>(),
        })
    }

    /// Puts every page, newest files first, and checks every checksum. Returns what was reached.
    pub fn fill(&self, archive: &Archive, image: &mut dyn PageSink) -> Result<String> {
        let header = &self.header;
        image.begin(header.page_size, header.page_count)?;
        let mut filling = Filling { image, pages: 0, checksum: 0, expected: None };
        for file in self.files.iter().rev() {
            let filled = filling.file(archive, file, header);
            filled.map_err(|error| error.context(archive.name(&file.key)))?;
        }
        filling.finish(header)?;
        Ok(header.max.to_string())
    }
}

/// A restore under way.
struct Filling<'i> {
    image: &'i mut dyn PageSink,
    /// How many have been put.
    pages: u32,
    /// XOR of theirs, if the newest file tells what it must be.
    checksum: u64,
    expected: Option<u64>,
}

impl Filling<'_> {
    fn file(&mut self, archive: &Archive, file: &File, newest: &Header) -> Result<()> {
        let mut decoder = Decoder::new(archive.store().get(&file.key, None)?)?;
        let header = *decoder.header();
        header.check_name(file.span)?;
        let is_newest = header.max == newest.max;
        if is_newest && header != *newest {
            return Err(Error::corrupt("LTX file: it is another one than it was a moment ago"));
        }
        if header.page_size != newest.page_size {
            let (has, needs) = (header.page_size, newest.page_size);
            let why = format!("LTX file: its pages have {has} bytes, later ones {needs}");
            return Err(Error::corrupt(why));
        }
        let mut page = Vec::new();
        while let Some(number) = decoder.next(&mut page)? {
            if !self.image.wants(number) {
                continue;
            }
            if newest.has_checksums {
                self.checksum ^= file::page_checksum(number, &page);
            }
            self.image.put(number, &page)?;
            self.pages += 1;
        }
        if is_newest {
            self.expected = decoder.post_apply();
        }
        Ok(())
    }

    fn finish(self, newest: &Header) -> Result<()> {
        let max = newest.max;
        if self.pages != newest.content_pages() {
            let content = |page: &u32| *page != newest.lock_page() && self.image.wants(*page);
            let page = (1..=newest.page_count).find(content).unwrap_or_default();
            let why = format!("page {page} of transaction {max} is in none of the LTX files");
            return Err(Error::corrupt(why));
        }
        let checksum = file::database_checksum(self.checksum);
        if self.expected.is_some_and(|expected| expected != checksum) {
            let why = format!("the database does not have the checksum of transaction {max}");
            return Err(Error::new(ErrorKind::ChecksumMismatch, why));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
