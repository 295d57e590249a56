//! The client's session as Pingora sees it from the moment a request is admitted.
//!
//! It delegates everything to the real session, except that it gives a body that was read whole again on each attempt,
//! watches the clock and the client while the engine is silent, and lets no incomplete stream look complete.
//!
//! Pingora 0.9.1's own way to send a body again is a buffer of 64 KiB. Beyond that, and for a body that was read to its end
//! before the engine was chosen, nothing would be sent at all. A session of one's own is the way around it.

use std::convert::Infallible;
use std::future::{pending, poll_fn};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::Acquire, Ordering::Relaxed, Ordering::Release};
use std::task::{Context, Poll};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use futures::FutureExt;
use futures::task::AtomicWaker;
use http::HeaderMap;
use http::header::{CONTENT_LENGTH, TRANSFER_ENCODING};
use parking_lot::Mutex;
use pingora::http::{RequestHeader, ResponseHeader};
use pingora::protocols::Digest;
use pingora::protocols::http::custom::server::Session as CustomSession;
use pingora::protocols::http::{HttpTask, ServerSession};
use pingora::protocols::l4::socket::SocketAddr;
use pingora::proxy::Session;
use pingora::{Error, ErrorSource, ErrorType, Result};
use tokio::time::timeout;

use super::clock::Clock;
use super::cork::Cork;
use super::ending::{self, BODY_SILENT, BODY_TOO_LARGE, MOVED, UNFINISHED};
use super::exchange::Exchange;
use super::messages::no_custom_messages;
use super::waiting::cut;
use crate::pool::Server;
use crate::pool::handover::Handover;

/// What a request's context and its [`Client`] share.
#[derive(Default)]
pub struct Shared {
    /// The answer is a stream that lacks its last event.
    pub unfinished: AtomicBool,
    /// A write to the client is under way; still true afterwards if it was cut off in the middle.
    pub writing: AtomicBool,
    /// The daemon stops: the client's connection ends with this answer.
    pub closing: AtomicBool,
    /// The server whose answer is a stream.
    pub streams: Mutex<Option<Arc<Server>>>,
    /// The answer may end well over HTTP and is still none that could be given again.
    pub faulty: AtomicBool,
    /// A [`Client`] stands before the real session.
    wrapped: AtomicBool,
    /// In the engine's socket while it has the header and not yet the body.
    pub cork: Mutex<Option<Cork>>,
    /// Where a [`Client`] leaves the real session when it is dropped.
    home: Mutex<Option<Box<ServerSession>>>,
}

/// Where the request's body comes from.
#[derive(Debug)]
pub enum Body {
    /// It was read whole, and is given to each attempt.
    Whole(Bytes),
    /// It comes from the client as the engine takes it. Limits hold until the answer has begun: a stream in both directions
    /// may well be long, and silent while it is being answered.
    Streamed {
        /// The longest silence allowed.
        silence: Duration,
        /// The most bytes allowed.
        most: u64,
    },
}

/// The client's session, put before Pingora's.
pub struct Client {
    /// Only `drop` takes it.
    real: Option<Box<ServerSession>>,
    body: Body,
    /// The whole body was given to this attempt.
    given: bool,
    /// Pieces of a streamed body that the engine has not taken yet.
    lent: Arc<Lent>,
    clock: Clock,
    /// Where it is told that another server is leased.
    handover: Arc<Handover>,
    shared: Arc<Shared>,
    /// Whether the exchange is to end now.
    is_cut: fn() -> bool,
}

/// Counts the pieces of a body that are on their way to the engine.
#[derive(Default)]
struct Lent {
    pieces: AtomicUsize,
    waker: AtomicWaker,
}

/// A piece of a body that tells when it has been sent: then it is dropped.
struct Piece {
    bytes: Bytes,
    lent: Arc<Lent>,
}

/// Puts a [`Client`] in the session's place.
pub fn wrap(session: &mut Session, body: Body, clock: Clock, x: &Exchange) -> Result<()> {
    let (shared, handover) = (x.shared.clone(), x.way.handover().clone());
    let placeholder = Box::new(ServerSession::new_custom(Box::new(())));
    let mut real = std::mem::replace(&mut session.downstream_session, placeholder);
    let framed = if let Body::Whole(body) = &body { frame(real.req_header_mut(), body.len()) } else { Ok(()) };
    let client = Client {
        real: Some(real),
        body,
        given: false,
        lent: Arc::default(),
        clock,
        handover,
        shared,
        is_cut: x.is_cut,
    };
    client.shared.wrapped.store(true, Relaxed);
    *session.downstream_session = ServerSession::new_custom(Box::new(client));
    framed
}

