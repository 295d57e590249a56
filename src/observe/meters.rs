//! The metrics of one plan, found by place: a label is looked up when its metric is first needed, and never again.
//!
//! There is a slot of 16 bytes for each route with each model and each pool, used or not: 100 routes and 1,000 models take
//! 1.6 MB.

use std::sync::OnceLock;

use parking_lot::RwLock;
use prometheus::{Histogram, IntCounter};

use super::{Metrics, Named};
use crate::pool::way::Outcome;

/// The metrics of one plan's routes, models, pools and servers, as far as they were needed.
#[derive(Debug)]
pub struct Meters {
    models: usize,
    pools: usize,
    /// By route, one more for none; within it by who answers: nobody, a model, a pool.
    requests: Box<[OnceLock<Box<Requests>>]>,
    /// By pool and server.
    servers: Box<[Servers]>,
}

/// The metrics of one pool's servers, by place.
type Servers = Box<[OnceLock<Box<Attempts>>]>;

/// The metrics of the requests of one route that one model or pool answers.
#[derive(Debug)]
pub(super) struct Requests {
    pub(super) by_code: ByCode,
    pub(super) duration: Histogram,
    pub(super) overhead: Histogram,
    /// Only where there is a pool.
    pub(super) first_byte: Option<Histogram>,
}

/// The metrics of one server.
#[derive(Debug)]
pub(super) struct Attempts {
    pub(super) by_outcome: [IntCounter; Outcome::ALL.len()],
    pub(super) fresh: IntCounter,
    pub(super) reused: IntCounter,
}

/// Requests by the status that the client saw: a handful of them in all.
#[derive(Debug, Default)]
pub(super) struct ByCode(RwLock<Vec<(u16, IntCounter)>>);

/// Whose requests: route, model and pool, as far as a request has come.
pub(super) type Whose<'x> = [Option<Named<'x>>; 3];

// === impl Meters ===

impl Meters {
    /// For so many routes and models, and pools of so many servers each.
    #[must_use]
    pub fn new(routes: usize, models: usize, pools: &[usize]) -> Self {
        let slots = (routes + 1) * (1 + models + pools.len());
        let servers = pools.iter().map(|servers| (0..*servers).map(|_| OnceLock::new()).collect()).collect();
        Self { models, pools: pools.len(), requests: (0..slots).map(|_| OnceLock::new()).collect(), servers }
    }

    /// The metrics of these requests; none, if the plan has no such place.
    pub(super) fn requests(&self, metrics: &Metrics, whose: Whose<'_>) -> Option<&Requests> {
        let [route, model, pool] = whose;
        let answers = match (model, pool) {
            (Some(model), _) => 1 + model.place,
            (None, Some(pool)) => 1 + self.models + pool.place,
            (None, None) => 0,
        };
        let route = route.map_or(0, |route| route.place + 1);
        let slot = self.requests.get(route * (1 + self.models + self.pools) + answers)?;
        Some(slot.get_or_init(|| Box::new(metrics.requests(whose))))
    }

    /// The metrics of a server; none, if the plan has no such place.
    pub(super) fn attempts(&self, metrics: &Metrics, pool: Named<'_>, server: Named<'_>) -> Option<&Attempts> {
        let slot = self.servers.get(pool.place)?.get(server.place)?;
        Some(slot.get_or_init(|| Box::new(metrics.attempts(pool.name, server.name))))
    }
}

// === impl ByCode ===

impl ByCode {
    /// Counts one of this status; `make` finds its counter the first time.
    pub(super) fn count(&self, status: u16, make: impl FnOnce() -> IntCounter) {
        let known = |all: &[(u16, IntCounter)]| all.iter().position(|(code, _)| *code == status);
        let all = self.0.read();
        if let Some(place) = known(&all) {
            return all[place].1.inc();
        }
        drop(all);
        let mut all = self.0.write();
        let place = known(&all).unwrap_or(all.len());
        if place == all.len() {
            all.push((status, make())); // nobody did meanwhile
        }
        all[place].1.inc();
    }
}
