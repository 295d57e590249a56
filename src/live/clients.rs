//! How many client connections there are, and whether there is a seat for one more.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed};

/// The client connections of all traffic listeners together. Clones share the counts.
#[derive(Debug, Clone, Default)]
pub struct Clients(Arc<Counts>);

#[derive(Debug, Default)]
struct Counts {
    connected: AtomicUsize,
    refused: AtomicU64,
}

/// One connection's seat. Dropping it gives it back.
#[derive(Debug)]
pub struct Seat(Clients);

// === impl Clients ===

impl Clients {
    /// A seat, where at most `most` may be taken; 0: as many as come. A refusal is counted.
    #[must_use]
    pub fn enter(&self, most: usize) -> Option<Seat> {
        let seat = Seat(self.clone());
        let before = self.0.connected.fetch_add(1, Relaxed);
        if most > 0 && before >= most {
            self.0.refused.fetch_add(1, Relaxed);
            return None; // the seat is given back
        }
        Some(seat)
    }

    /// The connections that there are.
    #[must_use]
    pub fn connected(&self) -> usize {
        self.0.connected.load(Relaxed)
    }

    /// The connections that found no seat, since the start.
    #[must_use]
    pub fn refused(&self) -> u64 {
        self.0.refused.load(Relaxed)
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        self.0.0.connected.fetch_sub(1, Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seat_is_taken_until_it_is_dropped() {
        let clients = Clients::default();
        let seats: Vec<_> = (0..3).filter_map(|_| clients.enter(2)).collect();
        assert_eq!((seats.len(), clients.connected(), clients.refused()), (2, 2, 1));
        drop(seats);
        let seats: Vec<_> = (0..9).filter_map(|_| clients.enter(0)).collect();
        assert_eq!((seats.len(), clients.connected(), clients.refused()), (9, 9, 1));
    }
}
