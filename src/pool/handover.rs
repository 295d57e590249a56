//! Where a request finds a server that was leased for it while it waited: in the queue, or for a server that has fallen silent.
//!
//! Who gives saw it wait a moment ago. By now it may be on its way to yet another server: so each wait has its number.

use std::mem;
use std::sync::atomic::{AtomicBool, Ordering::Acquire, Ordering::Release};
use std::task::{Context, Poll};

use futures::task::AtomicWaker;
use parking_lot::Mutex;

use super::Lease;

/// One request's place to be given a lease.
#[derive(Debug, Default)]
pub struct Handover {
    slot: Mutex<Slot>,
    /// What `slot` says, to be read without the lock.
    given: AtomicBool,
    waker: AtomicWaker,
}

#[derive(Debug, Default)]
enum Slot {
    /// It wants none.
    #[default]
    Closed,
    /// It would take one, in this wait.
    Open(usize),
    /// It has one, and does not know it yet.
    Given(Box<Lease>),
}

// === impl Handover ===

impl Handover {
    /// It would take a lease from now on. `wait`: how many servers it has tried.
    pub(super) fn open(&self, wait: usize) {
        let mut slot = self.slot.lock();
        if matches!(*slot, Slot::Closed) {
            *slot = Slot::Open(wait);
        }
    }

    /// Whether it would take a lease, in this wait.
    pub(super) fn is_open(&self, wait: usize) -> bool {
        matches!(*self.slot.lock(), Slot::Open(open) if open == wait)
    }

    /// It wants none any more. The one that it was given, if it was.
    pub(super) fn close(&self) -> Option<Lease> {
        let slot = mem::take(&mut *self.slot.lock());
        self.given.store(false, Release);
        match slot {
            Slot::Given(lease) => Some(*lease),
            Slot::Closed | Slot::Open(_) => None,
        }
    }

    /// Gives it a lease and wakes the request. The lease comes back if it wants none, or waits for something else by now.
    pub(super) fn give(&self, lease: Lease, wait: usize) -> Result<(), Lease> {
        let mut slot = self.slot.lock();
        if !matches!(*slot, Slot::Open(open) if open == wait) {
            return Err(lease);
        }
        *slot = Slot::Given(Box::new(lease));
        self.given.store(true, Release);
        drop(slot);
        self.waker.wake();
        Ok(())
    }

    /// Ready when it has a lease.
    pub fn poll(&self, cx: &mut Context<'_>) -> Poll<()> {
        self.waker.register(cx.waker()); // before the look, so that nothing is missed
        if self.given.load(Acquire) { Poll::Ready(()) } else { Poll::Pending }
    }
}
