//! Old data that is saved in memory and still on its way to the target.
//!
//! With a save buffer a guest's change waits until its old data is here, not
//! until the target has it. What is here is read from here; it leaves when the
//! target has it.
//!
//! # Order
//!
//! Old data is kept before its blocks are *saved*, and it goes when its write to
//! the target has ended well. So whoever finds a block *saved* or later, looks
//! here and finds nothing, finds the data on the target.
//!
//! # Room
//!
//! Room is reserved before blocks are claimed. While there is none guests wait.
//! Somebody who finds the buffer empty is let in with any length, so that nothing
//! is too long to be saved. Zeroes take what remembering them takes.
//!
//! # Lingering
//!
//! What comes into an empty buffer stays for a while: a burst of guests' changes is
//! over before its saves compete with it for the machine, and neighbours that come
//! one by one leave together. It leaves when the buffer is half full, after
//! `LINGER_NS`, or when somebody waits for it to leave. From then on what comes leaves as
//! soon as may be, until the buffer is empty again.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use ringback_ring::Shard;

use crate::span::Span;
use crate::sync::{AtomicU64, Ordering, WaitQueue, fence};
use crate::units::in_memory;

/// The most that is taken out at once.
pub(super) const BATCH_MAX: u64 = 1 << 20;
/// Batches on their way to the target at once: up to half of the buffer, and when it
/// is full.
const DRAINERS_MIN: u64 = 4;
const DRAINERS_MAX: u64 = 16;
/// Old data stays for so long while the buffer is not half full.
const LINGER_NS: u64 = 1_000_000_000;
/// What zeroes take of the room, however many they are.
const ZEROES_COST: u64 = 128;

/// What was in a range at the point in time.
#[derive(Clone, Debug)]
pub(super) enum Content {
    Zeroes,
    /// As long as its range.
    Data(Arc<[u8]>),
}

impl Content {
    fn is_data(&self) -> bool {
        matches!(self, Self::Data(_))
    }

    /// The room that `len` bytes of it take.
    fn cost(&self, len: u64) -> u64 {
        match self {
            Self::Zeroes => len.min(ZEROES_COST),
            Self::Data(_) => len,
        }
    }
}

#[derive(Debug)]
struct Entry {
    len: u64,
    content: Content,
    since_ns: u64,
    /// Being written to the target.
    is_leaving: bool,
    /// What a client has discarded of it: to be discarded on the target, too. No two
    /// touch, so that a client who repeats himself costs nothing.
    discarded: Vec<Span>,
}

#[derive(Debug, Default)]
struct Held {
    /// By offset; no two overlap, for no block is saved twice.
    entries: BTreeMap<u64, Entry>,
    /// Entries that are not leaving.
    waiting: usize,
    /// Where the next batch is looked for.
    cursor: u64,
    /// Tasks that take batches out.
    drainers: u64,
}

/// Neighbours that leave together: all of them data, or all of them zeroes.
#[derive(Debug)]
pub(super) struct Batch {
    pub(super) span: Span,
    /// In order; none of zeroes.
    pub(super) parts: Vec<Arc<[u8]>>,
    /// When its oldest part came.
    pub(super) since_ns: u64,
    /// Offsets of its entries.
    entries: Vec<u64>,
}

impl Batch {
    /// What it holds, one part behind the other, into `buf`.
    pub(super) fn copy_to(&self, buf: &mut [u8]) {
        let mut at = 0;
        for part in &self.parts {
            buf[at..at + part.len()].copy_from_slice(part);
            at += part.len();
        }
    }
}

/// What lies at the start of a range.
#[derive(Debug)]
pub(super) enum Piece {
    /// So many bytes, from here.
    Zeroes(u64),
    /// These bytes of the data.
    Data(Arc<[u8]>, std::ops::Range<usize>),
    /// So many bytes that are not here.
    Elsewhere(u64),
}

/// Adds a range to ranges of which no two touch.
fn add(spans: &mut Vec<Span>, mut span: Span) {
    spans.retain(|other| {
        let touches = other.offset <= span.end() && span.offset <= other.end();
        if touches {
            let start = span.offset.min(other.offset);
            span = Span::between(start, span.end().max(other.end()));
        }
        !touches
    });
    spans.push(span);
}

