//! The address to listen on: from the text a user gives to listening sockets and the URL to paste.
//!
//! | text                               | binds                                               |
//! |------------------------------------|-----------------------------------------------------|
//! | `:9090`, `*:9090`                  | protected: 127.0.0.1 and ::1; else every interface  |
//! | `localhost:9090`                   | 127.0.0.1 and ::1                                   |
//! | `127.0.0.1:9090`, `[::1]:9090`, .. | that address                                        |
//! | `0.0.0.0:9090`, `[::]:9090`        | every interface: IPv4, or IPv6 and IPv4             |
//! | `db1.example:9090`                 | every address of that name                          |
//! | `unix:/run/app.sock`               | that socket file                                    |
//!
//! Port 0 takes any free port, the same for both loopback addresses. ::1 is left out on a host
//! without IPv6. A socket file nobody answers on is left over from a crash and replaced; one that
//! answers is not.

use std::fs;
use std::io::{self, ErrorKind as Io};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, ToSocketAddrs};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

use socket2::{Domain, Socket, Type};

use crate::error::{Error, ErrorKind, Result};
use crate::fault;
use crate::host::fork::Private;

/// Connections the kernel may hold for us before they are accepted.
const BACKLOG: i32 = 1024;
/// The longest path of a socket file, in bytes: `sun_path` holds one more.
const UNIX_PATH_MAX: usize = if cfg!(target_os = "linux") { 107 } else { 103 };

/// An address, understood but not yet bound.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Address {
    given: String,
    place: Place,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Place {
    Any(u16),
    Ip(SocketAddr),
    Name(String, u16),
    Unix(PathBuf),
}

/// One listening socket, non-blocking.
#[derive(Debug)]
pub(crate) enum Listener {
    Tcp(Private<TcpListener>),
    Unix(Private<UnixListener>),
}

/// What was bound.
#[derive(Debug)]
pub(crate) struct Bound {
    /// The sockets.
    pub(crate) listeners: Vec<Listener>,
    /// The TCP addresses really bound.
    pub(crate) addresses: Vec<SocketAddr>,
    /// The URL a user can paste.
    pub(crate) url: String,
    /// The socket file, to be removed at the end.
    pub(crate) socket_file: Option<SocketFile>,
}

impl Address {
    /// Understands the text.
    pub(crate) fn parse(text: &str) -> Result<Self> {
        let given = text.trim();
        let bad = |why: &str| {
            let hint = "write ':9090', '127.0.0.1:9090', '[::]:9090' or 'unix:/path/to/socket'";
            Err(Error::new(ErrorKind::Usage, format!("cannot listen on {given}: {why}; {hint}")))
        };
        if let Some(path) = given.strip_prefix("unix:") {
            let path = path.strip_prefix("//").unwrap_or(path);
            let Ok(path) = std::path::absolute(path) else { return bad("no path") };
            let len = path.as_os_str().len();
            if len > UNIX_PATH_MAX || path.as_os_str().as_encoded_bytes().contains(&0) {
                return bad(&format!(
                    "the path must have at most {UNIX_PATH_MAX} bytes and no NUL"
                ));
            }
            let given = format!("unix:{}", path.display());
            return Ok(Address { given, place: Place::Unix(path) });
        }
        let Some((host, port)) = given.rsplit_once(':') else { return bad("there is no port") };
        if port.is_empty() || !port.bytes().all(|byte| byte.is_ascii_digit()) {
            return bad("the port is not a number");
        }
        let Ok(port) = port.parse::<u16>() else { return bad("the port is larger than 65535") };
        let bracketed = host.strip_prefix('[').and_then(|host| host.strip_suffix(']'));
        let place = match (host, bracketed) {
            ("" | "*", _) => Place::Any(port),
            (_, Some(ip)) => match ip.parse::<Ipv6Addr>() {
                Ok(ip) => Place::Ip(SocketAddr::new(ip.into(), port)),
                Err(_) => return bad("what is in brackets is not an IPv6 address"),
            },
            (name, None) => match name.parse::<Ipv4Addr>() {
                Ok(ip) => Place::Ip(SocketAddr::new(ip.into(), port)),
                Err(_) if is_host_name(name) => Place::Name(name.to_ascii_lowercase(), port),
                Err(_) => return bad("the host is neither an address nor a name"),
            },
        };
        let given = match &place {
            Place::Any(port) => format!(":{port}"),
            Place::Ip(address) => address.to_string(),
            Place::Name(name, port) => format!("{name}:{port}"),
            Place::Unix(_) => String::new(),
        };
        Ok(Address { given, place })
    }

