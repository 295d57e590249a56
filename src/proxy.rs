//! The way of a request: the only `impl ProxyHttp`, its phases in the order in which they run.
//!
//! A phase asks the domain and acts on the verdict; it holds no policy of its own. Whatever goes wrong anywhere reaches
//! `fail_to_proxy`, the one place that tells the client.

pub mod admission;
pub mod body;
pub mod caching;
pub mod client;
pub mod clock;
pub mod cork;
pub mod ending;
pub mod exchange;
pub mod headers;
pub mod listing;
mod messages;
pub mod peer;
pub mod rejection;
mod tape;
mod waiting;

use std::os::fd::RawFd;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Arc, OnceLock, Weak};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use bytes::Bytes;
use http::header::{CONTENT_ENCODING, CONTENT_LENGTH, CONTENT_TYPE, TRANSFER_ENCODING};
use http::{StatusCode, Version};
use pingora::http::{RequestHeader, ResponseHeader};
use pingora::modules::http::HttpModules;
use pingora::protocols::Digest;
use pingora::proxy::{FailToProxy, ProxyHttp, ProxyWarnLogContext, Session, Subrequest};
use pingora::upstreams::peer::HttpPeer;
use pingora::{Error, ErrorType, Result};

use crate::cache::flight::Flights;
use crate::live::{Current, Stage};
use crate::observe::Observer;
use crate::pool::Pool;
use crate::pool::eject::Change;
use crate::pool::retry::Failure;
use crate::pool::settings::Protocol;
use crate::pool::way::{Goes, News, Outcome};
use crate::prompt::{Dialect, LastEvent};
use caching::{Flight, Story};
use cork::Cork;
use ending::End;
use exchange::Exchange;
use headers::Identity;
use rejection::{Form, Rejection};

/// How long a client that reads slowly is waited for when its stream breaks off.
const LAST_WORD: Duration = Duration::from_secs(1);
/// How long what is queued on an HTTP/2 stream has before the reset, which would discard it.
const BEFORE_RESET: Duration = Duration::from_millis(20);

/// The proxy: every client connection's requests go through here.
pub struct Proxy {
    current: Arc<Current>,
    observer: Arc<Observer>,
    connection: Connection,
    /// What is being computed for all who ask.
    flights: Arc<Flights<ResponseHeader, Story>>,
    /// Pingora's proxy around this one, through which flights go. Set once it is there.
    itself: Arc<OnceLock<Weak<dyn Subrequest + Send + Sync>>>,
}

/// What the proxy has to do with the client's connection that a request came on.
#[derive(Debug, Clone, Copy)]
pub struct Connection {
    /// Told whenever a request's header is complete.
    pub header_complete: fn(),
    /// Whether what is in flight on it is to end now. Whoever waits is woken when that changes.
    pub is_cut: fn() -> bool,
}

// === impl Proxy ===

impl Proxy {
    /// A proxy for what is in force, which tells `observer` of each request.
    #[must_use]
    pub fn new(current: Arc<Current>, observer: Arc<Observer>, connection: Connection) -> Self {
        let flights: Arc<Flights<ResponseHeader, Story>> = Arc::default();
        current.attach(flights.clone());
        Self { current, observer, connection, flights, itself: Arc::default() }
    }

    /// Where Pingora's proxy around this one is to be named.
    #[must_use]
    pub fn itself(&self) -> Arc<OnceLock<Weak<dyn Subrequest + Send + Sync>>> {
        self.itself.clone()
    }

    /// Says what changed for a server by the attempt that has just ended.
    fn tell(&self, x: &mut Exchange) {
        if let (Some(news), Some(pool)) = (x.way.news.take(), &x.admitted.pool) {
            announce(&self.observer, pool, &news);
        }
    }

