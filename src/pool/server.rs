//! One engine: its state over what probes, requests and the operator tell, and its counts.

mod memory;

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant, SystemTime};

use parking_lot::Mutex;
use serde::{Deserialize, Serialize};

use super::caller::Waiter;
use super::eject::{self, Record, Standing, Told};
use super::health::{Change, Health, Probed, Rules, State};
use super::settings::{Address, Endpoint};
use super::traffic::{Load, Traffic};
pub use memory::{Memory, Orders};

/// One engine. It outlives reloads, and so do its counts.
#[derive(Debug)]
pub struct Server {
    /// Where it listens, as configured.
    pub address: Address,
    /// The address as a number, for selectors.
    pub id: u64,
    condition: Mutex<Condition>,
    /// Whether it is used, and at its full weight as configured: for the pick to read without the lock.
    plain: AtomicBool,
    /// The most requests that it has in flight at once; 0: no limit.
    most: AtomicU32,
    traffic: Mutex<Traffic>,
    /// When the last byte of an answer came, in nanoseconds since `born`.
    heard: AtomicU64,
    born: Instant,
    /// Streams whose client does not take what has come.
    held: AtomicU32,
    in_flight: AtomicU32,
    requests: AtomicU64,
    errors: AtomicU64,
}

/// All that decides whether a server is used, and how much.
#[derive(Debug)]
struct Condition {
    /// What probes tell.
    health: Health,
    /// What requests tell.
    record: Record,
    /// The reason of the last change by them, and when it was.
    told: Reason,
    /// What the operator says.
    order: Order,
    /// When that was said.
    ordered: SystemTime,
    /// Its weight, by the operator's word.
    weight: Option<u32>,
    /// Whether its weight is to climb once it is up.
    joins: bool,
    /// Since when it climbs.
    climbs: Option<Instant>,
    /// Where its name leads; the last known answer if it no longer resolves.
    resolved: Option<SocketAddr>,
}

/// Why something is as it is.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct Reason {
    why: String,
    since: SystemTime,
}

/// What an operator says of a server at run time.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Order {
    /// It is used as it deserves.
    #[default]
    Ready,
    /// It gets nothing new; what is under way there is finished.
    Drain,
    /// The same, and it is not probed.
    Maint,
}

/// What an operator says of a server in one call. What is none stays as it is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Word {
    /// Whether it is used.
    pub order: Option<Order>,
    /// Its weight; none within: as configured.
    pub weight: Option<Option<u32>>,
}

/// What an attempt tells.
#[derive(Debug, Clone, Copy)]
pub(super) struct Heard {
    pub(super) told: Told,
    /// The number of the trial that it was, if it was one.
    pub(super) trial: Option<u32>,
    /// Whether one more server may be ejected.
    pub(super) room: bool,
    /// The reason, for people.
    pub(super) why: &'static str,
}

/// While it is held, one stream of a server waits for its client, and not for the server.
#[derive(Debug)]
pub struct Held(Arc<Server>);

/// The share of its weight with which a server begins, in hundredths.
const FIRST_SHARE: u32 = 10;

// === impl Server ===

impl Server {
    /// A server that was not probed yet; `joins`: others serve already, so that it begins slowly.
    #[must_use]
    pub fn new(address: Address, joins: bool) -> Self {
        let now = SystemTime::now();
        let born = Instant::now();
        let condition = Condition {
            health: Health::new(now),
            record: Record::default(),
            told: Reason { why: String::new(), since: now },
            order: Order::Ready,
            ordered: now,
            weight: None,
            joins,
            climbs: None,
            resolved: None,
        };
        Self {
            id: address.id(),
            address,
            condition: Mutex::new(condition),
            plain: AtomicBool::new(false),
            most: AtomicU32::new(0),
            traffic: Mutex::new(Traffic::new(born)),
            heard: AtomicU64::new(0),
            born,
            held: AtomicU32::new(0),
            in_flight: AtomicU32::new(0),
            requests: AtomicU64::new(0),
            errors: AtomicU64::new(0),
        }
    }

