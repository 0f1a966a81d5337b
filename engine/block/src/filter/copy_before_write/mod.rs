//! copy-before-write: the first change of a place saves what was there.
//!
//! From the instant at which the filter is put above a disk, a reader can see
//! the disk as it was then: what the guest has not touched is read from the
//! disk, what it has is read from the target. Three kinds of work meet on the
//! same copy states ([`cells`]): guest changes, snapshot reads
//! ([`crate::filter::snapshot_access`]) and the block-copy pool of a job
//! ([`crate::copy`]).
//!
//! # The way of a guest's change
//!
//! 1. Are all its blocks *passed* or *lost*? Then nothing is left to do: one
//!    load.
//! 2. *Secure*: what is untouched is claimed and saved, what somebody else is
//!    saving is waited for.
//! 3. *Close*: each block is swung to *closing*, then readers of the source
//!    that overlap these blocks are waited for, then the blocks are
//!    *passed*. (The order is what makes it safe: see [`crate::register`].)
//! 4. The change goes down.
//!
//! A save runs as a task of its own, so that a wait can time out while the I/O
//! goes on (C6), and the cell stays *saving* until that I/O has ended.
//!
//! # Clusters and blocks
//!
//! A *cluster* is what a job copies, what a client can discard and what queries
//! count; QEMU's rules say how large it is. A *block* is what is saved for a
//! guest's change and has a copy state of its own: as small as the target can take
//! it, so that a guest waits for little more than what it overwrites.
//!
//! # Saving into memory
//!
//! With a save buffer (`save_buffer.rs`) old data counts as saved once it is in
//! memory; `drain.rs` brings it to the target. It stays *claimed* until it is
//! there, so that a job does not end before.
//!
//! # What breaks
//!
//! With `break-guest-write` a failed save fails the guest's change and gives
//! the block back. With `break-snapshot` the snapshot is marked *broken*
//! before the change is let through, and from then on nobody saves anything.

pub mod cells;
#[cfg(test)]
mod cells_tests;
mod drain;
mod options;
mod save_buffer;
#[cfg(test)]
mod stress_tests;

use std::sync::Arc;
use std::sync::atomic::AtomicI32;

use arc_swap::{ArcSwap, ArcSwapOption};
use ringback_ring::shard::Task;
use ringback_ring::{Buf, Errno, IoResult, Shard};

use crate::bitmap::DirtyBitmap;
use crate::copy::Progress;
use crate::copy::chunk::{self, Chunk, Copier};
use crate::copy::control::Control;
use crate::copy::guest::GuestWatch;
use crate::metrics::{Class, Metrics};
use crate::path::Path;
use crate::planted::{self, Fault};
use crate::register::{Register, Ticket};
use crate::span::Span;
use crate::sync::{AtomicU64, Ordering, WaitQueue, fence};
use cells::{Cells, Close, Discarded, Settled, State};
pub use options::{
    BLOCK_SIZE_MIN, CLUSTER_SIZE_DEFAULT, CLUSTER_SIZE_MAX, CbwError, OnCbwError, Options,
    SAVE_BUFFER_DEFAULT, Scope,
};
use save_buffer::SaveBuffer;

/// Waiters for saves are spread over this many queues by block.
const SAVE_QUEUES: u64 = 64;

/// How far is looked at once for what lies where: a guest waits for what is
/// registered, no longer than need be.
pub(crate) const EXTENT_MAX: u64 = 4 << 20;

/// How long it is waited for saves that may never end.
const BRIEFLY_NS: u64 = 1_000_000_000;

/// A change of many blocks is handled in slices of about this many bytes, so
/// that it neither keeps a shard for long nor needs much memory at once.
const SLICE_BYTES: u64 = 16 << 20;

