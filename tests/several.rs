//! Copies of the library in one process: one file under two names is one library; a second file is
//! refused, before it could take the log of a database the first one serves.
#![allow(clippy::unwrap_used, clippy::panic)]

mod common;

use common::*;

const SCRIPT: &str = "
import sqlite3, sys
database, first, second, link = sys.argv[1:]
def connect(library):
    db = sqlite3.connect(database, isolation_level=None)
    db.enable_load_extension(True)
    db.load_extension(library)
    return db
db = connect(first)
url = db.execute('SELECT litestream_serve(?)', ('127.0.0.1:0',)).fetchone()[0]
for _ in range(2):
    try:
        connect(second)
        print('loaded')
    except sqlite3.OperationalError as error:
        print(error)
linked = connect(link)
db.close()
print(linked.execute('SELECT addr FROM litestream_databases').fetchone()[0] == url)
linked.execute('CREATE TABLE t(x)')
print(linked.execute('SELECT litestream_sync() IS NOT NULL').fetchone()[0])
again = connect(first)
linked.close()
print(again.execute('SELECT litestream_stop()').fetchone()[0])
print(again.execute('SELECT count(*) FROM litestream_databases').fetchone()[0])
print(again.execute('SELECT litestream_serve(?)', ('127.0.0.1:0',)).fetchone()[0][:7])
";

#[test]
fn a_second_copy_is_refused_and_a_link_is_no_copy() {
    let folder = Folder::new("several");
    // SQLite makes the name of the entry point from the file's.
    for name in ["copy", "link"] {
        std::fs::create_dir(folder.file(name)).unwrap();
    }
    let copy = folder.file("copy/liblitestream.so");
    let link = folder.file("link/liblitestream.so");
    std::fs::copy(library(), &copy).unwrap();
    std::os::unix::fs::symlink(library(), &link).unwrap();
    for (first, second, link) in [(library(), &copy, &link), (link.clone(), &copy, &library())] {
        let path = folder.file("p.db");
        let said = said_by(&mut python_script(SCRIPT, &[&path, &first, second, link]));
        let lines: Vec<&str> = said.lines().collect();
        assert_eq!(lines.len(), 7, "{said}");
        for line in &lines[..2] {
            assert!(line.contains("another copy of this extension"), "{line}");
        }
        assert_eq!(lines[2..6], ["True", "1", "1", "0"], "{said}");
        std::fs::remove_file(path).unwrap();
        std::fs::remove_dir_all(folder.file("p.db-litestream")).unwrap();
    }
}
