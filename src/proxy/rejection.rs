//! Why forebay itself answers, and how that looks: the one place that writes errors.
//!
//! A cause says nothing that a stranger may not read: no address, no secret. What else is known goes to the log.

use std::fmt;
use std::time::Duration;

use bytes::Bytes;
use http::header::{ALLOW, CONTENT_LENGTH, CONTENT_TYPE, RETRY_AFTER, WWW_AUTHENTICATE};
use http::{HeaderValue, Method, StatusCode};
use pingora::http::ResponseHeader;
use pingora::{Error, ErrorSource, ErrorType};
use serde_json::json;

use crate::access::key::Refused;
use crate::prompt::{Dialect, Unreadable};

/// The type under which a rejection travels through Pingora.
const REJECTED: ErrorType = ErrorType::new("Rejected");

/// Why a request is not answered by an engine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Rejection {
    /// The header is not one that every server reads alike.
    Malformed(&'static str),
    /// The header is beyond our limits: which of them.
    HeaderTooLarge(&'static str),
    /// No valid key, for whatever reason.
    Unauthenticated(Refused),
    /// The key may not use the route.
    RouteNotAllowed,
    /// The key may not ask this model.
    ModelNotAllowed(Box<str>),
    /// No route serves this.
    NoRoute,
    /// The path is served with these methods.
    MethodNotAllowed(Vec<Method>),
    /// No model has this name.
    UnknownModel(Box<str>),
    /// The body is no prompt.
    Unreadable(Unreadable),
    /// The body has a content coding.
    Encoded,
    /// The body is larger than this many bytes.
    BodyTooLarge(u64),
    /// The body did not come: silence for this long.
    BodyTooSlow(Duration),
    /// No server is usable; worth another try after this long.
    NoServer(Duration),
    /// All servers are at their limits, and as many requests wait as may, for up to this long.
    QueueFull(Duration),
    /// It waited for this long, and all servers were at their limits.
    QueueTimeout(Duration),
    /// No server gave an answer.
    Unavailable,
    /// The engine took too long.
    Timeout,
    /// The engine refused the key that forebay has for it.
    UpstreamCredentials,
    /// Only the cache was to answer, and it has no answer.
    NotCached,
    /// As many clients are connected as may be.
    TooManyConnections,
    /// The daemon stops, and the time for what is in flight is over.
    Draining,
    /// Something of ours failed.
    Internal,
}

/// The form in which a client reads errors.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Form {
    /// OpenAI's envelope.
    OpenAi,
    /// Anthropic's envelope.
    Anthropic,
    /// HTTP 200 with `grpc-status`.
    Grpc,
}

/// What one cause looks like.
struct Look {
    status: StatusCode,
    kind: &'static str,
    code: &'static str,
    grpc: u8,
}

// === impl Rejection ===

impl Rejection {
    /// The status a client of HTTP sees.
    #[must_use]
    pub fn status(&self) -> StatusCode {
        self.look().status
    }