/// A body that was read whole goes on with its length, however it came and whatever was changed in it.
fn frame(header: &mut RequestHeader, length: usize) -> Result<()> {
    header.remove_header(&TRANSFER_ENCODING);
    header.insert_header(CONTENT_LENGTH, length)
}

/// Whether the client has the beginning of an answer. A `100 Continue` is none.
#[must_use]
pub fn is_answered(session: &ServerSession) -> bool {
    session.response_written().is_some_and(|header| !header.status.is_informational())
}

/// Looks whether the client is still there, as far as that can be seen without waiting: Pingora 0.9.1 does not watch it while
/// an engine is connected to.
///
/// # Errors
/// Its leaving.
pub fn look(session: &mut Session) -> Result<()> {
    if !session.downstream_session.is_custom() {
        return Ok(());
    }
    match session.downstream_session.read_body_or_idle(true).now_or_never() {
        Some(Err(e)) if !ending::is_timeout(e.etype()) && *e.etype() != MOVED => Err(e.into_down()),
        _ => Ok(()),
    }
}

/// Brings the real session back: before an error is written and when the request ends, else the connection is lost.
pub fn unwrap(session: &mut Session, shared: &Shared) {
    if !shared.wrapped.swap(false, Relaxed) {
        return;
    }
    *session.downstream_session = ServerSession::new_custom(Box::new(())); // drops the `Client`
    if let Some(real) = shared.home.lock().take() {
        session.downstream_session = real;
    }
}

// === impl Shared ===

impl Shared {
    /// The client does not take what the engine sends, as long as this is polled: nobody hears whether the engine is silent.
    async fn hold(&self) -> Infallible {
        let _held = self.streams.lock().as_ref().map(Server::hold);
        pending().await
    }
}

// === impl Lent ===

impl Lent {
    /// Pingora's pipe holds four pieces.
    const MOST: usize = 2;

    fn lend(self: &Arc<Self>, piece: Bytes) -> Bytes {
        self.pieces.fetch_add(1, Relaxed);
        Bytes::from_owner(Piece { bytes: piece, lent: self.clone() })
    }

    fn poll_room(&self, cx: &mut Context<'_>) -> Poll<()> {
        self.waker.register(cx.waker()); // before the look, so that no return is missed
        if self.pieces.load(Acquire) < Self::MOST { Poll::Ready(()) } else { Poll::Pending }
    }
}

impl AsRef<[u8]> for Piece {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

impl Drop for Piece {
    fn drop(&mut self) {
        self.lent.pieces.fetch_sub(1, Release);
        self.lent.waker.wake();
    }
}

// === impl Client ===

impl Drop for Client {
    fn drop(&mut self) {
        *self.shared.home.lock() = self.real.take();
    }
}

impl Client {
    fn real(&self) -> &ServerSession {
        self.real.as_ref().expect("the real session is there until the drop")
    }

    fn real_mut(&mut self) -> &mut ServerSession {
        self.real.as_mut().expect("the real session is there until the drop")
    }

    /// The next piece of a body that streams through.
    async fn streamed(&mut self, silence: Duration, most: u64) -> Result<Option<Bytes>> {
        self.room().await?;
        let piece = self.piece(silence, most).await?;
        Ok(piece.map(|piece| self.lent.lend(piece)))
    }

    /// Waits until the engine has taken most of what it was given.
    ///
    /// While its own pipe to the engine is full, Pingora 0.9.1 polls neither the client nor us: so it is never filled. That a
    /// client of HTTP/1 leaves with bytes of its body unread is seen only after them.
    async fn room(&mut self) -> Result<()> {
        let Self { real, clock, lent, .. } = self;
        let real = real.as_mut().expect("the real session is there until the drop");
        let http2 = real.is_http2();
        tokio::select! {
            biased;
            () = poll_fn(|cx| lent.poll_room(cx)) => Ok(()),
            gone = real.read_body_or_idle(true), if http2 => gone.map(|_| ()),
            limit = poll_fn(|cx| clock.poll(cx)) => Err(Error::new(limit)),
            cut = cut(self.is_cut) => Err(cut),
        }
    }

