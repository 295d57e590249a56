//! `POST /v1/chat/completions` and `/v1/completions`: one answer, in two dialects, whole or as events.

use super::answer::{Answer, count};
use super::call::{Call, conversation, text_of};
use super::reply::{Piece, Refusal, Reply};
use serde_json::{Value, json};
use std::iter::once;

/// `POST /v1/chat/completions`.
pub(super) fn chat(call: &Call) -> Result<Reply, Refusal> {
    let (question, prompt_tokens) = conversation(call.list("messages")?);
    let max_tokens = match call.count("max_completion_tokens")? {
        Some(count) => Some(count),
        None => call.count("max_tokens")?,
    };
    let answer = Answer::to(&question, prompt_tokens, max_tokens);
    complete(call, Dialect::Chat, answer)
}

/// `POST /v1/completions`. A list of prompts is taken as one prompt.
pub(super) fn text(call: &Call) -> Result<Reply, Refusal> {
    let prompt = match &call.body["prompt"] {
        prompt @ (Value::String(_) | Value::Array(_)) => text_of(prompt),
        _ => {
            return Err(Refusal::invalid(Some("prompt"), "`prompt` must be a string or a list."));
        }
    };
    let max_tokens = call.count("max_tokens")?;
    let answer = Answer::to(&prompt, count(&prompt), max_tokens);
    complete(call, Dialect::Text, answer)
}

fn complete(call: &Call, dialect: Dialect, answer: Answer) -> Result<Reply, Refusal> {
    let frame = Frame::new(call, dialect);
    let cost = call.cost(&answer);
    let reply = if call.flag("stream")? {
        let with_usage = call.body["stream_options"]["include_usage"] == true;
        Reply::events(frame.events(answer, with_usage))
    } else {
        Reply::json(answer.tokens.len(), &frame.whole(&answer))
    };
    Ok(reply.costing(cost))
}

/// Where the two dialects differ.
#[derive(Clone, Copy)]
enum Dialect {
    Chat,
    Text,
}

/// What all objects of one answer say alike.
struct Frame {
    dialect: Dialect,
    id: String,
    created: u64,
    model: String,
    fingerprint: String,
}

impl Dialect {
    fn id_prefix(self) -> &'static str {
        match self {
            Self::Chat => "chatcmpl",
            Self::Text => "cmpl",
        }
    }

    /// The kind of a whole answer, and its choice.
    fn whole(self, text: String, finish_reason: &str) -> (&'static str, Value) {
        let (object, field, said) = match self {
            Self::Chat => {
                let message = json!({"role": "assistant", "content": text, "refusal": null});
                ("chat.completion", "message", message)
            }
            Self::Text => ("text_completion", "text", text.into()),
        };
        (object, choice(field, said, Some(finish_reason)))
    }

    /// What is said before the first token.
    fn lead(self) -> Option<Value> {
        match self {
            Self::Chat => Some(json!({"role": "assistant", "content": ""})),
            Self::Text => None,
        }
    }

    fn token(self, token: String) -> Value {
        match self {
            Self::Chat => json!({"content": token}),
            Self::Text => token.into(),
        }
    }

    /// What is said with the reason of the end.
    fn last(self) -> Value {
        match self {
            Self::Chat => json!({}),
            Self::Text => "".into(),
        }
    }

    /// The kind of a streamed piece, and the member of its choice that says something.
    fn chunk(self) -> (&'static str, &'static str) {
        match self {
            Self::Chat => ("chat.completion.chunk", "delta"),
            Self::Text => ("text_completion", "text"),
        }
    }
}

impl Frame {
    fn new(call: &Call, dialect: Dialect) -> Self {
        Self {
            dialect,
            id: format!("{}-{}", dialect.id_prefix(), call.id),
            created: call.created,
            model: call.model.clone(),
            fingerprint: call.options.name.clone(),
        }
    }

    fn whole(&self, answer: &Answer) -> Value {
        let (object, choice) = self.dialect.whole(answer.text(), answer.finish_reason);
        let mut whole = self.object(object, json!([choice]));
        whole["usage"] = answer.usage();
        whole
    }

