//! What is asked of an endpoint that takes JSON, and what its answer needs from outside.

use super::Options;
use super::answer::{Answer, count};
use super::metrics::Cost;
use super::models;
use super::reply::Refusal;
use serde_json::Value;

/// One request with a JSON object for a model that is served here.
pub(super) struct Call<'a> {
    pub(super) options: &'a Options,
    pub(super) model: String,
    pub(super) body: Value,
    /// Unique; an answer's id is this after the prefix of its kind.
    pub(super) id: String,
    /// Seconds since 1970.
    pub(super) created: u64,
}

impl<'a> Call<'a> {
    /// Refuses what is no JSON object, and a model that is not served.
    pub(super) fn parse(options: &'a Options, body: &[u8], id: String, created: u64) -> Result<Self, Refusal> {
        let body: Value = serde_json::from_slice(body)
            .map_err(|error| Refusal::invalid(None, format!("The body is not valid JSON: {error}.")))?;
        if !body.is_object() {
            return Err(Refusal::invalid(None, "The body must be a JSON object."));
        }
        let model =
            body["model"].as_str().ok_or_else(|| Refusal::invalid(Some("model"), "`model` must be a string."))?;
        if !models::serves(options, model) {
            return Err(Refusal::unknown_model(model));
        }
        Ok(Self { options, model: model.to_owned(), id, created, body })
    }

    /// Whether a switch is on; off if it is missing.
    pub(super) fn flag(&self, name: &'static str) -> Result<bool, Refusal> {
        match &self.body[name] {
            Value::Null => Ok(false),
            Value::Bool(on) => Ok(*on),
            _ => Err(Refusal::invalid(Some(name), format!("`{name}` must be true or false."))),
        }
    }

    /// A number from 1 on, if it is given.
    pub(super) fn count(&self, name: &'static str) -> Result<Option<usize>, Refusal> {
        match &self.body[name] {
            Value::Null => Ok(None),
            given => match given.as_u64() {
                Some(count) if count > 0 => Ok(Some(usize::try_from(count).unwrap_or(usize::MAX))),
                _ => Err(Refusal::invalid(Some(name), format!("`{name}` must be a whole number, at least 1."))),
            },
        }
    }

    /// A list of messages with at least one in it.
    pub(super) fn list(&self, name: &'static str) -> Result<&[Value], Refusal> {
        match &self.body[name] {
            Value::Array(messages) if !messages.is_empty() => Ok(messages),
            _ => Err(Refusal::invalid(Some(name), format!("`{name}` must be a list of messages."))),
        }
    }

    /// What is counted for an answer.
    pub(super) fn cost(&self, answer: &Answer) -> Cost {
        Cost {
            model: models::label(self.options, &self.model).to_owned(),
            prompt_tokens: answer.prompt_tokens,
            generation_tokens: answer.tokens.len(),
            finish_reason: answer.finish_reason,
        }
    }
}

/// The last thing that a user says in a list of messages, and the tokens of all that is said there.
pub(super) fn conversation(messages: &[Value]) -> (String, usize) {
    let texts = || messages.iter().map(|message| text_of(&message["content"]));
    let last = messages.iter().rposition(|message| message["role"] == "user");
    let question = last.and_then(|last| texts().nth(last)).unwrap_or_default();
    (question, texts().map(|text| count(&text)).sum())
}

/// The text in a string, in a list of strings or of parts with a `text`, or in lists of these.
///
/// A number stands for itself: a prompt may be given as token ids, each then counts as a word.
pub(super) fn text_of(content: &Value) -> String {
    match content {
        Value::String(text) => text.clone(),
        Value::Number(token) => token.to_string(),
        Value::Array(parts) => {
            let texts: Vec<String> = parts.iter().map(text_of).collect();
            texts.join(" ")
        }
        Value::Object(part) => part.get("text").map(text_of).unwrap_or_default(),
        Value::Null | Value::Bool(_) => String::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn text_is_found_in_every_shape_of_content() {
        for (content, text) in [
            (json!("a b"), "a b"),
            (json!(null), ""),
            (json!(["a", "b"]), "a b"),
            (json!([{"type": "text", "text": "a"}, {"type": "image_url"}]), "a "),
            (json!([1, 2]), "1 2"),
            (json!([[1], [2]]), "1 2"),
        ] {
            assert_eq!(text_of(&content), text, "{content}");
        }
    }

    #[test]
    fn a_body_that_is_no_call_is_refused_and_says_where() {
        let options = Options { models: vec!["small".into()], ..Options::default() };
        for (body, param, code) in [
            ("", None, None),
            ("[]", None, None),
            ("{}", Some("model"), None),
            (r#"{"model": 1}"#, Some("model"), None),
            (r#"{"model": "big"}"#, Some("model"), Some("model_not_found")),
        ] {
            let refusal = Call::parse(&options, body.as_bytes(), String::new(), 0).err();
            let refusal = refusal.expect("a refusal");
            assert_eq!((refusal.param, refusal.code), (param, code), "{body}");
        }
    }
}
