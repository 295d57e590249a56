//! How an engine fails on purpose, so that a bad day can be rehearsed.
//!
//! Failures concern prompts only: probes and lists stay well, except for an engine that is [`Failure::Unhealthy`].
//! Which prompts fail follows from their number, so a rehearsal can be had again.

/// One way to fail.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Failure {
    /// Answers with this error status, 400 to 599; 429 and 503 come with `Retry-After: 1`.
    Status(u16),
    /// Resets instead of answering: a TCP connection under HTTP/1.1, the stream under HTTP/2. A unix socket knows no
    /// reset, and is closed.
    Reset,
    /// Reads the prompt and never answers.
    Stall,
    /// Sends so many events of a stream, or half of a whole body, and then nothing more; the connection stays open.
    StallAfter(usize),
    /// Sends so many events of a stream, or half of a whole body, and then closes (HTTP/2: resets the stream).
    TruncateAfter(usize),
    /// Answers 503 to `/health` and `/v1/models`, and prompts as ever.
    Unhealthy,
}

/// Whether the prompt with this number, counted from 0, is one of the share that fails, in percent. Those that fail
/// are spread evenly: of 25 % every fourth.
pub(super) fn strikes(share: f64, serial: u64) -> bool {
    let failed = |prompts: u64| (prompts as f64 * share / 100.0).floor();
    failed(serial + 1) > failed(serial)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_share_that_fails_is_spread_evenly() {
        for (share, failing) in [
            (0.0, &[][..]),
            (10.0, &[9, 19]),
            (25.0, &[3, 7, 11, 15, 19]),
            (40.0, &[2, 4, 7, 9, 12, 14, 17, 19]),
            (90.0, &[1, 2, 3, 4, 5, 6, 7, 8, 9, 11, 12, 13, 14, 15, 16, 17, 18, 19]),
        ] {
            let failed: Vec<u64> = (0..20).filter(|&serial| strikes(share, serial)).collect();
            assert_eq!(failed, failing, "{share}");
        }
        assert!((0..1000).all(|serial| strikes(100.0, serial)));
        assert_eq!((0..1000).filter(|&serial| strikes(0.5, serial)).count(), 5);
    }
}
