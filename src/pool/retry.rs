//! After a failed attempt: go again, and where, or give up.
//!
//! Only what was not answered goes again here: a request that never reached an engine, and one that its engine seems not to
//! have taken: its kept-alive connection died before a byte came back, or it was refused.

/// How an attempt failed before the engine's answer began.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Failure {
    /// The connection could not be made: nothing was sent.
    Connect,
    /// The engine seems not to have taken it: a connection that was kept alive died under the request before a byte of an answer,
    /// or the engine refused it over HTTP/2.
    Untaken,
    /// Anything else.
    Other,
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
    /// Whether the request can be sent again whole.
    pub repeatable: bool,
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
    match failure {
        Failure::Connect if tries.attempts < tries.allowed => Next::Another,
        Failure::Untaken if tries.repeatable && !tries.fresh => Next::Fresh,
        _ => Next::Nowhere,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_was_not_answered_goes_again() {
        let tries = |attempts, fresh, repeatable| Tries { attempts, allowed: 3, fresh, repeatable };
        for (failure, tries, expected) in [
            (Failure::Connect, tries(1, false, true), Next::Another),
            (Failure::Connect, tries(2, true, true), Next::Another),
            (Failure::Connect, tries(1, false, false), Next::Another),
            (Failure::Connect, tries(3, false, true), Next::Nowhere),
            (Failure::Untaken, tries(1, false, true), Next::Fresh),
            (Failure::Untaken, tries(3, false, true), Next::Fresh),
            (Failure::Untaken, tries(1, true, true), Next::Nowhere),
            (Failure::Untaken, tries(1, false, false), Next::Nowhere),
            (Failure::Other, tries(1, false, true), Next::Nowhere),
        ] {
            assert_eq!(next(failure, tries), expected, "{failure:?} {tries:?}");
        }
    }
}
