//! Asks each engine whether it is well, and tells its server.
//!
//! The questions are pingora-load-balancing's; when to ask, how long to wait in all, and what an answer means is ours.

use std::convert::Infallible;
use std::sync::{Arc, LazyLock};
use std::time::{Duration, SystemTime};

use pingora::connectors::ConnectorOptions;
use pingora::connectors::http::Connector;
use pingora::protocols::l4::socket::SocketAddr as PeerAddr;
use pingora::{Error, ErrorType};
use pingora_load_balancing::Backend;
use pingora_load_balancing::health_check::{HealthCheck, HttpHealthCheck, TcpHealthCheck};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::{MissedTickBehavior, interval, timeout};

use super::resolve::Resolver;
use crate::live::Live;
use crate::pool::server::{Probed, State};
use crate::pool::settings::{Check, Health};
use crate::pool::{Pool, Server, Settings};

/// The type under which an answer that is not well comes out of a check, with its status.
const STATUS: &str = "ProbeStatus";

/// The probes of all servers of all pools; they end when this is dropped.
#[derive(Debug)]
pub struct Probes {
    _tasks: JoinSet<()>,
    /// Ends when every server that is waited for has been probed.
    first: mpsc::Receiver<Infallible>,
}

// === impl Probes ===

impl Probes {
    /// Begins to probe.
    #[must_use]
    pub fn start(live: &Live) -> Self {
        let (waited, first) = mpsc::channel(1);
        let mut tasks = JoinSet::new();
        for pool in live.pools() {
            let check = check(&pool.settings);
            let waited = (!pool.is_usable()).then_some(&waited);
            for (place, server) in pool.servers.iter().enumerate() {
                let waited = waited.filter(|_| !server.is_probed()).cloned();
                tasks.spawn(watch(pool.clone(), place, check.clone(), waited));
            }
        }
        Self { _tasks: tasks, first }
    }

    /// Waits until the pools that were of no use at the start have been probed: at most twice the longest time-out of a probe.
    pub async fn first_round(&mut self) {
        while self.first.recv().await.is_some() {}
    }
}

/// A question that is put to all servers of a pool.
type Question = Arc<dyn HealthCheck + Send + Sync>;

/// The question of every pool that is probed by a mere connect.
static CONNECT: LazyLock<Question> = LazyLock::new(|| {
    let mut check = TcpHealthCheck::new();
    check.peer_template.options.connection_timeout = None;
    Arc::from(check as Box<dyn HealthCheck + Send + Sync>)
});

/// Probes one server for ever. Gives up `waited` when it has been probed.
async fn watch(pool: Arc<Pool>, place: usize, check: Option<Question>, waited: Option<mpsc::Sender<Infallible>>) {
    let Health { interval: every, timeout: limit, rules, port, .. } = pool.settings.health;
    let (server, name) = (&pool.servers[place], &pool.settings.servers[place].name);
    let (mut resolver, mut waited) = (Resolver::default(), waited);
    let mut ticks = interval(every);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        let probed = match &check {
            Some(check) => probe(server, &mut resolver, &**check, port, limit).await,
            None => Probed::Failed("its path or host cannot be asked for".to_owned()),
        };
        if let Some(change) = server.observe(probed, rules, SystemTime::now()) {
            let (from, to) = (change.from.as_str(), change.to.as_str());
            let pool = &pool.settings.name;
            let level = if change.to == State::Down { log::Level::Warn } else { log::Level::Info };
            log::log!(level, "server {pool}/{name} is {to} (was {from}): {}", change.why);
        }
        drop(waited.take());
    }
}

/// Asks once.
async fn probe(
    server: &Server,
    resolver: &mut Resolver,
    check: &(dyn HealthCheck + Send + Sync),
    port: Option<u16>,
    limit: Duration,
) -> Probed {
    let mut address = match resolver.address(server, !server.is_up(), limit).await {
        Ok(address) => address,
        Err(why) => return Probed::Failed(why),
    };
    if let Some(port) = port {
        address.set_port(port);
    }
    let backend = Backend { addr: PeerAddr::Inet(address), weight: 1, ext: Default::default() };
    let probed = match timeout(limit, check.check(&backend)).await {
        Ok(Ok(())) => Probed::Alive,
        Ok(Err(e)) => failed(&e),
        Err(_) => Probed::Failed(format!("no answer to the probe in {} s", limit.as_secs_f32())),
    };
    resolver.failed = matches!(probed, Probed::Failed(_));
    probed
}

fn failed(e: &Error) -> Probed {
    let why = match e.root_etype() {
        ErrorType::CustomCode(STATUS, status @ (401 | 403 | 429)) => return Probed::Refused(*status),
        ErrorType::CustomCode(STATUS, status) => format!("the probe was answered with {status}"),
        ErrorType::ConnectRefused => "connection refused".to_owned(),
        ErrorType::ConnectNoRoute => "no route to it".to_owned(),
        ErrorType::ConnectionClosed => "it closed the probe's connection".to_owned(),
        other => format!("the probe failed: {}", other.as_str()),
    };
    Probed::Failed(why)
}

/// The question for a pool's servers, without time-outs of its own. `None` if it cannot be put.
fn check(settings: &Settings) -> Option<Question> {
    match &settings.health.check {
        Check::Tcp => Some(CONNECT.clone()),
        Check::Http(path) => {
            let mut check = HttpHealthCheck::new_custom("forebay", false, connector());
            check.peer_template.options.connection_timeout = None;
            check.peer_template.options.read_timeout = None;
            check.req.set_uri(path.parse().ok()?);
            if let Some(host) = &settings.host {
                check.req.insert_header("host", &**host).ok()?;
            }
            check.validator = Some(Box::new(|answer| match answer.status.as_u16() {
                200..300 => Ok(()),
                status => Err(Error::new(ErrorType::CustomCode(STATUS, status))),
            }));
            Some(Arc::new(check))
        }
    }
}

/// How a check connects. It speaks no TLS: without a file of its own it would read the system's roots, some 10 ms a pool.
fn connector() -> Connector {
    let mut options = ConnectorOptions::new(1);
    options.ca_file = Some("/dev/null".to_owned());
    Connector::new(Some(options))
}
