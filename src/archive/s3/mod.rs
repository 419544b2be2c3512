//! Objects in a bucket: `s3://bucket/prefix`.
//!
//! | what               | how                                                                   |
//! |--------------------|-----------------------------------------------------------------------|
//! | write-once         | `If-None-Match: *`; Amazon and SeaweedFS honour it, rclone overwrites. Until a server has shown which it does, and for good if it does not, HEAD goes before: two writers at the same moment may then both create. SeaweedFS lets two pass that end their multipart uploads at the same moment |
//! | a segment a second | one PUT where the condition is honoured, else HEAD and PUT. The question is settled once, by sending the first small object a second time |
//! | damage on the way  | `Content-MD5`, which all three check                                  |
//! | whole objects      | the server's: a PUT that breaks off leaves nothing, parts are not visible |
//! | a killed writer    | its parts stay, invisible and paid for; a store's first multipart upload aborts those a day old where the server lists them (Amazon, SeaweedFS). rclone drops them itself |
//! | listings           | a thousand keys a request; SeaweedFS lists folder by folder, so `a/b` before `a-b`: the names of archives have no such pairs |
//! | folders            | common prefixes; except with Amazon each is looked into, since SeaweedFS and rclone keep folders that are empty |
//! | reads              | tried three times until the headers are there; a body that breaks off is an error |
//! | waits              | 5 s for a connection, 20 s of silence (300 s while parts are put together, after a body a second more for each 32 KiB of it, up to 4 MiB); `close` ends them at once |
//!
//! Requests are signed in their URL, which is therefore never shown.

pub mod config;
mod digest;
mod http;
mod refusal;
mod upload;
pub(super) mod xml;

use std::io::{self, Read};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rusty_s3::actions::{DeleteObject, GetObject, HeadObject, ListObjectsV2, ObjectIdentifier};
use rusty_s3::{Bucket, Credentials, S3Action};

use super::store::{Object, Store, Upload};
use crate::error::{Context, Error, ErrorKind, Result};
use crate::transport::Roots;
use digest::content_md5;
use http::{Answer, Call, Http, STALL_MAX, patience_for};
use refusal::clean;
use upload::S3Upload;

/// A signature is good for as long as clocks may differ.
const SIGNED_FOR: Duration = Duration::from_secs(900);
/// Keys in one request to delete.
const DELETE_MAX: usize = 1000;
/// An upload so old has no writer any more.
const LEFTOVER_AGE: Duration = Duration::from_secs(24 * 3600);
/// A read is tried again after these pauses.
const PAUSES: [Duration; 2] = [Duration::from_millis(100), Duration::from_millis(500)];
/// An object to settle the question of conditions with is not larger.
const QUESTION_BYTES_MAX: usize = 1 << 20;

const UNKNOWN: u8 = 0;
const HONOURED: u8 = 1;
const IGNORED: u8 = 2;

/// A prefix in a bucket.
pub struct S3Store {
    /// With its slash, or empty.
    prefix: String,
    bucket: Bucket,
    credentials: Credentials,
    http: Arc<Http>,
    amazon: bool,
    /// What the server makes of `If-None-Match`.
    conditions: AtomicU8,
    /// The server deletes one object a request.
    deletes_singly: AtomicBool,
    /// Leftovers were looked for.
    swept: AtomicBool,
}

/// What a store needs to know.
pub struct Settings {
    /// As people write it.
    pub url: String,
    /// With its slash, or empty.
    pub prefix: String,
    /// Where, and how it is addressed.
    pub bucket: Bucket,
    /// The server's URL.
    pub endpoint: String,
    /// Whether it is Amazon's, which honours conditions.
    pub amazon: bool,
    /// Who asks.
    pub credentials: Credentials,
    /// Whom to trust.
    pub roots: Option<Roots>,
}

impl S3Store {
    /// Nothing is contacted yet.
    pub fn new(settings: Settings) -> S3Store {
        let Settings { url, prefix, bucket, endpoint, amazon, credentials, roots } = settings;
        let http = Http::new(endpoint, url, bucket.name().to_owned(), roots);
        S3Store {
            prefix,
            bucket,
            credentials,
            http,
            amazon,
            conditions: AtomicU8::new(if amazon { HONOURED } else { UNKNOWN }),
            deletes_singly: AtomicBool::new(false),
            swept: AtomicBool::new(false),
        }
    }