    /// The role (chat only), the tokens, the reason of the end, the usage if asked for, and `[DONE]`.
    fn events(self, answer: Answer, with_usage: bool) -> impl Iterator<Item = Piece> + Send + 'static {
        let total = answer.tokens.len();
        let dialect = self.dialect;
        let (object, field) = dialect.chunk();
        let usage = with_usage.then(|| {
            let mut chunk = self.object(object, json!([]));
            chunk["usage"] = answer.usage();
            Piece::data(total, chunk)
        });
        let tokens = answer.tokens.into_iter().enumerate();
        let lead = dialect.lead().map(|lead| (1, lead, None));
        lead.into_iter()
            .chain(tokens.map(move |(i, token)| (i + 1, dialect.token(token), None)))
            .chain(once((total, dialect.last(), Some(answer.finish_reason))))
            .map(move |(tokens, said, finish_reason)| {
                let choice = choice(field, said, finish_reason);
                let mut chunk = self.object(object, json!([choice]));
                if with_usage {
                    chunk["usage"] = Value::Null;
                }
                Piece::data(tokens, chunk)
            })
            .chain(usage)
            .chain(once(Piece::data(total, "[DONE]")))
    }

    fn object(&self, object: &str, choices: Value) -> Value {
        json!({
            "id": self.id,
            "object": object,
            "created": self.created,
            "model": self.model,
            "system_fingerprint": self.fingerprint,
            "choices": choices,
        })
    }
}

fn choice(field: &str, said: Value, finish_reason: Option<&str>) -> Value {
    json!({"index": 0, (field): said, "logprobs": null, "finish_reason": finish_reason})
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::reply::said;

    #[test]
    fn a_whole_answer_has_the_members_of_its_dialect() {
        let messages = json!([
            {"role": "system", "content": "be kind"},
            {"role": "user", "content": [{"type": "text", "text": "good morning"}]},
        ]);
        let body = json!({"model": "m", "messages": messages, "max_completion_tokens": 4});
        assert_eq!(
            said(chat, &body).expect("an answer"),
            [json!({
                "id": "chatcmpl-7", "object": "chat.completion", "created": 5, "model": "m",
                "system_fingerprint": "engine",
                "choices": [{
                    "index": 0,
                    "message": {"role": "assistant", "content": "You said: good morning", "refusal": null},
                    "logprobs": null,
                    "finish_reason": "length",
                }],
                "usage": {"prompt_tokens": 4, "completion_tokens": 4, "total_tokens": 8},
            })]
        );
        let body = json!({"model": "m", "prompt": ["a", "b"], "max_tokens": 3});
        assert_eq!(
            said(text, &body).expect("an answer"),
            [json!({
                "id": "cmpl-7", "object": "text_completion", "created": 5, "model": "m",
                "system_fingerprint": "engine",
                "choices": [{
                    "index": 0, "text": "You said: a", "logprobs": null, "finish_reason": "length",
                }],
                "usage": {"prompt_tokens": 2, "completion_tokens": 3, "total_tokens": 5},
            })]
        );
    }

    #[test]
    fn a_stream_says_role_tokens_reason_usage_and_done() {
        let messages = json!([{"role": "user", "content": "hi"}]);
        let usage = json!({"include_usage": true});
        let body = json!({
            "model": "m", "messages": messages, "stream": true, "stream_options": usage, "max_tokens": 2,
        });
        let events = said(chat, &body).expect("a stream");
        let choices: Vec<&Value> = events.iter().map(|event| &event["choices"]).collect();
        let choice = |delta: Value, reason: Value| json!([super::choice("delta", delta, reason.as_str())]);
        assert_eq!(
            choices,
            [
                &choice(json!({"role": "assistant", "content": ""}), Value::Null),
                &choice(json!({"content": "You"}), Value::Null),
                &choice(json!({"content": " said:"}), Value::Null),
                &choice(json!({}), "length".into()),
                &json!([]),
                &Value::Null,
            ]
        );
        assert_eq!(events[0]["usage"], Value::Null);
        assert_eq!(events[4]["usage"]["total_tokens"], 3);
        assert_eq!(events[5], "[DONE]");

        let body = json!({"model": "m", "prompt": "hi", "stream": true, "max_tokens": 1});
        let events = said(text, &body).expect("a stream");
        assert_eq!(events.len(), 3, "no role and no usage");
        assert_eq!(events[0]["choices"][0]["text"], "You");
        assert!(events[0].get("usage").is_none());
        assert_eq!(events[1]["choices"][0]["finish_reason"], "length");
    }

    #[test]
    fn a_senseless_request_is_refused_and_says_where() {
        let messages = json!([{"role": "user", "content": "hi"}]);
        for (body, param) in [
            (json!({"model": "m"}), "messages"),
            (json!({"model": "m", "messages": []}), "messages"),
            (json!({"model": "m", "messages": "hi"}), "messages"),
            (json!({"model": "m", "messages": messages, "max_tokens": 0}), "max_tokens"),
            (json!({"model": "m", "messages": messages, "max_tokens": "9"}), "max_tokens"),
            (json!({"model": "m", "messages": messages, "stream": "yes"}), "stream"),
        ] {
            let refusal = said(chat, &body).expect_err("a refusal");
            assert_eq!((refusal.status, refusal.param), (400, Some(param)), "{body}");
        }
        let refusal = said(text, &json!({"model": "m"})).expect_err("a refusal");
        assert_eq!(refusal.param, Some("prompt"));
    }
}
