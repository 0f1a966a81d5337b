//! Tasks of one shard: the slab they live in, the queue of those that can go
//! on, and the wakers that put them there.
//!
//! # Wakers
//!
//! A waker is a number, not a pointer: shard, generation and slab index packed
//! into the waker's data word. Cloning and dropping it cost nothing, and a
//! waker that outlives its task wakes at worst a stranger, which every future
//! here tolerates (a wake-up means "look again"). A wake-up on the task's own
//! shard pushes an index; from another thread it becomes a message.
//!
//! # Ownership
//!
//! A future is taken out of its slot while it is polled, so that it may spawn
//! and wake tasks, itself included, without a double borrow.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll, RawWaker, RawWakerVTable, Waker};

use crate::shard;

/// A future that stays on one shard.
pub(crate) type LocalFuture = Pin<Box<dyn Future<Output = ()>>>;

/// Which task of which shard; fits a waker's data word.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct TaskId(u64);

impl TaskId {
    fn new(shard: u16, generation: u16, index: u32) -> Self {
        Self(u64::from(shard) << 48 | u64::from(generation) << 32 | u64::from(index))
    }

    /// The shard's number in the process-wide registry.
    pub(crate) fn shard(self) -> u16 {
        (self.0 >> 48) as u16
    }

    #[expect(clippy::cast_possible_truncation, reason = "the field has 16 bits")]
    fn generation(self) -> u16 {
        (self.0 >> 32) as u16
    }

    #[expect(clippy::cast_possible_truncation, reason = "the field has 32 bits")]
    fn index(self) -> u32 {
        self.0 as u32
    }
}

struct Slot {
    /// Moves on whenever the slot's task ends, so that old wakers miss.
    generation: u16,
    /// In the ready queue already.
    queued: bool,
    /// A task lives here, though its future may be out for polling.
    occupied: bool,
    future: Option<LocalFuture>,
}

/// The tasks of one shard.
pub(crate) struct Tasks {
    shard: u16,
    slots: RefCell<Vec<Slot>>,
    free: RefCell<Vec<u32>>,
    ready: RefCell<VecDeque<u32>>,
    live: Cell<usize>,
}

impl Tasks {
    pub(crate) fn new(shard: u16) -> Self {
        Self {
            shard,
            slots: RefCell::default(),
            free: RefCell::default(),
            ready: RefCell::default(),
            live: Cell::new(0),
        }
    }

    /// Takes a future in and makes it ready.
    pub(crate) fn spawn(&self, future: LocalFuture) {
        let index = self.vacant_index();
        {
            let mut slots = self.slots.borrow_mut();
            let slot = &mut slots[index as usize];
            slot.future = Some(future);
            slot.occupied = true;
            slot.queued = true;
        }
        self.ready.borrow_mut().push_back(index);
        self.live.set(self.live.get() + 1);
    }

    fn vacant_index(&self) -> u32 {
        if let Some(index) = self.free.borrow_mut().pop() {
            return index;
        }
        let mut slots = self.slots.borrow_mut();
        let index = u32::try_from(slots.len()).expect("fewer than 2^32 tasks on a shard");
        slots.push(Slot {
            generation: 0,
            queued: false,
            occupied: false,
            future: None,
        });
        index
    }

    /// Puts a task on the ready queue, unless it is there or gone.
    pub(crate) fn wake(&self, id: TaskId) {
        let mut slots = self.slots.borrow_mut();
        let Some(slot) = slots.get_mut(id.index() as usize) else {
            return;
        };
        if slot.generation == id.generation() && slot.occupied && !slot.queued {
            slot.queued = true;
            self.ready.borrow_mut().push_back(id.index());
        }
    }

    /// How many tasks can go on now.
    pub(crate) fn ready_count(&self) -> usize {
        self.ready.borrow().len()
    }

    /// How many tasks there are.
    pub(crate) fn live_count(&self) -> usize {
        self.live.get()
    }

    /// Polls one ready task: the first, or the one that `choose` picks among
    /// `ready_count()`. False if none was ready.
    pub(crate) fn poll_one(&self, choose: impl FnOnce(usize) -> usize) -> bool {
        let Some(index) = self.pop_ready(choose) else {
            return false;
        };
        let (id, future) = {
            let mut slots = self.slots.borrow_mut();
            let slot = &mut slots[index as usize];
            slot.queued = false;
            (
                TaskId::new(self.shard, slot.generation, index),
                slot.future.take(),
            )
        };
        let mut future = future.expect("a queued slot holds its future");
        let waker = waker(id);
        match future.as_mut().poll(&mut Context::from_waker(&waker)) {
            Poll::Pending => self.slots.borrow_mut()[index as usize].future = Some(future),
            Poll::Ready(()) => {
                // Dropped before the slot is given back: a destructor may spawn.
                drop(future);
                self.vacate(index);
            }
        }
        true
    }

    fn pop_ready(&self, choose: impl FnOnce(usize) -> usize) -> Option<u32> {
        let mut ready = self.ready.borrow_mut();
        match ready.len() {
            0 => None,
            1 => ready.pop_front(),
            count => {
                let chosen = choose(count);
                ready.swap(0, chosen);
                ready.pop_front()
            }
        }
    }

    fn vacate(&self, index: u32) {
        let mut slots = self.slots.borrow_mut();
        let slot = &mut slots[index as usize];
        slot.generation = slot.generation.wrapping_add(1);
        slot.occupied = false;
        if slot.queued {
            // It woke itself and then ended: it must not be polled again.
            slot.queued = false;
            self.ready.borrow_mut().retain(|&other| other != index);
        }
        self.free.borrow_mut().push(index);
        self.live.set(self.live.get() - 1);
    }

    /// Drops every task: shard teardown, and the power cut of the simulation.
    pub(crate) fn clear(&self) {
        let slots = std::mem::take(&mut *self.slots.borrow_mut());
        self.ready.borrow_mut().clear();
        self.free.borrow_mut().clear();
        self.live.set(0);
        drop(slots);
    }
}

static VTABLE: RawWakerVTable = RawWakerVTable::new(clone, wake, wake, |_| {});

fn clone(data: *const ()) -> RawWaker {
    RawWaker::new(data, &VTABLE)
}

fn wake(data: *const ()) {
    shard::wake_task(TaskId(data.addr() as u64));
}

#[expect(unsafe_code, reason = "wakers are made from a data word and a table")]
fn waker(id: TaskId) -> Waker {
    let word = usize::try_from(id.0).expect("ringback runs on 64-bit machines");
    let raw = RawWaker::new(std::ptr::without_provenance(word), &VTABLE);
    // SAFETY: the contract of RawWaker asks that the table's functions treat
    // the data word consistently and from any thread. This file's never
    // dereference it; `wake_task` looks the number up and tolerates strangers.
    unsafe { Waker::from_raw(raw) }
}