    // --- what it is worth now ---

    /// Its weight now, in hundredths; 0: it gets nothing. `configured`: its weight; `slow_start`: how long it takes to climb there.
    #[must_use]
    pub fn weight(&self, configured: u32, slow_start: Duration, now: Instant) -> u32 {
        if self.plain.load(Relaxed) {
            return configured * 100;
        }
        self.with(|condition| condition.weight.unwrap_or(configured) * condition.share(slow_start, now))
    }

    /// Whether it has as many requests in flight as it may.
    #[must_use]
    pub fn is_full(&self) -> bool {
        let most = self.most.load(Relaxed);
        most > 0 && self.in_flight() >= most
    }

    /// Limits its requests in flight to so many; 0: not at all.
    pub(super) fn limit(&self, most: u32) {
        self.most.store(most, Relaxed);
    }

    /// Where it stands by its requests.
    #[must_use]
    pub fn standing(&self, now: Instant) -> Standing {
        if self.plain.load(Relaxed) { Standing::Well } else { self.condition.lock().record.standing(now) }
    }

    /// When its requests let it back in, if it is they that keep it out.
    #[must_use]
    pub fn back_at(&self, now: Instant) -> Option<Instant> {
        let condition = self.condition.lock();
        match condition.record.standing(now) {
            Standing::Ejected(until) if condition.is_open() => Some(until),
            _ => None,
        }
    }

    /// Whether its probes let requests go there.
    #[must_use]
    pub fn is_up(&self) -> bool {
        self.plain.load(Relaxed) || self.condition.lock().health.state == State::Up
    }

    /// Whether its first probe is over. One in maintenance has none.
    #[must_use]
    pub fn is_probed(&self) -> bool {
        let condition = self.condition.lock();
        condition.health.state != State::Starting || condition.order == Order::Maint
    }

    /// A copy of what is known of its health, by whoever has the last word: the operator, its probes, its requests.
    #[must_use]
    pub fn health(&self, now: Instant) -> Health {
        let condition = self.condition.lock();
        let mut health = condition.health.clone();
        let ordered = match condition.order {
            Order::Ready => None,
            Order::Drain => {
                Some((State::Draining, format!("by the operator; {}: {}", health.state.as_str(), health.why)))
            }
            Order::Maint => Some((State::Maint, "by the operator; not probed".to_owned())),
        };
        let told = match condition.record.standing(now) {
            Standing::Well => None,
            Standing::Ejected(_) => Some(State::Ejected),
            Standing::Suspect | Standing::OnTrial => Some(State::Suspect),
        };
        if let Some((state, why)) = ordered {
            (health.state, health.why, health.since) = (state, why, condition.ordered);
        } else if let (State::Up, Some(state)) = (health.state, told) {
            (health.state, health.why, health.since) = (state, condition.told.why.clone(), condition.told.since);
        }
        health
    }

    /// The operator's word for its weight, if there is one.
    #[must_use]
    pub fn ordered_weight(&self) -> Option<u32> {
        self.condition.lock().weight
    }

    /// What the operator says of it.
    #[must_use]
    pub fn ordered(&self) -> Order {
        self.condition.lock().order
    }

    // --- what it is told ---

    /// A probe is over. What changed by it, if anything did. A server that was down and is up again begins anew, whatever its
    /// requests told before. A slow probe is no sign of death where a byte of an answer came after `asked`.
    pub fn observe(&self, probed: Probed, rules: Rules, asked: Instant) -> Option<Change> {
        let answering = self.heard() > asked;
        self.with(|condition| {
            let change = condition.health.observe(probed, answering, rules, SystemTime::now());
            if let Some((from, State::Up)) = change.as_ref().map(|change| (change.from, change.to)) {
                if from == State::Down {
                    condition.record.forget();
                }
                let climbs = from == State::Down || condition.joins;
                condition.climbs = climbs.then(Instant::now);
            }
            change
        })
    }

