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
//! 1. Are all its clusters *passed* or *lost*? Then nothing is left to do: one
//!    load.
//! 2. *Secure*: what is untouched is claimed and saved, what somebody else is
//!    saving is waited for.
//! 3. *Close*: each cluster is swung to *closing*, then readers of the source
//!    that overlap these clusters are waited for, then the clusters are
//!    *passed*. (The order is what makes it safe: see [`crate::register`].)
//! 4. The change goes down.
//!
//! A save runs as a task of its own, so that a wait can time out while the I/O
//! goes on (C6), and the cell stays *saving* until that I/O has ended.
//!
//! # What breaks
//!
//! With `break-guest-write` a failed save fails the guest's change and gives
//! the cluster back. With `break-snapshot` the snapshot is marked *broken*
//! before the change is let through, and from then on nobody saves anything.

pub mod cells;
#[cfg(test)]
mod cells_tests;
#[cfg(test)]
mod stress_tests;

use std::sync::Arc;
use std::sync::atomic::AtomicI32;

use arc_swap::ArcSwap;
use ringback_ring::shard::Task;
use ringback_ring::{Buf, Errno, IoResult, Shard};

use crate::bitmap::{BitmapError, DirtyBitmap};
use crate::copy::Progress;
use crate::copy::chunk::{self, Chunk, Copier};
use crate::copy::guest::GuestWatch;
use crate::metrics::{Class, Metrics};
use crate::path::Path;
use crate::planted::{self, Fault};
use crate::register::{Register, Ticket};
use crate::span::Span;
use crate::sync::{AtomicU64, Ordering, WaitQueue, fence};
use cells::{Cells, Close, Discarded, Settled, State};

/// No filter copies in smaller units; QEMU's default.
pub const CLUSTER_SIZE_DEFAULT: u64 = 65536;
/// Nor in larger ones.
pub const CLUSTER_SIZE_MAX: u64 = 1 << 31;

/// Waiters for saves are spread over this many queues by cluster.
const SAVE_QUEUES: u64 = 64;

/// A change of many clusters is handled in slices of about this many bytes, so
/// that it neither keeps a shard for long nor needs much memory at once.
const SLICE_BYTES: u64 = 16 << 20;

/// What happens when old data cannot be saved.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum OnCbwError {
    /// The guest's write fails, the snapshot stays good.
    #[default]
    BreakGuestWrite,
    /// The guest's write goes on, the snapshot is lost.
    BreakSnapshot,
}

/// Options of the filter.
#[derive(Clone, Copy, Debug, Default)]
pub struct Options {
    /// What happens when old data cannot be saved.
    pub on_cbw_error: OnCbwError,
    /// How long a guest's change waits for saves, in nanoseconds; 0: as long
    /// as it takes.
    pub cbw_timeout_ns: u64,
    /// Copy in units of at least this many bytes, a power of two; 0: no wish.
    pub min_cluster_size: u64,
    /// Unit in which the target is allocated, in bytes, a power of two; 0: none.
    pub target_cluster_size: u64,
    /// What is saved is stored compressed.
    pub compress: bool,
    /// Other processes may write to the disk. What they overwrite is not saved:
    /// what is copied is then of no single instant.
    pub shares_writes: bool,
}

/// What a filter saves.
#[derive(Clone, Copy, Debug)]
pub enum Scope<'a> {
    /// The whole disk.
    Everything,
    /// What is dirty here; only that can be read from the snapshot.
    Snapshot(&'a DirtyBitmap),
    /// What is dirty here. The rest counts as readable until it is overwritten.
    Saved(&'a DirtyBitmap),
}

/// Why a filter could not be made.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CbwError {
    /// The wish for a cluster size cannot be met.
    #[error("Cannot create block-copy-state: min-cluster-size needs to be a power of 2")]
    NotPowerOfTwo,
    /// Nor can this one.
    #[error("Cannot create block-copy-state: min-cluster-size too large: {0} > {CLUSTER_SIZE_MAX}")]
    TooLarge(u64),
    /// The target cannot hold what may have to be saved.
    #[error(
        "the target has {target_size} bytes and the source {source_size}: it must not be shorter"
    )]
    Sizes {
        /// Of the disk that is watched.
        source_size: u64,
        /// Of where its old data goes.
        target_size: u64,
    },
    /// No memory for the copy states.
    #[error(
        "no memory for the copy states of {clusters} clusters; a larger min-cluster-size needs less"
    )]
    Memory {
        /// How many states were asked for.
        clusters: u64,
    },
    /// The bitmap does not fit the disk.
    #[error("Cannot create block-copy-state: Failed to merge bitmap to internal copy-bitmap: {0}")]
    Bitmap(#[from] BitmapError),
}

