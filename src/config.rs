//! The configuration file as written: one field a key, one `impl Default` a table.
//!
//! Only what is built is listed, so a key of a later version is an unknown key and a fault. A [`Spanned`] value
//! remembers where it stands, in the offsets of [`Sources`]; a default stands nowhere, at `0..0`. What the values
//! mean together (a pool that no one defines, a route that goes two ways) is checked when the file is compiled
//! into what runs.

mod address;
pub mod changes;
mod compile;
mod decode;
mod fault;
mod footprint;
mod merge;
mod parse;
pub mod plan;
mod secret;
mod source;
mod table;
mod units;
mod variable;
mod wording;

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr};
use std::num::NonZeroU32;
use std::path::PathBuf;
use std::time::Duration;

use ipnet::IpNet;
use jiff::Timestamp;
use serde::{Deserialize, Deserializer};
pub use toml::Spanned;

pub use address::Listen;
pub use fault::{Fault, Faults, Place};
pub use footprint::Footprint;
pub use merge::Declared;
pub use secret::Secret;
#[cfg(test)]
pub(crate) use source::tests::Folder;
pub use source::{Loaded, Sources, load};
pub use units::{Digest, Share, Size, parse_duration};

use crate::access::route::Auth;
use crate::observe::Format;
use crate::observe::access_log::Destination;
use crate::pool::balance::Balance;
use crate::pool::settings::{Address, Protocol};

/// The whole file, its includes merged into it.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default, remote = "Self")]
pub struct Config {
    /// Further files, or globs of them, relative to the file that names them; already followed.
    pub include: Vec<Spanned<String>>,
    /// The traffic listeners and what every connection shares.
    pub server: ServerTable,
    /// The listener for metrics, probes and status.
    pub admin: Admin,
    /// What is said on stderr.
    pub log: Log,
    /// The memory for answers that are kept.
    pub cache: Cache,
    /// Interchangeable engines, by name.
    pub pool: BTreeMap<Spanned<String>, Pool>,
    /// Public model names and who serves them.
    pub model: BTreeMap<Spanned<String>, Model>,
    /// Entry points, tried in order.
    pub route: Vec<Spanned<Route>>,
    /// Clients' credentials.
    pub key: Vec<Spanned<Key>>,
}

/// `[server]`: the traffic listeners and what every connection shares.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, default, remote = "Self")]
pub struct ServerTable {
    /// Where clients connect: HTTP/1.1 and cleartext HTTP/2.
    #[serde(deserialize_with = "units::some_of")]
    pub listen: Vec<Spanned<Listen>>,
    /// Worker threads; 0 = one per core.
    pub threads: Spanned<usize>,
    /// The largest request body; a larger one is 413.
    pub max_body: Size,
    /// The most client connections; one more is refused; 0 = no limit besides the process's file limit.
    pub max_connections: usize,
    /// Who is believed about the client's address, scheme and host.
    #[serde(deserialize_with = "units::networks")]
    pub trusted_proxies: Vec<IpNet>,
    /// A whole request header must arrive in this time.
    #[serde(deserialize_with = "units::duration")]
    pub header_timeout: Duration,
    /// The longest silence while a request body arrives.
    #[serde(deserialize_with = "units::duration")]
    pub body_timeout: Duration,
    /// How long an idle client connection is kept.
    #[serde(deserialize_with = "units::duration")]
    pub keepalive: Duration,
    /// On shutdown, how long clients are still accepted while `/readyz` already says 503.
    #[serde(deserialize_with = "units::duration")]
    pub min_drain: Duration,
    /// On shutdown, how long requests in flight may take.
    #[serde(deserialize_with = "units::duration")]
    pub drain: Duration,
    /// The same for the old process after an upgrade.
    #[serde(deserialize_with = "units::duration")]
    pub drain_upgrade: Duration,
    /// Idle connections kept to engines, in all.
    pub upstream_idle: Spanned<usize>,
    /// Whether the files are read again as soon as one of them has changed.
    pub watch: bool,
}

