//! Every metric, in one list. Labels come from the configuration only, never from what clients send.
//!
//! What a reload takes out of the configuration goes from here with its last request, after one more answer to Prometheus: a
//! configuration that changes for months would else leave ever more behind. If it comes back, it begins at nought.

use parking_lot::Mutex;
use prometheus::core::{Collector, MetricVec, MetricVecBuilder};
use prometheus::process_collector::ProcessCollector;
use prometheus::{
    Encoder, Gauge, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Opts, Registry,
    Result, TextEncoder,
};

use super::meters::{Attempts, ByCode, Meters, Requests, Whose};
use super::names::{Labelled, Names};
use super::{Cached, Left, Named, Record};
use crate::access::key::Refused;
use crate::cache::store::Figures;
use crate::pool::way::Outcome;

/// The registry and all that is in it.
#[derive(Debug)]
pub struct Metrics {
    registry: Registry,
    requests: IntCounterVec,
    durations: HistogramVec,
    first_bytes: HistogramVec,
    overheads: HistogramVec,
    queue_waits: HistogramVec,
    attempts: IntCounterVec,
    connections: IntCounterVec,
    ejections: IntCounterVec,
    cached: IntCounterVec,
    auth_failures: [IntCounter; Refused::ALL.len()],
    aborts: [IntCounter; Left::ALL.len()],
    reloads: IntCounterVec,
    reload_successful: IntGauge,
    reload_timestamp: Gauge,
    now: Mutex<Now>,
    /// Those that have labels.
    labelled: Vec<Box<dyn Labelled>>,
}

/// What is read when it is asked for. Locked meanwhile.
#[derive(Debug)]
struct Now {
    in_flight: IntGaugeVec,
    server_up: IntGaugeVec,
    queued: IntGaugeVec,
    clients: IntGauge,
    clients_refused: IntCounter,
    cache_bytes: IntGauge,
    cache_entries: IntGauge,
    cache_evictions: IntCounter,
}

/// A server as it is now.
#[derive(Debug, Clone, Copy)]
pub struct Gauged<'s> {
    /// Its pool's name.
    pub pool: &'s str,
    /// Its name.
    pub server: &'s str,
    /// Its requests in flight.
    pub in_flight: u32,
    /// Whether it is used.
    pub up: bool,
}

/// The label of what has none: a request without a route, a route without a model.
const NONE: &str = "";

/// Upper bounds for whole answers and first bytes, in seconds: embeddings take 5 ms, long answers 10 minutes.
const ANSWER: [f64; 16] =
    [0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0];
/// Upper bounds for the time in a queue, in seconds.
const QUEUE: [f64; 12] = [0.001, 0.005, 0.025, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0];
/// Upper bounds for forebay's own part, in seconds.
const OVERHEAD: [f64; 10] = [0.00005, 0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.1, 1.0];

// === impl Metrics ===

