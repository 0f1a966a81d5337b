//! Deliberate faults, for showing that the tests would find real ones.
//!
//! Each fault is a place in the engine where the wrong thing is done if a test
//! has planted it on its thread. Outside debug builds there is no way to plant,
//! and every question is a constant `false`.

/// One deliberate fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// A guest write looks at the register of readers before the cluster is
    /// *closing*, and not again.
    ScanBeforeClosing,
    /// A guest write takes *saved* for *passed*.
    ShortCutOnSaved,
    /// *passed* is set before the readers have left.
    PassBeforeScan,
    /// A dirty bitmap is marked after the write was acknowledged.
    MarkAfterAcknowledgement,
    /// The snapshot is called broken only after the unsaved write went out.
    BrokenStoredLate,
    /// A save that timed out gives its claim back while its I/O is under way.
    TimeoutFreesCell,
    /// A cancelled worker keeps its claim.
    ClaimLeakedOnCancel,
    /// Old data is forgotten before the target has it.
    FreedBeforeWritten,
    /// A claim ends when old data is in memory.
    MemoryCountsAsTarget,
    /// Unaligned writes do not wait for each other.
    UnalignedNotSerialised,
    /// A flush answers without having flushed.
    FlushForgotten,
    /// A write behind the known end of a file is not kept from being cut off.
    WriteBehindEndNotCounted,
    /// A file whose last block is in use is made longer.
    GrowsFromWithinBlock,
    /// qcow2: an L2 entry is written before its data is durable.
    EntryBeforeData,
    /// qcow2: refcounts are written after the entries that they count.
    CountAfterEntry,
    /// qcow2: an L1 entry is written before its L2 table is durable.
    PointerBeforeTable,
    /// qcow2: a cluster that lost its reference is free at once.
    FreedAtOnce,
    /// qcow2: nobody is alone in changing a mapping.
    MappingNotClaimed,
    /// qcow2: the file forgets a freed cluster after it was counted down.
    ForgottenWhenFree,
    /// qcow2: a slice with changes is thrown out of the cache.
    DirtySliceEvicted,
    /// qcow2: zeroes go where an own cluster holds data already.
    LiveBytesZeroed,
}

#[cfg(debug_assertions)]
thread_local! {
    static PLANTED: std::cell::Cell<Option<Fault>> = const { std::cell::Cell::new(None) };
}

/// Plants a fault on this thread until the guard is dropped.
#[cfg(debug_assertions)]
pub fn plant(fault: Fault) -> impl Drop {
    struct Uproot;
    impl Drop for Uproot {
        fn drop(&mut self) {
            PLANTED.set(None);
        }
    }
    PLANTED.set(Some(fault));
    Uproot
}

/// Whether a test has planted this fault here.
#[cfg(debug_assertions)]
pub(crate) fn is(fault: Fault) -> bool {
    PLANTED.get() == Some(fault)
}

/// Whether a test has planted this fault here: never, in this build.
#[cfg(not(debug_assertions))]
#[inline(always)]
pub(crate) const fn is(_: Fault) -> bool {
    false
}
