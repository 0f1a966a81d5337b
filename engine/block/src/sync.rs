//! What the lock-free code takes its atomics from.
//!
//! The files that hold an algorithm between shards (register, cells, words of a bitmap) name
//! `crate::sync` and nothing of `std::sync`. A model crate includes those very files beside a
//! `sync` of loom's, so that what the model checker passes is what runs.

pub use crossbeam::utils::CachePadded;
pub use ringback_ring::WaitQueue;
pub use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering, fence};

/// `count` words, all zero, in memory that the kernel provides page by page on the first write.
///
/// None when there is not so much address space: a disk's size is the user's, so this must not
/// end the process.
pub fn zeroed_words(count: usize) -> Option<Box<[AtomicU64]>> {
    bytemuck::allocation::try_zeroed_slice_box(count).ok()
}

/// A step of an algorithm that the model checker leaves out on purpose, to prove that it would
/// notice.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// A reader registers and looks at the states without a fence in between.
    ReaderFenceMissing,
    /// A writer scans the register without a fence after its last swing.
    WriterFenceMissing,
    /// A reader that leaves or shrinks looks for waiters without a fence in between.
    LeaveFenceMissing,
    /// A writer pushes its waker and looks at the reader without a fence in between.
    WaitFenceMissing,
    /// A writer pushes its waker and does not look at the reader again.
    WaitSecondLookMissing,
    /// Who marks a leaf that is set already does not look at the summary.
    MarkTrustsSetLeaf,
    /// Who marks sets the leaf and looks at the summary without a fence in between.
    MarkFenceMissing,
    /// Who clears reads the data that it takes over before its bits are gone for everybody.
    ClearReadsBeforeFence,
    /// Who clears takes the summary bit away and looks at the leaf without a fence in between.
    ClearFenceMissing,
    /// Who clears does not look at the leaf again.
    ClearSecondLookMissing,
    /// A summary bit that is restored is not restored in the levels above.
    RestoreDoesNotClimb,
}

/// Whether `fault` is planted. Never here: the answer is a constant, and the branch is gone.
#[inline(always)]
pub const fn planted(_fault: Fault) -> bool {
    false
}
