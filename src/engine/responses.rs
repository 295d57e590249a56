//! `POST /v1/responses`: OpenAI's Responses API, whole or as named and numbered events.
//!
//! An answer that `max_output_tokens` ended is `incomplete`, and so is its last event.

use super::answer::{Answer, count};
use super::call::{Call, conversation, text_of};
use super::reply::{Piece, Refusal, Reply};
use serde_json::{Value, json};

/// `POST /v1/responses`.
pub(super) fn respond(call: &Call) -> Result<Reply, Refusal> {
    let (question, tokens) = match &call.body["input"] {
        Value::String(text) => (text.clone(), count(text)),
        Value::Array(items) if !items.is_empty() => conversation(items),
        _ => return Err(Refusal::invalid(Some("input"), "`input` must be a string or a list of messages.")),
    };
    let prompt_tokens = tokens + count(&text_of(&call.body["instructions"]));
    let answer = Answer::to(&question, prompt_tokens, call.count("max_output_tokens")?);
    let cost = call.cost(&answer);
    let frame = Frame::new(call, answer);
    let reply = if call.flag("stream")? {
        Reply::events(frame.events())
    } else {
        Reply::json(frame.answer.tokens.len(), &frame.whole())
    };
    Ok(reply.costing(cost))
}

/// What all objects of one response are made of.
struct Frame {
    answer: Answer,
    /// The id of the one message.
    item_id: String,
    /// The response before its first token.
    begun: Value,
}

impl Frame {
    fn new(call: &Call, answer: Answer) -> Self {
        let begun = json!({
            "id": format!("resp_{}", call.id),
            "object": "response",
            "created_at": call.created,
            "status": "in_progress",
            "error": null,
            "incomplete_details": null,
            "instructions": call.body["instructions"],
            "max_output_tokens": call.body["max_output_tokens"],
            "model": call.model,
            "output": [],
            "parallel_tool_calls": true,
            "previous_response_id": null,
            "store": false,
            "temperature": 1.0,
            "text": {"format": {"type": "text"}},
            "tool_choice": "auto",
            "tools": [],
            "top_p": 1.0,
            "truncation": "disabled",
            "usage": null,
            "metadata": {},
        });
        Self { answer, item_id: format!("msg_{}", call.id), begun }
    }

    /// How it ends.
    fn status(&self) -> &'static str {
        if self.answer.finish_reason == "length" { "incomplete" } else { "completed" }
    }

    fn whole(&self) -> Value {
        let mut whole = self.begun.clone();
        whole["status"] = self.status().into();
        if self.status() == "incomplete" {
            whole["incomplete_details"] = json!({"reason": "max_output_tokens"});
        }
        whole["output"] = json!([self.item(self.status(), json!([part(self.answer.text())]))]);
        let (input, output) = (self.answer.prompt_tokens, self.answer.tokens.len());
        whole["usage"] = json!({
            "input_tokens": input,
            "input_tokens_details": {"cached_tokens": 0, "cache_write_tokens": 0},
            "output_tokens": output,
            "output_tokens_details": {"reasoning_tokens": 0},
            "total_tokens": input + output,
        });
        whole
    }

    fn item(&self, status: &str, content: Value) -> Value {
        json!({"type": "message", "id": self.item_id, "status": status, "role": "assistant", "content": content})
    }

    /// An event about the one part of the one message.
    fn about_part(&self, field: &str, said: Value) -> Value {
        json!({"item_id": self.item_id, "output_index": 0, "content_index": 0, (field): said})
    }

    /// The response, its message and the part of that open; the tokens; and all three close again.
    fn events(self) -> impl Iterator<Item = Piece> + Send + 'static {
        let total = self.answer.tokens.len();
        let text = self.answer.text();
        let opened = self.item("in_progress", json!([]));
        let lead = [
            (0, "response.created", json!({"response": self.begun})),
            (0, "response.in_progress", json!({"response": self.begun})),
            (1, "response.output_item.added", json!({"output_index": 0, "item": opened})),
            (1, "response.content_part.added", self.about_part("part", part(String::new()))),
        ];
        let mut done = self.about_part("text", text.clone().into());
        done["logprobs"] = json!([]);
        let last = if self.status() == "completed" { "response.completed" } else { "response.incomplete" };
        let whole = self.whole();
        let end = [
            (total, "response.output_text.done", done),
            (total, "response.content_part.done", self.about_part("part", part(text))),
            (total, "response.output_item.done", json!({"output_index": 0, "item": whole["output"][0]})),
            (total, last, json!({"response": whole})),
        ];
        let delta = self.about_part("delta", Value::Null);
        let tokens = self.answer.tokens.into_iter().enumerate().map(move |(i, token)| {
            let mut delta = delta.clone();
            delta["delta"] = token.into();
            delta["logprobs"] = json!([]);
            (i + 1, "response.output_text.delta", delta)
        });
        lead.into_iter().chain(tokens).chain(end).enumerate().map(|(number, (tokens, name, mut said))| {
            said["sequence_number"] = number.into();
            Piece::event(tokens, name, said)
        })
    }
}

