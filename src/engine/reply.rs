//! What the engine answers: a status and a body, whose pieces are due when so many tokens are made.
//!
//! A reply that costs no tokens is due at once, so errors and lists go the same way as answers.

use bytes::Bytes;
use serde_json::{Value, json};

/// One response.
pub(super) struct Reply {
    pub(super) status: u16,
    pub(super) content_type: Option<&'static str>,
    pub(super) body: Body,
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

/// Why a request gets no answer, in the words of OpenAI's error envelope.
#[derive(Debug)]
pub(super) struct Refusal {
    pub(super) status: u16,
    message: String,
    pub(super) param: Option<&'static str>,
    pub(super) code: Option<&'static str>,
}

impl Reply {
    /// A JSON body, ready when so many tokens are made.
    pub(super) fn json(tokens: usize, value: &Value) -> Self {
        let bytes = value.to_string().into();
        Self { status: 200, content_type: Some("application/json"), body: Body::Whole(Piece { tokens, bytes }) }
    }

    /// Server-sent events.
    pub(super) fn events(pieces: impl Iterator<Item = Piece> + Send + 'static) -> Self {
        Self {
            status: 200,
            content_type: Some("text/event-stream; charset=utf-8"),
            body: Body::Stream(Box::new(pieces)),
        }
    }

    /// Success with nothing to say.
    pub(super) fn empty() -> Self {
        let bytes = Bytes::new();
        Self { status: 200, content_type: None, body: Body::Whole(Piece { tokens: 0, bytes }) }
    }
}

impl Piece {
    /// One event without a name.
    pub(super) fn data(tokens: usize, data: impl std::fmt::Display) -> Self {
        let bytes = format!("data: {data}\n\n").into();
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
}

impl From<Refusal> for Reply {
    fn from(refusal: Refusal) -> Self {
        let envelope = json!({
            "error": {
                "message": refusal.message,
                "type": "invalid_request_error",
                "param": refusal.param,
                "code": refusal.code,
            }
        });
        Self { status: refusal.status, ..Self::json(0, &envelope) }
    }
}
