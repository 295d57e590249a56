//! A request's hold on a server: it counts as in flight there until the lease is dropped.

use std::fmt;
use std::sync::Arc;
use std::time::Instant;

use super::caller::Waiter;
use super::eject::Told;
use super::server::Heard;
use super::traffic::Load;
use super::{Caller, Pool, Server};

/// One attempt's place at a server. Dropping it gives the place back, to the next in the queue if there is one, and with it a
/// trial that was not decided; it does nothing else.
pub struct Lease {
    pool: Arc<Pool>,
    /// The server's place in its pool.
    pub place: usize,
    load: Load,
    /// The number of the trial of a server that was ejected, if this is it and it is not decided yet.
    trial: Option<u32>,
    /// Whether the answer has not begun.
    waits: bool,
    /// Where it waits for that, if another server could answer.
    waiting: Option<usize>,
}

// === impl Lease ===

impl Lease {
    pub(super) fn new(pool: Arc<Pool>, place: usize, caller: &Caller, now: Instant) -> Self {
        let mut caller = caller.clone();
        caller.tried.push(place);
        let load = caller.load;
        let waiter = caller.may_move(&pool).then(|| {
            caller.handover.open(caller.tried.len()); // before it waits there, so that nobody finds it shut
            Waiter { pool: pool.clone(), caller }
        });
        let (trial, load, waiting) = pool.servers[place].enter(load, waiter, now);
        Self { pool, place, load, trial, waits: true, waiting }
    }

    /// The server.
    #[must_use]
    pub fn server(&self) -> &Server {
        &self.pool.servers[self.place]
    }

    /// Whether what this attempt tells decides a trial.
    pub(super) fn is_trial(&self) -> bool {
        self.trial.is_some()
    }

    /// The trial that is decided now.
    pub(super) fn decides(&mut self) -> Option<u32> {
        self.trial.take()
    }

    /// The answer begins: no other server could have it any more.
    pub(super) fn begins(&mut self) {
        if std::mem::take(&mut self.waits) {
            self.server().begins(self.load, self.waiting);
        }
    }
}

impl fmt::Debug for Lease {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // The pool's queue may hold it.
        f.debug_struct("Lease").field("place", &self.place).field("trial", &self.trial).finish_non_exhaustive()
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        let now = Instant::now();
        if let Some(trial) = self.trial {
            let heard = Heard { told: Told::Nothing, trial: Some(trial), room: false, why: "" };
            self.server().hear(heard, &self.pool.settings.eject, now);
        }
        self.begins();
        self.server().leave(self.load);
        self.pool.serve(now); // even where nobody could wait by this plan: by the next one somebody may
    }
}
