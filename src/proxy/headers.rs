//! What passes in each direction, and what a request's header may be.
//!
//! What strangers claim about where a request comes from is dropped; what a trusted proxy says is continued.

use std::net::IpAddr;
use std::time::Duration;

use http::header::{
    CONNECTION, CONTENT_ENCODING, CONTENT_LENGTH, Entry, FORWARDED, HOST, HeaderName, RETRY_AFTER, TE, TRAILER,
    TRANSFER_ENCODING, UPGRADE, VIA,
};
use http::uri::Authority;
use http::{HeaderMap, HeaderValue, StatusCode, Uri, Version, request, response};
use ipnet::IpNet;
use pingora::http::{RequestHeader, ResponseHeader};
use pingora::{ErrorType::InternalError, OrErr, Result};
use uuid::Uuid;

use super::rejection::Rejection;
use crate::access::Route;
use crate::access::key::CREDENTIALS;
use crate::pool::settings::{Address, Headers};
use crate::prompt::Dialect;

/// The longest request line, in bytes.
const MAX_LINE: usize = 8 * 1024;
/// The largest header section, in bytes.
const MAX_SECTION: usize = 32 * 1024;
/// The most header fields.
const MAX_FIELDS: usize = 100;
/// The longest request id that is kept.
const MAX_ID: usize = 128;

/// The header that names a request, in both directions.
pub const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
/// The same in the word of Anthropic's SDKs, for the client.
const ANTHROPIC_REQUEST_ID: HeaderName = HeaderName::from_static("request-id");
const FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
const FORWARDED_PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");
const FORWARDED_HOST: HeaderName = HeaderName::from_static("x-forwarded-host");
const REAL_IP: HeaderName = HeaderName::from_static("x-real-ip");
const KEEP_ALIVE: HeaderName = HeaderName::from_static("keep-alive");
const PROXY_CONNECTION: HeaderName = HeaderName::from_static("proxy-connection");

/// Who asks, by which name.
#[derive(Debug)]
pub struct Identity {
    /// The request's id: the client's if it is sane, else one of ours.
    pub request_id: HeaderValue,
    /// The client's address, by what trusted proxies say. `None` behind a unix socket.
    pub client: Option<IpAddr>,
    /// The address that connected to us.
    peer: Option<IpAddr>,
    /// Whether that is a trusted proxy.
    trusted: bool,
}

// === what a header may be ===

/// Refuses what is beyond our limits, and what two servers could read as two different requests. `raw` is the header section
/// as it came over HTTP/1; over HTTP/2 there is none.
///
/// # Errors
/// [`Rejection::HeaderTooLarge`] or [`Rejection::Malformed`].
pub fn check(header: &RequestHeader, raw: Option<&[u8]>) -> Result<(), Rejection> {
    let line = header.method.as_str().len() + header.raw_path().len();
    if line > MAX_LINE {
        return Err(Rejection::HeaderTooLarge("8 KiB in the request line"));
    }
    if header.headers.len() > MAX_FIELDS {
        return Err(Rejection::HeaderTooLarge("100 header fields"));
    }
    let section: usize = header.headers.iter().map(|(name, value)| name.as_str().len() + value.len() + 4).sum();
    if section > MAX_SECTION {
        return Err(Rejection::HeaderTooLarge("32 KiB of header fields"));
    }
    if !header.raw_path_is_utf8() {
        return Err(Rejection::Malformed("its path is not UTF-8"));
    }
    if let Some(raw) = raw {
        framing(&header.headers, raw)?;
        if header.version == Version::HTTP_11 && !header.headers.contains_key(HOST) {
            return Err(Rejection::Malformed("it has no `Host`"));
        }
    }
    let host = header.headers.get(HOST).filter(|host| !host.is_empty());
    if host.is_some_and(|host| Authority::try_from(host.as_bytes()).is_err()) {
        return Err(Rejection::Malformed("its `Host` is not a host"));
    }
    if header.headers.get_all(HOST).iter().nth(1).is_some() {
        return Err(Rejection::Malformed("it has more than one `Host`"));
    }
    let mut lengths = header.headers.get_all(CONTENT_LENGTH).iter();
    let digits = |value: &HeaderValue| !value.is_empty() && value.as_bytes().iter().all(u8::is_ascii_digit);
    if lengths.next().is_some_and(|length| !digits(length)) || lengths.next().is_some() {
        return Err(Rejection::Malformed("its `Content-Length` is not one number"));
    }
    Ok(())
}

