//! Choosing, case by case: an archive is written down as what it lists, a second for each time.

use std::collections::BTreeMap;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use super::*;
use crate::archive::tree::Tree;
use crate::info::{SnapshotInfo, WalSegmentInfo};

fn second(at: u64) -> SystemTime {
    UNIX_EPOCH + Duration::from_secs(1_790_000_000 + at)
}

fn pos(generation: u64, index: u64, offset: u64) -> Pos {
    let (index, offset) = (Index::new(index).unwrap(), Offset::new(offset).unwrap());
    Pos::new(Generation::from_bits(generation), index, offset)
}

/// A generation being written down, and the labels of its objects.
struct Sketch {
    listing: Listing,
    snapshots: BTreeMap<u64, u64>,
    /// Index and offset, and (offset, second) of each moment; none: no label, only a time.
    segments: BTreeMap<(u64, u64), Vec<(u64, u64)>>,
    labelled: bool,
    asked: usize,
}

fn sketch(generation: u64) -> Sketch {
    let listing = Listing {
        generation: Generation::from_bits(generation),
        snapshots: Vec::new(),
        segments: Vec::new(),
        ends: BTreeMap::new(),
        other_ends: Vec::new(),
        position: None,
    };
    Sketch {
        listing,
        snapshots: BTreeMap::new(),
        segments: BTreeMap::new(),
        labelled: true,
        asked: 0,
    }
}

impl Sketch {
    fn generation(&self) -> u64 {
        self.listing.generation.to_bits()
    }

    fn snapshot(mut self, index: u64, at: u64) -> Sketch {
        let Pos { generation, index: name, .. } = pos(self.generation(), index, 0);
        let info = SnapshotInfo { generation, index: name, size: 1, created_at: second(at) };
        self.listing.snapshots.push(SnapshotObject { info, tree: Tree::V04 });
        self.snapshots.insert(index, at);
        self
    }

    /// A segment with a commit at each of these offsets and seconds; the last tells its end.
    fn segment(mut self, index: u64, offset: u64, moments: &[(u64, u64)]) -> Sketch {
        let Pos { generation, index: name, offset: start } = pos(self.generation(), index, offset);
        let created_at = second(moments.last().map_or(0, |last| last.1));
        let info = WalSegmentInfo { generation, index: name, offset: start, size: 1, created_at };
        self.listing.segments.push(SegmentObject { info, tree: Tree::V04 });
        self.segments.insert((index, offset), moments.to_vec());
        self
    }

    fn end(mut self, index: u64, offset: u64) -> Sketch {
        let Pos { index, offset, .. } = pos(self.generation(), index, offset);
        self.listing.ends.insert(index, offset);
        self
    }

    fn position(mut self, index: u64, offset: u64) -> Sketch {
        self.listing.position = Some(pos(self.generation(), index, offset));
        self
    }

    fn unlabelled(mut self) -> Sketch {
        self.labelled = false;
        self
    }

    /// Without the segment there.
    fn without(mut self, index: u64, offset: u64) -> Sketch {
        let gone = pos(self.generation(), index, offset);
        self.listing.segments.retain(|segment| segment.info.pos() != gone);
        self
    }
}

/// All generations at once.
struct All(Vec<Sketch>);

impl All {
    fn of(&mut self, generation: Generation) -> &mut Sketch {
        let found = self.0.iter_mut().find(|sketch| sketch.listing.generation == generation);
        let sketch = found.unwrap();
        sketch.asked += 1;
        sketch
    }
}

impl Times for All {
    fn snapshot(&mut self, snapshot: &SnapshotObject) -> Result<SystemTime> {
        let sketch = self.of(snapshot.info.generation);
        Ok(second(sketch.snapshots[&snapshot.info.index.get()]))
    }

    fn segment(&mut self, segment: &SegmentObject) -> Result<Commits> {
        let sketch = self.of(segment.info.generation);
        let key = (segment.info.index.get(), segment.info.offset.get());
        let moments = &sketch.segments[&key];
        if !sketch.labelled {
            let first = segment.info.created_at;
            return Ok(Commits { first, moments: Vec::new(), is_labelled: false });
        }
        let first = second(moments[0].1);
        let moments = moments
            .iter()
            .map(|(end, at)| Moment { end: Offset::new(*end).unwrap(), at: second(*at) });
        Ok(Commits { first, moments: moments.collect(), is_labelled: true })
    }
}

/// The snapshot's index, the segments (index and offset), and the cut.
type Shown = (u64, u64, Vec<(u64, u64)>, Option<u64>, Reach);