/// The filter's state, shared by all shards.
pub struct CopyBeforeWrite {
    // Fixed.
    size: u64,
    cluster_size: u64,
    block_size: u64,
    options: Options,
    /// The disk below the filter.
    source: ArcSwap<Path>,
    /// Where old data goes. Paths are exchanged when what is on them changes.
    target: ArcSwap<Path>,
    // Shared by all shards, lock-free.
    cells: Cells,
    /// What a fleecing client may read; guest changes do not touch it.
    access: DirtyBitmap,
    /// Snapshot reads that read the source.
    readers: Register,
    /// Who waits for a save, by block.
    saves: Box<[WaitQueue]>,
    /// Old data on its way to the target.
    buffer: SaveBuffer,
    /// Errno of the save that broke the snapshot, or 0.
    broken: AtomicI32,
    /// Woken when the snapshot breaks, and when nothing is claimed any more.
    settled: WaitQueue,
    /// Bytes claimed and not yet settled.
    claimed: AtomicU64,
    /// Bytes published, by whomever.
    copied: AtomicU64,
    /// Of the job that works with the filter, which must stay where it is; it decides
    /// what becomes of a target that fails.
    job: ArcSwapOption<Control>,
    /// How long guests' requests take below the filter.
    guests: Arc<GuestWatch>,
}

impl std::fmt::Debug for CopyBeforeWrite {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("CopyBeforeWrite")
            .field("size", &self.size)
            .field("cluster_size", &self.cluster_size)
            .field("block_size", &self.block_size)
            .field("options", &self.options)
            .finish_non_exhaustive()
    }
}

/// A snapshot read that holds its range on the source, until dropped.
pub(crate) struct Reading<'a> {
    register: &'a Register,
    ticket: Option<Ticket>,
}

impl Reading<'_> {
    /// From now on only a part of the range is read from the source.
    pub(crate) fn shrink(&self, span: Span) {
        if let Some(ticket) = &self.ticket {
            self.register.shrink(ticket, span.offset, span.end());
        }
    }
}

impl Drop for Reading<'_> {
    fn drop(&mut self) {
        if let Some(ticket) = self.ticket.take() {
            self.register.leave(ticket);
        }
    }
}

/// The filter's three bitmaps as queries show them, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Counts {
    /// Still to be saved.
    pub copy: u64,
    /// Overwritten, or about to be: *passed* or *lost*.
    pub done: u64,
    /// Readable for a fleecing client.
    pub access: u64,
}

impl CopyBeforeWrite {
    /// A filter whose point in time is the moment at which it is put above
    /// `source`.
    ///
    /// # Errors
    ///
    /// [`CbwError`].
    pub fn new(
        shards: usize,
        source: Path,
        target: Path,
        scope: Scope<'_>,
        options: Options,
    ) -> Result<Self, CbwError> {
        let size = source.size();
        if target.size() < size {
            return Err(CbwError::Sizes {
                source_size: size,
                target_size: target.size(),
            });
        }
        let cluster_size = options.cluster_size()?;
        let block_size = options.block_size(cluster_size, size);
        let blocks = size.div_ceil(block_size);
        let no_memory = CbwError::Memory { blocks };
        let access = DirtyBitmap::new(size, cluster_size, shards)?;
        let cells = match scope {
            Scope::Everything => {
                access.mark_all(0);
                Cells::new(blocks).ok_or(no_memory)?
            }
            Scope::Snapshot(bitmap) | Scope::Saved(bitmap) => {
                access.merge_from(0, bitmap)?;
                let mut cells = Cells::new_unwanted(blocks).ok_or(no_memory)?;
                for area in access.areas() {
                    let end = (area.offset + area.len).div_ceil(block_size);
                    cells.set_untouched_range(area.offset / block_size, end);
                }
                cells
            }
        };
        if matches!(scope, Scope::Saved(_)) {
            access.mark_all(0);
        }
        let saves = (0..SAVE_QUEUES).map(|_| WaitQueue::new()).collect();
        let (readers, broken) = (Register::new(shards), AtomicI32::new(0));
        let has_buffer =
            options.on_cbw_error == OnCbwError::BreakSnapshot && !options.target_shows_source;
        Ok(Self {
            size,
            cluster_size,
            block_size,
            options,
            source: ArcSwap::from_pointee(source),
            target: ArcSwap::from_pointee(target),
            cells,
            access,
            readers,
            saves,
            buffer: SaveBuffer::new(if has_buffer { options.save_buffer } else { 0 }),
            broken,
            settled: WaitQueue::new(),
            claimed: AtomicU64::new(0),
            copied: AtomicU64::new(0),
            job: ArcSwapOption::empty(),
            guests: Arc::new(GuestWatch::new(shards)),
        })
    }

    /// Size of the disk in bytes.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// Unit of copying in bytes.
    pub fn cluster_size(&self) -> u64 {
        self.cluster_size
    }

