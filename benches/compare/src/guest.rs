//! A guest: a load over NBD whose latencies are kept apart by phases.

use std::path::Path;
use std::sync::atomic::{AtomicU16, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;
use nix::sys::prctl;

use crate::history::History;
use crate::nbd_client::{Client, Feed, Pace, Times, Work, drive};
use crate::pattern::{BLOCK, mix};

/// What a copy-before-write filter saves at once.
pub(crate) const CLUSTER: u64 = 64 << 10;
/// Longest latency that is told apart, in nanoseconds.
const LONGEST_NS: u64 = 600_000_000_000;

/// Where a guest writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Order {
    /// Anywhere.
    Random,
    /// One behind the other, and around the end.
    Sequential,
    /// The first write to each cluster, in random order; then it ends.
    FirstWrites,
}

/// What a guest does.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Load {
    pub(crate) order: Order,
    /// Bytes of a request.
    pub(crate) len: usize,
    pub(crate) pace: Pace,
}

/// What one phase was like for the guest. A request belongs to the phase in which
/// it is answered.
#[derive(Clone, Debug)]
pub(crate) struct Phase {
    /// From when a request was due to its answer, in nanoseconds.
    pub(crate) latency: Histogram<u64>,
    pub(crate) bytes: u64,
    pub(crate) seconds: f64,
}

impl Phase {
    fn new() -> Self {
        Self {
            latency: Histogram::new_with_bounds(1, LONGEST_NS, 3)
                .expect("the bounds are constant and valid"),
            bytes: 0,
            seconds: 0.0,
        }
    }

    fn requests(&self) -> f64 {
        f64::from(u32::try_from(self.latency.len()).unwrap_or(u32::MAX))
    }

    /// Requests a second.
    pub(crate) fn rate(&self) -> f64 {
        self.requests() / self.seconds
    }

    /// A latency in milliseconds; none without requests.
    pub(crate) fn percentile(&self, quantile: f64) -> f64 {
        if self.latency.is_empty() {
            return f64::NAN;
        }
        millis(self.latency.value_at_quantile(quantile))
    }

    /// The longest latency in milliseconds; none without requests.
    pub(crate) fn longest(&self) -> f64 {
        self.percentile(1.0)
    }
}

fn millis(ns: u64) -> f64 {
    Duration::from_nanos(ns).as_secs_f64() * 1e3
}

/// What the guest's thread and its owner share.
#[derive(Debug)]
struct Shared {
    /// When it was told to stop.
    stop: OnceLock<Instant>,
    generation: AtomicU16,
    phase: AtomicUsize,
    /// When each phase began.
    begins: Mutex<Vec<Instant>>,
}

impl Shared {
    fn begins(&self) -> MutexGuard<'_, Vec<Instant>> {
        self.begins.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A guest that runs. It has to be stopped.
#[derive(Debug)]
pub(crate) struct Guest {
    shared: Arc<Shared>,
    thread: JoinHandle<Result<Vec<Phase>, String>>,
}

impl Guest {
    /// Connects, and starts with the first phase, writing this generation.
    pub(crate) fn start(
        socket: &Path,
        export: &str,
        load: Load,
        history: &Arc<History>,
        generation: u16,
    ) -> Result<Self, String> {
        let mut client = Client::connect(socket, export)?;
        let shared = Arc::new(Shared {
            stop: OnceLock::new(),
            generation: AtomicU16::new(generation),
            phase: AtomicUsize::new(0),
            begins: Mutex::new(vec![Instant::now()]),
        });
        let mut writes = Writes::new(load, client.size, generation, &shared, history);
        let thread = std::thread::spawn(move || {
            // A request is due at a time, not fifty microseconds later.
            prctl::set_timerslack(1).map_err(|errno| format!("timer slack: {errno}"))?;
            let end = drive(&mut client, load.pace, &mut writes);
            end.map_err(|error| format!("the guest: {error}"))?;
            Ok(writes.finish())
        });
        Ok(Self { shared, thread })
    }

    /// What is answered from here on belongs to the next phase.
    pub(crate) fn next_phase(&self) {
        let mut begins = self.shared.begins();
        begins.push(Instant::now());
        self.shared.phase.store(begins.len() - 1, Ordering::SeqCst);
    }

    /// What is sent from here on is of this generation.
    pub(crate) fn write(&self, generation: u16) {
        self.shared.generation.store(generation, Ordering::SeqCst);
    }

    /// Has everything answered that is due or in flight, and answers all phases.
    pub(crate) fn stop(self) -> Result<Vec<Phase>, String> {
        self.shared.stop.get_or_init(Instant::now);
        self.finish()
    }

