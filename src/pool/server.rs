//! One engine: its state over what probes tell, and its counts.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering::Relaxed};
use std::time::{Instant, SystemTime};

use parking_lot::Mutex;

use super::eject::{self, Record, Standing, Told};
use super::settings::{Address, Endpoint};

/// One engine. It outlives reloads, and so do its counts.
#[derive(Debug)]
pub struct Server {
    /// Where it listens, as configured.
    pub address: Address,
    /// The address as a number, for selectors.
    pub id: u64,
    health: Mutex<Health>,
    /// What `health` says, for the pick to read without its lock.
    up: AtomicBool,
    ejection: Mutex<Ejection>,
    /// Whether its traffic tells nothing against it, for the pick to read without the lock.
    clean: AtomicBool,
    in_flight: AtomicU32,
    requests: AtomicU64,
    errors: AtomicU64,
}

/// What is known of an engine by its traffic.
#[derive(Debug)]
struct Ejection {
    record: Record,
    /// The reason of the last change, for people.
    why: String,
    /// When that was.
    since: SystemTime,
}

/// What is known of an engine's health.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Health {
    /// Whether it is used.
    pub state: State,
    /// The reason, for people.
    pub why: String,
    /// When the state began.
    pub since: SystemTime,
    /// When it was last probed.
    pub probed: Option<SystemTime>,
    /// Where its name leads; the last known answer if it no longer resolves.
    pub resolved: Option<SocketAddr>,
    /// Probes in a row that speak against the state.
    against: u32,
}

/// Whether a server is used.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    /// Not probed yet: not used.
    Starting,
    /// Used.
    Up,
    /// Its probes are well and its requests are not: not used for a while.
    Ejected,
    /// Let through once, as a trial.
    Suspect,
    /// Not used.
    Down,
}

/// What one probe found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Probed {
    /// It answered well.
    Alive,
    /// It refused the probe (401, 403 or 429), which a dead engine could not.
    Refused(u16),
    /// It did not answer well; why, for people.
    Failed(String),
}

/// How many probes in a row change a server's state.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rules {
    /// Good ones, for a server that is down.
    pub rise: u32,
    /// Bad ones, for a server that is up.
    pub fall: u32,
}

/// A change of state, for the log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Change {
    /// The state before.
    pub from: State,
    /// The state now.
    pub to: State,
    /// The reason.
    pub why: String,
}

// === impl Server ===

impl Server {
    /// A server that was not probed yet.
    #[must_use]
    pub fn new(address: Address) -> Self {
        Self {
            id: address.id(),
            address,
            health: Mutex::new(Health::new(SystemTime::now())),
            up: AtomicBool::new(false),
            ejection: Mutex::new(Ejection { record: Record::default(), why: String::new(), since: SystemTime::now() }),
            clean: AtomicBool::new(true),
            in_flight: AtomicU32::new(0),
            requests: AtomicU64::new(0),
            errors: AtomicU64::new(0),
        }
    }

    /// Whether a request may go there now.
    #[must_use]
    pub fn is_usable(&self, now: Instant) -> bool {
        self.is_up() && matches!(self.standing(now), Standing::Well | Standing::Suspect)
    }

    /// Where it stands by its traffic.
    #[must_use]
    pub fn standing(&self, now: Instant) -> Standing {
        if self.clean.load(Relaxed) { Standing::Well } else { self.ejection.lock().record.standing(now) }
    }

    /// Whether its probes let requests go there.
    #[must_use]
    pub fn is_up(&self) -> bool {
        self.up.load(Relaxed)
    }

    /// Whether its first probe is over.
    #[must_use]
    pub fn is_probed(&self) -> bool {
        self.health.lock().state != State::Starting
    }

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

    /// A copy of what is known of its health: by its probes, and where those let requests go there, by its traffic.
    #[must_use]
    pub fn health(&self, now: Instant) -> Health {
        let mut health = self.health.lock().clone();
        let state = match self.standing(now) {
            Standing::Well => return health,
            Standing::Ejected(_) => State::Ejected,
            Standing::Suspect | Standing::OnTrial => State::Suspect,
        };
        if health.state == State::Up {
            let ejection = self.ejection.lock();
            (health.state, health.since) = (state, ejection.since);
            health.why.clone_from(&ejection.why);
        }
        health
    }

    /// Where its name leads; the last known answer if it no longer resolves.
    #[must_use]
    pub fn resolved(&self) -> Option<SocketAddr> {
        self.health.lock().resolved
    }

    /// An attempt there is over; see [`Record::hear`].
    pub(super) fn hear(
        &self,
        told: Told,
        trial: bool,
        room: bool,
        rules: eject::Rules,
        why: &str,
    ) -> Option<eject::Change> {
        let mut ejection = self.ejection.lock();
        let change = ejection.record.hear(told, trial, room, rules, Instant::now());
        self.clean.store(ejection.record.is_clean(), Relaxed);
        if change.is_some() {
            (ejection.since, ejection.why) = (SystemTime::now(), format!("requests told: {why}"));
        }
        change
    }

    /// Whether a further good answer would tell nothing.
    pub(super) fn is_clean(&self) -> bool {
        self.clean.load(Relaxed)
    }