/// RFC 9112 §6 and §2.2: one way to tell where the body ends, and lines that end in CR LF.
fn framing(headers: &HeaderMap, raw: &[u8]) -> Result<(), Rejection> {
    if memchr::memchr_iter(b'\n', raw).any(|at| at == 0 || raw[at - 1] != b'\r') {
        return Err(Rejection::Malformed("a line of its header does not end in CR LF"));
    }
    let mut codings = headers.get_all(TRANSFER_ENCODING).iter();
    let Some(coding) = codings.next() else { return Ok(()) };
    if !coding.as_bytes().eq_ignore_ascii_case(b"chunked") || codings.next().is_some() {
        return Err(Rejection::Malformed("its `Transfer-Encoding` is not `chunked` alone"));
    }
    // Pingora has dropped the length by now, so only the raw section tells.
    let line = b"\ncontent-length";
    if raw.windows(line.len()).any(|window| window.eq_ignore_ascii_case(line)) {
        return Err(Rejection::Malformed("it has both `Content-Length` and `Transfer-Encoding`"));
    }
    Ok(())
}

/// Whether the body has a content coding, which would hide what is in it.
#[must_use]
pub fn is_encoded(headers: &HeaderMap) -> bool {
    let identity = |value: &HeaderValue| value.is_empty() || value.as_bytes().eq_ignore_ascii_case(b"identity");
    headers.get_all(CONTENT_ENCODING).iter().any(|value| !identity(value))
}

/// The host that is asked for, without its port.
#[must_use]
pub fn host(header: &RequestHeader) -> Option<&str> {
    let named = header.headers.get(HOST).and_then(|value| value.to_str().ok());
    let host = named.or_else(|| header.uri.authority().map(|authority| authority.as_str()))?;
    match host.rfind(':') {
        Some(at) if !host[at..].contains(']') => Some(&host[..at]),
        _ => Some(host),
    }
}

/// Turns `GET http://host/path` into `GET /path` with its `Host` (RFC 9112 §3.2.2).
pub fn to_origin_form(header: &mut RequestHeader) -> Result<()> {
    if header.raw_path().starts_with(b"/") {
        return Ok(());
    }
    let target = Uri::try_from(header.raw_path()).ok();
    let absolute = target.as_ref().and_then(|target| Some((target.authority()?, target.path_and_query()?)));
    let (authority, path) = absolute.ok_or(Rejection::Malformed("its target is neither a path nor a URL"))?;
    let host = HeaderValue::from_str(authority.as_str())
        .map_err(|_| Rejection::Malformed("the host of its target is not a host"))?;
    header.insert_header(HOST, host)?;
    header.set_raw_path(path.as_str().as_bytes())
}

/// Lets go of how the client spelled the names of its fields. Pingora keeps that in a map beside the fields', which every
/// copy and every change would have to follow.
pub fn forget_spelling(header: &mut RequestHeader) {
    *header = parts(header).into();
}

/// Takes a header apart; an empty one is left behind. How its names were spelled is lost, and a target that is no path.
fn parts(header: &mut RequestHeader) -> request::Parts {
    let empty = http::Request::new(()).into_parts().0;
    std::mem::replace(header, empty.into()).into()
}

// === impl Identity ===

