//! Which clusters of a new image are taken, in the order in which QEMU takes
//! them.
//!
//! Nobody needs a new image to look like this. But that two programs make the
//! same bytes of the same options can be tested, and that what they make works
//! cannot, not for all sizes. The rules that decide the layout:
//!
//! * Space is the first sufficient run behind a cursor, which goes back when
//!   something below it is freed.
//! * A refcount block is made when the first cluster that it covers is taken;
//!   if it can it lies among those. Whoever wanted that cluster searches anew,
//!   since the block may lie where it wanted to be.
//! * A refcount table that is too small is replaced by one of one and a half
//!   times the size that is needed. It begins, together with the blocks it
//!   needs for itself, with the first range that no block covers.

use std::collections::BTreeMap;
use std::ops::Range;

use super::CreateError;

/// The largest refcount table, in bytes.
const TABLE_BYTES_MAX: u64 = 8 << 20;
const ENTRY_BYTES: u64 = 8;

/// Clusters of an image that is being made. All numbers count clusters.
pub(super) struct Space {
    /// Bytes.
    cluster_size: u64,
    refcounts_per_block: u64,
    /// Every cluster has a count of 0 or 1.
    used: Vec<bool>,
    /// The blocks that there are: by index in the table, where they lie.
    blocks: BTreeMap<u64, u64>,
    /// Where the refcount table lies.
    table: Range<u64>,
    cursor: u64,
}

/// What kept clusters from being taken.
enum Stop {
    /// New metadata was made, perhaps just there: search again.
    Restart,
    Full,
}

impl Space {
    /// The empty image: header, one cluster of refcount table, one block.
    pub(super) fn new(cluster_size: u64, refcounts_per_block: u64) -> Self {
        Self {
            cluster_size,
            refcounts_per_block,
            used: vec![true; 3],
            blocks: BTreeMap::from([(0, 2)]),
            table: 1..2,
            cursor: 3,
        }
    }

    pub(super) fn table(&self) -> Range<u64> {
        self.table.clone()
    }

    /// Index in the table and cluster of each block.
    pub(super) fn blocks(&self) -> impl Iterator<Item = (u64, u64)> {
        self.blocks
            .iter()
            .map(|(&index, &cluster)| (index, cluster))
    }

    pub(super) fn is_used(&self, cluster: u64) -> bool {
        let index = usize::try_from(cluster).ok();
        index.and_then(|index| self.used.get(index)) == Some(&true)
    }

    /// Takes `count` adjacent clusters; answers the first.
    pub(super) fn allocate(&mut self, count: u64) -> Result<u64, CreateError> {
        loop {
            let start = self.find(count);
            match self.take(start..start + count) {
                Ok(()) => return Ok(start),
                Err(Stop::Restart) => {}
                Err(Stop::Full) => return Err(CreateError::TooLarge),
            }
        }
    }

    /// The first free run behind the cursor, which then stands behind it.
    fn find(&mut self, count: u64) -> u64 {
        let mut start = self.cursor;
        let mut end = start;
        while end < start + count {
            end += 1;
            if self.is_used(end - 1) {
                start = end;
            }
        }
        self.cursor = end;
        start
    }

    /// All or none.
    fn take(&mut self, clusters: Range<u64>) -> Result<(), Stop> {
        for cluster in clusters.clone() {
            if let Err(stop) = self.cover(cluster) {
                self.free(clusters.start..cluster);
                return Err(stop);
            }
            self.mark(cluster, true);
        }
        Ok(())
    }

    fn free(&mut self, clusters: Range<u64>) {
        for cluster in clusters {
            self.mark(cluster, false);
            self.cursor = self.cursor.min(cluster);
        }
    }

    fn mark(&mut self, cluster: u64, used: bool) {
        let index = crate::units::in_memory(cluster);
        if self.used.len() <= index {
            self.used.resize(index + 1, false);
        }
        self.used[index] = used;
    }

