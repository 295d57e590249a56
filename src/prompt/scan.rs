//! What forebay needs of a request body, found in one pass that builds no tree.
//!
//! The whole body is held against RFC 8259, so that what passes here is JSON for the engine too. What may surprise:
//! - Only top-level members count, by their *decoded* name: `"mod\u0065l"` is `model`, for any engine that decodes it.
//! - A body that is no JSON is told so, whatever else is wrong with it, even where the fault lies behind its model.
//! - Brackets nest 128 deep at most. The way back out of them is one bit a level: no recursion, no stack to grow.

use std::fmt;
use std::ops::Range;

use bytes::{BufMut, Bytes, BytesMut};

use super::json::{Cursor, What, decoded};

/// What forebay needs to know of a request body that an engine answers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Prompt {
    /// The public name of the model that shall answer, decoded; never empty.
    pub model: Box<str>,
    /// Where the model's JSON string lies in the body, quotes included.
    pub model_span: Range<usize>,
    /// Whether the answer shall come as a stream of events.
    pub stream: bool,
    /// The most tokens the answer may have, in whatever member the client's dialect says so; the largest of several.
    pub max_tokens: Option<u64>,
}

/// Why a request body is no prompt; its `Display` is a sentence for the client.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Unreadable {
    /// The body is not one JSON object.
    NotJson {
        /// The byte at which it stops being one.
        offset: usize,
        /// What is wrong there.
        what: &'static str,
    },
    /// There is no `model`, or it is the empty string.
    MissingModel,
    /// There is a `model`, but it is no string.
    ModelNotString,
    /// There are two `model` members: forebay and the engine might each believe another one.
    DuplicateModel,
}

/// The top-level members that count, as far as they have been met.
#[derive(Default)]
struct Members {
    model: Option<Range<usize>>,
    second_model: bool,
    stream: bool,
    max_tokens: Option<u64>,
}

/// Reads a whole request body.
///
/// # Errors
///
/// When the body is not one JSON object with exactly one `model`, a string that is not empty.
pub fn scan(body: &[u8]) -> Result<Prompt, Unreadable> {
    let text = text(body)?;
    let mut cursor = Cursor::new(text);
    match Members::read(text, &mut cursor) {
        Ok(members) => members.prompt(text),
        Err(what) => Err(Unreadable::NotJson { offset: cursor.at(), what }),
    }
}

/// The body with its model's name replaced by `name`; every other byte as it came.
///
/// `span` is the [`Prompt::model_span`] of this very body.
pub fn rename(body: &Bytes, span: &Range<usize>, name: &str) -> Bytes {
    let name = serde_json::Value::from(name).to_string();
    let mut renamed = BytesMut::with_capacity(body.len() - span.len() + name.len());
    renamed.put_slice(&body[..span.start]);
    renamed.put_slice(name.as_bytes());
    renamed.put_slice(&body[span.end..]);
    renamed.freeze()
}

// === impl Unreadable ===

impl fmt::Display for Unreadable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotJson { offset, what } => {
                write!(f, "The body is not a JSON object: {what} (at byte {offset}).")
            }
            Self::MissingModel => f.write_str("The body names no model: `model` must be given and must not be empty."),
            Self::ModelNotString => f.write_str("The body's `model` must be a string."),
            Self::DuplicateModel => f.write_str("The body has more than one `model`."),
        }
    }
}

impl std::error::Error for Unreadable {}

// === impl Members ===

impl Members {
    const NAMES: [&str; 5] = ["model", "stream", "max_tokens", "max_completion_tokens", "max_output_tokens"];

    /// Passes the whole text, an object, and takes note of the members that count.
    fn read(text: &str, cursor: &mut Cursor<'_>) -> Result<Self, What> {
        let mut members = Self::default();
        cursor.skip_space();
        cursor.expect(b'{', "it does not start with '{'")?;
        let mut more = cursor.any(b'}');
        while more {
            let name = cursor.name()?;
            let value = cursor.value()?;
            members.meet(text, name, value);
            more = cursor.another(b'}')?;
        }
        cursor.end()?;
        Ok(members)
    }

