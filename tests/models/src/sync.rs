//! The `crate::sync` of the models: loom's atomics under the names of the production code.
//!
//! What is not an atomic is rebuilt here as weakly as the real thing: a queue that synchronises
//! more than the real one does would hide a missing fence.

pub use crossbeam::utils::CachePadded;
pub use loom::sync::atomic::{
    AtomicBool, AtomicI64, AtomicU32, AtomicU64, AtomicUsize, Ordering, fence,
};

use loom::sync::Mutex;
use std::cell::Cell;
use std::task::Waker;

/// `count` words, all zero.
pub fn zeroed_words(count: usize) -> Option<Box<[AtomicU64]>> {
    Some((0..count).map(|_| AtomicU64::new(0)).collect())
}

/// A queue of wakers.
///
/// The real queue shows that it is empty by its two ends, before any other synchronisation. Here
/// a relaxed count does: with the lock alone, whoever looks would see all pushes.
#[derive(Default)]
pub struct WaitQueue {
    count: AtomicUsize,
    wakers: Mutex<Vec<Waker>>,
}

impl WaitQueue {
    /// A queue with nobody in it.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a waiter.
    pub fn push(&self, waker: Waker) {
        self.lock().push(waker);
        self.count.fetch_add(1, Ordering::Relaxed);
    }

    /// Wakes all whom a look at the count shows.
    pub fn wake_all(&self) {
        if self.count.load(Ordering::Relaxed) == 0 {
            return;
        }
        let wakers = std::mem::take(&mut *self.lock());
        self.count.fetch_sub(wakers.len(), Ordering::Relaxed);
        for waker in wakers {
            waker.wake();
        }
    }

    fn lock(&self) -> loom::sync::MutexGuard<'_, Vec<Waker>> {
        self.wakers.lock().expect("a panic ends the model")
    }
}

/// A deliberate fault. The first ones are steps that the production code leaves out, as its own
/// list says; the others are orders of steps that the models' writers get wrong.
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
    /// A writer goes straight on when the cluster is *saved*.
    SavedTakenForOpen,
    /// A writer goes straight on when another one has swung the cluster to *closing*.
    ClosingTakenForOpen,
    /// A writer sets *passed*, then scans the register.
    PassedBeforeScan,
    /// A writer scans the register, then swings the cluster to *closing*.
    ScanBeforeClosing,
}

std::thread_local! {
    // Of std on purpose: loom runs all threads of a model on the one that started it.
    static PLANTED: Cell<Option<Fault>> = const { Cell::new(None) };
}

/// Plants a fault, or none, in the models that this test thread runs from now on.
pub fn plant(fault: Option<Fault>) {
    PLANTED.set(fault);
}

/// Whether `fault` is planted.
pub fn planted(fault: Fault) -> bool {
    PLANTED.get() == Some(fault)
}
