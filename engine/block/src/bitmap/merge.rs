//! Merging one dirty bitmap into another: of any granularity, and in slices.
//!
//! A merge marks, it never clears; a bit that is set in the source while the merge is under
//! way may or may not be taken along. The source is only read. Equal granularities, the usual
//! case, go word by word and others area by area; both skip what is clean in the source.

use super::dirty::WORD_BITS;
use super::{BitmapError, DirtyBitmap};

/// Budget of the loops that have no reason to stop between slices.
const SLICE_WORDS: u64 = 1 << 16;

impl DirtyBitmap {
    /// Marks here what is dirty in `other`, whatever the granularities.
    ///
    /// # Errors
    ///
    /// Bitmaps of disks that differ in size.
    pub fn merge_from(&self, shard: usize, other: &Self) -> Result<(), BitmapError> {
        self.check_mergeable(other)?;
        let mut from = Some(0);
        while let Some(offset) = from {
            from = self.merge_slice(shard, other, offset, SLICE_WORDS);
        }
        Ok(())
    }

    /// Merges from `from` on, about `budget` words of the finer bitmap; says where to go on,
    /// if not at the end. The sizes must be equal: see [`Self::check_mergeable`].
    pub fn merge_slice(&self, shard: usize, other: &Self, from: u64, budget: u64) -> Option<u64> {
        debug_assert_eq!(self.size, other.size, "check_mergeable comes first");
        if self.granularity_bits == other.granularity_bits {
            self.merge_words(shard, other, from, budget.max(1))
        } else {
            self.merge_areas(shard, other, from, budget.max(1))
        }
    }

    /// Whether `other` can be merged into this bitmap.
    ///
    /// # Errors
    ///
    /// Bitmaps of disks that differ in size.
    pub const fn check_mergeable(&self, other: &Self) -> Result<(), BitmapError> {
        if self.size == other.size {
            return Ok(());
        }
        Err(BitmapError::SizesDiffer {
            destination: self.size,
            source_size: other.size,
        })
    }

    /// A copy for a disk of another size; what is added is clean, what is cut off forgotten.
    ///
    /// # Errors
    ///
    /// A size beyond 2^63 - 1, or memory that is refused.
    pub fn resized(&self, size: u64) -> Result<Self, BitmapError> {
        let other = Self::new(size, self.granularity(), self.counts.len())?;
        let mut from = Some(0);
        while let Some(offset) = from {
            from = other.merge_words(0, self, offset, SLICE_WORDS);
        }
        Ok(other)
    }

    /// Merge of equal granularities: word by word, only those which are not empty.
    fn merge_words(&self, shard: usize, other: &Self, from: u64, budget: u64) -> Option<u64> {
        let mut granule = other.granule(from);
        for _ in 0..budget {
            let index = other.words.next_set(granule, self.words.len())? / WORD_BITS;
            let wanted = if granule / WORD_BITS == index {
                granule % WORD_BITS
            } else {
                0
            };
            self.mark_word(shard, index, other.word(index) & u64::MAX << wanted);
            granule = (index + 1) * WORD_BITS;
        }
        (granule < self.words.len()).then(|| granule << self.granularity_bits)
    }

    /// Merge of unequal granularities: area by area.
    fn merge_areas(&self, shard: usize, other: &Self, from: u64, budget: u64) -> Option<u64> {
        // Bytes of a word in the finer bitmap, which is where the time goes.
        let unit = WORD_BITS * self.granularity().min(other.granularity());
        let (mut offset, mut left) = (from, budget);
        while left > 0 {
            let area = other.next_dirty_area(offset, self.size, left.saturating_mul(unit))?;
            self.mark(shard, area.offset, area.len);
            left = left.saturating_sub(1 + area.len / unit);
            // The rest of the last granule marked here needs no look at a finer source.
            offset = (area.offset + area.len).next_multiple_of(self.granularity());
        }
        (offset < self.size).then_some(offset)
    }
}
