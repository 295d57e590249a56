//! A flight's tape: what its exchange has recorded so far, and how far each watcher has seen it.
//!
//! At first it keeps everything, so that a watcher sees the answer from its start whenever it comes and however slowly
//! it reads. Past its bounds it is a window over the answer, and moves on as the slowest watcher does. What may surprise:
//! - A watcher that stands still is cut off only where another one waits for it: alone it holds up nobody but itself.
//! - A piece weighs [`LEAST`] bytes at least: an engine that sends a byte at a time must not fill the memory with what holds
//!   the bytes together.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use slab::Slab;

use super::{Event, Lost};

/// For how long a watcher that stands still may hold up another.
pub(super) const PATIENCE: Duration = Duration::from_secs(1);

/// How many bytes a watcher is given at a time, unless one piece alone has more.
const STEP: usize = 64 * 1024;

/// What a piece weighs at least, in bytes.
const LEAST: usize = 64;

/// What has been recorded, and who sees it.
pub(super) struct Tape<H, S> {
    header: Option<Arc<H>>,
    /// The pieces in the window.
    pieces: VecDeque<Bytes>,
    /// How many pieces have left the window.
    gone: usize,
    /// What the pieces in the window weigh.
    weight: usize,
    ending: Option<Ending>,
    seats: Slab<Seat>,
    pub(super) summary: Option<S>,
}

/// How the answer ended.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Ending {
    /// All was recorded.
    Whole,
    /// It broke off.
    Broken,
}

/// A watcher's place.
struct Seat {
    /// Whether it has seen the header.
    greeted: bool,
    /// The number of the piece that it sees next. Where that piece has left the window, it is cut off.
    at: usize,
    /// Since when it stands still while the window is full and another waits.
    still: Option<Instant>,
}

/// Whether the window has room for one more piece.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Room {
    /// It has.
    Free,
    /// Not before a watcher moves on or leaves, or this time comes.
    Full(Option<Instant>),
}

/// What a piece counts for, in bytes.
pub(super) fn weigh(piece: &Bytes) -> usize {
    piece.len().max(LEAST)
}

// === impl Tape ===

impl<H, S> Tape<H, S> {
    pub(super) fn new() -> Self {
        let (pieces, seats) = (VecDeque::new(), Slab::new());
        Self { header: None, pieces, gone: 0, weight: 0, ending: None, seats, summary: None }
    }

    /// What the pieces in the window weigh, in bytes.
    pub(super) fn weight(&self) -> usize {
        self.weight
    }

    /// Records the header. The first one counts.
    pub(super) fn greet(&mut self, header: Arc<H>) {
        self.header.get_or_insert(header);
    }

    /// Records one more piece.
    pub(super) fn push(&mut self, piece: Bytes) {
        self.weight += weigh(&piece);
        self.pieces.push_back(piece);
    }

    /// Records no more. The first ending counts; without a header nothing is whole.
    pub(super) fn end(&mut self, ending: Ending) {
        if ending == Ending::Broken || self.header.is_some() {
            self.ending.get_or_insert(ending);
        }
    }

    /// Whether no more will be recorded.
    pub(super) fn ended(&self) -> bool {
        self.ending.is_some()
    }

    /// A place for one more watcher, which sees all from the start.
    pub(super) fn sit(&mut self) -> usize {
        self.seats.insert(Seat { greeted: false, at: 0, still: None })
    }

    /// Its watcher has left.
    pub(super) fn leave(&mut self, seat: usize) {
        self.seats.remove(seat);
    }

    /// Whether nobody watches any more. Who is cut off does not.
    pub(super) fn deserted(&self) -> bool {
        !self.seats.iter().any(|(_, seat)| seat.at >= self.gone)
    }

