//! Pseudo-random numbers of the bench: the `splitmix64` mixing step and the generator
//! `xoshiro256**`, both small enough to own.
//!
//! They make a load and its contents repeatable from a seed. They are no source of secrets, and
//! nothing here reads the clock or the system's entropy.

/// The odd constant by which a `splitmix64` sequence steps: 2^64 divided by the golden ratio.
pub(crate) const STEP: u64 = 0x9e37_79b9_7f4a_7c15;

/// Scrambles one word. A bijection: different inputs give different outputs.
pub(crate) const fn mix(word: u64) -> u64 {
    let word = (word ^ (word >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let word = (word ^ (word >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    word ^ (word >> 31)
}

/// A `xoshiro256**` generator: the same seed gives the same numbers on every machine.
#[derive(Debug, Clone)]
pub(crate) struct Random {
    /// Stepped by every draw; never all zero, because `mix` of four different words is not.
    state: [u64; 4],
}

impl Random {
    /// A generator that depends on all bits of `seed`, so that neighbouring seeds are unrelated.
    pub(crate) fn new(seed: u64) -> Self {
        let word = |step: u64| mix(seed.wrapping_add(step.wrapping_mul(STEP)));
        Self {
            state: [word(1), word(2), word(3), word(4)],
        }
    }

    /// The next 64 bits.
    pub(crate) fn next(&mut self) -> u64 {
        let result = self.state[1].wrapping_mul(5).rotate_left(7).wrapping_mul(9);
        let shifted = self.state[1] << 17;
        self.state[2] ^= self.state[0];
        self.state[3] ^= self.state[1];
        self.state[1] ^= self.state[2];
        self.state[0] ^= self.state[3];
        self.state[2] ^= shifted;
        self.state[3] = self.state[3].rotate_left(45);
        result
    }

    /// A number below `bound`, which must not be zero.
    ///
    /// One draw whatever its outcome, so that a sequence of choices stays in step. The price is a
    /// bias below `bound` / 2^64, which no disk is large enough to show.
    pub(crate) fn below(&mut self, bound: u64) -> u64 {
        assert!(bound > 0, "there is no number below zero");
        let product = u128::from(self.next()) * u128::from(bound);
        u64::try_from(product >> 64).expect("the upper half of a product fits a word")
    }

    /// True in `percent` of a hundred draws: never at 0, always at 100 and above.
    pub(crate) fn percent(&mut self, percent: u8) -> bool {
        self.below(100) < u64::from(percent)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_state_of_the_reference_gives_the_numbers_of_the_reference() {
        // The published numbers of xoshiro256** for the state 1, 2, 3, 4.
        let mut random = Random {
            state: [1, 2, 3, 4],
        };
        let drawn: Vec<u64> = (0..4).map(|_| random.next()).collect();
        assert_eq!(drawn, [11_520, 0, 1_509_978_240, 1_215_971_899_390_074_240]);
    }

    #[test]
    fn mix_is_the_output_of_splitmix64() {
        // The first outputs of splitmix64 for the seed 1234567.
        assert_eq!(
            mix(1_234_567_u64.wrapping_add(STEP)),
            6_457_827_717_110_365_317
        );
        assert_eq!(
            mix(1_234_567_u64.wrapping_add(STEP.wrapping_mul(2))),
            3_203_168_211_198_807_973
        );
    }

    #[test]
    fn the_same_seed_repeats_and_another_does_not() {
        let draw = |seed| {
            let mut random = Random::new(seed);
            (0..8).map(|_| random.next()).collect::<Vec<_>>()
        };
        assert_eq!(draw(7), draw(7));
        assert_ne!(draw(7), draw(8));
    }

    #[test]
    fn below_reaches_every_number_and_none_above() {
        let mut random = Random::new(1);
        let mut seen = [0_u32; 5];
        for _ in 0..5_000 {
            seen[usize::try_from(random.below(5)).unwrap()] += 1;
        }
        assert!(
            seen.iter().all(|&count| (800..1_200).contains(&count)),
            "{seen:?}"
        );
    }

    #[test]
    fn percent_is_exact_at_its_ends() {
        let mut random = Random::new(2);
        assert!((0..1_000).all(|_| !random.percent(0)));
        assert!((0..1_000).all(|_| random.percent(100)));
        let hits = (0..10_000).filter(|_| random.percent(30)).count();
        assert!((2_800..3_200).contains(&hits), "{hits}");
    }
}
