//! Host, path and method → the route that serves them.
//!
//! Servers differ in how they read a path (`//`, `%2F`, `..`). A request may not reach past a route by such a spelling, so a
//! route is looked for under the path as the most eager server reads it, and a path that two servers could read as two
//! different routes is refused.

use std::borrow::Cow;
use std::fmt;
use std::sync::Arc;

use http::Method;
use serde::Deserialize;

use crate::pool::PoolId;

/// An entry point: host and path → what to do.
#[derive(Debug)]
pub struct Route {
    /// Its place among the routes.
    pub place: usize,
    /// As configured, or made from its place; a metric label.
    pub name: Arc<str>,
    /// Which `Host` it serves; `None` is any.
    pub host: Option<HostPattern>,
    /// Which path it serves.
    pub path: PathPattern,
    /// Which methods it serves; empty is any that its target takes.
    pub methods: Vec<Method>,
    /// Whether a key is asked for.
    pub auth: Auth,
    /// Where a request goes from here.
    pub target: Target,
    /// Taken off the path before it goes on; no trailing slash.
    pub strip_prefix: Option<Box<str>>,
}

/// Whether a route asks for a key.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Auth {
    /// A valid key that may use the route.
    #[default]
    Key,
    /// Anyone.
    None,
}

/// Where a route's requests go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Target {
    /// To the pool of the model that the body names.
    Model,
    /// All to this pool; bodies stream.
    Pool(PoolId),
}

/// A host name, or `*.` and a domain: its subdomains at any depth, not itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum HostPattern {
    /// This name, in lower case.
    Exact(Box<str>),
    /// Names that end in this, which begins with a dot.
    Under(Box<str>),
}

/// A path, or a prefix that was written with a final `*`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PathPattern {
    /// This path.
    Exact(Box<str>),
    /// Every path that begins with this.
    Prefix(Box<str>),
}

/// The routes in the order in which they are tried.
#[derive(Debug, Default)]
pub struct Routes(Vec<Arc<Route>>);

/// A route, and the path under which it was found.
#[derive(Debug)]
pub struct Found<'r, 'p> {
    /// The route.
    pub route: &'r Arc<Route>,
    /// The path with its escapes resolved and its empty segments gone: what it means, whoever reads it.
    pub path: Cow<'p, str>,
}

/// Why a request has no route.
#[derive(Debug, PartialEq, Eq)]
pub enum NoRoute {
    /// No route serves this host and path.
    Unknown,
    /// Routes serve the path, with these other methods.
    Method(Vec<Method>),
    /// The path is not one that every server reads alike.
    Ambiguous,
}

/// Why a route does not serve a request.
#[derive(Debug, PartialEq, Eq)]
pub enum Miss<'r> {
    /// It serves other paths.
    Path,
    /// It serves another host.
    Host,
    /// It serves the path, with these methods.
    Method(&'r [Method]),
}

// === impl Routes ===

impl Routes {
    /// Routes, to be tried in this order.
    #[must_use]
    pub fn new(routes: Vec<Route>) -> Self {
        Self(routes.into_iter().map(Arc::new).collect())
    }

    /// The first route for this host (without its port), path (as sent, without its query) and method.
    ///
    /// # Errors
    /// [`NoRoute`], with the methods that would have been served where only the method is wrong.
    pub fn find<'p>(&self, host: Option<&str>, path: &'p str, method: &Method) -> Result<Found<'_, 'p>, NoRoute> {
        let eager = read(path)?;
        let route = self.first(host, &eager, method)?;
        if let Cow::Owned(_) = eager {
            let literal = reading(path, Slashes::AsSent)?;
            if literal != eager && !self.first(host, &literal, method).is_ok_and(|other| Arc::ptr_eq(other, route)) {
                return Err(NoRoute::Ambiguous);
            }
        }
        Ok(Found { route, path: eager })
    }

    /// All routes, in order.
    pub fn iter(&self) -> impl Iterator<Item = &Arc<Route>> {
        self.0.iter()
    }

    fn first(&self, host: Option<&str>, path: &str, method: &Method) -> Result<&Arc<Route>, NoRoute> {
        let mut served: Vec<Method> = Vec::new();
        for route in &self.0 {
            match route.misses(host, path, method) {
                None => return Ok(route),
                Some(Miss::Method(methods)) => served.extend_from_slice(methods),
                Some(Miss::Path | Miss::Host) => {}
            }
        }
        served.sort_by(|one, other| one.as_str().cmp(other.as_str()));
        served.dedup();
        Err(if served.is_empty() { NoRoute::Unknown } else { NoRoute::Method(served) })
    }
}

