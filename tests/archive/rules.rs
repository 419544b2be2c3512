//! The rules of `src/archive/store.rs`, each as one function over any store.

use std::io::{Read, Write};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Barrier};
use std::time::{Duration, Instant, SystemTime};

use litestream::archive::store::{Object, Put, Store};
use litestream::archive::{Archive, ArchiveOptions};
use litestream::error::{Error, ErrorKind};

use crate::common::{Rng, scaled};

/// Where stores can be had.
pub struct Place {
    url: String,
    options: ArchiveOptions,
    /// Of several who create one key at the same moment, one is told that it did.
    pub atomic: bool,
    /// The same of objects put together from parts.
    pub atomic_parts: bool,
    /// A folder is listed where its name and a slash belong.
    pub ordered: bool,
    next: AtomicU32,
}

impl Place {
    pub fn new(url: String, options: ArchiveOptions) -> Place {
        Place {
            url,
            options,
            atomic: true,
            atomic_parts: true,
            ordered: true,
            next: AtomicU32::new(0),
        }
    }

    /// A new archive, empty.
    pub fn archive(&self) -> Archive {
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        Archive::open(&format!("{}/{number}", self.url), &self.options).unwrap()
    }

    /// A new store, empty.
    pub fn store(&self) -> Arc<dyn Store> {
        Arc::clone(self.archive().store())
    }

    /// The same store once more, as another process would open it.
    pub fn again(&self, store: &Arc<dyn Store>) -> Arc<dyn Store> {
        Arc::clone(Archive::open(store.url(), &self.options).unwrap().store())
    }
}

/// Runs every rule; a failure names it.
pub fn check_all(place: &Place) {
    for (name, rule) in RULES {
        let begin = Instant::now();
        println!("{name}");
        rule(place);
        println!("{name}: {:?}", begin.elapsed());
    }
}