    /// What the watcher sees next; `None` where nothing is there yet.
    pub(super) fn play(&mut self, seat: usize) -> Option<Result<Event<H>, Lost>> {
        let end = self.gone + self.pieces.len();
        let seat = &mut self.seats[seat];
        let Some(from) = seat.at.checked_sub(self.gone) else { return Some(Err(Lost::CutOff)) };
        let broken = self.ending.filter(|ending| *ending == Ending::Broken).map(|_| Err(Lost::Broken));
        if !seat.greeted {
            let header = self.header.clone();
            if header.is_some() {
                (seat.greeted, seat.still) = (true, None);
            }
            return header.map(|header| Ok(Event::Header(header))).or(broken);
        }
        let mut bytes = 0;
        let fits = |piece: &&Bytes| {
            let first = bytes == 0;
            bytes += piece.len();
            first || bytes <= STEP
        };
        let pieces: Vec<Bytes> = self.pieces.range(from..).take_while(fits).cloned().collect();
        seat.at += pieces.len();
        if !pieces.is_empty() {
            seat.still = None;
        }
        if seat.at == end && self.ending == Some(Ending::Whole) {
            return Some(Ok(Event::End(pieces)));
        }
        if pieces.is_empty() { broken } else { Some(Ok(Event::Body(pieces))) }
    }

    /// The pieces in the window.
    pub(super) fn pieces(&self) -> Vec<Bytes> {
        self.pieces.iter().cloned().collect()
    }

    /// Lets go of what all have seen: nobody else is to come.
    pub(super) fn forget(&mut self) {
        let seats = self.seats.iter().map(|(_, seat)| seat.at).filter(|at| *at >= self.gone);
        let seen = seats.min().unwrap_or(self.gone + self.pieces.len());
        while self.gone < seen {
            self.drop_first();
        }
    }

    /// Moves the window on until it has room: it holds at most `most` bytes then. What goes is what all have seen, or all but
    /// those who have stood still for too long, who are cut off by it.
    pub(super) fn slide(&mut self, most: usize, now: Instant) -> Room {
        let end = self.gone + self.pieces.len();
        let waits = self.seats.iter().any(|(_, seat)| seat.at == end);
        for (_, seat) in &mut self.seats {
            seat.still = waits.then(|| seat.still.unwrap_or(now));
        }
        while self.weight > most {
            let behind = self.seats.iter().filter(|(_, seat)| seat.at == self.gone);
            match behind.map(|(_, seat)| seat.still).max() {
                Some(None) => return Room::Full(None),
                Some(Some(since)) if now < since + PATIENCE => return Room::Full(Some(since + PATIENCE)),
                Some(Some(_)) | None => self.drop_first(),
            }
        }
        for (_, seat) in &mut self.seats {
            seat.still = None;
        }
        Room::Free
    }

