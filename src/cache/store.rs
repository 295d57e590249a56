//! Answers that are kept: bounded by bytes, however many are filled, read, replaced and purged at once.
//!
//! The bytes of answers lie in an arena of a fixed size until the last of them is read, and their places are counted
//! beside it. What finds no room is not kept. So the bound holds at every instant, also while slow clients still read what
//! was evicted or purged. What is to be thrown out, `quick_cache` decides; it may fill most of the arena, and the rest is
//! room for the answers that are on their way in.
//!
//! An answer comes in whole. As long as it is being computed, a flight's tape holds it, and the store nothing of it.
//!
//! A hit is a count on an answer. Its body comes in pieces, mostly one, of whatever size was free: a stream's events
//! say themselves where they end, so they need none of their own.

mod arena;

use std::fmt;
use std::hash::BuildHasher;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use quick_cache::sync::Cache;
use quick_cache::{DefaultHashBuilder, Lifecycle, OptionsBuilder, Weighter};

use super::canonical::PromptKey as Key;
use arena::{Arena, PIECE, Piece};

/// The answers that are kept.
///
/// A hit takes a read lock on one of up to 64 parts of the keys, and no other.
pub struct Store {
    kept: Cache<Key, Arc<Answer>, Weight, DefaultHashBuilder, Evictions>,
    arena: Arc<Arena>,
    evictions: Arc<AtomicU64>,
    /// Of a body, in bytes.
    max_body: AtomicUsize,
    /// Makes a model's name a number.
    models: DefaultHashBuilder,
}

/// An answer that is kept. Its bytes stay what and where they are, and count, as long as anyone holds them.
#[derive(Debug)]
pub struct Answer {
    model: u64,
    stored: Instant,
    expires: Instant,
    /// Where the header ends in the first piece, and the body in the last one.
    split: u32,
    end: u32,
    first: Piece,
    rest: Box<[Piece]>,
}

/// Who reads a piece of an answer.
struct Reader {
    answer: Arc<Answer>,
    place: usize,
}

/// An answer on its way in. It is in nobody's sight until [`Fill::finish`]; dropped before that, it leaves nothing.
#[must_use = "an answer is kept only when its fill is finished"]
pub struct Fill {
    store: Arc<Store>,
    key: Key,
    answer: Answer,
}

/// What an answer is kept as.
#[derive(Clone, Copy, Debug)]
pub struct Label<'a> {
    /// What it is found by.
    pub key: Key,
    /// The model that answered, for [`Store::purge`].
    pub model: &'a str,
    /// How long it may be served.
    pub ttl: Duration,
}

/// Why an answer is not kept.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Unkept {
    /// It is larger than `[cache] max_body`, or than the memory can hold beside others.
    TooLarge,
    /// The memory is taken by other fills, and by answers that are no longer kept but still read.
    Full,
}

/// How the store stands.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Figures {
    /// Bytes of answers that are kept, on their way in, or still read, with all that it takes to hold and find them.
    pub bytes: usize,
    /// Answers that are kept; those that have expired, too, until someone asks for them or they have to make room.
    pub entries: usize,
    /// Answers thrown out to make room for others, since the start.
    pub evictions: u64,
}

#[derive(Clone)]
struct Weight;

#[derive(Clone)]
struct Evictions(Arc<AtomicU64>);

/// How the memory is divided. All but `ghosts` and `answers` are bytes.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
struct Shares {
    /// For headers and bodies.
    arena: usize,
    /// The part of it for answers that are kept.
    kept: usize,
    /// For what it takes to hold and find them.
    places: usize,
    /// How many answers may be kept, at most.
    answers: usize,
    /// How many keys are remembered after their answers went.
    ghosts: usize,
}

