//! Smooth weighted round-robin, in nginx's order: weights 5, 1, 1 give a a b a c a a.
//!
//! Each choice gives every candidate its weight in credit, takes the one with the most, and charges it for all.

use super::{Asker, Candidate, Selector};

/// The credit of each server of a pool, by place.
#[derive(Debug)]
pub struct RoundRobin(Vec<i64>);

// === impl RoundRobin ===

impl RoundRobin {
    /// For a pool of so many servers.
    #[must_use]
    pub fn new(servers: usize) -> Self {
        Self(vec![0; servers])
    }
}

impl Selector for RoundRobin {
    fn choose(&mut self, candidates: &[Candidate], _: Asker) -> Option<usize> {
        let mut total = 0;
        let mut best: Option<usize> = None;
        for candidate in candidates {
            let weight = i64::from(candidate.weight);
            total += weight;
            self.0[candidate.place] += weight;
            if best.is_none_or(|best| self.0[candidate.place] > self.0[best]) {
                best = Some(candidate.place);
            }
        }
        let best = best?;
        self.0[best] -= total;
        Some(best)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn order(weights: &[u32], picks: usize) -> String {
        let mut selector = RoundRobin::new(weights.len());
        let candidates: Vec<Candidate> = weights
            .iter()
            .enumerate()
            .filter(|(_, weight)| **weight > 0)
            .map(|(place, weight)| Candidate { place, id: 0, weight: *weight, in_flight: 0 })
            .collect();
        (0..picks)
            .filter_map(|_| selector.choose(&candidates, Asker::default()))
            .map(|place| char::from(b'a' + place as u8))
            .collect()
    }

    #[test]
    fn the_order_is_nginxs() {
        for (weights, picks, expected) in [
            (&[5, 1, 1][..], 7, "aabacaa"),
            (&[1, 1, 1], 6, "abcabc"),
            (&[2, 1], 6, "abaaba"),
            (&[1, 3], 8, "babbbabb"),
            (&[0, 1], 2, "bb"),
            (&[4, 2, 1], 7, "abacaba"),
            (&[], 3, ""),
        ] {
            assert_eq!(order(weights, picks), expected, "{weights:?}");
        }
    }

    #[test]
    fn a_server_that_comes_back_does_not_make_up_for_its_absence() {
        let candidate = |place| Candidate { place, id: 0, weight: 1, in_flight: 0 };
        let mut selector = RoundRobin::new(2);
        for _ in 0..100 {
            assert_eq!(selector.choose(&[candidate(0)], Asker::default()), Some(0));
        }
        let both = [candidate(0), candidate(1)];
        let order: Vec<_> = (0..4).filter_map(|_| selector.choose(&both, Asker::default())).collect();
        assert_eq!(order, [0, 1, 0, 1]);
    }
}
