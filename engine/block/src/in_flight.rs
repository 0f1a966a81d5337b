//! Spans of writes in flight, so that unaligned writes are right.
//!
//! A write that the device's alignment cannot serve reads whole units, changes
//! a part of them and writes them back. Meanwhile nobody else may write these
//! units, or one of the two would be undone. Aligned writes may overlap each
//! other freely: a guest that does that asks for either result.
//!
//! # Order
//!
//! Aligned (shared) and unaligned (exclusive) writes are a store-load pair. The
//! aligned one enters the register, fences, then looks whether any exclusive
//! span is live; the exclusive one puts its span on the list, fences, then
//! scans the register. One sees the other. An aligned write that saw an
//! overlapping exclusive one leaves the register before it waits, so the two
//! cannot wait for each other.
//!
//! With no unaligned write around, an aligned one costs two stores, a fence and
//! a load, and touches no cache line of another shard.

use std::sync::{Mutex, PoisonError};

use ringback_ring::Shard;

use crate::planted::{self, Fault};
use crate::register::{Register, Ticket};
use crate::span::Span;
use crate::sync::{AtomicU64, Ordering, WaitQueue, fence};

/// The writes in flight on one storage.
#[derive(Debug)]
pub(crate) struct InFlight {
    shared: Register,
    /// How many exclusive spans there are: what an aligned write looks at.
    exclusive_count: AtomicU64,
    exclusive: Mutex<Vec<(u64, Span)>>,
    next_id: AtomicU64,
    changed: WaitQueue,
}

/// A write's right to go on, until it is dropped.
#[derive(Debug)]
pub(crate) struct Turn<'a> {
    in_flight: &'a InFlight,
    held: Option<Held>,
}

#[derive(Debug)]
enum Held {
    Shared(Ticket),
    Exclusive(u64),
}

impl InFlight {
    pub(crate) fn new(shards: usize) -> Self {
        Self {
            shared: Register::new(shards),
            exclusive_count: AtomicU64::new(0),
            exclusive: Mutex::default(),
            next_id: AtomicU64::new(0),
            changed: WaitQueue::new(),
        }
    }

    /// An aligned write's turn. Waits only for overlapping unaligned writes.
    pub(crate) async fn enter_shared(&self, shard: &Shard, span: Span) -> Turn<'_> {
        loop {
            let Some(ticket) = self
                .shared
                .try_enter(shard.index(), span.offset, span.end())
            else {
                // More writes in flight than the register has room for: the
                // list has room for any number, at the price of a lock.
                return self.enter_exclusive(shard, span).await;
            };
            // `try_enter` has fenced: see the module's Order.
            if !self.is_excluded(span) {
                return Turn {
                    in_flight: self,
                    held: Some(Held::Shared(ticket)),
                };
            }
            self.shared.leave(ticket);
            self.wait_while(|| self.is_excluded(span)).await;
        }
    }

    /// An unaligned write's turn on whole units. Waits for every overlapping
    /// write.
    pub(crate) async fn enter_exclusive(&self, _shard: &Shard, span: Span) -> Turn<'_> {
        let mut id = self.try_list(span);
        if id.is_none() {
            self.wait_while(|| {
                id = self.try_list(span);
                id.is_none()
            })
            .await;
        }
        let id = id.expect("the wait ends with a place on the list");
        if !planted::is(Fault::UnalignedNotSerialised) {
            // Fences, then scans: see the module's Order.
            self.shared.wait_clear(span.offset, span.end()).await;
        }
        Turn {
            in_flight: self,
            held: Some(Held::Exclusive(id)),
        }
    }

    fn is_excluded(&self, span: Span) -> bool {
        self.exclusive_count.load(Ordering::Acquire) > 0
            && self.lock().iter().any(|(_, other)| other.overlaps(&span))
    }

    fn try_list(&self, span: Span) -> Option<u64> {
        let mut list = self.lock();
        let taken = list.iter().any(|(_, other)| other.overlaps(&span));
        if taken && !planted::is(Fault::UnalignedNotSerialised) {
            return None;
        }
        let id = self.next_id.fetch_add(1, Ordering::Relaxed);
        list.push((id, span));
        self.exclusive_count.fetch_add(1, Ordering::Release);
        Some(id)
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Vec<(u64, Span)>> {
        self.exclusive
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    async fn wait_while(&self, mut blocked: impl FnMut() -> bool) {
        std::future::poll_fn(|cx| {
            self.changed.push(cx.waker().clone());
            // After the push: whoever changes the list wakes afterwards.
            fence(Ordering::SeqCst);
            if blocked() {
                std::task::Poll::Pending
            } else {
                std::task::Poll::Ready(())
            }
        })
        .await;
    }

    fn leave(&self, held: Held) {
        match held {
            Held::Shared(ticket) => self.shared.leave(ticket),
            Held::Exclusive(id) => {
                self.lock().retain(|&(other, _)| other != id);
                self.exclusive_count.fetch_sub(1, Ordering::Release);
                // The change first, then the look for who waits.
                fence(Ordering::SeqCst);
                self.changed.wake_all();
            }
        }
    }
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        if let Some(held) = self.held.take() {
            self.in_flight.leave(held);
        }
    }
}
