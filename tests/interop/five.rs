//! What 0.5 archives, we restore: any state it restores, to the same bytes.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::thread::sleep;
use std::time::{Duration, SystemTime};

use litestream::archive::ltx;
use litestream::archive::sink::{PageSink, Target, Until};
use litestream::archive::{Archive, ArchiveOptions};
use litestream::error::Result;
use litestream::wal::PageSize;

use crate::common::Folder;
use crate::data::{Application, STEPS, assert_content, content};
use crate::stock::Release::Five;

/// A database file in memory.
#[derive(Default)]
struct Image {
    page_size: usize,
    bytes: Vec<u8>,
    put: Vec<bool>,
}

impl PageSink for Image {
    fn begin(&mut self, page_size: PageSize, page_count: u32) -> Result<()> {
        self.page_size = page_size.bytes();
        self.bytes = vec![0; self.page_size * page_count as usize];
        self.put = vec![false; page_count as usize];
        Ok(())
    }

    fn wants(&self, page_no: u32) -> bool {
        self.put.get(page_no as usize - 1) == Some(&false)
    }

    fn put(&mut self, page_no: u32, page: &[u8]) -> Result<()> {
        let at = page_no as usize - 1;
        self.put[at] = true;
        self.bytes[at * self.page_size..][..self.page_size].copy_from_slice(page);
        Ok(())
    }
}

fn restore(url: &str, until: Until, to: &Path) {
    let archive = Archive::open(url, &ArchiveOptions::default()).unwrap();
    let plan = ltx::choose(&archive, &Target { generation: None, until }).unwrap().unwrap();
    let mut image = Image::default();
    plan.fill(&archive, &mut image).unwrap_or_else(|error| panic!("{error}: {}", plan.describe()));
    std::fs::write(to, image.bytes).unwrap();
}

/// Compacts each second and each three, keeps single transactions for one.
const HEAD: &str = "
levels:
  - interval: 1s
  - interval: 3s
snapshot:
  interval: 4s
  retention: 1h
l0-retention: 1s
l0-retention-check-interval: 500ms
dbs:
";

fn config(databases: &[Application], archives: &[PathBuf]) -> String {
    let mut config = HEAD.to_owned();
    for (database, archive) in databases.iter().zip(archives) {
        let (path, archive) = (database.path.display(), archive.display());
        write!(
            config,
            "
  - path: {path}
    monitor-interval: 50ms
    checkpoint-interval: 2s
    replica:
      type: file
      path: {archive}
      sync-interval: 100ms
"
        )
        .unwrap();
    }
    config
}

#[test]
fn every_state_of_every_page_size() {
    let folder = Folder::new("interop-five");
    let sizes = [512, 1024, 4096, 65_536];
    let file = |what: &str, size: u32| folder.file(&format!("{what}{size}"));
    let mut databases: Vec<Application> =
        sizes.iter().map(|size| Application::new(file("db", *size), *size)).collect();
    let archives: Vec<PathBuf> = sizes.iter().map(|size| file("archive", *size)).collect();
    let litestream = Five.replicate(&folder, &config(&databases, &archives));

    // Time, and what each database held then.
    let mut history: Vec<(SystemTime, Vec<String>)> = Vec::new();
    for step in 0..STEPS {
        for database in &mut databases {
            database.step(step);
        }
        let held = databases.iter().map(Application::content).collect();
        sleep(Duration::from_millis(1300));
        history.push((SystemTime::now(), held));
    }
    litestream.stop();

    for (number, archive) in archives.iter().enumerate() {
        let url = format!("file://{}", archive.display());
        let (ours, theirs) = (folder.file("ours"), folder.file("theirs"));
        let compare = |until: Until, arguments: &[&str], expected: &str, what: &str| {
            let what = format!("{what} of {url}");
            restore(&url, until, &ours);
            Five.restore(&url, &theirs, arguments).unwrap_or_else(|e| panic!("{what}: {e}"));
            let same = std::fs::read(&ours).unwrap() == std::fs::read(&theirs).unwrap();
            assert!(same, "{what}: we restore other bytes");
            assert_content(&content(&ours), expected, &what);
            for made in [&ours, &theirs] {
                remove(made);
            }
        };
        let last = history.len() - 1;
        compare(Until::Latest, &[], &history[last].1[number], "the newest state");
        for (time, held) in &history[..last] {
            let text = humantime::format_rfc3339_millis(*time).to_string();
            let arguments = ["-timestamp", text.as_str()];
            compare(Until::Time(*time), &arguments, &held[number], &text);
        }
        let after = SystemTime::now();
        restore(&url, Until::Time(after), &ours);
        assert_content(&content(&ours), &history[last].1[number], "a time after the last");
        remove(&ours);
        let levels: Vec<bool> =
            [1, 2, 9].iter().map(|n| archive.join(format!("ltx/{n}")).is_dir()).collect();
        assert_eq!(levels, [true; 3], "it compacted, and made snapshots");
    }
}

fn remove(database: &Path) {
    for suffix in ["", "-wal", "-shm"] {
        let mut path = database.as_os_str().to_owned();
        path.push(suffix);
        let _may_not_exist = std::fs::remove_file(path);
    }
}
