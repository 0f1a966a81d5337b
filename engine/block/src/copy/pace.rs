//! The governor at work: what the workers of a copy may do now, and the task
//! that asks the law ([`super::governor`]) what that is.

use std::sync::{Arc, Mutex, PoisonError};

use ringback_ring::Shard;

use crate::copy::control::Control;
use crate::copy::governor::{
    Allowance, Ceiling, Governor, LatencyTarget, Seen, Standing, TICK_NS, whole,
};
use crate::copy::guest::GuestWatch;
use crate::sync::{AtomicBool, AtomicU64, Ordering, WaitQueue, fence};

/// Parts of a whole in which a duty is kept.
const WHOLE: f64 = 1024.0;
/// The longest rest after a copy.
const REST_NS_MAX: u64 = 100_000_000;
/// No copy has ended.
const NONE: u64 = u64::MAX;

/// Shared by the workers of a copy, on all shards, and by who watches over them.
pub(crate) struct Pace {
    ceiling: Ceiling,
    // Written by the task, read by the workers.
    depth: AtomicU64,
    chunk: AtomicU64,
    /// In parts of [`WHOLE`].
    duty: AtomicU64,
    /// Bytes before a flush.
    unflushed_max: AtomicU64,
    /// Nothing is left to begin for those who wait.
    is_done: AtomicBool,
    /// Nobody works any more.
    is_over: AtomicBool,
    /// Woken when one of the above changes.
    changed: WaitQueue,
    /// A worker makes the target durable.
    is_flushing: AtomicBool,
    /// How often one has, and how long that took.
    flushes: AtomicU64,
    flushing_ns: AtomicU64,
    /// Bytes written since.
    unflushed: AtomicU64,
    // Written by the workers.
    started: AtomicU64,
    ended: AtomicU64,
    copied: AtomicU64,
    fastest_ns: AtomicU64,
    // For the job's owner.
    slow: Mutex<Slow>,
}

#[derive(Default)]
struct Slow {
    target: LatencyTarget,
    standing: Standing,
}

impl Pace {
    pub(crate) fn new(ceiling: Ceiling, target: LatencyTarget) -> Self {
        let slow = Slow {
            target,
            standing: Standing::default(),
        };
        let this = Self {
            ceiling,
            depth: AtomicU64::new(0),
            chunk: AtomicU64::new(0),
            duty: AtomicU64::new(0),
            unflushed_max: AtomicU64::new(0),
            is_done: AtomicBool::new(false),
            is_over: AtomicBool::new(false),
            changed: WaitQueue::new(),
            is_flushing: AtomicBool::new(false),
            flushes: AtomicU64::new(0),
            flushing_ns: AtomicU64::new(0),
            unflushed: AtomicU64::new(0),
            started: AtomicU64::new(0),
            ended: AtomicU64::new(0),
            copied: AtomicU64::new(0),
            fastest_ns: AtomicU64::new(NONE),
            slow: Mutex::new(slow),
        };
        this.allow(Allowance::all(ceiling));
        this
    }

    fn slow(&self) -> std::sync::MutexGuard<'_, Slow> {
        self.slow.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What the guest may feel, from the next tick on.
    pub(crate) fn set_target(&self, target: LatencyTarget) {
        self.slow().target = target;
        self.wake();
    }

    pub(crate) fn target(&self) -> LatencyTarget {
        self.slow().target
    }

    /// So many bytes were written. Whether the caller has to flush the target now, and
    /// to say when it has.
    pub(crate) fn must_flush(&self, written: u64) -> bool {
        let unflushed = self.unflushed.fetch_add(written, Ordering::Relaxed) + written;
        if unflushed < self.unflushed_max.load(Ordering::Relaxed)
            || self.is_flushing.swap(true, Ordering::AcqRel)
        {
            return false;
        }
        self.unflushed.store(0, Ordering::Relaxed);
        true
    }

    /// A flush has ended.
    pub(crate) fn end_flush(&self, took_ns: u64) {
        self.flushing_ns.fetch_add(took_ns, Ordering::Relaxed);
        self.flushes.fetch_add(1, Ordering::Release);
        self.is_flushing.store(false, Ordering::Release);
    }

    pub(crate) fn standing(&self) -> Standing {
        self.slow().standing
    }

    fn wake(&self) {
        // The change first, then the look for who waits for it.
        fence(Ordering::SeqCst);
        self.changed.wake_all();
    }

    fn allow(&self, allowance: Allowance) {
        self.chunk.store(allowance.chunk, Ordering::Relaxed);
        let duty = whole((allowance.duty * WHOLE).round().clamp(1.0, WHOLE));
        self.duty.store(duty, Ordering::Relaxed);
        self.unflushed_max
            .store(allowance.unflushed, Ordering::Relaxed);
        // Fewer is seen when a worker comes back; for more they are woken.
        if self.depth.swap(allowance.depth, Ordering::Relaxed) < allowance.depth {
            self.wake();
        }
    }

    /// Bytes of a chunk, at most.
    pub(crate) fn chunk(&self) -> u64 {
        self.chunk.load(Ordering::Relaxed)
    }

