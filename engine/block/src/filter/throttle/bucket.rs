//! Leaky buckets: what has passed is poured in, and leaks at a rate.
//!
//! A request waits while a bucket is over its size; then it passes, and all of
//! it is poured in, however large it is. So the next ones pay for it.
//!
//! # Units
//!
//! Levels are in 10^-9 of a unit (a byte or an operation): what leaks in a
//! nanosecond is then a whole number, and nothing is ever rounded but the end
//! of a wait, which is rounded up.

use super::limits::{Limits, Rate};

const NANO: u128 = 1_000_000_000;

/// What one limit has let pass and not forgotten yet.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Bucket {
    rate: Rate,
    level: u128,
    /// Of the second bucket, which limits how fast a long burst may be.
    burst_level: u128,
}

impl Bucket {
    fn new(rate: Rate) -> Self {
        Self {
            rate,
            ..Self::default()
        }
    }

    fn leak(&mut self, elapsed_ns: u64) {
        let leaked = |level: u128, rate: u64| {
            level.saturating_sub(u128::from(rate) * u128::from(elapsed_ns))
        };
        self.level = leaked(self.level, self.rate.avg);
        self.burst_level = leaked(self.burst_level, self.rate.max);
    }

    /// Nanoseconds until neither bucket is over its size.
    fn wait_ns(&self) -> u64 {
        let Rate {
            avg,
            max,
            max_length,
        } = self.rate;
        if avg == 0 {
            return 0;
        }
        let size = if max > 0 {
            u128::from(max) * u128::from(max_length) * NANO
        } else {
            u128::from(avg) * NANO / 10
        };
        let over = |level: u128, size: u128, rate: u64| {
            let wait = level.saturating_sub(size).div_ceil(u128::from(rate));
            u64::try_from(wait).unwrap_or(u64::MAX)
        };
        let wait = over(self.level, size, avg);
        if max_length > 1 {
            wait.max(over(self.burst_level, u128::from(max) * NANO / 10, max))
        } else {
            wait
        }
    }

    fn pour(&mut self, amount: u128) {
        if self.rate.avg > 0 {
            self.level = self.level.saturating_add(amount);
        }
        if self.rate.max_length > 1 {
            self.burst_level = self.burst_level.saturating_add(amount);
        }
    }
}

/// Where a request goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Direction {
    /// Out of the disk.
    Read,
    /// Writes, zero writes, discards.
    Write,
}

/// The six buckets of a group.
#[derive(Clone, Debug)]
pub(super) struct Buckets {
    limits: Limits,
    /// Total, reads, writes.
    bps: [Bucket; 3],
    iops: [Bucket; 3],
    leaked_ns: u64,
}

fn concerned(direction: Direction) -> [usize; 2] {
    match direction {
        Direction::Read => [0, 1],
        Direction::Write => [0, 2],
    }
}

impl Buckets {
    /// Empty ones, at an instant.
    pub(super) fn new(limits: Limits, now_ns: u64) -> Self {
        Self {
            limits,
            bps: limits.bps.all().map(Bucket::new),
            iops: limits.iops.all().map(Bucket::new),
            leaked_ns: now_ns,
        }
    }

    pub(super) fn limits(&self) -> Limits {
        self.limits
    }

    fn leak(&mut self, now_ns: u64) {
        // Clocks of two shards may be read in one order and used in another.
        let elapsed_ns = now_ns.saturating_sub(self.leaked_ns);
        self.leaked_ns = self.leaked_ns.max(now_ns);
        for bucket in self.bps.iter_mut().chain(&mut self.iops) {
            bucket.leak(elapsed_ns);
        }
    }

    /// How long a request must still wait, in nanoseconds.
    pub(super) fn wait_ns(&mut self, direction: Direction, now_ns: u64) -> u64 {
        self.leak(now_ns);
        concerned(direction)
            .into_iter()
            .flat_map(|index| [self.bps[index].wait_ns(), self.iops[index].wait_ns()])
            .max()
            .unwrap_or(0)
    }

