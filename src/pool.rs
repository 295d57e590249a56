//! The interchangeable engines behind a model or route, and which of them a request gets.
//!
//! Picking is one step under one short lock: filter the usable servers, let the selector choose, take the lease. So
//! simultaneous picks see each other. Where servers have limits, who finds all of them full waits in a queue, and whoever leaves
//! a server hands its place to the next: nobody else wakes.

pub mod balance;
pub mod caller;
pub mod eject;
pub mod handover;
pub mod health;
pub mod lease;
pub mod queue;
pub mod retry;
pub mod server;
pub mod settings;
pub mod ticket;
pub mod traffic;
pub mod way;

use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;

pub use caller::Caller;
pub use lease::Lease;
pub use server::Server;
pub use settings::Settings;
pub use ticket::Ticket;

use balance::{Candidate, Selector};
use caller::Waiter;
use eject::{Standing, Told};
use queue::Queue;
use retry::Budget;
use server::{Heard, Word};
use way::News;

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
    /// Who waits. Shared with the pools of this name of other plans: they share the servers too. Locked before the chooser.
    queue: Arc<Mutex<Queue<Waiter>>>,
}

/// The selector with the room in which it is shown its candidates.
#[derive(Debug)]
struct Chooser {
    selector: Box<dyn Selector>,
    candidates: Vec<Candidate>,
    budget: Budget,
}

/// What a request gets.
#[derive(Debug)]
pub enum Picked {
    /// A server.
    Lease(Lease),
    /// A place in the queue: all usable servers are at their limits.
    Ticket(Ticket),
    /// Not even that.
    Full,
    /// No server is usable.
    None,
}

/// What is left when those who wait were served. It may come back to the queue, and is to be dropped when that is not locked.
#[derive(Default)]
struct Left {
    _served: Vec<Waiter>,
    _unwanted: Vec<Lease>,
}

/// Why no server is chosen.
#[derive(Debug, PartialEq, Eq)]
enum Miss {
    /// All that are usable are at their limits.
    Full,
    /// None is usable.
    None,
}

// === impl Pool ===

impl Pool {
    /// A pool of these settings. Servers that `former` has at the same address go on with their state and counts, and with the
    /// operator's word if their settings are the same.
    #[must_use]
    pub fn new(id: PoolId, settings: Arc<Settings>, former: Option<&Pool>) -> Self {
        let serves = former.is_some_and(Pool::is_usable);
        let servers: Vec<Arc<Server>> = settings
            .servers
            .iter()
            .map(|wanted| {
                let known = former.and_then(|pool| pool.members().find(|(server, _)| server.address == wanted.address));
                let server = match known {
                    Some((server, _)) => server.clone(),
                    None => Arc::new(Server::new(wanted.address.clone(), serves)),
                };
                if known.is_some_and(|(_, settings)| settings != wanted) {
                    server.order(server::Order::Ready);
                    server.order_weight(None);
                }
                server.limit(wanted.max_in_flight);
                server
            })
            .collect();
        let selector = settings.balance.selector(servers.len());
        let candidates = Vec::with_capacity(servers.len());
        let budget = Budget::new(settings.retry.budget, Instant::now());
        let queue = former.map_or_else(Arc::default, |pool| pool.queue.clone());
        Self { id, settings, servers, chooser: Mutex::new(Chooser { selector, candidates, budget }), queue }
    }

    // --- who gets a server ---

    /// One of the usable servers that were not tried, backups only where no other is usable; or a place in the queue.
    #[must_use]
    pub fn pick(self: &Arc<Self>, caller: &Caller, now: Instant) -> Picked {
        let mut _left = Left::default(); // dropped after the locks
        let mut queue = self.settings.queue.as_ref().map(|settings| (self.queue.lock(), settings.size));
        if let Some((queue, _)) = &mut queue {
            _left = Left::serving(queue, now); // they came first; what none of them can take may still do for this one
        }
        let mut chooser = self.chooser.lock();
        if caller.tried.is_empty() {
            chooser.budget.request(now);
        }
        match (self.choose(&mut chooser, caller, now), &mut queue) {
            (Ok(lease), queue) => {
                if let Some((queue, _)) = queue {
                    queue.served(&caller.key);
                }
                Picked::Lease(lease)
            }
            (Err(Miss::None), _) => Picked::None,
            (Err(Miss::Full), None) => Picked::Full,
            (Err(Miss::Full), Some((queue, size))) => self.wait(queue, caller, *size, now),
        }
    }

