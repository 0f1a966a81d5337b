//! Points that a request passes, where a test may make it fail or hold it up.
//!
//! A format names the points; a `blkdebug` filter directly below it listens.
//! With anything else below, naming one costs a comparison.

macro_rules! events {
    ($($(#[$doc:meta])* $variant:ident = $name:literal,)*) => {
        /// One point. The names are QEMU's.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum Event {
            $($(#[$doc])* $variant,)*
        }

        impl Event {
            /// All of them, in QEMU's order.
            pub const ALL: &'static [Self] = &[$(Self::$variant,)*];

            /// As in options.
            pub fn name(self) -> &'static str {
                match self {
                    $(Self::$variant => $name,)*
                }
            }

            /// The point of that name.
            pub fn from_name(name: &str) -> Option<Self> {
                Self::ALL.iter().copied().find(|event| event.name() == name)
            }
        }
    };
}

events! {
    /// An L1 entry is written.
    L1Update = "l1_update",
    /// A larger L1 table gets its clusters.
    L1GrowAllocTable = "l1_grow_alloc_table",
    /// A larger L1 table is written.
    L1GrowWriteTable = "l1_grow_write_table",
    /// The header is made to point at it.
    L1GrowActivateTable = "l1_grow_activate_table",
    /// A part of an L2 table is read.
    L2Load = "l2_load",
    /// A part of an L2 table is written.
    L2Update = "l2_update",
    /// An L2 entry of a compressed cluster is set.
    L2UpdateCompressed = "l2_update_compressed",
    /// An L2 table is copied: the old one is read.
    L2AllocCowRead = "l2_alloc_cow_read",
    /// A new L2 table is written.
    L2AllocWrite = "l2_alloc_write",
    /// Guest data is read.
    ReadAio = "read_aio",
    /// Guest data is read from the backing file.
    ReadBackingAio = "read_backing_aio",
    /// A compressed cluster is read.
    ReadCompressed = "read_compressed",
    /// Guest data is written.
    WriteAio = "write_aio",
    /// A compressed cluster is written.
    WriteCompressed = "write_compressed",
    /// A machine's state is read.
    VmstateLoad = "vmstate_load",
    /// A machine's state is written.
    VmstateSave = "vmstate_save",
    /// Old data around a partial write is read.
    CowRead = "cow_read",
    /// Old data around a partial write is written.
    CowWrite = "cow_write",
    /// The refcount table is read.
    ReftableLoad = "reftable_load",
    /// A larger refcount table is made.
    ReftableGrow = "reftable_grow",
    /// The refcount table is written.
    ReftableUpdate = "reftable_update",
    /// A refcount block is read.
    RefblockLoad = "refblock_load",
    /// A refcount block is written.
    RefblockUpdate = "refblock_update",
    /// A refcount block is written, in part.
    RefblockUpdatePart = "refblock_update_part",
    /// A refcount block is searched for, or made.
    RefblockAlloc = "refblock_alloc",
    /// The refcount table is made to point at a new block.
    RefblockAllocHookup = "refblock_alloc_hookup",
    /// A new refcount block is written.
    RefblockAllocWrite = "refblock_alloc_write",
    /// The blocks of a larger refcount table are written.
    RefblockAllocWriteBlocks = "refblock_alloc_write_blocks",
    /// A larger refcount table is written.
    RefblockAllocWriteTable = "refblock_alloc_write_table",
    /// The header is made to point at it.
    RefblockAllocSwitchTable = "refblock_alloc_switch_table",
    /// Clusters are taken.
    ClusterAlloc = "cluster_alloc",
    /// Room for a compressed cluster is taken.
    ClusterAllocBytes = "cluster_alloc_bytes",
    /// Clusters are given back.
    ClusterFree = "cluster_free",
    /// Caches are written.
    FlushToOs = "flush_to_os",
    /// The disk is told to write its cache.
    FlushToDisk = "flush_to_disk",
    /// The head of an unaligned write is read.
    PwritevRmwHead = "pwritev_rmw_head",
    /// It has been read.
    PwritevRmwAfterHead = "pwritev_rmw_after_head",
    /// The tail of an unaligned write is read.
    PwritevRmwTail = "pwritev_rmw_tail",
    /// It has been read.
    PwritevRmwAfterTail = "pwritev_rmw_after_tail",
    /// Bytes are written.
    Pwritev = "pwritev",
    /// Zeroes are written.
    PwritevZero = "pwritev_zero",
    /// They have been written.
    PwritevDone = "pwritev_done",
    /// An image is emptied.
    EmptyImagePrepare = "empty_image_prepare",
    /// A smaller L1 table is written.
    L1ShrinkWriteTable = "l1_shrink_write_table",
    /// L2 tables behind the new end are given back.
    L1ShrinkFreeL2Clusters = "l1_shrink_free_l2_clusters",
    /// Data that was copied on a read is written.
    CorWrite = "cor_write",
    /// Space for a new cluster is zeroed.
    ClusterAllocSpace = "cluster_alloc_space",
    /// A filter has been opened.
    None = "none",
}
