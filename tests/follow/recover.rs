//! Stops, crashes and other histories: a replica knows where it is, or starts from a comparison.

use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use socket2::{Domain, Socket, Type};

use super::folder::Folder;
use super::scene::{MODERN, Scene, TABLE};
use super::support::{catch_up, dump, eventually, follow, open, pages, pages_but_version};
use super::upstream::{Manners, Primary, Upstream};

use litestream::error::ErrorKind;
use litestream::follow::{self, FollowConfig};
use litestream::transport::CONNECT_MAX;

fn resumed(manners: Manners) {
    let folder = Folder::new("follow-resume");
    let mut primary = Primary::new(&folder.file("primary.db"), 4096, TABLE);
    primary.run("INSERT INTO t VALUES (1)");
    let upstream = Upstream::serve(primary.history.clone(), manners);
    let path = folder.file("replica.db");
    for round in 0..6 {
        let follower = follow(&path, &upstream.url);
        catch_up(&follower);
        assert_eq!(dump(&path), dump(&primary.path));
        follower.stop().unwrap();
        assert_eq!(follower.status().state, "stopped");
        primary.run(&format!("INSERT INTO t VALUES ({round})"));
        if round == 2 {
            primary.restart(false);
            primary.run("INSERT INTO t VALUES ('next')");
        }
        upstream.set(primary.history.clone());
    }
    assert_eq!(upstream.snapshots_sent(), 1, "{:#?}", upstream.requests());
}

#[test]
fn a_stopped_follower_resumes_where_it_was() {
    resumed(MODERN);
}

#[test]
fn a_stopped_follower_of_an_ancestor_resumes_where_it_was() {
    resumed(Manners::default());
}

#[test]
fn a_wal_that_vanished_means_a_comparison() {
    let Scene { folder: _folder, primary, upstream, path, follower } =
        Scene::new("follow-vanished", MODERN, "INSERT INTO t VALUES (1)");
    follower.stop().unwrap();
    // Somebody opens and closes it: SQLite checkpoints and removes the WAL.
    pages(&path);
    let follower = follow(&path, &upstream.url);
    assert_eq!(follower.position(), None);
    catch_up(&follower);
    assert_eq!(upstream.snapshots_sent(), 2);
    assert_eq!(dump(&path), dump(&primary.path));
    follower.stop().unwrap();
}

/// The first snapshot is complete, and what is needed to go on from it cannot be opened.
#[test]
fn a_filled_file_that_cannot_be_opened_is_opened_later() {
    let folder = Folder::new("follow-filled");
    let mut primary = Primary::new(&folder.file("primary.db"), 4096, TABLE);
    let upstream = Upstream::serve(primary.history.clone(), MODERN);
    let path = folder.file("replica.db");
    let obstacle = folder.file("replica.db-litestream/intents-1");
    std::fs::create_dir_all(&obstacle).unwrap();
    let follower = follow(&path, &upstream.url);
    let told = || follower.status().error.is_some_and(|error| error.contains("intents-1"));
    // Not only the first time: it is the reason all along.
    for _ in 0..3 {
        eventually("an error that names it", told);
        std::thread::sleep(Duration::from_millis(300));
    }
    std::fs::remove_dir(&obstacle).unwrap();
    catch_up(&follower);
    primary.run("INSERT INTO t VALUES (1)");
    upstream.set(primary.history.clone());
    assert!(follower.wait(primary.history.end(), Duration::from_secs(60)));
    assert_eq!(dump(&path), dump(&primary.path));
    follower.stop().unwrap();
}

#[test]
fn foreign_writes_are_undone() {
    let Scene { folder, primary, upstream, path, follower } =
        Scene::new("follow-foreign", MODERN, "INSERT INTO t VALUES (1)");
    follower.stop().unwrap();
    let rogue = open(&path);
    rogue.execute("DELETE FROM t; CREATE TABLE rogue AS SELECT randomblob(99999)").unwrap();
    let follower = follow(&path, &upstream.url);
    catch_up(&follower);
    assert_eq!(dump(&path), dump(&primary.path));
    follower.stop().unwrap();
    drop(rogue);
    let expected = pages_but_version(primary.pages(&folder.file("expected.db")));
    assert!(pages_but_version(pages(&path)) == expected, "the pages differ");
}

