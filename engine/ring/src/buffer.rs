//! Aligned memory for I/O: one arena a shard, grown slab by slab.
//!
//! A slab is registered with the shard's ring when it is made, so that a copy
//! is a fixed read and a fixed write on one buffer. Inside a slab a buddy tree
//! gives out blocks of a power of two; what is larger than a slab, and what a
//! ring refused to register (the locked-memory limit), is ordinary memory, and
//! I/O on it takes the ordinary opcodes.
//!
//! # Limit
//!
//! Slabs never take more than the limit, nor do buffers larger than a slab
//! among themselves; only [`Arena::take_now`] goes beyond. [`Arena::take`] waits in line for
//! memory to come back; first come, first served, so that a large request is
//! not starved by small ones.
//!
//! # Ownership
//!
//! A [`Buf`] owns its block alone. An operation in flight owns its `Buf`, so
//! nobody can touch memory that the kernel may still write.

#![expect(unsafe_code, reason = "raw memory is carved here and nowhere else")]

use std::alloc::{Layout, alloc_zeroed, dealloc};
use std::cell::{Cell, RefCell};
use std::ops::{Deref, DerefMut};
use std::ptr::NonNull;
use std::rc::Rc;

use crate::wait_queue::LocalQueue;

/// Alignment of every buffer, and the smallest block. No device asks for more.
pub const BUFFER_ALIGNMENT: usize = 4096;
/// Largest buffer that comes from a registered slab.
pub const SLAB_BYTES: usize = 4 << 20;

const ORDERS: usize = (SLAB_BYTES / BUFFER_ALIGNMENT).ilog2() as usize + 1;

/// Zeroed memory of its own, freed when dropped.
struct Memory {
    start: NonNull<u8>,
    layout: Layout,
}

impl Memory {
    /// None if the system refuses.
    fn zeroed(len: usize) -> Option<Self> {
        let layout = Layout::from_size_align(len, BUFFER_ALIGNMENT).ok()?;
        // SAFETY: every caller asks for at least one block, so the layout's
        // size is not zero.
        let start = unsafe { alloc_zeroed(layout) };
        NonNull::new(start).map(|start| Self { start, layout })
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        // SAFETY: `start` came from `alloc_zeroed` with this very layout and
        // `Memory` has no copies. Blocks refer to it only through the `Rc` of
        // their arena or by owning it, so none is left.
        unsafe { dealloc(self.start.as_ptr(), self.layout) }
    }
}

/// Which blocks of a slab are free: a binary tree in an array, where a node
/// holds the order of the largest free block below it, plus one (zero: none).
struct Buddies {
    largest: Vec<u8>,
}

impl Buddies {
    fn all_free() -> Self {
        let mut largest = vec![0; (1 << ORDERS) - 1];
        for (index, slot) in largest.iter_mut().enumerate() {
            let depth = (index + 1).ilog2() as usize;
            *slot = u8::try_from(ORDERS - depth).expect("fewer than 256 orders");
        }
        Self { largest }
    }

    /// Block number, counted in blocks of that order.
    fn take(&mut self, order: usize) -> Option<usize> {
        let wanted = u8::try_from(order + 1).ok()?;
        if self.largest[0] < wanted {
            return None;
        }
        let mut node = 0;
        let depth = ORDERS - 1 - order;
        for _ in 0..depth {
            let left = 2 * node + 1;
            // The tighter half first, so that large blocks stay whole.
            let (a, b) = (self.largest[left], self.largest[left + 1]);
            let left_fits = a >= wanted && (b < wanted || a <= b);
            node = if left_fits { left } else { left + 1 };
        }
        self.largest[node] = 0;
        self.update_above(node);
        Some(node + 1 - (1 << depth))
    }

    fn give_back(&mut self, order: usize, block: usize) {
        let depth = ORDERS - 1 - order;
        let node = block + (1 << depth) - 1;
        assert_eq!(self.largest[node], 0, "a block is given back once");
        self.largest[node] = u8::try_from(order + 1).expect("fewer than 256 orders");
        self.update_above(node);
    }

    fn update_above(&mut self, mut node: usize) {
        while node > 0 {
            node = (node - 1) / 2;
            let order_plus_one = ORDERS - (node + 1).ilog2() as usize;
            let (a, b) = (self.largest[2 * node + 1], self.largest[2 * node + 2]);
            let halves_whole = usize::from(a) == order_plus_one - 1 && a == b;
            self.largest[node] = if halves_whole { a + 1 } else { a.max(b) };
        }
    }
}

struct Slab {
    memory: Memory,
    buddies: Buddies,
    /// Its index in the ring's table of registered buffers.
    registered: Option<u16>,
}

/// Registers memory with the shard's ring; None if the ring refuses.
type Register = Box<dyn Fn(NonNull<u8>, usize) -> Option<u16>>;