/// `[admin]`: the listener for metrics, probes and status.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, default, remote = "Self")]
pub struct Admin {
    /// Where the operator's tools connect: one address or a list of them.
    #[serde(deserialize_with = "units::one_or_some")]
    pub listen: Vec<Spanned<Listen>>,
    /// Digest of the bearer token for calls that change something; `None` (written `""`) = only over a unix socket.
    #[serde(deserialize_with = "units::digest_or_none")]
    pub token_sha256: Option<Spanned<Digest>>,
}

/// `[log]`: what is said, and where.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, default, remote = "Self")]
pub struct Log {
    /// The least urgent level that is still said.
    pub level: Level,
    /// How lines are written, those of the access log too.
    pub format: Format,
    /// Where the access log goes.
    pub access: Spanned<Destination>,
}

/// How urgent a log line must be to be said.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, PartialEq)]
#[serde(rename_all = "lowercase")]
pub enum Level {
    /// Something failed for good.
    Error,
    /// Something is wrong and was survived.
    Warn,
    /// What an operator wants to know.
    #[default]
    Info,
    /// What a developer wants to know.
    Debug,
    /// Everything.
    Trace,
}

/// `[pool.NAME]`: interchangeable engines.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, remote = "Self")]
pub struct Pool {
    /// What runs there; sets the health path.
    #[serde(default)]
    pub engine: Engine,
    /// The engines, at least one; the order breaks round-robin's ties.
    #[serde(deserialize_with = "units::spanned_some_of")]
    pub servers: Spanned<Vec<Spanned<Server>>>,
    /// The rule that picks a server.
    #[serde(default)]
    pub balance: Balance,
    /// What is spoken with the engines.
    #[serde(default)]
    pub protocol: Protocol,
    /// The engines' own key, sent as a bearer token.
    #[serde(default = "no_secret")]
    pub api_key: Spanned<Secret>,
    /// The `Host` header to send; `""` or left out: the client's.
    #[serde(default)]
    pub host: Option<Spanned<String>>,
    /// Put before the path, such as `/api`; `""` or left out: nothing.
    #[serde(default)]
    pub path_prefix: Option<Spanned<String>>,
    /// Headers that requests to the engines get, in place of what clients sent in them.
    #[serde(default)]
    pub set_headers: BTreeMap<Spanned<String>, Spanned<String>>,
    /// Headers of clients that engines do not get.
    #[serde(default)]
    pub remove_headers: Vec<Spanned<String>>,
    /// The most requests that each server has in flight at once; 0 = no limit.
    #[serde(default)]
    pub max_in_flight: u32,
    /// Who may wait while every server is at its limit; left out: nobody.
    #[serde(default)]
    pub queue: Option<Spanned<Queue>>,
    /// How the servers are probed.
    #[serde(default)]
    pub health: Health,
    /// When a server is left alone because of what requests met there.
    #[serde(default)]
    pub eject: Eject,
    /// How long the engine may take.
    #[serde(default)]
    pub timeouts: Timeouts,
    /// The connections kept to the engines.
    #[serde(default)]
    pub connections: Connections,
    /// What happens when a server fails before its first response byte.
    #[serde(default)]
    pub retry: Retry,
}

/// The kind of engine a pool is made of.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, PartialEq)]
#[serde(rename_all = "lowercase")]
pub enum Engine {
    /// Any OpenAI-compatible server or provider.
    #[default]
    Openai,
    /// vLLM.
    Vllm,
    /// SGLang.
    Sglang,
    /// llama.cpp's server.
    #[serde(rename = "llama.cpp")]
    LlamaCpp,
    /// Hugging Face's text-generation-inference.
    Tgi,
    /// Ollama.
    Ollama,
    /// Triton, KServe v2, MLServer.
    Triton,
    /// Anything else that speaks HTTP.
    Http,
}

