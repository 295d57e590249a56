//! HTTP on one connection: requests read whole, replies written at their pace, failures made as they are ordered.

use super::failure::Failure;
use super::metrics::Flight;
use super::pace::Pace;
use super::reply::{Body, Form, Refusal, Reply};
use super::{Engine, endpoint};
use async_trait::async_trait;
use bytes::{Bytes, BytesMut};
use http::{Version, header};
use pingora::apps::{HttpPersistentSettings, HttpServerApp, HttpServerOptions, ReusedHttpStream, ServerApp};
use pingora::http::ResponseHeader;
use pingora::protocols::http::{HttpTask, ServerSession};
use pingora::protocols::l4::stream::Stream;
use pingora::server::ShutdownWatch;
use pingora::{Error, ErrorType, Result};
use socket2::Socket;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;
use tokio::time::{Instant, sleep, sleep_until, timeout};

/// The longest request body that is read.
pub(super) const MAX_BODY: usize = 64 << 20;

/// How long the rest of a refused body is read and dropped: closing on it at once would reset the
/// connection before the client has read why.
const LINGER: Duration = Duration::from_secs(5);

/// How long the last bytes before a reset get to leave: the h2 crate drops what still waits on a stream that is reset.
const LEAVE: Duration = Duration::from_millis(50);

/// The error that ends a request which is to fail.
const REHEARSED: ErrorType = ErrorType::new("Rehearsed");

/// One connection of an engine.
pub(super) struct Connection {
    engine: Arc<Engine>,
    /// A second handle on the socket, to reset it.
    socket: Option<Socket>,
}

/// When a reply is where, and what counts that.
struct Course<'e> {
    start: Instant,
    pace: Pace,
    flight: Option<Flight<'e>>,
}

/// How an answer ends that is not whole.
#[derive(Clone, Copy)]
enum Early {
    /// With silence.
    Stall,
    /// With the connection's end, or with the stream's reset.
    Close,
}

// === impl Connection ===

impl Connection {
    /// Serves a connection until the client is done, or the engine is over.
    pub(super) async fn serve(
        engine: Arc<Engine>,
        stream: Stream,
        socket: Option<Socket>,
        mut shutdown: watch::Receiver<bool>,
    ) {
        let connection = Arc::new(Self { engine, socket });
        // Pingora's HTTP/2 loop waits for a change on its own receiver: one that has seen nothing yet.
        let unseen = shutdown.clone();
        tokio::select! {
            _ = ServerApp::process_new(&connection, Box::new(stream), &unseen) => {}
            _ = shutdown.wait_for(|over| *over) => {}
        }
    }

    /// One request and its whole answer.
    async fn exchange(&self, session: &mut ServerSession) -> Result<()> {
        let body = read_body(session).await?;
        let head = session.req_header();
        let (method, path) = (head.method.as_str(), head.uri.path());
        let form = Form::of(path);
        let refused = |refusal: Refusal| refusal.reply(form);
        let Some(body) = body else {
            self.play(session, refused(Refusal::too_large(MAX_BODY)), 0, None).await?;
            if timeout(LINGER, session.drain_request_body()).await.is_err() {
                log::debug!("engine: a refused body did not end");
            }
            return Ok(());
        };
        let Some(endpoint) = endpoint(method, path) else {
            let reply = self.engine.look_up(method, path).unwrap_or_else(refused);
            return self.play(session, reply, 0, None).await;
        };
        let serial = self.engine.serial();
        let failure = self.engine.options.failure(serial);
        let reply = match failure {
            Some(Failure::Status(status)) => refused(Refusal::rehearsed(status)),
            _ => self.engine.answer(endpoint, &body, serial).unwrap_or_else(refused),
        };
        self.play(session, reply, serial, failure).await
    }

    /// Writes a reply at its pace, as far as it is to come, and counts it.
    async fn play(
        &self,
        session: &mut ServerSession,
        mut reply: Reply,
        serial: u64,
        failure: Option<Failure>,
    ) -> Result<()> {
        let flight = reply.cost.take().map(|cost| self.engine.metrics.begin(cost));
        let pace = Pace::new(&self.engine.options, serial);
        let mut course = Course { start: Instant::now(), pace, flight };
        let done = match failure {
            Some(Failure::Reset) => self.reset(session).await,
            Some(Failure::Stall) => silence(session).await,
            _ => self.write(session, reply, &mut course, failure).await,
        };
        if let Some(flight) = course.flight {
            flight.end(done.is_ok(), course.start.elapsed());
        }
        done
    }

