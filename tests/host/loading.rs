//! The built library in real hosts, and the refusals of `install`.

use std::ffi::CStr;
use std::process::Command;

use litestream::error::{Error, ErrorKind, Result};
use litestream::host::Registrar;
use litestream::host::api;
use litestream::host::conn::Connection;
use litestream::host::load::load;

use sqlite_loadable::ext::sqlite3;

use crate::folder::Folder;
use crate::sqlite::{SINGLE_THREAD, library, routines, start, text};

fn shell(arguments: &[&str]) -> String {
    text(&Command::new("sqlite3").args(arguments).output().expect("the sqlite3 shell is needed"))
}

fn python(script: &str, arguments: &[&str]) -> String {
    text(&Command::new("python3").args(["-c", script]).args(arguments).output().unwrap())
}

#[test]
fn the_shell_loads_it_twice() {
    let load = format!(".load {}", library().with_extension("").display());
    assert_eq!(shell(&[":memory:", &load, &load, "SELECT 7"]), "7");
}

/// SQLite lets no function be replaced while a statement runs, and the statement that loads is
/// running. What the first load defined must stay, and the second must not fail.
#[test]
fn one_statement_loads_it_twice() {
    let sql = format!("SELECT load_extension('{0}') IS load_extension('{0}')", library().display());
    assert_eq!(shell(&[":memory:", &sql]), "1");
}

/// A failed load says why, in the host's memory, and leaves the host alone.
#[test]
fn a_host_learns_why_a_load_failed() {
    start();
    let attempt = |db: *mut sqlite3, register: fn(&Registrar) -> Result<()>| {
        let mut message = std::ptr::null_mut();
        let code = unsafe { load(db, &raw mut message, routines(), register) };
        assert!(!message.is_null());
        (code, unsafe { CStr::from_ptr(message) }.to_str().unwrap().to_owned())
    };
    let db = std::ptr::dangling_mut(); // nobody gets as far as using it
    let refuse = |_: &Registrar| Err(Error::new(ErrorKind::Busy, "50%s and no more"));
    assert_eq!(attempt(db, refuse), (5, "litestream: 50%s and no more".to_owned()));
    let (code, text) = attempt(db, |_| panic!("on purpose"));
    assert!(code == 2 && text.contains("internal panic"), "{code} {text}");
    let (code, text) = attempt(std::ptr::null_mut(), |_| Ok(()));
    assert!(code == 1 && text.contains("no connection"), "{code} {text}");
}

/// The library outlives the connections that loaded it, and loads into the next.
#[test]
fn a_library_host_opens_and_closes_around_it() {
    const SCRIPT: &str = "
import ctypes, sys
sqlite = ctypes.CDLL('libsqlite3.so.0')
handle, text = ctypes.c_void_p, ctypes.c_char_p
sqlite.sqlite3_load_extension.argtypes = [handle, text, text, handle]
sqlite.sqlite3_enable_load_extension.argtypes = [handle, ctypes.c_int]
sqlite.sqlite3_close.argtypes = [handle]
for _ in range(20):
    db = ctypes.c_void_p()
    assert sqlite.sqlite3_open(b':memory:', ctypes.byref(db)) == 0
    sqlite.sqlite3_enable_load_extension(db, 1)
    assert sqlite.sqlite3_load_extension(db, sys.argv[1].encode(), None, None) == 0
    assert sqlite.sqlite3_close(db) == 0
print(any('liblitestream' in line for line in open('/proc/self/maps')))
";
    assert_eq!(python(SCRIPT, &[library().to_str().unwrap()]), "True");
}

#[test]
fn versions_and_helpers() {
    start();
    assert!(api::libversion_number() >= api::OLDEST_HOST);
    assert!(api::libversion().starts_with("3."));
    assert!(api::threadsafe());
    let (mut one, mut two) = ([0; 32], [0; 32]);
    api::randomness(&mut one);
    api::randomness(&mut two);
    assert_ne!(one, two);
    api::log(0, "a line for nobody: 100%s");
}

/// A second SQLite in the process hands over a table at another address.
#[test]
fn a_second_sqlite_is_refused() {
    start();
    let mut other = std::mem::MaybeUninit::zeroed();
    let error = unsafe { api::install(other.as_mut_ptr()) }.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unsupported);
    assert!(error.to_string().contains("another SQLite library"), "{error}");
    assert!(unsafe { api::install(std::ptr::null_mut()) }.is_err());
    assert!(api::threadsafe(), "the first one goes on");
}

/// A host may switch its mutexes off at run time. This test runs itself in such a process.
#[test]
fn a_host_without_mutexes_is_refused() {
    let folder = Folder::new("host");
    if std::env::var_os(SINGLE_THREAD).is_some() {
        start();
        let error = Connection::open(&folder.file("a.db"), "", true).err().unwrap();
        assert_eq!(error.kind(), ErrorKind::Unsupported);
        assert!(error.to_string().contains("without mutexes"), "{error}");
        return;
    }
    let output = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "loading::a_host_without_mutexes_is_refused"])
        .env(SINGLE_THREAD, "1")
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", text(&output));
    assert!(text(&output).contains("1 passed"), "{}", text(&output));
}

/// The library must bring no SQLite of its own: two in one process break each other's locks.
#[test]
fn the_library_holds_no_sqlite() {
    let bytes = std::fs::read(library()).unwrap();
    for name in [&b"sqlite3_open_v2\0"[..], b"sqlite3_prepare_v2\0", b"sqlite3_step\0"] {
        let found = bytes.windows(name.len()).any(|window| window == name);
        assert!(!found, "{} is in the library", String::from_utf8_lossy(name));
    }
}
