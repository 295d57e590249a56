//! Checks a configuration as a whole and makes a plan of it: that every name leads somewhere, and that nothing is there
//! which could never be used.

mod pool;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fmt::Display;
use std::ops::Range;
use std::os::unix::fs::FileTypeExt;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use glob::Pattern;
use http::Method;
use log::LevelFilter;

use super::plan::{Admin, Cache, Log, Plan, Server};
use super::wording::advice;
use super::{Config, Declared, Fault, Footprint, Level, Listen, Loaded, Scope, Sources, Spanned};
use crate::access::route::{Auth, HostPattern, PathPattern, Target};
use crate::access::{Key, Keys, Model, Models, Route, Routes, key};
use crate::cache::Terms;
use crate::observe::access_log::Destination;
use crate::pool::PoolId;

/// The name of the route that serves where none is configured.
const DEFAULT_ROUTE: &str = "default";

/// More worker threads than this no machine has cores for.
const MOST_THREADS: usize = 1024;
/// More idle connections than this no process has descriptors for.
const MOST_IDLE: usize = 1_000_000;

/// So many answers of the largest size find room in the cache.
const MOST_OF_CACHE: u64 = 8;

/// The plan that was written, and all that is wrong with it; with faults it is none to run.
pub(super) fn compile(loaded: Loaded, environment: &dyn Fn(&str) -> Option<String>) -> (Plan, Vec<Fault>) {
    let Loaded { config, sources, declared, faults, footprint } = loaded;
    let places = config.pool.keys().enumerate().map(|(place, name)| (name.get_ref().as_str(), PoolId(place))).collect();
    let mut compiler = Compiler { sources: &sources, declared: &declared, environment, places, faults, footprint };
    let plan = compiler.plan(&config);
    (plan, compiler.faults)
}

/// Compiles one configuration, and notes what is wrong with it as a whole.
struct Compiler<'c> {
    sources: &'c Sources,
    declared: &'c Declared,
    environment: &'c dyn Fn(&str) -> Option<String>,
    places: BTreeMap<&'c str, PoolId>,
    faults: Vec<Fault>,
    footprint: Footprint,
}

// === impl Compiler ===