    /// The word for programs; also in the access log.
    #[must_use]
    pub fn code(&self) -> &'static str {
        self.look().code
    }

    /// The member of the request that is at fault, if one is.
    #[must_use]
    pub fn param(&self) -> Option<&'static str> {
        match self {
            Self::UnknownModel(_) | Self::ModelNotAllowed(_) => Some("model"),
            Self::Unreadable(Unreadable::NotJson { .. }) => None,
            Self::Unreadable(_) => Some("model"),
            _ => None,
        }
    }

    /// When it is worth another try.
    #[must_use]
    pub fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::NoServer(after) | Self::QueueFull(after) | Self::QueueTimeout(after) => Some(*after),
            Self::TooManyConnections | Self::Draining => Some(Duration::from_secs(1)),
            _ => None,
        }
    }

    /// Whether the connection ends with it: what follows on it cannot be told from the refused request.
    #[must_use]
    pub fn closes(&self) -> bool {
        matches!(self, Self::Malformed(_) | Self::HeaderTooLarge(_) | Self::BodyTooSlow(_))
    }

    /// Whether a request that is in order went unanswered.
    #[must_use]
    pub fn is_ours(&self) -> bool {
        self.status().is_server_error()
    }

    fn look(&self) -> Look {
        const INVALID: &str = "invalid_request_error";
        const UPSTREAM: &str = "upstream_error";
        let (status, kind, code, grpc) = match self {
            Self::Malformed(_) => (400, INVALID, "malformed_request", 3),
            Self::HeaderTooLarge(_) => (431, INVALID, "header_too_large", 8),
            Self::Unauthenticated(_) => (401, INVALID, "invalid_api_key", 16),
            Self::RouteNotAllowed => (403, "permission_error", "route_not_allowed", 7),
            Self::ModelNotAllowed(_) => (403, "permission_error", "model_not_allowed", 7),
            Self::NoRoute => (404, INVALID, "not_found", 12),
            Self::MethodNotAllowed(_) => (405, INVALID, "method_not_allowed", 12),
            Self::UnknownModel(_) => (404, INVALID, "model_not_found", 5),
            Self::Unreadable(Unreadable::NotJson { .. }) => (400, INVALID, "invalid_json", 3),
            Self::Unreadable(Unreadable::DuplicateModel) => (400, INVALID, "duplicate_model", 3),
            Self::Unreadable(_) => (400, INVALID, "missing_model", 3),
            Self::Encoded => (415, INVALID, "unsupported_encoding", 3),
            Self::BodyTooLarge(_) => (413, INVALID, "request_too_large", 8),
            Self::BodyTooSlow(_) => (408, INVALID, "request_timeout", 4),
            Self::NoServer(_) => (503, "overloaded_error", "no_healthy_upstream", 14),
            Self::QueueFull(_) => (503, "overloaded_error", "queue_full", 14),
            Self::QueueTimeout(_) => (503, "overloaded_error", "queue_timeout", 14),
            Self::Unavailable => (502, UPSTREAM, "upstream_unavailable", 14),
            Self::Timeout => (504, UPSTREAM, "upstream_timeout", 4),
            Self::UpstreamCredentials => (502, UPSTREAM, "upstream_credentials", 14),
            Self::NotCached => (504, INVALID, "not_cached", 4),
            Self::TooManyConnections => (503, "overloaded_error", "too_many_connections", 14),
            Self::Draining => (503, "overloaded_error", "draining", 14),
            Self::Internal => (500, "internal_error", "internal_error", 13),
        };
        let status = StatusCode::from_u16(status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        Look { status, kind, code, grpc }
    }

    /// The whole answer in the client's form.
    ///
    /// # Errors
    /// When Pingora does not take a header; none of these can be refused.
    pub fn response(&self, form: Form) -> pingora::Result<(ResponseHeader, Bytes)> {
        let look = self.look();
        if form == Form::Grpc {
            let mut header = ResponseHeader::build(StatusCode::OK, Some(8))?;
            header.insert_header(CONTENT_TYPE, "application/grpc")?;
            header.insert_header("grpc-status", u64::from(look.grpc))?;
            header.insert_header("grpc-message", percent_encoded(&self.to_string()))?;
            return Ok((header, Bytes::new()));
        }
        let body = self.body(form);
        let mut header = ResponseHeader::build(look.status, Some(8))?;
        header.insert_header(CONTENT_TYPE, "application/json")?;
        header.insert_header(CONTENT_LENGTH, body.len())?;
        match self {
            Self::Unauthenticated(_) => header.insert_header(WWW_AUTHENTICATE, "Bearer")?,
            Self::MethodNotAllowed(methods) => {
                let allow: Vec<&str> = methods.iter().map(Method::as_str).collect();
                header.insert_header(ALLOW, allow.join(", "))?;
            }
            _ => {}
        }
        if let Some(after) = self.retry_after() {
            header.insert_header(RETRY_AFTER, whole_seconds(after))?;
        }
        Ok((header, body))
    }

    /// The event that ends a stream which can no longer end well, in the form of its dialect.
    #[must_use]
    pub fn event(&self, dialect: Dialect) -> Bytes {
        let data = match dialect {
            Dialect::Messages => self.body(Form::Anthropic),
            Dialect::Responses => {
                let error = json!({"type": "error", "code": self.code(), "message": self.to_string(), "param": null});
                error.to_string().into()
            }
            Dialect::Completions | Dialect::Other => self.body(Form::OpenAi),
        };
        [&b"event: error\ndata: "[..], &data, b"\n\n"].concat().into()
    }

    fn body(&self, form: Form) -> Bytes {
        let look = self.look();
        let message = self.to_string();
        let envelope = match form {
            Form::Anthropic => {
                json!({"type": "error", "error": {"type": anthropic_kind(look.status), "message": message, "code": look.code}})
            }
            Form::OpenAi | Form::Grpc => json!({
                "error": {"message": message, "type": look.kind, "param": self.param(), "code": look.code}
            }),
        };
        envelope.to_string().into()
    }
}