struct ArenaInner {
    slabs: RefCell<Vec<Slab>>,
    waiting: LocalQueue,
    /// Tasks in the line, and the one whose turn it is.
    line_end: Cell<u64>,
    line_head: Cell<u64>,
    /// Held in slabs, and in buffers of their own.
    slab_bytes: Cell<usize>,
    alone_bytes: Cell<usize>,
    limit: usize,
    register: RefCell<Option<Register>>,
}

/// The buffers of one shard.
#[derive(Clone)]
pub struct Arena {
    inner: Rc<ArenaInner>,
}

impl Arena {
    /// An arena that may grow to `limit` bytes; at least one slab.
    pub(crate) fn new(limit: usize) -> Self {
        Self {
            inner: Rc::new(ArenaInner {
                slabs: RefCell::default(),
                waiting: LocalQueue::new(),
                line_end: Cell::new(0),
                line_head: Cell::new(0),
                slab_bytes: Cell::new(0),
                alone_bytes: Cell::new(0),
                limit: limit.max(SLAB_BYTES),
                register: RefCell::new(None),
            }),
        }
    }

    /// From here on new slabs are registered by `register`.
    pub(crate) fn register_with(&self, register: Register) {
        *self.inner.register.borrow_mut() = Some(register);
    }

    /// The most that this arena will hold, in bytes.
    pub fn limit(&self) -> usize {
        self.inner.limit
    }

    /// A zero-filled-or-stale buffer of `len` bytes (at least 1), after a wait
    /// if the arena is used up. The content is initialised but unspecified.
    pub async fn take(&self, len: usize) -> Buf {
        let inner = &self.inner;
        if inner.line_head.get() == inner.line_end.get()
            && let Some(buf) = self.try_take(len)
        {
            return buf;
        }
        let turn = inner.line_end.get();
        inner.line_end.set(turn + 1);
        let mut taken = None;
        inner
            .waiting
            .wait_until(|| {
                if inner.line_head.get() == turn {
                    taken = self.try_take(len);
                }
                taken.is_some()
            })
            .await;
        inner.line_head.set(turn + 1);
        inner.waiting.wake_all();
        taken.expect("the wait ends when there is a buffer")
    }

    /// A buffer at once, beyond the limit if need be: for who already holds a
    /// buffer and would otherwise wait for those who wait for it. What is
    /// beyond the limit is bounded by the requests in flight, and freed with
    /// its buffer.
    ///
    /// # Panics
    ///
    /// If the system has no memory left.
    pub fn take_now(&self, len: usize) -> Buf {
        self.try_take(len)
            .or_else(|| self.take_alone(len))
            .expect("the system has memory for a request in flight")
    }

    /// A buffer if there is memory for it now.
    pub fn try_take(&self, len: usize) -> Option<Buf> {
        assert!(len > 0, "a buffer holds at least one byte");
        if len > SLAB_BYTES {
            return self.try_take_alone(len);
        }
        let order = order_of(len);
        if let Some(buf) = self.take_from_slabs(order, len) {
            return Some(buf);
        }
        self.grow()?;
        self.take_from_slabs(order, len)
    }

    fn take_from_slabs(&self, order: usize, len: usize) -> Option<Buf> {
        let mut slabs = self.inner.slabs.borrow_mut();
        slabs.iter_mut().enumerate().find_map(|(slab, entry)| {
            let block = entry.buddies.take(order)?;
            let offset = block * (BUFFER_ALIGNMENT << order);
            // SAFETY: `Buddies` hands out block numbers whose bytes lie inside
            // the slab, so the offset stays within the allocation.
            let start = unsafe { entry.memory.start.add(offset) };
            let home = Home::Slab {
                arena: Rc::clone(&self.inner),
                slab,
                order,
                block,
            };
            let registered = entry.registered;
            Some(Buf {
                start,
                len,
                capacity: BUFFER_ALIGNMENT << order,
                registered,
                home,
            })
        })
    }

    fn grow(&self) -> Option<()> {
        let inner = &self.inner;
        if inner.slab_bytes.get() + SLAB_BYTES > inner.limit {
            return None;
        }
        let memory = Memory::zeroed(SLAB_BYTES)?;
        let registered = inner
            .register
            .borrow()
            .as_ref()
            .and_then(|register| register(memory.start, SLAB_BYTES));
        let slab = Slab {
            memory,
            buddies: Buddies::all_free(),
            registered,
        };
        inner.slabs.borrow_mut().push(slab);
        inner.slab_bytes.set(inner.slab_bytes.get() + SLAB_BYTES);
        Some(())
    }

    /// Larger than a slab: memory of its own. Such buffers have a limit of the
    /// same size among themselves, and the first is granted however large.
    fn try_take_alone(&self, len: usize) -> Option<Buf> {
        let inner = &self.inner;
        let capacity = len.checked_next_multiple_of(BUFFER_ALIGNMENT)?;
        let alone = inner.alone_bytes.get();
        if alone > 0 && alone + capacity > inner.limit {
            return None;
        }
        self.take_alone(len)
    }

