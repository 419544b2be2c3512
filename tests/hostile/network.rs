//! A hostile network: certificates that prove nothing, a crowd at the port, strangers' TLS clients,
//! and a primary that dies while it is followed over HTTPS.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::process::Command;

use crate::certs::{Authority, Pair, self_signed};
use crate::common::*;

/// Serves over HTTPS what `files` hold; the URL.
fn serve_https(primary: &Db, address: &str, folder: &Path, token: Option<&str>) -> String {
    let mut options = json!({
        "tls_cert": folder.join("cert.pem"),
        "tls_key": folder.join("key.pem"),
    });
    if let Some(token) = token {
        options["token"] = json!(token);
    }
    let rows =
        primary.send_with("SELECT litestream_serve(?, ?)", json!([address, options.to_string()]));
    rows_text(&rows.outcome(DEADLINE).unwrap())
}

fn rows_text(rows: &Value) -> String {
    rows[0][0].as_str().unwrap().to_owned()
}

/// Follows with these options; the position, or the error.
fn follow_with(replica: &Db, url: &str, options: &Value) -> Result<Value, String> {
    let values = json!([url, options.to_string()]);
    replica.send_with("SELECT litestream_follow(?, ?)", values).outcome(DEADLINE)
}

struct Scene {
    folder: Folder,
    authority: Authority,
    host: Host,
    primary: Db,
}

impl Scene {
    fn new(name: &str) -> Scene {
        let folder = Folder::new(name);
        let authority = Authority::new();
        std::fs::write(folder.file("ca.pem"), &authority.pem).unwrap();
        let (host, primary) = ledger(folder.file("p.db"));
        Scene { folder, authority, host, primary }
    }

    /// Serves with this certificate, in a folder of its own.
    fn serve(&self, name: &str, pair: &Pair) -> String {
        let folder = self.folder.file(name);
        std::fs::create_dir(&folder).unwrap();
        pair.write(&folder);
        // A text of its own: one database is served at one address once.
        serve_https(&self.primary, &format!("127.0.0.1:{}", free_port()), &folder, None)
    }
}

/// Every way in which a certificate can fail to prove whose it is, and what the follower says.
#[test]
fn a_follower_believes_only_what_is_proved() {
    let scene = Scene::new("certificates");
    let ca = scene.folder.file("ca.pem");
    let good = scene.authority.sign(&["localhost", "127.0.0.1"]);
    let alone = self_signed(&["localhost", "127.0.0.1"]);
    let cases = [
        ("good", &good, Some(&ca), None),
        ("no-ca", &good, None, Some("nobody trusted here has signed its certificate")),
        ("alone", &alone, None, Some("in the option \"ca\"")),
        ("other", &Authority::new().sign(&["127.0.0.1"]), Some(&ca), Some("nobody trusted here")),
        (
            "name",
            &scene.authority.sign(&["db.example"]),
            Some(&ca),
            Some("its certificate is for DnsName(\"db.example\"), not for 127.0.0.1: use its name"),
        ),
        (
            "expired",
            &scene.authority.sign_until(&["127.0.0.1"], 2020),
            Some(&ca),
            Some("its certificate has expired: renew it there"),
        ),
        ("authority", &Authority::new().itself(), None, Some("make it with")),
    ];
    let follower = Host::app();
    for (name, pair, ca, expected) in cases {
        let url = scene.serve(name, pair);
        assert!(url.starts_with("https://127.0.0.1:"), "{url}");
        let replica = follower.open(scene.folder.file(&format!("{name}.db")));
        let mut options = json!({"wait_ms": 20_000});
        if let Some(ca) = ca {
            options["ca"] = json!(ca);
        }
        if name == "authority" {
            options["ca"] = json!(scene.folder.file("authority").join("cert.pem"));
        }
        if let Some(expected) = expected {
            // Told at once: trying again does not mend it.
            options["wait_ms"] = json!(2 * DEADLINE.as_millis());
            let error = follow_with(&replica, &url, &options).unwrap_err();
            assert!(error.contains(expected), "{name}: {error}");
            assert_eq!(replica.int("SELECT count(*) FROM litestream_databases"), 0, "{name}");
            assert_eq!(replica.int("SELECT count(*) FROM sqlite_schema"), 0, "{name}");
        } else {
            follow_with(&replica, &url, &options).unwrap();
            assert_same(&scene.primary, &replica);
        }
        replica.run("SELECT litestream_stop()").unwrap();
    }
    // One that signed itself vouches for itself; and the two ways to take the wrong scheme.
    let url = scene.serve("itself", &alone);
    let replica = follower.open(scene.folder.file("itself.db"));
    let options = json!({"ca": scene.folder.file("itself").join("cert.pem")});
    follow_with(&replica, &url, &options).unwrap();
    assert_same(&scene.primary, &replica);
    replica.run("SELECT litestream_stop()").unwrap();
    let error = follow_with(&replica, &url.replace("https", "http"), &options).unwrap_err();
    assert!(error.contains("use https://"), "{error}");
    replica.run("SELECT litestream_stop()").unwrap();
    let plain = serve(&scene.primary).replace("http", "https");
    let error = follow_with(&replica, &plain, &json!({"wait_ms": 120_000, "ca": ca})).unwrap_err();
    assert!(error.contains("does not speak TLS there"), "{error}");
}