    async fn piece(&mut self, silence: Duration, most: u64) -> Result<Option<Bytes>> {
        let Self { real, clock, .. } = self;
        let real = real.as_mut().expect("the real session is there until the drop");
        if is_answered(real) {
            return tokio::select! {
                biased;
                piece = real.read_body_or_idle(false) => piece,
                limit = poll_fn(|cx| clock.poll(cx)) => Err(Error::new(limit)),
            };
        }
        let piece = timeout(silence, real.read_body_or_idle(false)).await.map_err(|_| Error::new_down(BODY_SILENT))?;
        clock.sent();
        if real.body_bytes_read() as u64 > most { Err(Error::new_down(BODY_TOO_LARGE)) } else { piece }
    }

    /// Waits for the client to go, for the engine's time to be over, or for another server, if no answer has begun.
    ///
    /// What an HTTP/1 client sends after its request, such as its next one, Pingora takes for an error. Here it is dropped,
    /// and the connection ends with the answer, so that the client sends it again. The end of its connection lies behind its body.
    async fn watch(&mut self) -> Result<Option<Bytes>> {
        let Self { real, clock, handover, .. } = self;
        let real = real.as_mut().expect("the real session is there until the drop");
        let waits = !is_answered(real);
        let shows = real.is_http2() || real.is_body_done();
        loop {
            tokio::select! {
                biased;
                gone = real.read_body_or_idle(true), if shows => match gone {
                    Err(e) if *e.etype() == ErrorType::ConnectError => real.set_keepalive(None),
                    gone => return gone,
                },
                limit = poll_fn(|cx| clock.poll(cx)) => return Err(Error::new(limit)),
                () = poll_fn(|cx| handover.poll(cx)), if waits => return Err(Error::new(MOVED)),
                cut = cut(self.is_cut) => return Err(cut),
            }
        }
    }

    /// Nothing is sent again from now on.
    fn answer_begins(&mut self) {
        if let (Body::Whole(body), true) = (&mut self.body, self.given) {
            *body = Bytes::new(); // a stream may last for long, and the prompt be large
        }
    }

    async fn send(&mut self, tasks: Vec<HttpTask>) -> Result<bool> {
        if self.shared.closing.load(Relaxed) {
            self.real_mut().set_keepalive(None);
        }
        let Self { real, clock, shared, .. } = self;
        let real = real.as_mut().expect("the real session is there until the drop");
        shared.writing.store(true, Relaxed);
        let sent = tokio::select! {
            biased;
            sent = real.response_duplex_vec(tasks) => sent,
            limit = poll_fn(|cx| clock.poll_end(cx)) => return Err(Error::new(limit)),
            never = shared.hold() => match never {},
        };
        shared.writing.store(false, Relaxed);
        sent.map_err(|error| if *error.esource() == ErrorSource::Unset { error.into_down() } else { error })
    }
}

/// Takes the end off the tasks. False if there was none, or if it came with the header.
fn take_end(tasks: &mut Vec<HttpTask>) -> bool {
    let mut ended = false;
    tasks.retain_mut(|task| match task {
        HttpTask::Body(_, end) => {
            ended |= std::mem::take(end);
            true
        }
        HttpTask::Done | HttpTask::Trailer(_) => {
            ended = true;
            false
        }
        _ => true,
    });
    ended
}

#[async_trait]
impl CustomSession for Client {
    // --- the request ---

    // A whole body is given as what `read_body_or_idle` reads, not as the retry buffer, and in one piece: an error while
    // sending the buffer would be final, and while Pingora's pipe is full nobody polls us.
    fn is_body_done(&mut self) -> bool {
        match &self.body {
            Body::Whole(body) => self.given || body.is_empty(),
            Body::Streamed { .. } => self.real_mut().is_body_done(),
        }
    }

    fn is_body_empty(&mut self) -> bool {
        match &self.body {
            Body::Whole(body) => body.is_empty(),
            Body::Streamed { .. } => self.real_mut().is_body_empty(),
        }
    }

    fn retry_buffer_truncated(&self) -> bool {
        false
    }

    fn get_retry_buffer(&self) -> Option<Bytes> {
        None
    }

    /// Pingora calls this once an attempt, right after the request's header went out.
    fn enable_retry_buffering(&mut self) {
        self.given = false;
        self.clock.sent();
    }

