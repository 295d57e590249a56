//! After a failed attempt: go again, and where, or give up.
//!
//! What never reached an engine goes again as often as is allowed, and so does what an engine turned away. What an engine may
//! have begun goes again once. What it was too slow for does not: the next engine would be no faster, and busier.

use std::time::Instant;

/// How an attempt failed before the client had a byte of an answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Failure {
    /// The connection could not be made: nothing was sent.
    Connect,
    /// The engine seems not to have taken it: a connection that was kept alive died under the request before a byte of an answer,
    /// or the engine refused it over HTTP/2.
    Untaken,
    /// The engine turned it away: 429 or 503.
    Busy,
    /// The engine may have begun it: closed or reset after it was sent, or 502.
    Lost,
    /// Anything else, such as our own time-outs.
    Other,
}

// === impl Failure ===

impl Failure {
    /// What an engine's answer with this status is, where another server is worth asking.
    #[must_use]
    pub fn of_status(status: u16) -> Option<Self> {
        match status {
            429 | 503 => Some(Self::Busy),
            502 => Some(Self::Lost),
            _ => None,
        }
    }
}

/// How often a request can be sent.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Repeat {
    /// Its body streams: once.
    #[default]
    Never,
    /// It has no body: again to the server that did not take it. What it would do twice elsewhere is not known.
    Here,
    /// It is a prompt, held whole: again to any server.
    Anywhere,
}

/// What a request has behind it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Tries {
    /// Servers tried, this one included.
    pub attempts: usize,
    /// How many may be tried in all.
    pub allowed: usize,
    /// Whether this attempt already was the repeat on a fresh connection.
    pub fresh: bool,
    /// Whether an engine that may have begun it was given up for another already.
    pub lost: bool,
    /// How often it can be sent.
    pub repeat: Repeat,
}

/// Where a request goes after a failed attempt.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Next {
    /// To another server.
    Another,
    /// Once more to the same server, on a fresh connection; that is no attempt of its own.
    Fresh,
    /// Nowhere.
    Nowhere,
}

/// Decides by the failure and what the request has behind it.
#[must_use]
pub fn next(failure: Failure, tries: Tries) -> Next {
    let Tries { attempts, allowed, fresh, lost, repeat } = tries;
    let anywhere = repeat == Repeat::Anywhere;
    match failure {
        Failure::Untaken if repeat != Repeat::Never && !fresh => Next::Fresh,
        _ if attempts >= allowed => Next::Nowhere,
        Failure::Connect => Next::Another,
        Failure::Busy if anywhere => Next::Another,
        Failure::Untaken | Failure::Lost if anywhere && !lost => Next::Another,
        _ => Next::Nowhere,
    }
}

/// What all retries of a pool together may cost: a share of its requests of the last 10 seconds, and a few.
///
/// Without it, a pool whose engines all fail would get each request `attempts` times.
#[derive(Debug)]
pub struct Budget {
    /// Of the requests, in hundredths of a percent.
    share: u32,
    /// The seconds that count, by their number modulo [`SECONDS`].
    seconds: [Second; SECONDS as usize],
    began: Instant,
}

/// What a pool had in one second.
#[derive(Debug, Clone, Copy, Default)]
struct Second {
    /// Its number since the budget began.
    number: u64,
    requests: u32,
    retries: u32,
}

/// How many seconds count.
const WINDOW: u64 = 10;
/// How many are kept: that many, and the one of which a part may lie within the window.
const SECONDS: u64 = WINDOW + 1;
/// What is allowed beside the share: a pool with few requests has its retries too.
const FLOOR: u64 = 30;

// === impl Budget ===

impl Budget {
    /// Of this share of the requests, in hundredths of a percent.
    #[must_use]
    pub fn new(share: u32, now: Instant) -> Self {
        Self { share, seconds: [Second::default(); SECONDS as usize], began: now }
    }

    /// A request has come.
    pub fn request(&mut self, now: Instant) {
        self.second(now).requests += 1;
    }

    /// A retry is made.
    pub fn retry(&mut self, now: Instant) {
        self.second(now).retries += 1;
    }

    /// Whether a retry may be made. A second that may be over counts against it: as one of retries, not as one of requests.
    #[must_use]
    pub fn allows(&mut self, now: Instant) -> bool {
        let number = self.second(now).number;
        let within = |seconds: u64| self.seconds.iter().filter(move |second| second.number + seconds > number);
        let requests: u64 = within(WINDOW).map(|second| u64::from(second.requests)).sum();
        let retries: u64 = within(SECONDS).map(|second| u64::from(second.retries)).sum();
        retries < requests * u64::from(self.share) / 10_000 + FLOOR
    }