/// One engine of a pool, written as `"host:port"` or as a table.
#[derive(Debug)]
pub struct Server {
    /// Where it listens.
    pub address: Spanned<Address>,
    /// Its share of the traffic; 0 = gets nothing new.
    pub weight: u32,
    /// How it is called in logs and metrics; left out: by its address.
    pub name: Option<Spanned<String>>,
    /// Used only when no other server is usable.
    pub backup: bool,
    /// The most requests that it has in flight at once; 0 = no limit; left out: the pool's.
    pub max_in_flight: Option<u32>,
}

/// `[pool.NAME.queue]`: the requests that may wait while every server is at its limit.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, default, remote = "Self")]
pub struct Queue {
    /// How many at once.
    pub size: NonZeroU32,
    /// How long each; never zero.
    #[serde(deserialize_with = "units::positive_duration")]
    pub timeout: Duration,
}

/// `[pool.NAME.health]`: how the servers are probed.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, default, remote = "Self")]
pub struct Health {
    /// What is asked for; `""` = TCP connect only; left out: by engine.
    pub path: Option<Spanned<String>>,
    /// The port probes go to; 0 = the server's own.
    pub port: Spanned<u16>,
    /// From one probe to the next; never zero.
    #[serde(deserialize_with = "units::positive_duration")]
    pub interval: Duration,
    /// How long a probe may take; never zero.
    #[serde(deserialize_with = "units::positive_duration")]
    pub timeout: Duration,
    /// Good probes in a row until a server that was down is up.
    pub rise: NonZeroU32,
    /// Bad probes in a row until a server is down.
    pub fall: NonZeroU32,
}

/// `[pool.NAME.eject]`: when a server is left alone because of what requests met there.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, default, remote = "Self")]
pub struct Eject {
    /// Failures in a row: no connection, a reset, a 5xx.
    pub failures: NonZeroU32,
    /// For how long the first time; it doubles, up to 16 times this; never zero.
    #[serde(deserialize_with = "units::positive_duration")]
    pub duration: Duration,
    /// The most of the pool that is left alone at once, rounded down; the only server never is.
    pub max: Share,
    /// A server with streamed requests in flight and not a byte of an answer for so long is left alone; zero = never.
    #[serde(deserialize_with = "units::duration")]
    pub stall: Duration,
    /// So much longer for each 100 kB of prompt that waits there.
    #[serde(deserialize_with = "units::duration")]
    pub stall_per_100kb: Duration,
}

/// `[pool.NAME.timeouts]`: how long the engine may take; zero = no limit.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, default, remote = "Self")]
pub struct Timeouts {
    /// Until the connection stands.
    #[serde(deserialize_with = "units::duration")]
    pub connect: Duration,
    /// Until the response header is there.
    #[serde(deserialize_with = "units::duration")]
    pub first_byte: Duration,
    /// The longest silence inside a response.
    #[serde(deserialize_with = "units::duration")]
    pub idle: Duration,
    /// From the request's header to the response's end.
    #[serde(deserialize_with = "units::duration")]
    pub total: Duration,
}

/// `[pool.NAME.connections]`: the connections kept to the engines.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, default, remote = "Self")]
pub struct Connections {
    /// How long an idle one is kept; shorter than the engine keeps it.
    #[serde(deserialize_with = "units::duration")]
    pub idle_timeout: Duration,
}

/// `[pool.NAME.retry]`: what happens when a server fails before its first response byte.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, default, remote = "Self")]
pub struct Retry {
    /// How many servers are tried in all.
    pub attempts: NonZeroU32,
    /// What all retries of the pool may cost: so much of its requests.
    pub budget: Share,
    /// How long the weight of a server that is back or new takes to climb from a tenth.
    #[serde(deserialize_with = "units::duration")]
    pub slow_start: Duration,
}

