//! Secrets go in everywhere, and work succeeds and fails; then everything that comes out is
//! searched for them: answers, errors, tables, the log, `/metrics`, `/healthz`, files, the command
//! line.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::Path;

use crate::certs::self_signed;
use crate::common::*;

/// The beginning of every secret.
const MARK: &str = "hUnTeR2";

fn secret(name: &str) -> String {
    format!("{MARK}-{name}-0123456789")
}

/// A server that sends back what it was sent, with an error: as some do to be helpful.
fn echo() -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    std::thread::spawn(move || {
        for stream in listener.incoming().map_while(Result::ok) {
            let _it_may_leave = reflect(stream);
        }
    });
    address
}

fn reflect(mut stream: TcpStream) -> std::io::Result<()> {
    stream.set_read_timeout(Some(std::time::Duration::from_secs(5)))?;
    let mut head = Vec::new();
    let mut byte = [0];
    while !head.ends_with(b"\r\n\r\n") && stream.read(&mut byte)? > 0 {
        head.push(byte[0]);
    }
    // What carries a secret first: only so much of an error page is shown.
    let head = String::from_utf8_lossy(&head).into_owned();
    let mut lines: Vec<&str> = head.lines().collect();
    lines.sort_by_key(|line| !line.contains(MARK));
    let said = lines.join(" ");
    let body = format!("<Error><Code>AccessDenied</Code><Message>{said}</Message></Error>");
    let length = body.len();
    write!(stream, "HTTP/1.1 403 Forbidden\r\nContent-Length: {length}\r\n\r\n{body}")
}

/// Everything that came out, and where.
struct Seen(Vec<(String, String)>);

impl Seen {
    fn note(&mut self, from: impl Into<String>, text: impl Into<String>) {
        self.0.push((from.into(), text.into()));
    }

    fn run(&mut self, db: &Db, sql: &str, values: Value) -> Result<Value, String> {
        let outcome = db.send_with(sql, values).outcome(DEADLINE);
        self.note(sql, format!("{outcome:?}"));
        outcome
    }

    fn files(&mut self, folder: &Path, own: &[&str]) {
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            let name = path.file_name().unwrap().to_string_lossy().into_owned();
            if own.contains(&name.as_str()) {
                continue;
            }
            self.note("a file's name", path.to_string_lossy());
            if path.is_dir() {
                self.files(&path, own);
            } else if path.is_file() {
                let bytes = std::fs::read(&path).unwrap();
                self.note(path.to_string_lossy(), String::from_utf8_lossy(&bytes));
            }
        }
    }

    fn check(&self) {
        for (from, text) in &self.0 {
            for hidden in [MARK, &MARK.to_lowercase(), &MARK.to_uppercase()] {
                let Some(at) = text.find(hidden) else { continue };
                let begin =
                    (0..=at.saturating_sub(200)).rev().find(|at| text.is_char_boundary(*at));
                panic!("{from} tells a secret: {}", &text[begin.unwrap_or(0)..at + hidden.len()]);
            }
        }
    }
}

fn options(of: &[(&str, &str)]) -> Value {
    let mut options = json!({"wait_ms": 300});
    for (name, value) in of {
        options[*name] = json!(value);
    }
    options
}

