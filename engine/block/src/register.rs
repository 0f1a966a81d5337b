//! The register of readers in flight: which ranges are being read, so that who wants to overwrite
//! one can wait for those who read it, and for nobody else.
//!
//! A range is two `u64`; the register does not know of clusters, nor of what is read. Words here
//! are those of copy-before-write: *readers* enter and leave, *writers* scan and wait.
//!
//! # Order
//!
//! Reader and writer share a second thing besides the register, the *gate* (the copy states).
//!
//! | reader | writer |
//! | --- | --- |
//! | [`Register::try_enter`] | close the gate |
//! | fence, inside | fence, inside [`Register::wait_clear`] |
//! | look at the gate; closed: do not read | scan, wait for those found |
//! | read, [`Register::leave`] | write |
//!
//! Of the two fences one comes first. If the reader's does, the scan sees the reader; if the
//! writer's does, the reader sees the gate closed. So neither misses the other. A writer that
//! finds the gate closed by another writer, which may still be waiting, fences and scans too.
//!
//! A writer waits for the readers of one scan. Those who enter later find the gate closed and do
//! not read what is overwritten, so that a stream of new readers cannot hold a writer up.
//!
//! # Who may do what
//!
//! Each shard has slots of its own. Only that shard enters, shrinks and leaves there, one at a
//! time; every shard scans and waits. With no reader anywhere a scan is one load a shard.
//!
//! # Two kinds of writers
//!
//! The register also keeps unaligned read-modify-writes and ordinary writes apart, with two
//! registers, each of which is the gate of the other. A write enters *writes* and asks
//! [`Register::overlapping`] of *widened*; if anybody is there it leaves, waits, and tries again,
//! so that the two never wait for each other. A read-modify-write enters *widened* and waits for
//! *writes*. Read-modify-writes among themselves need an order of their own.
//!
//! # What this file does not do
//!
//! It does not wake by range: a waiter is woken when its reader shrinks, looks, and waits again.
//! It does not notice a reader that never leaves, except that a [`Ticket`] must not be dropped.

use crate::sync::{AtomicU64, CachePadded, Fault, Ordering, WaitQueue, fence, planted};
use std::future::poll_fn;
use std::task::Poll;

/// Slots of a shard, one bit each in its *live* word.
const SLOTS_MAX: usize = 64;

/// Readers in flight, of all shards.
pub struct Register {
    shards: Box<[Shard]>,
}

/// The readers of one shard.
struct Shard {
    /// A bit for each slot in use. Changed by the owner shard, scanned by all; on a cache line of
    /// its own, which stays shared while nobody reads.
    live: CachePadded<AtomicU64>,
    slots: Box<[CachePadded<Slot>]>,
    /// Tasks of the owner shard that wait for a free slot.
    vacancy: WaitQueue,
}

/// One reader, or room for one. Changed by the owner shard only.
struct Slot {
    /// Odd while a reader is in, and one more at each entering and leaving. So a writer that
    /// waits for one reader does not wait for the next one in the same slot.
    generation: AtomicU64,
    /// The range being read. It only shrinks during one generation, so that whatever mixture of
    /// old and new bounds a scan loads, it covers the newer range.
    start: AtomicU64,
    end: AtomicU64,
    /// Writers that wait for this reader.
    waiters: WaitQueue,
}

/// A reader's right to read its range. It must come back through [`Register::leave`].
#[derive(Debug)]
#[must_use = "writers wait until the ticket is given back"]
pub struct Ticket {
    shard: usize,
    slot: usize,
    generation: u64,
}

impl Drop for Ticket {
    fn drop(&mut self) {
        debug_assert!(
            std::thread::panicking(),
            "a dropped ticket keeps writers waiting for ever"
        );
    }
}

/// A reader that a scan found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Reader {
    shard: usize,
    slot: usize,
    generation: u64,
}

impl std::fmt::Debug for Register {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Register")
            .field("shards", &self.shards.len())
            .finish_non_exhaustive()
    }
}

impl Register {
    /// A register for `shards` shards.
    pub fn new(shards: usize) -> Self {
        Self::with_slots(shards, SLOTS_MAX)
    }

