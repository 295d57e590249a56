//! The prompt cache's part in a request's way: it is looked up when it is admitted; what is not kept is computed once for all who
//! ask, and each of them watches the one computation.
//!
//! The computation, a flight, is a request of its own that goes through this same proxy: server choice, retries and time-outs are
//! those of any other. Its client is a tape.

use std::sync::{Arc, Weak};
use std::time::Instant;

use bytes::Bytes;
use http::header::{AGE, CONTENT_LENGTH, CONTENT_TYPE, HeaderName, TRANSFER_ENCODING};
use http::{Method, Version};
use parking_lot::Mutex;
use pingora::http::{RequestHeader, ResponseHeader};
use pingora::protocols::http::{HttpTask, ServerSession};
use pingora::proxy::subrequest::Ctx;
use pingora::proxy::{ProxyHttp as _, Session};
use pingora::{Error, ErrorSource, ErrorType, Result};
use tokio::task::spawn_blocking;

use super::client::{self, Body, Shared};
use super::ending::End;
use super::exchange::{Admitted, Exchange};
use super::headers::{self, Identity};
use super::rejection::Rejection;
use super::tape::{self, Keeper, Tape};
use super::{Proxy, waiting};
use crate::access::Model;
use crate::cache::admission::{Asked, Bypass, Decision, Directives, Mode, admit, decide};
use crate::cache::canonical::{Canonical, Circumstances, PromptKey, Scope, VARYING};
use crate::cache::flight::{Bounds, Event, Joined, Lost, Watcher};
use crate::cache::store::Answer;
use crate::live::Live;
use crate::observe::Cached;
use crate::pool::retry::Repeat;
use crate::pool::settings::Limits;
use crate::pool::traffic::Load;
use crate::pool::way::Outcome;
use crate::prompt::Dialect;

/// Says what the cache did.
const X_FOREBAY_CACHE: HeaderName = HeaderName::from_static("x-forebay-cache");

/// From how many bytes on a body is read on a thread where that may take its time: 0.07 ms for a chat of this size, 2 ms for the
/// worst of its members, 0.3 s for the worst of 32 MiB.
const LARGE: usize = 64 * 1024;

/// What the cache has for a request.
pub(super) enum Found {
    /// Nothing to do with it.
    Nothing,
    /// The answer.
    Kept(Arc<Answer>),
    /// Not yet the answer: this is what would be computed.
    Wanted(PromptKey, Mode),
}

/// What a request waits for.
pub struct Wanted {
    /// Under which key it is, or will be.
    pub key: PromptKey,
    /// What the cache may do.
    pub mode: Mode,
    /// The body as the engine gets it.
    pub body: Bytes,
}

/// How a flight's answer came about, for the records of those who watch it.
#[derive(Debug, Clone, Default)]
pub struct Story {
    /// The servers tried, by place, and how each attempt ended.
    pub attempts: Vec<(usize, Outcome)>,
    /// When the engine's response header came.
    pub first_byte: Option<Instant>,
    /// Why forebay itself answered, if it did.
    pub rejection: Option<Rejection>,
}

/// A computation for all who ask: what its exchange is to know.
pub struct Flight {
    live: Arc<Live>,
    admitted: Admitted,
    dialect: Dialect,
    /// The key whose turn it takes in a queue.
    key: Arc<str>,
    body: Bytes,
    pub(super) shared: Arc<Shared>,
    /// Left here before the answer's header goes out.
    pub(super) story: Mutex<Option<Story>>,
}

// === impl Proxy ===

impl Proxy {
    /// What the cache has for a prompt to a model that has one.
    pub(super) async fn look_up(
        &self,
        session: &mut Session,
        x: &mut Exchange,
        model: &Model,
        body: &Bytes,
    ) -> Result<Found> {
        let (Some(terms), Some(store)) = (&model.cache, self.current.store()) else { return Ok(Found::Nothing) };
        let header = session.req_header();
        let directives = Directives::read(&header.headers);
        let form = match admit(&header.method, directives) {
            Ok(()) => canonical(body.clone()).await,
            Err(why) => Err(why),
        };
        let header = session.req_header();
        let path = x.admitted.route.as_ref().and_then(|route| route.stripped(header.uri.path())).unwrap_or_default();
        let circumstances = Circumstances {
            scope: match &x.admitted.key {
                _ if terms.shared => Scope::Shared,
                Some(key) => Scope::Key(&key.name),
                None => Scope::Keyless,
            },
            target: header.uri.path_and_query().map_or("/", |target| target.as_str()),
            headers: &header.headers,
            model: x.admitted.asked.as_deref().unwrap_or_default(),
            upstream: model.upstream.as_deref(),
            version: &model.version,
        };
        let asked = Asked { directives, path, circumstances, sampled: terms.sampled };
        let decision = decide(&asked, form);
        if let Decision::Bypass(why) | Decision::NotCached(why) = decision {
            log::debug!("request {}: not for the cache, because {why}", x.request_id());
        }
        match decision {
            Decision::Bypass(_) => {
                x.cached = Some(Cached::Bypass);
                Ok(Found::Nothing)
            }
            Decision::NotCached(_) => Err(Rejection::NotCached.into()),
            Decision::Look { key, mode: Mode::Renew } => Ok(Found::Wanted(key, Mode::Renew)),
            Decision::Look { key, mode } => match store.find(&key, Instant::now()) {
                Some(kept) => Ok(Found::Kept(kept)),
                None if mode == Mode::Recall => Err(Rejection::NotCached.into()),
                None => Ok(Found::Wanted(key, mode)),
            },
        }
    }