    /// Unit of what is saved for guests, and of the copy states, in bytes.
    pub fn block_size(&self) -> u64 {
        self.block_size
    }

    /// Whether it was made for a target that shows the disk below.
    pub(crate) fn target_shows_source(&self) -> bool {
        self.options.target_shows_source
    }

    /// Bytes of old data that are in memory, or for which there is room reserved.
    pub fn buffered_bytes(&self) -> u64 {
        self.buffer.used()
    }

    /// Whether it is of no concern what other processes write to the disk.
    pub(crate) fn shares_writes(&self) -> bool {
        self.options.shares_writes
    }

    /// The disk below the filter, as it is now.
    pub(crate) fn source(&self) -> Arc<Path> {
        self.source.load_full()
    }

    /// Where old data goes.
    pub(crate) fn target(&self) -> Arc<Path> {
        self.target.load_full()
    }

    /// Other ways to the same disks. What is in flight ends on the old ones.
    pub(crate) fn set_paths(&self, source: Path, target: Path) {
        self.source.store(Arc::new(source));
        self.target.store(Arc::new(target));
    }

    /// From the disk to where its old data goes.
    pub(crate) fn copier(&self) -> Copier {
        let compress = self.options.compress;
        let piece_max = if compress {
            chunk::BYTES_MAX.max(self.options.target_cluster_size)
        } else {
            chunk::BYTES_MAX
        };
        Copier {
            source: self.source(),
            target: self.target(),
            compress,
            piece_max,
        }
    }

    pub(crate) fn cells(&self) -> &Cells {
        &self.cells
    }

    pub(crate) fn access(&self) -> &DirtyBitmap {
        &self.access
    }

    /// Why the snapshot is no good any more, if it is not.
    pub fn broken(&self) -> Option<Errno> {
        match self.broken.load(Ordering::Acquire) {
            0 => None,
            errno => Some(Errno::from_raw(errno)),
        }
    }

    /// Woken when the snapshot breaks.
    pub(crate) fn breaks(&self) -> &WaitQueue {
        &self.settled
    }

    /// How far the copying of what the filter holds has come.
    pub fn progress(&self) -> Progress {
        let untouched = self.untouched_bytes();
        let offset = self.copied.load(Ordering::Relaxed);
        Progress {
            offset,
            len: offset + self.claimed.load(Ordering::Relaxed) + untouched,
        }
    }

    /// Requests that have passed the filter.
    pub(crate) fn guests(&self) -> &Arc<GuestWatch> {
        &self.guests
    }

    /// A job has begun to work with the filter.
    pub(crate) fn job_begins(&self, control: &Arc<Control>) {
        self.job.store(Some(Arc::clone(control)));
    }

    /// A job has ended.
    pub(crate) fn job_ends(&self) {
        self.job.store(None);
    }

    /// Whether a job works with the filter.
    pub fn has_job(&self) -> bool {
        self.job.load().is_some()
    }

    /// Bytes that somebody is saving now.
    pub fn claimed_bytes(&self) -> u64 {
        self.claimed.load(Ordering::Relaxed)
    }

    /// What a fleecing client may read, in ascending order.
    pub fn snapshot_areas(&self) -> impl Iterator<Item = Span> {
        self.access
            .areas()
            .map(|area| Span::new(area.offset, area.len))
    }

    /// These bytes need no saving any more, as far as they are whole blocks
    /// that nobody has begun to save. Before a job starts: what its target holds
    /// already, from an earlier run.
    pub fn leave_out(&self, span: Span) {
        let end = if span.end() == self.size {
            self.cells.len()
        } else {
            span.end() / self.block_size
        };
        for block in span.offset.div_ceil(self.block_size)..end {
            self.cells.leave_out(block);
        }
    }

    /// What nobody has saved, nor begun to, in ascending order.
    pub(crate) fn untouched(&self) -> impl Iterator<Item = Span> {
        let mut from = 0;
        std::iter::from_fn(move || {
            let block = self.cells.next_untouched(from, self.cells.len())?;
            from = block + 1;
            Some(self.bytes(block, block + 1))
        })
    }