/// Somebody waits for what is in the buffer to leave.
pub(super) struct Hurry<'a>(&'a SaveBuffer);

impl Drop for Hurry<'_> {
    fn drop(&mut self) {
        self.0.hurried.fetch_sub(1, Ordering::SeqCst);
    }
}

#[derive(Debug)]
pub(super) struct SaveBuffer {
    /// Bytes of data; 0: nothing is ever kept.
    limit: u64,
    /// Reserved or held.
    used: AtomicU64,
    /// Woken when there is room, and when there never will be.
    room: WaitQueue,
    /// How many wait for what is here to leave.
    hurried: AtomicU64,
    /// Woken when nothing may linger any more.
    due: WaitQueue,
    /// How many entries there are, for who need not take the lock.
    count: AtomicU64,
    held: Mutex<Held>,
}

impl SaveBuffer {
    pub(super) fn new(limit: u64) -> Self {
        Self {
            limit,
            used: AtomicU64::new(0),
            room: WaitQueue::new(),
            hurried: AtomicU64::new(0),
            due: WaitQueue::new(),
            count: AtomicU64::new(0),
            held: Mutex::default(),
        }
    }

    /// Whether old data is kept at all.
    pub(super) fn is_on(&self) -> bool {
        self.limit > 0
    }

    fn lock(&self) -> MutexGuard<'_, Held> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Bytes of data that are held, or for which there is a reservation.
    pub(super) fn used(&self) -> u64 {
        self.used.load(Ordering::Relaxed)
    }

    pub(super) fn try_reserve(&self, len: u64) -> bool {
        let add = |used: u64| {
            let sum = used.checked_add(len)?;
            (used == 0 || sum <= self.limit).then_some(sum)
        };
        self.used
            .fetch_update(Ordering::SeqCst, Ordering::SeqCst, add)
            .is_ok()
    }

    /// Waits for room. False: the deadline has come, or `is_over`, which is asked
    /// again after each [`SaveBuffer::wake`].
    pub(super) async fn reserve(
        &self,
        shard: &Shard,
        len: u64,
        deadline_ns: Option<u64>,
        is_over: impl Fn() -> bool,
    ) -> bool {
        let _hurry = self.hurry();
        let mut reserved = false;
        let ended = || {
            reserved = self.try_reserve(len);
            reserved || is_over()
        };
        shard.wait(&[&self.room], deadline_ns, ended).await;
        reserved
    }

    /// So many bytes are not needed any more.
    pub(super) fn give_back(&self, len: u64) {
        if len > 0 {
            self.used.fetch_sub(len, Ordering::SeqCst);
            self.wake();
        }
    }

    /// Whoever waits for room looks again, and whoever lingers.
    pub(super) fn wake(&self) {
        fence(Ordering::SeqCst);
        self.room.wake_all();
        self.due.wake_all();
    }