// === impl Route ===

/// What a model's engines are asked with.
const PROMPT: [Method; 1] = [Method::POST];
/// How the list of models is read.
const LIST: [Method; 2] = [Method::GET, Method::HEAD];

impl Route {
    /// Whether the list of models is what `path` names; the rest of the path after `/v1/models/`, if there is one.
    #[must_use]
    pub fn lists_models<'p>(&self, path: &'p str) -> Option<Option<&'p str>> {
        if self.target != Target::Model {
            return None;
        }
        match self.stripped(path)?.strip_prefix("/v1/models")? {
            "" | "/" => Some(None),
            rest => rest.strip_prefix('/').map(Some),
        }
    }

    /// The path without `strip_prefix`: what the engine is asked for. `None` if it does not begin with that prefix.
    #[must_use]
    pub fn stripped<'p>(&self, path: &'p str) -> Option<&'p str> {
        let Some(prefix) = &self.strip_prefix else { return Some(path) };
        match path.strip_prefix(&**prefix)? {
            "" => Some("/"),
            rest => rest.starts_with('/').then_some(rest),
        }
    }

    /// Why this route does not serve a request for a path as [`read`] gives it; `None`: it does.
    #[must_use]
    pub fn misses(&self, host: Option<&str>, path: &str, method: &Method) -> Option<Miss<'_>> {
        if !self.path.matches(path) {
            return Some(Miss::Path);
        }
        if self.host.as_ref().is_some_and(|pattern| !host.is_some_and(|host| pattern.matches(host))) {
            return Some(Miss::Host);
        }
        let methods = self.methods_at(path);
        (!methods.is_empty() && !methods.contains(method)).then_some(Miss::Method(methods))
    }

    /// The methods served at `path`; empty: any.
    fn methods_at(&self, path: &str) -> &[Method] {
        match self.target {
            Target::Model if self.lists_models(path).is_some() && self.allows(&Method::GET) => &LIST,
            Target::Model if self.methods.is_empty() => &PROMPT,
            Target::Model | Target::Pool(_) => &self.methods,
        }
    }

    fn allows(&self, method: &Method) -> bool {
        self.methods.is_empty() || self.methods.contains(method)
    }
}

// === impl HostPattern ===

impl HostPattern {
    /// Reads `api.example.com` or `*.example.com`.
    #[must_use]
    pub fn new(written: &str) -> Self {
        let lower = written.to_ascii_lowercase();
        match lower.strip_prefix('*') {
            Some(domain) => Self::Under(domain.into()),
            None => Self::Exact(lower.into()),
        }
    }

    fn matches(&self, host: &str) -> bool {
        let host = host.strip_suffix('.').unwrap_or(host);
        match self {
            Self::Exact(name) => host.eq_ignore_ascii_case(name),
            Self::Under(domain) => host
                .len()
                .checked_sub(domain.len())
                .is_some_and(|at| at > 0 && host.as_bytes()[at..].eq_ignore_ascii_case(domain.as_bytes())),
        }
    }
}

impl fmt::Display for HostPattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Exact(name) => f.write_str(name),
            Self::Under(domain) => write!(f, "*{domain}"),
        }
    }
}

// === impl PathPattern ===