    fn wait(self: &Arc<Self>, queue: &mut Queue<Waiter>, caller: &Caller, size: usize, now: Instant) -> Picked {
        let waiter = Waiter { pool: self.clone(), caller: caller.clone() };
        match queue.join(&caller.key, waiter, size) {
            Ok(number) => {
                caller.handover.open(caller.tried.len());
                Picked::Ticket(Ticket::new(self.clone(), number, caller.handover.clone(), now))
            }
            Err(queue::Full) => Picked::Full,
        }
    }

    /// The same for a retry: none where the budget is spent. Where no server is left, nothing is spent. It has no ticket: where it
    /// `may_wait` and all are full, it is told so, and picks again.
    #[must_use]
    pub fn pick_another(self: &Arc<Self>, caller: &Caller, may_wait: bool, now: Instant) -> Picked {
        let _queue = self.settings.queue.as_ref().map(|_| self.queue.lock());
        let mut chooser = self.chooser.lock();
        if !chooser.budget.allows(now) {
            return Picked::None;
        }
        let picked = match self.choose(&mut chooser, caller, now) {
            Ok(lease) => Picked::Lease(lease),
            Err(Miss::Full) if may_wait => Picked::Full,
            Err(_) => return Picked::None,
        };
        chooser.budget.retry(now);
        picked
    }

    fn choose(self: &Arc<Self>, chooser: &mut Chooser, caller: &Caller, now: Instant) -> Result<Lease, Miss> {
        let Chooser { selector, candidates, .. } = chooser;
        for backup in [false, true] {
            candidates.clear();
            candidates.extend(self.usable(&caller.tried, backup, now));
            let usable = candidates.len();
            if self.settings.queue.is_some() {
                candidates.retain(|candidate| !self.servers[candidate.place].is_full());
            } // else only a later plan has limits, and no queue of this one's could be waited in
            if let Some(place) = selector.choose(candidates, caller.asker) {
                return Ok(Lease::new(self.clone(), place, caller, now));
            }
            if usable > 0 {
                return Err(Miss::Full); // a full server is usable, and a backup is for when none is
            }
        }
        Err(Miss::None)
    }

    /// Hands what has come free to those who wait: to be called whenever servers may take more than before.
    pub fn serve(&self, now: Instant) {
        let left = Left::serving(&mut self.queue.lock(), now);
        drop(left); // after the lock
    }

    /// How many wait in the queue.
    #[must_use]
    pub fn queued(&self) -> usize {
        self.queue.lock().len()
    }

    /// The operator's word for a server. When this returns, nothing new goes where nothing may, and those who wait have what has
    /// come free.
    pub fn order(&self, place: usize, word: Word, now: Instant) {
        let chooser = self.chooser.lock(); // who chose by what was said before has its lease, and is counted
        let server = &self.servers[place];
        word.order.into_iter().for_each(|order| server.order(order));
        word.weight.into_iter().for_each(|weight| server.order_weight(weight));
        drop(chooser);
        self.serve(now);
    }

    // --- what is heard of its servers ---

    /// What an attempt tells of its server, and why. What changed by that, if anything did. Never more of the pool is ejected than
    /// may be.
    pub fn hear(&self, lease: &mut Lease, told: Told, why: &'static str, now: Instant) -> Option<News> {
        if told == Told::Well && !lease.is_trial() && lease.server().is_clean() {
            return None; // by far the most
        }
        let heard = Heard { told, trial: lease.decides(), room: false, why };
        self.tell(lease.place, heard, now)
    }

