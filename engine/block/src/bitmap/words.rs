//! The bits of a dirty bitmap: leaf words, and summary levels above them up to one word.
//!
//! A bit of a summary level stands for one word of the level below. A clear summary bit lets a
//! search or a clear skip that word, so both cost the number of set words and not the size.
//!
//! # Invariant
//!
//! **B4**: a summary bit is never missing over a word with a set bit, once nobody is at work.
//! The reverse may happen (a summary bit over an empty word): it costs a look and is removed
//! by the next clear that passes. Every two neighbouring levels are a store-load pair:
//!
//! | who | order |
//! | --- | --- |
//! | mark | set the lower bit, or find it set; fence; make sure of the upper bit |
//! | clear | clear the lower word; clear the upper bit; fence; look at the lower word again, restore the upper bit if it has filled |
//!
//! Of a mark and a clear that meet, at least one sees the other. A restored bit is a mark of
//! its own and climbs to the top like any other.
//!
//! While a clear is under way in another thread, a search may miss a bit that is set in the
//! same word at that moment. Who concludes that nothing is left has to let clears end first.
//!
//! # What it does not do
//!
//! It knows bit indexes only: bytes, granules and counters are the caller's. Ranges are half
//! open and are cut at the end; an empty range does nothing. It never waits and never spins.
//!
//! `WIDTH` is how many bits of a word are used, a power of two. It is 64 except in the model
//! checker, where three levels have to fit in a handful of words.

use crate::sync::{AtomicU64, Fault, Ordering, fence, planted, zeroed_words};

/// A set of bits which threads mark, clear and search without locks.
#[derive(Debug)]
pub struct Words<const WIDTH: u64 = 64> {
    /// How many bits there are; fixed.
    bits: u64,
    /// Leaf first, single word last; the lengths are fixed, the words are shared.
    levels: Vec<Box<[AtomicU64]>>,
}

impl<const WIDTH: u64> Words<WIDTH> {
    /// A word with every bit set that is in use.
    const FULL: u64 = u64::MAX >> (64 - WIDTH);

    /// `bits` clear bits, or none if the memory is refused.
    #[must_use]
    pub fn new(bits: u64) -> Option<Self> {
        const { assert!(WIDTH.is_power_of_two() && WIDTH >= 2 && WIDTH <= 64) };
        let levels = level_lengths::<WIDTH>(bits)
            .map(|length| zeroed_words(usize::try_from(length).ok()?))
            .collect::<Option<_>>()?;
        Some(Self { bits, levels })
    }

    /// How many bytes of memory `bits` bits and their summaries take.
    #[must_use]
    pub fn bytes_needed(bits: u64) -> u64 {
        level_lengths::<WIDTH>(bits).sum::<u64>() * 8
    }

    /// How many bits there are.
    #[must_use]
    pub const fn len(&self) -> u64 {
        self.bits
    }

