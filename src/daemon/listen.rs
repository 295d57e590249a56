//! Listening sockets: bound by us before anything is served, so that a port in use is told at once, or passed to us.
//!
//! systemd and a process that hands over to this one pass sockets in the same way, and they are told apart by their own addresses,
//! so that no names are needed.

use std::fs;
use std::io;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

use listenfd::ListenFd;
use socket2::{Domain, Socket, Type};

use crate::config::Listen;

/// Connections that may wait to be accepted.
const BACKLOG: i32 = 4096;

/// A bound socket and the address it was asked for.
#[derive(Debug)]
pub struct Bound {
    /// The configured address.
    pub listen: Listen,
    /// The socket, listening.
    pub socket: Socket,
    /// The file of a unix socket.
    pub file: Option<SocketFile>,
}

/// The file that a unix socket leaves behind, told apart from another one of this name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SocketFile {
    path: PathBuf,
    device: u64,
    inode: u64,
}

/// The listening sockets that this process was started with. They are taken once, before any thread exists: what names them
/// is taken out of the environment.
#[must_use]
pub fn inherited() -> Vec<Socket> {
    let mut passed = ListenFd::from_env();
    let number = passed.len();
    let take = |place| match passed.take_tcp_listener(place) {
        Ok(tcp) => tcp.map(Socket::from),
        Err(_) => passed.take_unix_listener(place).ok().flatten().map(Socket::from),
    };
    (0..number).filter_map(take).filter(|socket| socket.is_listener().unwrap_or(false)).collect()
}

/// Has a socket for every address, or none. Those that were passed to this process come first; what was passed and is not
/// listened on is closed.
///
/// # Errors
/// A line that names the address and says what is wrong with it.
pub fn bind(all: &[Listen], mut passed: Vec<Socket>) -> Result<Vec<Bound>, String> {
    let mut bound: Vec<Bound> = Vec::new();
    for listen in all {
        let found = passed.iter().position(|socket| is_at(socket, listen, all));
        let socket = match (found, listen) {
            (Some(found), _) => Ok(passed.remove(found)),
            (None, Listen::Tcp(address)) => tcp(*address),
            (None, Listen::Unix(path)) => unix(path),
        };
        match socket.and_then(|socket| socket.set_nonblocking(true).map(|()| socket)) {
            // The file of a socket that was passed is whoever's who made it.
            Ok(socket) if found.is_some() => bound.push(Bound { listen: listen.clone(), socket, file: None }),
            Ok(socket) => bound.push(Bound::new(listen.clone(), socket)),
            Err(e) => {
                bound.iter().filter_map(|bound| bound.file.as_ref()).for_each(SocketFile::remove);
                return Err(match passed.iter().find(|socket| is_in_the_way(socket, listen)) {
                    Some(socket) => format!(
                        "cannot listen on {listen}: {} was passed to this process, and both cannot be had at once; from one to the \
                         other a restart leads, and no upgrade",
                        told_by(socket)
                    ),
                    None => refused(listen, &e),
                });
            }
        }
    }
    for socket in &passed {
        log::warn!(
            "a socket was passed that nothing in the configuration listens on: {}; it is closed",
            told_by(socket)
        );
    }
    Ok(bound)
}

/// Whether a socket that was passed is the one for an address. Where the system is to choose the port, it is any of that IP address
/// that none of the others is for.
fn is_at(socket: &Socket, listen: &Listen, all: &[Listen]) -> bool {
    let Ok(address) = socket.local_addr() else { return false };
    match (listen, address.as_socket()) {
        (Listen::Tcp(wanted), Some(has)) if wanted.port() == 0 => {
            wanted.ip() == has.ip() && !all.contains(&Listen::Tcp(has))
        }
        (Listen::Tcp(wanted), Some(has)) => *wanted == has,
        (Listen::Unix(wanted), None) => address.as_pathname() == Some(wanted),
        _ => false,
    }
}

