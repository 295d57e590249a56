//! Every metric, in one list. Labels come from the configuration only, never from what clients send.

use parking_lot::Mutex;
use prometheus::process_collector::ProcessCollector;
use prometheus::{Encoder, Gauge, IntCounterVec, IntGauge, IntGaugeVec, Opts, Registry, Result, TextEncoder};

use super::Record;

/// The registry and all that is in it.
#[derive(Debug)]
pub struct Metrics {
    registry: Registry,
    requests: IntCounterVec,
    in_flight: IntGaugeVec,
    server_up: IntGaugeVec,
    attempts: IntCounterVec,
    reloads: IntCounterVec,
    reload_successful: IntGauge,
    reload_timestamp: Gauge,
    /// Held while the gauges of what is now are set and read.
    scrape: Mutex<()>,
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

// === impl Metrics ===

impl Metrics {
    /// All metrics, at nought.
    ///
    /// # Errors
    /// When two of them have one name, which a test rules out.
    pub fn new() -> Result<Self> {
        let registry = Registry::new();
        let requests =
            counters("forebay_requests_total", "Requests, as they ended.", &["route", "model", "pool", "code"])?;
        let in_flight = gauges("forebay_in_flight", "Requests in flight at a server.", &["pool", "server"])?;
        let server_up = gauges("forebay_server_up", "1 if a server is used, else 0.", &["pool", "server"])?;
        let attempts = counters(
            "forebay_upstream_attempts_total",
            "Attempts at a server, as they ended.",
            &["pool", "server", "outcome"],
        )?;
        let reloads = counters("forebay_config_reloads_total", "Reloads of the configuration.", &["result"])?;
        let reload_successful =
            IntGauge::new("forebay_config_last_reload_successful", "1 if the last reload was, else 0.")?;
        let reload_timestamp = Gauge::new(
            "forebay_config_last_reload_success_timestamp_seconds",
            "When the configuration was last loaded well, in seconds since the epoch.",
        )?;
        let build = gauges("forebay_build_info", "1, with what runs.", &["version", "revision"])?;
        build.with_label_values(&[crate::VERSION, crate::REVISION]).set(1);
        for vector in [&in_flight, &server_up, &build] {
            registry.register(Box::new(vector.clone()))?;
        }
        for vector in [&requests, &attempts, &reloads] {
            registry.register(Box::new(vector.clone()))?;
        }
        registry.register(Box::new(reload_successful.clone()))?;
        registry.register(Box::new(reload_timestamp.clone()))?;
        let process = i32::try_from(std::process::id()).unwrap_or(0);
        registry.register(Box::new(ProcessCollector::new(process, "")))?;
        Ok(Self {
            registry,
            requests,
            in_flight,
            server_up,
            attempts,
            reloads,
            reload_successful,
            reload_timestamp,
            scrape: Mutex::default(),
        })
    }

    /// A request has ended.
    pub fn count(&self, record: &Record<'_>) {
        let label = |name: Option<_>| name.unwrap_or(NONE);
        let (route, model, pool) = (label(record.route), label(record.model), label(record.pool));
        self.requests.with_label_values(&[route, model, pool, &*record.status.to_string()]).inc();
        for attempt in &record.attempts {
            self.attempts.with_label_values(&[pool, &*attempt.server, attempt.outcome]).inc();
        }
    }

    /// The configuration was loaded, well or not, at this many seconds since the epoch.
    pub fn reloaded(&self, successful: bool, at: f64) {
        self.reload_successful.set(i64::from(successful));
        if successful {
            self.reload_timestamp.set(at);
        }
    }

    /// A reload is over.
    pub fn count_reload(&self, successful: bool) {
        self.reloads.with_label_values(&[if successful { "success" } else { "failure" }]).inc();
    }

    /// All of it in Prometheus' text format, with how the servers are now.
    ///
    /// # Errors
    /// When it cannot be encoded.
    pub fn text<'s>(&self, servers: impl Iterator<Item = Gauged<'s>>) -> Result<Vec<u8>> {
        let _scrape = self.scrape.lock();
        self.in_flight.reset();
        self.server_up.reset();
        for Gauged { pool, server, in_flight, up } in servers {
            self.in_flight.with_label_values(&[pool, server]).set(i64::from(in_flight));
            self.server_up.with_label_values(&[pool, server]).set(i64::from(up));
        }
        let mut text = Vec::new();
        TextEncoder::new().encode(&self.registry.gather(), &mut text)?;
        Ok(text)
    }
}

fn counters(name: &str, help: &str, labels: &[&str]) -> Result<IntCounterVec> {
    IntCounterVec::new(Opts::new(name, help), labels)
}

fn gauges(name: &str, help: &str, labels: &[&str]) -> Result<IntGaugeVec> {
    IntGaugeVec::new(Opts::new(name, help), labels)
}
