//! The library with the feature `faults`: built here, as nobody else needs it, beside the one that
//! all other tests load.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

/// Its file, whose name says the entry point's.
pub fn library() -> &'static Path {
    static BUILT: OnceLock<PathBuf> = OnceLock::new();
    BUILT.get_or_init(|| {
        let mut build = Command::new(env!("CARGO"));
        build.args(["build", "--quiet", "--locked", "--package", "litestream-faults"]);
        build.current_dir(env!("CARGO_MANIFEST_DIR"));
        // What cargo tells a test about its package; build scripts would take it for a change.
        let about = ["CARGO_PKG_", "CARGO_MANIFEST_", "CARGO_CRATE_", "CARGO_PRIMARY_"];
        for (name, _) in std::env::vars() {
            if about.iter().any(|start| name.starts_with(start)) {
                build.env_remove(name);
            }
        }
        let program = std::env::current_exe().unwrap();
        let profile = program.parent().unwrap().parent().unwrap();
        if profile.ends_with("release") {
            build.arg("--release");
        }
        build.arg("--target-dir").arg(profile.parent().unwrap());
        assert!(build.status().unwrap().success(), "{build:?}");
        let suffix = if cfg!(target_os = "macos") { "dylib" } else { "so" };
        let folder = profile.join("faults");
        std::fs::create_dir_all(&folder).unwrap();
        let (tmp, library) = (folder.join("tmp"), folder.join(format!("liblitestream.{suffix}")));
        std::fs::copy(profile.join(format!("liblitestream_faults.{suffix}")), &tmp).unwrap();
        std::fs::rename(tmp, &library).unwrap();
        library
    })
}

/// The library with faults is the library: what one depends on the other does.
#[test]
fn it_depends_on_what_the_library_does() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let dependencies = |manifest: &str| {
        let text = std::fs::read_to_string(root.join(manifest)).unwrap();
        let part = text.split("\n[dependencies]\n").nth(1).unwrap().split("\n\n").next().unwrap();
        part.replace("../../../", "")
    };
    assert_eq!(dependencies("Cargo.toml"), dependencies("tests/faults/library/Cargo.toml"));
}
