//! A request as its pool sees it.

use std::sync::Arc;
use std::time::Instant;

use smallvec::SmallVec;

use super::balance::Asker;
use super::handover::Handover;
use super::queue::Waits;
use super::retry::Repeat;
use super::traffic::Load;
use super::{Lease, Picked, Pool};

/// Who wants a server.
#[derive(Debug, Clone, Default)]
pub struct Caller {
    /// Who asks, for the selector.
    pub asker: Asker,
    /// The name of the key whose turn it takes in the queue; empty without one.
    pub key: Arc<str>,
    /// What it is to a server.
    pub load: Load,
    /// How often it can be sent.
    pub repeat: Repeat,
    /// The servers tried, by place, the last one last.
    pub(super) tried: SmallVec<[usize; 4]>,
    /// Where it is given a server while it waits.
    pub(super) handover: Arc<Handover>,
}

/// A caller that waits, in the queue of its pool or at one of its servers.
#[derive(Debug, Clone)]
pub(super) struct Waiter {
    pub(super) pool: Arc<Pool>,
    pub(super) caller: Caller,
}

// === impl Caller ===

impl Caller {
    /// Whether another server of the pool could have it, after those that it has tried.
    pub(super) fn may_move(&self, pool: &Pool) -> bool {
        self.repeat == Repeat::Anywhere && self.tried.len() < pool.settings.retry.attempts
    }
}

// === impl Waiter ===

impl Waiter {
    /// Whether it would go to another server and has none yet.
    pub(super) fn would_move(&self) -> bool {
        self.caller.handover.is_open(self.caller.tried.len())
    }

    /// Gives it a lease, or has it back.
    pub(super) fn give(&self, lease: Lease) -> Result<(), Lease> {
        self.caller.handover.give(lease, self.caller.tried.len())
    }

    /// Takes another server for it. False: none is to be had.
    pub(super) fn moves(&self, now: Instant) -> bool {
        match self.pool.pick_another(&self.caller, false, now) {
            Picked::Lease(lease) => self.give(lease).is_ok(),
            Picked::Ticket(_) | Picked::Full | Picked::None => false,
        }
    }
}

impl Waits for Waiter {
    /// After a reload, pools of different plans have different servers.
    fn is_like(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.pool, &other.pool) && self.caller.tried == other.caller.tried
    }
}
