//! Whether a prompt may be answered from the cache, and whether the engine's answer to it may be kept.
//!
//! Both are asked only where the model has a cache. What may surprise:
//! - `only-if-cached` forbids to ask the engine, so a prompt that could not have been kept is not answered at all.
//! - Of a request's `Cache-Control`, `max-age` and the like are not asked: what is kept is fresh until its time is over.
//! - The engine's own `Cache-Control` is not asked: the libraries that engines stream with send `no-store` or
//!   `no-cache` with every stream, and whoever set up the cache has decided otherwise.

use std::fmt;
use std::mem;

use http::header::CACHE_CONTROL;
use http::{HeaderMap, Method, StatusCode};

use super::canonical::{Canonical, Circumstances, Formless, PromptKey};

/// A request, as far as the cache decides over it.
#[derive(Clone, Copy)]
pub struct Asked<'a> {
    /// What its `Cache-Control` says.
    pub directives: Directives,
    /// Its path as the engine is asked for it.
    pub path: &'a str,
    /// What its key is made of besides the body.
    pub circumstances: Circumstances<'a>,
    /// Whether the model keeps sampled answers too.
    pub sampled: bool,
}

/// What the cache does with a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Decision {
    /// Nothing: it goes to the engine as if there were no cache.
    Bypass(Bypass),
    /// It is looked for under this key.
    Look {
        /// The prompt's key.
        key: PromptKey,
        /// What is done with it.
        mode: Mode,
    },
    /// It is refused, for only the cache may answer it, and will not.
    NotCached(Bypass),
}

/// How a request uses the cache.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// A kept answer is given; a new one is kept.
    Use,
    /// `no-cache`: a kept answer is not given, and the new one takes its place.
    Renew,
    /// `only-if-cached`: a kept answer is given; without one the request is refused.
    Recall,
}

/// Why a request has nothing to do with the cache; its `Display` goes on from "because".
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Bypass {
    /// It is no `POST`.
    Method,
    /// It says `no-store`.
    NoStore,
    /// It says both `no-cache` and `only-if-cached`: no answer is left.
    NoAnswer,
    /// The engine may answer it in one way now and in another the next time.
    Sampled,
    /// Its body has no canonical form.
    Formless(Formless),
    /// Its body's canonical form could not be made, by a fault of ours.
    Unread,
}

/// What a request's `Cache-Control` asks, as far as it is heard.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Directives {
    /// Do not give a kept answer.
    pub no_cache: bool,
    /// Neither give a kept answer nor keep the new one.
    pub no_store: bool,
    /// Do not ask the engine.
    pub only_if_cached: bool,
}

/// Why an answer is not kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unkept {
    /// Its status is not 200.
    Status,
    /// Its body is larger than `[cache] max_body`.
    TooLarge,
}

/// The endpoint whose answers depend on nothing but the prompt.
const EMBEDDINGS: &str = "/v1/embeddings";

/// That a request's header does not keep it from the cache, so that its body is worth to be read.
///
/// # Errors
/// [`Bypass`] says why it does.
pub fn admit(method: &Method, directives: Directives) -> Result<(), Bypass> {
    match directives {
        _ if *method != Method::POST => Err(Bypass::Method),
        Directives { no_store: true, .. } => Err(Bypass::NoStore),
        Directives { no_cache: true, only_if_cached: true, .. } => Err(Bypass::NoAnswer),
        _ => Ok(()),
    }
}

/// What the cache does with a request to a model that has one. `body` is its body's form, or why it has none or was not read.
#[must_use]
pub fn decide(asked: &Asked<'_>, body: Result<Canonical, Bypass>) -> Decision {
    let Directives { no_cache, only_if_cached, .. } = asked.directives;
    match body.and_then(|body| asked.key(&body)) {
        Ok(key) if only_if_cached => Decision::Look { key, mode: Mode::Recall },
        Ok(key) if no_cache => Decision::Look { key, mode: Mode::Renew },
        Ok(key) => Decision::Look { key, mode: Mode::Use },
        Err(why) if only_if_cached => Decision::NotCached(why),
        Err(why) => Decision::Bypass(why),
    }
}

/// Whether a complete answer may be kept.
///
/// `size` is that of its body in bytes, `max_body` the most that is kept.
///
/// # Errors
/// [`Unkept`] says why not.
pub fn keep(status: StatusCode, size: u64, max_body: u64) -> Result<(), Unkept> {
    match status {
        StatusCode::OK if size <= max_body => Ok(()),
        StatusCode::OK => Err(Unkept::TooLarge),
        _ => Err(Unkept::Status),
    }
}

// === impl Asked ===

impl Asked<'_> {
    fn key(&self, body: &Canonical) -> Result<PromptKey, Bypass> {
        if body.deterministic || self.sampled || self.path == EMBEDDINGS {
            Ok(PromptKey::new(&self.circumstances, body))
        } else {
            Err(Bypass::Sampled)
        }
    }
}

// === impl Bypass ===

