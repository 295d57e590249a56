//! The accept loop and the life of one connection.

use std::io;
use std::net::SocketAddr;
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use pingora::apps::{HttpServerApp, ServerApp};
use pingora::protocols::l4::stream::Stream as L4Stream;
use pingora::protocols::{GetSocketDigest, SocketDigest};
use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream};
use tokio::sync::{Semaphore, mpsc, watch};

use super::connection::{self, Connection, Edge, Limits};
use super::listen::Bound;
use super::refusal;
use super::wire::Wire;
use crate::config::Listen;
use crate::live::clients::Clients;
use crate::live::{Current, Stage};

/// ENOMEM, ENFILE, EMFILE, ENOBUFS on Linux: the next connection would fare no better.
const EXHAUSTED: [i32; 4] = [12, 23, 24, 105];
/// Clients that are told of their refusal at once; more are turned away without a word.
static REFUSED: Semaphore = Semaphore::const_new(256);
/// For how long it is not said again that clients are refused, or wait.
const SILENCE: Duration = Duration::from_secs(10);
/// How long a connection may be idle once another process serves. There is no hurry then, and a request may be on its way.
const PATIENCE: Duration = Duration::from_secs(5);
/// How long accepting pauses when the system has no room for another connection.
const PAUSE: Duration = Duration::from_millis(50);

/// Lets clients in to an application.
pub struct Door<A> {
    /// What answers them.
    pub app: Arc<A>,
    /// Whose limits hold for new connections.
    pub current: Arc<Current>,
    /// Turns true when the daemon stops. Never mark this one as seen: Pingora's HTTP/2 loop waits for a change of its clones.
    pub stop: watch::Receiver<bool>,
    /// Turns true when what is still in flight is to be cut off.
    pub cut: watch::Receiver<bool>,
    /// Held by each connection: all of them gone ends the channel.
    pub open: mpsc::Sender<()>,
    /// Where its connections are counted.
    pub clients: Clients,
    /// Whether they may be too many.
    pub limited: bool,
}

/// What an accept loop has said in the log, so that it does not say it for every client.
#[derive(Default)]
struct Said {
    /// When it was last said that none can be accepted.
    exhausted: Option<Instant>,
    /// When clients were last said to be too many.
    full: Option<Instant>,
}

/// A socket that accepts in this runtime.
enum Listener {
    Tcp(TcpListener),
    Unix(UnixListener),
}

impl<A> Clone for Door<A> {
    fn clone(&self) -> Self {
        let Self { app, current, stop, cut, open, clients, limited } = self;
        Self {
            app: app.clone(),
            current: current.clone(),
            stop: stop.clone(),
            cut: cut.clone(),
            open: open.clone(),
            clients: clients.clone(),
            limited: *limited,
        }
    }
}

// === impl Door ===

