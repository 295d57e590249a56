//! The memory of answers: a few large blocks, lent out in pieces.
//!
//! An allocator that is asked for each answer by itself keeps a gap for the same size again, so where sizes change,
//! three times as much memory as was asked for was measured. Here a gap grows together with its neighbours, whatever
//! was in them, and an answer that fits in no gap is cut into pieces. [`BytesMut`] makes that safe: its parts are owned
//! one by one, and can be joined again.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use bytes::BytesMut;
use parking_lot::Mutex;

/// The memory for pieces, and a count of the memory that it takes to hold and find them, in bytes each.
#[derive(Debug)]
pub(super) struct Arena {
    blocks: Mutex<Blocks>,
    charged: AtomicUsize,
    /// The most that may be charged.
    most: AtomicUsize,
}

/// A part of a block that one answer has to itself. When it is dropped it goes back, and its charge with it.
#[derive(Debug)]
pub(super) struct Piece {
    arena: Arc<Arena>,
    block: u32,
    charge: u32,
    bytes: BytesMut,
}

#[derive(Debug)]
struct Blocks {
    /// Those without memory are none.
    blocks: Vec<Option<Block>>,
    /// The bytes of one.
    size: usize,
    /// How many may have memory, and how many have.
    most: usize,
    many: usize,
    /// The bytes that are lent out.
    lent: usize,
    /// Where the last piece came from.
    last: usize,
}

/// The gaps in a block, by address, and the size of the largest.
#[derive(Debug)]
struct Block {
    gaps: VecDeque<BytesMut>,
    largest: usize,
}

/// Pieces are multiples of this.
const UNIT: usize = 256;
/// Blocks are at most this large.
const LARGEST_BLOCK: usize = 1 << 20;
/// Bytes that a piece takes beside its own: itself, and the gap beside it, in a list that may be half empty.
pub(super) const PIECE: u32 = (size_of::<Piece>() + 2 * size_of::<BytesMut>()) as u32;

// === impl Arena ===

impl Arena {
    /// `bytes` for pieces, in blocks that get memory when they are needed first, and `charges` for all that is charged.
    pub(super) fn new(bytes: usize, charges: usize) -> Self {
        let size = (bytes / 16).next_multiple_of(UNIT).clamp(UNIT, LARGEST_BLOCK);
        let blocks = Blocks { blocks: Vec::new(), size, most: bytes / size, many: 0, lent: 0, last: 0 };
        Self { blocks: Mutex::new(blocks), charged: AtomicUsize::new(0), most: AtomicUsize::new(charges) }
    }

    /// Takes on other limits; memory above them goes as soon as it is free.
    pub(super) fn resize(&self, bytes: usize, charges: usize) {
        self.most.store(charges, Ordering::Relaxed);
        let mut blocks = self.blocks.lock();
        blocks.most = bytes / blocks.size;
        for place in 0..blocks.blocks.len() {
            blocks.shrink(place);
        }
    }

    /// The bytes that are lent out, and those that are charged.
    pub(super) fn used(&self) -> usize {
        self.blocks.lock().lent + self.charged.load(Ordering::Relaxed)
    }

    /// A piece of at least `wanted` bytes, or where there is no gap of that size the largest there is.
    pub(super) fn take(self: &Arc<Self>, wanted: usize, charge: u32) -> Option<Piece> {
        let most = self.most.load(Ordering::Relaxed);
        let charged = |charged: usize| charged.checked_add(charge as usize).filter(|charged| *charged <= most);
        self.charged.fetch_update(Ordering::Relaxed, Ordering::Relaxed, charged).ok()?;
        // From here on it gives back the charge, also where there is nothing to give with it.
        let mut piece = Piece { arena: self.clone(), block: 0, charge, bytes: BytesMut::new() };
        (piece.block, piece.bytes) = self.blocks.lock().take(wanted)?;
        Some(piece)
    }
}

// === impl Piece ===

impl Piece {
    pub(super) fn as_mut(&mut self) -> &mut [u8] {
        &mut self.bytes
    }

    pub(super) fn len(&self) -> usize {
        self.bytes.len()
    }
}

