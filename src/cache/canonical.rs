//! A prompt's canonical form, and the key under which the answer to it is kept.
//!
//! The form is the body's JSON with its white space gone, each object's members sorted by name, each string in its
//! shortest spelling, and numbers as they were written. It is never built: it goes into SHA-256 as it is read, since
//! strangers choose the body, and must not find two with one key. What may surprise:
//! - Names are sorted and compared in their shortest spelling, of which a decoded name has one.
//! - An object or array that is a member's value goes into a hash of its own, and `#` with its digest, which no JSON
//!   begins with, takes its place. So no byte is hashed or moved twice for being nested, and what waits to be sorted is
//!   names, scalars and digests.
//! - `1.0`, `1` and `1e0` are three numbers: engines may tell them apart.
//! - Recursion is as deep as brackets nest, which is 128 levels at most.

use std::borrow::Cow;
use std::fmt;
use std::ops::Range;

use http::HeaderMap;
use http::header::{ACCEPT, HeaderName};
use memchr::memchr;
use sha2::{Digest as _, Sha256};

use crate::prompt::json::{Cursor, DEEPEST, TOO_DEEP, What, escape};

/// What the cache needs to know of a body.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Canonical {
    /// The SHA-256 of its canonical form.
    pub digest: [u8; 32],
    /// Whether its top level makes the engine's answer a matter of the prompt alone: `temperature` is a number that is
    /// zero, or `seed` is a number that is not negative (llama.cpp takes −1 for any seed).
    pub deterministic: bool,
}

/// Why a body has no canonical form; its `Display` goes on from "because".
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Formless {
    /// It is not one JSON object, for this reason.
    NotJson(&'static str),
    /// An object in it has two members of one name: engines differ in which of them counts.
    DuplicateMember,
    /// Its objects have more than [`MOST_MEMBERS`] members together.
    TooManyMembers,
}

/// The key under which the answer to a prompt is kept: a SHA-256 over all that may shape the answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct PromptKey(pub [u8; 32]);

/// Who shares an answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scope<'a> {
    /// All who may ask the model.
    Shared,
    /// Those who ask with the key of this name.
    Key(&'a str),
    /// Those who ask without a key, where the route needs none and the model's cache is not shared.
    Keyless,
}

/// What a prompt's key is made of besides its body.
#[derive(Clone, Copy)]
pub struct Circumstances<'a> {
    /// Who shares the answer.
    pub scope: Scope<'a>,
    /// The path and query, as the client sent them.
    pub target: &'a str,
    /// The client's headers; of them, [`VARYING`].
    pub headers: &'a HeaderMap,
    /// The public name of the model.
    pub model: &'a str,
    /// The name sent to the engine, where it is another.
    pub upstream: Option<&'a str>,
    /// The model's `version`; empty where none is given.
    pub version: &'a str,
}

/// The request headers that are part of the key. An engine whose answer may be kept must see no other of the client's.
pub const VARYING: [HeaderName; 3] =
    [ACCEPT, HeaderName::from_static("anthropic-version"), HeaderName::from_static("anthropic-beta")];

/// How many members all objects of a body may have together: to sort them is the one thing that takes longer than to
/// read them.
pub const MOST_MEMBERS: usize = 1 << 18;

/// Reads a body in one pass.
struct Reader<'a> {
    text: &'a str,
    cursor: Cursor<'a>,
    /// The members so far of the objects that are open, those of the innermost last.
    waiting: Vec<Member<'a>>,
    /// How many members there have been in all.
    members: usize,
    deterministic: bool,
}

struct Member<'a> {
    /// With its quotes, in its shortest spelling.
    name: Cow<'a, str>,
    value: Value<'a>,
}

enum Value<'a> {
    /// As it was written.
    Scalar(&'a str),
    /// The digest of an object's or an array's form.
    Digest([u8; 32]),
}

/// A form on its way into its hash.
struct Form<'a> {
    text: &'a str,
    hash: Sha256,
    /// Where in the text the last bytes of the form lie, which are not hashed yet: one call for many pieces.
    run: Range<usize>,
}

// === impl Canonical ===

impl Canonical {
    /// Reads a body: one pass, and a sort of each object's members.
    ///
    /// # Errors
    /// [`Formless`] says why no answer to it is kept.
    pub fn read(body: &[u8]) -> Result<Self, Formless> {
        let text = str::from_utf8(body).map_err(|_| Formless::NotJson("it is not valid UTF-8"))?;
        let cursor = Cursor::new(text);
        let mut reader = Reader { text, cursor, waiting: Vec::new(), members: 0, deterministic: false };
        let mut form = Form::new(text);
        reader.cursor.skip_space();
        reader.object(&mut form, 1)?;
        reader.cursor.end()?;
        Ok(Self { digest: form.digest(), deterministic: reader.deterministic })
    }
}

