//! A guest: a load over NBD whose latencies are kept apart by phases.

use std::ops::Range;
use std::path::Path;
use std::sync::atomic::{AtomicU16, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;

use crate::drive::{Driven, Feed, Pace, Times, Work};
use crate::history::History;
use crate::nbd_client::Client;
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

/// A part of a disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Area {
    All,
    FirstHalf,
    SecondHalf,
}

impl Area {
    /// Of a disk of this size, in whole clusters.
    pub(crate) fn of(self, size: u64) -> Range<u64> {
        let middle = size / 2 / CLUSTER * CLUSTER;
        match self {
            Self::All => 0..size,
            Self::FirstHalf => 0..middle,
            Self::SecondHalf => middle..size,
        }
    }
}

/// What a guest does.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Load {
    pub(crate) order: Order,
    pub(crate) area: Area,
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
    /// The longest of all that were due or in flight in it, even if they were answered
    /// later.
    longest_touching_ns: u64,
    /// Those that were answered before the guest was told to stop. Who falls behind has
    /// a backlog then, whose answers are late: they say nothing about its rate.
    answered: u32,
    /// To the next phase, or until the guest was told to stop.
    seconds: f64,
}

impl Phase {
    fn new() -> Self {
        Self {
            latency: Histogram::new_with_bounds(1, LONGEST_NS, 3)
                .expect("the bounds are constant and valid"),
            longest_touching_ns: 0,
            answered: 0,
            seconds: 0.0,
        }
    }

    /// Requests that were answered in time.
    pub(crate) fn answered(&self) -> f64 {
        self.answered.into()
    }

    /// The same a second.
    pub(crate) fn rate(&self) -> f64 {
        self.answered() / self.seconds
    }

    /// A latency in milliseconds; none without requests.
    pub(crate) fn percentile(&self, quantile: f64) -> f64 {
        if self.latency.is_empty() {
            return f64::NAN;
        }
        millis(self.latency.value_at_quantile(quantile))
    }

    /// Latencies in milliseconds; none without requests.
    pub(crate) fn percentiles<const N: usize>(&self, quantiles: [f64; N]) -> [f64; N] {
        quantiles.map(|quantile| self.percentile(quantile))
    }

    /// The longest latency in milliseconds; none without requests.
    pub(crate) fn longest(&self) -> f64 {
        self.percentile(1.0)
    }

    /// The same, of requests too that were in flight at its end: who is held by
    /// something that comes in a phase may be answered after it.
    pub(crate) fn longest_touching(&self) -> f64 {
        match self.longest_touching_ns {
            0 => f64::NAN,
            ns => millis(ns),
        }
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

/// A guest that runs. Cut off when dropped.
#[derive(Debug)]
pub(crate) struct Guest {
    shared: Arc<Shared>,
    writes: Driven<Vec<Phase>>,
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
        let client = Client::connect(socket, export)?;
        let shared = Arc::new(Shared {
            stop: OnceLock::new(),
            generation: AtomicU16::new(generation),
            phase: AtomicUsize::new(0),
            begins: Mutex::new(vec![Instant::now()]),
        });
        let writes = Writes::new(load, client.size, generation, &shared, history);
        let writes = Driven::start("the guest", client, load.pace, writes, Writes::finish)?;
        Ok(Self { shared, writes })
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
        self.writes.join()
    }

    /// The same of a guest that had one phase only.
    pub(crate) fn stop_in_first_phase(self) -> Result<Phase, String> {
        only(self.stop()?)
    }

    /// Waits until it ends by itself, in its first phase.
    pub(crate) fn finish(self) -> Result<Phase, String> {
        only(self.writes.join()?)
    }
}

fn only(phases: Vec<Phase>) -> Result<Phase, String> {
    let one = <[Phase; 1]>::try_from(phases);
    let [phase] = one.map_err(|_| "a guest of one phase has another one")?;
    Ok(phase)
}

/// The feed of a guest.
struct Writes {
    load: Load,
    /// Where it writes.
    area: Range<u64>,
    /// Of the random numbers.
    seed: u64,
    next: u64,
    clusters: Vec<u64>,
    shared: Arc<Shared>,
    history: Arc<History>,
    phases: Vec<Phase>,
    /// When each of those began.
    begins: Vec<Instant>,
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
        let area = load.area.of(size);
        let mut clusters = Vec::new();
        if load.order == Order::FirstWrites {
            clusters.extend(area.start / CLUSTER..area.end / CLUSTER);
            clusters.sort_by_key(|cluster| mix(seed + cluster));
        }
        Self {
            load,
            area,
            seed,
            next: 0,
            clusters,
            shared: Arc::clone(shared),
            history: Arc::clone(history),
            phases: Vec::new(),
            begins: Vec::new(),
        }
    }

