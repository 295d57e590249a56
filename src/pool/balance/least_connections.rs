//! Least connections: the server with the fewest requests in flight for its weight; those that tie take turns.
//!
//! A server without a request in flight comes before every other, whatever the weights. Ties are frequent where engines are
//! mostly idle, so they are broken by weighted round-robin.

use super::round_robin::RoundRobin;
use super::{Asker, Candidate, Selector};

/// Who is next among those that tie.
#[derive(Debug)]
pub struct LeastConnections {
    turns: RoundRobin,
    /// Room for those that tie.
    least: Vec<Candidate>,
}

// === impl LeastConnections ===

impl LeastConnections {
    /// For a pool of so many servers.
    #[must_use]
    pub fn new(servers: usize) -> Self {
        Self { turns: RoundRobin::new(servers), least: Vec::with_capacity(servers) }
    }
}

impl Selector for LeastConnections {
    fn choose(&mut self, candidates: &[Candidate], asker: Asker) -> Option<usize> {
        self.least.clear();
        for candidate in candidates {
            // a / b < c / d as a · d < c · b, which no rounding spoils
            let load = |one: &Candidate, other: &Candidate| u64::from(one.in_flight) * u64::from(other.weight);
            let (less, more) = match self.least.first() {
                Some(least) => (load(candidate, least), load(least, candidate)),
                None => (0, 0),
            };
            if less < more {
                self.least.clear();
            }
            if less <= more {
                self.least.push(*candidate);
            }
        }
        self.turns.choose(&self.least, asker)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::VecDeque;

    /// Servers by weight and requests in flight.
    fn candidates(servers: &[(u32, u32)]) -> Vec<Candidate> {
        let candidate = |(place, (weight, in_flight)): (usize, &(u32, u32))| Candidate {
            place,
            id: 0,
            weight: *weight,
            in_flight: *in_flight,
        };
        servers.iter().enumerate().map(candidate).collect()
    }

    #[test]
    fn the_fewest_in_flight_for_the_weight_are_chosen_and_ties_take_turns() {
        for (servers, expected) in [
            (&[(1, 1), (1, 0)][..], "bbb"),
            (&[(1, 0), (1, 0), (1, 1)], "aba"),
            (&[(1, 2), (1, 1), (1, 1)], "bcb"),
            (&[(3, 2), (1, 1)], "aaa"),
            (&[(3, 3), (1, 1)], "aab"), // a tie, broken by the weights: a a b a
            (&[(3, 4), (1, 1)], "bbb"),
            (&[(9, 1), (1, 0)], "bbb"),
            (&[(1, u32::MAX), (u32::MAX, u32::MAX)], "bbb"),
            (&[], ""),
        ] {
            let mut selector = LeastConnections::new(servers.len());
            let choice = |_| selector.choose(&candidates(servers), Asker::default());
            let order: String = (0..3).filter_map(choice).map(|place| char::from(b'a' + place as u8)).collect();
            assert_eq!(order, expected, "{servers:?}");
        }
    }

    /// Sends `requests` to servers of these weights, `most` at once, each of which takes equally long.
    fn run(weights: &[u32], requests: usize, most: usize, mut look: impl FnMut(&[(u32, u32)], usize)) {
        let mut servers: Vec<(u32, u32)> = weights.iter().map(|weight| (*weight, 0)).collect();
        let (mut selector, mut under_way) = (LeastConnections::new(weights.len()), VecDeque::new());
        for _ in 0..requests {
            if under_way.len() == most
                && let Some(ended) = under_way.pop_front()
            {
                servers[ended as usize].1 -= 1;
            }
            let chosen = selector.choose(&candidates(&servers), Asker::default()).unwrap();
            look(&servers, chosen);
            servers[chosen].1 += 1;
            under_way.push_back(chosen as u32);
        }
    }

    #[test]
    fn in_flight_stays_within_one_of_the_weights() {
        for most in 1..=64 {
            run(&[3, 1], 10_000, most, |servers, _| {
                let (a, b) = (f64::from(servers[0].1), f64::from(servers[1].1));
                let fair = (a + b) * 0.75;
                assert!((a - fair).abs() <= 1.0, "{a} and {b} of {most}");
            });
        }
    }

    #[test]
    fn a_stuck_server_gets_nothing_while_others_are_free() {
        let mut selector = LeastConnections::new(3);
        let mut in_flight = [0_u32; 3];
        let mut at_stuck = 0;
        for request in 0..10_000 {
            let servers = in_flight.map(|in_flight| (1, in_flight));
            let chosen = selector.choose(&candidates(&servers), Asker::default()).unwrap();
            in_flight[chosen] += 1;
            match chosen {
                0 => at_stuck += 1, // never answered
                other if request % 2 == 0 => in_flight[other] -= 1,
                _ => in_flight[1..].fill(0),
            }
        }
        assert_eq!(at_stuck, 1, "it was free only once");
    }
}
