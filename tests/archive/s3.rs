//! The S3 store on real servers: the rules, and what goes wrong between them and us.

use std::io::{Read, Write};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use litestream::archive::store::{Put, Store};
use litestream::archive::{Archive, ArchiveOptions};
use litestream::error::ErrorKind;

use crate::common::servers::{ACCESS_KEY, Kind, S3Server, SECRET_KEY};
use crate::common::until;
use crate::crypt;
use crate::rules::{Place, check_all, fails_with, get, keys, put};

pub fn options(server: &S3Server) -> ArchiveOptions {
    ArchiveOptions {
        endpoint: Some(server.endpoint()),
        access_key_id: Some(ACCESS_KEY.into()),
        secret_access_key: Some(SECRET_KEY.into()),
        ..ArchiveOptions::default()
    }
}

fn open(url: &str, options: &ArchiveOptions) -> Arc<dyn Store> {
    Arc::clone(Archive::open(url, options).unwrap().store())
}

fn place(server: &S3Server) -> Place {
    let mut place = Place::new(server.url("rules"), options(server));
    place.atomic = server.kind() == Kind::Weed;
    // Both look first and put the parts together after.
    place.atomic_parts = false;
    place.ordered = server.kind() == Kind::Rclone;
    place
}

#[test]
fn rules_on_seaweedfs() {
    check_all(&place(&S3Server::weed()));
}

#[test]
fn rules_on_rclone() {
    check_all(&place(&S3Server::rclone()));
}

#[test]
fn troubles_with_seaweedfs() {
    troubles(S3Server::weed());
}

#[test]
fn troubles_with_rclone() {
    troubles(S3Server::rclone());
}

fn troubles(mut server: S3Server) {
    what_is_refused_says_why(&server);
    crypt::check(&server.url("crypt"), &options(&server));
    a_server_that_comes_back_has_everything(&mut server);
    a_bucket_that_goes_is_named(&server);
}

fn what_is_refused_says_why(server: &S3Server) {
    let right = options(server);
    let check = |url: &str, options: &ArchiveOptions, kind, part: &str| {
        let store = open(url, options);
        let text = fails_with(store.list("x", &mut |_| Ok(())), kind);
        assert!(text.contains(part) && text.contains(url), "{text}");
        let text = fails_with(store.get("x/y", None).map(|_| ()), kind);
        assert!(text.contains(part) && text.contains("object x/y"), "{text}");
        let mut upload = store.create("x/y").unwrap();
        upload.write_all(b"1").unwrap();
        let text = fails_with(upload.finish(), kind);
        assert!(!text.contains("X-Amz") && !text.contains("SIGNATURE"), "{text}");
        fails_with(store.delete(&["x/y".into()]), kind);
        for secret in [SECRET_KEY, "wrong-secret"] {
            assert!(!text.contains(secret), "{text}");
        }
    };
    let refused = ErrorKind::Refused;
    let url = server.url("refused");
    let wrong = ArchiveOptions { secret_access_key: Some("wrong-secret".into()), ..right.clone() };
    check(&url, &wrong, refused, "secret_access_key");
    let wrong = ArchiveOptions { access_key_id: Some("nobody".into()), ..right.clone() };
    check(&url, &wrong, refused, "access_key_id");
    check("s3://no-such-bucket/a", &right, refused, "no bucket no-such-bucket");
    let nobody = format!("http://127.0.0.1:{}", crate::common::free_port());
    let wrong = ArchiveOptions { endpoint: Some(nobody.clone()), ..right };
    check(&url, &wrong, ErrorKind::Io, &format!("{nobody}: nobody listens there"));
}

fn a_server_that_comes_back_has_everything(server: &mut S3Server) {
    let store = open(&server.url("restart"), &options(server));
    for number in 0..10 {
        put(&*store, &format!("a/{number}"), &vec![number; 10_000]);
    }
    let mut half = store.create("a/half").unwrap();
    half.write_all(&vec![1; 20 << 20]).unwrap();
    server.stop();
    fails_with(store.get("a/1", None).map(|_| ()), ErrorKind::Io);
    fails_with(half.finish(), ErrorKind::Io);
    server.start();
    let found = until("the objects", || {
        let mut found = Vec::new();
        let listed = store.list("", &mut |object| {
            found.push(object.key);
            Ok(())
        });
        (listed.is_ok() && found.len() == 10).then_some(found)
    });
    assert!(found.iter().all(|key| key.starts_with("a/")));
    for number in 0..10 {
        let key = format!("a/{number}");
        // Its volumes may come up after its listings.
        let content = until("the content", || {
            let mut content = Vec::new();
            let mut object = store.get(&key, None).ok()?;
            object.read_to_end(&mut content).ok().map(|_| content)
        });
        assert_eq!(content, vec![number; 10_000]);
    }
    let put = until("a write", || {
        let mut upload = store.create("a/half").unwrap();
        upload.write_all(b"whole").unwrap();
        upload.finish().ok()
    });
    assert_eq!((put, get(&*store, "a/half")), (Put::Created, b"whole".to_vec()));
}