/// `[model.NAME]`: who serves a public model name.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, remote = "Self")]
pub struct Model {
    /// The pool that serves it.
    pub pool: Spanned<String>,
    /// The name sent to the engine; left out: the public name.
    #[serde(default)]
    pub upstream: Option<String>,
    /// What `/v1/models` says about its owner.
    #[serde(default = "owner")]
    pub owned_by: String,
    /// Which version of the model the engines run: answers of another one are not given.
    #[serde(default)]
    pub version: String,
    /// Whether its answers are kept; left out: not.
    #[serde(default)]
    pub cache: Option<ModelCache>,
}

/// `[cache]`: the memory for answers that are kept or being computed.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, default, remote = "Self")]
pub struct Cache {
    /// All that they take: bodies, headers and keys. A quarter is for those that are being computed.
    pub memory: Spanned<Size>,
    /// The largest body that is kept.
    pub max_body: Spanned<Size>,
}

/// `[model.NAME.cache]`: how a model's answers are kept.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, default, remote = "Self")]
pub struct ModelCache {
    /// For how long; never zero.
    #[serde(deserialize_with = "units::positive_duration")]
    pub ttl: Duration,
    /// Who gets an answer that was kept for another.
    pub scope: Scope,
    /// Whether answers are kept that the engine drew at random.
    pub sampled: bool,
}

/// Who gets an answer that was kept for another.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, PartialEq)]
#[serde(rename_all = "lowercase")]
pub enum Scope {
    /// Who asks with the same key.
    #[default]
    Key,
    /// Everybody who may ask the model.
    Shared,
}

/// `[[route]]`: an entry point.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, remote = "Self")]
pub struct Route {
    /// How it is called in logs and metrics and by a key's `routes`.
    pub name: Spanned<String>,
    /// The host it serves, or `*.` and a domain; left out: any.
    #[serde(default)]
    pub host: Option<Spanned<String>>,
    /// The exact path it serves, or a prefix that ends in `*`.
    pub path: Spanned<String>,
    /// The methods it serves; left out: any.
    #[serde(default)]
    pub methods: Option<Vec<Spanned<String>>>,
    /// Whether a key is asked for.
    #[serde(default)]
    pub auth: Auth,
    /// What the pool is taken from; this or `pool`.
    #[serde(default)]
    pub by: Option<By>,
    /// The one pool that everything here goes to; this or `by`.
    #[serde(default)]
    pub pool: Option<Spanned<String>>,
    /// Taken off the path before it goes to the engine.
    #[serde(default)]
    pub strip_prefix: Option<Spanned<String>>,
}

/// What a route takes its pool from.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq)]
#[serde(rename_all = "lowercase")]
pub enum By {
    /// The model that the body names.
    Model,
}

/// `[[key]]`: one client's credential.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, remote = "Self")]
pub struct Key {
    /// How it is called in logs and in the status.
    pub name: Spanned<String>,
    /// Digests of the whole secret: one, or several while rotating.
    #[serde(deserialize_with = "units::one_or_some")]
    pub sha256: Vec<Spanned<Digest>>,
    /// Globs of the models it may ask for; left out: none.
    #[serde(default)]
    pub models: Vec<Spanned<String>>,
    /// The routes it may use; left out: all.
    #[serde(default)]
    pub routes: Option<Vec<Spanned<String>>>,
    /// From when on it is refused; left out: never.
    #[serde(default, deserialize_with = "units::instant")]
    pub expires: Option<Timestamp>,
    /// Refused, as if it were not there.
    #[serde(default)]
    pub disabled: bool,
}

table::tables!(Config ServerTable Admin Log Pool Health Eject Timeouts Connections Retry Queue Model Cache ModelCache Route Key);

fn no_secret() -> Spanned<Secret> {
    unwritten(Secret::default())
}

fn owner() -> String {
    "forebay".to_owned()
}

/// What a default stands for: a value that is written nowhere.
fn unwritten<T>(value: T) -> Spanned<T> {
    Spanned::new(0..0, value)
}

/// A count of at least one, for the defaults below.
const fn count(n: u32) -> NonZeroU32 {
    NonZeroU32::new(n).expect("the defaults are not zero")
}

