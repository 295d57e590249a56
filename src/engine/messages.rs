//! `POST /v1/messages`: Anthropic's Messages API, whole or as named events.

use super::answer::{Answer, count};
use super::call::{Call, conversation, text_of};
use super::reply::{Piece, Refusal, Reply};
use serde_json::{Value, json};

/// `POST /v1/messages`.
pub(super) fn messages(call: &Call) -> Result<Reply, Refusal> {
    let (question, tokens) = conversation(call.list("messages")?);
    let prompt_tokens = tokens + count(&text_of(&call.body["system"]));
    let max_tokens =
        call.count("max_tokens")?.ok_or_else(|| Refusal::invalid(Some("max_tokens"), "`max_tokens` must be given."))?;
    let answer = Answer::to(&question, prompt_tokens, Some(max_tokens));
    let cost = call.cost(&answer);
    let reply = if call.flag("stream")? {
        Reply::events(events(call, answer))
    } else {
        let content = json!([{"type": "text", "text": answer.text()}]);
        let usage = usage(&answer, answer.tokens.len());
        Reply::json(answer.tokens.len(), &message(call, content, Some(stop_reason(&answer)), usage))
    };
    Ok(reply.costing(cost))
}

/// The empty message, its one block of text token by token, the reason of the end with the usage, and the stop.
fn events(call: &Call, answer: Answer) -> impl Iterator<Item = Piece> + Send + 'static {
    let total = answer.tokens.len();
    let start = message(call, json!([]), None, usage(&answer, 0));
    let lead = [
        (1, "message_start", json!({"message": start})),
        (1, "content_block_start", json!({"index": 0, "content_block": {"type": "text", "text": ""}})),
        (1, "ping", json!({})),
    ];
    let delta = json!({"stop_reason": stop_reason(&answer), "stop_sequence": null});
    let end = [
        (total, "content_block_stop", json!({"index": 0})),
        (total, "message_delta", json!({"delta": delta, "usage": usage(&answer, total)})),
        (total, "message_stop", json!({})),
    ];
    let tokens = answer.tokens.into_iter().enumerate().map(|(i, token)| {
        let delta = json!({"type": "text_delta", "text": token});
        (i + 1, "content_block_delta", json!({"index": 0, "delta": delta}))
    });
    lead.into_iter().chain(tokens).chain(end).map(|(tokens, name, said)| Piece::event(tokens, name, said))
}

fn message(call: &Call, content: Value, stop_reason: Option<&str>, usage: Value) -> Value {
    json!({
        "id": format!("msg_{}", call.id),
        "type": "message",
        "role": "assistant",
        "model": call.model,
        "content": content,
        "stop_reason": stop_reason,
        "stop_sequence": null,
        "usage": usage,
    })
}

fn stop_reason(answer: &Answer) -> &'static str {
    if answer.finish_reason == "length" { "max_tokens" } else { "end_turn" }
}

fn usage(answer: &Answer, output_tokens: usize) -> Value {
    json!({"input_tokens": answer.prompt_tokens, "output_tokens": output_tokens})
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::reply::said;

    #[test]
    fn a_whole_message_has_anthropics_members() {
        let body = json!({
            "model": "m",
            "max_tokens": 3,
            "system": [{"type": "text", "text": "be kind"}],
            "messages": [
                {"role": "user", "content": "hello"},
                {"role": "assistant", "content": "yes ?"},
                {"role": "user", "content": [{"type": "text", "text": "good morning"}]},
            ],
        });
        assert_eq!(
            said(messages, &body).expect("an answer"),
            [json!({
                "id": "msg_7", "type": "message", "role": "assistant", "model": "m",
                "content": [{"type": "text", "text": "You said: good"}],
                "stop_reason": "max_tokens", "stop_sequence": null,
                "usage": {"input_tokens": 7, "output_tokens": 3},
            })]
        );
    }

    #[test]
    fn a_stream_has_anthropics_events() {
        let body = json!({
            "model": "m", "max_tokens": 2, "stream": true, "messages": [{"role": "user", "content": "hi"}],
        });
        let events = said(messages, &body).expect("a stream");
        let kinds: Vec<&str> = events.iter().filter_map(|event| event["type"].as_str()).collect();
        assert_eq!(
            kinds,
            [
                "message_start",
                "content_block_start",
                "ping",
                "content_block_delta",
                "content_block_delta",
                "content_block_stop",
                "message_delta",
                "message_stop",
            ]
        );
        let message = &events[0]["message"];
        assert_eq!((&message["content"], &message["stop_reason"]), (&json!([]), &Value::Null));
        assert_eq!(message["usage"], json!({"input_tokens": 1, "output_tokens": 0}));
        assert_eq!(events[3]["delta"], json!({"type": "text_delta", "text": "You"}));
        assert_eq!(events[6]["delta"]["stop_reason"], "max_tokens");
        assert_eq!(events[6]["usage"]["output_tokens"], 2);
    }

    #[test]
    fn an_answer_that_its_limit_did_not_end_ends_the_turn() {
        let body = json!({"model": "m", "max_tokens": 1_u64 << 40, "messages": [{"role": "user", "content": "hi"}]});
        assert_eq!(said(messages, &body).expect("an answer")[0]["stop_reason"], "end_turn");
    }

    #[test]
    fn a_senseless_message_is_refused_and_says_where() {
        let talk = json!([{"role": "user", "content": "hi"}]);
        for (body, param) in [
            (json!({"model": "m", "max_tokens": 1}), "messages"),
            (json!({"model": "m", "max_tokens": 1, "messages": []}), "messages"),
            (json!({"model": "m", "messages": talk}), "max_tokens"),
            (json!({"model": "m", "max_tokens": 0, "messages": talk}), "max_tokens"),
            (json!({"model": "m", "max_tokens": 1, "messages": talk, "stream": 1}), "stream"),
        ] {
            let refusal = said(messages, &body).expect_err("a refusal");
            assert_eq!((refusal.status, refusal.param), (400, Some(param)), "{body}");
        }
    }
}
