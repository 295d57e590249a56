//! Listening sockets, bound by us before any thread exists, so that a port in use is told at once.

use std::fs;
use std::io;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

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

/// Binds every address, or none.
///
/// # Errors
/// A line that names the address and says what is wrong with it.
pub fn bind(all: &[Listen]) -> Result<Vec<Bound>, String> {
    let mut bound: Vec<Bound> = Vec::new();
    for listen in all {
        let socket = match listen {
            Listen::Tcp(address) => tcp(*address),
            Listen::Unix(path) => unix(path),
        };
        match socket.and_then(|socket| socket.set_nonblocking(true).map(|()| socket)) {
            Ok(socket) => bound.push(Bound::new(listen.clone(), socket)),
            Err(e) => {
                bound.iter().filter_map(|bound| bound.file.as_ref()).for_each(SocketFile::remove);
                return Err(refused(listen, &e));
            }
        }
    }
    Ok(bound)
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

// === impl SocketFile ===

impl SocketFile {
    fn at(path: &Path) -> Option<Self> {
        let file = fs::symlink_metadata(path).ok()?;
        Some(Self { path: path.to_owned(), device: file.dev(), inode: file.ino() })
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
        io::ErrorKind::PermissionDenied => "permission denied: a port below 1024 needs CAP_NET_BIND_SERVICE",
        _ => return format!("cannot listen on {listen}: {e}"),
    };
    format!("cannot listen on {listen}: {hint}")
}
