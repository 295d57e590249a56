//! IP hash: the same server for the same client's address, as long as that server is usable.
//!
//! Weighted rendezvous hashing (Thaler and Ravishankar 1998; weights by Schindelhauer and Schomaker 2005): each server draws
//! a score from its id and the address, and the best score wins. So where a server goes, only its own clients move, and they
//! spread over all that are left. Nothing is random: every forebay with these servers chooses alike.

use std::net::IpAddr;

use super::least_connections::LeastConnections;
use super::{Asker, Candidate, Selector};

/// Knows the address; clients without one go where the least is in flight.
#[derive(Debug)]
pub struct IpHash {
    unknown: LeastConnections,
}

// === impl IpHash ===

impl IpHash {
    /// For a pool of so many servers.
    #[must_use]
    pub fn new(servers: usize) -> Self {
        Self { unknown: LeastConnections::new(servers) }
    }
}

impl Selector for IpHash {
    fn choose(&mut self, candidates: &[Candidate], asker: Asker) -> Option<usize> {
        let Some(client) = asker.client else {
            return self.unknown.choose(candidates, asker);
        };
        let client = hash(client);
        let scored = candidates.iter().map(|one| (score(mix(one.id ^ client), one.weight), one.place));
        scored.max_by(|one, other| one.0.total_cmp(&other.0)).map(|(_, place)| place)
    }
}

/// Weight / −ln(u), where the hash is taken for a u between 0 and 1: of several, it is the largest as often as its weight
/// says.
fn score(hash: u64, weight: u32) -> f64 {
    let drawn = ((hash >> 12) as f64 + 0.5) / (1_u64 << 52) as f64;
    f64::from(weight) / -drawn.ln()
}

fn hash(address: IpAddr) -> u64 {
    let bits = match address {
        IpAddr::V4(address) => address.to_ipv6_mapped().to_bits(),
        IpAddr::V6(address) => address.to_bits(),
    };
    mix(mix((bits >> 64) as u64) ^ bits as u64)
}

/// SplitMix64's finish (Steele, Lea and Flood 2014): every bit of the input moves half of the output's.
fn mix(bits: u64) -> u64 {
    let bits = bits.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let bits = (bits ^ bits >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let bits = (bits ^ bits >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    bits ^ bits >> 31
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pool::settings::Address;
    use std::net::Ipv4Addr;

    /// Servers of these weights, each with the id of an address of its own.
    fn servers(weights: &[u32]) -> Vec<Candidate> {
        let candidate = |(place, weight): (usize, &u32)| {
            let address = Address::new(&format!("10.0.0.{place}"), 8000);
            Candidate { place, id: address.id(), weight: *weight, in_flight: 0 }
        };
        weights.iter().enumerate().map(candidate).collect()
    }

    /// Where each of 1,000 clients goes.
    fn choices(servers: &[Candidate]) -> Vec<usize> {
        let mut selector = IpHash::new(10);
        let asker = |n: u32| Asker { client: Some(Ipv4Addr::from(0x0a01_0000 + n).into()) };
        (0..1_000).map(|n| selector.choose(servers, asker(n)).unwrap()).collect()
    }

    #[test]
    fn only_the_clients_of_a_server_that_goes_move_and_only_they_return() {
        let all = servers(&[1; 10]);
        let before = choices(&all);
        for gone in 0..10 {
            let left: Vec<Candidate> = all.iter().filter(|server| server.place != gone).copied().collect();
            let meanwhile = choices(&left);
            let moved: Vec<usize> = (0..1_000).filter(|client| before[*client] != meanwhile[*client]).collect();
            assert!(moved.iter().all(|client| before[*client] == gone));
            assert_eq!(moved.len(), before.iter().filter(|place| **place == gone).count());
            let heirs = moved.iter().map(|client| meanwhile[*client]).collect::<std::collections::BTreeSet<_>>();
            assert_eq!(heirs.len(), 9, "its clients spread over all others");
            assert_eq!(choices(&all), before);
        }
    }

    #[test]
    fn clients_spread_by_weight() {
        for (weights, expected) in
            [(&[1; 10][..], &[100; 10][..]), (&[3, 1], &[750, 250]), (&[1, 2, 7], &[100, 200, 700])]
        {
            let mut counts = vec![0_i64; weights.len()];
            choices(&servers(weights)).into_iter().for_each(|place| counts[place] += 1);
            let near = counts.iter().zip(expected).all(|(count, expected)| (count - expected).abs() < 60);
            assert!(near, "{counts:?} for {weights:?}");
        }
    }

    #[test]
    fn the_order_of_the_file_and_the_load_do_not_matter() {
        let mut turned = servers(&[1; 10]);
        let before = choices(&turned);
        turned.reverse();
        turned.iter_mut().for_each(|server| server.in_flight = 9 - server.place as u32);
        assert_eq!(choices(&turned), before);
    }

    #[test]
    fn clients_without_an_address_go_where_the_least_is_in_flight() {
        let mut selector = IpHash::new(2);
        let mut both = servers(&[1, 1]);
        both[0].in_flight = 1;
        assert_eq!(selector.choose(&both, Asker::default()), Some(1));
        assert_eq!(selector.choose(&[], Asker { client: Some(Ipv4Addr::LOCALHOST.into()) }), None);
    }
}
