//! The names of all operations, as the source has them, and what is special about some.

use std::collections::BTreeSet;
use std::path::Path;

/// Operations whose failure is shown nowhere, because nothing follows from it.
const BEST_EFFORT: &[(&str, &str)] = &[
    ("serve/accept", "ends one client's connection; it connects again, and tells"),
    ("serve/receive", "ends one client's connection; it connects again, and tells"),
    ("serve/send", "ends one client's connection; it connects again, and tells"),
    ("serve/inner/listen", "another place for the socket is tried"),
    ("restore/file/unnamed", "a file with a name does as well"),
    ("serve/inner/connect", "ends one client's connection; it connects again, and tells"),
    ("capture/events/open", "without events the WAL is looked at again and again"),
    ("log/tmp/remove", "a leftover, removed at the next start"),
    ("follow/position/read", "asked where nothing follows: the position is not known then"),
    ("replicate/note/read", "a doubt, which reading the archive resolves"),
];

/// Operations that the play does not get to, and where else they fail.
const NOT_MET: &[(&str, &str)] = &[
    ("archive/file/remove", "rare.rs"),
    ("archive/folder/remove", "rare.rs"),
    ("archive/identities/open", "rare.rs"),
    ("files/small/open", "rare.rs"),
    ("files/tmp/remove", "rare.rs"),
    ("follow/wal/truncate", "rare.rs"),
    ("log/folder/remove", "rare.rs"),
    ("log/segment/remove", "only what a process killed in a large transaction left"),
    ("log/snapshot/sync", "rare.rs"),
    ("restore/file/create", "rare.rs"),
    ("restore/name/rename", "rare.rs"),
    ("restore/spool/read", "only of segments of 32 MiB, which only others make"),
    ("restore/spool/write", "only of segments of 32 MiB, which only others make"),
    ("restore/tmp/remove", "rare.rs"),
];

pub fn is_best_effort(point: &str) -> bool {
    BEST_EFFORT.iter().any(|(name, _)| *name == point)
}

/// Every name in the source that the play should meet.
pub fn expected() -> BTreeSet<String> {
    let mut names = BTreeSet::new();
    collect(&Path::new(env!("CARGO_MANIFEST_DIR")).join("src"), &mut names);
    for (name, _) in NOT_MET.iter().chain(BEST_EFFORT) {
        assert!(names.contains(*name), "{name} is in a table and not in the source");
    }
    names.retain(|name| NOT_MET.iter().all(|(not_met, _)| not_met != name));
    names
}

fn collect(folder: &Path, names: &mut BTreeSet<String>) {
    for entry in std::fs::read_dir(folder).unwrap().flatten() {
        let path = entry.path();
        if path.is_dir() {
            collect(&path, names);
            continue;
        }
        let text = std::fs::read_to_string(&path).unwrap();
        let code: String =
            text.lines().filter(|line| !line.trim_start().starts_with("//")).collect();
        for start in ["fault::at(", "fault::write(", "Tap::new(", "fault_at("] {
            for (at, _) in code.match_indices(start) {
                let call = code[at..].split(')').next().unwrap();
                // Of a tap the name is the last argument, of the others the first.
                names.extend(
                    call.split('"').nth(1).filter(|it| it.contains('/')).map(str::to_owned),
                );
            }
        }
    }
}