// === impl Formless ===

impl fmt::Display for Formless {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotJson(what) => write!(f, "its body is not a JSON object: {what}"),
            Self::DuplicateMember => f.write_str("an object in its body has two members of one name"),
            Self::TooManyMembers => write!(f, "its body has more than {MOST_MEMBERS} members"),
        }
    }
}

impl From<What> for Formless {
    fn from(what: What) -> Self {
        Self::NotJson(what)
    }
}

// === impl PromptKey ===

impl PromptKey {
    /// The key of a prompt with this body.
    #[must_use]
    pub fn new(circumstances: &Circumstances<'_>, body: &Canonical) -> Self {
        let Circumstances { scope, target, headers, model, upstream, version } = *circumstances;
        let mut key = Sha256::new();
        let mut add = |parts: &[&[u8]]| {
            key.update((parts.len() as u64).to_le_bytes());
            for part in parts {
                key.update((part.len() as u64).to_le_bytes());
                key.update(part);
            }
        };
        match scope {
            Scope::Shared => add(&[b"shared"]),
            Scope::Key(name) => add(&[b"key", name.as_bytes()]),
            Scope::Keyless => add(&[b"keyless"]),
        }
        for name in &VARYING {
            let values: Vec<&[u8]> = headers.get_all(name).iter().map(|value| value.as_bytes()).collect();
            add(&values);
        }
        add(&[target.as_bytes(), model.as_bytes(), upstream.unwrap_or(model).as_bytes(), version.as_bytes()]);
        add(&[&body.digest]);
        Self(key.finalize().into())
    }
}

// === impl Reader ===

impl<'a> Reader<'a> {
    /// Passes an object and adds its form; it lies `depth` brackets deep, its own included.
    fn object(&mut self, form: &mut Form<'a>, depth: u32) -> Result<(), Formless> {
        self.cursor.expect(b'{', "it does not start with '{'")?;
        let first = self.waiting.len();
        let mut more = self.cursor.any(b'}');
        while more {
            self.members += 1;
            if self.members > MOST_MEMBERS {
                return Err(Formless::TooManyMembers);
            }
            let name = self.cursor.name()?;
            let name = spelled(&self.text[name.start - 1..name.end + 1]);
            let value = self.member(depth)?;
            if let (1, Value::Scalar(scalar)) = (depth, &value) {
                self.deterministic |= determines(&name, scalar);
            }
            self.waiting.push(Member { name, value });
            more = self.cursor.another(b'}')?;
        }
        let members = &mut self.waiting[first..];
        members.sort_unstable_by(|one, other| one.name.cmp(&other.name));
        if members.windows(2).any(|pair| pair[0].name == pair[1].name) {
            return Err(Formless::DuplicateMember);
        }
        form.add(b"{");
        for (index, Member { name, value }) in self.waiting.drain(first..).enumerate() {
            if index > 0 {
                form.add(b",");
            }
            form.add(name.as_bytes());
            match value {
                Value::Scalar(scalar) => {
                    form.add(b":");
                    form.add(spelled(scalar).as_bytes());
                }
                Value::Digest(digest) => {
                    form.add(b":#");
                    form.add(&digest);
                }
            }
        }
        form.add(b"}");
        Ok(())
    }

