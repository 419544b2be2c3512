//! Encrypted archives: in folders here, on servers from s3.rs.

use std::fs;
use std::io::{Read, Write};
use std::time::{Duration, SystemTime};

use age::secrecy::ExposeSecret;
use age::x25519::Identity;
use litestream::archive::label::Moment;
use litestream::archive::store::Put;
use litestream::archive::{Archive, ArchiveOptions, SegmentObject};
use litestream::error::{Error, ErrorKind};
use litestream::lz4;
use litestream::pos::{Generation, Index, Offset, Pos};

use crate::common::{Folder, Rng, scaled};
use crate::rules::{fails_with, get, keys};

const G: Generation = Generation::from_bits(0xab);

fn pos(offset: u64) -> Pos {
    Pos::new(G, Index::new(1).unwrap(), Offset::new(offset).unwrap())
}

fn with(
    options: &ArchiveOptions,
    recipient: Option<&Identity>,
    identity: Option<&Identity>,
) -> ArchiveOptions {
    let secret = |key: &Identity| key.to_string().expose_secret().to_owned();
    ArchiveOptions {
        age_recipients: recipient.map(|key| key.to_public().to_string()).into_iter().collect(),
        age_identities: identity.map(secret).into_iter().collect(),
        ..options.clone()
    }
}

fn segments(archive: &Archive) -> Vec<SegmentObject> {
    archive.list(G).unwrap().segments
}

fn read(archive: &Archive, segment: &SegmentObject) -> Result<(Vec<u8>, bool), Error> {
    let mut opened = archive.open_segment(segment)?;
    let mut frame = Vec::new();
    opened.frame.read_to_end(&mut frame)?;
    Ok((frame, opened.encrypted))
}

pub fn check(url: &str, options: &ArchiveOptions) {
    let (key, other) = (Identity::generate(), Identity::generate());
    let writer = Archive::open(url, &with(options, Some(&key), None)).unwrap();
    let reader = Archive::open(url, &with(options, None, Some(&key))).unwrap();
    assert!(writer.encrypts() && !reader.encrypts());
    // Larger than a chunk of encryption, than a label, and than a part of an upload.
    let frames: Vec<Vec<u8>> = [10, 300_000, scaled(1 << 20, 20 << 20)]
        .into_iter()
        .map(|size| {
            let mut packed = lz4::Encoder::stored(Vec::new(), Some(size as u64)).unwrap();
            packed.write_all(&Rng::new().bytes(size)).unwrap();
            packed.finish().unwrap()
        })
        .collect();
    for (number, frame) in frames.iter().enumerate() {
        let pos = pos(number as u64 * 4096);
        let put = writer.put_segment(pos, SystemTime::now(), &[], &mut frame.as_slice());
        assert_eq!(put.unwrap(), Put::Created);
    }
    let found = segments(&reader);
    assert_eq!(found.len(), frames.len());
    for (segment, frame) in found.iter().zip(&frames) {
        let key = reader.segment_key(segment).unwrap();
        assert!(writer.is_encrypted(&key).unwrap());
        assert!(read(&reader, segment).unwrap() == (frame.clone(), true));
        let label = reader.segment_label(segment).unwrap().unwrap();
        assert_eq!(label.pos, segment.info.pos());
        let text = fails_with(read(&writer, segment), ErrorKind::Refused);
        assert!(text.contains(&key) && text.contains("age_identities"), "{text}");
        let stranger = Archive::open(url, &with(options, None, Some(&other))).unwrap();
        let text = fails_with(read(&stranger, segment), ErrorKind::Refused);
        assert!(text.contains("other keys"), "{text}");
        let stored = get(&**reader.store(), &key);
        assert!(stored.starts_with(b"age-encryption.org/v1\n"));
        assert!(!stored.windows(4).any(|word| word == b"LSA1"), "labels are inside");
    }
    // A label may be longer than what is read of an object for it at first.
    let second = |number| SystemTime::UNIX_EPOCH + Duration::from_secs(number);
    let end = |number| Offset::new(32 + number * 536).unwrap();
    let moments: Vec<Moment> =
        (1..7800).map(|number| Moment { end: end(number), at: second(number) }).collect();
    let long = pos(1 << 19);
    writer.put_segment(long, second(7800), &moments, &mut frames[0].as_slice()).unwrap();
    let label = reader.segment_label(&segments(&reader).pop().unwrap()).unwrap().unwrap();
    assert_eq!((label.pos, label.moments), (long, moments));
    // What is not encrypted can be read beside it, and says so.
    let plain = Archive::open(url, options).unwrap();
    plain.put_segment(pos(1 << 20), SystemTime::now(), &[], &mut frames[0].as_slice()).unwrap();
    let last = segments(&reader).pop().unwrap();
    assert_eq!(read(&reader, &last).unwrap(), (frames[0].clone(), false));
    assert!(!reader.is_encrypted(&reader.segment_key(&last).unwrap()).unwrap());
}

