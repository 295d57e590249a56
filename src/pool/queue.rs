//! Who waits for a server while all are at their limits, and whose turn is next.
//!
//! Keys take turns, and within a key it is first come, first served: so a key with a thousand requests does not keep another's one
//! waiting. The key whose last turn is the longest ago is next. Not every request can take every server: one that cannot take what
//! is offered holds up only those that could not either.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

/// What waits.
pub trait Waits {
    /// Whether it can take just what the other can.
    fn is_like(&self, other: &Self) -> bool;
}

/// The requests `W` that wait.
#[derive(Debug)]
pub struct Queue<W> {
    lanes: Vec<Lane<W>>,
    /// The number of the last turn of each key that ever had one.
    turns: HashMap<Arc<str>, u64>,
    turn: u64,
    tickets: u64,
    waiting: usize,
}

/// One key's requests that can all take the same; never empty.
#[derive(Debug)]
struct Lane<W> {
    key: Arc<str>,
    /// With their tickets.
    requests: VecDeque<(u64, W)>,
}

/// As many wait as may.
#[derive(Debug, PartialEq, Eq)]
pub struct Full;

// === impl Queue ===

impl<W> Default for Queue<W> {
    fn default() -> Self {
        Self { lanes: vec![], turns: HashMap::new(), turn: 0, tickets: 0, waiting: 0 }
    }
}

impl<W: Waits> Queue<W> {
    /// How many wait.
    #[must_use]
    pub fn len(&self) -> usize {
        self.waiting
    }