    /// Nothing lingers as long as this is held.
    pub(super) fn hurry(&self) -> Hurry<'_> {
        self.hurried.fetch_add(1, Ordering::SeqCst);
        fence(Ordering::SeqCst);
        self.due.wake_all();
        Hurry(self)
    }

    fn is_half_full(&self) -> bool {
        self.used() >= self.limit / 2
    }

    /// Until something has to leave (see the module's text), or nothing is left to.
    /// `is_over` is asked again after each [`SaveBuffer::wake`].
    pub(super) async fn linger(&self, shard: &Shard, is_over: impl Fn() -> bool) {
        let is_due = || {
            let is_empty = self.count.load(Ordering::Acquire) == 0;
            let is_hurried = self.hurried.load(Ordering::SeqCst) > 0;
            is_empty || is_hurried || self.is_half_full() || is_over()
        };
        let deadline_ns = shard.now_ns() + LINGER_NS;
        shard.wait(&[&self.due], Some(deadline_ns), is_due).await;
    }

    /// Keeps old data, for whose bytes there is a reservation. True: the caller
    /// must see to it that another task takes batches out.
    #[must_use]
    pub(super) fn keep(&self, span: Span, content: Content, now_ns: u64) -> bool {
        let unneeded = span.len - content.cost(span.len);
        let needs_drainer = {
            let mut held = self.lock();
            let entry = Entry {
                len: span.len,
                content,
                since_ns: now_ns,
                is_leaving: false,
                discarded: Vec::new(),
            };
            let before = held.entries.insert(span.offset, entry);
            debug_assert!(before.is_none(), "no block is saved twice");
            held.waiting += 1;
            self.count.fetch_add(1, Ordering::Release);
            let needs_drainer = held.drainers < self.drainers_wanted();
            held.drainers += u64::from(needs_drainer);
            needs_drainer
        };
        self.give_back(unneeded);
        if self.is_half_full() {
            fence(Ordering::SeqCst);
            self.due.wake_all();
        }
        needs_drainer
    }

    /// Gentle while there is room: the target may be the guest's own device. A few up
    /// to the half, so that they share a turn of the ring, then the more the fuller.
    fn drainers_wanted(&self) -> u64 {
        let half = self.limit / 2;
        let above = u128::from(self.used().saturating_sub(half)) * u128::from(DRAINERS_MAX);
        let wanted = above / u128::from((self.limit - half).max(1));
        u64::try_from(wanted).map_or(DRAINERS_MAX, |wanted| {
            wanted.clamp(DRAINERS_MIN, DRAINERS_MAX)
        })
    }

    /// What is at the start of `span`, which is not empty.
    pub(super) fn piece(&self, span: Span) -> Piece {
        // Acquire: whoever saw that a block is saved sees its entry counted.
        if self.count.load(Ordering::Acquire) == 0 {
            return Piece::Elsewhere(span.len);
        }
        let held = self.lock();
        let before = held.entries.range(..=span.offset).next_back();
        if let Some((&offset, entry)) = before
            && offset + entry.len > span.offset
        {
            let len = span.len.min(offset + entry.len - span.offset);
            return match &entry.content {
                Content::Zeroes => Piece::Zeroes(len),
                Content::Data(data) => {
                    let from = in_memory(span.offset - offset);
                    Piece::Data(Arc::clone(data), from..from + in_memory(len))
                }
            };
        }
        let next = held.entries.range(span.offset..span.end()).next();
        Piece::Elsewhere(next.map_or(span.len, |(&offset, _)| offset - span.offset))
    }

    /// A client will not read `span` any more. Answers the parts of it that are
    /// not here, in order: what is here is discarded after it has been written.
    pub(super) fn discard(&self, span: Span) -> Vec<Span> {
        let mut elsewhere = Vec::new();
        let mut held = self.lock();
        let mut from = span.offset;
        let first = held.entries.range(..=span.offset).next_back();
        let first = first.map_or(span.offset, |(&offset, _)| offset);
        for (&offset, entry) in held.entries.range_mut(first..span.end()) {
            let part = Span::new(offset, entry.len).clip(&span);
            if part.is_empty() {
                continue;
            }
            if part.offset > from {
                elsewhere.push(Span::between(from, part.offset));
            }
            add(&mut entry.discarded, part);
            from = part.end();
        }
        if from < span.end() {
            elsewhere.push(Span::between(from, span.end()));
        }
        elsewhere
    }

    /// The next batch to be written, in ascending order over the disk, round and
    /// round. None: the asking task has to end.
    pub(super) fn next_batch(&self) -> Option<Batch> {
        let mut held = self.lock();
        if held.waiting == 0 || held.drainers > self.drainers_wanted() {
            held.drainers -= 1;
            return None;
        }
        let is_waiting = |(_, entry): &(&u64, &Entry)| !entry.is_leaving;
        let ahead = held.entries.range(held.cursor..).find(is_waiting);
        let first = ahead.or_else(|| held.entries.iter().find(is_waiting));
        let (&first, entry) = first.expect("some entry waits");
        let (is_data, mut batch) = (
            entry.content.is_data(),
            Batch {
                span: Span::new(first, 0),
                parts: Vec::new(),
                since_ns: entry.since_ns,
                entries: Vec::new(),
            },
        );
        for (&offset, entry) in held.entries.range_mut(first..) {
            let joins = offset == batch.span.end()
                && !entry.is_leaving
                && entry.content.is_data() == is_data
                && (batch.entries.is_empty() || batch.span.len + entry.len <= BATCH_MAX);
            if !joins {
                break;
            }
            entry.is_leaving = true;
            batch.span.len += entry.len;
            batch.since_ns = batch.since_ns.min(entry.since_ns);
            batch.entries.push(offset);
            if let Content::Data(data) = &entry.content {
                batch.parts.push(Arc::clone(data));
            }
        }
        held.waiting -= batch.entries.len();
        held.cursor = batch.span.end();
        Some(batch)
    }

    /// A batch could not be written, and will be tried again.
    pub(super) fn put_back(&self, batch: &Batch) {
        let mut held = self.lock();
        for offset in &batch.entries {
            let entry = held.entries.get_mut(offset).expect("it was leaving");
            entry.is_leaving = false;
        }
        held.waiting += batch.entries.len();
    }

    /// A batch is on the target, or is given up. Answers what a client has
    /// discarded of it meanwhile.
    pub(super) fn remove(&self, batch: &Batch) -> Vec<Span> {
        let mut discarded = Vec::new();
        let mut bytes = 0;
        {
            let mut held = self.lock();
            for offset in &batch.entries {
                let entry = held.entries.remove(offset).expect("it was leaving");
                discarded.extend(entry.discarded);
                bytes += entry.content.cost(entry.len);
            }
            let entries = batch.entries.len() as u64;
            self.count.fetch_sub(entries, Ordering::Release);
        }
        self.give_back(bytes);
        discarded
    }

    /// What is here, in ascending order.
    pub(super) fn spans(&self) -> Vec<Span> {
        let held = self.lock();
        let entries = held.entries.iter();
        entries
            .map(|(&offset, entry)| Span::new(offset, entry.len))
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use ringback_ring::sim::Sim;

    use super::*;

    const KIB: u64 = 1024;

    fn data(len: u64, byte: u8) -> Content {
        Content::Data(vec![byte; in_memory(len)].into())
    }

    fn keep(buffer: &SaveBuffer, offset: u64, len: u64, byte: u8) -> bool {
        assert!(buffer.try_reserve(len));
        buffer.keep(Span::new(offset, len), data(len, byte), offset)
    }

    #[test]
    fn there_is_room_up_to_the_limit_and_always_for_one() {
        let buffer = SaveBuffer::new(8 * KIB);
        assert!(buffer.try_reserve(4 * KIB));
        assert!(buffer.try_reserve(4 * KIB));
        assert!(!buffer.try_reserve(1));
        buffer.give_back(8 * KIB);
        assert!(buffer.try_reserve(100 * KIB), "nothing else is there");
        assert!(!buffer.try_reserve(1));
    }

    #[test]
    fn zeroes_take_next_to_no_room() {
        let buffer = SaveBuffer::new(8 * KIB);
        assert!(buffer.try_reserve(8 * KIB));
        assert!(buffer.keep(Span::new(0, 8 * KIB), Content::Zeroes, 0));
        assert_eq!(buffer.used(), ZEROES_COST);
        assert!(matches!(
            buffer.piece(Span::new(KIB, 100 * KIB)),
            Piece::Zeroes(len) if len == 7 * KIB
        ));
    }

    #[test]
    fn a_range_is_found_piece_by_piece() {
        let buffer = SaveBuffer::new(64 * KIB);
        let _ = keep(&buffer, 4 * KIB, 4 * KIB, 1);
        let piece = |offset, len| buffer.piece(Span::new(offset, len));
        assert!(matches!(piece(0, 16 * KIB), Piece::Elsewhere(len) if len == 4 * KIB));
        assert!(matches!(piece(0, KIB), Piece::Elsewhere(KIB)));
        assert!(matches!(piece(8 * KIB, KIB), Piece::Elsewhere(KIB)));
        match piece(5 * KIB, 16 * KIB) {
            Piece::Data(data, range) => {
                assert_eq!(range, 1024..4096);
                assert!(data[range].iter().all(|&byte| byte == 1));
            }
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn neighbours_leave_together_and_others_do_not() {
        let buffer = SaveBuffer::new(1 << 20);
        assert!(
            keep(&buffer, 8 * KIB, 4 * KIB, 2),
            "the first needs somebody"
        );
        assert!(keep(&buffer, 4 * KIB, 4 * KIB, 1), "there may be a few");
        assert!(buffer.keep(Span::new(12 * KIB, KIB), Content::Zeroes, 7));
        let batch = buffer.next_batch().expect("three wait");
        assert_eq!(batch.span, Span::new(4 * KIB, 8 * KIB));
        assert_eq!(batch.since_ns, 4 * KIB);
        let mut bytes = vec![0; in_memory(batch.span.len)];
        batch.copy_to(&mut bytes);
        assert!(bytes[..4096].iter().all(|&byte| byte == 1));
        assert!(bytes[4096..].iter().all(|&byte| byte == 2));
        let zeroes = buffer.next_batch().expect("one waits");
        assert_eq!(zeroes.span, Span::new(12 * KIB, KIB));
        assert!(zeroes.parts.is_empty());
        assert!(buffer.next_batch().is_none(), "all are leaving");
        // Still to be read here until they are there.
        assert_eq!(buffer.spans().len(), 3);
        buffer.put_back(&batch);
        assert!(keep(&buffer, 20 * KIB, KIB, 3), "nobody is there any more");
        let again = buffer.next_batch().expect("it waits again");
        assert_eq!(again.span, Span::new(20 * KIB, KIB), "the round goes on");
        let again = buffer.next_batch().expect("and starts anew");
        assert_eq!(again.span, batch.span);
        assert_eq!(buffer.remove(&again), []);
        assert!(matches!(
            buffer.piece(batch.span),
            Piece::Elsewhere(len) if len == batch.span.len
        ));
    }

    #[test]
    fn a_discard_is_carried_out_by_who_writes() {
        let buffer = SaveBuffer::new(1 << 20);
        let _ = keep(&buffer, 4 * KIB, 8 * KIB, 1);
        let batch = buffer.next_batch().expect("it waits");
        let elsewhere = buffer.discard(Span::new(0, 8 * KIB));
        assert_eq!(elsewhere, [Span::new(0, 4 * KIB)]);
        let elsewhere = buffer.discard(Span::new(8 * KIB, 8 * KIB));
        assert_eq!(elsewhere, [Span::new(12 * KIB, 4 * KIB)]);
        assert_eq!(
            buffer.remove(&batch),
            [Span::new(4 * KIB, 8 * KIB)],
            "each byte once"
        );
        assert_eq!(
            buffer.discard(Span::new(0, KIB)),
            [Span::new(0, KIB)],
            "nothing is here"
        );
    }

    /// How long old data stays in a buffer of 16 KiB into which so much comes after
    /// a while, in nanoseconds.
    fn lingered_ns(kept: u64, somebody_waits: bool) -> u64 {
        let mut sim = Sim::new(1, 1);
        let took_ns = sim.shards().spawn_on(0, move |shard| async move {
            let buffer = Arc::new(SaveBuffer::new(16 * KIB));
            let start_ns = shard.now_ns();
            let _ = keep(&buffer, 8 * KIB, 512, 2);
            let leaving = {
                let (buffer, home) = (Arc::clone(&buffer), shard.clone());
                shard.spawn(async move { buffer.linger(&home, || false).await })
            };
            shard.sleep_ns(LINGER_NS / 4).await;
            let _ = keep(&buffer, 0, kept, 1);
            let hurry = somebody_waits.then(|| buffer.hurry());
            leaving.join().await;
            drop(hurry);
            shard.now_ns() - start_ns
        });
        sim.run(&took_ns).expect("it ends")
    }

    #[test]
    fn old_data_stays_until_it_is_due() {
        let at_once = LINGER_NS / 4..LINGER_NS / 2;
        assert!(lingered_ns(7 * KIB, false) >= LINGER_NS);
        assert!(at_once.contains(&lingered_ns(8 * KIB, false)), "half full");
        assert!(at_once.contains(&lingered_ns(KIB, true)), "somebody waits");
    }

    #[test]
    fn the_fuller_the_more_take_out() {
        let buffer = SaveBuffer::new(16 * KIB);
        let mut drainers = 0;
        for index in 0..16 {
            drainers += u64::from(keep(&buffer, 2 * index * KIB, KIB, 1));
        }
        assert_eq!(
            drainers, 10,
            "a few up to the half, then the more the fuller"
        );
        // The emptier, the fewer: the last of them leaves nothing behind.
        while drainers > 0 {
            match buffer.next_batch() {
                Some(batch) => drop(buffer.remove(&batch)),
                None => drainers -= 1,
            }
        }
        assert_eq!(buffer.spans(), []);
    }
}
