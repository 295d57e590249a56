//! `forebay explain`: what a request would get under a configuration, and why. Nothing is contacted.
//!
//! The steps are the proxy's, in its order and by its own functions, up to the first that refuses. What only a running
//! daemon knows, such as which servers are up, is not in it.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use clap::Args;
use http::Method;
use http::header::HOST;
use pingora::http::RequestHeader;
use serde_json::json;

use super::check::{joined, some};
use super::{Failure, Source, check};
use crate::access::key::Refused;
use crate::access::route::{Auth, Miss, Target, read};
use crate::access::{Key, Model, Route};
use crate::cache::Terms;
use crate::cache::admission::{Directives, admit};
use crate::config::plan::Plan;
use crate::pool::Settings;
use crate::pool::settings::{Limits, Queue};
use crate::prompt::scan::scan;
use crate::proxy::admission::{asks_health, keeps_prefix, model, no_route, reads};
use crate::proxy::headers::{self, readdress};
use crate::proxy::rejection::Rejection;

/// Say what a request would get under a configuration, and why
///
/// Exits with 0 if it would be let through, with 1 if it would be refused. Nothing is contacted.
#[derive(Debug, Args)]
#[command(
    after_help = "Example:\n  forebay explain -c forebay.toml --path /v1/chat/completions --model llama-3 --key search-team"
)]
pub(super) struct Explain {
    #[command(flatten)]
    source: Source,
    /// The path as a client sends it
    #[arg(long, value_name = "PATH", value_parser = path)]
    path: String,
    /// The host that it is sent to
    #[arg(long, value_name = "HOST")]
    host: Option<String>,
    /// The method
    #[arg(long, value_name = "METHOD", default_value = "POST", value_parser = method)]
    method: Method,
    /// The model that the body names
    #[arg(long, value_name = "MODEL")]
    model: Option<String>,
    /// The key that it comes with, by its name in the configuration
    #[arg(long, value_name = "NAME")]
    key: Option<String>,
}

/// One explanation in the making.
struct Steps<'e> {
    plan: &'e Plan,
    header: RequestHeader,
    model: Option<&'e str>,
    key: Option<&'e Arc<Key>>,
    now: SystemTime,
    /// What was found so far, a line each.
    said: String,
}

// === impl Explain ===

impl Explain {
    pub(super) fn run(self) -> Result<(), Failure> {
        let plan = Plan::load(&self.source.config, &self.source.environment());
        let plan = plan.map_err(|faults| Failure::Usage(faults.to_string()))?;
        let (said, passes) = self.explain(&plan, SystemTime::now())?;
        super::print(&said)?;
        if passes { Ok(()) } else { Err(Failure::Silent) }
    }

    /// What there is to say of the request at `now`, and whether it would be let through.
    fn explain(&self, plan: &Plan, now: SystemTime) -> Result<(String, bool), Failure> {
        let (header, key) = (self.header()?, self.named(plan)?);
        let mut steps = Steps { plan, header, model: self.model.as_deref(), key, now, said: String::new() };
        let (verdict, passes) = match steps.take() {
            Ok(goes) => (format!("The request would be let through: {goes}."), true),
            Err(rejection) => {
                steps.line("message", &rejection);
                (format!("The request would be refused: {} {}.", rejection.status().as_u16(), rejection.code()), false)
            }
        };
        Ok((format!("{verdict}\n{}", steps.said), passes))
    }

    fn header(&self) -> Result<RequestHeader, Failure> {
        let wrong = |what| move |e| Failure::Usage(format!("forebay: {what} cannot be sent: {e}"));
        let mut header =
            RequestHeader::build(self.method.clone(), self.path.as_bytes(), Some(1)).map_err(wrong("--path"))?;
        if let Some(host) = &self.host {
            header.insert_header(HOST, host).map_err(wrong("--host"))?;
        }
        Ok(header)
    }

    fn named<'p>(&self, plan: &'p Plan) -> Result<Option<&'p Arc<Key>>, Failure> {
        let Some(name) = &self.key else { return Ok(None) };
        plan.keys.named(name).map(Some).ok_or_else(|| {
            let known = if plan.key_names.is_empty() { "it has none".into() } else { joined(&plan.key_names) };
            Failure::Usage(format!("forebay: the configuration has no key {name:?}; its keys: {known}"))
        })
    }
}

fn path(written: &str) -> Result<String, String> {
    if !written.starts_with('/') {
        return Err("a path begins with a slash; a host goes into --host".into());
    }
    if written.contains(|c: char| c == ' ' || c.is_control()) {
        return Err("a path cannot hold white space; a client sends it as %20".into());
    }
    Ok(written.to_owned())
}