    /// The operator's word.
    pub fn order(&self, order: Order) {
        self.with(|condition| {
            let now = SystemTime::now();
            if condition.order == Order::Maint && order != Order::Maint {
                condition.health.forget(now);
            }
            if condition.order != order {
                (condition.order, condition.ordered) = (order, now);
            }
        });
    }

    /// The operator's word for its weight; none: as configured.
    pub fn order_weight(&self, weight: Option<u32>) {
        self.with(|condition| condition.weight = weight);
    }

    /// An attempt there is over; see [`Record::hear`].
    pub(super) fn hear(&self, heard: Heard, rules: &eject::Rules, now: Instant) -> Option<eject::Change> {
        self.with(|condition| {
            let Heard { told, trial, room, why } = heard;
            let change = condition.record.hear(told, trial, room, *rules, now);
            if change.is_some() {
                condition.told = Reason { why: format!("requests told: {why}"), since: SystemTime::now() };
            }
            match change {
                Some(eject::Change::Back { asked: false }) => condition.climbs = Some(now),
                Some(eject::Change::Ejected(_)) => condition.climbs = None, // its trial is not to be long in coming
                _ => {}
            }
            change
        })
    }

    /// Whether a further good answer would tell nothing.
    pub(super) fn is_clean(&self) -> bool {
        self.plain.load(Relaxed) || self.condition.lock().record.is_clean()
    }

    /// Its name resolved to this.
    pub fn resolves_to(&self, address: SocketAddr) {
        self.condition.lock().resolved = Some(address);
    }

    /// Where its name leads; the last known answer if it no longer resolves.
    #[must_use]
    pub fn resolved(&self) -> Option<SocketAddr> {
        self.condition.lock().resolved
    }

    /// Where it is reached. `None` while its name has never resolved.
    #[must_use]
    pub fn endpoint(&self) -> Option<Endpoint> {
        match &self.address {
            Address::Socket(address) => Some(Endpoint::Socket(*address)),
            Address::Name { .. } => self.resolved().map(Endpoint::Socket),
            Address::Unix(path) => Some(Endpoint::Unix(path.clone())),
        }
    }

    // --- what is under way there ---

    /// Requests in flight.
    #[must_use]
    pub fn in_flight(&self) -> u32 {
        self.in_flight.load(Relaxed)
    }

    /// Requests that were sent there since the start.
    #[must_use]
    pub fn requests(&self) -> u64 {
        self.requests.load(Relaxed)
    }

    /// Those of them that failed.
    #[must_use]
    pub fn errors(&self) -> u64 {
        self.errors.load(Relaxed)
    }

    /// An attempt failed.
    pub fn failed(&self) {
        self.errors.fetch_add(1, Relaxed);
    }

    /// A byte of an answer has come from there.
    pub(super) fn speaks(&self, now: Instant) {
        let since = now.saturating_duration_since(self.born).as_nanos();
        self.heard.store(u64::try_from(since).unwrap_or(u64::MAX), Relaxed);
    }

    /// A request goes there. The number of the trial, if it is its trial; what it counts as; and where it waits for its first byte,
    /// if another server could have it.
    pub(super) fn enter(&self, load: Load, waiter: Option<Waiter>, now: Instant) -> (Option<u32>, Load, Option<usize>) {
        self.in_flight.fetch_add(1, Relaxed);
        self.requests.fetch_add(1, Relaxed);
        let trial = if self.plain.load(Relaxed) { None } else { self.condition.lock().record.taken(now) };
        if waiter.is_none() && !load.is_prompt() && trial.is_none() {
            return (None, load, None);
        }
        let (load, place) = self.traffic.lock().enter(load, waiter, trial.is_some(), self.heard(), now);
        (trial, load, place)
    }

