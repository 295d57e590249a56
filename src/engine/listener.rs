//! Where an engine is reached: a TCP port or a unix socket.

use pingora::protocols::l4::stream::Stream;
use socket2::Socket;
use std::io;
use std::os::fd::AsFd;
use tokio::net::{TcpListener, UnixListener};

/// A listening socket.
#[derive(Debug)]
pub enum Listener {
    /// A TCP port.
    Tcp(TcpListener),
    /// A unix socket. Whoever bound it removes its file.
    Unix(UnixListener),
}

impl From<TcpListener> for Listener {
    fn from(listener: TcpListener) -> Self {
        Self::Tcp(listener)
    }
}

impl From<UnixListener> for Listener {
    fn from(listener: UnixListener) -> Self {
        Self::Unix(listener)
    }
}

impl Listener {
    /// The next connection. One over TCP that shall be resettable comes with a second handle on its socket: Pingora
    /// does not give its own away.
    pub(super) async fn accept(&self, resettable: bool) -> io::Result<(Stream, Option<Socket>)> {
        match self {
            Self::Tcp(listener) => {
                let (stream, _) = listener.accept().await?;
                if let Err(error) = stream.set_nodelay(true) {
                    log::debug!("engine: TCP_NODELAY: {error}");
                }
                let handle = if resettable { Some(stream.as_fd().try_clone_to_owned()?.into()) } else { None };
                Ok((stream.into(), handle))
            }
            Self::Unix(listener) => {
                let (stream, _) = listener.accept().await?;
                Ok((stream.into(), None))
            }
        }
    }
}