fn method(written: &str) -> Result<Method, String> {
    written.to_ascii_uppercase().parse().map_err(|_| "not a method; write such as POST".to_owned())
}

// === impl Steps ===

impl Steps<'_> {
    fn line(&mut self, what: &str, value: impl std::fmt::Display) {
        self.said.push_str(&format!("  {what:<8} {value}\n"));
    }

    /// Takes one step after the other. Where the request goes, if none refuses it.
    fn take(&mut self) -> Result<String, Rejection> {
        let plan = self.plan;
        let host = headers::host(&self.header).map(str::to_owned);
        let (path, method) = (self.header.uri.path().to_owned(), self.header.method.clone());
        self.line("request", format!("{method} {}{path}", host.as_deref().unwrap_or_default()));
        headers::check(&self.header, None)?;
        if asks_health(&path, &method) {
            return Ok("forebay answers it itself, 200 while a pool has a usable server, else 503".into());
        }
        self.routes(host.as_deref(), &path, &method);
        let found = plan.routes.find(host.as_deref(), &path, &method).map_err(no_route)?;
        let route = found.route;
        keeps_prefix(route, &path)?;
        let key = match route.auth {
            Auth::None => {
                self.line("key", "not asked for");
                None
            }
            Auth::Key => Some(self.key(route)?),
        };
        if let (Some(listed), true) = (route.lists_models(&found.path), reads(&method)) {
            return match listed {
                None => Ok("forebay answers it itself, with the models that may be asked".into()),
                Some(id) => {
                    self.model(key, id)?;
                    Ok("forebay answers it itself, with what is known of the model".into())
                }
            };
        }
        let pool = match route.target {
            Target::Model => {
                let body = self.model.map_or(json!({}), |model| json!({"model": model}));
                let prompt = scan(body.to_string().as_bytes()).map_err(Rejection::Unreadable);
                let prompt =
                    prompt.inspect_err(|_| self.line("model", "asked for by the route; name one with --model"))?;
                let model = self.model(key, &prompt.model)?;
                if let Some(terms) = &model.cache {
                    self.line("cache", cached(terms, &method));
                }
                model.pool
            }
            Target::Pool(pool) => pool,
        };
        self.pool(route, &plan.pools[pool.0])
    }

    /// Which routes do not serve it and why, up to the one that does.
    fn routes(&mut self, host: Option<&str>, path: &str, method: &Method) {
        let Ok(path_read) = read(path) else { return };
        if path_read != path {
            self.line("path", format!("{path_read} is what it is read as"));
        }
        for route in self.plan.routes.iter() {
            let Some(miss) = route.misses(host, &path_read, method) else {
                return self.line("route", check::route(self.plan, route));
            };
            let Route { name, path, .. } = &**route;
            let host_pattern = route.host.as_ref().map_or(String::new(), ToString::to_string);
            let why = match miss {
                Miss::Path => format!("serves the path {path}"),
                Miss::Host if host.is_none() => format!("serves the host {host_pattern}, and --host names none"),
                Miss::Host => format!("serves the host {host_pattern}"),
                Miss::Method(served) => format!("serves {path} with {}", joined(served)),
            };
            self.line("not", format!("{name}: {why}"));
        }
    }

    /// The key, if it may use the route now.
    fn key(&mut self, route: &Route) -> Result<Arc<Key>, Rejection> {
        let Some(key) = self.key.cloned() else {
            self.line("key", "asked for by the route; name one with --key");
            return Err(Rejection::Unauthenticated(Refused::Missing));
        };
        let name = &key.name;
        if let Err(refused) = key.check(self.now) {
            let why = if refused == Refused::Disabled { "is disabled" } else { "has expired" };
            self.line("key", format!("{name} {why}"));
            return Err(Rejection::Unauthenticated(refused));
        }
        if !key.may_use(route) {
            self.line("key", format!("{name} may use {}", joined(key.routes.iter().flatten())));
            return Err(Rejection::RouteNotAllowed);
        }
        self.line("key", format!("{name} may use the route"));
        Ok(key)
    }

    /// The model, if the key may ask it.
    fn model(&mut self, key: Option<Arc<Key>>, name: &str) -> Result<Arc<Model>, Rejection> {
        let found = model(self.plan, key.as_deref(), name);
        match (&found, &key) {
            (Ok(model), _) => {
                let entry = if model.prefix().is_some() { &model.name } else { "its name" };
                let sent =
                    model.upstream.as_ref().map_or(String::new(), |name| format!("; the engine is asked for {name}"));
                self.line("model", format!("{name}, found by {entry}{sent}"));
            }
            (Err(Rejection::ModelNotAllowed(_)), Some(key)) => {
                let globs = if key.models.is_empty() { "none".into() } else { joined(&key.models) };
                self.line("model", format!("{name}, but {} may ask {globs}", key.name));
            }
            (Err(_), _) => {
                let known = self.plan.models.iter().map(|model| &model.name);
                self.line("model", format!("{name} is none of {}", joined(known)));
            }
        }
        found
    }

    /// Who may answer, and under which bounds.
    fn pool(&mut self, route: &Route, pool: &Settings) -> Result<String, Rejection> {
        let balance = json!(pool.balance);
        self.line("pool", format!("{}: {} over", pool.name, balance.as_str().unwrap_or_default()));
        let servers = pool.servers.iter().map(|server| {
            let address = server.address.to_string();
            let at = if *server.name == *address { address } else { format!("{} at {address}", server.name) };
            let backup = if server.backup { ", a backup" } else { "" };
            let new = if server.weight == 0 { ", which gets nothing new" } else { "" };
            let limit = match server.max_in_flight {
                0 => String::new(),
                most => format!(", at most {most} in flight"),
            };
            format!("{at}, weight {}{limit}{backup}{new}", server.weight)
        });
        some(servers).into_iter().for_each(|server| self.line("", server));
        readdress(&mut self.header, route, &pool.path_prefix).map_err(|_| Rejection::Internal)?;
        let path = String::from_utf8_lossy(self.header.raw_path()).into_owned();
        self.line("engine", format!("is asked {} {path}", self.header.method));
        self.line("body", format!("at most {}", size(self.plan.server.max_body)));
        let Limits { first_byte, idle, total } = pool.limits;
        let [connect, first_byte, idle, total] = [pool.connect, first_byte, idle, total].map(time);
        self.line("timeouts", format!("connect {connect}, first_byte {first_byte}, idle {idle}, total {total}"));
        let streamed =
            if route.target == Target::Model { "" } else { "; one with a body, only until a server is reached" };
        self.line("attempts", format!("{} at most{streamed}", pool.retry.attempts));
        if let Some(queue) = pool.queue {
            let Queue { size, timeout } = queue;
            self.line(
                "queue",
                format!("{size} may wait while all servers are at their limits, {} each", time(Some(timeout))),
            );
        }
        Ok(format!("to pool {}", pool.name))
    }
}

