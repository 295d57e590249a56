//! What one client connection is doing, and the watchdog that ends it.
//!
//! No timer is touched per request: phases are one atomic word, which the watchdog reads when a limit could have passed.

use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering::Relaxed, Ordering::SeqCst};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use pingora::apps::{HttpServerApp, HttpServerOptions, ReusedHttpStream};
use pingora::protocols::http::ServerSession;
use pingora::protocols::http::v2::server::H2Options;
use pingora::server::ShutdownWatch;
use tokio::sync::{Notify, watch};

use crate::proxy;

tokio::task_local! {
    /// The connection of the request that is being read.
    static CONNECTION: Arc<Connection>;
}

/// How long a connection must have been idle before it is closed once the daemon stops: a client that has just had its
/// answer may be sending its next request.
pub const GRACE: Duration = Duration::from_millis(500);

/// How long a connection may be in its phases.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// From the first moment, or from a later request's first byte, to the end of the header.
    pub header: Duration,
    /// Between requests.
    pub keepalive: Duration,
}

/// What a connection is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    /// Accepted, no byte yet.
    Fresh,
    /// Kept alive, no byte of the next request yet.
    Idle,
    /// In a header.
    Header,
    /// A request is being answered.
    Busy,
    /// HTTP/2 without a stream, after one. Pingora ends it in its time.
    Quiet,
}

/// One client connection: its phase and when it began, in one word of milliseconds and three bits.
#[derive(Debug)]
pub struct Connection {
    born: Instant,
    word: AtomicU64,
    /// The HTTP/2 streams that are open.
    streams: AtomicUsize,
    /// Whatever it is doing ends as if its client had gone, and can still say so.
    cut: AtomicBool,
    /// Wakes its tasks when that changes.
    cutting: Notify,
}

/// An open HTTP/2 stream of a connection.
struct Stream(Arc<Connection>);

/// The application of one connection, around that of all of them.
pub struct Edge<A> {
    app: Arc<A>,
    connection: Arc<Connection>,
    options: HttpServerOptions,
}

/// What the proxy has to do with the connection of the request that a task is at.
pub const OF_A_REQUEST: proxy::Connection = proxy::Connection { header_complete, is_cut };

fn is_cut() -> bool {
    CONNECTION.try_with(|connection| connection.cut.load(Relaxed)).unwrap_or(false) // elsewhere nobody cuts
}

/// The header of the request under way is complete.
pub fn header_complete() {
    let _ = CONNECTION.try_with(|connection| connection.enter(Phase::Busy)); // elsewhere nobody watches
}

/// Makes the connection known to all that runs within `task`.
pub fn scope<T>(connection: Arc<Connection>, task: impl Future<Output = T>) -> impl Future<Output = T> {
    CONNECTION.scope(connection, task)
}

// === impl Limits ===

impl Limits {
    /// How often a connection is looked at: no phase may last longer unseen than it may last.
    fn finest(self) -> Duration {
        self.header.min(self.keepalive.max(GRACE)).min(Duration::from_secs(3600))
    }
}

// === impl Connection ===

impl Default for Connection {
    fn default() -> Self {
        let (streams, cut, cutting) = Default::default();
        Self { born: Instant::now(), word: AtomicU64::new(Phase::Fresh as u64), streams, cut, cutting }
    }
}

impl Connection {
    /// Bytes came: the first of them begin a header.
    pub fn bytes_came(&self) {
        if matches!(self.phase().0, Phase::Fresh | Phase::Idle) {
            self.enter(Phase::Header);
        }
    }

    fn cut(&self) {
        self.cut.store(true, SeqCst);
        self.cutting.notify_waiters();
    }

    /// Serves, and looks at all that is waited for once more when it is cut.
    async fn serve<T>(&self, serving: impl Future<Output = T>) -> T {
        let (mut serving, cutting) = (pin!(serving), self.cutting.notified());
        tokio::select! {
            biased;
            served = &mut serving => return served,
            () = cutting => {}
        }
        serving.await
    }

