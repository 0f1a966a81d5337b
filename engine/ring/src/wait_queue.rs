//! Tasks that wait for something which is not an I/O completion.
//!
//! [`WaitQueue`] may be pushed to and woken from any shard; [`LocalQueue`]
//! belongs to one shard. Both are memories of wakers and nothing
//! more: a wake-up says "look again", so whoever waits must look at the state
//! it waits for after pushing its waker, and again after each wake-up.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::task::Waker;

/// Wakers from any shard.
///
/// A task stands here at most once, however often it looks: the queue is no
/// longer than there are tasks, also if waits end by a time-out and leave their
/// waker behind. Nobody waits on the fast path, so a lock is good enough; with
/// nobody waiting, waking is one load.
///
/// # Order
///
/// The waiter pushes, issues a `fence(SeqCst)`, then looks at the state. Who
/// changes the state changes it, issues a `fence(SeqCst)`, then calls
/// [`WaitQueue::wake_all`]. One of the two sees the other.
#[derive(Debug, Default)]
pub struct WaitQueue {
    count: AtomicUsize,
    wakers: Mutex<Vec<Waker>>,
}

impl WaitQueue {
    /// An empty queue.
    pub fn new() -> Self {
        Self::default()
    }

    /// Remembers a waker until the next [`WaitQueue::wake_all`].
    pub fn push(&self, waker: Waker) {
        let mut wakers = self.lock();
        if !wakers.iter().any(|other| other.will_wake(&waker)) {
            wakers.push(waker);
            self.count.store(wakers.len(), Ordering::Relaxed);
        }
    }

    /// Wakes everyone who waits now.
    pub fn wake_all(&self) {
        if self.count.load(Ordering::Relaxed) == 0 {
            return;
        }
        let wakers = {
            let mut wakers = self.lock();
            self.count.store(0, Ordering::Relaxed);
            std::mem::take(&mut *wakers)
        };
        // After the lock: a woken task may push itself again at once.
        for waker in wakers {
            waker.wake();
        }
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Waker>> {
        self.wakers.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Wakers of tasks on one shard.
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
        let counts: Vec<_> = (0..100).map(|_| Arc::new(Count::default())).collect();
        queue.wake_all();
        for count in counts.iter().chain(&counts) {
            queue.push(Waker::from(Arc::clone(count)));
        }
        queue.wake_all();
        queue.wake_all();
        assert!(
            counts
                .iter()
                .all(|count| count.woken.load(Ordering::Relaxed) == 1)
        );
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
        let counts: Vec<_> = (0..4000).map(|_| Arc::new(Count::default())).collect();
        std::thread::scope(|scope| {
            for part in counts.chunks(1000) {
                let queue = &queue;
                scope.spawn(move || {
                    for count in part {
                        queue.push(Waker::from(Arc::clone(count)));
                    }
                });
            }
            for _ in 0..100 {
                queue.wake_all();
            }
        });
        queue.wake_all();
        assert!(
            counts
                .iter()
                .all(|count| count.woken.load(Ordering::Relaxed) == 1)
        );
    }
}
