//! Probes, metrics, status and changes, on listeners of their own.

mod purge;
mod servers;
pub mod status;

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use async_trait::async_trait;
use bytes::Bytes;
use http::header::{ALLOW, AUTHORIZATION, CONTENT_LENGTH, CONTENT_TYPE, EXPECT, WWW_AUTHENTICATE};
use http::{HeaderMap, Method, StatusCode};
use pingora::apps::{HttpPersistentSettings, HttpServerApp, ReusedHttpStream};
use pingora::http::{RequestHeader, ResponseHeader};
use pingora::protocols::http::ServerSession;
use pingora::server::ShutdownWatch;
use serde_json::{Value, json};
use tokio::time::timeout;

use crate::access::key;
use crate::daemon::connection;
use crate::daemon::reload::{Reloaded, Reloader};
use crate::daemon::upgrade::{NotUpgraded, Successor, Upgrader};
use crate::live::Current;
use crate::observe::Observer;

/// Where the servers are, by pool and name.
const SERVERS: &str = "/servers/";
/// How long a caller may take to send a body that nobody reads.
const DRAIN: Duration = Duration::from_secs(2);
/// How long a caller may take to send a body that is read, in all.
const SLOWEST: Duration = Duration::from_secs(5);
/// The longest body that is read, in bytes.
const LONGEST: usize = 4096;

/// Answers the operator's tools.
pub struct Admin {
    current: Arc<Current>,
    observer: Arc<Observer>,
    reloader: Arc<Reloader>,
    upgrader: Arc<Upgrader>,
    started: SystemTime,
    /// Whether callers come over a unix socket, whose file says who may.
    unix: bool,
}

/// What a caller is told.
struct Answer {
    status: StatusCode,
    kind: &'static str,
    body: Bytes,
    more: Option<(http::HeaderName, &'static str)>,
}

// === impl Admin ===

impl Admin {
    /// For one listener, a `unix` one or not.
    #[must_use]
    pub fn new(
        current: Arc<Current>,
        observer: Arc<Observer>,
        reloader: Arc<Reloader>,
        upgrader: Arc<Upgrader>,
        unix: bool,
    ) -> Self {
        Self { current, observer, reloader, upgrader, started: SystemTime::now(), unix }
    }

    async fn answer(&self, request: &RequestHeader, session: &mut ServerSession) -> Answer {
        let path = request.uri.path();
        if matches!(path, "/reload" | "/upgrade" | "/cache/purge") || path.starts_with(SERVERS) {
            return self.change(request, session).await.unwrap_or_else(|refused| refused);
        }
        let read = matches!(request.method, Method::GET | Method::HEAD);
        match path {
            "/livez" | "/readyz" | "/startupz" | "/metrics" | "/status" if !read => Answer::wrong_method("GET, HEAD"),
            "/livez" => Answer::json(StatusCode::OK, &json!({"status": "ok"})),
            "/readyz" => self.readiness(),
            "/startupz" => {
                let probed = self.current.live().is_probed();
                let said = if probed { "ok" } else { "the first round of health checks is not over" };
                Answer::json(ok_if(probed), &json!({"status": said}))
            }
            "/metrics" => self.metrics(),
            "/status" => Answer::json(
                StatusCode::OK,
                &status::status(&self.current, self.started, &self.reloader.last(), self.upgrader.former()),
            ),
            _ => Answer::fault(StatusCode::NOT_FOUND, "nothing is served here"),
        }
    }

    fn readiness(&self) -> Answer {
        let readiness = self.current.readiness();
        let (ready, reasons) = (readiness.is_ready(), &readiness.reasons);
        let unusable: Vec<&str> = readiness.unusable.iter().map(AsRef::as_ref).collect();
        Answer::json(
            ok_if(ready),
            &json!({"ready": ready, "reasons": reasons, "pools_without_a_usable_server": unusable}),
        )
    }

    fn metrics(&self) -> Answer {
        let live = self.current.live();
        let clients = &self.current.clients;
        let (servers, queues) = (status::gauged(&live), status::queued(&live));
        let (connected, cache) = ((clients.connected(), clients.refused()), self.current.cached());
        let text = self.observer.metrics.text(connected, servers, queues, cache);
        self.current.forget(&self.observer.metrics); // after it was told once more
        match text {
            Ok(text) => {
                let kind = "text/plain; version=0.0.4; charset=utf-8";
                Answer { status: StatusCode::OK, kind, body: text.into(), more: None }
            }
            Err(e) => Answer::fault(StatusCode::INTERNAL_SERVER_ERROR, &e.to_string()),
        }
    }

