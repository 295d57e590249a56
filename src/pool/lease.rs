//! A request's hold on a server: it counts as in flight there until the lease is dropped.

use std::sync::Arc;

use super::Server;

/// One attempt's place at a server. Dropping it gives the place back, and does nothing else.
#[derive(Debug)]
pub struct Lease {
    /// The server.
    pub server: Arc<Server>,
    /// The server's place in its pool.
    pub place: usize,
}

// === impl Lease ===

impl Lease {
    pub(super) fn new(server: Arc<Server>, place: usize) -> Self {
        server.enter();
        Self { server, place }
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        self.server.leave();
    }
}
