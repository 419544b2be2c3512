//! An object on its way to a bucket.
//!
//! | content     | requests                                                                    |
//! |-------------|-----------------------------------------------------------------------------|
//! | up to 8 MiB | one PUT                                                                     |
//! | more        | a multipart upload: HEAD, create, parts, complete; aborted if it is dropped |
//!
//! Both carry `If-None-Match: *` and each body its MD5. Parts are of one size, which some servers
//! want, for the first 16 GiB, and grow then, since there can be 10 000. One part is in memory.

use std::io::{self, Write};
use std::time::Duration;

use rusty_s3::S3Action;
use rusty_s3::actions::{CreateMultipartUpload, PutObject, UploadPart};

use super::http::Answer;
use super::refusal::clean;
use super::{S3Store, SIGNED_FOR, xml};
use crate::archive::store::{Put, Upload};
use crate::error::{Context, Error, ErrorKind, Result};

const MIB: usize = 1 << 20;
/// Parts that one upload may have.
const PARTS_MAX: usize = 10_000;
/// How long a server may think about putting the parts together.
const COMPLETE_MAX: Duration = Duration::from_secs(300);
/// How long an upload nobody wants keeps its thread.
const ABORT_MAX: Duration = Duration::from_secs(2);

/// Bytes of the part with this number, from 0.
fn part_bytes(number: usize) -> usize {
    match number {
        0..2000 => 8 * MIB,
        2000..4000 => 32 * MIB,
        _ => 128 * MIB,
    }
}

/// An object being written.
pub struct S3Upload<'s> {
    store: &'s S3Store,
    /// The key in the bucket, and what it is called in messages.
    object: String,
    name: String,
    buffer: Vec<u8>,
    state: State,
}

enum State {
    /// All there is so far is in the buffer.
    Small,
    /// Parts are there.
    Parts { id: String, etags: Vec<String> },
    /// There is such an object already.
    Exists,
}

