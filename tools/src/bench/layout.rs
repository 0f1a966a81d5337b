//! How a disk is divided between the queues of a guest load: into blocks, and the blocks among
//! queues.
//!
//! Arithmetic only. What the blocks hold is the business of `history`.

/// A disk of blocks, shared out among queues: queue `q` of `n` owns the blocks `b` with
/// `b % n == q`, so that no two queues ever touch the same bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct DiskLayout {
    /// Makes the content of this disk differ from that of another run.
    pub(crate) seed: u64,
    /// Bytes of the disk.
    pub(crate) disk_len: u64,
    /// Bytes of a block. The last block is shorter if the disk is no multiple of it.
    pub(crate) block_len: usize,
    /// How many queues there are.
    pub(crate) queue_count: u32,
}

impl DiskLayout {
    /// A layout of at least one queue, with blocks that are not empty.
    pub(crate) fn new(seed: u64, disk_len: u64, block_len: usize, queue_count: u32) -> Self {
        assert!(block_len > 0, "a block holds at least one byte");
        assert!(queue_count > 0, "a load has at least one queue");
        Self {
            seed,
            disk_len,
            block_len,
            queue_count,
        }
    }

    /// How many blocks the disk has, a short last one included.
    pub(crate) fn block_count(&self) -> u64 {
        self.disk_len.div_ceil(self.block_bytes())
    }

    /// Where a block starts on the disk.
    pub(crate) fn offset(&self, block: u64) -> u64 {
        block * self.block_bytes()
    }

    /// Bytes of this block: less than `block_len` only for the last one.
    pub(crate) fn len(&self, block: u64) -> usize {
        let rest = self.disk_len.saturating_sub(self.offset(block));
        usize::try_from(rest).map_or(self.block_len, |rest| rest.min(self.block_len))
    }

    /// The block which holds this byte of the disk, and the byte's position in it.
    pub(crate) fn locate(&self, offset: u64) -> (u64, usize) {
        let block_bytes = self.block_bytes();
        let position = usize::try_from(offset % block_bytes).expect("less than a usize");
        (offset / block_bytes, position)
    }

    /// The queue which owns a block.
    pub(crate) fn owner(&self, block: u64) -> u32 {
        u32::try_from(block % u64::from(self.queue_count)).expect("less than a u32")
    }

    /// How many blocks a queue owns; none if there are more queues than blocks.
    pub(crate) fn owned_count(&self, queue: u32) -> u64 {
        self.block_count()
            .saturating_sub(u64::from(queue))
            .div_ceil(u64::from(self.queue_count))
    }

    /// The `nth` of the blocks which a queue owns.
    pub(crate) fn owned_block(&self, queue: u32, nth: u64) -> u64 {
        nth * u64::from(self.queue_count) + u64::from(queue)
    }

    /// Where the owner of a block counts it: the inverse of `owned_block`.
    pub(crate) fn nth_of_owner(&self, block: u64) -> usize {
        usize::try_from(block / u64::from(self.queue_count)).expect("a block's index is in memory")
    }

    fn block_bytes(&self) -> u64 {
        u64::try_from(self.block_len).expect("a block's length fits 64 bits")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_block_may_be_short() {
        let layout = DiskLayout::new(0, 10 * 4096 + 512, 4096, 3);
        assert_eq!(layout.block_count(), 11);
        assert_eq!(layout.len(9), 4096);
        assert_eq!(layout.len(10), 512);
        assert_eq!(layout.len(11), 0);
        assert_eq!(layout.locate(4096 * 10 + 511), (10, 511));
    }

    #[test]
    fn each_block_has_one_owner() {
        for (disk_len, queue_count) in [(0, 1), (512, 4), (4096 * 7, 3), (4096 * 8 + 1, 8)] {
            let layout = DiskLayout::new(0, disk_len, 4096, queue_count);
            let mut owned: Vec<u64> = (0..queue_count)
                .flat_map(|queue| {
                    (0..layout.owned_count(queue)).map(move |nth| layout.owned_block(queue, nth))
                })
                .collect();
            owned.sort_unstable();
            assert_eq!(owned, (0..layout.block_count()).collect::<Vec<_>>());
        }
    }

    #[test]
    fn the_owner_counts_its_blocks_without_gaps() {
        let layout = DiskLayout::new(0, 4096 * 20, 4096, 3);
        for queue in 0..3 {
            for nth in 0..layout.owned_count(queue) {
                let block = layout.owned_block(queue, nth);
                assert_eq!(layout.owner(block), queue);
                assert_eq!(layout.nth_of_owner(block), usize::try_from(nth).unwrap());
            }
        }
    }
}