    /// Answers a rejection where nothing was answered yet. Whether the client's connection can live on.
    async fn refuse(&self, session: &mut Session, x: &mut Exchange, rejection: &Rejection) -> Result<bool> {
        // Once an engine is looked to, Pingora 0.9.1 closes the connection, whatever `FailToProxy` says.
        let closes = rejection.closes() || x.sent.is_some() || self.current.is_closing();
        if closes {
            session.set_keepalive(None);
        }
        let form = Form::of(x.answer.dialect, session.req_header().headers.get(CONTENT_TYPE));
        let (mut header, body) = rejection.response(form)?;
        caching::tell(&mut header, x.cached)?;
        if let Some(identity) = x.identity.as_ref().filter(|_| x.flight.is_none()) {
            headers::name_request(&mut header, identity, x.answer.dialect)?;
        }
        x.answer.decided = Some(Instant::now());
        Ok(body::answer(session, header, body).await? && !closes)
    }

    /// Ends an answer that has begun so that nobody takes it for whole.
    async fn break_off(session: &mut Session, x: &Exchange, rejection: &Rejection, torn: bool) {
        let downstream = &mut session.downstream_session;
        let measured = downstream.response_written().is_some_and(|header| header.headers.contains_key(CONTENT_LENGTH));
        if let Some(last_event) = x.answer.last_event.as_ref().filter(|_| !torn && !measured) {
            let gap: &[u8] = if last_event.is_between_events() { b"" } else { b"\n\n" };
            let event = [gap, &rejection.event(x.answer.dialect)].concat();
            let _ = tokio::time::timeout(LAST_WORD, downstream.write_response_body(event.into(), false)).await;
        }
        if downstream.is_http2() {
            tokio::time::sleep(BEFORE_RESET).await;
        }
        downstream.shutdown().await; // RST_STREAM, or the end of the connection before the last chunk
    }
}

#[async_trait]
impl ProxyHttp for Proxy {
    type CTX = Exchange;

    fn new_ctx(&self) -> Exchange {
        (self.connection.header_complete)();
        Exchange::new(self.current.live(), self.connection.is_cut)
    }

    /// None: the default one, compression, would hold events back.
    fn init_downstream_modules(&self, _: &mut HttpModules) {}

    async fn early_request_filter(&self, session: &mut Session, x: &mut Exchange) -> Result<()> {
        session.set_ignore_info_resp(true);
        if let Some(flight) = Flight::of_session(session) {
            flight.board(x);
            return Ok(());
        }
        if x.live.plan.server.keepalive.is_zero() || self.current.is_closing() {
            session.set_keepalive(None);
        }
        let peer = session.client_addr().and_then(|address| address.as_inet()).map(|address| address.ip());
        let raw = session.as_http1().map(|http1| http1.get_headers_raw_bytes());
        let header = session.req_header_mut();
        x.answer.dialect = Dialect::of(header.uri.path()); // until a route says more
        let identity = x.identity.insert(Identity::of(&header.headers, peer, &x.live.plan.server.trusted_proxies));
        x.way.caller.asker.client = identity.client;
        headers::check(header, raw.as_deref())?;
        headers::to_origin_form(header)?;
        headers::forget_spelling(header);
        Ok(())
    }

    async fn request_filter(&self, session: &mut Session, x: &mut Exchange) -> Result<bool> {
        match x.flight.clone() {
            Some(flight) => flight.open(session, x).map(|()| false),
            None => self.admit(session, x).await,
        }
    }

    async fn proxy_upstream_filter(&self, session: &mut Session, x: &mut Exchange) -> Result<bool> {
        match x.wanted.take() {
            Some(wanted) => self.fly(session, x, wanted).await.map(|()| false),
            None => Ok(true),
        }
    }

