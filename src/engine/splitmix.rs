//! SplitMix64: numbers that look random, and are the same each time for one seed.
//!
//! The standard library has no generator, and one from elsewhere may change its numbers with its version.

/// A sequence of numbers.
pub(super) struct SplitMix(u64);

impl SplitMix {
    pub(super) fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// The next number, from -1 up to, but not, 1.
    pub(super) fn signed(&mut self) -> f32 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((z ^ (z >> 31)) >> 40) as f32 / (1_u64 << 23) as f32 - 1.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_fill_the_range_and_come_again_for_the_same_seed() {
        let numbers = |seed| {
            let mut sequence = SplitMix::new(seed);
            (0..1000).map(|_| sequence.signed()).collect::<Vec<_>>()
        };
        let once = numbers(7);
        assert_eq!(once, numbers(7));
        assert_ne!(once, numbers(8));
        assert!(once.iter().all(|x| (-1.0..1.0).contains(x)));
        for part in 0..10 {
            let low = -1.0 + 0.2 * part as f32;
            let inside = once.iter().filter(|&&x| x >= low && x < low + 0.2).count();
            assert!((50..150).contains(&inside), "{inside} from {low}");
        }
    }
}
