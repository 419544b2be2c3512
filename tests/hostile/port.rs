//! Bad input from whoever reaches the port: the host lives, its memory stays bounded, and good
//! peers are served all the while.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use crate::common::*;

/// A served database, and where.
struct Server {
    _host: Host,
    db: Db,
    url: String,
    at: SocketAddr,
}

impl Server {
    fn new(folder: &Folder) -> Server {
        let host = Host::app();
        let db = host.open(folder.file("p.db"));
        db.script("CREATE TABLE t(x); INSERT INTO t VALUES (randomblob(5000))");
        let port = free_port();
        let url = db.text(&format!("SELECT litestream_serve('127.0.0.1:{port}')"));
        Server { _host: host, db, url, at: SocketAddr::from(([127, 0, 0, 1], port)) }
    }

    fn connect(&self) -> TcpStream {
        let stream = TcpStream::connect(self.at).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
        stream.set_write_timeout(Some(Duration::from_secs(30))).unwrap();
        stream
    }

    /// Sends bytes and returns the first line of the answer; empty if the server just hangs up.
    fn ask(&self, request: &[u8]) -> String {
        let mut stream = self.connect();
        let _refused_half_way = stream.write_all(request);
        let mut answer = Vec::new();
        let mut byte = [0];
        while answer.len() < 200 && matches!(stream.read(&mut byte), Ok(1)) && byte[0] != b'\n' {
            answer.push(byte[0]);
        }
        String::from_utf8_lossy(&answer).trim_end().to_owned()
    }

    fn works(&self, folder: &Folder, name: &str) {
        let host = Host::app();
        let replica = host.open(folder.file(name));
        follow(&replica, &self.url);
        assert_same(&self.db, &replica);
    }
}