type Rule = (&'static str, fn(&Place));

const RULES: &[Rule] = &[
    ("what is put is got", put_and_get),
    ("what does not exist is empty, or missing", nothing_there),
    ("half an object is none", half_an_object),
    ("an object is written once", written_once),
    ("of many who create one key, one does", many_create_one),
    ("a small object is replaced", replaced),
    ("listing is in order, and whole", listing),
    ("more objects than a page of a listing holds", many_objects),
    ("folders hold objects", folders),
    ("deleting, what is there and what is not", deleting),
    ("sizes around the buffers and parts", sizes),
    ("two archives side by side", side_by_side),
    ("closing ends and refuses", closing),
    ("objects have the time of their making", times),
];

/// As callers write: again when the server could not. (rclone, asked for several objects in one new
/// folder at once, answers some with 500.)
pub fn put(store: &dyn Store, key: &str, content: &[u8]) -> Put {
    for _ in 0..4 {
        match try_put(store, key, content) {
            Err(error) if error.to_string().contains("overloaded or out of order") => {}
            done => return done.unwrap(),
        }
    }
    try_put(store, key, content).unwrap()
}

fn try_put(store: &dyn Store, key: &str, content: &[u8]) -> Result<Put, Error> {
    let mut upload = store.create(key)?;
    upload.write_all(content)?;
    upload.finish()
}

pub fn get(store: &dyn Store, key: &str) -> Vec<u8> {
    let mut content = Vec::new();
    store.get(key, None).unwrap().read_to_end(&mut content).unwrap();
    content
}

pub fn list(store: &dyn Store, prefix: &str) -> Vec<Object> {
    let mut found = Vec::new();
    store
        .list(prefix, &mut |object| {
            found.push(object);
            Ok(())
        })
        .unwrap();
    found
}

pub fn keys(store: &dyn Store, prefix: &str) -> Vec<String> {
    list(store, prefix).into_iter().map(|object| object.key).collect()
}

#[track_caller]
pub fn fails_with<T>(result: Result<T, Error>, kind: ErrorKind) -> String {
    match result {
        Ok(_) => panic!("expected {kind:?}"),
        Err(error) => {
            assert_eq!(error.kind(), kind, "{error}");
            error.to_string()
        }
    }
}

fn put_and_get(place: &Place) {
    let store = place.store();
    let content = Rng::new().bytes(100_000);
    assert_eq!(put(&*store, "a/b/c.x", &content), Put::Created);
    assert_eq!(get(&*store, "a/b/c.x"), content);
    assert_eq!(get(&*place.again(&store), "a/b/c.x"), content);
    for first in [0, 1, 1000, 99_999, 100_000, 100_001, u64::MAX] {
        let mut start = Vec::new();
        store.get("a/b/c.x", Some(first)).unwrap().read_to_end(&mut start).unwrap();
        let end = usize::try_from(first).unwrap_or(usize::MAX).min(content.len());
        assert!(start == content[..end], "first {first}: {} bytes", start.len());
    }
    assert_eq!(put(&*store, "empty", b""), Put::Created);
    assert_eq!(get(&*store, "empty"), b"");
    let mut start = Vec::new();
    store.get("empty", Some(10)).unwrap().read_to_end(&mut start).unwrap();
    assert_eq!(start, b"");
    // In small pieces.
    let mut upload = store.create("pieces").unwrap();
    for piece in content.chunks(777) {
        upload.write_all(piece).unwrap();
        upload.flush().unwrap();
    }
    assert_eq!(upload.finish().unwrap(), Put::Created);
    assert_eq!(get(&*store, "pieces"), content);
    // A reader left early harms nobody.
    let mut piece = [0; 10];
    store.get("pieces", None).unwrap().read_exact(&mut piece).unwrap();
    assert_eq!(get(&*store, "pieces"), content);
}

fn nothing_there(place: &Place) {
    let store = place.store();
    assert_eq!(keys(&*store, ""), [""; 0]);
    assert_eq!(keys(&*store, "a/"), [""; 0]);
    assert_eq!(store.folders("").unwrap(), [""; 0]);
    assert_eq!(store.folders("a/b/").unwrap(), [""; 0]);
    store.delete(&[]).unwrap();
    store.delete(&["a/b".into(), "c".into()]).unwrap();
    for key in ["a", "a/b"] {
        let text = fails_with(store.get(key, None).map(|_| ()), ErrorKind::Missing);
        assert!(text.contains(key) && text.contains(store.url()), "{text}");
        fails_with(store.get(key, Some(10)).map(|_| ()), ErrorKind::Missing);
    }
    put(&*store, "a/b", b"1");
    for key in ["a", "a/b/c", "a/c"] {
        fails_with(store.get(key, None).map(|_| ()), ErrorKind::Missing);
    }
}

fn half_an_object(place: &Place) {
    let store = place.store();
    for size in [0, 1, 1 << 20, 20 << 20] {
        let mut upload = store.create("a/half").unwrap();
        upload.write_all(&vec![7; size]).unwrap();
        assert_eq!(keys(&*store, ""), [""; 0], "under way, {size}");
        fails_with(store.get("a/half", None).map(|_| ()), ErrorKind::Missing);
        drop(upload);
        assert_eq!(keys(&*store, ""), [""; 0], "dropped, {size}");
    }
    assert_eq!(store.folders("").unwrap(), [""; 0]);
    assert_eq!(put(&*store, "a/half", b"whole"), Put::Created);
}

fn written_once(place: &Place) {
    let store = place.store();
    assert_eq!(put(&*store, "k", b"first"), Put::Created);
    assert_eq!(put(&*store, "k", b"second"), Put::Exists);
    assert_eq!(put(&*place.again(&store), "k", b"third"), Put::Exists);
    assert_eq!(put(&*store, "k", &vec![4; 20 << 20]), Put::Exists);
    assert_eq!(get(&*store, "k"), b"first");
    assert_eq!(put(&*store, "empty", b""), Put::Created);
    assert_eq!(put(&*store, "empty", b""), Put::Exists);
    assert_eq!(keys(&*store, ""), ["empty", "k"]);
    store.delete(&["k".into()]).unwrap();
    assert_eq!(put(&*store, "k", b"anew"), Put::Created);
    assert_eq!(get(&*store, "k"), b"anew");
}

fn many_create_one(place: &Place) {
    let store = place.store();
    for (round, size) in [10, 1000, 9 << 20].into_iter().enumerate() {
        let writers = 4;
        let exact = if size > 8 << 20 { place.atomic_parts } else { place.atomic };
        let barrier = Barrier::new(writers);
        let key = format!("x/{round}");
        let created: Vec<u8> = std::thread::scope(|scope| {
            let write = |number: u8| {
                let store = place.again(&store);
                let mut upload = store.create(&key).unwrap();
                upload.write_all(&vec![number; size]).unwrap();
                barrier.wait();
                match upload.finish() {
                    Ok(put) => (put == Put::Created).then_some(number),
                    // Where writers get into each other's way, some are told to try again.
                    Err(error) if !exact && error.kind() == ErrorKind::Io => None,
                    Err(error) => panic!("{error}"),
                }
            };
            let threads: Vec<_> =
                (0..writers as u8).map(|number| scope.spawn(move || write(number))).collect();
            threads.into_iter().filter_map(|thread| thread.join().unwrap()).collect()
        });
        assert!(
            created.len() == 1 || !exact && !created.is_empty(),
            "exactly one creates {key}: {created:?}"
        );
        assert!(created.contains(&get(&*store, &key)[0]), "{key} is by one who created it");
        assert_eq!(list(&*store, &key)[0].size, size as u64);
    }
}

fn replaced(place: &Place) {
    let store = place.store();
    for content in ["one", "two and more", "", "3"] {
        store.replace("g/position", content.as_bytes()).unwrap();
        assert_eq!(get(&*store, "g/position"), content.as_bytes());
    }
    assert_eq!(keys(&*store, ""), ["g/position"]);
    assert_eq!(put(&*store, "g/position", b"no"), Put::Exists);
    // Readers see the old or the new.
    let done = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            for round in 0..scaled(50, 500) {
                let byte = if round % 2 == 0 { b'a' } else { b'b' };
                store.replace("g/position", &[byte; 100]).unwrap();
            }
            done.store(true, Ordering::Release);
        });
        let reader = place.again(&store);
        while !done.load(Ordering::Acquire) {
            let seen = get(&*reader, "g/position");
            let whole = seen == b"3" || seen == [b'a'; 100] || seen == [b'b'; 100];
            assert!(whole, "{seen:?}");
        }
    });
}