    /// The address in one spelling: two requests for the same address have the same key.
    pub(crate) fn key(&self) -> &str {
        &self.given
    }

    /// Whether a server bound to these addresses already listens on this one.
    pub(crate) fn is_covered_by(&self, bound: &[SocketAddr], protected: bool) -> bool {
        let wanted: Vec<SocketAddr> = match &self.place {
            Place::Ip(address) => vec![*address],
            Place::Any(port) if protected => vec![SocketAddr::from((Ipv4Addr::LOCALHOST, *port))],
            Place::Name(name, port) if name == "localhost" => {
                vec![SocketAddr::from((Ipv4Addr::LOCALHOST, *port))]
            }
            _ => return false,
        };
        wanted.iter().all(|address| address.port() != 0 && bound.contains(address))
    }

    /// Whether any free port is asked for.
    pub(crate) fn is_any_port(&self) -> bool {
        match &self.place {
            Place::Any(port) | Place::Name(_, port) => *port == 0,
            Place::Ip(address) => address.port() == 0,
            Place::Unix(_) => false,
        }
    }

    /// Whether it is a socket file.
    pub(crate) fn is_unix(&self) -> bool {
        matches!(self.place, Place::Unix(_))
    }

    /// Binds it. `protected`: without a host, listen to this machine only.
    pub(crate) fn bind(&self, protected: bool) -> Result<Bound> {
        self.try_bind(protected).map_err(|error| {
            let kind =
                if error.kind() == Io::InvalidInput { ErrorKind::Usage } else { ErrorKind::Io };
            Error::new(kind, format!("cannot listen on {}: {}", self.given, reason(&error)))
        })
    }

    fn try_bind(&self, protected: bool) -> io::Result<Bound> {
        match &self.place {
            Place::Unix(path) => bind_unix(path, &self.given),
            Place::Any(port) if protected => {
                let listeners = bind_loopback(*port)?;
                bound(listeners, "127.0.0.1")
            }
            Place::Any(port) => {
                let six = SocketAddr::from((Ipv6Addr::UNSPECIFIED, *port));
                let four = SocketAddr::from((Ipv4Addr::UNSPECIFIED, *port));
                let listener = bind_tcp(six).or_else(|error| match error.kind() {
                    Io::AddrInUse | Io::PermissionDenied => Err(error),
                    _ => bind_tcp(four), // a host without IPv6
                })?;
                bound(vec![listener], "127.0.0.1")
            }
            Place::Ip(address) => {
                let host = match address.ip() {
                    IpAddr::V4(ip) if ip.is_unspecified() => "127.0.0.1".to_owned(),
                    IpAddr::V6(ip) if ip.is_unspecified() => "[::1]".to_owned(),
                    IpAddr::V4(ip) => ip.to_string(),
                    IpAddr::V6(ip) => format!("[{ip}]"),
                };
                bound(vec![bind_tcp(*address)?], &host)
            }
            Place::Name(name, port) if name == "localhost" => bound(bind_loopback(*port)?, name),
            Place::Name(name, port) => {
                let mut found: Vec<SocketAddr> =
                    (name.as_str(), *port).to_socket_addrs()?.collect();
                found.sort();
                found.dedup();
                if *port == 0 {
                    found.truncate(1); // several addresses would get several ports
                }
                let listeners: io::Result<Vec<_>> = found.into_iter().map(bind_tcp).collect();
                bound(listeners?, name)
            }
        }
    }
}

impl Bound {
    /// The same where TLS is spoken.
    pub(crate) fn encrypted(mut self) -> Self {
        if let Some(rest) = self.url.strip_prefix("http://") {
            self.url = format!("https://{rest}");
        }
        self
    }
}

