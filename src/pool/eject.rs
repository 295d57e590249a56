//! What real traffic tells of a server: whether it is left alone for a while, and when it is tried again.
//!
//! Probes ask an engine whether it is well; requests show it. Failures in a row eject a server for a time that doubles as long
//! as they go on. Then one request is let through as a trial, and its outcome decides.

use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

/// When a server is ejected.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rules {
    /// After so many failures in a row.
    pub failures: u32,
    /// For how long the first time.
    pub duration: Duration,
    /// How much of the pool may be ejected at once, in hundredths of a percent.
    pub max: u32,
    /// After so long a silence of it while streamed requests wait; none: never.
    pub stall: Option<Duration>,
    /// How much longer for each 100 kB of prompt that waits there.
    pub stall_per_100kb: Duration,
}

/// What one attempt told of its server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Told {
    /// It answered.
    Well,
    /// It failed.
    Failed,
    /// It asked to be left alone for so long; whether that was a failure too.
    Later(Duration, bool),
    /// It has fallen silent, whatever its attempts are at.
    Stalled,
    /// Nothing: its client left, or it was too slow.
    Nothing,
}

/// What changed by what was told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Change {
    /// The server is ejected for so long.
    Ejected(Duration),
    /// It is back. `asked`: it was away because it had asked for that, and can take its whole share at once.
    Back {
        /// Whether it had asked.
        asked: bool,
    },
}

/// Where a server stands by its traffic.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Standing {
    /// It is used.
    Well,
    /// It is left alone until then.
    Ejected(Instant),
    /// Its time is over: the next request is its trial.
    Suspect,
    /// Its trial is under way.
    OnTrial,
}

/// One server's record.
#[derive(Debug, Default)]
pub struct Record {
    /// Failures in a row.
    failures: u32,
    /// The time for which it was last ejected.
    last: Duration,
    /// When it came back from that.
    back: Option<Instant>,
    /// Until when it is left alone, if it is.
    until: Option<Instant>,
    /// Whether it asked for that.
    asked: bool,
    /// The number of the trial under way, if one is.
    trial: Option<u32>,
    trials: u32,
}

/// A record as another process can read it: with times from now. A trial that is under way is not in it, for who is on trial is
/// not either.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Kept {
    failures: u32,
    last: Duration,
    /// How long ago it came back.
    back: Option<Duration>,
    /// For how long it is still left alone; zero: its trial is due.
    left_alone: Option<Duration>,
    asked: bool,
}

/// How often the duration doubles: to 16 times.
const DOUBLINGS: u32 = 4;

// === impl Rules ===

impl Rules {
    /// How many of so many servers may be ejected at once: rounded down, and never the only one.
    #[must_use]
    pub fn most(&self, servers: usize) -> usize {
        let share = servers as u64 * u64::from(self.max) / 10_000;
        if servers > 1 { usize::try_from(share).unwrap_or(servers) } else { 0 }
    }

    fn longest(&self) -> Duration {
        self.duration.saturating_mul(1 << DOUBLINGS)
    }
}

// === impl Record ===

impl Record {
    /// Where it stands now.
    #[must_use]
    pub fn standing(&self, now: Instant) -> Standing {
        match self.until {
            None => Standing::Well,
            Some(_) if self.trial.is_some() => Standing::OnTrial,
            Some(until) if now < until => Standing::Ejected(until),
            Some(_) => Standing::Suspect,
        }
    }

    /// Nothing counts against it any more. A trial that is under way decides nothing.
    pub fn forget(&mut self) {
        *self = Self { trials: self.trials, ..Self::default() };
    }

    /// Whether there is nothing against it, so that a further good answer tells nothing.
    #[must_use]
    pub fn is_clean(&self) -> bool {
        self.failures == 0 && self.until.is_none()
    }

    /// A request goes there. The number of the trial, if it is its trial.
    pub fn taken(&mut self, now: Instant) -> Option<u32> {
        if self.standing(now) != Standing::Suspect {
            return None;
        }
        self.trials = self.trials.wrapping_add(1);
        self.trial = Some(self.trials);
        self.trial
    }