    fn tell(&self, place: usize, heard: Heard, now: Instant) -> Option<News> {
        let chooser = self.chooser.lock(); // what is counted stays so until it is decided
        let ejected = self.servers.iter().filter(|server| server.standing(now) != Standing::Well).count();
        let rules = &self.settings.eject;
        let room = ejected < rules.most(self.servers.len());
        let change = self.servers[place].hear(Heard { room, ..heard }, rules, now)?;
        drop(chooser);
        if let eject::Change::Back { .. } = change {
            self.serve(now);
        }
        Some(News { place, change, reason: heard.why })
    }

    /// Ejects the servers that have stalled, and has the requests that wait there for their first byte go elsewhere as far as they
    /// can. What changed, and when to look again.
    pub fn stalls(&self, now: Instant) -> (Vec<News>, Instant) {
        let rules = &self.settings.eject;
        let mut news = vec![];
        let mut next = now + rules.stall.unwrap_or(Duration::MAX / 2).min(LONGEST);
        for (place, server) in self.servers.iter().enumerate() {
            if server.stalls_at(rules).is_some_and(|at| at <= now) {
                news.extend(self.tell(place, STALLED, now));
                server.fall_silent(now); // after it is left alone: what came before that is left behind
            }
            if self.move_from(place, now) > 0 {
                next = next.min(now + traffic::AGAIN);
            }
            next = server.stalls_at(rules).map_or(next, |at| next.min(at));
        }
        (news, next)
    }

    /// The probes of a server have found it silent: the requests that wait there go elsewhere as far as they can.
    pub fn silent(&self, place: usize, now: Instant) {
        drop(self.chooser.lock()); // who chose it before it was known to be down is there by now
        self.servers[place].fall_silent(now);
        self.move_from(place, now);
    }

    /// How many are left that would go elsewhere.
    fn move_from(&self, place: usize, now: Instant) -> usize {
        let left = self.servers[place].left_behind();
        left.iter().filter(|waiter| !waiter.moves(now)).count()
    }

    // --- how it is ---

    /// How long until the first server that is ejected is tried again.
    #[must_use]
    pub fn back_in(&self) -> Option<Duration> {
        let now = Instant::now();
        let until = self.servers.iter().filter_map(|server| server.back_at(now));
        until.min().map(|until| until.saturating_duration_since(now))
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
        let slow_start = self.settings.retry.slow_start;
        self.members()
            .enumerate()
            .filter(move |(place, (_, settings))| settings.backup == backup && !tried.contains(place))
            .map(move |(place, (server, settings))| Candidate {
                place,
                id: server.id,
                weight: server.weight(settings.weight, slow_start, now),
                in_flight: server.in_flight(),
            })
            .filter(|candidate| candidate.weight > 0)
    }
}

// === impl Left ===

impl Left {
    /// Of those who wait, gives each in turn a server until none can take what is free.
    fn serving(queue: &mut Queue<Waiter>, now: Instant) -> Self {
        let (mut served, mut unwanted) = (vec![], vec![]);
        let mut takes = |waiter: &Waiter| {
            let chosen = waiter.pool.choose(&mut waiter.pool.chooser.lock(), &waiter.caller, now);
            let Ok(lease) = chosen else { return false };
            unwanted.extend(waiter.give(lease).err());
            true
        };
        while let Some(waiter) = queue.offer(&mut takes) {
            served.push(waiter);
        }
        Self { _served: served, _unwanted: unwanted }
    }
}

/// That a server has fallen silent.
const STALLED: Heard = Heard { told: Told::Stalled, trial: None, room: false, why: "stall" };
/// The longest from one look at a pool's silence to the next.
const LONGEST: Duration = Duration::from_secs(3600);

#[cfg(test)]
mod tests {
    use super::balance::Balance;
    use super::health::{Probed, Rules};
    use super::*;
    use proptest::prelude::*;
    use std::collections::HashMap;
    use std::sync::Barrier;
    use std::task::{Context, Poll, Waker};

    /// A pool of servers that are up: name, weight, backup.
    pub(super) fn pool(servers: &[(&str, u32, bool)]) -> Arc<Pool> {
        started(balanced(Balance::RoundRobin, servers))
    }