fn is_host_name(name: &str) -> bool {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_';
    name.len() <= 253 && name.split('.').all(|label| !label.is_empty() && label.bytes().all(plain))
}

/// What went wrong, in the words a user searches for.
fn reason(error: &io::Error) -> String {
    match error.kind() {
        Io::AddrInUse => "address already in use".to_owned(),
        Io::AddrNotAvailable => "this machine does not have that address".to_owned(),
        Io::PermissionDenied => "permission denied".to_owned(),
        _ => error.to_string(),
    }
}

fn bound(listeners: Vec<TcpListener>, host: &str) -> io::Result<Bound> {
    let addresses: io::Result<Vec<SocketAddr>> =
        listeners.iter().map(TcpListener::local_addr).collect();
    let addresses = addresses?;
    let port = addresses.first().map(SocketAddr::port);
    let port = port.ok_or_else(|| io::Error::new(Io::NotFound, "the name has no address"))?;
    Ok(Bound {
        listeners: listeners.into_iter().map(|one| Listener::Tcp(Private::new(one))).collect(),
        addresses,
        url: format!("http://{host}:{port}"),
        socket_file: None,
    })
}

fn bind_tcp(address: SocketAddr) -> io::Result<TcpListener> {
    fault::at("serve/listen")?;
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, None)?;
    // So that a restart need not wait for the connections of its predecessor to time out.
    socket.set_reuse_address(true)?;
    if let IpAddr::V6(ip) = address.ip() {
        socket.set_only_v6(!ip.is_unspecified())?;
    }
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    socket.set_nonblocking(true)?;
    Ok(socket.into())
}

/// Both loopback addresses on one port.
fn bind_loopback(port: u16) -> io::Result<Vec<TcpListener>> {
    const TRIES: u32 = 16;
    let mut tries = 0;
    loop {
        tries += 1;
        let four = bind_tcp(SocketAddr::from((Ipv4Addr::LOCALHOST, port)))?;
        let taken = four.local_addr()?.port();
        match bind_tcp(SocketAddr::from((Ipv6Addr::LOCALHOST, taken))) {
            Ok(six) => return Ok(vec![four, six]),
            // With port 0 the port was free for IPv4 only: another one.
            Err(error) if error.kind() == Io::AddrInUse && port == 0 && tries < TRIES => {}
            Err(error) if error.kind() == Io::AddrInUse => return Err(error),
            Err(_) => return Ok(vec![four]),
        }
    }
}

fn bind_unix(path: &Path, given: &str) -> io::Result<Bound> {
    fault::at("serve/listen")?;
    let listener = match UnixListener::bind(path) {
        Err(error) if error.kind() == Io::AddrInUse => {
            remove_stale(path)?;
            UnixListener::bind(path)?
        }
        other => other?,
    };
    listener.set_nonblocking(true)?;
    let socket_file = SocketFile::of(path)?;
    Ok(Bound {
        listeners: vec![Listener::Unix(Private::new(listener))],
        addresses: Vec::new(),
        url: given.to_owned(),
        socket_file: Some(socket_file),
    })
}

/// Removes a socket file nobody answers on; anything else is in use.
fn remove_stale(path: &Path) -> io::Result<()> {
    if !fs::symlink_metadata(path)?.file_type().is_socket() {
        return Err(io::Error::new(Io::AlreadyExists, "a file that is not a socket is there"));
    }
    match UnixStream::connect(path) {
        Err(error) if error.kind() == Io::ConnectionRefused => fs::remove_file(path),
        Err(error) => Err(error),
        Ok(_) => Err(Io::AddrInUse.into()),
    }
}

/// A socket file of ours, known again by device and inode.
#[derive(Debug)]
pub(crate) struct SocketFile {
    path: PathBuf,
    device: u64,
    inode: u64,
}

impl SocketFile {
    fn of(path: &Path) -> io::Result<Self> {
        let meta = fs::symlink_metadata(path)?;
        Ok(SocketFile { path: path.to_owned(), device: meta.dev(), inode: meta.ino() })
    }