    /// A request's answer begins, or it is over without one.
    pub(super) fn begins(&self, load: Load, place: Option<usize>) {
        if load.is_prompt() || place.is_some() {
            let waited = self.traffic.lock().begins(load, place);
            drop(waited); // it may hold a lease, which must not be given back under the lock
        }
    }

    /// A request leaves.
    pub(super) fn leave(&self, load: Load) {
        if load.is_prompt() {
            self.traffic.lock().leave(load);
        }
        self.in_flight.fetch_sub(1, Relaxed);
    }

    /// A stream of it waits for its client.
    #[must_use]
    pub fn hold(self: &Arc<Self>) -> Held {
        self.held.fetch_add(1, Relaxed);
        Held(self.clone())
    }

    /// When it counts as stalled, if not a byte of an answer comes before.
    pub(super) fn stalls_at(&self, rules: &eject::Rules) -> Option<Instant> {
        let held = self.held.load(Relaxed);
        self.traffic.lock().stalls_at(self.heard(), held, rules)
    }

    /// It has fallen silent.
    pub(super) fn fall_silent(&self, now: Instant) {
        self.traffic.lock().fall_silent(now);
    }

    /// The requests without a first byte that it keeps waiting since before it was found to be silent, and that would go elsewhere.
    pub(super) fn left_behind(&self) -> Vec<Waiter> {
        let (heard, traffic) = (self.heard(), self.traffic.lock());
        traffic.left_behind(heard).filter(|waiter| waiter.would_move()).cloned().collect()
    }

    fn heard(&self) -> Instant {
        self.born + Duration::from_nanos(self.heard.load(Relaxed))
    }

    /// Looks at or changes its condition, and lets the pick know.
    fn with<T>(&self, act: impl FnOnce(&mut Condition) -> T) -> T {
        let mut condition = self.condition.lock();
        let product = act(&mut condition);
        self.plain.store(condition.is_plain(), Relaxed);
        product
    }
}

// === impl Held ===

impl Drop for Held {
    fn drop(&mut self) {
        self.0.traffic.lock().listen(Instant::now());
        self.0.held.fetch_sub(1, Relaxed);
    }
}

// === impl Condition ===

impl Condition {
    /// Whether its probes and the operator let requests go there.
    fn is_open(&self) -> bool {
        self.health.state == State::Up && self.order == Order::Ready
    }

    fn is_plain(&self) -> bool {
        self.is_open() && self.record.is_clean() && self.weight.is_none() && self.climbs.is_none()
    }