/// What the client reads.
impl fmt::Display for Rejection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Malformed(what) => write!(f, "The request is malformed: {what}."),
            Self::HeaderTooLarge(limit) => write!(f, "The request header is too large: at most {limit}."),
            Self::Unauthenticated(_) => f.write_str(
                "No valid API key: send one as `Authorization: Bearer …`, or as `x-api-key`. \
                 Ask your operator for a key if you have none.",
            ),
            Self::RouteNotAllowed => f.write_str("This API key may not use this route."),
            Self::ModelNotAllowed(model) => write!(f, "This API key may not use the model `{}`.", short(model)),
            Self::NoRoute => f.write_str("Nothing is served at this path."),
            Self::MethodNotAllowed(methods) => {
                let allow: Vec<&str> = methods.iter().map(Method::as_str).collect();
                write!(f, "This path is not served with this method, but with {}.", allow.join(", "))
            }
            Self::UnknownModel(model) => {
                write!(f, "The model `{}` does not exist; GET /v1/models lists those that do.", short(model))
            }
            Self::Unreadable(why) => why.fmt(f),
            Self::Encoded => f.write_str("A body with a `Content-Encoding` is not accepted: send it as it is."),
            Self::BodyTooLarge(limit) => write!(f, "The request body is too large: at most {limit} bytes."),
            Self::BodyTooSlow(silence) => {
                write!(f, "The request body did not arrive: nothing came for {} s.", silence.as_secs_f32())
            }
            Self::NoServer(_) => f.write_str("No server is available for this request now. Try again later."),
            Self::QueueFull(_) => f.write_str(
                "All servers for this request are busy, and too many requests wait for them. Try again later.",
            ),
            Self::QueueTimeout(waited) => write!(
                f,
                "All servers for this request are busy: none came free in {} s. Try again later.",
                waited.as_secs_f32()
            ),
            Self::Unavailable => f.write_str("The server for this request failed."),
            Self::Timeout => f.write_str("The server for this request took too long."),
            Self::NotCached => f.write_str("No answer to this is cached, and `only-if-cached` asks for no other."),
            Self::TooManyConnections => f.write_str("Too many clients are connected; ask again in a moment."),
            Self::UpstreamCredentials => {
                f.write_str("The server for this request does not let this proxy in; your operator can mend that.")
            }
            Self::Draining => f.write_str("This server is shutting down. Send the request again."),
            Self::Internal => f.write_str("An internal error occurred."),
        }
    }
}

impl std::error::Error for Rejection {}

impl From<Rejection> for Box<Error> {
    fn from(rejection: Rejection) -> Self {
        let mut error = Error::because(REJECTED, "", rejection);
        error.esource = ErrorSource::Internal;
        error
    }
}

/// The rejection that an error carries through Pingora, if it is one.
#[must_use]
pub fn carried(error: &Error) -> Option<&Rejection> {
    error.cause.as_ref()?.downcast_ref()
}

// === impl Form ===

impl Form {
    /// The form for a dialect and a content type.
    #[must_use]
    pub fn of(dialect: Dialect, content_type: Option<&HeaderValue>) -> Self {
        if content_type.is_some_and(|value| value.as_bytes().starts_with(b"application/grpc")) {
            return Self::Grpc;
        }
        if dialect == Dialect::Messages { Self::Anthropic } else { Self::OpenAi }
    }
}

/// Anthropic's word for a status.
fn anthropic_kind(status: StatusCode) -> &'static str {
    match status.as_u16() {
        401 => "authentication_error",
        403 => "permission_error",
        404 => "not_found_error",
        413 => "request_too_large",
        429 => "rate_limit_error",
        503 => "overloaded_error",
        504 => "timeout_error",
        400..500 => "invalid_request_error",
        _ => "api_error",
    }
}

/// As much of a name as a client needs to know it again.
fn short(name: &str) -> &str {
    name.char_indices().nth(128).map_or(name, |(end, _)| &name[..end])
}

/// At least one, rounded up: `Retry-After: 0` makes clients storm.
fn whole_seconds(after: Duration) -> u64 {
    after.as_secs() + u64::from(after.subsec_nanos() > 0 || after.is_zero())
}