    fn balanced(balance: Balance, servers: &[(&str, u32, bool)]) -> Settings {
        let server = |(name, weight, backup): &(&str, u32, bool)| settings::Server {
            name: (*name).into(),
            address: settings::Address::Name { host: (*name).into(), port: 1 },
            weight: *weight,
            backup: *backup,
            max_in_flight: 0,
        };
        Settings { balance, servers: servers.iter().map(server).collect(), ..Settings::named("p") }
    }

    /// Servers that have at most one request in flight, and a queue of this size.
    pub(super) fn limited(servers: &[(&str, u32, bool)], size: usize) -> Settings {
        let mut settings = balanced(Balance::RoundRobin, servers);
        settings.servers.iter_mut().for_each(|server| server.max_in_flight = 1);
        Settings { queue: Some(settings::Queue { size, timeout: Duration::from_secs(5) }), ..settings }
    }

    pub(super) fn started(settings: Settings) -> Arc<Pool> {
        let pool = Pool::new(PoolId(0), Arc::new(settings), None);
        pool.servers.iter().for_each(|server| observe(server, Probed::Alive));
        Arc::new(pool)
    }

    fn observe(server: &Server, probed: Probed) {
        server.observe(probed, Rules { rise: 1, fall: 1 }, Instant::now());
    }

    /// Who has tried these.
    fn having_tried(tried: &[usize]) -> Caller {
        Caller { tried: tried.into(), repeat: retry::Repeat::Anywhere, ..Caller::default() }
    }

    fn of_key(key: &str) -> Caller {
        Caller { key: key.into(), ..Caller::default() }
    }

    fn leased(picked: Picked) -> Option<Lease> {
        match picked {
            Picked::Lease(lease) => Some(lease),
            _ => None,
        }
    }

    fn ticket(picked: Picked) -> Ticket {
        match picked {
            Picked::Ticket(ticket) => ticket,
            other => panic!("{other:?}"),
        }
    }

    fn turn(ticket: &mut Ticket) -> Option<Lease> {
        match ticket.poll(&mut Context::from_waker(Waker::noop())) {
            Poll::Ready(lease) => Some(lease),
            Poll::Pending => None,
        }
    }

    fn name(pool: &Pool, picked: Picked) -> String {
        leased(picked).map_or("-".into(), |lease| pool.settings.servers[lease.place].name.to_string())
    }

    fn pick(pool: &Arc<Pool>) -> Picked {
        pool.pick(&Caller::default(), Instant::now())
    }

    #[test]
    fn requests_go_round_in_the_order_of_the_weights() {
        let pool = pool(&[("a", 5, false), ("b", 1, false), ("c", 1, false)]);
        let order: Vec<String> = (0..14).map(|_| name(&pool, pick(&pool))).collect();
        assert_eq!(order.join(""), "aabacaaaabacaa");
        let mut counts = HashMap::new();
        for _ in 0..7_000 {
            *counts.entry(name(&pool, pick(&pool))).or_insert(0) += 1;
        }
        assert_eq!((counts["a"], counts["b"], counts["c"]), (5_000, 1_000, 1_000));
    }

    #[test]
    fn a_server_that_is_down_tried_or_of_no_weight_is_not_picked() {
        let pool = pool(&[("a", 1, false), ("b", 1, false), ("z", 0, false)]);
        observe(&pool.servers[0], Probed::Failed("down".into()));
        assert_eq!((0..3).map(|_| name(&pool, pick(&pool))).collect::<String>(), "bbb");
        assert_eq!(name(&pool, pool.pick(&having_tried(&[1]), Instant::now())), "-");
        assert!(pool.is_usable());
        observe(&pool.servers[1], Probed::Failed("down".into()));
        assert!(!pool.is_usable());
    }

    #[test]
    fn a_backup_is_picked_only_where_no_other_is_left() {
        let pool = pool(&[("a", 1, false), ("b", 1, true)]);
        assert_eq!(name(&pool, pick(&pool)), "a");
        assert_eq!(name(&pool, pool.pick(&having_tried(&[0]), Instant::now())), "b");
        observe(&pool.servers[0], Probed::Failed("down".into()));
        assert_eq!(name(&pool, pick(&pool)), "b");
    }