    /// Takes note of a top-level member, given where in the text its name (without quotes) and its value lie.
    fn meet(&mut self, text: &str, name: Range<usize>, value: Range<usize>) {
        let name = &text[name];
        let escaped = name.contains('\\');
        let known = Self::NAMES.into_iter().find(|known| name == *known || escaped && decoded(name).eq(known.chars()));
        match known {
            None => {}
            Some("model") => self.second_model = self.model.replace(value).is_some(),
            // Of several, the last: as the engines' own parsers have it.
            Some("stream") => self.stream = &text[value] == "true",
            Some(_) => self.max_tokens = self.max_tokens.max(text[value].parse().ok()),
        }
    }

    /// The verdict, once the whole text has turned out to be JSON.
    fn prompt(self, text: &str) -> Result<Prompt, Unreadable> {
        if self.second_model {
            return Err(Unreadable::DuplicateModel);
        }
        let model_span = self.model.ok_or(Unreadable::MissingModel)?;
        let inside = text[model_span.clone()].strip_prefix('"').and_then(|rest| rest.strip_suffix('"'));
        let model: String = decoded(inside.ok_or(Unreadable::ModelNotString)?).collect();
        if model.is_empty() {
            return Err(Unreadable::MissingModel);
        }
        Ok(Prompt { model: model.into(), model_span, stream: self.stream, max_tokens: self.max_tokens })
    }
}