    /// Returns when the connection must be closed. `grace`: how long it may be idle once the daemon stops.
    pub async fn watch(
        &self,
        limits: Limits,
        grace: impl Fn() -> Duration,
        mut stop: watch::Receiver<bool>,
        mut cut: watch::Receiver<bool>,
    ) {
        let mut stopping = *stop.borrow_and_update();
        loop {
            let ((phase, age), grace) = (self.phase(), grace());
            let limit = match phase {
                Phase::Busy => Duration::MAX,
                Phase::Header if stopping && grace > GRACE => limits.header,
                Phase::Fresh | Phase::Header if stopping => grace.min(limits.header),
                Phase::Idle if stopping => grace.min(limits.keepalive.max(GRACE)),
                Phase::Quiet if stopping && self.streams.load(Relaxed) == 0 => 2 * grace, // it has been told to go
                Phase::Quiet => Duration::MAX,
                Phase::Fresh | Phase::Header => limits.header,
                Phase::Idle => limits.keepalive,
            };
            if age >= limit {
                return log::debug!("closing a connection: {phase:?} for {age:?}");
            }
            let look = if stopping { GRACE / 4 } else { limits.finest() };
            tokio::select! {
                () = tokio::time::sleep((limit - age).min(look)) => {}
                _ = stop.changed(), if !stopping => stopping = true, // it changes once, or its sender is gone
                Ok(_) = cut.wait_for(|cut| *cut), if !self.cut.load(Relaxed) => self.cut(),
            }
        }
    }

    fn enter(&self, phase: Phase) {
        let millis = u64::try_from(self.born.elapsed().as_millis()).unwrap_or(u64::MAX >> 3);
        self.word.store(millis << 3 | phase as u64, Relaxed);
    }

    fn phase(&self) -> (Phase, Duration) {
        let word = self.word.load(Relaxed);
        let phases = [Phase::Fresh, Phase::Idle, Phase::Header, Phase::Busy, Phase::Quiet];
        let phase = phases.get((word & 7) as usize).copied().unwrap_or(Phase::Busy);
        (phase, self.born.elapsed().saturating_sub(Duration::from_millis(word >> 3)))
    }
}

// === impl Stream ===

impl Stream {
    fn open(connection: &Arc<Connection>) -> Self {
        connection.streams.fetch_add(1, Relaxed);
        connection.enter(Phase::Busy);
        Self(connection.clone())
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        if self.0.streams.fetch_sub(1, Relaxed) == 1 {
            self.0.enter(Phase::Quiet);
        }
    }
}

// === impl Edge ===

impl<A> Edge<A> {
    /// For a connection that speaks HTTP/1.1 or cleartext HTTP/2 to `app`.
    #[must_use]
    pub fn new(app: Arc<A>, connection: Arc<Connection>, limits: Limits) -> Self {
        let mut options = HttpServerOptions::default();
        options.h2c = true;
        // With no time at all Pingora would end a connection before its first stream.
        options.h2_idle_timeout = Some(limits.keepalive.max(GRACE));
        Self { app, connection, options }
    }
}

#[async_trait]
impl<A: HttpServerApp + Send + Sync + 'static> HttpServerApp for Edge<A> {
    /// Over HTTP/1: all requests of the connection, one after the other.
    async fn process_new_http(
        self: &Arc<Self>,
        mut session: ServerSession,
        shutdown: &ShutdownWatch,
    ) -> Option<ReusedHttpStream> {
        if session.as_http1().is_none() {
            // Each stream is a task.
            let _open = Stream::open(&self.connection);
            let serving = scope(self.connection.clone(), self.app.process_new_http(session, shutdown));
            return self.connection.serve(serving).await;
        }
        loop {
            if session.get_keepalive().is_some() {
                session.set_keepalive(Some(0)); // no timer per read: the watchdog has the limits
            }
            let again = self.connection.serve(self.app.process_new_http(session, shutdown)).await?;
            self.connection.enter(Phase::Idle);
            session = next(again).await?;
        }
    }

    fn h2_options(&self) -> Option<H2Options> {
        self.app.h2_options()
    }

    fn server_options(&self) -> Option<&HttpServerOptions> {
        Some(&self.options)
    }
}

/// The session of the next request, once its first bytes are there: what a proxy keeps for a request is large, and an idle
/// connection needs none of it.
async fn next(again: ReusedHttpStream) -> Option<ServerSession> {
    let (mut stream, settings) = again.consume();
    stream.try_peek(&mut [0]).await.ok()?;
    let mut session = ServerSession::new_http1(stream);
    if let Some(settings) = settings {
        settings.apply_to_session(&mut session);
    }
    Some(session)
}
