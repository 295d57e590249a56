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
    /// Those without a first byte that another server could answer.
    waiting: Slab<Waiting>,
}

#[derive(Debug)]
struct Waiting {
    waiter: Waiter,
    /// Whether it was there when the server was found to be silent.
    behind: bool,
}

// === impl Traffic ===

impl Traffic {
    pub(super) fn new(now: Instant) -> Self {
        Self { streams: 0, bytes: 0, quiet: now, silent: None, waiting: Slab::new() }
    }

    /// A request goes there; `trial`: to see whether the server answers. `heard`: its last byte. What the request counts as, and where
    /// it waits, if another server could have it.
    ///
    /// The trial of a server that is silent is watched as a stream is: else one that is not streamed would be bound to it.
    pub(super) fn enter(
        &mut self,
        load: Load,
        waiter: Option<Waiter>,
        trial: bool,
        heard: Instant,
        now: Instant,
    ) -> (Load, Option<usize>) {
        let load = Load { stream: load.stream || trial && self.is_silent(heard), ..load };
        if trial || load.stream && self.streams == 0 {
            self.quiet = now;
        }
        self.streams += u32::from(load.stream);
        self.bytes += load.bytes;
        (load, waiter.map(|waiter| self.waiting.insert(Waiting { waiter, behind: false })))
    }

    /// Its answer begins, or it is over without one. What was kept of it, to be dropped outside of any lock.
    pub(super) fn begins(&mut self, load: Load, place: Option<usize>) -> Option<Waiter> {
        self.bytes -= load.bytes;
        self.waiting.try_remove(place?).map(|waiting| waiting.waiter)
    }

    /// A request leaves.
    pub(super) fn leave(&mut self, load: Load) {
        self.streams -= u32::from(load.stream);
    }

    /// A stream is listened to again: from now on it may be silent.
    pub(super) fn listen(&mut self, now: Instant) {
        self.quiet = now;
    }

    /// When the server counts as stalled, if not a byte comes before. `heard`: its last one; `held`: streams that wait for their
    /// clients.
    pub(super) fn stalls_at(&self, heard: Instant, held: u32, rules: &Rules) -> Option<Instant> {
        let stall = rules.stall.filter(|_| self.streams > held)?;
        let allowance = rules.stall_per_100kb.mul_f64(self.bytes as f64 / 100_000.0);
        Some(heard.max(self.quiet) + stall + allowance)
    }

    /// It has fallen silent, whether by a stall or by its probes. From now on silence counts anew.
    pub(super) fn fall_silent(&mut self, now: Instant) {
        (self.silent, self.quiet) = (Some(now), now);
        self.waiting.iter_mut().for_each(|(_, waiting)| waiting.behind = true);
    }

    /// The requests that a silent server has kept waiting since it was found to be; none if a byte was `heard` since.
    pub(super) fn left_behind(&self, heard: Instant) -> impl Iterator<Item = &Waiter> {
        let silent = self.is_silent(heard);
        self.waiting.iter().filter(move |(_, waiting)| silent && waiting.behind).map(|(_, waiting)| &waiting.waiter)
    }

    fn is_silent(&self, heard: Instant) -> bool {
        self.silent.is_some_and(|silent| heard < silent)
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
            traffic.stalls_at(heard, 0, &RULES).map(|at| at.saturating_duration_since(began).as_secs())
        };
        assert_eq!(stalls(&traffic, began), None);
        traffic.enter(Load { stream: false, bytes: 200_000 }, None, false, began, at(10));
        assert_eq!(stalls(&traffic, began), None, "what is not streamed stalls nothing by itself");
        traffic.enter(stream(100_000), None, false, began, at(100));
        assert_eq!(stalls(&traffic, began), Some(100 + 60 + 15), "from the first stream on, with three allowances");
        traffic.enter(stream(0), None, false, began, at(150));
        assert_eq!(stalls(&traffic, began), Some(175), "further ones do not put it off");
        assert!(traffic.stalls_at(began, 1, &RULES).is_some() && traffic.stalls_at(began, 2, &RULES).is_none());
        assert_eq!(stalls(&traffic, at(120)), Some(195), "a byte does");
        traffic.begins(Load { stream: false, bytes: 200_000 }, None);
        assert_eq!(stalls(&traffic, at(120)), Some(185));
        traffic.begins(stream(100_000), None);
        traffic.leave(stream(100_000));
        traffic.begins(stream(0), None);
        assert_eq!(stalls(&traffic, at(120)), Some(180), "a stream under way may stall it too");
        traffic.fall_silent(at(180));
        assert_eq!(stalls(&traffic, at(120)), Some(240), "it counts anew");
        let trial = traffic.enter(Load::default(), None, true, at(120), at(200)).0;
        assert_eq!(stalls(&traffic, at(120)), Some(260), "a trial has its whole time");
        assert_eq!(trial, stream(0), "even if it is none");
        traffic.leave(stream(0));
        traffic.leave(trial);
        assert_eq!(stalls(&traffic, at(120)), None);
    }

    #[test]
    fn only_what_waited_before_the_silence_is_left_behind() {
        let began = Instant::now();
        let later = began + Duration::from_secs(9);
        let mut traffic = Traffic::new(began);
        let waiter = || Some(Waiter { pool: pool(&[]), caller: Caller::default() });
        let (_, first) = traffic.enter(stream(1), waiter(), false, began, began);
        let (_, second) = traffic.enter(stream(1), waiter(), false, began, began);
        assert_eq!(traffic.left_behind(began).count(), 0);
        traffic.fall_silent(later);
        traffic.enter(stream(1), waiter(), true, began, later);
        assert_eq!(traffic.left_behind(began).count(), 2);
        traffic.begins(stream(1), first);
        assert_eq!(traffic.left_behind(began).count(), 1);
        assert_eq!(traffic.left_behind(later).count(), 0, "it speaks again");
        traffic.begins(stream(1), second);
        assert_eq!(traffic.left_behind(began).count(), 0);
    }
}
