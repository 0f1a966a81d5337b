//! What the users of a disk have asked of it: how many requests of which kind,
//! how long they took, and how they ended. Each shard counts for itself; whoever
//! asks adds up.
//!
//! The kinds, what counts as failed and what as invalid, and how histograms are
//! cut are QEMU's.

use thiserror::Error;

/// Kinds of request that are told apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operation {
    /// Reads.
    Read,
    /// Writes, also of zeroes.
    Write,
    /// Data appended to a zone.
    ZoneAppend,
    /// Flushes.
    Flush,
    /// Discards.
    Unmap,
}

impl Operation {
    /// Every kind.
    pub const ALL: [Self; 5] = [
        Self::Read,
        Self::Write,
        Self::ZoneAppend,
        Self::Flush,
        Self::Unmap,
    ];
}

/// Requests of one kind.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counter {
    /// Bytes of requests that succeeded.
    pub bytes: u64,
    /// Requests that succeeded.
    pub operations: u64,
    /// Requests that failed.
    pub failed: u64,
    /// Requests that were refused before they reached the disk.
    pub invalid: u64,
    /// How long requests took, failed ones too, in nanoseconds.
    pub total_time_ns: u64,
}

/// Boundaries do not rise, or one of them is 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error("boundaries must rise and not be 0")]
pub struct BoundaryError;

/// How many requests took how long.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Histogram {
    boundaries: Vec<u64>,
    bins: Vec<u64>,
}

impl Histogram {
    /// An empty one, with a bin below, between and above the boundaries, which
    /// are in nanoseconds. A boundary belongs to the bin above it.
    ///
    /// # Errors
    ///
    /// [`BoundaryError`].
    pub fn new(boundaries: &[u64]) -> Result<Self, BoundaryError> {
        let rises = boundaries.windows(2).all(|pair| pair[0] < pair[1]);
        if !rises || boundaries.first() == Some(&0) {
            return Err(BoundaryError);
        }
        Ok(Self {
            boundaries: boundaries.to_vec(),
            bins: vec![0; boundaries.len() + 1],
        })
    }

    /// Boundaries in nanoseconds, rising.
    pub fn boundaries(&self) -> &[u64] {
        &self.boundaries
    }

    /// Requests a bin: one more than there are boundaries.
    pub fn bins(&self) -> &[u64] {
        &self.bins
    }

    fn record(&mut self, duration_ns: u64) {
        let bin = self.boundaries.partition_point(|&at| at <= duration_ns);
        self.bins[bin] += 1;
    }

    fn add(&mut self, other: &Self) {
        // Shards that have not got new boundaries yet have nothing to add.
        if self.boundaries == other.boundaries {
            for (bin, more) in self.bins.iter_mut().zip(&other.bins) {
                *bin += more;
            }
        }
    }
}

/// What was asked of a disk.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    counters: [Counter; 5],
    histograms: [Option<Histogram>; 5],
    /// When the last request ended, in the shards' time; none: there was none.
    last_access_ns: Option<u64>,
}

impl Usage {
    /// Requests of one kind.
    pub fn counter(&self, operation: Operation) -> &Counter {
        &self.counters[operation as usize]
    }

    /// How long requests of one kind took, if that is recorded.
    pub fn histogram(&self, operation: Operation) -> Option<&Histogram> {
        self.histograms[operation as usize].as_ref()
    }

    /// Records from now on, from nothing; none: records no more.
    pub fn set_histogram(&mut self, operation: Operation, histogram: Option<Histogram>) {
        self.histograms[operation as usize] = histogram;
    }

    /// When the last request ended, as [`ringback_ring::Shard::now_ns`] counts.
    pub fn last_access_ns(&self) -> Option<u64> {
        self.last_access_ns
    }

    /// The same histograms, and nothing counted.
    pub(crate) fn emptied(&self) -> Self {
        let empty = |histogram: &Option<Histogram>| {
            histogram.as_ref().map(|histogram| Histogram {
                boundaries: histogram.boundaries.clone(),
                bins: vec![0; histogram.bins.len()],
            })
        };
        Self {
            histograms: self.histograms.each_ref().map(empty),
            ..Self::default()
        }
    }