    /// Waits until the worker of this number may begin a chunk. False: there is
    /// nothing left to begin, or the job was told to stop.
    pub(crate) async fn turn(&self, shard: &Shard, control: &Control, number: u64) -> bool {
        let may_begin = || number < self.depth.load(Ordering::Relaxed);
        let is_done = || self.is_done.load(Ordering::Acquire);
        loop {
            if !control.may_go_on(shard).await {
                return false;
            }
            if may_begin() {
                return true;
            }
            if is_done() {
                return false;
            }
            let queues = [&self.changed, control.changes()];
            let look_again =
                || may_begin() || is_done() || control.is_paused() || control.is_stopping();
            shard.wait(&queues, None, look_again).await;
        }
    }

    /// A copy of data begins.
    pub(crate) fn begin_copy(&self) {
        self.started.fetch_add(1, Ordering::Relaxed);
    }

    /// It has ended. How long its worker rests now.
    pub(crate) fn end_copy(&self, bytes: u64, took_ns: u64) -> u64 {
        self.copied.fetch_add(bytes, Ordering::Relaxed);
        if bytes > 0 {
            self.fastest_ns.fetch_min(took_ns, Ordering::Relaxed);
        }
        self.ended.fetch_add(1, Ordering::Release);
        let duty = self.duty.load(Ordering::Relaxed) as f64 / WHOLE;
        whole(took_ns as f64 * (1.0 / duty - 1.0)).min(REST_NS_MAX)
    }

    /// Workers are about to start.
    pub(crate) fn start(&self) {
        self.is_done.store(false, Ordering::Release);
        self.is_over.store(false, Ordering::Release);
    }

    /// Those who wait for their turn need not wait any longer.
    pub(crate) fn end_waiting(&self) {
        self.is_done.store(true, Ordering::Release);
        self.wake();
    }

    /// All workers have ended.
    pub(crate) fn end(&self) {
        self.is_over.store(true, Ordering::Release);
        self.wake();
    }

    fn seen(&self, shard: &Shard, watch: &GuestWatch) -> Seen {
        // Ends first, so that no more have ended than have begun.
        let ended = self.ended.load(Ordering::Acquire);
        let fastest_ns = self.fastest_ns.swap(NONE, Ordering::Relaxed);
        let now_ns = shard.now_ns();
        Seen {
            now_ns,
            guest: watch.counts(now_ns),
            copies_started: self.started.load(Ordering::Relaxed),
            copies_ended: ended,
            copied: self.copied.load(Ordering::Relaxed),
            fastest_copy_ns: (fastest_ns != NONE).then_some(fastest_ns),
            is_flushing: self.is_flushing.load(Ordering::Acquire),
            flushes: self.flushes.load(Ordering::Acquire),
            flushing_ns: self.flushing_ns.load(Ordering::Relaxed),
        }
    }

    /// Asks the law at every tick and passes its answers on, until
    /// [`Pace::end`]. With no target it waits for one.
    pub(crate) async fn keep(&self, shard: &Shard, control: &Control, watch: &GuestWatch) {
        let is_over = || self.is_over.load(Ordering::Acquire);
        while !is_over() {
            if self.target() == LatencyTarget::Off {
                let allowance = Allowance::all(self.ceiling);
                self.allow(allowance);
                self.slow().standing = Standing {
                    depth: allowance.depth,
                    chunk: allowance.chunk,
                    ..Standing::default()
                };
                let has_target = || is_over() || self.target() != LatencyTarget::Off;
                shard.wait(&[&self.changed], None, has_target).await;
            } else {
                watch.want();
                self.govern(shard, control, watch).await;
                watch.forget();
            }
        }
    }

    /// As long as there is a target.
    async fn govern(&self, shard: &Shard, control: &Control, watch: &GuestWatch) {
        let is_over = || self.is_over.load(Ordering::Acquire);
        let mut target = self.target();
        let mut governor = Governor::new(self.ceiling, target, self.seen(shard, watch));
        while !is_over() && target != LatencyTarget::Off {
            self.allow(governor.tick(self.seen(shard, watch)));
            self.slow().standing = governor.standing();
            let next_ns = shard.now_ns() + TICK_NS;
            shard.wait(&[&self.changed], Some(next_ns), is_over).await;
            if control.is_paused() && !control.is_stopping() {
                let goes_on = || is_over() || !control.is_paused() || control.is_stopping();
                let queues = [&self.changed, control.changes()];
                shard.wait(&queues, None, goes_on).await;
                governor.resume(self.seen(shard, watch));
            }
            let wanted = self.target();
            if wanted != target {
                target = wanted;
                governor.set_target(target);
            }
        }
    }
}

/// Starts the task that keeps the pace on the caller's shard.
pub(crate) fn keep_pace(
    shard: &Shard,
    pace: &Arc<Pace>,
    control: &Arc<Control>,
    watch: &Arc<GuestWatch>,
) -> ringback_ring::shard::Task<()> {
    let (home, pace) = (shard.clone(), Arc::clone(pace));
    let (control, watch) = (Arc::clone(control), Arc::clone(watch));
    shard.spawn(async move { pace.keep(&home, &control, &watch).await })
}
