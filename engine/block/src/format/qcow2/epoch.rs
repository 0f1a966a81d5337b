//! Which requests were in flight when a cluster was freed (Q2).
//!
//! A request reads its mapping without a lock, so it may still use a host
//! cluster that has lost its last reference meanwhile. Such a cluster is given
//! out again only when every request that began before has ended.
//!
//! # Order
//!
//! A request and whoever frees are a store-load pair. The request counts itself
//! in, fences, then looks at the mapping. Who frees takes the mapping away,
//! fences, then looks at the counts. Either the request sees the new mapping,
//! or it is counted and waited for.
//!
//! # Two counts a shard
//!
//! Requests are counted under the epoch in which they began, of which the last
//! two are kept apart. The epoch moves on only when the one before it has
//! emptied, and new requests are counted under the new one; so requests that
//! keep coming never hold an older one open. A request that read the number
//! just before it moved on is counted in the other place: it only delays.

use crate::sync::{AtomicU64, CachePadded, Ordering, fence};

/// The counts of one shard, by parity of the epoch. Only the owner shard
/// changes them.
#[derive(Debug, Default)]
struct Counts([AtomicU64; 2]);

/// The requests in flight on one image.
#[derive(Debug)]
pub(crate) struct Epochs {
    current: AtomicU64,
    shards: Box<[CachePadded<Counts>]>,
}

/// A request in flight, until dropped on its shard.
pub(crate) struct Passage<'a> {
    count: &'a AtomicU64,
}

impl Epochs {
    pub(crate) fn new(shards: usize) -> Self {
        Self {
            // The first request must not be older than epoch 0.
            current: AtomicU64::new(1),
            shards: (0..shards).map(|_| CachePadded::default()).collect(),
        }
    }

    /// Counts a request of the caller's shard in, before it looks at mappings.
    pub(crate) fn enter(&self, shard: usize) -> Passage<'_> {
        let epoch = self.current.load(Ordering::Acquire);
        let count = &self.shards[shard].0[parity(epoch)];
        count.store(count.load(Ordering::Relaxed) + 1, Ordering::Relaxed);
        fence(Ordering::SeqCst);
        Passage { count }
    }

    /// The stamp of a mapping that has been taken away by now: what carries it
    /// is unused once [`Epochs::has_ended`] says so.
    pub(crate) fn stamp(&self) -> u64 {
        fence(Ordering::SeqCst);
        self.current.load(Ordering::Acquire)
    }

    /// Whether every request that may have seen mappings of this stamp has
    /// ended. One caller at a time.
    ///
    /// Such a request is counted in one of the two places for as long as it
    /// lives, and the step from one epoch to the next sees one of them empty.
    /// So after two steps it has ended.
    pub(crate) fn has_ended(&self, stamp: u64) -> bool {
        loop {
            let epoch = self.current.load(Ordering::Acquire);
            if epoch >= stamp + 2 {
                return true;
            }
            fence(Ordering::SeqCst);
            if !self.is_empty(epoch - 1) {
                return false;
            }
            self.current.store(epoch + 1, Ordering::Release);
        }
    }

    fn is_empty(&self, epoch: u64) -> bool {
        self.shards
            .iter()
            .all(|counts| counts.0[parity(epoch)].load(Ordering::Acquire) == 0)
    }
}

fn parity(epoch: u64) -> usize {
    usize::from(!epoch.is_multiple_of(2))
}

impl Drop for Passage<'_> {
    fn drop(&mut self) {
        let count = self.count.load(Ordering::Relaxed);
        self.count.store(count - 1, Ordering::Release);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stamp_ends_with_the_requests_that_were_in_flight() {
        let epochs = Epochs::new(2);
        assert!(epochs.has_ended(epochs.stamp()), "nothing is in flight");
        let old = epochs.enter(0);
        let stamp = epochs.stamp();
        let mut last = epochs.enter(1);
        for _ in 0..5 {
            assert!(!epochs.has_ended(stamp));
            // Requests keep coming, and never none is in flight.
            last = {
                let next = epochs.enter(1);
                drop(last);
                next
            };
        }
        drop(old);
        let ended = (0..4).any(|_| {
            let next = epochs.enter(1);
            last = next;
            epochs.has_ended(stamp)
        });
        assert!(ended, "later requests do not hold it open");
        drop(last);
    }
}