impl<A: HttpServerApp + Send + Sync + 'static> Door<A> {
    /// Accepts until the daemon stops, then takes those who wait already; a successor takes them itself.
    ///
    /// # Errors
    /// When the socket cannot be used in this runtime.
    pub async fn run(self, bound: Bound) -> io::Result<()> {
        let listener = Listener::adopt(bound)?;
        let (mut stop, mut said) = (self.stop.clone(), Said::default());
        loop {
            let accepted = tokio::select! {
                biased;
                _ = stop.wait_for(|stop| *stop) => break,
                accepted = listener.accept() => accepted,
            };
            self.take(accepted, &mut said).await;
        }
        if self.current.stage() == Stage::HandedOver {
            return Ok(());
        }
        for accepted in listener.rest()? {
            self.take(accepted, &mut said).await;
        }
        Ok(())
    }

    async fn take(&self, accepted: io::Result<L4Stream>, said: &mut Said) {
        match accepted {
            Ok(stream) => self.seat(stream, said),
            Err(e) if e.raw_os_error().is_none_or(|code| !EXHAUSTED.contains(&code)) => {
                log::debug!("a connection was lost: {e}");
            }
            Err(e) => {
                if is_new(&mut said.exhausted) {
                    log::error!("connections wait, for none can be accepted: {e}");
                }
                tokio::time::sleep(PAUSE).await;
            }
        }
    }

    /// Serves a client, or refuses it where too many are here already.
    fn seat(&self, stream: L4Stream, said: &mut Said) {
        let most = if self.limited { self.current.live().plan.server.max_connections } else { 0 };
        if let Some(seat) = self.clients.enter(most) {
            let serve = self.clone().serve(stream);
            tokio::spawn(async move {
                serve.await;
                drop(seat);
            });
            return;
        }
        if is_new(&mut said.full) {
            log::warn!("clients are refused: {most} are connected, which is `max_connections`");
        }
        if let Ok(turn) = REFUSED.try_acquire() {
            tokio::spawn(async move {
                refusal::tell(stream).await;
                drop(turn);
            });
        }
    }

    async fn serve(self, stream: L4Stream) {
        let connection = Arc::new(Connection::default());
        let limits = {
            let server = &self.current.live().plan.server;
            Limits { header: server.header_timeout, keepalive: server.keepalive }
        };
        let edge = Arc::new(Edge::new(self.app.clone(), connection.clone(), limits));
        let wire = Box::new(Wire::new(Box::new(stream), connection.clone(), self.open.clone()));
        let (stop, cut, current) = (self.stop.clone(), self.cut.clone(), self.current.clone());
        let grace = || if current.stage() == Stage::HandedOver { PATIENCE } else { connection::GRACE };
        // A task of its own, else the watchdog would be looked at whenever a byte comes or goes.
        let mut served = tokio::spawn(connection::scope(connection.clone(), async move {
            ServerApp::process_new(&edge, wire, &self.stop).await;
        }));
        tokio::select! {
            _ = &mut served => {}
            () = connection.watch(limits, grace, stop, cut) => served.abort(),
        }
    }
}

// === impl Listener ===

impl Listener {
    fn adopt(bound: Bound) -> io::Result<Self> {
        Ok(match bound.listen {
            Listen::Tcp(_) => Self::Tcp(TcpListener::from_std(bound.socket.into())?),
            Listen::Unix(_) => Self::Unix(UnixListener::from_std(bound.socket.into())?),
        })
    }

    async fn accept(&self) -> io::Result<L4Stream> {
        match self {
            Self::Tcp(listener) => listener.accept().await.and_then(|(stream, peer)| tcp(stream, peer)),
            Self::Unix(listener) => listener.accept().await.map(|(stream, _)| unix(stream)),
        }
    }

    /// What waits now. The system is asked, not tokio, whose idea of readiness is one turn of the reactor old: what is
    /// left in the queue when the socket closes would be reset.
    fn rest(self) -> io::Result<Vec<io::Result<L4Stream>>> {
        let mut all = Vec::new();
        match self {
            Self::Tcp(listener) => {
                let listener = listener.into_std()?;
                while let Ok((stream, peer)) = listener.accept() {
                    stream.set_nonblocking(true)?;
                    all.push(TcpStream::from_std(stream).and_then(|stream| tcp(stream, peer)));
                }
            }
            Self::Unix(listener) => {
                let listener = listener.into_std()?;
                while let Ok((stream, _)) = listener.accept() {
                    stream.set_nonblocking(true)?;
                    all.push(UnixStream::from_std(stream).map(unix));
                }
            }
        }
        Ok(all)
    }
}

/// Whether something was not said in the last while, and is now.
fn is_new(said: &mut Option<Instant>) -> bool {
    let new = said.is_none_or(|at| at.elapsed() >= SILENCE);
    if new {
        *said = Some(Instant::now());
    }
    new
}

fn tcp(stream: TcpStream, peer: SocketAddr) -> io::Result<L4Stream> {
    stream.set_nodelay(true)?;
    let digest = SocketDigest::from_raw_fd(stream.as_raw_fd());
    let _ = digest.peer_addr.set(Some(peer.into())); // new: nobody has set it
    let mut stream = L4Stream::from(stream);
    stream.set_socket_digest(digest);
    Ok(stream)
}

fn unix(stream: UnixStream) -> L4Stream {
    let digest = SocketDigest::from_raw_fd(stream.as_raw_fd());
    let _ = digest.peer_addr.set(None); // new: nobody has set it
    let mut stream = L4Stream::from(stream);
    stream.set_socket_digest(digest);
    stream
}
