//! A request's way through its pool: which servers it tries, and how each attempt ends.

use std::time::{Duration, Instant};

use super::balance::Asker;
use super::eject::{Change, Told};
use super::retry::{Failure, Next, Repeat, Tries, next};
use super::{Lease, Pool};

/// A request's way through its pool.
#[derive(Debug, Default)]
pub struct Way {
    /// Who goes.
    pub asker: Asker,
    /// The attempt under way.
    lease: Option<Lease>,
    /// The next server, leased before the attempt under way is given up.
    reserved: Option<Lease>,
    /// The servers tried, by place.
    tried: Vec<usize>,
    /// How their attempts ended.
    outcomes: Vec<Outcome>,
    /// Whether the attempt under way repeats on a fresh connection.
    pub fresh: bool,
    /// Whether an engine that may have begun the request was given up for another.
    lost: bool,
    /// How often the request can be sent.
    pub repeat: Repeat,
    /// For how long the engine of the attempt under way asked to be left alone, in its answer.
    pub later: Option<Duration>,
    /// What changed for a server by the last attempt, until somebody takes it.
    pub turn: Option<Turn>,
}

/// What changed for a server by an attempt.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Turn {
    /// Its place in the pool.
    pub place: usize,
    /// What.
    pub change: Change,
    /// By what; a metric label.
    pub reason: &'static str,
}

/// How an attempt ended; a metric label.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// The engine answered, whatever it said, and the client got it.
    Answered,
    /// The same, with a 5xx.
    ServerError,
    /// The engine answered 429, 502 or 503, and another server was asked.
    Refused,
    /// No connection.
    ConnectFailed,
    /// Closed or reset before an answer.
    Reset,
    /// No answer in time.
    TimedOut,
    /// The answer broke off.
    Truncated,
    /// The client went first.
    Cancelled,
}

// === impl Way ===

impl Way {
    /// The lease of the next attempt. `None`: no server is left.
    pub fn go(&mut self, pool: &Pool) -> Option<&Lease> {
        if !self.fresh || self.lease.is_none() {
            let lease = self.reserved.take().or_else(|| pool.pick(&self.tried, self.asker, Instant::now()))?;
            self.tried.push(lease.place);
            self.outcomes.push(Outcome::Cancelled); // until something else is known
            self.lease = Some(lease); // the former one is given back here
        }
        self.lease.as_ref()
    }

    /// The attempt under way failed before its answer began. Whether to go on; the next server is leased by then. An answer that
    /// was [`Outcome::Refused`] and cannot go on is the client's.
    pub fn fails(&mut self, failure: Failure, outcome: Outcome, pool: &Pool) -> bool {
        let tries = Tries {
            attempts: self.tried.len(),
            allowed: pool.settings.attempts,
            fresh: self.fresh,
            lost: self.lost,
            repeat: self.repeat,
        };
        let next = next(failure, tries);
        if next == Next::Fresh {
            // The same attempt goes on: that a kept connection ends, or a stream is refused, is no failure of the server.
            self.fresh = true;
            return true;
        }
        if next == Next::Another {
            self.reserved = pool.pick_another(&self.tried, self.asker, Instant::now());
        }
        let goes = self.reserved.is_some();
        if goes {
            self.fresh = false;
            self.lost |= matches!(failure, Failure::Lost | Failure::Untaken);
        }
        if goes || outcome != Outcome::Refused {
            self.ends(outcome, pool);
        }
        goes
    }

    /// How the attempt under way ended, or that its answer began. The server hears of it.
    pub fn ends(&mut self, outcome: Outcome, pool: &Pool) {
        let (Some(last), Some(lease)) = (self.outcomes.last_mut(), &mut self.lease) else { return };
        *last = outcome;
        if !matches!(outcome, Outcome::Answered | Outcome::Cancelled) {
            lease.server.failed();
        }
        let failed = !matches!(outcome, Outcome::Answered | Outcome::Cancelled | Outcome::TimedOut);
        let told = match (outcome, self.later.take()) {
            (_, Some(later)) => Told::Later(later, failed),
            // That an answer begins well decides a trial; the rest of it may still fail.
            (Outcome::Answered, None) if !lease.is_trial() => return,
            (Outcome::Answered, None) => Told::Well,
            _ if failed => Told::Failed,
            _ => Told::Nothing,
        };
        let reason = if let Told::Later(..) = told { "retry_after" } else { outcome.as_str() };
        let change = pool.hear(lease, told, reason);
        self.turn = change.map(|change| Turn { place: lease.place, change, reason }).or(self.turn.take());
    }

    /// The answer is whole.
    pub fn is_whole(&mut self, pool: &Pool) {
        if let (Some(Outcome::Answered), Some(lease)) = (self.outcomes.last(), &mut self.lease) {
            pool.hear(lease, Told::Well, "");
        }
    }

    /// The place of the server of the attempt under way.
    #[must_use]
    pub fn place(&self) -> Option<usize> {
        self.tried.last().copied()
    }