/// Bytes that an answer takes in `quick_cache`'s tables.
const ENTRY: usize = 80;
/// Bytes that an answer takes beside its pieces: its entry, and itself with the counts of its holders.
const PLACE: u32 = (ENTRY + size_of::<Answer>() - size_of::<Piece>() + 2 * size_of::<usize>()) as u32;
/// How much larger the arena is than the memory for places. An answer weighs what it takes of either, so that neither
/// overflows.
const RATIO: usize = 5;
/// The part of the memory that is left to what the allocator keeps for itself.
const SLACK: usize = 16;
/// One key is remembered after its answer went for so many bytes of memory.
const MEMORY_PER_GHOST: usize = 4096;
/// The part of the kept answers that were asked for again. A tenth is left to those that were not: with less,
/// one-off prompts push each other out before anyone can ask again.
const HOT: f64 = 0.9;

// === impl Store ===

impl fmt::Debug for Store {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.figures().fmt(f)
    }
}

impl Store {
    /// A store of `memory` bytes for answers with bodies of up to `max_body` bytes.
    pub fn new(memory: usize, max_body: usize) -> Self {
        let shares = Shares::of(memory, max_body);
        let shards = (shares.kept / max_body.saturating_mul(8).max(1)).clamp(1, 64);
        let evictions = Arc::new(AtomicU64::new(0));
        let options = OptionsBuilder::new()
            .shards(1 << shards.ilog2())
            .estimated_items_capacity(shares.ghosts)
            .ghost_allocation(1.0)
            .hot_allocation(HOT)
            .weight_capacity(shares.kept as u64)
            .build()
            .expect("all that is needed is set");
        let models = DefaultHashBuilder::default();
        let kept = Cache::with_options(options, Weight, models.clone(), Evictions(evictions.clone()));
        // A table that grows is there twice for a while, and then half empty.
        kept.reserve(shares.answers);
        Self {
            kept,
            arena: Arc::new(Arena::new(shares.arena, shares.places)),
            evictions,
            max_body: AtomicUsize::new(max_body),
            models,
        }
    }

    /// Takes on other limits, and throws out what no longer fits.
    ///
    /// The keys stay divided as they were, so a body much larger than the first `max_body` may still not be kept.
    pub fn resize(&self, memory: usize, max_body: usize) {
        let shares = Shares::of(memory, max_body);
        self.max_body.store(max_body, Ordering::Relaxed);
        self.arena.resize(shares.arena, shares.places);
        self.kept.set_capacity(shares.kept as u64);
        self.kept.reserve(shares.answers.saturating_sub(self.kept.len()));
    }

    /// The answer that is kept under this key, if it may still be served.
    pub fn find(&self, key: &Key, now: Instant) -> Option<Arc<Answer>> {
        let answer = self.kept.get(key)?;
        if now < answer.expires {
            return Some(answer);
        }
        self.kept.remove_if(key, |answer| answer.expires <= now);
        None
    }

    /// Copies an answer in: its header, in whatever form the caller reads it again, and its body. What the pieces of a body
    /// are parts of may be much larger buffers.
    pub fn fill(
        self: &Arc<Self>,
        label: Label<'_>,
        header: &[u8],
        body: &[Bytes],
        now: Instant,
    ) -> Result<Fill, Unkept> {
        let length = body.iter().map(Bytes::len).sum::<usize>();
        if length > self.max_body.load(Ordering::Relaxed) {
            return Err(Unkept::TooLarge);
        }
        let mut pieces = self.take(header.len() + length)?;
        if pieces[0].len() < header.len() {
            return Err(Unkept::Full);
        }
        let mut room = pieces.iter_mut().map(Piece::as_mut);
        let (mut place, mut written) = (room.next().unwrap_or_default(), 0);
        for mut data in [header].into_iter().chain(body.iter().map(Bytes::as_ref)) {
            while !data.is_empty() {
                if written == place.len() {
                    (place, written) = (room.next().ok_or(Unkept::Full)?, 0);
                }
                let (part, rest) = data.split_at(data.len().min(place.len() - written));
                place[written..written + part.len()].copy_from_slice(part);
                written += part.len();
                data = rest;
            }
        }
        let mut pieces = pieces.into_iter();
        let answer = Answer {
            model: self.models.hash_one(label.model),
            stored: now,
            expires: now.checked_add(label.ttl).unwrap_or(now),
            split: header.len() as u32,
            end: written as u32,
            first: pieces.next().ok_or(Unkept::Full)?,
            rest: pieces.collect(),
        };
        Ok(Fill { store: self.clone(), key: label.key, answer })
    }