    /// What is on the target or need not be there, in ascending order. Only a
    /// flush that begins later makes it durable.
    pub fn settled(&self) -> Vec<Span> {
        let mut from = 0;
        let end = self.cells.len();
        let saved = std::iter::from_fn(|| {
            let first = self.cells.next_settled(from, end)?;
            from = self.cells.next_unsettled(first, end).unwrap_or(end);
            // A worker may have settled the rest meanwhile, but never less.
            Some(self.bytes(first, from))
        });
        let saved: Vec<Span> = saved.collect();
        // Looked at later: what was saved and is not here any more is there.
        without(saved, &self.buffer.spans())
    }

    /// Whether something is left that nobody has claimed.
    pub(crate) fn has_untouched(&self) -> bool {
        self.cells.next_untouched(0, self.cells.len()).is_some()
    }

    /// Waits until no claim is open.
    pub async fn wait_for_saves_in_flight(&self, shard: &Shard) {
        self.wait_for_claims(shard, None).await;
    }

    /// The same for a moment, as guests who go on may open claims without end. For who
    /// then holds them up until none is open, so that it does not take long.
    pub(crate) async fn wait_briefly_for_saves_in_flight(&self, shard: &Shard) {
        let deadline_ns = shard.now_ns() + BRIEFLY_NS;
        self.wait_for_claims(shard, Some(deadline_ns)).await;
    }

    async fn wait_for_claims(&self, shard: &Shard, deadline_ns: Option<u64>) {
        let _hurry = self.buffer.hurry();
        let none_open = || self.claimed.load(Ordering::SeqCst) == 0;
        shard.wait(&[&self.settled], deadline_ns, none_open).await;
    }

    /// What queries show.
    pub fn counts(&self) -> Counts {
        let tally = self
            .cells
            .tally(0, self.cells.len(), self.blocks_in_cluster());
        Counts {
            copy: tally.untouched_groups * self.cluster_size,
            done: tally.open_groups * self.cluster_size,
            access: self.access.count(),
        }
    }

    /// Still to be saved. A cluster of which nothing has been saved counts whole,
    /// also where the disk ends in it.
    fn untouched_bytes(&self) -> u64 {
        let (blocks, in_cluster) = (self.cells.len(), self.blocks_in_cluster());
        let untouched = self.cells.tally(0, blocks, in_cluster).untouched;
        let mut bytes = untouched * self.block_size;
        let last = blocks.saturating_sub(1) / in_cluster * in_cluster;
        if self.cells.tally(last, blocks, in_cluster).untouched == blocks - last {
            bytes += (last + in_cluster - blocks) * self.block_size;
        }
        bytes
    }

    /// How many blocks a cluster has.
    pub(crate) fn blocks_in_cluster(&self) -> u64 {
        self.cluster_size / self.block_size
    }

    /// The bytes of blocks `first..end`, as far as the disk reaches.
    pub(crate) fn bytes(&self, first: u64, end: u64) -> Span {
        Span::between(
            first * self.block_size,
            (end * self.block_size).min(self.size),
        )
    }

    /// Blocks that a range touches.
    pub(crate) fn blocks(&self, span: Span) -> std::ops::Range<u64> {
        span.offset / self.block_size..span.end().div_ceil(self.block_size)
    }

    /// Called before a guest's change of `span` goes down. An error: it must
    /// not.
    pub(crate) async fn before_change(self: &Arc<Self>, shard: &Shard, span: Span) -> IoResult<()> {
        let blocks = self.blocks(span);
        if self.cells.all_open(blocks.start, blocks.end) || self.broken().is_some() {
            return Ok(());
        }
        if planted::is(Fault::ShortCutOnSaved)
            && blocks
                .clone()
                .all(|block| self.cells.state(block) == State::Saved)
        {
            return Ok(());
        }
        let mut first = blocks.start;
        while first < blocks.end {
            let slice_end = first + (SLICE_BYTES / self.block_size).max(1);
            let end = blocks.end.min(slice_end);
            self.open_slice(shard, first, end).await?;
            first = end;
        }
        Ok(())
    }

    async fn open_slice(self: &Arc<Self>, shard: &Shard, first: u64, end: u64) -> IoResult<()> {
        let deadline = match self.options.cbw_timeout_ns {
            0 => None,
            timeout => Some(shard.now_ns().saturating_add(timeout)),
        };
        loop {
            if let Err(errno) = self.secure(shard, first, end, deadline).await {
                return self.give_up(shard, errno);
            }
            if self.broken().is_some() || self.close(shard, first, end).await {
                return Ok(());
            }
        }
    }

