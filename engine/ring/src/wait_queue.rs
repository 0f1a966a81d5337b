//! Tasks that wait for something which is not an I/O completion.
//!
//! [`WaitQueue`] may be pushed to and woken from any shard and takes no lock;
//! [`LocalQueue`] belongs to one shard. Both are memories of wakers and nothing
//! more: a wake-up says "look again", so whoever waits must look at the state
//! it waits for after pushing its waker, and again after each wake-up.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::task::Waker;

use crossbeam::queue::SegQueue;

/// Wakers from any shard.
///
/// # Order
///
/// The waiter pushes, then looks at the state. Who changes the state changes
/// it, issues a `fence(SeqCst)`, then calls [`WaitQueue::wake_all`]. One of the
/// two sees the other.
#[derive(Debug, Default)]
pub struct WaitQueue {
    wakers: SegQueue<Waker>,
}

impl WaitQueue {
    /// An empty queue.
    pub fn new() -> Self {
        Self::default()
    }

    /// Remembers a waker until the next [`WaitQueue::wake_all`].
    pub fn push(&self, waker: Waker) {
        self.wakers.push(waker);
    }

    /// Wakes everyone who waits now. Costs one load when nobody does.
    pub fn wake_all(&self) {
        if self.wakers.is_empty() {
            return;
        }
        // Only as many as are here now: a woken task may push itself again at
        // once, and must not keep this loop alive.
        for _ in 0..self.wakers.len() {
            match self.wakers.pop() {
                Some(waker) => waker.wake(),
                None => break,
            }
        }
    }
}

/// Wakers of tasks on one shard, first come, first woken.
#[derive(Debug, Default)]
pub struct LocalQueue {
    wakers: RefCell<VecDeque<Waker>>,
}

impl LocalQueue {
    /// An empty queue.
    pub fn new() -> Self {
        Self::default()
    }

    /// Remembers a waker.
    pub fn push(&self, waker: Waker) {
        self.wakers.borrow_mut().push_back(waker);
    }

    /// Wakes the task that has waited longest.
    pub fn wake_one(&self) {
        let first = self.wakers.borrow_mut().pop_front();
        if let Some(waker) = first {
            waker.wake();
        }
    }

    /// Wakes everyone.
    pub fn wake_all(&self) {
        let all = std::mem::take(&mut *self.wakers.borrow_mut());
        for waker in all {
            waker.wake();
        }
    }

    /// Waits until `ready` says so; it is asked again after each wake-up.
    pub async fn wait_until(&self, mut ready: impl FnMut() -> bool) {
        std::future::poll_fn(|cx| {
            if ready() {
                return std::task::Poll::Ready(());
            }
            self.push(cx.waker().clone());
            std::task::Poll::Pending
        })
        .await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::task::Wake;

    #[derive(Default)]
    struct Count {
        woken: AtomicUsize,
    }

    impl Wake for Count {
        fn wake(self: Arc<Self>) {
            self.woken.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Pushes itself again whenever it is woken.
    struct Again {
        queue: Arc<WaitQueue>,
        woken: AtomicUsize,
    }

    impl Wake for Again {
        fn wake(self: Arc<Self>) {
            self.woken.fetch_add(1, Ordering::Relaxed);
            let queue = Arc::clone(&self.queue);
            queue.push(Waker::from(self));
        }
    }

    #[test]
    fn all_who_wait_are_woken_once() {
        let queue = WaitQueue::new();
        let count = Arc::new(Count::default());
        queue.wake_all();
        for _ in 0..100 {
            queue.push(Waker::from(Arc::clone(&count)));
        }
        queue.wake_all();
        queue.wake_all();
        assert_eq!(count.woken.load(Ordering::Relaxed), 100);
    }

    #[test]
    fn a_waiter_that_pushes_again_does_not_keep_the_waker_busy() {
        let queue = Arc::new(WaitQueue::new());
        let again = Arc::new(Again {
            queue: Arc::clone(&queue),
            woken: AtomicUsize::new(0),
        });
        queue.push(Waker::from(Arc::clone(&again)));
        queue.wake_all();
        assert_eq!(again.woken.load(Ordering::Relaxed), 1);
    }

    #[test]
    fn pushes_from_many_threads_all_arrive() {
        let queue = WaitQueue::new();
        let count = Arc::new(Count::default());
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for _ in 0..1000 {
                        queue.push(Waker::from(Arc::clone(&count)));
                    }
                });
            }
            for _ in 0..100 {
                queue.wake_all();
            }
        });
        queue.wake_all();
        assert_eq!(count.woken.load(Ordering::Relaxed), 4000);
    }
}
