//! Where lines are written by a thread of its own, so that a slow disk or reader of the log never holds up a request.
//!
//! Lines wait in memory, up to a bound; beyond it they are dropped and counted, and the count is logged when there is room.

use std::io::Write;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use memchr::{memchr, memrchr};
use parking_lot::{Condvar, Mutex};

/// Lines that wait to be written, in bytes.
const MOST: usize = 4 << 20;
/// How long the writer gathers lines before it writes them in one go.
const GATHER: Duration = Duration::from_millis(5);
/// How much a pipe takes in one go or not at all, in bytes: Linux's `PIPE_BUF`.
const PIECE: usize = 4096;

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

/// Writes whole lines in pieces that a pipe takes in one go. A line that is longer is a piece of its own.
#[derive(Debug)]
struct Pieces<W>(W);

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

    /// A sink that writes to `out` beside other processes, as one does after an upgrade: a pipe would mix their lines.
    ///
    /// # Errors
    /// When the system gives no thread.
    pub fn shared(out: impl Write + Send + 'static) -> std::io::Result<Self> {
        Self::new(Pieces(out))
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

// === impl Pieces ===

impl<W: Write> Write for Pieces<W> {
    fn write(&mut self, lines: &[u8]) -> std::io::Result<usize> {
        let end = match lines.split_at_checked(PIECE) {
            Some((fits, _)) => memrchr(b'\n', fits).or_else(|| memchr(b'\n', lines)).map_or(lines.len(), |at| at + 1),
            None => lines.len(),
        };
        self.0.write_all(&lines[..end])?;
        Ok(end)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        self.0.flush()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{BufRead, BufReader, pipe};
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

    #[test]
    fn two_who_write_to_one_pipe_do_not_tear_each_others_lines() {
        let (reader, writer) = pipe().unwrap();
        let lines: Vec<String> = ["a", "b"].iter().map(|letter| letter.repeat(307)).collect();
        let sinks = [Sink::shared(writer.try_clone().unwrap()).unwrap(), Sink::shared(writer).unwrap()];
        for (sink, line) in sinks.iter().zip(&lines) {
            (0..5000).for_each(|_| sink.line(line.as_bytes())); // many times what the pipe holds
        }
        drop(sinks);
        let read: Vec<String> = BufReader::new(reader).lines().map(Result::unwrap).collect();
        assert_eq!(read.len(), 10_000);
        let torn = read.iter().find(|line| !lines.contains(line));
        assert_eq!(torn, None);
    }

    #[test]
    fn pieces_end_with_a_line_and_are_no_larger_than_what_a_pipe_takes_in_one_go() {
        let line = |length: usize| "x".repeat(length - 1) + "\n";
        let cases: &[(&[usize], &[usize])] = &[
            (&[1], &[1]),
            (&[4096], &[4096]),
            (&[1000, 3096, 1], &[4096, 1]),
            (&[1000, 3097, 1], &[1000, 3098]),
            (&[5000, 1, 4096], &[5000, 1, 4096]),
            (&[1, 9000, 1, 1], &[1, 9000, 2]),
        ];
        for (lines, expected) in cases {
            let ((let_it, lets), (took, taken)) = (sync_channel(9), sync_channel(9));
            (0..9).for_each(|_| let_it.send(()).unwrap());
            let text: String = lines.iter().map(|&length| line(length)).collect();
            Pieces(Slow(lets, took)).write_all(text.as_bytes()).unwrap();
            let pieces: Vec<usize> = taken.iter().map(|piece| piece.len()).collect();
            assert_eq!(pieces, *expected, "{lines:?}");
        }
    }
}