impl<'s> S3Upload<'s> {
    /// Nothing is sent yet.
    pub fn new(store: &'s S3Store, key: &str) -> S3Upload<'s> {
        let (object, name) = (store.object(key), store.name(key));
        S3Upload { store, object, name, buffer: Vec::new(), state: State::Small }
    }

    fn flush_part(&mut self) -> Result<()> {
        if matches!(self.state, State::Small) {
            self.begin()?;
        }
        if let State::Parts { id, etags } = &mut self.state {
            if etags.len() == PARTS_MAX {
                let text = "it is larger than 10 000 parts can hold, about 850 GiB";
                return Err(Error::new(ErrorKind::Unsupported, text));
            }
            let number = u16::try_from(etags.len() + 1).unwrap_or(u16::MAX);
            let S3Store { bucket, credentials, .. } = self.store;
            let action = UploadPart::new(bucket, Some(credentials), &self.object, number, id);
            let url = action.sign(SIGNED_FOR).to_string();
            let mut answer = self.store.put("PUT", url, &self.buffer, false)?;
            if answer.status != 200 {
                return Err(answer.refusal().0);
            }
            let etag = answer.header("etag").map(str::to_owned);
            let _to_its_end = answer.text()?;
            let etag = etag.ok_or_else(|| Error::peer("the server gives no ETag for a part"))?;
            etags.push(etag);
        }
        self.buffer.clear();
        Ok(())
    }

    /// Begins a multipart upload, unless the object is there: that is worth knowing before its
    /// gigabytes are sent.
    fn begin(&mut self) -> Result<()> {
        self.store.sweep();
        if self.store.exists(&self.object)? {
            self.state = State::Exists;
            return Ok(());
        }
        let S3Store { bucket, credentials, .. } = self.store;
        let action = CreateMultipartUpload::new(bucket, Some(credentials), &self.object);
        let mut answer = self.store.put("POST", action.sign(SIGNED_FOR).to_string(), &[], false)?;
        if answer.status != 200 {
            return Err(answer.refusal().0);
        }
        let id = xml::text(&answer.text()?, "UploadId");
        if id.is_empty() {
            return Err(Error::peer("the server names no upload"));
        }
        self.state = State::Parts { id, etags: Vec::new() };
        Ok(())
    }

    fn complete(&mut self) -> Result<Put> {
        if !self.buffer.is_empty() {
            self.flush_part()?;
        }
        let State::Parts { id, etags } = &self.state else { return Ok(Put::Exists) };
        let S3Store { bucket, credentials, .. } = self.store;
        for conditional in [true, false] {
            let etags = etags.iter().map(String::as_str);
            let action =
                bucket.complete_multipart_upload(Some(credentials), &self.object, id, etags);
            let url = action.sign(SIGNED_FOR).to_string();
            let body = action.body();
            let mut headers = vec![("content-type", "application/xml")];
            if conditional && !self.store.ignores_conditions() {
                headers.push(("if-none-match", "*"));
            } else if self.store.exists(&self.object)? {
                return Ok(Put::Exists);
            }
            let mut answer =
                self.store.send("POST", url, &headers, body.as_bytes(), COMPLETE_MAX)?;
            match answer.status {
                // The answer may begin before its end is known.
                200 => {
                    let text = answer.text()?;
                    if xml::elements(&text, "Code").is_empty() {
                        self.state = State::Small;
                        return Ok(Put::Created);
                    }
                    let why = format!(
                        "the server could not put the parts together: {} {}",
                        clean(&xml::text(&text, "Code")),
                        clean(&xml::text(&text, "Message"))
                    );
                    return Err(Error::new(ErrorKind::Io, why));
                }
                412 => return Ok(Put::Exists),
                501 if conditional => {}
                _ => return Err(answer.refusal().0),
            }
        }
        Err(Error::peer("the server knows no multipart uploads"))
    }

    fn put(&mut self) -> Result<Put> {
        let S3Store { bucket, credentials, .. } = self.store;
        if !self.store.honours_conditions() && self.store.exists(&self.object)? {
            return Ok(Put::Exists);
        }
        let send = |conditional| -> Result<Answer> {
            let action = PutObject::new(bucket, Some(credentials), &self.object);
            self.store.put("PUT", action.sign(SIGNED_FOR).to_string(), &self.buffer, conditional)
        };
        let conditional = !self.store.ignores_conditions();
        let mut answer = send(conditional)?;
        if answer.status == 501 && conditional {
            self.store.learn_conditions(false);
            answer = send(false)?;
        }
        match answer.status {
            200 => {
                let _to_its_end = answer.text()?;
                if self.store.wonders_about_conditions(self.buffer.len()) {
                    // The same once more, which changes nothing: does the server mind?
                    let mut again = send(true)?;
                    let _to_its_end = again.text()?;
                    match again.status {
                        412 => self.store.learn_conditions(true),
                        200 | 501 => self.store.learn_conditions(false),
                        _ => {}
                    }
                }
                Ok(Put::Created)
            }
            412 => {
                self.store.learn_conditions(true);
                let _to_its_end = answer.text()?;
                Ok(Put::Exists)
            }
            _ => Err(answer.refusal().0),
        }
    }
}

impl Write for S3Upload<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.store.http.check()?;
        let parts = match &self.state {
            State::Exists => return Ok(bytes.len()),
            State::Small => 0,
            State::Parts { etags, .. } => etags.len(),
        };
        let room = part_bytes(parts).saturating_sub(self.buffer.len());
        if room == 0 {
            self.flush_part().context(|| format!("cannot write {}", self.name))?;
            return self.write(bytes);
        }
        let amount = room.min(bytes.len());
        self.buffer.extend_from_slice(bytes.get(..amount).unwrap_or_default());
        Ok(amount)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Upload for S3Upload<'_> {
    fn finish(mut self: Box<Self>) -> Result<Put> {
        let done = match &self.state {
            State::Exists => Ok(Put::Exists),
            State::Small => self.put(),
            State::Parts { .. } => self.complete(),
        };
        done.context(|| format!("cannot write {}", self.name))
    }
}

impl Drop for S3Upload<'_> {
    fn drop(&mut self) {
        let State::Parts { id, .. } = &self.state else { return };
        let S3Store { bucket, credentials, .. } = self.store;
        let action = bucket.abort_multipart_upload(Some(credentials), &self.object, id);
        self.store.abort(action.sign(SIGNED_FOR).to_string(), ABORT_MAX);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_suffice() {
        let bytes: u64 = (0..PARTS_MAX).map(|part| part_bytes(part) as u64).sum();
        assert!(bytes > 800 << 30, "{}", bytes >> 30);
        assert!((0..PARTS_MAX).all(|part| (5 * MIB..=128 * MIB).contains(&part_bytes(part))));
    }
}