    /// Old data could not be saved, or not in time.
    fn give_up(self: &Arc<Self>, shard: &Shard, errno: Errno) -> IoResult<()> {
        match self.options.on_cbw_error {
            OnCbwError::BreakGuestWrite => Err(errno),
            OnCbwError::BreakSnapshot => {
                self.break_snapshot(shard, errno);
                Ok(())
            }
        }
    }

    /// Before the first unsaved change is submitted: a reader whose bytes that
    /// change might have touched looks here after its last byte (C6).
    fn break_snapshot(self: &Arc<Self>, shard: &Shard, errno: Errno) {
        if planted::is(Fault::BrokenStoredLate) {
            let (filter, late) = (Arc::clone(self), shard.clone());
            shard.spawn(async move {
                late.sleep_ns(1_000_000).await;
                filter.store_broken(errno);
            });
            return;
        }
        self.store_broken(errno);
    }

    fn store_broken(&self, errno: Errno) {
        // Only the first error counts.
        let _ = self
            .broken
            .compare_exchange(0, errno as i32, Ordering::SeqCst, Ordering::SeqCst);
        fence(Ordering::SeqCst);
        for queue in &self.saves {
            queue.wake_all();
        }
        self.settled.wake_all();
        self.buffer.wake();
    }

    /// Until no block of the slice is untouched or being saved, or the snapshot is
    /// broken.
    async fn secure(
        self: &Arc<Self>,
        shard: &Shard,
        first: u64,
        end: u64,
        deadline: Option<u64>,
    ) -> IoResult<()> {
        let mut waited_since = None;
        let mut result = Ok(());
        while result.is_ok() && self.broken().is_none() {
            let Some(block) = self.cells.next_unsettled(first, end) else {
                break;
            };
            waited_since.get_or_insert_with(|| shard.now_ns());
            let mut saves = Vec::new();
            let started = self
                .start_saves(shard, block, end, deadline, &mut saves)
                .await;
            result = match (started, saves.is_empty()) {
                (Err(errno), _) => Err(errno),
                (Ok(()), true) => self.wait_for_other_saver(shard, block, deadline).await,
                (Ok(()), false) => self.wait_for_saves(shard, saves, deadline).await,
            };
            if result == Err(Errno::ETIMEDOUT) && planted::is(Fault::TimeoutFreesCell) {
                let _ = self.cells.unclaim(block, block + 1);
            }
        }
        if let Some(since) = waited_since {
            shard
                .local::<Metrics>()
                .record(Class::SaveWait, shard.now_ns() - since);
        }
        result
    }

    /// Saves for every untouched block of the slice, in parallel.
    async fn start_saves(
        self: &Arc<Self>,
        shard: &Shard,
        first: u64,
        end: u64,
        deadline: Option<u64>,
        saves: &mut Vec<Task<IoResult<()>>>,
    ) -> IoResult<()> {
        let blocks_max = (chunk::BYTES_MAX / self.block_size).max(1);
        let mut next = first;
        while let Some(block) = self.cells.next_untouched(next, end) {
            // Room and buffer first, claim second, submit at once (C4).
            let untouched = blocks_max.min(self.cells.next_touched(block, end) - block);
            let wanted = self.reserve(shard, block, untouched, deadline).await?;
            let bytes = self.bytes(block, block + wanted);
            // The guest holds a buffer already, so this one must not wait for others.
            let buf = shard.buffer_now(self.copier().buffer_len(bytes));
            next = block + 1;
            let Some(chunk) = self.claim(block, wanted) else {
                self.give_room_back(bytes.len);
                continue;
            };
            next = chunk.end;
            self.give_room_back(bytes.len - self.bytes(chunk.first, chunk.end).len);
            let (filter, home) = (Arc::clone(self), shard.clone());
            saves.push(shard.spawn(async move { filter.save(&home, chunk, buf).await }));
        }
        Ok(())
    }

    async fn save(self: &Arc<Self>, shard: &Shard, chunk: Chunk, buf: Buf) -> IoResult<()> {
        let start = shard.now_ns();
        let bytes = self.bytes(chunk.first, chunk.end);
        if self.buffer.is_on() {
            self.save_to_memory(shard, chunk, buf).await?;
        } else {
            self.save_to_target(shard, chunk, buf).await?;
        }
        let metrics = shard.local::<Metrics>();
        metrics.record(Class::Save, shard.now_ns() - start);
        metrics.add_saved(bytes.len);
        Ok(())
    }

