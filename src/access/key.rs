//! Credential → key.
//!
//! Only digests of secrets are kept. A look-up is a hash and a table, so its time tells nothing about any secret.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::SystemTime;

use glob::Pattern;
use http::header::{AUTHORIZATION, HeaderName};
use http::{HeaderMap, HeaderValue};
use sha2::{Digest as _, Sha256};

use super::Route;

/// The SHA-256 of a whole secret.
pub type Digest = [u8; 32];

/// One client's credential: what it may ask for, never the secret.
#[derive(Debug, PartialEq, Eq)]
pub struct Key {
    /// Shows in logs and metrics.
    pub name: Arc<str>,
    /// Which models it may ask; none: none.
    pub models: Vec<Pattern>,
    /// Which routes it may use, by name; `None`: all.
    pub routes: Option<Vec<Arc<str>>>,
    /// From when on it is refused.
    pub expires: Option<SystemTime>,
    /// Refused whatever else holds.
    pub disabled: bool,
}

/// Every key, by the digests of its secrets.
#[derive(Debug, Default)]
pub struct Keys(HashMap<Digest, Arc<Key>>);

/// Why a credential is no key. The client sees one answer for all of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refused {
    /// No credential came.
    Missing,
    /// No key has this secret.
    Unknown,
    /// The key is disabled.
    Disabled,
    /// The key's time is over.
    Expired,
}

// === impl Refused ===

impl Refused {
    /// All of them, in their order.
    pub const ALL: [Self; 4] = [Self::Missing, Self::Unknown, Self::Disabled, Self::Expired];

    /// The metric's label.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Missing => "missing",
            Self::Unknown => "unknown",
            Self::Disabled => "disabled",
            Self::Expired => "expired",
        }
    }
}

// === impl Keys ===

impl Keys {
    /// Keys by digest; a key with two secrets stands there twice.
    #[must_use]
    pub fn new(keys: HashMap<Digest, Arc<Key>>) -> Self {
        Self(keys)
    }

    /// The key whose secret the headers present.
    ///
    /// # Errors
    /// [`Refused`] says why there is none.
    pub fn authenticate(&self, headers: &HeaderMap, now: SystemTime) -> Result<&Arc<Key>, Refused> {
        let secret = presented(headers).ok_or(Refused::Missing)?;
        let key = self.0.get(&digest(secret)).ok_or(Refused::Unknown)?;
        key.check(now)?;
        Ok(key)
    }

    /// Every digest, and whose it is, in no order.
    pub fn iter(&self) -> impl Iterator<Item = (&Digest, &Arc<Key>)> {
        self.0.iter()
    }

    /// The key of this name.
    #[must_use]
    pub fn named(&self, name: &str) -> Option<&Arc<Key>> {
        self.0.values().find(|key| &*key.name == name)
    }

    /// Whether the secret of any key here is among the credentials, in whatever form: then they must not go on to an engine.
    #[must_use]
    pub fn know(&self, headers: &HeaderMap) -> bool {
        let values =
            CREDENTIALS.iter().flat_map(|name| headers.get_all(name)).map(|value| value.as_bytes().trim_ascii());
        let words = values.flat_map(|value| [value, value.rsplit(|byte| *byte == b' ').next().unwrap_or(value)]);
        words.into_iter().any(|word| self.0.contains_key(&digest(word)))
    }
}

// === impl Key ===

impl Key {
    /// Whether this key is good now, whatever is asked with it.
    ///
    /// # Errors
    /// [`Refused::Disabled`] or [`Refused::Expired`].
    pub fn check(&self, now: SystemTime) -> Result<(), Refused> {
        if self.disabled {
            return Err(Refused::Disabled);
        }
        if self.expires.is_some_and(|at| at <= now) {
            return Err(Refused::Expired);
        }
        Ok(())
    }

    /// Whether this key may ask for a model of this public name.
    #[must_use]
    pub fn may_ask(&self, model: &str) -> bool {
        self.models.iter().any(|pattern| pattern.matches(model))
    }

    /// Whether this key may use the route.
    #[must_use]
    pub fn may_use(&self, route: &Route) -> bool {
        self.routes.as_ref().is_none_or(|names| names.contains(&route.name))
    }
}