    /// Whether nobody waits.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.waiting == 0
    }

    /// Begins to wait. The ticket with which to leave.
    ///
    /// # Errors
    /// [`Full`] where `size` wait already.
    pub fn join(&mut self, key: &Arc<str>, request: W, size: usize) -> Result<u64, Full> {
        if self.waiting >= size {
            return Err(Full);
        }
        self.tickets += 1;
        self.waiting += 1;
        let alike = |lane: &Lane<W>| lane.requests.front().is_some_and(|(_, first)| first.is_like(&request));
        let lane = self.lanes.iter().position(|lane| lane.key == *key && alike(lane));
        let waits = (self.tickets, request);
        match lane {
            Some(lane) => self.lanes[lane].requests.push_back(waits),
            None => self.lanes.push(Lane { key: key.clone(), requests: VecDeque::from([waits]) }),
        }
        Ok(self.tickets)
    }

    /// Waits no more. What waited, unless it had its turn.
    pub fn leave(&mut self, ticket: u64) -> Option<W> {
        let (lane, at) = self.lanes.iter().enumerate().find_map(|(lane, waiting)| {
            let at = waiting.requests.iter().position(|(other, _)| *other == ticket)?;
            Some((lane, at))
        })?;
        self.remove(lane, at)
    }

    /// Offers what has come free to each key in turn, until one takes it. What waited, if one did.
    pub fn offer(&mut self, mut takes: impl FnMut(&W) -> bool) -> Option<W> {
        let turn = |lane: &Lane<W>| self.turns.get(&lane.key).copied().unwrap_or(0);
        let first = |lane: &Lane<W>| lane.requests.front().map(|(ticket, _)| *ticket);
        let mut order: Vec<usize> = (0..self.lanes.len()).collect();
        order.sort_by_cached_key(|lane| (turn(&self.lanes[*lane]), first(&self.lanes[*lane])));
        let lane = order.into_iter().find(|lane| self.lanes[*lane].requests.front().is_some_and(|(_, w)| takes(w)))?;
        let key = self.lanes[lane].key.clone();
        self.served(&key);
        self.remove(lane, 0)
    }

    /// A key has its turn, with or without having waited.
    pub fn served(&mut self, key: &Arc<str>) {
        self.turn += 1;
        match self.turns.get_mut(key) {
            Some(turn) => *turn = self.turn,
            None => drop(self.turns.insert(key.clone(), self.turn)),
        }
    }

    fn remove(&mut self, lane: usize, at: usize) -> Option<W> {
        let requests = &mut self.lanes[lane].requests;
        let (_, request) = requests.remove(at)?;
        if requests.is_empty() {
            self.lanes.remove(lane);
        }
        self.waiting -= 1;
        Some(request)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    impl Waits for String {
        /// By what comes after key and number.
        fn is_like(&self, other: &Self) -> bool {
            self[2..] == other[2..]
        }
    }

    impl Waits for usize {
        fn is_like(&self, _: &Self) -> bool {
            true
        }
    }

    fn key(name: &str) -> Arc<str> {
        name.into()
    }

    /// Requests named by their key and number, and by what they need if not all can take the same: `a1 a2 b1 b2x`.
    fn queue(requests: &[&str]) -> (Queue<String>, Vec<u64>) {
        let mut queue = Queue::default();
        let tickets =
            requests.iter().map(|name| queue.join(&key(&name[..1]), (*name).to_owned(), usize::MAX).unwrap()).collect();
        (queue, tickets)
    }

    fn order(queue: &mut Queue<String>) -> String {
        std::iter::from_fn(|| queue.offer(|_| true)).collect::<Vec<_>>().join(" ")
    }

    #[test]
    fn keys_take_turns_and_within_a_key_the_first_is_next() {
        for (waiting, expected) in [
            (&[][..], ""),
            (&["a1", "a2", "a3"], "a1 a2 a3"),
            (&["a1", "a2", "a3", "b1"], "a1 b1 a2 a3"),
            (&["a1", "a2", "b1", "b2", "c1"], "a1 b1 c1 a2 b2"),
        ] {
            assert_eq!(order(&mut queue(waiting).0), expected);
        }
    }

    #[test]
    fn a_key_that_just_had_its_turn_comes_after_one_that_had_not() {
        let (mut queue, _) = queue(&["a1", "a2", "a3"]);
        queue.served(&key("a"));
        queue.join(&key("b"), "b1".into(), 9).unwrap();
        assert_eq!(queue.offer(|_| true).unwrap(), "b1");
        // One that comes again and again does not keep the other out.
        queue.join(&key("b"), "b2".into(), 9).unwrap();
        assert_eq!(order(&mut queue), "a1 b2 a2 a3");
    }

    #[test]
    fn no_more_wait_than_may_and_who_leaves_makes_room() {
        let (mut queue, tickets) = queue(&["a1", "a2", "b1"]);
        assert_eq!(queue.join(&key("c"), "c1".into(), 3), Err(Full));
        assert_eq!(queue.leave(tickets[0]).as_deref(), Some("a1"));
        assert_eq!(queue.leave(tickets[0]), None);
        assert!(queue.join(&key("c"), "c1".into(), 3).is_ok());
        assert_eq!(order(&mut queue), "a2 b1 c1");
        assert!(queue.is_empty() && queue.leave(tickets[1]).is_none());
    }

    #[test]
    fn who_cannot_take_what_is_offered_lets_the_next_key_have_it() {
        let (mut queue, _) = queue(&["a1", "a2", "b1"]);
        assert_eq!(queue.offer(|request| request == "b1").as_deref(), Some("b1"));
        assert_eq!(queue.offer(|request| request == "a2"), None, "it is not its turn");
        assert_eq!(order(&mut queue), "a1 a2");
    }

    #[test]
    fn who_cannot_take_what_is_offered_holds_up_only_its_like() {
        let (mut queue, tickets) = queue(&["a1x", "a2", "a3x", "a4", "b1"]);
        let but_x = |queue: &mut Queue<String>| queue.offer(|request| !request.ends_with('x'));
        assert_eq!(but_x(&mut queue).as_deref(), Some("a2"));
        assert_eq!(but_x(&mut queue).as_deref(), Some("b1"), "keys take turns all the same");
        assert_eq!(but_x(&mut queue).as_deref(), Some("a4"));
        assert_eq!((but_x(&mut queue), queue.len()), (None, 2));
        assert_eq!(queue.leave(tickets[0]).as_deref(), Some("a1x"));
        queue.join(&key("a"), "a5".into(), 9).unwrap();
        assert_eq!(order(&mut queue), "a3x a5", "first come, first served");
    }

    proptest! {
        #[test]
        fn nobody_is_lost_and_no_key_waits_for_more_than_a_turn_of_each_other(
            events in proptest::collection::vec((0_u8..8, 0_usize..4), 0..300),
        ) {
            let mut queue = Queue::default();
            let mut model: Vec<(u64, usize)> = vec![]; // ticket and key, in order of arrival
            let mut missed = [0_usize; 4]; // turns of others since a key began to wait or had its own
            for (event, of) in events {
                match event {
                    0..4 => {
                        let began = !model.iter().any(|(_, key)| *key == of);
                        let ticket = queue.join(&key(&of.to_string()), of, 100);
                        prop_assert_eq!(ticket.is_ok(), model.len() < 100);
                        model.extend(ticket.ok().map(|ticket| (ticket, of)));
                        missed[of] = if began { 0 } else { missed[of] };
                    }
                    4 if !model.is_empty() => {
                        let (ticket, key) = model.remove(of % model.len());
                        prop_assert_eq!(queue.leave(ticket), Some(key));
                    }
                    _ => match queue.offer(|_| true) {
                        Some(served) => {
                            let at = model.iter().position(|(_, key)| *key == served).unwrap();
                            model.remove(at);
                            (0..4).for_each(|key| missed[key] += 1);
                            missed[served] = 0;
                            let waits = |of: usize| model.iter().any(|(_, key)| *key == of);
                            prop_assert!((0..4).all(|key| !waits(key) || missed[key] <= 3), "{:?}", missed);
                        }
                        None => prop_assert!(model.is_empty()),
                    },
                }
                prop_assert_eq!(queue.len(), model.len());
            }
        }
    }
}
