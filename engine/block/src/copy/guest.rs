//! What a guest feels of the disk that is copied: how long its requests take
//! from the copy-before-write filter on, and how much of the time it has some in flight.
//!
//! Reads and writes count, with what they wait for in the filter: the saves go to the
//! same devices as the copies. Flushes, zeroes and discards do not count, because they
//! take long with nobody in the way.
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
    /// For how long there was a request in flight on a shard, in nanoseconds, all shards
    /// added up.
    pub busy_ns: u64,
    /// Shards on which there has been one.
    pub shards: u64,
}

impl Default for Counts {
    fn default() -> Self {
        Self {
            started: 0,
            ended: [0; BUCKETS],
            busy_ns: 0,
            shards: 0,
        }
    }
}

/// One shard's figures; only that shard writes them.
#[derive(Debug)]
struct Figures {
    started: AtomicU64,
    ended: [AtomicU64; BUCKETS],
    in_flight: AtomicU64,
    /// Since when, if there is any.
    busy_since_ns: AtomicU64,
    busy_ns: AtomicU64,
}

impl Default for Figures {
    fn default() -> Self {
        Self {
            started: AtomicU64::new(0),
            ended: array::from_fn(|_| AtomicU64::new(0)),
            in_flight: AtomicU64::new(0),
            busy_since_ns: AtomicU64::new(0),
            busy_ns: AtomicU64::new(0),
        }
    }
}

/// Answers what it was before.
fn add(count: &AtomicU64, more: u64) -> u64 {
    // One writer: nothing is lost between the load and the store.
    let before = count.load(Ordering::Relaxed);
    count.store(before.wrapping_add(more), Ordering::Release);
    before
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
    pub(crate) fn begin(&self, shard: usize, now_ns: u64) {
        let figures = &self.shards[shard];
        add(&figures.started, 1);
        if add(&figures.in_flight, 1) == 0 {
            figures.busy_since_ns.store(now_ns, Ordering::Release);
        }
    }

    pub(crate) fn end(&self, shard: usize, since_ns: u64, now_ns: u64) {
        let figures = &self.shards[shard];
        add(&figures.ended[bucket(now_ns - since_ns)], 1);
        if add(&figures.in_flight, 1_u64.wrapping_neg()) == 1 {
            let busy_since_ns = figures.busy_since_ns.load(Ordering::Relaxed);
            add(&figures.busy_ns, now_ns - busy_since_ns);
        }
    }

    /// What has been recorded. Ended requests are looked at first, so that none
    /// has ended before it has begun. How busy a shard was may be off by what
    /// changes meanwhile.
    pub(crate) fn counts(&self, now_ns: u64) -> Counts {
        let mut sum = Counts::default();
        for figures in &self.shards {
            sum.busy_ns += figures.busy_ns.load(Ordering::Acquire);
            if figures.in_flight.load(Ordering::Acquire) > 0 {
                let since_ns = figures.busy_since_ns.load(Ordering::Acquire);
                sum.busy_ns += now_ns.saturating_sub(since_ns);
            }
            for (sum, count) in sum.ended.iter_mut().zip(&figures.ended) {
                *sum += count.load(Ordering::Acquire);
            }
        }
        for figures in &self.shards {
            let started = figures.started.load(Ordering::Acquire);
            sum.started += started;
            sum.shards += u64::from(started > 0);
        }
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
        watch.begin(0, 1_000_000);
        watch.begin(1, 1_000_000);
        watch.begin(1, 1_010_000);
        watch.end(1, 1_000_000, 1_100_000);
        let counts = watch.counts(1_200_000);
        assert_eq!(counts.started, 3);
        assert_eq!(counts.ended[bucket(100_000)], 1);
        assert_eq!(counts.ended.iter().sum::<u64>(), 1);
        assert_eq!((counts.busy_ns, counts.shards), (400_000, 2));
        watch.end(1, 1_010_000, 1_300_000);
        watch.end(0, 1_000_000, 1_400_000);
        assert_eq!(watch.counts(9_000_000).busy_ns, 700_000);
        assert!(!watch.is_wanted());
        watch.want();
        assert!(watch.is_wanted());
        watch.forget();
        assert!(!watch.is_wanted());
    }
}