    async fn upstream_peer(&self, session: &mut Session, x: &mut Exchange) -> Result<Box<HttpPeer>> {
        if x.way.place().is_some() {
            client::look(session)?; // nobody watched it while the last engine was connected to
        }
        let pool = x.admitted.pool.clone().ok_or(Rejection::Internal)?;
        x.sent.get_or_insert_with(Instant::now);
        match (x.way.go(&pool), &pool.settings.queue) {
            (Goes::On, _) => {}
            (Goes::Waits(ticket), Some(queue)) => {
                let lease = waiting::wait(session, x, queue, ticket).await?;
                x.way.takes(lease);
            }
            (Goes::Full, Some(queue)) => return Err(Rejection::QueueFull(queue.timeout).into()),
            (Goes::Waits(_) | Goes::Full | Goes::Nowhere, _) => return Err(no_server(&pool).into()),
        }
        let lease = x.way.lease().ok_or(Rejection::Internal)?;
        let endpoint = lease.server().endpoint().ok_or(Rejection::Unavailable)?;
        peer::of(&pool.settings, &endpoint, x.way.fresh)
    }

    async fn connected_to_upstream(
        &self,
        _: &mut Session,
        reused: bool,
        _: &HttpPeer,
        _: RawFd,
        digest: Option<&Digest>,
        x: &mut Exchange,
    ) -> Result<()> {
        // A body that streams may be long in coming.
        *x.shared.cork.lock() = digest.filter(|_| x.admitted.body > 0).and_then(Cork::put);
        if let Some(attempt) = x.attempt() {
            self.observer.connected(attempt, reused, &x.live.meters);
        }
        Ok(())
    }

    fn fail_to_connect(&self, _: &mut Session, _: &HttpPeer, x: &mut Exchange, mut e: Box<Error>) -> Box<Error> {
        log_failure(log::Level::Warn, x, &e);
        let ours = *e.root_etype() == ErrorType::SocketError;
        let outcome = if ours { Outcome::NoSocket } else { Outcome::ConnectFailed };
        let again = x.admitted.pool.as_ref().is_some_and(|pool| x.way.fails(Failure::Connect, outcome, pool));
        self.tell(x);
        e.set_retry(again);
        e
    }

    async fn upstream_request_filter(&self, s: &mut Session, to: &mut RequestHeader, x: &mut Exchange) -> Result<()> {
        let (Some(identity), Some(route), Some(pool)) = (&x.identity, &x.admitted.route, &x.admitted.pool) else {
            return Err(Rejection::Internal.into());
        };
        if let (Some(_), Some(place)) = (&x.flight, x.way.place()) {
            headers::readdress(to, route, &pool.settings.path_prefix)?;
            return headers::of_ours(to, identity, &pool.settings.headers, &pool.settings.servers[place].address);
        }
        headers::spell_host(to)?;
        headers::readdress(to, route, &pool.settings.path_prefix)?;
        let client = s.req_header();
        headers::to_engine(to, identity, client.version, &pool.settings.headers, x.admitted.credentials_pass)?;
        match (pool.settings.protocol, x.way.place()) {
            (Protocol::Http2, Some(place)) => headers::to_http2(to, client, &pool.settings.servers[place].address),
            _ => Ok(()),
        }
    }

