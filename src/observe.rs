//! What is told of each request: one record, from which the metrics and the access log are written.

pub mod access_log;
pub mod logger;
pub mod metrics;
pub mod sink;

use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

pub use access_log::AccessLog;
pub use metrics::{Gauged, Metrics};

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
    /// The route's name.
    pub route: Option<&'x str>,
    /// The HTTP method.
    pub method: &'x str,
    /// The path as asked for, without its query.
    pub path: &'x str,
    /// The model's name in the configuration.
    pub model: Option<&'x str>,
    /// The model's name as asked for.
    pub asked: Option<&'x str>,
    /// The pool's name.
    pub pool: Option<&'x str>,
    /// The servers it tried, in order.
    pub attempts: Vec<Attempt>,
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
    /// From its header to the engine's.
    pub first_byte: Option<Duration>,
    /// From its header to its end.
    pub duration: Duration,
    /// How it ended.
    pub end: &'static str,
}

/// One server that a request tried.
#[derive(Debug, Clone)]
pub struct Attempt {
    /// The server's name.
    pub server: Arc<str>,
    /// How it ended.
    pub outcome: &'static str,
}

/// Where records go.
pub struct Observer {
    /// Every metric.
    pub metrics: Metrics,
    access_log: AccessLog,
}

// === impl Observer ===

impl Observer {
    /// Counts in `metrics`, writes to `access_log`.
    #[must_use]
    pub fn new(metrics: Metrics, access_log: AccessLog) -> Self {
        Self { metrics, access_log }
    }

    /// A request has ended.
    pub fn observe(&self, record: &Record<'_>) {
        self.metrics.count(record);
        self.access_log.write(record);
    }

    /// Whether the access log is written.
    pub fn set_access_log(&self, on: bool) {
        self.access_log.set(on);
    }
}