    async fn save_to_target(&self, shard: &Shard, chunk: Chunk, buf: Buf) -> IoResult<()> {
        let bytes = self.bytes(chunk.first, chunk.end);
        match self.copier().copy(shard, bytes, buf).await {
            Ok(_) => {
                self.publish(shard, chunk).await;
                Ok(())
            }
            Err(error) => {
                self.release(shard, chunk).await;
                Err(error.errno)
            }
        }
    }

    /// Our own saves. The first that fails fails the change; the others go on.
    async fn wait_for_saves(
        &self,
        shard: &Shard,
        saves: Vec<Task<IoResult<()>>>,
        deadline: Option<u64>,
    ) -> IoResult<()> {
        for save in saves {
            match shard.join_until(save, deadline).await {
                Some(result) => result?,
                None => return Err(Errno::ETIMEDOUT),
            }
        }
        Ok(())
    }

    /// Until the other saver of this block has ended, well or not.
    async fn wait_for_other_saver(
        &self,
        shard: &Shard,
        block: u64,
        deadline: Option<u64>,
    ) -> IoResult<()> {
        let ended = || {
            let state = self.cells.state(block);
            !matches!(state, State::Saving | State::SavingDiscarded) || self.broken().is_some()
        };
        match shard.wait(&[self.save_queue(block)], deadline, ended).await {
            true => Ok(()),
            false => Err(Errno::ETIMEDOUT),
        }
    }

    /// Claims what is untouched from `first` on, at most `count_max` blocks.
    /// Whoever claims must end it with `publish` or `release`.
    pub(crate) fn claim(&self, first: u64, count_max: u64) -> Option<Chunk> {
        // Counted before it is made: who finds nothing claimed and nothing
        // untouched takes the work for finished.
        let most = self
            .bytes(first, (first + count_max).min(self.cells.len()))
            .len;
        self.claimed.fetch_add(most, Ordering::SeqCst);
        let count = self.cells.claim(first, count_max);
        let got = self.bytes(first, first + count).len;
        self.give_back(most - got);
        (count > 0).then_some(Chunk {
            first,
            end: first + count,
        })
    }

    /// A claimed chunk is on the target.
    pub(crate) async fn publish(&self, shard: &Shard, chunk: Chunk) {
        // *saved* is published only while not broken: the source may have been
        // overwritten unsaved while it was read (C6).
        let settled = if self.broken().is_some() {
            self.cells.unclaim(chunk.first, chunk.end)
        } else {
            self.count_copied(self.bytes(chunk.first, chunk.end));
            self.cells.publish(chunk.first, chunk.end)
        };
        self.finish(shard, chunk, settled).await;
    }

    fn count_copied(&self, bytes: Span) {
        self.copied.fetch_add(bytes.len, Ordering::Relaxed);
    }

    /// A claimed chunk could not be copied, or will not be.
    pub(crate) async fn release(&self, shard: &Shard, chunk: Chunk) {
        if planted::is(Fault::ClaimLeakedOnCancel) {
            return;
        }
        let settled = self.cells.unclaim(chunk.first, chunk.end);
        self.finish(shard, chunk, settled).await;
    }

    async fn finish(&self, shard: &Shard, chunk: Chunk, settled: Settled) {
        self.wake_waiters_for(chunk);
        if let Settled::Discarded(runs) = settled {
            for run in runs {
                // A hint, and the client has been answered already.
                let _ = self
                    .target()
                    .discard(shard, self.bytes(run.start, run.end))
                    .await;
            }
        }
        // Last: whoever waits for this may give the target to somebody else.
        self.give_back(self.bytes(chunk.first, chunk.end).len);
    }

    /// So many bytes are no longer claimed.
    fn give_back(&self, bytes: u64) {
        if bytes > 0 && self.claimed.fetch_sub(bytes, Ordering::SeqCst) == bytes {
            fence(Ordering::SeqCst);
            self.settled.wake_all();
        }
    }

    fn wake_waiters_for(&self, chunk: Chunk) {
        // The states first, then the look for who waits for them.
        fence(Ordering::SeqCst);
        for block in chunk.first..chunk.end.min(chunk.first + SAVE_QUEUES) {
            self.save_queue(block).wake_all();
        }
    }