fn part(text: String) -> Value {
    json!({"type": "output_text", "text": text, "annotations": [], "logprobs": []})
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::reply::said;

    #[test]
    fn a_whole_response_has_openais_members() {
        let input = json!([
            {"role": "user", "content": "hello"},
            {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "good morning"}]},
        ]);
        for (input, instructions, limit, text, tokens) in [
            (json!("good morning"), Value::Null, Value::Null, "You said: good morning — This answer", 2),
            (input, json!("be kind"), json!(3), "You said: good", 5),
        ] {
            let body = json!({
                "model": "m", "input": input, "instructions": instructions, "max_output_tokens": limit,
            });
            let response = said(respond, &body).expect("an answer").remove(0);
            let status = if limit.is_null() { "completed" } else { "incomplete" };
            assert_eq!((&response["id"], &response["object"]), (&json!("resp_7"), &json!("response")));
            assert_eq!((&response["status"], &response["output"][0]["status"]), (&json!(status), &json!(status)));
            assert_eq!(response["incomplete_details"].is_null(), limit.is_null());
            assert_eq!((&response["instructions"], &response["max_output_tokens"]), (&instructions, &limit));
            let part = &response["output"][0]["content"][0];
            assert_eq!(part["type"], "output_text");
            assert!(part["text"].as_str().is_some_and(|said| said.starts_with(text)), "{part}");
            assert_eq!(response["usage"]["input_tokens"], tokens);
            assert_eq!(response["usage"]["output_tokens"], limit.as_u64().unwrap_or(24));
        }
    }

    #[test]
    fn a_stream_has_openais_events_in_sequence() {
        for (limit, tokens, last) in [(json!(2), 2, "incomplete"), (Value::Null, 24, "completed")] {
            let body = json!({"model": "m", "input": "hi", "stream": true, "max_output_tokens": limit});
            let events = said(respond, &body).expect("a stream");
            let kinds: Vec<&str> =
                events.iter().filter_map(|event| event["type"].as_str()?.strip_prefix("response.")).collect();
            let lead = ["created", "in_progress", "output_item.added", "content_part.added"];
            let end = ["output_text.done", "content_part.done", "output_item.done", last];
            assert_eq!(kinds, [&lead[..], &vec!["output_text.delta"; tokens], &end].concat());
            assert!(events.iter().enumerate().all(|(i, event)| event["sequence_number"] == i));
            let said: String = events
                .iter()
                .filter(|event| event["logprobs"].is_array())
                .filter_map(|e| e["delta"].as_str())
                .collect();
            let whole = &events[events.len() - 1]["response"];
            assert_eq!(whole["output"][0]["content"][0]["text"], said);
            assert_eq!((&whole["status"], &whole["usage"]["output_tokens"]), (&json!(last), &json!(tokens)));
            assert_eq!(events[0]["response"]["status"], "in_progress");
            assert_eq!(events[events.len() - 2]["item"], whole["output"][0]);
        }
    }

    #[test]
    fn a_senseless_input_is_refused_and_says_where() {
        for (body, param) in [
            (json!({"model": "m"}), "input"),
            (json!({"model": "m", "input": []}), "input"),
            (json!({"model": "m", "input": 7}), "input"),
            (json!({"model": "m", "input": "hi", "max_output_tokens": 0}), "max_output_tokens"),
        ] {
            let refusal = said(respond, &body).expect_err("a refusal");
            assert_eq!((refusal.status, refusal.param), (400, Some(param)), "{body}");
        }
    }
}