    #[test]
    fn a_budget_is_spent_on_servers_alone() {
        let pool = pool(&[("a", 1, false), ("b", 1, false)]);
        let now = Instant::now();
        let another = |tried: &[usize]| leased(pool.pick_another(&having_tried(tried), true, now)).is_some();
        assert!((0..100).all(|_| !another(&[0, 1])));
        assert_eq!((0..100).filter(|_| another(&[0])).count(), 30);
    }

    #[test]
    fn a_lease_counts_while_it_is_held_and_no_longer() {
        let pool = pool(&[("a", 1, false)]);
        let leases: Vec<_> = (0..3).map(|_| pick(&pool)).collect();
        assert_eq!(pool.servers[0].in_flight(), 3);
        drop(leases);
        assert_eq!(pool.servers[0].in_flight(), 0);
    }

    #[test]
    fn simultaneous_picks_never_share_a_server_while_another_is_idle() {
        let servers: Vec<(String, u32, bool)> = (1..=8).map(|weight| (format!("s{weight}"), weight, false)).collect();
        let servers: Vec<(&str, u32, bool)> =
            servers.iter().map(|(name, weight, _)| (&**name, *weight, false)).collect();
        let pool = started(balanced(Balance::LeastConnections, &servers));
        let together = Barrier::new(8);
        let shares = || {
            let shared = |_: &usize| {
                together.wait();
                let lease = leased(pick(&pool)).unwrap();
                together.wait(); // all are held at once
                let shared = lease.server().in_flight() > 1;
                together.wait();
                shared
            };
            (0..1_000).filter(shared).count()
        };
        let shared: usize = std::thread::scope(|scope| {
            let all: Vec<_> = (0..8).map(|_| scope.spawn(shares)).collect();
            all.into_iter().map(|thread| thread.join().unwrap()).sum()
        });
        assert_eq!(shared, 0);
    }

    #[test]
    fn a_reloaded_pool_keeps_the_state_of_servers_that_stay() {
        let before = pool(&[("a", 1, false), ("b", 1, false)]);
        let lease = pick(&before);
        let settings = Settings { servers: vec![before.settings.servers[0].clone()], ..Settings::named("p") };
        let after = Pool::new(PoolId(0), Arc::new(settings), Some(&before));
        assert_eq!(after.servers[0].in_flight(), 1);
        assert!(after.is_usable());
        drop(lease);
        assert_eq!(after.servers[0].in_flight(), 0);
    }

    #[test]
    fn a_word_leaves_what_it_does_not_say_and_gives_what_comes_free_to_those_who_wait() {
        let settings = limited(&[("a", 1, false), ("b", 1, false)], 9);
        let pool = started(settings);
        let word = |order, weight| Word { order, weight };
        let now = Instant::now();
        pool.order(1, word(Some(server::Order::Drain), Some(Some(7))), now);
        let _held = leased(pick(&pool)).unwrap();
        let mut waits = ticket(pick(&pool));
        pool.order(1, word(None, Some(Some(0))), now);
        pool.order(1, word(Some(server::Order::Ready), None), now);
        assert!(turn(&mut waits).is_none(), "it is ready, and of no weight still");
        pool.order(1, word(None, Some(None)), now);
        assert_eq!(turn(&mut waits).map(|lease| lease.place), Some(1));
        assert_eq!((pool.servers[1].ordered_weight(), pool.servers[1].ordered()), (None, server::Order::Ready));
    }

    #[test]
    fn a_reload_takes_back_the_operators_word_only_where_the_server_changes() {
        let before = pool(&[("a", 1, false), ("b", 1, false)]);
        before.servers.iter().for_each(|server| server.order(server::Order::Drain));
        let mut settings = (*before.settings).clone();
        settings.servers[1].weight = 2;
        let after = Pool::new(PoolId(0), Arc::new(settings), Some(&before));
        let now = Instant::now();
        let states: Vec<&str> = after.servers.iter().map(|server| server.health(now).state.as_str()).collect();
        assert_eq!(states, ["draining", "up"]);
    }

