//! What a guest feels of the disk that is copied: how long its requests take
//! below the copy-before-write filter.
//!
//! Reads and writes count, from when the filter has let them pass to when the
//! disk has answered: not the waits that the filter itself adds. Flushes, zeroes
//! and discards do not, because they take long with nobody in the way.
//!
//! Each shard writes figures of its own, with no read-modify-write; whoever
//! wants them adds up. Nobody records while nobody wants them: then a request
//! costs one load.

use std::array;

use crate::sync::{AtomicU64, CachePadded, Ordering};

/// Shorter ones are not told apart: 4 us.
const SHORTEST_BITS: u32 = 12;
/// Nor are longer ones: 17 s.
const LONGEST_BITS: u32 = 34;
/// Buckets of one power of two.
const PER_OCTAVE_BITS: u32 = 2;

/// How many buckets there are.
pub const BUCKETS: usize = ((LONGEST_BITS - SHORTEST_BITS) << PER_OCTAVE_BITS) as usize;

/// The bucket of a duration.
pub fn bucket(duration_ns: u64) -> usize {
    let longest = (1 << LONGEST_BITS) - 1;
    let duration_ns = duration_ns.clamp(1 << SHORTEST_BITS, longest);
    let octave = duration_ns.ilog2();
    let within = (duration_ns >> (octave - PER_OCTAVE_BITS)) & ((1 << PER_OCTAVE_BITS) - 1);
    let octaves = (octave - SHORTEST_BITS) << PER_OCTAVE_BITS;
    octaves as usize + usize::try_from(within).expect("two bits")
}

/// The longest duration of a bucket, in nanoseconds.
pub fn bucket_end(bucket: usize) -> u64 {
    let octave = (bucket >> PER_OCTAVE_BITS) + SHORTEST_BITS as usize;
    let within = (bucket & ((1 << PER_OCTAVE_BITS) - 1)) as u64;
    let step = 1 << (octave - PER_OCTAVE_BITS as usize);
    (1 << octave) + (within + 1) * step - 1
}

/// Figures since the beginning, all shards together.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Counts {
    /// Requests that have begun.
    pub started: u64,
    /// Requests that have ended, by how long they took.
    pub ended: [u64; BUCKETS],
}

impl Default for Counts {
    fn default() -> Self {
        Self {
            started: 0,
            ended: [0; BUCKETS],
        }
    }
}

/// One shard's figures; only that shard writes them.
#[derive(Debug)]
struct Figures {
    started: AtomicU64,
    ended: [AtomicU64; BUCKETS],
}

impl Default for Figures {
    fn default() -> Self {
        Self {
            started: AtomicU64::new(0),
            ended: array::from_fn(|_| AtomicU64::new(0)),
        }
    }
}

fn increment(count: &AtomicU64) {
    // One writer: nothing is lost between the load and the store.
    count.store(count.load(Ordering::Relaxed) + 1, Ordering::Release);
}

/// The requests of a disk's guests.
#[derive(Debug)]
pub(crate) struct GuestWatch {
    /// How many want the figures.
    wanted: AtomicU64,
    shards: Box<[CachePadded<Figures>]>,
}

impl GuestWatch {
    pub(crate) fn new(shards: usize) -> Self {
        Self {
            wanted: AtomicU64::new(0),
            shards: (0..shards).map(|_| CachePadded::default()).collect(),
        }
    }

    /// Records until as many [`GuestWatch::forget`] have come.
    pub(crate) fn want(&self) {
        self.wanted.fetch_add(1, Ordering::Relaxed);
    }

    /// Somebody wants the figures no more.
    pub(crate) fn forget(&self) {
        self.wanted.fetch_sub(1, Ordering::Relaxed);
    }

    pub(crate) fn is_wanted(&self) -> bool {
        self.wanted.load(Ordering::Relaxed) > 0
    }

    /// A request has begun on the caller's shard; [`GuestWatch::end`] must follow.
    pub(crate) fn begin(&self, shard: usize) {
        increment(&self.shards[shard].started);
    }

    pub(crate) fn end(&self, shard: usize, duration_ns: u64) {
        increment(&self.shards[shard].ended[bucket(duration_ns)]);
    }

    /// What has been recorded. Ended requests are looked at first, so that none
    /// has ended before it has begun.
    pub(crate) fn counts(&self) -> Counts {
        let mut sum = Counts::default();
        for figures in &self.shards {
            for (sum, count) in sum.ended.iter_mut().zip(&figures.ended) {
                *sum += count.load(Ordering::Acquire);
            }
        }
        let started = self.shards.iter();
        sum.started = started
            .map(|figures| figures.started.load(Ordering::Acquire))
            .sum();
        sum
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buckets_are_a_quarter_of_an_octave() {
        assert_eq!(bucket(0), 0);
        assert_eq!(bucket(u64::MAX), BUCKETS - 1);
        for index in 0..BUCKETS {
            let end = bucket_end(index);
            assert_eq!(bucket(end), index, "{end}");
            assert_eq!(bucket(end + 1), (index + 1).min(BUCKETS - 1), "{end}");
        }
        assert_eq!(bucket_end(bucket(1_000_000)), (1 << 20) - 1);
    }

    #[test]
    fn shards_add_up() {
        let watch = GuestWatch::new(2);
        watch.begin(0);
        watch.begin(1);
        watch.begin(1);
        watch.end(1, 100_000);
        let counts = watch.counts();
        assert_eq!(counts.started, 3);
        assert_eq!(counts.ended[bucket(100_000)], 1);
        assert_eq!(counts.ended.iter().sum::<u64>(), 1);
        assert!(!watch.is_wanted());
        watch.want();
        assert!(watch.is_wanted());
        watch.forget();
        assert!(!watch.is_wanted());
    }
}
