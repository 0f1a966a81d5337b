//! The backup job: copies a disk as it was when the job's copy-before-write
//! filter was put above it.
//!
//! The job leaves *running* only when nothing is claimed any more and the
//! target has been flushed. What was copied when it fails or is cancelled is
//! what the filter's cells say.

use std::sync::{Arc, OnceLock};

use ringback_ring::{IoResult, Shard, WaitQueue};

use super::Bell;
use crate::copy::Progress;
use crate::copy::chunk::Copied;
use crate::copy::control::{Control, JobError, OnError};
use crate::copy::governor::{Ceiling, LatencyTarget, Standing};
use crate::copy::pace::Pace;
use crate::copy::pool::{Pool, Shape};
use crate::copy::rate::Rate;
use crate::filter::copy_before_write::CopyBeforeWrite;
use crate::span::Span;
use crate::sync::{Ordering, fence};

/// What the job itself copies. What the filter saves for guests is decided by
/// the bitmap that the filter was made with.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Sync {
    /// Everything that the filter holds: the whole disk, or what a bitmap says.
    #[default]
    Full,
    /// Of that, what the topmost image itself holds and no image below it.
    Top,
    /// Nothing: the filter works for guests until the job is cancelled, which
    /// is then its normal end.
    None,
}

/// Options of a backup.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// What the job copies.
    pub sync: Sync,
    /// Chunks in flight, 1 to 2^31 - 1.
    pub max_workers: u32,
    /// Bytes of a chunk; 0: no limit of its own.
    pub max_chunk: u64,
    /// Bytes a second; 0: no limit.
    pub speed: u64,
    /// What a guest may feel of the copying.
    pub latency_target: LatencyTarget,
    /// What has been copied is discarded on the source.
    pub discard_source: bool,
    /// Policy for read errors.
    pub on_source_error: OnError,
    /// Policy for write errors.
    pub on_target_error: OnError,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            sync: Sync::Full,
            max_workers: 64,
            max_chunk: 0,
            speed: 0,
            latency_target: LatencyTarget::Auto,
            discard_source: false,
            on_source_error: OnError::Report,
            on_target_error: OnError::Report,
        }
    }
}

/// Options that cannot be met. The texts are QEMU's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum OptionError {
    /// No worker at all, or too many.
    #[error("max-workers must be between 1 and {}", i32::MAX)]
    MaxWorkers,
    /// Chunks are whole clusters.
    #[error("Required max-chunk ({max_chunk}) is less than backup cluster size ({cluster_size})")]
    MaxChunk {
        /// As asked for.
        max_chunk: u64,
        /// Unit of copying.
        cluster_size: u64,
    },
}

/// How a job ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Outcome {
    /// Success, or why not.
    pub result: Result<(), JobError>,
    /// What the job's own workers moved.
    pub copied: Copied,
    /// From the start of the workers to the end of the flush, in nanoseconds.
    pub duration_ns: u64,
}

/// A running backup, as its owner sees it.
pub struct Backup {
    filter: Arc<CopyBeforeWrite>,
    control: Arc<Control>,
    rate: Arc<Rate>,
    pace: Arc<Pace>,
    pool: Arc<Pool>,
    end: Arc<End>,
}

/// Where the outcome will be.
#[derive(Default)]
pub(super) struct End {
    outcome: OnceLock<Outcome>,
    waiting: WaitQueue,
}

impl End {
    /// Waits until there is an outcome.
    pub(super) async fn reached(&self, shard: &Shard) {
        let is_there = || self.outcome.get().is_some();
        shard.wait(&[&self.waiting], None, is_there).await;
    }
}