    /// Adds what another one has counted.
    pub fn add(&mut self, other: &Self) {
        for (sum, more) in self.counters.iter_mut().zip(&other.counters) {
            sum.bytes += more.bytes;
            sum.operations += more.operations;
            sum.failed += more.failed;
            sum.invalid += more.invalid;
            sum.total_time_ns += more.total_time_ns;
        }
        for (sum, more) in self.histograms.iter_mut().zip(&other.histograms) {
            match (sum, more) {
                (Some(sum), Some(more)) => sum.add(more),
                (sum @ None, Some(more)) => *sum = Some(more.clone()),
                (_, None) => {}
            }
        }
        self.last_access_ns = self.last_access_ns.max(other.last_access_ns);
    }

    pub(crate) fn end(&mut self, started: Started, now_ns: u64, is_ok: bool) {
        let duration_ns = now_ns.saturating_sub(started.at_ns);
        let counter = &mut self.counters[started.operation as usize];
        if is_ok {
            counter.bytes += started.bytes;
            counter.operations += 1;
        } else {
            counter.failed += 1;
        }
        counter.total_time_ns += duration_ns;
        if let Some(histogram) = &mut self.histograms[started.operation as usize] {
            histogram.record(duration_ns);
        }
        self.last_access_ns = Some(now_ns);
    }

    pub(crate) fn refuse(&mut self, operation: Operation, now_ns: u64) {
        self.counters[operation as usize].invalid += 1;
        self.last_access_ns = Some(now_ns);
    }
}

/// A request that is counted when it ends.
#[derive(Clone, Copy, Debug)]
#[must_use = "a request counts when its end is told"]
pub struct Started {
    pub(crate) operation: Operation,
    pub(crate) bytes: u64,
    pub(crate) at_ns: u64,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn started(operation: Operation, bytes: u64) -> Started {
        Started {
            operation,
            bytes,
            at_ns: 100,
        }
    }

    #[test]
    fn boundaries_rise_from_above_zero() {
        for bad in [&[0][..], &[0, 1], &[2, 1], &[1, 1], &[1, 3, 2]] {
            assert_eq!(Histogram::new(bad), Err(BoundaryError), "{bad:?}");
        }
        for good in [&[][..], &[1], &[1, 2, u64::MAX]] {
            let histogram = Histogram::new(good).expect("they rise");
            assert_eq!(histogram.bins().len(), good.len() + 1);
        }
    }

    #[test]
    fn a_boundary_belongs_to_the_bin_above() {
        let mut histogram = Histogram::new(&[10, 50]).expect("they rise");
        for duration in [0, 9, 10, 49, 50, u64::MAX] {
            histogram.record(duration);
        }
        assert_eq!(histogram.bins(), [2, 2, 2]);
        let mut everything = Histogram::new(&[]).expect("nothing to rise");
        everything.record(5);
        assert_eq!(everything.bins(), [1]);
    }

    #[test]
    fn failed_and_refused_requests_count_apart() {
        let mut usage = Usage::default();
        assert_eq!(usage.last_access_ns(), None);
        usage.end(started(Operation::Write, 512), 130, true);
        usage.end(started(Operation::Write, 512), 150, false);
        usage.refuse(Operation::Read, 170);
        let written = Counter {
            bytes: 512,
            operations: 1,
            failed: 1,
            invalid: 0,
            total_time_ns: 80,
        };
        assert_eq!(*usage.counter(Operation::Write), written);
        assert_eq!(usage.counter(Operation::Read).invalid, 1);
        assert_eq!(*usage.counter(Operation::Flush), Counter::default());
        assert_eq!(usage.last_access_ns(), Some(170));
    }

    #[test]
    fn parts_are_added_up() {
        let mut one = Usage::default();
        let boundaries = Histogram::new(&[10]).expect("it rises");
        one.set_histogram(Operation::Read, Some(boundaries));
        let mut two = one.emptied();
        one.end(started(Operation::Read, 1), 105, true);
        two.end(started(Operation::Read, 2), 140, true);
        one.add(&two);
        let histogram = one.histogram(Operation::Read).expect("it is set");
        assert_eq!(histogram.bins(), [1, 1]);
        assert_eq!(one.counter(Operation::Read).bytes, 3);
        assert_eq!(one.last_access_ns(), Some(140));
        let empty = one.emptied();
        assert_eq!(
            empty.histogram(Operation::Read).map(Histogram::bins),
            Some(&[0, 0][..])
        );
        assert_eq!(*empty.counter(Operation::Read), Counter::default());
    }
}