    async fn read_body_or_idle(&mut self, done: bool) -> Result<Option<Bytes>> {
        if done || self.is_body_done() {
            return self.watch().await;
        }
        match &self.body {
            Body::Whole(body) => {
                self.given = true;
                let body = body.clone();
                Ok(Some(match self.shared.cork.lock().take() {
                    Some(cork) => cork.before(body),
                    None => body,
                }))
            }
            Body::Streamed { silence, most } => self.streamed(*silence, *most).await,
        }
    }

    async fn read_body_bytes(&mut self) -> Result<Option<Bytes>> {
        match self.body {
            Body::Whole(_) => Ok(None),
            Body::Streamed { .. } => self.real_mut().read_request_body().await,
        }
    }

    async fn drain_request_body(&mut self) -> Result<()> {
        match self.body {
            Body::Whole(_) => Ok(()),
            Body::Streamed { .. } => self.real_mut().drain_request_body().await,
        }
    }

    fn body_bytes_read(&self) -> usize {
        self.real().body_bytes_read()
    }

    // --- the response ---

    async fn response_duplex_vec(&mut self, mut tasks: Vec<HttpTask>) -> Result<bool> {
        match tasks.first() {
            Some(HttpTask::Header(header, _)) if header.status.is_informational() => return self.send(tasks).await,
            // What is buffered before the failure still reaches the client.
            Some(HttpTask::Failed(_)) if tasks.len() == 1 => tasks.insert(0, HttpTask::Body(None, false)),
            _ => self.answer_begins(),
        }
        let cut = self.shared.unfinished.load(Relaxed) && take_end(&mut tasks);
        let done = if tasks.is_empty() { false } else { self.send(tasks).await? };
        self.clock.heard();
        if cut { Err(Error::new_up(UNFINISHED)) } else { Ok(done) }
    }

    async fn write_response_header(&mut self, header: Box<ResponseHeader>, _: bool) -> Result<()> {
        self.real_mut().write_response_header(header).await
    }

    async fn write_response_header_ref(&mut self, header: &ResponseHeader, _: bool) -> Result<()> {
        self.real_mut().write_response_header_ref(header).await
    }

    async fn write_body(&mut self, data: Bytes, end: bool) -> Result<()> {
        self.real_mut().write_response_body(data, end).await
    }

    async fn write_trailers(&mut self, trailers: HeaderMap) -> Result<()> {
        self.real_mut().write_response_trailers(trailers).await
    }

    async fn finish(&mut self) -> Result<()> {
        self.real_mut().finish_body().await
    }

    async fn finish_custom(&mut self) -> Result<()> {
        Ok(())
    }

    async fn shutdown(&mut self, _: u32, _: &str) {
        self.real_mut().shutdown().await;
    }

    // --- plain delegation ---

    fn req_header(&self) -> &RequestHeader {
        self.real().req_header()
    }

    fn req_header_mut(&mut self) -> &mut RequestHeader {
        self.real_mut().req_header_mut()
    }

    fn response_written(&self) -> Option<&ResponseHeader> {
        self.real().response_written()
    }

    fn body_bytes_sent(&self) -> usize {
        self.real().body_bytes_sent()
    }

    fn request_summary(&self) -> String {
        self.real().request_summary()
    }

    fn digest(&self) -> Option<&Digest> {
        self.real().digest()
    }

    fn digest_mut(&mut self) -> Option<&mut Digest> {
        self.real_mut().digest_mut()
    }

    fn client_addr(&self) -> Option<&SocketAddr> {
        self.real().client_addr()
    }

    fn server_addr(&self) -> Option<&SocketAddr> {
        self.real().server_addr()
    }

    fn pseudo_raw_h1_request_header(&self) -> Bytes {
        self.real().to_h1_raw()
    }

    fn set_read_timeout(&mut self, timeout: Option<Duration>) {
        self.real_mut().set_read_timeout(timeout);
    }

    fn get_read_timeout(&self) -> Option<Duration> {
        self.real().get_read_timeout()
    }

    fn set_write_timeout(&mut self, timeout: Option<Duration>) {
        self.real_mut().set_write_timeout(timeout);
    }

    fn get_write_timeout(&self) -> Option<Duration> {
        self.real().get_write_timeout()
    }

    fn set_total_drain_timeout(&mut self, timeout: Option<Duration>) {
        self.real_mut().set_total_drain_timeout(timeout);
    }

    fn get_total_drain_timeout(&self) -> Option<Duration> {
        self.real().get_total_drain_timeout()
    }

    no_custom_messages!();
}
