//! A request's place in its pool's queue.

use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use super::handover::Handover;
use super::{Lease, Pool};

/// A place in the queue. Dropping it leaves the queue; what was given meanwhile goes to the next.
#[derive(Debug)]
pub struct Ticket {
    pool: Arc<Pool>,
    number: u64,
    handover: Arc<Handover>,
    since: Instant,
}

// === impl Ticket ===

impl Ticket {
    pub(super) fn new(pool: Arc<Pool>, number: u64, handover: Arc<Handover>, since: Instant) -> Self {
        Self { pool, number, handover, since }
    }

    /// How long it has been held.
    #[must_use]
    pub fn waited(&self, now: Instant) -> Duration {
        now.saturating_duration_since(self.since)
    }

    /// Ready when it is its turn.
    pub fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Lease> {
        match self.handover.poll(cx) {
            Poll::Ready(()) => self.handover.close().map_or(Poll::Pending, Poll::Ready),
            Poll::Pending => Poll::Pending,
        }
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        let waited = self.pool.queue.lock().leave(self.number);
        drop(waited);
        drop(self.handover.close()); // a lease that comes back serves the next
    }
}