    /// A request of so many bytes passes.
    pub(super) fn account(&mut self, direction: Direction, bytes: u64) {
        let bytes = u128::from(bytes) * NANO;
        let size = u128::from(self.limits.iops_size);
        let operations = if size > 0 && bytes > size * NANO {
            bytes / size
        } else {
            NANO
        };
        for index in concerned(direction) {
            self.bps[index].pour(bytes);
            self.iops[index].pour(operations);
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::filter::throttle::Rates;

    const SECOND: u64 = 1_000_000_000;

    fn bps(total: Rate) -> Limits {
        Limits {
            bps: Rates {
                total,
                ..Rates::default()
            },
            ..Limits::default()
        }
    }

    fn rate(avg: u64, max: u64, max_length: u64) -> Rate {
        Rate {
            avg,
            max,
            max_length,
        }
    }

    /// One request after the other; when each passes.
    fn run(limits: Limits, requests: &[(Direction, u64)]) -> Vec<u64> {
        let mut buckets = Buckets::new(limits, 0);
        let mut now = 0;
        requests
            .iter()
            .map(|&(direction, bytes)| {
                now += buckets.wait_ns(direction, now);
                assert_eq!(buckets.wait_ns(direction, now), 0);
                buckets.account(direction, bytes);
                now
            })
            .collect()
    }

    use Direction::{Read, Write};

    #[test]
    fn the_next_requests_pay() {
        // QEMU: 0 s, 0.96 s (1 MiB less the tenth), 1.03 s.
        let times = run(
            bps(rate(1_000_000, 0, 1)),
            &[(Read, 1 << 20), (Read, 65_536), (Write, 1), (Read, 1)],
        );
        assert_eq!(
            times,
            [0, 948_576_000, 948_576_000 + 65_536_000, 1_014_113_000]
        );
        // 100 000 bytes, exactly the size, do not hold the next one up.
        let times = run(
            bps(rate(1_000_000, 0, 1)),
            &[(Read, 100_000), (Read, 1), (Read, 1)],
        );
        assert_eq!(times, [0, 0, 1000]);
    }

    #[test]
    fn ten_operations_a_second_are_two_at_once_and_then_one_each_tenth() {
        let limits = Limits {
            iops: Rates {
                total: rate(10, 0, 1),
                ..Rates::default()
            },
            ..Limits::default()
        };
        let times = run(limits, &[(Read, 0), (Write, 512), (Read, 1), (Read, 9)]);
        assert_eq!(times, [0, 0, SECOND / 10, SECOND / 5]);
    }

    #[test]
    fn large_requests_are_several_operations() {
        let limits = Limits {
            iops: Rates {
                read: rate(10, 0, 1),
                ..Rates::default()
            },
            iops_size: 4096,
            ..Limits::default()
        };
        // Two and a half operations, one of them free, fifteen tenths to pay.
        let times = run(limits, &[(Read, 10_240), (Write, 1 << 30), (Read, 4096)]);
        assert_eq!(times, [0, 0, SECOND * 15 / 100]);
    }

    #[test]
    fn bursts_are_as_large_and_as_fast_as_allowed() {
        // 2 MB at once, then the plain rate.
        let at_once = bps(rate(1_000_000, 2_000_000, 1));
        let times = run(at_once, &[(Read, 2_000_000), (Read, 1_000_000), (Read, 1)]);
        assert_eq!(times, [0, 0, SECOND]);
        // Three seconds at 2 MB a second, then the plain rate.
        let long = bps(rate(1_000_000, 2_000_000, 3));
        let times = run(long, &[(Read, 1_000_000); 20]);
        assert_eq!(times[1], SECOND * 4 / 10, "a tenth of a second is free");
        // At 2 MB a second the first bucket fills with 1 MB a second.
        assert_eq!(times[11], SECOND * 54 / 10);
        assert_eq!(times[19] - times[18], SECOND);
    }

    /// The same in floating point numbers, all at once: what has passed by
    /// when.
    #[derive(Clone, Copy)]
    struct Model {
        avg: f64,
        size: f64,
        burst: Option<(f64, f64)>,
    }

    impl Model {
        fn new(rate: Rate) -> Self {
            let (avg, max, length) = (rate.avg as f64, rate.max as f64, rate.max_length as f64);
            Self {
                avg,
                size: if rate.max > 0 {
                    max * length
                } else {
                    avg / 10.0
                },
                burst: (rate.max_length > 1).then_some((max, max / 10.0)),
            }
        }

        /// When the next may pass, from those that passed: the level is the
        /// largest excess over what any suffix of time has leaked.
        fn next(&self, passed: &[(f64, f64)]) -> f64 {
            let end = |rate: f64, size: f64| {
                let mut best = 0.0_f64;
                let mut sum = 0.0;
                for &(at, amount) in passed.iter().rev() {
                    sum += amount;
                    best = best.max(at + (sum - size) / rate);
                }
                best
            };
            let plain = end(self.avg, self.size);
            self.burst
                .map_or(plain, |(rate, size)| plain.max(end(rate, size)))
        }
    }

    fn any_rate() -> impl Strategy<Value = Rate> {
        (1u64..5_000_000, 0u64..4, 1u64..5).prop_map(|(avg, factor, length)| {
            let length = if factor == 0 { 1 } else { length };
            rate(avg, avg * factor, length)
        })
    }

    proptest! {
        #[test]
        fn buckets_do_as_the_model_says(
            rate in any_rate(),
            requests in prop::collection::vec((0u64..1_000_000, 0u64..SECOND), 1..40),
        ) {
            let mut buckets = Buckets::new(bps(rate), 0);
            let model = Model::new(rate);
            let mut passed = Vec::new();
            let mut now = 0u64;
            for (bytes, pause) in requests {
                now += pause;
                let wait = buckets.wait_ns(Read, now);
                let expected = (model.next(&passed) * 1e9 - now as f64).max(0.0);
                prop_assert!((wait as f64 - expected).abs() < 1e4, "{wait} is not {expected}");
                now += wait;
                buckets.account(Read, bytes);
                passed.push((now as f64 / 1e9, bytes as f64));
            }
        }

        #[test]
        fn no_interval_sees_more_than_a_burst_and_the_rate(
            rate in any_rate(),
            requests in prop::collection::vec((1u64..300_000, 0u64..SECOND / 2), 1..60),
        ) {
            let mut buckets = Buckets::new(bps(rate), 0);
            let mut now = 0u64;
            let mut passed: Vec<(u64, u64)> = Vec::new();
            for (bytes, pause) in requests {
                now += pause;
                now += buckets.wait_ns(Write, now);
                buckets.account(Write, bytes);
                passed.push((now, bytes));
            }
            let size = if rate.max > 0 { rate.max * rate.max_length } else { rate.avg / 10 + 1 };
            for first in 0..passed.len() {
                let mut sum = 0u128;
                for &(at, bytes) in &passed[first..] {
                    // The last one passes whole.
                    let elapsed = u128::from(at - passed[first].0);
                    let allowed = u128::from(size) + u128::from(rate.avg) * elapsed / NANO + 1;
                    prop_assert!(sum <= allowed);
                    if rate.max_length > 1 {
                        let fast = u128::from(rate.max / 10 + 1)
                            + u128::from(rate.max) * elapsed / NANO + 1;
                        prop_assert!(sum <= fast);
                    }
                    sum += u128::from(bytes);
                }
            }
        }
    }
}