impl Identity {
    /// Reads who asks from the header, the address that connected, and whom the configuration trusts.
    #[must_use]
    pub fn of(headers: &HeaderMap, peer: Option<IpAddr>, trusted: &[IpNet]) -> Self {
        let trusts = |address: IpAddr| trusted.iter().any(|network| network.contains(&address));
        let peer = peer.map(|address| address.to_canonical());
        let from_proxy = peer.is_some_and(trusts);
        let client = if from_proxy { nearest_stranger(headers, trusts).or(peer) } else { peer };
        Self { request_id: request_id(headers), client, peer, trusted: from_proxy }
    }

    /// Forebay's own, of a request that no client sent.
    #[must_use]
    pub fn own() -> Self {
        Self { request_id: request_id(&HeaderMap::new()), client: None, peer: None, trusted: false }
    }

    /// The request's id as text.
    #[must_use]
    pub fn request_id(&self) -> &str {
        self.request_id.to_str().unwrap_or_default() // a sane id and a UUID are ASCII
    }
}

/// The last address in `X-Forwarded-For` that is not itself a trusted proxy's.
fn nearest_stranger(headers: &HeaderMap, trusts: impl Fn(IpAddr) -> bool) -> Option<IpAddr> {
    let mut nearest = None;
    for line in headers.get_all(FORWARDED_FOR).iter().rev() {
        let Ok(line) = line.to_str() else { return nearest };
        for hop in line.rsplit(',') {
            let Ok(address) = hop.trim().parse::<IpAddr>() else { return nearest };
            let address = address.to_canonical();
            nearest = Some(address);
            if !trusts(address) {
                return nearest;
            }
        }
    }
    nearest
}

fn request_id(headers: &HeaderMap) -> HeaderValue {
    let sane = |value: &&HeaderValue| {
        let id = value.as_bytes();
        (1..=MAX_ID).contains(&id.len())
            && id.iter().all(|byte| byte.is_ascii_alphanumeric() || b"-_.:/+=@".contains(byte))
    };
    if let Some(id) = headers.get(REQUEST_ID).filter(sane) {
        return id.clone();
    }
    let mut buffer = Uuid::encode_buffer();
    let id = Uuid::now_v7().hyphenated().encode_lower(&mut buffer);
    HeaderValue::from_str(id).unwrap_or(HeaderValue::from_static("unknown")) // a UUID is a header value
}

// === what passes ===

/// Writes the host that an HTTP/2 client asked for as `Host`, where everything else looks for it. Before the path changes: with a
/// new one Pingora 0.9.1 forgets it.
pub fn spell_host(header: &mut RequestHeader) -> Result<()> {
    match header.uri.authority().map(|authority| authority.as_str().to_owned()) {
        Some(host) if !header.headers.contains_key(HOST) => header.insert_header(HOST, host),
        _ => Ok(()),
    }
}

/// Puts the engine's path in place of the client's.
///
/// # Errors
/// When Pingora does not take the path.
pub fn readdress(to: &mut RequestHeader, route: &Route, prefix: &str) -> Result<()> {
    if route.strip_prefix.is_none() && prefix.is_empty() {
        return Ok(());
    }
    let stripped = route.stripped(to.uri.path()).unwrap_or("/"); // that it can be stripped was found on admission
    let query = to.uri.query().map_or(String::new(), |query| format!("?{query}"));
    let path = format!("{prefix}{stripped}{query}");
    to.set_raw_path(path.as_bytes())
}

