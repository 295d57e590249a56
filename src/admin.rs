//! Probes, metrics, status and changes, on listeners of their own.

pub mod status;

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use async_trait::async_trait;
use bytes::Bytes;
use http::header::{ALLOW, AUTHORIZATION, CONTENT_LENGTH, CONTENT_TYPE, WWW_AUTHENTICATE};
use http::{HeaderMap, Method, StatusCode};
use pingora::Result;
use pingora::apps::{HttpPersistentSettings, HttpServerApp, ReusedHttpStream};
use pingora::http::ResponseHeader;
use pingora::protocols::http::ServerSession;
use pingora::server::ShutdownWatch;
use serde_json::{Value, json};

use crate::access::key;
use crate::daemon::connection;
use crate::daemon::reload::Reloader;
use crate::live::Current;
use crate::observe::Observer;

/// How long a caller may take to send a body that nobody reads.
const DRAIN: Duration = Duration::from_secs(2);

/// Answers the operator's tools.
pub struct Admin {
    current: Arc<Current>,
    observer: Arc<Observer>,
    reloader: Arc<Reloader>,
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
    pub fn new(current: Arc<Current>, observer: Arc<Observer>, reloader: Arc<Reloader>, unix: bool) -> Self {
        Self { current, observer, reloader, started: SystemTime::now(), unix }
    }

    async fn answer(&self, method: &Method, path: &str, headers: &HeaderMap) -> Answer {
        let read = matches!(*method, Method::GET | Method::HEAD);
        match path {
            "/livez" | "/readyz" | "/startupz" | "/metrics" | "/status" if !read => Answer::wrong_method("GET, HEAD"),
            "/reload" if *method != Method::POST => Answer::wrong_method("POST"),
            "/livez" => Answer::json(StatusCode::OK, &json!({"status": "ok"})),
            "/readyz" => self.readiness(),
            "/startupz" => {
                let probed = self.current.live().is_probed();
                let said = if probed { "ok" } else { "the first round of health checks is not over" };
                Answer::json(ok_if(probed), &json!({"status": said}))
            }
            "/metrics" => self.metrics(),
            "/status" => {
                Answer::json(StatusCode::OK, &status::status(&self.current.live(), self.started, &self.reloader.last()))
            }
            "/reload" => match self.permitted(headers) {
                Some(refused) => refused,
                None => self.reload().await,
            },
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
        match self.observer.metrics.text(clients.connected(), clients.refused(), servers, queues) {
            Ok(text) => {
                let kind = "text/plain; version=0.0.4; charset=utf-8";
                Answer { status: StatusCode::OK, kind, body: text.into(), more: None }
            }
            Err(e) => Answer::fault(StatusCode::INTERNAL_SERVER_ERROR, &e.to_string()),
        }
    }

    async fn reload(&self) -> Answer {
        match self.reloader.reload().await {
            Ok(last) => {
                let restart_needed = last.restart_needed;
                Answer::json(StatusCode::OK, &json!({"reloaded": true, "restart_needed": restart_needed}))
            }
            Err(faults) => Answer::json(StatusCode::BAD_REQUEST, &json!({"reloaded": false, "faults": faults})),
        }
    }

    /// Why a call that changes something is refused, if it is.
    fn permitted(&self, headers: &HeaderMap) -> Option<Answer> {
        if self.unix {
            return None;
        }
        let Some(token) = self.current.live().plan.admin.token else {
            let how = "no token is configured: set [admin] token_sha256, or use a unix socket";
            return Some(Answer::fault(StatusCode::FORBIDDEN, how));
        };
        let shown = headers.get(AUTHORIZATION).and_then(|value| value.as_bytes().strip_prefix(b"Bearer "));
        if shown.is_some_and(|shown| key::digest(shown.trim_ascii()) == token) {
            return None;
        }
        let refused = Answer::fault(StatusCode::UNAUTHORIZED, "send the admin token as `Authorization: Bearer …`");
        Some(Answer { more: Some((WWW_AUTHENTICATE, "Bearer")), ..refused })
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
        let answer = self.answer(&request.method, request.uri.path(), &request.headers).await;
        if *shutdown.borrow() || tokio::time::timeout(DRAIN, session.drain_request_body()).await.is_err() {
            session.set_keepalive(None);
        }
        answer.write(&mut session).await.ok()?;
        let settings = HttpPersistentSettings::for_session(&session);
        let stream = session.finish().await.ok()??;
        Some(ReusedHttpStream::from_reusable_stream(stream, settings))
    }
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

    async fn write(self, session: &mut ServerSession) -> Result<()> {
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

fn ok_if(good: bool) -> StatusCode {
    if good { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE }
}
