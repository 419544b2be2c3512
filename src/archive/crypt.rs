//! Encryption of what an archive holds, on this side: the store never sees a page.
//!
//! An encrypted object is an age file (<https://age-encryption.org/v1>) of what the object would be
//! otherwise, label and frame; Litestream 0.3 has the same, without labels. Names, sizes and times
//! of objects, the ends of indexes and the position are readable for everybody: they say how much
//! is written and when, and nothing of what.
//!
//! | what            | how                                                                    |
//! |-----------------|------------------------------------------------------------------------|
//! | `age_recipients`| `age1...`: each of them can read. None: nothing is encrypted           |
//! | `age_identities`| `AGE-SECRET-KEY-1...`, or `/path` of a file of such lines, as age-keygen writes |
//! | without a key   | an encrypted object is refused; whether it is one shows in its first bytes |
//! | damage          | every 64 KiB have an authenticator, the last of them says that it is the last: a bit, a cut, a swap is an error that names the object |
//!
//! Whoever has the recipients can make objects; an archive's truth rests on who may write there.

use std::io::{self, BufRead, BufReader, Chain, Cursor, Read, Write};
use std::path::Path;

use age::stream::{StreamReader, StreamWriter};
use age::x25519::{Identity, Recipient};
use age::{DecryptError, Decryptor, Encryptor};

use super::options::ArchiveOptions;
use crate::error::{Context, Error, ErrorKind, Result};
use crate::fault;
use crate::files::read_small_file;

/// What every encrypted object begins with.
const MAGIC: &[u8] = b"age-encryption.org/v1";
/// The header of an encrypted object is not longer: one recipient takes about 100 bytes.
const HEADER_BYTES_MAX: u64 = 16 << 10;
/// So many may read an object.
const RECIPIENTS_MAX: usize = 100;
/// A file of keys is not longer.
const KEY_FILE_BYTES_MAX: u64 = 64 << 10;

/// Who can read what is written, and what can be read here.
#[derive(Default)]
pub struct Keys {
    recipients: Vec<Recipient>,
    identities: Vec<Identity>,
}

impl Keys {
    /// Reads the keys that the options name. No error shows a secret one.
    pub fn read(options: &ArchiveOptions) -> Result<Keys> {
        let mut keys = Keys::default();
        if options.age_recipients.len() > RECIPIENTS_MAX {
            let why = format!("option \"age_recipients\": more than {RECIPIENTS_MAX} keys");
            return Err(Error::usage(why));
        }
        for text in &options.age_recipients {
            let recipient = text.trim().parse().map_err(|_| {
                // Somebody may have mixed the two up.
                let shown: String = text.chars().take(12).collect();
                let shown = if shown.starts_with("age1") { shown } else { "something else".into() };
                Error::usage(format!(
                    "option \"age_recipients\": expected an age public key, age1..., got {shown}"
                ))
            })?;
            keys.recipients.push(recipient);
        }
        for text in &options.age_identities {
            if text.starts_with('/') {
                keys.read_file(Path::new(text))?;
            } else {
                keys.identities.push(identity(text.trim())?);
            }
        }
        Ok(keys)
    }

    fn read_file(&mut self, path: &Path) -> Result<()> {
        let what = || format!("option \"age_identities\": cannot read {}", path.display());
        fault::at("archive/identities/open").context(what)?;
        let (bytes, _) = read_small_file(path, KEY_FILE_BYTES_MAX).context(what)?;
        let text = String::from_utf8(bytes);
        let text = text.map_err(|_| Error::usage("it is not text")).context(what)?;
        let before = self.identities.len();
        for line in text.lines().map(str::trim) {
            if !line.is_empty() && !line.starts_with('#') {
                self.identities.push(identity(line).context(what)?);
            }
        }
        if self.identities.len() == before {
            return Err(Error::usage("there is no key in it").context(what()));
        }
        Ok(())
    }

