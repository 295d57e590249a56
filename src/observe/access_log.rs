//! The access log: one JSON object a request. Never the prompt, never the answer, never a secret.

use std::fmt::Write as _;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::Duration;

use jiff::Timestamp;

use super::Record;
use super::sink::Sink;

/// Writes records to a sink while it is on.
#[derive(Debug)]
pub struct AccessLog {
    on: AtomicBool,
    sink: Sink,
}

// === impl AccessLog ===

impl AccessLog {
    /// To this sink.
    #[must_use]
    pub fn new(sink: Sink, on: bool) -> Self {
        Self { on: AtomicBool::new(on), sink }
    }

    /// Whether it is written from now on.
    pub fn set(&self, on: bool) {
        self.on.store(on, Relaxed);
    }

    /// A request has ended.
    pub fn write(&self, record: &Record<'_>) {
        if self.on.load(Relaxed) {
            self.sink.line(line(record).as_bytes());
        }
    }
}

/// A JSON object under way. The keys are ours and need no escape.
struct Line(String);

// === impl Line ===

impl Line {
    fn text(mut self, key: &str, value: Option<&str>) -> Self {
        self.key(key);
        match value {
            Some(value) => escape(&mut self.0, value),
            None => self.0.push_str("null"),
        }
        self
    }

    fn plain(mut self, key: &str, value: impl std::fmt::Display) -> Self {
        self.key(key);
        let _ = write!(self.0, "{value}"); // a string takes everything
        self
    }

    fn millis(self, key: &str, value: Option<Duration>) -> Self {
        match value {
            Some(value) => {
                let micros = value.as_micros();
                self.plain(key, format_args!("{}.{:03}", micros / 1000, micros % 1000))
            }
            None => self.plain(key, "null"),
        }
    }

    fn key(&mut self, key: &str) {
        self.0.push(if self.0.is_empty() { '{' } else { ',' });
        let _ = write!(self.0, "\"{key}\":"); // a string takes everything
    }
}

fn escape(out: &mut String, value: &str) {
    out.push('"');
    for c in value.chars() {
        match c {
            '"' | '\\' => out.extend(['\\', c]),
            c if c.is_control() => {
                let _ = write!(out, "\\u{:04x}", u32::from(c)); // a string takes everything
            }
            c => out.push(c),
        }
    }
    out.push('"');
}

fn line(record: &Record<'_>) -> String {
    let client = record.client.map(|address| address.to_string());
    let time = Timestamp::try_from(record.at).unwrap_or(Timestamp::UNIX_EPOCH);
    let stream = record.stream.map_or("null", |stream| if stream { "true" } else { "false" });
    let line = Line(String::with_capacity(512))
        .plain("time", format_args!("\"{time:.6}\""))
        .text("request_id", Some(record.request_id))
        .text("client", client.as_deref())
        .text("key", record.key)
        .text("route", record.route)
        .text("method", Some(record.method))
        .text("path", Some(record.path))
        .text("model", record.asked)
        .text("pool", record.pool)
        .text("server", record.attempts.last().map(|attempt| &*attempt.server))
        .plain("status", record.status)
        .text("code", (!record.code.is_empty()).then_some(record.code))
        .plain("attempts", record.attempts.len())
        .plain("stream", stream)
        .plain("bytes_in", record.bytes_in)
        .plain("bytes_out", record.bytes_out)
        .millis("ttfb_ms", record.first_byte)
        .millis("duration_ms", Some(record.duration))
        .text("end", Some(record.end));
    line.0 + "}"
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::observe::Attempt;
    use std::time::UNIX_EPOCH;

    #[test]
    fn a_record_is_one_line_of_json_whatever_the_client_sent() {
        let record = Record {
            at: UNIX_EPOCH + Duration::from_micros(1_700_000_000_123_456),
            request_id: "id-1",
            client: Some("10.0.0.1".parse().unwrap()),
            key: Some("search-team"),
            route: None,
            method: "POST",
            path: "/v1/\"x\\\n\u{7f}é",
            model: Some("llama-*"),
            asked: Some("llama-3"),
            pool: Some("llama"),
            attempts: ["gpu1", "gpu2"].map(|server| Attempt { server: server.into(), outcome: "answered" }).into(),
            status: 200,
            code: "",
            stream: Some(true),
            bytes_in: 10,
            bytes_out: 20,
            first_byte: Some(Duration::from_micros(1_234)),
            duration: Duration::from_millis(70_001),
            end: "complete",
        };
        let line = line(&record);
        assert!(!line.contains('\n'));
        let read: serde_json::Value = serde_json::from_str(&line).unwrap();
        let expected = serde_json::json!({
            "time": "2023-11-14T22:13:20.123456Z", "request_id": "id-1", "client": "10.0.0.1", "key": "search-team",
            "route": null, "method": "POST", "path": "/v1/\"x\\\n\u{7f}é", "model": "llama-3", "pool": "llama",
            "server": "gpu2", "status": 200, "code": null, "attempts": 2, "stream": true, "bytes_in": 10,
            "bytes_out": 20, "ttfb_ms": 1.234, "duration_ms": 70001.0, "end": "complete",
        });
        assert_eq!(read, expected);
    }
}
