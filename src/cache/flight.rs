//! Flights: a prompt that is being answered, and all who ask it meanwhile.
//!
//! The exchange with the engine writes into a [`Recorder`]; every asker, the first too, has a [`Watcher`], which sees the answer
//! from its start and then live. Nothing here knows of connections, nothing is spawned, and no byte is copied. What may surprise:
//! - A flight is joined, and lands, as long as it is in the table. It leaves the table when its recorder is dropped, when all
//!   have left, when its answer grows past its [`Bounds`], when a request that wants a new answer takes its place, or when its
//!   model is purged. Those who are aboard stay so.
//! - Past its bounds a tape lets go of what all its watchers have seen, and where there is room for no more it holds one piece,
//!   as any answer does that only passes through. So all tapes hold what they may together, and one piece for each flight.
//! - Where both locks are held, the table's was taken first, and then a tape's.

mod tape;

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::fmt;
use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

use bytes::Bytes;
use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio::time::{Instant, timeout_at};

use self::tape::{Ending, Room, Tape, weigh};
use super::canonical::PromptKey;

/// The answers under way, by key. Each has a header `H`, and at its end a summary `S` of how it came about.
pub struct Flights<H, S> {
    table: Mutex<Table<H, S>>,
    /// What the tapes of all flights weigh, those no longer in the table too.
    held: AtomicUsize,
}

type Table<H, S> = HashMap<PromptKey, Arc<Flight<H, S>>>;

/// All flights, whatever they carry: what they take, and what an operator may do about them.
pub trait UnderWay: fmt::Debug + Send + Sync {
    /// The bytes of bodies that the tapes hold, small pieces counted as 64. A tape is held until its recorder and all its
    /// watchers are dropped.
    fn held(&self) -> usize;

    /// Lets nobody join the flights of this model, or any, and none of them land. Those who are aboard stay so.
    fn purge(&self, model: Option<&str>);
}

/// What a tape may hold, in bytes.
#[derive(Debug, Clone, Copy)]
pub struct Bounds {
    /// Of the one answer, so that it can be joined and kept.
    pub body: usize,
    /// With all other tapes.
    pub all: usize,
}

/// What became of an asker.
pub enum Joined<A, H, S> {
    /// The answer was kept meanwhile.
    Kept(A),
    /// It sees an answer that is under way.
    Watches(Watcher<H, S>),
    /// It is the first: it starts the exchange, which writes into the recorder, and sees the answer as all others do.
    Starts(Watcher<H, S>, Recorder<H, S>),
}

/// Sees one answer. Dropping it leaves the flight.
pub struct Watcher<H, S> {
    flight: Arc<Flight<H, S>>,
    seat: usize,
}

/// What a watcher sees.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event<H> {
    /// The header: first of all, and once.
    Header(Arc<H>),
    /// The next pieces of the body, as they were written: at most 64 KiB, or a single piece. Never none.
    Body(Vec<Bytes>),
    /// The answer is whole with these last pieces, which may be none.
    End(Vec<Bytes>),
}

/// Why a watcher sees no more of an answer that is not whole; its `Display` is a sentence without a full stop.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Lost {
    /// The exchange broke off. What came before has been seen.
    Broken,
    /// The answer is past its bounds, and this watcher held up another.
    CutOff,
}

/// Records one answer; the exchange holds it. Dropping it ends the flight, and where [`Recorder::finish`] was not called, as
/// broken off for all who see it.
pub struct Recorder<H, S> {
    flight: Arc<Flight<H, S>>,
    bounds: Bounds,
    /// What all its pieces weigh so far.
    recorded: usize,
    /// Whether it is past its bounds.
    slides: bool,
    /// Whether no more is taken: all is recorded, or a piece is missing.
    over: bool,
}

struct Flight<H, S> {
    flights: Arc<Flights<H, S>>,
    key: PromptKey,
    model: Arc<str>,
    tape: Mutex<Tape<H, S>>,
    /// Wakes the watchers: there is more to see.
    news: Notify,
    /// Wakes the recorder: a watcher moved on or left while the window was full.
    moved: Notify,
    /// Wakes who waits until all have left.
    left: Notify,
}

// === impl Flights ===

impl<H, S> Default for Flights<H, S> {
    fn default() -> Self {
        Self { table: Mutex::default(), held: AtomicUsize::new(0) }
    }
}

impl<H, S> fmt::Debug for Flights<H, S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Flights").field("held", &self.held).finish_non_exhaustive()
    }
}

impl<H: Send + Sync, S: Send + Sync> UnderWay for Flights<H, S> {
    fn held(&self) -> usize {
        self.held.load(Relaxed)
    }

    fn purge(&self, model: Option<&str>) {
        self.table.lock().retain(|_, flight| model.is_some_and(|model| *model != *flight.model));
    }
}

impl<H, S> Flights<H, S> {
    /// Looks for a kept answer; without one, joins the flight for this key; without one, begins it for this model, to be joined
    /// as long as its body is within the bounds.
    ///
    /// All this is one step: an answer that was kept by [`Recorder::land`], or in any way before its recorder was dropped, is
    /// found by `look` or joined. So `look` runs under the lock of the table, and must not ask for a flight itself.
    pub fn join<A>(
        self: &Arc<Self>,
        key: PromptKey,
        model: &Arc<str>,
        bounds: Bounds,
        look: impl FnOnce() -> Option<A>,
    ) -> Joined<A, H, S> {
        let mut table = self.table.lock();
        if let Some(kept) = look() {
            return Joined::Kept(kept);
        }
        match table.entry(key) {
            Entry::Occupied(flight) => Joined::Watches(Watcher::new(flight.get())),
            Entry::Vacant(place) => {
                let flight = place.insert(Flight::new(self, key, model));
                Joined::Starts(Watcher::new(flight), Recorder::new(flight, bounds))
            }
        }
    }

    /// Begins a flight whether or not there is one, for a request that wants a new answer. Who asks later joins this one; the
    /// one before goes on for those aboard, and does not land.
    pub fn begin(
        self: &Arc<Self>,
        key: PromptKey,
        model: &Arc<str>,
        bounds: Bounds,
    ) -> (Watcher<H, S>, Recorder<H, S>) {
        let flight = Flight::new(self, key, model);
        let begun = (Watcher::new(&flight), Recorder::new(&flight, bounds));
        self.table.lock().insert(key, flight);
        begun
    }