    /// Passes the value of a member of an object at this depth.
    fn member(&mut self, depth: u32) -> Result<Value<'a>, Formless> {
        self.cursor.skip_space();
        if let Some(b'{' | b'[') = self.cursor.peek() {
            let mut form = Form::new(self.text);
            self.value(&mut form, depth)?;
            return Ok(Value::Digest(form.digest()));
        }
        let span = self.scalar()?;
        Ok(Value::Scalar(&self.text[span]))
    }

    /// Passes a value inside of `depth` brackets and adds its form.
    fn value(&mut self, form: &mut Form<'a>, depth: u32) -> Result<(), Formless> {
        self.cursor.skip_space();
        match self.cursor.peek() {
            Some(b'{' | b'[') if depth == DEEPEST => return Err(TOO_DEEP.into()),
            Some(b'{') => return self.object(form, depth + 1),
            Some(b'[') => return self.array(form, depth + 1),
            _ => {}
        }
        let span = self.scalar()?;
        match spelled(&self.text[span.clone()]) {
            Cow::Borrowed(_) => form.extend(span),
            Cow::Owned(spelled) => form.add(spelled.as_bytes()),
        }
        Ok(())
    }

    /// Passes an array and adds its form.
    fn array(&mut self, form: &mut Form<'a>, depth: u32) -> Result<(), Formless> {
        self.cursor.take(b'[');
        form.extend(self.passed());
        let mut more = self.cursor.any(b']');
        if !more {
            form.extend(self.passed());
        }
        while more {
            self.value(form, depth)?;
            more = self.cursor.another(b']')?;
            form.extend(self.passed());
        }
        Ok(())
    }

    fn scalar(&mut self) -> Result<Range<usize>, What> {
        let start = self.cursor.at();
        self.cursor.scalar()?;
        Ok(start..self.cursor.at())
    }

    /// Where the byte lies that was passed last.
    fn passed(&self) -> Range<usize> {
        self.cursor.at() - 1..self.cursor.at()
    }
}

// === impl Form ===

impl<'a> Form<'a> {
    fn new(text: &'a str) -> Self {
        Self { text, hash: Sha256::new(), run: 0..0 }
    }

    /// Adds what lies there in the text.
    fn extend(&mut self, span: Range<usize>) {
        if self.run.end != span.start {
            self.flush();
            self.run.start = span.start;
        }
        self.run.end = span.end;
    }

    /// Adds bytes from elsewhere.
    fn add(&mut self, bytes: &[u8]) {
        self.flush();
        self.hash.update(bytes);
    }

    fn flush(&mut self) {
        if !self.run.is_empty() {
            self.hash.update(&self.text[self.run.clone()]);
            self.run.start = self.run.end;
        }
    }

    fn digest(mut self) -> [u8; 32] {
        self.flush();
        self.hash.finalize().into()
    }
}

/// Whether a top-level member of this name and value makes the answer a matter of the prompt alone.
fn determines(name: &str, scalar: &str) -> bool {
    match name {
        r#""temperature""# => {
            let digits = scalar.split(['e', 'E']).next().unwrap_or_default();
            digits.bytes().all(|byte| matches!(byte, b'-' | b'0' | b'.'))
        }
        r#""seed""# => scalar.starts_with(|first: char| first.is_ascii_digit()),
        _ => false,
    }
}

/// A scalar in its shortest spelling: a string has no escapes but those that it needs, each the shortest there is.
fn spelled(scalar: &str) -> Cow<'_, str> {
    let bytes = scalar.as_bytes();
    if bytes.first() != Some(&b'"') {
        return Cow::Borrowed(scalar);
    }
    let mut spelled = String::new();
    let (mut taken, mut at) = (0, 0);
    while let Some(next) = memchr(b'\\', &bytes[at..]) {
        at += next;
        let Some((character, length)) = escape(&bytes[at..]) else { break };
        if let b'/' | b'u' = bytes[at + 1] {
            spelled.push_str(&scalar[taken..at]);
            spell(character, &mut spelled);
            taken = at + length;
        }
        at += length;
    }
    if taken == 0 {
        return Cow::Borrowed(scalar);
    }
    spelled.push_str(&scalar[taken..]);
    Cow::Owned(spelled)
}

