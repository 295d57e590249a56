//! The process log: one JSON object a line.

use log::{Level, LevelFilter, Log, Metadata, Record};
use serde_json::json;

use super::sink::Sink;

/// Writes what the `log` macros say to a sink.
#[derive(Debug)]
pub struct Logger(Sink);

// === impl Logger ===

impl Logger {
    /// Makes this the process's log. Once a process; another time it does nothing.
    pub fn install(sink: Sink, level: LevelFilter) {
        let _ = log::set_boxed_logger(Box::new(Self(sink)));
        log::set_max_level(level);
    }
}

impl Log for Logger {
    /// What the framework warns of is mostly what we told it; what it fails at is not. Below that Pingora 0.9.1 shows whole
    /// headers, with the secrets in them.
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        let framework = if log::max_level() >= LevelFilter::Debug { Level::Warn } else { Level::Error };
        metadata.target().starts_with("forebay") || metadata.level() <= framework
    }

    fn log(&self, record: &Record<'_>) {
        if self.enabled(record.metadata()) {
            let line = json!({
                "time": jiff::Timestamp::now().to_string(),
                "level": record.level().as_str().to_ascii_lowercase(),
                "message": record.args().to_string(),
            });
            self.0.line(line.to_string().as_bytes());
        }
    }

    fn flush(&self) {
        self.0.flush(std::time::Duration::from_secs(1));
    }
}