    async fn upstream_response_filter(&self, _: &mut Session, h: &mut ResponseHeader, x: &mut Exchange) -> Result<()> {
        x.way.hears(); // whatever it is
        if h.status == StatusCode::SWITCHING_PROTOCOLS {
            return Err(Rejection::Unavailable.into()); // nobody asked to switch
        }
        if h.status.is_informational() {
            return Ok(());
        }
        let pool = x.admitted.pool.as_ref();
        let failure = Failure::of_status(h.status.as_u16());
        // The next server is leased by then, so that this answer is the client's where there is none.
        x.way.later = if failure == Some(Failure::Busy) { headers::retry_after(h) } else { None };
        if failure.zip(pool).is_some_and(|(failure, pool)| x.way.fails(failure, Outcome::Refused, pool)) {
            self.tell(x);
            return Err(Error::new_up(ending::REFUSED));
        }
        x.answer.first_byte = Some(Instant::now());
        if h.status == StatusCode::UNAUTHORIZED && pool.is_some_and(|pool| pool.settings.headers.api_key.is_some()) {
            return Err(Rejection::UpstreamCredentials.into());
        }
        if let Some(pool) = &x.admitted.pool {
            let streams = x.admitted.stream == Some(true);
            *x.shared.streams.lock() = x.way.place().filter(|_| streams).map(|place| pool.servers[place].clone());
            x.way.ends(if h.status.is_server_error() { Outcome::ServerError } else { Outcome::Answered }, pool);
        }
        self.tell(x);
        if let Some(flight) = &x.flight {
            // Where only the close of the connection ends it, nobody knows whether it is whole.
            let measured = h.headers.contains_key(CONTENT_LENGTH) || h.headers.contains_key(TRANSFER_ENCODING);
            flight.shared.faulty.store(!measured && h.version < Version::HTTP_2, Relaxed);
            x.tell_story(None);
        }
        let kind = h.headers.get(CONTENT_TYPE).map_or(&b""[..], |value| value.as_bytes());
        if is_event_stream(kind) && !h.headers.contains_key(CONTENT_ENCODING) {
            let last_event = LastEvent::of(x.answer.dialect);
            x.shared.unfinished.store(!last_event.was_seen(), Relaxed);
            x.answer.last_event = Some(last_event);
        }
        Ok(())
    }

    async fn response_filter(&self, s: &mut Session, header: &mut ResponseHeader, x: &mut Exchange) -> Result<()> {
        // HTTP/1.0 knows no chunks: the answer ends with the connection (RFC 9112 §6.1).
        let ends = s.req_header().version < Version::HTTP_11 && header.remove_header(&TRANSFER_ENCODING).is_some();
        x.shared.closing.store(ends || self.current.is_closing(), Relaxed);
        headers::to_client(header)?;
        caching::tell(header, x.cached)?;
        match &x.identity {
            Some(identity) if x.flight.is_none() => headers::name_request(header, identity, x.answer.dialect),
            _ => Ok(()),
        }
    }

    fn response_body_filter(
        &self,
        _: &mut Session,
        body: &mut Option<Bytes>,
        _: bool,
        x: &mut Exchange,
    ) -> Result<Option<Duration>> {
        x.way.hears();
        if let (Some(last_event), Some(bytes)) = (&mut x.answer.last_event, body) {
            last_event.feed(bytes);
            if last_event.has_failed() {
                x.shared.faulty.store(true, Relaxed);
            }
            x.shared.unfinished.store(!last_event.was_seen(), Relaxed);
        }
        Ok(None)
    }

    fn error_while_proxy(
        &self,
        _: &HttpPeer,
        session: &mut Session,
        mut e: Box<Error>,
        x: &mut Exchange,
        reused: bool,
    ) -> Box<Error> {
        let begun = client::is_answered(session.as_downstream());
        let (end, _) = ending::of(&e, begun, &x.live.plan.server);
        let outcome = outcome(&e, end);
        let again = match &x.admitted.pool {
            Some(_) if *e.etype() == ending::REFUSED => true,
            Some(pool) if *e.etype() == ending::MOVED => x.way.moves(pool),
            Some(pool) if !begun => {
                let failure = ending::failure(&mut e, reused, pool.settings.protocol);
                x.way.fails(failure, outcome, pool)
            }
            Some(pool) => {
                x.way.ends(outcome, pool);
                false
            }
            None => false,
        };
        self.tell(x);
        if !matches!(end, End::ClientGone | End::Complete) {
            // That a kept connection ends is an engine's right.
            log_failure(if again { log::Level::Debug } else { log::Level::Warn }, x, &e);
        }
        e.set_retry(again); // always: Pingora panics on what is undecided
        e
    }

