//! Host name → addresses, without holding anything up.

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use tokio::net::lookup_host;
use tokio::time::{Instant, timeout};

use crate::pool::Server;
use crate::pool::settings::{Address, Endpoint};

/// How long an answer is believed.
const AGE: Duration = Duration::from_secs(30);

/// Keeps one server's addresses fresh.
#[derive(Debug, Default)]
pub struct Resolver {
    answers: Vec<SocketAddr>,
    asked: Option<Instant>,
    /// Whether the name resolved when it was last asked for.
    lost: bool,
}

// === impl Resolver ===

impl Resolver {
    /// Where the server may be reached; where it was last reached comes first. A name that no longer resolves, or not in time,
    /// keeps its last addresses.
    ///
    /// # Errors
    /// Why there is none, for people.
    pub async fn addresses(&mut self, server: &Server, in_time: Duration) -> Result<Vec<Endpoint>, String> {
        let Address::Name { host, port } = &server.address else {
            return Ok(server.endpoint().into_iter().collect());
        };
        // While it does not answer, where it is may have changed.
        let known = server.resolved();
        let fresh = server.is_up() && self.asked.is_some_and(|asked| asked.elapsed() < AGE);
        if !fresh {
            self.asked = Some(Instant::now());
            let late = |_| Err(io::Error::new(io::ErrorKind::TimedOut, "no answer in time"));
            let answers = timeout(in_time, lookup_host((&**host, *port))).await.unwrap_or_else(late);
            match answers {
                Ok(answers) => {
                    self.answers = answers.collect();
                    if std::mem::take(&mut self.lost) {
                        log::info!("{host} resolves again");
                    }
                }
                Err(e) if self.answers.is_empty() && known.is_none() => {
                    return Err(format!("{host} does not resolve: {e}"));
                }
                Err(e) if !std::mem::replace(&mut self.lost, true) => {
                    log::warn!("{host} no longer resolves, so its last address is kept: {e}");
                }
                Err(_) => {}
            }
        }
        let all = in_order(known, &self.answers);
        if all.is_empty() {
            Err(format!("{host} has no address"))
        } else {
            Ok(all.into_iter().map(Endpoint::Socket).collect())
        }
    }
}

/// The address known first, unless the answers are there and it is not among them.
fn in_order(known: Option<SocketAddr>, answers: &[SocketAddr]) -> Vec<SocketAddr> {
    let known = known.filter(|known| answers.is_empty() || answers.contains(known));
    let others = answers.iter().copied().filter(|answer| Some(*answer) != known);
    known.into_iter().chain(others).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_name_that_does_not_resolve_in_time_keeps_its_last_address() {
        let server = Server::new(Address::Name { host: "forebay.invalid".into(), port: 80 }, false);
        let mut resolver = Resolver::default();
        assert!(resolver.addresses(&server, Duration::ZERO).await.is_err());
        let known = SocketAddr::from(([10, 0, 0, 1], 80));
        server.resolves_to(known);
        assert_eq!(resolver.addresses(&server, Duration::ZERO).await, Ok(vec![Endpoint::Socket(known)]));
    }

    #[test]
    fn the_address_that_answered_is_tried_first_and_the_others_after_it() {
        let address = |n: u8| SocketAddr::from(([10, 0, 0, n], 80));
        for (known, answers, expected) in [
            (None, &[][..], &[][..]),
            (Some(1), &[], &[1]),
            (None, &[1, 2], &[1, 2]),
            (Some(2), &[1, 2, 3], &[2, 1, 3]),
            (Some(1), &[2, 3], &[2, 3]),
        ] {
            let all = |numbers: &[u8]| numbers.iter().copied().map(address).collect::<Vec<_>>();
            assert_eq!(in_order(known.map(address), &all(answers)), all(expected), "{known:?} {answers:?}");
        }
    }
}