    /// Does what a call that changes something asks for, if it may.
    async fn change(&self, request: &RequestHeader, session: &mut ServerSession) -> Result<Answer, Answer> {
        if request.method != Method::POST {
            return Err(Answer::wrong_method("POST"));
        }
        self.permit(&request.headers)?;
        match request.uri.path() {
            "/reload" => Ok(self.reload().await),
            "/upgrade" => Ok(self.upgrade().await),
            "/cache/purge" => self.purge(session).await,
            server => self.order(server.strip_prefix(SERVERS).unwrap_or_default(), session).await,
        }
    }

    async fn reload(&self) -> Answer {
        match self.reloader.reload().await {
            Ok(Reloaded { changes, upgrade_needed }) => {
                let answer = json!({"reloaded": true, "changes": changes, "upgrade_needed": upgrade_needed});
                Answer::json(StatusCode::OK, &answer)
            }
            Err(faults) => Answer::json(StatusCode::BAD_REQUEST, &json!({"reloaded": false, "faults": faults})),
        }
    }

    async fn upgrade(&self) -> Answer {
        // Whether the caller stays to hear of it or not.
        let upgrader = self.upgrader.clone();
        match tokio::spawn(async move { upgrader.upgrade().await }).await {
            Ok(Ok(Successor { pid, version })) => {
                Answer::json(StatusCode::OK, &json!({"upgraded": true, "pid": pid, "version": version}))
            }
            Ok(Err(why)) => {
                let status = match why {
                    NotUpgraded::UnderWay => StatusCode::CONFLICT,
                    NotUpgraded::Stopping => StatusCode::SERVICE_UNAVAILABLE,
                    NotUpgraded::Failed(_) => StatusCode::INTERNAL_SERVER_ERROR,
                };
                let why = format!("not upgraded, and the process before serves on: {why}");
                Answer::json(status, &json!({"upgraded": false, "error": why}))
            }
            Err(e) => Answer::fault(StatusCode::INTERNAL_SERVER_ERROR, &e.to_string()),
        }
    }

    /// Throws kept answers out: those of a model, or all.
    async fn purge(&self, session: &mut ServerSession) -> Result<Answer, Answer> {
        let model = purge::read(&body(session).await?).map_err(|why| Answer::fault(StatusCode::BAD_REQUEST, &why))?;
        let purged = self.current.purge(model.as_deref());
        let known = |model: &String| purge::known(&self.current.live().plan, model);
        if let Some(unknown) = model.as_ref().filter(|_| purged == 0).map(known).and_then(Result::err) {
            return Err(Answer::fault(StatusCode::NOT_FOUND, &unknown)); // one that has gone may have left answers
        }
        log::info!("purged {purged} kept answers of {}", model.as_deref().unwrap_or("all models"));
        Ok(Answer::json(StatusCode::OK, &json!({"purged": purged})))
    }

    /// Has a server do as the body says.
    async fn order(&self, path: &str, session: &mut ServerSession) -> Result<Answer, Answer> {
        let word = servers::read(&body(session).await?).map_err(|why| Answer::fault(StatusCode::BAD_REQUEST, &why))?;
        if self.upgrader.is_under_way() || self.upgrader.successor().is_some() {
            let why = "an upgrade is under way, and the new process would not know of this: ask again in a moment";
            return Err(Answer::fault(StatusCode::CONFLICT, why));
        }
        let live = self.current.live(); // after the body, which may have taken its time
        let (pool, place) = servers::find(&live, path).map_err(|why| Answer::fault(StatusCode::NOT_FOUND, &why))?;
        servers::order(pool, place, word);
        Ok(Answer::json(StatusCode::OK, &status::of_server(pool, place)))
    }

