//! The disk under a recorded process: what of it must, and what may, be there after the power went.
//!
//! See the top of main.rs for the rules.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};

use super::common::Rng;
use super::journal::{Event, What};

/// What a disk writes whole or not at all, in bytes.
const SECTOR: usize = 512;
/// What the system writes back at once, in bytes.
const PAGE: usize = 4096;
/// The folder recorded.
const ROOT: usize = 0;

/// A moment: the line of the recording up to which things have happened.
pub type Moment = usize;

/// When names reach the disk.
#[derive(Clone, Copy, Debug)]
pub enum Names {
    /// With a sync of their folder, and by chance before: so many in eight.
    Folder(u64),
    /// With a sync of their folder or, a new name, of the file itself.
    File(u64),
    /// In the order they were made, all up to the latest sync of anything, and some beyond.
    InOrder,
}

/// What is on the disk of what was not synced.
#[derive(Clone, Copy, Debug)]
pub enum Data {
    Nothing,
    All,
    /// Each file as it was at some moment.
    Prefix,
    /// Each page as it was at some moment.
    Pages,
    /// Each sector as it was at some moment.
    Sectors,
}

/// How the power goes.
#[derive(Clone, Copy, Debug)]
pub struct Loss {
    pub at: Moment,
    pub names: Names,
    pub data: Data,
}

impl Loss {
    pub fn choose(at: Moment, rng: &mut Rng) -> Loss {
        let kept = [0, 4, 7, 8][rng.index(4)];
        let names = [Names::Folder(kept), Names::File(kept), Names::InOrder][rng.index(3)];
        let data = [Data::Nothing, Data::All, Data::Prefix, Data::Pages, Data::Sectors];
        Loss { at, names, data: data[rng.index(5)] }
    }
}

enum Change {
    Write(usize, Vec<u8>),
    Resize(usize),
}

/// A file or a folder.
#[derive(Default)]
struct Node {
    is_folder: bool,
    /// Of a file: its bytes when the recording began.
    base: Vec<u8>,
    changes: Vec<(Moment, Change)>,
    /// When syncs of it began and ended.
    syncs: Vec<(Moment, Moment)>,
    /// The same of what is below it, which is there only if it is.
    syncs_below: Vec<(Moment, Moment)>,
}

type Place = (usize, OsString);

/// A change of names.
struct Naming {
    at: Moment,
    node: usize,
    from: Option<Place>,
    to: Option<Place>,
}

pub struct Disk {
    nodes: Vec<Node>,
    names: HashMap<Place, usize>,
    namings: Vec<Naming>,
    syncs: Vec<(Moment, Moment)>,
}

impl Disk {
    /// The disk of `folder`, which held `base` when the recording began and on which `events`
    /// happened.
    pub fn new(folder: &Path, base: &Image, events: &[Event]) -> Disk {
        let root = Node { is_folder: true, ..Node::default() };
        let mut disk = Disk {
            nodes: vec![root],
            names: HashMap::new(),
            namings: Vec::new(),
            syncs: Vec::new(),
        };
        for (path, content) in base {
            let place = disk.place(path);
            let base = content.clone().unwrap_or_default();
            let node = disk.add(Node { is_folder: content.is_none(), base, ..Node::default() });
            disk.names.insert(place.clone(), node);
            disk.namings.push(Naming { at: 0, node, from: None, to: Some(place) });
        }
        disk.syncs.push((0, 0));
        disk.nodes.iter_mut().for_each(|node| node.syncs.push((0, 0)));
        for event in events {
            disk.take(folder, event);
        }
        disk
    }

    fn take(&mut self, folder: &Path, event: &Event) {
        let at = event.ended + 1;
        let inside = |path: &PathBuf| path.strip_prefix(folder).ok().map(Path::to_owned);
        match &event.what {
            What::Mark(_) => {}
            What::Create(path) | What::Mkdir(path) => {
                let Some(path) = inside(path) else { return };
                if path.as_os_str().is_empty() {
                    return;
                }
                let is_folder = matches!(event.what, What::Mkdir(_));
                let place = self.place(&path);
                if !self.names.contains_key(&place) {
                    let node = self.add(Node { is_folder, ..Node::default() });
                    self.rename(at, node, None, Some(place));
                }
            }
            What::Resize(path, size) => {
                let size = usize::try_from(*size).unwrap();
                self.change(inside(path), at, Change::Resize(size));
            }
            What::Write(path, offset, bytes) => {
                let offset = usize::try_from(*offset).unwrap();
                self.change(inside(path), at, Change::Write(offset, bytes.clone()));
            }
            What::Sync(path) => {
                let Some(path) = inside(path) else { return };
                let span = (event.began + 1, at);
                self.syncs.push(span);
                let Some(node) = self.find(&path) else { return };
                self.nodes[node].syncs.push(span);
                for above in path.ancestors().skip(1) {
                    if let Some(node) = self.find(above) {
                        self.nodes[node].syncs_below.push(span);
                    }
                }
            }
            What::Rename(from, to) | What::Link(from, to) => {
                let (Some(from), Some(to)) = (inside(from), inside(to)) else { return };
                let (from, to) = (self.place(&from), self.place(&to));
                let node = self.names[&from];
                let from = matches!(event.what, What::Rename(..)).then_some(from);
                self.rename(at, node, from, Some(to));
            }
            What::Unlink(path) | What::Rmdir(path) => {
                let Some(path) = inside(path) else { return };
                let place = self.place(&path);
                let node = self.names[&place];
                self.rename(at, node, Some(place), None);
            }
        }
    }

