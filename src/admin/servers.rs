//! What an operator says of a server while forebay runs. It is written to no file.

use std::fmt;
use std::sync::Arc;
use std::time::Instant;

use percent_encoding::percent_decode_str;
use serde::de::{Deserialize, Deserializer, Error, MapAccess, Visitor};
use serde_json::Value;

use super::listed;
use crate::live::Live;
use crate::pool::Pool;
use crate::pool::server::{Order, Word};
use crate::pool::settings::HEAVIEST;

/// What a good body looks like.
const EXAMPLE: &str = r#"{"state": "drain"}"#;

/// A word under way, in JSON. A member that is not known, or is there twice, is refused: it would do nothing.
struct Said(Word);

/// The server of `POOL/NAME`, each percent-encoded, by its place in its pool. The name may hold slashes, as a unix socket's does.
///
/// # Errors
/// Which of them is not there, and what is.
pub(super) fn find<'l>(live: &'l Live, path: &str) -> Result<(&'l Arc<Pool>, usize), String> {
    let decoded = |part| percent_decode_str(part).decode_utf8_lossy();
    let (pool, name) = path.split_once('/').map_or((path, None), |(pool, name)| (pool, Some(decoded(name))));
    let pool = decoded(pool);
    let Some(found) = live.pools().find(|found| *found.settings.name == *pool) else {
        let pools = listed(live.pools().map(|pool| &*pool.settings.name));
        return Err(format!("no pool is called {pool:?}; there is {pools}"));
    };
    let servers = || found.settings.servers.iter();
    let place = name.as_ref().and_then(|name| servers().position(|server| *server.name == **name));
    place.map(|place| (found, place)).ok_or_else(|| {
        let servers = listed(servers().map(|server| &*server.name));
        format!("no server of pool {pool:?} is called {:?}; it has {servers}", name.unwrap_or_default())
    })
}

/// The word in the body of a call.
///
/// # Errors
/// What is wrong with it, and what would be right.
pub(super) fn read(body: &[u8]) -> Result<Word, String> {
    let Said(word) = serde_json::from_slice(body)
        .map_err(|e| format!("the body is not what is expected: {e}; send such as {EXAMPLE}"))?;
    if word == Word::default() {
        return Err(format!("the body has neither `state` nor `weight`; send such as {EXAMPLE}"));
    }
    Ok(word)
}

/// Does as the operator says, and logs it.
pub(super) fn order(pool: &Pool, place: usize, word: Word) {
    let (server, settings) = (&pool.servers[place], &pool.settings.servers[place]);
    let how = |now| {
        let weight = server.ordered_weight().unwrap_or(settings.weight);
        format!("{}, weight {weight}", server.health(now).state.as_str())
    };
    let now = Instant::now();
    let (before, served) = (how(now), pool.is_usable());
    pool.order(place, word, now);
    let (name, after) = (&pool.settings.name, how(now));
    log::info!("server {name}/{} is {after} (was {before}): by the operator", settings.name);
    if served && !pool.is_usable() {
        log::warn!("pool {name} has no usable server any more");
    }
}

// === impl Said ===

impl<'de> Deserialize<'de> for Said {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Members;
        impl<'de> Visitor<'de> for Members {
            type Value = Said;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a JSON object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut members: A) -> Result<Said, A::Error> {
                let mut word = Word::default();
                while let Some((name, value)) = members.next_entry::<String, Value>()? {
                    let twice = match &*name {
                        "state" => word.order.replace(state(&value).map_err(A::Error::custom)?).is_some(),
                        "weight" => word.weight.replace(weight(&value).map_err(A::Error::custom)?).is_some(),
                        _ => {
                            let known = "known are `state` and `weight`";
                            return Err(A::Error::custom(format!("unknown member {name:?}; {known}")));
                        }
                    };
                    if twice {
                        return Err(A::Error::custom(format!("`{name}` is there twice")));
                    }
                }
                Ok(Said(word))
            }
        }
        deserializer.deserialize_map(Members)
    }
}

fn state(value: &Value) -> Result<Order, String> {
    match value.as_str() {
        Some("ready") => Ok(Order::Ready),
        Some("drain") => Ok(Order::Drain),
        Some("maint") => Ok(Order::Maint),
        _ => Err(format!("`state` is \"drain\", \"maint\" or \"ready\", not {value}")),
    }
}

fn weight(value: &Value) -> Result<Option<u32>, String> {
    if value.is_null() {
        return Ok(None);
    }
    let number = value.as_u64().and_then(|number| u32::try_from(number).ok()).filter(|number| *number <= HEAVIEST);
    let wrong = || format!("`weight` is a whole number from 0 to {HEAVIEST}, or null for the file's, not {value}");
    number.map(Some).ok_or_else(wrong)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_body_says_a_state_a_weight_or_both() {
        let word = |order, weight| Word { order, weight };
        for (body, expected) in [
            (r#"{"state": "drain"}"#, word(Some(Order::Drain), None)),
            (r#"{"state": "maint"}"#, word(Some(Order::Maint), None)),
            (r#"{"state": "ready", "weight": 0}"#, word(Some(Order::Ready), Some(Some(0)))),
            (r#"{"weight": 10000}"#, word(None, Some(Some(10_000)))),
            (r#"{"weight": null}"#, word(None, Some(None))),
        ] {
            assert_eq!(read(body.as_bytes()), Ok(expected), "{body}");
        }
    }

    #[test]
    fn any_other_body_is_refused_with_what_would_be_right() {
        for (body, why) in [
            ("", "EOF while parsing a value"),
            ("drain", "expected value"),
            ("\"drain\"", "expected a JSON object"),
            ("[]", "expected a JSON object"),
            ("{\"state\": \"drain\"} {}", "trailing characters"),
            ("{}", "the body has neither `state` nor `weight`"),
            (r#"{"State": "drain"}"#, "unknown member \"State\"; known are `state` and `weight`"),
            (r#"{"state": "drain", "for": 5}"#, "unknown member \"for\""),
            (r#"{"state": "drain", "state": "ready"}"#, "`state` is there twice"),
            (r#"{"weight": null, "weight": 1}"#, "`weight` is there twice"),
            (r#"{"state": "down"}"#, "`state` is \"drain\", \"maint\" or \"ready\", not \"down\""),
            (r#"{"state": null}"#, "`state` is \"drain\", \"maint\" or \"ready\", not null"),
            (r#"{"weight": "5"}"#, "`weight` is a whole number from 0 to 10000, or null for the file's, not \"5\""),
            (r#"{"weight": 1.5}"#, "not 1.5"),
            (r#"{"weight": -1}"#, "not -1"),
            (r#"{"weight": 10001}"#, "not 10001"),
            (r#"{"weight": 4294967297}"#, "not 4294967297"),
        ] {
            let said = read(body.as_bytes()).expect_err(body);
            assert!(said.contains(why) && said.ends_with(r#"; send such as {"state": "drain"}"#), "{body}: {said}");
        }
    }
}