    /// A register with fewer slots a shard than there are bits in a word.
    pub fn with_slots(shards: usize, slots: usize) -> Self {
        assert!(
            (1..=SLOTS_MAX).contains(&slots),
            "{slots} slots for a word of {SLOTS_MAX} bits"
        );
        Self {
            shards: (0..shards).map(|_| Shard::new(slots)).collect(),
        }
    }

    /// Enters a reader of `start..end`. Afterwards it looks at the gate, with no fence of its own.
    ///
    /// To be called on `shard` itself. None when all slots are in use; [`Register::enter`] waits.
    pub fn try_enter(&self, shard: usize, start: u64, end: u64) -> Option<Ticket> {
        let home = &self.shards[shard];
        // Relaxed: only this shard, so this thread, stores here.
        let live = home.live.load(Ordering::Relaxed);
        let index = usize::try_from(live.trailing_ones()).expect("at most 64");
        let slot = home.slots.get(index)?;
        let generation = slot.generation.load(Ordering::Relaxed) + 1;
        // Release, all three: a scan that still saw the last reader's bit and finds one of these
        // concludes that this reader has left, and must come after its reads.
        slot.start.store(start, Ordering::Release);
        slot.end.store(end, Ordering::Release);
        slot.generation.store(generation, Ordering::Release);
        // After the bounds: who sees the bit sees them, not those of the last reader.
        let before = home.live.fetch_or(1 << index, Ordering::Release);
        assert!(before == live, "a shard entered a reader for shard {shard}");
        // Before the caller looks at the gate; pairs with the fence of a scan.
        if !planted(Fault::ReaderFenceMissing) {
            fence(Ordering::SeqCst);
        }
        Some(Ticket {
            shard,
            slot: index,
            generation,
        })
    }

    /// Enters a reader of `start..end` as soon as a slot is free. Polled on `shard` only.
    pub async fn enter(&self, shard: usize, start: u64, end: u64) -> Ticket {
        poll_fn(|context| {
            if let Some(ticket) = self.try_enter(shard, start, end) {
                return Poll::Ready(ticket);
            }
            // No second look: slots become free on this very thread.
            self.shards[shard].vacancy.push(context.waker().clone());
            Poll::Pending
        })
        .await
    }

    /// A reader has found out, or read so much, that from now on it reads `start..end` only, a
    /// part of the range before. An empty range is allowed.
    pub fn shrink(&self, ticket: &Ticket, start: u64, end: u64) {
        let slot = &self.shards[ticket.shard].slots[ticket.slot];
        let start_before = slot.start.load(Ordering::Relaxed);
        let end_before = slot.end.load(Ordering::Relaxed);
        if (start, end) == (start_before, end_before) {
            return;
        }
        assert!(
            start_before <= start && start <= end && end <= end_before,
            "{start_before}..{end_before} shrinks to {start}..{end}"
        );
        // Release: what was read of the part given up comes before the writer's write.
        slot.start.store(start, Ordering::Release);
        slot.end.store(end, Ordering::Release);
        slot.wake_waiters();
    }

    /// A reader has read its last byte.
    pub fn leave(&self, ticket: Ticket) {
        let home = &self.shards[ticket.shard];
        let slot = &home.slots[ticket.slot];
        // Release: all that was read comes before the writer's write. Before the bit, so that a
        // scan which still sees the bit finds an even generation.
        slot.generation
            .store(ticket.generation + 1, Ordering::Release);
        // Release, for a scan that does not see the bit any more.
        home.live.fetch_and(!(1 << ticket.slot), Ordering::Release);
        slot.wake_waiters();
        home.vacancy.wake_all();
        std::mem::forget(ticket);
    }

    /// Some reader in flight that overlaps `start..end`. The caller has closed the gate before;
    /// the fence is inside.
    pub fn overlapping(&self, start: u64, end: u64) -> Option<Reader> {
        self.fence_then_scan(start, end).next()
    }

    /// Waits for the readers that overlap `start..end` and are in flight when this is first
    /// polled. The caller has closed the gate before; the fence is inside. With no such reader it
    /// is ready at once and allocates nothing.
    pub async fn wait_clear(&self, start: u64, end: u64) {
        // All of one scan, taken down at once: a second scan would find newcomers.
        let readers: Vec<Reader> = self.fence_then_scan(start, end).collect();
        for reader in readers {
            self.wait_left(reader, start, end).await;
        }
    }