    fn second(&mut self, now: Instant) -> &mut Second {
        let number = now.saturating_duration_since(self.began).as_secs() + SECONDS; // so that no empty one counts
        let second = &mut self.seconds[(number % SECONDS) as usize];
        if second.number != number {
            *second = Second { number, ..Second::default() };
        }
        second
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::time::Duration;

    const OVER: Duration = Duration::from_secs(WINDOW);

    /// A retry, if it is allowed.
    fn retried(budget: &mut Budget, now: Instant) -> bool {
        let allowed = budget.allows(now);
        if allowed {
            budget.retry(now);
        }
        allowed
    }

    #[test]
    fn where_a_request_goes_follows_from_how_it_failed() {
        let tries = |attempts, fresh, lost, repeat| Tries { attempts, allowed: 3, fresh, lost, repeat };
        use Repeat::{Anywhere, Here, Never};
        for (failure, tries, expected) in [
            (Failure::Connect, tries(1, false, false, Anywhere), Next::Another),
            (Failure::Connect, tries(2, true, true, Anywhere), Next::Another),
            (Failure::Connect, tries(1, false, false, Never), Next::Another),
            (Failure::Connect, tries(3, false, false, Anywhere), Next::Nowhere),
            (Failure::Untaken, tries(1, false, false, Anywhere), Next::Fresh),
            (Failure::Untaken, tries(1, false, false, Here), Next::Fresh),
            (Failure::Untaken, tries(3, false, true, Anywhere), Next::Fresh),
            (Failure::Untaken, tries(1, false, false, Never), Next::Nowhere),
            (Failure::Untaken, tries(1, true, false, Here), Next::Nowhere),
            (Failure::Untaken, tries(1, true, false, Anywhere), Next::Another),
            (Failure::Untaken, tries(1, true, true, Anywhere), Next::Nowhere),
            (Failure::Busy, tries(1, false, false, Anywhere), Next::Another),
            (Failure::Busy, tries(2, false, true, Anywhere), Next::Another),
            (Failure::Busy, tries(3, false, false, Anywhere), Next::Nowhere),
            (Failure::Busy, tries(1, false, false, Here), Next::Nowhere),
            (Failure::Lost, tries(1, false, false, Anywhere), Next::Another),
            (Failure::Lost, tries(2, false, true, Anywhere), Next::Nowhere),
            (Failure::Lost, tries(1, false, false, Here), Next::Nowhere),
            (Failure::Lost, tries(1, false, false, Never), Next::Nowhere),
            (Failure::Other, tries(1, false, false, Anywhere), Next::Nowhere),
        ] {
            assert_eq!(next(failure, tries), expected, "{failure:?} {tries:?}");
        }
    }

    #[test]
    fn a_budget_is_a_share_of_the_requests_of_the_last_ten_seconds() {
        let began = Instant::now();
        let at = |second: u64| began + Duration::from_secs(second);
        let allowed = |budget: &mut Budget, now| (0..1_000).take_while(|_| retried(budget, now)).count();
        let mut budget = Budget::new(2_000, began);
        assert_eq!(allowed(&mut budget, at(0)), 30);
        (0..100).for_each(|_| budget.request(at(5)));
        assert_eq!(allowed(&mut budget, at(5)), 20);
        assert_eq!(allowed(&mut budget, at(9)), 0);
        assert_eq!(allowed(&mut budget, at(10)), 0, "the first 30 may be younger than ten seconds");
        assert_eq!(allowed(&mut budget, at(11)), 30, "they count no more");
        assert_eq!(allowed(&mut budget, at(15)), 0, "nor do the requests");
        assert_eq!(allowed(&mut budget, at(1_000)), 30);
        assert_eq!(allowed(&mut Budget::new(0, began), at(0)), 30);
    }

    proptest! {
        #[test]
        fn no_sequence_of_failures_exceeds_the_attempts(
            failures in proptest::collection::vec(0_usize..5, 0..50),
            allowed in 1_usize..6,
        ) {
            let all = [Failure::Connect, Failure::Untaken, Failure::Busy, Failure::Lost, Failure::Other];
            let mut tries = Tries { attempts: 1, allowed, fresh: false, lost: false, repeat: Repeat::Anywhere };
            let (mut sent, mut lost) = (1, 0);
            for failure in failures.into_iter().map(|n| all[n]) {
                match next(failure, tries) {
                    Next::Another => {
                        let begun = matches!(failure, Failure::Lost | Failure::Untaken);
                        lost += usize::from(begun);
                        tries = Tries { attempts: tries.attempts + 1, fresh: false, lost: tries.lost || begun, ..tries };
                    }
                    Next::Fresh => tries.fresh = true,
                    Next::Nowhere => break,
                }
                sent += 1;
            }
            prop_assert!(tries.attempts <= allowed && sent <= 2 * allowed && lost <= 1);
        }

        #[test]
        fn no_sequence_of_requests_and_retries_exceeds_the_budget(
            events in proptest::collection::vec((0_u64..300, any::<bool>()), 0..400),
            share in 0_u32..=20,
        ) {
            let began = Instant::now();
            let mut budget = Budget::new(share * 100, began);
            let (mut now, mut past) = (began, Vec::new());
            for (millis, retry) in events {
                now += Duration::from_millis(millis);
                let counted = if retry { retried(&mut budget, now) } else { budget.request(now); true };
                past.push((now, retry, counted));
                let recent = |wanted: bool| {
                    let recent = past.iter().filter(|(at, _, _)| now - *at <= OVER);
                    recent.filter(|(_, retry, counted)| *retry == wanted && *counted).count() as f64
                };
                let within = recent(true) <= recent(false) * f64::from(share) / 100.0 + FLOOR as f64;
                prop_assert!(within || !(retry && counted));
            }
        }
    }
}
