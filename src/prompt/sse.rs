//! Whether an event stream has had its last event, read as the bytes come, whatever their borders.
//!
//! A stream that ends without it was cut, even where HTTP ended it cleanly. Only the beginnings of lines matter, so no more
//! than that is kept of a line that comes in pieces.

use memchr::memchr2;

/// The form in which an endpoint's streams speak, and so end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Dialect {
    /// `/v1/chat/completions` and `/v1/completions`: `data: [DONE]`.
    Completions,
    /// `/v1/messages`: `message_stop`.
    Messages,
    /// `/v1/responses`: `response.completed`, `.incomplete` or `.failed`.
    Responses,
    /// Anything else: a clean end is complete.
    Other,
}

/// Watches one stream for its last event.
#[derive(Debug)]
pub struct LastEvent {
    dialect: Dialect,
    /// The beginning of the line under way.
    line: [u8; Self::KEPT],
    length: usize,
    seen: bool,
    failed: bool,
    /// How many line ends in a row came last; two or more: no event is under way.
    breaks: u8,
    after_cr: bool,
}

// === impl Dialect ===

impl Dialect {
    /// The dialect of a path as the engine is asked for it.
    #[must_use]
    pub fn of(path: &str) -> Self {
        match path {
            "/v1/chat/completions" | "/v1/completions" => Self::Completions,
            _ if path == "/v1/messages" || path.starts_with("/v1/messages/") => Self::Messages,
            "/v1/responses" => Self::Responses,
            _ => Self::Other,
        }
    }

    /// Whether a line of this beginning is about an engine's own failure.
    fn fails_with(self, line: &[u8]) -> bool {
        let event = field(line, b"event:");
        let data = |beginning: &[u8]| field(line, b"data:").is_some_and(|data| data.starts_with(beginning));
        event == Some(b"error")
            || match self {
                Self::Completions => data(b"{\"error\":"),
                Self::Messages => data(b"{\"type\":\"error\""),
                Self::Responses => event == Some(b"response.failed") || data(b"{\"type\":\"response.failed\""),
                Self::Other => false,
            }
    }

    /// Whether a line of this beginning belongs to a last event. An engine's own error ends any stream.
    fn ends_with(self, line: &[u8]) -> bool {
        let field = |name: &[u8]| field(line, name);
        if let Some(event) = field(b"event:") {
            return event == b"error"
                || match self {
                    Self::Messages => event == b"message_stop",
                    Self::Responses => {
                        matches!(event, b"response.completed" | b"response.incomplete" | b"response.failed")
                    }
                    Self::Completions | Self::Other => false,
                };
        }
        let Some(data) = field(b"data:") else { return false };
        match self {
            Self::Completions => data == b"[DONE]" || data.starts_with(b"{\"error\":"),
            Self::Messages => data.starts_with(b"{\"type\":\"message_stop\""),
            Self::Responses => [&b"completed\""[..], b"incomplete\"", b"failed\""]
                .iter()
                .any(|end| data.strip_prefix(b"{\"type\":\"response.").is_some_and(|rest| rest.starts_with(end))),
            Self::Other => false,
        }
    }
}

/// The value of a line, if it is of the field of this name, which includes the colon.
fn field<'l>(line: &'l [u8], name: &[u8]) -> Option<&'l [u8]> {
    let value = line.strip_prefix(name)?;
    Some(value.strip_prefix(b" ").unwrap_or(value))
}

// === impl LastEvent ===

impl LastEvent {
    const KEPT: usize = 48;

    /// For a stream of this dialect.
    #[must_use]
    pub fn of(dialect: Dialect) -> Self {
        Self {
            dialect,
            line: [0; Self::KEPT],
            length: 0,
            seen: dialect == Dialect::Other,
            failed: false,
            breaks: 2,
            after_cr: false,
        }
    }