/// A connection keeps its schema while the version in page 1 stays, and both versions are 1 here.
#[test]
fn open_connections_take_over_the_schema_of_what_replaces_theirs() {
    let folder = Folder::new("follow-schema");
    let path = folder.file("replica.db");
    let mut others = Vec::new();
    for (round, table) in [(1, "a"), (2, "b"), (3, "c")] {
        let schema = format!("CREATE TABLE {table}(x); INSERT INTO {table} VALUES ({round})");
        let mut primary = Primary::new(&folder.file(&format!("{table}.db")), 4096, &schema);
        primary.history.generation = round;
        let upstream = Upstream::serve(primary.history.clone(), MODERN);
        let follower = follow(&path, &upstream.url);
        catch_up(&follower);
        others.push(open(&path));
        for (number, other) in others.iter().enumerate() {
            let got = other.query_i64(&format!("SELECT x FROM {table}"));
            assert_eq!(got.unwrap(), i64::try_from(round).unwrap(), "connection {number}");
            assert!(round == 1 || other.query_i64("SELECT x FROM a").is_err());
        }
        primary.run(&format!("CREATE TABLE {table}2(x); INSERT INTO {table}2 VALUES (7)"));
        upstream.set(primary.history.clone());
        let end = primary.history.end();
        assert!(follower.wait(end, Duration::from_secs(60)));
        for other in &others {
            assert_eq!(other.query_i64(&format!("SELECT x FROM {table}2")).unwrap(), 7);
        }
        follower.stop().unwrap();
    }
}

#[test]
fn another_history_replaces_ours_in_one_step() {
    for manners in [MODERN, Manners::default()] {
        let Scene { folder, primary: _primary, upstream, path, follower } =
            Scene::new("follow-parted", manners, "INSERT INTO t VALUES (randomblob(200000))");
        follower.stop().unwrap();
        // The same generation and index, but what came after the snapshot is not what we have.
        let mut two = Primary::new(&folder.file("two.db"), 4096, TABLE);
        two.run("INSERT INTO t VALUES ('two'); INSERT INTO t VALUES (randomblob(300000))");
        upstream.set(two.history.clone());
        let follower = follow(&path, &upstream.url);
        catch_up(&follower);
        assert_eq!(dump(&path), dump(&two.path));
        assert_eq!(upstream.snapshots_sent(), 2);
        follower.stop().unwrap();
        assert!(pages(&path) == two.pages(&folder.file("expected.db")), "the pages differ");
    }
}

#[test]
fn other_data_is_refused_unless_it_may_be_overwritten() {
    let folder = Folder::new("follow-overwrite");
    let primary = Primary::new(&folder.file("primary.db"), 4096, TABLE);
    let upstream = Upstream::serve(primary.history.clone(), MODERN);
    let path = folder.file("mine.db");
    {
        let other = Primary::new(&path, 4096, "CREATE TABLE mine(x)");
        other.sql.execute("PRAGMA journal_mode = DELETE").unwrap();
    }
    let mut config =
        FollowConfig { path: path.clone(), url: upstream.url.clone(), ..FollowConfig::default() };
    let refused = follow::start(config.clone()).map(|_| ()).unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::Refused);
    assert!(!follow::is_replica(&path).unwrap());
    config.overwrite = true;
    let follower = follow::start(config).unwrap();
    catch_up(&follower);
    assert_eq!(dump(&path), dump(&primary.path));
    follower.stop().unwrap();
}

#[test]
fn another_page_size_is_a_clear_error() {
    let folder = Folder::new("follow-pagesize");
    let primary = Primary::new(&folder.file("primary.db"), 4096, TABLE);
    let upstream = Upstream::serve(primary.history.clone(), MODERN);
    let path = folder.file("mine.db");
    drop(Primary::new(&path, 1024, "CREATE TABLE mine(x)"));
    let config = FollowConfig {
        path: path.clone(),
        url: upstream.url.clone(),
        overwrite: true,
        ..FollowConfig::default()
    };
    let follower = follow::start(config).unwrap();
    super::support::eventually("an error", || follower.status().error.is_some());
    let error = follower.status().error.unwrap();
    assert!(error.contains("1024") && error.contains("delete"), "{error}");
    follower.stop().unwrap();
}

#[test]
fn one_follower_per_file() {
    let Scene { folder: _folder, primary: _primary, upstream, path, follower } =
        Scene::new("follow-second", MODERN, "INSERT INTO t VALUES (1)");
    let config =
        FollowConfig { path: path.clone(), url: upstream.url.clone(), ..FollowConfig::default() };
    let refused = follow::start(config).map(|_| ()).unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::Busy);
    assert!(refused.to_string().contains("followed"), "{refused}");
    follower.stop().unwrap();
}