    fn add(&mut self, node: Node) -> usize {
        self.nodes.push(node);
        self.nodes.len() - 1
    }

    fn rename(&mut self, at: Moment, node: usize, from: Option<Place>, to: Option<Place>) {
        if let Some(from) = &from {
            self.names.remove(from);
        }
        if let Some(to) = &to {
            self.names.insert(to.clone(), node);
        }
        self.namings.push(Naming { at, node, from, to });
    }

    fn change(&mut self, path: Option<PathBuf>, at: Moment, change: Change) {
        // What has no name any more is of no interest.
        if let Some(node) = path.and_then(|path| self.find(&path)) {
            self.nodes[node].changes.push((at, change));
        }
    }

    fn find(&self, path: &Path) -> Option<usize> {
        path.iter().try_fold(ROOT, |node, name| self.names.get(&(node, name.to_owned())).copied())
    }

    fn place(&self, path: &Path) -> Place {
        let above = path.parent().unwrap_or(Path::new(""));
        let folder = self.find(above).unwrap_or_else(|| panic!("{} is not there", above.display()));
        (folder, path.file_name().unwrap().to_owned())
    }

    /// What was there, had the power not gone.
    pub fn alive(&self, at: Moment) -> Image {
        let kept = self.namings.iter().filter(|naming| naming.at <= at);
        let last = |node: &Node, _: &mut Rng| node.all(at);
        self.assemble(kept, &mut Rng::of(0), last)
    }

    /// What is there when the power comes back.
    pub fn after(&self, loss: Loss, rng: &mut Rng) -> Image {
        let happened: Vec<&Naming> = self.namings.iter().filter(|one| one.at <= loss.at).collect();
        let kept: Vec<&Naming> = match loss.names {
            Names::InOrder => {
                let spans = self.syncs.iter().filter(|span| span.1 <= loss.at);
                let synced = spans.map(|span| span.0).max().unwrap_or(0);
                let safe = happened.partition_point(|one| one.at <= synced);
                let more = rng.index(happened.len() - safe + 1);
                happened[..safe + more].to_vec()
            }
            Names::Folder(chance) | Names::File(chance) => {
                let by_file = matches!(loss.names, Names::File(_));
                let mut is_kept =
                    |one: &Naming| self.is_safe(one, loss.at, by_file) || rng.below(8) < chance;
                happened.into_iter().filter(|one| is_kept(one)).collect()
            }
        };
        let mut image = self.assemble(kept.into_iter(), rng, |node, rng| node.after(loss, rng));
        image.values_mut().flatten().for_each(|bytes| boot_again(bytes));
        image
    }

    /// Whether a change of names must have survived.
    fn is_safe(&self, one: &Naming, at: Moment, by_file: bool) -> bool {
        let covers = |span: &(Moment, Moment)| span.0 >= one.at && span.1 <= at;
        let synced = |node: usize| self.nodes[node].syncs.iter().any(covers);
        let folders = one.from.iter().chain(&one.to).map(|place| place.0);
        let by_folders = folders.into_iter().all(synced);
        let node = &self.nodes[one.node];
        let of_file = by_file && one.to.is_some();
        by_folders || (of_file && (synced(one.node) || node.syncs_below.iter().any(covers)))
    }

    fn assemble<'n>(
        &self,
        kept: impl Iterator<Item = &'n Naming>,
        rng: &mut Rng,
        content: impl Fn(&Node, &mut Rng) -> Vec<u8>,
    ) -> Image {
        let mut names: BTreeMap<&Place, usize> = BTreeMap::new();
        for one in kept {
            if let Some(from) = one.from.as_ref().filter(|from| names.get(from) == Some(&one.node))
            {
                names.remove(from);
            }
            if let Some(to) = &one.to {
                names.insert(to, one.node);
            }
        }
        let mut image = Image::new();
        let mut pending = vec![(ROOT, PathBuf::new())];
        let mut seen = HashSet::new();
        while let Some((folder, path)) = pending.pop() {
            let inside = (folder, OsString::new())..(folder + 1, OsString::new());
            for (place, node) in names.range::<Place, _>(inside) {
                let path = path.join(&place.1);
                let is_shm = path.to_string_lossy().ends_with("-shm");
                if self.nodes[*node].is_folder {
                    // A rename that lost one of its halves may leave a folder in two places.
                    if seen.insert(*node) {
                        image.insert(path.clone(), None);
                        pending.push((*node, path));
                    }
                } else if !is_shm {
                    image.insert(path, Some(content(&self.nodes[*node], rng)));
                }
            }
        }
        image
    }
}

