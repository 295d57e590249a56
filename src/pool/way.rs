//! A request's way through its pool: which servers it tries, and how each attempt ends.

use std::sync::Arc;
use std::time::{Duration, Instant};

use smallvec::SmallVec;

use super::eject::{Change, Told};
use super::handover::Handover;
use super::retry::{Failure, Next, Tries, next};
use super::{Caller, Lease, Picked, Pool, Ticket};

/// A request's way through its pool.
#[derive(Debug, Default)]
pub struct Way {
    /// Who goes.
    pub caller: Caller,
    /// The attempt under way.
    lease: Option<Lease>,
    /// The next server, leased before the attempt under way is given up.
    reserved: Option<Lease>,
    /// How the attempts ended, in the order of the servers tried.
    outcomes: SmallVec<[Outcome; 4]>,
    /// Whether the attempt under way repeats on a fresh connection.
    pub fresh: bool,
    /// Whether an engine that may have begun the request was given up for another.
    lost: bool,
    /// For how long the engine of the attempt under way asked to be left alone, in its answer.
    pub later: Option<Duration>,
    /// What changed for a server by the last attempt, until somebody takes it.
    pub news: Option<News>,
}

/// Where a request goes next.
#[derive(Debug)]
pub enum Goes {
    /// To a server: see [`Way::lease`].
    On,
    /// To the queue.
    Waits(Ticket),
    /// Nowhere: all servers are at their limits, and the queue is full.
    Full,
    /// Nowhere: no server is usable.
    Nowhere,
}

/// What changed for a server by an attempt.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct News {
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
    /// Not even a try: there was no socket to be had. It tells nothing of the server.
    NoSocket,
    /// Closed or reset before an answer.
    Reset,
    /// No answer in time.
    TimedOut,
    /// The answer broke off.
    Truncated,
    /// The server fell silent, and another one was asked.
    Stalled,
    /// The client went first.
    Cancelled,
}

// === impl Way ===

impl Drop for Way {
    fn drop(&mut self) {
        // A lease that waits there holds it through the server, and so itself.
        drop(self.caller.handover.close());
    }
}

impl Way {
    /// Goes on to the next attempt.
    pub fn go(&mut self, pool: &Arc<Pool>) -> Goes {
        if self.fresh && self.lease.is_some() {
            return Goes::On;
        }
        self.lease = None; // it may be what another waits for
        let picked = match self.reserved.take() {
            Some(lease) => Picked::Lease(lease),
            None => pool.pick(&self.caller, Instant::now()),
        };
        match picked {
            Picked::Lease(lease) => {
                self.takes(lease);
                Goes::On
            }
            Picked::Ticket(ticket) => Goes::Waits(ticket),
            Picked::Full => Goes::Full,
            Picked::None => Goes::Nowhere,
        }
    }

    /// An attempt begins with this lease.
    pub fn takes(&mut self, lease: Lease) {
        self.caller.tried.push(lease.place);
        self.outcomes.push(Outcome::Cancelled); // until something else is known
        self.lease = Some(lease);
        self.caller.handover.open(self.caller.tried.len()); // it is shut where this lease came through it
    }

    /// The lease of the attempt under way.
    #[must_use]
    pub fn lease(&self) -> Option<&Lease> {
        self.lease.as_ref()
    }

    /// The attempt under way failed before its answer began. Whether to go on; the next server is leased by then, or will be waited
    /// for. An answer that was [`Outcome::Refused`] and cannot go on is the client's.
    pub fn fails(&mut self, failure: Failure, outcome: Outcome, pool: &Arc<Pool>) -> bool {
        let tries = Tries {
            attempts: self.caller.tried.len(),
            allowed: pool.settings.retry.attempts,
            fresh: self.fresh,
            lost: self.lost,
            repeat: self.caller.repeat,
        };
        let next = next(failure, tries);
        if next == Next::Fresh {
            // The same attempt goes on: that a kept connection ends, or a stream is refused, is no failure of the server.
            self.fresh = true;
            return true;
        }
        let given = self.caller.handover.close();
        let goes = next == Next::Another
            && match given {
                Some(lease) => self.reserves(Picked::Lease(lease)),
                None => self.reserves(pool.pick_another(&self.caller, outcome != Outcome::Refused, Instant::now())),
            };
        if goes {
            self.fresh = false;
            self.lost |= matches!(failure, Failure::Lost | Failure::Untaken);
        }
        if goes || outcome != Outcome::Refused {
            self.ends(outcome, pool);
        }
        goes
    }

