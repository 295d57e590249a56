//! forebay as a sentence: `in_front_of(&[&engine]).pool("…").start().await`.
//!
//! It is put together as the daemon does it, on a port that the system chooses, and its access log is read back from memory.
//! Every wait has a deadline, so that what never comes fails with its name.

use std::fmt::Display;
use std::future::Future;
use std::io::Write;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::time::{Duration, Instant};

use forebay::access::key;
use forebay::config::plan::Plan;
use forebay::daemon::door::Door;
use forebay::daemon::probe::Probes;
use forebay::daemon::{self, connection, listen};
use forebay::live::clients::Clients;
use forebay::live::{Current, Live};
use forebay::observe::access_log::Destination;
use forebay::observe::sink::Sink;
use forebay::observe::{AccessLog, Format, Metrics, Observer};
use forebay::pool::Server;
use forebay::proxy::Proxy;
use parking_lot::Mutex;
use pingora::server::configuration::ServerConf;
use serde_json::Value;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;

use crate::upstream::Engine;

/// The secret of the key `team`, which may ask every model and use every route.
pub(crate) const SECRET: &str = "fb-a-secret-for-tests";
/// How long anything may take before a test gives it up.
pub(crate) const PATIENCE: Duration = Duration::from_secs(10);

/// A forebay under construction: pool `p`, model `m` and key `team`, and what is added to them.
pub(crate) struct Builder {
    server: String,
    servers: Vec<String>,
    pool: String,
    health: String,
    rest: String,
}

/// A running forebay. It ends with its drop.
pub(crate) struct Forebay {
    pub(crate) address: SocketAddr,
    pub(crate) current: Arc<Current>,
    observer: Arc<Observer>,
    log: Buffer,
    read: AtomicUsize,
    door: JoinHandle<()>,
    _held: (Probes, watch::Sender<bool>, mpsc::Receiver<()>),
}

/// Where the access log goes.
#[derive(Clone, Default)]
struct Buffer(Arc<Mutex<Vec<u8>>>);

/// A file that is gone with its drop.
struct File(PathBuf);

/// forebay with these engines as the servers `s0`, `s1`, … of pool `p`.
pub(crate) fn in_front_of(engines: &[&Engine]) -> Builder {
    let addresses: Vec<SocketAddr> = engines.iter().map(|engine| engine.address).collect();
    at(&addresses)
}

/// The same for engines of any kind, by their addresses.
pub(crate) fn at(addresses: &[impl Display]) -> Builder {
    let server = |(n, address)| format!("{{ address = \"{address}\", name = \"s{n}\" }}");
    Builder {
        server: String::new(),
        servers: addresses.iter().enumerate().map(server).collect(),
        pool: String::new(),
        health: "interval = \"5s\"".into(),
        rest: String::new(),
    }
}

/// The table of one more pool.
pub(crate) fn pool(name: &str, engine: &Engine, keys: &str) -> String {
    format!("[pool.{name}]\nservers = [\"{}\"]\n{keys}\n[pool.{name}.health]\npath = \"/probe\"\n", engine.address)
}

/// The table of one more key.
pub(crate) fn key(name: &str, secret: &str, keys: &str) -> String {
    let digest: String = key::digest(secret.as_bytes()).iter().map(|byte| format!("{byte:02x}")).collect();
    format!("[[key]]\nname = \"{name}\"\nsha256 = \"{digest}\"\n{keys}\n")
}