fn listing(place: &Place) {
    let store = place.store();
    let mut expected = Vec::new();
    let pairs: &[&str] = if place.ordered { &["a-b", "a/1-x", "a/1.x"] } else { &[] };
    for key in pairs {
        put(&*store, key, key.as_bytes());
        expected.push(*key);
    }
    for key in ["a/0", "a/1/x", "a/10", "a_", "a/2/3/4/5", "b", "ab/c"] {
        put(&*store, key, key.as_bytes());
        expected.push(key);
    }
    expected.sort_unstable();
    let check = |prefix: &str| {
        let found = list(&*store, prefix);
        let expected: Vec<_> = expected.iter().filter(|key| key.starts_with(prefix)).collect();
        let keys: Vec<_> = found.iter().map(|object| &object.key).collect();
        assert_eq!(keys, expected, "prefix {prefix:?}");
        for object in found {
            assert_eq!(object.size, object.key.len() as u64);
        }
    };
    for prefix in ["", "a", "a/", "a/1", "a/1/", "a/1/x", "a/1/x/", "ab", "b", "b/", "c", "a-"] {
        check(prefix);
    }
    // The caller's error ends it and comes back.
    let mut seen = 0;
    let error = store.list("", &mut |_| {
        seen += 1;
        Err(Error::usage("enough"))
    });
    assert_eq!((fails_with(error, ErrorKind::Usage).as_str(), seen), ("enough", 1));
}

/// S3 lists a thousand at a time.
fn many_objects(place: &Place) {
    let store = place.store();
    let count = scaled(1005, 3100);
    let names: Vec<String> = (0..count).map(|n| format!("g/wal/{n:08x}.x")).collect();
    std::thread::scope(|scope| {
        for names in names.chunks(count / 4 + 1) {
            let store = &store;
            scope.spawn(move || {
                for name in names {
                    assert_eq!(put(&**store, name, b"1"), Put::Created);
                }
            });
        }
    });
    assert_eq!(keys(&*store, "g/"), names);
    assert_eq!(store.folders("g/").unwrap(), ["wal"]);
    // A key more than one request deletes.
    let (some, rest) = names.split_at(count - 3);
    let mut some = some.to_vec();
    some.push("g/wal/none".into());
    store.delete(&some).unwrap();
    assert_eq!(keys(&*store, ""), rest);
}