    /// Whether what is written is encrypted.
    pub fn encrypts(&self) -> bool {
        !self.recipients.is_empty()
    }

    /// Encrypts what is written to it; `None` if nothing is to be encrypted. Only its `finish`
    /// makes the object whole.
    pub fn encrypt<W: Write>(&self, out: W) -> Result<std::result::Result<StreamWriter<W>, W>> {
        if !self.encrypts() {
            return Ok(Err(out));
        }
        let recipients = self.recipients.iter().map(|key| key as &dyn age::Recipient);
        let encryptor = Encryptor::with_recipients(recipients)
            .map_err(|error| Error::bug(format!("cannot encrypt: {error}")))?;
        Ok(Ok(encryptor.wrap_output(out)?))
    }

    /// The content of an object, decrypted if need be, and whether that was needed.
    pub fn decrypt(
        &self,
        mut object: Box<dyn Read + Send>,
    ) -> Result<(Box<dyn Read + Send>, bool)> {
        let head = head(&mut object)?;
        let encrypted = head == MAGIC;
        let object = io::Cursor::new(head).chain(object);
        if !encrypted {
            return Ok((Box::new(object), false));
        }
        if self.identities.is_empty() {
            let text = "it is encrypted: pass the secret key in the option \"age_identities\"";
            return Err(Error::new(ErrorKind::Refused, text));
        }
        let object = Gathered::new(object)?;
        let decryptor = Decryptor::new_buffered(object).map_err(|error| refused(&error))?;
        let identities = self.identities.iter().map(|key| key as &dyn age::Identity);
        let stream = decryptor.decrypt(identities).map_err(|error| refused(&error))?;
        Ok((Box::new(Decrypted(stream)), true))
    }
}

/// An encrypted object whose header was found already: the library gathers it line by line, without
/// bound, and looks at all of it again with each. Here it gets all of it as one.
struct Gathered<R>(Chain<Cursor<Vec<u8>>, BufReader<R>>);

impl<R: Read> Gathered<R> {
    fn new(object: R) -> Result<Self> {
        let mut object = BufReader::new(object);
        let mut header = Vec::new();
        loop {
            let start = header.len();
            let left = HEADER_BYTES_MAX.saturating_sub(start as u64);
            let read = object.by_ref().take(left).read_until(b'\n', &mut header)?;
            if read == 0 && left == 0 {
                return Err(Error::corrupt("its encryption has a header without end"));
            }
            // What is cut short the library refuses.
            if read == 0 || header.get(start..).is_some_and(|line| line.starts_with(b"---")) {
                return Ok(Gathered(Cursor::new(header).chain(object)));
            }
        }
    }
}

impl<R: Read> Read for Gathered<R> {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        self.0.read(out)
    }
}

impl<R: Read> BufRead for Gathered<R> {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        self.0.fill_buf()
    }

    fn consume(&mut self, bytes: usize) {
        self.0.consume(bytes);
    }

    fn read_until(&mut self, _: u8, out: &mut Vec<u8>) -> io::Result<usize> {
        self.0.get_mut().0.read_to_end(out)
    }
}

/// Whether an object is encrypted: its first bytes say.
pub fn is_encrypted(object: &mut dyn Read) -> Result<bool> {
    Ok(head(object)? == MAGIC)
}

/// How many of an object's first bytes tell.
pub const HEAD_BYTES: u64 = MAGIC.len() as u64;

fn head(object: &mut dyn Read) -> Result<Vec<u8>> {
    let mut head = Vec::with_capacity(MAGIC.len());
    object.take(HEAD_BYTES).read_to_end(&mut head)?;
    Ok(head)
}

fn identity(text: &str) -> Result<Identity> {
    text.parse().map_err(|_| {
        Error::usage(
            "option \"age_identities\": expected an age secret key, AGE-SECRET-KEY-1..., or the \
             absolute path of a file with such keys",
        )
    })
}