    /// Counts so much more as held, if all tapes hold no more than this with it.
    fn charge(&self, weight: usize, most: usize) -> bool {
        let more = |held: usize| held.checked_add(weight).filter(|held| *held <= most);
        self.held.fetch_update(Relaxed, Relaxed, more).is_ok()
    }
}

// === impl Flight ===

impl<H, S> Flight<H, S> {
    fn new(flights: &Arc<Flights<H, S>>, key: PromptKey, model: &Arc<str>) -> Arc<Self> {
        let (flights, model, tape) = (flights.clone(), model.clone(), Mutex::new(Tape::new()));
        let (news, moved, left) = Default::default();
        Arc::new(Self { flights, key, model, tape, news, moved, left })
    }

    /// Whether it is the one in the table.
    fn stands(self: &Arc<Self>, table: &Table<H, S>) -> bool {
        table.get(&self.key).is_some_and(|flight| Arc::ptr_eq(flight, self))
    }

    /// Takes it out of the table.
    fn close(self: &Arc<Self>, table: &mut Table<H, S>) {
        if self.stands(table) {
            table.remove(&self.key);
        }
    }

    /// Takes it out of the table if nobody sees it, and there would be more to see. Whether it did.
    fn abandon(self: &Arc<Self>) -> bool {
        let mut table = self.flights.table.lock(); // nobody joins from here on
        let tape = self.tape.lock();
        let abandoned = tape.deserted() && !tape.ended();
        if abandoned {
            self.close(&mut table);
        }
        abandoned
    }

    /// Moves the window on and counts a piece of this weight as held, where there is room for it: within the bounds, or with
    /// nothing else in the window.
    fn slide(&self, weight: usize, bounds: Bounds) -> Room {
        let (held, mut tape) = (&self.flights.held, self.tape.lock());
        let before = tape.weight();
        tape.forget();
        held.fetch_sub(before - tape.weight(), Relaxed); // before it asks for more
        let charged = self.flights.charge(weight, bounds.all);
        let before = tape.weight();
        let room = tape.slide(if charged { bounds.body } else { 0 }, Instant::now().into_std());
        held.fetch_sub(before - tape.weight(), Relaxed);
        match (&room, charged) {
            (Room::Free, false) => drop(held.fetch_add(weight, Relaxed)),
            (Room::Full(_), true) => drop(held.fetch_sub(weight, Relaxed)),
            _ => {}
        }
        room
    }

    /// Records something to all who watch.
    fn record(&self, what: impl FnOnce(&mut Tape<H, S>)) {
        what(&mut self.tape.lock());
        self.news.notify_waiters();
    }
}

impl<H, S> Drop for Flight<H, S> {
    fn drop(&mut self) {
        self.flights.held.fetch_sub(self.tape.get_mut().weight(), Relaxed);
    }
}

// === impl Recorder ===

impl<H, S> Recorder<H, S> {
    fn new(flight: &Arc<Flight<H, S>>, bounds: Bounds) -> Self {
        Self { flight: flight.clone(), bounds, recorded: 0, slides: false, over: false }
    }

    /// Records the header of the answer. A second one is not seen.
    pub fn header(&mut self, header: Arc<H>) {
        self.flight.record(|tape| tape.greet(header));
    }

    /// Records the next piece of the body. At once, as long as the body is within the bounds, where a piece counts for 64 at
    /// least; past that the recorder waits for the slowest watcher, and cuts off those who stand still for a second while
    /// another waits. From then on nobody joins.
    ///
    /// Dropped while it waits, the piece is missing: the answer cannot be whole any more, and no further piece is taken.
    pub async fn body(&mut self, piece: Bytes) {
        if piece.is_empty() || self.over {
            return;
        }
        let weight = weigh(&piece);
        self.recorded += weight;
        let fits = !self.slides && self.recorded <= self.bounds.body;
        if !(fits && self.flight.flights.charge(weight, self.bounds.all)) {
            (self.slides, self.over) = (true, true);
            self.make_room(weight).await;
            self.over = false;
        }
        self.flight.record(|tape| tape.push(piece));
    }

    /// Waits for room for a piece, and counts it as held.
    async fn make_room(&self, weight: usize) {
        let flight = &self.flight;
        flight.close(&mut flight.flights.table.lock()); // before the first piece goes: who joins sees it from the start
        loop {
            let room = flight.slide(weight, self.bounds);
            let moved = flight.moved.notified();
            match room {
                Room::Free => return,
                Room::Full(None) => moved.await,
                Room::Full(Some(until)) => drop(timeout_at(until.into(), moved).await),
            }
        }
    }

    /// Records how the answer came about, before it is finished or the recorder dropped.
    pub fn sum(&mut self, summary: S) {
        self.flight.tape.lock().summary = Some(summary);
    }

    /// The whole body so far, unless it is past the bounds.
    #[must_use]
    pub fn whole(&self) -> Option<Vec<Bytes>> {
        (!self.slides).then(|| self.flight.tape.lock().pieces())
    }

    /// Keeps the answer by `keep`, unless a later asker would not join this flight: one that wanted a new answer has taken its
    /// place, its model was purged, the body is past its bounds, or all have left. Whether it did.
    ///
    /// Called before [`Recorder::finish`], who has seen the end and asks again finds the answer kept. `keep` runs under the
    /// lock of the table, and must not ask for a flight.
    pub fn land(&self, keep: impl FnOnce()) -> bool {
        let table = self.flight.flights.table.lock();
        let stands = self.flight.stands(&table);
        if stands {
            keep();
        }
        stands
    }

    /// All is recorded, and the answer is whole. Not so where it has no header or a piece of it is missing: it will break off.
    pub fn finish(&mut self) {
        if !self.over {
            self.over = true;
            self.flight.record(|tape| tape.end(Ending::Whole));
        }
    }

    /// Ready when the last watcher has left; from then on nobody joins. Who joins at that moment either keeps the flight
    /// alive or begins another. Never ready once the answer has ended.
    ///
    /// It does not borrow the recorder, so that it can be awaited beside the exchange, by one at a time.
    pub fn deserted(&self) -> impl Future<Output = ()> + use<H, S> {
        let flight = self.flight.clone();
        async move {
            while !flight.abandon() {
                flight.left.notified().await;
            }
        }
    }
}

