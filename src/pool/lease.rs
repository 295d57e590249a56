//! A request's hold on a server: it counts as in flight there until the lease is dropped.

use std::sync::Arc;
use std::time::Instant;

use super::Server;
use super::eject::{self, Told};

/// One attempt's place at a server. Dropping it gives the place back, and with it a trial that was not decided; it does nothing
/// else.
#[derive(Debug)]
pub struct Lease {
    /// The server.
    pub server: Arc<Server>,
    /// The server's place in its pool.
    pub place: usize,
    rules: eject::Rules,
    /// Whether this is the trial of a server that was ejected, and not decided yet.
    trial: bool,
}

// === impl Lease ===

impl Lease {
    pub(super) fn new(server: Arc<Server>, place: usize, rules: eject::Rules, now: Instant) -> Self {
        let trial = server.enter(now);
        Self { server, place, rules, trial }
    }

    /// Whether what this attempt tells decides a trial.
    pub(super) fn is_trial(&self) -> bool {
        self.trial
    }

    /// What the attempt tells of its server; `room`: one more may be ejected.
    pub(super) fn tell(&mut self, told: Told, room: bool, why: &str) -> Option<eject::Change> {
        let trial = std::mem::take(&mut self.trial);
        self.server.hear(told, trial, room, self.rules, why)
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        if self.trial {
            self.tell(Told::Nothing, false, "");
        }
        self.server.leave();
    }
}