fn refused(error: &DecryptError) -> Error {
    match error {
        DecryptError::NoMatchingKeys => Error::new(
            ErrorKind::Refused,
            "it is encrypted for other keys than those in the option \"age_identities\"",
        ),
        DecryptError::Io(error) => match passed_on(error) {
            Some(error) => error,
            None => damaged(),
        },
        _ => damaged(),
    }
}

fn damaged() -> Error {
    Error::corrupt("its encryption does not verify: it is damaged or cut short")
}

/// An error of the store's, and none of the decryption's.
fn passed_on(error: &io::Error) -> Option<Error> {
    if let Some(ours) = error.get_ref().and_then(|inner| inner.downcast_ref::<Error>()) {
        return Some(ours.clone());
    }
    error.raw_os_error().map(|code| Error::from(io::Error::from_raw_os_error(code)))
}

/// Tells damage from a store that fails.
struct Decrypted<R: Read>(StreamReader<R>);

impl<R: Read> Read for Decrypted<R> {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        self.0.read(out).map_err(|error| match error.kind() {
            io::ErrorKind::Interrupted => error,
            _ => passed_on(&error).unwrap_or_else(damaged).into(),
        })
    }
}

#[cfg(test)]
mod tests {
    use age::secrecy::ExposeSecret;

    use super::*;

    fn keys(recipients: &[&Identity], identities: &[&Identity]) -> Keys {
        Keys::read(&ArchiveOptions {
            age_recipients: recipients.iter().map(|key| key.to_public().to_string()).collect(),
            age_identities: identities.iter().map(|key| secret(key)).collect(),
            ..ArchiveOptions::default()
        })
        .unwrap()
    }

    fn secret(key: &Identity) -> String {
        key.to_string().expose_secret().to_owned()
    }

    fn encrypt(keys: &Keys, content: &[u8]) -> Vec<u8> {
        let Ok(mut writer) = keys.encrypt(Vec::new()).unwrap() else { panic!("must encrypt") };
        writer.write_all(content).unwrap();
        writer.finish().unwrap()
    }

    fn decrypt(keys: &Keys, object: &[u8]) -> Result<(Vec<u8>, bool)> {
        let (mut reader, encrypted) = keys.decrypt(Box::new(io::Cursor::new(object.to_vec())))?;
        let mut content = Vec::new();
        reader.read_to_end(&mut content)?;
        Ok((content, encrypted))
    }

    #[test]
    fn what_is_encrypted_is_read_by_each_who_may() {
        let (one, two, other) = (Identity::generate(), Identity::generate(), Identity::generate());
        let writer = keys(&[&one, &two], &[]);
        for size in [0, 1, 65_535, 65_536, 65_537, 131_072, 200_000] {
            let content: Vec<u8> =
                (0..size).map(|n: u32| n.to_le_bytes()[n as usize % 4]).collect();
            let object = encrypt(&writer, &content);
            for reader in [keys(&[], &[&one]), keys(&[], &[&other, &two])] {
                assert!(decrypt(&reader, &object).unwrap() == (content.clone(), true), "{size}");
            }
            let refused = |keys: Keys, part: &str| {
                let error = decrypt(&keys, &object).unwrap_err();
                assert_eq!(error.kind(), ErrorKind::Refused);
                assert!(error.to_string().contains(part), "{error}");
            };
            refused(keys(&[], &[&other]), "other keys");
            refused(keys(&[&one], &[]), "it is encrypted: pass");
        }
        let plain = decrypt(&keys(&[], &[&one]), b"age-encryption").unwrap();
        assert_eq!(plain, (b"age-encryption".to_vec(), false));
    }