impl fmt::Display for Bypass {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Method => f.write_str("it is no POST"),
            Self::NoStore => f.write_str("its Cache-Control says no-store"),
            Self::NoAnswer => f.write_str("its Cache-Control says both no-cache and only-if-cached"),
            Self::Sampled => f.write_str("its temperature is not 0 and it has no seed"),
            Self::Formless(why) => why.fmt(f),
            Self::Unread => f.write_str("its body could not be read for the cache"),
        }
    }
}

// === impl Directives ===

impl Directives {
    /// Reads every `Cache-Control` line. Arguments do not matter, nor what is not known.
    #[must_use]
    pub fn read(headers: &HeaderMap) -> Self {
        let mut directives = Self::default();
        for directive in headers.get_all(CACHE_CONTROL).iter().flat_map(|line| list(line.as_bytes())) {
            let name = directive.split(|byte| *byte == b'=').next().unwrap_or_default().trim_ascii();
            let is = |known: &str| name.eq_ignore_ascii_case(known.as_bytes());
            directives.no_cache |= is("no-cache");
            directives.no_store |= is("no-store");
            directives.only_if_cached |= is("only-if-cached");
        }
        directives
    }
}

/// The members of a list; a comma within a quoted string divides nothing (RFC 9110, 5.6).
fn list(line: &[u8]) -> impl Iterator<Item = &[u8]> {
    let (mut quoted, mut escaped) = (false, false);
    line.split(move |byte| {
        if !mem::take(&mut escaped) {
            match byte {
                b'"' => quoted = !quoted,
                b'\\' => escaped = quoted,
                _ => {}
            }
        }
        *byte == b',' && !quoted
    })
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;
    use http::header::{ACCEPT, USER_AGENT};

    use super::*;
    use crate::cache::canonical::Scope;

    fn lines(lines: &[&[u8]]) -> HeaderMap {
        lines.iter().map(|line| (CACHE_CONTROL, HeaderValue::from_bytes(line).unwrap())).collect()
    }

    #[test]
    fn cache_control_is_read_as_lists_of_directives() {
        let cases: &[(&[&[u8]], [bool; 3])] = &[
            (&[], [false, false, false]),
            (&[b""], [false, false, false]),
            (&[b"no-cache"], [true, false, false]),
            (&[b"no-store"], [false, true, false]),
            (&[b"only-if-cached"], [false, false, true]),
            (&[b"No-Cache, NO-STORE ,Only-If-Cached"], [true, true, true]),
            (&[b"max-age=0", b"no-cache", b"no-store"], [true, true, false]),
            (&[b",, \t,no-store\t,"], [false, true, false]),
            (&[b"no-cache=\"set-cookie\""], [true, false, false]),
            (&[b"no-cache = x,no-store=0"], [true, true, false]),
            (&[b"x=\"a, no-store\", no-cache"], [true, false, false]),
            (&[b"x=\"\\\", no-store\", no-cache"], [true, false, false]),
            (&[b"x=\"\\\\\", no-store"], [false, true, false]),
            (&[b"x=\\\", no-store\", no-cache"], [true, false, false]),
            (&[b"x=\"open", b"no-store"], [false, true, false]),
            (&[b"max-age=0, no-transform"], [false, false, false]),
            (&[b"no-cachex, xno-store, only-if, no cache, \"no-store\""], [false, false, false]),
            (&[b"\xff\xfe, no-store"], [false, true, false]),
        ];
        for (given, [no_cache, no_store, only_if_cached]) in cases {
            let directives = Directives { no_cache: *no_cache, no_store: *no_store, only_if_cached: *only_if_cached };
            let headers = lines(given);
            assert_eq!(Directives::read(&headers), directives, "{headers:?}");
        }
    }

    /// A request with its method and body.
    type Whole<'a> = (Asked<'a>, &'a Method, &'a str);

    /// A chat prompt, to be changed.
    fn asked<'a>(headers: &'a HeaderMap, body: &'a str) -> Whole<'a> {
        let circumstances = Circumstances {
            scope: Scope::Shared,
            target: "/v1/chat/completions",
            headers,
            model: "m",
            upstream: None,
            version: "",
        };
        let directives = Directives::read(headers);
        (Asked { directives, path: "/v1/chat/completions", circumstances, sampled: false }, &Method::POST, body)
    }

    fn decided((asked, method, body): Whole<'_>) -> Decision {
        let read = || Canonical::read(body.as_bytes()).map_err(Bypass::Formless);
        decide(&asked, admit(method, asked.directives).and_then(|()| read()))
    }

    const FIXED: &str = r#"{"model":"m","temperature":0}"#;
    const SAMPLED: &str = r#"{"model":"m"}"#;
    const TWICE: &str = r#"{"model":"m","temperature":0,"temperature":0}"#;

    #[test]
    fn only_deterministic_posts_are_admitted() {
        let headers = HeaderMap::new();
        let sampled = |(asked, method, body)| (Asked { sampled: true, ..asked }, method, body);
        let at = |path, (asked, method, body)| (Asked { path, ..asked }, method, body);
        let by = |method, (asked, _, body)| (asked, method, body);
        let (drawn, twice) = (Some(Bypass::Sampled), Some(Bypass::Formless(Formless::DuplicateMember)));
        let cases = [
            (asked(&headers, FIXED), None),
            (asked(&headers, r#"{"seed":7,"temperature":1,"model":"m"}"#), None),
            (asked(&headers, SAMPLED), drawn),
            (sampled(asked(&headers, SAMPLED)), None),
            (at("/v1/embeddings", asked(&headers, SAMPLED)), None),
            (at("/v1/embeddings/x", asked(&headers, SAMPLED)), drawn),
            (at("/v1/rerank", asked(&headers, SAMPLED)), drawn),
            (by(&Method::PUT, asked(&headers, FIXED)), Some(Bypass::Method)),
            (by(&Method::GET, sampled(asked(&headers, FIXED))), Some(Bypass::Method)),
            (asked(&headers, TWICE), twice),
            (sampled(asked(&headers, TWICE)), twice),
            (at("/v1/embeddings", asked(&headers, TWICE)), twice),
        ];
        for (index, (asked, why)) in cases.into_iter().enumerate() {
            match (decided(asked), why) {
                (Decision::Look { mode: Mode::Use, .. }, None) => {}
                (Decision::Bypass(said), Some(why)) => assert_eq!(said, why, "{index}"),
                (decision, _) => panic!("{index}: {decision:?}"),
            }
        }
    }

    #[test]
    fn the_client_says_what_the_cache_may_do() {
        use Bypass::{NoAnswer, NoStore, Sampled};
        let plain = HeaderMap::new();
        let Decision::Look { key, .. } = decided(asked(&plain, FIXED)) else { panic!("it is deterministic") };
        let look = |mode| Decision::Look { key, mode };
        for (line, fixed, sampled) in [
            ("", look(Mode::Use), Decision::Bypass(Sampled)),
            ("no-cache", look(Mode::Renew), Decision::Bypass(Sampled)),
            ("only-if-cached", look(Mode::Recall), Decision::NotCached(Sampled)),
            ("no-store", Decision::Bypass(NoStore), Decision::Bypass(NoStore)),
            ("no-store, no-cache", Decision::Bypass(NoStore), Decision::Bypass(NoStore)),
            ("no-store, only-if-cached", Decision::NotCached(NoStore), Decision::NotCached(NoStore)),
            ("no-cache, only-if-cached", Decision::NotCached(NoAnswer), Decision::NotCached(NoAnswer)),
        ] {
            let headers = lines(&[line.as_bytes()]);
            assert_eq!(decided(asked(&headers, FIXED)), fixed, "{line}");
            assert_eq!(decided(asked(&headers, SAMPLED)), sampled, "{line}");
        }
    }

    #[test]
    fn the_key_is_that_of_the_whole_body_and_its_circumstances() {
        let plain = HeaderMap::new();
        let accept = HeaderMap::from_iter([(ACCEPT, HeaderValue::from_static("text/event-stream"))]);
        let agent = HeaderMap::from_iter([(USER_AGENT, HeaderValue::from_static("x"))]);
        let streamed = r#"{"model":"m","temperature":0,"stream":true}"#;
        let decision = decided(asked(&plain, FIXED));
        assert_eq!(decided(asked(&agent, r#"{ "temperature": 0, "mod\u0065l": "m" }"#)), decision);
        assert_ne!(decided(asked(&plain, streamed)), decision);
        assert_ne!(decided(asked(&accept, FIXED)), decision);
    }

    #[test]
    fn why_a_request_goes_past_the_cache_is_said_in_words() {
        for (why, words) in [
            (Bypass::Method, "it is no POST"),
            (Bypass::NoStore, "its Cache-Control says no-store"),
            (Bypass::NoAnswer, "its Cache-Control says both no-cache and only-if-cached"),
            (Bypass::Sampled, "its temperature is not 0 and it has no seed"),
            (Bypass::Unread, "its body could not be read for the cache"),
            (Bypass::Formless(Formless::DuplicateMember), "an object in its body has two members of one name"),
            (Bypass::Formless(Formless::TooManyMembers), "its body has more than 262144 members"),
            (
                Bypass::Formless(Formless::NotJson("a colon is missing")),
                "its body is not a JSON object: a colon is missing",
            ),
        ] {
            assert_eq!(why.to_string(), words);
        }
    }

    #[test]
    fn only_an_ok_of_moderate_size_is_kept() {
        for (status, size, verdict) in [
            (200, 0, Ok(())),
            (200, 100, Ok(())),
            (200, 101, Err(Unkept::TooLarge)),
            (200, u64::MAX, Err(Unkept::TooLarge)),
            (201, 1, Err(Unkept::Status)),
            (206, 1, Err(Unkept::Status)),
            (304, 0, Err(Unkept::Status)),
            (400, 1, Err(Unkept::Status)),
            (503, 101, Err(Unkept::Status)),
        ] {
            assert_eq!(keep(StatusCode::from_u16(status).unwrap(), size, 100), verdict, "{status} {size}");
        }
    }
}