/// The system was booted since: where a file names the boot of the recording, it names another than
/// the one that the test finds itself in.
fn boot_again(bytes: &mut [u8]) {
    let boot = fs::read("/proc/sys/kernel/random/boot_id").unwrap();
    let boot = boot.trim_ascii_end();
    let found = (0..bytes.len()).find(|at| bytes[*at..].starts_with(boot));
    if let Some(at) = found {
        bytes[at..at + boot.len()].reverse();
    }
}

/// Files with their bytes, and folders, by their paths below the root.
pub type Image = BTreeMap<PathBuf, Option<Vec<u8>>>;

/// Writes an image into a new folder.
pub fn write(image: &Image, folder: &Path) {
    fs::create_dir_all(folder).unwrap();
    for (path, content) in image {
        let path = folder.join(path);
        match content {
            None => fs::create_dir(path).unwrap(),
            Some(bytes) => fs::write(path, bytes).unwrap(),
        }
    }
}

impl Node {
    fn all(&self, at: Moment) -> Vec<u8> {
        let mut bytes = self.base.clone();
        self.happened(at).iter().for_each(|(_, change)| change.apply(&mut bytes));
        bytes
    }

    fn happened(&self, at: Moment) -> &[(Moment, Change)] {
        &self.changes[..self.changes.partition_point(|(done, _)| *done <= at)]
    }

    /// The bytes on the disk after a loss.
    fn after(&self, loss: Loss, rng: &mut Rng) -> Vec<u8> {
        let happened = self.happened(loss.at);
        let spans = self.syncs.iter().filter(|span| span.1 <= loss.at);
        let synced = spans.map(|span| span.0).max().unwrap_or(0);
        let safe = happened.partition_point(|(done, _)| *done <= synced);
        let mut disk = self.base.clone();
        happened[..safe].iter().for_each(|(_, change)| change.apply(&mut disk));
        let pending = &happened[safe..];
        let unit = match loss.data {
            Data::Nothing => return disk,
            Data::All | Data::Prefix => {
                let all = matches!(loss.data, Data::All);
                let kept = if all { pending.len() } else { rng.index(pending.len() + 1) };
                pending[..kept].iter().for_each(|(_, change)| change.apply(&mut disk));
                return disk;
            }
            Data::Pages => PAGE,
            Data::Sectors => SECTOR,
        };
        let changes: Vec<&Change> = pending.iter().map(|(_, change)| change).collect();
        in_units(&disk, &changes, unit, rng)
    }
}

/// A file of which each unit is as it was at some moment, and so is the size. A cut that reached
/// the disk is between what was before and what was after it: neither mixes with the other.
fn in_units(disk: &[u8], changes: &[&Change], unit: usize, rng: &mut Rng) -> Vec<u8> {
    let moment = rng.index(changes.len() + 1);
    let mut size = disk.len();
    for change in &changes[..moment] {
        size = change.size_after(size);
    }
    let mut file = disk.to_vec();
    file.resize(size, 0);
    let touched: HashSet<usize> =
        changes.iter().flat_map(|change| change.units(unit, disk.len().max(size))).collect();
    let mut touched: Vec<usize> = touched.into_iter().filter(|n| n * unit < size).collect();
    touched.sort_unstable();
    for number in touched {
        let start = number * unit;
        let cuts = |change: &&Change| matches!(change, Change::Resize(to) if *to < start + unit);
        let first = changes[..moment].iter().rposition(cuts).map_or(0, |cut| cut + 1);
        let last =
            changes[moment..].iter().position(cuts).map_or(changes.len(), |cut| moment + cut);
        let then = first + rng.index(last - first + 1);
        let mut part = disk.get(start..).unwrap_or_default().to_vec();
        part.resize(unit, 0);
        for change in &changes[..then] {
            change.apply_to_unit(start, &mut part);
        }
        let end = size.min(start + unit);
        file[start..end].copy_from_slice(&part[..end - start]);
    }
    file
}

impl Change {
    fn apply(&self, bytes: &mut Vec<u8>) {
        bytes.resize(self.size_after(bytes.len()), 0);
        if let Change::Write(at, new) = self {
            bytes[*at..at + new.len()].copy_from_slice(new);
        }
    }

    fn size_after(&self, size: usize) -> usize {
        match self {
            Change::Write(at, new) => size.max(at + new.len()),
            Change::Resize(to) => *to,
        }
    }

    /// The units it touches in a file that is at most so long.
    fn units(&self, unit: usize, length: usize) -> std::ops::Range<usize> {
        match self {
            Change::Write(at, new) => at / unit..(at + new.len()).div_ceil(unit),
            Change::Resize(to) => to / unit..length.div_ceil(unit),
        }
    }

    fn apply_to_unit(&self, start: usize, part: &mut [u8]) {
        match self {
            Change::Write(at, new) => {
                let (from, to) = ((*at).max(start), (at + new.len()).min(start + part.len()));
                if from < to {
                    part[from - start..to - start].copy_from_slice(&new[from - at..to - at]);
                }
            }
            Change::Resize(to) => {
                let kept = to.saturating_sub(start).min(part.len());
                part[kept..].fill(0);
            }
        }
    }
}
