//! The workers of a block-copy: they take chunks in ascending order, copy them,
//! and publish the blocks.
//!
//! # Reservation and claim
//!
//! A shared cursor hands each worker a stretch of the disk. That is only a
//! division of labour: a guest's change may claim blocks inside it at any
//! time. The claim itself, block by block on the copy states, comes after
//! the worker has its buffer and its share of the rate, right before the I/O
//! (C4). Pause and cancel act before a claim and never between claim and
//! publication, so every path ends its claims.
//!
//! # How many at a time
//!
//! Workers are numbered. Those with a number below the depth that is allowed
//! now (`pace.rs`) take stretches, the others wait for their turn with
//! nothing in their hands, so that nobody waits for what they hold. Worker 0
//! works whenever anybody does.
//!
//! # Passes
//!
//! Blocks that went back to *untouched* (a failed copy that is to be tried
//! again, a guest's save that failed) lie behind the cursor. When the cursor
//! has reached the end it starts again, until a pass finds nothing.

use std::cell::Cell;
use std::rc::Rc;
use std::sync::Arc;

use ringback_ring::{LocalQueue, Shard};

use crate::copy::chunk::{self, Chunk, Copied, CopyError};
use crate::copy::control::{Control, JobError};
use crate::copy::pace::{Pace, keep_pace};
use crate::copy::rate::Rate;
use crate::extent::{Content, Extent};
use crate::filter::copy_before_write::CopyBeforeWrite;
use crate::span::Span;
use crate::sync::{AtomicU64, Ordering, fence};

/// Known zeroes are reserved in stretches of at most this many bytes.
const ZEROES_MAX: u64 = 64 << 20;

/// After a pass in which something failed the next begins this much later.
const RETRY_NS: u64 = 10_000_000;

/// How many workers, and how much each takes at a time.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Shape {
    pub(crate) workers: usize,
    pub(crate) chunk_clusters: u64,
}

impl Shape {
    /// What is asked for, as far as the shards' buffers carry it: a quarter of
    /// them stays free for guests.
    pub(crate) fn new(
        max_workers: u32,
        max_chunk: u64,
        cluster_size: u64,
        shards: usize,
        arena_bytes: usize,
    ) -> Self {
        let budget = (arena_bytes as u64 / 4 * 3).max(chunk::BYTES_MAX);
        let smallest = cluster_size.min(chunk::BYTES_MAX);
        let shards = shards as u64;
        let on_each = u64::from(max_workers)
            .div_ceil(shards)
            .min(budget / smallest)
            .max(1);
        let workers = u64::from(max_workers).min(on_each * shards);
        let wish = if max_chunk == 0 {
            chunk::BYTES_MAX
        } else {
            max_chunk
        };
        let affordable = wish.min(chunk::BYTES_MAX).min(budget / on_each);
        Self {
            workers: usize::try_from(workers).expect("bounded by the budget"),
            chunk_clusters: (affordable / cluster_size).max(1),
        }
    }
}

/// What the workers share.
pub(crate) struct Pool {
    filter: Arc<CopyBeforeWrite>,
    control: Arc<Control>,
    rate: Arc<Rate>,
    pace: Arc<Pace>,
    chunk_blocks: u64,
    /// What has been copied is discarded on the source.
    discard_source: bool,
    /// Stretches before this block have been handed out in this pass.
    cursor: AtomicU64,
    /// Workers that have a stretch, or are about to take one.
    reserved: AtomicU64,
    /// Workers between their look at *paused* and the end of a copy.
    copying: AtomicU64,
    /// Bytes read and written, and bytes written as zeroes.
    data: AtomicU64,
    zero: AtomicU64,
}

/// What lies where on the source, remembered by one shard's workers.
///
/// An answer stays true for every cluster that can still be claimed: a cluster
/// that a guest has changed since cannot.
#[derive(Default)]
struct Scout {
    known: Cell<Option<(Span, Content)>>,
    asking: Cell<bool>,
    answered: LocalQueue,
}

impl Pool {
    pub(crate) fn new(
        filter: Arc<CopyBeforeWrite>,
        control: Arc<Control>,
        rate: Arc<Rate>,
        pace: Arc<Pace>,
        chunk_clusters: u64,
        discard_source: bool,
    ) -> Self {
        Self {
            chunk_blocks: chunk_clusters * filter.blocks_in_cluster(),
            filter,
            control,
            rate,
            pace,
            discard_source,
            cursor: AtomicU64::new(0),
            reserved: AtomicU64::new(0),
            copying: AtomicU64::new(0),
            data: AtomicU64::new(0),
            zero: AtomicU64::new(0),
        }
    }

