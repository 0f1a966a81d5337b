//! The guest: queues of requests, each with several in flight, each block of the
//! disk owned by one queue.

use std::num::NonZeroU32;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use hdrhistogram::Histogram;
use ringback_block::metrics;
use ringback_block::port::{Attachment, Port};
use ringback_ring::Shard;
use ringback_ring::remote::Answer;

use super::args::Args;
use super::history::{QueueHistory, Snapshot};
use super::layout::DiskLayout;
use super::load::{Choice, Pacer, QueueLoad, RequestKind};

/// Stretches of the load that are reported apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Phase {
    /// The guest alone.
    Baseline,
    /// While the backup runs.
    During,
    /// Not reported any more.
    After,
}

/// The longest sleep of a guest that has nothing to do yet.
const SLEEP_NS: u64 = 50_000_000;

/// What one phase was like for the guest.
#[derive(Clone, Debug)]
pub(crate) struct Stats {
    pub(crate) read: Histogram<u64>,
    pub(crate) write: Histogram<u64>,
}

impl Default for Stats {
    fn default() -> Self {
        Self {
            read: metrics::histogram(),
            write: metrics::histogram(),
        }
    }
}

/// One queue, shared by its tasks and by who looks at it.
struct Queue {
    load: QueueLoad,
    pacer: Pacer,
    history: QueueHistory,
    stats: [Stats; 2],
    reads_checked: u64,
}

struct Shared {
    layout: DiskLayout,
    queues: Vec<Mutex<Queue>>,
    /// Requests have intended starts.
    paced: bool,
    phase: AtomicUsize,
    stopping: AtomicBool,
    /// The first thing that went wrong.
    failure: Mutex<Option<Failure>>,
}

/// What a guest must not see.
#[derive(Clone, Debug)]
pub(crate) enum Failure {
    /// A request failed.
    Request(String),
    /// A read brought something else than was written.
    Mismatch(String),
}

/// The whole load.
#[derive(Clone)]
pub(crate) struct Guest {
    shared: Arc<Shared>,
}

impl Guest {
    /// A guest that has not begun: its disk holds zeroes.
    pub(crate) fn new(layout: DiskLayout, args: &Args) -> Self {
        let queue = |number| {
            Mutex::new(Queue {
                load: QueueLoad::new(
                    layout,
                    number,
                    args.read_share,
                    args.access_order(),
                    args.seed,
                ),
                pacer: Pacer::for_queue(None, 0, number, NonZeroU32::MIN),
                history: QueueHistory::new(layout, number),
                stats: Default::default(),
                reads_checked: 0,
            })
        };
        let shared = Shared {
            layout,
            queues: (0..layout.queue_count).map(queue).collect(),
            paced: args.rate().is_some(),
            phase: AtomicUsize::new(Phase::Baseline as usize),
            stopping: AtomicBool::new(false),
            failure: Mutex::new(None),
        };
        Self {
            shared: Arc::new(shared),
        }
    }

    pub(crate) fn layout(&self) -> &DiskLayout {
        &self.shared.layout
    }

    fn queue(&self, number: u32) -> MutexGuard<'_, Queue> {
        let index = usize::try_from(number).expect("few queues");
        self.shared.queues[index]
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes that a block is being filled before the load begins; its version.
    pub(crate) fn preload(&self, block: u64) -> u32 {
        self.queue(self.shared.layout.owner(block))
            .history
            .preload(block)
    }

    /// Starts the load: queues spread over the shards.
    pub(crate) fn start(&self, shard: &Shard, disk: &Attachment, args: &Args) -> Vec<Answer<()>> {
        let count = NonZeroU32::new(self.shared.layout.queue_count).expect("at least one queue");
        let start_ns = shard.now_ns();
        let mut tasks = Vec::new();
        for number in 0..count.get() {
            self.queue(number).pacer = Pacer::for_queue(args.rate(), start_ns, number, count);
            let index = usize::try_from(number).expect("few queues") % shard.set().count();
            for _ in 0..args.depth {
                let (guest, disk) = (self.clone(), disk.clone());
                tasks.push(shard.set().spawn_on(index, move |shard| async move {
                    guest.work(&shard, &disk.port(&shard), number).await;
                }));
            }
        }
        tasks
    }

    /// One request after the other, until told to stop.
    async fn work(&self, shard: &Shard, port: &Port, number: u32) {
        while !self.shared.stopping.load(Ordering::Relaxed) {
            let due_ns = self.queue(number).pacer.next_due(shard.now_ns());
            while shard.now_ns() < due_ns && !self.shared.stopping.load(Ordering::Relaxed) {
                // In slices: a slow load must not keep its end waiting.
                shard
                    .sleep_until(due_ns.min(shard.now_ns() + SLEEP_NS))
                    .await;
            }
            if self.shared.stopping.load(Ordering::Relaxed) {
                return;
            }
            let choice = {
                let mut queue = self.queue(number);
                let Queue { load, history, .. } = &mut *queue;
                load.next(|block| history.is_busy(block))
            };
            match choice {
                Some(choice) => self.request(shard, port, number, choice, due_ns).await,
                // More requests in flight than blocks.
                None => shard.sleep_ns(100_000).await,
            }
        }
    }