    async fn write(
        &self,
        session: &mut ServerSession,
        reply: Reply,
        course: &mut Course<'_>,
        failure: Option<Failure>,
    ) -> Result<()> {
        let cut = failure.and_then(Failure::cut);
        let mut header = ResponseHeader::build(reply.status, Some(6))?;
        header.insert_header("x-engine", self.engine.options.name.as_str())?;
        if let Some(kind) = reply.content_type {
            header.insert_header(header::CONTENT_TYPE, kind)?;
        }
        if matches!(reply.status, 429 | 503) {
            header.insert_header(header::RETRY_AFTER, 1)?;
        }
        match reply.body {
            Body::Whole(piece) => {
                course.reach(session, piece.tokens.min(1)).await?;
                course.reach(session, piece.tokens).await?;
                header.insert_header(header::CONTENT_LENGTH, piece.bytes.len())?;
                session.write_response_header(Box::new(header)).await?;
                if let Some((_, end)) = cut {
                    return end.make(session, piece.bytes.slice(..piece.bytes.len() / 2)).await;
                }
                session.write_response_body(piece.bytes, true).await
            }
            Body::Stream(pieces) => {
                header.insert_header(header::CACHE_CONTROL, "no-cache")?;
                // Pingora drops it for HTTP/2; HTTP/1.0 knows no chunks: there the close is the end.
                if session.req_header().version == Version::HTTP_11 {
                    header.insert_header(header::TRANSFER_ENCODING, "chunked")?;
                }
                session.write_response_header(Box::new(header)).await?;
                for (sent, piece) in pieces.enumerate() {
                    if let Some((_, end)) = cut.filter(|(events, _)| *events == sent) {
                        return end.make(session, Bytes::new()).await;
                    }
                    course.reach(session, piece.tokens).await?;
                    session.write_response_body(piece.bytes, false).await?;
                }
                session.write_response_body(Bytes::new(), true).await
            }
        }
    }

    /// Resets instead of answering: under HTTP/2 the stream alone, for other prompts share the connection.
    async fn reset(&self, session: &mut ServerSession) -> Result<()> {
        if session.is_http2() {
            session.shutdown().await;
        } else if let Some(socket) = &self.socket {
            // A close after no time at all is a reset.
            socket
                .set_linger(Some(Duration::ZERO))
                .map_err(|error| Error::because(ErrorType::InternalError, "SO_LINGER", error))?;
        }
        Error::e_explain(REHEARSED, "a reset")
    }
}

#[async_trait]
impl HttpServerApp for Connection {
    async fn process_new_http(
        self: &Arc<Self>,
        mut session: ServerSession,
        _shutdown: &ShutdownWatch,
    ) -> Option<ReusedHttpStream> {
        match session.read_request().await {
            Ok(true) => {}
            Ok(false) => return None,
            Err(error) => {
                log::debug!("engine: {error}");
                session.respond_error(400).await.ok()?;
                return None;
            }
        }
        if let Err(error) = self.exchange(&mut session).await {
            log::debug!("engine: {}: {error}", session.request_summary());
            return None;
        }
        let settings = HttpPersistentSettings::for_session(&session);
        let stream = session.finish().await.ok().flatten()?;
        Some(ReusedHttpStream::from_reusable_stream(stream, settings))
    }

    fn server_options(&self) -> Option<&HttpServerOptions> {
        Some(&self.engine.http)
    }
}

// === impl Course ===

impl Course<'_> {
    /// Waits until so many tokens are made.
    async fn reach(&mut self, session: &mut ServerSession, tokens: usize) -> Result<()> {
        wait(session, self.start + self.pace.due(tokens)).await?;
        if let Some(flight) = &mut self.flight {
            flight.advance(tokens, self.start.elapsed());
        }
        Ok(())
    }
}

// === impl Early ===

impl Early {
    /// Sends the last bytes, and ends so.
    async fn make(self, session: &mut ServerSession, last: Bytes) -> Result<()> {
        // Pingora flushes a part of a body that has a length only before it reports a failed task.
        let failed = HttpTask::Failed(Error::explain(REHEARSED, "an answer cut short"));
        let failed = session.response_duplex_vec(vec![HttpTask::Body(Some(last), false), failed]).await;
        match self {
            Self::Stall => silence(session).await,
            Self::Close => {
                if session.is_http2() {
                    sleep(LEAVE).await;
                }
                session.shutdown().await;
                failed.map(drop)
            }
        }
    }
}

// === impl Failure ===

impl Failure {
    /// After how many events, and how, an answer ends early.
    fn cut(self) -> Option<(usize, Early)> {
        match self {
            Self::StallAfter(events) => Some((events, Early::Stall)),
            Self::TruncateAfter(events) => Some((events, Early::Close)),
            _ => None,
        }
    }
}

/// The whole request body, or nothing if it is longer than [`MAX_BODY`].
async fn read_body(session: &mut ServerSession) -> Result<Option<Bytes>> {
    let announced = session.get_header(header::CONTENT_LENGTH);
    let announced = announced.and_then(|value| value.to_str().ok()?.parse::<usize>().ok());
    if announced.is_some_and(|length| length > MAX_BODY) {
        return Ok(None);
    }
    if session.get_header_bytes(header::EXPECT).eq_ignore_ascii_case(b"100-continue") {
        session.write_continue_response().await?;
    }
    let mut body = BytesMut::new();
    while let Some(piece) = session.read_request_body().await? {
        if body.len() + piece.len() > MAX_BODY {
            return Ok(None);
        }
        body.extend_from_slice(&piece);
    }
    Ok(Some(body.freeze()))
}

/// Waits until then, or fails as soon as the client has gone.
async fn wait(session: &mut ServerSession, until: Instant) -> Result<()> {
    if until <= Instant::now() {
        return Ok(());
    }
    tokio::select! {
        () = sleep_until(until) => Ok(()),
        gone = silence(session) => gone,
    }
}

/// Says nothing until the client has gone, which is an error.
async fn silence(session: &mut ServerSession) -> Result<()> {
    session.read_body_or_idle(true).await?;
    Error::e_explain(ErrorType::ConnectionClosed, "the client went on before its answer")
}