    /// The next bytes of the stream.
    pub fn feed(&mut self, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            let end = memchr2(b'\n', b'\r', bytes);
            let (piece, rest) = end.map_or((bytes, &[][..]), |at| (&bytes[..at], &bytes[at + 1..]));
            if !piece.is_empty() {
                self.breaks = 0;
            }
            let kept = piece.len().min(Self::KEPT - self.length);
            self.line[self.length..self.length + kept].copy_from_slice(&piece[..kept]);
            self.length += kept;
            if let Some(at) = end {
                // CR LF is one line end, not two.
                let second_half = self.after_cr && piece.is_empty() && bytes[at] == b'\n';
                self.breaks = self.breaks.saturating_add(u8::from(!second_half));
                self.after_cr = bytes[at] == b'\r';
                self.seen |= self.dialect.ends_with(&self.line[..self.length]);
                self.failed |= self.dialect.fails_with(&self.line[..self.length]);
                self.length = 0;
            }
            bytes = rest;
        }
    }

    /// Whether the stream may end now. Clients read a last line that has no end, so it counts.
    #[must_use]
    pub fn was_seen(&self) -> bool {
        self.seen || self.dialect.ends_with(&self.line[..self.length])
    }

    /// Whether the engine itself has said in it that it failed.
    #[must_use]
    pub fn has_failed(&self) -> bool {
        self.failed || self.dialect.fails_with(&self.line[..self.length])
    }

    /// Whether no event is under way, so that another may begin.
    #[must_use]
    pub fn is_between_events(&self) -> bool {
        self.breaks >= 2
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stream_in_which_the_engine_says_that_it_failed_has_failed() {
        for (dialect, text, failed) in [
            (Dialect::Completions, "data: {\"error\":{}}\n\ndata: [DONE]\n\n", true),
            (Dialect::Completions, "data: {\"a\":\"error\"}\n\ndata: [DONE]\n\n", false),
            (Dialect::Completions, "event: error\ndata: {}\n\n", true),
            (Dialect::Messages, "data: {\"type\":\"error\"}", true),
            (Dialect::Messages, "event: message_stop\ndata: {\"type\":\"message_stop\"}\n\n", false),
            (Dialect::Responses, "event: response.failed\ndata: {}\n\n", true),
            (Dialect::Responses, "event: response.incomplete\ndata: {}\n\n", false),
            (Dialect::Other, "event: error\n\n", true),
            (Dialect::Other, "data: error\n\n", false),
        ] {
            for size in 1..=text.len() {
                let mut last = LastEvent::of(dialect);
                text.as_bytes().chunks(size).for_each(|piece| last.feed(piece));
                assert_eq!(last.has_failed(), failed, "{dialect:?} {text:?} by {size}");
            }
        }
    }

    const CASES: [(Dialect, &str, bool); 18] = [
        (Dialect::Completions, "data: {\"a\":1}\n\ndata: [DONE]\n\n", true),
        (Dialect::Completions, "data:[DONE]\r\n\r\n", true),
        (Dialect::Completions, "data: {\"a\":\"data: [DONE]\"}\n\n", false),
        (Dialect::Completions, "data: [DONE]", true),
        (Dialect::Completions, "data: [DON", false),
        (Dialect::Completions, "data: [DONE]x\n\n", false),
        (Dialect::Completions, "data: {\"error\":{\"message\":\"oom\"}}\n\n", true),
        (Dialect::Completions, "event: error\ndata: {}\n\n", true),
        (Dialect::Completions, "event: message_stop\ndata: {}\n\n", false),
        (Dialect::Messages, "event: message_stop\ndata: {\"type\":\"message_stop\"}\n\n", true),
        (Dialect::Messages, "data: {\"type\":\"message_stop\"}\n\n", true),
        (Dialect::Messages, "event: message_delta\ndata: {}\n\n", false),
        (Dialect::Responses, "event: response.completed\ndata: {}\n\n", true),
        (Dialect::Responses, "event: response.incomplete\r\ndata: {}\r\n\r\n", true),
        (Dialect::Responses, "data: {\"type\":\"response.failed\",\"x\":1}\n\n", true),
        (Dialect::Responses, "event: response.created\ndata: {}\n\n", false),
        (Dialect::Responses, "data: [DONE]\n\n", false),
        (Dialect::Other, "anything", true),
    ];

    #[test]
    fn the_last_event_is_seen_over_any_chunk_border() {
        for (dialect, stream, seen) in CASES {
            for size in 1..=stream.len() {
                let mut last = LastEvent::of(dialect);
                stream.as_bytes().chunks(size).for_each(|chunk| last.feed(chunk));
                assert_eq!(last.was_seen(), seen, "{dialect:?} {stream:?} in pieces of {size}");
                assert_eq!(
                    last.is_between_events(),
                    stream.ends_with("\n\n") || stream.ends_with("\r\n\r\n"),
                    "{stream:?}"
                );
            }
        }
    }

    #[test]
    fn a_line_of_any_length_is_read() {
        let mut last = LastEvent::of(Dialect::Completions);
        last.feed(b"data: ");
        (0..100_000).for_each(|_| last.feed(b"[DONE]"));
        last.feed(b"\n\n");
        assert!(!last.was_seen());
        last.feed(b"data: [DO");
        assert!(!last.is_between_events());
        last.feed(b"NE]\n\n");
        assert!(last.was_seen() && last.is_between_events());
    }

    #[test]
    fn the_dialect_is_the_paths() {
        for (path, dialect) in [
            ("/v1/chat/completions", Dialect::Completions),
            ("/v1/completions", Dialect::Completions),
            ("/v1/messages", Dialect::Messages),
            ("/v1/responses", Dialect::Responses),
            ("/v1/embeddings", Dialect::Other),
        ] {
            assert_eq!(Dialect::of(path), dialect, "{path}");
        }
    }
}