    /// Keeps what was picked for the next attempt. Whether there will be one.
    fn reserves(&mut self, picked: Picked) -> bool {
        match picked {
            Picked::Lease(lease) => self.reserved = Some(lease),
            Picked::Ticket(_) | Picked::Full => {} // it waits when it goes
            Picked::None => return false,
        }
        true
    }

    /// The server of the attempt under way has fallen silent, and another one is leased. Whether that is so.
    pub fn moves(&mut self, pool: &Arc<Pool>) -> bool {
        self.reserved = self.caller.handover.close();
        self.fresh = false;
        self.ends(Outcome::Stalled, pool);
        self.reserved.is_some()
    }

    /// Where this request is told that another server is leased for it.
    #[must_use]
    pub fn handover(&self) -> &Arc<Handover> {
        &self.caller.handover
    }

    /// A byte of the answer has come.
    pub fn hears(&mut self) {
        if let Some(lease) = &self.lease {
            lease.server().speaks(Instant::now());
        }
    }

    /// How the attempt under way ended, or that its answer began. The server hears of it.
    pub fn ends(&mut self, outcome: Outcome, pool: &Pool) {
        let (Some(last), Some(lease)) = (self.outcomes.last_mut(), &mut self.lease) else { return };
        *last = outcome;
        if outcome.is_answer() {
            lease.begins();
            drop(self.caller.handover.close());
        }
        if !matches!(outcome, Outcome::Answered | Outcome::Cancelled | Outcome::NoSocket) {
            lease.server().failed();
        }
        let tells = !matches!(outcome, Outcome::Cancelled | Outcome::TimedOut | Outcome::Stalled | Outcome::NoSocket);
        let failed = tells && outcome != Outcome::Answered;
        let told = match (outcome, self.later.take()) {
            (_, Some(later)) => Told::Later(later, failed),
            // That an answer begins well decides a trial; the rest of it may still fail.
            (Outcome::Answered, None) if !lease.is_trial() => return,
            (Outcome::Answered, None) => Told::Well,
            _ if failed => Told::Failed,
            _ => Told::Nothing,
        };
        let reason = if let Told::Later(..) = told { "retry_after" } else { outcome.as_str() };
        self.news = pool.hear(lease, told, reason, Instant::now()).or(self.news.take());
    }

    /// The answer is whole.
    pub fn is_whole(&mut self, pool: &Pool) {
        if let (Some(Outcome::Answered), Some(lease)) = (self.outcomes.last(), &mut self.lease) {
            pool.hear(lease, Told::Well, "", Instant::now());
        }
    }

    /// The place of the server of the attempt under way.
    #[must_use]
    pub fn place(&self) -> Option<usize> {
        self.caller.tried.last().copied()
    }

    /// The server of the attempt under way, as people know it.
    #[must_use]
    pub fn server<'p>(&self, pool: &'p Pool) -> &'p str {
        self.place().map_or("", |place| &pool.settings.servers[place].name)
    }

    /// Every server tried, by place, and how its attempt ended.
    pub fn attempts(&self) -> impl Iterator<Item = (usize, Outcome)> {
        self.caller.tried.iter().copied().zip(self.outcomes.iter().copied())
    }
}

// === impl Outcome ===

