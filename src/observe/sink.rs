//! Where lines are written by a thread of its own, so that a slow disk or reader of the log never holds up a request.
//!
//! Lines wait in memory, up to a bound; beyond it they are dropped and counted, and the count is logged when there is room.

use std::io::Write;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use parking_lot::{Condvar, Mutex};

/// Lines that wait to be written, in bytes.
const MOST: usize = 4 << 20;
/// How long the writer gathers lines before it writes them in one go.
const GATHER: Duration = Duration::from_millis(5);

/// A place for lines. Clones share it; when all of them are gone, what waits is written and the place is closed.
#[derive(Debug, Clone)]
pub struct Sink(Arc<Handle>);

/// The sink's side of what it shares with its thread.
#[derive(Debug)]
struct Handle(Arc<Shared>);

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
    /// No more will come.
    closed: bool,
}

// === impl Sink ===

impl Sink {
    /// A sink that writes to `out`.
    ///
    /// # Errors
    /// When the system gives no thread.
    pub fn new(out: impl Write + Send + 'static) -> std::io::Result<Self> {
        let shared = Arc::new(Shared::default());
        let theirs = shared.clone();
        thread::Builder::new().name("log".into()).spawn(move || theirs.write_all_to(out))?;
        Ok(Self(Arc::new(Handle(shared))))
    }

    /// Adds a line; its end is added here.
    pub fn line(&self, line: &[u8]) {
        let shared = &self.0.0;
        let mut waiting = shared.waiting.lock();
        if waiting.lines.len() + line.len() > MOST {
            waiting.dropped += 1;
            return;
        }
        let wake = waiting.lines.is_empty();
        waiting.lines.extend_from_slice(line);
        waiting.lines.push(b'\n');
        drop(waiting);
        if wake {
            shared.changed.notify_all();
        }
    }

    /// Waits until all lines are written, `limit` at the most.
    pub fn flush(&self, limit: Duration) {
        let mut waiting = self.0.0.waiting.lock();
        let busy = |waiting: &mut Waiting| waiting.writing || !waiting.lines.is_empty();
        self.0.0.changed.wait_while_for(&mut waiting, busy, limit);
    }
}

impl Drop for Handle {
    fn drop(&mut self) {
        self.0.waiting.lock().closed = true;
        self.0.changed.notify_all();
    }
}

// === impl Shared ===

impl Shared {
    fn write_all_to(&self, mut out: impl Write) {
        let (mut batch, mut failed) = (Vec::new(), false);
        loop {
            let mut waiting = self.waiting.lock();
            waiting.writing = false;
            self.changed.notify_all();
            self.changed.wait_while(&mut waiting, |waiting| waiting.lines.is_empty() && !waiting.closed);
            if waiting.lines.is_empty() {
                return;
            }
            waiting.writing = true;
            drop(waiting);
            thread::sleep(GATHER);
            let mut waiting = self.waiting.lock();
            std::mem::swap(&mut batch, &mut waiting.lines);
            let dropped = std::mem::take(&mut waiting.dropped);
            drop(waiting);
            match out.write_all(&batch) {
                Ok(()) => failed = false,
                Err(e) if !std::mem::replace(&mut failed, true) => log::error!("log lines are lost: {e}"),
                Err(_) => {} // said already
            }
            if dropped > 0 {
                log::warn!("{dropped} log lines dropped: what takes them is slow");
            }
            batch.clear();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc::{Receiver, SyncSender, sync_channel};

    /// Takes a write only when it is let; tells what it took.
    struct Slow(Receiver<()>, SyncSender<Vec<u8>>);

    impl Write for Slow {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0.recv().map_err(std::io::Error::other)?;
            self.1.send(bytes.to_vec()).map_err(std::io::Error::other)?;
            Ok(bytes.len())
        }

        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn lines_that_nobody_takes_are_dropped_and_never_waited_for() {
        let ((let_it, lets), (took, taken)) = (sync_channel(9), sync_channel(9));
        let sink = Sink::new(Slow(lets, took)).unwrap();
        sink.line(b"first");
        let_it.send(()).unwrap();
        assert_eq!(taken.recv().unwrap(), b"first\n");
        let line = vec![b'x'; MOST / 4];
        (0..20).for_each(|_| sink.line(&line)); // returns though nothing is taken
        (0..9).for_each(|_| let_it.send(()).unwrap());
        drop(sink);
        let written: usize = taken.iter().map(|bytes| bytes.len()).sum();
        assert!((3 * MOST / 4..=2 * MOST).contains(&written), "{written}");
    }
}