#[test]
fn wrong_requests_get_the_right_answers() {
    let folder = Folder::new("requests");
    let server = Server::new(&folder);
    let get = |target: &str| {
        format!("GET {target} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
    };
    for (request, status) in [
        (get("/healthz"), "200"),
        (get("/nowhere"), "404"),
        (get("/stream").replace("localhost", "evil.example"), "403"),
        (get("/stream?path=/no/such.db"), "404"),
        (get("/stream?path=../../../etc/passwd"), "404"),
        (get("/stream?path=%2Fetc%2Fpasswd"), "404"),
        (get("/stream?path=%00"), "404"),
        (get("/stream?generation=0123456789abcdef&index=zz"), "400"),
        (get("/stream?generation=0123456789abcdef&index=fffffffffffffffff"), "400"),
        (get("/stream?generation=0123456789abcdef&index=0&offset=zz&checksum=0"), "400"),
        (get("/stream").replace("GET", "DELETE"), "405"),
        (get("/stream").replace("GET", "PUT"), "405"),
    ] {
        let answer = server.ask(request.as_bytes());
        assert_eq!(answer.split(' ').nth(1), Some(status), "{request:?}: {answer:?}");
    }
    server.works(&folder, "r.db");
}

/// `/status` has the rows of the tables, whatever these have.
#[test]
fn status_tells_what_the_tables_tell() {
    let folder = Folder::new("status");
    let server = Server::new(&folder);
    let archive = format!("file://{}", folder.file("archive").display());
    server.db.text(&format!("SELECT litestream_replicate('{archive}')"));
    let host = Host::app();
    let replica = host.open(folder.file("r.db"));
    follow(&replica, &server.url);
    assert_eq!(server.db.int("SELECT litestream_wait_followers(1, 60000)"), 1);
    server.db.run("SELECT litestream_sync()").unwrap();
    let moving = ["lag", "bytes", "last_sync"];
    let shown = |table: &str| {
        let columns = format!("SELECT name FROM pragma_table_info('litestream_{table}')");
        let names: Vec<String> =
            server.db.rows(&columns).iter().map(|row| row[0].as_str().unwrap().into()).collect();
        let rows = server.db.rows(&format!("SELECT * FROM litestream_{table}"));
        assert_eq!(rows.len(), 1, "{table}");
        let values = rows[0].as_array().unwrap().clone();
        names.into_iter().zip(values).collect::<serde_json::Map<_, _>>()
    };
    let mut stream = server.connect();
    stream.write_all(b"GET /status HTTP/1.0\r\nHost: localhost\r\n\r\n").unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    assert!(head.contains("200 OK") && head.contains("application/json"), "{head}");
    let told: Value = serde_json::from_str(body).unwrap();
    for table in ["databases", "followers", "replicas"] {
        let rows = told[table].as_array().unwrap();
        assert_eq!(rows.len(), 1, "{told}");
        let (mut told, mut shown) = (rows[0].as_object().unwrap().clone(), shown(table));
        for name in moving {
            assert_eq!(told.remove(name).is_some(), shown.remove(name).is_some(), "{table}");
        }
        assert_eq!(told, shown, "{table}");
    }
}

#[test]
fn garbage_on_the_socket_is_shrugged_off() {
    let folder = Folder::new("garbage");
    let server = Server::new(&folder);
    let mut rng = Rng::new();
    let long = "x".repeat(1 << 20);
    let mut requests: Vec<Vec<u8>> = vec![
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03".to_vec(),
        b"\r\n\r\n\r\n".to_vec(),
        b"GET\r\n\r\n".to_vec(),
        b"GET / HTTP/9.9\r\n\r\n".to_vec(),
        b"GET /stream HTTP/1.1\r\nContent-Length: 99999999999999999999\r\n\r\n".to_vec(),
        b"POST /stream HTTP/1.1\r\nContent-Length: -1\r\n\r\nx".to_vec(),
        b"POST /ack HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\nffffffffffffffff\r\n".to_vec(),
        b"POST /ack HTTP/1.1\r\nContent-Length: 1000000000\r\n\r\nabc".to_vec(),
        format!("GET /{long} HTTP/1.1\r\n\r\n").into_bytes(),
        format!("GET / HTTP/1.1\r\nX: {long}\r\n\r\n").into_bytes(),
        format!("GET / HTTP/1.1\r\n{}\r\n", "a: b\r\n".repeat(100_000)).into_bytes(),
        b"GET /stream?path=%ff%fe&generation=%00 HTTP/1.1\r\nHost: \xff\r\n\r\n".to_vec(),
    ];
    for size in [1, 10, 100, 5000, 100_000] {
        requests.push(rng.bytes(size));
    }
    for request in &requests {
        let mut stream = server.connect();
        let _refused_half_way = stream.write_all(request);
        let _ = stream.shutdown(std::net::Shutdown::Write);
        let mut answer = Vec::new();
        let _reset_or_closed = stream.take(1 << 20).read_to_end(&mut answer);
        let head = String::from_utf8_lossy(&answer);
        let status = head.split(' ').nth(1).unwrap_or("hung up");
        let fine =
            ["hung up", "200", "400", "404", "405", "411", "413", "414", "431", "501", "505"];
        assert!(fine.contains(&status), "{status} for {:?}", &request[..request.len().min(60)]);
    }
    server.works(&folder, "r.db");
    let peak = server._host.peak_kib();
    assert!(peak < 200 << 10, "{peak} KiB for garbage");
}

#[test]
fn half_open_connections_do_not_keep_good_peers_out() {
    let folder = Folder::new("half-open");
    let server = Server::new(&folder);
    let starts: [&[u8]; 4] = [
        b"",
        b"G",
        b"GET /stream HTTP/1.1\r\n",
        b"POST /ack HTTP/1.1\r\nContent-Length: 10\r\n\r\n",
    ];
    let idle: Vec<TcpStream> = (0..200)
        .filter_map(|number| {
            let mut stream = TcpStream::connect_timeout(&server.at, Duration::from_secs(5)).ok()?;
            let _dropped_already = stream.write_all(starts[number % starts.len()]);
            Some(stream)
        })
        .collect();
    assert!(idle.len() >= 100, "only {} connections were taken", idle.len());
    server.works(&folder, "r.db");
    server.db.run("INSERT INTO t VALUES ('while they idle')").unwrap();
    server.works(&folder, "r.db");
    drop(idle);
    server.works(&folder, "r2.db");
}

/// A peer that asks for the stream and never reads it costs neither memory nor anybody's progress.
#[test]
fn a_peer_that_never_reads_is_dropped() {
    let folder = Folder::new("deaf");
    let server = Server::new(&folder);
    let mut deaf = server.connect();
    deaf.write_all(b"GET /stream HTTP/1.1\r\nHost: localhost\r\n\r\n").unwrap();
    let host = Host::app();
    let replica = host.open(folder.file("r.db"));
    follow(&replica, &server.url);
    let before = server._host.peak_kib();
    let fill = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 1000)
                INSERT INTO t SELECT randomblob(4000) FROM n";
    for _ in 0..10 {
        server.db.run(fill).unwrap();
        server.db.run("DELETE FROM t WHERE rowid % 2").unwrap();
    }
    catch_up(&server.db, &replica);
    // Measured before the comparison, which reads all of the database into the same process.
    let grown = server._host.peak_kib() - before;
    assert!(grown < 100 << 10, "{grown} KiB more for a peer that does not read");
    assert_same(&server.db, &replica);
}