    async fn fail_to_proxy(&self, session: &mut Session, e: &Error, x: &mut Exchange) -> FailToProxy {
        let torn = x.shared.writing.load(Relaxed);
        let begun = client::is_answered(session.as_downstream());
        let gone = if begun { None } else { client::look(session).err() };
        client::unwrap(session, &x.shared);
        let (end, rejection) = match ending::of(gone.as_deref().unwrap_or(e), begun, &x.live.plan.server) {
            // It is we who do not listen to the client any more.
            (End::ClientGone, None) if self.current.stage() == Stage::Cut => (End::Error, Some(Rejection::Draining)),
            end => end,
        };
        x.answer.end = end;
        let Some(rejection) = rejection else {
            return FailToProxy { error_code: 0, can_reuse_downstream: false };
        };
        if rejection == Rejection::Internal {
            log::error!("request {}: {e}", x.request_id());
        }
        let error_code = rejection.status().as_u16();
        x.tell_story(Some(&rejection));
        let can_reuse_downstream = if begun {
            Self::break_off(session, x, &rejection, torn).await;
            false
        } else {
            self.refuse(session, x, &rejection).await.unwrap_or(false)
        };
        x.answer.rejection = Some(rejection);
        FailToProxy { error_code, can_reuse_downstream }
    }

    async fn logging(&self, session: &mut Session, _: Option<&Error>, x: &mut Exchange) {
        client::unwrap(session, &x.shared);
        if let (End::Complete, Some(pool)) = (x.answer.end, &x.admitted.pool) {
            x.way.is_whole(pool);
        }
        if x.recorded {
            self.observer.observe(&x.record(session), &x.live.meters);
        }
        if let (Some(_), Some([pool, _])) = (&x.flight, x.attempt()) {
            self.observer.computed(pool, &x.attempts(), &x.live.meters);
        }
    }

    /// All that is worth a line was logged where it happened.
    fn suppress_error_log(&self, _: &Session, _: &Exchange, _: &Error) -> bool {
        true
    }

    fn suppress_proxy_warn_log(&self, _: &Session, _: &Exchange, _: &Error, _: ProxyWarnLogContext) -> bool {
        true
    }
}

/// Says what changed for a server. Those who wait have it when its ejection is over: its trial may be one of them.
pub fn announce(observer: &Observer, pool: &Arc<Pool>, news: &News) {
    observer.announce(pool, news);
    if let Change::Ejected(lasts) = news.change {
        tokio::spawn(serve_after(lasts, pool.clone()));
    }
}

async fn serve_after(lasts: Duration, pool: Arc<Pool>) {
    tokio::time::sleep(lasts).await;
    pool.serve(Instant::now());
}

/// No server is usable; worth another try when the first comes back.
fn no_server(pool: &Pool) -> Rejection {
    Rejection::NoServer(pool.back_in().unwrap_or(pool.settings.health.interval))
}

fn is_event_stream(kind: &[u8]) -> bool {
    const KIND: &[u8] = b"text/event-stream";
    kind.get(..KIND.len()).is_some_and(|kind| kind.eq_ignore_ascii_case(KIND))
}

/// Says which server failed a request, and how.
fn log_failure(level: log::Level, x: &Exchange, e: &Error) {
    if let Some(pool) = &x.admitted.pool {
        let (name, server) = (&pool.settings.name, x.way.server(pool));
        log::log!(level, "request {}: server {name}/{server} failed: {}", x.request_id(), ending::in_words(e));
    }
    // Pingora 0.9.1 quotes a header that it cannot read.
    if *e.root_etype() != ErrorType::InvalidHTTPHeader {
        log::debug!("request {}: {e}", x.request_id());
    }
}

fn outcome(e: &Error, end: End) -> Outcome {
    match end {
        _ if rejection::carried(e) == Some(&Rejection::UpstreamCredentials) => Outcome::Answered,
        End::ClientGone | End::Complete => Outcome::Cancelled,
        End::UpstreamTruncated => Outcome::Truncated,
        End::Error if ending::is_timeout(e.etype()) => Outcome::TimedOut,
        End::Error => Outcome::Reset,
    }
}