impl Compiler<'_> {
    fn plan(&mut self, config: &Config) -> Plan {
        self.listeners(config);
        self.names(config);
        self.bounds(&config.server);
        let pools = config.pool.iter().map(|(name, pool)| Arc::new(self.pool(name.get_ref(), pool))).collect();
        let models = Models::new(
            config.model.iter().enumerate().map(|(place, (name, model))| self.model(place, name, model)).collect(),
        );
        let routes = self.routes(config);
        let (keys, key_names) = self.keys(config, &models, &routes);
        if config.pool.is_empty() && self.declared.pools.is_empty() && self.declared.complete {
            self.fault(&(0..0), "no pool is defined, so nothing could be served; add [pool.NAME] with its servers");
        }
        Plan {
            files: self.sources.files().map(Path::to_owned).collect(),
            footprint: std::mem::take(&mut self.footprint),
            loaded_at: SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs()),
            server: server(&config.server),
            admin: Admin {
                listen: config.admin.listen.iter().map(|listen| listen.get_ref().clone()).collect(),
                token: config.admin.token_sha256.as_ref().map(|digest| digest.get_ref().0),
            },
            log: self.log(&config.log),
            cache: self.cache(&config.cache),
            routes,
            keys,
            key_names,
            models,
            pools,
        }
    }

    fn cache(&mut self, cache: &super::Cache) -> Cache {
        let (memory, max_body) = (cache.memory.get_ref().0, cache.max_body.get_ref().0);
        if max_body > memory / MOST_OF_CACHE {
            let written = [&cache.max_body, &cache.memory].map(|size| size.span());
            let span = written.iter().find(|span| !span.is_empty()).unwrap_or(&written[0]);
            let message =
                format!("`memory` is less than {MOST_OF_CACHE} times `max_body`; write more, or a smaller `max_body`");
            self.fault(span, message);
        }
        let bytes = |size| usize::try_from(size).unwrap_or(usize::MAX);
        Cache { memory: bytes(memory), max_body: bytes(max_body) }
    }

    fn log(&mut self, log: &super::Log) -> Log {
        let level = match log.level {
            Level::Error => LevelFilter::Error,
            Level::Warn => LevelFilter::Warn,
            Level::Info => LevelFilter::Info,
            Level::Debug => LevelFilter::Debug,
            Level::Trace => LevelFilter::Trace,
        };
        let access = log.access.get_ref().clone();
        if let Destination::File(path) = &access {
            let span = log.access.span();
            if let Some(folder) = path.parent().filter(|folder| !folder.is_dir()) {
                self.fault(&span, format!("the folder {} does not exist; make it first", folder.display()));
            }
            let kind = path.metadata().map(|file| file.file_type());
            if kind.is_ok_and(|kind| !kind.is_file() && !kind.is_char_device()) {
                self.fault(&span, format!("{} is not a file; write \"stderr\" to pipe the log", path.display()));
            }
        }
        Log { level, format: log.format, access }
    }

    fn fault(&mut self, span: &Range<usize>, message: impl Into<String>) {
        self.faults.push(self.sources.fault(span.clone(), message));
    }

    /// Notes each value that was there before.
    fn once<'v, T>(&mut self, what: &str, values: impl Iterator<Item = &'v Spanned<T>>)
    where
        T: Ord + Display + 'v,
    {
        let mut seen: BTreeMap<&T, &Spanned<T>> = BTreeMap::new();
        for value in values {
            if let Some(first) = seen.insert(value.get_ref(), value) {
                let place = |value: &Spanned<T>| self.sources.place(value.span().start);
                let (here, other) = if place(value).is_some() { (value, first) } else { (first, value) };
                let at = place(other).map_or("; the other is a default".to_owned(), |at| format!(", first at {at}"));
                self.fault(&here.span(), format!("{what} {} stands twice{at}", value.get_ref()));
            }
        }
    }

    fn listeners(&mut self, config: &Config) {
        let fixed =
            |listen: &&Spanned<Listen>| !matches!(listen.get_ref(), Listen::Tcp(address) if address.port() == 0);
        self.once("the listener", config.server.listen.iter().chain(&config.admin.listen).filter(fixed));
    }

    /// What a machine could never give.
    fn bounds(&mut self, server: &super::ServerTable) {
        for (key, value, most) in
            [("threads", &server.threads, MOST_THREADS), ("upstream_idle", &server.upstream_idle, MOST_IDLE)]
        {
            if *value.get_ref() > most {
                self.fault(&value.span(), format!("`{key}` is more than any machine gives; write {most} at most"));
            }
        }
    }

    /// Names are metric labels, and what other tables refer to.
    fn names(&mut self, config: &Config) {
        let routes = config.route.iter().map(|route| ("route", &route.get_ref().name));
        let keys = config.key.iter().map(|key| ("key", &key.get_ref().name));
        let pools = config.pool.keys().map(|pool| ("pool", pool));
        let models = config.model.keys().map(|model| ("model", model));
        let servers = config.pool.values().flat_map(|pool| pool.servers.get_ref());
        let servers = servers.filter_map(|server| server.get_ref().name.as_ref()).map(|name| ("server", name));
        for (what, name) in pools.chain(routes).chain(keys).chain(models).chain(servers) {
            if name.get_ref().contains(char::is_control) {
                self.fault(&name.span(), format!("the {what}'s name has a control character in it"));
            } else if name.get_ref().is_empty() && !matches!(what, "model" | "server") {
                self.fault(&name.span(), format!("the {what}'s name is empty; logs and metrics call it so"));
            }
        }
    }

    fn path(&mut self, key: &str, path: &Spanned<String>) {
        let written = path.get_ref();
        if !written.starts_with('/') {
            self.fault(&path.span(), format!("`{key}` must begin with a slash; write \"/{written}\""));
        } else if written.contains(['?', '#']) || !written.is_ascii() || written.parse::<http::Uri>().is_err() {
            self.fault(
                &path.span(),
                format!("`{key}` is not a path: white space, `?`, `#` and what is not ASCII cannot be in it"),
            );
        }
    }

    /// The pool of this name. A name that is nowhere is a fault, and stands for any.
    fn pool_named(&mut self, name: &Spanned<String>) -> PoolId {
        let known = self.places.get(name.get_ref().as_str()).copied();
        if known.is_none() && self.declared.complete && !self.declared.pools.contains(name.get_ref()) {
            let hint = nearest(name.get_ref(), &self.declared.pools);
            self.fault(&name.span(), format!("no pool is called {:?}{hint}", name.get_ref()));
        }
        known.unwrap_or(PoolId(0))
    }

    // --- models and routes ---

    fn model(&mut self, place: usize, name: &Spanned<String>, model: &super::Model) -> Model {
        let written = name.get_ref();
        if written.is_empty() || written.strip_suffix('*').unwrap_or(written).contains('*') {
            self.fault(&name.span(), "a model's name must not be empty and may have a `*` at its end only");
        }
        Model {
            place,
            name: written.as_str().into(),
            pool: self.pool_named(&model.pool),
            upstream: model.upstream.as_deref().filter(|name| !name.is_empty()).map(Into::into),
            owned_by: model.owned_by.as_str().into(),
            version: model.version.as_str().into(),
            cache: model.cache.as_ref().map(|cache| Terms {
                ttl: cache.ttl,
                shared: cache.scope == Scope::Shared,
                sampled: cache.sampled,
            }),
        }
    }

    fn routes(&mut self, config: &Config) -> Routes {
        self.once("the route", config.route.iter().map(|route| &route.get_ref().name));
        if config.route.is_empty() && self.declared.routes.is_empty() {
            return Routes::new(vec![Route {
                place: 0,
                name: DEFAULT_ROUTE.into(),
                host: None,
                path: PathPattern::new("/v1/*"),
                methods: vec![],
                auth: Auth::Key,
                target: Target::Model,
                strip_prefix: None,
            }]);
        }
        Routes::new(config.route.iter().enumerate().map(|(place, route)| self.route(place, route)).collect())
    }

    fn route(&mut self, place: usize, route: &Spanned<super::Route>) -> Route {
        let span = route.span();
        let route = route.get_ref();
        let target = match (&route.by, &route.pool) {
            (Some(super::By::Model), None) => Target::Model,
            (None, Some(pool)) => Target::Pool(self.pool_named(pool)),
            (both, _) => {
                let wrong = if both.is_some() { "both `by` and `pool`" } else { "neither `by` nor `pool`" };
                self.fault(&span, format!("the route has {wrong}; write `by = \"model\"` or `pool = \"NAME\"`"));
                Target::Model
            }
        };
        if route.methods.as_ref().is_some_and(Vec::is_empty) {
            self.fault(&span, "`methods` is empty, so nothing would be served; leave it out to serve any");
        }
        self.route_path(route);
        if let Some(host) = route.host.as_ref().filter(|host| !is_host(host.get_ref())) {
            self.fault(
                &host.span(),
                "`host` is not a host; write \"api.example.com\" or \"*.example.com\", without a port",
            );
        }
        let methods = route.methods.iter().flatten().filter_map(|method| self.method(method)).collect();
        let prefix = route.strip_prefix.as_ref().map(|prefix| prefix.get_ref().trim_end_matches('/'));
        Route {
            place,
            name: route.name.get_ref().as_str().into(),
            host: route.host.as_ref().map(|host| HostPattern::new(host.get_ref())),
            path: PathPattern::new(route.path.get_ref()),
            methods,
            auth: route.auth,
            target,
            strip_prefix: prefix.filter(|prefix| !prefix.is_empty()).map(Into::into),
        }
    }

    fn route_path(&mut self, route: &super::Route) {
        self.path("path", &route.path);
        let path = route.path.get_ref();
        if path.trim_end_matches('*').len() + 1 < path.len() || path.trim_end_matches('*').contains('*') {
            self.fault(&route.path.span(), "`path` may have one `*`, at its end");
        }
        let Some(prefix) = &route.strip_prefix else { return };
        self.path("strip_prefix", prefix);
        let rest = path.strip_prefix(prefix.get_ref().trim_end_matches('/'));
        if !rest.is_some_and(|rest| rest.is_empty() || rest.starts_with(['/', '*'])) {
            let message = format!("`strip_prefix` must be the first segments of the route's path, which is {path:?}");
            self.fault(&prefix.span(), message);
        }
    }

    fn method(&mut self, method: &Spanned<String>) -> Option<Method> {
        let known =
            [Method::GET, Method::HEAD, Method::POST, Method::PUT, Method::PATCH, Method::DELETE, Method::OPTIONS];
        let written = method.get_ref();
        let found = known.iter().find(|known| known.as_str() == written).cloned();
        if found.is_none() {
            let hint = advice(&written.to_uppercase(), &known.each_ref().map(Method::as_str));
            self.fault(&method.span(), format!("{written:?} is not a method{hint}"));
        }
        found
    }

    // --- keys ---

    fn keys(&mut self, config: &Config, models: &Models, routes: &Routes) -> (Keys, Vec<Arc<str>>) {
        self.once("the key", config.key.iter().map(|key| &key.get_ref().name));
        let mut digests: HashMap<key::Digest, Arc<Key>> = HashMap::new();
        let mut names = Vec::new();
        for written in &config.key {
            let before = self.faults.len();
            let key = Arc::new(self.key(written.get_ref()));
            let sound = self.faults.len() == before;
            names.push(key.name.clone());
            let lost =
                config.model.len() < self.declared.models.len() || config.route.len() < self.declared.routes.len();
            if sound && !lost && self.declared.complete && !admits(&key, models, routes) {
                let message =
                    format!("the key {:?} can ask for nothing: no model and no route by pool admits it", key.name);
                self.fault(&written.get_ref().name.span(), message);
            }
            for digest in &written.get_ref().sha256 {
                if let Some(other) = digests.insert(digest.get_ref().0, key.clone()) {
                    self.fault(&digest.span(), format!("the key {:?} has the same secret", other.name));
                }
            }
        }
        (Keys::new(digests), names)
    }

    fn key(&mut self, key: &super::Key) -> Key {
        let models = key.models.iter().filter_map(|glob| {
            let pattern = Pattern::new(glob.get_ref());
            if let Err(wrong) = &pattern {
                self.fault(&glob.span(), format!("{:?} is not a glob: {}", glob.get_ref(), wrong.msg));
            }
            pattern.ok()
        });
        let models = models.collect();
        for route in key.routes.iter().flatten() {
            let known = &self.declared.routes;
            let default = known.is_empty() && route.get_ref() == DEFAULT_ROUTE;
            if self.declared.complete && !default && !known.contains(route.get_ref()) {
                let hint = nearest(route.get_ref(), known);
                self.fault(&route.span(), format!("no route is called {:?}{hint}", route.get_ref()));
            }
        }
        let routes = key.routes.as_ref();
        Key {
            name: key.name.get_ref().as_str().into(),
            models,
            routes: routes.map(|names| names.iter().map(|name| name.get_ref().as_str().into()).collect()),
            expires: key.expires.map(SystemTime::from),
            disabled: key.disabled,
        }
    }
}

