//! When the tokens of an answer are made: the first after its delay, the others at the rate, each a little off.
//!
//! How far off follows from the request's number alone, so a run can be had again.

use super::Options;
use super::splitmix::SplitMix;
use std::time::Duration;

/// The longest wait for a token; a longer one could not be added to the present time.
const FOREVER: Duration = Duration::from_secs(1 << 32);

/// The clock of one answer. Times are in seconds after the request.
pub(super) struct Pace {
    first_token: f64,
    gap: f64,
    /// The share of a delay by which it may be off, 0 to 1.
    jitter: f64,
    offsets: SplitMix,
    made: usize,
    due: f64,
}

impl Pace {
    /// The pace of the request with this number.
    pub(super) fn new(options: &Options, serial: u64) -> Self {
        let gap = options.tokens_per_second.recip();
        Self {
            first_token: options.first_token.as_secs_f64(),
            // At no rate there is no pace to keep.
            gap: if gap.is_finite() && gap > 0.0 { gap } else { 0.0 },
            jitter: options.jitter / 100.0,
            offsets: SplitMix::new(serial),
            made: 0,
            due: 0.0,
        }
    }

    /// How long after the request so many tokens are made; none are made at once. Ask for no fewer than before.
    pub(super) fn due(&mut self, tokens: usize) -> Duration {
        while self.made < tokens {
            let delay = if self.made == 0 { self.first_token } else { self.gap };
            self.due += delay * (1.0 + self.jitter * f64::from(self.offsets.signed()));
            self.made += 1;
        }
        Duration::try_from_secs_f64(self.due).unwrap_or(FOREVER).min(FOREVER)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_are_due_at_the_pace_after_the_first() {
        let first_token = Duration::from_millis(100);
        for (rate, tokens, due) in [
            (0.0, 0, 0),
            (0.0, 9, 100),
            (10.0, 0, 0),
            (10.0, 1, 100),
            (10.0, 3, 300),
            (-1.0, 3, 100),
            (1e-18, 2, 1000 << 32),
            (f64::NAN, 3, 100),
        ] {
            let options = Options { tokens_per_second: rate, first_token, ..Options::default() };
            let due = Duration::from_millis(due);
            assert_eq!(Pace::new(&options, 0).due(tokens), due, "{rate} {tokens}");
        }
    }

    #[test]
    fn every_delay_is_off_by_the_jitter_at_most_and_by_the_same_each_time() {
        let first_token = Duration::from_millis(100);
        let options = Options { tokens_per_second: 10.0, first_token, jitter: 20.0, ..Options::default() };
        let delays = |serial| {
            let mut pace = Pace::new(&options, serial);
            let due: Vec<f64> = (0..=500).map(|tokens| pace.due(tokens).as_secs_f64()).collect();
            due.windows(2).map(|two| two[1] - two[0]).collect::<Vec<_>>()
        };
        let once = delays(3);
        assert!(once.iter().all(|delay| (0.0799..0.1201).contains(delay)), "{once:?}");
        for (low, high) in [(0.08, 0.085), (0.115, 0.12)] {
            assert!(once.iter().any(|delay| (low..high).contains(delay)), "none from {low} to {high}");
        }
        assert_eq!(once, delays(3));
        assert_ne!(once, delays(4));
        let sum: f64 = once.iter().sum();
        assert_eq!(Pace::new(&options, 3).due(500).as_millis(), (sum * 1000.0) as u128, "at once or step by step");
    }
}