    fn take_alone(&self, len: usize) -> Option<Buf> {
        let inner = &self.inner;
        let capacity = len.checked_next_multiple_of(BUFFER_ALIGNMENT)?;
        let memory = Memory::zeroed(capacity)?;
        inner.alone_bytes.set(inner.alone_bytes.get() + capacity);
        let start = memory.start;
        let home = Home::Alone {
            arena: Rc::clone(inner),
            _memory: memory,
        };
        Some(Buf {
            start,
            len,
            capacity,
            registered: None,
            home,
        })
    }

    /// Bytes held from the system.
    pub fn bytes(&self) -> usize {
        self.inner.slab_bytes.get() + self.inner.alone_bytes.get()
    }
}

fn order_of(len: usize) -> usize {
    len.div_ceil(BUFFER_ALIGNMENT).next_power_of_two().ilog2() as usize
}

enum Home {
    Slab {
        arena: Rc<ArenaInner>,
        slab: usize,
        order: usize,
        block: usize,
    },
    Alone {
        arena: Rc<ArenaInner>,
        _memory: Memory,
    },
}

/// One buffer: aligned to [`BUFFER_ALIGNMENT`], owned, returned to its arena
/// when dropped.
pub struct Buf {
    start: NonNull<u8>,
    len: usize,
    capacity: usize,
    registered: Option<u16>,
    home: Home,
}

impl Buf {
    /// Changes the length, up to the capacity that the buffer came with.
    pub fn set_len(&mut self, len: usize) {
        assert!(
            len <= self.capacity,
            "{len} bytes do not fit in {}",
            self.capacity
        );
        self.len = len;
    }

    /// Bytes that [`Buf::set_len`] may reach.
    pub fn capacity(&self) -> usize {
        self.capacity
    }

    /// The index of its slab in the ring's table of registered buffers.
    pub(crate) fn registered(&self) -> Option<u16> {
        self.registered
    }
}

impl Deref for Buf {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        // SAFETY: the block is `capacity >= len` bytes long, was zeroed when it
        // was allocated, belongs to this `Buf` alone until `drop`, and the
        // kernel writes into it only while an operation owns the `Buf`.
        unsafe { std::slice::from_raw_parts(self.start.as_ptr(), self.len) }
    }
}

impl DerefMut for Buf {
    fn deref_mut(&mut self) -> &mut [u8] {
        // SAFETY: as in `deref`, and `&mut self` excludes other references.
        unsafe { std::slice::from_raw_parts_mut(self.start.as_ptr(), self.len) }
    }
}

impl std::fmt::Debug for Buf {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Buf")
            .field("len", &self.len)
            .field("capacity", &self.capacity)
            .field("registered", &self.registered)
            .finish_non_exhaustive()
    }
}

impl Drop for Buf {
    fn drop(&mut self) {
        let arena = match &self.home {
            Home::Slab {
                arena,
                slab,
                order,
                block,
            } => {
                arena.slabs.borrow_mut()[*slab]
                    .buddies
                    .give_back(*order, *block);
                arena
            }
            Home::Alone { arena, .. } => {
                arena
                    .alone_bytes
                    .set(arena.alone_bytes.get() - self.capacity);
                arena
            }
        };
        arena.waiting.wake_all();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buffers_are_aligned_disjoint_and_come_back() {
        let arena = Arena::new(SLAB_BYTES);
        let sizes = [1, 4096, 5000, 65536, 1 << 20, 512, 300_000];
        for _ in 0..3 {
            let mut bufs: Vec<Buf> = sizes
                .iter()
                .map(|&len| arena.try_take(len).expect("room"))
                .collect();
            for (tag, buf) in (1..).zip(&mut bufs) {
                assert_eq!(buf.as_ptr().addr() % BUFFER_ALIGNMENT, 0);
                buf.fill(tag);
            }
            for (tag, buf) in (1..).zip(&bufs) {
                assert!(
                    buf.iter().all(|&byte| byte == tag),
                    "buffer {tag} was overwritten"
                );
            }
        }
        assert!(
            arena.try_take(SLAB_BYTES).is_some(),
            "everything merged again"
        );
    }

    #[test]
    fn a_full_arena_refuses_and_recovers() {
        let arena = Arena::new(SLAB_BYTES);
        let all: Vec<Buf> = std::iter::from_fn(|| arena.try_take(1 << 20)).collect();
        assert_eq!(all.len(), 4);
        assert!(arena.try_take(1).is_none());
        drop(all);
        assert!(arena.try_take(SLAB_BYTES).is_some());
    }

    #[test]
    fn larger_than_a_slab_is_granted_alone() {
        let arena = Arena::new(SLAB_BYTES);
        let large = arena.try_take(3 * SLAB_BYTES).expect("nothing else is out");
        assert_eq!(
            arena.take_now(5000).len(),
            5000,
            "nested requests never wait"
        );
        assert_eq!(large.len(), 3 * SLAB_BYTES);
        assert!(arena.try_take(2 * SLAB_BYTES).is_none(), "one at a time");
        assert!(arena.try_take(1).is_some(), "slabs are counted apart");
        drop(large);
        assert!(arena.try_take(2 * SLAB_BYTES).is_some());
    }
}