/// What `look` sees, as soon as it sees something.
pub(crate) async fn eventually<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let until = Instant::now() + PATIENCE;
    loop {
        if let Some(seen) = look() {
            return seen;
        }
        assert!(Instant::now() < until, "not in {PATIENCE:?}: {what}");
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

/// What comes of `future`, in time.
pub(crate) async fn soon<T>(what: &str, future: impl Future<Output = T>) -> T {
    tokio::time::timeout(PATIENCE, future).await.unwrap_or_else(|_| panic!("not in {PATIENCE:?}: {what}"))
}

// === impl Builder ===

impl Builder {
    /// With these lines in `[server]`.
    pub(crate) fn server(mut self, lines: &str) -> Self {
        self.server = lines.into();
        self
    }

    /// With these lines in `[pool.p]`.
    pub(crate) fn pool(mut self, lines: &str) -> Self {
        self.pool = lines.into();
        self
    }

    /// With these lines in `[pool.p.health]`.
    pub(crate) fn health(mut self, lines: &str) -> Self {
        self.health = lines.into();
        self
    }

    /// With one of these in each server's table.
    pub(crate) fn each(mut self, keys: &[&str]) -> Self {
        for (server, keys) in self.servers.iter_mut().zip(keys) {
            *server = server.replace('}', &format!(", {keys} }}"));
        }
        self
    }

    /// With these tables.
    pub(crate) fn and(mut self, tables: &str) -> Self {
        self.rest.push_str(tables);
        self.rest.push('\n');
        self
    }

    /// Starts it, and waits for the first round of probes.
    pub(crate) async fn start(self) -> Forebay {
        let plan = self.plan();
        let bound = listen::bind(&plan.server.listen, vec![]).unwrap().remove(0);
        let address = listen::address(&bound).parse().unwrap();
        let live = Live::new(plan, None);
        let current = Arc::new(Current::new(live));
        let log = Buffer::default();
        let access_log = AccessLog::new(Sink::new(log.clone()).unwrap());
        access_log.set(&Destination::Stderr, Format::Json).unwrap();
        let observer = Arc::new(Observer { metrics: Metrics::new().unwrap(), access_log });
        let probes = Probes::start(&current.live(), &observer);
        let proxy = Proxy::new(current.clone(), observer.clone(), connection::OF_A_REQUEST);
        let ((stop, stopped), (_, cut)) = (watch::channel(false), watch::channel(false));
        let (open, opened) = mpsc::channel(1);
        let app = daemon::pingora(proxy, ServerConf::default());
        let door = Door {
            app,
            current: current.clone(),
            stop: stopped,
            cut,
            open,
            clients: Clients::default(),
            limited: false,
        };
        let door = tokio::spawn(async move { door.run(bound).await.unwrap() });
        eventually("every server is probed", || current.live().is_probed().then_some(())).await;
        Forebay { address, current, observer, log, read: AtomicUsize::new(0), door, _held: (probes, stop, opened) }
    }

    fn plan(&self) -> Plan {
        static FILES: AtomicUsize = AtomicUsize::new(0);
        let Self { server, servers, pool, health, rest } = self;
        let retry = if rest.contains("[pool.p.retry]") { "" } else { "[pool.p.retry]\nslow_start = \"0s\"" };
        let path = if health.contains("path") { "" } else { "path = \"/probe\"" };
        let (servers, key) = (servers.join(", "), key("team", SECRET, "models = [\"*\"]"));
        let text = format!(
            "[server]\nlisten = [\"127.0.0.1:0\"]\n{server}\n\
             [pool.p]\nservers = [{servers}]\n{pool}\n[pool.p.health]\n{path}\n{health}\n{retry}\n\
             [model.m]\npool = \"p\"\n{key}\n{rest}"
        );
        let name = format!("forebay-{}-{}.toml", std::process::id(), FILES.fetch_add(1, Relaxed));
        let file = File(std::env::temp_dir().join(name));
        std::fs::write(&file.0, &text).unwrap();
        Plan::load(&file.0, &|_| None).unwrap_or_else(|faults| panic!("{faults}\n{text}"))
    }
}

// === impl Forebay ===

impl Forebay {
    /// Server number `n` of pool `p`.
    pub(crate) fn server(&self, n: usize) -> Arc<Server> {
        let live = self.current.live();
        let pool = live.pools().find(|pool| &*pool.settings.name == "p").unwrap();
        pool.servers[n].clone()
    }

    /// Waits until so many requests are in the queue of pool `p`.
    pub(crate) async fn queued(&self, wanted: usize) {
        let live = self.current.live();
        let pool = live.pools().find(|pool| &*pool.settings.name == "p").unwrap();
        eventually(&format!("{wanted} in the queue"), || (pool.queued() == wanted).then_some(())).await;
    }

    /// The next line of the access log that was not read yet.
    pub(crate) async fn record(&self) -> Value {
        let place = self.read.fetch_add(1, Relaxed);
        eventually("a line in the access log", || self.log.line(place)).await
    }

    /// The access log from here on, when it has so many more lines.
    pub(crate) async fn records(&self, n: usize) -> Vec<Value> {
        let mut all = Vec::new();
        for _ in 0..n {
            all.push(self.record().await);
        }
        all
    }

    /// How the attempts of all requests that were logged ended, by the metrics: `s0 refused 1, s1 answered 2`.
    pub(crate) fn outcomes(&self) -> String {
        self.counted("forebay_upstream_attempts_total{", &["server", "outcome"])
    }

    /// In which phases clients left, by the metrics: `waiting 1`.
    pub(crate) fn aborts(&self) -> String {
        self.counted("forebay_client_aborts_total{", &["phase"])
    }

    fn counted(&self, series: &str, labels: &[&str]) -> String {
        let text =
            self.observer.metrics.text((0, 0), std::iter::empty(), std::iter::empty(), self.current.cached()).unwrap();
        let label = |line: &str, name: &str| {
            let value = line.split(&format!("{name}=\"")).nth(1)?.split('"').next()?;
            Some(format!("{value} "))
        };
        let line = |line: &str| {
            let (line, count) = line.strip_prefix(series)?.rsplit_once(' ')?;
            let labels: String = labels.iter().map(|name| label(line, name)).collect::<Option<_>>()?;
            (count != "0").then(|| labels + count)
        };
        let mut all: Vec<String> = std::str::from_utf8(&text).unwrap().lines().filter_map(line).collect();
        all.sort();
        all.join(", ")
    }

    /// Waits until nothing is in flight at any server.
    pub(crate) async fn idle(&self) {
        self.idle_but(0).await;
    }

    /// Waits until so many requests are in flight, at all servers together.
    pub(crate) async fn idle_but(&self, left: u32) {
        let live = self.current.live();
        let busy = || live.pools().flat_map(|pool| &pool.servers).map(|server| server.in_flight()).sum::<u32>();
        eventually(&format!("{left} in flight"), || (busy() == left).then_some(())).await;
    }
}

impl Drop for Forebay {
    fn drop(&mut self) {
        self.door.abort();
    }
}

// === impl Buffer ===

impl Buffer {
    fn line(&self, place: usize) -> Option<Value> {
        let text = self.0.lock();
        let line = text.split_inclusive(|byte| *byte == b'\n').nth(place)?;
        Some(serde_json::from_slice(line).unwrap())
    }
}

impl Write for Buffer {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

impl Drop for File {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0); // the test is over anyway
    }
}
