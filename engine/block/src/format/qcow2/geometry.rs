//! The numbers that follow from an image's header.

use crate::span::Span;
use crate::units::{DISK_SIZE_MAX, in_memory};

/// Sizes of an image's structures; everything but `cluster_bits` is derived.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Geometry {
    pub(crate) cluster_bits: u32,
    pub(crate) cluster_size: u64,
    /// Extended L2 entries: 32 subclusters a cluster.
    pub(crate) extended: bool,
    pub(crate) subcluster_size: u64,
    pub(crate) refcount_order: u32,
    /// Words of 64 bits an L2 entry: 1, or 2 if extended.
    entry_words: usize,
    /// Entries of an L2 table, as a power of two.
    l2_bits: u32,
    /// Entries of a slice, the part of an L2 table that is read and written as
    /// one, as a power of two.
    slice_bits: u32,
}

impl Geometry {
    /// `slice_bytes` is a power of two of at least 512, no larger than a cluster.
    pub(crate) fn new(
        cluster_bits: u32,
        extended: bool,
        refcount_order: u32,
        slice_bytes: u64,
    ) -> Self {
        let entry_words: usize = if extended { 2 } else { 1 };
        let entry_bits = 3 + entry_words.ilog2();
        let cluster_size = 1 << cluster_bits;
        Self {
            cluster_bits,
            cluster_size,
            extended,
            subcluster_size: if extended {
                cluster_size / 32
            } else {
                cluster_size
            },
            refcount_order,
            entry_words,
            l2_bits: cluster_bits - entry_bits,
            slice_bits: slice_bytes.ilog2() - entry_bits,
        }
    }

    pub(crate) fn entry_words(&self) -> usize {
        self.entry_words
    }

    /// Bytes of a slice.
    pub(crate) fn slice_bytes(&self) -> u64 {
        (self.entry_words as u64 * 8) << self.slice_bits
    }

    pub(crate) fn slice_words(&self) -> usize {
        self.entry_words << self.slice_bits
    }

    pub(crate) fn slices_per_table(&self) -> u64 {
        1 << (self.l2_bits - self.slice_bits)
    }

    /// Guest bytes that one L2 table maps.
    pub(crate) fn table_coverage(&self) -> u64 {
        1 << (self.l2_bits + self.cluster_bits)
    }

    /// The L1 entry that maps a guest offset.
    pub(crate) fn l1_index(&self, offset: u64) -> u64 {
        offset >> (self.l2_bits + self.cluster_bits)
    }

    /// L1 entries that a disk of this size needs.
    pub(crate) fn l1_entries(&self, size: u64) -> u64 {
        size.div_ceil(self.table_coverage())
    }

    /// The slice that maps a guest offset, counted over the whole disk.
    pub(crate) fn slice_index(&self, offset: u64) -> u64 {
        offset >> (self.slice_bits + self.cluster_bits)
    }

    /// The L1 entry that a slice belongs to.
    pub(crate) fn l1_index_of_slice(&self, slice: u64) -> u64 {
        slice >> (self.l2_bits - self.slice_bits)
    }

    /// Where a slice lies inside its L2 table, in bytes.
    pub(crate) fn slice_offset(&self, slice: u64) -> u64 {
        (slice & (self.slices_per_table() - 1)) * self.slice_bytes()
    }

    /// The guest bytes that a slice maps.
    pub(crate) fn slice_span(&self, slice: u64) -> Span {
        let coverage = self.cluster_size << self.slice_bits;
        Span::new(slice * coverage, coverage)
    }

    /// Which entry of its slice maps a guest offset.
    pub(crate) fn entry_in_slice(&self, offset: u64) -> usize {
        in_memory((offset >> self.cluster_bits) & ((1 << self.slice_bits) - 1))
    }

    /// Which entry of its L2 table maps a guest offset, as messages count it.
    pub(crate) fn l2_index(&self, offset: u64) -> u64 {
        (offset >> self.cluster_bits) & ((1 << self.l2_bits) - 1)
    }

    /// Offset inside the cluster.
    pub(crate) fn in_cluster(&self, offset: u64) -> u64 {
        offset & (self.cluster_size - 1)
    }

    /// The start of the cluster.
    pub(crate) fn cluster_start(&self, offset: u64) -> u64 {
        offset & !(self.cluster_size - 1)
    }

    /// Which subcluster of its cluster an offset lies in; 0 without subclusters.
    pub(crate) fn subcluster(&self, offset: u64) -> u32 {
        let index = self.in_cluster(offset) / self.subcluster_size;
        u32::try_from(index).expect("at most 32 subclusters")
    }

    /// Whether a cluster can lie at this offset of a file.
    pub(crate) fn is_place(&self, offset: u64) -> bool {
        self.in_cluster(offset) == 0 && offset <= DISK_SIZE_MAX - self.cluster_size
    }

    /// Refcounts that one block holds.
    pub(crate) fn refcounts_per_block(&self) -> u64 {
        1 << (self.cluster_bits + 3 - self.refcount_order)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_usual_image() {
        let geometry = Geometry::new(16, false, 4, 4096);
        assert_eq!(geometry.table_coverage(), 512 << 20);
        assert_eq!(geometry.slices_per_table(), 16);
        assert_eq!(geometry.slice_span(1), Span::new(32 << 20, 32 << 20));
        assert_eq!(geometry.l1_index_of_slice(17), 1);
        assert_eq!(geometry.slice_offset(17), 4096);
        assert_eq!(geometry.entry_in_slice((32 << 20) + 70_000), 1);
        assert_eq!(geometry.refcounts_per_block(), 32768);
        assert_eq!(geometry.l1_entries((512 << 20) + 1), 2);
    }

    #[test]
    fn extended_entries_are_twice_as_long() {
        let geometry = Geometry::new(16, true, 4, 4096);
        assert_eq!(geometry.table_coverage(), 256 << 20);
        assert_eq!(geometry.slice_words(), 512);
        assert_eq!(geometry.subcluster_size, 2048);
        assert_eq!(geometry.subcluster(65_535), 31);
    }

    #[test]
    fn the_smallest_clusters() {
        let geometry = Geometry::new(9, false, 6, 512);
        assert_eq!(geometry.table_coverage(), 32 << 10);
        assert_eq!(geometry.refcounts_per_block(), 64);
        assert_eq!(geometry.slices_per_table(), 1);
    }
}