    fn drop_first(&mut self) {
        if let Some(piece) = self.pieces.pop_front() {
            self.weight -= weigh(&piece);
            self.gone += 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    type Played = Option<Result<Event<u16>, Lost>>;

    /// A tape of that many pieces of 100 bytes, of which each watcher has seen so many.
    fn tape(pieces: usize, seen: &[usize]) -> Tape<u16, ()> {
        let mut tape = Tape::new();
        tape.greet(Arc::new(200));
        (0..pieces).for_each(|_| tape.push(Bytes::from_static(&[b'x'; 100])));
        for at in seen {
            let seat = tape.sit();
            tape.seats[seat].greeted = true;
            tape.seats[seat].at = *at;
        }
        tape
    }

    /// Who is cut off.
    fn cut(tape: &mut Tape<u16, ()>) -> Vec<usize> {
        let seats: Vec<usize> = tape.seats.iter().map(|(seat, _)| seat).collect();
        seats.into_iter().filter(|seat| tape.play(*seat) == Some(Err(Lost::CutOff))).collect()
    }

    #[test]
    fn the_window_waits_for_the_slowest_and_a_second_for_one_that_stands_still_in_anothers_way() {
        let waits = Room::Full(None);
        let waits_a_second = |start| Room::Full(Some(start + PATIENCE));
        let start = Instant::now();
        // Of ten pieces, so many must go; watchers have seen so many; at first; after a second; who is cut off then.
        for (go, seen, at_first, then, lost) in [
            (0, &[0, 10][..], Room::Free, Room::Free, &[][..]),
            (1, &[], Room::Free, Room::Free, &[]),
            (1, &[10, 10], Room::Free, Room::Free, &[]),
            (1, &[1, 10], Room::Free, Room::Free, &[]),
            (1, &[0, 10], waits_a_second(start), Room::Free, &[0]),
            (1, &[0, 0, 1, 10], waits_a_second(start), Room::Free, &[0, 1]),
            (3, &[0, 1, 2, 3, 10], waits_a_second(start), Room::Free, &[0, 1, 2]),
            (9, &[5, 10], waits_a_second(start), Room::Free, &[0]),
            (10, &[0, 9, 10], waits_a_second(start), Room::Free, &[0, 1]),
            (1, &[0], Room::Full(None), Room::Full(None), &[]),
            (1, &[0, 0], Room::Full(None), Room::Full(None), &[]),
            (1, &[0, 9], Room::Full(None), Room::Full(None), &[]),
        ] {
            let mut tape = tape(10, seen);
            let most = (10 - go) * 100;
            assert_eq!(tape.slide(most, start), at_first, "{go} {seen:?}");
            let almost = start + PATIENCE - Duration::from_millis(1);
            assert_eq!(tape.slide(most, almost), at_first, "{go} {seen:?}");
            assert_eq!(tape.slide(most, start + PATIENCE), then, "{go} {seen:?}");
            assert_eq!(tape.weight() <= most, then != waits, "{go} {seen:?}");
            assert_eq!(cut(&mut tape), lost, "{go} {seen:?}");
        }
    }

    #[test]
    fn a_second_counts_from_the_last_move_while_another_waits() {
        let start = Instant::now();
        let after = |tenths: u32| start + PATIENCE * tenths / 10;
        let mut tape = tape(10, &[0, 10]);
        assert_eq!(tape.slide(900, after(0)), Room::Full(Some(after(10))));
        tape.seats[0].at = 9; // it has moved, and there is room
        assert_eq!(tape.slide(900, after(9)), Room::Free);
        tape.push(Bytes::from_static(&[b'x'; 900]));
        tape.seats[1].at = 11;
        assert_eq!(tape.slide(900, after(9)), Room::Full(Some(after(19))));
        assert!(tape.play(0).is_some());
        tape.push(Bytes::from_static(&[b'x'; 900]));
        tape.seats[1].at = 12;
        assert_eq!(tape.slide(900, after(18)), Room::Free);
        // Nobody waits any more: it stands in no one's way, for as long as it likes.
        tape.push(Bytes::from_static(&[b'x'; 900]));
        assert_eq!(tape.slide(900, after(20)), Room::Full(None));
        assert_eq!(tape.slide(900, after(99)), Room::Full(None));
        tape.seats[1].at = 13;
        assert_eq!(tape.slide(900, after(99)), Room::Full(Some(after(109))));
        tape.leave(1);
        assert_eq!(tape.slide(900, after(109)), Room::Full(None));
        assert!(cut(&mut tape).is_empty());
    }

    #[test]
    fn one_that_moves_a_little_has_another_second() {
        let start = Instant::now();
        let mut tape = tape(0, &[0, 4]);
        (0..4).for_each(|_| tape.push(vec![b'x'; STEP].into()));
        assert_eq!(tape.slide(2 * STEP, start), Room::Full(Some(start + PATIENCE)));
        assert!(matches!(tape.play(0), Some(Ok(Event::Body(_)))));
        assert_eq!(tape.slide(2 * STEP, start + PATIENCE), Room::Full(Some(start + 2 * PATIENCE)));
        assert_eq!(tape.slide(2 * STEP, start + 2 * PATIENCE), Room::Free);
    }

    #[test]
    fn who_is_cut_off_does_not_keep_a_flight_alive() {
        let start = Instant::now();
        let mut tape = tape(10, &[0, 10]);
        tape.slide(900, start);
        tape.slide(900, start + PATIENCE);
        assert!(!tape.deserted());
        tape.leave(1);
        assert!(tape.deserted());
    }

    #[test]
    fn a_watcher_is_given_64_kib_at_a_time_or_one_piece() {
        for (pieces, given) in [
            (vec![1; 10], vec![10]),
            (vec![STEP, 1], vec![1, 1]),
            (vec![1, STEP], vec![1, 1]),
            (vec![STEP - 1, 1, 1], vec![2, 1]),
            (vec![3 * STEP, 3 * STEP], vec![1, 1]),
            (vec![10_000; 14], vec![6, 6, 2]),
        ] {
            let mut tape = tape(0, &[0]);
            pieces.iter().for_each(|len| tape.push(vec![b'x'; *len].into()));
            let mut seen = vec![];
            while let Some(Ok(Event::Body(some))) = tape.play(0) {
                seen.push(some.len());
            }
            assert_eq!(seen, given, "{pieces:?}");
        }
    }

    #[test]
    fn a_watcher_hears_the_header_the_pieces_and_how_it_ended() {
        let piece = Bytes::from_static(b"piece");
        let header: Played = Some(Ok(Event::Header(Arc::new(200))));
        let body: Played = Some(Ok(Event::Body(vec![piece.clone()])));
        let end: Played = Some(Ok(Event::End(vec![])));
        let last: Played = Some(Ok(Event::End(vec![piece.clone()])));
        let broken: Played = Some(Err(Lost::Broken));
        // What is recorded before each look: `h`eader, `p`iece, `e`nd, `b`roken, `-` nothing.
        for (recorded, seen) in [
            ("-hp-", vec![None, header.clone(), body.clone(), None]),
            ("hpe-", vec![header.clone(), body, end.clone(), end.clone()]),
            ("ph-", vec![None, header.clone(), Some(Ok(Event::Body(vec![piece.clone()])))]),
            ("he", vec![header.clone(), end]),
            ("e-", vec![None, None]),
            ("eh-", vec![None, header.clone(), None]),
            ("b-", vec![broken.clone(), broken.clone()]),
            ("hb-", vec![header.clone(), broken.clone(), broken.clone()]),
            ("heb", vec![header, Some(Ok(Event::End(vec![]))), Some(Ok(Event::End(vec![])))]),
        ] {
            let mut tape: Tape<u16, ()> = Tape::new();
            let seat = tape.sit();
            for (what, seen) in recorded.chars().zip(seen) {
                match what {
                    'h' => tape.greet(Arc::new(200)),
                    'p' => tape.push(piece.clone()),
                    'e' => tape.end(Ending::Whole),
                    'b' => tape.end(Ending::Broken),
                    _ => {}
                }
                assert_eq!(tape.play(seat), seen, "{recorded}");
            }
        }
        // All at once: the end comes with the last pieces, and what was recorded before a break is seen.
        for (ending, rest) in
            [(Ending::Whole, vec![last]), (Ending::Broken, vec![Some(Ok(Event::Body(vec![piece.clone()]))), broken])]
        {
            let mut tape: Tape<u16, ()> = Tape::new();
            tape.greet(Arc::new(200));
            tape.greet(Arc::new(500));
            tape.push(piece.clone());
            tape.end(ending);
            let seat = tape.sit();
            assert_eq!(tape.play(seat), Some(Ok(Event::Header(Arc::new(200)))));
            rest.into_iter().for_each(|seen| assert_eq!(tape.play(seat), seen));
        }
    }

    #[test]
    fn a_small_piece_weighs_64_bytes() {
        for (len, weight) in [(1, 64), (64, 64), (65, 65), (100_000, 100_000)] {
            let mut tape = tape(0, &[]);
            tape.push(vec![b'x'; len].into());
            assert_eq!(tape.weight(), weight);
            assert_eq!(tape.slide(weight - 1, Instant::now()), Room::Free);
            assert_eq!(tape.weight(), 0);
        }
    }
}