/// What browsers, scripts and monitors use speaks with the server too.
#[test]
fn strangers_get_their_answers_over_https() {
    let scene = Scene::new("strangers");
    scene.authority.sign(&["localhost"]).write(&scene.folder.file(""));
    let url = serve_https(&scene.primary, "localhost:0", &scene.folder.file(""), Some("s3cret"));
    assert!(url.starts_with("https://localhost:"), "{url}");
    let script = "
import ssl, sys, urllib.request
url, ca = sys.argv[1:]
context = ssl.create_default_context(cafile=ca)
for version in ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3:
    context.minimum_version = context.maximum_version = version
    headers = {'Authorization': 'Bearer s3cret'}
    request = urllib.request.Request(url + '/metrics', headers=headers)
    text = urllib.request.urlopen(request, context=context, timeout=60).read().decode()
    assert 'litestream_build_info' in text, text
    try:
        urllib.request.urlopen(url + '/metrics', context=context, timeout=60)
    except urllib.error.HTTPError as error:
        assert error.code == 401, error
    else:
        raise SystemExit('no token, and yet an answer')
";
    let ca = scene.folder.file("ca.pem");
    said_by(&mut python_script(script, &[&url, &ca]));
    // Its goodbye is heard: nothing can be cut off unnoticed.
    let peek = "
import socket, ssl, sys
host, port = sys.argv[1].removeprefix('https://').split(':')
context = ssl.create_default_context(cafile=sys.argv[2])
raw = socket.create_connection((host, int(port)), 60)
with context.wrap_socket(raw, server_hostname=host, suppress_ragged_eofs=False) as line:
    line.sendall(b'GET /healthz HTTP/1.1\\r\\nConnection: close\\r\\n\\r\\n')
    text = b''
    while part := line.recv(4096):
        text += part
assert text.endswith(b'ok\\n'), text
";
    said_by(&mut python_script(peek, &[&url, &ca]));
    let curl = Command::new("curl")
        .args(["--silent", "--show-error", "--fail", "--max-time", "60", "--cacert"])
        .arg(&ca)
        .args(["--header", "Authorization: Bearer s3cret", &format!("{url}/metrics")])
        .output();
    if let Ok(run) = curl {
        assert!(run.status.success(), "{}", String::from_utf8_lossy(&run.stderr));
        assert!(String::from_utf8_lossy(&run.stdout).contains("litestream_build_info"));
    }
}