impl Default for ServerTable {
    fn default() -> Self {
        let local = SocketAddr::from((Ipv4Addr::LOCALHOST, 8080));
        ServerTable {
            listen: vec![unwritten(Listen::Tcp(local))],
            threads: unwritten(0),
            max_body: Size::MIB * 32,
            max_connections: 0,
            trusted_proxies: Vec::new(),
            header_timeout: Duration::from_secs(15),
            body_timeout: Duration::from_secs(30),
            keepalive: Duration::from_secs(60),
            min_drain: Duration::ZERO,
            drain: Duration::from_secs(30),
            drain_upgrade: Duration::from_secs(3600),
            upstream_idle: unwritten(1024),
            watch: false,
        }
    }
}

impl Default for Admin {
    fn default() -> Self {
        let local = SocketAddr::from((Ipv4Addr::LOCALHOST, 9180));
        Admin { listen: vec![unwritten(Listen::Tcp(local))], token_sha256: None }
    }
}

impl Default for Log {
    fn default() -> Self {
        Log { level: Level::default(), format: Format::default(), access: unwritten(Destination::default()) }
    }
}

/// Written as `"stderr"`, `"off"` or the path of a file.
impl<'de> Deserialize<'de> for Destination {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        units::text(deserializer, "\"stderr\", \"off\" or a path", |text| match text {
            "stderr" => Ok(Destination::Stderr),
            "off" => Ok(Destination::Off),
            path if path.starts_with('/') => Ok(Destination::File(PathBuf::from(path))),
            other => Err(format!("{other:?} is not possible here; write \"stderr\", \"off\" or an absolute path")),
        })
    }
}

impl Default for Health {
    fn default() -> Self {
        Health {
            path: None,
            port: unwritten(0),
            interval: Duration::from_secs(5),
            timeout: Duration::from_secs(2),
            rise: count(2),
            fall: count(3),
        }
    }
}

impl Default for Eject {
    fn default() -> Self {
        Eject {
            failures: count(5),
            duration: Duration::from_secs(10),
            max: Share(5_000),
            stall: Duration::from_secs(60),
            stall_per_100kb: Duration::from_secs(5),
        }
    }
}

impl Default for Timeouts {
    fn default() -> Self {
        Timeouts {
            connect: Duration::from_secs(1),
            first_byte: Duration::from_secs(300),
            idle: Duration::from_secs(120),
            total: Duration::ZERO,
        }
    }
}

impl Default for Connections {
    fn default() -> Self {
        Connections { idle_timeout: Duration::from_secs(4) }
    }
}

impl Default for Retry {
    fn default() -> Self {
        Retry { attempts: count(3), budget: Share(2_000), slow_start: Duration::from_secs(30) }
    }
}

impl Default for Cache {
    fn default() -> Self {
        Cache { memory: unwritten(Size::MIB * 256), max_body: unwritten(Size::MIB) }
    }
}

impl Default for ModelCache {
    fn default() -> Self {
        ModelCache { ttl: Duration::from_secs(3600), scope: Scope::Key, sampled: false }
    }
}

impl Default for Queue {
    fn default() -> Self {
        Queue { size: count(100), timeout: Duration::from_secs(5) }
    }
}

