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
    /// Whether the last probe at the address failed.
    pub failed: bool,
}

// === impl Resolver ===

impl Resolver {
    /// The server's address. `doubt`: the one known did not answer, so it is asked for again.
    ///
    /// A name that no longer resolves keeps its last address. Of several addresses the first is taken that answers.
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
                let address = choose(&answers, known, doubt && self.failed);
                address.inspect(|address| server.resolves_to(*address)).ok_or(format!("{host} has no address"))
            }
            Ok(Err(e)) => known.ok_or(format!("{host} does not resolve: {e}")),
            Err(_) => known.ok_or(format!("{host} does not resolve: no answer in time")),
        }
    }
}

/// The address known if it is still among the answers, or the one after it if that is to be left.
fn choose(answers: &[SocketAddr], known: Option<SocketAddr>, leave: bool) -> Option<SocketAddr> {
    let at = answers.iter().position(|answer| Some(*answer) == known);
    let at = at.map_or(0, |at| (at + usize::from(leave)) % answers.len());
    answers.get(at).copied()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_kept_while_it_answers_and_left_for_the_next_when_it_does_not() {
        let address = |n: u8| SocketAddr::from(([10, 0, 0, n], 80));
        for (answers, known, leave, expected) in [
            (&[][..], None, false, None),
            (&[], Some(1), true, None),
            (&[1, 2], None, false, Some(1)),
            (&[1, 2], None, true, Some(1)),
            (&[1, 2], Some(2), false, Some(2)),
            (&[1, 2], Some(1), true, Some(2)),
            (&[1, 2], Some(2), true, Some(1)),
            (&[1], Some(1), true, Some(1)),
            (&[2, 3], Some(1), false, Some(2)),
        ] {
            let answers: Vec<SocketAddr> = answers.iter().copied().map(address).collect();
            assert_eq!(
                choose(&answers, known.map(address), leave),
                expected.map(address),
                "{answers:?} {known:?} {leave}"
            );
        }
    }
}