fn a_bucket_that_goes_is_named(server: &S3Server) {
    let store = open(&server.url("gone"), &options(server));
    put(&*store, "a", b"1");
    server.remove_bucket("bucket");
    let text = fails_with(store.list("", &mut |_| Ok(())), ErrorKind::Refused);
    assert!(text.contains("no bucket bucket"), "{text}");
    let mut upload = store.create("b").unwrap();
    upload.write_all(b"1").unwrap();
    fails_with(upload.finish(), ErrorKind::Refused);
    server.make_bucket("bucket");
    assert_eq!(keys(&*store, ""), [""; 0]);
    assert_eq!(put(&*store, "a", b"2"), Put::Created);
}

/// A server that takes connections and says nothing.
#[test]
fn closing_ends_every_wait() {
    let server = S3Server::rclone();
    let options = options(&server);
    let url = server.url("stall");
    put(&*open(&url, &options), "a/b", &vec![1; 12 << 20]);
    let mut read = open(&url, &options).get("a/b", None).unwrap();
    read.read_exact(&mut [0; 10]).unwrap();
    server.pause();
    type Call = fn(&dyn Store) -> ErrorKind;
    let calls: [Call; 5] = [
        |store| store.list("", &mut |_| Ok(())).unwrap_err().kind(),
        |store| store.get("a/b", None).map(|_| ()).unwrap_err().kind(),
        |store| store.replace("a/c", b"1").unwrap_err().kind(),
        |store| store.delete(&["a/b".into()]).unwrap_err().kind(),
        |store| {
            let mut upload = store.create("a/d").unwrap();
            upload.write_all(b"1").unwrap();
            upload.finish().unwrap_err().kind()
        },
    ];
    for call in calls {
        let store = open(&url, &options);
        std::thread::scope(|scope| {
            let waiting = scope.spawn(|| call(&*store));
            std::thread::sleep(Duration::from_millis(100));
            assert!(!waiting.is_finished());
            let begin = Instant::now();
            store.close();
            assert_eq!(waiting.join().unwrap(), ErrorKind::Stopped);
            assert!(begin.elapsed() < Duration::from_secs(1));
        });
    }
    server.resume();
}

/// The long form waits for the store's own patience.
#[test]
fn a_stalled_server_is_given_up() {
    if !crate::common::soak() {
        return;
    }
    let server = S3Server::weed();
    let store = open(&server.url("stall"), &options(&server));
    put(&*store, "a", b"1");
    server.pause();
    let text = fails_with(store.replace("a", b"2"), ErrorKind::Io);
    assert!(text.contains("did not answer for 20 s"), "{text}");
    server.resume();
    assert_eq!(put(&*store, "b", b"2"), Put::Created);
}

/// What a killed writer left is invisible, and what is dropped is aborted at the server.
#[test]
fn dropped_parts_are_aborted() {
    let server = S3Server::rclone();
    let store = open(&server.url("parts"), &options(&server));
    let mut upload = store.create("a/half").unwrap();
    upload.write_all(&vec![1; 20 << 20]).unwrap();
    drop(upload);
    let left = || {
        let folder = server.bucket_folder().join("parts/a");
        std::fs::read_dir(folder).map_or(0, |entries| entries.count())
    };
    until("the parts to go", || (left() == 0).then_some(()));
}

/// Behind https, trusted by the option `ca` alone.
#[test]
fn a_certificate_of_ones_own() {
    let data = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/tls");
    let certificate = data.join("cert.pem");
    let server = S3Server::rclone_https((certificate.clone(), data.join("key.pem")));
    let wrong = open(&server.url("tls"), &options(&server));
    let text = fails_with(wrong.list("", &mut |_| Ok(())), ErrorKind::Io);
    assert!(text.contains("certificate") && text.contains("\"ca\""), "{text}");
    let right = ArchiveOptions { ca: Some(certificate), ..options(&server) };
    let store = open(&server.url("tls"), &right);
    put(&*store, "a", &vec![1; 9 << 20]);
    assert_eq!(get(&*store, "a").len(), 9 << 20);
}