/// Makes the header that an engine gets out of the client's. Pingora has taken the hop-by-hop fields off.
/// `via`: how it came to us; `credentials`: whether the client's go on.
pub fn to_engine(
    header: &mut RequestHeader,
    identity: &Identity,
    via: Version,
    pool: &Headers,
    credentials: bool,
) -> Result<()> {
    let mut parts = parts(header);
    let fields = &mut parts.headers;
    if !identity.trusted {
        for name in [&FORWARDED_FOR, &FORWARDED_PROTO, &FORWARDED_HOST, &FORWARDED, &REAL_IP, &VIA] {
            fields.remove(name);
        }
    }
    if !credentials || pool.api_key.is_some() {
        for name in &CREDENTIALS {
            fields.remove(name);
        }
    }
    fields.insert(REQUEST_ID, identity.request_id.clone());
    if let Some(peer) = identity.peer {
        append(fields, FORWARDED_FOR, peer.to_string().try_into().or_err(InternalError, "an address in a header")?)?;
    }
    let version = if via == Version::HTTP_2 { "2 forebay" } else { "1.1 forebay" };
    append(fields, VIA, HeaderValue::from_static(version))?; // RFC 9110 §7.6.3
    fields.entry(FORWARDED_PROTO).or_insert(HeaderValue::from_static("http"));
    if let Some(asked) = fields.get(HOST).filter(|host| !host.is_empty()).cloned() {
        fields.entry(FORWARDED_HOST).or_insert(asked);
    }
    for name in &pool.remove {
        fields.remove(name);
    }
    for (name, value) in pool.fixed() {
        fields.insert(name, value.clone());
    }
    *header = parts.into();
    Ok(())
}

/// Completes the header of a request that no client sent: the pool's fields, its own id, and a host.
pub fn of_ours(header: &mut RequestHeader, identity: &Identity, pool: &Headers, engine: &Address) -> Result<()> {
    header.insert_header(REQUEST_ID, identity.request_id.clone())?;
    for name in &pool.remove {
        header.remove_header(name);
    }
    for (name, value) in pool.fixed() {
        header.insert_header(name, value.clone())?;
    }
    name_host(header, engine)
}

/// What a request for an engine of HTTP/2 needs besides.
///
/// A host, the engine's own if its client named none. And that trailers are welcome, where the client says so, over HTTP/2 as
/// well: it is said for one connection only (RFC 9110 §10.1.4), and gRPC's servers answer nothing without it.
pub fn to_http2(header: &mut RequestHeader, client: &RequestHeader, engine: &Address) -> Result<()> {
    let mut said = client.headers.get_all(TE).iter();
    if client.version == Version::HTTP_2 && said.any(|value| value.as_bytes().eq_ignore_ascii_case(b"trailers")) {
        header.insert_header(TE, HeaderValue::from_static("trailers"))?;
    }
    name_host(header, engine)
}

/// Names the engine itself as the host, where none is named.
fn name_host(header: &mut RequestHeader, engine: &Address) -> Result<()> {
    match engine {
        _ if header.headers.get(HOST).is_some_and(|host| !host.is_empty()) => Ok(()),
        Address::Unix(_) => header.insert_header(HOST, HeaderValue::from_static("localhost")),
        Address::Socket(_) | Address::Name { .. } => header.insert_header(HOST, engine.to_string()),
    }
}

/// Adds to a list in a field; several lines of it become one.
fn append(fields: &mut HeaderMap, name: HeaderName, value: HeaderValue) -> Result<()> {
    match fields.entry(name) {
        Entry::Vacant(none) => {
            none.insert(value);
        }
        Entry::Occupied(mut lines) => {
            let mut list: Vec<u8> = Vec::new();
            for line in lines.iter() {
                list.extend_from_slice(line.as_bytes());
                list.extend_from_slice(b", ");
            }
            list.extend_from_slice(value.as_bytes());
            lines.insert(list.try_into().or_err(InternalError, "a list in a header")?);
        }
    }
    Ok(())
}

/// Makes the header that the client gets out of an engine's: without what was meant for the connection to the engine.
pub fn to_client(header: &mut ResponseHeader) -> Result<()> {
    let reason = header.get_reason_phrase().filter(|reason| header.status.canonical_reason() != Some(reason));
    let reason = reason.map(str::to_owned);
    let empty = http::Response::new(()).into_parts().0;
    let mut parts: response::Parts = std::mem::replace(header, empty.into()).into();
    parts.version = Version::HTTP_11; // ours, whatever the engine speaks
    let fields = &mut parts.headers;
    if parts.status == StatusCode::NO_CONTENT {
        fields.remove(CONTENT_LENGTH); // RFC 9110 §8.6, RFC 9112 §6.1
        fields.remove(TRANSFER_ENCODING);
    }
    for name in for_the_connection(fields) {
        fields.remove(name);
    }
    *header = parts.into();
    header.set_reason_phrase(reason.as_deref())
}

