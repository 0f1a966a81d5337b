//! The few numbers that a distribution of latencies comes down to.
//!
//! Nothing is measured here, and nothing is lost for good: the whole distribution goes into the
//! `.hgrm` files.

use hdrhistogram::Histogram;
use serde::Serialize;

/// A distribution of latencies in nanoseconds.
///
/// A percentile is the highest latency which the histogram cannot tell from the one at that place,
/// as everywhere in the world of `HdrHistogram`: never lower than the truth, and higher by less
/// than the histogram's precision. The maximum is meant in the same way.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub(crate) struct LatencySummary {
    /// How many requests there were.
    pub(crate) count: u64,
    /// The lowest latency.
    pub(crate) min_ns: u64,
    /// The mean of all.
    pub(crate) mean_ns: f64,
    /// The standard deviation.
    pub(crate) stdev_ns: f64,
    /// The median.
    pub(crate) p50_ns: u64,
    /// Nine of ten requests took no longer.
    pub(crate) p90_ns: u64,
    /// One of a hundred took longer.
    pub(crate) p99_ns: u64,
    /// One of a thousand took longer.
    pub(crate) p99_9_ns: u64,
    /// One of ten thousand took longer.
    pub(crate) p99_99_ns: u64,
    /// The highest latency.
    pub(crate) max_ns: u64,
}

impl LatencySummary {
    /// Sums up a histogram of nanoseconds; `None` if nothing was recorded, because a latency of
    /// zero would be a lie.
    pub(crate) fn of(histogram: &Histogram<u64>) -> Option<Self> {
        if histogram.is_empty() {
            return None;
        }
        Some(Self {
            count: histogram.len(),
            min_ns: histogram.min(),
            mean_ns: histogram.mean(),
            stdev_ns: histogram.stdev(),
            p50_ns: histogram.value_at_quantile(0.5),
            p90_ns: histogram.value_at_quantile(0.9),
            p99_ns: histogram.value_at_quantile(0.99),
            p99_9_ns: histogram.value_at_quantile(0.999),
            p99_99_ns: histogram.value_at_quantile(0.9999),
            max_ns: histogram.max(),
        })
    }

    /// What a table shows of it, in the order of `COLUMNS`.
    pub(crate) fn columns(&self) -> [u64; 6] {
        [
            self.p50_ns,
            self.p90_ns,
            self.p99_ns,
            self.p99_9_ns,
            self.p99_99_ns,
            self.max_ns,
        ]
    }
}

/// The headings of `LatencySummary::columns`.
pub(crate) const COLUMNS: [&str; 6] = ["p50", "p90", "p99", "p99.9", "p99.99", "max"];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_recorded_is_no_summary() {
        assert_eq!(LatencySummary::of(&Histogram::new(3).unwrap()), None);
    }

    #[test]
    fn a_summary_of_ten_thousand() {
        let mut histogram = Histogram::new_with_bounds(1, 60_000_000_000, 3).unwrap();
        (1..=10_000).for_each(|us| histogram.record(us * 1_000).unwrap());
        let summary = LatencySummary::of(&histogram).unwrap();
        assert_eq!(summary.count, 10_000);
        assert_eq!(summary.min_ns, 1_000);
        for (found, exact) in summary.columns().into_iter().zip([
            5_000_000, 9_000_000, 9_900_000, 9_990_000, 9_999_000, 10_000_000,
        ]) {
            // Three digits: at most one in a thousand high.
            assert!(
                (exact..=exact + exact / 1_000).contains(&found),
                "{found} for {exact}"
            );
        }
        assert!(
            (summary.mean_ns - 5_000_500.0).abs() < 2_500.0,
            "{}",
            summary.mean_ns
        );
    }

    #[test]
    fn fields_name_their_unit() {
        let mut histogram = Histogram::new(3).unwrap();
        histogram.record(7).unwrap();
        let json = serde_json::to_string(&LatencySummary::of(&histogram)).unwrap();
        assert_eq!(
            json,
            "{\"count\":1,\"min_ns\":7,\"mean_ns\":7.0,\"stdev_ns\":0.0,\"p50_ns\":7,\
             \"p90_ns\":7,\"p99_ns\":7,\"p99_9_ns\":7,\"p99_99_ns\":7,\"max_ns\":7}"
        );
    }
}
