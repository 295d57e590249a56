//! What one request carries from phase to phase, and the record it leaves.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use pingora::proxy::Session;

use super::caching::{Flight, Story, Wanted};
use super::client::Shared;
use super::clock::Clock;
use super::ending::End;
use super::headers::Identity;
use super::rejection::Rejection;
use crate::access::{Key, Model, Route};
use crate::live::Live;
use crate::observe::{Cached, Left, Named, Record};
use crate::pool::Pool;
use crate::pool::settings::Limits;
use crate::pool::way::{Outcome, Way};
use crate::prompt::{Dialect, LastEvent};

/// How much of a model's name is logged, in bytes: a client may ask for any.
const LONGEST_NAME: usize = 256;

/// One request and its answer.
pub struct Exchange {
    /// Whether it is to end now, for the daemon does. Who waits is woken when that changes.
    pub is_cut: fn() -> bool,
    /// What was in force when it came, pinned.
    pub live: Arc<Live>,
    /// When its header was complete.
    pub started: Instant,
    /// The same by the calendar.
    pub at: SystemTime,
    /// Who asks. There from the first phase on.
    pub identity: Option<Identity>,
    /// What it was admitted to, as far as it came.
    pub admitted: Admitted,
    /// Its way through the pool.
    pub way: Way,
    /// When its first attempt began, or its time in the queue.
    pub sent: Option<Instant>,
    /// How long it was in the queue, if it was.
    pub queued: Option<Duration>,
    /// Whether it is there, or was to its end.
    pub waits: bool,
    /// How its answer fares.
    pub answer: Answer,
    /// What its [`super::client::Client`] shares with it.
    pub shared: Arc<Shared>,
    /// What the cache did with it, where it had a say.
    pub cached: Option<Cached>,
    /// What it waits for, if its answer is computed for all who ask.
    pub wanted: Option<Wanted>,
    /// How the answer that it watches came about.
    pub story: Option<Story>,
    /// The computation that it is, if no client sent it.
    pub flight: Option<Arc<Flight>>,
    /// Whether it is counted and logged: a load balancer's look at our health is no client's request.
    pub recorded: bool,
}

/// What a request was admitted to: each found by the one before.
#[derive(Debug, Clone, Default)]
pub struct Admitted {
    /// The route of its host, path and method.
    pub route: Option<Arc<Route>>,
    /// The key it showed.
    pub key: Option<Arc<Key>>,
    /// The model it asks.
    pub model: Option<Arc<Model>>,
    /// That model's name as it was asked for: a family has many.
    pub asked: Option<Box<str>>,
    /// Whether it asks for a stream; known of prompts alone.
    pub stream: Option<bool>,
    /// Whose servers answer.
    pub pool: Option<Arc<Pool>>,
    /// Whether its credentials are the engine's affair: no key of ours is among them.
    pub credentials_pass: bool,
    /// Bytes of a body that was read whole.
    pub body: usize,
    /// How long it took to come.
    pub came_in: Duration,
}

/// How a request's answer fares.
#[derive(Debug)]
pub struct Answer {
    /// When the engine's response header came.
    pub first_byte: Option<Instant>,
    /// When forebay's own answer was made, if it was that.
    pub decided: Option<Instant>,
    /// Watches a stream for its last event.
    pub last_event: Option<LastEvent>,
    /// The form in which its streams speak.
    pub dialect: Dialect,
    /// How it ended.
    pub end: End,
    /// Why forebay itself answered, if it did.
    pub rejection: Option<Rejection>,
}

// === impl Exchange ===

impl Exchange {
    /// A request whose header has just come.
    #[must_use]
    pub fn new(live: Arc<Live>, is_cut: fn() -> bool) -> Self {
        Self {
            is_cut,
            live,
            started: Instant::now(),
            at: SystemTime::now(),
            identity: None,
            admitted: Admitted::default(),
            way: Way::default(),
            sent: None,
            queued: None,
            waits: false,
            answer: Answer {
                first_byte: None,
                decided: None,
                last_event: None,
                dialect: Dialect::Other,
                end: End::Complete,
                rejection: None,
            },
            shared: Arc::default(),
            cached: None,
            wanted: None,
            story: None,
            flight: None,
            recorded: true,
        }
    }

    /// The request's id, once it has one.
    #[must_use]
    pub fn request_id(&self) -> &str {
        self.identity.as_ref().map_or("", Identity::request_id)
    }