    /// Pieces for so many bytes, one at least.
    fn take(&self, size: usize) -> Result<Vec<Piece>, Unkept> {
        if size > self.heaviest() {
            return Err(Unkept::TooLarge); // before it takes the place of others
        }
        let mut pieces: Vec<Piece> = Vec::with_capacity(1);
        let mut left = size.max(1);
        while left > 0 {
            let charge = if pieces.is_empty() { PLACE + PIECE } else { PIECE };
            let piece = self.arena.take(left, charge).ok_or(Unkept::Full)?;
            left = left.saturating_sub(piece.len());
            pieces.push(piece);
        }
        if weight(&pieces) > self.heaviest() { Err(Unkept::TooLarge) } else { Ok(pieces) }
    }

    /// Throws out all answers of this model, or all there are; says how many. Those that are on their way in are not seen.
    pub fn purge(&self, model: Option<&str>) -> usize {
        let model = model.map(|model| self.models.hash_one(model));
        let purged = AtomicUsize::new(0);
        self.kept.retain(|_, answer| {
            let passes = model.is_none_or(|model| model == answer.model);
            purged.fetch_add(usize::from(passes), Ordering::Relaxed);
            !passes
        });
        purged.into_inner()
    }

    /// How the store stands.
    pub fn figures(&self) -> Figures {
        Figures {
            bytes: self.arena.used(),
            entries: self.kept.len(),
            evictions: self.evictions.load(Ordering::Relaxed),
        }
    }

    /// The most that one answer may weigh: heavier ones `quick_cache` would not take.
    fn heaviest(&self) -> usize {
        (self.kept.shard_capacity() as f64 * HOT) as usize
    }
}

// === impl Answer ===

impl Answer {
    /// The header, as it was given to [`Store::begin`]. No copy.
    pub fn header(self: &Arc<Self>) -> Bytes {
        Bytes::from_owner(Reader { answer: self.clone(), place: 0 }).slice(..self.split as usize)
    }

    /// A piece of the body, from 0, as long as there are any; only the first may be empty. No copy.
    pub fn piece(self: &Arc<Self>, place: usize) -> Option<Bytes> {
        let whole = self.part(place)?.len();
        let start = if place == 0 { self.split as usize } else { 0 };
        let end = if place == self.rest.len() { self.end as usize } else { whole };
        Some(Bytes::from_owner(Reader { answer: self.clone(), place }).slice(start..end))
    }

    /// The whole body, in pieces. No copy.
    pub fn pieces(self: &Arc<Self>) -> Vec<Bytes> {
        (0..).map_while(|place| self.piece(place)).collect()
    }

    /// How long ago it was begun.
    pub fn age(&self, now: Instant) -> Duration {
        now.saturating_duration_since(self.stored)
    }

    fn part(&self, place: usize) -> Option<&Piece> {
        match place.checked_sub(1) {
            None => Some(&self.first),
            Some(place) => self.rest.get(place),
        }
    }

    fn weight(&self) -> usize {
        weight([&self.first].into_iter().chain(&self.rest))
    }
}

// === impl Reader ===

impl AsRef<[u8]> for Reader {
    fn as_ref(&self) -> &[u8] {
        self.answer.part(self.place).map_or(&[], Piece::as_ref)
    }
}

// === impl Fill ===

impl Fill {
    /// It takes the place of what was kept under its key.
    pub fn finish(self) {
        self.store.kept.insert(self.key, Arc::new(self.answer));
    }
}

