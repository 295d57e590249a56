//! Where lines are written by a thread of its own, so that a slow reader of the log never holds up a request.
//!
//! Lines wait in memory, up to a bound; beyond it they are dropped and counted, and the count is written when there is room.

use std::io::Write;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use parking_lot::{Condvar, Mutex};

/// Lines that wait to be written, in bytes.
const MOST: usize = 4 << 20;
/// How long the writer gathers lines before it writes them in one go.
const GATHER: Duration = Duration::from_millis(5);

/// A place for lines. Clones share it.
#[derive(Debug, Clone)]
pub struct Sink(Arc<Shared>);

#[derive(Debug, Default)]
struct Shared {
    waiting: Mutex<Waiting>,
    /// Something came, or was written.
    changed: Condvar,
}

#[derive(Debug, Default)]
struct Waiting {
    lines: Vec<u8>,
    dropped: u64,
    writing: bool,
}

// === impl Sink ===

impl Sink {
    /// A sink that writes to `out`.
    ///
    /// # Errors
    /// When the system gives no thread.
    pub fn new(mut out: impl Write + Send + 'static) -> std::io::Result<Self> {
        let shared = Arc::new(Shared::default());
        let theirs = shared.clone();
        thread::Builder::new().name("log".into()).spawn(move || theirs.write_all_to(&mut out))?;
        Ok(Self(shared))
    }

    /// Adds a line; its end is added here.
    pub fn line(&self, line: &[u8]) {
        let mut waiting = self.0.waiting.lock();
        if waiting.lines.len() + line.len() > MOST {
            waiting.dropped += 1;
            return;
        }
        let wake = waiting.lines.is_empty();
        waiting.lines.extend_from_slice(line);
        waiting.lines.push(b'\n');
        drop(waiting);
        if wake {
            self.0.changed.notify_all();
        }
    }

    /// Waits until all lines are written, `limit` at the most.
    pub fn flush(&self, limit: Duration) {
        let mut waiting = self.0.waiting.lock();
        let busy = |waiting: &mut Waiting| waiting.writing || !waiting.lines.is_empty();
        self.0.changed.wait_while_for(&mut waiting, busy, limit);
    }
}

// === impl Shared ===

impl Shared {
    fn write_all_to(&self, out: &mut impl Write) {
        let mut batch = Vec::new();
        loop {
            let mut waiting = self.waiting.lock();
            waiting.writing = false;
            self.changed.notify_all();
            self.changed.wait_while(&mut waiting, |waiting| waiting.lines.is_empty());
            waiting.writing = true;
            drop(waiting);
            thread::sleep(GATHER);
            let mut waiting = self.waiting.lock();
            std::mem::swap(&mut batch, &mut waiting.lines);
            let dropped = std::mem::take(&mut waiting.dropped);
            drop(waiting);
            if dropped > 0 {
                let line = format!(
                    "{{\"level\":\"warn\",\"message\":\"{dropped} log lines dropped: what reads them is slow\"}}\n"
                );
                batch.extend_from_slice(line.as_bytes());
            }
            let _ = out.write_all(&batch); // where else could this be said
            batch.clear();
        }
    }
}
