//! Sleeping tasks of one shard, by deadline.

use std::cell::{Cell, RefCell};
use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::task::Waker;

struct Entry {
    deadline_ns: u64,
    order: u64,
    waker: Waker,
}

impl PartialEq for Entry {
    fn eq(&self, other: &Self) -> bool {
        self.key() == other.key()
    }
}

impl Eq for Entry {}

impl PartialOrd for Entry {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Entry {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        self.key().cmp(&other.key())
    }
}

impl Entry {
    /// Equal deadlines fire in the order in which they were set.
    fn key(&self) -> (u64, u64) {
        (self.deadline_ns, self.order)
    }
}

/// The timers of one shard. A timer that nobody waits for any more wakes its
/// task once for nothing; it is not removed early.
#[derive(Default)]
pub(crate) struct Timers {
    heap: RefCell<BinaryHeap<Reverse<Entry>>>,
    set_count: Cell<u64>,
}

impl Timers {
    pub(crate) fn set(&self, deadline_ns: u64, waker: Waker) {
        let order = self.set_count.get();
        self.set_count.set(order + 1);
        self.heap.borrow_mut().push(Reverse(Entry {
            deadline_ns,
            order,
            waker,
        }));
    }

    pub(crate) fn next_deadline(&self) -> Option<u64> {
        self.heap.borrow().peek().map(|entry| entry.0.deadline_ns)
    }

    /// Wakes every task whose deadline has come.
    pub(crate) fn fire(&self, now_ns: u64) {
        loop {
            let due = {
                let mut heap = self.heap.borrow_mut();
                match heap.peek() {
                    Some(entry) if entry.0.deadline_ns <= now_ns => heap.pop(),
                    _ => None,
                }
            };
            match due {
                Some(entry) => entry.0.waker.wake(),
                None => return,
            }
        }
    }

    pub(crate) fn clear(&self) {
        self.heap.borrow_mut().clear();
    }
}
