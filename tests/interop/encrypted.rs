//! Encrypted by 0.3 for us, by us for 0.3. 0.5 refuses, whoever encrypted.

use age::secrecy::ExposeSecret;
use age::x25519::Identity;

use crate::common::Folder;
use crate::common::servers::S3Server;
use crate::history::{History, Restorer, remove};
use crate::place::Place;
use crate::stock::Release::{Five, Three};
use crate::{ours, three};

fn place(folder: &Folder) -> Place {
    let identity = Identity::generate();
    let (secret, public) = (identity.to_string(), identity.to_public().to_string());
    Place::folder(folder, "encrypted").encrypted(secret.expose_secret(), &public)
}

/// Every snapshot and segment begins as age's files do.
fn is_encrypted(history: &History) {
    let mut pending = vec![history.places[0].path().join("generations")];
    let mut objects = 0;
    while let Some(path) = pending.pop() {
        if path.is_dir() {
            pending.extend(std::fs::read_dir(path).unwrap().map(|entry| entry.unwrap().path()));
        } else if path.extension().is_some_and(|extension| extension == "lz4") {
            assert!(std::fs::read(&path).unwrap().starts_with(b"age-encryption.org/v1\n"));
            objects += 1;
        }
    }
    assert!(objects > 1);
}

pub fn by_three(_: &S3Server) {
    let folder = Folder::new("interop-age-three");
    let history = History::record(Three, &folder, vec![(4096, place(&folder))]);
    is_encrypted(&history);
    three::check(&folder, &history);
    let stranger = place(&folder);
    let error = Restorer::new().fails(&stranger, &folder.file("stranger"));
    assert!(error.contains("identit"), "{error}");
}

pub fn by_us(_: &S3Server) {
    let folder = Folder::new("interop-age-ours");
    let mut history = History::ours(Three, &folder, vec![(4096, place(&folder))]);
    is_encrypted(&history);
    ours::check(&folder, &history, Three);
    history.restored_by(Five, &folder);
    let to = folder.file("five");
    let said = history.config.restore(&history.databases[0].path, &to, &[]).unwrap_err();
    assert!(said.contains("age encryption is not currently supported"), "{said}");
    remove(&to);
}