/// Whether the key can ask for anything at all.
fn admits(key: &Key, models: &Models, routes: &Routes) -> bool {
    let asks = models.iter().any(|model| key.models.iter().any(|glob| overlaps(glob, model)));
    routes.iter().filter(|route| key.may_use(route)).any(|route| match route.target {
        Target::Model => asks,
        Target::Pool(_) => true,
    })
}

/// Whether some name of the model, which may be a family, is among the glob's.
fn overlaps(glob: &Pattern, model: &Model) -> bool {
    let literal = glob.as_str().split(['*', '?', '[']).next().unwrap_or_default();
    match model.prefix() {
        Some(prefix) => literal.starts_with(prefix) || (glob.as_str() != literal && prefix.starts_with(literal)),
        None => glob.matches(&model.name),
    }
}

fn is_host(host: &str) -> bool {
    let name = host.strip_prefix("*.").unwrap_or(host);
    !name.is_empty() && name.chars().all(|c| c.is_ascii_alphanumeric() || "-._[]:".contains(c)) && !has_port(name)
}

fn has_port(name: &str) -> bool {
    !name.starts_with('[') && name.contains(':')
}

/// Which of the known names may have been meant.
fn nearest(written: &str, known: &BTreeSet<String>) -> String {
    advice(written, &known.iter().map(String::as_str).collect::<Vec<_>>())
}

/// Zero is none.
fn some(limit: Duration) -> Option<Duration> {
    (!limit.is_zero()).then_some(limit)
}

fn server(server: &super::ServerTable) -> Server {
    let cores = || std::thread::available_parallelism().map_or(1, usize::from);
    Server {
        listen: server.listen.iter().map(|listen| listen.get_ref().clone()).collect(),
        threads: if *server.threads.get_ref() == 0 { cores() } else { *server.threads.get_ref() },
        max_body: server.max_body.0,
        max_connections: server.max_connections,
        trusted_proxies: server.trusted_proxies.clone(),
        header_timeout: some(server.header_timeout).unwrap_or(Duration::MAX),
        body_timeout: some(server.body_timeout).unwrap_or(Duration::MAX),
        keepalive: server.keepalive,
        min_drain: server.min_drain,
        drain: server.drain,
        drain_upgrade: server.drain_upgrade,
        upstream_idle: *server.upstream_idle.get_ref(),
        watch: server.watch,
    }
}
