//! A guest's pauses between its requests.
//!
//! Who sends one request after the other at a pace of its own falls behind when there
//! is no pause left, and is late by more and more from then on. So some are left to it.

use crate::copy::governor::Seen;

/// So much of the time that the guest pauses alone may be taken from it.
const TAKEN: f64 = 0.6;
/// No more is kept, nor made up for.
const PRESSED_MAX_NS: f64 = 10e6;
/// Longer pauses are believed at once, shorter ones by this share each time: who has
/// fallen behind makes none. More if next to nothing is copied: then it is somebody else
/// who takes them.
const BUSIER: f64 = 1.0 / 16.0;
const BUSIER_BY_OTHERS: f64 = 1.0 / 4.0;

/// How busy the guest is alone, and how busy it has been since.
#[derive(Clone, Debug)]
pub(crate) struct Pauses {
    /// How long the guest had been busy when it was listened to.
    heard_from_ns: u64,
    /// The share of the time that it is busy alone.
    alone: Option<f64>,
    /// For how much longer than it may be.
    pressed_ns: f64,
}

impl Pauses {
    pub(crate) fn new(seen: &Seen) -> Self {
        Self {
            heard_from_ns: seen.guest.busy_ns,
            alone: None,
            pressed_ns: 0.0,
        }
    }

    /// The guest is alone from now on.
    pub(crate) fn listen(&mut self, seen: &Seen) {
        self.heard_from_ns = seen.guest.busy_ns;
    }

    /// It was, since then.
    pub(crate) fn learn(&mut self, seen: &Seen, since_ns: u64, is_next_to_nothing_copied: bool) {
        let Some(heard) = busy_share(seen, since_ns, self.heard_from_ns) else {
            return;
        };
        let share = if is_next_to_nothing_copied {
            BUSIER_BY_OTHERS
        } else {
            BUSIER
        };
        let known = self.alone.unwrap_or(heard);
        self.alone = Some(heard.min(known + (heard - known) * share));
    }

    /// It was not, since `before`.
    pub(crate) fn press(&mut self, seen: &Seen, before: &Seen) {
        let now = busy_share(seen, before.now_ns, before.guest.busy_ns);
        let (Some(alone), Some(now)) = (self.alone, now) else {
            return;
        };
        let may_be = alone + (1.0 - alone) * TAKEN;
        let more_ns = (now - may_be) * (seen.now_ns - before.now_ns) as f64;
        self.pressed_ns = (self.pressed_ns + more_ns).clamp(-PRESSED_MAX_NS, PRESSED_MAX_NS);
    }

    /// What was is over.
    pub(crate) fn forgive(&mut self) {
        self.pressed_ns = 0.0;
    }

    /// It has had fewer than are left to it, and none to spare.
    pub(crate) fn are_gone(&self) -> bool {
        self.pressed_ns >= PRESSED_MAX_NS
    }

    /// It has had what is left to it.
    pub(crate) fn are_enough(&self) -> bool {
        self.pressed_ns <= 0.0
    }
}

/// The share of the time since then that the guest was busy, on average over the
/// shards that it uses. None: it uses none, or no time has passed.
fn busy_share(seen: &Seen, since_ns: u64, busy_ns: u64) -> Option<f64> {
    let all_ns = seen.guest.shards * (seen.now_ns - since_ns);
    let busy_ns = seen.guest.busy_ns.saturating_sub(busy_ns);
    (all_ns > 0).then(|| (busy_ns as f64 / all_ns as f64).min(1.0))
}