/// The body as text: JSON between systems is UTF-8, without a byte order mark (RFC 8259, 8.1).
fn text(body: &[u8]) -> Result<&str, Unreadable> {
    let text = std::str::from_utf8(body)
        .map_err(|error| Unreadable::NotJson { offset: error.valid_up_to(), what: "it is not valid UTF-8" })?;
    if text.starts_with('\u{feff}') {
        return Err(Unreadable::NotJson { offset: 0, what: "it starts with a byte order mark" });
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use proptest::sample::{Index, select};
    use serde_json::{Map, Value, json};

    use super::*;

    fn fault(body: impl AsRef<[u8]>) -> (usize, &'static str) {
        let body = body.as_ref();
        match scan(body) {
            Err(Unreadable::NotJson { offset, what }) => (offset, what),
            other => panic!("{:?} gave {other:?}", String::from_utf8_lossy(body)),
        }
    }

    #[test]
    fn a_prompt_is_read_from_top_level_members_only() {
        let cases: [(&str, &str, bool, Option<u64>); 14] = [
            (r#"{"model":"m"}"#, "m", false, None),
            (" {\t\"model\" :\r\n\"m\" , \"stream\" : true } \n", "m", true, None),
            (r#"{"a":{"model":"x","stream":true,"max_tokens":1},"model":"m","b":[{"model":"y"}]}"#, "m", false, None),
            (r#"{"model":"m","stream":true,"stream":false}"#, "m", false, None),
            (r#"{"model":"m","stream":false,"stream":true}"#, "m", true, None),
            (r#"{"model":"m","stream":true,"stream":null}"#, "m", false, None),
            (r#"{"model":"m","stream":"true","max_tokens":"5"}"#, "m", false, None),
            (r#"{"model":"m","max_tokens":0}"#, "m", false, Some(0)),
            (r#"{"model":"m","max_tokens":5,"max_completion_tokens":9,"max_output_tokens":7}"#, "m", false, Some(9)),
            (r#"{"model":"m","max_tokens":9,"max_tokens":5}"#, "m", false, Some(9)),
            (r#"{"model":"m","max_tokens":18446744073709551615}"#, "m", false, Some(u64::MAX)),
            (r#"{"model":"m","max_tokens":18446744073709551616}"#, "m", false, None),
            (r#"{"model":"m","max_tokens":-1,"max_output_tokens":1.5,"max_completion_tokens":[5]}"#, "m", false, None),
            (r#"{"MODEL":"x","models":"y","mode":"z","":"","model":"m","stream ":true}"#, "m", false, None),
        ];
        for (body, model, stream, max_tokens) in cases {
            let prompt = scan(body.as_bytes()).unwrap();
            assert_eq!((&*prompt.model, prompt.stream, prompt.max_tokens), (model, stream, max_tokens), "{body}");
            assert_eq!(&body[prompt.model_span], r#""m""#, "{body}");
        }
    }

    #[test]
    fn names_and_the_model_are_decoded() {
        let cases = [
            (r#"{"mod\u0065l":"m"}"#, "m"),
            (r#"{"\u006D\u006F\u0064\u0065\u006c":"m"}"#, "m"),
            (r#"{"model":"a\/b\"\\\b\f\n\r\t"}"#, "a/b\"\\\u{8}\u{c}\n\r\t"),
            (r#"{"model":"\u00e9\u6c34\ud83C\udf0A\u0000"}"#, "é水🌊\0"),
            (r#"{"model":"é水🌊"}"#, "é水🌊"),
            (r#"{"model":"m","mod\\u0065l":"x"}"#, "m"),
        ];
        for (body, model) in cases {
            assert_eq!(&*scan(body.as_bytes()).unwrap().model, model, "{body}");
        }
        let body = br#"{"model":"m","str\u0065am":true,"\u006dax_tokens":5}"#;
        let prompt = scan(body).unwrap();
        assert_eq!((prompt.stream, prompt.max_tokens), (true, Some(5)));
    }

    #[test]
    fn a_body_needs_exactly_one_model() {
        use Unreadable::{DuplicateModel, MissingModel, ModelNotString};
        let cases = [
            ("{}", MissingModel),
            (r#"{"messages":[{"model":"m"}]}"#, MissingModel),
            (r#"{"model":""}"#, MissingModel),
            (r#"{"model":null}"#, ModelNotString),
            (r#"{"model":7}"#, ModelNotString),
            (r#"{"model":["m"]}"#, ModelNotString),
            (r#"{"model":{"model":"m"}}"#, ModelNotString),
            (r#"{"model":"m","model":"m"}"#, DuplicateModel),
            (r#"{"model":"m","mod\u0065l":"x"}"#, DuplicateModel),
            (r#"{"model":null,"a":1,"model":"m"}"#, DuplicateModel),
            (r#"{"model":"a","model":"b","model":"c"}"#, DuplicateModel),
        ];
        for (body, verdict) in cases {
            assert_eq!(scan(body.as_bytes()), Err(verdict), "{body}");
        }
    }

    #[test]
    fn what_is_no_json_object_is_told_where_and_why() {
        let cases: &[(&[u8], usize, &str)] = &[
            (b"", 0, "it does not start with '{'"),
            (b"  ", 2, "it does not start with '{'"),
            (b"[{}]", 0, "it does not start with '{'"),
            (b"\"model\"", 0, "it does not start with '{'"),
            (b"\xEF\xBB\xBF{}", 0, "it starts with a byte order mark"),
            (b"{\"a\":\"\xC3\x28\"}", 6, "it is not valid UTF-8"),
            (b"{\"a\":\"\xED\xA0\x80\"}", 6, "it is not valid UTF-8"),
            (b"{\"a\":\"\xC0\x80\"}", 6, "it is not valid UTF-8"),
            (b"{", 1, "a member's name in double quotes is missing"),
            (b"{a:1}", 1, "a member's name in double quotes is missing"),
            (b"{\"a\":1,}", 7, "a member's name in double quotes is missing"),
            (b"{,}", 1, "a member's name in double quotes is missing"),
            (b"{\"a\"}", 4, "a colon is missing"),
            (b"{\"a\":}", 5, "a value is missing"),
            (b"{\"a\":[1,]}", 8, "a value is missing"),
            (b"{\"a\":[", 6, "a value is missing"),
            (b"{\"a\":+1}", 5, "a value is missing"),
            (b"{\"a\":.5}", 5, "a value is missing"),
            (b"{\"a\":NaN}", 5, "a value is missing"),
            (b"{\"a\":True}", 5, "a value is missing"),
            (b"{\"a\":nul}", 5, "a value is missing"),
            (b"{\"a\":/**/1}", 5, "a value is missing"),
            (b"{\"a\":\x0b1}", 5, "a value is missing"),
            (b"{\"a\":1", 6, "a comma or the closing bracket is missing"),
            (b"{\"a\":[1}", 7, "a comma or the closing bracket is missing"),
            (b"{\"a\":{\"b\":1]}", 11, "a comma or the closing bracket is missing"),
            (b"{\"a\":01}", 6, "a comma or the closing bracket is missing"),
            (b"{\"a\":1 2}", 7, "a comma or the closing bracket is missing"),
            (b"{\"a\":truest}", 9, "a comma or the closing bracket is missing"),
            (b"{\"a\":-}", 6, "a number lacks a digit"),
            (b"{\"a\":1.}", 7, "a number lacks a digit"),
            (b"{\"a\":1e+}", 8, "a number lacks a digit"),
            (b"{\"a\":\"b}", 8, "a string is not closed"),
            (b"{\"a\":\"tab\t\"}", 9, "a string has a control character that is not escaped"),
            (b"{\"a\n\":1}", 3, "a string has a control character that is not escaped"),
            (b"{\"a\":\"\\x\"}", 6, "a string has an escape that is unknown or half a character"),
            (b"{\"a\":\"\\u12G4\"}", 6, "a string has an escape that is unknown or half a character"),
            (b"{\"a\":\"\\u12", 6, "a string has an escape that is unknown or half a character"),
            (b"{\"a\":\"\\", 6, "a string has an escape that is unknown or half a character"),
            (b"{\"a\":\"\\ud83c\"}", 6, "a string has an escape that is unknown or half a character"),
            (b"{\"a\":\"\\udf0a\"}", 6, "a string has an escape that is unknown or half a character"),
            (b"{\"a\":\"\\ud83c\\u0041\"}", 6, "a string has an escape that is unknown or half a character"),
            (b"{\"model\":\"m\"}{}", 13, "something follows the object's end"),
            (b"{\"model\":\"m\"}\0", 13, "something follows the object's end"),
            (b"{}}", 2, "something follows the object's end"),
        ];
        for (body, offset, what) in cases {
            assert_eq!(fault(body), (*offset, *what), "{}", String::from_utf8_lossy(body));
        }
    }

    #[test]
    fn a_body_that_is_no_json_is_told_so_before_its_model_is_judged() {
        assert_eq!(fault(r#"{"model":"m","model":"m""#).0, 24);
        assert_eq!(fault(r#"{"model":7,"a":tru}"#).0, 15);
        assert_eq!(fault(r#"{"model":"m"} x"#).0, 14);
    }

    #[test]
    fn numbers_are_held_against_their_grammar_alone() {
        for number in ["0", "-0", "0.0", "-0.5e-7", "1E5", "1e999", "10", "123456789012345678901234567890"] {
            let body = format!(r#"{{"model":"m","a":{number},"b":[{number}]}}"#);
            assert!(scan(body.as_bytes()).is_ok(), "{body}");
        }
    }

    #[test]
    fn brackets_nest_128_deep_at_most() {
        let nested = |open: &str, close: &str, depth: usize| {
            format!(r#"{{"a":{}0{},"model":"m"}}"#, open.repeat(depth - 1), close.repeat(depth - 1))
        };
        for (open, close) in [("[", "]"), (r#"{"a":"#, "}"), ("[ 1, ", " ]")] {
            assert!(scan(nested(open, close, 128).as_bytes()).is_ok(), "{open}");
            assert_eq!(fault(nested(open, close, 129)).1, "brackets are nested more than 128 deep", "{open}");
            assert_eq!(fault(nested(open, close, 1_000_000)).1, "brackets are nested more than 128 deep", "{open}");
        }
        let siblings = format!(r#"{{"a":[{}0],"model":"m"}}"#, "[[]],{},".repeat(100_000));
        assert!(scan(siblings.as_bytes()).is_ok(), "closed brackets do not count");
    }

    #[test]
    fn what_the_client_reads_is_a_sentence() {
        let cases = [
            (scan(b"[]"), "The body is not a JSON object: it does not start with '{' (at byte 0)."),
            (scan(b"{}"), "The body names no model: `model` must be given and must not be empty."),
            (scan(br#"{"model":1}"#), "The body's `model` must be a string."),
            (scan(br#"{"model":"m","model":"m"}"#), "The body has more than one `model`."),
        ];
        for (verdict, sentence) in cases {
            assert_eq!(verdict.unwrap_err().to_string(), sentence);
        }
    }

    #[test]
    fn renaming_changes_the_name_and_nothing_else() {
        let cases = [
            (r#"{"model":"m"}"#, "meta-llama/Llama", r#"{"model":"meta-llama/Llama"}"#),
            (r#" {"a":1.0, "model" : "long name" ,"b":"\/"} "#, "x", r#" {"a":1.0, "model" : "x" ,"b":"\/"} "#),
            (r#"{"mod\u0065l":"m"}"#, "a\"b\\c\n", r#"{"mod\u0065l":"a\"b\\c\n"}"#),
        ];
        for (body, name, renamed) in cases {
            let span = scan(body.as_bytes()).unwrap().model_span;
            assert_eq!(rename(&Bytes::from(body), &span, name), renamed);
        }
    }

    fn values() -> impl Strategy<Value = Value> {
        let scalars = prop_oneof![
            Just(Value::Null),
            any::<bool>().prop_map(Value::from),
            any::<i64>().prop_map(Value::from),
            any::<u64>().prop_map(Value::from),
            any::<f64>().prop_map(Value::from),
            any::<String>().prop_map(Value::from),
        ];
        scalars.prop_recursive(5, 48, 6, |inner| {
            let members = proptest::collection::vec((names(), inner.clone()), 0..6);
            prop_oneof![
                proptest::collection::vec(inner, 0..6).prop_map(Value::from),
                members.prop_map(|members| Value::Object(members.into_iter().collect())),
            ]
        })
    }

    fn names() -> impl Strategy<Value = String> {
        prop_oneof![select(&Members::NAMES[..]).prop_map(String::from), any::<String>()]
    }

    /// Objects, most of them prompts, some with any value where a model should be.
    fn objects() -> impl Strategy<Value = Map<String, Value>> {
        let model = prop_oneof![6 => any::<String>().prop_map(Value::from), 1 => values()];
        let known = (proptest::option::weighted(0.9, model), any::<Option<bool>>(), any::<[Option<u64>; 3]>());
        let others = proptest::collection::vec((names(), values()), 0..5);
        (known, others, any::<Index>()).prop_map(|((model, stream, limits), others, first)| {
            let values = [model, stream.map(Value::from)].into_iter().chain(limits.map(|limit| limit.map(Value::from)));
            let known = Members::NAMES.into_iter().zip(values);
            let mut members: Vec<_> = known.filter_map(|(name, value)| Some((name.to_owned(), value?))).collect();
            members.extend(others);
            if !members.is_empty() {
                let first = first.index(members.len());
                members.rotate_left(first);
            }
            members.into_iter().collect()
        })
    }

    fn printed() -> impl Strategy<Value = (Map<String, Value>, String)> {
        (objects(), any::<bool>()).prop_map(|(object, pretty)| {
            let body = if pretty { serde_json::to_string_pretty(&object) } else { serde_json::to_string(&object) };
            (object, body.unwrap())
        })
    }

    /// Pieces of bodies, whole and broken, that meet in any order.
    fn soup() -> impl Strategy<Value = Vec<u8>> {
        let pieces: &[&[u8]] = &[
            b"{",
            b"}",
            b"[",
            b"]",
            b",",
            b":",
            b" ",
            b"\n",
            b"\"",
            b"\\",
            b"\\u00e9",
            b"\\ud83c",
            b"\\udf0a",
            b"\\n",
            b"\"a\"",
            b"\"a\":",
            b"\"model\":\"m\"",
            b"{\"a\":1}",
            b"[1,2]",
            b"[]",
            b"{}",
            b"true",
            b"nul",
            b"null",
            b"0",
            b"-",
            b"1",
            b".",
            b"5",
            b"e",
            b"+",
            b"\xc3",
            b"\xa9",
            b"\0",
        ];
        proptest::collection::vec(select(pieces), 0..12)
            .prop_map(|pieces| [b"{\"a\":".as_slice(), &pieces.concat(), b"}"].concat())
    }

    /// What serde_json reads, `None` if it is no object; nothing at all where it judges a number by its size.
    fn oracle(body: &[u8]) -> Option<Option<Map<String, Value>>> {
        match serde_json::from_slice(body) {
            Ok(Value::Object(object)) => Some(Some(object)),
            Err(error) if error.to_string().starts_with("number out of range") => None,
            Ok(_) | Err(_) => Some(None),
        }
    }

    fn agrees_with_the_oracle(body: &[u8]) -> Result<(), TestCaseError> {
        let scanned = scan(body);
        let Some(object) = oracle(body) else { return Ok(()) };
        let json = !matches!(scanned, Err(Unreadable::NotJson { .. }));
        prop_assert_eq!(json, object.is_some(), "{:?} gave {:?}", String::from_utf8_lossy(body), scanned);
        if let (Ok(prompt), Some(object)) = (scanned, object) {
            prop_assert_eq!(object["model"].as_str(), Some(&*prompt.model));
        }
        Ok(())
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(1024) })]

        #[test]
        fn a_printed_object_is_read_as_serde_json_reads_it((object, body) in printed()) {
            let model_span = scan(body.as_bytes()).map_or(0..0, |prompt| prompt.model_span);
            let expected = match object.get("model") {
                None => Err(Unreadable::MissingModel),
                Some(Value::String(model)) if model.is_empty() => Err(Unreadable::MissingModel),
                Some(Value::String(model)) => Ok(Prompt {
                    model: model.as_str().into(),
                    model_span: model_span.clone(),
                    stream: object.get("stream") == Some(&json!(true)),
                    max_tokens: Members::NAMES[2..].iter().filter_map(|name| object.get(*name)?.as_u64()).max(),
                }),
                Some(_) => Err(Unreadable::ModelNotString),
            };
            prop_assert_eq!(scan(body.as_bytes()), expected);
            prop_assert!(model_span.is_empty() || serde_json::from_str::<Value>(&body[model_span])? == object["model"]);
        }

        #[test]
        fn a_damaged_body_passes_if_serde_json_lets_it(
            (_, body) in printed(),
            damage in proptest::collection::vec((any::<Index>(), 0..3, prop_oneof![any::<u8>(), select(&b"{}[],:\"\\ue0-. \n"[..])]), 1..4),
        ) {
            let mut body = body.into_bytes();
            for (place, kind, byte) in damage {
                let at = place.index(body.len() + 1);
                match kind {
                    0 => body.insert(at, byte),
                    1 if at < body.len() => body[at] = byte,
                    _ => { body.splice(at..body.len().min(at + 1), []); }
                }
            }
            agrees_with_the_oracle(&body)?;
        }

        #[test]
        fn a_soup_of_pieces_passes_if_serde_json_lets_it(body in soup()) {
            agrees_with_the_oracle(&body)?;
        }

        #[test]
        fn a_cut_body_is_no_json((_, body) in printed(), place in any::<Index>()) {
            let cut = &body.as_bytes()[..place.index(body.len())];
            prop_assert!(matches!(scan(cut), Err(Unreadable::NotJson { .. })), "{:?}", cut);
        }

        #[test]
        fn any_name_survives_being_written_in_escapes(model in any::<String>()) {
            let escapes: String = model.encode_utf16().map(|unit| format!("\\u{unit:04x}")).collect();
            let body = format!(r#"{{"model":"m{escapes}"}}"#);
            let prompt = scan(body.as_bytes()).unwrap();
            prop_assert_eq!(&*prompt.model, format!("m{model}"));
        }

        #[test]
        fn a_renamed_body_differs_in_its_model_alone((_, body) in printed(), name in any::<String>()) {
            let body = Bytes::from(body);
            if let Ok(prompt) = scan(&body) {
                let renamed = rename(&body, &prompt.model_span, &name);
                let mut object: Map<String, Value> = serde_json::from_slice(&body)?;
                object["model"] = name.into();
                prop_assert_eq!(serde_json::from_slice::<Map<String, Value>>(&renamed)?, object);
                prop_assert!(renamed.starts_with(&body[..prompt.model_span.start]));
                prop_assert!(renamed.ends_with(&body[prompt.model_span.end..]));
            }
        }
    }
}