impl Backup {
    /// Starts the job. The filter is above the disk already: its point in time
    /// is the job's.
    ///
    /// # Errors
    ///
    /// [`OptionError`]; nothing has been started then.
    pub fn start(
        shard: &Shard,
        filter: &Arc<CopyBeforeWrite>,
        options: Options,
    ) -> Result<Self, OptionError> {
        options.check(filter.cluster_size())?;
        let shape = Shape::new(
            options.max_workers,
            options.max_chunk,
            filter.cluster_size(),
            shard.set().count(),
            shard.arena().limit(),
        );
        let control = Arc::new(Control::new(
            options.on_source_error,
            options.on_target_error,
        ));
        let rate = Arc::new(Rate::new(options.speed));
        let ceiling = Ceiling {
            depth: shape.workers as u64,
            chunk: shape.chunk_clusters * filter.cluster_size(),
            unit: filter.cluster_size(),
        };
        let pace = Arc::new(Pace::new(ceiling, options.latency_target));
        let pool = Arc::new(Pool::new(
            Arc::clone(filter),
            Arc::clone(&control),
            Arc::clone(&rate),
            Arc::clone(&pace),
            shape.chunk_clusters,
            options.discard_source,
        ));
        let run = Run {
            filter: Arc::clone(filter),
            control: Arc::clone(&control),
            pool: Arc::clone(&pool),
            sync: options.sync,
            workers: shape.workers,
        };
        filter.job_begins(&control);
        let end = Arc::new(End::default());
        let (here, ending) = (shard.clone(), Arc::clone(&end));
        shard.spawn(async move {
            let filter = Arc::clone(&run.filter);
            let outcome = run.run(&here).await;
            filter.job_ends();
            // One task runs the job: set once.
            let _ = ending.outcome.set(outcome);
            fence(Ordering::SeqCst);
            ending.waiting.wake_all();
        });
        Ok(Self {
            filter: Arc::clone(filter),
            control,
            rate,
            pace,
            pool,
            end,
        })
    }

    /// Pause, resume, cancel, events.
    pub fn control(&self) -> &Control {
        &self.control
    }

    /// Changes the speed limit, in bytes a second; 0: none.
    pub fn set_speed(&self, bytes_per_second: u64) {
        self.rate.set_speed(bytes_per_second);
        self.control.wake();
    }

    /// Changes what a guest may feel of the copying.
    pub fn set_latency_target(&self, target: LatencyTarget) {
        self.pace.set_target(target);
    }

    /// How much the copying takes at present.
    pub fn standing(&self) -> Standing {
        self.pace.standing()
    }

    /// How far the job is.
    pub fn progress(&self) -> Progress {
        self.filter.progress()
    }

    /// What the job's own workers have moved so far.
    pub fn copied(&self) -> Copied {
        self.pool.copied()
    }

    /// Flushes the target, and answers what is durable there from now on or need
    /// not be there: a later job that leaves it out goes on where this one is.
    ///
    /// # Errors
    ///
    /// What the flush answered; nothing is known then.
    pub async fn checkpoint(&self, shard: &Shard) -> IoResult<Vec<Span>> {
        // Before the flush: what is written while it runs may not be part of it.
        let settled = self.filter.settled();
        self.filter.target().flush(shard).await?;
        Ok(settled)
    }

    /// Whether the job is to stand still, and nothing that it began is left.
    pub fn is_standing_still(&self) -> bool {
        self.control.is_paused()
            && !self.control.is_stopping()
            && self.pool.is_idle()
            && self.outcome().is_none()
    }

    /// Where the outcome will be.
    pub(super) fn end(&self) -> Arc<End> {
        Arc::clone(&self.end)
    }

    /// Rings whenever there may be something new to see of the job.
    pub(super) fn watch(&self, shard: &Shard, bell: Bell) {
        let (here, control, end) = (shard.clone(), Arc::clone(&self.control), self.end());
        shard.spawn(async move {
            // What happened before this task began is news, too.
            let mut seen = 0;
            let mut is_over = false;
            while !is_over {
                let has_more = || control.news() != seen || end.outcome.get().is_some();
                here.wait(&[control.changes(), &end.waiting], None, has_more)
                    .await;
                seen = control.news();
                is_over = end.outcome.get().is_some();
                bell.ring();
            }
        });
    }

