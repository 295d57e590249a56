//! What the engine answers: a status and a body, whose pieces are due when so many tokens are made.
//!
//! A reply that costs no tokens is due at once, so errors and lists go the same way as answers.

use super::metrics::Cost;
use bytes::Bytes;
use serde_json::{Value, json};

/// One response.
pub(super) struct Reply {
    pub(super) status: u16,
    pub(super) content_type: Option<&'static str>,
    pub(super) body: Body,
    /// What it counts, if it answers a prompt.
    pub(super) cost: Option<Cost>,
}

/// How a body leaves.
pub(super) enum Body {
    /// At once, with its length.
    Whole(Piece),
    /// Piece by piece, each flushed.
    Stream(Box<dyn Iterator<Item = Piece> + Send>),
}

/// Bytes, and how many tokens of the answer are made by then.
pub(super) struct Piece {
    pub(super) tokens: usize,
    pub(super) bytes: Bytes,
}

/// Why a request gets no answer.
#[derive(Debug)]
pub(super) struct Refusal {
    pub(super) status: u16,
    message: String,
    pub(super) param: Option<&'static str>,
    pub(super) code: Option<&'static str>,
}

/// The envelope in which a client reads errors.
#[derive(Clone, Copy)]
pub(super) enum Form {
    /// OpenAI's.
    OpenAi,
    /// Anthropic's.
    Anthropic,
}

impl Reply {
    /// A JSON body, ready when so many tokens are made.
    pub(super) fn json(tokens: usize, value: &Value) -> Self {
        Self::whole(Some("application/json"), tokens, value.to_string())
    }

    /// Prometheus' text format.
    pub(super) fn metrics(text: Vec<u8>) -> Self {
        Self::whole(Some("text/plain; version=0.0.4; charset=utf-8"), 0, text)
    }

    /// Success with nothing to say.
    pub(super) fn empty() -> Self {
        Self::whole(None, 0, Bytes::new())
    }

    fn whole(content_type: Option<&'static str>, tokens: usize, bytes: impl Into<Bytes>) -> Self {
        let body = Body::Whole(Piece { tokens, bytes: bytes.into() });
        Self { status: 200, content_type, body, cost: None }
    }

    /// Server-sent events.
    pub(super) fn events(pieces: impl Iterator<Item = Piece> + Send + 'static) -> Self {
        Self {
            status: 200,
            content_type: Some("text/event-stream; charset=utf-8"),
            body: Body::Stream(Box::new(pieces)),
            cost: None,
        }
    }

    /// The same, counted.
    pub(super) fn costing(self, cost: Cost) -> Self {
        Self { cost: Some(cost), ..self }
    }
}

impl Piece {
    /// One event without a name.
    pub(super) fn data(tokens: usize, data: impl std::fmt::Display) -> Self {
        let bytes = format!("data: {data}\n\n").into();
        Self { tokens, bytes }
    }

    /// One event with a name, which is also the first member, `type`, of what is said.
    pub(super) fn event(tokens: usize, name: &str, said: Value) -> Self {
        let mut data = json!({"type": name});
        if let (Value::Object(data), Value::Object(said)) = (&mut data, said) {
            data.extend(said);
        }
        let bytes = format!("event: {name}\ndata: {data}\n\n").into();
        Self { tokens, bytes }
    }
}

impl Refusal {
    /// 400: the request makes no sense.
    pub(super) fn invalid(param: Option<&'static str>, message: impl Into<String>) -> Self {
        Self { status: 400, message: message.into(), param, code: None }
    }

    /// 404 for a model that is not served here.
    pub(super) fn unknown_model(model: &str) -> Self {
        Self {
            status: 404,
            message: format!("The model `{model}` does not exist."),
            param: Some("model"),
            code: Some("model_not_found"),
        }
    }

    /// 404 for everything that is no endpoint.
    pub(super) fn unknown_url(method: &str, path: &str) -> Self {
        Self {
            status: 404,
            message: format!("Unknown request URL: {method} {path}"),
            param: None,
            code: Some("unknown_url"),
        }
    }

    /// 413.
    pub(super) fn too_large(limit: usize) -> Self {
        Self {
            status: 413,
            message: format!("The request body is longer than {limit} bytes."),
            param: None,
            code: Some("request_too_large"),
        }
    }

    /// Any error status, because the engine was told to fail.
    pub(super) fn rehearsed(status: u16) -> Self {
        let message = format!("This engine was told to answer {status}.");
        Self { status, message, param: None, code: Some("rehearsed") }
    }

    /// The answer that says so.
    pub(super) fn reply(&self, form: Form) -> Reply {
        let kind = form.kind(self.status);
        let envelope = match form {
            Form::OpenAi => json!({
                "error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}
            }),
            Form::Anthropic => json!({"type": "error", "error": {"type": kind, "message": self.message}}),
        };
        Reply { status: self.status, ..Reply::json(0, &envelope) }
    }
}

impl Form {
    /// The form of an endpoint.
    pub(super) fn of(path: &str) -> Self {
        if path.starts_with("/v1/messages") { Self::Anthropic } else { Self::OpenAi }
    }

    /// The word for a status.
    fn kind(self, status: u16) -> &'static str {
        match (self, status) {
            (Self::Anthropic, 401) => "authentication_error",
            (_, 403) => "permission_error",
            (Self::Anthropic, 404) => "not_found_error",
            (Self::Anthropic, 413) => "request_too_large",
            (_, 429) => "rate_limit_error",
            (_, 400..500) => "invalid_request_error",
            (Self::OpenAi, 503) | (Self::Anthropic, 503 | 529) => "overloaded_error",
            (Self::Anthropic, 504) => "timeout_error",
            (Self::OpenAi, _) => "server_error",
            (Self::Anthropic, _) => "api_error",
        }
    }
}

/// The JSON of an endpoint's whole reply, or of each event of its stream.
#[cfg(test)]
pub(super) fn said(endpoint: super::Endpoint, body: &Value) -> Result<Vec<Value>, Refusal> {
    let options = super::Options::default();
    let call = super::call::Call::parse(&options, body.to_string().as_bytes(), "7".into(), 5)?;
    let pieces: Vec<Piece> = match endpoint(&call)?.body {
        Body::Whole(piece) => vec![piece],
        Body::Stream(pieces) => pieces.collect(),
    };
    let texts = pieces.iter().map(|piece| {
        let text = std::str::from_utf8(&piece.bytes).expect("text");
        text.split_once("data: ").map_or(text, |(_, data)| data).trim_end()
    });
    Ok(texts.map(|text| serde_json::from_str(text).unwrap_or_else(|_| text.into())).collect())
}