    async fn request(&self, shard: &Shard, port: &Port, number: u32, choice: Choice, due_ns: u64) {
        match choice.kind {
            RequestKind::Read => self.read(shard, port, number, choice.block, due_ns).await,
            RequestKind::Write => self.write(shard, port, number, choice.block, due_ns).await,
        }
    }

    async fn write(&self, shard: &Shard, port: &Port, number: u32, block: u64, due_ns: u64) {
        let layout = &self.shared.layout;
        let len = layout.len(block);
        let version = self.queue(number).history.begin_write(block);
        let mut buf = shard.buffer(len).await;
        super::pattern::fill(layout.seed, block, version, &mut buf);
        // Making the data is our work, not the disk's.
        let start_ns = self.start_of(shard, due_ns);
        let (result, _) = port.write(shard, layout.offset(block), buf, 0..len).await;
        let mut queue = self.queue(number);
        if let Err(errno) = result {
            self.fail(Failure::Request(format!(
                "a guest write of {len} bytes at {} failed: {}",
                layout.offset(block),
                errno.desc()
            )));
            return;
        }
        // In the same step as the answer: what is acknowledged before a point
        // in time belongs to it.
        queue.history.end_write(block);
        if let Some(stats) = self.stats(&mut queue) {
            stats.write.saturating_record(shard.now_ns() - start_ns);
        }
    }

    async fn read(&self, shard: &Shard, port: &Port, number: u32, block: u64, due_ns: u64) {
        let layout = &self.shared.layout;
        let len = layout.len(block);
        self.queue(number).history.begin_read(block);
        let buf = shard.buffer(len).await;
        let start_ns = self.start_of(shard, due_ns);
        let (result, buf) = port.read(shard, layout.offset(block), buf, 0..len).await;
        let duration_ns = shard.now_ns() - start_ns;
        if let Err(errno) = result {
            self.fail(Failure::Request(format!(
                "a guest read of {len} bytes at {} failed: {}",
                layout.offset(block),
                errno.desc()
            )));
            return;
        }
        let mut queue = self.queue(number);
        if let Err(mismatch) = queue.history.end_read(block, &buf) {
            self.fail(Failure::Mismatch(format!("a guest read: {mismatch}")));
        }
        queue.reads_checked += 1;
        if let Some(stats) = self.stats(&mut queue) {
            stats.read.saturating_record(duration_ns);
        }
    }

    /// With a rate, latency counts from when the request was due, so that a
    /// stall counts for every request that it held back.
    fn start_of(&self, shard: &Shard, due_ns: u64) -> u64 {
        if self.shared.paced {
            due_ns
        } else {
            shard.now_ns()
        }
    }

    fn stats<'a>(&self, queue: &'a mut Queue) -> Option<&'a mut Stats> {
        queue
            .stats
            .get_mut(self.shared.phase.load(Ordering::Relaxed))
    }

    fn fail(&self, failure: Failure) {
        let mut first = self
            .shared
            .failure
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        first.get_or_insert(failure);
        self.shared.stopping.store(true, Ordering::Relaxed);
    }

    /// What went wrong first, if anything did.
    pub(crate) fn failure(&self) -> Option<Failure> {
        self.shared
            .failure
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    /// From here on requests count for another phase.
    pub(crate) fn enter(&self, phase: Phase) {
        self.shared.phase.store(phase as usize, Ordering::Relaxed);
    }

    /// No new request.
    pub(crate) fn stop(&self) {
        self.shared.stopping.store(true, Ordering::Relaxed);
    }

    /// The disk as the guest has written it. To be called while nothing is in
    /// flight on the disk.
    pub(crate) fn snapshot(&self) -> Snapshot {
        let shares = (0..self.shared.layout.queue_count)
            .map(|number| self.queue(number).history.freeze())
            .collect();
        Snapshot::new(self.shared.layout, shares)
    }

    /// All queues together.
    pub(crate) fn phase_stats(&self, phase: Phase) -> Stats {
        let mut sum = Stats::default();
        for number in 0..self.shared.layout.queue_count {
            let queue = self.queue(number);
            let stats = &queue.stats[phase as usize];
            sum.read.add(&stats.read).expect("equal bounds");
            sum.write.add(&stats.write).expect("equal bounds");
        }
        sum
    }

    /// How many reads were compared with what had been written.
    pub(crate) fn reads_checked(&self) -> u64 {
        (0..self.shared.layout.queue_count)
            .map(|number| self.queue(number).reads_checked)
            .sum()
    }
}