    /// Waits until `is_so`, which is asked again whenever the job has changed, or
    /// for the deadline.
    pub(super) async fn changed(
        &self,
        shard: &Shard,
        deadline_ns: u64,
        is_so: impl FnMut() -> bool,
    ) {
        let queues = [self.control.changes(), &self.end.waiting];
        shard.wait(&queues, Some(deadline_ns), is_so).await;
    }

    /// How the job ended, if it has.
    pub fn outcome(&self) -> Option<Outcome> {
        self.end.outcome.get().copied()
    }

    /// Waits for the end.
    pub async fn ended(&self, shard: &Shard) -> Outcome {
        self.end.reached(shard).await;
        self.outcome().expect("the wait ends with an outcome")
    }
}

impl Options {
    /// What can be said without knowing the disk.
    pub(super) fn check_workers(&self) -> Result<(), OptionError> {
        if self.max_workers == 0 || i32::try_from(self.max_workers).is_err() {
            return Err(OptionError::MaxWorkers);
        }
        Ok(())
    }

    /// Whether the options can be met with this unit of copying.
    pub(super) fn check(&self, cluster_size: u64) -> Result<(), OptionError> {
        self.check_workers()?;
        if self.max_chunk != 0 && self.max_chunk < cluster_size {
            return Err(OptionError::MaxChunk {
                max_chunk: self.max_chunk,
                cluster_size,
            });
        }
        Ok(())
    }
}

/// The job itself.
struct Run {
    filter: Arc<CopyBeforeWrite>,
    control: Arc<Control>,
    pool: Arc<Pool>,
    sync: Sync,
    workers: usize,
}

impl Run {
    async fn run(self, shard: &Shard) -> Outcome {
        let start = shard.now_ns();
        let result = match self.sync {
            Sync::Full => self.copy_all(shard).await,
            Sync::Top => {
                self.leave_out_unallocated(shard).await;
                self.copy_all(shard).await
            }
            Sync::None => self.serve_guests(shard).await,
        };
        let duration_ns = shard.now_ns() - start;
        Outcome {
            result,
            copied: self.pool.copied(),
            duration_ns,
        }
    }

    async fn copy_all(&self, shard: &Shard) -> Result<(), JobError> {
        loop {
            self.pool.run(shard, self.workers).await;
            // A guest's save may still fail and leave its clusters to us.
            self.filter.wait_for_saves_in_flight(shard).await;
            if let Some(failure) = self.failure() {
                return Err(failure);
            }
            if !self.filter.has_untouched() {
                return self.flush(shard).await;
            }
        }
    }

    /// Clusters of which the topmost image holds nothing are not copied.
    async fn leave_out_unallocated(&self, shard: &Shard) {
        let mut at = 0;
        let size = self.filter.size();
        while at < size && self.control.may_go_on(shard).await {
            let rest = Span::between(at, size);
            // A source that cannot tell holds everything itself.
            let Ok(extent) = self.filter.source().extent(shard, rest).await else {
                return;
            };
            let span = Span::new(at, extent.len.clamp(1, rest.len));
            if extent.depth != 1 {
                self.filter.leave_out(span);
            }
            at = span.end();
            shard.yield_now().await;
        }
    }

    async fn serve_guests(&self, shard: &Shard) -> Result<(), JobError> {
        let queues = [self.control.changes(), self.filter.breaks()];
        let ended = || self.control.is_stopping() || self.filter.broken().is_some();
        shard.wait(&queues, None, ended).await;
        self.filter.wait_for_saves_in_flight(shard).await;
        match self.failure() {
            Some(JobError::Cancelled) | None => self.flush(shard).await,
            Some(failure) => Err(failure),
        }
    }

    /// A broken snapshot counts for more than whatever ended the workers.
    fn failure(&self) -> Option<JobError> {
        match self.filter.broken() {
            Some(errno) => Some(JobError::SnapshotBroken(errno)),
            None => self.control.failure(),
        }
    }

    async fn flush(&self, shard: &Shard) -> Result<(), JobError> {
        self.filter
            .target()
            .flush(shard)
            .await
            .map_err(JobError::Flush)
    }
}