impl PathPattern {
    /// Reads `/exact` or `/prefix/*`.
    #[must_use]
    pub fn new(written: &str) -> Self {
        match written.strip_suffix('*') {
            Some(prefix) => Self::Prefix(prefix.into()),
            None => Self::Exact(written.into()),
        }
    }

    fn matches(&self, path: &str) -> bool {
        match self {
            Self::Exact(exact) => path == &**exact,
            Self::Prefix(prefix) => path.starts_with(&**prefix),
        }
    }
}

impl fmt::Display for PathPattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Exact(path) => f.write_str(path),
            Self::Prefix(prefix) => write!(f, "{prefix}*"),
        }
    }
}

/// How an encoded slash is read.
#[derive(Clone, Copy, PartialEq)]
enum Slashes {
    /// As a slash.
    Decoded,
    /// As three characters of a segment.
    AsSent,
}

/// The path under which a route is looked for: as the most eager server reads it.
///
/// # Errors
/// [`NoRoute::Ambiguous`].
pub fn read(path: &str) -> Result<Cow<'_, str>, NoRoute> {
    reading(path, Slashes::Decoded)
}

/// The path with its escapes resolved and its empty segments gone.
fn reading(path: &str, slashes: Slashes) -> Result<Cow<'_, str>, NoRoute> {
    if !path.starts_with('/') {
        return Err(NoRoute::Ambiguous);
    }
    let plain = !path.contains(['%', '\\']) && !path.contains("//") && !path.contains("/.");
    if plain {
        return Ok(Cow::Borrowed(path));
    }
    let mut read: Vec<u8> = Vec::with_capacity(path.len());
    let mut bytes = path.bytes();
    while let Some(byte) = bytes.next() {
        let decoded = if byte == b'%' { escaped(&mut bytes)? } else { byte };
        match decoded {
            b'/' if byte == b'%' && slashes == Slashes::AsSent => read.extend_from_slice(b"%2F"),
            b'/' if read.last() == Some(&b'/') => {}
            b'\\' | 0..0x20 | 0x7f => return Err(NoRoute::Ambiguous),
            _ => read.push(decoded),
        }
    }
    let read = String::from_utf8(read).map_err(|_| NoRoute::Ambiguous)?;
    if read.split('/').any(|segment| segment == "." || segment == "..") {
        return Err(NoRoute::Ambiguous);
    }
    Ok(Cow::Owned(read))
}