#[test]
fn promoted_it_is_an_ordinary_database() {
    let Scene { folder: _folder, primary, upstream, path, follower } =
        Scene::new("follow-promote", MODERN, "INSERT INTO t VALUES (1)");
    assert_eq!(follower.promote().unwrap(), Some(primary.history.end()));
    assert!(!follow::is_replica(&path).unwrap());
    let local = open(&path);
    local.execute("INSERT INTO t VALUES ('mine')").unwrap();
    assert_eq!(local.query_text("PRAGMA integrity_check").unwrap().as_deref(), Some("ok"));
    drop(local);
    let again =
        FollowConfig { path: path.clone(), url: upstream.url.clone(), ..FollowConfig::default() };
    assert_eq!(follow::start(again).map(|_| ()).unwrap_err().kind(), ErrorKind::Refused);
    assert_eq!(follow::promote_idle(&path, "").unwrap_err().kind(), ErrorKind::Usage);
}

#[test]
fn positions_are_acknowledged() {
    let Scene { folder: _folder, mut primary, upstream, path: _path, follower } =
        Scene::new("follow-ack", MODERN, "INSERT INTO t VALUES (1)");
    primary.run("INSERT INTO t VALUES (1)");
    upstream.set(primary.history.clone());
    let end = format!("pos={}", primary.history.end());
    let acknowledged = || {
        let requests = upstream.requests();
        let last = requests.iter().rposition(|line| line.starts_with("GET /stream"));
        let since = requests.get(last.unwrap_or(0)..).unwrap_or_default();
        since.iter().any(|line| line.starts_with("POST /ack?") && line.contains(&end))
    };
    super::support::eventually("an acknowledgement", acknowledged);
    // Whoever serves the next stream, perhaps after a restart, knows nothing of it.
    let before = upstream.requests().len();
    upstream.cut();
    super::support::eventually("another stream", || {
        let requests = upstream.requests();
        requests.iter().skip(before).any(|line| line.starts_with("GET /stream"))
    });
    super::support::eventually("an acknowledgement on the next stream", acknowledged);
    follower.stop().unwrap();
}

#[test]
fn an_upstream_that_is_not_there_yet() {
    let folder = Folder::new("follow-later");
    super::support::host();
    let path = folder.file("replica.db");
    let follower = follow(&path, "http://127.0.0.1:1");
    super::support::eventually("an error", || follower.status().error.is_some());
    let error = follower.status().error.unwrap();
    assert!(error.contains("cannot reach the upstream"), "{error}");
    let began = Instant::now();
    follower.stop().unwrap();
    assert!(began.elapsed() < Duration::from_secs(5));
}

#[test]
fn a_file_that_was_removed_is_an_error() {
    let Scene { folder, mut primary, upstream, path, follower } =
        Scene::new("follow-removed", MODERN, "INSERT INTO t VALUES (1)");
    for name in ["replica.db", "replica.db-wal", "replica.db-shm"] {
        std::fs::remove_file(folder.file(name)).unwrap();
    }
    primary.run("INSERT INTO t VALUES (1)");
    upstream.set(primary.history.clone());
    let said = || follower.refusal().is_some_and(|error| error.to_string().contains("removed"));
    super::support::eventually("an error", said);
    assert!(!follower.caught_up_to_start());
    follower.stop().unwrap();
    let follower = follow(&path, &upstream.url);
    catch_up(&follower);
    assert_eq!(dump(&path), dump(&primary.path));
    follower.stop().unwrap();
}

#[test]
fn a_stop_cuts_a_connection_short_that_is_still_being_made() {
    let folder = Folder::new("follow-hanging");
    super::support::host();
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
    socket.bind(&SocketAddr::from(([127, 0, 0, 1], 0)).into()).unwrap();
    socket.listen(0).unwrap();
    let address = socket.local_addr().unwrap().as_socket().unwrap();
    // Its queue is full, and whoever comes now gets no answer.
    let patience = Duration::from_millis(100);
    let queued: Vec<_> =
        (0..4).map_while(|_| TcpStream::connect_timeout(&address, patience).ok()).collect();
    assert!(queued.len() < 4, "the queue has no end");
    let follower = follow(&folder.file("replica.db"), &format!("http://{address}"));
    std::thread::sleep(Duration::from_millis(200));
    let began = Instant::now();
    follower.stop().unwrap();
    assert!(began.elapsed() < CONNECT_MAX, "{:?}", began.elapsed());
}