    fn offset(&self, index: u64) -> Option<u64> {
        let len = self.load.len as u64;
        let Range { start, end } = self.area;
        let places = (end - start) / len;
        Some(match self.load.order {
            Order::Random => start + mix(self.seed.wrapping_add(index)) % places * len,
            Order::Sequential => start + index % places * len,
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
        let current = self.shared.phase.load(Ordering::SeqCst);
        if current >= self.phases.len() {
            self.phases.resize_with(current + 1, Phase::new);
            self.begins.clone_from(&self.shared.begins());
        }
        let latency = times.answered.duration_since(times.due);
        let latency = u64::try_from(latency.as_nanos()).unwrap_or(u64::MAX);
        for index in (0..=current).rev() {
            let phase = &mut self.phases[index];
            phase.longest_touching_ns = phase.longest_touching_ns.max(latency);
            if self.begins[index] <= times.due {
                break;
            }
        }
        let phase = &mut self.phases[current];
        phase.latency.saturating_record(latency);
        let stop = self.shared.stop.get();
        if stop.is_none_or(|&stop| times.answered <= stop) {
            phase.answered += 1;
        }
        Ok(())
    }
}

/// 4 KiB.
pub(crate) const SMALL: usize = BLOCK;

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// With one request that took so long.
    pub(crate) fn phase(ms: u64) -> Phase {
        let mut phase = Phase::new();
        phase.longest_touching_ns = ms * 1_000_000;
        phase.latency.saturating_record(ms * 1_000_000);
        phase
    }

    fn writes(order: Order, len: usize) -> Writes {
        let load = Load {
            order,
            area: Area::All,
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
    fn who_is_held_in_a_phase_counts_there_though_it_is_answered_later() {
        let mut writes = writes(Order::Sequential, SMALL);
        let work = writes.next(Instant::now()).unwrap();
        let begin = writes.shared.begins()[0];
        let at = |ms: u64| begin + Duration::from_millis(ms);
        writes.shared.begins().extend([at(100), at(200)]);
        let mut answer = |phase: usize, due: u64, answered: u64| {
            writes.shared.phase.store(phase, Ordering::SeqCst);
            let (due, answered) = (at(due), at(answered));
            writes.done(&work, &[], Times { due, answered }).unwrap();
        };
        answer(0, 10, 20);
        answer(2, 150, 220);
        let phases = writes.finish();
        let longest = phases.iter().map(|phase| phase.longest_touching().round());
        assert_eq!(longest.collect::<Vec<_>>(), [10.0, 70.0, 70.0]);
        assert!(phases[1].longest().is_nan());
    }

    #[test]
    fn a_guest_that_falls_behind_has_a_lower_rate() {
        let mut writes = writes(Order::Sequential, SMALL);
        let begin = writes.shared.begins()[0];
        let at = |ms: u64| begin + Duration::from_millis(ms);
        writes.shared.stop.set(at(1000)).unwrap();
        // Ten were due before the stop, and only four of them were answered by then.
        for (due, answered) in (0..10).map(|index| (at(100 * index), at(250 * (index + 1)))) {
            let work = writes.next(due).unwrap();
            writes.done(&work, &[], Times { due, answered }).unwrap();
        }
        let [phase] = writes.finish().try_into().unwrap();
        assert_eq!((phase.latency.len(), phase.rate()), (10, 4.0));
    }

    #[test]
    fn halves_of_a_disk_share_no_cluster() {
        let size = 15 * CLUSTER;
        let (first, second) = (Area::FirstHalf.of(size), Area::SecondHalf.of(size));
        assert_eq!((first.start, second.end), (0, size));
        assert_eq!(first.end, second.start);
        assert!(first.end.is_multiple_of(CLUSTER));
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
    }
}