impl Metrics {
    /// All metrics, at nought.
    ///
    /// # Errors
    /// When two of them have one name, which a test rules out.
    pub fn new() -> Result<Self> {
        let mut all = List::default();
        let build = all.gauges("forebay_build_info", "1, with what runs.", &["version", "revision"])?;
        build.with_label_values(&[crate::VERSION, crate::REVISION]).set(1);
        let process = i32::try_from(std::process::id()).unwrap_or(0);
        all.registry.register(Box::new(ProcessCollector::new(process, "")))?;
        let auth_failures =
            all.counters("forebay_auth_failures_total", "Requests without a valid key, by why.", &["reason"])?;
        let aborts = all.counters("forebay_client_aborts_total", "Requests whose client left, by when.", &["phase"])?;
        Ok(Self {
            requests: all.counters(
                "forebay_requests_total",
                "Requests, as they ended.",
                &["route", "model", "pool", "code"],
            )?,
            durations: all.histograms(
                "forebay_request_duration_seconds",
                "From a request's header to its end.",
                &["route", "model"],
                &ANSWER,
            )?,
            first_bytes: all.histograms(
                "forebay_time_to_first_byte_seconds",
                "From a request's header to the engine's response header.",
                &["model", "pool"],
                &ANSWER,
            )?,
            overheads: all.histograms(
                "forebay_overhead_seconds",
                "Forebay's own part: until the first attempt, without the time in which the body came.",
                &["route"],
                &OVERHEAD,
            )?,
            queue_waits: all.histograms(
                "forebay_queue_wait_seconds",
                "Time in a pool's queue, of the requests that were in it.",
                &["pool"],
                &QUEUE,
            )?,
            attempts: all.counters(
                "forebay_upstream_attempts_total",
                "Attempts at a server, as they ended.",
                &["pool", "server", "outcome"],
            )?,
            connections: all.counters(
                "forebay_upstream_connections_total",
                "Connections taken for attempts, new and reused ones.",
                &["pool", "server", "reused"],
            )?,
            ejections: all.counters(
                "forebay_server_ejections_total",
                "Times that a server was left alone, by what requests met there.",
                &["pool", "server", "reason"],
            )?,
            cached: all.counters(
                "forebay_cache_requests_total",
                "Requests to models with a cache, by what it did with them.",
                &["model", "result"],
            )?,
            auth_failures: Refused::ALL.map(|reason| auth_failures.with_label_values(&[reason.as_str()])),
            aborts: Left::ALL.map(|phase| aborts.with_label_values(&[phase.as_str()])),
            reloads: all.counters("forebay_config_reloads_total", "Reloads of the configuration.", &["result"])?,
            reload_successful: all
                .add(IntGauge::new("forebay_config_last_reload_successful", "1 if the last reload was, else 0.")?)?,
            reload_timestamp: all.add(Gauge::new(
                "forebay_config_last_reload_success_timestamp_seconds",
                "When the configuration was last loaded well, in seconds since the epoch.",
            )?)?,
            now: Mutex::new(Now {
                in_flight: all.gauges("forebay_in_flight", "Requests in flight at a server.", &["pool", "server"])?,
                server_up: all.gauges("forebay_server_up", "1 if a server is used, else 0.", &["pool", "server"])?,
                queued: all.gauges("forebay_queued", "Requests in a pool's queue.", &["pool"])?,
                clients: all.add(IntGauge::new("forebay_client_connections", "Connections of clients.")?)?,
                cache_bytes: all.add(IntGauge::new(
                    "forebay_cache_bytes",
                    "Bytes that answers take, kept or being computed, with all that is theirs.",
                )?)?,
                cache_entries: all.add(IntGauge::new("forebay_cache_entries", "Answers that are kept.")?)?,
                cache_evictions: all.add(IntCounter::new(
                    "forebay_cache_evictions_total",
                    "Kept answers that were thrown out to make room.",
                )?)?,
                clients_refused: all.add(IntCounter::new(
                    "forebay_client_connections_refused_total",
                    "Connections of clients beyond max_connections.",
                )?)?,
            }),
            registry: all.registry,
            labelled: all.labelled,
        })
    }

    /// A request has ended.
    pub(super) fn count(&self, record: &Record<'_>, meters: &Meters) {
        let whose = [record.route, record.model, record.pool];
        if let Some(requests) = meters.requests(self, whose) {
            let code = || {
                let [route, model, pool] = names(whose);
                self.requests.with_label_values(&[route, model, pool, &*record.status.to_string()])
            };
            requests.by_code.count(record.status, code);
            requests.duration.observe(record.duration.as_secs_f64());
            requests.overhead.observe(record.overhead.as_secs_f64());
            if let (Some(histogram), Some(first_byte)) = (&requests.first_byte, record.first_byte) {
                histogram.observe(first_byte.as_secs_f64());
            }
        }
        // Those of a computation that others watch too are counted by themselves.
        if let Some(pool) = record.pool.filter(|_| !matches!(record.cached, Some(Cached::Miss | Cached::Coalesced))) {
            self.count_attempts(pool, &record.attempts, meters);
        }
        if let (Some(model), Some(cached)) = (record.model, record.cached) {
            self.cached.with_label_values(&[model.name, cached.as_str()]).inc();
        }
        if let (Some(pool), Some(queued)) = (record.pool, record.queued) {
            self.queue_waits.with_label_values(&[pool.name]).observe(queued.as_secs_f64());
        }
        if let Some(reason) = record.refused {
            self.auth_failures[reason as usize].inc();
        }
        if let Some(phase) = record.left {
            self.aborts[phase as usize].inc();
        }
    }