    /// Where it is reached. `None` while its name has never resolved.
    #[must_use]
    pub fn endpoint(&self) -> Option<Endpoint> {
        match &self.address {
            Address::Socket(address) => Some(Endpoint::Socket(*address)),
            Address::Name { .. } => self.health.lock().resolved.map(Endpoint::Socket),
            Address::Unix(path) => Some(Endpoint::Unix(path.clone())),
        }
    }

    /// Its name resolved to this.
    pub fn resolves_to(&self, address: SocketAddr) {
        self.health.lock().resolved = Some(address);
    }

    /// A probe is over. What changed by it, if anything did. A server that was down and is up again begins anew, whatever its
    /// traffic told before.
    pub fn observe(&self, probed: Probed, rules: Rules, now: SystemTime) -> Option<Change> {
        let mut health = self.health.lock();
        let change = health.observe(probed, rules, now);
        if change.as_ref().is_some_and(|change| (change.from, change.to) == (State::Down, State::Up)) {
            self.ejection.lock().record = Record::default();
            self.clean.store(true, Relaxed);
        }
        self.up.store(health.state == State::Up, Relaxed);
        change
    }

    /// A request goes there. True: it is its trial.
    pub(super) fn enter(&self, now: Instant) -> bool {
        self.in_flight.fetch_add(1, Relaxed);
        self.requests.fetch_add(1, Relaxed);
        !self.is_clean() && self.ejection.lock().record.taken(now)
    }

    pub(super) fn leave(&self) {
        self.in_flight.fetch_sub(1, Relaxed);
    }
}

// === impl Health ===

impl Health {
    fn new(now: SystemTime) -> Self {
        let why = "not probed yet".to_owned();
        Self { state: State::Starting, why, since: now, probed: None, resolved: None, against: 0 }
    }

    /// The first probe decides at once; then `rise` good or `fall` bad ones in a row do.
    fn observe(&mut self, probed: Probed, rules: Rules, now: SystemTime) -> Option<Change> {
        self.probed = Some(now);
        let (verdict, needed, why) = match probed {
            Probed::Alive => (State::Up, rules.rise, "probe answered".to_owned()),
            Probed::Refused(status) => (State::Up, rules.rise, format!("probe refused with {status}, so it is alive")),
            Probed::Failed(why) => (State::Down, rules.fall, why),
        };
        if verdict == self.state {
            self.against = 0;
            self.why = why;
            return None;
        }
        self.against += 1;
        if self.state != State::Starting && self.against < needed {
            return None;
        }
        let from = std::mem::replace(&mut self.state, verdict);
        (self.against, self.since) = (0, now);
        self.why.clone_from(&why);
        Some(Change { from, to: verdict, why })
    }
}

// === impl State ===

impl State {
    /// The contract's word for it.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Starting => "starting",
            Self::Up => "up",
            Self::Ejected => "ejected",
            Self::Suspect => "suspect",
            Self::Down => "down",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::{Duration, UNIX_EPOCH};

    /// `+` a good probe, `r` a refused one, `-` a bad one; the states after each: `s u d`.
    fn states(probes: &str, rise: u32, fall: u32) -> String {
        let mut health = Health::new(UNIX_EPOCH);
        let letters = probes.chars().enumerate().map(|(n, probe)| {
            let probed = match probe {
                '+' => Probed::Alive,
                'r' => Probed::Refused(401),
                _ => Probed::Failed("no".into()),
            };
            health.observe(probed, Rules { rise, fall }, UNIX_EPOCH + Duration::from_secs(n as u64));
            health.state.as_str().chars().next().unwrap_or('?')
        });
        letters.collect()
    }

    #[test]
    fn the_first_probe_decides_and_then_rise_and_fall_count() {
        for (probes, rise, fall, expected) in [
            ("+", 2, 3, "u"),
            ("-", 2, 3, "d"),
            ("r", 2, 3, "u"),
            ("+---", 2, 3, "uuud"),
            ("+--+--+---", 2, 3, "uuuuuuuuud"),
            ("-+-++", 2, 3, "ddddu"),
            ("-+r", 2, 3, "ddu"),
            ("+-+", 1, 1, "udu"),
        ] {
            assert_eq!(states(probes, rise, fall), expected, "{probes}");
        }
    }

    #[test]
    fn a_change_says_from_what_to_what_and_why_and_since_when() {
        let mut health = Health::new(UNIX_EPOCH);
        let rules = Rules { rise: 1, fall: 1 };
        let later = UNIX_EPOCH + Duration::from_secs(9);
        assert!(health.observe(Probed::Alive, rules, UNIX_EPOCH).is_some());
        assert!(health.observe(Probed::Refused(403), rules, UNIX_EPOCH).is_none());
        assert_eq!(health.why, "probe refused with 403, so it is alive");
        let change = health.observe(Probed::Failed("connection refused".into()), rules, later);
        assert_eq!(change, Some(Change { from: State::Up, to: State::Down, why: "connection refused".into() }));
        assert_eq!((health.since, health.probed), (later, Some(later)));
    }
}