#[test]
fn encrypted_in_a_folder() {
    let folder = Folder::new("archive-crypt");
    check(&format!("file://{}", folder.file("a").display()), &ArchiveOptions::default());
}

/// As a WAL of small pages has them that was written for long while the archive was away.
#[test]
fn a_label_may_be_longer_than_a_chunk() {
    let folder = Folder::new("archive-long-label");
    let key = Identity::generate();
    for recipient in [Some(&key), None] {
        let name = if recipient.is_some() { "encrypted" } else { "plain" };
        let url = format!("file://{}", folder.file(name).display());
        let options = with(&ArchiveOptions::default(), recipient, Some(&key));
        let archive = Archive::open(&url, &options).unwrap();
        let frame = lz4::compress(&Rng::new().bytes(1000)).unwrap();
        for (at, count) in [5_000_u64, 12_000].into_iter().enumerate() {
            let moment = |n: u64| Moment {
                end: Offset::new(32 + n * 536).unwrap(),
                at: SystemTime::UNIX_EPOCH + Duration::from_millis(n),
            };
            let moments: Vec<_> = (1..=count).map(moment).collect();
            let made = SystemTime::UNIX_EPOCH;
            archive.put_segment(pos(at as u64), made, &moments, &mut frame.as_slice()).unwrap();
            let segment = segments(&archive).pop().unwrap();
            let label = archive.segment_label(&segment).unwrap().unwrap();
            assert_eq!(label.moments, moments, "{name}");
        }
    }
}

#[test]
fn damage_names_the_object() {
    let folder = Folder::new("archive-crypt");
    let url = format!("file://{}", folder.file("a").display());
    let key = Identity::generate();
    let options = with(&ArchiveOptions::default(), Some(&key), Some(&key));
    let archive = Archive::open(&url, &options).unwrap();
    let frame = lz4::compress(&Rng::new().bytes(200_000)).unwrap();
    archive.put_segment(pos(0), SystemTime::now(), &[], &mut frame.as_slice()).unwrap();
    let segment = segments(&archive).pop().unwrap();
    let name = keys(&**archive.store(), "").pop().unwrap();
    let path = folder.file("a").join(&name);
    let whole = fs::read(&path).unwrap();
    let chunk = 65_536 + 16;
    let header = whole.len() % chunk;
    let mut damages: Vec<Vec<u8>> = (0..whole.len() / chunk)
        .map(|n| whole[..whole.len() - n * chunk].to_vec())
        .skip(1)
        .collect();
    damages.push(whole[..whole.len() - 1].to_vec());
    damages.push(whole[..header.min(100)].to_vec());
    for bit in [0, 30 * 8, 150 * 8, whole.len() * 4, whole.len() * 8 - 1] {
        let mut flipped = whole.clone();
        flipped[bit / 8] ^= 1 << (bit % 8);
        damages.push(flipped);
    }
    for damage in damages {
        fs::write(&path, &damage).unwrap();
        match archive.open_segment(&segment) {
            Err(error) => assert!(error.to_string().contains(&name), "{error}"),
            Ok(mut opened) => {
                let error = opened.frame.read_to_end(&mut Vec::new()).unwrap_err();
                fails_with(Err::<(), _>(Error::from(error)), ErrorKind::Corrupt);
            }
        }
    }
}