// === impl Weight ===

impl Weighter<Key, Arc<Answer>> for Weight {
    fn weight(&self, _key: &Key, answer: &Arc<Answer>) -> u64 {
        answer.weight() as u64
    }
}

// === impl Evictions ===

impl Lifecycle<Key, Arc<Answer>> for Evictions {
    /// What was thrown out or replaced: freed when the lock is released again.
    type RequestState = Vec<Arc<Answer>>;

    fn before_evict(&self, _out: &mut Self::RequestState, _key: &Key, _answer: &mut Arc<Answer>) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }

    fn on_evict(&self, out: &mut Self::RequestState, _key: Key, answer: Arc<Answer>) {
        out.push(answer);
    }
}

// === impl Shares ===

impl Shares {
    /// An eighth of the arena, or room for four of the largest bodies, is left to answers on their way in, and to the
    /// gaps.
    fn of(memory: usize, max_body: usize) -> Self {
        let ghosts = memory / MEMORY_PER_GHOST;
        let places = (memory - memory / SLACK - ghosts * ENTRY) / (RATIO + 1);
        let arena = RATIO * places;
        let spare = (arena / 8).max(max_body.saturating_mul(4).min(arena / 2));
        let kept = arena - spare;
        Self { arena, kept, places, answers: kept / (RATIO * (PLACE + PIECE) as usize), ghosts }
    }
}

/// What an answer of these pieces weighs: the more of what it takes of the arena and of the places.
fn weight<'a>(pieces: impl IntoIterator<Item = &'a Piece>) -> usize {
    let (mut bytes, mut places) = (0, PLACE as usize);
    for piece in pieces {
        bytes += piece.len();
        places += PIECE as usize;
    }
    bytes.max(RATIO * places)
}

#[cfg(test)]
mod tests {
    use std::collections::{HashMap, HashSet};
    use std::sync::atomic::AtomicBool;

    use proptest::prelude::*;

    use super::*;

    const HOUR: Duration = Duration::from_secs(3600);

    fn key(index: u64) -> Key {
        let mut digest = [7; 32];
        digest[..8].copy_from_slice(&index.to_le_bytes());
        Key(digest)
    }