    /// The share of its weight, in hundredths; it climbs from a tenth to the whole.
    fn share(&mut self, slow_start: Duration, now: Instant) -> u32 {
        if !self.is_open() || !matches!(self.record.standing(now), Standing::Well | Standing::Suspect) {
            return 0;
        }
        let Some(began) = self.climbs else { return 100 };
        let past = now.saturating_duration_since(began);
        if past >= slow_start {
            self.climbs = None;
            return 100;
        }
        FIRST_SHARE + (f64::from(100 - FIRST_SHARE) * past.div_duration_f64(slow_start)) as u32
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const RULES: Rules = Rules { rise: 1, fall: 1 };
    pub(super) const EJECT: eject::Rules = eject::Rules {
        failures: 1,
        duration: Duration::from_secs(10),
        max: 10_000,
        stall: None,
        stall_per_100kb: Duration::ZERO,
    };

    fn server(joins: bool) -> Server {
        Server::new(Address::Unix("/a".into()), joins)
    }

    fn failed() -> Probed {
        Probed::Failed("connection refused".into())
    }

    /// Its weights, configured as 3, each tenth of a slow start of 10 s.
    fn climb(server: &Server) -> Vec<u32> {
        let began = Instant::now();
        (0..=10).map(|second| server.weight(3, Duration::from_secs(10), began + Duration::from_secs(second))).collect()
    }

    #[test]
    fn a_server_that_recovers_or_joins_climbs_to_its_weight_and_the_first_ones_have_it_at_once() {
        let first = server(false);
        assert_eq!(climb(&first), [0; 11], "not probed");
        first.observe(Probed::Alive, RULES, Instant::now());
        assert_eq!(climb(&first), [300; 11]);
        let slowly = [30, 57, 84, 111, 138, 165, 192, 219, 246, 273, 300];
        first.observe(failed(), RULES, Instant::now());
        assert_eq!(climb(&first), [0; 11]);
        first.observe(Probed::Alive, RULES, Instant::now());
        assert_eq!(climb(&first), slowly);
        assert_eq!(climb(&first), [300; 11], "once");
        let joins = server(true);
        joins.observe(Probed::Alive, RULES, Instant::now());
        assert_eq!(climb(&joins), slowly);
        assert_eq!(server(true).weight(3, Duration::ZERO, Instant::now()), 0);
    }

    #[test]
    fn a_server_that_was_ejected_climbs_and_one_that_asked_for_a_pause_does_not() {
        for (told, share) in [(Told::Failed, 30), (Told::Later(Duration::from_secs(10), false), 300)] {
            let server = server(false);
            server.observe(Probed::Alive, RULES, Instant::now());
            let heard = |told, trial| Heard { told, trial, room: true, why: "reset" };
            server.hear(heard(told, None), &EJECT, Instant::now());
            assert_eq!(climb(&server)[..9], [0; 9]);
            let later = Instant::now() + Duration::from_secs(11);
            let (trial, ..) = server.enter(Load::default(), None, later);
            assert_eq!(server.weight(3, Duration::ZERO, later), 0, "its trial is under way");
            server.hear(heard(Told::Well, trial), &EJECT, Instant::now());
            assert_eq!(climb(&server)[0], share);
        }
    }

    #[test]
    fn the_operator_has_the_last_word() {
        let server = server(false);
        server.observe(Probed::Alive, RULES, Instant::now());
        let now = Instant::now();
        let state = |server: &Server| server.health(now).state.as_str();
        let weight = |server: &Server| server.weight(3, Duration::ZERO, now);
        for (order, expected, weighs, why) in [
            (Order::Drain, "draining", 0, "by the operator; up: probe answered"),
            (Order::Ready, "up", 300, "probe answered"),
            (Order::Maint, "maint", 0, "by the operator; not probed"),
        ] {
            server.order(order);
            assert_eq!((state(&server), weight(&server), &*server.health(now).why), (expected, weighs, why));
        }
        server.order(Order::Ready);
        assert_eq!((state(&server), weight(&server)), ("down", 0), "what was known before counts no more");
        server.observe(Probed::Alive, Rules { rise: 9, fall: 9 }, now);
        assert_eq!((state(&server), weight(&server)), ("up", 300));
        server.order_weight(Some(7));
        assert_eq!(weight(&server), 700);
        server.order_weight(Some(0));
        assert_eq!(weight(&server), 0);
        server.order_weight(None);
        assert_eq!(weight(&server), 300);
    }

    #[test]
    fn a_server_that_was_in_maintenance_before_its_first_probe_holds_up_nobodys_start() {
        let server = server(false);
        assert!(!server.is_probed());
        server.order(Order::Maint);
        assert!(server.is_probed());
        server.order(Order::Ready);
        let health = server.health(Instant::now());
        assert_eq!(
            (server.is_probed(), health.state, &*health.why),
            (true, State::Down, "not probed since its maintenance")
        );
    }

    #[test]
    fn a_slow_probe_is_no_death_where_a_byte_came_since_it_was_asked() {
        let server = server(false);
        let asked = Instant::now();
        server.observe(Probed::Alive, RULES, asked);
        server.speaks(asked + Duration::from_secs(1));
        assert_eq!(server.observe(Probed::Late("late".into()), RULES, asked), None);
        assert_eq!(server.health(asked).why, "late, but requests are answered");
        let change = server.observe(Probed::Late("late".into()), RULES, asked + Duration::from_secs(2));
        assert_eq!(change.map(|change| change.to), Some(State::Down));
    }
}
