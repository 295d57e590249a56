//! Which of the usable servers is next: one file a selector.

pub mod round_robin;

use std::fmt;

use round_robin::RoundRobin;
use serde::Deserialize;

/// The rule that picks a server, by its name in the configuration.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Balance {
    /// Smooth and weighted.
    #[default]
    RoundRobin,
}

/// A usable server as a selector sees it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Candidate {
    /// Its place in the pool.
    pub place: usize,
    /// More than 0.
    pub weight: u32,
    /// Its requests in flight.
    pub in_flight: u32,
}

/// Chooses among candidates, by them and by its own small state.
pub trait Selector: Send + fmt::Debug {
    /// The place of the chosen one; `None` only where there is no candidate. Candidates come in the file's order.
    fn choose(&mut self, candidates: &[Candidate]) -> Option<usize>;
}

// === impl Balance ===

impl Balance {
    /// A selector for a pool of so many servers.
    #[must_use]
    pub fn selector(self, servers: usize) -> Box<dyn Selector> {
        match self {
            Self::RoundRobin => Box::new(RoundRobin::new(servers)),
        }
    }
}
