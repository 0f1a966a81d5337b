//! The dirty bitmap of one disk: granules of bytes over [`Words`], with counters.
//!
//! # Invariants
//!
//! - A granule is dirty if any byte of it may have been written: marks grow to whole granules,
//!   clears shrink to them, so no dirt is ever lost by rounding.
//! - The counters sum to the number of dirty granules whenever no mark or clear is under way;
//!   while some are, the sum may be off by what they have not yet added.
//!
//! # Sharing
//!
//! All methods take `&self` and may be called from any thread. `shard` only picks the counter
//! to add to, so that shards do not fight over a cache line: any number below the `shards`
//! given to [`DirtyBitmap::new`] is correct.
//!
//! # What it does not do
//!
//! It has no name, no owner and no flags, it does not know who marks or why, and its size is
//! fixed: [`DirtyBitmap::resized`] makes another. Ranges are cut at the end of the disk and
//! empty ranges do nothing.

use super::BitmapError;
use super::words::Words;
use crate::sync::{AtomicI64, CachePadded, Ordering};

/// Smallest granularity, in bytes.
const GRANULARITY_MIN: u64 = 512;
/// Largest granularity, in bytes.
const GRANULARITY_MAX: u64 = 2 << 30;
/// Largest disk, in bytes: offsets are signed elsewhere.
const SIZE_MAX: u64 = (1 << 63) - 1;
/// Granules in a leaf word.
pub(super) const WORD_BITS: u64 = 64;

/// A range of bytes with one answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Area {
    /// Where it begins.
    pub offset: u64,
    /// How long it is; never zero.
    pub len: u64,
}

/// Which granules of a disk are dirty.
#[derive(Debug)]
pub struct DirtyBitmap {
    // Fixed.
    pub(super) size: u64,
    pub(super) granularity_bits: u32,
    // Shared by all shards.
    pub(super) words: Words,
    /// Dirty granules, as each shard has turned them; one alone may be negative.
    pub(super) counts: Box<[CachePadded<AtomicI64>]>,
}

impl DirtyBitmap {
    /// A clean bitmap for a disk of `size` bytes, with counters for `shards` shards.
    ///
    /// # Errors
    ///
    /// A wrong granularity, a size beyond 2^63 - 1, or memory that is refused.
    pub fn new(size: u64, granularity: u64, shards: usize) -> Result<Self, BitmapError> {
        check_granularity(granularity)?;
        if size > SIZE_MAX {
            return Err(BitmapError::Size { size });
        }
        let granules = size.div_ceil(granularity);
        let words = Words::new(granules).ok_or_else(|| BitmapError::Memory {
            bytes: Words::<64>::bytes_needed(granules),
            granularity,
        })?;
        let counts = (0..shards.max(1))
            .map(|_| CachePadded::new(AtomicI64::new(0)))
            .collect();
        Ok(Self {
            size,
            granularity_bits: granularity.trailing_zeros(),
            words,
            counts,
        })
    }

    /// A clean bitmap of the same size, granularity and number of shards.
    ///
    /// # Errors
    ///
    /// Memory that is refused.
    pub fn fresh(&self) -> Result<Self, BitmapError> {
        Self::new(self.size, self.granularity(), self.counts.len())
    }

    /// Size of the disk, in bytes.
    #[must_use]
    pub const fn size(&self) -> u64 {
        self.size
    }

    /// Bytes that one bit stands for.
    #[must_use]
    pub const fn granularity(&self) -> u64 {
        1 << self.granularity_bits
    }

    /// Marks every granule that the range touches.
    ///
    /// To be called before the write is acknowledged, whether it succeeded or failed (B1).
    pub fn mark(&self, shard: usize, offset: u64, len: u64) {
        let end = self.end(offset, len);
        if offset >= end {
            return;
        }
        let turned = self
            .words
            .mark_range(self.granule(offset), self.granule(end - 1) + 1);
        self.add(shard, turned);
    }

    /// Clears the granules that lie wholly in the range; a granule that sticks out of the disk
    /// does if the part on the disk does. Others stay as they are, so that no dirt is lost.
    ///
    /// Who clears to take work reads the data after this call, not before (B2).
    pub fn clear(&self, shard: usize, offset: u64, len: u64) {
        let end = self.end(offset, len);
        if offset >= end {
            return;
        }
        let first = offset.div_ceil(self.granularity());
        let last = if end == self.size {
            self.words.len()
        } else {
            self.granule(end)
        };
        let turned = self.words.clear_range(first, last);
        self.subtract(shard, turned);
    }

    /// Marks the whole disk. On the data path use [`Self::mark_slice`].
    pub fn mark_all(&self, shard: usize) {
        self.mark(shard, 0, self.size);
    }

    /// Clears the whole disk. On the data path use [`Self::clear_slice`].
    pub fn clear_all(&self, shard: usize) {
        self.clear(shard, 0, self.size);
    }

    /// Marks from `from` on, about `budget` words; says where to go on, if not at the end.
    pub fn mark_slice(&self, shard: usize, from: u64, budget: u64) -> Option<u64> {
        let len = self.slice_len(budget);
        self.mark(shard, from, len);
        self.resume(from, len)
    }

    /// Clears from the first granule that begins at `from` or later, about `budget` words;
    /// says where to go on, if not at the end. Clean stretches cost nothing.
    pub fn clear_slice(&self, shard: usize, from: u64, budget: u64) -> Option<u64> {
        // Whole granules, or the one across the border would be kept by both slices.
        let from = from.min(self.size).next_multiple_of(self.granularity());
        let start = self.next_dirty(from, self.size)?;
        let len = self.slice_len(budget);
        self.clear(shard, start, len);
        self.resume(start, len)
    }