    fn object(&self, key: &str) -> String {
        format!("{}{key}", self.prefix)
    }

    fn name(&self, key: &str) -> String {
        format!("object {key} of {}", self.http.url)
    }

    fn honours_conditions(&self) -> bool {
        self.conditions.load(Ordering::Relaxed) == HONOURED
    }

    fn ignores_conditions(&self) -> bool {
        self.conditions.load(Ordering::Relaxed) == IGNORED
    }

    fn wonders_about_conditions(&self, bytes: usize) -> bool {
        self.conditions.load(Ordering::Relaxed) == UNKNOWN && bytes <= QUESTION_BYTES_MAX
    }

    fn learn_conditions(&self, honoured: bool) {
        self.conditions.store(if honoured { HONOURED } else { IGNORED }, Ordering::Relaxed);
    }

    fn send(
        &self,
        method: &'static str,
        url: String,
        headers: &[(&'static str, &str)],
        body: &[u8],
        patience: Duration,
    ) -> Result<Answer> {
        self.http.call(&Call { method, url, headers, body, patience })
    }

    /// Sends a body with its digest.
    fn put(&self, method: &'static str, url: String, body: &[u8], once: bool) -> Result<Answer> {
        let digest = content_md5(body);
        let mut headers = vec![("content-md5", digest.as_str())];
        if once {
            headers.push(("if-none-match", "*"));
        }
        self.send(method, url, &headers, body, patience_for(body.len()))
    }

    /// Asks, several times if the server is out of reach or overloaded.
    fn ask(
        &self,
        method: &'static str,
        headers: &[(&'static str, &str)],
        body: &[u8],
        url: impl Fn() -> String,
    ) -> Result<Answer> {
        let mut pauses = PAUSES.iter();
        loop {
            let answer = self.send(method, url(), headers, body, STALL_MAX);
            let again = match &answer {
                Ok(answer) => [429, 500, 502, 503, 504].contains(&answer.status),
                Err(error) => error.kind() == ErrorKind::Io,
            };
            let Some(pause) = pauses.next().filter(|_| again) else { return answer };
            drop(answer);
            self.http.check()?;
            std::thread::sleep(*pause);
        }
    }

    /// Whether there is such an object in the bucket.
    fn exists(&self, object: &str) -> Result<bool> {
        let action = HeadObject::new(&self.bucket, Some(&self.credentials), object);
        let mut answer = self.ask("HEAD", &[], &[], || action.sign(SIGNED_FOR).to_string())?;
        match answer.status {
            200 => Ok(answer.text().map(|_| true)?),
            404 => Ok(answer.text().map(|_| false)?),
            _ => Err(answer.refusal().0),
        }
    }

    /// One page of a listing.
    fn page(&self, prefix: &str, folders: bool, token: Option<&str>) -> Result<String> {
        let mut list = ListObjectsV2::new(&self.bucket, Some(&self.credentials));
        // Names of archives are plain text, and servers differ in how they encode others.
        list.query_mut().remove("encoding-type");
        list.with_prefix(prefix);
        if folders {
            list.with_delimiter("/");
        }
        if let Some(token) = token {
            list.with_continuation_token(token);
        }
        let mut answer = self.ask("GET", &[], &[], || list.sign(SIGNED_FOR).to_string())?;
        match answer.status {
            200 => {
                let page = answer.text()?;
                let listing = xml::listing(&page).map(str::to_owned);
                listing.ok_or_else(|| {
                    Error::peer(format!(
                        "the server at {} does not answer as S3 does: it sent no listing, or not \
                         all of one; see the option \"endpoint\"",
                        self.http.endpoint
                    ))
                })
            }
            _ => Err(answer.refusal().0),
        }
    }

    /// Every page of a listing.
    fn pages(
        &self,
        path: &str,
        folders: bool,
        each: &mut dyn FnMut(&str) -> Result<()>,
    ) -> Result<()> {
        let prefix = self.object(path);
        let mut token: Option<String> = None;
        loop {
            let what = || format!("cannot list {path:?} of {}", self.http.url);
            let page = self.page(&prefix, folders, token.as_deref()).context(what)?;
            each(&page)?;
            if xml::text(&page, "IsTruncated") != "true" {
                return Ok(());
            }
            let next = xml::text(&page, "NextContinuationToken");
            if next.is_empty() || token.as_ref() == Some(&next) {
                let text = "the server says that there is more and not how to get it";
                return Err(Error::peer(text).context(what()));
            }
            token = Some(next);
        }
    }

    fn open(&self, key: &str, first: Option<u64>) -> Result<Box<dyn Read + Send>> {
        let object = self.object(key);
        let action = GetObject::new(&self.bucket, Some(&self.credentials), &object);
        // No object is so large that the largest numbers, which servers trip over, mean anything.
        let range = first.filter(|first| *first < 1 << 50);
        let range = range.map(|first| format!("bytes=0-{}", first.max(1) - 1));
        let range: Vec<_> = range.as_deref().map(|range| ("range", range)).into_iter().collect();
        let answer = self.ask("GET", &range, &[], || action.sign(SIGNED_FOR).to_string())?;
        match answer.status {
            200 | 206 => match first {
                Some(first) => Ok(Box::new(answer.body.take(first))),
                None => Ok(Box::new(answer.body)),
            },
            // An empty object has no first byte.
            416 if first.is_some() => Ok(Box::new(io::empty())),
            _ => Err(answer.refusal().0),
        }
    }

    fn delete_many(&self, objects: &[String]) -> Result<()> {
        let keys: Vec<_> = objects.iter().cloned().map(ObjectIdentifier::new).collect();
        let action = || {
            let mut action = self.bucket.delete_objects(Some(&self.credentials), keys.iter());
            action.set_quiet(true);
            action
        };
        let (body, digest) = action().body_with_md5();
        let headers = [("content-md5", digest.as_str()), ("content-type", "application/xml")];
        let url = || action().sign(SIGNED_FOR).to_string();
        let mut answer = self.ask("POST", &headers, body.as_bytes(), url)?;
        match answer.status {
            200 => {
                let text = answer.text()?;
                let failed = xml::elements(&text, "Error")
                    .into_iter()
                    .find(|error| xml::text(error, "Code") != "NoSuchKey");
                let Some(failed) = failed else { return Ok(()) };
                let [code, key, message] =
                    ["Code", "Key", "Message"].map(|name| clean(&xml::text(failed, name)));
                let kind = match code.as_str() {
                    "AccessDenied" => ErrorKind::Refused,
                    _ => ErrorKind::Io,
                };
                Err(Error::new(kind, format!("{key}: the server answered {code}: {message}")))
            }
            400 | 405 | 501 => {
                let (error, code) = answer.refusal();
                if error.kind() == ErrorKind::Refused {
                    return Err(error);
                }
                drop(code);
                self.deletes_singly.store(true, Ordering::Relaxed);
                objects.iter().try_for_each(|object| self.delete_one(object))
            }
            _ => Err(answer.refusal().0),
        }
    }

    fn delete_one(&self, object: &str) -> Result<()> {
        let action = DeleteObject::new(&self.bucket, Some(&self.credentials), object);
        let answer = self.ask("DELETE", &[], &[], || action.sign(SIGNED_FOR).to_string())?;
        if (200..300).contains(&answer.status) {
            return Ok(());
        }
        match answer.refusal() {
            (error, _) if error.kind() == ErrorKind::Missing => Ok(()),
            (error, _) => Err(error),
        }
    }

    /// Aborts what writers that were killed have left, once, if the server lists it.
    fn sweep(&self) {
        if self.swept.swap(true, Ordering::Relaxed) {
            return;
        }
        let mut list = ListObjectsV2::new(&self.bucket, Some(&self.credentials));
        list.query_mut().remove("encoding-type");
        list.query_mut().remove("list-type");
        list.query_mut().insert("uploads", "");
        list.with_prefix(self.prefix.as_str());
        let url = list.sign(SIGNED_FOR).to_string();
        // A server that cannot list them keeps them.
        let Ok(mut answer) = self.send("GET", url, &[], &[], STALL_MAX) else { return };
        let Ok(text) = answer.text() else { return };
        if answer.status != 200 {
            return;
        }
        for upload in xml::elements(&text, "Upload") {
            let begun = time(&xml::text(upload, "Initiated"));
            let old = SystemTime::now().duration_since(begun).unwrap_or_default() > LEFTOVER_AGE;
            let (key, id) = (xml::text(upload, "Key"), xml::text(upload, "UploadId"));
            if old && begun > UNIX_EPOCH && key.starts_with(&self.prefix) {
                let action = self.bucket.abort_multipart_upload(Some(&self.credentials), &key, &id);
                self.abort(action.sign(SIGNED_FOR).to_string(), STALL_MAX);
            }
        }
    }

    fn abort(&self, url: String, limit: Duration) {
        let call = Call { method: "DELETE", url, headers: &[], body: &[], patience: limit };
        self.http.farewell(&call, limit);
    }
}

impl Store for S3Store {
    fn url(&self) -> &str {
        &self.http.url
    }

    fn list(&self, prefix: &str, each: &mut dyn FnMut(Object) -> Result<()>) -> Result<()> {
        self.pages(prefix, false, &mut |page| {
            for found in xml::elements(page, "Contents") {
                let object = xml::text(found, "Key");
                // Some servers have objects for folders.
                let Some(key) = object.strip_prefix(&self.prefix).filter(|key| !key.ends_with('/'))
                else {
                    continue;
                };
                let size = xml::text(found, "Size").parse().unwrap_or(0);
                let modified = time(&xml::text(found, "LastModified"));
                each(Object { key: key.to_owned(), size, modified })?;
            }
            Ok(())
        })
    }

    fn folders(&self, folder: &str) -> Result<Vec<String>> {
        let above = self.object(folder);
        let mut names = Vec::new();
        self.pages(folder, true, &mut |page| {
            for found in xml::elements(page, "CommonPrefixes") {
                let path = xml::text(found, "Prefix");
                let name = path.strip_prefix(&above).and_then(|name| name.strip_suffix('/'));
                names.extend(name.filter(|name| !name.is_empty()).map(str::to_owned));
            }
            Ok(())
        })?;
        names.sort_unstable();
        names.dedup();
        if self.amazon {
            return Ok(names);
        }
        let mut filled = Vec::new();
        for name in names {
            let path = format!("{above}{name}/");
            let what = || format!("cannot list {path:?} of {}", self.http.url);
            if !xml::elements(&self.page(&path, false, None).context(what)?, "Contents").is_empty()
            {
                filled.push(name);
            }
        }
        Ok(filled)
    }

    fn create(&self, key: &str) -> Result<Box<dyn Upload + '_>> {
        self.http.check()?;
        Ok(Box::new(S3Upload::new(self, key)))
    }

    fn replace(&self, key: &str, content: &[u8]) -> Result<()> {
        let object = self.object(key);
        let put = || -> Result<()> {
            let action = self.bucket.put_object(Some(&self.credentials), &object);
            let mut answer =
                self.put("PUT", action.sign(SIGNED_FOR).to_string(), content, false)?;
            match answer.status {
                200 => answer.text().map(|_| ()),
                _ => Err(answer.refusal().0),
            }
        };
        put().context(|| format!("cannot write {}", self.name(key)))
    }

    fn get(&self, key: &str, first: Option<u64>) -> Result<Box<dyn Read + Send>> {
        self.open(key, first).context(|| format!("cannot read {}", self.name(key)))
    }

    fn delete(&self, keys: &[String]) -> Result<()> {
        self.http.check()?;
        for keys in keys.chunks(DELETE_MAX) {
            let objects: Vec<_> = keys.iter().map(|key| self.object(key)).collect();
            let deleted = if self.deletes_singly.load(Ordering::Relaxed) {
                objects.iter().try_for_each(|object| self.delete_one(object))
            } else {
                self.delete_many(&objects)
            };
            deleted.context(|| format!("cannot delete objects of {}", self.http.url))?;
        }
        Ok(())
    }

    fn close(&self) {
        self.http.close();
    }
}

/// A time as S3 writes it; 1970 if it is none.
fn time(text: &str) -> SystemTime {
    humantime::parse_rfc3339(text).unwrap_or(UNIX_EPOCH)
}