    /// Whether no worker copies anything. While the job is paused none begins.
    pub(crate) fn is_idle(&self) -> bool {
        self.copying.load(Ordering::SeqCst) == 0
    }

    pub(crate) fn copied(&self) -> Copied {
        Copied {
            data: self.data.load(Ordering::Relaxed),
            zero: self.zero.load(Ordering::Relaxed),
        }
    }

    /// Runs the workers, spread over the shards, until there is nothing left to
    /// claim or the job is told to stop.
    pub(crate) async fn run(self: &Arc<Self>, shard: &Shard, workers: usize) {
        self.pace.start();
        let keeper = keep_pace(shard, &self.pace, &self.control, self.filter.guests());
        let pool = Arc::clone(self);
        let shards = shard.set();
        let count = shards.count();
        shards
            .on_each(move |shard| {
                let pool = Arc::clone(&pool);
                async move {
                    let here = workers / count + usize::from(shard.index() < workers % count);
                    pool.run_on(&shard, here).await;
                }
            })
            .await;
        self.pace.end();
        keeper.join().await;
    }

    async fn run_on(self: Arc<Self>, shard: &Shard, workers: usize) {
        let scout = Rc::new(Scout::default());
        let tasks: Vec<_> = (0..workers)
            .map(|local| {
                let (pool, scout, home) = (Arc::clone(&self), Rc::clone(&scout), shard.clone());
                // Neighbours are on different shards.
                let number = local * shard.set().count() + shard.index();
                shard.spawn(async move { pool.work(&home, &scout, number as u64).await })
            })
            .collect();
        for task in tasks {
            task.join().await;
        }
    }

    /// One worker. Where one finds nothing more to do, those who wait for their
    /// turn will not either.
    async fn work(&self, shard: &Shard, scout: &Scout, number: u64) {
        self.take_turns(shard, scout, number).await;
        self.pace.end_waiting();
    }

    async fn take_turns(&self, shard: &Shard, scout: &Scout, number: u64) {
        while self.pace.turn(shard, &self.control, number).await && self.filter.broken().is_none() {
            // Counted before it is made, so that nobody takes the pass for over.
            self.reserved.fetch_add(1, Ordering::SeqCst);
            let stretch = self.reserve();
            let result = match stretch {
                Some(stretch) => self.copy_stretch(shard, scout, stretch).await,
                None => Ok(()),
            };
            self.reserved.fetch_sub(1, Ordering::SeqCst);
            if let Err(error) = result {
                let _ = self.control.handle_error(error);
            }
            if stretch.is_none() && !self.next_pass(shard).await {
                return;
            }
        }
    }

    /// Blocks of a chunk at present: whole clusters.
    fn blocks_now(&self) -> u64 {
        let in_cluster = self.filter.blocks_in_cluster();
        let clusters = self.pace.chunk() / self.filter.cluster_size();
        (clusters * in_cluster).clamp(in_cluster, self.chunk_blocks)
    }

    /// The next stretch with something to claim in it; none: this pass is over.
    fn reserve(&self) -> Option<Chunk> {
        let cells = self.filter.cells();
        let mut from = self.cursor.load(Ordering::Relaxed);
        let (blocks, in_cluster) = (self.blocks_now(), self.filter.blocks_in_cluster());
        loop {
            let first = cells.next_untouched(from, cells.len())?;
            // Where guests have been, a stretch begins within a cluster; it ends with one.
            let end = (first / in_cluster * in_cluster + blocks).min(cells.len());
            let swapped =
                self.cursor
                    .compare_exchange_weak(from, end, Ordering::Relaxed, Ordering::Relaxed);
            match swapped {
                Ok(_) => return Some(Chunk { first, end }),
                Err(other) => from = other,
            }
        }
    }

    /// Whether something is left behind the cursor. Then the cursor starts
    /// again, after a rest.
    async fn next_pass(&self, shard: &Shard) -> bool {
        let cells = self.filter.cells();
        let end = self.cursor.load(Ordering::Relaxed);
        if cells.next_untouched(0, cells.len()).is_none() {
            return false;
        }
        // What is untouched may be somebody's stretch, who waits for the rate:
        // handed out twice, it would be paid for twice.
        if self.reserved.load(Ordering::SeqCst) == 0 {
            // Only once for all workers: who finds it moved already goes on.
            let _ = self
                .cursor
                .compare_exchange(end, 0, Ordering::Relaxed, Ordering::Relaxed);
        }
        shard.sleep_ns(RETRY_NS).await;
        true
    }