impl AsRef<[u8]> for Piece {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

impl Drop for Piece {
    fn drop(&mut self) {
        if !self.bytes.is_empty() {
            self.arena.blocks.lock().give(self.block, std::mem::take(&mut self.bytes));
        }
        self.arena.charged.fetch_sub(self.charge as usize, Ordering::Relaxed);
    }
}

// === impl Blocks ===

impl Blocks {
    fn take(&mut self, wanted: usize) -> Option<(u32, BytesMut)> {
        let wanted = wanted.min(self.size).next_multiple_of(UNIT).max(UNIT);
        let place = self.fitting(wanted).or_else(|| self.grow()).or_else(|| self.largest())?;
        let bytes = self.blocks[place].as_mut()?.take(wanted);
        self.last = place;
        self.lent += bytes.len();
        Some((place as u32, bytes))
    }

    fn give(&mut self, place: u32, bytes: BytesMut) {
        let place = place as usize;
        self.lent -= bytes.len();
        if let Some(block) = &mut self.blocks[place] {
            block.give(bytes);
        }
        self.shrink(place);
    }

    /// The next block with a gap of this size.
    fn fitting(&self, wanted: usize) -> Option<usize> {
        let fits = |place: &usize| self.gap(*place) >= wanted;
        (self.last..self.blocks.len()).chain(0..self.last).find(fits)
    }

    /// Takes memory for one more block, if it may have any.
    fn grow(&mut self) -> Option<usize> {
        if self.many >= self.most {
            return None;
        }
        self.many += 1;
        let block = Block { gaps: [BytesMut::zeroed(self.size)].into(), largest: self.size };
        let place = self.blocks.iter().position(Option::is_none).unwrap_or(self.blocks.len());
        self.blocks.resize_with(self.blocks.len().max(place + 1), || None);
        self.blocks[place] = Some(block);
        Some(place)
    }

    /// Frees the memory of this block, if nothing is in it and there are too many.
    fn shrink(&mut self, place: usize) {
        if self.many > self.most && self.gap(place) == self.size {
            self.blocks[place] = None;
            self.many -= 1;
        }
    }

    /// The block with the largest gap.
    fn largest(&self) -> Option<usize> {
        let place = (0..self.blocks.len()).max_by_key(|place| self.gap(*place))?;
        (self.gap(place) > 0).then_some(place)
    }

    /// The size of a block's largest gap.
    fn gap(&self, place: usize) -> usize {
        self.blocks[place].as_ref().map_or(0, |block| block.largest)
    }
}

// === impl Block ===

impl Block {
    /// So much of the smallest gap that has it, or all of the largest.
    fn take(&mut self, wanted: usize) -> BytesMut {
        let wanted = wanted.min(self.largest);
        let fits = self.gaps.iter_mut().enumerate().filter(|(_, gap)| gap.len() >= wanted);
        let Some((place, gap)) = fits.min_by_key(|(_, gap)| gap.len()) else { return BytesMut::new() };
        let bytes = gap.split_to(wanted);
        if gap.is_empty() {
            self.gaps.remove(place);
        }
        self.largest = self.gaps.iter().map(BytesMut::len).max().unwrap_or(0);
        bytes
    }

