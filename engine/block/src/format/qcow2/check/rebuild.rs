//! Refcounts made anew, in clusters that nobody knows of.

use std::collections::{BTreeMap, BTreeSet};

use ringback_ring::{Errno, IoResult};

use super::Checker;
use super::census::Census;
use super::ledger::Ledger;
use crate::format::qcow2::frame::word_bytes;
use crate::format::qcow2::header::{REFCOUNT_TABLE_BYTES_MAX, REFCOUNT_TABLE_POINTER_OFFSET};
use crate::format::qcow2::refcounts;
use crate::span::Span;
use crate::units::in_memory;

/// Where the new structure will lie.
struct Plan<'a> {
    census: Census,
    /// Clusters of the old structure: it is in use until the new one is.
    old: &'a BTreeSet<u64>,
    per_block: u64,
    /// The cluster of a block, by its index.
    blocks: BTreeMap<u64, u64>,
    /// No cluster before this one is free.
    hint: u64,
}

impl Plan<'_> {
    fn is_free(&self, cluster: u64) -> bool {
        self.census.get(cluster) == 0 && !self.old.contains(&cluster)
    }

    /// The first run of free clusters; behind the end all are.
    fn take(&mut self, count: u64, from: u64) -> u64 {
        let (mut start, mut next) = (from, from);
        while next - start < count {
            if !self.is_free(next) {
                start = next + 1;
            }
            next += 1;
        }
        for cluster in start..next {
            self.census.set(cluster, 1);
        }
        start
    }

    /// Plans a block for every used cluster, and for itself. A block lies in
    /// its own range or behind it: so the ones before are complete.
    fn add_blocks(&mut self, first: u64, end: u64) {
        let mut index = first / self.per_block;
        let mut end = end;
        while index * self.per_block < end {
            let start = index * self.per_block;
            let range = start..start + self.per_block;
            let is_used = self.census.may_hold(&range)
                && range.clone().any(|cluster| self.census.get(cluster) > 0);
            if is_used && !self.blocks.contains_key(&index) {
                let cluster = self.take(1, self.hint.max(start));
                self.hint = cluster + 1;
                self.blocks.insert(index, cluster);
                end = end.max(cluster + 1);
            }
            index += 1;
        }
    }

    /// Places the table. Answers its first cluster, and how many they are.
    fn add_table(&mut self, cluster_size: u64) -> IoResult<(u64, u64)> {
        let needed = |plan: &Self| {
            let entries = plan
                .blocks
                .last_key_value()
                .map_or(0, |(index, _)| index + 1);
            (entries * 8).div_ceil(cluster_size).max(1)
        };
        let mut count = needed(self);
        loop {
            if count * cluster_size > REFCOUNT_TABLE_BYTES_MAX {
                return Err(Errno::EFBIG);
            }
            let first = self.take(count, 0);
            self.add_blocks(first, first + count);
            if needed(self) <= count {
                return Ok((first, count));
            }
            for cluster in first..first + count {
                self.census.set(cluster, 0);
            }
            count = needed(self);
        }
    }
}

impl Checker<'_> {
    /// Makes all refcounts anew from the census. Answers the clusters of the old
    /// structure, which are still counted, as far as anything referred to them.
    pub(super) async fn rebuild(&mut self, census: Census) -> IoResult<BTreeSet<u64>> {
        let old = self.old_structure();
        let census = match self.complete {
            true => census,
            false => self.keep_lost(census).await,
        };
        let (per_block, cluster_size) = (
            self.geometry.refcounts_per_block(),
            self.geometry.cluster_size,
        );
        let mut plan = Plan {
            census,
            old: &old,
            per_block,
            blocks: BTreeMap::new(),
            hint: 0,
        };
        let len = plan.census.len();
        plan.add_blocks(0, len);
        let (table, table_clusters) = plan.add_table(cluster_size)?;
        let bits = self.geometry.cluster_bits;
        let mut entries = vec![0; in_memory(table_clusters * cluster_size / 8)];
        for (&index, &cluster) in &plan.blocks {
            let bytes = self.block_bytes(&plan.census, index);
            self.write(cluster << bits, &bytes).await?;
            entries[in_memory(index)] = cluster << bits;
        }
        let bytes = word_bytes(&entries);
        self.write(table << bits, &bytes).await?;
        self.file.flush(self.shard).await?;
        let clusters = u32::try_from(table_clusters).map_err(|_| Errno::EFBIG)?;
        let mut pointer = (table << bits).to_be_bytes().to_vec();
        pointer.extend_from_slice(&clusters.to_be_bytes());
        self.write(REFCOUNT_TABLE_POINTER_OFFSET, &pointer).await?;
        self.file.flush(self.shard).await?;
        let span = Span::new(table << bits, table_clusters * cluster_size);
        self.ledger = Ledger::new(self.geometry, entries, span);
        Ok(old)
    }

    /// Clusters of the file that the refcount structure lies in.
    fn old_structure(&self) -> BTreeSet<u64> {
        let cluster_size = self.geometry.cluster_size;
        let blocks = self
            .ledger
            .block_offsets()
            .filter_map(|offset| offset.checked_add(cluster_size).map(|_| offset))
            .map(|offset| Span::new(offset, cluster_size));
        blocks
            .chain([self.ledger.table_span])
            .map(|span| super::inside(self.file, span))
            .filter(|span| !span.is_empty())
            .flat_map(|span| {
                let bits = self.geometry.cluster_bits;
                span.offset >> bits..=(span.end() - 1) >> bits
            })
            .collect()
    }

    /// Clusters that may belong to a table which could not be followed keep
    /// their counts.
    async fn keep_lost(&mut self, mut census: Census) -> Census {
        let per_block = self.geometry.refcounts_per_block();
        let (shard, file) = (self.shard, self.file);
        for index in 0..census.len().div_ceil(per_block) {
            if self.ledger.block_offset(index) == 0 {
                continue;
            }
            for cluster in index * per_block..((index + 1) * per_block).min(census.len()) {
                // What cannot be read cannot be kept.
                let kept = self.ledger.get(shard, file, cluster).await.unwrap_or(0);
                if kept > census.get(cluster) {
                    census.set(cluster, kept);
                }
            }
        }
        census
    }

    fn block_bytes(&self, census: &Census, index: u64) -> Vec<u8> {
        let per_block = self.geometry.refcounts_per_block();
        let mut bytes = vec![0; in_memory(self.geometry.cluster_size)];
        for place in 0..in_memory(per_block) {
            let count = census.get(index * per_block + place as u64);
            if count > 0 {
                refcounts::set(&mut bytes, self.geometry.refcount_order, place, count);
            }
        }
        bytes
    }
}