/// The byte that two hexadecimal digits stand for.
fn escaped(digits: &mut impl Iterator<Item = u8>) -> Result<u8, NoRoute> {
    let mut digit = || digits.next().and_then(|d| char::from(d).to_digit(16)).ok_or(NoRoute::Ambiguous);
    let (high, low) = (digit()?, digit()?);
    u8::try_from(high << 4 | low).map_err(|_| NoRoute::Ambiguous)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn route(name: &str, host: &str, path: &str, methods: &[Method], target: Target) -> Route {
        Route {
            place: 0,
            name: name.into(),
            host: (!host.is_empty()).then(|| HostPattern::new(host)),
            path: PathPattern::new(path),
            methods: methods.to_vec(),
            auth: Auth::Key,
            target,
            strip_prefix: None,
        }
    }

    fn routes() -> Routes {
        let pool = Target::Pool(PoolId(0));
        Routes::new(vec![
            route("admin", "", "/admin/*", &[], pool),
            route("sub", "*.example.com", "/sub", &[Method::GET, Method::PUT], pool),
            route("host", "api.example.com", "/sub", &[], pool),
            route("v1", "", "/v1/*", &[], Target::Model),
            route("get-only", "", "/two", &[Method::GET], pool),
            route("post-only", "", "/two", &[Method::POST], pool),
            route("rest", "rest.example", "/*", &[], pool),
        ])
    }

    fn find(host: &str, path: &str, method: Method) -> String {
        match routes().find(Some(host), path, &method) {
            Ok(found) => found.route.name.to_string(),
            Err(NoRoute::Unknown) => "404".into(),
            Err(NoRoute::Method(served)) => {
                format!("405 {}", served.iter().map(Method::as_str).collect::<Vec<_>>().join(","))
            }
            Err(NoRoute::Ambiguous) => "400".into(),
        }
    }

    #[test]
    fn the_first_route_that_serves_host_path_and_method_is_found() {
        for (host, path, method, found) in [
            ("x", "/admin/users", Method::DELETE, "admin"),
            ("x", "/admin", Method::GET, "404"),
            ("a.example.com", "/sub", Method::GET, "sub"),
            ("A.B.Example.com.", "/sub", Method::GET, "sub"),
            ("api.example.com", "/sub", Method::POST, "host"),
            ("a.example.com", "/sub", Method::POST, "405 GET,PUT"),
            ("example.com", "/sub", Method::GET, "404"),
            ("x", "/v1/chat/completions", Method::POST, "v1"),
            ("x", "/v1/chat/completions", Method::GET, "405 POST"),
            ("x", "/v1/models", Method::GET, "v1"),
            ("x", "/v1/models/a/b", Method::HEAD, "v1"),
            ("x", "/v1/models", Method::POST, "405 GET,HEAD"),
            ("x", "/v1/modelsx", Method::GET, "405 POST"),
            ("x", "/two", Method::POST, "post-only"),
            ("x", "/two", Method::PUT, "405 GET,POST"),
            ("x", "/", Method::GET, "404"),
        ] {
            assert_eq!(find(host, path, method.clone()), found, "{method} {host}{path}");
        }
    }

    #[test]
    fn no_spelling_of_a_path_reaches_past_a_route() {
        for (path, found) in [
            ("//admin/users", "admin"),
            ("/admin//users", "admin"),
            ("/%61dmin/users", "admin"),
            ("/admin%2Fusers", "400"), // one server's /admin/users is another's single segment, which `rest` takes
            ("/x/../admin/users", "400"),
            ("/x/%2e%2e/admin/users", "400"),
            ("/x/%2E./admin", "400"),
            ("/./admin/users", "400"),
            ("/x%2f..%2fadmin", "400"),
            ("/x\\admin", "400"),
            ("/x%5cadmin", "400"),
            ("/x%00", "400"),
            ("/x%zz", "400"),
            ("/x%2", "400"),
            ("/x%ff", "400"),
            ("/a%2Fb", "rest"),
            ("/.well-known/x", "rest"),
            ("/a/...", "rest"),
        ] {
            assert_eq!(find("rest.example", path, Method::GET), found, "{path}");
        }
        assert_eq!(find("x", "/v1/models/org%2Fname", Method::GET), "v1");
        assert_eq!(find("x", "/v1/model%73", Method::GET), "v1");
        let routes = routes();
        for (path, read) in [("/v1/model%73", "/v1/models"), ("//v1//chat%2Fcompletions", "/v1/chat/completions")] {
            let method = if read.ends_with('s') && !read.contains("chat") { Method::GET } else { Method::POST };
            assert_eq!(routes.find(None, path, &method).map(|found| found.path.into_owned()), Ok(read.to_owned()));
        }
    }

    #[test]
    fn a_prefix_is_stripped_at_a_segment_border_only() {
        let mut route = route("t", "", "/triton/*", &[], Target::Pool(PoolId(0)));
        route.strip_prefix = Some("/triton".into());
        for (path, stripped) in [
            ("/triton/v2/x", Some("/v2/x")),
            ("/triton", Some("/")),
            ("/triton/", Some("/")),
            ("/tritonx", None),
            ("/%74riton/", None),
        ] {
            assert_eq!(route.stripped(path), stripped, "{path}");
        }
    }

    proptest! {
        #[test]
        fn any_path_is_read_or_refused(path in "[/a-z.%\\\\]{0,24}") {
            let _ = routes().find(None, &path, &Method::GET);
            if let Ok(read) = reading(&path, Slashes::Decoded) {
                prop_assert!(!read.contains("//"));
                prop_assert!(!read.split('/').any(|s| s == "." || s == ".."));
            }
        }
    }
}
