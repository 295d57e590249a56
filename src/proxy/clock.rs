//! The time that an engine has for one request: until its answer begins, between two pieces of it, and in all.
//!
//! To bring a timer forward wakes the runtime, for each request anew. So it is set for the shortest limit from the start, and only
//! ever pushed on.

use std::pin::Pin;
use std::task::{Context, Poll};

use pingora::ErrorType;
use tokio::time::{Instant, Sleep};

use super::ending::{FIRST_BYTE, IDLE, TOTAL};
use crate::pool::settings::Limits;

/// One request's clock. Without a limit no timer is made.
pub struct Clock {
    limits: Limits,
    /// When the engine must have said its next.
    next: Option<Instant>,
    /// When all must be over.
    end: Option<Instant>,
    /// Whether the answer has begun.
    begun: bool,
    sleep: Option<Pin<Box<Sleep>>>,
}

// === impl Clock ===

impl Clock {
    /// For a request whose header was complete at `started`.
    #[must_use]
    pub fn new(limits: Limits, started: std::time::Instant) -> Self {
        let end = limits.total.map(|total| Instant::from_std(started) + total);
        Self { limits, next: None, end, begun: false, sleep: None }
    }

    /// The engine has the request, or a further piece of it: its answer is waited for.
    pub fn sent(&mut self) {
        if !self.begun {
            self.next = self.limits.first_byte.map(|limit| Instant::now() + limit);
        }
    }

    /// A piece of the answer has been passed on.
    pub fn heard(&mut self) {
        self.begun = true;
        self.next = self.limits.idle.map(|limit| Instant::now() + limit);
    }

    /// Ready when the time is over, with which limit it was. One timer serves the whole request: it is pushed on when it fires
    /// too early.
    pub fn poll(&mut self, cx: &mut Context<'_>) -> Poll<ErrorType> {
        let answer = if self.begun { IDLE } else { FIRST_BYTE };
        let next = self.next.map(|at| (at, answer));
        let end = self.end.map(|at| (at, TOTAL));
        match next.into_iter().chain(end).min_by_key(|(at, _)| *at) {
            Some((at, limit)) => self.until(at, cx).map(|()| limit),
            None => Poll::Pending,
        }
    }

    /// The same for the end alone: a client that reads slowly is not the engine's fault.
    pub fn poll_end(&mut self, cx: &mut Context<'_>) -> Poll<ErrorType> {
        match self.end {
            Some(at) => self.until(at, cx).map(|()| TOTAL),
            None => Poll::Pending,
        }
    }

    fn until(&mut self, at: Instant, cx: &mut Context<'_>) -> Poll<()> {
        let Self { limits, sleep, .. } = self;
        let sleep = sleep.get_or_insert_with(|| {
            let shortest = limits.first_byte.into_iter().chain(limits.idle).min();
            let soonest = shortest.map_or(at, |limit| at.min(Instant::now() + limit));
            Box::pin(tokio::time::sleep_until(soonest))
        });
        loop {
            if sleep.deadline() > at {
                sleep.as_mut().reset(at);
            }
            if sleep.as_mut().poll(cx).is_pending() {
                return Poll::Pending;
            }
            if sleep.deadline() >= at {
                return Poll::Ready(());
            }
            sleep.as_mut().reset(at);
        }
    }
}