    /// An attempt is over; `trial`: it was this trial. `room`: one more may be ejected. What changed by that, if anything did.
    pub fn hear(&mut self, told: Told, trial: Option<u32>, room: bool, rules: Rules, now: Instant) -> Option<Change> {
        // One that was decided without it says no more than any other attempt.
        let trial = trial.is_some() && trial == self.trial || told == Told::Stalled && self.trial.is_some();
        if trial {
            self.trial = None;
        }
        match told {
            Told::Nothing => None,
            Told::Well => {
                self.failures = 0;
                let back = trial || self.until.is_some_and(|until| until <= now);
                if self.until.is_none() || !back {
                    return None;
                }
                // Whatever is still on trial there has been answered by this.
                (self.until, self.back, self.trial) = (None, Some(now), None);
                Some(Change::Back { asked: self.asked })
            }
            Told::Failed => self.failed(trial, room, rules, now),
            Told::Stalled => {
                self.failures = self.failures.max(rules.failures.saturating_sub(1));
                self.failed(trial, room, rules, now)
            }
            Told::Later(after, failed) => {
                let ejected = if failed { self.failed(trial, room, rules, now) } else { None };
                let asked = after.min(rules.longest());
                let longer = self.until.is_none_or(|until| until < now + asked);
                if longer && !asked.is_zero() && (room || self.until.is_some()) {
                    self.asked |= self.until.is_none();
                    self.until = Some(now + asked);
                    return Some(Change::Ejected(asked));
                }
                ejected
            }
        }
    }

    /// Its record for another process.
    #[must_use]
    pub fn keep(&self, now: Instant) -> Kept {
        Kept {
            failures: self.failures,
            last: self.last,
            back: self.back.map(|back| now.saturating_duration_since(back)),
            left_alone: self.until.map(|until| until.saturating_duration_since(now)),
            asked: self.asked,
        }
    }

    fn failed(&mut self, trial: bool, room: bool, rules: Rules, now: Instant) -> Option<Change> {
        self.failures = self.failures.saturating_add(1);
        let again = trial && self.until.is_some();
        let enough = self.until.is_none() && self.failures >= rules.failures && room;
        if !again && !enough {
            return None;
        }
        let recent = again || self.back.is_some_and(|back| now.saturating_duration_since(back) < self.last);
        let doubled = if recent { self.last.saturating_mul(2) } else { rules.duration };
        self.last = doubled.clamp(rules.duration, rules.longest());
        self.failures = 0;
        (self.until, self.asked) = (Some(now + self.last), false);
        Some(Change::Ejected(self.last))
    }
}

// === impl Kept ===