impl Outcome {
    /// All of them, in their order.
    pub const ALL: [Self; 10] = [
        Self::Answered,
        Self::ServerError,
        Self::Refused,
        Self::ConnectFailed,
        Self::NoSocket,
        Self::Reset,
        Self::TimedOut,
        Self::Truncated,
        Self::Stalled,
        Self::Cancelled,
    ];

    /// Whether the engine's answer is the client's.
    fn is_answer(self) -> bool {
        matches!(self, Self::Answered | Self::ServerError)
    }

    /// The label.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Answered => "answered",
            Self::ServerError => "server_error",
            Self::Refused => "refused",
            Self::ConnectFailed => "connect_failed",
            Self::NoSocket => "no_socket",
            Self::Reset => "reset",
            Self::TimedOut => "timed_out",
            Self::Truncated => "truncated",
            Self::Stalled => "stalled",
            Self::Cancelled => "cancelled",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pool::retry::Repeat;
    use crate::pool::tests::{limited, pool, started};
    use std::task::{Context, Poll, Waker};

    fn way() -> Way {
        let mut way = Way::default();
        way.caller.repeat = Repeat::Anywhere;
        way
    }

    fn goes(way: &mut Way, pool: &Arc<Pool>) -> Option<usize> {
        match way.go(pool) {
            Goes::On => way.lease().map(|lease| lease.place),
            _ => None,
        }
    }

    fn outcomes(way: &Way) -> Vec<(usize, &'static str)> {
        way.attempts().map(|(place, outcome)| (place, outcome.as_str())).collect()
    }

    #[test]
    fn a_connect_failure_goes_to_another_server_until_none_is_left() {
        let pool = pool(&[("a", 1, false), ("b", 1, false)]);
        let mut way = way();
        assert_eq!(goes(&mut way, &pool), Some(0));
        assert!(way.fails(Failure::Connect, Outcome::ConnectFailed, &pool));
        assert_eq!(goes(&mut way, &pool), Some(1));
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
        assert_eq!(goes(&mut way, &pool), Some(0));
        assert!(way.fails(Failure::Untaken, Outcome::Reset, &pool));
        assert_eq!((way.fresh, goes(&mut way, &pool)), (true, Some(0)));
        way.ends(Outcome::Answered, &pool);
        assert_eq!((outcomes(&way), pool.servers[0].errors()), (vec![(0, "answered")], 0));
    }

    #[test]
    fn a_fresh_connection_that_cannot_be_made_moves_on() {
        let pool = pool(&[("a", 1, false), ("b", 1, false)]);
        let mut way = way();
        goes(&mut way, &pool);
        assert!(way.fails(Failure::Untaken, Outcome::Reset, &pool));
        goes(&mut way, &pool);
        assert!(way.fails(Failure::Connect, Outcome::ConnectFailed, &pool));
        assert_eq!((way.fresh, goes(&mut way, &pool)), (false, Some(1)));
    }

    #[test]
    fn an_answer_that_turns_a_request_away_is_the_clients_where_no_other_server_is_left() {
        let pool = pool(&[("a", 1, false), ("b", 1, false)]);
        let mut way = way();
        goes(&mut way, &pool);
        assert!(way.fails(Failure::Busy, Outcome::Refused, &pool));
        assert_eq!(pool.servers[1].in_flight(), 1, "the next one is leased");
        goes(&mut way, &pool);
        assert!(!way.fails(Failure::Busy, Outcome::Refused, &pool));
        way.ends(Outcome::ServerError, &pool);
        assert_eq!(outcomes(&way), [(0, "refused"), (1, "server_error")]);
        assert_eq!((pool.servers[0].errors(), pool.servers[1].errors()), (1, 1));
    }

    #[test]
    fn what_an_engine_may_have_begun_goes_to_another_once() {
        let pool = pool(&[("a", 1, false), ("b", 1, false), ("c", 1, false)]);
        let mut way = way();
        goes(&mut way, &pool);
        assert!(way.fails(Failure::Lost, Outcome::Reset, &pool));
        goes(&mut way, &pool);
        assert!(!way.fails(Failure::Lost, Outcome::Reset, &pool));
        assert!(way.fails(Failure::Busy, Outcome::Refused, &pool), "that is another matter");
    }

