//! How much is written to a target between two flushes of it.
//!
//! Half of it after a flush that made the guest late, a little more after one that did
//! not. But where flushes *prevail*, taking more of the time than what lies between
//! them, or coming before the guest is through with what the last one held up, it is
//! not less that is to be written between them.

use crate::copy::governor::{Seen, whole};

const MIB: f64 = 1024.0 * 1024.0;
/// Bytes between two flushes.
const LEAST: f64 = MIB;
const MOST: f64 = 32.0 * MIB;
/// What becomes of them with a flush that the guest felt, and with another.
const CUT: f64 = 0.5;
const GROWTH: f64 = 1.25;

/// What flushes have done to the guest so far.
#[derive(Clone, Debug)]
pub(crate) struct Flushes {
    between: f64,
    /// The guest was late during the one that goes on.
    was_felt: bool,
    /// When that one began, the guest was not through with the one before.
    is_crowded: bool,
    prevail: bool,
    /// Requests that the guest had sent when the last one had ended.
    held_up: u64,
    /// How many have ended, how long all of them took, and when the last one had ended.
    ended: u64,
    took_ns: u64,
    ended_ns: u64,
}

impl Flushes {
    pub(crate) fn new(seen: &Seen) -> Self {
        Self {
            between: LEAST,
            was_felt: false,
            is_crowded: false,
            prevail: false,
            held_up: 0,
            ended: seen.flushes,
            took_ns: seen.flushing_ns,
            ended_ns: seen.now_ns,
        }
    }

    /// Bytes that may be written before a flush, beside a guest.
    pub(crate) fn between(&self) -> u64 {
        whole(self.between)
    }

    /// The same with no guest about.
    pub(crate) fn between_alone() -> u64 {
        whole(MOST)
    }

    /// There is little else than flushes.
    pub(crate) fn prevail(&self) -> bool {
        self.prevail
    }

    /// There is a flush, or one has ended since the last tick.
    pub(crate) fn are_seen(&self, seen: &Seen) -> bool {
        seen.is_flushing || seen.flushes > self.ended
    }

    /// One has begun since the last tick, when so many of the guest's requests had ended.
    pub(crate) fn begin(&mut self, requests_ended: u64) {
        self.is_crowded = requests_ended < self.held_up;
    }

    /// Whether the guest is late while there is one.
    pub(crate) fn feel(&mut self, is_late: bool) {
        self.was_felt |= is_late;
    }

    /// What has ended is over; if the guest was watched meanwhile it teaches something.
    pub(crate) fn follow(&mut self, seen: &Seen, is_watched: bool) {
        if seen.flushes == self.ended {
            return;
        }
        if is_watched {
            let took_ns = (seen.flushing_ns - self.took_ns) as f64;
            let all_ns = (seen.now_ns - self.ended_ns) as f64;
            self.prevail = self.is_crowded || took_ns >= all_ns / 2.0;
            let factor = if self.was_felt && !self.prevail {
                CUT
            } else {
                GROWTH
            };
            self.between = (self.between * factor).clamp(LEAST, MOST);
        }
        self.was_felt = false;
        self.is_crowded = false;
        self.held_up = seen.guest.started;
        self.ended = seen.flushes;
        self.took_ns = seen.flushing_ns;
        self.ended_ns = seen.now_ns;
    }
}