    #[test]
    fn a_server_that_joins_a_pool_that_serves_begins_slowly_and_the_first_of_a_pool_do_not() {
        let names = [("a", 9, false), ("b", 9, false)];
        let before = pool(&names[..1]);
        let slowly = settings::Retry { slow_start: Duration::from_secs(3600), ..before.settings.retry };
        let settings = Settings { retry: slowly, ..balanced(Balance::RoundRobin, &names) };
        let after = Arc::new(Pool::new(PoolId(0), Arc::new(settings), Some(&before)));
        observe(&after.servers[1], Probed::Alive);
        let at_b = (0..110).filter(|_| name(&after, pick(&after)) == "b").count();
        assert_eq!(at_b, 10, "a tenth of a's");
        observe(&after.servers[0], Probed::Failed("down".into()));
        assert_eq!(name(&after, pick(&after)), "b", "the only one has it all");
    }

    // --- limits and the queue ---

    #[test]
    fn who_finds_all_servers_full_waits_for_the_next_that_comes_free() {
        let pool = started(limited(&[("a", 1, false), ("b", 1, false)], 2));
        let (a, b) = (leased(pick(&pool)).unwrap(), leased(pick(&pool)).unwrap());
        let (mut first, mut second) = (ticket(pick(&pool)), ticket(pick(&pool)));
        assert!(matches!(pick(&pool), Picked::Full));
        assert_eq!((pool.queued(), turn(&mut first).is_none()), (2, true));
        drop(b);
        let first = turn(&mut first).unwrap();
        assert_eq!((first.place, pool.queued(), turn(&mut second).is_none()), (1, 1, true));
        drop(a);
        assert_eq!(turn(&mut second).unwrap().place, 0);
        drop((first, second));
        assert!(pool.servers.iter().all(|server| server.in_flight() == 0) && pool.queued() == 0);
    }

    #[test]
    fn who_leaves_the_queue_leaves_nothing_behind_even_at_its_turn() {
        let pool = started(limited(&[("a", 1, false)], 9));
        let a = leased(pick(&pool)).unwrap();
        let (gone, given, mut last) = (ticket(pick(&pool)), ticket(pick(&pool)), ticket(pick(&pool)));
        drop(gone);
        assert_eq!(pool.queued(), 2);
        drop(a); // the second has its turn, and does not know yet
        drop(given);
        assert!(turn(&mut last).is_some());
        assert_eq!((pool.queued(), pool.servers[0].in_flight()), (0, 0));
    }

    #[test]
    fn one_keys_burst_does_not_keep_anothers_single_request_waiting() {
        let pool = started(limited(&[("a", 1, false)], 1_000));
        let now = Instant::now();
        let a = pool.pick(&of_key("burst"), now);
        let mut burst: Vec<Ticket> = (0..200).map(|_| ticket(pool.pick(&of_key("burst"), now))).collect();
        let mut single = ticket(pool.pick(&of_key("single"), now));
        drop(a);
        assert!(burst.iter_mut().all(|ticket| turn(ticket).is_none()));
        assert!(turn(&mut single).is_some());
        assert!(turn(&mut burst[0]).is_some());
    }

    #[test]
    fn a_full_server_is_usable_so_no_backup_steps_in_for_it() {
        let pool = started(limited(&[("a", 1, false), ("b", 1, true)], 1));
        let a = leased(pick(&pool));
        let mut waits = ticket(pick(&pool));
        observe(&pool.servers[0], Probed::Failed("down".into()));
        pool.serve(Instant::now());
        assert_eq!(turn(&mut waits).map(|lease| lease.place), Some(1), "now none is");
        drop(a);
    }

    #[test]
    fn a_retry_where_all_others_are_full_waits_if_it_may() {
        let pool = started(limited(&[("a", 1, false), ("b", 1, false)], 1));
        let both = [leased(pick(&pool)), leased(pick(&pool))];
        let now = Instant::now();
        assert!(matches!(pool.pick_another(&having_tried(&[0]), true, now), Picked::Full));
        assert!(matches!(pool.pick_another(&having_tried(&[0]), false, now), Picked::None));
        drop(both);
    }