fn choose_from(sketches: Vec<Sketch>, goal: Goal) -> Result<Shown> {
    let listings = sketches.iter().map(|sketch| sketch.listing.clone()).collect();
    let chain = choose(listings, goal, &mut All(sketches))?;
    let segments = chain.segments.iter().map(|it| (it.info.index.get(), it.info.offset.get()));
    let cut = chain.cut.map(Offset::get);
    let generation = chain.generation.to_bits();
    Ok((generation, chain.snapshot.info.index.get(), segments.collect(), cut, chain.reach))
}

#[track_caller]
fn fails(sketches: Vec<Sketch>, goal: Goal, expected: &str) {
    let error = choose_from(sketches, goal).unwrap_err().to_string();
    assert!(error.contains(expected), "{error}");
}

/// Two indexes and the start of a third; a commit each second from 10 on; snapshots at the start
/// and in the second index.
fn usual(generation: u64, from: u64) -> Sketch {
    sketch(generation)
        .snapshot(0, from)
        .segment(0, 0, &[(40, from + 10), (50, from + 11)])
        .segment(0, 50, &[(60, from + 12), (70, from + 13)])
        .end(0, 70)
        .segment(1, 0, &[(40, from + 20)])
        .snapshot(1, from + 22)
        .segment(1, 40, &[(50, from + 21), (60, from + 23)])
        .end(1, 60)
        .segment(2, 0, &[(40, from + 30)])
        .position(2, 40)
}

fn time(at: u64) -> Goal {
    Goal::Time(second(at))
}

#[test]
fn the_latest_is_from_the_newest_snapshot_on() {
    let reach = Reach::AtLeast(pos(1, 2, 40));
    let expected = (1, 1, vec![(1, 0), (1, 40), (2, 0)], None, reach);
    assert_eq!(choose_from(vec![usual(1, 0)], Goal::Latest).unwrap(), expected);
    // Of several generations the one that began last; an empty one is none.
    let (_, snapshot, ..) =
        choose_from(vec![usual(9, 0), usual(3, 100), usual(5, 50), sketch(7)], Goal::Latest)
            .unwrap();
    assert_eq!(snapshot, 1);
    let found = choose_from(vec![usual(9, 0), usual(3, 100), usual(5, 50)], Goal::Latest);
    assert_eq!(found.unwrap().0, 3);
    fails(vec![], Goal::Latest, "no snapshot and no WAL segment");
    fails(vec![sketch(1)], Goal::Latest, "no snapshot and no WAL segment");
    fails(vec![sketch(1).segment(0, 0, &[(40, 5)])], Goal::Latest, "has no snapshot");
}

#[test]
fn a_time_takes_what_was_committed_by_then() {
    let found = |at| {
        let (_, snapshot, segments, cut, reach) = choose_from(vec![usual(1, 0)], time(at)).unwrap();
        (snapshot, segments.len(), cut, reach)
    };
    assert_eq!(found(0), (0, 0, None, Reach::Anywhere));
    assert_eq!(found(9), (0, 0, None, Reach::Anywhere));
    assert_eq!(found(10), (0, 1, Some(40), Reach::Anywhere));
    assert_eq!(found(11), (0, 1, None, Reach::Exactly(pos(1, 0, 50))));
    assert_eq!(found(12), (0, 2, Some(60), Reach::Anywhere));
    assert_eq!(found(19), (0, 2, None, Reach::Exactly(pos(1, 0, 70))));
    assert_eq!(found(20), (0, 3, None, Reach::Exactly(pos(1, 1, 40))));
    // From the snapshot's own time on it is the one to use.
    assert_eq!(found(21), (0, 4, Some(50), Reach::Anywhere));
    assert_eq!(found(22), (1, 2, Some(50), Reach::Anywhere));
    assert_eq!(found(29), (1, 2, None, Reach::Exactly(pos(1, 1, 60))));
    assert_eq!(found(1000), (1, 3, None, Reach::AtLeast(pos(1, 2, 40))));
    // Between generations it is the older one's end.
    let two = |at| choose_from(vec![usual(7, 0), usual(3, 100)], time(at)).unwrap().0;
    assert_eq!((two(99), two(100)), (7, 3));
    fails(vec![usual(1, 5)], time(4), "what it holds begins");
}

#[test]
fn a_time_before_a_generations_first_snapshot_is_not_the_end_of_the_one_before() {
    let late = || sketch(2).segment(0, 0, &[(40, 100)]).snapshot(0, 110);
    fails(vec![usual(1, 0), late()], time(105), "first snapshot is of ");
    assert_eq!(choose_from(vec![usual(1, 0), late()], time(99)).unwrap().0, 1);
    assert_eq!(choose_from(vec![usual(1, 0), late()], time(110)).unwrap().0, 2);
}