/// Another process stands by, takes over within a moment, and speaks TLS as the first did; its
/// follower loses nothing.
#[test]
fn who_takes_over_speaks_tls_too() {
    let Scene { folder, authority, host, primary } = Scene::new("standby");
    authority.sign(&["localhost", "127.0.0.1"]).write(&folder.file(""));
    let address = format!("127.0.0.1:{}", free_port());
    let url = serve_https(&primary, &address, &folder.file(""), Some("s3cret"));
    let second = Host::app();
    let standby = second.open(folder.file("p.db"));
    assert_eq!(serve_https(&standby, &address, &folder.file(""), Some("s3cret")), url);
    let wrong = json!({"tls_cert": folder.file("ca.pem"), "tls_key": folder.file("key.pem"),
                       "token": "s3cret"});
    let wrong = json!([address, wrong.to_string()]);
    let third = Host::app();
    let late = third.open(folder.file("p.db"));
    let refused = late.send_with("SELECT litestream_serve(?, ?)", wrong).outcome(DEADLINE);
    let error = refused.unwrap_err();
    assert!(error.contains("is not the key of the certificate"), "{error}");
    let follower = Host::app();
    let replica = follower.open(folder.file("r.db"));
    let options = json!({"ca": folder.file("ca.pem"), "token": "s3cret"});
    follow_with(&replica, &url, &options).unwrap();
    primary.run("INSERT INTO entry VALUES (1, x'01')").unwrap();
    assert_same(&primary, &replica);
    host.kill();
    until("the other to take over", || {
        let sql = "SELECT state FROM litestream_databases";
        (standby.text(sql) == "running").then_some(())
    });
    standby.run("INSERT INTO entry VALUES (2, x'02')").unwrap();
    assert_same(&standby, &replica);
    assert_eq!(replica.int("SELECT count(*) FROM entry"), 2);
    let addr = standby.text("SELECT addr FROM litestream_databases");
    assert_eq!(addr, url);
}

/// A crowd that connects and says nothing, or half a greeting, beside a follower at work.
#[test]
fn a_crowd_at_the_port_keeps_no_follower_out() {
    let scene = Scene::new("crowd");
    let url = scene.serve("tls", &scene.authority.sign(&["127.0.0.1"]));
    let address = url.strip_prefix("https://").unwrap();
    let size = scaled(300, 1000);
    let mut crowd: Vec<TcpStream> = Vec::new();
    let join = |crowd: &mut Vec<TcpStream>| {
        while crowd.len() < size {
            // Where the listener's queue is full the kernel makes this wait.
            let Ok(mut stream) = TcpStream::connect(address) else { continue };
            if crowd.len().is_multiple_of(2) {
                let _ = stream.write_all(b"\x16\x03\x01\x02\0\x01\0\x01\xfc\x03\x03half");
            }
            crowd.push(stream);
        }
    };
    join(&mut crowd);
    let follower = Host::app();
    let replica = follower.open(scene.folder.file("r.db"));
    follow_with(&replica, &url, &json!({"ca": scene.folder.file("ca.pem")})).unwrap();
    for round in 1..4 {
        scene.primary.run(&format!("INSERT INTO entry VALUES ({round}, x'00')")).unwrap();
        assert_same(&scene.primary, &replica);
        crowd.clear();
        join(&mut crowd);
    }
    assert_eq!(replica.int("SELECT count(*) FROM entry"), 3);
    assert!(scene.host.peak_kib() < 200 << 10, "{} KiB", scene.host.peak_kib());
    // The stream was never cut: there was one snapshot.
    let log = "SELECT count(*) FROM litestream_log WHERE message LIKE '%receiving a snapshot%'";
    assert_eq!(replica.int(log), 1);
    let mut last = crowd.pop().unwrap();
    last.set_read_timeout(Some(DEADLINE)).unwrap();
    let _ = last.read(&mut [0; 64]);
}
