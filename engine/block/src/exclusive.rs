//! A value that one request at a time may hold, across I/O and shards.
//!
//! For control and metadata, never on a fast path. Whoever waits is woken when
//! the value comes back, and tries again.

use std::ops::{Deref, DerefMut};
use std::sync::atomic::{Ordering, fence};
use std::sync::{Mutex, PoisonError};
use std::task::Poll;

use ringback_ring::WaitQueue;

/// The value and the line in front of it.
#[derive(Debug)]
pub(crate) struct Exclusive<T> {
    /// None while somebody holds it.
    value: Mutex<Option<Box<T>>>,
    freed: WaitQueue,
}

/// The value, until dropped.
pub(crate) struct Held<'a, T> {
    exclusive: &'a Exclusive<T>,
    /// None only while it is being given back.
    value: Option<Box<T>>,
}

impl<T> Exclusive<T> {
    pub(crate) fn new(value: T) -> Self {
        Self {
            value: Mutex::new(Some(Box::new(value))),
            freed: WaitQueue::new(),
        }
    }

    pub(crate) fn try_lock(&self) -> Option<Held<'_, T>> {
        let value = self.slot().take()?;
        Some(Held {
            exclusive: self,
            value: Some(value),
        })
    }

    pub(crate) async fn lock(&self) -> Held<'_, T> {
        std::future::poll_fn(|cx| {
            if let Some(held) = self.try_lock() {
                return Poll::Ready(held);
            }
            self.freed.push(cx.waker().clone());
            // After the push: whoever gives the value back wakes afterwards.
            fence(Ordering::SeqCst);
            match self.try_lock() {
                Some(held) => Poll::Ready(held),
                None => Poll::Pending,
            }
        })
        .await
    }

    fn slot(&self) -> std::sync::MutexGuard<'_, Option<Box<T>>> {
        self.value.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<T> Deref for Held<'_, T> {
    type Target = T;

    fn deref(&self) -> &T {
        self.value.as_ref().expect("held until dropped")
    }
}

impl<T> DerefMut for Held<'_, T> {
    fn deref_mut(&mut self) -> &mut T {
        self.value.as_mut().expect("held until dropped")
    }
}

impl<T> Drop for Held<'_, T> {
    fn drop(&mut self) {
        *self.exclusive.slot() = self.value.take();
        // The value first, then the look for who waits.
        fence(Ordering::SeqCst);
        self.exclusive.freed.wake_all();
    }
}