    /// Sees to it that a block covers the cluster. If one had to be made, the
    /// caller must restart.
    fn cover(&mut self, cluster: u64) -> Result<(), Stop> {
        let index = cluster / self.refcounts_per_block;
        if self.blocks.contains_key(&index) {
            return Ok(());
        }
        let block = self.find(1);
        if block / self.refcounts_per_block == index {
            // It covers itself.
            self.mark(block, true);
        } else {
            self.take(block..block + 1)?;
        }
        let entries = (self.table.end - self.table.start) * self.cluster_size / ENTRY_BYTES;
        self.blocks.insert(index, block);
        if index >= entries {
            let behind = (cluster + 1).max(block).div_ceil(self.refcounts_per_block);
            self.replace_table(behind)?;
        }
        Err(Stop::Restart)
    }

    /// Makes a larger table in the ranges of the blocks from `index` on, with
    /// the blocks that cover it, and frees the old one.
    fn replace_table(&mut self, index: u64) -> Result<(), Stop> {
        let start = index * self.refcounts_per_block;
        let block_count = self.blocks_with_metadata(start);
        let per_cluster = self.cluster_size / ENTRY_BYTES;
        let entries = (block_count + block_count.div_ceil(2)).next_multiple_of(per_cluster);
        if entries * ENTRY_BYTES > TABLE_BYTES_MAX {
            return Err(Stop::Full);
        }
        let mut end = start;
        for index in index..block_count {
            self.blocks.entry(index).or_insert_with(|| {
                end += 1;
                end - 1
            });
        }
        let old = std::mem::replace(&mut self.table, end..end + entries / per_cluster);
        for cluster in start..self.table.end {
            self.mark(cluster, true);
        }
        self.free(old);
        Ok(())
    }

    /// Blocks that cover so many clusters, and a table for these blocks, and
    /// the blocks and the table themselves; and half as large a table again.
    fn blocks_with_metadata(&self, mut clusters: u64) -> u64 {
        let per_cluster = self.cluster_size / ENTRY_BYTES;
        let (mut blocks, mut table) = (0, 0);
        let mut is_generous = false;
        let mut last = None;
        loop {
            blocks = (clusters + table + blocks).div_ceil(self.refcounts_per_block);
            table = u64::div_ceil(blocks, per_cluster);
            let all = Some(clusters + blocks + table);
            if all != last {
                last = all;
            } else if is_generous {
                return blocks;
            } else {
                clusters += table.div_ceil(2);
                is_generous = true;
                last = None;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_run_moves_the_refcount_table() {
        // 128 GiB with clusters of 512 bytes: 65536 clusters of L1 table.
        let mut space = Space::new(512, 256);
        let l1 = space.allocate(65_536).expect("room");
        assert!(!space.is_used(1), "the old table is free");
        let table = space.table();
        assert_eq!(table.end - table.start, 7);
        assert!(table.start >= l1 + 65_536);
        let last = table.end.max(l1 + 65_536) - 1;
        let covered: Vec<u64> = space.blocks().map(|(index, _)| index).collect();
        assert!(covered.contains(&(last / 256)));
    }

    #[test]
    fn what_is_taken_is_covered_and_apart() {
        for (cluster_size, refcounts_per_block, count) in
            [(512, 64, 5_000), (512, 4096, 65_536), (1024, 128, 32_768)]
        {
            let mut space = Space::new(cluster_size, refcounts_per_block);
            let start = space.allocate(count).expect("room");
            let mut taken: Vec<u64> = (start..start + count).collect();
            taken.push(0);
            taken.extend(space.table());
            taken.extend(space.blocks().map(|(_, cluster)| cluster));
            taken.sort_unstable();
            let all = taken.len();
            taken.dedup();
            assert_eq!(taken.len(), all, "nothing overlaps");
            let used = (0..).zip(&space.used).filter(|(_, used)| **used);
            let used: Vec<u64> = used.map(|(cluster, _)| cluster).collect();
            assert_eq!(used, taken, "nothing leaks");
            for cluster in used {
                assert!(space.blocks.contains_key(&(cluster / refcounts_per_block)));
            }
        }
    }
}
