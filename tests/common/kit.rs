//! Small things every end-to-end test needs: a deadline, a seed, a free port, the tools.

use std::ffi::OsStr;
use std::fmt::Write as _;
use std::net::{SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// Nothing that is expected to happen takes longer, on a machine busy with other tests.
pub const DEADLINE: Duration = Duration::from_secs(60);

/// Asks until there is an answer, or fails the test after [`DEADLINE`].
pub fn until<T>(what: &str, ask: impl FnMut() -> Option<T>) -> T {
    until_within(DEADLINE, what, ask)
}

/// Asks until there is an answer, or fails the test after `limit`.
pub fn until_within<T>(limit: Duration, what: &str, mut ask: impl FnMut() -> Option<T>) -> T {
    let begin = Instant::now();
    loop {
        if let Some(answer) = ask() {
            return answer;
        }
        assert!(begin.elapsed() < limit, "not within {limit:?}: {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// True for the long form of the tests (`make soak`): more rounds, more data, the same checks.
pub fn soak() -> bool {
    std::env::var_os("SOAK").is_some()
}

/// `normal`, or `long` when soaking.
pub fn scaled<T>(normal: T, long: T) -> T {
    if soak() { long } else { normal }
}

/// The seed of this run, printed once, taken from `SEED` if that is set.
pub fn seed() -> u64 {
    static SEED: OnceLock<u64> = OnceLock::new();
    *SEED.get_or_init(|| {
        let seed = match std::env::var("SEED") {
            Ok(text) => text.parse().expect("SEED must be a number"),
            Err(_) => {
                let since = std::time::SystemTime::UNIX_EPOCH.elapsed().unwrap();
                u64::from(since.subsec_nanos()) ^ (since.as_secs() << 20)
            }
        };
        println!("SEED={seed}");
        seed
    })
}

/// Numbers from a seed (splitmix64).
pub struct Rng(u64);

impl Rng {
    pub fn new() -> Rng {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        Rng(seed().wrapping_add(NEXT.fetch_add(1, Ordering::Relaxed) << 32))
    }

    /// The numbers of one seed, whatever else takes numbers.
    pub fn of(seed: u64) -> Rng {
        Rng(seed)
    }

    pub fn number(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    pub fn below(&mut self, end: u64) -> u64 {
        self.number() % end
    }

    pub fn index(&mut self, len: usize) -> usize {
        usize::try_from(self.below(len as u64)).unwrap()
    }

    pub fn bytes(&mut self, count: usize) -> Vec<u8> {
        (0..count).map(|_| (self.number() >> 56) as u8).collect()
    }
}

/// A port of 127.0.0.1 nobody listens on, from below the range that outgoing connections take
/// theirs from.
pub fn free_port() -> u16 {
    let mut rng = Rng::new();
    rng.0 ^= u64::from(std::process::id()) << 40;
    until("a free port", || {
        let port = 10_000 + u16::try_from(rng.below(20_000)).unwrap();
        TcpListener::bind(SocketAddr::from(([127, 0, 0, 1], port))).ok().map(|_| port)
    })
}

/// The extension as built for this very test run: beside the test program. (The copy one folder up
/// is made by `cargo build` alone and may be older.)
pub fn library() -> PathBuf {
    let program = std::env::current_exe().unwrap();
    let folder = program.parent().unwrap();
    let name = if cfg!(target_os = "macos") { "liblitestream.dylib" } else { "liblitestream.so" };
    let library = folder.join(name);
    assert!(library.exists(), "{} is not built", library.display());
    library
}

/// A Python program and its arguments; the script leaves no compiled files behind.
pub fn python_script(text: &str, arguments: &[&dyn AsRef<OsStr>]) -> Command {
    let mut command = Command::new(python());
    command.args(["-B", "-c", text]).args(arguments.iter().map(|one| one.as_ref()));
    command
}

/// What a program printed; it has to succeed.
pub fn said_by(command: &mut Command) -> String {
    let output = command.output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{said}{}", String::from_utf8_lossy(&output.stderr));
    said
}

/// A Python whose `sqlite3` may load extensions; `PYTHON` names another one.
pub fn python() -> &'static Path {
    static FOUND: OnceLock<PathBuf> = OnceLock::new();
    const PROBE: &str = "import sqlite3; sqlite3.connect('').enable_load_extension(True)";
    FOUND.get_or_init(|| {
        let named = std::env::var("PYTHON").ok();
        let all = ["/usr/bin/python3", "python3", "/usr/local/bin/python3"].map(str::to_owned);
        let mut tried = String::new();
        for candidate in named.into_iter().chain(all) {
            let output = Command::new(&candidate).args(["-c", PROBE]).output();
            match output {
                Ok(output) if output.status.success() => return candidate.into(),
                Ok(output) => {
                    let _ =
                        writeln!(tried, "{candidate}: {}", String::from_utf8_lossy(&output.stderr));
                }
                Err(error) => drop(writeln!(tried, "{candidate}: {error}")),
            }
        }
        panic!("no Python here can load SQLite extensions (set PYTHON):\n{tried}")
    })
}

/// A Python module and the folder of its SQLite: of the module itself, or, for `sqlite3`, of the
/// shared library it is to run with.
pub type Module = (&'static str, PathBuf);

/// What the set-up (`make setup`) puts under `.venv/`.
fn prepared() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(".venv")
}

/// The SQLite of this version as a shared library, from `scripts/setup`.
pub fn sqlite_of(version: &str) -> Module {
    let folder = prepared().join(format!("sqlite-{version}"));
    assert!(folder.join("libsqlite3.so.0").exists(), "{} is missing: make setup", folder.display());
    ("sqlite3", folder)
}

/// The oldest SQLite that may host the extension.
pub fn oldest() -> Module {
    sqlite_of("3.35.4")
}

/// The newest SQLite there is.
pub fn newest() -> Module {
    let number = |(_, path): &Module| {
        let name = path.file_name().unwrap().to_str().unwrap();
        let version = name.split('-').next_back().unwrap();
        version.split('.').map_while(|part| part.parse::<u32>().ok()).collect::<Vec<_>>()
    };
    let all = other_versions().into_iter().filter(|(module, _)| *module == "apsw");
    all.max_by_key(number).unwrap()
}

/// The versions of SQLite besides the system's: the oldest, and the Python modules that have one of
/// their own. At least three of these, or the test fails: a missing one is not a reason to check
/// less.
pub fn other_versions() -> Vec<Module> {
    let root = prepared();
    let mut found: Vec<Module> = std::fs::read_dir(&root)
        .map(|entries| entries.flatten().map(|entry| entry.path()).collect::<Vec<_>>())
        .unwrap_or_default()
        .into_iter()
        .filter_map(|path| {
            let module = ["apsw", "pysqlite3"].into_iter().find(|name| path.join(name).is_dir())?;
            Some((module, path))
        })
        .collect();
    found.push(oldest());
    found.sort();
    let list = found.iter().filter(|(module, _)| *module == "apsw").count();
    assert!(
        list >= 3,
        "{} holds {list} versions of apsw, 3 are needed: make setup",
        root.display()
    );
    found
}
