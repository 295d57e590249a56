//! A pool's table → what its requests go by.

use std::collections::BTreeSet;

use http::HeaderValue;
use http::header::{AUTHORIZATION, HOST, HeaderName};
use http::uri::Authority;

use super::{Compiler, some};
use crate::config::{self, Engine, Spanned};
use crate::pool::Settings;
use crate::pool::eject;
use crate::pool::health::Rules;
use crate::pool::settings::{self, Address, Check, HEAVIEST, Headers, Health, Limits, Queue, Retry};

impl Compiler<'_> {
    pub(super) fn pool(&mut self, name: &str, pool: &config::Pool) -> Settings {
        let written = pool.servers.get_ref();
        let servers: Vec<settings::Server> =
            written.iter().map(|server| self.pool_server(server.get_ref(), pool)).collect();
        self.once("the server", written.iter().map(|server| &server.get_ref().address));
        let names = || written.iter().filter_map(|server| server.get_ref().name.as_ref());
        self.once("the server name", names());
        let unnamed = written.iter().map(Spanned::get_ref).filter(|server| server.name.is_none());
        let addresses: BTreeSet<String> = unnamed.map(|server| server.address.get_ref().to_string()).collect();
        for name in names().filter(|name| addresses.contains(name.get_ref())) {
            self.fault(&name.span(), format!("the server name {} is another server's address", name.get_ref()));
        }
        if servers.iter().all(|server| server.weight == 0) && !servers.is_empty() {
            self.fault(&pool.servers.span(), "the weights sum to zero, so no server is ever used; give one a weight");
        }
        let prefix = pool.path_prefix.as_ref().map_or("", |prefix| prefix.get_ref().trim_end_matches('/'));
        if let Some(written) = pool.path_prefix.as_ref().filter(|_| !prefix.is_empty()) {
            self.path("path_prefix", written);
        }
        let health = self.health(pool.engine, &pool.health, &servers);
        let queue = self.queue(pool, &servers);
        Settings {
            name: name.into(),
            servers,
            balance: pool.balance,
            protocol: pool.protocol,
            headers: self.pool_headers(pool),
            path_prefix: prefix.into(),
            health,
            connect: some(pool.timeouts.connect),
            limits: Limits {
                first_byte: some(pool.timeouts.first_byte),
                idle: some(pool.timeouts.idle),
                total: some(pool.timeouts.total),
            },
            idle_timeout: pool.connections.idle_timeout,
            eject: eject::Rules {
                failures: pool.eject.failures.get(),
                duration: pool.eject.duration,
                max: pool.eject.max.0,
                stall: some(pool.eject.stall),
                stall_per_100kb: pool.eject.stall_per_100kb,
            },
            retry: Retry {
                attempts: pool.retry.attempts.get() as usize,
                budget: pool.retry.budget.0,
                slow_start: pool.retry.slow_start,
            },
            queue,
        }
    }

    /// Who may wait, where any server has a limit: nobody, unless the pool says who.
    fn queue(&mut self, pool: &config::Pool, servers: &[settings::Server]) -> Option<Queue> {
        let limited = servers.iter().any(|server| server.max_in_flight > 0);
        if let (Some(queue), false) = (&pool.queue, limited) {
            let message = "no server of this pool has a limit, so nothing ever waits; give the pool a `max_in_flight`";
            self.fault(&queue.span(), message);
        }
        let (size, timeout) = match pool.queue.as_ref().map(Spanned::get_ref) {
            Some(queue) => (queue.size.get() as usize, queue.timeout),
            None => (0, config::Queue::default().timeout),
        };
        limited.then_some(Queue { size, timeout })
    }

    /// What is changed in the header of each request to a pool's servers.
    fn pool_headers(&mut self, pool: &config::Pool) -> Headers {
        let host = pool.host.as_ref().filter(|host| !host.get_ref().is_empty());
        let is_host = |host: &str| !host.contains('@') && host.parse::<Authority>().is_ok();
        if let Some(host) = host.filter(|host| !is_host(host.get_ref())) {
            self.fault(&host.span(), "`host` is not a host; write such as \"api.example.com\"");
        }
        let span = pool.api_key.span();
        let written = self.sources.written(span.clone());
        let api_key = pool.api_key.get_ref().bearer(written, self.environment, &mut self.footprint);
        let api_key = api_key.unwrap_or_else(|why| {
            self.fault(&span, format!("`api_key`: {why}"));
            None
        });
        let lower = |name: &Spanned<String>| Spanned::new(name.span(), name.get_ref().to_ascii_lowercase());
        let names: Vec<_> = pool.set_headers.keys().chain(&pool.remove_headers).map(lower).collect();
        self.once("the header", names.iter());
        let mut set = Vec::new();
        for (name, value) in &pool.set_headers {
            if let (Some(name), Some(value)) = (self.header_name(name), self.header_value(value)) {
                set.push((name, value));
            }
        }
        if let (Some(_), Some(name)) = (&api_key, pool.set_headers.keys().find(|name| is_authorization(name))) {
            self.fault(&name.span(), "the pool has an `api_key`, which is sent as `authorization`; write one of them");
        }
        let remove = pool.remove_headers.iter().filter_map(|name| self.header_name(name)).collect();
        Headers { host: host.and_then(|host| HeaderValue::from_str(host.get_ref()).ok()), api_key, set, remove }
    }

    /// A header that is neither about the connection nor about the body's length, which are not the operator's to say.
    fn header_name(&mut self, name: &Spanned<String>) -> Option<HeaderName> {
        const OURS: [&str; 9] = [
            "connection",
            "content-length",
            "expect",
            "keep-alive",
            "proxy-connection",
            "te",
            "trailer",
            "transfer-encoding",
            "upgrade",
        ];
        let written = name.get_ref();
        match HeaderName::from_bytes(written.as_bytes()) {
            Ok(header) if header == HOST => {
                self.fault(&name.span(), "what engines get as `host` is the pool's `host`");
                None
            }
            Ok(header) if OURS.contains(&header.as_str()) => {
                self.fault(&name.span(), format!("{written:?} is about the connection, and forebay's own to write"));
                None
            }
            Ok(header) => Some(header),
            Err(_) => {
                self.fault(&name.span(), format!("{written:?} is not a header's name"));
                None
            }
        }
    }

    fn header_value(&mut self, value: &Spanned<String>) -> Option<HeaderValue> {
        let header = HeaderValue::from_str(value.get_ref()).ok().filter(|_| value.get_ref().is_ascii());
        if header.is_none() {
            self.fault(&value.span(), "a header's value is one line of visible ASCII characters"); // it may be a secret
        }
        header.map(|mut header| {
            header.set_sensitive(true);
            header
        })
    }

    fn pool_server(&mut self, server: &config::Server, pool: &config::Pool) -> settings::Server {
        let address = server.address.get_ref();
        if let Some(name) = server.name.as_ref().filter(|name| name.get_ref().is_empty()) {
            self.fault(&name.span(), "a server's name is empty; leave it out to name the server by its address");
        }
        let name = server.name.as_ref().map_or_else(|| address.to_string(), |name| name.get_ref().clone());
        if server.weight > HEAVIEST {
            self.fault(&server.address.span(), format!("a server's weight is at most {HEAVIEST}"));
        }
        settings::Server {
            name: name.into(),
            address: address.clone(),
            weight: server.weight.min(HEAVIEST),
            backup: server.backup,
            max_in_flight: server.max_in_flight.unwrap_or(pool.max_in_flight),
        }
    }

    fn health(&mut self, engine: Engine, health: &config::Health, servers: &[settings::Server]) -> Health {
        let socket = servers.iter().find(|server| matches!(server.address, Address::Unix(_)));
        if let (Some(server), true) = (socket, *health.port.get_ref() > 0) {
            let message = format!("the probes of {} cannot go to another port; write 0", server.address);
            self.fault(&health.port.span(), message);
        }
        let path = health.path.as_ref().map(|path| path.get_ref().as_str());
        let path = path.or(engine.health_path()).unwrap_or_default();
        if let Some(written) = health.path.as_ref().filter(|_| !path.is_empty()) {
            self.path("path", written);
        }
        let check = match path.parse() {
            Ok(path) => Check::Http(path),
            Err(_) => Check::Tcp, // there is none, or it is a fault
        };
        Health {
            check,
            port: Some(*health.port.get_ref()).filter(|port| *port > 0),
            interval: health.interval,
            timeout: health.timeout,
            rules: Rules { rise: health.rise.get(), fall: health.fall.get() },
        }
    }
}

fn is_authorization(name: &Spanned<String>) -> bool {
    name.get_ref().eq_ignore_ascii_case(AUTHORIZATION.as_str())
}