    #[test]
    fn a_request_that_another_server_was_leased_for_moves_there() {
        let pool = pool(&[("a", 1, false), ("b", 1, false)]);
        let mut way = way();
        goes(&mut way, &pool);
        assert!(way.handover().is_open(1));
        pool.silent(0, Instant::now());
        assert!(way.moves(&pool));
        assert_eq!((goes(&mut way, &pool), pool.servers[0].in_flight(), pool.servers[0].errors()), (Some(1), 0, 1));
        way.ends(Outcome::Answered, &pool);
        assert!(!way.handover().is_open(2), "once its answer has begun it stays");
        assert_eq!(outcomes(&way), [(0, "stalled"), (1, "answered")]);
    }

    #[test]
    fn a_request_that_goes_leaves_no_server_that_was_leased_for_it_behind() {
        let pool = pool(&[("a", 1, false), ("b", 1, false)]);
        let mut way = way();
        goes(&mut way, &pool);
        pool.silent(0, Instant::now());
        assert_eq!(pool.servers[1].in_flight(), 1);
        drop(way);
        assert!(pool.servers.iter().all(|server| server.in_flight() == 0));
    }

    #[test]
    fn what_was_to_move_a_request_comes_too_late_for_its_next_server() {
        let pool = pool(&[("a", 1, false), ("b", 1, false), ("c", 1, false)]);
        let mut way = way();
        goes(&mut way, &pool);
        let now = Instant::now();
        pool.servers[0].fall_silent(now);
        let left = pool.servers[0].left_behind();
        assert_eq!(left.len(), 1);
        way.fails(Failure::Lost, Outcome::Reset, &pool);
        assert_eq!(goes(&mut way, &pool), Some(1));
        assert!(!left[0].moves(now) && way.handover().is_open(2));
        let in_flight: Vec<u32> = pool.servers.iter().map(|server| server.in_flight()).collect();
        assert_eq!(in_flight, [0, 1, 0]);
    }

    #[test]
    fn a_request_that_cannot_be_sent_twice_stays_where_it_is() {
        let pool = pool(&[("a", 1, false), ("b", 1, false)]);
        let mut way = Way::default();
        goes(&mut way, &pool);
        pool.silent(0, Instant::now());
        assert_eq!((pool.servers[1].in_flight(), way.handover().is_open(1)), (0, true));
    }

    #[test]
    fn a_retry_waits_where_all_others_are_full_unless_it_has_an_answer_to_pass() {
        for (failure, outcome, waits) in
            [(Failure::Connect, Outcome::ConnectFailed, true), (Failure::Busy, Outcome::Refused, false)]
        {
            let pool = started(limited(&[("a", 1, false), ("b", 1, false)], 9));
            let (mut way, mut other) = (way(), self::way());
            goes(&mut way, &pool);
            goes(&mut other, &pool);
            assert_eq!(way.fails(failure, outcome, &pool), waits);
            if waits {
                let Goes::Waits(mut ticket) = way.go(&pool) else { panic!("it waits") };
                assert_eq!(pool.servers[0].in_flight(), 0, "its former place is free");
                drop(other);
                let lease = ticket.poll(&mut Context::from_waker(Waker::noop()));
                assert!(matches!(lease, Poll::Ready(lease) if lease.place == 1));
            }
        }
    }

    #[test]
    fn what_was_too_slow_does_not_go_again() {
        let pool = pool(&[("a", 1, false), ("b", 1, false)]);
        let mut way = way();
        goes(&mut way, &pool);
        assert!(!way.fails(Failure::Other, Outcome::TimedOut, &pool));
        assert_eq!((outcomes(&way), pool.servers[0].errors()), (vec![(0, "timed_out")], 1));
    }
}
