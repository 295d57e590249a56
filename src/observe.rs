//! What is told of each request: one record, from which the metrics and the access log are written.

pub mod access_log;
pub mod logger;
pub mod meters;
pub mod metrics;
pub mod names;
pub mod sink;

use std::net::IpAddr;
use std::time::{Duration, SystemTime};

use serde::Deserialize;

pub use access_log::AccessLog;
pub use meters::Meters;
pub use metrics::{Gauged, Metrics};
pub use names::Names;

use crate::access::key::Refused;
use crate::pool::Pool;
use crate::pool::eject::Change;
use crate::pool::way::{News, Outcome};

/// How log lines are written.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Format {
    /// One JSON object a line, for programs.
    #[default]
    Json,
    /// One line for people.
    Text,
}

/// One request, as it ended.
#[derive(Debug, Clone)]
pub struct Record<'x> {
    /// When its header was complete.
    pub at: SystemTime,
    /// Its id.
    pub request_id: &'x str,
    /// The client's address; none behind a unix socket.
    pub client: Option<IpAddr>,
    /// The key's name.
    pub key: Option<&'x str>,
    /// Why it has no key, where that was the end of it.
    pub refused: Option<Refused>,
    /// The route.
    pub route: Option<Named<'x>>,
    /// The HTTP method.
    pub method: &'x str,
    /// The path as asked for, without its query.
    pub path: &'x str,
    /// The model, by its name in the configuration.
    pub model: Option<Named<'x>>,
    /// The model's name as asked for.
    pub asked: Option<&'x str>,
    /// The pool.
    pub pool: Option<Named<'x>>,
    /// The servers it tried, in order, and how each attempt ended.
    pub attempts: Vec<(Named<'x>, Outcome)>,
    /// The status the client saw; 499 if it left before.
    pub status: u16,
    /// The code of forebay's own answer; empty otherwise.
    pub code: &'static str,
    /// Whether it asked for a stream, where that is known.
    pub stream: Option<bool>,
    /// Bytes of its body.
    pub bytes_in: usize,
    /// Bytes of the answer's body.
    pub bytes_out: usize,
    /// What the cache did with it, where it had a say.
    pub cached: Option<Cached>,
    /// How long it waited in the queue, if it did.
    pub queued: Option<Duration>,
    /// From its header to the engine's.
    pub first_byte: Option<Duration>,
    /// From its header to its end.
    pub duration: Duration,
    /// The part of it that was forebay's own: until the first attempt, or the end if there was none, without the time in
    /// which its body came.
    pub overhead: Duration,
    /// Where the client left, if it did.
    pub left: Option<Left>,
    /// How it ended.
    pub end: &'static str,
}

/// Something of the configuration: its place there and its name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Named<'x> {
    /// Its place among its like.
    pub place: usize,
    /// Its name, a metric label.
    pub name: &'x str,
}

/// What the cache did with a request; a metric label.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cached {
    /// It had the answer.
    Hit,
    /// It had none: the answer was computed, and maybe kept.
    Miss,
    /// The answer was being computed for another.
    Coalesced,
    /// It was not to be asked.
    Bypass,
}

/// In which phase a client left; a metric label.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Left {
    /// Its request was not admitted yet: its body was still coming, where that is read whole.
    Request,
    /// It was in the queue.
    Queued,
    /// It waited for its answer to begin.
    Waiting,
    /// It had a part of its answer.
    Answer,
}

/// Where records go.
pub struct Observer {
    /// Every metric.
    pub metrics: Metrics,
    /// A line for each request.
    pub access_log: AccessLog,
}

// === impl Cached ===

impl Cached {
    fn as_str(self) -> &'static str {
        match self {
            Self::Hit => "hit",
            Self::Miss => "miss",
            Self::Coalesced => "coalesced",
            Self::Bypass => "bypass",
        }
    }

    /// As clients read it in a header.
    #[must_use]
    pub fn in_header(self) -> &'static str {
        match self {
            Self::Hit => "HIT",
            Self::Miss => "MISS",
            Self::Coalesced => "COALESCED",
            Self::Bypass => "BYPASS",
        }
    }
}

// === impl Left ===

impl Left {
    /// All of them, in their order.
    const ALL: [Self; 4] = [Self::Request, Self::Queued, Self::Waiting, Self::Answer];

    fn as_str(self) -> &'static str {
        match self {
            Self::Request => "request",
            Self::Queued => "queued",
            Self::Waiting => "waiting",
            Self::Answer => "answer",
        }
    }
}

// === impl Observer ===

impl Observer {
    /// A request of the plan that has these meters has ended.
    pub fn observe(&self, record: &Record<'_>, meters: &Meters) {
        self.metrics.count(record, meters);
        self.access_log.write(record);
    }

    /// A computation for all who ask has ended: its attempts at this pool count once, whoever watched.
    pub fn computed(&self, pool: Named<'_>, attempts: &[(Named<'_>, Outcome)], meters: &Meters) {
        self.metrics.count_attempts(pool, attempts, meters);
    }

    /// Something changed for a server of this pool by what its requests met.
    pub fn announce(&self, pool: &Pool, news: &News) {
        let (name, server, reason) = (&pool.settings.name, &pool.settings.servers[news.place].name, news.reason);
        match news.change {
            Change::Back { asked: false } => log::info!("server {name}/{server} is back: its trial went well"),
            Change::Back { asked: true } => log::info!("server {name}/{server} is back: it answers again"),
            Change::Ejected(lasts) => {
                log::warn!("server {name}/{server} is ejected for {} s: {reason}", lasts.as_secs_f32());
                self.metrics.count_ejection(name, server, reason);
            }
        }
    }

    /// A connection to this server of this pool was taken for an attempt; `reused`: one that was there.
    pub fn connected(&self, [pool, server]: [Named<'_>; 2], reused: bool, meters: &Meters) {
        if let Some(attempts) = meters.attempts(&self.metrics, pool, server) {
            if reused { attempts.reused.inc() } else { attempts.fresh.inc() }
        }
    }
}
