//! May this request in, and to whom: route, key, prompt, model, each found by the one before.

use std::sync::Arc;
use std::time::{Instant, SystemTime};

use bytes::Bytes;
use http::Method;
use pingora::Result;
use pingora::proxy::Session;

use super::caching::{Found, Wanted};
use super::client::{self, Body};
use super::exchange::Exchange;
use super::rejection::Rejection;
use super::{Proxy, body, headers, listing};
use crate::access::route::{Auth, NoRoute, Target};
use crate::access::{Key, Model, Route};
use crate::config::plan::Plan;
use crate::live::Live;
use crate::pool::PoolId;
use crate::pool::retry::Repeat;
use crate::pool::settings::Limits;
use crate::pool::traffic::Load;
use crate::prompt::Dialect;
use crate::prompt::scan::{rename, scan};

impl Proxy {
    /// Finds the route and the key. `true` if the request is answered already.
    pub(super) async fn admit(&self, session: &mut Session, x: &mut Exchange) -> Result<bool> {
        let live = x.live.clone();
        let header = session.req_header();
        let path = header.uri.path();
        if asks_health(path, &header.method) {
            x.recorded = false;
            return self.health(session).await;
        }
        let found = live.plan.routes.find(headers::host(header), path, &header.method).map_err(no_route)?;
        let route = x.admitted.route.insert(found.route.clone()).clone();
        x.answer.dialect = Dialect::of(route.stripped(&found.path).unwrap_or_default());
        keeps_prefix(&route, path)?;
        match route.auth {
            Auth::None => x.admitted.credentials_pass = !live.plan.keys.know(&header.headers),
            Auth::Key => {
                let key = live.plan.keys.authenticate(&header.headers, SystemTime::now());
                let key = x.admitted.key.insert(key.map_err(Rejection::Unauthenticated)?.clone());
                x.way.caller.key = key.name.clone();
                if !key.may_use(&route) {
                    return Err(Rejection::RouteNotAllowed.into());
                }
            }
        }
        if let (Some(listed), true) = (route.lists_models(&found.path), reads(&header.method)) {
            let listed = listed.map(str::to_owned);
            return self.list(session, x, listed.as_deref()).await;
        }
        match route.target {
            Target::Model => self.prompt(session, x).await,
            Target::Pool(pool) => Self::stream_to(session, x, &live, pool).await.map(|()| false),
        }
    }

    /// Reads the body, finds its model, and gets it ready to be sent as often as it takes. `true` if the answer was kept.
    async fn prompt(&self, session: &mut Session, x: &mut Exchange) -> Result<bool> {
        let live = x.live.clone();
        if headers::is_encoded(&session.req_header().headers) {
            return Err(Rejection::Encoded.into());
        }
        let asked = Instant::now();
        let body = body::read(session, live.plan.server.max_body, live.plan.server.body_timeout).await;
        x.admitted.came_in = asked.elapsed();
        let body = body?;
        x.admitted.body = body.len();
        let prompt = scan(&body).map_err(Rejection::Unreadable)?;
        x.admitted.stream = Some(prompt.stream);
        let asked = &*x.admitted.asked.insert(prompt.model);
        let model = model(&live.plan, x.admitted.key.as_deref(), asked)?;
        let pool = live.pool(model.pool);
        x.admitted.model = Some(model.clone());
        x.admitted.pool = Some(pool.clone());
        let found = self.look_up(session, x, &model, &body).await?;
        if let Found::Kept(kept) = found {
            return self.give(session, x, &kept).await.map(|()| true);
        }
        let body = match &model.upstream {
            Some(name) => rename(&body, &prompt.model_span, name),
            None => body,
        };
        if let Found::Wanted(key, mode) = found {
            x.wanted = Some(Wanted { key, mode, body });
            // Its engine's clock is the flight's.
            client::wrap(session, Body::Whole(Bytes::new()), x.clock(Limits::default()), x)?;
            return Ok(false);
        }
        x.way.caller.repeat = Repeat::Anywhere;
        x.way.caller.load = Load { stream: prompt.stream, bytes: body.len() as u64 };
        client::wrap(session, Body::Whole(body), x.clock(pool.settings.limits), x)?;
        Ok(false)
    }

    /// Lets the body stream to the pool.
    async fn stream_to(session: &mut Session, x: &mut Exchange, live: &Live, pool: PoolId) -> Result<()> {
        let pool = live.pool(pool);
        x.admitted.pool = Some(pool.clone());
        x.way.caller.repeat = if session.is_body_empty() { Repeat::Here } else { Repeat::Never };
        let (most, silence) = (live.plan.server.max_body, live.plan.server.body_timeout);
        body::welcome(session, most).await?;
        let body = Body::Streamed { silence, most };
        client::wrap(session, body, x.clock(pool.settings.limits), x)
    }

    /// Answers from memory which models there are, or what one of them is.
    async fn list(&self, session: &mut Session, x: &mut Exchange, id: Option<&str>) -> Result<bool> {
        let live = x.live.clone();
        let body = match id {
            None => listing::all(&live.plan, x.admitted.key.as_deref()),
            Some(id) => listing::one(&live.plan, &*model(&live.plan, x.admitted.key.as_deref(), id)?, id),
        };
        let mut header = listing::header(&body)?;
        header.insert_header(headers::REQUEST_ID, x.request_id())?;
        body::answer(session, header, body).await?;
        Ok(true)
    }

    /// Tells a load balancer in front whether to send requests, and nothing more.
    async fn health(&self, session: &mut Session) -> Result<bool> {
        let ready = self.current.readiness().is_ready();
        let body = Bytes::from_static(if ready { b"{\"status\":\"ok\"}" } else { b"{\"status\":\"unavailable\"}" });
        let mut header = listing::header(&body)?;
        header.set_status(if ready { 200 } else { 503 })?;
        body::answer(session, header, body).await?;
        Ok(true)
    }
}

// === what `forebay explain` asks too ===

/// Whether a request is for the health of forebay itself, which needs no route and no key.
#[must_use]
pub fn asks_health(path: &str, method: &Method) -> bool {
    path == "/health" && reads(method)
}

/// Whether a request with this method changes nothing.
#[must_use]
pub fn reads(method: &Method) -> bool {
    matches!(*method, Method::GET | Method::HEAD)
}

/// That a path as it was sent keeps what the route takes off.
///
/// # Errors
/// [`Rejection::Malformed`].
pub fn keeps_prefix(route: &Route, path: &str) -> Result<(), Rejection> {
    match route.stripped(path) {
        Some(_) => Ok(()),
        None => Err(Rejection::Malformed("its path does not keep the route's prefix")),
    }
}

/// The model of this name, if the request's key may ask it.
///
/// # Errors
/// [`Rejection::UnknownModel`] or [`Rejection::ModelNotAllowed`].
pub fn model(plan: &Plan, key: Option<&Key>, name: &str) -> Result<Arc<Model>, Rejection> {
    let model = plan.models.find(name).ok_or_else(|| Rejection::UnknownModel(name.into()))?;
    match key {
        Some(key) if !key.may_ask(name) => Err(Rejection::ModelNotAllowed(name.into())),
        _ => Ok(model.clone()),
    }
}

/// Why nothing is served, as the client is told.
#[must_use]
pub fn no_route(no_route: NoRoute) -> Rejection {
    match no_route {
        NoRoute::Unknown => Rejection::NoRoute,
        NoRoute::Method(methods) => Rejection::MethodNotAllowed(methods),
        NoRoute::Ambiguous => Rejection::Malformed("its path can be read in more than one way"),
    }
}
