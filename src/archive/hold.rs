//! Keeps this process's own retention off an archive while it is being read.
//!
//! | thing      | changed by                   | while holding  |
//! |------------|------------------------------|----------------|
//! | `ARCHIVES` | readers, and whoever deletes | itself, briefly|
//!
//! A [`Hold`] is taken before the archive is listed and kept until the last object was read.
//! Nothing is deleted meanwhile, and a deletion that is under way when it is taken is waited for.
//! Other processes know nothing of it: against them stands the time between an object's last use
//! and its deletion.

use std::collections::HashMap;
use std::sync::{Condvar, Mutex};
use std::time::{Duration, Instant};

use super::url::identity;
use crate::error::lock;

/// The longest a reader waits for one batch of deletions to end.
const WAIT: Duration = Duration::from_secs(5);

static ARCHIVES: Mutex<Option<HashMap<String, Use>>> = Mutex::new(None);
static CHANGED: Condvar = Condvar::new();

/// Who is at work on one archive.
#[derive(Default)]
struct Use {
    readers: usize,
    deleters: usize,
}

/// Somebody reads the archive. Dropping it ends that.
#[derive(Debug)]
pub struct Hold(String);

/// Somebody deletes from the archive. Dropping it ends that.
#[derive(Debug)]
pub struct Deleting(String);

/// Keeps deletions off the archive of this URL, by whatever name it is deleted from.
pub fn hold(url: &str) -> Hold {
    let name = identity(url);
    change(&name, |archive| archive.readers += 1);
    let hold = Hold(name);
    let deadline = Instant::now() + WAIT;
    let mut archives = lock(&ARCHIVES);
    while archives.as_ref().and_then(|all| all.get(&hold.0)).is_some_and(|it| it.deleters > 0) {
        let Some(left) = deadline.checked_duration_since(Instant::now()) else { break };
        archives = match CHANGED.wait_timeout(archives, left) {
            Ok((archives, _)) => archives,
            Err(poisoned) => poisoned.into_inner().0,
        };
    }
    hold
}

/// Leave to delete a batch of objects, if nobody reads the archive.
pub fn deleting(url: &str) -> Option<Deleting> {
    let name = identity(url);
    let free = change(&name, |archive| {
        let free = archive.readers == 0;
        archive.deleters += usize::from(free);
        free
    });
    free.then(|| Deleting(name))
}

impl Drop for Hold {
    fn drop(&mut self) {
        change(&self.0, |archive| archive.readers = archive.readers.saturating_sub(1));
    }
}

impl Drop for Deleting {
    fn drop(&mut self) {
        change(&self.0, |archive| archive.deleters = archive.deleters.saturating_sub(1));
    }
}

/// Changes one entry; one that says nothing goes.
fn change<T>(name: &str, change: impl FnOnce(&mut Use) -> T) -> T {
    let mut archives = lock(&ARCHIVES);
    let all = archives.get_or_insert_with(HashMap::new);
    let archive = all.entry(name.to_owned()).or_default();
    let answer = change(archive);
    if archive.readers == 0 && archive.deleters == 0 {
        all.remove(name);
    }
    drop(archives);
    CHANGED.notify_all();
    answer
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_is_deleted_while_somebody_reads() {
        let (url, other) = ("file:///hold-test", "file:///hold-test/other");
        let first = hold(url);
        let second = hold(url);
        assert!(deleting(url).is_none());
        assert!(deleting("file:/hold-test/./x/../").is_none());
        assert!(deleting(other).is_some());
        drop(first);
        assert!(deleting(url).is_none());
        drop(second);
        assert!(deleting(url).is_some());
    }

    #[test]
    fn a_reader_waits_for_the_batch_that_is_under_way() {
        let url = "file:///hold-wait-test";
        let batch = deleting(url).unwrap();
        let reader = std::thread::spawn(move || {
            let _hold = hold(url);
            Instant::now()
        });
        std::thread::sleep(Duration::from_millis(50));
        let ended = Instant::now();
        drop(batch);
        assert!(reader.join().unwrap() >= ended);
    }
}
