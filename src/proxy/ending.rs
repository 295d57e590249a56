//! How an exchange can end, read from the one error that Pingora hands us.
//!
//! Pingora 0.9.1 marks all that a client's session reports as coming from downstream, our own time-outs too. Only the type
//! of an error arrives unchanged, so our types are looked at first.

use std::io;

use pingora::{Error, ErrorSource, ErrorType};

use super::rejection::{self, Rejection};
use crate::config::plan::Server;
use crate::pool::retry::Failure;
use crate::pool::settings::Protocol;

/// The engine's response header did not come in time.
pub const FIRST_BYTE: ErrorType = ErrorType::new("FirstByteTimeout");
/// The engine fell silent within its response.
pub const IDLE: ErrorType = ErrorType::new("IdleTimeout");
/// The request took too long in all.
pub const TOTAL: ErrorType = ErrorType::new("TotalTimeout");
/// The engine turned the request away, and another one is leased.
pub const REFUSED: ErrorType = ErrorType::new("EngineRefused");
/// The engine has fallen silent, and another one is leased.
pub const MOVED: ErrorType = ErrorType::new("EngineSilent");
/// The client's body stopped coming.
pub const BODY_SILENT: ErrorType = ErrorType::new("BodySilent");
/// The client's body is larger than it may be.
pub const BODY_TOO_LARGE: ErrorType = ErrorType::new("BodyTooLarge");
/// The limits of our clock.
const LIMITS: [ErrorType; 3] = [FIRST_BYTE, IDLE, TOTAL];
/// Pingora's types for a chunked body that is none; their names are private there.
const BAD_CHUNKS: [ErrorType; 2] = [ErrorType::new("InvalidChunk"), ErrorType::new("InvalidTrailerEnd")];
/// A clean end over HTTP of an event stream that lacks its own last event.
pub const UNFINISHED: ErrorType = ErrorType::new("StreamUnfinished");

/// How an exchange ended, in the access log's words.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// Answered whole, by an engine or by us.
    Complete,
    /// The client left.
    ClientGone,
    /// The engine's answer broke off.
    UpstreamTruncated,
    /// No answer of an engine came.
    Error,
}

// === impl End ===

impl End {
    /// The contract's word for it.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Complete => "complete",
            Self::ClientGone => "client_gone",
            Self::UpstreamTruncated => "upstream_truncated",
            Self::Error => "error",
        }
    }
}

/// What an error means: how the exchange ended, and what the client is told if it can be told anything.
#[must_use]
pub fn of(error: &Error, begun: bool, limits: &Server) -> (End, Option<Rejection>) {
    if let Some(rejection) = rejection::carried(error) {
        let end = if rejection.is_ours() { End::Error } else { End::Complete };
        return (end, Some(rejection.clone()));
    }
    let failed = if begun { End::UpstreamTruncated } else { End::Error };
    match (error.etype(), error.esource()) {
        (kind, _) if LIMITS.contains(kind) || *kind == MOVED => (failed, Some(Rejection::Timeout)),
        (kind, _) if *kind == BODY_SILENT => (End::Complete, Some(Rejection::BodyTooSlow(limits.body_timeout))),
        (kind, _) if *kind == BODY_TOO_LARGE => (End::Complete, Some(Rejection::BodyTooLarge(limits.max_body))),
        (kind, _) if *kind == UNFINISHED => (End::UpstreamTruncated, Some(Rejection::Unavailable)),
        (ErrorType::InvalidHTTPHeader, ErrorSource::Downstream) => {
            (End::Complete, Some(Rejection::Malformed("its `Connection` header names what may not be dropped")))
        }
        (kind, ErrorSource::Downstream) if BAD_CHUNKS.contains(kind) => {
            (End::Complete, Some(Rejection::Malformed("its chunked body is not one")))
        }
        (_, ErrorSource::Downstream) => (End::ClientGone, None),
        (kind, ErrorSource::Upstream) if is_timeout(kind) => (failed, Some(Rejection::Timeout)),
        (_, ErrorSource::Upstream) => (failed, Some(Rejection::Unavailable)),
        (_, ErrorSource::Internal | ErrorSource::Unset) => (failed, Some(Rejection::Internal)),
    }
}

/// How an attempt failed, for what comes next. `reused`: over a connection that was kept.
///
/// Over HTTP/2 only Pingora knows whether the engine took it: a reset of one stream says nothing of the connection, unless it is
/// a refusal, and that may come on a new connection too.
#[must_use]
pub fn failure(error: &mut Error, reused: bool, protocol: Protocol) -> Failure {
    error.retry.decide_reuse(reused);
    let lost = matches!(
        error.etype(),
        ErrorType::ConnectionClosed | ErrorType::ReadError | ErrorType::WriteError | ErrorType::H2Error
    );
    let untaken = match protocol {
        Protocol::Http1 => reused && lost,
        Protocol::Http2 => error.retry(),
    };
    match error.esource() {
        ErrorSource::Upstream if untaken => Failure::Untaken,
        ErrorSource::Upstream if lost => Failure::Lost,
        _ => Failure::Other,
    }
}

/// Whether an engine took too long, by our clock or by Pingora's.
#[must_use]
pub fn is_timeout(kind: &ErrorType) -> bool {
    matches!(kind, ErrorType::ReadTimedout | ErrorType::WriteTimedout) || LIMITS.contains(kind)
}

/// A failure of an engine in words, for the log.
#[must_use]
pub fn in_words(error: &Error) -> &'static str {
    if rejection::carried(error) == Some(&Rejection::UpstreamCredentials) {
        return "it refused the pool's `api_key`";
    }
    match error.root_cause().downcast_ref::<io::Error>().map(io::Error::kind) {
        Some(io::ErrorKind::NotFound) => return "there is no such socket",
        Some(io::ErrorKind::PermissionDenied) => return "permission denied",
        _ => {}
    }
    match error.root_etype() {
        ErrorType::ConnectRefused => "connection refused",
        ErrorType::ConnectTimedout => "the connection took too long",
        ErrorType::ConnectNoRoute => "no route to it",
        ErrorType::ConnectionClosed => "it closed the connection",
        ErrorType::ReadError | ErrorType::WriteError => "the connection was reset",
        ErrorType::InvalidHTTPHeader => "its answer is not HTTP",
        ErrorType::SocketError => "no socket is left to reach it",
        ErrorType::ConnectError => "it cannot be connected to",
        ErrorType::InvalidH2 | ErrorType::H2Error | ErrorType::HandshakeError => "it does not keep to HTTP/2",
        kind if BAD_CHUNKS.contains(kind) => "its chunked answer is not one",
        ErrorType::ReadTimedout | ErrorType::WriteTimedout => "no answer in time",
        kind if *kind == FIRST_BYTE => "no answer in time",
        kind if *kind == IDLE => "it fell silent in its answer",
        kind if *kind == TOTAL => "its answer took too long in all",
        kind if *kind == REFUSED => "it turned the request away",
        kind if *kind == MOVED => "it fell silent, and another server is asked",
        kind if *kind == UNFINISHED => "its stream ended without its last event",
        other => other.as_str(),
    }
}
