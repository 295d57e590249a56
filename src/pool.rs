//! The interchangeable engines behind a model or route, and which of them a request gets.
//!
//! Picking is one step under one short lock: filter the usable servers, let the selector choose, take the lease. So
//! simultaneous picks see each other.

pub mod balance;
pub mod eject;
pub mod lease;
pub mod retry;
pub mod server;
pub mod settings;
pub mod way;

use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;

pub use lease::Lease;
pub use server::Server;
pub use settings::Settings;

use balance::{Asker, Candidate, Selector};
use eject::{Standing, Told};
use retry::Budget;

/// A pool's place in the plan.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct PoolId(pub usize);

/// Interchangeable engines.
#[derive(Debug)]
pub struct Pool {
    /// Its place in the plan.
    pub id: PoolId,
    /// What the configuration says of it.
    pub settings: Arc<Settings>,
    /// The servers in the file's order.
    pub servers: Vec<Arc<Server>>,
    chooser: Mutex<Chooser>,
}

/// The selector with the room in which it is shown its candidates.
#[derive(Debug)]
struct Chooser {
    selector: Box<dyn Selector>,
    candidates: Vec<Candidate>,
    budget: Budget,
}

// === impl Pool ===

impl Pool {
    /// A pool of these settings. Servers that `former` has at the same address go on with their state and counts.
    #[must_use]
    pub fn new(id: PoolId, settings: Arc<Settings>, former: Option<&Pool>) -> Self {
        let servers: Vec<Arc<Server>> = settings
            .servers
            .iter()
            .map(|wanted| {
                let known = former.and_then(|pool| pool.servers.iter().find(|server| server.address == wanted.address));
                known.cloned().unwrap_or_else(|| Arc::new(Server::new(wanted.address.clone())))
            })
            .collect();
        let selector = settings.balance.selector(servers.len());
        let candidates = Vec::with_capacity(servers.len());
        let budget = Budget::new(settings.budget, Instant::now());
        Self { id, settings, servers, chooser: Mutex::new(Chooser { selector, candidates, budget }) }
    }

    /// A lease on one of the usable servers that are not `tried`; backups only where no other is left.
    #[must_use]
    pub fn pick(&self, tried: &[usize], asker: Asker, now: Instant) -> Option<Lease> {
        let mut chooser = self.chooser.lock();
        chooser.budget.request(now);
        self.choose(&mut chooser, tried, asker, now)
    }

    /// The same for a retry: none where the budget is spent. Where no server is left, nothing is spent.
    #[must_use]
    pub fn pick_another(&self, tried: &[usize], asker: Asker, now: Instant) -> Option<Lease> {
        let mut chooser = self.chooser.lock();
        if !chooser.budget.allows(now) {
            return None;
        }
        let lease = self.choose(&mut chooser, tried, asker, now)?;
        chooser.budget.retry(now);
        Some(lease)
    }

    fn choose(&self, chooser: &mut Chooser, tried: &[usize], asker: Asker, now: Instant) -> Option<Lease> {
        let Chooser { selector, candidates, .. } = chooser;
        for backup in [false, true] {
            candidates.clear();
            candidates.extend(self.usable(tried, backup, now));
            if let Some(place) = selector.choose(candidates, asker) {
                return Some(Lease::new(self.servers[place].clone(), place, self.settings.eject, now));
            }
        }
        None
    }

    /// What an attempt tells of its server, and why. What changed by that, if anything did. Never more of the pool is ejected than
    /// may be.
    pub fn hear(&self, lease: &mut Lease, told: Told, why: &str) -> Option<eject::Change> {
        if told == Told::Well && !lease.is_trial() && lease.server.is_clean() {
            return None; // by far the most
        }
        let _chooser = self.chooser.lock(); // what is counted stays so until it is decided
        let now = Instant::now();
        let ejected = self.servers.iter().filter(|server| server.standing(now) != Standing::Well).count();
        lease.tell(told, ejected < self.settings.eject.most(self.servers.len()), why)
    }

    /// How long until the first server that is ejected is tried again.
    #[must_use]
    pub fn back_in(&self) -> Option<Duration> {
        let now = Instant::now();
        let until = self.servers.iter().filter_map(|server| match server.standing(now) {
            Standing::Ejected(until) if server.is_up() => Some(until.saturating_duration_since(now)),
            _ => None,
        });
        until.min()
    }

    /// Whether a request could be served now.
    #[must_use]
    pub fn is_usable(&self) -> bool {
        let now = Instant::now();
        [false, true].iter().any(|backup| self.usable(&[], *backup, now).next().is_some())
    }

    /// Whether every server has been probed.
    #[must_use]
    pub fn is_probed(&self) -> bool {
        self.servers.iter().all(|server| server.is_probed())
    }

    /// The servers with their settings, in the file's order.
    pub fn members(&self) -> impl Iterator<Item = (&Arc<Server>, &settings::Server)> {
        self.servers.iter().zip(&self.settings.servers)
    }

    fn usable<'p>(&'p self, tried: &'p [usize], backup: bool, now: Instant) -> impl Iterator<Item = Candidate> + 'p {
        self.members()
            .enumerate()
            .filter(move |(place, (server, settings))| {
                settings.backup == backup && settings.weight > 0 && server.is_usable(now) && !tried.contains(place)
            })
            .map(|(place, (server, settings))| Candidate {
                place,
                id: server.id,
                weight: settings.weight,
                in_flight: server.in_flight(),
            })
    }
}

#[cfg(test)]
mod tests {
    use super::balance::Balance;
    use super::*;
    use crate::pool::server::{Probed, Rules};
    use std::collections::HashMap;
    use std::sync::Barrier;
    use std::time::SystemTime;