    #[test]
    fn those_who_wait_across_a_reload_have_the_new_limits() {
        let before = started(limited(&[("a", 1, false)], 9));
        let first = leased(pick(&before));
        let mut waits = ticket(pick(&before));
        let mut settings = (*before.settings).clone();
        settings.servers[0].max_in_flight = 2;
        let after = Arc::new(Pool::new(PoolId(0), Arc::new(settings), Some(&before)));
        after.serve(Instant::now());
        let second = turn(&mut waits).unwrap();
        let mut third = ticket(pick(&after));
        drop(first);
        assert!(turn(&mut third).is_some());
        drop(second);
        assert_eq!(after.servers[0].in_flight(), 0);
    }

    #[test]
    fn limits_that_a_reload_brings_are_kept_by_new_requests_and_let_former_ones_be() {
        let before = started(balanced(Balance::RoundRobin, &[("a", 1, false)]));
        let first = leased(pick(&before));
        let after = Arc::new(Pool::new(PoolId(0), Arc::new(limited(&[("a", 1, false)], 9)), Some(&before)));
        let mut waits = ticket(pick(&after));
        let second = leased(pick(&before));
        assert!(second.is_some(), "nobody waits by the plan under which it came");
        drop(first);
        assert!(turn(&mut waits).is_none(), "it is still full");
        drop(second);
        assert!(turn(&mut waits).is_some(), "who leaves under the former plan hands its place over too");
    }

    #[test]
    fn what_those_who_wait_cannot_take_is_taken_by_who_can() {
        let pool = started(limited(&[("a", 1, false), ("b", 1, false)], 9));
        let (a, b) = (leased(pick(&pool)), leased(pick(&pool)));
        let mut retry = ticket(pool.pick(&having_tried(&[0]), Instant::now()));
        let mut same_key = ticket(pick(&pool));
        drop(a);
        assert_eq!(turn(&mut same_key).map(|lease| lease.place), Some(0), "who waits for b keeps nobody from a");
        assert_eq!(name(&pool, pick(&pool)), "a", "whether they wait or not");
        assert!(turn(&mut retry).is_none());
        drop(b);
        assert_eq!(turn(&mut retry).map(|lease| lease.place), Some(1));
    }

    #[test]
    fn where_no_server_is_left_nobody_begins_to_wait_behind_those_who_do() {
        let pool = started(limited(&[("a", 1, false)], 9));
        let a = leased(pick(&pool));
        let waits = ticket(pick(&pool));
        observe(&pool.servers[0], Probed::Failed("down".into()));
        assert!(matches!(pick(&pool), Picked::None));
        drop((a, waits));
        assert_eq!((pool.queued(), pool.servers[0].in_flight()), (0, 0));
    }

    // --- silence ---

    fn stalling(servers: &[(&str, u32, bool)]) -> Arc<Pool> {
        let mut settings = balanced(Balance::RoundRobin, servers);
        settings.eject.stall = Some(Duration::from_secs(60));
        started(settings)
    }

    fn streamed() -> Caller {
        Caller { load: traffic::Load { stream: true, bytes: 10 }, ..having_tried(&[]) }
    }

    #[test]
    fn a_server_that_stalls_is_ejected_and_those_without_a_byte_have_another() {
        let pool = stalling(&[("a", 1, false), ("b", 1, false)]);
        let began = Instant::now();
        let (speaks, waits) = (streamed(), streamed());
        let mut under_way = leased(pool.pick(&speaks, began)).unwrap(); // at a
        let at_b = pool.pick(&streamed(), began);
        let stuck = leased(pool.pick(&waits, began)).unwrap(); // at a
        [&speaks, &waits].iter().for_each(|caller| caller.handover.open(1));
        under_way.begins();
        speaks.handover.close();
        pool.servers[1].speaks(began + Duration::from_secs(30));
        let (news, next) = pool.stalls(began + Duration::from_secs(59));
        assert_eq!((news, next), (vec![], began + Duration::from_secs(60)));
        let (news, _) = pool.stalls(began + Duration::from_secs(60));
        let change = eject::Change::Ejected(Duration::from_secs(10));
        assert_eq!(news, [News { place: 0, change, reason: "stall" }]);
        let moved = waits.handover.close().unwrap();
        assert_eq!((moved.place, speaks.handover.close().is_none()), (1, true));
        assert_eq!(pool.servers[1].in_flight(), 2);
        drop((under_way, at_b, stuck, moved));
        assert!(pool.servers.iter().all(|server| server.in_flight() == 0));
    }