impl<H, S> Drop for Recorder<H, S> {
    fn drop(&mut self) {
        self.flight.close(&mut self.flight.flights.table.lock());
        self.flight.record(|tape| tape.end(Ending::Broken));
    }
}

// === impl Watcher ===

impl<H, S> Watcher<H, S> {
    fn new(flight: &Arc<Flight<H, S>>) -> Self {
        Self { flight: flight.clone(), seat: flight.tape.lock().sit() }
    }

    /// What is to be seen next, as soon as it is there. Dropped before it is ready, nothing is missed.
    ///
    /// # Errors
    /// [`Lost`] says why there will be no more of an answer that is not whole.
    pub async fn next(&mut self) -> Result<Event<H>, Lost> {
        loop {
            let news = self.flight.news.notified(); // before the look, so that nothing is missed
            if let Some(seen) = self.play() {
                return seen;
            }
            news.await;
        }
    }

    fn play(&self) -> Option<Result<Event<H>, Lost>> {
        let seen = self.flight.tape.lock().play(self.seat);
        if matches!(seen, Some(Ok(_))) {
            self.flight.moved.notify_one();
        }
        seen
    }
}

impl<H, S: Clone> Watcher<H, S> {
    /// How the answer came about, if that has been recorded.
    #[must_use]
    pub fn summary(&self) -> Option<S> {
        self.flight.tape.lock().summary.clone()
    }
}

impl<H, S> Drop for Watcher<H, S> {
    fn drop(&mut self) {
        let deserted = {
            let mut tape = self.flight.tape.lock();
            tape.leave(self.seat);
            tape.deserted()
        };
        self.flight.moved.notify_one();
        if deserted {
            self.flight.left.notify_one();
        }
    }
}

// === impl Lost ===

impl fmt::Display for Lost {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Broken => "the answer that this request shares with others broke off",
            Self::CutOff => "the client reads too slowly for the others who see the same long answer",
        })
    }
}

#[cfg(test)]
mod tests {
    use std::panic::{AssertUnwindSafe, catch_unwind};
    use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
    use std::sync::{Barrier, Weak};
    use std::thread;
    use std::time::Duration;

    use futures::FutureExt as _;
    use futures::future::join_all;
    use http::HeaderMap;
    use proptest::prelude::*;
    use tokio::time::{sleep, timeout};

    use super::*;
    use crate::cache::canonical::{Canonical, Circumstances, Scope};

    const KIB: usize = 1024;
    const DEADLINE: Duration = Duration::from_secs(30);

    type Fleet = Flights<u16, &'static str>;
    type Watcher = super::Watcher<u16, &'static str>;
    type Recorder = super::Recorder<u16, &'static str>;

    impl Fleet {
        /// How many flights can be joined.
        fn len(&self) -> usize {
            self.table.lock().len()
        }

        /// Asks for what is always the same.
        fn ask<A>(self: &Arc<Self>, bounds: Bounds, look: impl FnOnce() -> Option<A>) -> Joined<A, u16, &'static str> {
            self.join(key("/"), &"m".into(), bounds, look)
        }