impl Engine {
    /// The path that tells whether this engine is healthy; `None`: a TCP connection tells.
    pub fn health_path(self) -> Option<&'static str> {
        match self {
            Engine::Openai => Some("/v1/models"),
            Engine::Vllm | Engine::Sglang | Engine::LlamaCpp | Engine::Tgi => Some("/health"),
            Engine::Ollama => Some("/"),
            Engine::Triton => Some("/v2/health/ready"),
            Engine::Http => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::source::tests::Folder;
    use super::*;

    const HEX: &str = "00112233445566778899aabbccddeeff00112233445566778899aabbccddeeff";

    /// What is wrong with a file of this text, one line a fault, without the file's path.
    fn faults(text: &str) -> Vec<String> {
        let folder = Folder::new(&[("a", text)]);
        folder.faults(&folder.load("a"))
    }

    /// The configuration that `text` writes, without a fault.
    fn config(text: &str) -> Config {
        let folder = Folder::new(&[("a", text)]);
        let loaded = folder.load("a");
        assert_eq!(loaded.faults, [], "{text}");
        loaded.config
    }

    #[test]
    fn a_table_that_switches_something_on_may_be_empty() {
        let config = config(
            "[pool.x]\nservers = [\"a:1\"]\nmax_in_flight = 1\n[pool.x.queue]\n[model.m]\npool = \"x\"\n[model.m.cache]",
        );
        let queue = config.pool.values().next().and_then(|pool| pool.queue.as_ref()).unwrap().get_ref();
        assert_eq!((queue.size.get(), queue.timeout), (100, Duration::from_secs(5)));
        let cache = config.model.values().next().and_then(|model| model.cache.as_ref()).unwrap();
        assert_eq!((cache.ttl, cache.scope, cache.sampled), (Duration::from_secs(3600), Scope::Key, false));
    }

    #[test]
    fn what_is_left_out_is_as_the_contract_says() {
        let config =
            config("[pool.x]\nservers = [\"a:1\"]\n[model.m]\npool = \"x\"\n[[route]]\nname = \"r\"\npath = \"/*\"");
        let written = r#"
            [server]
            listen = ["127.0.0.1:8080"]
            threads = 0
            max_body = "32MiB"
            max_connections = 0
            trusted_proxies = []
            header_timeout = "15s"
            body_timeout = "30s"
            keepalive = "60s"
            min_drain = "0s"
            drain = "30s"
            drain_upgrade = "1h"
            upstream_idle = 1024
            watch = false
            [admin]
            listen = "127.0.0.1:9180"
            token_sha256 = ""
            [log]
            level = "info"
            format = "json"
            access = "stderr"
            [cache]
            memory = "256MiB"
            max_body = "1MiB"
            [pool.x]
            engine = "openai"
            servers = [{ address = "a:1", weight = 1, backup = false }]
            balance = "round-robin"
            protocol = "http1"
            api_key = ""
            set_headers = {}
            remove_headers = []
            max_in_flight = 0
            [pool.x.health]
            port = 0
            interval = "5s"
            timeout = "2s"
            rise = 2
            fall = 3
            [pool.x.eject]
            failures = 5
            duration = "10s"
            max = "50%"
            stall = "60s"
            stall_per_100kb = "5s"
            [pool.x.timeouts]
            connect = "1s"
            first_byte = "300s"
            idle = "120s"
            total = "0s"
            [pool.x.connections]
            idle_timeout = "4s"
            [pool.x.retry]
            attempts = 3
            budget = "20%"
            slow_start = "30s"
            [model.m]
            pool = "x"
            owned_by = "forebay"
            version = ""
            [[route]]
            name = "r"
            path = "/*"
            auth = "key"
        "#;
        let written = self::config(written);
        let spanless = |config: &Config| {
            let text = format!("{config:?}");
            let mut parts = text.split("span: ");
            let mut bare = parts.next().unwrap_or_default().to_owned();
            for part in parts {
                bare.push_str(part.split_once(", ").map_or(part, |(_, rest)| rest));
            }
            bare
        };
        assert_eq!(spanless(&config), spanless(&written));
    }

    #[test]
    fn either_form_of_a_value_is_read() {
        let text = format!(
            "[server]\nlisten = [\"unix:/run/f\", \"[::1]:80\"]\nmax_body = 1000\n\
             [admin]\nlisten = [\"127.0.0.1:1\", \"unix:/a\"]\ntoken_sha256 = \"{HEX}\"\n\
             [pool.p]\nengine = \"llama.cpp\"\nservers = [\"a:1\", {{ address = \"b:2\", name = \"gpu\", weight = 0, backup = true }}]\n\
             [[key]]\nname = \"one\"\nsha256 = \"{HEX}\"\nexpires = 2027-01-01T01:00:00+01:00\n\
             [[key]]\nname = \"two\"\nsha256 = [\"{HEX}\", \"{HEX}\"]\nexpires = 2027-01-01T00:00Z\n"
        );
        let config = config(&text);
        assert_eq!(config.server.max_body, Size(1000));
        assert_eq!(config.server.listen[1].get_ref().to_string(), "[::1]:80");
        assert_eq!(config.admin.listen.len(), 2);
        assert!(config.admin.token_sha256.is_some());
        let pool = &config.pool["p"];
        assert_eq!(pool.engine.health_path(), Some("/health"));
        let [a, b] = pool.servers.get_ref().as_slice() else {
            panic!("two servers");
        };
        let (a, b) = (a.get_ref(), b.get_ref());
        assert_eq!(a.address.get_ref().to_string(), "a:1");
        assert_eq!(&text[a.address.span().start - 1..a.address.span().end - 1], "\"a:1\"");
        assert_eq!((a.weight, a.backup, &a.name), (1, false, &None));
        assert_eq!((b.weight, b.backup), (0, true));
        let keys: Vec<&Key> = config.key.iter().map(Spanned::get_ref).collect();
        assert_eq!(keys[0].sha256.len(), 1);
        assert_eq!(keys[1].sha256.len(), 2);
        assert_eq!(keys[0].expires, keys[1].expires);
    }

    #[test]
    fn each_mistake_is_said_with_its_place_and_what_would_be_right() {
        let cases: &[(&str, &[&str])] = &[
            ("", &[]),
            (
                "lissten = 1",
                &[
                    "a:1:1: unknown key `lissten`; known are `include`, `server`, `admin`, `log`, `cache`, `pool`, `model`, `route`, `key`",
                ],
            ),
            ("[serverr]", &["a:1:2: unknown key `serverr`; did you mean `server`?"]),
            ("[server]\nlisen = []", &["a:2:1: unknown key `lisen` in [server]; did you mean `listen`?"]),
            ("[log]\nfile = 1", &["a:2:1: unknown key `file` in [log]; known are `level`, `format`, `access`"]),
            (
                "[log]\naccess = \"access.log\"",
                &["a:2:10: \"access.log\" is not possible here; write \"stderr\", \"off\" or an absolute path"],
            ),
            ("[server]\ndrain = \"5\"", &["a:2:9: \"5\" has no unit; write \"5s\""]),
            ("[server]\ndrain = 5", &["a:2:9: 5 has no unit; write \"5s\""]),
            ("[server]\nthreads = -1", &["a:2:11: -1 is less than nothing; write 0 or more"]),
            ("[server]\nthreads = \"é\"; x", &["a:2:14: unexpected key or value, expected newline, `#`"]),
            ("[server]\nthreads = 99999999999999999999", &["a:2:11: 99999999999999999999 is too large"]),
            ("[server]\nlisten = []", &["a:2:10: the list is empty; at least one entry is needed"]),
            ("[server]\nlisten = \"a\"", &["a:2:10: a list was expected, found a string; write `listen = [\"…\"]`"]),
            ("[[server]]\n[[server]]", &["a:1:1: a table was expected, found a list; write one `[server]`"]),
            ("key = [[\"k\"]]", &["a:1:8: a table was expected, found a list"]),
            ("[[pool.p]]\nservers = [\"a:1\"]", &["a:1:1: a table was expected, found a list; write one `[pool.p]`"]),
            ("[route]\nname = \"x\"", &["a:1:1: a list was expected, found a table; write `[[route]]`"]),
            ("log = 3", &["a:1:7: a table was expected, found an integer"]),
            (
                "[log]\nlevel = \"verbose\"",
                &["a:2:9: `verbose` is not possible here; known are `error`, `warn`, `info`, `debug`, `trace`"],
            ),
            ("[log]\nlevel = {}", &["a:2:9: a string was expected, found a table"]),
            ("[log]\nlevel = 2.5", &["a:2:9: a string was expected, found a decimal number"]),
            ("[model.\"a.b\"]", &["a:1:1: `pool` is missing in [model.\"a.b\"]"]),
            ("[model.m]\npool = 5", &["a:2:8: a string was expected, found an integer"]),
            (
                "[model.m]\npool = 5\nx = 6",
                &[
                    "a:2:8: a string was expected, found an integer",
                    "a:3:1: unknown key `x` in [model.m]; known are `pool`, `upstream`, `owned_by`, `version`, `cache`",
                ],
            ),
            (
                "[pool.p]\nservers = [5]",
                &["a:2:12: an address such as \"10.0.0.11:8000\" or a table with one was expected, found an integer"],
            ),
            ("[pool.p]\nservers = [{ weight = 1 }]", &["a:2:12: `address` is missing in `servers` of [pool.p]"]),
            (
                "[pool.p]\nbalance = \"iphash\"\nservers = [\"a:1\"]",
                &["a:2:11: `iphash` is not possible here; did you mean `ip-hash`?"],
            ),
            (
                "[pool.p.health]\nrise = 0\nport = 70000\ninterval = \"0s\"",
                &[
                    "a:1:7: `servers` is missing in [pool.p]",
                    "a:2:8: 0 is not possible here; write 1 or more",
                    "a:3:8: 70000 is not between 0 and 65535",
                    "a:4:12: \"0s\" is no time at all; write more than zero",
                ],
            ),
            (
                "[[key]]\nname = \"k\"\nsha256 = \"the-secret\"",
                &[
                    "a:3:10: not a digest; write the SHA-256 of the secret as 64 hex digits, as `forebay key new` prints it",
                ],
            ),
            (
                "[[key]]\nname = \"k\"\nsha256 = [12345, \"x\"]",
                &[
                    "a:3:11: not a digest; write the SHA-256 of the secret as 64 hex digits, as `forebay key new` prints it",
                    "a:3:18: not a digest; write the SHA-256 of the secret as 64 hex digits, as `forebay key new` prints it",
                ],
            ),
            ("key = [\"the-secret\"]", &["a:1:8: a table was expected, found a string"]),
            (
                "[[key]]\nname = \"k\"\nname = \"l\"",
                &["a:1:1: `sha256` is missing in [[key]]", "a:3:1: `name` is defined twice; the other is at a:2:1"],
            ),
            (
                "[pool]\n[pool.\"a\"]\nservers = [\"a:1\"]\n[pool.a]",
                &["a:4:7: `a` is defined twice; the other is at a:2:7"],
            ),
            ("[pool.a]\nservers = [\"a:1\"\n[log]\nlevel = 5\n", &["a:3:1: unclosed array, expected `]`"]),
        ];
        for (text, expected) in cases {
            assert_eq!(faults(text), *expected, "{text}");
        }
    }

    #[test]
    fn an_expiry_needs_date_time_and_zone() {
        let cases = [
            ("2027-01-01T00:00:00", "2027-01-01T00:00:00 has no zone; write 2027-01-01T00:00:00Z for UTC"),
            ("2027-01-01", "2027-01-01 has no time of day and zone; write 2027-01-01T00:00:00Z"),
            ("10:00:00", "10:00:00 has no date and zone; write such as 2027-01-01T10:00:00Z"),
            (
                "\"2027-01-01\"",
                "a date and time with its zone, such as 2027-01-01T00:00:00Z was expected, found a string; write it without quotes",
            ),
            ("5", "a date and time with its zone, such as 2027-01-01T00:00:00Z was expected, found an integer"),
        ];
        for (value, expected) in cases {
            let text = format!("[[key]]\nname = \"k\"\nsha256 = \"{HEX}\"\nexpires = {value}");
            assert_eq!(faults(&text), [format!("a:4:11: {expected}")]);
        }
    }

    #[test]
    fn a_digest_is_never_shown() {
        let text = format!("[[key]]\nname = \"k\"\nsha256 = \"{HEX}\"");
        assert!(!format!("{:?}", config(&text)).contains(&HEX[..8]));
    }
}
