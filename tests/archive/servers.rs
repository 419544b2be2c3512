//! The servers themselves, as the tests rely on them.

use std::time::Instant;

use crate::common::servers::S3Server;

#[test]
fn servers_start_stop_and_start_again() {
    for make in [S3Server::weed, S3Server::rclone] {
        let begin = Instant::now();
        let mut server = make();
        let started = begin.elapsed();
        server.restart();
        println!("{:?}: {started:?}, again {:?}", server.kind(), begin.elapsed() - started);
        server.remove_bucket("bucket");
        server.make_bucket("bucket");
    }
}