    fn give(&mut self, mut bytes: BytesMut) {
        let place = self.gaps.partition_point(|gap| gap.as_ptr() < bytes.as_ptr());
        if let Some(after) = self.gaps.remove(place)
            && let Err(apart) = bytes.try_unsplit(after)
        {
            self.gaps.insert(place, apart);
        }
        let bytes = match place.checked_sub(1).and_then(|before| self.gaps.get_mut(before)) {
            Some(before) => match before.try_unsplit(bytes) {
                Ok(()) => {
                    self.largest = self.largest.max(before.len());
                    return;
                }
                Err(apart) => apart,
            },
            None => bytes,
        };
        self.largest = self.largest.max(bytes.len());
        self.gaps.insert(place, bytes);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn arena(bytes: usize) -> Arc<Arena> {
        Arc::new(Arena::new(bytes, usize::MAX))
    }

    /// The sizes of all gaps, block by block.
    fn gaps(arena: &Arena) -> Vec<Vec<usize>> {
        let blocks = arena.blocks.lock();
        blocks
            .blocks
            .iter()
            .map(|block| block.iter().flat_map(|block| block.gaps.iter().map(BytesMut::len)).collect())
            .collect()
    }

    #[test]
    fn a_piece_is_as_large_as_wanted_or_as_the_largest_gap() {
        // 16 blocks of 1024 bytes.
        let arena = arena(16 << 10);
        for (wanted, length) in [(0, 256), (1, 256), (256, 256), (257, 512), (1024, 1024), (5000, 1024)] {
            assert_eq!(arena.take(wanted, 7).unwrap().len(), length, "{wanted}");
        }
        let whole: Vec<_> = (0..15).map(|_| arena.take(1024, 7).unwrap()).collect();
        let left = arena.take(256, 7).unwrap();
        assert_eq!(arena.take(1024, 7).unwrap().len(), 768, "nothing larger is left");
        drop((whole, left));
    }

    #[test]
    fn what_is_full_gives_nothing_until_something_comes_back() {
        let arena = arena(16 << 10);
        let mut whole: Vec<_> = (0..16).map(|_| arena.take(1024, 7).unwrap()).collect();
        assert!(arena.take(1, 7).is_none());
        assert_eq!(arena.used(), (16 << 10) + 16 * 7);
        whole.pop();
        assert_eq!(arena.take(1, 7).unwrap().len(), 256);
        drop(whole);
        assert_eq!(arena.used(), 0);
    }

    #[test]
    fn gaps_grow_together_with_their_neighbours() {
        let arena = arena(16 << 10);
        let mut pieces: Vec<_> = (0..4).map(|_| arena.take(256, 7).unwrap()).collect();
        assert_eq!(gaps(&arena), [Vec::<usize>::new()]);
        for (which, left) in [(1, vec![256]), (2, vec![256, 256]), (0, vec![512, 256]), (0, vec![1024])] {
            drop(pieces.remove(which));
            assert_eq!(gaps(&arena), [left]);
        }
    }

    #[test]
    fn charges_have_a_bound_of_their_own() {
        let arena = Arc::new(Arena::new(1 << 20, 250));
        let piece = arena.take(1, 100).unwrap();
        let _other = arena.take(1, 150).unwrap();
        assert!(arena.take(1, 1).is_none());
        drop(piece);
        assert!(arena.take(1, 101).is_none());
        assert!(arena.take(1, 100).is_some());
    }

    #[test]
    fn memory_above_a_new_limit_goes_when_it_is_free() {
        let arena = arena(16 << 10);
        let mut whole: Vec<_> = (0..16).map(|_| arena.take(1024, 7).unwrap()).collect();
        whole.truncate(8);
        arena.resize(4 << 10, usize::MAX);
        assert_eq!(arena.blocks.lock().many, 8);
        whole.truncate(2);
        assert_eq!(arena.blocks.lock().many, 4);
        arena.resize(16 << 10, usize::MAX);
        whole.extend((0..14).map(|_| arena.take(1024, 7).unwrap()));
        assert!(arena.take(1, 7).is_none());
    }

    proptest! {
        #[test]
        fn pieces_never_overlap_and_all_comes_back(
            steps in prop::collection::vec((any::<bool>(), 0..3000_usize, any::<usize>()), 0..200),
        ) {
            let arena = arena(32 << 10);
            let mut pieces: Vec<(Piece, u8)> = Vec::new();
            for (number, (take, size, which)) in steps.into_iter().enumerate() {
                let number = number as u8;
                if take {
                    if let Some(mut piece) = arena.take(size, 7) {
                        piece.as_mut().fill(number);
                        pieces.push((piece, number));
                    }
                } else if let Some(which) = which.checked_rem(pieces.len()) {
                    pieces.swap_remove(which);
                }
                for (piece, number) in &pieces {
                    prop_assert!(piece.as_ref().iter().all(|byte| byte == number));
                }
                prop_assert_eq!(arena.used(), pieces.iter().map(|(piece, _)| piece.len() + 7).sum::<usize>());
            }
            pieces.clear();
            prop_assert_eq!(arena.used(), 0);
            prop_assert!(gaps(&arena).iter().all(|gaps| gaps == &[2048]));
        }
    }
}
