//! How other threads reach a shard: a queue of messages and a bell.
//!
//! # Order
//!
//! Sending and going to sleep are a store-load pair. The sender pushes, fences,
//! then looks whether the shard is parked; the shard says that it is parked,
//! fences, then looks at the queue. One of them sees the other, so a message is
//! never left lying beside a sleeping shard.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering, fence};

use crossbeam::queue::SegQueue;
use nix::sys::eventfd::{EfdFlags, EventFd};

use crate::shard::{RingAddress, Shard};
use crate::task::TaskId;

/// What one thread tells a shard.
pub(crate) enum Message {
    /// A task there can go on.
    Wake(TaskId),
    /// Anything else.
    Run(Box<dyn FnOnce(&Shard) + Send>),
}

impl std::fmt::Debug for Message {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Wake(id) => write!(f, "Wake({id:?})"),
            Self::Run(_) => write!(f, "Run"),
        }
    }
}

/// One shard's incoming messages.
#[derive(Debug)]
pub(crate) struct Mailbox {
    queue: SegQueue<Message>,
    parked: AtomicBool,
    /// None in the simulation, whose loop looks at every mailbox by itself.
    bell: Option<EventFd>,
    /// Set once the shard's ring exists, if rings can message each other.
    ring: OnceLock<RingAddress>,
}

impl Mailbox {
    pub(crate) fn simulated() -> Self {
        Self {
            queue: SegQueue::new(),
            parked: AtomicBool::new(false),
            bell: None,
            ring: OnceLock::new(),
        }
    }

    pub(crate) fn with_bell() -> nix::Result<Self> {
        let flags = EfdFlags::EFD_CLOEXEC;
        let bell = EventFd::from_value_and_flags(0, flags)?;
        Ok(Self {
            bell: Some(bell),
            ..Self::simulated()
        })
    }

    pub(crate) fn bell(&self) -> Option<&EventFd> {
        self.bell.as_ref()
    }

    pub(crate) fn announce_ring(&self, ring: RingAddress) {
        // A mailbox has one shard and a shard one ring: set once.
        let _ = self.ring.set(ring);
    }

    /// Delivers a message and wakes the shard if it sleeps.
    pub(crate) fn send(&self, message: Message) {
        self.queue.push(message);
        // After the push: see the module's Order.
        fence(Ordering::SeqCst);
        if self.parked.load(Ordering::Relaxed) && self.parked.swap(false, Ordering::Relaxed) {
            self.wake();
        }
    }

    fn wake(&self) {
        let through_ring = self
            .ring
            .get()
            .is_some_and(|&ring| crate::shard::message_ring(ring));
        if !through_ring {
            self.ring_bell();
        }
    }

    /// Wakes the shard by its eventfd.
    pub(crate) fn ring_bell(&self) {
        if let Some(bell) = &self.bell {
            // Fails only when the counter is about to overflow, and then the
            // shard has 2^64 - 2 reasons to wake already.
            let _ = bell.write(1);
        }
    }

    pub(crate) fn pop(&self) -> Option<Message> {
        self.queue.pop()
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.queue.is_empty()
    }

    /// The shard is about to sleep. False: a message came, do not.
    pub(crate) fn park(&self) -> bool {
        self.parked.store(true, Ordering::Relaxed);
        // Before the look at the queue: see the module's Order.
        fence(Ordering::SeqCst);
        if self.queue.is_empty() {
            return true;
        }
        self.parked.store(false, Ordering::Relaxed);
        false
    }

    /// The shard is awake again.
    pub(crate) fn unpark(&self) {
        self.parked.store(false, Ordering::Relaxed);
    }
}