        fn anew(self: &Arc<Self>) -> (Watcher, Recorder) {
            self.begin(key("/"), &"m".into(), most(KIB))
        }
    }

    /// Bounds of one body alone.
    fn most(body: usize) -> Bounds {
        Bounds { body, all: usize::MAX }
    }

    fn key(target: &str) -> PromptKey {
        let headers = HeaderMap::new();
        let (scope, upstream) = (Scope::Shared, None);
        let circumstances = Circumstances { scope, target, headers: &headers, model: "m", upstream, version: "" };
        PromptKey::new(&circumstances, &Canonical { digest: [0; 32], deterministic: true })
    }

    fn starts(flights: &Arc<Fleet>, body: usize) -> (Watcher, Recorder) {
        match flights.ask(most(body), || None::<()>) {
            Joined::Starts(watcher, recorder) => (watcher, recorder),
            Joined::Kept(()) | Joined::Watches(_) => panic!("there is a flight"),
        }
    }

    fn watches(flights: &Arc<Fleet>) -> Watcher {
        match flights.ask(most(0), || None::<()>) {
            Joined::Watches(watcher) => watcher,
            Joined::Kept(()) | Joined::Starts(..) => panic!("there is no flight"),
        }
    }

    /// Whether a body is taken at once.
    fn at_once(recorder: &mut Recorder, piece: impl Into<Bytes>) -> bool {
        recorder.body(piece.into()).now_or_never().is_some()
    }

    /// The whole answer's body, or as much as came before it was lost.
    async fn see(watcher: &mut Watcher) -> (Vec<u8>, Result<(), Lost>) {
        let mut seen = vec![];
        loop {
            match watcher.next().await {
                Ok(Event::Header(header)) => assert_eq!((*header, seen.len()), (200, 0)),
                Ok(Event::Body(pieces)) => pieces.iter().for_each(|piece| seen.extend_from_slice(piece)),
                Ok(Event::End(pieces)) => {
                    pieces.iter().for_each(|piece| seen.extend_from_slice(piece));
                    return (seen, Ok(()));
                }
                Err(lost) => return (seen, Err(lost)),
            }
        }
    }

    fn over(flights: &Arc<Fleet>) {
        assert_eq!((flights.len(), flights.held()), (0, 0));
    }

    #[tokio::test]
    async fn whoever_comes_before_the_end_hears_all_from_the_start() {
        let flights = Arc::new(Fleet::default());
        let (first, mut recorder) = starts(&flights, KIB);
        let mut watchers = vec![first, watches(&flights)];
        recorder.header(Arc::new(200));
        for piece in ["a", "b", "c"] {
            assert!(at_once(&mut recorder, piece) && at_once(&mut recorder, ""));
            watchers.push(watches(&flights));
        }
        assert_eq!(watchers[0].summary(), None);
        recorder.sum("one server, two attempts");
        recorder.finish();
        watchers.push(watches(&flights)); // the answer is still there to be seen, and not in the store
        drop(recorder);
        assert!(flights.len() == 0);
        for watcher in &mut watchers {
            assert_eq!(see(watcher).await, (b"abc".to_vec(), Ok(())));
            assert_eq!(watcher.next().await, Ok(Event::End(vec![])), "it stays at its end");
            assert_eq!(watcher.summary(), Some("one server, two attempts"));
        }
        assert_eq!(flights.held(), 3 * 64);
        drop(watchers);
        over(&flights);
    }

    #[tokio::test]
    async fn what_is_not_finished_is_broken_for_all() {
        type Exchange = fn(&mut Recorder);
        let ways: [(&str, Exchange, &[u8]); 5] = [
            ("nothing at all", |_| {}, b""),
            ("only a header", |recorder| recorder.header(Arc::new(200)), b""),
            ("no header", |recorder| recorder.finish(), b""),
            ("a body without a header", |r| assert!(at_once(r, "x")), b""),
            (
                "in the middle",
                |recorder| {
                    recorder.header(Arc::new(200));
                    assert!(at_once(recorder, "x"));
                    recorder.sum("s");
                },
                b"x",
            ),
        ];
        for (how, records, seen) in ways {
            let flights = Arc::new(Fleet::default());
            let (mut first, mut recorder) = starts(&flights, KIB);
            records(&mut recorder);
            let mut second = watches(&flights);
            drop(recorder);
            for watcher in [&mut first, &mut second] {
                assert_eq!(see(watcher).await, (seen.to_vec(), Err(Lost::Broken)), "{how}");
                assert_eq!(watcher.next().await, Err(Lost::Broken), "{how}");
                assert_eq!(watcher.summary().is_some(), how == "in the middle");
            }
            drop((first, second));
            over(&flights);
        }
    }

    #[tokio::test]
    async fn a_kept_answer_is_found_before_a_flight() {
        let flights = Arc::new(Fleet::default());
        let begun = starts(&flights, KIB);
        assert!(matches!(flights.ask(most(KIB), || Some("kept")), Joined::Kept("kept")));
        let other = flights.join(key("/other"), &"m".into(), most(KIB), || Some("kept"));
        assert!(matches!(other, Joined::Kept("kept")));
        assert_eq!(flights.len(), 1);
        drop(begun);
        over(&flights);
    }

    #[tokio::test(start_paused = true)]
    async fn every_event_wakes_all_who_watch_and_none_is_gathered_or_copied() {
        let flights = Arc::new(Fleet::default());
        let (mut one, mut recorder) = starts(&flights, KIB);
        let mut other = watches(&flights);
        let mut both = async |writes: &mut (dyn FnMut() + Send)| {
            let see = async { tokio::join!(biased; one.next(), other.next(), async { writes() }) };
            let (one, other, ()) = timeout(DEADLINE, see).await.unwrap();
            assert_eq!(one, other);
            one
        };
        let header = both(&mut || recorder.header(Arc::new(200))).await;
        assert_eq!(header, Ok(Event::Header(Arc::new(200))));
        for piece in [&b"data: 1\n\n"[..], b"data: 2\n\n", b"data: [DONE]\n\n"] {
            let seen = both(&mut || assert!(at_once(&mut recorder, piece))).await;
            let Ok(Event::Body(pieces)) = seen else { panic!("{seen:?}") };
            assert_eq!(pieces, [piece]);
            assert_eq!(pieces[0].as_ptr(), piece.as_ptr(), "it is not copied");
        }
        assert_eq!(both(&mut || recorder.finish()).await, Ok(Event::End(vec![])));
        let mut late = watches(&flights);
        late.next().await.unwrap();
        assert!(matches!(late.next().await, Ok(Event::End(pieces)) if pieces.len() == 3), "all is there");
        drop((one, other, recorder, late));
        over(&flights);
    }

    #[tokio::test(start_paused = true)]
    async fn a_break_wakes_all_who_watch() {
        let flights = Arc::new(Fleet::default());
        let (mut one, recorder) = starts(&flights, KIB);
        let mut other = watches(&flights);
        let see = async { tokio::join!(biased; see(&mut one), see(&mut other), async { drop(recorder) }) };
        let broken = (vec![], Err(Lost::Broken));
        assert_eq!(timeout(DEADLINE, see).await, Ok((broken.clone(), broken, ())));
        drop((one, other));
        over(&flights);
    }

    #[tokio::test]
    async fn a_slow_one_holds_nobody_up_as_long_as_the_body_is_within_most() {
        let flights = Arc::new(Fleet::default());
        let (mut slow, mut recorder) = starts(&flights, 1000 * KIB);
        let mut quick = watches(&flights);
        recorder.header(Arc::new(200));
        quick.next().await.unwrap();
        for _ in 0..1000 {
            assert!(at_once(&mut recorder, vec![b'x'; KIB]));
            assert!(matches!(quick.next().now_or_never(), Some(Ok(Event::Body(_)))));
        }
        assert_eq!(flights.held(), 1000 * KIB);
        recorder.finish();
        drop(recorder);
        assert_eq!(see(&mut slow).await, (vec![b'x'; 1000 * KIB], Ok(())));
        drop((slow, quick));
        over(&flights);
    }

    #[tokio::test]
    async fn from_the_first_byte_past_most_nobody_joins_and_nothing_lands() {
        let flights = Arc::new(Fleet::default());
        let (first, mut recorder) = starts(&flights, 128);
        assert!(at_once(&mut recorder, "x") && at_once(&mut recorder, "x"), "each counts for 64");
        let second = watches(&flights);
        assert!(at_once(&mut recorder, "x"), "it fills the window, and is to be seen at once");
        assert!(flights.len() == 0 && !recorder.land(|| panic!("past most")));
        let (third, other) = starts(&flights, KIB);
        assert!(other.land(|| {}));
        drop(recorder);
        assert_eq!(flights.len(), 1, "the older flight does not take the newer one away");
        drop((first, second, third, other));
        over(&flights);
    }

    #[tokio::test(start_paused = true)]
    async fn past_most_the_slowest_that_moves_sets_the_pace_and_one_that_stands_still_is_cut_off() {
        let flights = Arc::new(Fleet::default());
        let (mut slow, mut recorder) = starts(&flights, 256 * KIB);
        let (mut quick, mut still) = (watches(&flights), watches(&flights));
        let start = Instant::now();
        let records = async {
            recorder.header(Arc::new(200));
            for _ in 0..16 {
                recorder.body(vec![b'x'; 64 * KIB].into()).await;
                assert!(flights.held() <= (256 + 64) * KIB);
            }
            recorder.finish();
            start.elapsed()
        };
        let sees = async {
            let mut pieces = 0;
            loop {
                sleep(Duration::from_millis(900)).await;
                match slow.next().await.unwrap() {
                    Event::Header(_) => {}
                    Event::Body(some) => pieces += some.len(),
                    Event::End(some) => return pieces + some.len(),
                }
            }
        };
        let (took, slowly, quickly) = tokio::join!(records, sees, see(&mut quick));
        assert_eq!((slowly, quickly), (16, (vec![b'x'; 16 * 64 * KIB], Ok(()))));
        // The sixteenth piece went in when the slow one had seen its eleventh, after the header.
        assert_eq!(took, Duration::from_millis(12 * 900));
        assert_eq!(see(&mut still).await, (vec![], Err(Lost::CutOff)));
        drop((slow, quick, still, recorder));
        over(&flights);
    }

    #[tokio::test(start_paused = true)]
    async fn one_that_stands_still_is_cut_off_after_a_second_but_never_when_alone() {
        for alone in [false, true] {
            let flights = Arc::new(Fleet::default());
            let (mut still, mut recorder) = starts(&flights, 100);
            let other = (!alone).then(|| watches(&flights));
            recorder.header(Arc::new(200));
            let start = Instant::now();
            let records = async {
                for _ in 0..3 {
                    recorder.body(vec![b'x'; 100].into()).await;
                }
                recorder.finish();
                start.elapsed()
            };
            let pause = Duration::from_secs(3600);
            let comes_back = async {
                sleep(pause).await;
                see(&mut still).await
            };
            let sees = async {
                if let Some(mut other) = other {
                    assert_eq!(see(&mut other).await.1, Ok(()));
                }
            };
            let (took, seen, ()) = tokio::join!(records, comes_back, sees);
            if alone {
                assert_eq!((took, seen), (pause, (vec![b'x'; 300], Ok(()))));
            } else {
                assert_eq!((took, seen), (tape::PATIENCE, (vec![], Err(Lost::CutOff))));
            }
            drop((still, recorder));
            over(&flights);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn one_that_leaves_makes_room_at_once() {
        let flights = Arc::new(Fleet::default());
        let (still, mut recorder) = starts(&flights, 99);
        let mut other = watches(&flights);
        recorder.header(Arc::new(200));
        assert!(at_once(&mut recorder, vec![b'x'; 100]));
        let start = Instant::now();
        let (seen, ()) = tokio::join!(see(&mut other), async {
            tokio::join!(biased; recorder.body("y".into()), async { drop(still) });
            drop(recorder);
        });
        assert_eq!((seen.0.len(), start.elapsed()), (101, Duration::ZERO));
        drop(other);
        over(&flights);
    }

    #[tokio::test]
    async fn an_answer_that_lacks_a_piece_is_never_whole() {
        let flights = Arc::new(Fleet::default());
        let (mut watcher, mut recorder) = starts(&flights, 99);
        recorder.header(Arc::new(200));
        assert!(at_once(&mut recorder, vec![b'x'; 100]));
        assert!(!at_once(&mut recorder, "dropped while it waits"));
        assert!(at_once(&mut recorder, "nobody sees it"));
        recorder.finish();
        drop(recorder);
        assert_eq!(see(&mut watcher).await, (vec![b'x'; 100], Err(Lost::Broken)));
        drop(watcher);
        over(&flights);
    }

    #[tokio::test]
    async fn nothing_is_heard_after_the_end() {
        let flights = Arc::new(Fleet::default());
        let (mut watcher, mut recorder) = starts(&flights, 100);
        recorder.header(Arc::new(200));
        recorder.finish();
        assert!(at_once(&mut recorder, "x"));
        recorder.header(Arc::new(500));
        drop(recorder);
        assert_eq!(see(&mut watcher).await, (vec![], Ok(())));
        drop(watcher);
        over(&flights);
    }

    #[tokio::test]
    async fn a_new_answer_takes_the_place_of_the_one_under_way() {
        let flights = Arc::new(Fleet::default());
        let (mut old, mut before) = starts(&flights, KIB);
        let (mut new, mut after) = flights.anew();
        let mut late = watches(&flights);
        for (recorder, piece) in [(&mut before, "old"), (&mut after, "new")] {
            recorder.header(Arc::new(200));
            assert!(at_once(recorder, piece));
        }
        assert!(!before.land(|| panic!("the answer is older than the one asked for")));
        before.finish();
        drop(before);
        assert_eq!(flights.len(), 1, "it takes only itself out of the table");
        let mut kept = false;
        assert!(after.land(|| kept = true) && kept);
        after.finish();
        drop(after);
        assert_eq!(see(&mut old).await, (b"old".to_vec(), Ok(())));
        assert_eq!(see(&mut new).await, (b"new".to_vec(), Ok(())));
        assert_eq!(see(&mut late).await, (b"new".to_vec(), Ok(())));
        drop((old, new, late));
        over(&flights);
    }

    #[tokio::test]
    async fn after_a_purge_nobody_joins_and_nothing_lands_of_its_model() {
        for (purged, stays) in [(Some("m"), false), (None, false), (Some("other"), true)] {
            let flights = Arc::new(Fleet::default());
            let (mut first, mut recorder) = starts(&flights, KIB);
            flights.purge(purged);
            assert_eq!(flights.len(), usize::from(stays), "{purged:?}");
            let mut second = match flights.ask(most(KIB), || None::<()>) {
                Joined::Watches(watcher) if stays => (watcher, None),
                Joined::Starts(watcher, other) if !stays => (watcher, Some(other)),
                _ => panic!("{purged:?}"),
            };
            recorder.header(Arc::new(200));
            assert!(at_once(&mut recorder, "old"));
            let mut landed = false;
            assert_eq!((recorder.land(|| landed = true), landed), (stays, stays), "{purged:?}");
            recorder.finish();
            drop(recorder);
            assert_eq!(see(&mut first).await, (b"old".to_vec(), Ok(())), "who is aboard stays so");
            if let Some(other) = &mut second.1 {
                other.header(Arc::new(200));
                assert!(at_once(other, "new") && other.land(|| {}), "the purge did not mean this one");
                other.finish();
            }
            let body = if stays { "old" } else { "new" };
            assert_eq!(see(&mut second.0).await, (body.into(), Ok(())), "{purged:?}");
            drop((first, second));
            over(&flights);
        }
    }

    #[tokio::test]
    async fn a_tape_for_which_there_is_no_room_beside_the_others_holds_one_piece() {
        let flights = Arc::new(Fleet::default());
        let bounds = Bounds { body: KIB, all: KIB };
        let begin = |name| match flights.join(key(name), &"m".into(), bounds, || None::<()>) {
            Joined::Starts(watcher, mut recorder) => {
                recorder.header(Arc::new(200));
                (watcher, recorder)
            }
            Joined::Kept(()) | Joined::Watches(_) => panic!("there is a flight"),
        };
        let (mut one, mut large) = begin("/large");
        assert!(at_once(&mut large, vec![b'x'; 900]));
        let (two, mut small) = begin("/small");
        assert!(at_once(&mut small, vec![b'y'; 100]));
        assert_eq!((flights.held(), flights.len()), (1000, 2));
        // There is no room for this one: what went before has to be seen first, and goes.
        assert!(!at_once(&mut small, vec![b'y'; 100]));
        assert_eq!((flights.held(), flights.len(), small.whole()), (1000, 1, None));
        assert!(!small.land(|| panic!("it is not whole")));
        let (mut three, mut third) = begin("/third");
        for _ in 0..3 {
            let (took, ()) = tokio::join!(biased; third.body(vec![b'z'; 100].into()), async {
                while let Some(Ok(_)) = three.next().now_or_never() {}
            });
            assert_eq!((took, flights.held()), ((), 1100), "one piece beyond what all may hold");
        }
        // Nor is there for more of the large one, but what its watcher has seen makes some.
        let see_two = async { (one.next().await.is_ok(), one.next().await.is_ok()) };
        let ((), seen) = tokio::join!(biased; large.body(vec![b'x'; 200].into()), see_two);
        assert_eq!((seen, flights.held(), flights.len()), ((true, true), 400, 0));
        large.finish();
        assert_eq!(see(&mut one).await, (vec![b'x'; 200], Ok(())));
        drop((one, two, large, small, three, third));
        over(&flights);
    }

    #[tokio::test]
    async fn a_flight_that_lost_its_place_is_deserted_by_its_own_watchers() {
        let flights = Arc::new(Fleet::default());
        let (old, before) = starts(&flights, KIB);
        let (new, after) = flights.anew();
        assert_eq!(before.deserted().now_or_never(), None);
        drop(old);
        assert_eq!(before.deserted().now_or_never(), Some(()));
        assert_eq!((after.deserted().now_or_never(), flights.len()), (None, 1));
        drop((before, new, after));
        over(&flights);
    }

    #[tokio::test(start_paused = true)]
    async fn the_last_ones_leaving_ends_a_flight_at_once_in_every_phase() {
        for phase in ["before the header", "after the header", "in the body", "while it waits for room"] {
            let flights = Arc::new(Fleet::default());
            let (first, mut recorder) = starts(&flights, KIB - 1);
            let second = watches(&flights);
            if phase != "before the header" {
                recorder.header(Arc::new(200));
            }
            if phase == "in the body" || phase == "while it waits for room" {
                assert!(at_once(&mut recorder, vec![b'x'; KIB]));
            }
            let deserted = recorder.deserted();
            let exchange = async {
                if phase == "while it waits for room" {
                    recorder.body("x".into()).await;
                }
                std::future::pending::<()>().await;
            };
            let start = Instant::now();
            let leave = async {
                drop(first);
                sleep(Duration::from_secs(7)).await;
                drop(second);
            };
            tokio::select! {
                ((), ()) = async { tokio::join!(deserted, leave) } => {}
                () = exchange => {}
            }
            assert_eq!(start.elapsed(), Duration::from_secs(7), "{phase}");
            assert!(flights.len() == 0, "{phase}");
            drop(recorder);
            over(&flights);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_flight_whose_answer_has_ended_is_not_deserted() {
        let flights = Arc::new(Fleet::default());
        let (watcher, mut recorder) = starts(&flights, KIB);
        recorder.header(Arc::new(200));
        recorder.finish();
        let deserted = recorder.deserted();
        drop(watcher);
        assert!(timeout(DEADLINE, deserted).await.is_err());
        drop(watches(&flights)); // until its answer has landed it can be seen
        let (deserted, ()) = (recorder.deserted(), drop(recorder));
        assert!(timeout(DEADLINE, deserted).await.is_err());
        over(&flights);
    }

    #[test]
    fn who_joins_as_the_last_one_leaves_keeps_the_flight_alive_or_begins_another() {
        for _ in 0..300 {
            let flights = Arc::new(Fleet::default());
            let (last, recorder) = starts(&flights, KIB);
            let barrier = Barrier::new(3);
            let (joined, deserted) = thread::scope(|scope| {
                scope.spawn(|| {
                    barrier.wait();
                    drop(last);
                });
                let joins = scope.spawn(|| {
                    barrier.wait();
                    flights.ask(most(KIB), || None::<()>)
                });
                barrier.wait();
                let mut deserted = false;
                while !joins.is_finished() {
                    deserted |= recorder.deserted().now_or_never().is_some();
                }
                (joins.join().unwrap(), deserted)
            });
            match joined {
                Joined::Watches(watcher) => {
                    assert!(!deserted && recorder.deserted().now_or_never().is_none());
                    drop(watcher);
                    assert!(recorder.deserted().now_or_never().is_some());
                }
                Joined::Starts(_watcher, other) => {
                    assert!(deserted && recorder.deserted().now_or_never().is_some());
                    assert_eq!((other.deserted().now_or_never(), flights.len()), (None, 1));
                }
                Joined::Kept(()) => panic!("nothing is kept"),
            }
            drop(recorder);
            over(&flights);
        }
    }

    #[test]
    fn an_answer_that_lands_is_joined_or_found_kept_and_never_begun_again() {
        for _ in 0..300 {
            let flights = Arc::new(Fleet::default());
            let (first, mut recorder) = starts(&flights, KIB);
            let (kept, barrier) = (AtomicBool::new(false), Barrier::new(3));
            let ask = || {
                barrier.wait();
                let look = || kept.load(SeqCst).then_some(());
                loop {
                    match flights.ask(most(KIB), look) {
                        Joined::Kept(()) => return,
                        Joined::Watches(watcher) => drop(watcher),
                        Joined::Starts(..) => panic!("neither kept nor under way"),
                    }
                }
            };
            thread::scope(|scope| {
                scope.spawn(ask);
                scope.spawn(ask);
                barrier.wait();
                recorder.header(Arc::new(200));
                assert!(recorder.land(|| kept.store(true, SeqCst)));
                recorder.finish();
                drop(recorder);
            });
            drop(first);
            over(&flights);
        }
    }

    #[tokio::test]
    async fn a_panic_leaves_the_table_clean() {
        let flights = Arc::new(Fleet::default());
        let looks = || flights.ask(most(KIB), || -> Option<()> { panic!("the store panics") });
        assert!(catch_unwind(AssertUnwindSafe(looks)).is_err());
        over(&flights);
        let (mut watcher, mut recorder) = starts(&flights, KIB);
        let exchange = tokio::spawn(async move {
            recorder.header(Arc::new(200));
            let keeps = || panic!("the store panics");
            recorder.land(keeps);
        });
        assert!(exchange.await.is_err_and(|e| e.is_panic()));
        assert_eq!(see(&mut watcher).await, (vec![], Err(Lost::Broken)));
        drop(watcher);
        over(&flights);
    }

    /// Bytes that are counted as long as they are in memory.
    struct Counted(Arc<AtomicUsize>);

    impl Counted {
        fn piece(count: &Arc<AtomicUsize>) -> Bytes {
            count.fetch_add(1, SeqCst);
            Bytes::from_owner(Self(count.clone()))
        }
    }

    impl AsRef<[u8]> for Counted {
        fn as_ref(&self) -> &[u8] {
            &[b'x'; 100]
        }
    }

    impl Drop for Counted {
        fn drop(&mut self) {
            self.0.fetch_sub(1, SeqCst);
        }
    }

    #[tokio::test]
    async fn pieces_are_freed_as_the_window_moves_on_and_when_all_is_over() {
        let flights = Arc::new(Fleet::default());
        let count = Arc::new(AtomicUsize::new(0));
        let (mut watcher, mut recorder) = starts(&flights, 1000);
        let header = Arc::new(200);
        recorder.header(header.clone());
        watcher.next().await.unwrap();
        for recorded in 1..=50 {
            recorder.body(Counted::piece(&count)).await;
            watcher.next().await.unwrap();
            // Up to its bound it may be joined; past that what all have seen is of no use.
            let held = if recorded <= 10 { recorded } else { 1 };
            assert_eq!((count.load(SeqCst), flights.held()), (held, held * 100));
        }
        let flight: Weak<_> = Arc::downgrade(&watcher.flight);
        drop(recorder);
        assert_eq!(count.load(SeqCst), 1, "who has not seen all may still do so");
        drop(watcher);
        assert_eq!((count.load(SeqCst), flight.strong_count(), Arc::strong_count(&header)), (0, 0, 1));
        over(&flights);
    }

    /// 200 askers, of whom some come late and some leave early.
    #[tokio::test(flavor = "multi_thread", worker_threads = 4)]
    async fn two_hundred_hear_a_thousand_pieces_each() {
        const PIECES: usize = 1000;
        let flights = Arc::new(Fleet::default());
        let (first, mut recorder) = starts(&flights, PIECES * 64);
        let mut watchers = vec![first];
        watchers.extend((1..150).map(|_| watches(&flights)));
        let deserted = recorder.deserted();
        let leaves = |seat: usize| seat.is_multiple_of(7);
        let watch = |seat: usize, mut watcher: Watcher| {
            tokio::spawn(async move {
                if leaves(seat) {
                    for _ in 0..seat {
                        watcher.next().await.unwrap();
                    }
                    return (vec![], Ok(()));
                }
                see(&mut watcher).await
            })
        };
        let mut askers: Vec<_> = watchers.into_iter().enumerate().map(|(seat, one)| watch(seat, one)).collect();
        let mut recorded = vec![];
        recorder.header(Arc::new(200));
        for piece in 0..PIECES {
            let piece = format!("data: {piece}\n\n");
            recorded.extend_from_slice(piece.as_bytes());
            assert!(at_once(&mut recorder, piece));
            if askers.len() < 200 {
                askers.push(watch(askers.len(), watches(&flights)));
            }
            tokio::task::yield_now().await;
        }
        recorder.finish();
        drop(recorder);
        let seen = timeout(DEADLINE, join_all(askers)).await.unwrap();
        for (seat, seen) in seen.into_iter().enumerate().filter(|(seat, _)| !leaves(*seat)) {
            assert!(seen.unwrap() == (recorded.clone(), Ok(())), "asker {seat}");
        }
        assert_eq!(deserted.now_or_never(), None);
        over(&flights);
    }

    /// A flight as it should be.
    struct Course {
        recorder: Option<Recorder>,
        key: usize,
        stands: bool,
        header: bool,
        recorded: Vec<u8>,
        weight: usize,
        /// It is past its bounds.
        slides: bool,
        /// A piece is missing, or all is recorded.
        over: bool,
        whole: bool,
    }

    /// What somebody aboard has seen.
    struct Aboard {
        watcher: Watcher,
        course: usize,
        header: bool,
        seen: Vec<u8>,
        ended: Option<Result<(), Lost>>,
    }

    #[derive(Default)]
    struct World {
        flights: Arc<Fleet>,
        courses: Vec<Course>,
        aboard: Vec<Aboard>,
    }

    const BOUNDS: Bounds = Bounds { body: 1000, all: 2500 };
    const LONGEST: usize = 300;

    impl World {
        fn begin(&mut self, key: usize, watcher: Watcher, recorder: Recorder) {
            self.courses.iter_mut().filter(|course| course.key == key).for_each(|course| course.stands = false);
            let (recorded, recorder) = (vec![], Some(recorder));
            let (header, slides, over, whole) = (false, false, false, false);
            self.courses.push(Course { recorder, key, stands: true, header, recorded, weight: 0, slides, over, whole });
            self.board(self.courses.len() - 1, watcher);
        }

        fn board(&mut self, course: usize, watcher: Watcher) {
            self.aboard.push(Aboard { watcher, course, header: false, seen: vec![], ended: None });
        }

        fn join(&mut self, number: usize) {
            let stands = self.courses.iter().position(|course| course.key == number && course.stands);
            let name = number.to_string();
            match (self.flights.join(key(&name), &(&*name).into(), BOUNDS, || None::<()>), stands) {
                (Joined::Watches(watcher), Some(course)) => self.board(course, watcher),
                (Joined::Starts(watcher, recorder), None) => self.begin(number, watcher, recorder),
                (_, stands) => panic!("there should be {stands:?}"),
            }
        }

        async fn write(&mut self, course: usize, len: usize) {
            let course = &mut self.courses[course];
            let Some(recorder) = &mut course.recorder else { return };
            let piece: Vec<u8> = (0..len).map(|byte| (course.recorded.len() + byte) as u8).collect();
            let held = self.flights.held();
            let taken = timeout(DEADLINE, recorder.body(piece.clone().into())).await.is_ok();
            if course.over {
                assert!(taken);
                return;
            }
            course.weight += len.max(64);
            course.slides |= course.weight > BOUNDS.body || held + len.max(64) > BOUNDS.all;
            assert!(taken || course.slides);
            course.stands &= !course.slides;
            if taken { course.recorded.extend(piece) } else { course.over = true }
        }

        /// Sees once, without waiting.
        fn see(&mut self, aboard: usize) {
            let one = &mut self.aboard[aboard];
            let course = &self.courses[one.course];
            match one.watcher.next().now_or_never() {
                None => {
                    assert!(course.recorder.is_some() && !course.whole);
                    assert!(!course.header || one.seen == course.recorded);
                }
                Some(Ok(Event::Header(_))) => {
                    assert!(course.header && !one.header);
                    one.header = true;
                }
                Some(Ok(event @ (Event::Body(_) | Event::End(_)))) => {
                    assert!(one.header);
                    let ends = matches!(event, Event::End(_));
                    let (Event::Body(pieces) | Event::End(pieces)) = event else { return };
                    assert!(ends || !pieces.is_empty());
                    pieces.iter().for_each(|piece| one.seen.extend_from_slice(piece));
                    if ends {
                        assert!(course.whole && one.seen == course.recorded);
                        one.ended = Some(Ok(()));
                    }
                }
                Some(Err(lost)) => {
                    match lost {
                        Lost::Broken => assert!(course.recorder.is_none() && !course.whole),
                        Lost::CutOff => assert!(course.slides),
                    }
                    assert!(lost == Lost::CutOff || !one.header || one.seen == course.recorded);
                    one.ended = Some(Err(lost));
                }
            }
            assert!(course.recorded.starts_with(&one.seen));
        }

        fn finish(&mut self, course: usize) {
            let course = &mut self.courses[course];
            let Some(recorder) = &mut course.recorder else { return };
            recorder.finish();
            course.whole |= course.header && !course.over;
            course.over = true;
        }

        fn desert(&mut self, number: usize) {
            let Some(recorder) = &self.courses[number].recorder else { return };
            let deserted = recorder.deserted().now_or_never().is_some();
            let aboard: Vec<usize> = (0..self.aboard.len()).filter(|at| self.aboard[*at].course == number).collect();
            aboard.iter().for_each(|at| self.see(*at));
            let watches = aboard.iter().any(|at| self.aboard[*at].ended != Some(Err(Lost::CutOff)));
            assert_eq!(deserted, !watches && !self.courses[number].whole);
            self.courses[number].stands &= !deserted;
        }

        async fn step(&mut self, what: u8, which: usize, len: usize) {
            let course = which % self.courses.len().max(1);
            let aboard = which % self.aboard.len().max(1);
            match what {
                0..6 => self.join(which % 2),
                6 => {
                    let name = (which % 2).to_string();
                    let (watcher, recorder) = self.flights.begin(key(&name), &(&*name).into(), BOUNDS);
                    self.begin(which % 2, watcher, recorder);
                }
                26 => {
                    let model = Some(which % 3).filter(|model| *model < 2);
                    self.flights.purge(model.map(|model| model.to_string()).as_deref());
                    let purged = |course: &&mut Course| model.is_none_or(|model| course.key == model);
                    self.courses.iter_mut().filter(purged).for_each(|course| course.stands = false);
                }
                _ if self.courses.is_empty() => {}
                7..10 => {
                    if let Some(recorder) = &mut self.courses[course].recorder {
                        recorder.header(Arc::new(200));
                        self.courses[course].header = true;
                    }
                }
                10..20 => self.write(course, len).await,
                20 => self.finish(course),
                21 => {
                    self.courses[course].recorder = None;
                    self.courses[course].stands = false;
                }
                22 => self.desert(course),
                _ if self.aboard.is_empty() => {}
                23..26 => drop(self.aboard.swap_remove(aboard)),
                _ => self.see(aboard),
            }
            let stand = self.courses.iter().filter(|course| course.stands).count();
            assert_eq!(self.flights.len(), stand);
            let mut tapes: Vec<_> =
                self.courses.iter().flat_map(|course| &course.recorder).map(|one| &one.flight).collect();
            tapes.extend(self.aboard.iter().map(|one| &one.watcher.flight));
            tapes.sort_by_key(|flight| Arc::as_ptr(flight));
            tapes.dedup_by_key(|flight| Arc::as_ptr(flight));
            let held: usize = tapes.iter().map(|flight| flight.tape.lock().weight()).sum();
            assert_eq!(self.flights.held(), held);
            assert!(held <= BOUNDS.all + LONGEST * tapes.len());
        }

        /// Everything comes to its end, and everybody aboard sees it.
        fn land(mut self) {
            self.courses.iter_mut().for_each(|course| course.recorder = None);
            for aboard in 0..self.aboard.len() {
                while self.aboard[aboard].ended.is_none() {
                    self.see(aboard);
                }
            }
            self.aboard.clear();
            over(&self.flights);
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(512) })]

        #[test]
        fn whoever_stays_hears_the_same_bytes_once_and_whole_only_if_it_was_finished(
            steps in proptest::collection::vec((0_u8..48, 0_usize..1000, 1..=LONGEST), 0..150),
        ) {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
            runtime.block_on(async {
                let mut world = World::default();
                for (what, which, len) in steps {
                    world.step(what, which, len).await;
                }
                world.land();
            });
        }
    }
}