    /// Answers with what is kept.
    pub(super) async fn give(&self, session: &mut Session, x: &mut Exchange, kept: &Arc<Answer>) -> Result<()> {
        let now = Instant::now();
        x.cached = Some(Cached::Hit);
        x.answer.decided = Some(now);
        let body = kept.pieces();
        let mut header = tape::header(&kept.header())?;
        header.insert_header(CONTENT_LENGTH, body.iter().map(Bytes::len).sum::<usize>())?;
        header.insert_header(AGE, kept.age(now).as_secs())?;
        self.dress(session, x, &mut header).await?;
        let body = body.into_iter().map(|piece| HttpTask::Body(Some(piece), false));
        let end = [HttpTask::Body(None, true), HttpTask::Done];
        write(session, [HttpTask::Header(Box::new(header), false)].into_iter().chain(body).chain(end).collect()).await
    }

    /// Watches the flight for what a request wants, which begins with the first who watches.
    pub(super) async fn fly(&self, session: &mut Session, x: &mut Exchange, wanted: Wanted) -> Result<()> {
        let Wanted { key, mode, body } = wanted;
        let store = self.current.store().ok_or(Rejection::Internal)?;
        let model = x.admitted.model.clone().ok_or(Rejection::Internal)?;
        let plan = &x.live.plan.cache;
        let bounds = Bounds { body: plan.max_body, all: plan.under_way() };
        x.sent = Some(Instant::now());
        let joined = match mode {
            Mode::Renew => {
                let (watcher, recorder) = self.flights.begin(key, &model.name, bounds);
                Joined::Starts(watcher, recorder)
            }
            Mode::Use | Mode::Recall => {
                self.flights.join(key, &model.name, bounds, || store.find(&key, Instant::now()))
            }
        };
        let watcher = match joined {
            Joined::Kept(kept) => return self.give(session, x, &kept).await,
            Joined::Watches(watcher) => {
                x.cached = Some(Cached::Coalesced);
                watcher
            }
            Joined::Starts(watcher, recorder) => {
                x.cached = Some(Cached::Miss);
                let proxy = self.itself.get().and_then(Weak::upgrade).ok_or(Rejection::Internal)?;
                let keeper = Keeper::new(store.clone(), key, &model, bounds.body);
                let flight = Arc::new(Flight::of(x, body));
                let tape = Tape::new(flight.clone(), request(session.req_header())?, recorder, keeper);
                let context = Ctx::builder().user_ctx(Box::new(flight)).build();
                let session = Box::new(ServerSession::new_custom(Box::new(tape)));
                tokio::spawn(proxy.process_subrequest(session, Box::new(context)));
                watcher
            }
        };
        self.play(session, x, watcher).await
    }

    /// Plays an answer from its beginning, and then as it comes.
    async fn play(
        &self,
        session: &mut Session,
        x: &mut Exchange,
        mut watcher: Watcher<ResponseHeader, Story>,
    ) -> Result<()> {
        loop {
            let event = tokio::select! {
                biased;
                gone = waiting::gone(session, x.is_cut) => return Err(gone),
                event = watcher.next() => event,
            };
            if x.story.is_none() {
                x.story = watcher.summary();
                let first_byte = x.story.as_ref().and_then(|story| story.first_byte);
                x.answer.first_byte = first_byte.map(|at| at.max(x.started)); // it may have come before this one asked
                let rejection = x.story.as_ref().and_then(|story| story.rejection.as_ref());
                if rejection.is_some_and(Rejection::is_ours) {
                    x.answer.end = End::Error; // though the answer that says so comes whole
                }
            }
            let piece = |piece| HttpTask::Body(Some(piece), false);
            let event = event.inspect_err(|lost| log::debug!("request {}: {lost}", x.request_id()));
            let (tasks, ends) = match event.map_err(lost)? {
                Event::Header(header) => {
                    let mut header = ResponseHeader::clone(&header);
                    self.dress(session, x, &mut header).await?;
                    (vec![HttpTask::Header(Box::new(header), false)], false)
                }
                Event::Body(pieces) => (pieces.into_iter().map(piece).collect(), false),
                Event::End(pieces) => {
                    let end = [HttpTask::Body(None, true), HttpTask::Done];
                    (pieces.into_iter().map(piece).chain(end).collect(), true)
                }
            };
            write(session, tasks).await?;
            if ends {
                return Ok(());
            }
        }
    }

