//! Asks each engine whether it is well, and tells its server.
//!
//! The questions are pingora-load-balancing's; when to ask, how long to wait in all, and what an answer means is ours.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::os::unix::net::SocketAddr as UnixSocketAddr;
use std::sync::{Arc, LazyLock};
use std::time::Instant;

use pingora::connectors::ConnectorOptions;
use pingora::connectors::http::Connector;
use pingora::protocols::l4::socket::SocketAddr as PeerAddr;
use pingora::{Error, ErrorType};
use pingora_load_balancing::Backend;
use pingora_load_balancing::health_check::{HealthCheck, HttpHealthCheck, TcpHealthCheck};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::{MissedTickBehavior, interval, sleep_until, timeout};

use super::resolve::Resolver;
use crate::live::Live;
use crate::observe::Observer;
use crate::pool::health::{Change, Probed, State};
use crate::pool::server::Order;
use crate::pool::settings::{Check, Endpoint, Health, Protocol};
use crate::pool::{Pool, Server, Settings};
use crate::proxy::announce;
use crate::proxy::ending::in_words;

/// The type under which an answer that is not well comes out of a check, with its status.
const STATUS: &str = "ProbeStatus";

/// What watches over the servers of all pools: their probes, and whether they have fallen silent. It ends when this is dropped.
#[derive(Debug)]
pub struct Probes {
    _tasks: JoinSet<()>,
    /// Ends when every server that is waited for has been probed.
    first: mpsc::Receiver<Infallible>,
}

// === impl Probes ===

impl Probes {
    /// Begins to watch.
    #[must_use]
    pub fn start(live: &Live, observer: &Arc<Observer>) -> Self {
        let (waited, first) = mpsc::channel(1);
        let mut tasks = JoinSet::new();
        for pool in live.pools() {
            if pool.settings.eject.stall.is_some() {
                tasks.spawn(listen(pool.clone(), observer.clone()));
            }
            let check = check(&pool.settings);
            for (place, server) in pool.servers.iter().enumerate() {
                let waited = (!server.is_probed()).then(|| waited.clone());
                tasks.spawn(watch(pool.clone(), place, check.clone(), waited));
            }
        }
        Self { _tasks: tasks, first }
    }

    /// Waits until the servers that were not probed before have been: at most the longest time-out of a probe, twice for a name.
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

/// Notices when a server of a pool falls silent: it sleeps until the soonest moment at which one can have been for too long.
async fn listen(pool: Arc<Pool>, observer: Arc<Observer>) {
    loop {
        let (news, next) = pool.stalls(Instant::now());
        news.iter().for_each(|news| announce(&observer, &pool, news));
        sleep_until(next.into()).await;
    }
}

/// Probes one server for ever. Gives up `waited` when it has been probed.
async fn watch(pool: Arc<Pool>, place: usize, check: Question, waited: Option<mpsc::Sender<Infallible>>) {
    let health = &pool.settings.health;
    let server = &pool.servers[place];
    let (mut resolver, mut waited) = (Resolver::default(), waited);
    let mut ticks = interval(health.interval);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        if server.ordered() == Order::Maint {
            drop(waited.take());
            continue;
        }
        let asked = Instant::now();
        let probed = probe(server, &mut resolver, &check, health).await;
        let probed = probed.filter(|_| server.ordered() != Order::Maint); // it may have begun meanwhile
        let late = matches!(probed, Some(Probed::Late(_)));
        if let Some(change) = probed.and_then(|probed| server.observe(probed, health.rules, asked)) {
            changed(&pool, place, &change);
        }
        if late && !server.is_up() {
            pool.silent(place, Instant::now());
        }
        drop(waited.take());
    }
}

/// Says that a server's state has changed, and lets those who wait have it.
fn changed(pool: &Pool, place: usize, change: &Change) {
    let (from, to) = (change.from.as_str(), change.to.as_str());
    let (name, server) = (&pool.settings.name, &pool.settings.servers[place].name);
    let level = if change.to == State::Down { log::Level::Warn } else { log::Level::Info };
    log::log!(level, "server {name}/{server} is {to} (was {from}): {}", change.why);
    if change.to == State::Up {
        pool.serve(Instant::now());
    }
}

/// Asks once: at each address of the server until one answers, all in the time of one probe. `None`: it could not be asked.
async fn probe(server: &Server, resolver: &mut Resolver, check: &Question, health: &Health) -> Option<Probed> {
    let late = || Some(Probed::Late(format!("no answer to the probe in {} s", health.timeout.as_secs_f32())));
    let addresses = match resolver.addresses(server, health.timeout).await {
        Ok(addresses) => addresses,
        Err(why) => return Some(Probed::Failed(why)),
    };
    let share = health.timeout / u32::try_from(addresses.len()).unwrap_or(1).max(1);
    let mut last = None;
    for address in addresses {
        let Some(addr) = probed_at(&address, health.port) else { continue };
        let backend = Backend { addr, weight: 1, ext: Default::default() };
        last = match timeout(share, check.check(&backend)).await {
            Ok(Ok(())) => Some(Probed::Alive),
            Ok(Err(e)) => failed(&e),
            Err(_) => late(),
        };
        if matches!(last, Some(Probed::Alive | Probed::Refused(_))) {
            if let Endpoint::Socket(address) = address {
                server.resolves_to(address);
            }
            break;
        }
    }
    last
}

/// Where a server's probe goes: to its own address, or to another port there.
fn probed_at(server: &Endpoint, port: Option<u16>) -> Option<PeerAddr> {
    match server {
        Endpoint::Socket(address) => {
            Some(PeerAddr::Inet(SocketAddr::new(address.ip(), port.unwrap_or(address.port()))))
        }
        Endpoint::Unix(path) => UnixSocketAddr::from_pathname(path).map(PeerAddr::Unix).ok(),
    }
}

/// What a failed check says of the server; `None`: nothing.
fn failed(e: &Error) -> Option<Probed> {
    Some(match e.root_etype() {
        ErrorType::SocketError => return None,
        ErrorType::CustomCode(STATUS, status @ (401 | 403 | 429)) => Probed::Refused(*status),
        ErrorType::CustomCode(STATUS, status) => Probed::Failed(format!("the probe was answered with {status}")),
        _ => Probed::Failed(in_words(e).to_owned()),
    })
}

/// The question for a pool's servers, without time-outs of its own.
fn check(settings: &Settings) -> Question {
    let Check::Http(path) = &settings.health.check else { return CONNECT.clone() };
    let mut check = HttpHealthCheck::new_custom("forebay", false, connector());
    check.peer_template.options.connection_timeout = None;
    check.peer_template.options.read_timeout = None;
    if settings.protocol == Protocol::Http2 {
        check.peer_template.options.set_http_version(2, 2);
    }
    check.req.set_uri(path.clone());
    for (name, value) in settings.headers.fixed() {
        let _ = check.req.insert_header(name, value); // of its types already: none is refused
    }
    check.validator = Some(Box::new(|answer| match answer.status.as_u16() {
        200..300 => Ok(()),
        status => Err(Error::new(ErrorType::CustomCode(STATUS, status))),
    }));
    Arc::new(check)
}

/// What connects for a few requests of our own. It speaks no TLS: without a file of its own it would read the system's roots,
/// some 10 ms each time.
#[must_use]
pub fn connector() -> Connector {
    let mut options = ConnectorOptions::new(1);
    options.ca_file = Some("/dev/null".to_owned());
    Connector::new(Some(options))
}