/// The filter's state, shared by all shards.
pub struct CopyBeforeWrite {
    // Fixed.
    size: u64,
    cluster_size: u64,
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
    /// Who waits for a save, by cluster.
    saves: Box<[WaitQueue]>,
    /// Errno of the save that broke the snapshot, or 0.
    broken: AtomicI32,
    /// Woken when the snapshot breaks, and when nothing is claimed any more.
    settled: WaitQueue,
    /// Bytes claimed and not yet settled.
    claimed: AtomicU64,
    /// Bytes published, by whomever.
    copied: AtomicU64,
    /// Jobs that work with the filter: it must stay where it is.
    jobs: AtomicU64,
    /// How long guests' requests take below the filter.
    guests: Arc<GuestWatch>,
}

impl std::fmt::Debug for CopyBeforeWrite {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("CopyBeforeWrite")
            .field("size", &self.size)
            .field("cluster_size", &self.cluster_size)
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
        let cluster_size = cluster_size(&options)?;
        let clusters = size.div_ceil(cluster_size);
        let mut cells = Cells::new(clusters).ok_or(CbwError::Memory { clusters })?;
        let access = DirtyBitmap::new(size, cluster_size, shards)?;
        match scope {
            Scope::Everything => access.mark_all(0),
            Scope::Snapshot(bitmap) | Scope::Saved(bitmap) => {
                access.merge_from(0, bitmap)?;
                set_unwanted(&mut cells, &access, cluster_size);
            }
        }
        if matches!(scope, Scope::Saved(_)) {
            access.mark_all(0);
        }
        let saves = (0..SAVE_QUEUES).map(|_| WaitQueue::new()).collect();
        let (readers, broken) = (Register::new(shards), AtomicI32::new(0));
        Ok(Self {
            size,
            cluster_size,
            options,
            source: ArcSwap::from_pointee(source),
            target: ArcSwap::from_pointee(target),
            cells,
            access,
            readers,
            saves,
            broken,
            settled: WaitQueue::new(),
            claimed: AtomicU64::new(0),
            copied: AtomicU64::new(0),
            jobs: AtomicU64::new(0),
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
        let untouched = self.cells.tally(0, self.cells.len()).untouched * self.cluster_size;
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
    pub(crate) fn job_begins(&self) {
        self.jobs.fetch_add(1, Ordering::AcqRel);
    }

    /// A job has ended.
    pub(crate) fn job_ends(&self) {
        self.jobs.fetch_sub(1, Ordering::AcqRel);
    }

    /// Whether a job works with the filter.
    pub fn has_job(&self) -> bool {
        self.jobs.load(Ordering::Acquire) > 0
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

    /// These bytes need no saving any more, as far as they are whole clusters
    /// that nobody has begun to save. Before a job starts: what its target holds
    /// already, from an earlier run.
    pub fn leave_out(&self, span: Span) {
        let end = if span.end() == self.size {
            self.cells.len()
        } else {
            span.end() / self.cluster_size
        };
        for cluster in span.offset.div_ceil(self.cluster_size)..end {
            self.cells.leave_out(cluster);
        }
    }

    /// What nobody has saved, nor begun to, in ascending order.
    pub(crate) fn untouched(&self) -> impl Iterator<Item = Span> {
        let mut from = 0;
        std::iter::from_fn(move || {
            let cluster = self.cells.next_untouched(from, self.cells.len())?;
            from = cluster + 1;
            Some(self.bytes(cluster, cluster + 1))
        })
    }

    /// What is on the target or need not be there, in ascending order. Only a
    /// flush that begins later makes it durable.
    pub fn settled(&self) -> impl Iterator<Item = Span> {
        let mut from = 0;
        let end = self.cells.len();
        std::iter::from_fn(move || {
            let first = self.cells.next_settled(from, end)?;
            from = self.cells.next_unsettled(first, end).unwrap_or(end);
            // A worker may have settled the rest meanwhile, but never less.
            Some(self.bytes(first, from))
        })
    }

    /// Whether something is left that nobody has claimed.
    pub(crate) fn has_untouched(&self) -> bool {
        self.cells.next_untouched(0, self.cells.len()).is_some()
    }

    /// Waits until no claim is open.
    pub async fn wait_for_saves_in_flight(&self, shard: &Shard) {
        let none_open = || self.claimed.load(Ordering::SeqCst) == 0;
        shard.wait(&[&self.settled], None, none_open).await;
    }

    /// What queries show.
    pub fn counts(&self) -> Counts {
        let tally = self.cells.tally(0, self.cells.len());
        Counts {
            copy: tally.untouched * self.cluster_size,
            done: tally.open * self.cluster_size,
            access: self.access.count(),
        }
    }

    /// The bytes of clusters `first..end`, as far as the disk reaches.
    pub(crate) fn bytes(&self, first: u64, end: u64) -> Span {
        Span::between(
            first * self.cluster_size,
            (end * self.cluster_size).min(self.size),
        )
    }

    /// Clusters that a range touches.
    pub(crate) fn clusters(&self, span: Span) -> std::ops::Range<u64> {
        span.offset / self.cluster_size..span.end().div_ceil(self.cluster_size)
    }

    /// Called before a guest's change of `span` goes down. An error: it must
    /// not.
    pub(crate) async fn before_change(self: &Arc<Self>, shard: &Shard, span: Span) -> IoResult<()> {
        let clusters = self.clusters(span);
        if self.cells.all_open(clusters.start, clusters.end) || self.broken().is_some() {
            return Ok(());
        }
        if planted::is(Fault::ShortCutOnSaved)
            && clusters
                .clone()
                .all(|cluster| self.cells.state(cluster) == State::Saved)
        {
            return Ok(());
        }
        let mut first = clusters.start;
        while first < clusters.end {
            let end = clusters
                .end
                .min(first + (SLICE_BYTES / self.cluster_size).max(1));
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
    }

    /// Until no cluster of the slice is untouched or being saved, or the
    /// snapshot is broken.
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
            let Some(cluster) = self.next_unsaved(first, end) else {
                break;
            };
            waited_since.get_or_insert_with(|| shard.now_ns());
            let saves = self.start_saves(shard, cluster, end);
            result = if saves.is_empty() {
                self.wait_for_other_saver(shard, cluster, deadline).await
            } else {
                self.wait_for_saves(shard, saves, deadline).await
            };
            if result == Err(Errno::ETIMEDOUT) && planted::is(Fault::TimeoutFreesCell) {
                let _ = self.cells.unclaim(cluster, cluster + 1);
            }
        }
        if let Some(since) = waited_since {
            shard
                .local::<Metrics>()
                .record(Class::SaveWait, shard.now_ns() - since);
        }
        result
    }

    fn next_unsaved(&self, first: u64, end: u64) -> Option<u64> {
        (first..end).find(|&cluster| {
            let state = self.cells.state(cluster);
            matches!(
                state,
                State::Untouched | State::Saving | State::SavingDiscarded
            )
        })
    }

    /// Saves for every untouched cluster of the slice, in parallel.
    fn start_saves(
        self: &Arc<Self>,
        shard: &Shard,
        first: u64,
        end: u64,
    ) -> Vec<Task<IoResult<()>>> {
        let clusters_max = (chunk::BYTES_MAX / self.cluster_size).max(1);
        let mut saves = Vec::new();
        let mut next = first;
        while let Some(cluster) = self.cells.next_untouched(next, end) {
            // Buffer first, claim second, submit at once (C4). The guest holds
            // a buffer already, so this one must not wait for others.
            let wanted = clusters_max.min(end - cluster);
            let bytes = self.bytes(cluster, cluster + wanted);
            let buf = shard.buffer_now(self.copier().buffer_len(bytes));
            next = cluster + 1;
            if let Some(chunk) = self.claim(cluster, wanted) {
                let (filter, home) = (Arc::clone(self), shard.clone());
                saves.push(shard.spawn(async move { filter.save(&home, chunk, buf).await }));
                next = chunk.end;
            }
        }
        saves
    }

    async fn save(&self, shard: &Shard, chunk: Chunk, buf: Buf) -> IoResult<()> {
        let start = shard.now_ns();
        let bytes = self.bytes(chunk.first, chunk.end);
        match self.copier().copy(shard, bytes, buf).await {
            Ok(_) => {
                self.publish(shard, chunk).await;
                let metrics = shard.local::<Metrics>();
                metrics.record(Class::Save, shard.now_ns() - start);
                metrics.add_saved(bytes.len);
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

    /// Until the other saver of this cluster has ended, well or not.
    async fn wait_for_other_saver(
        &self,
        shard: &Shard,
        cluster: u64,
        deadline: Option<u64>,
    ) -> IoResult<()> {
        let ended = || {
            let state = self.cells.state(cluster);
            !matches!(state, State::Saving | State::SavingDiscarded) || self.broken().is_some()
        };
        match shard
            .wait(&[self.save_queue(cluster)], deadline, ended)
            .await
        {
            true => Ok(()),
            false => Err(Errno::ETIMEDOUT),
        }
    }

    /// Claims what is untouched from `first` on, at most `count_max` clusters.
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
            self.copied
                .fetch_add(self.bytes(chunk.first, chunk.end).len, Ordering::Relaxed);
            self.cells.publish(chunk.first, chunk.end)
        };
        self.finish(shard, chunk, settled).await;
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
        // The states first, then the look for who waits for them.
        fence(Ordering::SeqCst);
        for cluster in chunk.first..chunk.end.min(chunk.first + SAVE_QUEUES) {
            self.save_queue(cluster).wake_all();
        }
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

    fn save_queue(&self, cluster: u64) -> &WaitQueue {
        let index = usize::try_from(cluster % SAVE_QUEUES).expect("a small number");
        &self.saves[index]
    }

    /// Swings the slice's clusters to *closing*, waits for readers, passes
    /// them. False: one of them has to be saved first.
    async fn close(&self, shard: &Shard, first: u64, end: u64) -> bool {
        let bytes = self.bytes(first, end);
        if planted::is(Fault::ScanBeforeClosing) {
            self.readers.wait_clear(bytes.offset, bytes.end()).await;
        }
        for cluster in first..end {
            match self.cells.close(cluster) {
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
        for cluster in first..end {
            self.cells.pass(cluster);
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

    /// A fleecing client will not read these clusters any more: later reads
    /// are refused, later guest changes save nothing.
    pub(crate) async fn discard(&self, shard: &Shard, first: u64, end: u64) -> IoResult<()> {
        let bytes = self.bytes(first, end);
        // Before the target is touched: a reader of the target looks at
        // *access* once more after its last byte.
        self.access.clear(shard.index(), bytes.offset, bytes.len);
        fence(Ordering::SeqCst);
        let mut run = first..first;
        for cluster in first..end {
            // Also where nothing was saved: whoever watches the target learns what
            // the client has done with.
            if self.cells.discard(cluster) != Discarded::BySaver {
                run.end = cluster + 1;
                continue;
            }
            self.discard_target(shard, run).await?;
            run = cluster + 1..cluster + 1;
        }
        self.discard_target(shard, run).await
    }

    async fn discard_target(&self, shard: &Shard, run: std::ops::Range<u64>) -> IoResult<()> {
        if run.is_empty() {
            return Ok(());
        }
        self.target()
            .discard(shard, self.bytes(run.start, run.end))
            .await
    }
}

fn cluster_size(options: &Options) -> Result<u64, CbwError> {
    let wish = options.min_cluster_size;
    if wish != 0 && !wish.is_power_of_two() {
        return Err(CbwError::NotPowerOfTwo);
    }
    if wish > CLUSTER_SIZE_MAX {
        return Err(CbwError::TooLarge(wish));
    }
    Ok(wish
        .max(CLUSTER_SIZE_DEFAULT)
        .max(options.target_cluster_size))
}

/// What is not in the bitmap need not be saved.
fn set_unwanted(cells: &mut Cells, wanted: &DirtyBitmap, cluster_size: u64) {
    let clusters = cells.len();
    let mut first = 0;
    for area in wanted.areas() {
        cells.set_unwanted_range(first, area.offset / cluster_size);
        first = (area.offset + area.len).div_ceil(cluster_size);
    }
    cells.set_unwanted_range(first, clusters);
}