/// Whether it is a passed socket that keeps us from an address: one of the same port, for all addresses or for this one.
fn is_in_the_way(socket: &Socket, listen: &Listen) -> bool {
    let has = socket.local_addr().ok().and_then(|address| address.as_socket());
    matches!((listen, has), (Listen::Tcp(wanted), Some(has)) if wanted.port() == has.port())
}

fn told_by(socket: &Socket) -> String {
    let address = socket.local_addr().ok();
    let told = address.and_then(|address| match (address.as_socket(), address.as_pathname()) {
        (Some(address), _) => Some(address.to_string()),
        (None, path) => path.map(|path| format!("unix:{}", path.display())),
    });
    told.unwrap_or_else(|| "an address that cannot be told".to_owned())
}

/// The address of a TCP socket: with port 0, the one that the system chose.
#[must_use]
pub fn address(bound: &Bound) -> String {
    let chosen = bound.socket.local_addr().ok().and_then(|address| address.as_socket());
    chosen.map_or_else(|| bound.listen.to_string(), |address| address.to_string())
}

// === impl Bound ===

impl Bound {
    /// A socket that was bound to this address just now.
    #[must_use]
    pub fn new(listen: Listen, socket: Socket) -> Self {
        let file = match &listen {
            Listen::Unix(path) => SocketFile::at(path),
            Listen::Tcp(_) => None,
        };
        Self { listen, socket, file }
    }
}

impl Bound {
    /// The path of a unix socket.
    #[must_use]
    pub fn path(&self) -> Option<PathBuf> {
        if let Listen::Unix(path) = &self.listen { Some(path.clone()) } else { None }
    }
}

// === impl SocketFile ===

impl SocketFile {
    /// The one that is at a path now.
    #[must_use]
    pub fn at(path: &Path) -> Option<Self> {
        let file = fs::symlink_metadata(path).ok()?;
        Some(Self { path: path.to_owned(), device: file.dev(), inode: file.ino() })
    }

    /// Where it is.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Removes it, unless another process's socket has taken its place.
    pub fn remove(&self) {
        if Self::at(&self.path).as_ref() == Some(self) {
            let _ = fs::remove_file(&self.path); // gone already: fine
        }
    }
}

fn tcp(address: SocketAddr) -> io::Result<Socket> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, None)?;
    socket.set_reuse_address(true)?;
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    Ok(socket)
}

fn unix(path: &Path) -> io::Result<Socket> {
    // A socket that nobody listens on is left over from a crash. To connect to any other file is refused as well.
    let is_socket = fs::symlink_metadata(path).is_ok_and(|file| file.file_type().is_socket());
    if is_socket && UnixStream::connect(path).is_err_and(|e| e.kind() == io::ErrorKind::ConnectionRefused) {
        fs::remove_file(path)?;
    }
    Ok(Socket::from(OwnedFd::from(UnixListener::bind(path)?)))
}

fn is_other_file(listen: &Listen) -> bool {
    let Listen::Unix(path) = listen else { return false };
    fs::symlink_metadata(path).is_ok_and(|file| !file.file_type().is_socket())
}

fn refused(listen: &Listen, e: &io::Error) -> String {
    let hint = match e.kind() {
        io::ErrorKind::AddrInUse if is_other_file(listen) => "a file stands there that is not a socket",
        io::ErrorKind::AddrInUse => "another process listens there already",
        io::ErrorKind::AddrNotAvailable => "this machine has no such address",
        io::ErrorKind::PermissionDenied if matches!(listen, Listen::Unix(_)) => {
            "permission denied: forebay must be allowed to write to its folder"
        }
        io::ErrorKind::PermissionDenied => "permission denied: a port below 1024 needs CAP_NET_BIND_SERVICE",
        _ => return format!("cannot listen on {listen}: {e}"),
    };
    format!("cannot listen on {listen}: {hint}")
}
