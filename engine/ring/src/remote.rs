//! A value that one thread will give to another: the answer to a message.
//!
//! For control, not for data: it allocates and takes a lock.

use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::task::{Context, Poll, Waker};

#[derive(Debug)]
struct State<T> {
    value: Option<T>,
    waker: Option<Waker>,
    giver_gone: bool,
}

#[derive(Debug)]
struct Shared<T> {
    state: Mutex<State<T>>,
    changed: Condvar,
}

/// The side that will give the value.
#[derive(Debug)]
pub struct Giver<T> {
    shared: Arc<Shared<T>>,
}

/// The side that waits for it: a future on a shard, or a blocked thread.
#[derive(Debug)]
pub struct Answer<T> {
    shared: Arc<Shared<T>>,
}

/// The other side went away without giving a value: its shard was stopped.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the shard stopped before it answered")]
pub struct Gone;

/// A connected pair.
pub fn pair<T>() -> (Giver<T>, Answer<T>) {
    let state = State {
        value: None,
        waker: None,
        giver_gone: false,
    };
    let shared = Arc::new(Shared {
        state: Mutex::new(state),
        changed: Condvar::new(),
    });
    (
        Giver {
            shared: Arc::clone(&shared),
        },
        Answer { shared },
    )
}

impl<T> Giver<T> {
    /// Gives the value and wakes who waits.
    pub fn give(self, value: T) {
        let mut state = self
            .shared
            .state
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        state.value = Some(value);
        // `drop` below wakes.
    }
}

impl<T> Drop for Giver<T> {
    fn drop(&mut self) {
        let waker = {
            let mut state = self
                .shared
                .state
                .lock()
                .unwrap_or_else(PoisonError::into_inner);
            state.giver_gone = true;
            state.waker.take()
        };
        self.shared.changed.notify_all();
        if let Some(waker) = waker {
            waker.wake();
        }
    }
}

impl<T> Answer<T> {
    /// Blocks this thread until the value is there. Never on a shard.
    pub fn wait(self) -> Result<T, Gone> {
        let mut state = self
            .shared
            .state
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        loop {
            if let Some(value) = state.value.take() {
                return Ok(value);
            }
            if state.giver_gone {
                return Err(Gone);
            }
            state = self
                .shared
                .changed
                .wait(state)
                .unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// The value if it is there already.
    pub fn try_take(&self) -> Option<Result<T, Gone>> {
        let mut state = self
            .shared
            .state
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        match state.value.take() {
            Some(value) => Some(Ok(value)),
            None if state.giver_gone => Some(Err(Gone)),
            None => None,
        }
    }
}

impl<T> Future for Answer<T> {
    type Output = Result<T, Gone>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        if let Some(result) = self.try_take() {
            return Poll::Ready(result);
        }
        let mut state = self
            .shared
            .state
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        state.waker = Some(cx.waker().clone());
        drop(state);
        // The giver may have come between the look and the waker.
        match self.try_take() {
            Some(result) => Poll::Ready(result),
            None => Poll::Pending,
        }
    }
}
