//! One recording for each setting of `PRAGMA synchronous`, and images of all its disks.

use super::checks::{Bench, Lost, Tally};
use super::common::*;
use super::disk::{Disk, Image, Loss, write};
use super::scene::{Recorded, Scene, States, Story, mark, state, transaction};

#[test]
fn power_lost_with_synchronous_full() {
    lose_power("FULL", 1);
}

#[test]
fn power_lost_with_synchronous_normal() {
    lose_power("NORMAL", 2);
}

#[test]
fn power_lost_with_synchronous_off() {
    lose_power("OFF", 3);
}

fn lose_power(synchronous: &'static str, number: u64) {
    let mut rng = Rng::of(seed() ^ number << 56);
    let page_size = [512, 1024, 4096][rng.index(3)];
    let scene = Scene::record(synchronous, page_size, scaled(80, 120), &mut rng);
    let disks = Disks {
        database: scene.primary.disk(&scene.path("p")),
        archive: scene.primary.disk(&scene.path("a")),
        replica: scene.replica.disk(&scene.path("r")),
    };
    let mut bench = Bench::new(&scene.folder);
    let mut tally = Tally::default();
    for number in 0..scaled(5, 200) {
        images(&scene, &disks, &mut bench, &mut rng, &mut tally);
        if number % scaled(5, 20) == 0 {
            second_loss_of_the_primary(&scene, &disks, &mut bench, &mut rng, &mut tally);
            second_loss_of_the_replica(&scene, &disks, &mut bench, &mut rng, &mut tally);
        }
    }
    println!("synchronous {synchronous}, pages of {page_size}: {tally:?}");
    assert!(tally.replicas > tally.unborn && tally.restored > 0, "{tally:?}");
    // Of a few images none may be so.
    assert!(!soak() || (tally.resumed > 0 && tally.continued > 0), "{tally:?}");
}

struct Disks {
    database: Disk,
    archive: Disk,
    replica: Disk,
}

/// Says, if the test fails, which image it was.
struct Telling(String);

impl Drop for Telling {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("{}", self.0);
        }
    }
}

/// What the application was told is in the database for good.
fn acknowledged(scene: &Scene, at: usize) -> i64 {
    let told = (scene.synchronous == "FULL").then(|| scene.primary.said("n ", at)).flatten();
    told.unwrap_or(0)
}

/// One image of the primary, two of the replica, two of the archive.
fn images(scene: &Scene, disks: &Disks, bench: &mut Bench, rng: &mut Rng, tally: &mut Tally) {
    let loss = Loss::choose(scene.primary.moment("begin", rng), rng);
    let telling = Telling(format!("the primary's power went: {loss:?}"));
    let database = disks.database.after(loss, rng);
    let synced = scene.primary.said("synced ", loss.at);
    // The follower lost nothing, and followed until then; or it was away for a while.
    let mut then = scene.replica.at(scene.primary.time(loss.at));
    if rng.below(3) == 0 {
        then = rng.index(then + 1);
    }
    let follower = disks.replica.alive(then);
    let archive = (rng.below(2) == 0).then(|| disks.archive.after(loss, rng));
    let lost = Lost {
        database: &database,
        follower: &follower,
        archive: archive.as_ref(),
        states: &scene.states,
        acknowledged: acknowledged(scene, loss.at),
        synced: synced.map(|n| scene.states[&n].pos.as_str()),
        is_off: scene.synchronous == "OFF",
    };
    bench.primary(&lost, rng, tally);
    drop(telling);
    for _ in 0..2 {
        let loss = Loss::choose(scene.replica.moment("begin", rng), rng);
        let _telling = Telling(format!("the replica's power went: {loss:?}"));
        bench.replica(&disks.replica.after(loss, rng), &scene.states, &scene.url, tally);
        let loss = Loss::choose(scene.primary.moment("begin", rng), rng);
        let _telling = Telling(format!("the archive's power went: {loss:?}"));
        let said = scene.primary.said("synced ", loss.at);
        bench.archive(&disks.archive.after(loss, rng), &scene.states, said, tally);
    }
}

/// A recording of what is done with an image, and its disk.
fn record_on(
    image: &Image,
    bench: &mut Bench,
    work: impl FnOnce(&Recorded, &std::path::Path) -> Db,
) -> (Story, Disk) {
    let place = bench.place();
    let folder = place.join("d");
    write(image, &folder);
    let recorded = Recorded::start(place.join("trace"));
    let db = work(&recorded, &folder);
    let story = Story::new(recorded.events(&db, &folder));
    recorded.host.kill();
    let disk = story.disk_on(&folder, image);
    std::fs::remove_dir_all(place).unwrap();
    (story, disk)
}

/// The power goes, comes back, and goes again while the primary finds its feet.
fn second_loss_of_the_primary(
    scene: &Scene,
    disks: &Disks,
    bench: &mut Bench,
    rng: &mut Rng,
    tally: &mut Tally,
) {
    if scene.synchronous == "OFF" {
        return;
    }
    let first = Loss::choose(scene.primary.moment("begin", rng), rng);
    let mut states = States::new();
    let image = disks.database.after(first, rng);
    let (story, disk) = record_on(&image, bench, |recorded, folder| {
        let db = recorded.host.open(folder.join("p.db"));
        db.script(&format!("PRAGMA synchronous = {}", scene.synchronous));
        mark(&db, "begin");
        serve(&db);
        let n = db.int("SELECT n FROM ledger");
        states.extend(scene.states.range(..n).map(|(n, state)| (*n, state.clone())));
        states.insert(n, state(&db));
        for n in n + 1..n + 6 {
            db.script(&transaction(rng));
            mark(&db, &format!("n {n}"));
            states.insert(n, state(&db));
            db.text("SELECT litestream_sync()");
            mark(&db, &format!("synced {n}"));
        }
        db
    });
    let follower = disks.replica.alive(scene.replica.at(scene.primary.time(first.at)));
    for _ in 0..scaled(2, 6) {
        let loss = Loss::choose(story.moment("begin", rng), rng);
        let _telling = Telling(format!("the primary's power went: {first:?}, again: {loss:?}"));
        let synced = story.said("synced ", loss.at);
        let acknowledged = match scene.synchronous {
            "FULL" => story.said("n ", loss.at).unwrap_or_else(|| acknowledged(scene, first.at)),
            _ => 0,
        };
        let lost = Lost {
            database: &disk.after(loss, rng),
            follower: &follower,
            archive: None,
            states: &states,
            acknowledged,
            synced: synced.map(|n| states[&n].pos.as_str()),
            is_off: false,
        };
        bench.primary(&lost, rng, tally);
        tally.second += 1;
    }
}

/// The same, while the replica finds out where it is.
fn second_loss_of_the_replica(
    scene: &Scene,
    disks: &Disks,
    bench: &mut Bench,
    rng: &mut Rng,
    tally: &mut Tally,
) {
    let first = Loss::choose(scene.replica.moment("begin", rng), rng);
    let image = disks.replica.after(first, rng);
    let (story, disk) = record_on(&image, bench, |recorded, folder| {
        let db = recorded.host.open(folder.join("r.db"));
        mark(&db, "begin");
        follow(&db, &scene.url);
        catch_up(&scene.db, &db);
        db
    });
    for _ in 0..scaled(2, 6) {
        let loss = Loss::choose(story.moment("begin", rng), rng);
        let _telling = Telling(format!("the replica's power went: {first:?}, again: {loss:?}"));
        bench.replica(&disk.after(loss, rng), &scene.states, &scene.url, tally);
        tally.second += 1;
    }
}