    /// A pool of servers that are up: name, weight, backup.
    pub(super) fn pool(servers: &[(&str, u32, bool)]) -> Pool {
        balanced(Balance::RoundRobin, servers)
    }

    fn balanced(balance: Balance, servers: &[(&str, u32, bool)]) -> Pool {
        let settings = Settings {
            balance,
            servers: servers
                .iter()
                .map(|(name, weight, backup)| settings::Server {
                    name: (*name).into(),
                    address: settings::Address::Name { host: (*name).into(), port: 1 },
                    weight: *weight,
                    backup: *backup,
                })
                .collect(),
            ..Settings::named("p")
        };
        let pool = Pool::new(PoolId(0), Arc::new(settings), None);
        pool.servers.iter().for_each(|server| observe(server, Probed::Alive));
        pool
    }

    fn observe(server: &Server, probed: Probed) {
        server.observe(probed, Rules { rise: 1, fall: 1 }, SystemTime::now());
    }

    fn picked(pool: &Pool, lease: Option<Lease>) -> String {
        lease.map_or("-".into(), |lease| pool.settings.servers[lease.place].name.to_string())
    }

    #[test]
    fn requests_go_round_in_the_order_of_the_weights() {
        let pool = pool(&[("a", 5, false), ("b", 1, false), ("c", 1, false)]);
        let order: Vec<String> =
            (0..14).map(|_| picked(&pool, pool.pick(&[], Asker::default(), Instant::now()))).collect();
        assert_eq!(order.join(""), "aabacaaaabacaa");
        let mut counts = HashMap::new();
        for _ in 0..7_000 {
            *counts.entry(picked(&pool, pool.pick(&[], Asker::default(), Instant::now()))).or_insert(0) += 1;
        }
        assert_eq!((counts["a"], counts["b"], counts["c"]), (5_000, 1_000, 1_000));
    }

    #[test]
    fn a_server_that_is_down_tried_or_of_no_weight_is_not_picked() {
        let pool = pool(&[("a", 1, false), ("b", 1, false), ("z", 0, false)]);
        observe(&pool.servers[0], Probed::Failed("down".into()));
        assert_eq!(
            (0..3).map(|_| picked(&pool, pool.pick(&[], Asker::default(), Instant::now()))).collect::<String>(),
            "bbb"
        );
        assert_eq!(picked(&pool, pool.pick(&[1], Asker::default(), Instant::now())), "-");
        assert!(pool.is_usable());
        observe(&pool.servers[1], Probed::Failed("down".into()));
        assert!(!pool.is_usable());
    }

    #[test]
    fn a_backup_is_picked_only_where_no_other_is_left() {
        let pool = pool(&[("a", 1, false), ("b", 1, true)]);
        assert_eq!(picked(&pool, pool.pick(&[], Asker::default(), Instant::now())), "a");
        assert_eq!(picked(&pool, pool.pick(&[0], Asker::default(), Instant::now())), "b");
        observe(&pool.servers[0], Probed::Failed("down".into()));
        assert_eq!(picked(&pool, pool.pick(&[], Asker::default(), Instant::now())), "b");
    }

    #[test]
    fn a_budget_is_spent_on_servers_alone() {
        let pool = pool(&[("a", 1, false), ("b", 1, false)]);
        let now = Instant::now();
        assert!((0..100).all(|_| pool.pick_another(&[0, 1], Asker::default(), now).is_none()));
        let retries = (0..100).filter(|_| pool.pick_another(&[0], Asker::default(), now).is_some());
        assert_eq!(retries.count(), 30);
    }

    #[test]
    fn a_lease_counts_while_it_is_held_and_no_longer() {
        let pool = pool(&[("a", 1, false)]);
        let leases: Vec<_> = (0..3).map(|_| pool.pick(&[], Asker::default(), Instant::now())).collect();
        assert_eq!(pool.servers[0].in_flight(), 3);
        drop(leases);
        assert_eq!(pool.servers[0].in_flight(), 0);
    }

    #[test]
    fn simultaneous_picks_never_share_a_server_while_another_is_idle() {
        let servers: Vec<(String, u32, bool)> = (1..=8).map(|weight| (format!("s{weight}"), weight, false)).collect();
        let servers: Vec<(&str, u32, bool)> =
            servers.iter().map(|(name, weight, _)| (&**name, *weight, false)).collect();
        let pool = balanced(Balance::LeastConnections, &servers);
        let together = Barrier::new(8);
        let pick = || {
            let shared = |_: &usize| {
                together.wait();
                let lease = pool.pick(&[], Asker::default(), Instant::now()).unwrap();
                together.wait(); // all are held at once
                let shared = lease.server.in_flight() > 1;
                together.wait();
                shared
            };
            (0..1_000).filter(shared).count()
        };
        let shared: usize = std::thread::scope(|scope| {
            let all: Vec<_> = (0..8).map(|_| scope.spawn(pick)).collect();
            all.into_iter().map(|thread| thread.join().unwrap()).sum()
        });
        assert_eq!(shared, 0);
    }

    #[test]
    fn a_reloaded_pool_keeps_the_state_of_servers_that_stay() {
        let before = pool(&[("a", 1, false), ("b", 1, false)]);
        let lease = before.pick(&[], Asker::default(), Instant::now());
        let settings = Settings { servers: vec![before.settings.servers[0].clone()], ..Settings::named("p") };
        let after = Pool::new(PoolId(0), Arc::new(settings), Some(&before));
        assert_eq!(after.servers[0].in_flight(), 1);
        assert!(after.is_usable());
        drop(lease);
        assert_eq!(after.servers[0].in_flight(), 0);
    }
}
