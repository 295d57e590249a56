//! Which of the usable servers is next: one file a selector, and one line in the table below.

pub mod ip_hash;
pub mod least_connections;
pub mod round_robin;

use std::fmt;
use std::net::IpAddr;

use serde::{Deserialize, Serialize};

/// Makes [`Balance`] of the selectors there are: each by its type, whose name in kebab-case is the one in the configuration.
macro_rules! selectors {
    ($($(#[$doc:meta])* $file:ident::$selector:ident,)*) => {
        /// The rule that picks a server, by its name in the configuration.
        #[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize, Serialize)]
        #[serde(rename_all = "kebab-case")]
        pub enum Balance {
            $($(#[$doc])* $selector,)*
        }

        impl Balance {
            /// A selector for a pool of so many servers.
            #[must_use]
            pub fn selector(self, servers: usize) -> Box<dyn Selector> {
                match self {
                    $(Self::$selector => Box::new($file::$selector::new(servers)),)*
                }
            }
        }
    };
}

selectors! {
    /// In turn, as often as their weights say.
    #[default]
    round_robin::RoundRobin,
    /// The one with the fewest requests in flight for its weight.
    least_connections::LeastConnections,
    /// The same one for the same client's address.
    ip_hash::IpHash,
}

/// A usable server as a selector sees it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Candidate {
    /// Its place in the pool.
    pub place: usize,
    /// Told apart from the others by it; the same in every pool and process.
    pub id: u64,
    /// More than 0.
    pub weight: u32,
    /// Its requests in flight.
    pub in_flight: u32,
}

/// Who asks, as far as a selector wants to know.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Asker {
    /// The client's address; none behind a unix socket.
    pub client: Option<IpAddr>,
}

/// Chooses among candidates, by them, by who asks, and by its own small state.
pub trait Selector: Send + fmt::Debug {
    /// The place of the chosen one; `None` only where there is no candidate. Candidates come in the file's order.
    fn choose(&mut self, candidates: &[Candidate], asker: Asker) -> Option<usize>;
}
