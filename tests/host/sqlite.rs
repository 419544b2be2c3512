//! The system's SQLite inside the test process, and what the tests share.
//!
//! `sqlite3_auto_extension` hands its callback the same routines as `sqlite3_load_extension` would,
//! so the library under test, linked into this very program, finds its host as it does in the
//! field.

use std::ffi::{CStr, c_char, c_int, c_void};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicPtr, Ordering};

use litestream::host::conn::Connection;
use litestream::host::load::load;
use sqlite_loadable::ext::{sqlite3, sqlite3_api_routines};

/// Set for a child that must see a host whose mutexes are switched off.
pub const SINGLE_THREAD: &str = "TEST_HOST_SINGLE_THREAD";

/// `SQLITE_CONFIG_SINGLETHREAD`
const CONFIG_SINGLETHREAD: c_int = 1;

static ROUTINES: AtomicPtr<sqlite3_api_routines> = AtomicPtr::new(std::ptr::null_mut());

type Entry =
    unsafe extern "C" fn(*mut sqlite3, *mut *mut c_char, *mut sqlite3_api_routines) -> c_int;

unsafe extern "C" fn entry(
    db: *mut sqlite3,
    message: *mut *mut c_char,
    routines: *mut sqlite3_api_routines,
) -> c_int {
    ROUTINES.store(routines, Ordering::Relaxed);
    match unsafe { load(db, message, routines, crate::functions::register) } {
        256 => 0, // an automatic extension knows no "permanently"
        code => code,
    }
}

/// Loads the system's SQLite and lets it load us. Every test begins with it.
pub fn start() {
    static STARTED: OnceLock<()> = OnceLock::new();
    STARTED.get_or_init(|| unsafe {
        let library = libc::dlopen(c"libsqlite3.so.0".as_ptr(), libc::RTLD_NOW);
        assert!(!library.is_null(), "libsqlite3.so.0 is needed: install sqlite3");
        let symbol = |name: &CStr| {
            let symbol = libc::dlsym(library, name.as_ptr());
            assert!(!symbol.is_null(), "{name:?}");
            symbol
        };
        if std::env::var_os(SINGLE_THREAD).is_some() {
            let config = symbol(c"sqlite3_config");
            let config: unsafe extern "C" fn(c_int, ...) -> c_int = std::mem::transmute(config);
            config(CONFIG_SINGLETHREAD); // an error if it was built that way already
        }
        let auto = symbol(c"sqlite3_auto_extension");
        let auto: unsafe extern "C" fn(Entry) -> c_int = std::mem::transmute(auto);
        let open = symbol(c"sqlite3_open");
        let open: unsafe extern "C" fn(*const c_char, *mut *mut c_void) -> c_int =
            std::mem::transmute(open);
        assert_eq!(auto(entry), 0);
        let mut first = std::ptr::null_mut();
        assert_eq!(open(c":memory:".as_ptr(), &raw mut first), 0);
    });
}

/// What the system's SQLite hands to extensions.
pub fn routines() -> *mut sqlite3_api_routines {
    ROUTINES.load(Ordering::Relaxed)
}

/// A WAL database with a table `t(x)` and one row, and the connection that made it: "the
/// application".
pub fn application(path: &Path) -> Connection {
    start();
    let connection = Connection::open(path, "", true).unwrap();
    connection
        .execute("PRAGMA journal_mode = WAL; CREATE TABLE t(x); INSERT INTO t VALUES (1)")
        .unwrap();
    connection
}

/// Runs SQL on `path` in another process, which then closes it. Prints each row's first column; an
/// error ends up in the text as well.
pub fn elsewhere(path: &Path, sql: &str) -> String {
    const SCRIPT: &str = "
import sqlite3, sys
db = sqlite3.connect(sys.argv[1], timeout=0, isolation_level=None)
try:
    for row in db.execute(sys.argv[2]): print(row[0])
except sqlite3.Error as error: print(error)
db.close()
";
    let output = Command::new("python3").args(["-c", SCRIPT]).arg(path).arg(sql).output().unwrap();
    text(&output)
}

/// What a process printed, both streams.
pub fn text(output: &Output) -> String {
    let out = String::from_utf8_lossy(&output.stdout);
    let err = String::from_utf8_lossy(&output.stderr);
    format!("{out}{err}").trim().to_owned()
}

/// The built extension, beside the test program: cargo puts it there for every test run.
pub fn library() -> PathBuf {
    let program = std::env::current_exe().unwrap();
    let folder = program.parent().unwrap();
    let library = folder.join("liblitestream.so");
    assert!(library.exists(), "{} is not built", library.display());
    library
}

/// The `-wal` of a database.
pub fn wal(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push("-wal");
    name.into()
}