    fn label(index: u64, model: &str) -> Label<'_> {
        Label { key: key(index), model, ttl: HOUR }
    }

    /// Fills in a whole answer of the model `m`.
    fn keep(store: &Arc<Store>, index: u64, body: &[u8], now: Instant) -> Result<(), Unkept> {
        store.fill(label(index, "m"), b"header", &[Bytes::copy_from_slice(body)], now).map(Fill::finish)
    }

    fn body(store: &Arc<Store>, index: u64, now: Instant) -> Option<Vec<u8>> {
        store.find(&key(index), now).map(|answer| whole(&answer))
    }

    fn whole(answer: &Arc<Answer>) -> Vec<u8> {
        (0..).map_while(|place| answer.piece(place)).flatten().collect()
    }

    fn charged_pieces<'a>(pieces: impl Iterator<Item = &'a Piece>) -> usize {
        PLACE as usize + pieces.map(|piece| piece.len() + PIECE as usize).sum::<usize>()
    }

    /// What the store must have charged for an answer.
    fn charged(answer: &Answer) -> usize {
        charged_pieces([&answer.first].into_iter().chain(&answer.rest))
    }

    fn assert_empty(store: &Arc<Store>) {
        let Figures { bytes, entries, .. } = store.figures();
        assert_eq!((bytes, entries), (0, 0));
    }

    #[test]
    fn an_answer_is_found_as_it_was_filled_in_until_its_time_is_over() {
        let second = Duration::from_secs(1);
        let cases = [
            (HOUR, HOUR - second, true),
            (HOUR, HOUR, false),
            (second, 2 * second, false),
            (Duration::ZERO, Duration::ZERO, false),
        ];
        for (ttl, after, found) in cases {
            let store = Arc::new(Store::new(1 << 20, 1 << 14));
            let start = Instant::now();
            let label = Label { key: key(1), model: "m", ttl };
            let events = ["data: 1\n\n", "", "data: [DONE]\n\n"].map(Bytes::from);
            store.fill(label, b"header", &events, start).unwrap().finish();
            let answer = store.find(&key(1), start + after);
            assert_eq!(answer.is_some(), found, "{ttl:?} after {after:?}");
            let Some(answer) = answer else {
                assert_empty(&store);
                continue;
            };
            assert_eq!(answer.header(), "header");
            assert_eq!(whole(&answer), b"data: 1\n\ndata: [DONE]\n\n");
            assert_eq!(answer.age(start + after), after);
        }
    }

    #[test]
    fn hits_share_one_body() {
        let store = Arc::new(Store::new(1 << 20, 1 << 14));
        let now = Instant::now();
        keep(&store, 1, &[1; 2000], now).unwrap();
        let [one, other] = [(); 2].map(|()| store.find(&key(1), now).unwrap().piece(0).unwrap());
        assert_eq!((one.as_ptr(), one.len()), (other.as_ptr(), 2000));
    }

    #[test]
    fn a_fill_is_seen_by_nobody_before_its_end_and_leaves_nothing_when_it_is_dropped() {
        let store = Arc::new(Store::new(1 << 20, 1 << 14));
        let now = Instant::now();
        let fill = store.fill(label(1, "m"), b"header", &[vec![1; 5000].into()], now).unwrap();
        assert!(body(&store, 1, now).is_none());
        assert!(store.figures().bytes > 5000, "what is on its way in counts");
        drop(fill);
        assert_empty(&store);
    }

    #[test]
    fn a_body_that_is_too_large_is_not_kept_in_however_many_pieces_it_comes() {
        let store = Arc::new(Store::new(1 << 20, 1000));
        let now = Instant::now();
        for (sizes, kept) in [
            (&[1001][..], Err(Unkept::TooLarge)),
            (&[600, 401], Err(Unkept::TooLarge)),
            (&[1000, 1], Err(Unkept::TooLarge)),
            (&[600, 400], Ok(())),
            (&[1; 1000], Ok(())),
        ] {
            let body: Vec<Bytes> = sizes.iter().map(|size| vec![0; *size].into()).collect();
            assert_eq!(store.fill(label(1, "m"), b"header", &body, now).map(Fill::finish), kept, "{sizes:?}");
            assert_eq!(store.purge(None), usize::from(kept.is_ok()));
            assert_empty(&store);
        }
    }

    #[test]
    fn a_body_is_what_it_was_whatever_gaps_it_lies_in() {
        // Two of these fill a block, and one of the two goes again.
        let now = Instant::now();
        let store = Arc::new(Store::new(64 << 10, 8000));
        let fill = |index| store.fill(label(index, "m"), b"", &[vec![0; 1400].into()], now).ok();
        let all: Vec<Fill> = (0..).map_while(fill).collect();
        let held: Vec<Fill> = all.into_iter().step_by(2).collect();
        for header in [&b""[..], b"header", &[b'h'; 700]] {
            for size in [0, 1, 835, 836, 837, 1530, 1536, 2300, 5000] {
                let bytes: Vec<u8> = (0..size).map(|byte| byte as u8).collect();
                let body: Vec<Bytes> = bytes.chunks(500).map(Bytes::copy_from_slice).collect();
                store.fill(label(u64::MAX, "m"), header, &body, now).unwrap().finish();
                let answer = store.find(&key(u64::MAX), now).unwrap();
                assert_eq!((&answer.header()[..], whole(&answer)), (header, bytes), "{size}");
                assert!(size < 2000 || answer.piece(1).is_some(), "it lies in several gaps");
            }
        }
        drop(held);
    }

    #[test]
    fn an_answer_that_the_memory_cannot_hold_is_not_kept() {
        let now = Instant::now();
        for memory in [0, 100, 1 << 10, 1 << 16] {
            let store = Arc::new(Store::new(memory, usize::MAX));
            assert!(keep(&store, 1, &vec![0; memory], now).is_err(), "{memory}");
            assert_empty(&store);
        }
    }

    #[test]
    fn fills_that_find_no_room_are_given_up_and_the_kept_answers_stay() {
        let store = Arc::new(Store::new(1 << 20, 1 << 16));
        let now = Instant::now();
        let mut index = 0;
        while store.figures().evictions == 0 {
            keep(&store, index, &[0; 4000], now).unwrap();
            index += 1;
        }
        let before = store.figures();
        let mut fills = Vec::new();
        let refused = loop {
            match store.fill(label(u64::MAX, "m"), b"", &[vec![0; 60_000].into()], now) {
                Ok(fill) => fills.push(fill),
                Err(refused) => break refused,
            }
        };
        assert_eq!((refused, fills.len() > 2), (Unkept::Full, true));
        assert_eq!(store.figures().entries, before.entries);
        drop(fills);
        assert_eq!(store.figures(), before);
    }

    #[test]
    fn an_answer_takes_the_place_of_the_one_before_which_counts_while_it_is_read() {
        let store = Arc::new(Store::new(1 << 20, 1 << 14));
        let now = Instant::now();
        keep(&store, 1, &[1; 5000], now).unwrap();
        let alone = store.figures();
        let old = store.find(&key(1), now).unwrap();
        keep(&store, 1, &[2; 5000], now).unwrap();
        assert_eq!(body(&store, 1, now).unwrap(), [2; 5000]);
        assert_eq!((whole(&old), store.figures().bytes), (vec![1; 5000], 2 * alone.bytes));
        drop(old);
        assert_eq!(store.figures(), alone, "a replaced answer is no eviction");
    }

    #[test]
    fn what_is_purged_is_gone_at_once_and_counts_while_it_is_read() {
        let store = Arc::new(Store::new(1 << 20, 1 << 14));
        let now = Instant::now();
        for (index, model) in [(1, "a"), (2, "a"), (3, "b")] {
            store.fill(label(index, model), b"", &[], now).unwrap().finish();
        }
        let read = store.find(&key(1), now).unwrap();
        assert_eq!(store.purge(Some("a")), 2);
        assert_eq!([1, 2, 3].map(|index| store.find(&key(index), now).is_some()), [false, false, true]);
        assert_eq!(store.purge(Some("a")), 0);
        assert_eq!(store.purge(None), 1);
        assert!(store.figures().bytes > 0);
        drop(read);
        assert_empty(&store);
    }

    #[test]
    fn answers_that_are_asked_for_again_survive_a_scan_of_one_off_prompts() {
        let store = Arc::new(Store::new(1 << 20, 1 << 14));
        let now = Instant::now();
        let asked = 0..100;
        for index in asked.clone() {
            keep(&store, index, &[0; 1000], now).unwrap();
            assert!(body(&store, index, now).is_some());
        }
        for index in 1000..11_000 {
            keep(&store, index, &[0; 1000], now).unwrap();
        }
        let survivors = asked.filter(|index| body(&store, *index, now).is_some()).count();
        assert!(survivors >= 95, "{survivors} of 100");
        assert!(store.figures().evictions > 9000);
    }

    #[test]
    fn other_limits_hold_at_once() {
        let store = Arc::new(Store::new(1 << 20, 1 << 14));
        let now = Instant::now();
        for index in 0..1000 {
            keep(&store, index, &[0; 1000], now).unwrap();
        }
        store.resize(1 << 18, 500);
        assert!(store.figures().bytes <= 1 << 18);
        assert_eq!(keep(&store, 1, &[0; 501], now), Err(Unkept::TooLarge));
        store.resize(1 << 20, 1 << 14);
        for index in 0..1000 {
            keep(&store, index, &[0; 1000], now).unwrap();
        }
        assert!(store.figures().bytes > 1 << 19);
    }

    #[test]
    fn the_tables_take_no_more_than_is_charged_for_them() {
        let store = Arc::new(Store::new(1 << 24, 1 << 14));
        let now = Instant::now();
        let Shares { answers, ghosts, .. } = Shares::of(1 << 24, 1 << 14);
        for index in 0..30_000 {
            keep(&store, index, b"", now).unwrap();
            if index % 97 == 0 {
                let taken = store.kept.memory_used().total();
                assert!(taken <= (answers + ghosts) * ENTRY, "{taken} bytes for {answers} answers and {ghosts} ghosts");
            }
        }
        let Figures { entries, evictions, .. } = store.figures();
        assert!(evictions > 0 && entries <= answers);
    }

    #[test]
    fn the_bound_holds_at_every_instant_while_threads_fill_find_and_purge() {
        const MEMORY: usize = 1 << 20;
        let store = Arc::new(Store::new(MEMORY, 1 << 14));
        let now = Instant::now();
        let done = AtomicBool::new(false);
        std::thread::scope(|scope| {
            let workers: Vec<_> = (0..3)
                .map(|worker: u64| {
                    let store = &store;
                    scope.spawn(move || {
                        let mut read = Vec::new();
                        for turn in 0..4000_u64 {
                            let index = turn.wrapping_mul(worker + 5) % 500;
                            let size = (turn * 37 % 12_000) as usize;
                            let filled = Bytes::from(vec![index as u8; size]);
                            match store.fill(label(index, "m"), b"", &[filled], now) {
                                Ok(fill) if turn % 7 > 0 => fill.finish(),
                                _ => {}
                            }
                            if let Some(answer) = store.find(&key(turn * 13 % 500), now) {
                                assert!(whole(&answer).iter().all(|byte| u64::from(*byte) == turn * 13 % 500 % 256));
                                read.push(answer);
                            }
                            if turn % 30 == 0 {
                                read.clear();
                            }
                            if turn % 1000 == 999 {
                                store.purge((worker == 0).then_some("m"));
                            }
                        }
                    })
                })
                .collect();
            let watcher = scope.spawn(|| {
                let mut most = 0;
                while !done.load(Ordering::Relaxed) {
                    most = most.max(store.figures().bytes);
                    assert!(most <= MEMORY);
                    std::thread::yield_now();
                }
                most
            });
            for worker in workers {
                worker.join().unwrap();
            }
            done.store(true, Ordering::Relaxed);
            assert!(watcher.join().unwrap() > MEMORY / 2);
        });
        store.purge(None);
        assert_empty(&store);
    }

    #[derive(Clone, Debug)]
    enum Step {
        Fill { key: u64, model: usize, header: usize, body: Vec<usize>, ttl: u64 },
        Finish(usize),
        Abandon(usize),
        Find { key: u64, hold: bool },
        Release(usize),
        Purge(Option<usize>),
        Wait(u64),
    }

    fn steps() -> impl Strategy<Value = Vec<Step>> {
        let body = prop::collection::vec(0..2000_usize, 0..4);
        let fill = (0..12_u64, 0..2_usize, 0..300_usize, body, 1..40_u64)
            .prop_map(|(key, model, header, body, ttl)| Step::Fill { key, model, header, body, ttl });
        let step = prop_oneof![
            6 => fill,
            4 => any::<usize>().prop_map(Step::Finish),
            1 => any::<usize>().prop_map(Step::Abandon),
            4 => (0..12_u64, any::<bool>()).prop_map(|(key, hold)| Step::Find { key, hold }),
            2 => any::<usize>().prop_map(Step::Release),
            1 => prop::option::of(0..2_usize).prop_map(Step::Purge),
            1 => (1..20_u64).prop_map(Step::Wait),
        ];
        prop::collection::vec(step, 0..200)
    }

    /// What the store must know, told by something much simpler: the answer under each key, and since when.
    #[derive(Default)]
    struct Told {
        /// Key → the answer's number, its model, when it ends.
        last: HashMap<u64, (u8, usize, Instant)>,
    }

    const MODELS: [&str; 2] = ["a", "b"];
    const MEMORY: usize = 64 << 10;

    /// A fill beside what the store must make of it: its key, number, model and end.
    type Filling = (Fill, u64, u8, usize, Instant);

    fn run(steps: Vec<Step>) -> Result<(), TestCaseError> {
        let store = Arc::new(Store::new(MEMORY, 4000));
        let (mut told, mut now, mut number) = (Told::default(), Instant::now(), 0_u8);
        let (mut fills, mut held): (Vec<Filling>, Vec<Arc<Answer>>) = Default::default();
        let pick = |which: usize, length: usize| which.checked_rem(length);
        for step in steps {
            match step {
                Step::Fill { key: index, model, header, body, ttl } => {
                    number = number.wrapping_add(1);
                    let ttl = Duration::from_secs(ttl);
                    let label = Label { key: key(index), model: MODELS[model], ttl };
                    let pieces: Vec<Bytes> = body.iter().map(|size| vec![number; *size].into()).collect();
                    match store.fill(label, &vec![0; header], &pieces, now) {
                        Ok(fill) => fills.push((fill, index, number, model, now + ttl)),
                        Err(unkept) => prop_assert!(unkept == Unkept::Full || body.iter().sum::<usize>() > 4000),
                    }
                }
                Step::Finish(which) => {
                    let Some(which) = pick(which, fills.len()) else { continue };
                    let (fill, index, number, model, ends) = fills.swap_remove(which);
                    fill.finish();
                    told.last.insert(index, (number, model, ends));
                }
                Step::Abandon(which) => drop(pick(which, fills.len()).map(|which| fills.swap_remove(which))),
                Step::Find { key: index, hold } => {
                    if let Some(answer) = store.find(&key(index), now) {
                        let (number, model, ends) = told.last[&index];
                        prop_assert!(whole(&answer).iter().all(|byte| *byte == number), "an answer that was replaced");
                        prop_assert!(now < ends && answer.model == store.models.hash_one(MODELS[model]));
                        held.extend(hold.then_some(answer));
                    }
                }
                Step::Release(which) => drop(pick(which, held.len()).map(|which| held.swap_remove(which))),
                Step::Purge(model) => {
                    store.purge(model.map(|model| MODELS[model]));
                    told.last.retain(|_, (_, of, _)| model.is_some_and(|model| *of != model));
                }
                Step::Wait(seconds) => now += Duration::from_secs(seconds),
            }
            let answers: HashMap<*const Answer, usize> = store
                .kept
                .iter()
                .map(|(_, answer)| answer)
                .chain(held.iter().cloned())
                .map(|answer| (Arc::as_ptr(&answer), charged(&answer)))
                .collect();
            let filling = fills.iter().map(|(fill, ..)| charged(&fill.answer)).sum::<usize>();
            let sum = answers.values().sum::<usize>() + filling;
            let Figures { bytes, entries, .. } = store.figures();
            prop_assert_eq!((bytes, bytes <= MEMORY), (sum, true));
            let known: HashSet<Key> = told.last.keys().map(|index| key(*index)).collect();
            prop_assert!(store.kept.iter().all(|(key, _)| known.contains(&key)) && entries <= known.len());
        }
        drop((fills, held));
        store.purge(None);
        prop_assert_eq!((store.figures().bytes, store.figures().entries), (0, 0));
        Ok(())
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 300, ..ProptestConfig::default() })]
        #[test]
        fn the_bytes_are_the_sum_of_what_is_held_whatever_happens(steps in steps()) {
            run(steps)?;
        }
    }
}