    async fn copy_stretch(
        &self,
        shard: &Shard,
        scout: &Scout,
        mut stretch: Chunk,
    ) -> Result<(), CopyError> {
        let cells = self.filter.cells();
        while let Some(first) = cells.next_untouched(stretch.first, stretch.end) {
            if !self.control.may_go_on(shard).await {
                return Ok(());
            }
            let (content, known_end) = self.look(shard, scout, first).await;
            if content == Content::Zero {
                self.extend(&mut stretch, known_end);
            }
            // Zeroes, too, go in chunks: a guest may wait for each of them.
            let end = stretch.end.min(known_end).min(first + self.blocks_now());
            if !self.admit(shard, first, end).await {
                return Ok(());
            }
            stretch.first = match content {
                Content::Zero => self.zero_run(shard, first, end).await?,
                Content::Data => self.copy_run(shard, first, end).await?,
            };
        }
        Ok(())
    }

    /// Waits for the rate. False: the job was told to stop meanwhile.
    async fn admit(&self, shard: &Shard, first: u64, end: u64) -> bool {
        let bytes = self.filter.bytes(first, end).len;
        while let Some(later) = self.rate.admit(shard.now_ns(), bytes) {
            if !self.control.sleep_until(shard, later).await {
                return false;
            }
        }
        true
    }

    /// What the blocks from `first` on hold, and up to which block that is known. A
    /// cluster that holds both counts as data.
    async fn look(&self, shard: &Shard, scout: &Scout, first: u64) -> (Content, u64) {
        let blocks = self.filter.cells().len();
        let in_cluster = self.filter.blocks_in_cluster();
        let offset = self.filter.bytes(first, first).offset;
        let (known, content) = scout.find(shard, &self.filter, offset).await;
        let end = if known.end() == self.filter.size() {
            blocks
        } else {
            known.end() / self.filter.cluster_size() * in_cluster
        };
        if end > first {
            (content, end)
        } else {
            let next_cluster = (first / in_cluster + 1) * in_cluster;
            (Content::Data, next_cluster.min(blocks))
        }
    }

    /// A long run of zeroes is one worker's, if nobody else has reserved what
    /// follows: the source need not be asked again.
    fn extend(&self, stretch: &mut Chunk, known_end: u64) {
        let blocks_max = ZEROES_MAX / self.filter.block_size();
        let end = known_end.min(stretch.first + blocks_max);
        if end > stretch.end
            && self
                .cursor
                .compare_exchange(stretch.end, end, Ordering::Relaxed, Ordering::Relaxed)
                .is_ok()
        {
            stretch.end = end;
        }
    }

    /// Claims and copies; answers where to go on.
    async fn copy_run(&self, shard: &Shard, first: u64, end: u64) -> Result<u64, CopyError> {
        let buf = shard
            .buffer(
                self.filter
                    .copier()
                    .buffer_len(self.filter.bytes(first, end)),
            )
            .await;
        let Some(copying) = self.begin_copy() else {
            return Ok(first);
        };
        let Some(claimed) = self.claim(first, end) else {
            return Ok(first);
        };
        let bytes = self.filter.bytes(claimed.first, claimed.end);
        self.pace.begin_copy();
        let start_ns = shard.now_ns();
        let result = self.filter.copier().copy(shard, bytes, buf).await;
        let took_ns = shard.now_ns() - start_ns;
        let moved = result.map_or(0, |copied| copied.data);
        let rest_ns = self.pace.end_copy(moved, took_ns);
        let settled = self.settle(shard, claimed, result).await;
        if self.pace.must_flush(moved) {
            self.flush_behind(shard).await;
        }
        drop(copying);
        if rest_ns > 0 {
            self.control
                .sleep_until(shard, shard.now_ns() + rest_ns)
                .await;
        }
        settled
    }

    /// The target is made durable bit by bit: a device that has to write down all
    /// that its cache holds, at the end, holds up for a second whoever uses it.
    async fn flush_behind(&self, shard: &Shard) {
        let start_ns = shard.now_ns();
        if let Err(errno) = self.filter.target().flush(shard).await {
            // A later flush may know nothing of it.
            self.control.fail(JobError::Flush(errno));
        }
        self.pace.end_flush(shard.now_ns() - start_ns);
    }