#[test]
fn without_labels_segments_are_whole() {
    let found = |at| choose_from(vec![usual(1, 0).unlabelled()], time(at)).unwrap().2.len();
    assert_eq!((found(10), found(11), found(12), found(13)), (0, 1, 1, 2));
}

#[test]
fn a_position_is_cut_out_of_its_segment() {
    let found = |index, offset| {
        let goal = Goal::Pos(pos(1, index, offset));
        let (_, snapshot, segments, cut, reach) = choose_from(vec![usual(1, 0)], goal).unwrap();
        (snapshot, segments.len(), cut, reach == Reach::AtLeast(pos(1, index, offset)))
    };
    assert_eq!(found(0, 0), (0, 0, None, false));
    assert_eq!(found(0, 40), (0, 1, Some(40), true));
    assert_eq!(found(0, 60), (0, 2, Some(60), true));
    // What was committed before the snapshot's copy began may be in it.
    assert_eq!(found(1, 40), (0, 3, Some(40), true));
    assert_eq!(found(1, 50), (1, 2, Some(50), true));
    assert_eq!(found(2, 40), (1, 3, Some(40), true));
    // The start of an index is the end of the one before.
    assert_eq!(found(1, 0), (0, 2, None, false));
    let goal = |index, offset| Goal::Pos(pos(1, index, offset));
    fails(vec![usual(1, 0)], goal(3, 32), "beyond its last WAL segment");
    fails(vec![usual(1, 0)], goal(3, 0), "beyond its last WAL segment");
    fails(vec![usual(1, 0)], Goal::Pos(pos(2, 0, 40)), "generation 0000000000000002 is not in it");
    let late = sketch(1).snapshot(1, 22).segment(1, 0, &[(40, 20), (50, 25)]);
    fails(vec![late], goal(1, 32), "copied after it");
    let none = sketch(1).snapshot(0, 0);
    fails(vec![none], goal(0, 40), "no WAL segment with");
}

#[test]
fn what_is_missing_is_named() {
    let segment =
        |index, offset| format!("the WAL segment at {} is missing", pos(1, index, offset));
    let without = |index, offset| vec![usual(1, 0).without(index, offset)];
    fails(without(1, 0), Goal::Latest, &segment(1, 0));
    fails(without(1, 0), time(25), &segment(1, 0));
    fails(without(0, 0), time(12), &segment(0, 0));
    fails(without(0, 0), time(15), &segment(0, 0));
    fails(without(2, 0), Goal::Latest, &segment(2, 0));
    fails(without(2, 0), time(40), &segment(2, 0));
    // A time before it needs it not.
    assert!(choose_from(without(2, 0), time(22)).is_ok());
    // The last of an index: how long those before it are shows when they are read.
    let reach = choose_from(without(0, 50), time(15)).unwrap().4;
    assert_eq!(reach, Reach::Exactly(pos(1, 0, 70)));
    // Nothing but the snapshot is left.
    let bare = || sketch(1).snapshot(3, 0);
    assert!(choose_from(vec![bare()], Goal::Latest).is_ok());
    fails(vec![bare().position(3, 40)], Goal::Latest, &segment(3, 0));
    fails(vec![bare().end(3, 40)], Goal::Latest, &segment(3, 0));
}

/// A log that could not keep what its archive needed: the index has no end, and the archive goes on
/// with a new snapshot.
#[test]
fn a_hole_is_no_end() {
    let holed = || {
        sketch(1).snapshot(0, 0).segment(0, 0, &[(40, 10)]).snapshot(1, 50).segment(
            1,
            0,
            &[(40, 55)],
        )
    };
    assert_eq!(choose_from(vec![holed()], time(30)).unwrap().4, Reach::Unmarked);
    let (_, snapshot, _, _, reach) = choose_from(vec![holed()], time(60)).unwrap();
    assert_eq!((snapshot, reach), (1, Reach::Anywhere));
}

#[test]
fn few_labels_are_read() {
    let mut long = sketch(1).snapshot(0, 0);
    for at in 0..10_000 {
        long = long.segment(0, at * 10, &[(at * 10 + 10, at)]);
    }
    let listing = long.listing.clone();
    let mut all = All(vec![long]);
    let chain = choose(vec![listing], time(7777), &mut all).unwrap();
    assert_eq!(chain.segments.len(), 7778);
    assert!(all.0[0].asked < 25, "{} labels", all.0[0].asked);
}