/// Adds a character in its shortest spelling within a JSON string.
fn spell(character: char, spelled: &mut String) {
    let letter = match character {
        '"' | '\\' => character,
        '\u{8}' => 'b',
        '\u{c}' => 'f',
        '\n' => 'n',
        '\r' => 'r',
        '\t' => 't',
        ..' ' => {
            let digit = char::from_digit(u32::from(character) & 0xf, 16);
            spelled.push_str(if character < '\u{10}' { "\\u000" } else { "\\u001" });
            spelled.extend(digit);
            return;
        }
        _ => {
            spelled.push(character);
            return;
        }
    };
    spelled.extend(['\\', letter]);
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use http::HeaderValue;
    use proptest::prelude::*;
    use proptest::sample::Index;
    use proptest::test_runner::TestRng;
    use serde_json::Value as Json;

    use super::*;
    use crate::prompt::scan::scan;
    use crate::prompt::{Unreadable, json};

    fn digest(body: &str) -> [u8; 32] {
        Canonical::read(body.as_bytes()).unwrap_or_else(|why| panic!("{body}: {why}")).digest
    }

    #[test]
    fn one_prompt_has_one_form_however_it_is_written() {
        for [one, other] in [
            ["{}", " \t\r\n{ \n } "],
            [r#"{"a":1,"b":2}"#, r#"{ "b" : 2 , "a" : 1 }"#],
            [r#"{"a":"b"}"#, r#"{"\u0061":"\u0062"}"#],
            [r#"{"a":["x/y"]}"#, r#"{"a":["x\/y"]}"#],
            [r#"{"a":"\n\"\\\b\f\r\t"}"#, r#"{"a":"\u000a\u0022\u005c\u0008\u000C\u000D\u0009"}"#],
            [r#"{"a":"\u001f"}"#, r#"{"a":"\u001F"}"#],
            [r#"{"🌊é":"🌊é"}"#, r#"{"\ud83c\udf0A\u00e9":"\uD83C\uDF0A\u00E9"}"#],
            [r#"{"a":[1,[2,{"b":3,"c":[]}],"d"]}"#, r#"{"a": [1, [2, {"c": [ ], "b": 3}], "\u0064"]}"#],
            [r#"{"a":{"b":{"d":1,"c":2}},"e":[{}]}"#, r#"{"e":[{ }],"a":{"b":{"c":2,"d":1}}}"#],
            [r#"{"a":1,"ab":2,"":3}"#, r#"{"":3,"ab":2,"a":1}"#],
        ] {
            assert_eq!(digest(one), digest(other), "{one} and {other}");
        }
    }

    #[test]
    fn two_prompts_have_two_forms() {
        let bodies = [
            r#"{}"#,
            r#"{"a":{}}"#,
            r#"{"a":[]}"#,
            r#"{"a":[{}]}"#,
            r#"{"a":[[]]}"#,
            r#"{"a":[[],[]]}"#,
            r#"{"a":null}"#,
            r#"{"a":[null]}"#,
            r#"{"a":true}"#,
            r#"{"a":"true"}"#,
            r#"{"a":false}"#,
            r#"{"a":0}"#,
            r#"{"a":-0}"#,
            r#"{"a":0.0}"#,
            r#"{"a":"0"}"#,
            r#"{"a":1}"#,
            r#"{"a":1.0}"#,
            r#"{"a":1e0}"#,
            r#"{"a":1E0}"#,
            r#"{"a":10}"#,
            r#"{"a":[1,0]}"#,
            r#"{"a":[0,1]}"#,
            r#"{"a":[[0],1]}"#,
            r#"{"a":[[0,1]]}"#,
            r#"{"a":{"b":1},"c":2}"#,
            r#"{"a":{"b":1,"c":2}}"#,
            r#"{"a":[{"b":1,"c":2}]}"#,
            r#"{"a":[{"b":1},{"c":2}]}"#,
            r#"{"a":""}"#,
            r#"{"a":" "}"#,
            r#"{"A":""}"#,
            r#"{"":"a"}"#,
            r#"{"a":"\\n"}"#,
            r#"{"a":"\n"}"#,
            r#"{"a":"\\u0061"}"#,
            r#"{"a":"\u0000"}"#,
            r#"{"a":"é"}"#,
            r#"{"a":"e\u0301"}"#,
            r#"{"a":"\",\"b\":\""}"#,
            r#"{"a":"","b":""}"#,
            r#"{"a":["",""]}"#,
            r#"{"a":["\",\""]}"#,
        ];
        for (index, one) in bodies.iter().enumerate() {
            for other in &bodies[..index] {
                assert_ne!(digest(one), digest(other), "{one} and {other}");
            }
        }
    }

    #[test]
    fn two_members_of_one_name_anywhere_leave_no_form() {
        for body in [
            r#"{"a":1,"a":1}"#,
            r#"{"a":1,"b":2,"a":1}"#,
            r#"{"a":1,"\u0061":1}"#,
            r#"{"a/b":1,"a\/b":1}"#,
            r#"{"":1,"":2}"#,
            r#"{"a":{"b":1,"b":2}}"#,
            r#"{"a":[[{"b":1,"b":2}]]}"#,
            r#"{"\ud83c\udf0a":1,"🌊":1}"#,
        ] {
            assert_eq!(Canonical::read(body.as_bytes()), Err(Formless::DuplicateMember), "{body}");
        }
        digest(r#"{"a":{"a":{"a":1}},"b":[{"a":1},{"a":1}]}"#);
    }

    #[test]
    fn a_zero_temperature_or_a_seed_at_the_top_makes_a_prompt_deterministic() {
        for (members, deterministic) in [
            ("", false),
            (r#""temperature":0"#, true),
            (r#""temperature":-0"#, true),
            (r#""temperature":0.0"#, true),
            (r#""temperature":-0.00"#, true),
            (r#""temperature":0e5"#, true),
            (r#""temperature":0.0E+10"#, true),
            (r#""temp\u0065rature" : 0 "#, true),
            (r#""temperature":0,"seed":null"#, true),
            (r#""temperature":0.01"#, false),
            (r#""temperature":1"#, false),
            (r#""temperature":10"#, false),
            (r#""temperature":1e0"#, false),
            (r#""temperature":1e-999"#, false),
            (r#""temperature":"0""#, false),
            (r#""temperature":"""#, false),
            (r#""temperature":null"#, false),
            (r#""temperature":false"#, false),
            (r#""temperature":[0]"#, false),
            (r#""temperature":{}"#, false),
            (r#""Temperature":0"#, false),
            (r#""a":{"temperature":0,"seed":1}"#, false),
            (r#""a":[{"temperature":0,"seed":1}]"#, false),
            (r#""seed":0"#, true),
            (r#""seed":42,"temperature":1.5"#, true),
            (r#""seed":-1"#, false),
            (r#""seed":null"#, false),
            (r#""seed":"42""#, false),
            (r#""seed":[1]"#, false),
        ] {
            let body = format!("{{{members}}}");
            assert_eq!(Canonical::read(body.as_bytes()).map(|body| body.deterministic), Ok(deterministic), "{body}");
        }
    }

    #[test]
    fn what_is_no_json_object_has_no_form() {
        for body in [
            &b""[..],
            b"[]",
            b"0",
            b"{",
            b"{} x",
            b"\xef\xbb\xbf{}",
            b"{\"a\":\"\xff\"}",
            br#"{"a":"\ud800"}"#,
            b"{\"a\":[1 2]}",
        ] {
            assert!(matches!(Canonical::read(body), Err(Formless::NotJson(_))), "{}", String::from_utf8_lossy(body));
        }
    }

    #[test]
    fn depth_and_members_are_bounded() {
        let nested = |open: &str, close: &str, depth: usize| {
            format!(r#"{{"a":{}0{}}}"#, open.repeat(depth - 1), close.repeat(depth - 1))
        };
        for (open, close) in [("[", "]"), (r#"{"a":"#, "}"), (r#"[{"a":"#, "}]")] {
            let depth = if open.starts_with("[{") { 64 } else { 128 };
            digest(&nested(open, close, depth));
            for depth in [129, 100_000] {
                let body = nested(open, close, depth);
                assert_eq!(Canonical::read(body.as_bytes()), Err(Formless::NotJson(json::TOO_DEEP)));
            }
        }
        for (most, form) in [(MOST_MEMBERS, true), (MOST_MEMBERS + 1, false)] {
            let body = format!(r#"{{"a":[{}{{"b":0}}]}}"#, r#"{"b":0},"#.repeat(most - 2));
            assert_eq!(Canonical::read(body.as_bytes()).is_ok(), form, "{most}");
        }
    }

    #[test]
    fn the_worst_bodies_are_read_in_time() {
        // 200,000 names in no order, all alike for their first bytes.
        let names = |prefix: &str, count: u64| {
            let name = |index: u64| format!(r#""{prefix}{:016x}":0"#, index.wrapping_mul(0x9e37_79b9_7f4a_7c15));
            (0..count).map(name).collect::<Vec<_>>().join(",")
        };
        let levels: String = (0..127).map(|_| format!(r#"{{{},"a":"#, names("", 150))).collect();
        for (what, body) in [
            ("one wide object", format!("{{{}}}", names("", 200_000))),
            ("names with one beginning", format!("{{{}}}", names(&"n".repeat(40), 50_000))),
            ("names in escapes", format!("{{{}}}", names(&"\\u006e".repeat(8), 50_000))),
            ("wide objects in each other", format!("{levels}0{}", "}".repeat(127))),
            (
                "a long string in many objects",
                format!(r#"{}"{}"{}"#, r#"{"a":"#.repeat(128), "x".repeat(1 << 23), "}".repeat(128)),
            ),
            ("a long string of escapes", format!(r#"{{"a":"{}"}}"#, r"\u0001\n".repeat(100_000))),
            ("many numbers", format!(r#"{{"a":[{}0]}}"#, "0, ".repeat(300_000))),
            ("many small objects", format!(r#"{{"a":[{}0]}}"#, r#"{"a":[0]},"#.repeat(100_000))),
        ] {
            let start = Instant::now();
            assert!(Canonical::read(body.as_bytes()).is_ok(), "{what}");
            assert!(start.elapsed() < Duration::from_secs(20), "{what}: {:?}", start.elapsed());
        }
    }

    #[test]
    fn everything_that_may_shape_the_answer_is_part_of_the_key() {
        let headers = |lines: &[(&'static str, &'static str)]| -> HeaderMap {
            let lines = lines.iter();
            lines.map(|(name, value)| (HeaderName::from_static(name), HeaderValue::from_static(value))).collect()
        };
        let maps = [
            headers(&[("accept", "")]),
            headers(&[("accept", "a")]),
            headers(&[("accept", "a"), ("accept", "b")]),
            headers(&[("accept", "b"), ("accept", "a")]),
            headers(&[("accept", "ab")]),
            headers(&[("anthropic-version", "a")]),
            headers(&[("anthropic-beta", "a")]),
        ];
        let none = headers(&[("user-agent", "x"), ("authorization", "Bearer x")]);
        let plain = Circumstances {
            scope: Scope::Key("k"),
            target: "/v1/chat/completions",
            headers: &none,
            model: "m",
            upstream: None,
            version: "",
        };
        let mut all = vec![
            plain,
            Circumstances { scope: Scope::Shared, ..plain },
            Circumstances { scope: Scope::Keyless, ..plain },
            Circumstances { scope: Scope::Key(""), ..plain },
            Circumstances { scope: Scope::Key("shared"), ..plain },
            Circumstances { scope: Scope::Key("keyless"), ..plain },
            Circumstances { target: "/v1/chat/completions?", ..plain },
            Circumstances { target: "/v1/chat/completionsm", model: "", ..plain },
            Circumstances { model: "n", ..plain },
            Circumstances { upstream: Some("n"), ..plain },
            Circumstances { upstream: Some(""), ..plain },
            Circumstances { upstream: Some("m1"), ..plain },
            Circumstances { version: "1", ..plain },
        ];
        all.extend(maps.iter().map(|headers| Circumstances { headers, ..plain }));
        let body = Canonical::read(b"{}").unwrap();
        let other = Canonical::read(br#"{"a":0}"#).unwrap();
        let mut keys: Vec<PromptKey> = all.iter().map(|one| PromptKey::new(one, &body)).collect();
        keys.push(PromptKey::new(&plain, &other));
        for (index, key) in keys.iter().enumerate() {
            assert_eq!(keys.iter().position(|other| other == key), Some(index));
        }
        let empty = HeaderMap::new();
        for same in [Circumstances { headers: &empty, ..plain }, Circumstances { upstream: Some("m"), ..plain }] {
            assert_eq!(PromptKey::new(&same, &body), keys[0], "what the engine does not see does not matter");
        }
    }

    /// The form's digest, as its description has it.
    fn oracle(value: &Json) -> Vec<u8> {
        match value {
            Json::Array(elements) => {
                let elements: Vec<_> = elements.iter().map(oracle).collect();
                [b"[".as_slice(), &elements.join(&b','), b"]"].concat()
            }
            Json::Object(members) => {
                let mut members: Vec<(String, &Json)> =
                    members.iter().map(|(name, value)| (Json::from(name.as_str()).to_string(), value)).collect();
                members.sort_by(|one, other| one.0.cmp(&other.0));
                let members: Vec<_> = members
                    .into_iter()
                    .map(|(name, value)| {
                        let form = oracle(value);
                        let nested = value.is_array() || value.is_object();
                        let value = if nested { [b"#".as_slice(), &Sha256::digest(form)].concat() } else { form };
                        [name.as_bytes(), b":", &value].concat()
                    })
                    .collect();
                [b"{".as_slice(), &members.join(&b','), b"}"].concat()
            }
            scalar => scalar.to_string().into_bytes(),
        }
    }

    /// Writes a value in one of its many ways.
    fn write(value: &Json, rng: &mut TestRng, text: &mut String) {
        let space = |rng: &mut TestRng, text: &mut String| text.push_str(["", "", " ", "\n", "\t \r"][below(rng, 5)]);
        space(rng, text);
        match value {
            Json::String(string) => write_string(string, rng, text),
            Json::Array(elements) => {
                text.push('[');
                for (index, element) in elements.iter().enumerate() {
                    text.push_str(if index == 0 { "" } else { "," });
                    write(element, rng, text);
                }
                space(rng, text);
                text.push(']');
            }
            Json::Object(members) => {
                let mut members: Vec<_> = members.iter().collect();
                for index in (1..members.len()).rev() {
                    members.swap(index, below(rng, index + 1));
                }
                text.push('{');
                for (index, (name, value)) in members.into_iter().enumerate() {
                    text.push_str(if index == 0 { "" } else { "," });
                    space(rng, text);
                    write_string(name, rng, text);
                    space(rng, text);
                    text.push(':');
                    write(value, rng, text);
                }
                space(rng, text);
                text.push('}');
            }
            scalar => text.push_str(&scalar.to_string()),
        }
        space(rng, text);
    }

    fn write_string(string: &str, rng: &mut TestRng, text: &mut String) {
        text.push('"');
        for character in string.chars() {
            let plain = Json::from(character.to_string()).to_string();
            match below(rng, 4) {
                0 => {
                    for unit in character.encode_utf16(&mut [0; 2]) {
                        let escape =
                            if below(rng, 2) == 0 { format!("\\u{unit:04x}") } else { format!("\\u{unit:04X}") };
                        text.push_str(&escape);
                    }
                }
                1 if character == '/' => text.push_str("\\/"),
                _ => text.push_str(&plain[1..plain.len() - 1]),
            }
        }
        text.push('"');
    }

    fn below(rng: &mut TestRng, most: usize) -> usize {
        rng.next_u32() as usize % most
    }

    fn values() -> impl Strategy<Value = Json> {
        let string = prop_oneof!["[a-c/\"\\\\\n]{0,3}", any::<String>()];
        let scalars = prop_oneof![
            Just(Json::Null),
            any::<bool>().prop_map(Json::from),
            any::<i64>().prop_map(Json::from),
            (0..3_i64).prop_map(Json::from),
            any::<i32>().prop_map(|quarters| Json::from(f64::from(quarters) / 4.0)),
            string.clone().prop_map(Json::from),
        ];
        scalars.prop_recursive(5, 48, 6, move |inner| {
            let members = proptest::collection::vec((string.clone(), inner.clone()), 0..6);
            prop_oneof![
                proptest::collection::vec(inner, 0..6).prop_map(Json::from),
                members.prop_map(|members| Json::Object(members.into_iter().collect())),
            ]
        })
    }

    fn objects() -> impl Strategy<Value = Json> {
        proptest::collection::vec(("[a-d]{1,2}", values()), 0..6)
            .prop_map(|members| Json::Object(members.into_iter().collect()))
    }

    fn written() -> impl Strategy<Value = (Json, String)> {
        objects().prop_perturb(|object, mut rng| {
            let mut text = String::new();
            write(&object, &mut rng, &mut text);
            (object, text)
        })
    }

    /// All values within a value, itself first.
    fn count(value: &Json) -> usize {
        1 + match value {
            Json::Array(elements) => elements.iter().map(count).sum(),
            Json::Object(members) => members.values().map(count).sum(),
            _ => 0,
        }
    }

    /// Changes the value that is `place`th, a little.
    fn change(value: &mut Json, place: &mut usize, kind: usize) {
        if *place == 0 {
            *place = usize::MAX;
            return alter(value, kind);
        }
        *place -= 1;
        let inner: Vec<&mut Json> = match value {
            Json::Array(elements) => elements.iter_mut().collect(),
            Json::Object(members) => members.values_mut().collect(),
            _ => Vec::new(),
        };
        for value in inner {
            if *place != usize::MAX {
                change(value, place, kind);
            }
        }
    }

    fn alter(value: &mut Json, kind: usize) {
        match value {
            Json::Null => *value = ["null".into(), false.into(), 0.into(), Json::Array(vec![])][kind % 4].clone(),
            Json::Bool(bool) => *bool = !*bool,
            Json::Number(_) if kind.is_multiple_of(2) => *value = value.to_string().into(),
            Json::Number(number) => {
                let text = number.to_string();
                *value = if text.starts_with('7') { 8.into() } else { 7.into() };
            }
            Json::String(string) if kind.is_multiple_of(2) || string.is_empty() => string.push('a'),
            Json::String(string) => drop(string.pop()),
            Json::Array(elements) if kind.is_multiple_of(2) || elements.is_empty() => elements.push(Json::Null),
            Json::Array(elements) if kind % 4 == 1 => *value = Json::Array(vec![elements.clone().into()]),
            Json::Array(elements) => drop(elements.remove(kind % elements.len())),
            Json::Object(members) if kind.is_multiple_of(3) || members.is_empty() => {
                let name = (0..).map(|number| format!("new{number}")).find(|name| !members.contains_key(name));
                members.extend(name.map(|name| (name, Json::Null)));
            }
            Json::Object(members) => {
                let name = members.keys().nth(kind % members.len()).cloned().unwrap_or_default();
                let former = members.remove(&name);
                if kind % 3 == 1 {
                    let name = (0..).map(|number| format!("{name}{number}")).find(|name| !members.contains_key(name));
                    members.extend(name.zip(former));
                }
            }
        }
    }

    /// Pieces of bodies, whole and broken, that meet in any order.
    fn soup() -> impl Strategy<Value = Vec<u8>> {
        let pieces =
            r#"{ } [ ] , : " \ \ud83c \udf0a \u0061 "a" "a": "b":1 {"a":1} [1,2] [] {} true nul null 0 - 1.5 e+1"#;
        let pieces: Vec<&str> = pieces.split(' ').chain([" ", "\0"]).collect();
        proptest::collection::vec(proptest::sample::select(pieces), 0..12)
            .prop_map(|pieces| format!("{{\"a\":{}}}", pieces.concat()).into_bytes())
    }

    fn passes_if_the_scanner_lets_it(body: &[u8]) -> Result<(), TestCaseError> {
        let read = Canonical::read(body);
        let json = !matches!(scan(body), Err(Unreadable::NotJson { .. }));
        prop_assert!(json || read.is_err(), "{:?} gave {:?}", String::from_utf8_lossy(body), read);
        prop_assert!(
            !json || !matches!(read, Err(Formless::NotJson(_))),
            "{:?} gave {:?}",
            String::from_utf8_lossy(body),
            read
        );
        Ok(())
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(512) })]

        #[test]
        fn a_body_has_the_form_of_what_serde_json_reads((object, body) in written()) {
            prop_assert_eq!(&serde_json::from_str::<Json>(&body)?, &object, "the test writes what it means");
            prop_assert_eq!(digest(&body), <[u8; 32]>::from(Sha256::digest(oracle(&object))), "{}", body);
        }

        #[test]
        fn a_change_anywhere_is_another_prompt((object, body) in written(), place in any::<Index>(), kind in any::<usize>()) {
            let mut changed = object.clone();
            change(&mut changed, &mut place.index(count(&object)), kind);
            prop_assert_ne!(&changed, &object, "the test changes something");
            prop_assert_ne!(digest(&body), digest(&changed.to_string()), "{} and {}", body, changed);
        }

        #[test]
        fn another_order_of_elements_is_another_prompt(elements in proptest::collection::vec(values(), 2..6), place in any::<Index>()) {
            let mut moved = elements.clone();
            moved.swap(0, place.index(elements.len()));
            let bodies = [elements, moved].map(|elements| serde_json::json!({"a": elements}));
            prop_assert_eq!(bodies[0] == bodies[1], digest(&bodies[0].to_string()) == digest(&bodies[1].to_string()));
        }

        #[test]
        fn a_member_said_twice_leaves_no_form_wherever_it_is(
            around in proptest::collection::vec((any::<bool>(), values()), 0..5),
            between in values(),
        ) {
            let twice = format!(r#"{{"twice":0,"once":{between},"\u0074wice":0}}"#);
            let body = around.into_iter().fold(twice, |inner, (object, beside)| {
                if object { format!(r#"{{"b":{beside},"a":{inner}}}"#) } else { format!("[{beside},{inner}]") }
            });
            let body = format!(r#"{{"a":{body}}}"#);
            prop_assert_eq!(Canonical::read(body.as_bytes()), Err(Formless::DuplicateMember), "{}", body);
        }

        #[test]
        fn any_bytes_pass_if_the_scanner_lets_them(bytes in proptest::collection::vec(any::<u8>(), 0..64)) {
            passes_if_the_scanner_lets_it(&bytes)?;
        }

        #[test]
        fn a_soup_of_pieces_passes_if_the_scanner_lets_it(body in soup()) {
            passes_if_the_scanner_lets_it(&body)?;
        }

        #[test]
        fn a_damaged_body_passes_if_the_scanner_lets_it((_, body) in written(), place in any::<Index>(), byte in any::<u8>()) {
            let mut body = body.into_bytes();
            let at = place.index(body.len());
            body[at] = byte;
            passes_if_the_scanner_lets_it(&body)?;
        }
    }
}