    /// Removes it, unless somebody has put another in its place.
    pub(crate) fn remove(&self) {
        let ours = fs::symlink_metadata(&self.path)
            .is_ok_and(|meta| (meta.dev(), meta.ino()) == (self.device, self.inode));
        if ours {
            // A left-over is replaced at the next start.
            let _ = fs::remove_file(&self.path);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(text: &str) -> String {
        Address::parse(text).unwrap().key().to_owned()
    }

    fn error(text: &str) -> String {
        Address::parse(text).unwrap_err().to_string()
    }

    #[test]
    fn spellings_of_one_address_have_one_key() {
        assert_eq!(key(" :9090 "), key("*:9090"));
        assert_eq!(key("[0:0::1]:09090"), "[::1]:9090");
        assert_eq!(key("LOCALHOST:1"), "localhost:1");
        assert_eq!(key("unix:///run/app.sock"), "unix:/run/app.sock");
        assert_eq!(key("unix:/run/app.sock"), "unix:/run/app.sock");
    }

    #[test]
    fn bad_addresses_are_explained() {
        for (text, why) in [
            ("9090", "there is no port"),
            ("", "there is no port"),
            (":", "the port is not a number"),
            (":http", "the port is not a number"),
            (":+1", "the port is not a number"),
            (":-1", "the port is not a number"),
            (":65536", "larger than 65535"),
            (":99999999999999999999", "larger than 65535"),
            ("[::1:9090", "neither an address nor a name"),
            ("[zz]:9090", "not an IPv6 address"),
            ("::1:9090", "neither an address nor a name"),
            ("a b:1", "neither an address nor a name"),
            ("http://h:1", "neither an address nor a name"),
            ("\0:1", "neither an address nor a name"),
            ("unix:", "no path"),
            ("unix:/a\0b", "no NUL"),
        ] {
            let got = error(text);
            assert!(got.starts_with("cannot listen on "), "{got}");
            assert!(got.contains(why), "{text:?}: {got}");
        }
        assert!(error(&format!("unix:/{}", "x".repeat(200))).contains("at most"));
    }

    #[test]
    fn a_protected_server_binds_loopback_only() {
        let bound = Address::parse(":0").unwrap().bind(true).unwrap();
        assert!(bound.addresses.iter().all(|address| address.ip().is_loopback()));
        let port = bound.addresses[0].port();
        assert!(bound.addresses.iter().all(|address| address.port() == port));
        assert_eq!(bound.url, format!("http://127.0.0.1:{port}"));
        let again = Address::parse(&format!(":{port}")).unwrap();
        let refused = again.bind(true).unwrap_err().to_string();
        assert_eq!(refused, format!("cannot listen on :{port}: address already in use"));
        assert!(again.is_covered_by(&bound.addresses, true));
        assert!(!again.is_covered_by(&bound.addresses, false));
        let any = Address::parse(":0").unwrap().bind(false).unwrap();
        assert!(any.addresses[0].ip().is_unspecified());
        assert!(any.url.starts_with("http://127.0.0.1:"));
    }

    #[test]
    fn a_stale_socket_file_is_replaced_and_a_live_one_is_not() {
        let dir = std::env::temp_dir().join(format!("litestream-address-{}", std::process::id()));
        fs::create_dir_all(&dir).unwrap();
        let path = dir.join("app.sock");
        let address = Address::parse(&format!("unix:{}", path.display())).unwrap();
        drop(UnixListener::bind(&path).unwrap());
        let bound = address.bind(true).unwrap();
        assert_eq!(bound.url, format!("unix:{}", path.display()));
        let live = address.bind(true).unwrap_err().to_string();
        assert!(live.ends_with("address already in use"), "{live}");
        bound.socket_file.as_ref().unwrap().remove();
        assert!(!path.exists());
        fs::write(&path, "precious").unwrap();
        assert!(address.bind(true).unwrap_err().to_string().contains("not a socket"));
        bound.socket_file.unwrap().remove();
        assert_eq!(fs::read(&path).unwrap(), b"precious");
        fs::remove_dir_all(&dir).unwrap();
    }
}
