//! What probes tell of a server: whether it is up.

use std::time::SystemTime;

use serde::{Deserialize, Serialize};

/// What is known of an engine by its probes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Health {
    /// Whether it is used.
    pub state: State,
    /// The reason, for people.
    pub why: String,
    /// When the state began.
    pub since: SystemTime,
    /// When it was last probed.
    pub probed: Option<SystemTime>,
    /// Probes in a row that speak against the state.
    against: u32,
    /// Whether the next probe decides at once.
    afresh: bool,
}

/// Whether a server is used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
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
    /// Gets nothing new, by the operator's word.
    Draining,
    /// The same, and it is not probed.
    Maint,
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
    /// It did not answer in time; why, for people.
    Late(String),
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

// === impl Health ===

impl Health {
    /// Of a server that was not probed yet.
    #[must_use]
    pub fn new(now: SystemTime) -> Self {
        let why = "not probed yet".to_owned();
        Self { state: State::Starting, why, since: now, probed: None, against: 0, afresh: true }
    }

    /// It was not probed for a while: what was known counts no more. It is down, not starting: the daemon's start is over, and
    /// nobody waits for this one.
    pub fn forget(&mut self, now: SystemTime) {
        let why = "not probed since its maintenance".to_owned();
        *self = Self { state: State::Down, why, probed: self.probed, ..Self::new(now) };
    }

    /// The first probe decides at once; then `rise` good or `fall` bad ones in a row do. A server that is `answering` its requests
    /// is not dead because it is slow to answer a probe.
    pub fn observe(&mut self, probed: Probed, answering: bool, rules: Rules, now: SystemTime) -> Option<Change> {
        self.probed = Some(now);
        let (verdict, needed, why) = match probed {
            Probed::Alive => (State::Up, rules.rise, "probe answered".to_owned()),
            Probed::Refused(429) => (State::Up, rules.rise, "busy: it refused the probe with 429".to_owned()),
            Probed::Refused(status) => (
                State::Up,
                rules.rise,
                format!("alive, but it refuses the probe with {status}: see the pool's `api_key`"),
            ),
            Probed::Late(why) if answering && self.state == State::Up => {
                (State::Up, 0, format!("{why}, but requests are answered"))
            }
            Probed::Failed(why) | Probed::Late(why) => (State::Down, rules.fall, why),
        };
        if verdict == self.state && !self.afresh {
            self.against = 0;
            self.why = why;
            return None;
        }
        self.against += 1;
        if !self.afresh && self.against < needed {
            return None;
        }
        let from = std::mem::replace(&mut self.state, verdict);
        (self.against, self.afresh) = (0, false);
        self.why.clone_from(&why);
        if from == verdict {
            return None;
        }
        self.since = now;
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
            Self::Draining => "draining",
            Self::Maint => "maint",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::{Duration, UNIX_EPOCH};

    /// `+` a good probe, `r` a refused one, `-` a bad one, `l` a late one, `a` a late one while requests are answered, `m` not
    /// probed for a while; the states after each: `s u d`.
    fn states(probes: &str, rise: u32, fall: u32) -> String {
        let mut health = Health::new(UNIX_EPOCH);
        let letters = probes.chars().enumerate().map(|(n, probe)| {
            let now = UNIX_EPOCH + Duration::from_secs(n as u64);
            let probed = match probe {
                '+' => Some(Probed::Alive),
                'r' => Some(Probed::Refused(401)),
                'l' | 'a' => Some(Probed::Late("no".into())),
                'm' => None,
                _ => Some(Probed::Failed("no".into())),
            };
            match probed {
                Some(probed) => drop(health.observe(probed, probe == 'a', Rules { rise, fall }, now)),
                None => health.forget(now),
            }
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
            // A slow probe of an engine that answers is no sign of death, and takes away what spoke for it.
            ("+lll", 2, 3, "uuud"),
            ("+aaaaaa", 2, 3, "uuuuuuu"),
            ("+llalll", 2, 3, "uuuuuud"),
            ("aa", 2, 3, "dd"),
            ("---a+a+", 2, 3, "ddddddd"),
            // After a maintenance the next probe decides.
            ("+m+", 2, 3, "udu"),
            ("+m-", 2, 3, "udd"),
            ("m+", 2, 3, "du"),
        ] {
            assert_eq!(states(probes, rise, fall), expected, "{probes}");
        }
    }

    #[test]
    fn a_change_says_from_what_to_what_and_why_and_since_when() {
        let mut health = Health::new(UNIX_EPOCH);
        let rules = Rules { rise: 1, fall: 1 };
        let later = UNIX_EPOCH + Duration::from_secs(9);
        assert!(health.observe(Probed::Alive, false, rules, UNIX_EPOCH).is_some());
        for (status, why) in [
            (403, "alive, but it refuses the probe with 403: see the pool's `api_key`"),
            (429, "busy: it refused the probe with 429"),
        ] {
            assert!(health.observe(Probed::Refused(status), false, rules, UNIX_EPOCH).is_none());
            assert_eq!(health.why, why);
        }
        let change = health.observe(Probed::Failed("connection refused".into()), false, rules, later);
        assert_eq!(change, Some(Change { from: State::Up, to: State::Down, why: "connection refused".into() }));
        assert_eq!((health.since, health.probed), (later, Some(later)));
    }
}