    /// Makes the header that this client gets of the one for all.
    async fn dress(&self, session: &mut Session, x: &mut Exchange, header: &mut ResponseHeader) -> Result<()> {
        let measured = header.headers.contains_key(CONTENT_LENGTH);
        if !measured && session.req_header().version != Version::HTTP_2 {
            header.insert_header(TRANSFER_ENCODING, "chunked")?;
        }
        self.response_filter(session, header, x).await
    }
}

// === impl Flight ===

impl Flight {
    fn of(x: &Exchange, body: Bytes) -> Self {
        Self {
            live: x.live.clone(),
            admitted: Admitted { key: None, ..x.admitted.clone() },
            dialect: x.answer.dialect,
            key: x.way.caller.key.clone(),
            body,
            shared: Arc::default(),
            story: Mutex::default(),
        }
    }

    /// The flight that a session belongs to, if it is none of a client.
    pub(super) fn of_session(session: &Session) -> Option<Arc<Self>> {
        session.subrequest_ctx.as_ref()?.user_ctx()?.downcast_ref::<Arc<Self>>().cloned()
    }

    /// Makes the exchange of a flight what its first asker's was.
    pub(super) fn board(self: Arc<Self>, x: &mut Exchange) {
        x.live = self.live.clone();
        x.admitted = self.admitted.clone();
        x.answer.dialect = self.dialect;
        x.identity = Some(Identity::own());
        x.way.caller.key = self.key.clone();
        x.way.caller.repeat = Repeat::Anywhere;
        x.way.caller.load = Load { stream: self.admitted.stream == Some(true), bytes: self.body.len() as u64 };
        x.shared = self.shared.clone();
        x.recorded = false;
        x.flight = Some(self);
    }

    /// Gives the engine its body.
    pub(super) fn open(&self, session: &mut Session, x: &Exchange) -> Result<()> {
        let limits = x.admitted.pool.as_ref().map_or(Limits::default(), |pool| pool.settings.limits);
        client::wrap(session, Body::Whole(self.body.clone()), x.clock(limits), x)
    }
}

/// A body's form, or why it has none. A large one is read where it holds up nobody else.
async fn canonical(body: Bytes) -> Result<Canonical, Bypass> {
    let large = body.len() >= LARGE;
    let read = move || Canonical::read(&body).map_err(Bypass::Formless);
    if large { elsewhere(read).await } else { read() }
}

/// Reads on a thread where that may take its time. If it panics there, the request does without the cache.
async fn elsewhere(read: impl FnOnce() -> Result<Canonical, Bypass> + Send + 'static) -> Result<Canonical, Bypass> {
    spawn_blocking(read).await.unwrap_or(Err(Bypass::Unread))
}

/// The request of a flight: of the client's header only what is part of the key, and the body's type.
fn request(client: &RequestHeader) -> Result<RequestHeader> {
    let target = client.uri.path_and_query().map_or("/", |target| target.as_str());
    let mut header = RequestHeader::build(Method::POST, target.as_bytes(), Some(12))?;
    for name in VARYING.iter().chain(&[CONTENT_TYPE]) {
        for value in client.headers.get_all(name) {
            header.append_header(name.clone(), value.clone())?;
        }
    }
    headers::forget_spelling(&mut header);
    Ok(header)
}

/// Says in a header what the cache did, where it had a say.
pub(super) fn tell(header: &mut ResponseHeader, cached: Option<Cached>) -> Result<()> {
    match cached {
        Some(cached) => header.insert_header(X_FOREBAY_CACHE, cached.in_header()),
        None => Ok(()),
    }
}

async fn write(session: &mut Session, tasks: Vec<HttpTask>) -> Result<()> {
    let written = session.downstream_session.response_duplex_vec(tasks).await;
    written.map(drop).map_err(|e| if *e.esource() == ErrorSource::Unset { e.into_down() } else { e })
}

/// Why a flight cannot be watched any more.
fn lost(lost: Lost) -> Box<Error> {
    match lost {
        Lost::Broken => Error::new_up(ErrorType::ConnectionClosed),
        Lost::CutOff => Error::new_down(ErrorType::WriteTimedout),
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt as _;

    use super::*;

    #[tokio::test]
    async fn a_large_body_is_read_elsewhere_and_all_the_same() {
        for (length, elsewhere) in [(100, false), (LARGE - 1, false), (LARGE, true), (4 * LARGE, true)] {
            let body = format!("{{\"seed\":1,\"x\":\"{}\"}}", "x".repeat(length - 17));
            let form = Canonical::read(body.as_bytes()).map_err(Bypass::Formless);
            let mut reading = Box::pin(canonical(body.into()));
            let at_once = reading.as_mut().now_or_never();
            assert_eq!(at_once.is_none(), elsewhere, "{length}");
            let read = match at_once {
                Some(read) => read,
                None => reading.await,
            };
            assert_eq!(read, form, "{length}");
        }
    }

    #[tokio::test]
    async fn a_reader_that_panics_leaves_the_request_without_the_cache() {
        assert_eq!(elsewhere(|| panic!("a fault in the reader")).await, Err(Bypass::Unread));
    }
}
