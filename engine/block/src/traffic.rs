//! What a node remembers of the changes that reach it: how far writes went, what
//! was discarded, and a threshold that somebody wants to hear of.
//!
//! Each shard counts on a cache line of its own; whoever asks adds up. Neither a
//! lock nor a shared line is touched by a write, but for the one that goes beyond
//! the threshold.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

use crossbeam::utils::CachePadded;
use ringback_ring::Shard;

use crate::notice::{Notice, Notify};

/// The changes of one node.
pub struct Traffic {
    shards: Box<[CachePadded<Counts>]>,
    /// An offset in bytes; 0: none.
    threshold: AtomicU64,
    /// Who hears of the threshold, and what the node is called there.
    listener: Mutex<Option<(String, Notify)>>,
}

/// Written by one shard only.
#[derive(Default)]
struct Counts {
    highest: AtomicU64,
    discards: AtomicU64,
    discards_failed: AtomicU64,
    discarded_bytes: AtomicU64,
}

/// Discards that reached a file.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Discards {
    /// How many succeeded.
    pub succeeded: u64,
    /// How many failed.
    pub failed: u64,
    /// Bytes of those that succeeded.
    pub bytes: u64,
}

impl Traffic {
    /// Of a node that `shards` shards will use.
    pub fn new(shards: usize) -> Self {
        Self {
            shards: (0..shards).map(|_| CachePadded::default()).collect(),
            threshold: AtomicU64::new(0),
            listener: Mutex::new(None),
        }
    }

    /// The end of the write that went furthest, in bytes; 0 if there was none.
    pub fn highest_write_end(&self) -> u64 {
        let ends = self.shards.iter();
        ends.map(|shard| shard.highest.load(Ordering::Relaxed))
            .max()
            .unwrap_or(0)
    }

    /// What was discarded.
    pub fn discards(&self) -> Discards {
        let sum = |pick: fn(&Counts) -> &AtomicU64| {
            let shards = self.shards.iter();
            shards
                .map(|shard| pick(shard).load(Ordering::Relaxed))
                .sum()
        };
        Discards {
            succeeded: sum(|counts| &counts.discards),
            failed: sum(|counts| &counts.discards_failed),
            bytes: sum(|counts| &counts.discarded_bytes),
        }
    }

    /// The offset that a write must end behind to be told of; 0: none is.
    pub fn threshold(&self) -> u64 {
        self.threshold.load(Ordering::Relaxed)
    }

    /// Tells of the next write that ends behind `threshold`, once; 0: of none.
    pub fn set_threshold(&self, node: &str, threshold: u64, notify: Notify) {
        *self.lock() = (threshold > 0).then(|| (node.to_owned(), notify));
        self.threshold.store(threshold, Ordering::Release);
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Option<(String, Notify)>> {
        self.listener.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A write up to `end` begins.
    pub(crate) fn before_write(&self, end: u64) {
        let threshold = self.threshold.load(Ordering::Acquire);
        if threshold > 0 && end > threshold {
            self.exceed(threshold, end);
        }
    }

    #[cold]
    fn exceed(&self, threshold: u64, end: u64) {
        // Of several writes at once one tells; a threshold set anew meanwhile
        // stays.
        let swapped =
            self.threshold
                .compare_exchange(threshold, 0, Ordering::AcqRel, Ordering::Relaxed);
        if swapped.is_ok()
            && let Some((node, notify)) = self.lock().clone()
        {
            notify.send(Notice::WriteThreshold {
                node,
                threshold,
                exceeded: end - threshold,
            });
        }
    }

    /// A write up to `end` has ended, well or not.
    pub(crate) fn after_write(&self, shard: &Shard, end: u64) {
        self.reach(shard.index(), end);
    }

    fn reach(&self, shard: usize, end: u64) {
        let highest = &self.shards[shard].highest;
        if highest.load(Ordering::Relaxed) < end {
            highest.store(end, Ordering::Relaxed);
        }
    }

    /// A discard of so many bytes has ended.
    pub(crate) fn after_discard(&self, shard: &Shard, bytes: u64, is_ok: bool) {
        self.count_discard(shard.index(), bytes, is_ok);
    }

    fn count_discard(&self, shard: usize, bytes: u64, is_ok: bool) {
        let counts = &self.shards[shard];
        let add = |counter: &AtomicU64, amount| {
            let old = counter.load(Ordering::Relaxed);
            counter.store(old.wrapping_add(amount), Ordering::Relaxed);
        };
        if is_ok {
            add(&counts.discards, 1);
            add(&counts.discarded_bytes, bytes);
        } else {
            add(&counts.discards_failed, 1);
        }
    }
}

impl std::fmt::Debug for Traffic {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Traffic")
            .field("highest_write_end", &self.highest_write_end())
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    #[test]
    fn shards_count_apart_and_are_added_up() {
        let traffic = Traffic::new(3);
        assert_eq!(traffic.highest_write_end(), 0);
        traffic.reach(0, 4096);
        traffic.reach(2, 512);
        traffic.reach(0, 1024);
        assert_eq!(traffic.highest_write_end(), 4096);
        traffic.count_discard(1, 100, true);
        traffic.count_discard(2, 10, true);
        traffic.count_discard(2, 1, false);
        let discards = Discards {
            succeeded: 2,
            failed: 1,
            bytes: 110,
        };
        assert_eq!(traffic.discards(), discards);
    }

    #[test]
    fn a_threshold_is_told_of_once() {
        let told = Arc::new(Mutex::new(Vec::new()));
        let notify = Notify::new({
            let told = Arc::clone(&told);
            move |notice| told.lock().expect("no panic").push(notice)
        });
        let traffic = Traffic::new(1);
        traffic.before_write(1 << 40);
        traffic.set_threshold("n", 4096, notify.clone());
        traffic.before_write(4096);
        assert_eq!(traffic.threshold(), 4096);
        traffic.before_write(4097);
        traffic.before_write(8192);
        assert_eq!(traffic.threshold(), 0);
        traffic.set_threshold("n", 1, notify.clone());
        traffic.set_threshold("n", 0, notify);
        traffic.before_write(2);
        let notice = Notice::WriteThreshold {
            node: "n".into(),
            threshold: 4096,
            exceeded: 1,
        };
        assert_eq!(*told.lock().expect("no panic"), [notice]);
    }
}