/// Names the request to its client, in the word of its SDK too where the engine did not.
pub fn name_request(header: &mut ResponseHeader, identity: &Identity, dialect: Dialect) -> Result<()> {
    if dialect == Dialect::Messages && !header.headers.contains_key(&ANTHROPIC_REQUEST_ID) {
        header.insert_header(ANTHROPIC_REQUEST_ID, &identity.request_id)?;
    }
    header.insert_header(REQUEST_ID, &identity.request_id)
}

/// For how long the engine asks to be left alone, in seconds (RFC 9110 §10.2.3); a date is not read.
#[must_use]
pub fn retry_after(header: &ResponseHeader) -> Option<Duration> {
    header.headers.get(RETRY_AFTER)?.to_str().ok()?.trim().parse().ok().map(Duration::from_secs)
}

/// The fields that are about one connection: those that always are, and those that `Connection` names (RFC 9110 §7.6.1).
fn for_the_connection(headers: &HeaderMap) -> Vec<HeaderName> {
    let always = [CONNECTION, KEEP_ALIVE, PROXY_CONNECTION, TE, TRAILER, UPGRADE];
    let named = headers.get_all(CONNECTION).iter().filter_map(|value| value.to_str().ok());
    let named = named.flat_map(|value| value.split(',')).map(str::trim);
    let named = named.filter(|name| !name.eq_ignore_ascii_case("keep-alive") && !name.eq_ignore_ascii_case("close"));
    let framing = [CONTENT_LENGTH, TRANSFER_ENCODING];
    let named = named.filter_map(|name| HeaderName::from_bytes(name.as_bytes()).ok());
    let named = named.filter(|name| !framing.contains(name));
    headers.keys().filter(|name| always.contains(name)).cloned().chain(named).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(fields: &[(&'static str, &str)]) -> RequestHeader {
        let mut header = RequestHeader::build("POST", b"/v1/chat/completions", None).unwrap();
        header.append_header("host", "api.example.com").unwrap();
        for (name, value) in fields {
            header.append_header(*name, value.to_string()).unwrap();
        }
        header
    }

    fn raw(fields: &[(&'static str, &str)]) -> Vec<u8> {
        let lines: String = fields.iter().map(|(name, value)| format!("{name}: {value}\r\n")).collect();
        format!("POST / HTTP/1.1\r\nhost: x\r\n{lines}\r\n").into_bytes()
    }

    fn identity(fields: &[(&'static str, &str)], peer: &str) -> Identity {
        let trusted = ["10.0.0.0/8".parse().unwrap()];
        Identity::of(&request(fields).headers, Some(peer.parse().unwrap()), &trusted)
    }

    #[test]
    fn what_two_servers_could_read_as_two_requests_is_refused() {
        for (fields, good) in [
            (&[("content-length", "5")][..], true),
            (&[("transfer-encoding", "Chunked")], true),
            (&[("content-length", "5, 5")], false),
            (&[("content-length", "+5")], false),
            (&[("content-length", "")], false),
            (&[("content-length", "5"), ("content-length", "5")], false),
            (&[("transfer-encoding", "gzip, chunked")], false),
            (&[("transfer-encoding", "chunked"), ("transfer-encoding", "chunked")], false),
            (&[("host", "other")], false),
        ] {
            assert_eq!(check(&request(fields), Some(&raw(fields))).is_ok(), good, "{fields:?}");
        }
        let chunked = request(&[("transfer-encoding", "chunked")]);
        let both = b"POST / HTTP/1.1\r\nContent-length: 5\r\ntransfer-encoding: chunked\r\n\r\n";
        assert!(check(&chunked, Some(both)).is_err());
        assert!(check(&request(&[]), Some(b"POST / HTTP/1.1\r\na: b\nc: d\r\n\r\n")).is_err());
    }

    #[test]
    fn a_header_beyond_the_limits_is_refused_as_too_large() {
        let many: Vec<(&'static str, &str)> = vec![("x-a", "b"); 100];
        let long = "a".repeat(33 * 1024);
        for header in [request(&many), request(&[("x-long", &long)]), {
            let mut header = request(&[]);
            header.set_raw_path(format!("/{}", "p".repeat(8 * 1024)).as_bytes()).unwrap();
            header
        }] {
            assert!(matches!(check(&header, None), Err(Rejection::HeaderTooLarge(_))));
        }
        assert!(check(&request(&many[..99]), None).is_ok());
    }

    #[test]
    fn the_client_is_the_nearest_address_that_no_trusted_proxy_has() {
        for (forwarded, peer, client) in [
            ("1.1.1.1", "9.9.9.9", "9.9.9.9"),
            ("1.1.1.1", "10.0.0.1", "1.1.1.1"),
            ("6.6.6.6, 1.1.1.1, 10.0.0.2", "10.0.0.1", "1.1.1.1"),
            ("10.0.0.3", "10.0.0.1", "10.0.0.3"),
            ("nonsense", "10.0.0.1", "10.0.0.1"),
            ("6.6.6.6, nonsense, 10.0.0.2", "10.0.0.1", "10.0.0.2"),
            ("::ffff:1.1.1.1", "10.0.0.1", "1.1.1.1"),
        ] {
            let identity = identity(&[("x-forwarded-for", forwarded)], peer);
            assert_eq!(identity.client.unwrap().to_string(), client, "{forwarded} by {peer}");
        }
    }

    #[test]
    fn a_sane_request_id_is_kept_and_another_replaced() {
        let long = "a".repeat(129);
        for (id, kept) in [("abc-1.2_3", true), ("a b", false), ("\"x\"", false), (long.as_str(), false)] {
            let identity = identity(&[("x-request-id", id)], "9.9.9.9");
            assert_eq!(identity.request_id() == id, kept, "{id}");
            assert!(kept || identity.request_id().as_bytes()[14] == b'7', "a UUID of version 7");
        }
    }

    #[test]
    fn a_strangers_claims_are_dropped_and_a_proxys_continued() {
        let claims = [
            ("x-forwarded-for", "1.1.1.1"),
            ("x-forwarded-proto", "https"),
            ("x-forwarded-host", "public.example"),
            ("via", "1.1 front"),
            ("x-real-ip", "1.1.1.1"),
            ("authorization", "Bearer secret"),
            ("x-api-key", "secret"),
        ];
        for (peer, expected) in [
            ("9.9.9.9", ["9.9.9.9", "http", "api.example.com", "1.1 forebay"]),
            ("10.0.0.1", ["1.1.1.1, 10.0.0.1", "https", "public.example", "1.1 front, 1.1 forebay"]),
        ] {
            let mut header = request(&claims);
            to_engine(
                &mut header,
                &identity(&claims, peer),
                Version::HTTP_11,
                &Headers { host: Some(HeaderValue::from_static("engine.local")), ..Headers::default() },
                false,
            )
            .unwrap();
            let names = ["x-forwarded-for", "x-forwarded-proto", "x-forwarded-host", "via"];
            for (name, value) in names.into_iter().zip(expected) {
                assert_eq!(header.headers[name], value, "{name} by {peer}");
            }
            assert_eq!(header.headers["host"], "engine.local");
            assert!(!header.headers.contains_key("authorization") && !header.headers.contains_key("x-api-key"));
        }
    }

    #[test]
    fn an_engine_gets_what_its_pool_says_and_no_credential_beside() {
        let sent =
            [("authorization", "Bearer client"), ("x-api-key", "client"), ("x-a", "1"), ("x-b", "2"), ("x-c", "3")];
        let pool = |api_key: Option<&'static str>| Headers {
            host: None,
            api_key: api_key.map(HeaderValue::from_static),
            set: [("x-b", "ours"), ("x-new", "new")]
                .map(|(name, value)| (HeaderName::from_static(name), HeaderValue::from_static(value)))
                .into(),
            remove: vec![HeaderName::from_static("x-c"), HeaderName::from_static("via")],
        };
        for (api_key, credentials, authorization, x_api_key) in [
            (None, false, None, None),
            (None, true, Some("Bearer client"), Some("client")),
            (Some("Bearer ours"), false, Some("Bearer ours"), None),
            (Some("Bearer ours"), true, Some("Bearer ours"), None),
        ] {
            let mut header = request(&sent);
            let identity = identity(&sent, "9.9.9.9");
            to_engine(&mut header, &identity, Version::HTTP_11, &pool(api_key), credentials).unwrap();
            let got = |name: &str| header.headers.get(name).map(|value| value.to_str().unwrap());
            assert_eq!((got("authorization"), got("x-api-key")), (authorization, x_api_key));
            assert_eq!(
                ["x-a", "x-b", "x-c", "x-new", "via"].map(got),
                [Some("1"), Some("ours"), None, Some("new"), None]
            );
        }
    }

    #[test]
    fn a_strangers_claims_are_dropped_where_there_is_nothing_to_put_in_their_place() {
        let names = ["x-forwarded-for", "x-forwarded-proto", "x-forwarded-host", "via", "x-real-ip", "forwarded"];
        let mut header = RequestHeader::build("GET", b"/", None).unwrap();
        names.iter().for_each(|name| header.insert_header(*name, "9.9.9.9").unwrap());
        let identity = Identity::of(&header.headers, None, &[]); // over a unix socket, and without a `Host`
        to_engine(&mut header, &identity, Version::HTTP_10, &Headers::default(), false).unwrap();
        let left = names.map(|name| header.headers.get(name).map(|value| value.to_str().unwrap()));
        assert_eq!(left, [None, Some("http"), None, Some("1.1 forebay"), None, None]);
    }

    #[test]
    fn what_was_meant_for_the_engines_connection_stays_there() {
        let mut header = ResponseHeader::build(200, None).unwrap();
        for (name, value) in
            [("connection", "x-private, keep-alive"), ("keep-alive", "5"), ("x-private", "1"), ("x-model", "m")]
        {
            header.append_header(name, value).unwrap();
        }
        to_client(&mut header).unwrap();
        let mut names: Vec<&str> = header.headers.keys().map(HeaderName::as_str).collect();
        names.sort_unstable();
        assert_eq!(names, ["x-model"]);
    }

    #[test]
    fn a_client_hears_the_requests_id_in_the_word_of_its_sdk() {
        let identity = identity(&[("x-request-id", "id-1")], "9.9.9.9");
        for (dialect, engines, expected) in [
            (Dialect::Completions, None, None),
            (Dialect::Completions, Some("req_1"), Some("req_1")),
            (Dialect::Messages, None, Some("id-1")),
            (Dialect::Messages, Some("req_1"), Some("req_1")),
        ] {
            let mut header = ResponseHeader::build(200, None).unwrap();
            engines.into_iter().for_each(|id| header.insert_header("request-id", id).unwrap());
            name_request(&mut header, &identity, dialect).unwrap();
            let got = |name: &str| header.headers.get(name).map(|value| value.to_str().unwrap());
            assert_eq!((got("x-request-id"), got("request-id")), (Some("id-1"), expected));
        }
    }

    #[test]
    fn the_host_is_read_without_its_port() {
        for (value, expected) in
            [("a.example:8080", "a.example"), ("[::1]:80", "[::1]"), ("[::1]", "[::1]"), ("a", "a")]
        {
            let mut header = RequestHeader::build("GET", b"/", None).unwrap();
            header.insert_header("host", value).unwrap();
            assert_eq!(host(&header), Some(expected));
        }
        let mut header = RequestHeader::build("GET", b"http://a.example:1/p?q", None).unwrap();
        to_origin_form(&mut header).unwrap();
        assert_eq!((header.headers["host"].to_str().unwrap(), header.raw_path()), ("a.example:1", &b"/p?q"[..]));
    }
}