    #[test]
    fn those_for_whom_there_is_no_other_stay_and_go_when_there_is_one() {
        let pool = stalling(&[("a", 1, false), ("b", 1, false)]);
        let began = Instant::now();
        observe(&pool.servers[1], Probed::Failed("down".into()));
        let waits = streamed();
        let stuck = leased(pool.pick(&waits, began)).unwrap();
        waits.handover.open(1);
        let later = began + Duration::from_secs(60);
        let (_, next) = pool.stalls(later);
        assert_eq!((waits.handover.is_open(1), next), (true, later + traffic::AGAIN));
        observe(&pool.servers[1], Probed::Alive);
        pool.stalls(next);
        assert_eq!(waits.handover.close().map(|lease| lease.place), Some(1));
        drop(stuck);
    }

    #[test]
    fn the_trial_of_a_silent_server_has_the_same_time_and_moves_on_even_if_it_is_not_streamed() {
        let pool = stalling(&[("a", 1, false), ("b", 1, false)]);
        let began = Instant::now();
        let stuck = leased(pool.pick(&streamed(), began)).unwrap(); // at a
        pool.stalls(began + Duration::from_secs(60));
        drop(stuck);
        let suspect = began + Duration::from_secs(70);
        let plain = Caller { load: traffic::Load { stream: false, bytes: 10 }, ..having_tried(&[]) };
        let leases: Vec<Lease> = (0..2).filter_map(|_| leased(pool.pick(&plain, suspect))).collect();
        plain.handover.open(1);
        assert!(pool.stalls(suspect + Duration::from_secs(59)).0.is_empty());
        let (news, _) = pool.stalls(suspect + Duration::from_secs(60));
        let change = eject::Change::Ejected(Duration::from_secs(20));
        assert_eq!(news, [News { place: 0, change, reason: "stall" }]);
        assert_eq!(plain.handover.close().map(|lease| lease.place), Some(1));
        drop(leases);
    }

    proptest! {
        #[test]
        fn no_sequence_ejects_more_than_may_be_or_leaves_an_answering_server_out_for_ever(
            events in proptest::collection::vec((0_usize..8, 0_u8..8, 0_u64..9), 0..300),
            servers in 1_usize..8,
            max in 0_u32..=100,
        ) {
            let names: Vec<String> = (0..servers).map(|n| n.to_string()).collect();
            let names: Vec<(&str, u32, bool)> = names.iter().map(|name| (&**name, 1, false)).collect();
            let mut settings = balanced(Balance::RoundRobin, &names);
            settings.eject = eject::Rules { failures: 2, max: max * 100, ..settings.eject };
            let pool = started(settings);
            let most = pool.settings.eject.most(servers);
            let (mut leases, mut now) = (vec![], Instant::now());
            for (n, event, wait) in events {
                now += Duration::from_secs(wait);
                match event {
                    0..3 => leases.extend(leased(pool.pick(&Caller::default(), now))),
                    3 => drop(pool.tell(n % servers, STALLED, now)),
                    _ if leases.is_empty() => {}
                    _ => {
                        let mut lease = leases.swap_remove(n % leases.len());
                        let later = Told::Later(Duration::from_secs(wait), true);
                        let told = [Told::Well, Told::Failed, Told::Failed, later][usize::from(event) - 4];
                        pool.hear(&mut lease, told, "test", now);
                    }
                }
                let out = pool.servers.iter().filter(|server| server.standing(now) != Standing::Well).count();
                prop_assert!(out <= most, "{} of {}", out, servers);
            }
            leases.clear();
            now += 16 * pool.settings.eject.duration; // the longest
            for _ in 0..servers * 2 {
                if let Some(mut lease) = leased(pool.pick(&Caller::default(), now)) {
                    pool.hear(&mut lease, Told::Well, "", now);
                }
            }
            prop_assert!(pool.servers.iter().all(|server| server.standing(now) == Standing::Well));
        }
    }
}