    /// The server of the attempt under way, as people know it.
    #[must_use]
    pub fn server<'p>(&self, pool: &'p Pool) -> &'p str {
        self.place().map_or("", |place| &pool.settings.servers[place].name)
    }

    /// Every server tried, by place, and how its attempt ended.
    pub fn attempts(&self) -> impl Iterator<Item = (usize, Outcome)> {
        self.tried.iter().copied().zip(self.outcomes.iter().copied())
    }
}

// === impl Outcome ===

impl Outcome {
    /// All of them, in their order.
    pub const ALL: [Self; 8] = [
        Self::Answered,
        Self::ServerError,
        Self::Refused,
        Self::ConnectFailed,
        Self::Reset,
        Self::TimedOut,
        Self::Truncated,
        Self::Cancelled,
    ];

    /// The label.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Answered => "answered",
            Self::ServerError => "server_error",
            Self::Refused => "refused",
            Self::ConnectFailed => "connect_failed",
            Self::Reset => "reset",
            Self::TimedOut => "timed_out",
            Self::Truncated => "truncated",
            Self::Cancelled => "cancelled",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pool::tests::pool;

    fn way() -> Way {
        Way { repeat: Repeat::Anywhere, ..Way::default() }
    }

    fn outcomes(way: &Way) -> Vec<(usize, &'static str)> {
        way.attempts().map(|(place, outcome)| (place, outcome.as_str())).collect()
    }

    #[test]
    fn a_connect_failure_goes_to_another_server_until_none_is_left() {
        let pool = pool(&[("a", 1, false), ("b", 1, false)]);
        let mut way = way();
        assert_eq!(way.go(&pool).map(|lease| lease.place), Some(0));
        assert!(way.fails(Failure::Connect, Outcome::ConnectFailed, &pool));
        assert_eq!(way.go(&pool).map(|lease| lease.place), Some(1));
        assert_eq!((pool.servers[0].in_flight(), pool.servers[1].in_flight()), (0, 1));
        assert!(!way.fails(Failure::Connect, Outcome::ConnectFailed, &pool));
        assert_eq!(outcomes(&way), [(0, "connect_failed"), (1, "connect_failed")]);
        assert_eq!((pool.servers[0].errors(), pool.servers[1].errors()), (1, 1));
        drop(way);
        assert_eq!(pool.servers[1].in_flight(), 0);
    }

    #[test]
    fn a_kept_connection_that_dies_is_one_attempt_and_no_error() {
        let pool = pool(&[("a", 1, false), ("b", 1, false)]);
        let mut way = way();
        assert_eq!(way.go(&pool).map(|lease| lease.place), Some(0));
        assert!(way.fails(Failure::Untaken, Outcome::Reset, &pool));
        assert_eq!((way.fresh, way.go(&pool).map(|lease| lease.place)), (true, Some(0)));
        way.ends(Outcome::Answered, &pool);
        assert_eq!((outcomes(&way), pool.servers[0].errors()), (vec![(0, "answered")], 0));
    }

    #[test]
    fn a_fresh_connection_that_cannot_be_made_moves_on() {
        let pool = pool(&[("a", 1, false), ("b", 1, false)]);
        let mut way = way();
        way.go(&pool);
        assert!(way.fails(Failure::Untaken, Outcome::Reset, &pool));
        way.go(&pool);
        assert!(way.fails(Failure::Connect, Outcome::ConnectFailed, &pool));
        assert_eq!((way.fresh, way.go(&pool).map(|lease| lease.place)), (false, Some(1)));
    }

    #[test]
    fn an_answer_that_turns_a_request_away_is_the_clients_where_no_other_server_is_left() {
        let pool = pool(&[("a", 1, false), ("b", 1, false)]);
        let mut way = way();
        way.go(&pool);
        assert!(way.fails(Failure::Busy, Outcome::Refused, &pool));
        assert_eq!(pool.servers[1].in_flight(), 1, "the next one is leased");
        way.go(&pool);
        assert!(!way.fails(Failure::Busy, Outcome::Refused, &pool));
        way.ends(Outcome::ServerError, &pool);
        assert_eq!(outcomes(&way), [(0, "refused"), (1, "server_error")]);
        assert_eq!((pool.servers[0].errors(), pool.servers[1].errors()), (1, 1));
    }

    #[test]
    fn what_an_engine_may_have_begun_goes_to_another_once() {
        let pool = pool(&[("a", 1, false), ("b", 1, false), ("c", 1, false)]);
        let mut way = way();
        way.go(&pool);
        assert!(way.fails(Failure::Lost, Outcome::Reset, &pool));
        way.go(&pool);
        assert!(!way.fails(Failure::Lost, Outcome::Reset, &pool));
        assert!(way.fails(Failure::Busy, Outcome::Refused, &pool), "that is another matter");
    }

    #[test]
    fn what_was_too_slow_does_not_go_again() {
        let pool = pool(&[("a", 1, false), ("b", 1, false)]);
        let mut way = way();
        way.go(&pool);
        assert!(!way.fails(Failure::Other, Outcome::TimedOut, &pool));
        assert_eq!((outcomes(&way), pool.servers[0].errors()), (vec![(0, "timed_out")], 1));
    }
}
