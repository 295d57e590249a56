//! The access log: one line a request, JSON or for people. Never the prompt, never the answer, never a secret.

use std::fmt::Write as _;
use std::fs::OpenOptions;
use std::io;
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use arc_swap::ArcSwapOption;
use jiff::Timestamp;

use super::sink::Sink;
use super::{Cached, Format, Record};

/// Writes records to where the configuration says.
#[derive(Debug)]
pub struct AccessLog {
    /// The process log's sink.
    stderr: Sink,
    to: ArcSwapOption<Output>,
}

#[derive(Debug)]
struct Output {
    sink: Sink,
    format: Format,
}

/// Where the access log goes.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum Destination {
    /// Among the process log's lines.
    #[default]
    Stderr,
    /// To the end of this file, which is made if it is not there.
    File(PathBuf),
    /// Nowhere.
    Off,
}

// === impl AccessLog ===

impl AccessLog {
    /// An access log that goes nowhere yet. `stderr`: where it goes with [`Destination::Stderr`].
    #[must_use]
    pub fn new(stderr: Sink) -> Self {
        Self { stderr, to: ArcSwapOption::empty() }
    }

    /// Where it goes from now on, and how. A file is opened anew each time, so that one that was moved away is let go.
    ///
    /// # Errors
    /// When the file cannot be opened; then all is as before.
    pub fn set(&self, target: &Destination, format: Format) -> io::Result<()> {
        let sink = match target {
            Destination::Stderr => Some(self.stderr.clone()),
            Destination::File(path) => Some(open(path)?),
            Destination::Off => None,
        };
        self.to.store(sink.map(|sink| Output { sink, format }.into()));
        Ok(())
    }

    /// Waits until all lines are written, `limit` at the most.
    pub fn flush(&self, limit: Duration) {
        if let Some(output) = &*self.to.load() {
            output.sink.flush(limit);
        }
    }

    /// A request has ended.
    pub fn write(&self, record: &Record<'_>) {
        if let Some(output) = &*self.to.load() {
            let line = match output.format {
                Format::Json => json(record),
                Format::Text => text(record),
            };
            output.sink.line(line.as_bytes());
        }
    }
}

