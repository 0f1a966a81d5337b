//! What the law remembers of guests and devices.

use crate::copy::guest::{BUCKETS, bucket, bucket_end};

/// Weights of latencies.
#[derive(Clone, Debug)]
pub(crate) struct Distribution {
    weights: [f64; BUCKETS],
    /// All together.
    pub(crate) total: f64,
}

impl Default for Distribution {
    fn default() -> Self {
        Self {
            weights: [0.0; BUCKETS],
            total: 0.0,
        }
    }
}

impl Distribution {
    pub(crate) fn decay(&mut self, share: f64) {
        self.weights.iter_mut().for_each(|weight| *weight *= share);
        self.total *= share;
    }

    pub(crate) fn add(&mut self, counts: &[u64; BUCKETS]) {
        for (weight, count) in self.weights.iter_mut().zip(counts) {
            *weight += *count as f64;
            self.total += *count as f64;
        }
    }

    /// The share of requests that take longer than this.
    pub(crate) fn share_above(&self, duration_ns: u64) -> f64 {
        let above = &self.weights[bucket(duration_ns) + 1..];
        above.iter().sum::<f64>() / self.total.max(1.0)
    }

    /// What this share of the requests does not exceed.
    pub(crate) fn quantile(&self, share: f64) -> Option<u64> {
        let mut above = self.total * (1.0 - share);
        if self.total < 0.5 {
            return None;
        }
        for (index, weight) in self.weights.iter().enumerate().rev() {
            above -= weight;
            if above < 0.0 {
                return Some(bucket_end(index));
            }
        }
        Some(bucket_end(0))
    }
}

/// The best of two generations of a measurement.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Best {
    young: Option<f64>,
    old: Option<f64>,
    since_ns: u64,
}

impl Best {
    pub(crate) fn age(&mut self, now_ns: u64, generation_ns: u64) {
        if now_ns.saturating_sub(self.since_ns) >= generation_ns && self.young.is_some() {
            self.old = self.young.take();
            self.since_ns = now_ns;
        }
    }

    pub(crate) fn put(&mut self, value: f64, better: fn(f64, f64) -> f64) {
        self.young = Some(self.young.map_or(value, |best| better(best, value)));
    }

    pub(crate) fn get(&self, better: fn(f64, f64) -> f64) -> Option<f64> {
        match (self.young, self.old) {
            (Some(young), Some(old)) => Some(better(young, old)),
            (young, old) => young.or(old),
        }
    }
}