    /// Dirty bytes, as QEMU counts: dirty granules times granularity, also for a last granule
    /// that sticks out. Exact when no mark or clear is under way.
    #[must_use]
    pub fn count(&self) -> u64 {
        let granules: i64 = self
            .counts
            .iter()
            .map(|count| count.load(Ordering::Acquire))
            .sum();
        // A clear may have been counted before the mark that it undid.
        u64::try_from(granules).unwrap_or(0) << self.granularity_bits
    }

    /// Whether the byte at `offset` is dirty; false beyond the end.
    #[must_use]
    pub fn is_dirty(&self, offset: u64) -> bool {
        // A last granule that sticks out has bytes which are not on the disk.
        offset < self.size && self.words.is_set(self.granule(offset))
    }

    /// Whether any byte of the range is dirty.
    #[must_use]
    pub fn any_dirty(&self, offset: u64, len: u64) -> bool {
        self.next_dirty(offset, self.end(offset, len)).is_some()
    }

    /// The first dirty byte of `offset..end`.
    #[must_use]
    pub fn next_dirty(&self, offset: u64, end: u64) -> Option<u64> {
        self.search(offset, end, Words::next_set)
    }

    /// The first clean byte of `offset..end`, on the disk.
    #[must_use]
    pub fn next_zero(&self, offset: u64, end: u64) -> Option<u64> {
        self.search(offset, end, Words::next_clear)
    }

    /// The first dirty area of `offset..end`, at most `max_len` bytes of it.
    #[must_use]
    pub fn next_dirty_area(&self, offset: u64, end: u64, max_len: u64) -> Option<Area> {
        let start = self.next_dirty(offset, end)?;
        let limit = self.end(start, max_len).min(end);
        let stop = self.next_zero(start, limit).unwrap_or(limit);
        // Empty if nothing was asked for, or if a clear was faster.
        (start < stop).then(|| Area {
            offset: start,
            len: stop - start,
        })
    }

    /// All dirty areas, in order, each as long as it goes.
    #[must_use]
    pub const fn areas(&self) -> Areas<'_> {
        Areas {
            bitmap: self,
            offset: 0,
        }
    }

    /// How many words of 64 granules there are, first granule lowest: the form in which
    /// bitmaps are stored and hashed.
    #[must_use]
    pub const fn word_count(&self) -> u64 {
        self.words.leaf_count()
    }

    /// Word `index`; zero beyond the end.
    #[must_use]
    pub fn word(&self, index: u64) -> u64 {
        self.words.leaf(index)
    }

    /// Marks the granules of word `index` that are set in `bits`: for merging and loading, not
    /// for a write that has just been done.
    pub fn mark_word(&self, shard: usize, index: u64, bits: u64) {
        let turned = self.words.mark_leaf(index, bits);
        self.add(shard, turned);
    }

    /// Looks for a granule of `offset..end` and cuts it to that range.
    fn search(
        &self,
        offset: u64,
        end: u64,
        find: impl Fn(&Words, u64, u64) -> Option<u64>,
    ) -> Option<u64> {
        let end = end.min(self.size);
        if offset >= end {
            return None;
        }
        let granule = find(&self.words, self.granule(offset), self.granule(end - 1) + 1)?;
        Some(offset.max(granule << self.granularity_bits))
    }

    /// Bytes that `budget` words stand for.
    const fn slice_len(&self, budget: u64) -> u64 {
        let words = if budget == 0 { 1 } else { budget };
        words
            .saturating_mul(WORD_BITS)
            .saturating_mul(self.granularity())
    }

    /// Where a slice that began at `from` ended, if not at the end of the disk.
    fn resume(&self, from: u64, len: u64) -> Option<u64> {
        let end = self.end(from, len);
        (end < self.size).then_some(end)
    }

    /// End of the range on the disk.
    fn end(&self, offset: u64, len: u64) -> u64 {
        offset.saturating_add(len).min(self.size)
    }

    pub(super) const fn granule(&self, offset: u64) -> u64 {
        offset >> self.granularity_bits
    }

    fn add(&self, shard: usize, turned: u64) {
        // Not written if nothing turned: a dirty disk costs no cache-line traffic.
        if turned > 0 {
            self.counts[shard].fetch_add(turned.cast_signed(), Ordering::Release);
        }
    }

    fn subtract(&self, shard: usize, turned: u64) {
        if turned > 0 {
            self.counts[shard].fetch_sub(turned.cast_signed(), Ordering::Release);
        }
    }
}

/// The dirty areas of a bitmap; see [`DirtyBitmap::areas`].
#[derive(Debug)]
pub struct Areas<'a> {
    bitmap: &'a DirtyBitmap,
    /// Where the next area is looked for.
    offset: u64,
}

impl Iterator for Areas<'_> {
    type Item = Area;

    fn next(&mut self) -> Option<Area> {
        let size = self.bitmap.size;
        let area = self.bitmap.next_dirty_area(self.offset, size, size)?;
        self.offset = area.offset + area.len;
        Some(area)
    }
}

/// Refuses what is no granularity of a bitmap.
pub(super) const fn check_granularity(granularity: u64) -> Result<(), BitmapError> {
    if granularity.is_power_of_two()
        && granularity >= GRANULARITY_MIN
        && granularity <= GRANULARITY_MAX
    {
        return Ok(());
    }
    Err(BitmapError::Granularity)
}