    /// Whether there is no bit at all, set or clear.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.bits == 0
    }

    /// How many leaf words there are.
    #[must_use]
    pub const fn leaf_count(&self) -> u64 {
        self.bits.div_ceil(WIDTH)
    }

    /// The leaf word `index`; zero beyond the end.
    #[must_use]
    pub fn leaf(&self, index: u64) -> u64 {
        if index < self.leaf_count() {
            self.load(0, index)
        } else {
            0
        }
    }

    /// Whether bit `index` is set; false beyond the end.
    #[must_use]
    pub fn is_set(&self, index: u64) -> bool {
        self.leaf(index / WIDTH) >> (index % WIDTH) & 1 == 1
    }

    /// Sets `from..to`; says how many bits turned.
    ///
    /// Words that are set already are not written.
    pub fn mark_range(&self, from: u64, to: u64) -> u64 {
        let to = to.min(self.bits);
        if from >= to {
            return 0;
        }
        if planted(Fault::MarkTrustsSetLeaf) && Self::holds(&self.levels[0], from, to) {
            return 0;
        }
        self.raise(0, from, to)
    }

    /// Sets the bits of `mask` in leaf word `index`; says how many turned.
    ///
    /// For merging and loading. It has no fence before its look at the leaf, so it is not for
    /// marking data that was just written (B2).
    pub fn mark_leaf(&self, index: u64, mask: u64) -> u64 {
        if index >= self.leaf_count() {
            return 0;
        }
        let mask = mask & Self::mask(index, 0, self.bits);
        if mask == 0 {
            return 0;
        }
        let turned = self.set_bits(0, index, mask);
        self.raise(1, index, index + 1);
        turned
    }

    /// Clears `from..to`; says how many bits turned.
    ///
    /// What the caller reads after this call is not older than the clearing (B2).
    pub fn clear_range(&self, from: u64, to: u64) -> u64 {
        let to = to.min(self.bits);
        if from >= to {
            return 0;
        }
        let turned = self.clear_under(self.levels.len() - 1, 0, from, to);
        // Between the clearing and the caller's read of the data. A marker has the other half:
        // data, fence, look at the leaf. One of the two sees the other.
        if !planted(Fault::ClearReadsBeforeFence) {
            fence(Ordering::SeqCst);
        }
        turned
    }

    /// The first set bit of `from..to`.
    #[must_use]
    pub fn next_set(&self, from: u64, to: u64) -> Option<u64> {
        let to = to.min(self.bits);
        // `position` is a bit of `level`, which stands for `span` leaf bits.
        let (mut level, mut position, mut span) = (0, from, 1);
        while position.saturating_mul(span) < to {
            let word = self.load(level, position / WIDTH) & Self::FULL << (position % WIDTH);
            if word == 0 {
                // Nothing in the rest of this word: on to the next word, one level up.
                position = position / WIDTH + 1;
                level += 1;
                span *= WIDTH;
                if level == self.levels.len() {
                    return None;
                }
                continue;
            }
            position = position / WIDTH * WIDTH + u64::from(word.trailing_zeros());
            if level == 0 {
                return (position < to).then_some(position);
            }
            position *= WIDTH;
            level -= 1;
            span /= WIDTH;
        }
        None
    }

    /// The first clear bit of `from..to`.
    #[must_use]
    pub fn next_clear(&self, from: u64, to: u64) -> Option<u64> {
        let to = to.min(self.bits);
        words_of::<WIDTH>(from, to).find_map(|index| {
            let clear = !self.load(0, index) & Self::mask(index, from, to);
            (clear != 0).then(|| index * WIDTH + u64::from(clear.trailing_zeros()))
        })
    }

    /// Whether any bit of `from..to` is set.
    #[must_use]
    pub fn any(&self, from: u64, to: u64) -> bool {
        self.next_set(from, to).is_some()
    }

    /// Makes sure of `from..to` on level `start` and of what it implies on all levels above;
    /// says how many bits turned on level `start`.
    ///
    /// Each round begins with a look at this level and those above, a fence, and the same look
    /// again. If both find everything set, each pair of levels has had its fence between the
    /// look at the lower and the look at the upper, so one fence serves all that are left. A
    /// disk that is dirty already costs that one fence and no write.
    fn raise(&self, start: usize, mut from: u64, mut to: u64) -> u64 {
        let mut turned = None;
        for level in start..self.levels.len() {
            let seen = self.holds_upwards(level, from, to);
            // After the lower level (on the leaf: after the caller's data), before the look
            // that may decide not to write this level.
            if !planted(Fault::MarkFenceMissing) {
                fence(Ordering::SeqCst);
            }
            if seen && self.holds_upwards(level, from, to) {
                break;
            }
            let count = self.set(level, from, to);
            turned.get_or_insert(count);
            (from, to) = parents::<WIDTH>(from, to);
        }
        turned.unwrap_or(0)
    }

    /// Clears the leaf bits `from..to` that lie below word `index` of `level`, then the bits
    /// of this word over words that became empty.
    fn clear_under(&self, level: usize, index: u64, from: u64, to: u64) -> u64 {
        let (first, end) = ancestors::<WIDTH>(level, from, to);
        let mask = Self::mask(index, first, end);
        if level == 0 {
            return self.clear_bits(0, index, mask);
        }
        let mut turned = 0;
        let mut empty = 0;
        for bit in ones(self.load(level, index) & mask) {
            let child = index * WIDTH + bit;
            turned += self.clear_under(level - 1, child, from, to);
            if self.load(level - 1, child) == 0 {
                empty |= 1 << bit;
            }
        }
        if empty != 0 {
            self.drop_summary(level, index, empty);
        }
        turned
    }

    /// Clears the bits `empty` of a summary word, whose words below were seen empty.
    fn drop_summary(&self, level: usize, index: u64, empty: u64) {
        self.clear_bits(level, index, empty);
        // After the summary bit, before the second look: a marker that set the word below
        // either sees the bit gone or is seen here.
        if !planted(Fault::ClearFenceMissing) {
            fence(Ordering::SeqCst);
        }
        if planted(Fault::ClearSecondLookMissing) {
            return;
        }
        for child in ones(empty).map(|bit| index * WIDTH + bit) {
            if self.load(level - 1, child) == 0 {
                continue;
            }
            if planted(Fault::RestoreDoesNotClimb) {
                self.set(level, child, child + 1);
                continue;
            }
            // To the top: meanwhile somebody may have found this word empty and dropped the
            // bit above it.
            self.raise(level, child, child + 1);
        }
    }

    /// Whether `from..to` of `level`, and all that stands for it above, is set.
    fn holds_upwards(&self, level: usize, mut from: u64, mut to: u64) -> bool {
        for (below, words) in self.levels.iter().enumerate().skip(level) {
            if !Self::holds(words, from, to) {
                return false;
            }
            (from, to) = parents::<WIDTH>(from, to);
            // A guest write seldom leaves its word: from there on it is one bit a level.
            if to - from == 1 {
                return self.holds_bit_upwards(below + 1, from);
            }
        }
        true
    }

    /// Whether bit `index` of `level`, and all that stands for it above, is set.
    fn holds_bit_upwards(&self, level: usize, mut index: u64) -> bool {
        self.levels.iter().skip(level).all(|words| {
            let word = load(words, index / WIDTH) >> (index % WIDTH);
            index /= WIDTH;
            word & 1 == 1
        })
    }

    /// Whether all of `from..to` is set in a level's words.
    fn holds(words: &[AtomicU64], from: u64, to: u64) -> bool {
        words_of::<WIDTH>(from, to).all(|index| {
            let mask = Self::mask(index, from, to);
            load(words, index) & mask == mask
        })
    }

    /// Sets `from..to` of `level`; says how many bits turned.
    fn set(&self, level: usize, from: u64, to: u64) -> u64 {
        words_of::<WIDTH>(from, to)
            .map(|index| self.set_bits(level, index, Self::mask(index, from, to)))
            .sum()
    }

    /// Sets `mask` in one word, writing only if a bit is missing; says how many turned.
    fn set_bits(&self, level: usize, index: u64, mask: u64) -> u64 {
        let missing = mask & !self.load(level, index);
        if missing == 0 {
            return 0;
        }
        // Release: who takes the bit sees what was done before it was set.
        let before = self.word(level, index).fetch_or(missing, Ordering::AcqRel);
        u64::from((missing & !before).count_ones())
    }

    /// Clears `mask` in one word, writing only if a bit is set; says how many turned.
    fn clear_bits(&self, level: usize, index: u64, mask: u64) -> u64 {
        let present = mask & self.load(level, index);
        if present == 0 {
            return 0;
        }
        // Acquire: what the marker did before it set the bit is seen by who takes the bit.
        let before = self
            .word(level, index)
            .fetch_and(!present, Ordering::AcqRel);
        u64::from((present & before).count_ones())
    }

    fn load(&self, level: usize, index: u64) -> u64 {
        load(&self.levels[level], index)
    }

    fn word(&self, level: usize, index: u64) -> &AtomicU64 {
        word(&self.levels[level], index)
    }

    /// The bits of word `index` which lie in `from..to`; the two must meet.
    fn mask(index: u64, from: u64, to: u64) -> u64 {
        let base = index * WIDTH;
        let start = from.saturating_sub(base);
        let end = (to - base).min(WIDTH);
        debug_assert!(start < end, "word {index} is outside {from}..{to}");
        (Self::FULL >> (WIDTH - (end - start))) << start
    }
}

