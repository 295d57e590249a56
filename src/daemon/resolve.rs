//! Host name → address, without holding anything up.

use std::net::SocketAddr;
use std::time::Duration;

use tokio::net::lookup_host;
use tokio::time::{Instant, timeout};

use crate::pool::Server;
use crate::pool::settings::Address;

/// How long an answer is believed.
const AGE: Duration = Duration::from_secs(30);

/// Keeps one server's address fresh.
#[derive(Debug, Default)]
pub struct Resolver {
    asked: Option<Instant>,
}

// === impl Resolver ===

impl Resolver {
    /// The server's address. `doubt`: the one known did not answer, so it is asked for again.
    ///
    /// A name that no longer resolves keeps its last address.
    ///
    /// # Errors
    /// Why there is none, for people.
    pub async fn address(&mut self, server: &Server, doubt: bool, limit: Duration) -> Result<SocketAddr, String> {
        let Address::Name { host, port } = &server.address else {
            return server.resolved().ok_or_else(|| "has no address".to_owned());
        };
        let known = server.resolved();
        let fresh = !doubt && self.asked.is_some_and(|asked| asked.elapsed() < AGE);
        if let (Some(known), true) = (known, fresh) {
            return Ok(known);
        }
        self.asked = Some(Instant::now());
        match timeout(limit, lookup_host((&**host, *port))).await {
            Ok(Ok(answers)) => {
                let answers: Vec<SocketAddr> = answers.collect();
                let kept = known.filter(|known| answers.contains(known));
                let address = kept.or(answers.first().copied());
                address.inspect(|address| server.resolves_to(*address)).ok_or(format!("{host} has no address"))
            }
            Ok(Err(e)) => known.ok_or(format!("{host} does not resolve: {e}")),
            Err(_) => known.ok_or(format!("{host} does not resolve: no answer in time")),
        }
    }
}