#[test]
fn no_secret_comes_out_anywhere() {
    let folder = Folder::new("secrets");
    let host = Host::app();
    let mut seen = Seen(Vec::new());
    let token = secret("token");
    let files = self_signed(&["127.0.0.1"]).write(&folder.file(""));
    let echo = echo();

    // What works.
    let primary = host.open(folder.file("p.db"));
    primary.script("CREATE TABLE t(x); INSERT INTO t VALUES (1)");
    let given = json!({"token": token, "tls_cert": files.cert, "tls_key": files.key});
    let serve = "SELECT litestream_serve(?, ?)";
    let served = seen.run(&primary, serve, json!(["127.0.0.1:0", given.to_string()])).unwrap();
    let url = served[0][0].as_str().unwrap().to_owned();
    let plain = json!(["localhost:0", json!({"token": token}).to_string()]);
    let served = seen.run(&primary, serve, plain).unwrap();
    let http = served[0][0].as_str().unwrap().to_owned();
    let replica = host.open(folder.file("r.db"));
    let follow = "SELECT litestream_follow(?, ?)";
    let good = json!({"token": token, "ca": files.cert});
    seen.run(&replica, follow, json!([url, good.to_string()])).unwrap();

    // What does not: the same with other secrets, and elsewhere.
    let again = json!(["127.0.0.1:0", json!({"token": secret("other")}).to_string()]);
    seen.run(&primary, serve, again).unwrap_err();
    let spaces = json!({"token": format!("{token} with spaces")}).to_string();
    seen.run(&primary, serve, json!(["127.0.0.1:0", spaces])).unwrap_err();
    let broken = format!("{{\"token\": \"{token}\"");
    seen.run(&primary, serve, json!(["127.0.0.1:0", broken])).unwrap_err();
    let nested = json!({"token": {"x": token}}).to_string();
    seen.run(&primary, serve, json!(["127.0.0.1:0", nested])).unwrap_err();
    let key = std::fs::read_to_string(&files.key).unwrap();
    std::fs::write(folder.file("bad.pem"), format!("-----BEGIN {MARK}{}", key.replace('\n', "")))
        .unwrap();
    for (cert, key) in [("bad.pem", "key.pem"), ("cert.pem", "bad.pem")] {
        let bad = json!({"tls_cert": folder.file(cert), "tls_key": folder.file(key)});
        seen.run(&primary, serve, json!(["127.0.0.2:0", bad.to_string()])).unwrap_err();
    }
    let bad = json!({"ca": folder.file("bad.pem"), "token": token}).to_string();
    let elsewhere = host.open(folder.file("e.db"));
    seen.run(&elsewhere, follow, json!(["https://127.0.0.1:1", bad])).unwrap_err();
    for upstream in [
        format!("http://{echo}"),
        "http://127.0.0.1:1".to_owned(),
        http.replace("localhost", &format!("user:{token}@localhost")),
        format!("{http}/stream?token={token}"),
        format!("ftp://user:{token}@{echo}"),
        format!("http://{echo}/{token}"),
    ] {
        // A path is not a place for a secret, and is shown.
        if upstream.ends_with(&format!("/{token}")) {
            continue;
        }
        let wrong = options(&[("token", &secret("sent"))]).to_string();
        seen.run(&elsewhere, follow, json!([upstream, wrong])).unwrap_err();
        let all = elsewhere.rows("SELECT * FROM litestream_databases");
        seen.note("litestream_databases", format!("{all:?}"));
        seen.run(&elsewhere, "SELECT litestream_stop()", json!([])).unwrap();
    }
    archives(&mut seen, &folder, &host, &primary, &echo);
    everything(&mut seen, &folder, &host, &primary, &http);
    seen.check();
}