    /// Whether a call may change something; if not, what it is answered.
    fn permit(&self, headers: &HeaderMap) -> Result<(), Answer> {
        if self.unix {
            return Ok(());
        }
        let Some(token) = self.current.live().plan.admin.token else {
            let how = "no token is configured: set [admin] token_sha256, or use a unix socket";
            return Err(Answer::fault(StatusCode::FORBIDDEN, how));
        };
        let shown = headers.get(AUTHORIZATION).and_then(key::bearer);
        if shown.is_some_and(|shown| key::digest(shown) == token) {
            return Ok(());
        }
        let refused = Answer::fault(StatusCode::UNAUTHORIZED, "send the admin token as `Authorization: Bearer …`");
        Err(Answer { more: Some((WWW_AUTHENTICATE, "Bearer")), ..refused })
    }
}

#[async_trait]
impl HttpServerApp for Admin {
    async fn process_new_http(
        self: &Arc<Self>,
        mut session: ServerSession,
        shutdown: &ShutdownWatch,
    ) -> Option<ReusedHttpStream> {
        if !session.read_request().await.ok()? {
            return None;
        }
        connection::header_complete();
        let request = session.req_header().clone();
        let answer = self.answer(&request, &mut session).await;
        let slow = answer.status == StatusCode::REQUEST_TIMEOUT; // it had its time
        if *shutdown.borrow() || slow || timeout(DRAIN, session.drain_request_body()).await.is_err() {
            session.set_keepalive(None);
        }
        answer.write(&mut session).await.ok()?;
        let settings = HttpPersistentSettings::for_session(&session);
        let stream = session.finish().await.ok()??;
        Some(ReusedHttpStream::from_reusable_stream(stream, settings))
    }
}

/// The whole body of a request.
async fn body(session: &mut ServerSession) -> Result<Vec<u8>, Answer> {
    let mut body = Vec::new();
    let reading = async {
        if session.req_header().headers.contains_key(EXPECT) {
            session.write_continue_response().await?;
        }
        while body.len() <= LONGEST
            && let Some(piece) = session.read_request_body().await?
        {
            body.extend_from_slice(&piece);
        }
        Ok::<(), Box<pingora::Error>>(())
    };
    let read = timeout(SLOWEST, reading).await;
    if !matches!(read, Ok(Ok(()))) {
        session.set_keepalive(None); // where the next request would begin, nobody knows
    }
    let (status, why) = match read {
        Ok(Ok(())) if body.len() <= LONGEST => return Ok(body),
        Ok(Ok(())) => (StatusCode::PAYLOAD_TOO_LARGE, format!("the body is larger than {LONGEST} bytes")),
        Ok(Err(_)) => (StatusCode::BAD_REQUEST, "the body breaks off or is malformed".to_owned()),
        Err(_) => (StatusCode::REQUEST_TIMEOUT, format!("the body was not here in {} s", SLOWEST.as_secs())),
    };
    Err(Answer::fault(status, &why))
}

// === impl Answer ===

impl Answer {
    fn json(status: StatusCode, value: &Value) -> Self {
        Self { status, kind: "application/json", body: format!("{value:#}\n").into(), more: None }
    }

    fn fault(status: StatusCode, message: &str) -> Self {
        Self::json(status, &json!({"error": message}))
    }

    fn wrong_method(allow: &'static str) -> Self {
        let answer = Self::fault(StatusCode::METHOD_NOT_ALLOWED, "this path is not served with this method");
        Self { more: Some((ALLOW, allow)), ..answer }
    }

    async fn write(self, session: &mut ServerSession) -> pingora::Result<()> {
        let mut header = ResponseHeader::build(self.status, Some(4))?;
        header.insert_header(CONTENT_TYPE, self.kind)?;
        header.insert_header(CONTENT_LENGTH, self.body.len())?;
        if let Some((name, value)) = self.more {
            header.insert_header(name, value)?;
        }
        let body = if session.req_header().method == Method::HEAD { Bytes::new() } else { self.body };
        session.write_response_header(Box::new(header)).await?;
        session.write_response_body(body, true).await
    }
}

/// What there is, where something else was named.
fn listed<'n>(names: impl Iterator<Item = &'n str>) -> String {
    let names: Vec<&str> = names.collect();
    if names.is_empty() { "none".to_owned() } else { names.join(", ") }
}

fn ok_if(good: bool) -> StatusCode {
    if good { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE }
}
