//! The process log: a JSON object a line, or a line for people.

use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

use log::{Level, LevelFilter, Log, Metadata, Record};
use serde_json::json;

use super::Format;
use super::sink::Sink;

/// Whether lines are for people. There is one log a process, as the `log` macros have it.
static TEXT: AtomicBool = AtomicBool::new(false);

/// Writes what the `log` macros say to a sink.
#[derive(Debug)]
pub struct Logger(Sink);

/// What is said from now on, and how.
pub fn set(level: LevelFilter, format: Format) {
    log::set_max_level(level);
    TEXT.store(format == Format::Text, Relaxed);
}

// === impl Logger ===

impl Logger {
    /// Makes this the process's log. Once a process; another time it does nothing.
    pub fn install(sink: Sink) {
        let _ = log::set_boxed_logger(Box::new(Self(sink)));
    }
}

impl Log for Logger {
    /// What the framework complains of is what clients and engines do, and what is worth a line was said by us: its own word
    /// is for those who look closer. Below that Pingora 0.9.1 shows whole headers, with the secrets in them.
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        let closer = log::max_level() >= LevelFilter::Debug && metadata.level() <= Level::Warn;
        metadata.target().starts_with("forebay") || closer
    }

    fn log(&self, record: &Record<'_>) {
        if !self.enabled(record.metadata()) {
            return;
        }
        let (time, level) = (jiff::Timestamp::now(), record.level());
        let line = if TEXT.load(Relaxed) {
            let message = record.args().to_string().replace(char::is_control, " ");
            format!("{time:.3} {level:<5} {message}")
        } else {
            let level = level.as_str().to_ascii_lowercase();
            json!({"time": time.to_string(), "level": level, "message": record.args().to_string()}).to_string()
        };
        self.0.line(line.as_bytes());
    }

    fn flush(&self) {
        self.0.flush(std::time::Duration::from_secs(1));
    }
}