    pub(super) fn count_attempts(&self, pool: Named<'_>, attempts: &[(Named<'_>, Outcome)], meters: &Meters) {
        for (server, outcome) in attempts {
            if let Some(attempts) = meters.attempts(self, pool, *server) {
                attempts.by_outcome[*outcome as usize].inc();
            }
        }
    }

    pub(super) fn requests(&self, whose: Whose<'_>) -> Requests {
        let [route, model, pool] = names(whose);
        Requests {
            by_code: ByCode::default(),
            duration: self.durations.with_label_values(&[route, model]),
            overhead: self.overheads.with_label_values(&[route]),
            first_byte: whose[2].map(|_| self.first_bytes.with_label_values(&[model, pool])),
        }
    }

    pub(super) fn attempts(&self, pool: &str, server: &str) -> Attempts {
        Attempts {
            by_outcome: Outcome::ALL.map(|outcome| self.attempts.with_label_values(&[pool, server, outcome.as_str()])),
            fresh: self.connections.with_label_values(&[pool, server, "false"]),
            reused: self.connections.with_label_values(&[pool, server, "true"]),
        }
    }

    /// The configuration was loaded, well or not, at this many seconds since the epoch.
    pub fn reloaded(&self, successful: bool, at: f64) {
        self.reload_successful.set(i64::from(successful));
        if successful {
            self.reload_timestamp.set(at);
        }
    }

    /// A server is left alone for a while.
    pub fn count_ejection(&self, pool: &str, server: &str, reason: &str) {
        self.ejections.with_label_values(&[pool, server, reason]).inc();
    }

    /// A reload is over.
    pub fn count_reload(&self, successful: bool) {
        self.reloads.with_label_values(&[if successful { "success" } else { "failure" }]).inc();
    }

    /// Forgets what was counted for all that is in use no more.
    pub fn forget(&self, names: &Names) {
        self.labelled.iter().for_each(|metric| metric.forget(names));
    }

    /// All of it in Prometheus' text format, with the clients that are connected, those that were refused since the start, how
    /// the servers are now, how many requests wait in each pool's queue, and how the cache stands.
    ///
    /// # Errors
    /// When it cannot be encoded.
    pub fn text<'s>(
        &self,
        (connected, refused): (usize, u64),
        servers: impl Iterator<Item = Gauged<'s>>,
        queues: impl Iterator<Item = (&'s str, usize)>,
        cache: Figures,
    ) -> Result<Vec<u8>> {
        let now = self.now.lock();
        now.in_flight.reset();
        now.server_up.reset();
        for Gauged { pool, server, in_flight, up } in servers {
            now.in_flight.with_label_values(&[pool, server]).set(i64::from(in_flight));
            now.server_up.with_label_values(&[pool, server]).set(i64::from(up));
        }
        now.queued.reset();
        for (pool, queued) in queues {
            now.queued.with_label_values(&[pool]).set(i64::try_from(queued).unwrap_or(i64::MAX));
        }
        now.cache_bytes.set(i64::try_from(cache.bytes).unwrap_or(i64::MAX));
        now.cache_entries.set(i64::try_from(cache.entries).unwrap_or(i64::MAX));
        now.cache_evictions.inc_by(cache.evictions.saturating_sub(now.cache_evictions.get()));
        now.clients.set(i64::try_from(connected).unwrap_or(i64::MAX));
        now.clients_refused.inc_by(refused.saturating_sub(now.clients_refused.get()));
        let mut text = Vec::new();
        TextEncoder::new().encode(&self.registry.gather(), &mut text)?;
        Ok(text)
    }
}

/// The metrics that are exposed.
#[derive(Default)]
struct List {
    registry: Registry,
    labelled: Vec<Box<dyn Labelled>>,
}

// === impl List ===

impl List {
    fn add<C: Collector + Clone + 'static>(&self, metric: C) -> Result<C> {
        self.registry.register(Box::new(metric.clone()))?;
        Ok(metric)
    }

    fn add_labelled<T: MetricVecBuilder + 'static>(&mut self, metrics: MetricVec<T>) -> Result<MetricVec<T>> {
        self.labelled.push(Box::new(metrics.clone()));
        self.add(metrics)
    }

    fn counters(&mut self, name: &str, help: &str, labels: &[&str]) -> Result<IntCounterVec> {
        self.add_labelled(IntCounterVec::new(Opts::new(name, help), labels)?)
    }

    fn gauges(&mut self, name: &str, help: &str, labels: &[&str]) -> Result<IntGaugeVec> {
        self.add_labelled(IntGaugeVec::new(Opts::new(name, help), labels)?)
    }

    fn histograms(&mut self, name: &str, help: &str, labels: &[&str], bounds: &[f64]) -> Result<HistogramVec> {
        let options = HistogramOpts::new(name, help).buckets(bounds.to_vec());
        self.add_labelled(HistogramVec::new(options, labels)?)
    }
}

fn names<'x>(whose: Whose<'x>) -> [&'x str; 3] {
    whose.map(|one| one.map_or(NONE, |one| one.name))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_are_in_the_order_in_which_they_are_counted() {
        assert!(Outcome::ALL.iter().enumerate().all(|(place, outcome)| *outcome as usize == place));
        assert!(Refused::ALL.iter().enumerate().all(|(place, reason)| *reason as usize == place));
        assert!(Left::ALL.iter().enumerate().all(|(place, phase)| *phase as usize == place));
    }
}