    /// The client's address, if it has one.
    #[must_use]
    pub fn client(&self) -> Option<IpAddr> {
        self.identity.as_ref()?.client
    }

    /// The engine's clock for this request.
    #[must_use]
    pub fn clock(&self, limits: Limits) -> Clock {
        Clock::new(limits, self.started)
    }

    /// The pool and the server of the attempt under way.
    #[must_use]
    pub fn attempt(&self) -> Option<[Named<'_>; 2]> {
        let (pool, place) = self.admitted.pool.as_ref().zip(self.way.place())?;
        Some([of_pool(pool), of_server(pool, place)])
    }

    /// What is counted and logged of it.
    #[must_use]
    pub fn record<'x>(&'x self, session: &'x Session) -> Record<'x> {
        let request = session.req_header();
        let admitted = &self.admitted;
        let duration = self.started.elapsed();
        let status = match session.response_written().map(|response| response.status.as_u16()) {
            Some(status) if status >= 200 => status,
            _ => 499, // nginx's: the client went before it was answered
        };
        Record {
            at: self.at,
            request_id: self.request_id(),
            client: self.client(),
            key: admitted.key.as_ref().map(|key| &*key.name),
            refused: match self.answer.rejection {
                Some(Rejection::Unauthenticated(refused)) => Some(refused),
                _ => None,
            },
            route: admitted.route.as_ref().map(|route| Named { place: route.place, name: &route.name }),
            method: request.method.as_str(),
            path: request.uri.path(),
            model: admitted.model.as_ref().map(|model| Named { place: model.place, name: &model.name }),
            asked: admitted.asked.as_deref().map(|name| &name[..name.floor_char_boundary(LONGEST_NAME)]),
            pool: admitted.pool.as_deref().map(of_pool),
            attempts: self.attempts(),
            cached: self.cached,
            status,
            code: self.rejection().map_or("", Rejection::code),
            stream: admitted.stream,
            bytes_in: admitted.body.max(session.body_bytes_read()),
            bytes_out: session.body_bytes_sent(),
            queued: self.queued,
            first_byte: self.answer.first_byte.map(|at| at - self.started),
            duration,
            overhead: self.overhead(duration),
            left: (self.answer.end == End::ClientGone).then(|| self.left()),
            end: self.answer.end.as_str(),
        }
    }

    /// Why forebay itself answered, to it or to the first who asked the same.
    fn rejection(&self) -> Option<&Rejection> {
        self.answer.rejection.as_ref().or_else(|| self.story.as_ref()?.rejection.as_ref())
    }

    /// The servers that were tried for it, and how each attempt ended. Those of a flight are its first asker's.
    #[must_use]
    pub fn attempts(&self) -> Vec<(Named<'_>, Outcome)> {
        let Some(pool) = &self.admitted.pool else { return vec![] };
        let of = |(place, outcome)| (of_server(pool, place), outcome);
        match &self.story {
            Some(story) if self.cached == Some(Cached::Miss) => story.attempts.iter().copied().map(of).collect(),
            Some(_) => vec![],
            None => self.way.attempts().map(of).collect(),
        }
    }

    /// Leaves the flight's story for those who watch it, before the header of its answer goes out.
    pub fn tell_story(&self, rejection: Option<&Rejection>) {
        if let Some(flight) = &self.flight {
            let attempts = self.way.attempts().collect();
            let (first_byte, rejection) = (self.answer.first_byte, rejection.cloned());
            *flight.story.lock() = Some(Story { attempts, first_byte, rejection });
        }
    }

    /// From its header to its first attempt, to forebay's own answer, or to its end, without the time in which its body came.
    fn overhead(&self, duration: Duration) -> Duration {
        let own = self.sent.or(self.answer.decided).map_or(duration, |at| at - self.started);
        own.saturating_sub(self.admitted.came_in)
    }

    /// How far it had come when its client left.
    fn left(&self) -> Left {
        match (self.sent, self.answer.first_byte) {
            (None, _) => Left::Request,
            (Some(_), None) if self.waits => Left::Queued,
            (Some(_), None) => Left::Waiting,
            (Some(_), Some(_)) => Left::Answer,
        }
    }
}

fn of_pool(pool: &Pool) -> Named<'_> {
    Named { place: pool.id.0, name: &pool.settings.name }
}

fn of_server(pool: &Pool, place: usize) -> Named<'_> {
    Named { place, name: &pool.settings.servers[place].name }
}
