//! What every participant of a comparison is asked to do, and what came of it.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use nix::sys::resource::{Usage, UsageWho, getrusage};
use nix::sys::time::TimeVal;

use crate::pattern::{Content, Order};

/// When a run ends.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Limit {
    /// After this time.
    Time(Duration),
    /// After this many requests.
    Requests(u64),
}

/// Reads, or writes.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Direction {
    /// Every sector is checked.
    Read,
    /// Of this generation, with a flush at the end.
    Write(u8),
}

/// One run.
#[derive(Clone)]
pub(crate) struct Load {
    /// Bytes of the disk.
    pub(crate) size: u64,
    /// Bytes of a cluster, where there are any.
    pub(crate) cluster_size: u64,
    /// Bytes of a request.
    pub(crate) len: usize,
    /// Requests in flight, of all shards together.
    pub(crate) depth: usize,
    pub(crate) order: Order,
    pub(crate) direction: Direction,
    pub(crate) limit: Limit,
    pub(crate) content: Arc<Content>,
    /// Bypasses the page cache.
    pub(crate) direct: bool,
}

impl Load {
    /// Offsets that bring the whole mapping into any cache of it: 4 KiB of an
    /// L2 table are the least that anybody loads.
    pub(crate) fn warm_up(&self) -> impl Iterator<Item = u64> + use<> {
        let step = usize::try_from(self.cluster_size).unwrap_or(1 << 16) * 512;
        (0..self.size).step_by(step)
    }

    /// Offsets of worker `worker` of `workers`.
    pub(crate) fn requests(&self, worker: u64, workers: u64) -> Requests {
        Requests {
            load: self.clone(),
            next: worker,
            workers,
            deadline: match self.limit {
                Limit::Time(duration) => Some(Instant::now() + duration),
                Limit::Requests(_) => None,
            },
        }
    }

    /// Fills a buffer if the load writes.
    pub(crate) fn prepare(&self, bytes: &mut [u8], offset: u64) {
        if let Direction::Write(generation) = self.direction {
            self.content.prepare(bytes, offset, generation);
        }
    }

    pub(crate) fn writes(&self) -> bool {
        matches!(self.direction, Direction::Write(_))
    }
}

/// Every how many requests the clock is asked.
const CLOCK_INTERVAL: u64 = 16;

/// The offsets of one worker.
pub(crate) struct Requests {
    load: Load,
    next: u64,
    workers: u64,
    deadline: Option<Instant>,
}

impl Iterator for Requests {
    type Item = u64;

    fn next(&mut self) -> Option<u64> {
        let index = self.next;
        let ends = match (self.load.limit, self.deadline) {
            (Limit::Requests(count), _) => index >= count,
            (_, Some(deadline)) => {
                (index / self.workers).is_multiple_of(CLOCK_INTERVAL) && Instant::now() >= deadline
            }
            _ => false,
        };
        if ends {
            return None;
        }
        self.next += self.workers;
        let Load { size, len, .. } = self.load;
        Some(self.load.order.offset(index, size, len))
    }
}

/// What came of a run.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Outcome {
    pub(crate) requests: u64,
    pub(crate) seconds: f64,
    /// Processor time of the program, its kernel time included.
    pub(crate) cpu_seconds: f64,
}

impl Outcome {
    pub(crate) fn rate(&self) -> f64 {
        self.requests_f64() / self.seconds
    }

    /// Microseconds of processor time a request.
    pub(crate) fn cpu_micros(&self) -> f64 {
        self.cpu_seconds * 1e6 / self.requests_f64()
    }

    fn requests_f64(&self) -> f64 {
        f64::from(u32::try_from(self.requests).unwrap_or(u32::MAX).max(1))
    }
}

/// A clock and a meter of processor time.
pub(crate) struct Meter {
    who: UsageWho,
    start: Instant,
    used: f64,
}

impl Meter {
    /// Of this process, or of the children that it has waited for.
    pub(crate) fn start(who: UsageWho) -> Result<Self, String> {
        Ok(Self {
            who,
            used: used(who)?,
            start: Instant::now(),
        })
    }

    pub(crate) fn stop(self, requests: u64) -> Result<Outcome, String> {
        let seconds = self.start.elapsed().as_secs_f64();
        let cpu_seconds = used(self.who)? - self.used;
        Ok(Outcome {
            requests,
            seconds,
            cpu_seconds,
        })
    }
}

fn used(who: UsageWho) -> Result<f64, String> {
    let seconds = |time: TimeVal| {
        Duration::from_micros(u64::try_from(time.tv_usec()).unwrap_or(0)).as_secs_f64()
            + Duration::from_secs(u64::try_from(time.tv_sec()).unwrap_or(0)).as_secs_f64()
    };
    let usage: Usage = getrusage(who).map_err(|errno| format!("getrusage: {errno}"))?;
    Ok(seconds(usage.user_time()) + seconds(usage.system_time()))
}

/// What is compared.
pub(crate) trait Program {
    /// Runs a load on the file, opened for it and closed afterwards; only the
    /// requests, and the flush if it writes, count.
    fn run(&self, file: &Path, load: &Load) -> Result<Outcome, String>;
}