    /// Waits until it ends by itself.
    pub(crate) fn finish(self) -> Result<Vec<Phase>, String> {
        let end = self.thread.join();
        end.map_err(|_| "the guest panicked".to_owned())?
    }
}

/// The feed of a guest.
struct Writes {
    load: Load,
    size: u64,
    /// Of the random numbers.
    seed: u64,
    next: u64,
    clusters: Vec<u64>,
    shared: Arc<Shared>,
    history: Arc<History>,
    phases: Vec<Phase>,
}

impl Writes {
    fn new(
        load: Load,
        size: u64,
        generation: u16,
        shared: &Arc<Shared>,
        history: &Arc<History>,
    ) -> Self {
        let seed = u64::from(generation) << 32;
        let mut clusters = Vec::new();
        if load.order == Order::FirstWrites {
            clusters.extend(0..size / CLUSTER);
            clusters.sort_by_key(|cluster| mix(seed + cluster));
        }
        Self {
            load,
            size,
            seed,
            next: 0,
            clusters,
            shared: Arc::clone(shared),
            history: Arc::clone(history),
            phases: vec![Phase::new()],
        }
    }

    fn offset(&self, index: u64) -> Option<u64> {
        let len = self.load.len as u64;
        let places = self.size / len;
        Some(match self.load.order {
            Order::Random => mix(self.seed.wrapping_add(index)) % places * len,
            Order::Sequential => index % places * len,
            Order::FirstWrites => {
                let cluster = self.clusters.get(usize::try_from(index).ok()?)?;
                cluster * CLUSTER + cluster % (CLUSTER / len) * len
            }
        })
    }

    fn finish(mut self) -> Vec<Phase> {
        let mut begins = self.shared.begins().clone();
        begins.push(*self.shared.stop.get_or_init(Instant::now));
        self.phases.resize_with(begins.len() - 1, Phase::new);
        for (phase, pair) in self.phases.iter_mut().zip(begins.windows(2)) {
            phase.seconds = pair[1].duration_since(pair[0]).as_secs_f64();
        }
        self.phases
    }
}

impl Feed for Writes {
    fn next(&mut self, due: Instant) -> Option<Work> {
        // What was due before is sent, so that what has been held back counts.
        if self.shared.stop.get().is_some_and(|&stop| due >= stop) {
            return None;
        }
        let offset = self.offset(self.next)?;
        self.next += 1;
        Some(Work {
            generation: Some(self.shared.generation.load(Ordering::SeqCst)),
            offset,
            len: self.load.len,
        })
    }

    fn done(&mut self, work: &Work, _bytes: &[u8], times: Times) -> Result<(), String> {
        if let Some(generation) = work.generation {
            self.history.settle(work.offset, work.len, generation);
        }
        let phase = self.shared.phase.load(Ordering::SeqCst);
        if phase >= self.phases.len() {
            self.phases.resize_with(phase + 1, Phase::new);
        }
        let phase = &mut self.phases[phase];
        let latency = times.answered.duration_since(times.due);
        let latency = u64::try_from(latency.as_nanos()).unwrap_or(u64::MAX);
        phase.latency.saturating_record(latency);
        phase.bytes += work.len as u64;
        Ok(())
    }
}

/// 4 KiB.
pub(crate) const SMALL: usize = BLOCK;

#[cfg(test)]
mod tests {
    use super::*;

    fn writes(order: Order, len: usize) -> Writes {
        let load = Load {
            order,
            len,
            pace: Pace::Depth(1),
        };
        let shared = Arc::new(Shared {
            stop: OnceLock::new(),
            generation: AtomicU16::new(1),
            phase: AtomicUsize::new(0),
            begins: Mutex::new(vec![Instant::now()]),
        });
        let size = 16 * CLUSTER;
        Writes::new(load, size, 1, &shared, &Arc::new(History::new(size)))
    }

    #[test]
    fn first_writes_touch_each_cluster_once() {
        let mut writes = writes(Order::FirstWrites, SMALL);
        let offsets = std::iter::from_fn(|| writes.next(Instant::now()).map(|work| work.offset));
        let offsets: Vec<u64> = offsets.collect();
        assert!(!offsets.is_sorted());
        let mut clusters: Vec<u64> = offsets.iter().map(|offset| offset / CLUSTER).collect();
        clusters.sort_unstable();
        assert_eq!(clusters, (0..16).collect::<Vec<_>>());
    }

    #[test]
    fn what_was_held_back_is_sent_after_the_stop() {
        let mut writes = writes(Order::Sequential, SMALL);
        let due = Instant::now();
        writes
            .shared
            .stop
            .set(due + Duration::from_secs(1))
            .unwrap();
        assert!(writes.next(due).is_some());
        assert_eq!(writes.next(due + Duration::from_secs(1)), None);
        assert_eq!(writes.finish().len(), 1);
    }

    #[test]
    fn random_writes_stay_inside() {
        let mut writes = writes(Order::Random, SMALL);
        for _ in 0..1000 {
            let offset = writes.next(Instant::now()).unwrap().offset;
            assert!(offset.is_multiple_of(4096) && offset < 16 * CLUSTER);
        }
    }

    #[test]
    fn latency_counts_from_when_a_request_was_due() {
        let mut writes = writes(Order::Sequential, SMALL);
        let work = writes.next(Instant::now()).unwrap();
        let due = Instant::now();
        let times = Times {
            due,
            answered: due + Duration::from_millis(40),
        };
        writes.done(&work, &[], times).unwrap();
        let phases = writes.finish();
        assert!((39.9..40.1).contains(&phases[0].longest()));
        assert_eq!(phases[0].bytes, 4096);
    }
}