fn folders(place: &Place) {
    let store = place.store();
    for key in ["g/2/a", "g/1/a/b", "g/10/a", "g/file", "h/1/x", "g/1-/a"] {
        put(&*store, key, b"");
    }
    assert_eq!(store.folders("").unwrap(), ["g", "h"]);
    assert_eq!(store.folders("g/").unwrap(), ["1", "1-", "10", "2"]);
    assert_eq!(store.folders("g/1/").unwrap(), ["a"]);
    assert_eq!(store.folders("g/2/").unwrap(), [""; 0]);
    store.delete(&["g/1/a/b".into(), "g/10/a".into()]).unwrap();
    assert_eq!(store.folders("g/").unwrap(), ["1-", "2"]);
    store.delete(&["g/2/a".into(), "g/1-/a".into(), "g/file".into()]).unwrap();
    assert_eq!(store.folders("").unwrap(), ["h"]);
}

fn deleting(place: &Place) {
    let store = place.store();
    for key in ["a/1", "a/2", "a/3", "b/1"] {
        put(&*store, key, b"x");
    }
    let gone = ["a/2", "a/none", "none", "b/1", "a/2"].map(String::from);
    store.delete(&gone).unwrap();
    assert_eq!(keys(&*store, ""), ["a/1", "a/3"]);
    store.delete(&gone).unwrap();
    store.delete(&["a/1".into(), "a/3".into()]).unwrap();
    assert_eq!(keys(&*store, ""), [""; 0]);
    assert_eq!(put(&*store, "a/1", b"again"), Put::Created);
}

fn sizes(place: &Place) {
    const MIB: usize = 1 << 20;
    let store = place.store();
    let mut sizes = vec![1, 8 * MIB, 8 * MIB + 1, 16 * MIB];
    if scaled(false, true) {
        sizes.extend([
            5 * MIB,
            8 * MIB - 1,
            24 * MIB + 1,
            16 * MIB - 1,
            16 * MIB + 1,
            65 * MIB,
            150 * MIB + 17,
        ]);
    }
    for size in sizes {
        let content = Rng::new().bytes(size);
        let key = format!("size/{size}");
        assert_eq!(put(&*store, &key, &content), Put::Created);
        let objects = list(&*store, &key);
        assert_eq!((objects.len(), objects[0].size), (1, size as u64));
        assert!(get(&*store, &key) == content, "{size} bytes come back as they were");
        store.delete(&[key]).unwrap();
    }
}

fn side_by_side(place: &Place) {
    let (one, two) = (place.store(), place.store());
    put(&*one, "k", b"one");
    put(&*two, "k", b"two");
    assert_eq!((get(&*one, "k"), get(&*two, "k")), (b"one".to_vec(), b"two".to_vec()));
    one.delete(&["k".into()]).unwrap();
    assert_eq!((keys(&*one, ""), keys(&*two, "")), (vec![], vec!["k".to_owned()]));
    // Names that begin alike are of different archives.
    let beside = place.again(&two);
    let longer = Archive::open(&format!("{}0", two.url()), &place.options).unwrap();
    put(&**longer.store(), "k", b"longer");
    assert_eq!(keys(&*beside, ""), ["k"]);
}

fn closing(place: &Place) {
    let store = place.store();
    put(&*store, "k", &vec![1; 1 << 20]);
    let mut open = store.get("k", None).unwrap();
    let mut half = store.create("half").unwrap();
    half.write_all(&[1; 1000]).unwrap();
    store.close();
    let begin = Instant::now();
    let stopped = ErrorKind::Stopped;
    let mut rest = Vec::new();
    fails_with(open.read_to_end(&mut rest).map_err(Error::from), stopped);
    fails_with(half.finish(), stopped);
    fails_with(store.list("", &mut |_| Ok(())), stopped);
    fails_with(store.folders(""), stopped);
    fails_with(store.get("k", None).map(|_| ()), stopped);
    fails_with(store.replace("k", b"x"), stopped);
    fails_with(store.delete(&["k".into()]), stopped);
    let created = store.create("new").and_then(|mut upload| {
        upload.write_all(b"x").map_err(Error::from)?;
        upload.finish()
    });
    let text = fails_with(created, stopped);
    assert!(text.contains(store.url()), "{text}");
    store.close();
    assert!(begin.elapsed() < Duration::from_secs(2));
    let other = place.again(&store);
    assert_eq!(keys(&*other, ""), ["k"]);
}

fn times(place: &Place) {
    let store = place.store();
    // Stores round down to the second.
    let before = SystemTime::now() - Duration::from_secs(2);
    put(&*store, "k", b"x");
    let modified = list(&*store, "k")[0].modified;
    assert!(before <= modified && modified <= SystemTime::now() + Duration::from_secs(1));
}