/// No pipe: to open one waits for its reader, perhaps for ever. The configuration has made sure of that, but what stands there may have
/// changed since.
fn open(path: &Path) -> io::Result<Sink> {
    if std::fs::metadata(path).is_ok_and(|file| file.file_type().is_fifo()) {
        return Err(io::Error::other("it is a pipe"));
    }
    Sink::new(OpenOptions::new().append(true).create(true).mode(0o640).open(path)?)
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

/// A JSON object with every field, whatever the request was.
fn json(record: &Record<'_>) -> String {
    let client = record.client.map(|address| address.to_string());
    let time = Timestamp::try_from(record.at).unwrap_or(Timestamp::UNIX_EPOCH);
    let stream = record.stream.map_or("null", |stream| if stream { "true" } else { "false" });
    let line = Line(String::with_capacity(640))
        .plain("time", format_args!("\"{time:.6}\""))
        .text("request_id", Some(record.request_id))
        .text("client", client.as_deref())
        .text("key", record.key)
        .text("route", record.route.map(|route| route.name))
        .text("method", Some(record.method))
        .text("path", Some(record.path))
        .text("model", record.asked)
        .text("pool", record.pool.map(|pool| pool.name))
        .text("server", record.attempts.last().map(|(server, _)| server.name))
        .plain("status", record.status)
        .text("code", (!record.code.is_empty()).then_some(record.code))
        .plain("attempts", record.attempts.len())
        .text("cache", record.cached.map(Cached::as_str))
        .plain("stream", stream)
        .plain("bytes_in", record.bytes_in)
        .plain("bytes_out", record.bytes_out)
        .millis("queue_ms", record.queued)
        .millis("ttfb_ms", record.first_byte)
        .millis("duration_ms", Some(record.duration))
        .millis("overhead_ms", Some(record.overhead))
        .text("end", Some(record.end));
    line.0 + "}"
}

/// When, what, how long; then by name what is worth saying of this request.
fn text(record: &Record<'_>) -> String {
    let time = Timestamp::try_from(record.at).unwrap_or(Timestamp::UNIX_EPOCH);
    let millis = |duration: Duration| duration.as_secs_f64() * 1e3;
    let mut line = format!("{time:.3} {} {} ", record.status, record.method);
    word(&mut line, record.path);
    let _ = write!(line, " {:.1}ms", millis(record.duration)); // a string takes everything
    let server = record.attempts.last().map(|(server, _)| server.name.to_owned());
    let fields = [
        ("model", record.asked.map(str::to_owned)),
        ("pool", record.pool.map(|pool| pool.name.to_owned())),
        ("server", server),
        ("attempts", (record.attempts.len() > 1).then(|| record.attempts.len().to_string())),
        ("cache", record.cached.map(|cached| cached.as_str().to_owned())),
        ("queue_ms", record.queued.map(|queued| format!("{:.1}", millis(queued)))),
        ("ttfb_ms", record.first_byte.map(|first_byte| format!("{:.1}", millis(first_byte)))),
        ("bytes_out", Some(record.bytes_out.to_string())),
        ("code", (!record.code.is_empty()).then(|| record.code.to_owned())),
        ("end", (record.end != "complete").then(|| record.end.to_owned())),
        ("key", record.key.map(str::to_owned)),
        ("client", record.client.map(|address| address.to_string())),
        ("request_id", Some(record.request_id.to_owned())),
    ];
    for (name, value) in fields.into_iter().filter_map(|(name, value)| Some((name, value?))) {
        let _ = write!(line, " {name}="); // a string takes everything
        word(&mut line, &value);
    }
    line
}

/// What a client may have chosen stands in quotes where it would look like something else.
fn word(line: &mut String, value: &str) {
    let plain = |c: char| !c.is_whitespace() && !c.is_control() && c != '"' && c != '=';
    if !value.is_empty() && value.chars().all(plain) { line.push_str(value) } else { escape(line, value) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::observe::Named;
    use crate::pool::way::Outcome;
    use std::time::UNIX_EPOCH;

    fn record() -> Record<'static> {
        let named = |name| Named { place: 0, name };
        Record {
            at: UNIX_EPOCH + Duration::from_micros(1_700_000_000_123_456),
            request_id: "id-1",
            client: Some("10.0.0.1".parse().unwrap()),
            key: Some("search-team"),
            refused: None,
            route: None,
            method: "POST",
            path: "/v1/\"x\\\n\u{7f}é",
            model: Some(named("llama-*")),
            asked: Some("llama-3"),
            pool: Some(named("llama")),
            attempts: ["gpu1", "gpu2"].map(|server| (named(server), Outcome::Answered)).into(),
            status: 200,
            code: "",
            stream: Some(true),
            bytes_in: 10,
            bytes_out: 20,
            cached: Some(Cached::Miss),
            queued: Some(Duration::from_micros(12_345)),
            first_byte: Some(Duration::from_micros(1_234)),
            duration: Duration::from_millis(70_001),
            overhead: Duration::from_micros(56),
            left: None,
            end: "complete",
        }
    }

    #[test]
    fn a_record_is_one_line_of_json_whatever_the_client_sent() {
        let line = json(&record());
        assert!(!line.contains('\n'));
        let read: serde_json::Value = serde_json::from_str(&line).unwrap();
        let expected = serde_json::json!({
            "time": "2023-11-14T22:13:20.123456Z", "request_id": "id-1", "client": "10.0.0.1", "key": "search-team",
            "route": null, "method": "POST", "path": "/v1/\"x\\\n\u{7f}é", "model": "llama-3", "pool": "llama",
            "server": "gpu2", "status": 200, "code": null, "attempts": 2, "cache": "miss", "stream": true, "bytes_in": 10,
            "bytes_out": 20, "queue_ms": 12.345, "ttfb_ms": 1.234, "duration_ms": 70001.0, "overhead_ms": 0.056, "end": "complete",
        });
        assert_eq!(read, expected);
    }

    #[test]
    fn a_record_for_people_is_one_line_with_what_is_worth_saying() {
        let refused = Record {
            path: "/v1/models",
            asked: Some("a b=c"),
            pool: None,
            attempts: vec![],
            status: 401,
            code: "invalid_api_key",
            cached: None,
            queued: None,
            first_byte: None,
            key: None,
            end: "client_gone",
            ..record()
        };
        for (record, expected) in [
            (
                record(),
                "2023-11-14T22:13:20.123Z 200 POST \"/v1/\\\"x\\\\\\u000a\\u007fé\" 70001.0ms model=llama-3 \
                 pool=llama server=gpu2 attempts=2 cache=miss queue_ms=12.3 ttfb_ms=1.2 bytes_out=20 key=search-team client=10.0.0.1 request_id=id-1",
            ),
            (
                refused,
                "2023-11-14T22:13:20.123Z 401 POST /v1/models 70001.0ms model=\"a b=c\" bytes_out=20 \
                 code=invalid_api_key end=client_gone client=10.0.0.1 request_id=id-1",
            ),
        ] {
            assert_eq!(text(&record), expected);
        }
    }
}
