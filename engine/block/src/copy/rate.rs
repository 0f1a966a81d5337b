//! A speed limit shared by all workers of a job.
//!
//! The limit is a point on the clock: up to where the bytes that were admitted
//! so far are paid for. Work is admitted while that point is not ahead of now;
//! a chunk is then admitted whole, however large, and pushes the point on. So
//! the smallest burst is one chunk, and idle time earns at most one slice.

use std::sync::atomic::{AtomicU64, Ordering};

/// Idle time is worth at most this much: 100 ms.
const SLICE_NS: u64 = 100_000_000;

/// Bytes a second, 0 for no limit.
#[derive(Debug, Default)]
pub struct Rate {
    bytes_per_second: AtomicU64,
    paid_until_ns: AtomicU64,
}

impl Rate {
    /// A limit of so many bytes a second; 0: none.
    pub fn new(bytes_per_second: u64) -> Self {
        Self {
            bytes_per_second: AtomicU64::new(bytes_per_second),
            paid_until_ns: AtomicU64::new(0),
        }
    }

    /// The limit in bytes a second, 0 for none.
    pub fn speed(&self) -> u64 {
        self.bytes_per_second.load(Ordering::Relaxed)
    }

    /// Changes the limit. Debt of the old one is forgiven.
    pub fn set_speed(&self, bytes_per_second: u64) {
        self.bytes_per_second
            .store(bytes_per_second, Ordering::Relaxed);
        self.paid_until_ns.store(0, Ordering::Relaxed);
    }

    /// When to come back; none: `bytes` are admitted now.
    pub(crate) fn admit(&self, now_ns: u64, bytes: u64) -> Option<u64> {
        let speed = self.speed();
        if speed == 0 {
            return None;
        }
        let cost = u64::try_from(u128::from(bytes) * 1_000_000_000 / u128::from(speed))
            .unwrap_or(u64::MAX);
        let mut paid = self.paid_until_ns.load(Ordering::Relaxed);
        loop {
            if paid > now_ns {
                return Some(paid);
            }
            let next = paid
                .max(now_ns.saturating_sub(SLICE_NS))
                .saturating_add(cost);
            let swapped = self.paid_until_ns.compare_exchange_weak(
                paid,
                next,
                Ordering::Relaxed,
                Ordering::Relaxed,
            );
            match swapped {
                Ok(_) => return None,
                Err(other) => paid = other,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_limit_admits_everything() {
        let rate = Rate::new(0);
        assert_eq!(rate.admit(0, u64::MAX), None);
        assert_eq!(rate.admit(0, u64::MAX), None);
    }

    #[test]
    fn a_chunk_is_admitted_whole_and_then_paid_for() {
        let second = 1_000_000_000;
        let rate = Rate::new(1 << 20);
        let start = 10 * second;
        assert_eq!(rate.admit(start, 1 << 20), None);
        // One slice had been earned.
        assert_eq!(rate.admit(start, 1), Some(start + second - SLICE_NS));
        assert_eq!(rate.admit(start + second, 1 << 20), None);
        rate.set_speed(1);
        assert_eq!(
            rate.admit(start + second, 1 << 20),
            None,
            "one chunk, then it sleeps"
        );
        assert!(rate.admit(start + 2 * second, 1).expect("a long sleep") > 1000 * second);
    }

    #[test]
    fn the_long_run_keeps_the_limit() {
        let rate = Rate::new(1000);
        let (mut now, mut bytes) = (1_000_000_000, 0u64);
        let end = now + 100_000_000_000;
        while now < end {
            match rate.admit(now, 7) {
                None => bytes += 7,
                Some(later) => now = later,
            }
        }
        assert!(
            (99_000..101_000).contains(&bytes),
            "{bytes} bytes in 100 s at 1000 a second"
        );
    }
}