fn load(words: &[AtomicU64], index: u64) -> u64 {
    // Acquire: what was done before a bit was set is seen by who sees the bit.
    word(words, index).load(Ordering::Acquire)
}

#[expect(clippy::cast_possible_truncation, reason = "the words are in memory")]
fn word(words: &[AtomicU64], index: u64) -> &AtomicU64 {
    &words[index as usize]
}

/// How many words each level has, leaf first; one empty level if there are no bits.
fn level_lengths<const WIDTH: u64>(bits: u64) -> impl Iterator<Item = u64> {
    std::iter::successors(Some(bits.div_ceil(WIDTH)), |&below| {
        (below > 1).then(|| below.div_ceil(WIDTH))
    })
}

/// The words that hold `from..to`.
fn words_of<const WIDTH: u64>(from: u64, to: u64) -> std::ops::Range<u64> {
    if from < to {
        from / WIDTH..(to - 1) / WIDTH + 1
    } else {
        0..0
    }
}

/// The bits, one level up, that stand for the words of `from..to`, which is not empty.
const fn parents<const WIDTH: u64>(from: u64, to: u64) -> (u64, u64) {
    (from / WIDTH, (to - 1) / WIDTH + 1)
}

/// The bits of `level` that stand for the leaf bits `from..to`, which is not empty.
fn ancestors<const WIDTH: u64>(level: usize, from: u64, to: u64) -> (u64, u64) {
    (0..level).fold((from, to), |(from, to), _| parents::<WIDTH>(from, to))
}

/// The positions of the set bits of a word, lowest first.
fn ones(mut word: u64) -> impl Iterator<Item = u64> {
    std::iter::from_fn(move || {
        let bit = (word != 0).then(|| u64::from(word.trailing_zeros()))?;
        word &= word - 1;
        Some(bit)
    })
}