/// The headers that can carry a credential; none of them goes on to an engine once it was taken for a key.
pub static CREDENTIALS: [HeaderName; 3] =
    [AUTHORIZATION, HeaderName::from_static("x-api-key"), HeaderName::from_static("api-key")];

/// The token of a bearer's credentials; the scheme is written in any case (RFC 9110 §11.1).
#[must_use]
pub fn bearer(credentials: &HeaderValue) -> Option<&[u8]> {
    let (scheme, token) = credentials.as_bytes().split_at_checked(b"bearer ".len())?;
    scheme.eq_ignore_ascii_case(b"bearer ").then(|| token.trim_ascii())
}

/// The secret out of `Authorization: Bearer …`, `x-api-key` or `api-key`; the first that is there.
fn presented(headers: &HeaderMap) -> Option<&[u8]> {
    let mut bearers = headers.get_all(AUTHORIZATION).into_iter().filter_map(bearer);
    let plain =
        || CREDENTIALS[1..].iter().find_map(|name| headers.get(name)).map(|value| value.as_bytes().trim_ascii());
    bearers.next().or_else(plain)
}

/// The digest by which a secret is known.
#[must_use]
pub fn digest(secret: &[u8]) -> Digest {
    Sha256::digest(secret).into()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::{Duration, UNIX_EPOCH};

    const NOW: u64 = 1_000;

    fn at(seconds: u64) -> SystemTime {
        UNIX_EPOCH + Duration::from_secs(seconds)
    }

    fn key(name: &str, disabled: bool, expires: Option<u64>) -> Arc<Key> {
        let models = vec![Pattern::new("llama-*").unwrap(), Pattern::new("org/exact").unwrap()];
        Arc::new(Key {
            name: name.into(),
            models,
            routes: Some(vec!["chat".into()]),
            expires: expires.map(at),
            disabled,
        })
    }

    fn keys() -> Keys {
        let all = [
            ("good-secret", key("good", false, Some(NOW + 1))),
            ("old-secret", key("old", false, Some(NOW))),
            ("off-secret", key("off", true, None)),
        ];
        Keys::new(all.into_iter().map(|(secret, key)| (digest(secret.as_bytes()), key)).collect())
    }

    #[test]
    fn a_credential_is_found_in_each_of_its_headers() {
        for (header, value, found) in [
            ("authorization", "Bearer good-secret", Ok("good")),
            ("authorization", "bearer  good-secret ", Ok("good")),
            ("x-api-key", "good-secret", Ok("good")),
            ("api-key", "good-secret", Ok("good")),
            ("authorization", "Basic good-secret", Err(Refused::Missing)),
            ("authorization", "Bearer", Err(Refused::Missing)),
            ("authorization", "Bearer ", Err(Refused::Unknown)),
            ("authorization", "Bearer good-secret2", Err(Refused::Unknown)),
            ("x-other", "good-secret", Err(Refused::Missing)),
            ("api-key", "old-secret", Err(Refused::Expired)),
            ("api-key", "off-secret", Err(Refused::Disabled)),
        ] {
            let mut headers = HeaderMap::new();
            headers.insert(header, value.parse().unwrap());
            let keys = keys();
            let authenticated = keys.authenticate(&headers, at(NOW)).map(|key| &*key.name);
            assert_eq!(authenticated, found, "{header}: {value}");
        }
    }

    #[test]
    fn a_key_of_no_use_is_still_known() {
        let mut headers = HeaderMap::new();
        assert!(!keys().know(&headers));
        headers.insert("x-api-key", "off-secret".parse().unwrap());
        assert!(keys().know(&headers));
        headers.insert("x-api-key", "an engine's own".parse().unwrap());
        assert!(!keys().know(&headers));
        for form in ["off-secret", "Basic off-secret", "Bearer  off-secret "] {
            let headers = HeaderMap::from_iter([(AUTHORIZATION, form.parse().unwrap())]);
            assert!(keys().know(&headers), "{form}");
        }
    }

    #[test]
    fn a_key_asks_for_the_models_that_its_globs_name() {
        let key = key("k", false, None);
        for (model, may) in [
            ("llama-3", true),
            ("llama-", true),
            ("xllama-3", false),
            ("org/exact", true),
            ("org/exact2", false),
            ("", false),
        ] {
            assert_eq!(key.may_ask(model), may, "{model}");
        }
    }
}
