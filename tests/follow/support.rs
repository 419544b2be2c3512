//! The system's SQLite inside the test process, folders, and waiting.

use std::ffi::{CStr, c_char, c_int, c_void};
use std::path::Path;
use std::process::Command;
use std::sync::{Arc, Once};
use std::time::{Duration, Instant};

use litestream::follow::{FollowConfig, Follower};
use litestream::host::conn::Connection;
use litestream::host::load::load;
use sqlite_loadable::ext::{sqlite3, sqlite3_api_routines};

type Entry =
    unsafe extern "C" fn(*mut sqlite3, *mut *mut c_char, *mut sqlite3_api_routines) -> c_int;

unsafe extern "C" fn entry(
    db: *mut sqlite3,
    message: *mut *mut c_char,
    routines: *mut sqlite3_api_routines,
) -> c_int {
    match unsafe { load(db, message, routines, |_| Ok(())) } {
        256 => 0, // an automatic extension knows no "permanently"
        code => code,
    }
}

/// Lets the system's SQLite load us, as `sqlite3_load_extension` would. Every test begins with it.
pub fn host() {
    static STARTED: Once = Once::new();
    STARTED.call_once(|| unsafe {
        let library = libc::dlopen(c"libsqlite3.so.0".as_ptr(), libc::RTLD_NOW);
        assert!(!library.is_null(), "libsqlite3.so.0 is needed: install sqlite3");
        let symbol = |name: &CStr| libc::dlsym(library, name.as_ptr());
        let auto: unsafe extern "C" fn(Entry) -> c_int =
            std::mem::transmute(symbol(c"sqlite3_auto_extension"));
        let open: unsafe extern "C" fn(*const c_char, *mut *mut c_void) -> c_int =
            std::mem::transmute(symbol(c"sqlite3_open"));
        assert_eq!(auto(entry), 0);
        let mut first = std::ptr::null_mut();
        assert_eq!(open(c":memory:".as_ptr(), &raw mut first), 0);
    });
}

/// Follows `url` into `path`.
pub fn follow(path: &Path, url: &str) -> Arc<Follower> {
    let config =
        FollowConfig { path: path.to_owned(), url: url.to_owned(), ..FollowConfig::default() };
    litestream::follow::start(config).unwrap()
}

/// Waits for a follower to have what the upstream had; says why if it does not.
pub fn catch_up(follower: &Follower) {
    assert!(follower.wait_caught_up(Duration::from_secs(60)), "{:?}", follower.status());
}

/// Waits until `done`, for at most a minute.
pub fn eventually(what: &str, mut done: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(60);
    while !done() {
        assert!(Instant::now() < deadline, "{what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// A connection to an existing database.
pub fn open(path: &Path) -> Connection {
    host();
    let connection = Connection::open(path, "", false).unwrap();
    connection.busy_timeout(5000).unwrap();
    connection
}

/// Everything a database holds, as one text.
pub fn dump(path: &Path) -> String {
    let output = Command::new("sqlite3").arg("-readonly").arg(path).arg(".dump").output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

/// The same without the schema version, which a replica counts on when its content is replaced.
pub fn pages_but_version(mut pages: Vec<u8>) -> Vec<u8> {
    pages[40..44].fill(0);
    pages
}

/// The database file after everything in its WAL went into it. Nobody else may be using it.
pub fn pages(path: &Path) -> Vec<u8> {
    let connection = open(path);
    assert_eq!(connection.query_text("PRAGMA integrity_check").unwrap().as_deref(), Some("ok"));
    connection.query_i64("PRAGMA wal_checkpoint(TRUNCATE)").unwrap();
    drop(connection);
    std::fs::read(path).unwrap()
}