    async fn zero_run(&self, shard: &Shard, first: u64, end: u64) -> Result<u64, CopyError> {
        let Some(_copying) = self.begin_copy() else {
            return Ok(first);
        };
        let Some(claimed) = self.claim(first, end) else {
            return Ok(first);
        };
        let bytes = self.filter.bytes(claimed.first, claimed.end);
        let result = self.filter.copier().copy_zeroes(shard, bytes).await;
        self.settle(shard, claimed, result).await
    }

    /// Nothing if the job was paused meanwhile: who asks for a pause and then
    /// finds nobody copying is right.
    fn begin_copy(&self) -> Option<Copying<'_>> {
        self.copying.fetch_add(1, Ordering::SeqCst);
        let copying = Copying(self);
        fence(Ordering::SeqCst);
        (!self.control.is_paused()).then_some(copying)
    }

    /// Nothing if the job was told to stop while the buffer was waited for, or
    /// a guest came first.
    fn claim(&self, first: u64, end: u64) -> Option<Chunk> {
        if self.control.is_stopping() {
            return None;
        }
        self.filter.claim(first, end - first)
    }

    async fn settle(
        &self,
        shard: &Shard,
        claimed: Chunk,
        result: Result<Copied, CopyError>,
    ) -> Result<u64, CopyError> {
        match result {
            Ok(copied) => {
                self.filter.publish(shard, claimed).await;
                if self.discard_source {
                    self.discard(shard, claimed).await;
                }
                self.data.fetch_add(copied.data, Ordering::Relaxed);
                self.zero.fetch_add(copied.zero, Ordering::Relaxed);
                Ok(claimed.end)
            }
            Err(error) => {
                self.filter.release(shard, claimed).await;
                Err(error)
            }
        }
    }

    /// Frees what has been copied, on the source. For the filter that is a change
    /// like a guest's: readers of the snapshot are waited for and go to the
    /// target from then on. What cannot be freed stays.
    async fn discard(&self, shard: &Shard, chunk: Chunk) {
        let bytes = self.filter.bytes(chunk.first, chunk.end);
        if self.filter.before_change(shard, bytes).await.is_ok() {
            let _ = self.filter.source().discard(shard, bytes).await;
        }
    }
}

/// A worker that copies, until dropped.
struct Copying<'a>(&'a Pool);

impl Drop for Copying<'_> {
    fn drop(&mut self) {
        let was = self.0.copying.fetch_sub(1, Ordering::SeqCst);
        // As in `begin_copy`: whoever pauses sees no copy, or this sees the pause.
        fence(Ordering::SeqCst);
        if was == 1 && self.0.control.is_paused() {
            self.0.control.wake();
        }
    }
}

impl Scout {
    /// What is at `offset`; asks the source if that is not known yet.
    async fn find(&self, shard: &Shard, filter: &CopyBeforeWrite, offset: u64) -> (Span, Content) {
        loop {
            if let Some((span, content)) = self.known.get()
                && (span.offset..span.end()).contains(&offset)
            {
                return (Span::between(offset, span.end()), content);
            }
            if !self.asking.get() {
                break;
            }
            self.answered.wait_until(|| !self.asking.get()).await;
        }
        self.asking.set(true);
        let rest = Span::between(offset, filter.size());
        let answer = filter.source().extent(shard, rest).await;
        // A source that cannot tell holds data: that is never wrong.
        let extent = answer.unwrap_or(Extent::here(Content::Data, rest.len));
        let known = (Span::new(offset, extent.len.min(rest.len)), extent.content);
        self.known.set(Some(known));
        self.asking.set(false);
        self.answered.wake_all();
        known
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    #[test]
    fn workers_and_chunks_fit_the_buffers() {
        let shape = |workers, chunk, cluster, shards, arena| {
            let shape = Shape::new(workers, chunk, cluster, shards, arena);
            (shape.workers, shape.chunk_clusters)
        };
        assert_eq!(shape(16, MIB, 65536, 2, 128 << 20), (16, 16));
        assert_eq!(shape(1, 0, 65536, 2, 128 << 20), (1, 16));
        assert_eq!(shape(64, 65536, 65536, 2, 128 << 20), (64, 1));
        // 64 workers with 1 MiB each are more than three quarters of 64 MiB.
        assert_eq!(shape(64, 0, 65536, 1, 64 << 20), (64, 12));
        // More workers than buffers: as many as there are smallest chunks.
        assert_eq!(shape(u32::MAX, 0, 65536, 1, 4 << 20), (48, 1));
        // A cluster larger than any buffer is copied in pieces.
        assert_eq!(shape(4, 0, 4 * MIB, 1, 64 << 20), (4, 1));
    }
}