/// Archives that cannot be reached, that answer with what they were sent, and keys that are none.
fn archives(seen: &mut Seen, folder: &Folder, host: &Host, primary: &Db, echo: &str) {
    let (id, key, session) = (secret("id"), secret("key"), secret("session"));
    let identity = format!("AGE-SECRET-KEY-1{}", secret("age").to_uppercase());
    let keys = [
        ("access_key_id", id.as_str()),
        ("secret_access_key", &key),
        ("session_token", &session),
        ("region", "us-east-1"),
    ];
    let calls = [
        "SELECT litestream_replicate(?, ?)",
        "SELECT litestream_follow(?, ?)",
        "SELECT count(*) FROM litestream_snapshots(?, ?)",
        "SELECT count(*) FROM litestream_generations(?, ?)",
        "SELECT litestream_restore(?1, '/nonexistent/x.db', ?2)",
    ];
    let to_file = folder.file("archive");
    let file = format!("file://{}", to_file.display());
    for call in calls {
        let db = host.open(folder.file("a.db"));
        db.run("CREATE TABLE IF NOT EXISTS t(x)").unwrap();
        for endpoint in [format!("http://{echo}"), "http://127.0.0.1:1".to_owned()] {
            let mut given = keys.to_vec();
            given.push(("endpoint", &endpoint));
            let mut given = options(&given);
            if !call.contains("follow(") && !call.contains("replicate(") {
                given.as_object_mut().unwrap().remove("wait_ms");
            }
            let _ = seen.run(&db, call, json!(["s3://bucket/prefix", given.to_string()]));
            for url in [format!("s3://{id}:{key}@bucket/x"), format!("s3://bucket/x?key={key}")] {
                let _ = seen.run(&db, call, json!([url, given.to_string()]));
            }
        }
        std::fs::write(folder.file("own.key"), &identity).unwrap();
        for bad in [json!([identity]), json!([folder.file("own.key")]), json!(identity)] {
            let given = json!({"age_identities": bad}).to_string();
            let _ = seen.run(&db, call, json!([file, given]));
        }
        let odd = format!("http://{id}:{key}@{echo}/?{session}");
        let given = json!({"endpoint": odd, "access_key_id": id, "secret_access_key": key});
        let _ = seen.run(&db, call, json!(["s3://bucket/x", given.to_string()]));
        for table in ["litestream_databases", "litestream_replicas"] {
            let rows = db.rows(&format!("SELECT * FROM {table}"));
            seen.note(table, format!("{rows:?}"));
        }
        db.run("SELECT litestream_stop()").unwrap();
        db.close();
    }
    let replicate = "SELECT litestream_replicate(?)";
    seen.run(primary, replicate, json!([file])).unwrap();
    primary.run("INSERT INTO t VALUES (2)").unwrap();
    seen.run(primary, "SELECT litestream_sync()", json!([])).unwrap();
}

/// What is there to be looked at in the end.
fn everything(seen: &mut Seen, folder: &Folder, host: &Host, db: &Db, http: &str) {
    let tables = "SELECT name FROM pragma_module_list WHERE name LIKE 'litestream%'";
    for name in db.rows(tables) {
        let name = name[0].as_str().unwrap();
        let rows = db.rows(&format!("SELECT * FROM {name}"));
        assert!(name.ends_with("followers") || !rows.is_empty(), "{name}");
        seen.note(name, format!("{rows:?}"));
    }
    seen.note("litestream_debug", db.text("SELECT litestream_debug()"));
    let address = http.strip_prefix("http://").unwrap();
    let bearer = format!("Authorization: Bearer {}", secret("token"));
    for request in [
        format!("GET /metrics HTTP/1.0\r\n{bearer}"),
        "GET /metrics HTTP/1.0\r\nAuthorization: Bearer wrong".to_owned(),
        "GET /healthz HTTP/1.0".to_owned(),
        format!("GET /healthz HTTP/1.0\r\n{bearer}"),
        format!("GET /nope HTTP/1.0\r\n{bearer}"),
        format!("GET /status HTTP/1.0\r\n{bearer}"),
        format!("GET / HTTP/1.0\r\n{bearer}"),
        format!("POST /ack?pos=x HTTP/1.0\r\n{bearer}"),
    ] {
        let mut stream = TcpStream::connect(address).unwrap();
        stream.set_read_timeout(Some(DEADLINE)).unwrap();
        write!(stream, "{request}\r\n\r\n").unwrap();
        let mut text = String::new();
        stream.read_to_string(&mut text).unwrap();
        assert!(text.starts_with("HTTP/1."), "{text}");
        seen.note(request.lines().next().unwrap(), text);
    }
    let command = std::fs::read(format!("/proc/{}/cmdline", host.pid())).unwrap();
    seen.note("the command line", String::from_utf8_lossy(&command));
    seen.files(&folder.file(""), &["own.key", "bad.pem", "key.pem"]);
    assert!(seen.0.len() > 100, "only {} places were looked at", seen.0.len());
}