impl Kept {
    /// The record that another process kept.
    #[must_use]
    pub fn at(&self, now: Instant) -> Record {
        Record {
            failures: self.failures,
            last: self.last,
            back: self.back.and_then(|past| now.checked_sub(past)),
            until: self.left_alone.map(|left| now + left),
            asked: self.asked,
            ..Record::default()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const RULES: Rules = Rules {
        failures: 3,
        duration: Duration::from_secs(10),
        max: 5_000,
        stall: None,
        stall_per_100kb: Duration::ZERO,
    };

    fn seconds(n: u64) -> Duration {
        Duration::from_secs(n)
    }

    const BACK: Option<Change> = Some(Change::Back { asked: false });

    fn out(n: u64) -> Option<Change> {
        Some(Change::Ejected(seconds(n)))
    }

    #[test]
    fn failures_in_a_row_eject_for_a_time_that_doubles_until_a_trial_goes_well() {
        let began = Instant::now();
        let mut record = Record::default();
        let fail =
            |record: &mut Record, at: u64, trial| record.hear(Told::Failed, trial, true, RULES, began + seconds(at));
        assert_eq!([0, 0, 0].map(|at| fail(&mut record, at, None)), [None, None, out(10)]);
        assert_eq!(record.standing(began + seconds(9)), Standing::Ejected(began + seconds(10)));
        assert_eq!(record.taken(began + seconds(9)), None);
        let mut at = 10;
        for lasts in [20, 40, 80, 160, 160] {
            assert_eq!(record.standing(began + seconds(at)), Standing::Suspect);
            let trial = record.taken(began + seconds(at));
            assert!(trial.is_some());
            assert_eq!(record.standing(began + seconds(at)), Standing::OnTrial);
            assert_eq!(record.taken(began + seconds(at)), None, "one at a time");
            assert_eq!(fail(&mut record, at, trial), out(lasts));
            at += lasts;
        }
        let trial = record.taken(began + seconds(at));
        assert_eq!(record.hear(Told::Well, trial, true, RULES, began + seconds(at)), BACK);
        assert!(record.is_clean());
        // Soon again: it goes on doubling; after a good while it begins anew.
        let soon = [1, 2, 3].map(|n| fail(&mut record, at + n, None));
        assert_eq!(soon, [None, None, out(160)]);
        at += 163;
        let trial = record.taken(began + seconds(at));
        record.hear(Told::Well, trial, true, RULES, began + seconds(at));
        at += 200;
        assert_eq!([0, 0, 0].map(|n| fail(&mut record, at + n, None)), [None, None, out(10)]);
    }

    #[test]
    fn a_good_answer_begins_the_count_anew_and_a_trial_that_tells_nothing_is_made_again() {
        let now = Instant::now();
        let mut record = Record::default();
        for told in [Told::Failed, Told::Failed, Told::Well, Told::Failed, Told::Failed, Told::Nothing] {
            assert_eq!(record.hear(told, None, true, RULES, now), None);
        }
        assert!(!record.is_clean());
        assert_eq!(record.hear(Told::Failed, None, false, RULES, now), None, "no room");
        assert_eq!(record.hear(Told::Failed, None, true, RULES, now), out(10));
        let later = now + seconds(10);
        let trial = record.taken(later);
        record.hear(Told::Nothing, trial, true, RULES, later);
        assert_eq!(record.standing(later), Standing::Suspect);
    }

    #[test]
    fn silence_ejects_at_once_and_decides_the_trial_under_way() {
        let now = Instant::now();
        let mut record = Record::default();
        assert_eq!(record.hear(Told::Stalled, None, false, RULES, now), None, "no room");
        assert_eq!(record.hear(Told::Stalled, None, true, RULES, now), out(10));
        assert_eq!(record.hear(Told::Stalled, None, true, RULES, now), None, "it is already");
        let first = record.taken(now + seconds(10));
        assert_eq!(record.hear(Told::Stalled, None, true, RULES, now + seconds(12)), out(20));
        let second = record.taken(now + seconds(32));
        assert_ne!(first, second);
        record.hear(Told::Nothing, first, true, RULES, now + seconds(33));
        assert_eq!(record.standing(now + seconds(33)), Standing::OnTrial, "the former trial decides no more");
        assert_eq!(record.hear(Told::Well, second, true, RULES, now + seconds(34)), BACK);
    }

    #[test]
    fn the_trial_of_a_server_that_began_anew_meanwhile_decides_nothing() {
        let now = Instant::now();
        let mut record = Record::default();
        let trial = |record: &mut Record| {
            record.hear(Told::Stalled, None, true, RULES, now);
            record.taken(now + seconds(10))
        };
        let former = trial(&mut record);
        record.forget();
        assert!(record.is_clean());
        let trial = trial(&mut record);
        assert!(trial.is_some());
        record.hear(Told::Failed, former, true, RULES, now + seconds(10));
        assert_eq!(record.standing(now + seconds(10)), Standing::OnTrial);
    }

    #[test]
    fn a_server_that_asks_for_it_is_left_alone_for_that_long() {
        let now = Instant::now();
        for (after, failed, room, expected) in [
            (5, false, true, Some(5)),
            (5, true, true, Some(5)),
            (0, false, true, None),
            (1_000_000, false, true, Some(160)),
            (5, false, false, None),
        ] {
            let mut record = Record::default();
            let told = Told::Later(seconds(after), failed);
            assert_eq!(record.hear(told, None, room, RULES, now), expected.and_then(out), "{after}");
        }
    }

    #[test]
    fn one_that_asked_for_it_comes_back_at_once_and_one_that_failed_does_not() {
        let now = Instant::now();
        let asked = [(Told::Later(seconds(5), false), true)];
        let failed = [(Told::Stalled, false), (Told::Later(seconds(20), true), false)];
        for told in [&asked[..], &failed[..], &failed[1..], &[failed[0], asked[0]]] {
            let mut record = Record { failures: 2, ..Record::default() };
            for (told, _) in told {
                record.hear(*told, None, true, RULES, now);
            }
            let trial = record.taken(now + seconds(30));
            let back = record.hear(Told::Well, trial, true, RULES, now + seconds(30));
            assert_eq!(back, Some(Change::Back { asked: told[0].1 }), "{told:?}");
        }
    }

    #[test]
    fn never_more_than_the_share_is_ejected_and_never_the_only_one() {
        for (max, servers, most) in [
            (5_000, 1, 0),
            (5_000, 2, 1),
            (5_000, 3, 1),
            (5_000, 4, 2),
            (10_000, 1, 0),
            (10_000, 2, 2),
            (10_000, 4, 4),
            (0, 9, 0),
            (3_300, 10, 3),
        ] {
            assert_eq!(Rules { max, ..RULES }.most(servers), most, "{max} of {servers}");
        }
    }

    proptest! {
        #[test]
        fn no_sequence_leaves_a_server_out_for_ever(
            events in proptest::collection::vec((0_u64..40, 0_u8..6, any::<bool>()), 0..200),
        ) {
            let mut now = Instant::now();
            let mut record = Record::default();
            for (wait, told, room) in events {
                now += seconds(wait);
                let later = Told::Later(seconds(wait), true);
                let told = [Told::Well, Told::Failed, Told::Failed, later, Told::Stalled, Told::Nothing][told as usize];
                let trial = record.taken(now);
                record.hear(told, trial, room, RULES, now);
                prop_assert!(record.standing(now) != Standing::OnTrial);
            }
            now += RULES.longest();
            let trial = record.taken(now);
            record.hear(Told::Well, trial, false, RULES, now);
            prop_assert_eq!(record.standing(now), Standing::Well);
        }
    }
}
