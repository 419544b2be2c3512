//! Encrypted archives: nothing readable leaves the process, and a process that cannot read what it
//! wrote still goes on where it was.

use age::secrecy::ExposeSecret;

use crate::common::*;
use crate::primary::{Primary, pause_up_to, restored_with};

fn keys() -> (String, String) {
    let identity = age::x25519::Identity::generate();
    (identity.to_public().to_string(), identity.to_string().expose_secret().to_owned())
}

fn assert_restores(primary: &Primary, secret: &str, folder: &Folder) {
    primary.sync();
    let options = json!({"age_identities": secret});
    let content = restored_with(&primary.url(), &options, &folder.file("r.db"));
    assert_eq!(content, primary.db.content());
}

fn goes_on(options: &Value, secret: &str) {
    let folder = Folder::new("archive-age");
    let mut primary = Primary::new(&folder, &options.to_string());
    primary.db.script("CREATE TABLE secret(x); INSERT INTO secret VALUES ('ciphers and plums')");
    let (rounds, mut broken) = (scaled(3, 30), 0);
    for _ in 0..rounds {
        let load = primary.load(0.001);
        load.advance(30);
        pause_up_to(60);
        let sent = objects(&primary.archive);
        primary = primary.killed_and_restarted();
        broken += primary.told("new generation");
        assert_restores(&primary, secret, &folder);
        let now = objects(&primary.archive);
        let others = |(key, _): &(&String, _)| !key.ends_with("position");
        assert!(sent.iter().filter(others).all(|(key, facts)| now.get(key) == Some(facts)));
    }
    // Killed between a restart of the WAL and our seeing it, nothing proves it was the only one.
    assert!(broken <= rounds / 10, "{broken} new histories in {rounds} rounds");
    let ends = |key: &String| key.ends_with(".lz4");
    for key in objects(&primary.archive).keys().filter(|key| ends(key)) {
        let bytes = std::fs::read(primary.archive.join(key)).unwrap();
        assert!(bytes.starts_with(b"age-encryption.org/v1"), "{key}");
        assert!(!bytes.windows(7).any(|part| part == b"ciphers"), "{key}");
    }
}

#[test]
fn with_the_key_at_hand() {
    let (public, secret) = keys();
    let options = json!({
        "age_recipients": public, "age_identities": secret, "sync_interval": "20ms",
    });
    goes_on(&options, &secret);
}

/// The note beside the database tells where the archive ends.
#[test]
fn without_the_key() {
    let (public, secret) = keys();
    goes_on(&json!({"age_recipients": [public], "sync_interval": "20ms"}), &secret);
}

/// Without the note nothing proves what the archive holds: a new history, nothing overwritten.
#[test]
fn without_the_key_and_the_note() {
    let folder = Folder::new("archive-age-note");
    let (public, secret) = keys();
    let primary = Primary::new(&folder, &json!({"age_recipients": public}).to_string());
    primary.add(2);
    primary.sync();
    let Primary { path, archive, options, host, db: _ } = primary;
    host.kill();
    std::fs::remove_dir_all(folder.file("p.db-litestream/archives")).unwrap();
    let primary = Primary::idle(path, archive, &options);
    primary.replicate();
    until("a new history", || (primary.told("new generation") == 1).then_some(()));
    assert_restores(&primary, &secret, &folder);
}

#[test]
fn an_archive_is_encrypted_as_a_whole_or_not_at_all() {
    let (public, _) = keys();
    let given = json!({"age_recipients": public}).to_string();
    for (first, then) in [("{}", given.as_str()), (given.as_str(), "{}")] {
        let folder = Folder::new("archive-age-mixed");
        let primary = Primary::new(&folder, first);
        primary.add(1);
        primary.sync();
        let before = objects(&primary.archive);
        primary.db.int("SELECT litestream_stop()");
        let url = primary.url();
        for db in [&primary.db, &primary.host.open(folder.file("other.db"))] {
            let error = db.fails(&format!("SELECT litestream_replicate('{url}', '{then}')"));
            assert!(error.contains("as a whole or not at all"), "{error}");
            assert_eq!(db.int("SELECT count(*) FROM litestream_replicas"), 0);
        }
        assert_eq!(objects(&primary.archive), before);
    }
}

#[test]
fn keys_that_are_none() {
    let folder = Folder::new("archive-age-keys");
    let (public, secret) = keys();
    let (_host, db) = ledger(folder.file("p.db"));
    let url = format!("file://{}", folder.file("archive").display());
    for options in [
        json!({"age_recipients": secret}),
        json!({"age_recipients": public, "age_identities": public}),
        json!({"age_recipients": "age1"}),
    ] {
        let error = db.fails(&format!("SELECT litestream_replicate('{url}', '{options}')"));
        assert!(error.contains("age_"), "{error}");
        assert!(!error.contains(&secret), "a secret in an error: {error}");
    }
    assert_eq!(db.int("SELECT count(*) FROM litestream_replicas"), 0);
    assert!(!folder.file("archive").exists());
}