    fn save_queue(&self, block: u64) -> &WaitQueue {
        let index = usize::try_from(block % SAVE_QUEUES).expect("a small number");
        &self.saves[index]
    }

    /// Swings the slice's blocks to *closing*, waits for readers, passes
    /// them. False: one of them has to be saved first.
    async fn close(&self, shard: &Shard, first: u64, end: u64) -> bool {
        let bytes = self.bytes(first, end);
        if planted::is(Fault::ScanBeforeClosing) {
            self.readers.wait_clear(bytes.offset, bytes.end()).await;
        }
        for block in first..end {
            match self.cells.close(block) {
                Close::Closed | Close::Open => {}
                Close::Untouched | Close::Saving => return false,
            }
        }
        if planted::is(Fault::PassBeforeScan) {
            self.pass(first, end);
        }
        if !planted::is(Fault::ScanBeforeClosing) {
            self.wait_for_readers(shard, bytes).await;
        }
        self.pass(first, end);
        true
    }

    async fn wait_for_readers(&self, shard: &Shard, bytes: Span) {
        // After *closing*; the fence is inside.
        if self
            .readers
            .overlapping(bytes.offset, bytes.end())
            .is_none()
        {
            return;
        }
        let since = shard.now_ns();
        self.readers.wait_clear(bytes.offset, bytes.end()).await;
        shard
            .local::<Metrics>()
            .record(Class::ReaderWait, shard.now_ns() - since);
    }

    fn pass(&self, first: u64, end: u64) {
        for block in first..end {
            self.cells.pass(block);
        }
    }

    /// Registers a snapshot read of the source; afterwards the caller looks at
    /// *access* and at the states, with no fence of its own.
    pub(crate) async fn enter_reader(&self, shard: &Shard, span: Span) -> Reading<'_> {
        let ticket = self
            .readers
            .enter(shard.index(), span.offset, span.end())
            .await;
        Reading {
            register: &self.readers,
            ticket: Some(ticket),
        }
    }

    /// A fleecing client will not read these bytes, whole clusters, any more: later
    /// reads are refused, later guest changes save nothing.
    pub(crate) async fn discard(&self, shard: &Shard, bytes: Span) -> IoResult<()> {
        // Before the target is touched: a reader of the target looks at
        // *access* once more after its last byte.
        self.access.clear(shard.index(), bytes.offset, bytes.len);
        fence(Ordering::SeqCst);
        let blocks = self.blocks(bytes);
        let mut run = blocks.start..blocks.start;
        for block in blocks {
            // Also where nothing was saved: whoever watches the target learns what
            // the client has done with.
            if self.cells.discard(block) != Discarded::BySaver {
                run.end = block + 1;
                continue;
            }
            self.discard_target(shard, run).await?;
            run = block + 1..block + 1;
        }
        self.discard_target(shard, run).await
    }

    async fn discard_target(&self, shard: &Shard, run: std::ops::Range<u64>) -> IoResult<()> {
        if run.is_empty() {
            return Ok(());
        }
        // What is in memory is discarded by who writes it.
        for span in self.buffer.discard(self.bytes(run.start, run.end)) {
            self.target().discard(shard, span).await?;
        }
        Ok(())
    }
}

/// The parts of `spans` that are in none of `holes`. Both are in ascending order.
fn without(spans: Vec<Span>, holes: &[Span]) -> Vec<Span> {
    let mut rest = Vec::with_capacity(spans.len());
    let mut holes = holes.iter().peekable();
    for span in spans {
        let mut from = span.offset;
        while let Some(hole) = holes.peek().filter(|hole| hole.offset < span.end()) {
            if hole.offset > from {
                rest.push(Span::between(from, hole.offset));
            }
            from = from.max(hole.end());
            if hole.end() > span.end() {
                break;
            }
            holes.next();
        }
        if from < span.end() {
            rest.push(Span::between(from, span.end()));
        }
    }
    rest
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn holes_are_cut_out() {
        let span = Span::between;
        let spans = vec![span(0, 10), span(20, 30), span(40, 50)];
        assert_eq!(without(spans.clone(), &[]), spans);
        let holes = [span(2, 4), span(6, 10), span(12, 14), span(25, 45)];
        assert_eq!(
            without(spans, &holes),
            [span(0, 2), span(4, 6), span(20, 25), span(45, 50)]
        );
    }
}
