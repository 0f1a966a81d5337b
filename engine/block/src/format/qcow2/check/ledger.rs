//! The refcounts as the file has them.

use std::collections::BTreeMap;

use ringback_ring::{Errno, IoResult, Shard};

use crate::child::Child;
use crate::format::qcow2::allocator::block_offset;
use crate::format::qcow2::frame::{read_bytes, write_bytes};
use crate::format::qcow2::geometry::Geometry;
use crate::format::qcow2::refcounts;
use crate::span::Span;
use crate::units::in_memory;

/// Bytes of blocks that are kept in memory, but at least [`BLOCKS_MIN`].
const CACHE_BYTES: u64 = 4 << 20;
const BLOCKS_MIN: u64 = 4;

#[derive(Debug)]
struct Block {
    bytes: Vec<u8>,
    dirty: bool,
    last_used: u64,
}

/// The refcount table and its blocks.
#[derive(Debug)]
pub(super) struct Ledger {
    geometry: Geometry,
    /// The entries, as in the file.
    pub(super) table: Vec<u64>,
    pub(super) table_span: Span,
    blocks: BTreeMap<u64, Block>,
    clock: u64,
}

impl Ledger {
    pub(super) fn new(geometry: Geometry, table: Vec<u64>, table_span: Span) -> Self {
        Self {
            geometry,
            table,
            table_span,
            blocks: BTreeMap::new(),
            clock: 0,
        }
    }

    /// The block that counts a cluster; 0: there is none.
    pub(super) fn block_offset(&self, index: u64) -> u64 {
        let entry = usize::try_from(index)
            .ok()
            .and_then(|index| self.table.get(index));
        entry.map_or(0, |&entry| block_offset(entry))
    }

    /// Whether the block that counts a cluster lies nowhere sensible.
    pub(super) fn is_misplaced(&self, cluster: u64) -> bool {
        let (index, _) = self.place(cluster);
        !self.geometry.is_place(self.block_offset(index))
    }

    /// Offsets of all blocks.
    pub(super) fn block_offsets(&self) -> impl Iterator<Item = u64> {
        self.table
            .iter()
            .map(|&entry| block_offset(entry))
            .filter(|&offset| offset != 0)
    }

    fn place(&self, cluster: u64) -> (u64, usize) {
        let per_block = self.geometry.refcounts_per_block();
        (cluster / per_block, in_memory(cluster % per_block))
    }

    /// EIO for a block that lies nowhere sensible.
    async fn load(&mut self, shard: &Shard, file: &Child, index: u64) -> IoResult<&mut Block> {
        self.clock += 1;
        if !self.blocks.contains_key(&index) {
            let offset = self.block_offset(index);
            let cluster_size = self.geometry.cluster_size;
            if !self.geometry.is_place(offset) {
                return Err(Errno::EIO);
            }
            self.make_room(shard, file).await?;
            // Behind the end of every file there are zeroes.
            let bytes = match offset < file.size() {
                true => read_bytes(shard, file, Span::new(offset, cluster_size)).await?,
                false => vec![0; in_memory(cluster_size)],
            };
            let block = Block {
                bytes,
                dirty: false,
                last_used: 0,
            };
            self.blocks.insert(index, block);
        }
        let clock = self.clock;
        let block = self.blocks.get_mut(&index).expect("it is there by now");
        block.last_used = clock;
        Ok(block)
    }

    async fn make_room(&mut self, shard: &Shard, file: &Child) -> IoResult<()> {
        let capacity = (CACHE_BYTES / self.geometry.cluster_size).max(BLOCKS_MIN);
        while self.blocks.len() as u64 >= capacity {
            let oldest = self.blocks.iter().min_by_key(|(_, block)| block.last_used);
            let Some((&index, block)) = oldest else { break };
            if block.dirty {
                write_bytes(shard, file, self.block_offset(index), &block.bytes).await?;
            }
            self.blocks.remove(&index);
        }
        Ok(())
    }

    pub(super) async fn get(&mut self, shard: &Shard, file: &Child, cluster: u64) -> IoResult<u64> {
        let (index, place) = self.place(cluster);
        if self.block_offset(index) == 0 {
            return Ok(0);
        }
        let order = self.geometry.refcount_order;
        let block = self.load(shard, file, index).await?;
        Ok(refcounts::get(&block.bytes, order, place))
    }

    /// Its block must exist. In the file at the latest with
    /// [`Ledger::write_dirty`].
    pub(super) async fn set(
        &mut self,
        shard: &Shard,
        file: &Child,
        cluster: u64,
        count: u64,
    ) -> IoResult<()> {
        let (index, place) = self.place(cluster);
        if self.block_offset(index) == 0 {
            return Err(Errno::EINVAL);
        }
        let order = self.geometry.refcount_order;
        let block = self.load(shard, file, index).await?;
        refcounts::set(&mut block.bytes, order, place, count);
        block.dirty = true;
        Ok(())
    }

    /// Writes what was changed, durably.
    pub(super) async fn write_dirty(&mut self, shard: &Shard, file: &Child) -> IoResult<()> {
        let offsets: Vec<u64> = self
            .blocks
            .keys()
            .map(|&index| self.block_offset(index))
            .collect();
        for (block, offset) in self.blocks.values_mut().zip(offsets) {
            if block.dirty {
                write_bytes(shard, file, offset, &block.bytes).await?;
                block.dirty = false;
            }
        }
        file.flush(shard).await
    }

    /// Takes `count` adjacent clusters that an existing block says are free,
    /// from the start of the file on. ENOSPC: there are none.
    pub(super) async fn allocate(
        &mut self,
        shard: &Shard,
        file: &Child,
        count: u64,
    ) -> IoResult<u64> {
        let end = self.table.len() as u64 * self.geometry.refcounts_per_block();
        let (mut start, mut next) = (0, 0);
        while next - start < count {
            if next >= end {
                return Err(Errno::ENOSPC);
            }
            let (index, _) = self.place(next);
            if self.block_offset(index) == 0 {
                next = (index + 1) * self.geometry.refcounts_per_block();
                start = next;
                continue;
            }
            if self.get(shard, file, next).await? != 0 {
                start = next + 1;
            }
            next += 1;
        }
        for cluster in start..next {
            self.set(shard, file, cluster, 1).await?;
        }
        Ok(start)
    }
}