/// `grpc-message` as the gRPC protocol has it: what is not printable ASCII, and `%`, is escaped.
fn percent_encoded(message: &str) -> String {
    message.bytes().fold(String::new(), |mut out, byte| {
        match byte {
            b' '..=b'~' if byte != b'%' => out.push(char::from(byte)),
            _ => out.push_str(&format!("%{byte:02X}")),
        }
        out
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_cause_has_the_contracts_status_code_and_kind() {
        let second = Duration::from_secs(1);
        for (rejection, status, kind, code, grpc) in [
            (Rejection::Malformed("x"), 400, "invalid_request_error", "malformed_request", 3),
            (Rejection::HeaderTooLarge("x"), 431, "invalid_request_error", "header_too_large", 8),
            (Rejection::Unauthenticated(Refused::Expired), 401, "invalid_request_error", "invalid_api_key", 16),
            (Rejection::RouteNotAllowed, 403, "permission_error", "route_not_allowed", 7),
            (Rejection::ModelNotAllowed("m".into()), 403, "permission_error", "model_not_allowed", 7),
            (Rejection::NoRoute, 404, "invalid_request_error", "not_found", 12),
            (Rejection::MethodNotAllowed(vec![Method::GET]), 405, "invalid_request_error", "method_not_allowed", 12),
            (Rejection::UnknownModel("m".into()), 404, "invalid_request_error", "model_not_found", 5),
            (Rejection::Unreadable(Unreadable::MissingModel), 400, "invalid_request_error", "missing_model", 3),
            (Rejection::Unreadable(Unreadable::ModelNotString), 400, "invalid_request_error", "missing_model", 3),
            (Rejection::Unreadable(Unreadable::DuplicateModel), 400, "invalid_request_error", "duplicate_model", 3),
            (Rejection::Encoded, 415, "invalid_request_error", "unsupported_encoding", 3),
            (Rejection::BodyTooLarge(9), 413, "invalid_request_error", "request_too_large", 8),
            (Rejection::BodyTooSlow(second), 408, "invalid_request_error", "request_timeout", 4),
            (Rejection::NoServer(second), 503, "overloaded_error", "no_healthy_upstream", 14),
            (Rejection::Unavailable, 502, "upstream_error", "upstream_unavailable", 14),
            (Rejection::Timeout, 504, "upstream_error", "upstream_timeout", 4),
            (Rejection::TooManyConnections, 503, "overloaded_error", "too_many_connections", 14),
            (Rejection::UpstreamCredentials, 502, "upstream_error", "upstream_credentials", 14),
        ] {
            let (header, body) = rejection.response(Form::OpenAi).unwrap();
            let body: serde_json::Value = serde_json::from_slice(&body).unwrap();
            let error = body["error"].as_object().unwrap();
            assert_eq!(header.status, status, "{rejection:?}");
            assert_eq!((&error["type"], &error["code"]), (&json!(kind), &json!(code)));
            assert!(error["message"].as_str().is_some_and(|message| message.ends_with('.')));
            assert!(error.contains_key("param") && error.len() == 4);
            let (header, body) = rejection.response(Form::Grpc).unwrap();
            assert_eq!((header.status.as_u16(), body.len()), (200, 0));
            assert_eq!(header.headers["grpc-status"], grpc.to_string());
            let carried_through = Box::<Error>::from(rejection.clone());
            assert_eq!(carried(&carried_through), Some(&rejection));
        }
    }

    #[test]
    fn some_causes_say_more_in_a_header() {
        let header = |rejection: Rejection| rejection.response(Form::OpenAi).unwrap().0.headers.clone();
        assert_eq!(header(Rejection::Unauthenticated(Refused::Missing))["www-authenticate"], "Bearer");
        assert_eq!(header(Rejection::MethodNotAllowed(vec![Method::GET, Method::HEAD]))["allow"], "GET, HEAD");
        for (after, seconds) in [(0, "1"), (1, "1"), (1_000, "1"), (1_001, "2")] {
            assert_eq!(header(Rejection::NoServer(Duration::from_millis(after)))["retry-after"], seconds);
        }
    }

    #[test]
    fn each_dialect_gets_its_own_envelope_and_event() {
        let (_, body) = Rejection::NoRoute.response(Form::Anthropic).unwrap();
        let body: serde_json::Value = serde_json::from_slice(&body).unwrap();
        assert_eq!((&body["type"], &body["error"]["type"]), (&json!("error"), &json!("not_found_error")));
        for (dialect, inside) in [
            (Dialect::Completions, "data: {\"error\":{\"message\":"),
            (Dialect::Messages, "data: {\"type\":\"error\",\"error\":{"),
            (Dialect::Responses, "data: {\"type\":\"error\",\"code\":\"upstream_timeout\""),
        ] {
            let event = String::from_utf8(Rejection::Timeout.event(dialect).to_vec()).unwrap();
            assert!(
                event.starts_with("event: error\n") && event.contains(inside) && event.ends_with("\n\n"),
                "{event}"
            );
        }
    }

    #[test]
    fn the_form_follows_the_dialect_and_the_content_type() {
        let grpc = HeaderValue::from_static("application/grpc+proto");
        assert_eq!(Form::of(Dialect::Other, Some(&grpc)), Form::Grpc);
        assert_eq!(Form::of(Dialect::Messages, None), Form::Anthropic);
        assert_eq!(Form::of(Dialect::Completions, None), Form::OpenAi);
        assert_eq!(percent_encoded("50% – a\n"), "50%25 %E2%80%93 a%0A");
    }
}
