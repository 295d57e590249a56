//! What the configuration says of a pool, checked and compiled.

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use http::header::{AUTHORIZATION, HOST};
use http::{HeaderName, HeaderValue, Uri};
use serde::Deserialize;
use sha2::{Digest as _, Sha256};

use super::balance::Balance;
use super::eject;
use super::health::Rules;

/// One pool as configured.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    /// A metric label.
    pub name: Arc<str>,
    /// The servers in the file's order.
    pub servers: Vec<Server>,
    /// The rule that picks one.
    pub balance: Balance,
    /// What is spoken with them.
    pub protocol: Protocol,
    /// What is changed in the header of each request.
    pub headers: Headers,
    /// Put before the path; no trailing slash.
    pub path_prefix: Box<str>,
    /// How its servers are probed.
    pub health: Health,
    /// The longest a connect may take.
    pub connect: Option<Duration>,
    /// How long an engine may take.
    pub limits: Limits,
    /// How long an idle connection to an engine is kept.
    pub idle_timeout: Duration,
    /// When a server is ejected.
    pub eject: eject::Rules,
    /// What happens when a server fails.
    pub retry: Retry,
    /// Who may wait while all servers are at their limits; none: no server has a limit.
    pub queue: Option<Queue>,
}

/// What happens when a server fails, and when it is back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Retry {
    /// How many servers a request may try in all.
    pub attempts: usize,
    /// What all retries may cost: so much of the pool's requests, in hundredths of a percent.
    pub budget: u32,
    /// How long the weight of a server that is back or new takes to climb.
    pub slow_start: Duration,
}

/// Who may wait while all servers are at their limits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Queue {
    /// How many at once.
    pub size: usize,
    /// How long.
    pub timeout: Duration,
}

/// How long an engine may take; none: as long as it likes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Limits {
    /// Until its response header.
    pub first_byte: Option<Duration>,
    /// Between two pieces of its response.
    pub idle: Option<Duration>,
    /// From the request's header to the response's end, all attempts together.
    pub total: Option<Duration>,
}

/// What is changed in the header of each request to a pool's servers. Values may be secrets: none shows in debug output.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Headers {
    /// The `Host` sent to the engines; `None`: the client's.
    pub host: Option<HeaderValue>,
    /// The `Authorization` sent to the engines; `None`: none of forebay's.
    pub api_key: Option<HeaderValue>,
    /// Set, in place of what was there.
    pub set: Vec<(HeaderName, HeaderValue)>,
    /// Taken away.
    pub remove: Vec<HeaderName>,
}

/// One engine as configured.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Server {
    /// As configured, else its address; a metric label.
    pub name: Arc<str>,
    /// Where it listens.
    pub address: Address,
    /// Its share of the requests; 0: nothing new.
    pub weight: u32,
    /// Used only where no other server is usable.
    pub backup: bool,
    /// The most requests that it has in flight at once; 0: no limit.
    pub max_in_flight: u32,
}

/// The largest weight: with it and the share that it may climb by, all arithmetic is exact.
pub const HEAVIEST: u32 = 10_000;

/// Where an engine listens.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Address {
    /// An IP address and a port.
    Socket(SocketAddr),
    /// A host name to be resolved, and a port.
    Name {
        /// The host's name.
        host: Box<str>,
        /// The port.
        port: u16,
    },
    /// The path of a unix socket.
    Unix(PathBuf),
}

/// Where an engine is reached, when nothing is left to be resolved.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Endpoint {
    /// An IP address and a port.
    Socket(SocketAddr),
    /// The path of a unix socket.
    Unix(PathBuf),
}

/// What is spoken with an engine.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Protocol {
    /// HTTP/1.1: a connection for each request at a time.
    #[default]
    Http1,
    /// HTTP/2: several requests share a connection. Without TLS by prior knowledge.
    Http2,
}

/// How a pool's servers are probed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Health {
    /// What is asked.
    pub check: Check,
    /// Where, if not at the server's own port.
    pub port: Option<u16>,
    /// From one round to the next.
    pub interval: Duration,
    /// The longest a probe may take in all.
    pub timeout: Duration,
    /// How many answers in a row change a server's state.
    pub rules: Rules,
}

/// What a probe asks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Check {
    /// A GET of this path, answered with 2xx.
    Http(Uri),
    /// A connection, accepted.
    Tcp,
}

// === impl Headers ===

impl Headers {
    /// All that is set, whatever was there before.
    pub fn fixed(&self) -> impl Iterator<Item = (HeaderName, &HeaderValue)> {
        let host = self.host.as_ref().map(|host| (HOST, host));
        let api_key = self.api_key.as_ref().map(|key| (AUTHORIZATION, key));
        self.set.iter().map(|(name, value)| (name.clone(), value)).chain(host).chain(api_key)
    }
}

// === impl Address ===

impl Address {
    /// An IP address stands for itself, anything else is a name.
    #[must_use]
    pub fn new(host: &str, port: u16) -> Self {
        match host.parse::<IpAddr>() {
            Ok(ip) => Self::Socket(SocketAddr::new(ip, port)),
            Err(_) => Self::Name { host: host.into(), port },
        }
    }

    /// A number by which selectors tell servers apart: the same in every process that knows this address.
    #[must_use]
    pub fn id(&self) -> u64 {
        let digest = Sha256::digest(self.to_string());
        digest.iter().take(8).fold(0, |id, byte| id << 8 | u64::from(*byte))
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Socket(address) => address.fmt(f),
            Self::Name { host, port } => write!(f, "{host}:{port}"),
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}

#[cfg(test)]
impl Settings {
    /// An empty pool with the defaults, for tests.
    pub(crate) fn named(name: &str) -> Self {
        Self {
            name: name.into(),
            servers: vec![],
            balance: Balance::RoundRobin,
            protocol: Protocol::Http1,
            headers: Headers::default(),
            path_prefix: "".into(),
            health: Health {
                check: Check::Tcp,
                port: None,
                interval: Duration::from_secs(5),
                timeout: Duration::from_secs(2),
                rules: Rules { rise: 2, fall: 3 },
            },
            connect: None,
            limits: Limits::default(),
            idle_timeout: Duration::from_secs(4),
            eject: eject::Rules {
                failures: 5,
                duration: Duration::from_secs(10),
                max: 5_000,
                stall: None,
                stall_per_100kb: Duration::ZERO,
            },
            retry: Retry { attempts: 3, budget: 2_000, slow_start: Duration::ZERO },
            queue: None,
        }
    }
}