    /// Whether a reader found by a scan has left, or does not overlap `start..end` any more.
    pub fn has_left(&self, reader: Reader, start: u64, end: u64) -> bool {
        let slot = &self.shards[reader.shard].slots[reader.slot];
        // Bounds of a later generation may be taken for this one's. If they do not overlap, this
        // reader has left; if they do, the second look of the wait tells.
        slot.generation.load(Ordering::Acquire) != reader.generation || !slot.overlaps(start, end)
    }

    /// Waits for one reader.
    ///
    /// No wake-up is lost: we push the waker, fence, look; the reader changes its slot, fences,
    /// looks for waiters. Of the two fences one comes first. If ours does, the reader finds the
    /// waker; if the reader's does, we find the change.
    async fn wait_left(&self, reader: Reader, start: u64, end: u64) {
        let waiters = &self.shards[reader.shard].slots[reader.slot].waiters;
        poll_fn(|context| {
            if self.has_left(reader, start, end) {
                return Poll::Ready(());
            }
            // Anew at each poll: whoever woke us has taken the waker out of the queue.
            waiters.push(context.waker().clone());
            if !planted(Fault::WaitFenceMissing) {
                fence(Ordering::SeqCst);
            }
            if !planted(Fault::WaitSecondLookMissing) && self.has_left(reader, start, end) {
                return Poll::Ready(());
            }
            Poll::Pending
        })
        .await;
    }

    /// All readers in flight that overlap `start..end`, lazily.
    fn fence_then_scan(&self, start: u64, end: u64) -> impl Iterator<Item = Reader> {
        // After the caller has closed the gate, or has seen it closed; pairs with the fence of a
        // reader that enters.
        if !planted(Fault::WriterFenceMissing) {
            fence(Ordering::SeqCst);
        }
        self.shards
            .iter()
            .enumerate()
            .flat_map(move |(index, shard)| {
                shard
                    .scan(start, end)
                    .map(move |(slot, generation)| Reader {
                        shard: index,
                        slot,
                        generation,
                    })
            })
    }
}

impl Shard {
    fn new(slots: usize) -> Self {
        Self {
            live: CachePadded::new(AtomicU64::new(0)),
            slots: (0..slots).map(|_| CachePadded::new(Slot::new())).collect(),
            vacancy: WaitQueue::new(),
        }
    }

    /// Slot and generation of the readers that overlap `start..end`.
    fn scan(&self, start: u64, end: u64) -> impl Iterator<Item = (usize, u64)> {
        // Acquire: who is not here any more has read its last byte before we go on to write.
        let mut live = self.live.load(Ordering::Acquire);
        let indices = std::iter::from_fn(move || {
            let index = usize::try_from(live.trailing_zeros()).expect("at most 64");
            live &= live.wrapping_sub(1);
            (index < SLOTS_MAX).then_some(index)
        });
        indices.filter_map(move |index| {
            let slot = &self.slots[index];
            // Before the bounds: if a newcomer has taken the slot since, these can only be too
            // new for the generation, which `has_left` allows for.
            let generation = slot.generation.load(Ordering::Acquire);
            let is_in = generation % 2 == 1;
            (is_in && slot.overlaps(start, end)).then_some((index, generation))
        })
    }
}

impl Slot {
    fn new() -> Self {
        Self {
            generation: AtomicU64::new(0),
            start: AtomicU64::new(0),
            end: AtomicU64::new(0),
            waiters: WaitQueue::new(),
        }
    }

    fn overlaps(&self, start: u64, end: u64) -> bool {
        // Acquire: bounds that do not overlap say that the reader has read what did.
        let from = self.start.load(Ordering::Acquire).max(start);
        let to = self.end.load(Ordering::Acquire).min(end);
        from < to
    }

    /// Wakes the writers that wait here, after the slot has changed.
    fn wake_waiters(&self) {
        // Between the change and the look at the queue; pairs with the fence of a waiter.
        if !planted(Fault::LeaveFenceMissing) {
            fence(Ordering::SeqCst);
        }
        self.waiters.wake_all();
    }
}
