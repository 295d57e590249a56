//! What is under way at a server, and whether it has fallen silent over it.

use std::time::{Duration, Instant};

use slab::Slab;

use super::caller::Waiter;
use super::eject::Rules;

/// What a request is to its server.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Load {
    /// Whether it asks for a stream, of which a byte should come now and then.
    pub stream: bool,
    /// Bytes of its prompt.
    pub bytes: u64,
}

/// The requests at a server that are prompts.
#[derive(Debug)]
pub(super) struct Traffic {
    /// Streamed ones.
    streams: u32,
    /// Bytes of those without a first byte of an answer.
    bytes: u64,
    /// Silence counts from here, or from the last byte if that came later.
    quiet: Instant,
    /// When it was found to have fallen silent.
    silent: Option<Instant>,
    /// Those without a first byte that another server could answer, and since when.
    waiting: Slab<(Instant, Waiter)>,
}

// === impl Traffic ===

impl Traffic {
    pub(super) fn new(now: Instant) -> Self {
        Self { streams: 0, bytes: 0, quiet: now, silent: None, waiting: Slab::new() }
    }

    /// A request goes there; `trial`: to see whether the server answers. Where it waits, if another server could have it.
    pub(super) fn enter(&mut self, load: Load, waiter: Option<Waiter>, trial: bool, now: Instant) -> Option<usize> {
        if trial || load.stream && self.streams == 0 {
            self.quiet = now;
        }
        self.streams += u32::from(load.stream);
        self.bytes += load.bytes;
        waiter.map(|waiter| self.waiting.insert((now, waiter)))
    }

    /// Its answer begins, or it is over without one. What was kept of it, to be dropped outside of any lock.
    pub(super) fn begins(&mut self, load: Load, place: Option<usize>) -> Option<Waiter> {
        self.bytes -= load.bytes;
        let (_, waiter) = self.waiting.try_remove(place?)?;
        Some(waiter)
    }

    /// A request leaves.
    pub(super) fn leave(&mut self, load: Load) {
        self.streams -= u32::from(load.stream);
    }

    /// When the server counts as stalled, if not a byte comes before. `heard`: its last one.
    pub(super) fn stalls_at(&self, heard: Instant, rules: &Rules) -> Option<Instant> {
        let stall = rules.stall.filter(|_| self.streams > 0)?;
        let allowance = rules.stall_per_100kb.mul_f64(self.bytes as f64 / 100_000.0);
        Some(heard.max(self.quiet) + stall + allowance)
    }

    /// It has fallen silent, whether by a stall or by its probes. From now on silence counts anew.
    pub(super) fn fall_silent(&mut self, now: Instant) {
        (self.silent, self.quiet) = (Some(now), now);
    }

    /// The requests that a silent server has kept waiting since before it was found to be; none if a byte was `heard` since.
    pub(super) fn left_behind(&self, heard: Instant) -> impl Iterator<Item = &Waiter> {
        let silent = self.silent.filter(|silent| heard < *silent);
        let waiting = self.waiting.iter().map(|(_, waiting)| waiting);
        waiting.filter(move |(since, _)| silent.is_some_and(|silent| *since <= silent)).map(|(_, waiter)| waiter)
    }
}

// === impl Load ===

impl Load {
    /// Whether it is a prompt: of anything else the length is not known, nor whether it streams.
    pub(super) fn is_prompt(self) -> bool {
        self != Self::default()
    }
}

/// How soon requests that could not leave a silent server try again: when the retries' budget may have room.
pub(super) const AGAIN: Duration = Duration::from_secs(1);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pool::Caller;
    use crate::pool::tests::pool;

    const RULES: Rules = Rules {
        failures: 5,
        duration: Duration::from_secs(10),
        max: 5_000,
        stall: Some(Duration::from_secs(60)),
        stall_per_100kb: Duration::from_secs(5),
    };

    fn stream(bytes: u64) -> Load {
        Load { stream: true, bytes }
    }

    #[test]
    fn a_server_stalls_when_streams_wait_and_no_byte_comes() {
        let began = Instant::now();
        let at = |seconds: u64| began + Duration::from_secs(seconds);
        let mut traffic = Traffic::new(began);
        let stalls = |traffic: &Traffic, heard: Instant| {
            traffic.stalls_at(heard, &RULES).map(|at| at.saturating_duration_since(began).as_secs())
        };
        assert_eq!(stalls(&traffic, began), None);
        traffic.enter(Load { stream: false, bytes: 200_000 }, None, false, at(10));
        assert_eq!(stalls(&traffic, began), None, "what is not streamed stalls nothing by itself");
        traffic.enter(stream(100_000), None, false, at(100));
        assert_eq!(stalls(&traffic, began), Some(100 + 60 + 15), "from the first stream on, with three allowances");
        traffic.enter(stream(0), None, false, at(150));
        assert_eq!(stalls(&traffic, began), Some(175), "further ones do not put it off");
        assert_eq!(stalls(&traffic, at(120)), Some(195), "a byte does");
        traffic.begins(Load { stream: false, bytes: 200_000 }, None);
        assert_eq!(stalls(&traffic, at(120)), Some(185));
        traffic.begins(stream(100_000), None);
        traffic.leave(stream(100_000));
        traffic.begins(stream(0), None);
        assert_eq!(stalls(&traffic, at(120)), Some(180), "a stream under way may stall it too");
        traffic.fall_silent(at(180));
        assert_eq!(stalls(&traffic, at(120)), Some(240), "it counts anew");
        traffic.enter(stream(0), None, true, at(200));
        assert_eq!(stalls(&traffic, at(120)), Some(260), "a trial has its whole time");
        traffic.leave(stream(0));
        traffic.leave(stream(0));
        assert_eq!(stalls(&traffic, at(120)), None);
    }

    #[test]
    fn only_what_waited_before_the_silence_is_left_behind() {
        let began = Instant::now();
        let later = began + Duration::from_secs(9);
        let mut traffic = Traffic::new(began);
        let waiter = || Some(Waiter { pool: pool(&[]), caller: Caller::default() });
        let first = traffic.enter(stream(1), waiter(), false, began);
        let second = traffic.enter(stream(1), waiter(), false, began);
        assert_eq!(traffic.left_behind(began).count(), 0);
        traffic.fall_silent(later);
        traffic.enter(stream(1), waiter(), true, later + Duration::from_secs(1));
        assert_eq!(traffic.left_behind(began).count(), 2);
        traffic.begins(stream(1), first);
        assert_eq!(traffic.left_behind(began).count(), 1);
        assert_eq!(traffic.left_behind(later).count(), 0, "it speaks again");
        traffic.begins(stream(1), second);
        assert_eq!(traffic.left_behind(began).count(), 0);
    }
}