/// What the cache would do. The header's directives and the body are not known.
fn cached(Terms { ttl, shared, sampled }: &Terms, method: &Method) -> String {
    if let Err(why) = admit(method, Directives::default()) {
        return format!("leaves the request alone, because {why}");
    }
    let (ttl, who) = (time(Some(*ttl)), if *shared { "all who may ask it" } else { "this key alone" });
    let what = if *sampled { "any prompt" } else { "embeddings, and prompts with `temperature` 0 or a `seed`" };
    format!("keeps the answers to {what} for {ttl}, for {who}")
}

/// A duration as it would be written in the file.
pub(super) fn time(duration: Option<Duration>) -> String {
    let Some(duration) = duration else { return "none".into() };
    let millis = duration.as_millis();
    let units = [(3_600_000, "h"), (60_000, "m"), (1_000, "s")];
    let whole = units.iter().find(|(unit, _)| millis > 0 && millis.is_multiple_of(*unit));
    whole.map_or_else(|| format!("{millis}ms"), |(unit, name)| format!("{}{name}", millis / unit))
}

/// A size as it would be written in the file.
fn size(bytes: u64) -> String {
    let units = [(1 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB")];
    let whole = units.iter().find(|(unit, _)| bytes > 0 && bytes.is_multiple_of(*unit));
    whole.map_or_else(|| format!("{bytes}B"), |(unit, name)| format!("{}{name}", bytes / unit))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_and_sizes_are_said_as_they_would_be_written() {
        for (millis, said) in [
            (0, "0ms"),
            (250, "250ms"),
            (1_000, "1s"),
            (1_500, "1500ms"),
            (90_000, "90s"),
            (300_000, "5m"),
            (7_200_000, "2h"),
        ] {
            assert_eq!(time(Some(Duration::from_millis(millis))), said);
        }
        assert_eq!(time(None), "none");
        for (bytes, said) in [
            (0, "0B"),
            (1_000, "1000B"),
            (1_024, "1KiB"),
            (33_554_432, "32MiB"),
            (1_073_741_824, "1GiB"),
            (1_049_600, "1025KiB"),
        ] {
            assert_eq!(size(bytes), said);
        }
    }
}