    #[test]
    fn every_cut_and_every_flip_shows() {
        let key = Identity::generate();
        let keys = keys(&[&key], &[&key]);
        let content = vec![7; 3 * 65_536];
        let object = encrypt(&keys, &content);
        let chunks = (0..4).map(|chunk| object.len() - chunk * (65_536 + 16));
        let near = chunks.flat_map(|at| at.saturating_sub(20)..(at + 20).min(object.len()));
        for cut in near.chain(MAGIC.len()..200) {
            let error = decrypt(&keys, &object[..cut]).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Corrupt, "cut at {cut}: {error}");
        }
        for at in (MAGIC.len()..300).chain((300..object.len()).step_by(4999)) {
            let mut flipped = object.clone();
            flipped[at] ^= 1;
            let error = decrypt(&keys, &flipped).unwrap_err();
            let expected = [ErrorKind::Corrupt, ErrorKind::Refused];
            assert!(expected.contains(&error.kind()), "flipped at {at}: {error}");
        }
        let swapped =
            [&object[..object.len() - 65_552], &object[object.len() - 131_104..]].concat();
        assert!(decrypt(&keys, &swapped).is_err());
        assert!(decrypt(&keys, &[&object[..], b"x"].concat()).is_err());
    }

    /// A header is gathered whole, and looked at from its start with each byte: one without end
    /// filled the memory, and a long one kept a processor busy for hours.
    #[test]
    fn a_header_without_end_is_refused() {
        let keys = keys(&[], &[&Identity::generate()]);
        for line in ["-> X25519 aaaa\naaaa\n", "-> a\n\n", "x", "-> ", "a\n"] {
            let endless = io::repeat(0).take(64 << 20);
            let lines = line.repeat(64 << 10);
            let object = io::Cursor::new([MAGIC, b"\n", lines.as_bytes()].concat()).chain(endless);
            let error = keys.decrypt(Box::new(object)).err().unwrap();
            assert_eq!(error.kind(), ErrorKind::Corrupt, "{line:?}: {error}");
            assert!(error.to_string().contains("without end"), "{line:?}: {error}");
        }
        // As many as anybody has keys for are read.
        let many: Vec<Identity> = (0..RECIPIENTS_MAX).map(|_| Identity::generate()).collect();
        let all: Vec<&Identity> = many.iter().collect();
        let object = encrypt(&self::keys(&all, &[]), b"content");
        let read = decrypt(&self::keys(&[], &[&many[RECIPIENTS_MAX - 1]]), &object).unwrap();
        assert_eq!(read, (b"content".to_vec(), true));
    }

    #[test]
    fn wrong_keys_are_named_and_not_shown() {
        let key = Identity::generate();
        let check = |recipient: &str, identity: &str, part: &str| {
            let one = |text: &str| if text.is_empty() { vec![] } else { vec![text.to_owned()] };
            let options = ArchiveOptions {
                age_recipients: one(recipient),
                age_identities: one(identity),
                ..ArchiveOptions::default()
            };
            let Err(error) = Keys::read(&options) else { panic!("must fail: {part}") };
            assert!(error.to_string().contains(part), "{error}");
            assert!(!error.to_string().contains("SECRET-KEY-1Q"), "{error}");
        };
        check(&secret(&key), "", "\"age_recipients\": expected an age public key");
        check("age1xyz", "", "got age1xyz");
        check(" ", "", "\"age_recipients\"");
        check("", "AGE-SECRET-KEY-1QQQ", "\"age_identities\"");
        check("", "keys.txt", "absolute path");
        check("", "/no/such/file", "cannot read /no/such/file");
        let path = std::env::temp_dir().join(format!("litestream-age-{}", std::process::id()));
        std::fs::write(&path, format!("# created: now\n\n{}\n", secret(&key))).unwrap();
        let file = path.to_str().unwrap().to_owned();
        let options = ArchiveOptions { age_identities: vec![file], ..ArchiveOptions::default() };
        assert_eq!(Keys::read(&options).unwrap().identities.len(), 1);
        std::fs::write(&path, "# nothing\n").unwrap();
        assert!(Keys::read(&options).is_err());
        std::fs::remove_file(&path).unwrap();
    }
}
